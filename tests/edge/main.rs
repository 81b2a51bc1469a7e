//! The edge: connections that come and go, crawl, stall, lie or are too many, and what others notice of it. One test
//! for each way in which clients were once cut, starved, or left without an answer.
#![cfg(feature = "server")]

mod answers;
#[path = "../common/built.rs"]
mod built;
mod churn;
#[path = "../common/mod.rs"]
mod common;
mod descriptors;
mod door;
mod drain;
mod foreign;
mod line;
mod memory;
mod metrics;
#[path = "../serve/models.rs"]
mod models;
mod peer;
#[path = "../common/python.rs"]
mod python;
#[path = "../wire/raw.rs"]
#[allow(dead_code)] // as above
mod raw;
mod reading;
mod sessions;
mod slow;
mod turns;
mod vanish;

use std::time::Duration;

use mdm::DataType;
use serde_json::json;

use crate::common::{Server, onnx};
use crate::raw::{Raw, pack};

/// What any of these tests may take.
const LIMIT: Duration = Duration::from_secs(120);
const MIB: usize = 1 << 20;
/// Numbers in a row of "wide": 16 KiB.
const WIDTH: usize = 4096;

/// Models that echo short and long rows, and one whose rows take about a quarter of a millisecond each.
fn folder() -> tempfile::TempDir {
    common::models(&[
        ("echo.onnx", onnx::echo(DataType::Fp32, &[4])),
        ("wide.onnx", onnx::echo(DataType::Fp32, &[WIDTH])),
        ("slow.onnx", onnx::bilstm()),
    ])
}

/// The real server, with the model that most tests use there already.
fn server(flags: &[&str]) -> Server {
    Server::start(folder(), &[&["--preload", "echo"], flags].concat())
}

/// An infer of so many long rows.
fn wide(id: u64, rows: usize) -> Vec<Vec<u8>> {
    let header = json!({
        "v": 1, "type": "infer", "id": id, "model": "wide",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [rows, WIDTH]}],
    });
    vec![pack(&header), vec![id as u8 & 0x3f; rows * WIDTH * 4]]
}

/// Long rows that make so many MiB.
fn rows_of(mib: usize) -> usize {
    mib * MIB / (WIDTH * 4)
}

/// An infer of rows that take their time.
fn slow(id: u64, rows: usize) -> Vec<Vec<u8>> {
    let header = json!({
        "v": 1, "type": "infer", "id": id, "model": "slow",
        "inputs": [{"name": "ids", "dtype": "INT64", "shape": [rows, 64]}],
    });
    vec![pack(&header), vec![0; rows * 64 * 8]]
}

/// Requests that wait or run.
fn queued(raw: &mut Raw) -> u64 {
    raw.status()["queue"]["requests"].as_u64().expect("a count")
}

/// Requests that were answered.
fn answered(raw: &mut Raw) -> u64 {
    raw.status()["totals"]["requests"]
        .as_u64()
        .expect("a count")
}

/// Rows that the workers have run.
fn rows_run(raw: &mut Raw) -> u64 {
    let status = raw.status();
    let workers = status["workers"].as_array().expect("workers");
    let rows = workers.iter().map(|w| w["rows"].as_u64().expect("a count"));
    rows.sum()
}
