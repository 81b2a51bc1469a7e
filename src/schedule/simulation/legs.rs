//! Models of several legs: plugin stages in workers of their own around a model on a device.

use super::*;

/// One worker with a device, which takes 1,000 us for a row, and others that prepare what it runs.
fn staged(extra_workers: usize, prepare_us: u64) -> World {
    let limits = Limits {
        extra_workers,
        ..limits(1)
    };
    let mut world = World::new(limits, 1000);
    world.legs = vec![
        (Role::Extra, prepare_us),
        (Role::Main, 1000),
        (Role::Extra, 10),
    ];
    world
}

#[test]
fn preparing_the_next_chunk_overlaps_the_run_of_this_one() {
    let mut world = staged(2, 1500);
    let request = world.ask(400);
    world.run_dry();
    let took = world.finished[&request];
    // 0.4 s of model, beside 0.6 s of the rest on the two others, and a start and an end that do not overlap.
    assert!(took < 600_000, "{took} us: one after the other takes 1 s");
    let by_device = world.order.iter().filter(|a| a.worker == WorkerId(0));
    let model_only = by_device.clone().filter(|a| a.legs == (1..2)).count();
    assert!(
        model_only * 2 > by_device.count(),
        "the device was kept for the model"
    );
}

#[test]
fn extra_workers_do_not_run_ahead_of_the_device_without_bound() {
    let mut world = staged(4, 10);
    world.ask(100_000);
    let mut most = 0;
    while world.step() {
        most = most.max(world.scheduler.returned[Role::Main as usize].len());
    }
    assert!(
        (2..=2 + 2 * 4).contains(&most),
        "{most} prepared chunks waited"
    );
    assert_eq!(world.finished.len(), 1);
}

#[test]
fn staged_requests_of_all_sizes_finish_once_whoever_is_lost() {
    let mut world = staged(3, 500);
    let mut random = Random::new(7);
    for n in 0..400 {
        let rows = if random.one_in(4) {
            17 + random.below(200)
        } else {
            1 + random.below(16)
        };
        world.ask(rows as usize);
        for _ in 0..random.below(6) {
            world.step();
        }
        if n % 40 == 39 {
            let worker = random.below(4) as usize;
            lose(&mut world, worker);
        }
    }
    world.run_dry();
    assert_eq!(world.finished.len(), 400);
}

/// A worker is lost with what it held, and comes back.
fn lose(world: &mut World, index: usize) {
    let worker = &mut world.workers[index];
    worker.small.clear();
    worker.bulk.clear();
    worker.running = None;
    world.ends.retain(|Reverse((_, of))| *of as usize != index);
    let id = WorkerId(index as u32);
    let losses = super::lost::lose(&mut world.scheduler, id);
    assert_eq!(losses, Losses::default());
    world.scheduler.worker_up(id, world.now);
    world.give_out();
}

#[test]
fn a_lone_small_request_is_spared_the_hops() {
    let mut world = staged(2, 500);
    world.ask(1);
    assert_eq!(
        (world.order[0].worker, world.order[0].legs.clone()),
        (WorkerId(0), 0..3)
    );
    // The next ones are prepared elsewhere while that runs.
    world.ask(1);
    assert_eq!(world.order[1].legs, 0..1);
    assert_ne!(world.order[1].worker, WorkerId(0));
    world.run_dry();
}

#[test]
fn what_is_cancelled_between_two_legs_is_dropped_and_told() {
    let mut world = staged(1, 500);
    let (a, b) = (world.job(100), world.job(100));
    let (a, b) = (world.submit(a), world.submit(b));
    world.give_out();
    let first = world
        .order
        .iter()
        .find(|x| x.legs == (0..1))
        .unwrap()
        .clone();
    let serial = first.pieces[0].serial;
    assert!(world.scheduler.close(serial).unwrap() > 0);
    assert_eq!(
        world.scheduler.hand_back(first.chunk, None, (), 1),
        [serial]
    );
    // One that waits for the device when it is cancelled was never given out, as far as its parts go.
    let other = if serial == a { b } else { a };
    let mut out = Vec::new();
    while let Some(next) = world.scheduler.next(1) {
        out.push(next);
    }
    let of_other = out
        .iter()
        .chain(&world.order)
        .filter(|x| x.pieces[0].serial == other);
    let mut given = 0;
    for x in of_other {
        given += 1;
        if x.legs == (0..1) {
            world.scheduler.hand_back(x.chunk, None, (), 2);
            given -= 1;
        }
    }
    assert_eq!(world.scheduler.close(other), Some(given));
}

#[test]
fn a_small_chunk_between_two_legs_does_not_wait_behind_bulk() {
    let mut world = staged(2, 10);
    let bulk = world.job(1000);
    world.submit(bulk);
    let scheduler = &mut world.scheduler;
    let mut out: Vec<Assignment> = Vec::new();
    // Until prepared bulk waits for the device, which holds as much of it as it may.
    while scheduler.returned[Role::Main as usize].is_empty() {
        out.extend(std::iter::from_fn(|| scheduler.next(0)));
        let prepared = out.iter().position(|a| a.legs == (0..1)).unwrap();
        scheduler.hand_back(out.remove(prepared).chunk, None, (), 0);
        out.extend(std::iter::from_fn(|| scheduler.next(0)));
    }
    let small = world.job(1);
    let small = world.submit(small);
    let scheduler = &mut world.scheduler;
    let first = scheduler.next(0).unwrap();
    assert_eq!((first.pieces[0].serial, first.legs), (small, 0..1));
    scheduler.hand_back(first.chunk, None, (), 0);
    let next = scheduler.next(0).expect("its lane has a place");
    assert_eq!((next.pieces[0].serial, next.worker), (small, WorkerId(0)));
    assert_eq!(next.lane, Lane::Small);
}
