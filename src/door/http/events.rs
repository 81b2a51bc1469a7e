//! The parts of a request as events, one as each finishes (`text/event-stream`).

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::ACCEPT;
use serde_json::json;

use super::super::connections::Open;
use super::super::errors::told;
use super::super::models::ModelName;
use super::super::ordered::Ordered;
use super::super::pipeline::{Part, Rows};
use super::super::translate::Wanted;
use super::super::translate::write::{Answered, write_end, write_part};
use super::coding;
use crate::error::{Error, Result};
use crate::message::Stats;

/// The media type of events.
pub(super) const EVENTS: &str = "text/event-stream";

/// Whether a request asks for events.
pub(super) fn are_asked_for(headers: &HeaderMap) -> bool {
    coding::list(headers, ACCEPT.as_str())
        .any(|entry| entry.weight > 0.0 && entry.name.eq_ignore_ascii_case(EVENTS))
}

/// What the events are about.
pub(super) struct Subject {
    pub(super) model: ModelName,
    pub(super) id: Option<String>,
    pub(super) wanted: Wanted,
}

/// The events of one request. Dropped before the end, it cancels the request.
pub(super) struct Events {
    subject: Subject,
    parts: Ordered,
    ready: VecDeque<Bytes>,
    ended: bool,
    /// The request counts as open until its end was told.
    _open: Open,
}

impl Events {
    /// # Errors
    /// What ended the request before its first part, so that it can be told by a status.
    pub(super) async fn begin(subject: Subject, mut parts: Ordered, open: Open) -> Result<Events> {
        let first = parts.next().await?;
        let mut events = Events {
            subject,
            parts,
            ready: VecDeque::new(),
            ended: false,
            _open: open,
        };
        events.take(first)?;
        Ok(events)
    }

    /// The next piece of the body.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(piece));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let Poll::Ready(part) = self.parts.poll_next(cx) else {
                return Poll::Pending;
            };
            if let Err(error) = part.and_then(|part| self.take(part)) {
                self.ended = true;
                let error = told(error);
                let told = json!({"error": error.message(), "code": error.code().as_str()});
                self.push("error", told.to_string().as_bytes());
            }
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    fn take(&mut self, part: Part) -> Result<()> {
        match part {
            Part::Rows(offset, rows) => self.write(offset, &rows),
            Part::Whole(rows, stats) => {
                self.write(0, &rows)?;
                self.end(None, stats);
                Ok(())
            }
            Part::End(rows, stats) => {
                self.end(Some(rows), stats);
                Ok(())
            }
        }
    }

    fn write(&mut self, offset: u64, rows: &Rows) -> Result<()> {
        let json = write_part(offset, &rows.outputs, &self.subject.wanted)?;
        self.push("part", &json);
        Ok(())
    }

    fn end(&mut self, rows: Option<u64>, stats: Stats) {
        let answered = Answered {
            model: &self.subject.model.name,
            version: self.subject.model.version.as_deref(),
            id: self.subject.id.as_deref(),
        };
        let json = write_end(answered, rows, stats);
        self.push("end", &json);
        self.ended = true;
    }

    fn push(&mut self, event: &str, json: &[u8]) {
        let lines = [b"event: ", event.as_bytes(), b"\ndata: ", json, b"\n\n"];
        self.ready.push_back(lines.concat().into());
    }
}

/// What events cannot do.
///
/// # Errors
/// `INVALID_ARGUMENT`: classes of outputs whose rows come in parts are had, bytes behind JSON are not.
pub(super) fn check(wanted: &Wanted) -> Result<()> {
    let mut named = wanted.outputs.iter().flatten();
    if wanted.binary || named.any(|output| output.binary == Some(true)) {
        return Err(Error::invalid(
            "events are text: ask for no output as binary data, or not for events",
        ));
    }
    Ok(())
}
