//! Checks a plugin's outputs. Nothing is read before its length was checked.
#![allow(unsafe_code)] // a C interface: pointers in, pointers out

use std::ffi::c_void;
use std::slice;
use std::sync::Arc;

use bytes::Bytes;

use super::Library;
use super::memory::{Buffer, Lender, Shown, lent};
use super::text::read_text;
use crate::error::{Error, Result};
use crate::plugin::abi;
use crate::signature::{Port, Signature};
use crate::tensor::{Batch, Data, DataType, Tensor, element_count};

/// Most outputs of a call.
const MOST_OUTPUTS: usize = 1024;
/// Most bytes of an output's name.
const MOST_NAME_BYTES: u64 = 4096;

/// The outputs of a call, and what they are checked against.
pub(super) struct Outputs<'a> {
    library: &'a Arc<Library>,
    inputs: Option<&'a Shown>,
    ports: Option<&'a [Port]>,
    rows: Option<usize>,
    tensors: Vec<Tensor>,
    /// Kept until the call has ended: another owner could have the address of one that was released.
    lenders: Vec<Arc<Lender>>,
    lent: Vec<(usize, usize)>,
}

/// A piece of a plugin's memory, whose length does not wrap around.
#[derive(Clone, Copy)]
struct Piece {
    start: *const u8,
    bytes: usize,
}

impl Piece {
    fn of(what: &str, start: *const u8, bytes: u64) -> Result<Piece> {
        let length = usize::try_from(bytes)
            .ok()
            .filter(|&n| n <= isize::MAX as usize);
        let fits = length.and_then(|length| start.addr().checked_add(length));
        let (Some(length), Some(_)) = (length, fits) else {
            return Err(Error::internal(format!(
                "{what} of {bytes} bytes are more than memory can hold"
            )));
        };
        if start.is_null() && length > 0 {
            return Err(Error::internal(format!(
                "{what} is NULL, expected {length} bytes"
            )));
        }
        Ok(Piece {
            start,
            bytes: length,
        })
    }

    fn range(self) -> (usize, usize) {
        (self.start.addr(), self.start.addr() + self.bytes)
    }

    fn overlaps(self, (from, to): (usize, usize)) -> bool {
        let (start, end) = self.range();
        self.bytes > 0 && start < to && from < end
    }

    /// # Safety
    /// The memory must be there.
    unsafe fn copied(self) -> Bytes {
        if self.bytes == 0 {
            return Bytes::new();
        }
        // SAFETY: the caller answers for it.
        Bytes::copy_from_slice(unsafe { slice::from_raw_parts(self.start, self.bytes) })
    }
}

impl<'a> Outputs<'a> {
    /// For calls that have no outputs.
    pub(super) fn none(library: &'a Arc<Library>) -> Outputs<'a> {
        Outputs {
            library,
            inputs: None,
            ports: None,
            rows: None,
            tensors: Vec::new(),
            lenders: Vec::new(),
            lent: Vec::new(),
        }
    }

    /// For a call whose outputs have to fit a signature, and have so many rows if they are counted.
    pub(super) fn expected(
        library: &'a Arc<Library>,
        inputs: &'a Shown,
        signature: &'a Signature,
        rows: Option<usize>,
    ) -> Outputs<'a> {
        Outputs {
            inputs: Some(inputs),
            ports: signature.outputs.as_deref(),
            rows,
            ..Outputs::none(library)
        }
    }

