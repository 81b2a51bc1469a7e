//! Memory that crosses the C interface: buffers of the server that plugins hold, and plugins' memory that the server uses.
//!
//! ```text
//! ours to them     Buffer: an Arc behind a pointer, counted by buffer_retain and buffer_release
//! theirs to us     Lender: calls their release function when the last tensor over the memory is gone
//! ```
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use bytes::Bytes;

use super::Library;
use crate::error::{Error, Result};
use crate::plugin::abi;
use crate::tensor::{Batch, Data, Tensor};

/// Where memory of `alloc` begins: a cache line, which is more than any element needs.
const ALIGNMENT: usize = 64;

/// What empty tensors point at: aligned for any element.
#[repr(align(64))]
struct Nothing([u8; 64]);
static NOTHING: Nothing = Nothing([0; 64]);

/// Memory of ours that plugins see: `mdm_buffer`.
pub(super) enum Buffer {
    /// A tensor's bytes.
    Tensor { data: Bytes, offsets: Bytes },
    /// What a plugin asked for, and may still write to.
    Block { start: NonNull<u8>, bytes: usize },
}

/// A new [`Buffer::Block`], and where it begins.
pub(super) type Block = (Arc<Buffer>, *mut c_void);

// SAFETY: a block is plain memory that this value owns; whoever writes to it keeps to the interface's rules.
unsafe impl Send for Buffer {}
// SAFETY: as above; nothing here writes.
unsafe impl Sync for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Buffer::Block { start, bytes } = self
            && let Some(layout) = layout(*bytes)
        {
            // SAFETY: it was allocated in `block` with this layout.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}

/// An empty block has a byte too, for it needs an address.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()
}

impl Buffer {
    /// A block of zeros. `None` if there is no memory.
    pub(super) fn block(bytes: u64) -> Option<Block> {
        let bytes = usize::try_from(bytes).ok()?;
        let layout = layout(bytes)?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let buffer = Arc::new(Buffer::Block { start, bytes });
        Some((buffer, start.as_ptr().cast()))
    }

    /// The memory at an address, if all of it is part of this buffer.
    pub(super) fn part(self: &Arc<Buffer>, start: usize, bytes: usize) -> Option<Bytes> {
        let within = |first: usize, length: usize| {
            start >= first && bytes <= length && start - first <= length - bytes
        };
        match &**self {
            Buffer::Tensor { data, offsets } => [data, offsets].into_iter().find_map(|memory| {
                let first = memory.as_ptr().addr();
                within(first, memory.len())
                    .then(|| memory.slice(start - first..start - first + bytes))
            }),
            Buffer::Block {
                start: first,
                bytes: length,
            } => {
                let first = first.as_ptr();
                within(first.addr(), *length).then(|| {
                    Bytes::from_owner(BlockSlice {
                        // Within the block, as was just seen.
                        start: first.wrapping_add(start - first.addr()),
                        bytes,
                        _buffer: self.clone(),
                    })
                })
            }
        }
    }

    /// The pointer that plugins know it by. It holds a share, which `take` takes back.
    pub(super) fn into_raw(self: Arc<Buffer>) -> *mut abi::Buffer {
        Arc::into_raw(self).cast_mut().cast()
    }

    fn as_raw(self: &Arc<Buffer>) -> *mut abi::Buffer {
        Arc::as_ptr(self).cast_mut().cast()
    }

    /// One more share of a buffer that a plugin named.
    ///
    /// # Safety
    /// The pointer must be a live buffer's.
    pub(super) unsafe fn share(raw: *mut abi::Buffer) -> Arc<Buffer> {
        // SAFETY: the caller answers for it; the share that is counted here is the one that is returned.
        unsafe {
            Arc::increment_strong_count(raw.cast::<Buffer>());
            Arc::from_raw(raw.cast::<Buffer>())
        }
    }

    /// Takes back a share that a plugin had.
    ///
    /// # Safety
    /// The pointer must be a live buffer's, and the plugin one of its holders.
    pub(super) unsafe fn take(raw: *mut abi::Buffer) -> Arc<Buffer> {
        // SAFETY: the caller answers for it.
        unsafe { Arc::from_raw(raw.cast::<Buffer>()) }
    }
}

/// A piece of a block.
struct BlockSlice {
    start: *const u8,
    bytes: usize,
    _buffer: Arc<Buffer>,
}

// SAFETY: the memory belongs to the buffer, which is Send and Sync.
unsafe impl Send for BlockSlice {}

impl AsRef<[u8]> for BlockSlice {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `Buffer::part` has seen that it lies in the block, which the buffer keeps; blocks are filled when
        // they are made, and a plugin does not write to them any more once it gave them out.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

/// Memory that a plugin lends, and the function that gives it back.
pub(super) struct Lender {
    owner: *mut c_void,
    release: abi::Release,
    /// The release function is in there. Dropped after it was called.
    _library: Arc<Library>,
}

// SAFETY: the interface says that `release` may be called from any thread; nothing else is done with the owner.
unsafe impl Send for Lender {}
// SAFETY: as above.
unsafe impl Sync for Lender {}

impl Lender {
    pub(super) fn new(
        owner: *mut c_void,
        release: abi::Release,
        library: Arc<Library>,
    ) -> Arc<Lender> {
        Arc::new(Lender {
            owner,
            release,
            _library: library,
        })
    }

