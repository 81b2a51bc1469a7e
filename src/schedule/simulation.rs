//! The policy under thousands of workers and a million requests, in simulated time.

mod clients;
mod express;
mod heavy;
mod legs;
mod lost;
mod together;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use super::lane::LaneChoice;
use super::workers::most_in;
use super::*;
use crate::message::Priority;
use crate::random::Random;

#[derive(Default)]
struct SimWorker {
    small: VecDeque<Assignment>,
    bulk: VecDeque<Assignment>,
    running: Option<(Assignment, u64)>,
    choice: LaneChoice,
    lost: bool,
}

/// Workers that run a row in a fixed time, and a ledger of what was asked and what was done.
struct World {
    scheduler: Scheduler,
    prefetch: usize,
    /// Who runs each leg, and how long a row takes there.
    legs: Vec<(Role, u64)>,
    now: u64,
    workers: Vec<SimWorker>,
    ends: BinaryHeap<Reverse<(u64, u32)>>,
    /// Per request: rows asked, rows done, arrival.
    ledger: HashMap<Serial, (usize, usize, u64)>,
    finished: HashMap<Serial, u64>,
    order: Vec<Assignment>,
    keep_order: bool,
    serial: u64,
}

fn limits(workers: usize) -> Limits {
    Limits {
        workers,
        extra_workers: 0,
        express_workers: 0,
        max_batch_rows: 1024,
        priority_rows: 16,
        prefetch: 1,
        max_chunk_us: Some(20_000),
        batch_delay_us: 0,
        max_requests: 10_000_000,
        max_bytes: u64::MAX,
    }
}

impl World {
    fn new(limits: Limits, us_per_row: u64) -> World {
        let workers = limits.all_workers();
        let mut scheduler = Scheduler::new(limits.clone());
        for worker in 0..workers {
            scheduler.worker_up(WorkerId(worker as u32), 0);
        }
        World {
            scheduler,
            prefetch: limits.prefetch,
            legs: vec![(Role::Main, us_per_row)],
            now: 0,
            workers: (0..workers).map(|_| SimWorker::default()).collect(),
            ends: BinaryHeap::new(),
            ledger: HashMap::new(),
            finished: HashMap::new(),
            order: Vec::new(),
            keep_order: true,
            serial: 0,
        }
    }

    fn job(&mut self, rows: usize) -> Job {
        self.serial += 1;
        Job {
            serial: Serial(self.serial),
            client: ReplyTo::default(),
            model: ModelId(1),
            legs: self.legs.iter().map(|(role, _)| *role).collect(),
            express: true,
            group: 1,
            rows,
            splittable: true,
            step: 1,
            priority: Priority::Normal,
            bytes: rows as u64,
            deadline_us: None,
            arrived_us: self.now,
        }
    }

    fn submit(&mut self, job: Job) -> Serial {
        let serial = job.serial;
        self.ledger.insert(serial, (job.rows, 0, self.now));
        self.scheduler.submit(job).unwrap();
        serial
    }

    fn ask(&mut self, rows: usize) -> Serial {
        let job = self.job(rows);
        let serial = self.submit(job);
        self.give_out();
        serial
    }

    /// What the ventilator does after every event.
    fn give_out(&mut self) {
        while let Some(a) = self.scheduler.next(self.now) {
            let index = a.worker.0 as usize;
            if self.keep_order {
                self.order.push(a.clone());
            }
            let worker = &mut self.workers[index];
            let lane = match a.lane {
                Lane::Small => &mut worker.small,
                Lane::Bulk => &mut worker.bulk,
            };
            lane.push_back(a);
            let running =
                |lane| usize::from(worker.running.as_ref().is_some_and(|(a, _)| a.lane == lane));
            for (lane, waiting) in [
                (Lane::Small, worker.small.len()),
                (Lane::Bulk, worker.bulk.len()),
            ] {
                assert!(waiting + running(lane) <= most_in(lane, self.prefetch));
            }
            self.start(index);
        }
        let limits = &self.scheduler.limits;
        let mut main = self.workers[..limits.workers].iter();
        let idle = main.any(|w| w.running.is_none() && !w.lost);
        let waits = limits.batch_delay_us > 0 || self.scheduler.waits_until_us[0].is_some();
        assert!(
            !idle || waits || self.scheduler.waiting().rows == 0,
            "a worker idles while {:?} waits",
            self.scheduler.waiting()
        );
    }

