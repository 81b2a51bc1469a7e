//! Several clients: turns by client, and shares of the queue.

use super::*;

fn client(number: u64) -> ReplyTo {
    ReplyTo(u128::from(number).to_be_bytes())
}

impl World {
    /// A request of a client that goes into the queue and is not given out yet.
    fn wait(&mut self, of: u64, rows: usize, group: u64) -> Serial {
        let mut job = self.job(rows);
        (job.client, job.group) = (client(of), group);
        self.submit(job)
    }

    /// How many chunks were given out after `before` until one has this request.
    fn chunks_until(&mut self, serial: Serial, before: usize) -> usize {
        loop {
            let new = &self.order[before..];
            let place = new
                .iter()
                .position(|a| a.pieces.iter().any(|p| p.serial == serial));
            if let Some(place) = place {
                return place + 1;
            }
            assert!(self.step(), "it was never given out");
        }
    }
}

/// One row was seen to wait 3.68 s behind 4,600 of another client.
#[test]
fn one_row_waits_for_no_flood_of_another_client() {
    let mut random = Random::new(11);
    for round in 0..30 {
        let mut world = World::new(limits(1 + round % 3), 100);
        let groups = [1, 3, 5000][round % 3];
        for n in 0..5000 {
            world.wait(1, 1, n % groups);
        }
        world.give_out();
        for _ in 0..20 {
            for _ in 0..random.below(5) {
                world.step();
            }
            // In the flood's group or in one of its own.
            let group = [0, 10_000][random.below(2) as usize];
            let before = world.order.len();
            let row = world.wait(2, 1, group);
            world.give_out();
            let chunks = world.chunks_until(row, before);
            assert!(chunks <= 2, "round {round}: in chunk {chunks}");
            while !world.finished.contains_key(&row) {
                world.step();
            }
        }
        world.run_dry();
        assert_eq!(world.finished.len(), 5020);
    }
}

#[test]
fn one_row_waits_for_no_floods_of_a_thousand_clients() {
    let mut random = Random::new(12);
    for groups in [1, 40, 1000] {
        let mut world = World::new(
            Limits {
                max_batch_rows: 8,
                ..limits(2)
            },
            100,
        );
        for n in 0..30_000 {
            world.wait(1 + n % 1000, 1, n % groups);
        }
        world.give_out();
        // They have all begun.
        let begun = |world: &World| {
            let first = (1..=1000).map(Serial);
            first.into_iter().all(|s| world.finished.contains_key(&s))
        };
        while !begun(&world) {
            world.step();
        }
        for honest in 0..20 {
            for _ in 0..random.below(5) {
                world.step();
            }
            let before = world.order.len();
            let row = world.wait(50_000 + honest, 1, random.below(groups));
            world.give_out();
            // The two places at each worker are taken: the next that is given out has it, or the one after.
            let chunks = world.chunks_until(row, before);
            assert!(chunks <= 2, "{groups} groups: in chunk {chunks}");
        }
        assert!(
            world.scheduler.waiting().requests > 1000,
            "they still flood"
        );
        world.run_dry();
        assert_eq!(world.finished.len(), 30_020);
    }
}

#[test]
fn a_thousand_clients_with_a_row_each_share_batches() {
    let mut world = World::new(limits(1), 100);
    for n in 0..1000 {
        world.wait(n, 1, 1);
    }
    world.give_out();
    world.run_dry();
    let largest = world.order.iter().map(|a| a.pieces.len()).max();
    assert!(largest >= Some(64), "{largest:?}");
    assert!(world.order.len() < 30, "{} chunks", world.order.len());
}

#[test]
fn a_batch_has_one_request_of_each_client_before_any_has_two() {
    let mut world = World::new(limits(1), 100);
    // The worker's places are taken.
    for _ in 0..2 {
        world.wait(9, 1, 9);
        world.give_out();
    }
    let flood: Vec<_> = (0..100).map(|_| world.wait(1, 1, 1)).collect();
    let few: Vec<_> = (2..5).map(|of| world.wait(of, 2, 1)).collect();
    world.step();
    let batch: Vec<_> = world.order[2].pieces.iter().map(|p| p.serial).collect();
    let mut first = batch[..4].to_vec();
    first.sort_unstable();
    assert_eq!(first, [flood[0], few[0], few[1], few[2]]);
    assert_eq!(batch[4..], flood[1..batch.len() - 3]);
    assert!(batch.len() > 50, "the flood fills it up");
    world.run_dry();
}

