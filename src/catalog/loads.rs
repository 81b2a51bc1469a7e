//! What the loader was asked and has not answered: by whom, what for, and how much of it there may be.

use std::collections::HashMap;
use std::sync::Arc;

use super::lookup_cache::lookup_bytes;
use super::waiting::Asker;
use crate::error::{Error, Result};
use crate::message::ReplyTo;
use crate::model::{FoundModel, Lookup, Name};
use crate::shares::{Amount, Bounds, Most, Shares};

/// What the loader was asked and has not answered. Those of requests and questions count as waiting bytes too.
const LOADS: Bounds = Bounds {
    what: "models and paths to look up, load or unload",
    of_all: Most {
        count: 4096,
        bytes: Some(32 << 20),
    },
    of_one: Most {
        count: 2048,
        bytes: Some(8 << 20),
    },
};
/// Loads and unloads of one client that are not done.
const MAX_ORDERS_OF_ONE: usize = 64;
/// Loads and unloads that are not done, and other things that the loader was asked.
const MAX_ORDERS: usize = LOADS.of_all.count;
/// Of each besides its lookup: a job, a ticket, a client's turn and a list of those who wait.
const LOAD_BYTES: u64 = 512;

/// What somebody names: the lookup, and the name in it, if it can be told without a look at files.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) lookup: Arc<Lookup>,
    pub(crate) name: Option<Name>,
}

/// Who wants a model loaded.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    Operator(Asker, Named),
    /// It was named by --preload.
    Start(Named),
}

impl Wanted {
    pub(super) fn named(&self) -> &Named {
        match self {
            Wanted::Operator(_, named) | Wanted::Start(named) => named,
        }
    }

    pub(super) fn client(&self) -> ReplyTo {
        match self {
            Wanted::Operator(asker, _) => asker.client,
            Wanted::Start(_) => the_server(),
        }
    }

    pub(super) fn is_of(&self, client: &ReplyTo) -> bool {
        matches!(self, Wanted::Operator(asker, _) if asker.client == *client)
    }
}

/// The server itself, which loads models before it is ready. Nobody else has this address.
fn the_server() -> ReplyTo {
    ReplyTo::default()
}

/// What for the loader was asked.
#[derive(Clone, Debug)]
pub(super) enum LoadRequest {
    /// Requests and questions wait for what the lookup leads to.
    Describe(Named),
    /// Somebody wants it loaded, and open on every worker.
    Load(Wanted),
    Unload(Asker, Named),
}

impl LoadRequest {
    pub(super) fn named(&self) -> &Named {
        match self {
            LoadRequest::Describe(named) | LoadRequest::Unload(_, named) => named,
            LoadRequest::Load(wanted) => wanted.named(),
        }
    }
}

/// A load request that the loader has not answered.
pub(super) struct LoadJob {
    pub(super) request: LoadRequest,
    /// In whose turn it is done.
    pub(super) client: ReplyTo,
    /// What it has led to, which is being read.
    pub(super) reading: Option<Arc<FoundModel>>,
    bytes: u64,
}

/// Loads whose models are being opened, which the loader has answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpeningOrders {
    pub(super) of_all: usize,
    pub(super) of_client: usize,
}

/// What the loader was asked and has not answered.
#[derive(Default)]
pub(super) struct Loads {
    asked: HashMap<u64, LoadJob>,
    last_ticket: u64,
    shares: Shares,
}

impl Loads {
    /// How much it is, of all clients.
    pub(super) fn all(&self) -> Amount {
        self.shares.all()
    }

    /// Whether that client may ask for that too.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if it, or all together, have asked for as much as they may.
    pub(super) fn check(&self, client: &ReplyTo, lookup: &Lookup) -> Result<()> {
        LOADS.check(&self.shares, *client, load_bytes(lookup))
    }

    /// Whether an operator may have that loaded or unloaded too, beside the models of `opening`.
    ///
    /// # Errors
    /// As [`Loads::check`].
    pub(super) fn check_order(
        &self,
        client: &ReplyTo,
        lookup: &Lookup,
        opening: OpeningOrders,
    ) -> Result<()> {
        if opening.of_client + self.shares.of(*client).count >= MAX_ORDERS_OF_ONE {
            return Err(Error::exhausted(format!(
                "this client waits for {MAX_ORDERS_OF_ONE} models to be loaded, unloaded or looked up, the most that \
                 one may when it orders more; wait for some of the answers"
            )));
        }
        if opening.of_all + self.all().count >= MAX_ORDERS {
            return Err(Error::exhausted(format!(
                "{MAX_ORDERS} models are waiting to be loaded or unloaded; try later"
            )));
        }
        self.check(client, lookup)
    }

