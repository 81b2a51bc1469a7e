//! The load and what is counted of it, with a clock, connections and a server that are simulated: every number is known
//! beforehand.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use mdm::Stats;

use crate::generator::Case;
use crate::generator::load::{Arrival, Load, Window};
use crate::generator::measure::{Failure, Outcome, Spent, Tally, Times};
use crate::generator::report::{Report, ServerTimes};

/// A server that takes requests in turn.
struct Server {
    /// When each worker is free.
    workers: BinaryHeap<Reverse<Duration>>,
    /// How long the request of a number runs.
    takes: Box<dyn Fn(u64) -> Duration>,
    /// Which numbers fail.
    fails: Box<dyn Fn(u64) -> bool>,
}

impl Server {
    fn new(workers: usize, takes: impl Fn(u64) -> Duration + 'static) -> Server {
        Server {
            workers: vec![Reverse(Duration::ZERO); workers].into(),
            takes: Box::new(takes),
            fails: Box::new(|_| false),
        }
    }

    fn ask(&mut self, number: u64, sent: Duration) -> (Duration, Outcome) {
        let Reverse(free) = self.workers.pop().unwrap();
        let start = sent.max(free);
        let takes = (self.takes)(number);
        self.workers.push(Reverse(start + takes));
        let outcome = match (self.fails)(number) {
            true => Err(Failure {
                code: "INTERNAL".to_owned(),
                message: format!("request {number}"),
            }),
            false => Ok(Some(Stats {
                queue_us: (start - sent).as_micros() as u64,
                compute_us: takes.as_micros() as u64,
                chunks: 1,
            })),
        };
        (start + takes, outcome)
    }
}

/// What came of a simulated case: the report, and every request with its times.
struct Ran {
    report: Report,
    asked: Vec<(Arrival, Times)>,
    unsent: Vec<Arrival>,
}

impl Ran {
    /// The latencies that count, from the shortest.
    fn latencies(&self) -> Vec<Duration> {
        let counted = self.asked.iter().filter(|(arrival, _)| arrival.counted);
        let mut all: Vec<Duration> = counted.map(|(a, times)| times.done - a.due).collect();
        all.sort();
        all
    }
}

/// What the threads of `drive.rs` do, in order of time.
fn run(case: Case, window: Window, mut server: Server) -> Ran {
    let mut load = match case.rate {
        Some(rate) => Load::open(window, rate),
        None => Load::closed(window),
    };
    let mut tallies = vec![Tally::new(window); case.concurrency];
    let free = (0..case.concurrency).map(|connection| Reverse((Duration::ZERO, connection)));
    let mut free: BinaryHeap<_> = free.collect();
    let mut asked = Vec::new();
    let mut now = Duration::ZERO;
    while let Some(Reverse((at, connection))) = free.pop() {
        now = at;
        let Some(arrival) = load.next(now) else {
            continue;
        };
        let sent = now.max(arrival.due);
        let (done, outcome) = server.ask(arrival.number, sent);
        let times = Times { sent, done };
        tallies[connection].ended(arrival, times, outcome);
        asked.push((arrival, times));
        free.push(Reverse((done, connection)));
    }
    let mut all = Tally::new(window);
    for tally in tallies {
        all.add(tally);
    }
    let unsent = load.unsent();
    for &arrival in &unsent {
        all.unsent(arrival, now);
    }
    let spent = Spent {
        processor: Duration::from_secs(1),
        elapsed: now,
    };
    Ran {
        report: all.report(case, spent),
        asked,
        unsent,
    }
}

fn window(start_s: u64, length_s: u64) -> Window {
    Window {
        start: Duration::from_secs(start_s),
        length: Duration::from_secs(length_s),
        requests: None,
    }
}

