//! Requests in flight: taken back, out of time, streamed, fetched in any order.

use std::sync::Arc;
use std::time::Duration;

use mdm::client::{Call, Client, Ticket};
use mdm::wire::server::ServerMessage;
use mdm::{DataType, ErrorCode, Tensor};

use crate::behind::{FOR_EVER, Session, busy, output, request, server};
use crate::common::{PATIENCE, Server, eventually, models, onnx, within};
use crate::{numbered, refused, settled};

fn echo_server(flags: &[&str]) -> Server {
    server(&[("echo", onnx::echo(DataType::Int64, &[2]))], flags)
}

/// So many rows take seconds, however fast the machine.
const MANY: usize = 30_000;

fn ids(rows: usize) -> Tensor {
    Tensor::from_vec("ids", vec![rows, 64], vec![1i64; rows * 64]).unwrap()
}

fn queued(client: &Client, requests: u64) {
    eventually("it is queued", || {
        client.status().unwrap().queue.requests == requests
    });
}

#[test]
fn a_request_is_taken_back_while_it_waits_and_while_it_runs() {
    within(PATIENCE, || {
        let server = echo_server(&[]);
        let client = server.client();
        let running = client.submit(&[FOR_EVER], "busy").unwrap();
        queued(&client, 1);
        let bulk = client.submit(numbered(1, 3000), "echo").unwrap();
        let small = client.submit(numbered(2, 1), "echo").unwrap();
        queued(&client, 3);
        for waiting in [small, bulk] {
            client.cancel(&waiting);
            refused(client.fetch(waiting), ErrorCode::Cancelled, &["cancel"]);
        }
        queued(&client, 1);
        // What has begun to run is given up at once, although the worker stays inside the model.
        client.cancel(&running);
        refused(client.fetch(running), ErrorCode::Cancelled, &["cancel"]);
        let status = client.status().unwrap();
        assert_eq!(status.workers[0].state, "busy");
        assert_eq!(status.totals.errors["CANCELLED"], 3);
        assert_eq!((status.totals.rows, status.queue.requests), (0, 0));
    });
}

#[test]
fn the_worker_of_a_cancelled_request_goes_on_and_what_has_ended_cannot_be_cancelled() {
    within(PATIENCE, || {
        let server = echo_server(&[]);
        let mut session = Session::open(&server);
        let mut count = 50_000;
        loop {
            let runs = session.infer(&busy(count, 1));
            // It waits behind the other, at the worker already, and never runs.
            let waits = session.infer(&request("echo", numbered(1, 2)));
            session.cancel(waits);
            session.cancel(runs);
            let answers = [session.next(), session.next()];
            if answers
                .iter()
                .all(|(_, a)| matches!(a, ServerMessage::Error(_)))
            {
                assert_eq!(answers.map(|(id, _)| id), [waits, runs]);
                break;
            }
            assert!(count < FOR_EVER, "it always ends before it is cancelled");
            count *= 4;
        }
        let ended = session.infer(&request("echo", numbered(5, 3)));
        let (id, answer) = session.next();
        assert_eq!(id, ended);
        assert_eq!(output(&answer).data(), numbered(5, 3).data());
        let cancelled = session.status().totals.errors["CANCELLED"];
        session.cancel(ended);
        session.cancel(ended);
        let next = session.infer(&request("echo", numbered(6, 1)));
        let (id, answer) = session.next();
        assert_eq!(id, next, "no second answer to what has ended");
        assert_eq!(output(&answer).data(), numbered(6, 1).data());
        assert_eq!(session.status().totals.errors["CANCELLED"], cancelled);
        assert!(!session.has_answer());
    });
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    within(PATIENCE, || {
        let server = echo_server(&["--default-timeout-ms", "300"]);
        let client = server.client();
        let soon = |model: &str| Call::model(model).timeout(Duration::from_millis(1));
        let late = |result| {
            refused(
                result,
                ErrorCode::DeadlineExceeded,
                &["the deadline passed"],
            )
        };
        // It takes the worker for good, unless its time is over before the worker has it: then the
        // worker answers the echo behind it.
        let mut ended = 0;
        eventually("it runs", || {
            late(client.infer(&[FOR_EVER], "busy"));
            let taken = client.infer(numbered(1, 1), "echo").is_err();
            ended += 1 + u64::from(taken);
            taken
        });
        late(client.infer(numbered(1, 1), soon("echo")));
        late(client.infer(numbered(1, 3000), soon("echo")));
        // Nobody said how long, so the server's default holds.
        late(client.infer(numbered(1, 1), "echo"));
        let stream = client.infer_stream(numbered(1, 100), "echo").unwrap();
        let answers: Vec<_> = stream.collect();
        assert_eq!(answers.len(), 1);
        late(answers.into_iter().next().unwrap().map(|_| unreachable!()));
        let status = client.status().unwrap();
        assert_eq!(status.totals.errors["DEADLINE_EXCEEDED"], ended + 4);
        assert_eq!((status.queue.requests, status.queue.rows), (0, 0));
    });
}

