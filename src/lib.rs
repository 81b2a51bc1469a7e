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
//! | [`wire`] | frames ↔ messages, and the protocol's page: `client.rs` what clients say, `server.rs` what they are told, `inner.rs` and `chunk.rs` what the loops say to each other |
//! | `zmtp` | connections of our own that speak ZMTP: the server's two ports and the client |
//! | `frames`, `socket`, `waker` | zero-copy frames; how the loops' sockets are set up and waited for; a descriptor to wake a loop by |
//! | `thread_priority`, `heap` | calls of the system: which threads go first, and memory that is given back |
//! | `deadlines`, `shares` | what the queue and the catalog count alike: when requests run out of time, how much each client has |
//! | `split` | pure arithmetic: cut rows, gather parts |
//! | `schedule` | the queue and the policy as a pure state machine, with its simulation |
//! | `catalog` | the life of a model as a pure state machine, with its simulation: what is served, coming, leaving, and who waits |
//! | [`model`] | what a worker runs and where it comes from: `find/` from names to files, `engine/` the only user of ONNX Runtime, loader, store, stages, chains |
//! | `proxy`, `signature` | what stands in a proxy, read and written; what a model takes and gives |
//! | [`plugin`], `elf` | models of one's own: the author's interface, the C interface below it, its host |
//! | [`metrics`] | what is counted, a snapshot of it, and that as Prometheus' text |
//! | `pipeline` | the three loops: `ventilator`, `worker`, `sink`; they never import each other |
//! | [`server`] | wiring, being ready, the order of stopping; doors, which are clients inside this process |
//! | `door` | clients of other protocols: a few threads that translate, submit through [`server::Door`] and answer; `http/` is REST, `grpc/` is gRPC |
//! | [`config`], [`logging`], [`faults`] | what was typed → checked settings, and the table of flags; the log; panics and models' failures in it |
//! | [`client`] | sessions, requests, results; no thread of its own |
//! | `src/bin/` | the commands |
//! | [`guide`] | what users read: a page for each subject, the last one for who works on this crate |
//!
//! # Following one infer
//!
//! | step | files |
//! |---|---|
//! | the caller's rows become a request's bytes | `client/mod.rs`, `client/inputs.rs`, `client/encoded.rs` |
//! | they leave on a session that the caller has, or shares | `client/session.rs`, `client/tickets.rs`, `zmtp/dealer.rs` |
//! | the ventilator reads them, and knows the model or waits for it | `zmtp/router.rs`, `pipeline/ventilator/says.rs`, `wire/client.rs`, `pipeline/ventilator/admission.rs` |
//! | the request is queued, and cut when a worker is free | `pipeline/ventilator/requests.rs`, `schedule/mod.rs` |
//! | a chunk travels to a worker, which runs it | `wire/chunk.rs`, `pipeline/worker.rs`, `pipeline/worker/run.rs`, `model/engine/onnx.rs` |
//! | its parts travel to the sink, which answers when all have come | `wire/inner.rs`, `pipeline/sink.rs`, `pipeline/sink/answers.rs` |
//! | the client reads the result | `client/response.rs` |
//!
//! # Following one load
//!
//! | step | files |
//! |---|---|
//! | the ventilator hears who wants it, or that a request needs it | `pipeline/ventilator/says.rs` |
//! | what its name leads to is found, and whether it is to be read | `catalog/mod.rs`, `model/loader.rs` |
//! | it is read, and kept for the workers | `model/store.rs` |
//! | each worker opens it | `pipeline/worker.rs` |
//! | it is served in place of what it replaces; others leave, if there is no room | `catalog/models.rs` |
//!
//! # Threads and sockets
//!
//! The ventilator, the sink and each worker have a thread; one more loads models. A worker's [role](message::Role) says what it
//! runs: everything, plugin stages alone, or small chunks while all others are inside bulk (an express worker).
//!
//! libzmq is used between these loops alone: PUSH and PULL sockets over inproc, each made, used and closed in one thread. `port`
//! and `port_out` are connections of our own (`zmtp`), which belong to the ventilator and the sink and which each polls in one
//! epoll with its inner sockets.
//!
//! The doors have threads of their own (`door/runtime.rs`), which take no part in that: each has a runtime for its
//! connections, and one [`server::Door`] for each protocol.
//!
//! The client does not use libzmq. Its connections are the only ones that change threads, and only under a lock: a pool's
//! (`client/mod.rs`), for the length of a call, or that of the requests that share a session (`client/tickets.rs`).
//!
//! # What always holds
//!
//! 1. Data between the loops rides ZeroMQ, and so does control that must wake a polling loop. What a door says and is told
//!    has a bounded queue and a descriptor of its own (`pipeline/door_queues.rs`), and an order to stop has one that was made at
//!    the start (`pipeline/control.rs`), since it must work when no descriptor is left. Nothing travels on two of these but
//!    credits: those of small chunks that ran inside a bulk chunk, or in an express worker beside them, are to wake nobody, and
//!    lie in a queue that the ventilator empties before it reads its next message (`pipeline/beside_bulk.rs`).
//! 2. Ventilator and sink bind, workers connect. Start and stop are synchronous; at the end a marker travels ventilator →
//!    each worker → sink, behind the data.
//! 3. Every queue and every byte held for a client is bounded, by a flag or by a documented constant.
//! 4. Every accepted request gets exactly one final answer while its session lives. The sink is the one place that
//!    gives it.
//! 5. No input from a client can panic, abort or wedge the server, or make it use memory beyond its bounds.
//! 6. One engine session per worker and model, run by `&mut`. Weights are shared wherever the engine can.
//! 7. On the data path no tensor byte is copied without a reason beside the copy.
//! 8. `unsafe` is in `frames.rs`, in `heap.rs`, `zmtp/unsent.rs` and `thread_priority.rs` (calls of the system that no crate
//!    wraps), in `bin/mdm-server-start/allocator.rs`, and for the C interface of plugins in `plugin/glue.rs` (the author's
//!    side) and `plugin/host/` (the server's side), each block with its reason.
//!
//! What is absent: the policy reads no clock and knows no rows; the ventilator touches no file; the client has no
//! thread; on the data path three things are shared between threads: the board of cancelled serials, which may forget, the
//! list of open doors (`pipeline/door_queues.rs`), which is locked for the length of a look-up, and what ventilator and
//! workers share of small chunks inside bulk (`pipeline/beside_bulk.rs`).
//!
//! A *door* ([`server::Door`]) is a client inside the process: its requests and answers cross as messages, uncopied. Each of
//! its callers has an address of its own ([`message::ReplyTo`]), so that bounds and turns take it for a session.
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `client` | `client`, and the re-exported `ndarray`; no engine, no libzmq, no C++ compiler |
//! | `plugin` | `plugin`: what the author of a model needs |
//! | `server` | `catalog`, `config`, `logging`, `metrics`, `model`, `pipeline`, `plugin`, `server`, the commands; needs a C++ compiler |
//! | `gateway` | `door`: HTTP and gRPC |
//!
//! All of them are on by default; `gateway` includes `server`, and that `client`. The guide is there where `server` and
//! `plugin` are.
//!
// What this build lacks leads to the table above.
#![cfg_attr(not(feature = "client"), doc = "[`client`]: #features")]
#![cfg_attr(
    not(any(feature = "plugin", feature = "server")),
    doc = "[`plugin`]: #features"
)]
#![cfg_attr(
    not(feature = "server"),
    doc = "[`model`]: #features\n[`metrics`]: #features\n[`server`]: #features\n[`server::Door`]: #features\n[`config`]: #features\n[`logging`]: #features\n[`faults`]: #features"
)]
#![cfg_attr(
    not(all(feature = "server", feature = "plugin")),
    doc = "[`guide`]: #features"
)]
// A panic in a loop of the server costs the requests of others: errors are returned, and the few places that cannot fail
// say why. Tests may.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "server")]
pub(crate) mod catalog;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
mod deadlines;
#[cfg(feature = "gateway")]
pub mod door;
#[cfg(feature = "server")]
mod elf;
pub mod error;
#[cfg(feature = "server")]
pub mod faults;
#[cfg(feature = "server")]
pub(crate) mod frames;
#[cfg(all(feature = "server", feature = "plugin"))]
pub mod guide;
#[cfg(feature = "server")]
mod heap;
#[cfg(feature = "server")]
pub mod logging;
pub mod message;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod model;
#[cfg(feature = "server")]
pub(crate) mod pipeline;
#[cfg(any(feature = "plugin", feature = "server"))]
pub mod plugin;
#[cfg(any(feature = "plugin", feature = "server"))]
pub(crate) mod proxy;
#[cfg(all(test, feature = "server"))]
mod random;
#[cfg(feature = "server")]
pub(crate) mod schedule;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
mod shares;
pub(crate) mod signature;
#[cfg(feature = "server")]
pub(crate) mod socket;
#[cfg(feature = "server")]
pub(crate) mod split;
pub mod tensor;
#[cfg(feature = "server")]
mod thread_priority;
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) mod waker;
pub mod wire;
#[cfg(any(feature = "client", feature = "server"))]
pub(crate) mod zmtp;

#[cfg(feature = "client")]
pub use client::{Call, Client, Response};
pub use error::{Error, ErrorCode, Result};
pub use message::{FailedRows, OnBadRow, Params, Priority, Request, RequestId, Stats};
/// The arrays that data comes and goes as: of this version, since those of another are other types.
#[cfg(feature = "client")]
pub use ndarray;
pub use tensor::{Batch, DataType, Element, Tensor};

/// The examples of the README are compiled with the documentation's.
#[cfg(all(doctest, feature = "client", feature = "plugin"))]
#[doc = include_str!("../README.md")]
struct Readme;
