//! What was asked, what was answered, and the clients who read it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use super::Random;
use super::workers::{BAD, LEFT};
use crate::error::ErrorCode;
use crate::message::{FailedRows, ReplyTo, RequestId, Serial};
use crate::tensor::Batch;
use crate::wire::server::ServerMessage;

struct Asked {
    reply: ReplyTo,
    rows: u64,
    stream: bool,
    /// It reports its bad rows, which are these.
    bad: HashSet<u64>,
    /// Errors that it may end with, for something happened that explains them.
    codes: HashSet<ErrorCode>,
    /// Rows that a stream has sent.
    streamed: HashSet<u64>,
    answered: bool,
}

impl Asked {
    /// Of these rows those that are bad were told, each once and in order, and with them those that were left, if rows of it
    /// may have been. Gives the rows that have no result.
    fn check_failed(&self, rows: Range<u64>, failed: &[FailedRows]) -> HashSet<u64> {
        let of = |code| failed.iter().filter(move |entry| entry.code == code);
        let left: HashSet<u64> = of(LEFT).flat_map(FailedRows::rows).collect();
        assert!(left.is_empty() || self.codes.contains(&LEFT));
        let bad = of(BAD).flat_map(FailedRows::rows);
        let is_bad = |row: &u64| self.bad.contains(row) && !left.contains(row);
        assert!(
            bad.eq(rows.clone().filter(is_bad)),
            "{failed:?}, of {:?}",
            self.bad
        );
        let told: Vec<u64> = failed.iter().flat_map(FailedRows::rows).collect();
        assert!(told.iter().all(|row| rows.contains(row)));
        assert!(told.is_sorted_by(|one, next| one < next));
        told.into_iter().collect()
    }
}

/// Every request by its number, which is its serial too.
#[derive(Default)]
pub(super) struct Ledger {
    asked: HashMap<u64, Asked>,
    pub(super) deaths: u64,
}

impl Ledger {
    pub(super) fn asked(&mut self, serial: Serial, reply: ReplyTo, rows: u64, stream: bool) {
        let asked = Asked {
            reply,
            rows,
            stream,
            bad: HashSet::new(),
            codes: HashSet::new(),
            streamed: HashSet::new(),
            answered: false,
        };
        self.asked.insert(serial.0, asked);
    }

    pub(super) fn may_end_with(&mut self, serial: Serial, code: ErrorCode) {
        if let Some(asked) = self.asked.get_mut(&serial.0) {
            asked.codes.insert(code);
        }
    }

    /// The request reports its bad rows, which are these.
    pub(super) fn reports(&mut self, serial: Serial, bad: HashSet<u64>) {
        if let Some(asked) = self.asked.get_mut(&serial.0) {
            asked.bad = bad;
        }
    }

    /// The sink tells a client.
    pub(super) fn answered(&mut self, reply: ReplyTo, request: RequestId, message: &ServerMessage) {
        let deaths = self.deaths;
        let asked = self
            .asked
            .get_mut(&request.0)
            .expect("an answer to what was asked");
        assert_eq!(reply, asked.reply);
        assert!(!asked.answered, "{request} was answered before {message:?}");
        let expected = |row: u64, failed: &HashSet<u64>| match failed.contains(&row) {
            true => 0,
            false => request.0 << 16 | row,
        };
        let all_bad = !asked.bad.is_empty() && asked.bad.len() as u64 == asked.rows;
        match message {
            ServerMessage::Part(offset, outputs) => {
                assert!(asked.stream);
                let rows = *offset..offset + outputs.rows();
                let failed = asked.check_failed(rows.clone(), &outputs.failed);
                if outputs.parts.is_empty() {
                    assert!(rows.clone().all(|row| failed.contains(&row)));
                } else {
                    let expected = rows.clone().map(|row| expected(row, &failed));
                    assert!(
                        values(&outputs.parts).eq(expected),
                        "wrong rows of {request}"
                    );
                }
                for row in rows {
                    assert!(asked.streamed.insert(row), "row {row} of {request} twice");
                }
                return;
            }
            ServerMessage::Result(outputs, _) => {
                assert!(!asked.stream);
                let failed = asked.check_failed(0..asked.rows, &outputs.failed);
                let expected = (0..asked.rows).map(|row| expected(row, &failed));
                assert!(
                    values(&outputs.parts).eq(expected),
                    "wrong rows of {request}"
                );
                assert!((failed.len() as u64) < asked.rows || asked.rows == 0);
            }
            ServerMessage::End(rows, _) => {
                assert_eq!(
                    (*rows, asked.streamed.len() as u64),
                    (asked.rows, asked.rows)
                );
                assert!(!all_bad);
            }
            ServerMessage::Error(error) => {
                let code = error.code();
                let explained = asked.codes.contains(&code)
                    || code == ErrorCode::Unavailable && deaths > 2
                    || code == BAD && all_bad;
                assert!(explained, "{request} ends with {error} for no reason");
            }
            other => panic!("{other:?} is no answer"),
        }
        asked.answered = true;
    }

