//! Rows come back in the order in which they were sent, and every worker gets some.

use std::sync::Arc;

use mdm::DataType;
use mdm::client::Response;

use crate::common::{PATIENCE, Server, onnx, within};
use crate::{numbered, settled};

const ROWS: usize = 5000;

fn server(workers: usize, flags: &[&str]) -> Server {
    let workers = workers.to_string();
    let mut all = vec!["--num-worker", &workers, "--intra-op-threads", "1"];
    all.extend(flags);
    Server::with_model("echo", onnx::echo(DataType::Int64, &[2]), &all)
}

fn part_rows(response: &Response) -> Vec<usize> {
    let rows = |part: &mdm::Batch| part.tensors[0].rows().expect("rows");
    response.parts().iter().map(rows).collect()
}

#[test]
fn rows_stay_in_order_on_1_2_4_and_25_workers() {
    for workers in [1, 2, 4, 25] {
        within(PATIENCE, move || {
            let server = server(workers, &[]);
            let client = Arc::new(server.client());
            let threads: Vec<_> = (0..4i64)
                .map(|number| {
                    let client = client.clone();
                    std::thread::spawn(move || {
                        for (round, rows) in [ROWS, 1, 17, 400, 16, ROWS].into_iter().enumerate() {
                            let sent = numbered(number * 100 + round as i64, rows);
                            let response = client.infer(sent.clone(), "echo").expect("rows");
                            assert_eq!(response.only().unwrap().data(), sent.data());
                            assert_eq!(part_rows(&response).iter().sum::<usize>(), rows);
                            let parts = response.parts().len() as u64;
                            assert!((1..=parts).contains(&response.stats().chunks));
                            match rows {
                                ..=16 => assert_eq!(response.parts().len(), 1),
                                ROWS.. => assert!(response.parts().len() > 1),
                                _ => {}
                            }
                        }
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("every row in its place");
            }
            let status = settled(&client);
            assert_eq!(status.workers.len(), workers);
            let rows = 4 * (2 * ROWS as u64 + 1 + 17 + 400 + 16);
            assert_eq!(status.workers.iter().map(|w| w.rows).sum::<u64>(), rows);
            assert_eq!((status.totals.rows, status.totals.requests), (rows, 24));
            // 64 rows at a time are enough for all; the first request alone has 78 of them.
            assert!(
                status.workers.iter().all(|w| w.rows > 0),
                "{:?}",
                status.workers
            );
        });
    }
}

/// Each chunk 100 rows, not one of 400, although nothing is known of the model yet and no worker has opened it.
#[test]
fn four_hundred_rows_are_a_hundred_for_each_of_four_workers() {
    within(PATIENCE, || {
        let server = server(4, &["--max-chunk-ms", "0"]);
        let client = server.client();
        for round in 1..=2 {
            let sent = numbered(round, 400);
            let response = client.infer(sent.clone(), "echo").unwrap();
            assert_eq!(part_rows(&response), [100; 4]);
            assert_eq!(response.only().unwrap().data(), sent.data());
            for worker in settled(&client).workers {
                let expected = (round as u64, 100 * round as u64);
                assert_eq!(
                    (worker.chunks, worker.rows),
                    expected,
                    "worker {}",
                    worker.id
                );
            }
        }
        // A row more, and the first part has it; fewer rows than a small request's for each, and fewer parts.
        let rows_of = |rows| part_rows(&client.infer(numbered(9, rows), "echo").unwrap());
        assert_eq!(rows_of(401), [101, 100, 100, 100]);
        assert_eq!(rows_of(40), [20, 20]);
        assert_eq!(rows_of(16), [16]);
        // More than four chunks can hold: a second round, still alike.
        assert_eq!(rows_of(4100), [513, 513, 513, 513, 512, 512, 512, 512]);
    });
}

#[test]
fn four_hundred_rows_use_four_workers_as_the_first_request_ever() {
    within(PATIENCE, || {
        let server = server(4, &[]);
        let client = server.client();
        client.infer(numbered(1, 400), "echo").unwrap();
        let workers = settled(&client).workers;
        assert!(workers.iter().all(|w| w.rows > 0), "{workers:?}");
        assert!(workers.iter().all(|w| w.model.as_deref() == Some("echo")));
        assert!(workers.iter().all(|w| w.device == "cpu"));
    });
}

/// The limit of a chunk holds, whatever the model's pace.
#[test]
fn no_chunk_has_more_rows_than_max_batch_size() {
    within(PATIENCE, || {
        let flags = ["--max-batch-size", "50", "--priority-batch-size", "5"];
        let server = server(2, &flags);
        let client = server.client();
        for _ in 0..10 {
            let response = client.infer(numbered(1, 1003), "echo").unwrap();
            assert!(part_rows(&response).iter().all(|&rows| rows <= 50));
        }
    });
}