    fn start(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.running.is_some() {
            return;
        }
        let next = match worker.choice.first() {
            Lane::Small => worker.small.pop_front().or_else(|| worker.bulk.pop_front()),
            Lane::Bulk => worker.bulk.pop_front().or_else(|| worker.small.pop_front()),
        };
        if let Some(next) = next {
            let rows: usize = next.pieces.iter().map(|p| p.rows).sum();
            let legs = &self.legs[next.legs.start as usize..next.legs.end as usize];
            let us = rows as u64 * legs.iter().map(|(_, us)| us).sum::<u64>();
            self.ends.push(Reverse((self.now + us, index as u32)));
            worker.running = Some((next, us));
        }
    }

    /// Runs until the next chunk ends. False if none runs.
    fn step(&mut self) -> bool {
        let Some(Reverse((at, index))) = self.ends.pop() else {
            return false;
        };
        self.now = at;
        let worker = &mut self.workers[index as usize];
        let Some((done, us)) = worker.running.take() else {
            return true;
        };
        match done.lane {
            Lane::Small if !worker.bulk.is_empty() => worker.choice.overtook_bulk(us),
            _ => worker.choice.bulk_had_its_turn(),
        }
        let rows: usize = done.pieces.iter().map(|p| p.rows).sum();
        if (done.legs.end as usize) < self.legs.len() {
            self.start(index as usize);
            let (ran, now) = (Some((rows, us)), self.now);
            let dropped = self.scheduler.hand_back(done.chunk, ran, (), now);
            assert_eq!(dropped, []);
            self.give_out();
            return true;
        }
        for piece in &done.pieces {
            let entry = self.ledger.get_mut(&piece.serial).unwrap();
            entry.1 += piece.rows;
        }
        self.start(index as usize);
        for serial in self
            .scheduler
            .credit(done.chunk, Some((rows, us)), self.now)
        {
            let (asked, done, arrived) = self.ledger[&serial];
            assert_eq!(asked, done, "{serial} finished early");
            assert!(self.finished.insert(serial, self.now - arrived).is_none());
        }
        self.give_out();
        true
    }

    fn run_dry(&mut self) {
        while self.step() {}
        assert!(self.scheduler.is_idle());
        assert_eq!(self.scheduler.waiting(), Waiting::default());
    }
}

#[test]
fn a_million_mixed_requests_on_a_thousand_workers_lose_and_starve_nothing() {
    let mut world = World::new(limits(1000), 100);
    world.keep_order = false;
    let mut random = Random::new(42);
    let total = 1_000_000;
    let mut rows_asked = 0u64;
    for n in 0..total {
        let rows = match random.below(1000) {
            0 => 2000 + random.below(6000),
            1..=10 => 17 + random.below(500),
            _ => 1 + random.below(16),
        } as usize;
        rows_asked += rows as u64;
        let mut job = world.job(rows);
        job.group = random.below(3);
        job.priority = if random.one_in(10) {
            Priority::High
        } else {
            Priority::Normal
        };
        world.submit(job);
        // About as much arrives as 1,000 workers can do, in bursts.
        if n % 50 == 0 {
            world.give_out();
            let until = world.now + 110;
            while world
                .ends
                .peek()
                .is_some_and(|Reverse((at, _))| *at <= until)
            {
                world.step();
            }
            world.now = until;
        }
    }
    world.give_out();
    world.run_dry();
    assert_eq!(world.finished.len(), total);
    let done: u64 = world.ledger.values().map(|(_, done, _)| *done as u64).sum();
    assert_eq!(done, rows_asked, "every row ran once");
    let slowest = world.finished.values().max().unwrap();
    let perfect = rows_asked * 100 / 1000;
    assert!(
        *slowest < perfect * 2,
        "starved: {slowest} us of {perfect} in all"
    );
}

