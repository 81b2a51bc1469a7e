//! MDM serves models to programs that have a lot of rows to run through them.
//!
//! A client sends one request of any size; the server cuts it into chunks, runs the chunks on N workers at once, puts
//! the results back in row order and answers. Small requests overtake big ones. This crate is the daemon with its
//! commands, the client, and the interface for models.
//!
//! # The picture
//!
//! ```text
//!                port                                                               port_out
//!  client ── request ──▶ ventilator ── chunk ──▶ worker 0..N-1 ── part ──▶ sink ── result ──▶ client
//!                        check, queue,    PUSH   one engine session  PUSH  gather by serial,
//!                        schedule, cut    PULL   on one device       PULL  answer in row order
//!                             ▲                       │                        │
//!                             └─── credit: "free" ────┘                        │
//!                             └─── gone, abort: a client left, or had too much ┘
//! ```
//! Data flows one way. A chunk carries everything that the worker and the sink need, so nobody looks anything up in
//! somebody else's table. Inside, a request is known by a [serial number](message::Serial) of the server's own.
//!
//! # Where things are
//!
//! | place | what it owns |
//! |---|---|
//! | [`error`], [`tensor`], [`message`] | the words: error codes, rows in columns, requests, chunks and parts |
//! | [`wire`] | frames ↔ messages: `client.rs` what clients say, `server.rs` what they are told, `inner.rs` and `chunk.rs` the loops |
//! | `zmtp` | connections of our own that speak ZMTP: the fronts' ends (ventilator, sink) and the client's |
//! | `frames`, `socket` | zero-copy frames; how inner sockets are set up and waited for: the only users of libzmq |
//! | `split` | pure arithmetic: cut rows, gather parts |
//! | `schedule` | the queue and the policy as a pure state machine, with its simulation |
//! | `catalog` | the life of a model as a pure state machine, with its simulation: what is served, coming, leaving, who waits |
//! | `model` | what a worker runs and where it comes from: lookup, proxies, loader, store, engine, weights, chains |
//! | [`plugin`], `signature` | models of one's own: the author's interface, the C interface below it, its host |
//! | `pipeline` | the three loops: `ventilator`, `worker`, `sink`; they never import each other |
//! | [`server`] | wiring, being ready, the order of stopping; doors, which are clients inside this process |
//! | [`config`], [`logging`] | what was typed → checked settings; the log |
//! | [`client`] | sessions, requests, results; no thread of its own |
//! | `src/bin/` | the commands, a page each |
//!
//! # What always holds
//!
//! 1. A connection or socket lives and dies in the thread that made it; a client's sessions are handed on under their lock.
//!    Inside, data rides ZeroMQ, and so does control that must wake a polling loop. What a door says and is told has a
//!    bounded queue and a descriptor of its own (`pipeline/doors.rs`), and an order to stop has one that was made at the
//!    start (`pipeline/control.rs`), since it must work when no descriptor is left. Nothing travels on two of these.
//! 2. Ventilator and sink bind, workers connect. Start and stop are synchronous; at the end a marker travels ventilator →
//!    each worker → sink, behind the data.
//! 3. Every queue and every byte held for a client is bounded, by a flag or by a documented constant.
//! 4. Every accepted request gets exactly one final answer while its session lives. The sink is the one place that
//!    gives it.
//! 5. No input from a client can panic, abort or wedge the server, or make it use memory beyond its bounds.
//! 6. One engine session per worker and model, run by `&mut`. Weights are shared wherever the engine can.
//! 7. On the data path no tensor byte is copied without a reason beside the copy.
//! 8. `unsafe` is in `frames.rs`, in `zmtp/unsent.rs` and `priority.rs` (system calls that no crate wraps), and for the C
//!    interface of plugins in `plugin/glue.rs` (the author's side) and `plugin/host/` (the server's side), each block with
//!    its reason.
//!
//! What is absent: the policy reads no clock and knows no rows; the ventilator touches no file; the client has no
//! thread; no table is shared between threads on the data path but the board of cancelled serials, which may forget.
//!
//! # The fronts
//!
//! `port` and `port_out` are connections of our own, over TCP and local sockets; their peers are this crate's client and
//! every library that speaks ZMTP 3. The ventilator and the sink each poll theirs in one epoll with their inner sockets'
//! descriptors, read what is there and write what gathered once a turn. So the server knows of each peer who it is, what
//! waits unsent and how far its message has come, and the bounds are on these numbers themselves:
//!
//! - a message may have `--max-request-bytes` and some frames, all unfinished ones together `--max-unfinished-bytes`;
//!   a handshake has 10 s; what one client does not read is bounded, on `port` by not hearing it until it reads;
//! - a connection ends by 6 s without a byte. Our PINGs carry a time to live of 0 and go to peers that announce ZMTP 3.1,
//!   or whose own PING asks to be counted as lost; others are left to TCP keepalive. Bytes that arrive at the other end
//!   are a sign of life, and what cannot arrive because the other end does not read is no silence. The client announces
//!   3.0, since it has no thread that could answer at any time, and asks for signs of life while somebody waits;
//! - a session is the two connections of one routing id. When either ends, the sink or the ventilator tells the other, the
//!   complete messages that had come are heard, the rest of its work is cancelled, and its other connection is closed. A
//!   second connection with an id in use is closed.
//!
//! A *door* ([`server::Door`]) is a client inside the process: its requests and answers cross as messages, uncopied. Each of
//! its callers has an address of its own ([`message::ReplyTo`]), so that bounds and turns take it for a session.
//!
//! # Where this differs from the first design, and why
//!
//! - A failed chunk is told to the ventilator in the credit, and the ventilator has the sink close the request with it:
//!   one place decides that a request has failed, as it does for deadlines and cancels.
//! - What a lost worker held runs again only once the sink has said what of it had arrived: so each row counts once, and
//!   the sink knows of each request how much is still to come (`pipeline/sink/answers.rs`, `schedule/lost.rs`). A
//!   simulation of both loops with workers that die between any two messages holds that up (`pipeline/simulation.rs`).
//! - When a batch of coalesced requests fails, its members are run again one by one: a request with bad rows must not be
//!   an error of its neighbours.
//! - The ventilator looks at the lengths of a request and not at its values, which the worker checks: looking at each
//!   BOOL byte or offset of a large request would hold up everybody (`tensor/unchecked.rs`, `wire/chunk.rs`). Parameters
//!   stay the bytes that they came in until a worker reads them (`wire/params.rs`).
//! - A chunk is run a few rows at a time: as many as the engine runs cheapest, which is found by climbing
//!   (`schedule/pace.rs`). What a chunk costs on its way is so shared by many runs, small chunks pass between two runs of
//!   a bulk chunk, and a cancel counts there (`pipeline/worker/run.rs`). Each run is an entry of the result's `parts`.
//! - Bulk chunks become smaller towards the end of a request, so that the workers end together.
//! - A loop of the server that is used a lot asks for its next message for a while before it sleeps
//!   (`socket/waiter.rs`): waking a core costs more than all that a small request needs done.
//! - `infer` writes borrowed numbers from where they lie, within the call (`client/encoded.rs`): a copy into fresh memory
//!   costs as much as the rest of a large request's way.
//! - What re-enters the queue is not a stage but a *leg*: stages in a row that run in the same kind of worker. Without
//!   extra workers a model has one leg, and its stages cost no hop. A worker whose device would be idle runs all legs of
//!   new rows itself, and so does one that gets a lone small request (`schedule/fresh.rs`).
//! - What is loaded stays as it is until it is loaded again: a request never meets a file that somebody is just copying.
//!   The loader reads what is new; the catalog decides when it takes over (every worker has it open) and which models leave
//!   to make room, because it alone knows which are in use (`catalog/models.rs`).
//! - A plugin's table and its host are in `plugin/`, not in `model/`: the author's side compiles without the server, and
//!   all that crosses the C interface is in one place. Signatures cross it as JSON, which C writes as a literal.
//! - A plugin is opened from a private copy of its file, so that copying a new version over one that is in use harms
//!   nobody (`plugin/host/library.rs`).
//! - An error can say which rows of its batch it is about; the worker tells the client their numbers in its request.
//! - Small chunks have places of their own at a worker, beside the bulk places; a worker that ran only small chunks for
//!   20 ms runs the bulk chunk that waits (`schedule/lane.rs`).
//! - Small requests of many threads share a session of the client, with one of those that wait as its driver
//!   (`client/tickets.rs`): each connection costs both sides a waking-up per request.
//! - Small requests that share a chunk are copied into one piece by the ventilator, and their results come back as one;
//!   the sink writes each its part of it straight to where it leaves (`ventilator/requests.rs`, `wire/rows.rs`).
//! - A header that equals an earlier one but for its id is not read again (`ventilator/known_headers.rs`).
//! - While small requests come, bulk runs are made as short as costs little (`schedule/pace.rs`), workers let the loops
//!   around them go first, and those ask for short slices of a core (`priority.rs`).