    /// Whether it lends for that owner.
    pub(super) fn is_of(&self, owner: *mut c_void) -> bool {
        self.owner == owner
    }
}

impl Drop for Lender {
    fn drop(&mut self) {
        // SAFETY: a plugin gave both together, its library is still open, and this is the one call.
        unsafe { (self.release)(self.owner) }
    }
}

/// Borrowed memory: a plugin's, or (without a lender) memory that the caller of [`lent`] keeps alive for longer.
pub(super) struct Lent {
    start: *const u8,
    bytes: usize,
    _lender: Option<Arc<Lender>>,
}

// SAFETY: the memory is only read; the lender is Send.
unsafe impl Send for Lent {}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `lent` was promised that the memory is there.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
}

/// Borrowed memory as [`Bytes`], without a copy.
///
/// # Safety
/// So many bytes must be there, and stay as they are until the lender is told, or (without one) until the result and
/// all that shares it is dropped.
pub(super) unsafe fn lent(start: *const u8, bytes: usize, lender: Option<Arc<Lender>>) -> Bytes {
    if bytes == 0 {
        return Bytes::new();
    }
    Bytes::from_owner(Lent {
        start,
        bytes,
        _lender: lender,
    })
}

/// Tensors as plugins see them: the views, and what they point at.
#[derive(Default)]
pub(super) struct Shown {
    views: Vec<abi::Tensor>,
    buffers: Vec<Arc<Buffer>>,
    /// Names and shapes are in here.
    batch: Batch,
}

impl Shown {
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no memory for a tensor that has to be moved.
    pub(super) fn of(batch: &Batch) -> Result<Shown> {
        Shown::with(batch, Buffer::block)
    }

    /// As [`Shown::of`], with memory from there.
    pub(super) fn with(batch: &Batch, block: impl Fn(u64) -> Option<Block>) -> Result<Shown> {
        let mut shown = Shown {
            views: Vec::with_capacity(batch.tensors.len()),
            buffers: Vec::with_capacity(batch.tensors.len()),
            batch: batch.clone(),
        };
        for tensor in &shown.batch.tensors {
            let aligned = |bytes: &Bytes, size: usize| {
                aligned(bytes, size, &block)
                    .map_err(|e| e.context(format_args!("tensor {:?}", tensor.name())))
            };
            let (data, offsets) = match tensor.data() {
                Data::Fixed(bytes) => {
                    let size = tensor.datatype().size().unwrap_or(1);
                    (aligned(bytes, size)?, Bytes::new())
                }
                Data::Variable { offsets, values } => (values.clone(), aligned(offsets, 8)?),
            };
            let buffer = Arc::new(Buffer::Tensor { data, offsets });
            let view = view(tensor, &buffer);
            shown.views.push(view);
            shown.buffers.push(buffer);
        }
        Ok(shown)
    }

    /// For a plugin, for as long as this lives.
    pub(super) fn views(&self) -> &[abi::Tensor] {
        &self.views
    }

    /// The buffer of ours that a piece of memory lies in.
    pub(super) fn holder(&self, start: usize, bytes: usize) -> Option<Bytes> {
        self.buffers
            .iter()
            .find_map(|buffer| buffer.part(start, bytes))
    }
}

/// Plugins are promised aligned elements. Small received frames and slices of rows can be at odd addresses: those are
/// copied, for there is no other way to move them.
///
/// # Errors
/// `RESOURCE_EXHAUSTED` if there is no memory to copy them to.
fn aligned(bytes: &Bytes, size: usize, block: impl Fn(u64) -> Option<Block>) -> Result<Bytes> {
    if bytes.as_ptr().addr().is_multiple_of(size) || bytes.is_empty() {
        return Ok(bytes.clone());
    }
    let no_memory = || {
        let bytes = bytes.len();
        Error::exhausted(format!("no memory to align its {bytes} bytes for a plugin"))
    };
    let (buffer, start) = block(bytes.len() as u64).ok_or_else(no_memory)?;
    // SAFETY: the block was just made, with room for as many bytes.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start.cast(), bytes.len()) };
    buffer
        .part(start.addr(), bytes.len())
        .ok_or_else(|| Error::internal("a block that is not where it begins"))
}

fn view(tensor: &Tensor, buffer: &Arc<Buffer>) -> abi::Tensor {
    let address = |bytes: &Bytes| {
        if bytes.is_empty() {
            NOTHING.0.as_ptr()
        } else {
            bytes.as_ptr()
        }
    };
    let (data, offsets) = match &**buffer {
        Buffer::Tensor { data, offsets } => (data.clone(), offsets.clone()),
        Buffer::Block { .. } => (Bytes::new(), Bytes::new()), // `Shown` makes none of these
    };
    abi::Tensor {
        name: abi::Str::of(tensor.name()),
        datatype: abi::datatype_number(tensor.datatype()),
        rank: tensor.shape().len() as u32,
        // usize is u64 here, see abi.rs.
        shape: tensor.shape().as_ptr().cast(),
        data: address(&data).cast(),
        data_bytes: data.len() as u64,
        offsets: if offsets.is_empty() {
            ptr::null()
        } else {
            offsets.as_ptr().cast()
        },
        offset_count: (offsets.len() / 8) as u64,
        buffer: buffer.as_raw(),
    }
}
