//! Whom the ventilator is connected to, and what it shares with other threads.

use std::sync::Arc;

use bytes::Bytes;
use zmq::Socket;

use crate::message::WorkerId;
use crate::model::Store;
use crate::model::loader::Loader;
use crate::pipeline::beside_bulk::BesideBulk;
use crate::pipeline::control::StopOrder;
use crate::pipeline::door_queues::Doors;
use crate::pipeline::{CancelBoard, Clock, tell};
use crate::schedule::Lane;
use crate::socket::Waiter;
use crate::zmtp::router::Router;

/// A worker's two lanes.
pub(crate) struct Lanes {
    pub small: Socket,
    pub bulk: Socket,
}

/// The ventilator's connections, and what it shares with other threads.
pub(crate) struct Links {
    /// `port`, listening.
    pub router: Router,
    /// Hears from inside, bound.
    pub inbox: Socket,
    pub lanes: Vec<Lanes>,
    pub sink: Socket,
    pub doors: Arc<Doors>,
    pub stop: Arc<StopOrder>,
    pub loader: Loader,
    pub store: Arc<Store>,
    pub board: Arc<CancelBoard>,
    pub beside_bulk: Arc<BesideBulk>,
    pub clock: Clock,
    pub waiter: Waiter,
}

impl Links {
    /// Tells every worker that is there, and says which were.
    pub(super) fn tell_workers(&mut self, lane: Lane, message: &[Bytes]) -> Vec<WorkerId> {
        let mut told = Vec::new();
        for (index, lanes) in self.lanes.iter_mut().enumerate() {
            // A worker that was lost and is coming up again has no sessions, and opens those that its chunks need.
            match tell(lanes.of(lane), message.to_vec()) {
                Ok(()) => told.push(WorkerId(index as u32)),
                Err(error) => {
                    tracing::debug!(worker_id = index, %error, "a worker is not there to be told of a model");
                }
            }
        }
        told
    }
}

impl Lanes {
    /// The one for chunks of that lane.
    pub(super) fn of(&mut self, lane: Lane) -> &mut Socket {
        match lane {
            Lane::Small => &mut self.small,
            Lane::Bulk => &mut self.bulk,
        }
    }
}