    /// Checks an output and takes it. With a release function its memory is given back exactly once, whatever comes.
    ///
    /// # Errors
    /// `INTERNAL`: what does not fit, expected and got.
    ///
    /// # Safety
    /// Pointers that are not NULL must be what the interface says.
    pub(super) unsafe fn take(
        &mut self,
        tensor: *const abi::Tensor,
        owner: *mut c_void,
        release: Option<abi::Release>,
    ) -> Result<()> {
        let lender = match release {
            Some(_) if !owner.is_null() && self.lenders.iter().any(|l| l.is_of(owner)) => {
                // Released already, or about to be: a second time would free it twice.
                return Err(Error::internal(
                    "an output has the same owner as an earlier one of this call; each needs its own",
                ));
            }
            Some(release) => {
                let lender = Lender::new(owner, release, self.library.clone());
                self.lenders.push(lender.clone());
                Some(lender)
            }
            None => None,
        };
        if tensor.is_null() || !tensor.is_aligned() {
            return Err(Error::internal("an output's tensor is NULL"));
        }
        // SAFETY: not NULL, so it is a tensor.
        let raw = unsafe { *tensor };
        // SAFETY: a plugin's texts are as long as they say.
        let name = unsafe { read_text(raw.name, MOST_NAME_BYTES) }
            .map_err(|why| Error::internal(format!("an output's name {why}")))?;
        // SAFETY: the caller answers for the pointers.
        let checked = unsafe { self.checked(&name, &raw, lender) };
        let tensor = checked.map_err(|e| e.context(format_args!("output {name:?}")))?;
        self.tensors.push(tensor);
        Ok(())
    }

    /// # Safety
    /// As [`Outputs::take`].
    unsafe fn checked(
        &mut self,
        name: &str,
        raw: &abi::Tensor,
        lender: Option<Arc<Lender>>,
    ) -> Result<Tensor> {
        if self.inputs.is_none() {
            return Err(Error::internal("`output` was called outside of infer"));
        }
        if self.tensors.len() >= MOST_OUTPUTS {
            return Err(Error::internal(format!(
                "it is one too many: {MOST_OUTPUTS} is the most"
            )));
        }
        if self.tensors.iter().any(|tensor| tensor.name() == name) {
            return Err(Error::internal("it is given twice"));
        }
        let datatype = abi::datatype_of(raw.datatype).ok_or_else(|| {
            Error::internal(format!(
                "datatype {}, expected 1 to {}",
                raw.datatype,
                DataType::ALL.len()
            ))
        })?;
        if raw.rank > abi::MAX_RANK {
            return Err(Error::internal(format!(
                "{} dimensions, and {} is the most",
                raw.rank,
                abi::MAX_RANK
            )));
        }
        if raw.rank > 0 && raw.shape.is_null() {
            return Err(Error::internal(format!(
                "its shape is NULL, expected {} dimensions",
                raw.rank
            )));
        }
        let shape: Vec<usize> = (0..raw.rank as usize)
            // SAFETY: there are `rank` of them; wherever they lie.
            .map(|axis| unsafe { raw.shape.add(axis).read_unaligned() } as usize)
            .collect();
        self.expect(name, datatype, &shape)?;
        // The same bound as a tensor's own, before anything is multiplied.
        let elements = element_count(&shape)
            .filter(|&n| n <= isize::MAX as usize / 16)
            .ok_or_else(|| {
                Error::internal(format!(
                    "shape {shape:?} has more elements than memory can hold"
                ))
            })?;
        let values = Piece::of("its data", raw.data.cast(), raw.data_bytes)?;
        let offsets = match datatype.size() {
            Some(size) => {
                let expected = elements * size;
                if values.bytes != expected {
                    return Err(Error::internal(format!(
                        "{datatype} {shape:?} takes {expected} bytes, got {}",
                        values.bytes
                    )));
                }
                None
            }
            None => {
                if raw.offset_count != elements as u64 + 1 {
                    return Err(Error::internal(format!(
                        "{datatype} {shape:?} takes {} offsets, got {}",
                        elements + 1,
                        raw.offset_count
                    )));
                }
                let start = raw.offsets.cast();
                Some(Piece::of("its offsets", start, raw.offset_count * 8)?)
            }
        };
        if let Some(offsets) = offsets
            && values.overlaps(offsets.range())
        {
            return Err(Error::internal("its offsets and its values overlap"));
        }
        // SAFETY: the caller answers for the pointers; lengths and NULL are checked.
        let data = unsafe { self.adopted(raw, values, offsets, lender)? };
        let data = match (data, datatype.size()) {
            ((values, _), Some(_)) => Data::Fixed(values),
            ((values, offsets), None) => Data::Variable { offsets, values },
        };
        // The rest of the checks: BOOL bytes, and offsets that ascend to the end of the values.
        Tensor::new(name, datatype, shape, data).map_err(|e| Error::internal(e.message()))
    }

