//! Rows that fail: what a request wants done about them, and what is told of them.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;

/// What becomes of a request of which a row fails. Only rows that are independent can fail by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub enum OnBadRow {
    /// It ends with the error.
    #[default]
    Fail,
    /// All other rows are answered. The one that failed is zeros, an empty string or a JSON null, and the answer says so.
    Report,
}

impl OnBadRow {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            OnBadRow::Fail => "fail",
            OnBadRow::Report => "report",
        }
    }

    /// Reads a name off the wire.
    pub fn parse(name: &str) -> Option<OnBadRow> {
        let all = [OnBadRow::Fail, OnBadRow::Report];
        all.into_iter().find(|choice| choice.as_str() == name)
    }
}

/// Rows that have no result, and what was wrong with them: what a request gets that reports its bad rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedRows {
    /// The first of them, counted in the request from 0.
    pub first: u64,
    /// How many they are.
    pub count: u64,
    /// The code of what was wrong.
    pub code: ErrorCode,
    /// What was wrong, for a person. It does not repeat the rows' numbers.
    pub message: String,
}

impl FailedRows {
    /// Their numbers in the request.
    pub fn rows(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The bytes that it takes, about.
    #[cfg(feature = "server")]
    pub(crate) fn bytes(&self) -> u64 {
        const NUMBERS_AND_CODE: u64 = 64;
        NUMBERS_AND_CODE + self.message.len() as u64
    }

    /// Appends it to a list in row order. Neighbours that say the same become one entry.
    #[cfg(feature = "server")]
    pub(crate) fn push_to(self, list: &mut Vec<FailedRows>) {
        match list.last_mut() {
            Some(last)
                if last.rows().end == self.first
                    && last.code == self.code
                    && last.message == self.message =>
            {
                last.count += self.count;
            }
            _ => list.push(self),
        }
    }
}

/// As an error says it: `row 7: INVALID_ARGUMENT: no date`.
impl fmt::Display for FailedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            0 | 1 => write!(f, "row {}", self.first)?,
            _ => write!(f, "rows {} to {}", self.first, self.rows().end - 1)?,
        }
        write!(f, ": {}: {}", self.code, self.message)
    }
}