    /// How many have their answer.
    pub(super) fn answers(&self) -> u64 {
        self.asked.values().filter(|asked| asked.answered).count() as u64
    }

    pub(super) fn check_end(&self, clients: &Clients) {
        for (number, asked) in &self.asked {
            let gone = !clients.is_there(asked.reply);
            assert!(asked.answered || gone, "{number} has no answer");
        }
    }
}

fn values(parts: &[Batch]) -> impl Iterator<Item = u64> {
    let tensors = parts.iter().map(|batch| &batch.tensors[0]);
    tensors.flat_map(|tensor| tensor.to_vec::<u64>().unwrap())
}

#[derive(Default)]
struct Client {
    gone: bool,
    /// Bytes of each answer that it has not read, and whether they are of rows.
    unread: VecDeque<(u64, bool)>,
}

pub(super) struct Clients(Vec<Client>);

impl Clients {
    pub(super) fn new(count: usize) -> Clients {
        Clients((0..count).map(|_| Client::default()).collect())
    }

    pub(super) fn reply(client: u64) -> ReplyTo {
        ReplyTo([client as u8 + 1; 16])
    }

    fn of(&self, reply: ReplyTo) -> &Client {
        &self.0[reply.0[0] as usize - 1]
    }

    pub(super) fn unsent_bytes(&self, reply: ReplyTo) -> u64 {
        self.of(reply).unread.iter().map(|(bytes, _)| bytes).sum()
    }

    /// False if nobody is there to be told.
    pub(super) fn send(&mut self, reply: ReplyTo, message: &ServerMessage) -> bool {
        let client = &mut self.0[reply.0[0] as usize - 1];
        let (bytes, rows) = match message {
            ServerMessage::Result(outputs, _) | ServerMessage::Part(_, outputs) => {
                (outputs.bytes(), true)
            }
            _ => (10, false),
        };
        if !client.gone {
            client.unread.push_back((bytes, rows));
        }
        !client.gone
    }

    /// The most bytes of rows that wait for a client.
    pub(super) fn most_result_bytes(&self) -> u64 {
        let of = |client: &Client| {
            let rows = client.unread.iter().filter(|(_, rows)| *rows);
            rows.map(|(bytes, _)| bytes).sum()
        };
        self.0.iter().map(of).max().unwrap_or(0)
    }

    pub(super) fn any_waits(&self) -> bool {
        self.0.iter().any(|client| !client.unread.is_empty())
    }

    /// A client that has something to read reads one answer.
    pub(super) fn read(&mut self, random: &mut Random) {
        let first = random.below(self.0.len() as u64) as usize;
        let (before, after) = self.0.split_at_mut(first);
        let waits = |client: &&mut Client| !client.unread.is_empty();
        if let Some(client) = after.iter_mut().chain(before).find(waits) {
            client.unread.pop_front();
        }
    }

    pub(super) fn vanish(&mut self, client: u64) {
        let client = &mut self.0[client as usize];
        client.gone = true;
        client.unread.clear();
    }

    pub(super) fn is_there(&self, reply: ReplyTo) -> bool {
        !self.of(reply).gone
    }
}