#[test]
fn a_client_of_a_slow_model_gets_no_more_time_than_one_of_a_fast_model() {
    let mut scheduler = Scheduler::<()>::new(limits(1));
    let mut world = World::new(limits(1), 100);
    scheduler.worker_up(WorkerId(0), 0);
    for (of, count) in [(1, 4000), (2, 40_000)] {
        for _ in 0..count {
            let mut job = world.job(1);
            (job.client, job.group, job.model) = (client(of), of, ModelId(of));
            scheduler.submit(job).unwrap();
        }
    }
    // Model 1 takes 5 ms a row, model 2 takes 50 us.
    let (mut now, mut spent) = (0, [0, 0]);
    while now < 2_500_000 {
        let next = scheduler.next(now).unwrap();
        let rows: usize = next.pieces.iter().map(|p| p.rows).sum();
        let of = next.model.0 as usize - 1;
        let us = rows as u64 * [5000, 50][of];
        now += us;
        // Once it is known how slow they are.
        if now > 500_000 {
            spent[of] += us;
        }
        scheduler.credit(next.chunk, Some((rows, us)), now);
    }
    let share = spent[1] * 100 / (spent[0] + spent[1]);
    assert!((35..=65).contains(&share), "{share} % of {spent:?}");
}

#[test]
fn ten_bulk_requests_get_no_more_rows_than_one_of_another_client() {
    for max_chunk_us in [None, Some(20_000)] {
        let mut world = World::new(
            Limits {
                max_chunk_us,
                ..limits(3)
            },
            100,
        );
        let many: Vec<_> = (0..10).map(|_| world.wait(1, 100_000, 1)).collect();
        let one = world.wait(2, 1_000_000, 1);
        world.give_out();
        for _ in 0..400 {
            world.step();
        }
        let of_many: usize = many.iter().map(|serial| world.ledger[serial].1).sum();
        let of_one = world.ledger[&one].1;
        let share = of_one * 100 / (of_one + of_many);
        assert!((48..=52).contains(&share), "{share} %: {of_one}, {of_many}");
        // Within the client they take turns as well.
        let least = many.iter().map(|serial| world.ledger[serial].1).min();
        assert!(least.unwrap() * 20 > of_many, "{least:?} of {of_many}");
        world.run_dry();
    }
}

#[test]
fn bulk_of_one_client_moves_whatever_others_ask() {
    let mut world = World::new(limits(2), 100);
    let bulk = world.wait(1, 2000, 1);
    let mut sessions = 1;
    for _ in 0..100_000 {
        while world.scheduler.waiting().requests < 8 {
            sessions += 1;
            // Small and bulk requests, each of a session that is new.
            world.wait(sessions, [4, 100][sessions as usize % 2], sessions);
            world.give_out();
        }
        world.step();
        if world.finished.contains_key(&bulk) {
            world.run_dry();
            return;
        }
    }
    panic!("2,000 rows starved");
}

/// Clients that come and go, cancel and flood, with and without a batch delay: every row runs once.
#[test]
fn nothing_is_lost_or_kept_whatever_clients_do() {
    for seed in 1..=60 {
        let mut random = Random::new(seed);
        let mut world = World::new(
            Limits {
                batch_delay_us: [0, 2000][random.below(2) as usize],
                max_batch_rows: 64,
                ..limits(1 + random.below(3) as usize)
            },
            100,
        );
        let (mut asked, mut closed) = (Vec::new(), 0);
        for _ in 0..600 {
            let rows = if random.one_in(8) {
                17 + random.below(300)
            } else {
                1 + random.below(16)
            };
            let (of, group) = (random.below(1 + seed), random.below(5));
            let mut job = world.job(rows as usize);
            (job.client, job.group) = (client(of), group);
            if random.one_in(4) {
                job.priority = Priority::High;
            }
            asked.push(world.submit(job));
            if random.one_in(3) {
                let serial = asked[random.below(asked.len() as u64) as usize];
                closed += usize::from(world.scheduler.close(serial).is_some());
            }
            world.give_out();
            for _ in 0..random.below(3) {
                world.step();
            }
            let next_end = world.ends.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            world.now = (world.now + random.below(3000)).min(next_end);
        }
        while !world.scheduler.is_idle() {
            if !world.step() {
                world.now = world.scheduler.due_us().expect("something waits");
                world.give_out();
            }
        }
        assert_eq!(world.finished.len() + closed, asked.len(), "seed {seed}");
        assert_eq!(world.scheduler.waiting(), Waiting::default());
        let kept: usize = world.scheduler.backlogs.iter().map(Backlog::kept).sum();
        assert_eq!(kept, 0, "seed {seed}");
    }
}

#[test]
fn a_batch_delay_holds_for_groups_of_several_clients() {
    let mut world = World::new(
        Limits {
            batch_delay_us: 500,
            max_batch_rows: 40,
            ..limits(1)
        },
        100,
    );
    world.wait(1, 1, 1);
    world.now = 200;
    world.wait(2, 1, 1);
    world.wait(3, 1, 2);
    assert!(world.scheduler.next(200).is_none());
    assert_eq!(world.scheduler.due_us(), Some(500));
    // Another group is full: it does not wait for the delay.
    for of in 0..40 {
        world.wait(of, 1, 3);
    }
    let full = world.scheduler.next(200).unwrap();
    assert!(full.pieces.iter().all(|p| p.serial.0 > 3));
    assert_eq!(full.pieces.len(), 40);
    assert_eq!(world.scheduler.due_us(), Some(500));
    let rest = world.scheduler.next(500).unwrap();
    assert_eq!(rest.pieces.iter().map(|p| p.serial.0).max(), Some(2));
    assert_eq!(rest.pieces.len(), 2);
    // No worker has a place now, and one has after the credit.
    assert_eq!(world.scheduler.due_us(), None);
    world.scheduler.credit(full.chunk, Some((40, 300)), 600);
    assert_eq!(world.scheduler.due_us(), Some(700));
}