#[test]
fn a_stream_gives_every_row_once_and_then_ends() {
    within(PATIENCE, || {
        let server = Server::with_model(
            "echo",
            onnx::echo(DataType::Int64, &[2]),
            &["--num-worker", "2"],
        );
        let client = server.client();
        for rows in [1, 16, 5000] {
            let sent = numbered(7, rows);
            let mut seen = vec![false; rows];
            let mut stream = client.infer_stream(sent.clone(), "echo").unwrap();
            assert_eq!((stream.rows(), stream.stats()), (None, None));
            let mut parts = 0;
            for part in stream.by_ref() {
                let part = part.unwrap();
                let output = part.outputs.get("y").expect("y");
                let (start, count) = (part.offset as usize, output.rows().unwrap());
                assert_eq!(output.data(), sent.slice_rows(start, count).data());
                for row in &mut seen[start..start + count] {
                    assert!(!std::mem::replace(row, true), "a row came twice");
                }
                parts += 1;
            }
            assert!(seen.iter().all(|row| *row), "rows are missing of {rows}");
            assert_eq!(stream.rows(), Some(rows as u64));
            let stats = stream.stats().expect("known at the end");
            assert!((1..=parts).contains(&stats.chunks));
            assert_eq!(parts > 1, rows == 5000);
            assert!(stream.next().is_none());
        }
        let totals = settled(&client).totals;
        assert_eq!((totals.requests, totals.rows), (3, 5017));
        // What is wrong is told in the stream, once.
        let mut stream = client.infer_stream(numbered(1, 20), "no_such").unwrap();
        refused(stream.next().unwrap(), ErrorCode::NotFound, &["no_such"]);
        assert!(stream.next().is_none());
    });
}

#[test]
fn a_stream_or_a_ticket_that_is_dropped_takes_its_request_back() {
    within(PATIENCE, || {
        let dir = models(&[
            ("bilstm.onnx", onnx::bilstm()),
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
        ]);
        let server = Server::start(dir, &["--intra-op-threads", "1"]);
        let client = server.client();
        let mut stream = client.infer_stream(ids(MANY), "bilstm").unwrap();
        assert!(stream.next().expect("a part").is_ok());
        drop(stream);
        // The same session, in which more parts may be on their way.
        let response = client.infer(numbered(1, 100), "echo").unwrap();
        assert_eq!(response.only().unwrap().data(), numbered(1, 100).data());
        let status = settled(&client);
        assert_eq!(status.totals.errors["CANCELLED"], 1);
        assert!(status.workers[0].rows < MANY as u64, "it ran to its end");

        drop(client.submit(ids(MANY), "bilstm").unwrap());
        eventually("it is taken back", || {
            client.status().unwrap().totals.errors["CANCELLED"] == 2
        });
        let status = settled(&client);
        assert!(status.workers[0].rows < MANY as u64, "it ran to its end");
    });
}

fn size(number: i64) -> usize {
    [1, 300, 16, 2000, 17][number as usize % 5]
}

fn submit(client: &Client, number: i64) -> Ticket {
    let rows = numbered(number, size(number));
    client.submit(rows, "echo").expect("sent")
}

