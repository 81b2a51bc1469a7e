//! Which rows fail: a run that failed is run again in parts, until the rows that fail are told from those that do not.
//! A pure state machine: what is to be run next, and what is known of the rows.
//!
//! Rows that the model blames are not run again, and what lies before and behind them is. Where it blames none, the rows are
//! run again in halves; behind a panic in sixteenths, since each part of them that panics costs one of the few times that
//! the model is opened anew, and a run that goes well costs little. The first rows come first, so that those that are left
//! when the bounds are reached are the last.

use std::ops::Range;

use crate::error::Error;
use crate::message::FailedRows;

/// Most further runs of a chunk.
const FURTHER_RUNS: u32 = 256;
/// Most of them for which the model has to be opened anew, since the run before panicked.
const AFTER_PANICS: u32 = 8;
/// Into so many parts the rows of a run are cut that failed with an error.
const PARTS_AFTER_ERROR: u64 = 2;
/// And of one that panicked. One row of 256 is found behind three panics then, one of 4,096 behind four.
const PARTS_AFTER_PANIC: u64 = 16;

/// The further runs that a chunk has left.
#[derive(Debug)]
pub(super) struct Budget {
    runs: u32,
    after_panics: u32,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            runs: FURTHER_RUNS,
            after_panics: AFTER_PANICS,
        }
    }
}

/// What the run before has left of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    Intact,
    Panicked,
}

impl Budget {
    /// Takes a run out of it.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if none is left: what rows end with that are not run again.
    pub(super) fn take(&mut self, before: Before) -> Result<(), Error> {
        let used_up = |what: String| {
            Error::exhausted(format!(
                "not run again after a run with other rows failed: its chunk has had {what}; send these rows again"
            ))
        };
        if self.runs == 0 {
            return Err(used_up(format!("{FURTHER_RUNS} further runs")));
        }
        if before == Before::Panicked {
            if self.after_panics == 0 {
                return Err(used_up(format!(
                    "{AFTER_PANICS} further runs behind one that panicked"
                )));
            }
            self.after_panics -= 1;
        }
        self.runs -= 1;
        Ok(())
    }
}

/// The rows of a run that failed.
#[derive(Debug)]
pub(super) struct BadRowSearch {
    /// The number in the request of the row that is counted as 0 here.
    offset: u64,
    /// To be run again, the last one next.
    todo: Vec<Range<u64>>,
    failed: Vec<FailedRows>,
}

