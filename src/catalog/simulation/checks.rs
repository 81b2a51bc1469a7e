//! What always holds in the simulation, and what holds when it is over.

use std::collections::BTreeSet;

use super::Simulation;
use super::world::bytes_of;
use crate::catalog::Amount;
use crate::catalog::failures::AskedFor;
use crate::catalog::known::Standing;
use crate::catalog::loads::LoadRequest;
use crate::error::ErrorCode;
use crate::message::{ModelId, Serial};
use crate::model::Key;
use crate::model::loader::Answer;

/// What holds after each event.
pub(super) fn after_each(sim: &Simulation) {
    let served: Vec<&str> = sim.catalog.served().map(|model| &*model.name).collect();
    let names: BTreeSet<&str> = served.iter().copied().collect();
    assert_eq!(
        served.len(),
        names.len(),
        "two states of one model are served"
    );
    assert!(served.len() <= sim.most.count, "{served:?}");
    let bytes: u64 = served.iter().map(|name| bytes_of(name)).sum();
    assert!(
        sim.most.bytes.is_none_or(|most| bytes <= most),
        "{served:?}"
    );

    // Of each thing that was asked for at most one error, and what is served in its place is served.
    let mut asked = Vec::new();
    for (failure, served_on) in sim.catalog.failures() {
        assert!(!asked.contains(&&failure.asked), "two marks of one name");
        asked.push(&failure.asked);
        if let Some(model) = served_on {
            assert_ne!(Some(model.id), failure.model, "what does not open");
            let standing = sim.catalog.models.known.standing(model.id);
            assert_eq!(standing, Some(Standing::Served), "what is served on");
        }
    }

    // What is held is known, and what is known is held.
    let known: BTreeSet<ModelId> = sim.catalog.models.known.all().map(|(id, _)| id).collect();
    let held: BTreeSet<ModelId> = sim.folder.held.keys().copied().collect();
    let unheard = sim.loader.unheard();
    assert_eq!(held, known.union(&unheard).copied().collect());
    assert!(sim.running.values().all(|model| known.contains(model)));
    // A model leaves only while a request needs it.
    let all = sim.catalog.models.known.all();
    for (id, _) in all.filter(|(_, standing)| *standing == Standing::Leaving) {
        assert!(sim.running.values().any(|of| *of == id), "{id:?} stays");
    }

    let everybody: BTreeSet<Serial> = sim.catalog.waiting.everybody().into_iter().collect();
    let waiting = sim.waiting.keys().chain(sim.questions.values());
    assert_eq!(everybody, waiting.copied().collect(), "who waits");
    // Nobody waits for what the loader was not asked, and it was asked nothing that nobody knows of.
    let tickets = sim.loader.tickets();
    assert_eq!(tickets, sim.catalog.loads.tickets(), "what the loader does");
    for queue in sim.catalog.waiting.tickets() {
        assert!(!queue.is_empty() && queue.iter().all(|ticket| tickets.contains(ticket)));
    }
    for client in &sim.clients {
        let orders = sim.orders.iter().filter(|(of, _)| of == client);
        assert!(orders.count() <= 64, "one client's orders");
    }
}

/// What is to become of the mark that something does not open.
pub(super) enum Mark {
    There,
    Gone,
    /// It may be there if it is of these files.
    Of(Key),
}

/// What the loader's answer says of what was asked.
pub(super) fn mark_after(
    sim: &mut Simulation,
    ticket: u64,
    answer: &Answer,
) -> Option<(AskedFor, Mark)> {
    let request = &sim.catalog.loads.get_mut(ticket)?.request;
    let is_unload = matches!(request, LoadRequest::Unload(..));
    let mark = match answer {
        Answer::Found(Err(e)) => match e.code() {
            ErrorCode::NotFound => Mark::Gone,
            ErrorCode::FailedPrecondition if !is_unload => Mark::There,
            _ => return None,
        },
        Answer::Found(Ok(_)) if is_unload => Mark::Gone,
        Answer::Found(Ok(found)) => Mark::Of(found.key().clone()),
        Answer::Read(Err(_)) => Mark::There,
        // One that is loaded is to be opened by the workers yet.
        Answer::Read(Ok(_)) if matches!(request, LoadRequest::Describe(_)) => Mark::Gone,
        _ => return None,
    };
    Some((AskedFor::of(request.named()), mark))
}

/// The mark is there, or gone, as it was to be.
pub(super) fn mark(sim: &Simulation, wanted: Option<(AskedFor, Mark)>) {
    let Some((asked, wanted)) = wanted else {
        return;
    };
    let mut all = sim.catalog.failures.all();
    let mark = all.find(|failure| failure.asked == asked);
    let is_right = match wanted {
        Mark::There => mark.is_some(),
        Mark::Gone => mark.is_none(),
        Mark::Of(key) => mark.is_none_or(|mark| {
            let its = mark.key.as_ref();
            its.is_some_and(|its| its.is_state_of(&key) && its.version() == key.version())
        }),
    };
    assert!(is_right, "the mark of {asked:?}: {mark:?}");
}

/// What holds once nothing moves any more.
pub(super) fn at_the_end(sim: &mut Simulation) {
    assert!(
        sim.waiting.is_empty() && sim.questions.is_empty(),
        "some wait"
    );
    assert!(
        sim.orders.is_empty(),
        "orders without an answer: {:?}",
        sim.orders
    );
    assert!(sim.running.is_empty() && sim.starting == 0);
    assert_eq!(sim.loader.kept, None, "the loader waits for ever");
    for client in sim.clients.clone() {
        sim.forget_client(client);
    }
    sim.act();
    after_each(sim);
    assert!(
        sim.catalog.waiting.is_empty(),
        "something is kept of those that waited"
    );
    assert_eq!(sim.catalog.loads.all(), Amount::default());
    assert!(sim.catalog.openings.models().is_empty());
    let all = sim.catalog.models.known.all();
    let served: BTreeSet<ModelId> = all
        .map(|(id, standing)| {
            assert_eq!(standing, Standing::Served, "{id:?}");
            id
        })
        .collect();
    let kept = sim.catalog.models.room.kept();
    assert!(
        kept.iter().all(|id| served.contains(id)),
        "uses of models that are gone"
    );
}
