//! Small chunks that run fast stay with one worker, as long as it keeps up.

use super::*;
use crate::schedule::workers::{KEEPS_UP_US, SHORT_PLACES};

/// A world whose model has run, and whose workers are idle.
fn warm(workers: usize, us_per_row: u64) -> World {
    let mut world = World::new(limits(workers), us_per_row);
    world.ask(1);
    world.run_dry();
    world.order.clear();
    world.now += 1_000_000;
    world
}

fn workers(world: &World) -> Vec<u32> {
    world.order.iter().map(|a| a.worker.0).collect()
}

#[test]
fn a_worker_that_keeps_up_with_small_requests_gets_them_all() {
    let mut world = warm(4, 10);
    let mut used = std::collections::HashSet::new();
    for _ in 0..50 {
        world.ask(1);
        world.ask(1);
        world.run_dry();
        used.extend(workers(&world));
        world.now += 1000;
    }
    assert_eq!(used.len(), 1, "{used:?}");
    // What finds no place waits for one, and runs together.
    world.order.clear();
    for _ in 0..10 {
        world.ask(1);
    }
    let given = SHORT_PLACES as usize;
    assert_eq!(world.order.len(), given);
    world.step();
    assert_eq!(world.order[given].pieces.len(), 10 - given);
    world.run_dry();
    assert_eq!(
        workers(&world)[1..],
        [workers(&world)[0]; SHORT_PLACES as usize]
    );
}

/// Requests that are submitted one by one and given out together.
fn submit_together(world: &mut World, count: usize) {
    for _ in 0..count {
        let job = world.job(1);
        world.submit(job);
    }
    world.give_out();
}

fn sizes(world: &World) -> Vec<usize> {
    world.order.iter().map(|a| a.pieces.len()).collect()
}

/// More chunks than `prefetch` says wait at a worker that keeps up, as long as they do not become smaller.
#[test]
fn a_further_place_is_for_as_many_rows_as_the_chunk_before() {
    for count in [1, 2] {
        let mut world = warm(count, 1);
        submit_together(&mut world, 2);
        submit_together(&mut world, 4);
        assert_eq!(sizes(&world), [2, 4], "{count} workers");
        submit_together(&mut world, 3);
        assert_eq!(sizes(&world), [2, 4]);
        // More may come, and is read.
        assert!(!world.scheduler.is_full_of_small(world.now));
        submit_together(&mut world, 1);
        assert_eq!(sizes(&world), [2, 4, 4]);
        // What is left does not wait for ever.
        submit_together(&mut world, 3);
        world.run_dry();
        assert_eq!(sizes(&world), [2, 4, 4, 3]);
        assert_eq!(workers(&world)[1..], [workers(&world)[0]; 3]);
    }
}

#[test]
fn what_waits_for_more_rows_goes_to_another_worker_when_this_one_is_late() {
    let mut world = warm(2, 1);
    for count in [2, 4, 3] {
        submit_together(&mut world, count);
    }
    assert_eq!(sizes(&world), [2, 4]);
    let until = world.now + 2 + KEEPS_UP_US;
    assert_eq!(world.scheduler.due_us(), Some(until));
    assert!(world.scheduler.next(until - 1).is_none());
    let given = world.scheduler.next(until).expect("the other worker");
    assert_ne!(given.worker, world.order[0].worker);
}

/// Where no other worker has a place, what a late one would get in ever smaller chunks waits and runs together.
#[test]
fn a_worker_that_is_late_has_no_further_places() {
    let mut world = warm(1, 1);
    submit_together(&mut world, 1);
    submit_together(&mut world, 1);
    let late = world.now + 1 + KEEPS_UP_US;
    let job = world.job(1);
    world.submit(job);
    assert!(!world.scheduler.is_full_of_small(late - 1));
    assert!(world.scheduler.next(late).is_none());
    assert!(world.scheduler.is_full_of_small(late));
    assert_eq!(world.scheduler.due_us(), None, "its credit is the event");
    submit_together(&mut world, 1);
    world.run_dry();
}

#[test]
fn what_runs_long_or_beside_bulk_has_no_further_places() {
    let mut slow = warm(1, KEEPS_UP_US);
    let mut beside_bulk = warm(1, 10);
    beside_bulk.ask(8000);
    beside_bulk.order.retain(|a| a.lane == Lane::Small);
    for world in [&mut slow, &mut beside_bulk] {
        for _ in 0..4 {
            world.ask(1);
        }
        let small = world.order.iter().filter(|a| a.lane == Lane::Small);
        assert_eq!(small.count(), 2);
        assert!(world.scheduler.is_full_of_small(world.now));
    }
}

