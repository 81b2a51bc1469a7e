//! The parts of a request as a door tells them: as they come, or in row order.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::submit::{Part, Parts};
use crate::error::Result;

/// The parts of a request. Dropping it cancels the request.
pub(crate) struct Ordered {
    parts: Parts,
    /// For row order: those that came early.
    early: Option<InOrder<Part>>,
    /// What is told once there are none.
    end: Option<Part>,
}

impl Ordered {
    /// The parts in row order, or as they come.
    pub(crate) fn new(parts: Parts, in_order: bool) -> Ordered {
        Ordered {
            parts,
            early: in_order.then(InOrder::default),
            end: None,
        }
    }

    /// The next part, or the end; nothing comes after the end or an error.
    ///
    /// # Errors
    /// What ended the request.
    pub(crate) async fn next(&mut self) -> Result<Part> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Ordered::next`].
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part>> {
        loop {
            let Some(early) = &mut self.early else {
                return self.parts.poll_next(cx);
            };
            if let Some(part) = early.next() {
                return Poll::Ready(Ok(part));
            }
            // Rows that were waited for have not come: those behind them are told all the same.
            if self.end.is_some()
                && let Some(part) = early.first()
            {
                return Poll::Ready(Ok(part));
            }
            if let Some(end) = self.end.take() {
                return Poll::Ready(Ok(end));
            }
            match ready!(self.parts.poll_next(cx))? {
                Part::Rows(offset, rows) => {
                    let count = rows.count();
                    early.add(offset, count, Part::Rows(offset, rows));
                }
                end => self.end = Some(end),
            }
        }
    }
}

/// A queue of what has rows, by the first of them.
struct InOrder<T> {
    next: u64,
    early: BTreeMap<u64, (u64, T)>,
}

impl<T> Default for InOrder<T> {
    fn default() -> InOrder<T> {
        InOrder {
            next: 0,
            early: BTreeMap::new(),
        }
    }
}

impl<T> InOrder<T> {
    fn add(&mut self, offset: u64, rows: u64, part: T) {
        self.early.insert(offset, (rows, part));
    }

    /// The one whose turn it is.
    fn next(&mut self) -> Option<T> {
        let (rows, part) = self.early.remove(&self.next)?;
        self.next += rows;
        Some(part)
    }

    /// The first of those that are there.
    fn first(&mut self) -> Option<T> {
        self.early.pop_first().map(|(_, (_, part))| part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_leave_in_row_order_and_none_is_lost_behind_a_gap() {
        let mut queue = InOrder::default();
        queue.add(5, 3, 'c');
        assert_eq!(queue.next(), None);
        queue.add(0, 2, 'a');
        queue.add(2, 3, 'b');
        assert_eq!(
            [queue.next(), queue.next(), queue.next(), queue.next()],
            [Some('a'), Some('b'), Some('c'), None]
        );
        // A request without rows has one part without any.
        queue.add(8, 0, 'd');
        assert_eq!([queue.next(), queue.next()], [Some('d'), None]);
        queue.add(30, 1, 'f');
        queue.add(20, 1, 'e');
        assert_eq!(queue.next(), None);
        assert_eq!(
            [queue.first(), queue.first(), queue.first()],
            [Some('e'), Some('f'), None]
        );
    }
}