impl BadRowSearch {
    pub(super) fn new(offset: u64) -> BadRowSearch {
        BadRowSearch {
            offset,
            todo: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// The rows to be run next.
    pub(super) fn next(&mut self) -> Option<Range<u64>> {
        self.todo.pop()
    }

    /// These rows ran and failed, and have left the model so. The error's rows are counted among them.
    pub(super) fn ran_and_failed(&mut self, rows: Range<u64>, error: &Error, model: Before) {
        let count = rows.end - rows.start;
        let blamed = error.rows().map(|blamed| {
            let within = |row: usize| rows.start + (row as u64).min(count);
            within(blamed.start)..within(blamed.end)
        });
        match blamed {
            // To blame all of several rows says nothing: it is what an error without rows looks like.
            Some(blamed) if !blamed.is_empty() && blamed != rows => {
                self.fail(blamed.clone(), error);
                self.run_again([rows.start..blamed.start, blamed.end..rows.end]);
            }
            _ if count <= 1 => self.fail(rows, error),
            _ => {
                let parts = match model {
                    Before::Intact => PARTS_AFTER_ERROR,
                    Before::Panicked => PARTS_AFTER_PANIC.min(count),
                };
                let end = |part: u64| rows.start + part * (count / parts) + part.min(count % parts);
                self.run_again((0..parts).map(|part| end(part)..end(part + 1)));
            }
        }
    }

    /// These parts are run next, in their order.
    fn run_again(&mut self, parts: impl IntoIterator<Item = Range<u64>>) {
        let known = self.todo.len();
        self.todo
            .extend(parts.into_iter().filter(|rows| !rows.is_empty()));
        self.todo[known..].reverse();
    }

    /// These rows and all that are left are not run again: they are one entry.
    pub(super) fn give_up(&mut self, rows: Range<u64>, error: &Error) {
        let last = self.todo.drain(..).map(|rows| rows.end).max();
        // What was blamed in between has failed as well.
        let first = self.offset + rows.start;
        self.failed.retain(|failed| failed.first < first);
        self.fail(rows.start..rows.end.max(last.unwrap_or(0)), error);
    }

    fn fail(&mut self, rows: Range<u64>, error: &Error) {
        self.failed.push(FailedRows {
            first: self.offset + rows.start,
            count: rows.end - rows.start,
            code: error.code(),
            message: error.message().to_owned(),
        });
    }

    /// The rows that failed, in row order.
    pub(super) fn into_failed(self) -> Vec<FailedRows> {
        let mut failed = self.failed;
        failed.sort_unstable_by_key(|failed| failed.first);
        let mut merged = Vec::with_capacity(failed.len());
        for rows in failed {
            rows.push_to(&mut merged);
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::error::ErrorCode;

    /// How a model of the test tells which row is bad.
    #[derive(Clone, Copy, Debug)]
    enum Says {
        Nothing,
        First,
        All,
        Panics,
    }

    /// Runs rows from row 100 of a request on, of which these are bad. Gives those that were answered, what failed, and the
    /// number of further runs.
    fn run(count: u64, bad: &BTreeSet<u64>, says: Says) -> (BTreeSet<u64>, Vec<FailedRows>, u32) {
        let mut search = BadRowSearch::new(100);
        let mut budget = Budget::default();
        let mut answered = BTreeSet::new();
        let attempt = |rows: &Range<u64>| match bad.range(rows.clone()).next() {
            None => Ok(()),
            Some(first) => {
                let at = (first - rows.start) as usize;
                let error = Error::invalid("bad");
                Err(match says {
                    Says::Nothing | Says::Panics => error,
                    Says::First => error.at_rows(at..at + 1),
                    Says::All => error.at_rows(0..(rows.end - rows.start) as usize),
                })
            }
        };
        let mut runs = 0;
        let behind_bad = match says {
            Says::Panics => Before::Panicked,
            _ => Before::Intact,
        };
        let mut before = behind_bad;
        if let Err(error) = attempt(&(0..count)) {
            search.ran_and_failed(0..count, &error, before);
        } else {
            answered.extend(0..count);
        }
        while let Some(rows) = search.next() {
            if let Err(error) = budget.take(before) {
                search.give_up(rows, &error);
                break;
            }
            runs += 1;
            before = Before::Intact;
            match attempt(&rows) {
                Ok(()) => answered.extend(rows),
                Err(error) => {
                    before = behind_bad;
                    search.ran_and_failed(rows, &error, before);
                }
            }
        }
        (answered, search.into_failed(), runs)
    }

    proptest! {
        #[test]
        fn every_row_is_answered_or_failed_and_only_bad_ones_fail_within_the_bounds(
            count in 1u64..1500,
            bad in prop::collection::btree_set(0u64..1500, 0..200),
            says in prop::sample::select(vec![Says::Nothing, Says::First, Says::All, Says::Panics]),
        ) {
            let bad: BTreeSet<u64> = bad.into_iter().filter(|row| *row < count).collect();
            let (answered, failed, runs) = run(count, &bad, says);
            prop_assert!(runs <= FURTHER_RUNS);
            let mut rows = Vec::new();
            for (place, entry) in failed.iter().enumerate() {
                match entry.code {
                    ErrorCode::ResourceExhausted => {
                        prop_assert!(runs == FURTHER_RUNS || matches!(says, Says::Panics));
                        prop_assert_eq!(place, failed.len() - 1);
                    }
                    _ => prop_assert!(entry.rows().all(|row| bad.contains(&(row - 100)))),
                }
                rows.extend(entry.rows().map(|row| row - 100));
            }
            prop_assert!(rows.is_sorted_by(|one, next| one < next));
            prop_assert!(rows.iter().all(|row| !answered.contains(row)));
            prop_assert_eq!(rows.len() + answered.len(), count as usize);
            prop_assert!(bad.iter().all(|row| rows.contains(row)));
        }
    }

    #[test]
    fn one_bad_row_of_a_thousand_is_found_in_few_runs() {
        let bad = BTreeSet::from([777]);
        let (answered, failed, runs) = run(1000, &bad, Says::Nothing);
        assert_eq!((answered.len(), failed.len()), (999, 1));
        assert_eq!((failed[0].rows(), &*failed[0].message), (877..878, "bad"));
        assert!(runs <= 20, "{runs}");
        let (answered, _, runs) = run(1000, &bad, Says::First);
        assert_eq!((answered.len(), runs), (999, 2));
    }

    #[test]
    fn one_row_that_panics_costs_no_other_row_wherever_it_is() {
        for (count, most_runs) in [(2, 2), (64, 24), (256, 32), (1024, 40), (4096, 48)] {
            let rows = (0..count).step_by(if count > 1024 { 7 } else { 1 });
            for row in rows {
                let (answered, failed, runs) = run(count, &BTreeSet::from([row]), Says::Panics);
                assert_eq!(answered.len() as u64, count - 1, "row {row} of {count}");
                assert_eq!((failed.len(), failed[0].rows().start), (1, row + 100));
                assert!(runs <= most_runs, "row {row} of {count}: {runs} runs");
            }
        }
    }

    #[test]
    fn two_rows_that_panic_of_a_thousand_cost_no_other_row() {
        for (one, other) in [
            (0, 1),
            (0, 1023),
            (1, 5),
            (300, 310),
            (511, 512),
            (700, 1000),
        ] {
            let (answered, failed, _) = run(1024, &BTreeSet::from([one, other]), Says::Panics);
            let told: Vec<u64> = failed.iter().flat_map(FailedRows::rows).collect();
            assert_eq!((answered.len(), told), (1022, vec![one + 100, other + 100]));
        }
    }

    #[test]
    fn where_more_rows_panic_the_first_ones_are_told_and_the_rest_is_one_entry() {
        let bad = BTreeSet::from_iter(0..1024);
        let (answered, failed, _) = run(1024, &bad, Says::Panics);
        assert!(answered.is_empty());
        let told: Vec<_> = failed
            .iter()
            .map(|entry| (entry.rows(), entry.code))
            .collect();
        let (left, code) = &told[1];
        assert_eq!(
            (told.len(), left.end, *code),
            (2, 1124, ErrorCode::ResourceExhausted)
        );
        assert_eq!(told[0].0, 100..left.start);
        assert!(
            left.start - 100 >= 4,
            "{left:?}: sent again they come to an end"
        );
    }

    #[test]
    fn after_eight_panics_no_row_is_run_again() {
        let mut budget = Budget::default();
        for _ in 0..AFTER_PANICS {
            assert_eq!(budget.take(Before::Intact), Ok(()));
            assert_eq!(budget.take(Before::Panicked), Ok(()));
        }
        let error = budget.take(Before::Panicked).unwrap_err();
        assert!(
            error
                .message()
                .contains("8 further runs behind one that panicked"),
            "{error}"
        );
        assert_eq!(budget.take(Before::Intact), Ok(()));
    }
}