#[test]
fn what_one_worker_would_need_long_for_goes_to_several() {
    let slow = KEEPS_UP_US + 1;
    let mut world = warm(4, slow);
    for _ in 0..4 {
        world.ask(1);
    }
    let mut used = workers(&world);
    used.sort_unstable();
    assert_eq!(used, [0, 1, 2, 3]);
    world.run_dry();

    // Each of them little, and together much: a share for each worker that is free.
    let mut world = warm(4, 10);
    for _ in 0..100 {
        let job = world.job(1);
        world.submit(job);
    }
    world.give_out();
    let mut used = workers(&world);
    used.sort_unstable();
    assert_eq!(used, [0, 1, 2, 3]);
    world.run_dry();
}

#[test]
fn no_more_workers_are_woken_than_there_is_work_for() {
    let mut world = warm(4, 2);
    for _ in 0..70 {
        let job = world.job(1);
        world.submit(job);
    }
    world.give_out();
    let sizes: Vec<_> = world.order.iter().map(|a| a.pieces.len()).collect();
    assert_eq!(sizes, [70], "140 us for one");
    world.run_dry();
}

#[test]
fn a_worker_that_is_late_is_not_waited_for() {
    let mut world = warm(2, 10);
    for _ in 0..=SHORT_PLACES {
        world.ask(1);
    }
    assert_eq!(world.order.len(), SHORT_PLACES as usize, "one waits");
    let started = world.now;
    let until = started + 10 + KEEPS_UP_US;
    assert_eq!(world.scheduler.due_us(), Some(until));
    assert!(world.scheduler.is_full_of_small(started));
    // Its chunk takes ever longer.
    assert!(world.scheduler.next(until - 1).is_none());
    let given = world.scheduler.next(until).expect("the other worker");
    assert_ne!(given.worker, world.order[0].worker);
    assert!(world.scheduler.next(until).is_none());
    assert_eq!(world.scheduler.due_us(), None);
    assert!(!world.scheduler.is_full_of_small(until));
}

#[test]
fn what_nothing_is_known_of_keeps_nobody_waiting() {
    let mut world = World::new(limits(2), 10);
    world.ask(1);
    world.ask(1);
    let mut used = workers(&world);
    used.sort_unstable();
    assert_eq!(used, [0, 1]);
    // Nor is another model's request put behind it.
    world.run_dry();
    let unknown = Job {
        model: ModelId(2),
        group: 2,
        ..world.job(1)
    };
    world.submit(unknown);
    world.give_out();
    world.ask(1);
    let used = workers(&world);
    assert_ne!(used[2], used[3]);
    world.run_dry();
}

#[test]
fn the_end_of_waiting_for_company_is_no_event_while_a_worker_is_waited_for() {
    let delayed = Limits {
        batch_delay_us: 20,
        ..limits(2)
    };
    let mut world = World::new(delayed, 10);
    let come = |world: &mut World| {
        let job = world.job(1);
        world.submit(job);
        world.now += 20;
        world.give_out();
    };
    come(&mut world);
    world.run_dry();
    world.now += 1_000_000;
    world.order.clear();
    come(&mut world);
    let started = world.now;
    for _ in 0..SHORT_PLACES {
        let job = world.job(1);
        world.submit(Job {
            group: world.serial,
            ..job
        });
        world.now += 20;
        while let Some(given) = world.scheduler.next(world.now) {
            world.order.push(given);
        }
    }
    assert_eq!(world.order.len(), SHORT_PLACES as usize);
    assert_eq!(world.scheduler.due_us(), Some(started + 10 + KEEPS_UP_US));
}

/// The bug: a request of a cheap model ended in a dozen chunks, each of which took longer to hand on than to run.
#[test]
fn chunks_of_a_cheap_model_are_worth_their_way_to_the_last() {
    let us_per_row = 1;
    let mut world = warm(2, us_per_row);
    for rows in [200, 1000, 8000] {
        world.order.clear();
        world.ask(rows);
        world.run_dry();
        let mut sizes: Vec<_> = world.order.iter().map(|a| a.pieces[0].rows).collect();
        assert_eq!(sizes.iter().sum::<usize>(), rows);
        // All but the last, which is what was left.
        sizes.sort_unstable();
        let worth = (KEEPS_UP_US / us_per_row) as usize;
        assert!(sizes[1..].iter().all(|rows| *rows >= worth), "{sizes:?}");
    }
    // Of a slow one the last chunks are short, so that the workers end together.
    let mut world = warm(2, 200);
    world.ask(1000);
    world.run_dry();
    assert!(world.order.last().is_some_and(|a| a.pieces[0].rows <= 16));
}
