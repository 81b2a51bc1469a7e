//! The models that could not be loaded or opened the last time that somebody wanted them, for status to show.

use std::collections::VecDeque;

use crate::error::{Error, ErrorCode};
use crate::message::ModelId;

/// Most that are kept: clients name what they like, and a folder can be full of files that are no models.
const MOST: usize = 64;
/// Most bytes of a name and of a message.
const MOST_BYTES: usize = 512;

/// A model that does not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) name: String,
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
    /// The model that was loaded but could not be opened by a worker; `None` for one that was not even loaded.
    model: Option<ModelId>,
}

/// Those that are known, the last one last.
#[derive(Debug, Default)]
pub(super) struct Failures(VecDeque<Failure>);

impl Failures {
    /// A model of that name does not open. What says nothing of the model is left out: no room, nobody to open it, and a
    /// name that leads nowhere.
    pub(super) fn note(&mut self, name: &str, model: Option<ModelId>, error: &Error) {
        let says_nothing = matches!(
            error.code(),
            ErrorCode::ResourceExhausted
                | ErrorCode::Cancelled
                | ErrorCode::Unavailable
                | ErrorCode::DeadlineExceeded
        );
        if says_nothing {
            return;
        }
        self.clear(name);
        if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back(Failure {
            name: shortened(name),
            code: error.code(),
            message: shortened(error.message()),
            model,
        });
    }

    /// A model of that name was loaded and opened, or is wanted no more.
    pub(super) fn clear(&mut self, name: &str) {
        self.0.retain(|failure| failure.name != shortened(name));
    }

    /// A worker has run a model, and so has it open.
    pub(super) fn ran(&mut self, model: ModelId) {
        self.0.retain(|failure| failure.model != Some(model));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Failure> {
        self.0.iter()
    }
}

fn shortened(text: &str) -> String {
    match text.len() <= MOST_BYTES {
        true => text.to_owned(),
        false => format!("{}…", &text[..text.floor_char_boundary(MOST_BYTES)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_bounded_and_go_when_the_model_opens() {
        let mut failures = Failures::default();
        for number in 0..1000 {
            let why = Error::precondition("x".repeat(10_000));
            failures.note(&format!("m{number}"), None, &why);
        }
        failures.note("full", None, &Error::exhausted("no room"));
        assert_eq!(failures.0.len(), MOST);
        assert!(failures.all().all(|f| f.message.len() < MOST_BYTES + 4));
        failures.clear("m999");
        failures.note("m998", Some(ModelId(7)), &Error::precondition("again"));
        assert_eq!(failures.0.len(), MOST - 1);
        assert_eq!(failures.all().last().map(|f| &*f.message), Some("again"));
        failures.ran(ModelId(7));
        assert_eq!(failures.0.len(), MOST - 2);
    }
}