    /// The memory of an output: values and offsets.
    ///
    /// # Safety
    /// Both pieces must be there, and with a lender stay so until it is told.
    unsafe fn adopted(
        &mut self,
        raw: &abi::Tensor,
        values: Piece,
        offsets: Option<Piece>,
        lender: Option<Arc<Lender>>,
    ) -> Result<(Bytes, Bytes)> {
        let nothing = Piece {
            start: std::ptr::null(),
            bytes: 0,
        };
        let offsets = offsets.unwrap_or(nothing);
        if let Some(lender) = lender {
            for piece in [values, offsets] {
                if self.lent.iter().any(|&range| piece.overlaps(range)) {
                    return Err(Error::internal(
                        "its memory overlaps that of an earlier output of this call, and both are lent",
                    ));
                }
            }
            self.lent.extend([values.range(), offsets.range()]);
            let adopt = |piece: Piece| {
                // An input's memory is kept alive by us, too: a plugin may lend what it does not hold.
                let input = self
                    .inputs
                    .and_then(|i| i.holder(piece.start.addr(), piece.bytes));
                match input {
                    Some(input) if piece.bytes > 0 => input,
                    // SAFETY: the plugin promises the memory until its release function is called.
                    _ => unsafe { lent(piece.start, piece.bytes, Some(lender.clone())) },
                }
            };
            return Ok((adopt(values), adopt(offsets)));
        }
        if raw.buffer.is_null() {
            // SAFETY: the caller answers for it.
            return Ok(unsafe { (values.copied(), offsets.copied()) });
        }
        // SAFETY: a buffer that a plugin names is one that it was shown or holds.
        let buffer = unsafe { Buffer::share(raw.buffer) };
        let part = |piece: Piece| buffer.part(piece.start.addr(), piece.bytes);
        let data = if values.bytes == 0 {
            Bytes::new()
        } else {
            part(values).ok_or_else(|| {
                Error::internal(format!(
                    "its {} bytes of data are not all inside the buffer that it names",
                    values.bytes
                ))
            })?
        };
        // Offsets may be made anew over values that stay where they are.
        // SAFETY: the caller answers for them.
        let offsets = part(offsets).unwrap_or_else(|| unsafe { offsets.copied() });
        Ok((data, offsets))
    }

    /// What was declared of an output.
    fn expect(&self, name: &str, datatype: DataType, shape: &[usize]) -> Result<()> {
        if let Some(rows) = self.rows
            && shape.first() != Some(&rows)
        {
            return Err(Error::internal(format!(
                "shape {shape:?} for {rows} rows: expected a row for each (or \"rows\": \"whole\")"
            ))
            .about_row_count());
        }
        let Some(ports) = self.ports else {
            return Ok(());
        };
        let Some(port) = ports.iter().find(|port| port.name == name) else {
            let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            return Err(Error::internal(format!(
                "it was not declared, expected {names:?}"
            )));
        };
        if port.datatype != datatype {
            return Err(Error::internal(format!(
                "expected {}, got {datatype}",
                port.datatype
            )));
        }
        if !port.fits(shape) {
            return Err(Error::internal(format!(
                "expected shape {}, got {shape:?}",
                port.shown_shape()
            )));
        }
        Ok(())
    }

    /// The outputs, in the order in which they were declared.
    ///
    /// # Errors
    /// `INTERNAL`, naming the output that is missing.
    pub(super) fn finish(self) -> Result<Batch> {
        let mut tensors = self.tensors;
        let Some(ports) = self.ports else {
            if tensors.is_empty() {
                return Err(Error::internal("it gave no output"));
            }
            return Ok(Batch { tensors });
        };
        for (index, port) in ports.iter().enumerate() {
            // No name is there twice, and no other than those declared.
            match tensors.iter().position(|tensor| tensor.name() == port.name) {
                Some(place) => tensors.swap(index, place),
                None => {
                    return Err(Error::internal(format!(
                        "output {:?} is missing",
                        port.name
                    )));
                }
            }
        }
        Ok(Batch { tensors })
    }
}