// A panic in a loop of the server costs the requests of others: errors are returned, and the few places that cannot fail
// say why. Tests may.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "server")]
pub(crate) mod catalog;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
pub mod error;
#[cfg(feature = "server")]
pub(crate) mod frames;
#[cfg(feature = "server")]
pub mod logging;
pub mod message;
#[cfg(feature = "server")]
pub mod model;
#[cfg(feature = "server")]
pub(crate) mod pipeline;
#[cfg(any(feature = "plugin", feature = "server"))]
pub mod plugin;
#[cfg(feature = "server")]
mod priority;
#[cfg(feature = "server")]
pub(crate) mod schedule;
#[cfg(feature = "server")]
pub mod server;
#[cfg(any(feature = "plugin", feature = "server"))]
pub(crate) mod signature;
#[cfg(feature = "server")]
pub(crate) mod socket;
#[cfg(feature = "server")]
pub(crate) mod split;
pub mod tensor;
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) mod waker;
pub mod wire;
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) mod zmtp;

#[cfg(feature = "client")]
pub use client::{Call, Client, Response};
pub use error::{Error, ErrorCode, Result};
pub use message::{Params, Priority, Request, RequestId, Stats};
pub use tensor::{Batch, DataType, Element, Tensor};

/// The examples of the README are compiled with the documentation's.
#[cfg(all(doctest, feature = "client", feature = "plugin"))]
#[doc = include_str!("../README.md")]
struct Readme;