#[test]
fn one_client_fills_no_queue_and_others_get_equal_shares() {
    let mut world = World::new(
        Limits {
            max_requests: 1000,
            max_bytes: 1_000_000,
            ..limits(1)
        },
        100,
    );
    let none = Shares::default();
    // As many as are taken, of a size.
    let fill = |world: &mut World, of: u64, bytes: u64| {
        let mut count = 0;
        while world
            .scheduler
            .check_room(client(of), bytes, &none, Amount::default())
            .is_ok()
        {
            let mut job = world.job(1);
            (job.client, job.bytes) = (client(of), bytes);
            world.submit(job);
            count += 1;
        }
        count
    };
    assert_eq!(fill(&mut world, 1, 1), 875);
    let error = world
        .scheduler
        .check_room(client(1), 1, &none, Amount::default())
        .unwrap_err();
    assert!(error.message().contains("875 requests"), "{error}");
    assert!(error.message().contains("kept for others"), "{error}");
    let second = fill(&mut world, 2, 1);
    assert!(second >= 100, "{second}");
    assert!(fill(&mut world, 3, 1) > 0);
    // The first one's requests end, and all go on asking: soon nobody has more than a third.
    world.give_out();
    for _ in 0..100 {
        assert!(world.step());
        let mut refused = 0;
        while refused < 3 {
            refused = 0;
            for of in 1..=3 {
                match world
                    .scheduler
                    .check_room(client(of), 1, &none, Amount::default())
                {
                    Ok(()) => drop(world.wait(of, 1, 1)),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(
            world.scheduler.waiting().requests < 1000,
            "room for a new one"
        );
    }
    let holds = |world: &World, of| {
        let open = world.scheduler.entries.values();
        open.filter(|e| e.job.client == client(of)).count()
    };
    for of in 1..=3 {
        let own = holds(&world, of);
        assert!((280..=340).contains(&own), "client {of}: {own}");
    }
    world.give_out();
    world.run_dry();
    // The same in bytes: a lone client has three quarters.
    assert_eq!(fill(&mut world, 1, 10_000), 75);
    let error = world
        .scheduler
        .check_room(client(1), 10_000, &none, Amount::default());
    let error = error.unwrap_err();
    assert!(error.message().contains("--max-queue-bytes"), "{error}");
    assert!(fill(&mut world, 2, 10_000) >= 15);
    // One that holds nothing yet may have all that is left.
    let free = 1_000_000 - world.scheduler.waiting().bytes;
    assert!(
        world
            .scheduler
            .check_room(client(3), free, &none, Amount::default())
            .is_ok()
    );
    world.give_out();
    world.run_dry();
}

#[test]
fn what_is_parked_counts_for_its_client_and_is_not_refused_later() {
    let mut world = World::new(
        Limits {
            max_requests: 80,
            ..limits(1)
        },
        100,
    );
    let mut parked = Shares::default();
    let fits = |world: &World, parked: &Shares, of| {
        let room = world
            .scheduler
            .check_room(client(of), 1, parked, Amount::default());
        room.is_ok()
    };
    while fits(&world, &parked, 1) {
        parked.add(client(1), 1);
    }
    assert_eq!(parked.all().count, 70);
    while fits(&world, &parked, 2) {
        world.wait(2, 1, 1);
    }
    assert!(world.scheduler.waiting().requests >= 8);
    // Its model is described: all of it enters, though its share would be smaller by now.
    for _ in 0..70 {
        parked.remove(client(1), 1);
        world.wait(1, 1, 1);
    }
    assert!(!fits(&world, &parked, 1) && fits(&world, &parked, 3));
    world.give_out();
    world.run_dry();
}

/// A cancelled request's chunk may come back when its model is gone.
#[test]
fn a_credit_after_its_model_was_forgotten_leaves_no_pace_behind() {
    for legs in [1, 2] {
        let mut world = World::new(limits(1), 100);
        world.legs = vec![(Role::Main, 100); legs];
        let serial = world.ask(8);
        let chunk = world.order[0].chunk;
        world.scheduler.close(serial);
        world.scheduler.forget(ModelId(1));
        assert_eq!(world.scheduler.credit(chunk, Some((8, 800)), 800), []);
        assert!(world.scheduler.paces.is_empty() && world.scheduler.is_idle());
    }
}
