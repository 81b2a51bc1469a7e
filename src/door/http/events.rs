//! The parts of a request as events, one as each finishes (`text/event-stream`).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::super::beside::{Begun, Beside};
use super::super::connections::Open;
use super::super::errors::{row_numbers, told};
use super::super::incoming::HERE_BYTES;
use super::super::models::ModelName;
use super::super::ordered::Ordered;
use super::super::submit::{Held, Part, Rows};
use super::super::translate::Wanted;
use super::super::translate::write::{AnswerNames, copied_bytes, write_end, write_part};
use super::coding;
use crate::error::{Error, Result};
use crate::message::Stats;
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::ACCEPT;
use serde_json::json;

/// The media type of events.
pub(super) const EVENTS: &str = "text/event-stream";
/// That of an answer in one piece.
const JSON: &str = "application/json";

/// Whether a request asks for events, and likes them no less than an answer in one piece.
pub(super) fn are_asked_for(headers: &HeaderMap) -> bool {
    let weight = |kind: &str| {
        let entries = coding::list(headers, ACCEPT.as_str());
        let entries = entries.filter(|entry| entry.name.eq_ignore_ascii_case(kind));
        entries.map(|entry| entry.weight).fold(0.0, f32::max)
    };
    let events = weight(EVENTS);
    events > 0.0 && events >= weight(JSON)
}

/// What the events are about.
pub(super) struct Subject {
    pub(super) model: ModelName,
    pub(super) id: Option<String>,
    pub(super) wanted: Arc<Wanted>,
}

/// The text of an event, and the count of the bytes that it was written from.
type Event = (Bytes, Option<Held>);

/// What is to be written next.
enum Due {
    Part(u64, Rows),
    /// The end; with the number of rows, where the model has any.
    End(Option<u64>, Stats),
}

/// The events of one request. Dropped before the end, it cancels the request.
pub(super) struct Events {
    subject: Subject,
    parts: Ordered,
    due: VecDeque<Due>,
    /// A part that is written beside the runtime.
    writing: Option<Begun<Result<Event>>>,
    threads: Rc<Beside>,
    ready: VecDeque<Event>,
    ended: bool,
    /// The request counts as open until its end was told.
    open: Open,
}

impl Events {
    /// # Errors
    /// What ended the request before its first part, so that it can be told by a status.
    pub(super) async fn begin(
        threads: Rc<Beside>,
        subject: Subject,
        mut parts: Ordered,
        open: Open,
    ) -> Result<Events> {
        let first = parts.next().await?;
        let mut events = Events {
            subject,
            parts,
            due: VecDeque::new(),
            writing: None,
            threads,
            ready: VecDeque::new(),
            ended: false,
            open,
        };
        events.take(first);
        poll_fn(|cx| events.poll_write(cx)).await?;
        Ok(events)
    }

    /// The next piece of the body.
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some((piece, _)) = self.ready.pop_front() {
                return Poll::Ready(Some(piece));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            if let Err(error) = ready!(self.poll_more(cx)) {
                self.ended = true;
                let error = told(error);
                let mut told = json!({"error": error.message(), "code": error.code().as_str()});
                if let Some(rows) = row_numbers(&error) {
                    told["rows"] = json!(rows);
                }
                let event = event("error", told.to_string().as_bytes());
                self.ready.push_back((event, None));
            }
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    /// Waits for a part, unless there is one to write.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.writing.is_none() && self.due.is_empty() {
            let part = ready!(self.parts.poll_next(cx))?;
            self.take(part);
        }
        self.poll_write(cx)
    }

    fn take(&mut self, part: Part) {
        match part {
            Part::Rows(offset, rows) => self.due.push_back(Due::Part(offset, rows)),
            Part::Whole(rows, stats) => {
                self.due.push_back(Due::Part(0, rows));
                self.due.push_back(Due::End(None, stats));
            }
            Part::End(rows, stats) => self.due.push_back(Due::End(Some(rows), stats)),
        }
    }

    /// Writes what is due; a large part beside the runtime, and what is behind it afterwards.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        loop {
            if let Some(writing) = &mut self.writing {
                let written = ready!(Pin::new(writing).poll(cx));
                self.writing = None;
                self.ready.push_back(written??);
            }
            match self.due.pop_front() {
                None => return Poll::Ready(Ok(())),
                Some(Due::Part(offset, rows)) => {
                    let wanted = self.subject.wanted.clone();
                    let bytes = copied_bytes(&rows.outputs, &wanted);
                    let write = move || {
                        let json = write_part(offset, &rows.outputs, &wanted)?;
                        Ok((event("part", &json), Some(rows.held)))
                    };
                    if bytes > HERE_BYTES {
                        let caller = &self.open.connection().caller;
                        self.writing = Some(self.threads.begin(caller, bytes, write));
                    } else {
                        self.ready.push_back(write()?);
                    }
                }
                Some(Due::End(rows, stats)) => self.end(rows, stats),
            }
        }
    }

    fn end(&mut self, rows: Option<u64>, stats: Stats) {
        let answered = AnswerNames {
            model: &self.subject.model.name,
            version: self.subject.model.version.as_deref(),
            id: self.subject.id.as_deref(),
        };
        let json = write_end(answered, rows, stats);
        self.ready.push_back((event("end", &json), None));
        self.ended = true;
    }
}

/// An event as it is sent.
fn event(name: &str, json: &[u8]) -> Bytes {
    let lines = [b"event: ", name.as_bytes(), b"\ndata: ", json, b"\n\n"];
    lines.concat().into()
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

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn events_come_where_they_are_liked_no_less_than_json() {
        for (value, expected) in [
            ("text/event-stream", true),
            ("text/event-stream, application/json", true),
            ("application/json;q=0.5, Text/Event-Stream", true),
            ("text/event-stream;q=0.1, */*;q=0.01", true),
            ("application/json, text/event-stream;q=0.1", false),
            ("text/event-stream;q=0", false),
            ("*/*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(value));
            assert_eq!(are_asked_for(&headers), expected, "{value}");
        }
        assert!(!are_asked_for(&HeaderMap::new()));
    }
}
