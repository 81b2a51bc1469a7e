//! The requests that were answered most recently: the ventilator may still close one of them, since it has not read the
//! credit of its last chunk yet.

use std::collections::BTreeSet;

use crate::message::{ChunkId, Serial};
use crate::wire::inner::Out;
use foldhash::HashMap;

/// The numbers of the first and the last chunk that brought rows of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    first: ChunkId,
    last: ChunkId,
}

impl Span {
    pub(super) fn of(chunk: ChunkId) -> Span {
        Span {
            first: chunk,
            last: chunk,
        }
    }

    pub(super) fn with(self, chunk: ChunkId) -> Span {
        Span {
            first: self.first.min(chunk),
            last: self.last.max(chunk),
        }
    }
}

/// Remembers each request with its chunks: as long as the ventilator counts one of them as out, it may close the
/// request. The first and the last chunk are enough to see that none is out.
#[derive(Debug)]
pub(super) struct AnsweredSpans {
    spans: HashMap<Serial, Span>,
    /// So many are kept before the ventilator is asked which chunks are out.
    keeps: usize,
    ask_at: usize,
    asked: bool,
}

impl AnsweredSpans {
    pub(super) fn new(keeps: usize) -> AnsweredSpans {
        AnsweredSpans {
            spans: HashMap::default(),
            keeps,
            ask_at: keeps,
            asked: false,
        }
    }

    pub(super) fn insert(&mut self, serial: Serial, span: Span) {
        self.spans.insert(serial, span);
    }

    /// The ventilator has closed a request, which it does at most once. Whether that request was remembered.
    pub(super) fn remove(&mut self, serial: Serial) -> bool {
        self.spans.remove(&serial).is_some()
    }

    /// Whether the ventilator is to be asked now.
    pub(super) fn ask(&mut self) -> bool {
        let due = !self.asked && self.spans.len() >= self.ask_at;
        self.asked |= due;
        due
    }

    /// Forgets requests whose chunks are all back at the ventilator: had it closed one, that would have been heard before
    /// this.
    pub(super) fn settle(&mut self, out: &Out) {
        let open: BTreeSet<ChunkId> = out.chunks.iter().copied().collect();
        let may_close = |span: &Span| {
            let mut within = open.range(span.first..=span.last);
            span.last > out.last || within.next().is_some()
        };
        self.spans.retain(|_, span| may_close(span));
        self.asked = false;
        // Asking again soon would find the same ones.
        self.ask_at = self.keeps.max(2 * self.spans.len());
        self.spans.shrink_to(2 * self.ask_at);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }
}
