//! What sends requests and counts what comes of them. `make bench-doors` includes it as it is, so that there is one
//! generator.
//!
//! ```text
//! drive: a thread for each connection ── asks ─▶ load: what is due?   (pure)
//!            │                        └─ tells ─▶ measure: what came? (pure) ─▶ report
//!            └─▶ doors: ask, answer
//! ```

pub mod doors;
pub mod drive;
pub mod load;
pub mod measure;
#[allow(dead_code)] // the simulations of the server use the rest
#[path = "../../../random.rs"]
pub mod random;
pub mod report;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The rows of each request.
    pub rows: usize,
    /// Requests in flight: all the time in a closed loop, at most in an open one.
    pub concurrency: usize,
    /// Requests due a second, in an open loop.
    pub rate: Option<u64>,
}
