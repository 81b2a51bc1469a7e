//! The commands and the client together: what a user sees of rows, errors, order, stopping and starting.
//!
//! Nothing here is decided by a clock. Where an order matters, the only worker is kept inside a model while requests
//! queue behind it, and the server's own count says that it still was (`behind.rs`).
#![cfg(feature = "server")]

#[path = "../common/mod.rs"]
mod common;

#[path = "../common/built.rs"]
mod built;

mod behind;
mod bench;
mod calling;
mod commands;
mod curl;
mod errors;
mod exact;
mod express;
mod first_model;
mod flight;
mod infer;
mod life;
mod lost;
mod models;
mod order;
mod policy;
mod readme;
mod repeated;
mod signals;
mod start;
mod status;
mod stop;
mod threads;
mod types;

use mdm::Tensor;
use mdm::client::{Client, Status};

use crate::common::refused;

/// `count` rows of `[number, number of the row]`, which no two rows of a test share.
fn numbered(number: i64, count: usize) -> Tensor {
    let rows = (0..count as i64).flat_map(|row| [number, row]).collect();
    Tensor::from_vec("", vec![count, 2], rows).expect("a tensor")
}

/// The status once nothing is queued and every worker has told of its last chunk.
fn settled(client: &Client) -> Status {
    let mut status = client.status().expect("a status");
    common::eventually("the server is idle", || {
        status = client.status().expect("a status");
        status.queue.requests == 0 && status.workers.iter().all(|w| w.state == "idle")
    });
    status
}
