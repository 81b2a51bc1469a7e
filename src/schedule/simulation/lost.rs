//! Workers that are lost, and requests that are closed while their chunks are out.

use super::*;

/// A worker is lost, and none of its parts has come.
pub(super) fn lose(scheduler: &mut Scheduler, worker: WorkerId) -> Losses {
    let mut all = Losses::default();
    for chunk in scheduler.worker_down(worker) {
        let losses = scheduler.lost(chunk, &[]);
        all.lost.extend(losses.lost);
        all.abandoned.extend(losses.abandoned);
        all.finished.extend(losses.finished);
    }
    all
}

#[test]
fn what_had_arrived_of_a_lost_chunk_does_not_run_again() {
    let mut world = World::new(limits(1), 100);
    let all: Vec<_> = (0..3).map(|_| world.job(1)).collect();
    let serials: Vec<Serial> = all.into_iter().map(|job| world.submit(job)).collect();
    let scheduler = &mut world.scheduler;
    let chunk = scheduler.next(0).unwrap().chunk;
    assert_eq!(scheduler.worker_down(WorkerId(0)), [chunk]);
    assert!(!scheduler.is_out(chunk), "its credit would come too late");
    scheduler.worker_up(WorkerId(0), 0);
    assert!(scheduler.next(0).is_none(), "it may have arrived");
    let losses = scheduler.lost(chunk, &serials[..2]);
    assert_eq!(losses.finished, serials[..2]);
    let again = scheduler.next(0).unwrap();
    let attempt = scheduler.out[&again.chunk].work.attempt;
    assert_eq!((again.pieces.len(), attempt), (1, 1));
    assert_eq!(again.pieces[0].serial, serials[2]);
    assert_eq!(scheduler.credit(again.chunk, None, 1), serials[2..]);
    assert!(scheduler.is_idle());
}

#[test]
fn a_lost_worker_costs_a_second_run_and_no_row() {
    let mut world = World::new(limits(2), 100);
    let serial = world.ask(1000);
    let first: Vec<_> = world
        .order
        .iter()
        .filter(|a| a.worker == WorkerId(0))
        .cloned()
        .collect();
    assert_eq!(first.len(), 2);
    assert_eq!(lose(&mut world.scheduler, WorkerId(0)), Losses::default());
    let dead = std::mem::take(&mut world.workers[0]);
    assert!(dead.running.is_some());
    world.workers[0].lost = true;
    world.ends.retain(|Reverse((_, worker))| *worker != 0);
    world.give_out();
    // Both chunks run again, on the other worker, before new work.
    while world.order.len() < 6 {
        assert!(world.step());
    }
    assert_eq!(world.order[4].pieces, first[0].pieces);
    assert_eq!(world.order[5].pieces, first[1].pieces);
    while world.step() {}
    assert!(world.finished.contains_key(&serial));
    assert!(world.scheduler.is_idle());
}

#[test]
fn what_kills_every_worker_is_given_up() {
    let mut scheduler = Scheduler::<()>::new(limits(1));
    let mut world = World::new(limits(1), 100);
    let job = world.job(1);
    scheduler.submit(job.clone()).unwrap();
    for attempt in 0..=MAX_ATTEMPTS {
        scheduler.worker_up(WorkerId(0), 0);
        let chunk = scheduler.next(0).unwrap().chunk;
        assert_eq!(scheduler.out[&chunk].work.attempt, attempt);
        let losses = lose(&mut scheduler, WorkerId(0));
        let abandoned = attempt == MAX_ATTEMPTS;
        assert_eq!(losses.abandoned.len(), usize::from(abandoned));
    }
    assert_eq!(scheduler.close(job.serial), Some(0), "no part will come");
    scheduler.worker_up(WorkerId(0), 0);
    assert!(scheduler.next(0).is_none());
    assert!(scheduler.is_idle());
}

#[test]
fn closing_counts_the_chunks_whose_parts_may_come() {
    let mut world = World::new(limits(1), 100);
    let serial = world.ask(8000);
    assert_eq!(world.scheduler.close(serial), Some(2));
    assert_eq!(world.scheduler.close(serial), None, "once");
    assert_eq!(world.scheduler.waiting().rows, 0);
    let waiting = world.ask(8);
    assert!(world.scheduler.next(0).is_none());
    world.run_dry();
    assert!(world.finished.contains_key(&waiting));
    assert!(!world.finished.contains_key(&serial));
}

#[test]
fn a_closed_worker_loss_is_reported() {
    let mut world = World::new(limits(1), 100);
    let serial = world.ask(8000);
    world.scheduler.close(serial);
    let losses = lose(&mut world.scheduler, WorkerId(0));
    assert_eq!(losses.lost, [(serial, 1), (serial, 1)]);
    assert!(world.scheduler.is_idle());
}