#[test]
fn tickets_are_fetched_in_any_order_by_several_threads() {
    within(PATIENCE, || {
        let server = Server::with_model(
            "echo",
            onnx::echo(DataType::Int64, &[2]),
            &["--num-worker", "2"],
        );
        let client = Arc::new(server.client());
        let mut tickets: Vec<_> = (0..20).map(|n| (n, submit(&client, n))).collect();
        while let Some((number, ticket)) = tickets.pop() {
            let response = client.fetch(ticket).unwrap();
            let expected = numbered(number, size(number));
            assert_eq!(response.only().unwrap().data(), expected.data());
        }
        let tickets: Vec<_> = (0..20).map(|n| submit(&client, n)).collect();
        for (number, response) in client.fetch_all(tickets).into_iter().enumerate() {
            let expected = numbered(number as i64, size(number as i64));
            assert_eq!(response.unwrap().only().unwrap().data(), expected.data());
        }
        let threads: Vec<_> = (0..6i64)
            .map(|thread| {
                let client = client.clone();
                std::thread::spawn(move || {
                    for round in 0..10 {
                        let numbers: Vec<i64> =
                            (0..4).map(|i| thread * 100 + round * 4 + i).collect();
                        let mut tickets: Vec<_> =
                            numbers.iter().map(|n| (*n, submit(&client, *n))).collect();
                        let lone = numbered(-thread, 3);
                        let response = client.infer(lone.clone(), "echo").unwrap();
                        assert_eq!(response.only().unwrap().data(), lone.data());
                        tickets.rotate_left(round as usize % 4);
                        for (number, ticket) in tickets {
                            let response = client.fetch(ticket).unwrap();
                            let expected = numbered(number, size(number));
                            assert_eq!(response.only().unwrap().data(), expected.data());
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("every ticket its own rows");
        }
        assert_eq!(settled(&client).totals.requests, 40 + 6 * 10 * 5);
    });
}

/// The bounds of the queue and of what one client may hold.
#[test]
fn what_passes_a_bound_is_told_so_and_may_come_again() {
    within(PATIENCE, || {
        let flags = [
            "--max-queue-requests",
            "2",
            "--max-request-bytes",
            "1MiB",
            // One client may have three quarters of it.
            "--max-queue-bytes",
            "4MiB",
            "--max-client-bytes",
            "64KiB",
        ];
        let server = echo_server(&flags);
        let client = server.client();
        // Results beyond a client's bytes: gathered ones, and those of one chunk. Others notice nothing.
        for rows in [6000, 30_000] {
            refused(
                client.infer(numbered(1, rows), "echo"),
                ErrorCode::ResourceExhausted,
                &["65536", "--max-client-bytes"],
            );
        }
        refused(
            client.infer(numbered(1, 70_000), "echo"),
            ErrorCode::ResourceExhausted,
            &["1048576", "max_request_bytes"],
        );
        assert!(client.infer(numbered(1, 2000), "echo").is_ok());
        settled(&client);

        let mut session = Session::open(&server);
        session.infer(&busy(FOR_EVER, 1));
        let waits = session.infer(&request("echo", numbered(1, 60_000)));
        let too_many = session.infer(&request("echo", numbered(1, 1)));
        let (id, answer) = session.next();
        let ServerMessage::Error(error) = answer else {
            panic!("expected an error, got {answer:?}");
        };
        assert_eq!((id, error.code()), (too_many, ErrorCode::ResourceExhausted));
        assert!(
            error.message().starts_with("2 requests are queued"),
            "{error}"
        );
        session.cancel(waits);
        assert_eq!(session.next().0, waits);
        // There is room again.
        session.infer(&request("echo", numbered(1, 1)));
        assert_eq!(session.status().queue.requests, 2);
        assert!(!session.has_answer());
    });
}

/// More than cores: most of them share a session, whose ids have to ascend whoever sends.
#[test]
fn small_requests_of_many_threads_at_once_come_back_to_their_own() {
    within(PATIENCE, || {
        let server = Server::with_model(
            "echo",
            onnx::echo(DataType::Int64, &[2]),
            &["--num-worker", "2"],
        );
        let client = server.client();
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as i64;
        let threads = cores + 46;
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let client = &client;
                scope.spawn(move || {
                    for round in 0..100 {
                        let sent = numbered(thread * 1000 + round, 1 + round as usize % 3);
                        if (thread + round) % 13 == 0 {
                            drop(client.submit(sent.clone(), "echo").unwrap());
                        }
                        let response = client.infer(sent.clone(), "echo").unwrap();
                        assert_eq!(response.only().unwrap().data(), sent.data());
                    }
                });
            }
        });
        let status = settled(&client);
        assert!(status.totals.requests >= threads as u64 * 100);
        assert_eq!(status.totals.errors["INVALID_ARGUMENT"], 0);
    });
}
