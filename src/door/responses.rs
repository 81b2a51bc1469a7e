//! How many answers of each status the doors have given, those to requests that never reached the pipeline too.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::HeaderMap;
use hyper::{Response, StatusCode};
use tonic::Code;

use crate::message::Protocol;

/// The first status of HTTP, and how many there may be.
const FIRST: u16 = 100;
const STATUSES: usize = 500;
/// The codes of gRPC, from 0 on.
const CODES: usize = 17;

/// Counters by status, for the threads of all doors.
#[derive(Debug)]
pub(crate) struct Responses {
    http: [AtomicU64; STATUSES],
    grpc: [AtomicU64; CODES],
}

impl Default for Responses {
    fn default() -> Responses {
        Responses {
            http: std::array::from_fn(|_| AtomicU64::new(0)),
            grpc: Default::default(),
        }
    }
}

impl Responses {
    /// Counts an answer whose head is about to leave; one of gRPC if it is refused there already.
    pub(super) fn count<B>(&self, kind: Protocol, reply: &Response<B>) {
        match kind {
            Protocol::Http => {
                let index = reply.status().as_u16().checked_sub(FIRST);
                if let Some(count) = index.and_then(|index| self.http.get(usize::from(index))) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Protocol::Grpc => self.count_end(kind, reply.headers()),
            _ => {}
        }
    }

    /// Counts how an answer of gRPC ends, if these headers or trailers say so.
    pub(super) fn count_end(&self, kind: Protocol, headers: &HeaderMap) {
        if kind != Protocol::Grpc {
            return;
        }
        let Some(status) = headers.get("grpc-status") else {
            return;
        };
        let code = Code::from_bytes(status.as_bytes());
        if code == Code::Cancelled {
            return; // only for a client that is gone, and reads none of it
        }
        if let Some(count) = self.grpc.get(code as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Each status that was given, in the protocol's own words, and how often.
    pub(crate) fn each(&self) -> Vec<(Protocol, String, u64)> {
        let http = self.http.iter().zip(FIRST..).map(|(count, status)| {
            let status = StatusCode::from_u16(status).map(|status| status.as_str().to_owned());
            (Protocol::Http, status.unwrap_or_default(), count)
        });
        let grpc = self.grpc.iter().zip(0..).map(|(count, code)| {
            // The names that the protocol has, as errors of ours are written: DEADLINE_EXCEEDED.
            let name = format!("{:?}", Code::from_i32(code));
            let mut words = String::with_capacity(name.len() + 2);
            for letter in name.chars() {
                if letter.is_uppercase() && !words.is_empty() && name != "Ok" {
                    words.push('_');
                }
                words.push(letter.to_ascii_uppercase());
            }
            (Protocol::Grpc, words, count)
        });
        let counted = http
            .chain(grpc)
            .map(|(kind, status, count)| (kind, status, count.load(Ordering::Relaxed)));
        counted.filter(|(_, _, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_status_and_calls_of_grpc_by_how_they_end() {
        let responses = Responses::default();
        for status in [200, 413, 200, 599] {
            let mut reply = Response::new(());
            *reply.status_mut() = StatusCode::from_u16(status).unwrap();
            responses.count(Protocol::Http, &reply);
            // Those of gRPC are 200, and end in their own way.
            responses.count(Protocol::Grpc, &reply);
            responses.count(Protocol::Inside, &reply);
        }
        for code in ["0", "1", "4", "999"] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", code.parse().unwrap());
            responses.count_end(Protocol::Grpc, &headers);
            responses.count_end(Protocol::Http, &headers);
        }
        responses.count_end(Protocol::Grpc, &HeaderMap::new());
        let each = responses.each();
        let each: Vec<_> = each
            .iter()
            .map(|(_, status, n)| (status.as_str(), *n))
            .collect();
        assert_eq!(
            each,
            [
                ("200", 2),
                ("413", 1),
                ("599", 1),
                ("OK", 1),
                ("UNKNOWN", 1),
                ("DEADLINE_EXCEEDED", 1)
            ]
        );
    }
}
