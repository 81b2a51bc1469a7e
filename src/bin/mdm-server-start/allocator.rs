//! What allocates the server's memory: jemalloc, but for what is large. It is the command's and not the library's, where each
//! plugin that is linked with the library would bring a jemalloc of its own.
//!
//! This is one of the files that may be `unsafe`.
#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};

use tikv_jemallocator::Jemalloc;

/// From this size on the C library allocates: it gives such memory back as it is freed, and lets a message that comes in
/// pieces grow without a copy (mremap). It lies in huge pages where the system has them.
const LARGE_BYTES: usize = 4 << 20;

/// A request's memory is allocated by one thread and freed by another, which glibc's allocator is slow at.
pub struct Allocator;

fn is_large(bytes: usize) -> bool {
    bytes >= LARGE_BYTES
}

/// Asks for huge pages for the pages that lie within a block, and returns it. A request's rows are written once into memory that
/// the system has just given: a page at a time, that takes longer than to copy them from the connection.
#[cfg(target_os = "linux")]
fn with_huge_pages(block: *mut u8, bytes: usize) -> *mut u8 {
    const PAGE_BYTES: usize = 4096;
    let inside = block.addr().next_multiple_of(PAGE_BYTES) - block.addr();
    if !block.is_null() && bytes > inside {
        // A system that knows none refuses, and one with larger pages refuses an address between two: then nothing changes.
        // SAFETY: those pages are the block's. The advice changes no byte, and the block may be used and freed as without.
        unsafe {
            libc::madvise(
                block.add(inside).cast(),
                bytes - inside,
                libc::MADV_HUGEPAGE,
            )
        };
    }
    block
}

/// As the system does it.
#[cfg(not(target_os = "linux"))]
fn with_huge_pages(block: *mut u8, _bytes: usize) -> *mut u8 {
    block
}

// SAFETY: each block is freed and grown by the allocator that its size says, which is the one that it came from: the size
// is the same each time (the contract of `GlobalAlloc`). Both of them are sound allocators.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of both.
        unsafe {
            match is_large(layout.size()) {
                true => with_huge_pages(System.alloc(layout), layout.size()),
                false => Jemalloc.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            match is_large(layout.size()) {
                true => with_huge_pages(System.alloc_zeroed(layout), layout.size()),
                false => Jemalloc.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; the size says where it came from.
        unsafe {
            match is_large(layout.size()) {
                true => System.dealloc(block, layout),
                false => Jemalloc.dealloc(block, layout),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above. Where it goes from one allocator to the other, `size` is not 0 and fits with the alignment, as the
        // caller promises; the blocks are two, of which the smaller is copied; the old one is left as it is if there is no new one.
        unsafe {
            match (is_large(layout.size()), is_large(size)) {
                (true, true) => with_huge_pages(System.realloc(block, layout, size), size),
                (false, false) => Jemalloc.realloc(block, layout, size),
                _ => {
                    let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !new.is_null() {
                        new.copy_from_nonoverlapping(block, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way over the border, at usual and large alignments, keeps the bytes.
    #[test]
    fn blocks_keep_their_bytes_on_their_way_between_the_allocators() {
        let sizes = [1, 4096, LARGE_BYTES - 1, LARGE_BYTES, 3 * LARGE_BYTES];
        for (from, to) in sizes.iter().flat_map(|from| sizes.map(|to| (*from, to))) {
            for align in [1, 64, 8192] {
                let layout = Layout::from_size_align(from, align).unwrap();
                let kept = from.min(to);
                // SAFETY: blocks of these sizes, used within them and freed once.
                unsafe {
                    let block = Allocator.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    assert!((0..from).step_by(1000).all(|at| *block.add(at) == 0));
                    block.write_bytes(0xa5, from);
                    let block = Allocator.realloc(block, layout, to);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align));
                    assert!((0..kept).step_by(1000).all(|at| *block.add(at) == 0xa5));
                    assert_eq!(*block.add(kept - 1), 0xa5);
                    Allocator.dealloc(block, Layout::from_size_align(to, align).unwrap());
                }
            }
        }
    }

    /// Whether the system was asked for huge pages for the memory at an address.
    #[cfg(target_os = "linux")]
    fn is_huge(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_inside = false;
        for line in maps.lines() {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            let number = |hex| usize::from_str_radix(hex, 16).ok();
            if let Some((start, end)) = range.and_then(|(a, b)| Some((number(a)?, number(b)?))) {
                is_inside = (start..end).contains(&address);
            } else if is_inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.split_whitespace().any(|flag| flag == "hg");
            }
        }
        panic!("nothing is mapped at {address:#x}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_large_block_has_huge_pages_where_the_system_knows_them() {
        let known = std::fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap();
        let layout = |bytes| Layout::from_size_align(bytes, 8).unwrap();
        // SAFETY: blocks of these sizes, looked at and freed once.
        unsafe {
            let large = Allocator.alloc(layout(LARGE_BYTES));
            assert_eq!(is_huge(large.addr() + LARGE_BYTES / 2), known);
            let larger = Allocator.realloc(large, layout(LARGE_BYTES), 16 * LARGE_BYTES);
            assert_eq!(is_huge(larger.addr() + 15 * LARGE_BYTES), known);
            Allocator.dealloc(larger, layout(16 * LARGE_BYTES));
            let zeroed = Allocator.alloc_zeroed(layout(16 * LARGE_BYTES));
            assert_eq!(is_huge(zeroed.addr() + 15 * LARGE_BYTES), known);
            Allocator.dealloc(zeroed, layout(16 * LARGE_BYTES));
        }
    }
}
