//! What the catalog wants done, and what those who asked are told.

use std::sync::Arc;

use super::models::Change;
use super::waiting::{Arrival, Asker, Parked};
use crate::error::{Error, Result};
use crate::message::{ModelId, ReplyTo};
use crate::model::Description;
use crate::model::loader::Job;
use crate::wire::server::LoadOutcome;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Action<P> {
    /// The loader is to do this, in the turn of that client. [`super::Catalog::answered`] takes the answer.
    AskLoader {
        client: ReplyTo,
        ticket: u64,
        job: Job,
    },
    /// The loader has found where a lookup leads: it goes on with this in the same turn, or the turn is over.
    GoOn { ticket: u64, job: Option<Job> },
    /// Nobody needs these jobs of a client any more. [`super::Catalog::withdrawn`] is told which had not begun.
    Withdraw { client: ReplyTo, tickets: Vec<u64> },
    /// Every worker is to open a model. [`super::Catalog::told`] says which are there.
    Open(ModelId),
    /// A request goes on with the model that it waited for.
    Admit(Parked<P>, Arc<Description>),
    /// A request ends with this, instead of going on.
    Refuse(Arrival, Error),
    /// Somebody who had asked gets this.
    Answer(Asker, Answer),
    /// A model that the server is to have at its start is served, or cannot be.
    Started(Result<()>),
    /// Whoever keeps something of a model is to know.
    Changed(Change),
}

/// What somebody is told who had asked.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// What a request would get.
    Described(Arc<Description>),
    /// It is loaded, and open on every worker.
    Loaded(Arc<Description>, LoadOutcome),
    /// No request finds these any more.
    Unloaded(Vec<Arc<Description>>),
    Refused(Error),
}