#[test]
fn four_hundred_rows_on_four_workers_use_all_four() {
    for max_chunk_us in [None, Some(20_000)] {
        let mut world = World::new(
            Limits {
                max_chunk_us,
                ..limits(4)
            },
            100,
        );
        world.ask(400);
        let used: std::collections::HashSet<_> = world.order.iter().map(|a| a.worker).collect();
        assert_eq!(used.len(), 4);
        if max_chunk_us.is_none() {
            assert!(world.order.iter().all(|a| a.pieces[0].rows == 100));
        }
        world.run_dry();
    }
}

#[test]
fn a_small_request_overtakes_bulk_even_where_it_was_prefetched() {
    let mut world = World::new(limits(1), 100);
    world.ask(8000);
    assert_eq!(world.order.len(), 2, "one runs, one waits at the worker");
    let small = world.ask(1);
    assert_eq!(world.order[2].lane, Lane::Small);
    world.step(); // the chunk that ran
    world.step(); // the small one, ahead of the prefetched chunk
    assert!(world.finished.contains_key(&small));
    world.run_dry();
}

#[test]
fn high_priority_goes_ahead_of_bulk_but_bulk_still_moves() {
    let mut world = World::new(limits(1), 100);
    world.ask(50_000);
    let mut high = world.job(50_000);
    high.priority = Priority::High;
    let high = world.submit(high);
    for _ in 0..50 {
        world.step();
    }
    let of_high = world.order.iter().skip(2).take(40);
    let share = of_high.filter(|a| a.pieces[0].serial == high).count();
    assert!((30..40).contains(&share), "{share} of 40 chunks were high");
    world.run_dry();
}

#[test]
fn bulk_requests_share_the_workers() {
    let mut world = World::new(limits(2), 100);
    let long = world.ask(1_000_000);
    let short = world.ask(2_000);
    while !world.finished.contains_key(&short) {
        assert!(world.step());
    }
    let (_, done, _) = world.ledger[&long];
    assert!(done < 10_000, "the long request had {done} rows by then");
    world.run_dry();
}

#[test]
fn bulk_moves_under_an_endless_stream_of_small_requests() {
    let mut world = World::new(limits(2), 100);
    let bulk = world.ask(2_000);
    for _ in 0..100_000 {
        while world.scheduler.waiting().requests < 8 {
            world.ask(4);
        }
        world.step();
        if world.finished.contains_key(&bulk) {
            world.run_dry();
            return;
        }
    }
    panic!("2,000 rows starved");
}

#[test]
fn waiting_small_requests_run_as_one_batch() {
    let mut world = World::new(limits(1), 100);
    for _ in 0..40 {
        world.ask(1);
    }
    let sizes: Vec<_> = world.order.iter().map(|a| a.pieces.len()).collect();
    assert_eq!(sizes, [1, 1], "nobody waits for company");
    world.step();
    assert_eq!(world.order[2].pieces.len(), 38);
    assert_eq!(world.scheduler.coalesced(), 38);
    world.run_dry();
}

#[test]
fn requests_of_different_groups_never_share() {
    let mut world = World::new(limits(1), 100);
    for n in 0..30 {
        let mut job = world.job(1);
        job.group = n % 3;
        world.submit(job);
    }
    world.give_out();
    world.run_dry();
    for a in &world.order {
        let groups: std::collections::HashSet<_> =
            a.pieces.iter().map(|p| (p.serial.0 - 1) % 3).collect();
        assert_eq!(groups.len(), 1);
    }
}

#[test]
fn a_batch_delay_waits_for_company_but_not_for_ever() {
    let mut world = World::new(
        Limits {
            batch_delay_us: 500,
            ..limits(1)
        },
        100,
    );
    let job = world.job(1);
    world.submit(job);
    assert!(world.scheduler.next(0).is_none());
    assert_eq!(world.scheduler.due_us(), Some(500));
    let job = world.job(1);
    world.submit(job);
    world.now = 500;
    assert_eq!(world.scheduler.next(500).unwrap().pieces.len(), 2);
}

