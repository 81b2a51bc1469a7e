//! What the threads of the doors share: bounds, counts, and what is known of the server as a whole.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::incoming::HERE_BYTES;
use super::responses::Responses;
use super::uploads::Uploads;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::message::Protocol;

/// Of how many descriptors the doors take at most one.
const DESCRIPTORS_SHARE: u64 = 4;
/// Most connections of the doors where the system's limit on descriptors is higher, or absent.
const MOST_CONNECTIONS: u64 = 1 << 18;

/// Small bodies may pass the bound of all by one part of so many: large ones never lock them out.
const SMALL_SHARE: u64 = 8;

/// Bounds, counts and settings.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Most bytes of a request's body, inflated or not.
    pub(crate) max_request_bytes: u64,
    /// Most bytes of answers that a connection may leave unread.
    pub(crate) max_client_bytes: u64,
    /// Most rows in a chunk, which model configurations show.
    pub(crate) max_batch_size: usize,
    /// Loading and unloading is allowed to clients on this machine.
    pub(crate) model_control: bool,
    /// The address that is bound can be reached from this machine alone.
    pub(crate) loopback: bool,
    /// What all doors have answered.
    pub(super) responses: Responses,
    max_connections: u64,
    max_unfinished_bytes: u64,
    /// By kind of door.
    connections: [AtomicUsize; Protocol::ALL.len()],
    unfinished: AtomicU64,
    pub(super) uploads: Uploads,
    unloaded: Mutex<BTreeSet<String>>,
}

impl Shared {
    pub(crate) fn new(config: &Config) -> Shared {
        let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(1024);
        let possible = (limit / DESCRIPTORS_SHARE).clamp(1, MOST_CONNECTIONS);
        let address = config.host.parse::<IpAddr>();
        Shared {
            max_request_bytes: config.max_request_bytes,
            max_client_bytes: config.max_client_bytes,
            max_batch_size: config.max_batch_size,
            model_control: config.door_model_control,
            loopback: address.is_ok_and(|address| address.to_canonical().is_loopback()),
            responses: Responses::default(),
            max_connections: config
                .max_sessions
                .map_or(possible, |most| possible.min(most as u64)),
            max_unfinished_bytes: config.max_unfinished_bytes,
            connections: Default::default(),
            unfinished: AtomicU64::new(0),
            uploads: Uploads::default(),
            unloaded: Mutex::default(),
        }
    }

    /// Counts one more connection; `false` if there are too many.
    pub(super) fn add_connection(&self, kind: Protocol) -> bool {
        // Two threads may both add the last one: the bound is about descriptors, of which some are left.
        let all = self.connections().map(|(_, count)| count);
        let has_room = all.sum::<u64>() < self.max_connections;
        if has_room {
            self.connections[kind as usize].fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    pub(super) fn remove_connection(&self, kind: Protocol) {
        self.connections[kind as usize].fetch_sub(1, Ordering::Relaxed);
    }

    /// The connections that are open, by kind of door.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (Protocol, u64)> {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64;
        std::iter::zip(Protocol::ALL, self.connections.iter().map(count))
    }

    /// Counts bytes of a body that has not come whole, which has so many with them. They are given back by
    /// [`Shared::release`]. Where there are too many, slower uploads make room for it.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there are too many over all connections, and none of them is slower.
    pub(super) fn reserve(&self, bytes: u64, held: u64, upload: Option<u64>) -> Result<()> {
        let before = self.unfinished.fetch_add(bytes, Ordering::Relaxed);
        let most = match held <= HERE_BYTES as u64 {
            true => self.max_unfinished_bytes + self.max_unfinished_bytes / SMALL_SHARE,
            false => self.max_unfinished_bytes,
        };
        let beyond = before.saturating_add(bytes).saturating_sub(most);
        if beyond == 0 || self.uploads.make_room(beyond, upload, Instant::now()) {
            return Ok(());
        }
        self.release(bytes);
        Err(Error::exhausted(format!(
            "the requests that are being read have more than {} bytes together (--max-unfinished-bytes); try later",
            self.max_unfinished_bytes
        )))
    }

    /// What an upload is told that has to make room.
    pub(super) fn too_slow(&self) -> Error {
        Error::exhausted(format!(
            "the requests that are being read have more than {} bytes together (--max-unfinished-bytes), and this one came slowest; try later",
            self.max_unfinished_bytes
        ))
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.unfinished.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// The models that were unloaded through a door and not loaded since: they are not ready, although a request would load
    /// them.
    pub(crate) fn unloaded(&self) -> MutexGuard<'_, BTreeSet<String>> {
        // No update can be cut in half, so a poisoned lock is as good as any.
        self.unloaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