fn case(concurrency: usize, rate: Option<u64>) -> Case {
    Case {
        rows: 10,
        concurrency,
        rate,
    }
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Within the three digits of a histogram.
#[track_caller]
fn about(measured_us: f64, expected: Duration) {
    let expected = expected.as_secs_f64() * 1e6;
    assert!(
        (measured_us - expected).abs() <= expected / 1000.0,
        "{measured_us} us, expected {expected} us"
    );
}

#[test]
fn a_closed_loop_counts_what_begins_and_ends_in_its_time() {
    let ran = run(case(4, None), window(1, 5), Server::new(1, |_| ms(5)));
    let report = ran.report;
    // One ends every 5 ms, and another begins; before that, four began at once.
    assert_eq!((report.warm_up, report.requests), (4 + 199, 1000));
    assert_eq!((report.requests_per_s, report.rows_per_s), (200.0, 2000.0));
    assert_eq!((report.failed, report.backlog, report.unsent), (0, 0, 0));
    for us in [
        report.latency_us.p50,
        report.latency_us.p999,
        report.latency_us.most,
    ] {
        about(us, ms(20));
    }
    let shares = report.shares.unwrap();
    assert_eq!(
        (shares.queue_us, shares.run_us, shares.rest_us),
        (15_000.0, 5_000.0, 0.0)
    );
    assert_eq!((report.late_us, report.asked_us), (0.0, 20_000.0));
    // Processor time is that of all requests.
    assert_eq!(report.processor_us, 1e6 / 1203.0);
    assert!(!report.saturated);
}

#[test]
fn a_number_of_requests_is_met_exactly_by_any_number_of_connections() {
    for concurrency in [1, 3, 64] {
        let counted = Window {
            requests: Some(50),
            ..window(0, 5)
        };
        let ran = run(case(concurrency, None), counted, Server::new(1, |_| ms(5)));
        assert_eq!((ran.report.requests, ran.asked.len()), (50, 50));
        assert_eq!(ran.report.requests_per_s, 200.0);
        let ran = run(
            case(concurrency, Some(1000)),
            counted,
            Server::new(1, |_| ms(5)),
        );
        assert_eq!((ran.report.requests, ran.unsent.len()), (50, 0));
    }
}

/// A closed loop with errors, and an open one past saturation, for who shows reports.
pub fn samples() -> [Report; 2] {
    let mut failing = Server::new(2, |_| ms(5));
    failing.fails = Box::new(|number| number % 4 == 3);
    let slow = Server::new(1, |_| ms(5));
    [
        run(case(2, None), window(0, 5), failing).report,
        run(case(8, Some(1000)), window(0, 5), slow).report,
    ]
}

#[test]
fn errors_are_counted_by_code_and_are_no_results() {
    let [report, _] = samples();
    assert_eq!((report.requests, report.failed), (2000, 500));
    let failures = &report.failures["INTERNAL"];
    assert_eq!((failures.count, &*failures.message), (500, "request 3"));
    // The last two end as the time is over, which is no longer within it; one of them fails.
    assert_eq!(report.requests_per_s, 1499.0 / 5.0);
}

#[test]
fn requests_of_an_open_loop_are_due_at_random_times_that_the_server_does_not_move() {
    let dues = |concurrency, takes| {
        let ran = run(
            case(concurrency, Some(1000)),
            window(0, 20),
            Server::new(8, move |_| takes),
        );
        assert!(ran.unsent.is_empty() && !ran.report.saturated);
        ran.asked
            .iter()
            .map(|(arrival, _)| arrival.due)
            .collect::<Vec<_>>()
    };
    let first = dues(64, ms(1));
    assert_eq!(first, dues(8, ms(2)));
    // 20,000 on average; the deviation of a Poisson process is the root of that, 141.
    assert!(
        (20_000 - 700..20_000 + 700).contains(&first.len()),
        "{}",
        first.len()
    );
    assert!(first.windows(2).all(|two| two[0] <= two[1]));
    // Exponential gaps: a share of 1/e is longer than the mean.
    let long = first
        .windows(2)
        .filter(|two| two[1] - two[0] > ms(1))
        .count();
    let share = long as f64 / first.len() as f64;
    assert!((share - (-1f64).exp()).abs() < 0.02, "{share}");
}

#[test]
fn latency_counts_from_when_a_request_was_due() {
    // The only connection is held up for a second, once; what is due meanwhile is late, and none of it is skipped.
    let stalls = |number| if number == 100 { ms(1000) } else { ms(1) };
    let ran = run(case(1, Some(100)), window(0, 10), Server::new(1, stalls));
    let (stalled, times) = ran.asked[100];
    let meanwhile = ran
        .asked
        .iter()
        .filter(|(arrival, _)| arrival.due > stalled.due);
    let meanwhile = meanwhile
        .filter(|(arrival, _)| arrival.due < times.done)
        .count();
    assert!(meanwhile > 50, "{meanwhile}");
    assert_eq!(ran.report.requests, ran.asked.len() as u64);
    let latencies = ran.latencies();
    let slow = latencies
        .iter()
        .filter(|latency| **latency > ms(100))
        .count();
    assert!(slow > 50, "{slow}");
    let rank = |q: f64| latencies[(latencies.len() as f64 * q).ceil() as usize - 1];
    about(ran.report.latency_us.p50, rank(0.5));
    about(ran.report.latency_us.p90, rank(0.9));
    about(ran.report.latency_us.p99, rank(0.99));
    about(ran.report.latency_us.most, latencies[latencies.len() - 1]);
    // Who counts from when they are sent sees one slow request.
    let asked = ran
        .asked
        .iter()
        .filter(|(_, times)| times.done - times.sent > ms(100));
    assert_eq!(asked.count(), 1);
    assert!(!ran.report.saturated, "it caught up");
}

#[test]
fn past_saturation_every_request_that_was_due_is_told_of() {
    let ran = run(case(8, Some(1000)), window(0, 5), Server::new(1, |_| ms(5)));
    let due = run(
        case(64, Some(1000)),
        window(0, 5),
        Server::new(64, |_| ms(1)),
    );
    assert_eq!(ran.asked.len() + ran.unsent.len(), due.asked.len());
    let report = &ran.report;
    assert_eq!(report.requests, ran.asked.len() as u64);
    assert_eq!(report.unsent, ran.unsent.len() as u64);
    assert!(report.saturated);
    // One every 5 ms, from the first on: what a saturated server gives.
    assert!(
        (199.0..=200.0).contains(&report.requests_per_s),
        "{}",
        report.requests_per_s
    );
    let late = ran
        .asked
        .iter()
        .filter(|(_, times)| times.sent >= ms(5000))
        .count();
    assert_eq!(report.backlog, (late + ran.unsent.len()) as u64);
    // It is worked off for as long again, and what is left then has waited at least so long.
    let last = ran.asked.iter().map(|(_, times)| times.sent).max().unwrap();
    assert!((ms(9990)..ms(10_000)).contains(&last), "{last:?}");
    assert!(report.latency_us.p50 > 4e6, "{:?}", report.latency_us);
    // Eight in flight on one worker: that is all that a request sees once it is sent.
    about(
        report.shares.unwrap().queue_us + 5e3,
        Duration::from_micros(report.asked_us as u64),
    );
    assert!(report.asked_us < 40_001.0);
}

/// The bug: what was left of a warm-up past saturation was sent before anything that counts.
#[test]
fn the_backlog_of_a_warm_up_is_let_go() {
    let ran = run(case(8, Some(1000)), window(5, 5), Server::new(1, |_| ms(5)));
    let first = ran.asked.iter().find(|(arrival, _)| arrival.counted);
    let (arrival, times) = first.unwrap();
    assert!(times.sent - arrival.due < ms(50), "{arrival:?} {times:?}");
    assert!(
        ran.asked
            .iter()
            .all(|(arrival, times)| arrival.counted || times.sent < ms(5000))
    );
    assert!(
        (1990..=2010).contains(&ran.report.requests),
        "{}",
        ran.report.requests
    );
}

#[test]
fn what_a_server_counts_stands_in_for_answers_that_say_nothing() {
    let [mut report, _] = samples();
    let told = |requests, queue, run| ServerTimes {
        requests,
        queue: ms(queue),
        run: ms(run),
    };
    let by_answers = report.shares;
    report.share_by(told(0, 0, 0), told(10, 10, 20));
    assert_eq!(report.shares, by_answers);
    report.shares = None;
    report.share_by(told(5, 5, 5), told(5, 5, 5));
    assert_eq!(report.shares, None);
    report.share_by(told(5, 5, 5), told(15, 15, 35));
    let shares = report.shares.unwrap();
    assert_eq!(
        (shares.queue_us, shares.run_us, shares.rest_us),
        (1000.0, 3000.0, 1000.0)
    );
}

#[test]
fn a_load_that_is_stopped_gives_no_more_requests() {
    let mut load = Load::closed(window(0, 5));
    assert!(load.next(ms(1)).is_some());
    load.stop();
    assert_eq!(load.next(ms(2)), None);
}