#[test]
fn cancelled_small_requests_leave_their_group() {
    let mut world = World::new(limits(1), 100);
    let all: Vec<_> = (0..20).map(|_| world.ask(1)).collect();
    for serial in &all[2..12] {
        assert_eq!(world.scheduler.close(*serial), Some(0));
    }
    assert_eq!(world.scheduler.close(all[19]), Some(0));
    world.step();
    assert_eq!(world.order[2].pieces.len(), 7);
    world.run_dry();
    assert_eq!(world.finished.len(), 9);
}

#[test]
fn deadlines_come_due_in_order() {
    let mut world = World::new(limits(1), 100);
    world.ask(8000);
    let mut serials = Vec::new();
    for deadline in [300u64, 100, 200] {
        let mut job = world.job(5);
        job.deadline_us = Some(deadline);
        serials.push(world.submit(job));
    }
    assert_eq!(world.scheduler.due_us(), Some(100));
    assert_eq!(world.scheduler.expired(250), [serials[1], serials[2]]);
    world.scheduler.close(serials[1]);
    world.scheduler.close(serials[2]);
    assert_eq!(world.scheduler.expired(250), []);
}

#[test]
fn the_queue_is_bounded_in_requests_and_bytes() {
    let mut world = World::new(
        Limits {
            max_requests: 2,
            max_bytes: 100,
            ..limits(1)
        },
        100,
    );
    let big = world.job(1_000);
    world.submit(big);
    let more = world.job(1);
    let error = world.scheduler.submit(more).unwrap_err();
    assert!(error.message().contains("bytes are queued"), "{error}");
    world.give_out();
    world.run_dry();
    // What waits elsewhere counts as well.
    let fits = |world: &World, bytes, others: &[u64]| {
        let mut parked = Shares::default();
        for bytes in others {
            parked.add(ReplyTo([1; 16]), *bytes);
        }
        let (own, none) = (ReplyTo::default(), Amount::default());
        let room = world.scheduler.check_room(own, bytes, &parked, none);
        room.is_ok()
    };
    assert!(fits(&world, 1, &[99]));
    assert!(!fits(&world, 1, &[0, 0]));
    assert!(!fits(&world, 2, &[99]));
    let (a, b, c) = (world.job(1), world.job(1), world.job(1));
    world.submit(a);
    assert!(!fits(&world, 1, &[0]));
    world.submit(b);
    let error = world.scheduler.submit(c).unwrap_err();
    assert!(error.message().contains("2 requests"), "{error}");
}

#[test]
fn whole_requests_are_neither_split_nor_joined() {
    let mut world = World::new(limits(2), 100);
    for rows in [5, 5, 5000] {
        let mut job = world.job(rows);
        job.splittable = false;
        world.submit(job);
    }
    world.give_out();
    world.run_dry();
    let sizes: Vec<_> = world.order.iter().map(|a| a.pieces.len()).collect();
    assert_eq!(sizes, [1, 1, 1]);
    assert!(world.order.iter().any(|a| a.pieces[0].rows == 5000));
}

/// Workers are busy, and clients take back what they asked: nothing of it stays.
#[test]
fn closed_requests_leave_no_numbers_behind() {
    for rows in [1, 100] {
        let mut world = World::new(limits(1), 1_000_000);
        for _ in 0..8 {
            world.ask(rows);
        }
        let kept = |world: &World| {
            world
                .scheduler
                .backlogs
                .iter()
                .map(Backlog::kept)
                .sum::<usize>()
        };
        let before = kept(&world);
        // The oldest of those that wait goes on waiting.
        for _ in 0..10_000 {
            let serial = world.ask(rows);
            world.scheduler.close(serial).unwrap();
        }
        assert!(
            kept(&world) <= before + 130,
            "{rows} rows: {} numbers",
            kept(&world)
        );
    }
}
