//! Models whose rows take longer each than a chunk may.

use super::*;

const ROW_US: u64 = 50_000;

/// The chunks of a request of 64 rows: their rows, and how many of them run at once.
fn chunks(world: &mut World) -> Vec<(usize, usize)> {
    world.order.clear();
    world.ask(64);
    world.run_dry();
    let chunks = world.order.iter();
    chunks.map(|a| (a.pieces[0].rows, a.run.unwrap())).collect()
}

fn longest_run(world: &mut World) -> usize {
    let runs = chunks(world).into_iter().map(|(rows, run)| rows.min(run));
    runs.max().unwrap()
}

#[test]
fn heavy_rows_run_several_at_once_where_no_small_request_comes() {
    let mut world = World::new(limits(2), ROW_US);
    chunks(&mut world); // nothing is known of it yet
    for _ in 0..3 {
        let chunks = chunks(&mut world);
        assert!(chunks.contains(&(8, 8)), "{chunks:?}");
        // The last are short, so that the workers end together.
        assert_eq!(chunks.last().unwrap().0, 1, "{chunks:?}");
    }
    // A small request would wait for the end of a run.
    world.ask(1);
    world.run_dry();
    assert_eq!(longest_run(&mut world), 1);
    // Not beside small requests, but soon after one.
    world.now += 30_000_000;
    assert_eq!(longest_run(&mut world), 1);
    world.now += 60_000_000;
    assert_eq!(longest_run(&mut world), 8);
}

#[test]
fn a_run_of_several_rows_takes_25_times_as_long_as_a_chunk_may_at_most() {
    for (row_us, most) in [(100_000, 5), (300_000, 1), (2_000_000, 1)] {
        let mut world = World::new(limits(2), row_us);
        chunks(&mut world);
        assert_eq!(longest_run(&mut world), most, "{row_us} us a row");
    }
}
