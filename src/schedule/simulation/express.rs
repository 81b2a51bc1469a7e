//! Small requests beside bulk whose runs are long: express workers run them.

use super::*;

const MAIN: u32 = 2;
const EXPRESS: WorkerId = WorkerId(MAIN);

/// Two main workers and an express one; a row takes so long.
fn world(us_per_row: u64) -> World {
    let limits = Limits {
        express_workers: 1,
        ..limits(MAIN as usize)
    };
    World::new(limits, us_per_row)
}

/// The same after it has run for a while, with all main workers inside bulk.
fn in_bulk(us_per_row: u64) -> World {
    let mut world = world(us_per_row);
    world.ask(8000);
    world.ask(1);
    world.run_dry();
    world.now += 1_000;
    world.ask(8000);
    world.order.clear();
    world
}

/// Who gets a small request now.
fn who_gets(world: &mut World, change: impl FnOnce(&mut Job)) -> WorkerId {
    let mut job = world.job(1);
    change(&mut job);
    world.submit(job);
    world.order.clear();
    world.give_out();
    let small = world.order.iter().find(|a| a.lane == Lane::Small);
    small.expect("it is given out at once").worker
}

#[test]
fn small_chunks_beside_long_runs_are_the_express_workers_and_bulk_never() {
    let mut world = in_bulk(1_000);
    for _ in 0..200 {
        world.now += 500;
        let worker = who_gets(&mut world, |_| {});
        assert_eq!(worker, EXPRESS);
        world.step();
        world.step();
    }
    world.run_dry();
    let bulk = world.order.iter().filter(|a| a.lane == Lane::Bulk);
    assert!(bulk.clone().count() > 0 && bulk.clone().all(|a| a.worker != EXPRESS));
    // Nobody is inside bulk any more.
    assert_ne!(who_gets(&mut world, |_| {}), EXPRESS);
    world.run_dry();
}

/// Nothing is known of how long the run will be that a small request would have to wait for.
#[test]
fn runs_of_a_model_that_is_new_are_taken_for_long() {
    let mut world = world(1_000);
    world.ask(8000);
    assert_eq!(who_gets(&mut world, |_| {}), EXPRESS);
    world.run_dry();
}

#[test]
fn small_chunks_wait_for_the_end_of_short_runs() {
    let mut world = in_bulk(1);
    assert_ne!(who_gets(&mut world, |_| {}), EXPRESS);
    world.run_dry();
}

#[test]
fn what_express_workers_may_not_run_waits_for_a_main_one() {
    let mut world = in_bulk(1_000);
    assert_ne!(who_gets(&mut world, |job| job.express = false), EXPRESS);
    world.run_dry();
}

/// Rows in each run of bulk that is given out while a small request comes now and then.
fn runs_beside(change: impl Fn(&mut Job), world: &mut World) -> Vec<usize> {
    let mut runs = Vec::new();
    for turn in 0..400 {
        if turn % 20 == 0 {
            let mut job = world.job(1);
            change(&mut job);
            world.submit(job);
            world.ask(2000);
        }
        world.order.clear();
        world.step();
        let bulk = world.order.iter().filter(|a| a.lane == Lane::Bulk);
        runs.extend(bulk.map(|a| a.run.unwrap()));
    }
    runs.split_off(runs.len() / 2)
}

/// The median of such runs, which has no tries of other sizes in it.
fn usual(mut runs: Vec<usize>) -> usize {
    runs.sort_unstable();
    runs[runs.len() / 2]
}

#[test]
fn bulks_runs_are_short_only_for_small_requests_that_wait_for_their_end() {
    let new = || world(1_000);
    let overtaken = usual(runs_beside(|_| {}, &mut new()));
    assert!(overtaken >= 8, "{overtaken} rows");
    assert_eq!(usual(runs_beside(|job| job.express = false, &mut new())), 1);
    // One of five that waits is enough.
    let mixed = |job: &mut Job| job.express = job.serial.0 % 5 != 1;
    assert_eq!(usual(runs_beside(mixed, &mut new())), 1);
    // Not for ever.
    let once = |job: &mut Job| job.express = job.serial.0 > 1;
    assert!(usual(runs_beside(once, &mut new())) >= 8);
    // Nobody is there to overtake.
    let mut lost = new();
    super::lost::lose(&mut lost.scheduler, EXPRESS);
    lost.workers[EXPRESS.0 as usize].lost = true;
    assert_eq!(usual(runs_beside(|_| {}, &mut lost)), 1);
    let none = Limits {
        express_workers: 0,
        ..limits(MAIN as usize)
    };
    assert_eq!(usual(runs_beside(|_| {}, &mut World::new(none, 1_000))), 1);
}

#[test]
fn what_has_no_place_at_the_express_worker_goes_to_a_main_one() {
    let mut world = in_bulk(1_000);
    let mut got = Vec::new();
    for group in 2..5 {
        got.push(who_gets(&mut world, |job| job.group = group));
    }
    assert_eq!(got[..2], [EXPRESS; 2]);
    assert_ne!(got[2], EXPRESS);
    world.run_dry();
}

#[test]
fn an_express_worker_that_is_lost_gives_its_chunk_to_another() {
    let mut world = in_bulk(1_000);
    assert_eq!(who_gets(&mut world, |_| {}), EXPRESS);
    super::lost::lose(&mut world.scheduler, EXPRESS);
    let again = world.scheduler.next(world.now).expect("it runs again");
    assert_eq!(again.lane, Lane::Small);
    assert_ne!(again.worker, EXPRESS);
}

/// Then no other credit comes soon, beside which the ventilator would take those that express workers left.
#[test]
fn the_ventilator_knows_when_express_workers_alone_are_busy() {
    let mut world = in_bulk(1_000);
    assert!(!world.scheduler.only_express_are_busy());
    let mut alone = 0;
    for _ in 0..20_000 {
        if world.scheduler.waiting().rows == 0 && world.scheduler.held(EXPRESS) == 0 {
            let main = (0..MAIN).filter(|id| world.scheduler.held(WorkerId(*id)) > 0);
            // The last bulk chunks run: a small one that outlives them.
            if main.count() == MAIN as usize {
                world.now += 1;
                who_gets(&mut world, |job| job.rows = 16);
            }
        }
        if world.scheduler.only_express_are_busy() {
            assert!(world.scheduler.held(EXPRESS) > 0);
            assert!((0..MAIN).all(|id| world.scheduler.held(WorkerId(id)) == 0));
            alone += 1;
        }
        if world.scheduler.is_idle() {
            break;
        }
        world.step();
    }
    assert!(alone > 0 && world.scheduler.is_idle());
}
