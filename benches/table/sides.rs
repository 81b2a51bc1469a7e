//! The server that is measured and the one that it is compared with: each part does the same with both, in turn.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::Plan;
use super::children;

/// Something of ours, and the same of the other server where `--server` names one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sides<T> {
    pub ours: T,
    pub other: Option<T>,
    turn: Turn,
}

/// Who is measured first. They change places each time: what slows a machine down by and by would favour one of them.
#[derive(Clone, Copy, Debug, Default)]
enum Turn {
    #[default]
    OursFirst,
    OtherFirst,
}

impl<T> Sides<T> {
    /// Makes one for each server's program.
    pub fn of(plan: &Plan, make: impl Fn(&Path) -> Result<T>) -> Result<Sides<T>> {
        Ok(Sides {
            ours: make(children::program())?,
            other: match &plan.server {
                Some(program) => Some(make(program).with_context(|| named(program))?),
                None => None,
            },
            turn: Turn::default(),
        })
    }

    /// Does something with each.
    pub fn each<R>(&mut self, mut once: impl FnMut(&mut T) -> Result<R>) -> Result<Sides<R>> {
        let (ours, other);
        match self.turn {
            Turn::OursFirst => {
                ours = once(&mut self.ours)?;
                other = self.other.as_mut().map(once);
                self.turn = Turn::OtherFirst;
            }
            Turn::OtherFirst => {
                other = self.other.as_mut().map(&mut once);
                ours = once(&mut self.ours)?;
                self.turn = Turn::OursFirst;
            }
        }
        Ok(Sides {
            ours,
            other: other.transpose().context("the other server")?,
            turn: Turn::default(),
        })
    }

    /// The same for what was made of them.
    pub fn map<R>(&self, mut part: impl FnMut(&T) -> R) -> Sides<R> {
        Sides {
            ours: part(&self.ours),
            other: self.other.as_ref().map(part),
            turn: Turn::default(),
        }
    }
}

impl Sides<String> {
    /// For a note: what is said of ours, and of the other server.
    pub fn text(&self) -> String {
        match &self.other {
            Some(other) => format!("{}; SERVER: {other}", self.ours),
            None => self.ours.clone(),
        }
    }
}

fn named(program: &Path) -> String {
    format!("the server {}", program.display())
}