    /// Registers a load request; its answer carries the returned ticket.
    pub(super) fn add(&mut self, client: &ReplyTo, request: LoadRequest) -> u64 {
        let bytes = load_bytes(&request.named().lookup);
        self.shares.add(*client, bytes);
        self.last_ticket += 1;
        let asked = LoadJob {
            request,
            client: *client,
            reading: None,
            bytes,
        };
        self.asked.insert(self.last_ticket, asked);
        self.last_ticket
    }

    pub(super) fn get_mut(&mut self, ticket: u64) -> Option<&mut LoadJob> {
        self.asked.get_mut(&ticket)
    }

    /// It is answered, or needs no answer any more.
    pub(super) fn finish(&mut self, ticket: u64) -> Option<LoadJob> {
        let asked = self.asked.remove(&ticket)?;
        self.shares.remove(asked.client, asked.bytes);
        Some(asked)
    }

    /// What was asked only because requests and questions of that client wait, in order.
    pub(super) fn lookups_of(&self, client: &ReplyTo) -> Vec<u64> {
        if self.shares.of(*client).count == 0 {
            return Vec::new();
        }
        let its = |(ticket, asked): (&u64, &LoadJob)| {
            let is_lookup = matches!(asked.request, LoadRequest::Describe(_));
            (is_lookup && asked.client == *client).then_some(*ticket)
        };
        let mut tickets: Vec<u64> = self.asked.iter().filter_map(its).collect();
        tickets.sort_unstable();
        tickets
    }

    /// What it was asked.
    #[cfg(test)]
    pub(super) fn tickets(&self) -> std::collections::BTreeSet<u64> {
        self.asked.keys().copied().collect()
    }
}

/// Roughly the memory of a lookup while the loader is asked about it.
pub(crate) fn load_bytes(lookup: &Lookup) -> u64 {
    LOAD_BYTES + lookup_bytes(lookup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Params, RequestId};

    const NONE_OPENING: OpeningOrders = OpeningOrders {
        of_all: 0,
        of_client: 0,
    };

    /// Asks until it is refused: how often it was not.
    fn fill(loads: &mut Loads, client: ReplyTo) -> usize {
        for number in 0.. {
            let lookup = Lookup::of(Some(&format!("{number}")), &Params::new());
            if loads.check(&client, &lookup).is_err() {
                return number;
            }
            let (lookup, name) = (Arc::new(lookup), None);
            loads.add(&client, LoadRequest::Describe(Named { lookup, name }));
        }
        0
    }

    #[test]
    fn a_client_that_names_models_without_end_leaves_room_for_others_and_nothing_behind() {
        let mut loads = Loads::default();
        let [flood, other, third] = [1, 2, 3].map(|number| ReplyTo([number; 16]));
        assert_eq!(fill(&mut loads, flood), LOADS.of_one.count);
        assert!(fill(&mut loads, other) > 500 && fill(&mut loads, third) > 200);
        let lookup = Lookup::of(Some("m"), &Params::new());
        assert!(loads.check_order(&flood, &lookup, NONE_OPENING).is_err());
        for client in [flood, other, third] {
            for ticket in loads.lookups_of(&client) {
                loads.finish(ticket);
            }
        }
        assert_eq!((loads.all(), loads.asked.len()), (Amount::default(), 0));
    }

    #[test]
    fn one_client_orders_a_few_models_at_once_and_its_lookups_count() {
        let mut loads = Loads::default();
        let client = ReplyTo([1; 16]);
        let asker = Asker {
            client,
            id: RequestId(1),
        };
        let lookup = Arc::new(Lookup::of(Some("m"), &Params::new()));
        for order in 0..MAX_ORDERS_OF_ONE {
            // Those that workers are opening count as those that the loader was asked.
            assert!(loads.check_order(&client, &lookup, NONE_OPENING).is_ok());
            let opening = OpeningOrders {
                of_all: MAX_ORDERS_OF_ONE,
                of_client: MAX_ORDERS_OF_ONE - order,
            };
            assert!(loads.check_order(&client, &lookup, opening).is_err());
            let (lookup, name) = (lookup.clone(), None);
            loads.add(&client, LoadRequest::Unload(asker, Named { lookup, name }));
        }
        let refused = loads
            .check_order(&client, &lookup, NONE_OPENING)
            .unwrap_err();
        assert!(refused.message().contains("wait for some"), "{refused}");
        let another = ReplyTo([2; 16]);
        assert!(loads.check_order(&another, &lookup, NONE_OPENING).is_ok());
        assert!(
            loads.lookups_of(&client).is_empty(),
            "orders are done whoever goes"
        );
    }
}
