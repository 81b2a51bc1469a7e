//! The connections of a router: found by token and by routing id, with what the router notes about each.

use std::time::Instant;

use foldhash::HashMap;
use slab::Slab;

use super::super::connection::Connection;
use super::super::poller::Interest;
use crate::message::ReplyTo;

/// Over how many seconds the progress of an unfinished message is measured.
const GAIN_SECONDS: usize = 5;

/// One connection, and what its router notes about it.
pub(super) struct Peer {
    pub(super) connection: Connection,
    /// Known once the handshake is done.
    pub(super) reply: Option<ReplyTo>,
    /// When it was accepted.
    pub(super) since: Instant,
    pub(super) interest: Interest,
    /// It is in the router's list of those that can be read.
    pub(super) is_readable: bool,
    /// It is in the router's list of those that have something to write.
    pub(super) is_unwritten: bool,
    token: u64,
    /// Its routing id, where that does not have the 16 bytes of this protocol's.
    foreign_id: Option<Box<[u8]>>,
    /// Bytes that its unfinished message gained in each of the last seconds.
    gains: [u64; GAIN_SECONDS],
}

impl Peer {
    pub(super) fn note_gain(&mut self, before: u64, after: u64) {
        self.gains[0] += after.saturating_sub(before);
    }

    pub(super) fn shift_gains(&mut self) {
        self.gains.rotate_right(1);
        self.gains[0] = 0;
    }

    fn gain(&self) -> u64 {
        self.gains.iter().sum()
    }
}

/// All connections of a router.
#[derive(Default)]
pub(super) struct Peers {
    peers: Slab<Peer>,
    by_reply: HashMap<ReplyTo, u64>,
    foreign_ids: HashMap<Box<[u8]>, u64>,
    /// Connections so far. Places in the slab are used again, tokens are not.
    count: u64,
}

/// The bits of a token that are a place; those above are the connection's number.
const PLACE_BITS: u32 = 24;

fn place(token: u64) -> usize {
    (token & ((1 << PLACE_BITS) - 1)) as usize
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn insert(&mut self, connection: Connection, now: Instant) -> u64 {
        self.count += 1;
        let entry = self.peers.vacant_entry();
        // 38 bits of connections: a thousand a second for eight years.
        let token = (self.count & ((1 << 38) - 1)) << PLACE_BITS | entry.key() as u64;
        entry.insert(Peer {
            connection,
            reply: None,
            since: now,
            interest: Interest::Read,
            is_readable: false,
            is_unwritten: false,
            token,
            foreign_id: None,
            gains: [0; GAIN_SECONDS],
        });
        token
    }

    pub(super) fn get(&self, token: u64) -> Option<&Peer> {
        let peer = self.peers.get(place(token))?;
        (peer.token == token).then_some(peer)
    }

    pub(super) fn get_mut(&mut self, token: u64) -> Option<&mut Peer> {
        let peer = self.peers.get_mut(place(token))?;
        (peer.token == token).then_some(peer)
    }

    pub(super) fn token(&self, reply: ReplyTo) -> Option<u64> {
        self.by_reply.get(&reply).copied()
    }

    /// How many have an address.
    pub(super) fn named(&self) -> usize {
        self.by_reply.len()
    }

    pub(super) fn tokens(&self) -> Vec<u64> {
        self.peers.iter().map(|(_, peer)| peer.token).collect()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Peer)> {
        self.peers.iter_mut().map(|(_, peer)| (peer.token, peer))
    }

    /// Gives a connection the address that it asked for, or a unique one; `None` if another connection has it.
    pub(super) fn name(&mut self, token: u64, identity: &[u8]) -> Option<ReplyTo> {
        let session = <[u8; 16]>::try_from(identity).ok().map(ReplyTo);
        let reply = session.unwrap_or_else(|| ReplyTo::without_session(token));
        if self.by_reply.contains_key(&reply) || self.foreign_ids.contains_key(identity) {
            return None;
        }
        let peer = self.get_mut(token)?;
        peer.reply = Some(reply);
        if session.is_none() && !identity.is_empty() {
            peer.foreign_id = Some(identity.into());
            self.foreign_ids.insert(identity.into(), token);
        }
        self.by_reply.insert(reply, token);
        Some(reply)
    }

    pub(super) fn remove(&mut self, token: u64) -> Option<Peer> {
        self.get(token)?;
        let peer = self.peers.try_remove(place(token))?;
        if let Some(reply) = peer.reply {
            self.by_reply.remove(&reply);
        }
        if let Some(id) = &peer.foreign_id {
            self.foreign_ids.remove(id);
        }
        Some(peer)
    }

    /// The connection to be closed when more than `bound` bytes are unfinished, and the bytes that it holds: the one that
    /// received least lately, of those with `large_bytes` and more. If only one has so many, it stays, and the small ones
    /// stay as long as they are within the bound themselves: closing one of them would not free enough.
    pub(super) fn slowest(&self, large_bytes: u64, bound: u64) -> Option<(u64, u64)> {
        let (mut large, mut small) = ((0, None), (0, None));
        for (_, peer) in &self.peers {
            let bytes = peer.connection.unfinished_bytes();
            let found = (peer.gain(), peer.token, bytes);
            let (sum, slowest) = match bytes {
                0 => continue,
                _ if bytes >= large_bytes => (&mut large.0, &mut large.1),
                _ => (&mut small.0, &mut small.1),
            };
            *sum += bytes;
            *slowest = Some(slowest.map_or(found, |best| found.min(best)));
        }
        let is_one = |(_, _, bytes): &(u64, u64, u64)| *bytes == large.0;
        let slowest = match large.1.filter(|slowest| !is_one(slowest)) {
            Some(slowest) => Some(slowest),
            None => small.1.filter(|_| small.0 > bound),
        };
        slowest.map(|(_, token, bytes)| (token, bytes))
    }
}
