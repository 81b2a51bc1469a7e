//! The three loops. They never import each other: what passes between them is in [`crate::wire::inner`].
//!
//! ```text
//! port ─▶ ventilator ─ two lanes each ─▶ worker 0..N-1 ─▶ sink ─▶ port_out
//!             ▲                             │              │
//!             └───── up, credit, down ──────┘              │
//!             └── gone, abort, arrived, report ────────────┘
//! ```
//! What the ventilator and the sink decide is in pure state machines, `ventilator/requests.rs` and `sink/answers.rs`, and of
//! models in `catalog/`: the loops around them have the sockets and the clock, and `simulation.rs` runs them without.
//!
//! - A failed chunk is told to the ventilator in the credit, and the ventilator has the sink close the request: so one place
//!   decides that a request has failed, as it does for deadlines and cancels.
//! - When small requests that share a chunk fail, the worker runs each again by itself (`worker/run.rs`): a request with bad
//!   rows must not be an error of its neighbours.
//! - Small requests that share a chunk are copied into one piece by the ventilator, and their results come back as one; the
//!   sink writes each its part of it straight to where it leaves ([`crate::wire::result_writer`]).
//! - What a lost worker held runs again only once the sink has said what of it had arrived: so each row counts once
//!   (`sink/answers.rs`, `schedule/lost.rs`).

#[cfg(test)]
mod allocations;
pub(crate) mod beside_bulk;
pub(crate) mod control;
pub(crate) mod door_queues;
#[cfg(test)]
mod simulation;
pub(crate) mod sink;
pub(crate) mod ventilator;
pub(crate) mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use zmq::Socket;

use crate::error::{Error, Result};
use crate::frames;
use crate::message::{Serial, WorkerId};
use crate::schedule::Lane;

/// Where the ventilator hears from inside.
pub(crate) const TO_VENTILATOR: &str = "inproc://mdm.ventilator";
/// Where the sink hears from inside.
pub(crate) const TO_SINK: &str = "inproc://mdm.sink";

/// How long a stop at once waits for answers that are leaving.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// Where a worker hears of one lane.
pub(crate) fn lane_endpoint(worker: WorkerId, lane: Lane) -> String {
    let lane = match lane {
        Lane::Small => "small",
        Lane::Bulk => "bulk",
    };
    format!("inproc://mdm.worker.{worker}.{lane}")
}

/// The server's clock: microseconds since it started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock(Instant::now())
    }

    pub(crate) fn now_us(self) -> u64 {
        self.0.elapsed().as_micros() as u64
    }

    /// What it showed then.
    pub(crate) fn at_us(self, then: Instant) -> u64 {
        then.saturating_duration_since(self.0).as_micros() as u64
    }

    /// When it shows that.
    pub(crate) fn instant(self, us: u64) -> Instant {
        self.0 + Duration::from_micros(us)
    }
}

/// Which requests were closed while a worker may still hold their chunks.
///
/// A worker looks here before it runs a chunk. The board is bounded and may forget: then a chunk runs for nothing
/// and the sink drops its part. Numbers only, so that it can lie in shared memory when workers are processes.
#[derive(Debug)]
pub(crate) struct CancelBoard(Box<[AtomicU64]>);

const BOARD_PLACES: usize = 4096;

impl CancelBoard {
    pub(crate) fn new() -> Arc<CancelBoard> {
        Arc::new(CancelBoard(
            (0..BOARD_PLACES).map(|_| AtomicU64::new(0)).collect(),
        ))
    }

    pub(crate) fn cancel(&self, serial: Serial) {
        self.0[serial.0 as usize % BOARD_PLACES].store(serial.0, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self, serial: Serial) -> bool {
        self.0[serial.0 as usize % BOARD_PLACES].load(Ordering::Relaxed) == serial.0
    }
}

/// Reports whether a loop could open its sockets. Each loop opens those that it uses, in its own thread.
pub(crate) fn report_opened<T>(opened: Sender<Result<()>>, sockets: Result<T>) -> Result<T> {
    let result = sockets.as_ref().map(|_| ()).map_err(Error::clone);
    // The starting thread may have returned with an error by now.
    let _ = opened.send(result);
    sockets
}

/// Sends to another of our loops. Inner queues have no high-water mark, so this never waits; it fails if the other
/// end is gone.
pub(crate) fn tell(socket: &mut Socket, frames: Vec<Bytes>) -> Result<()> {
    frames::send(socket, frames, zmq::DONTWAIT)
        .map_err(|e| Error::unavailable(format!("an inner connection is closed: {e}")))
}
