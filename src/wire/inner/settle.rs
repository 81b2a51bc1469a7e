//! What ventilator and sink ask each other so that each row counts once and nothing is remembered for ever.

use serde::{Deserialize, Serialize};

use crate::message::{ChunkId, Serial, WorkerId};

/// A worker that is gone, with what it held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostWorker {
    pub worker: WorkerId,
    /// The chunks that it held.
    pub chunks: Vec<ChunkId>,
    /// The last chunk that was given out, to whomever: all that it gets later have higher numbers.
    pub last: ChunkId,
}

/// What had arrived of a lost worker's chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Arrived {
    pub worker: WorkerId,
    /// Of each chunk that was named, the requests whose rows have come.
    pub chunks: Vec<(ChunkId, Vec<Serial>)>,
}

/// Chunks whose credits the ventilator has not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Out {
    pub chunks: Vec<ChunkId>,
    /// The last that was given out.
    pub last: ChunkId,
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::ChunkId;

    #[test]
    fn what_is_asked_and_answered_of_lost_workers_comes_back_as_it_was() {
        let lost = LostWorker {
            worker: WorkerId(3),
            chunks: vec![ChunkId(1), ChunkId(1 << 40)],
            last: ChunkId(1 << 41),
        };
        let out = Out {
            chunks: vec![ChunkId(7)],
            last: ChunkId(9),
        };
        let arrived = Arrived {
            worker: WorkerId(3),
            chunks: vec![(ChunkId(1), vec![Serial(5)]), (ChunkId(2), Vec::new())],
        };
        let to_sink = |message| read_to_sink(write_to_sink(&message)).unwrap();
        assert!(
            matches!(to_sink(ToSink::WorkerLost(lost.clone())), ToSink::WorkerLost(l) if l == lost)
        );
        assert!(matches!(to_sink(ToSink::Out(out.clone())), ToSink::Out(o) if o == out));
        let frames = write_to_ventilator(&ToVentilator::Arrived(arrived.clone()));
        let read = read_to_ventilator(frames).unwrap();
        assert!(matches!(read, ToVentilator::Arrived(a) if a == arrived));
        let frames = write_to_ventilator(&ToVentilator::WhatIsOut);
        assert!(matches!(
            read_to_ventilator(frames),
            Ok(ToVentilator::WhatIsOut)
        ));
    }
}
