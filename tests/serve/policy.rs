//! Who is served when: small before bulk, bulk in turn, small ones together.

use mdm::message::Priority;
use mdm::wire::server::ServerMessage;
use mdm::{DataType, ErrorCode, Request, Tensor};

use crate::behind::{Session, behind, busy, output, request, server};
use crate::common::{PATIENCE, Server, onnx, within};
use crate::{numbered, settled};

fn echo_server() -> Server {
    let echo = onnx::echo(DataType::Int64, &[2]);
    server(&[("echo", echo), ("mlp", onnx::mlp())], &[])
}

fn echo(number: i64, rows: usize) -> Request {
    request("echo", numbered(number, rows))
}

/// Places in the list, in the order in which they were answered with a result.
fn order(answers: &[(usize, ServerMessage)]) -> Vec<usize> {
    let place = |(place, answer): &(usize, ServerMessage)| {
        assert!(matches!(answer, ServerMessage::Result(..)), "{answer:?}");
        *place
    };
    answers.iter().map(place).collect()
}

#[test]
fn a_small_request_overtakes_bulk_the_prefetched_chunk_too() {
    within(PATIENCE, || {
        let server = echo_server();
        // 17 rows are bulk already: one chunk, which waits at the worker when the small ones come.
        let requests = [echo(0, 17), echo(1, 3000), echo(2, 16), echo(3, 1)];
        let answers = behind(&server, &requests);
        assert_eq!(order(&answers), [2, 3, 0, 1]);
        for (place, answer) in &answers {
            let sent = &requests[*place].inputs.tensors[0];
            assert_eq!(output(answer).data(), sent.data(), "request {place}");
        }
    });
}

#[test]
fn high_priority_goes_before_other_bulk_and_not_before_small() {
    within(PATIENCE, || {
        let server = echo_server();
        let high = Request {
            priority: Priority::High,
            ..echo(2, 6000)
        };
        // Without the priority the longest, which came last, would be the last.
        let requests = [echo(0, 3000), echo(1, 3000), high, echo(3, 5)];
        assert_eq!(order(&behind(&server, &requests))[..2], [3, 2]);
    });
}

#[test]
fn two_thousand_rows_do_not_wait_for_a_hundred_thousand() {
    within(PATIENCE, || {
        let server = echo_server();
        let requests = [echo(0, 100_000), echo(1, 2000), echo(2, 2000)];
        let answers = behind(&server, &requests);
        // The first one is the last one; the others are alike.
        assert_eq!(order(&answers)[2], 0);
        let hundred_thousand = output(&answers[2].1);
        assert_eq!(
            hundred_thousand.data(),
            requests[0].inputs.tensors[0].data()
        );
    });
}

/// Small requests always wait when the worker looks for the next chunk, and still bulk ends.
#[test]
fn bulk_does_not_starve_under_a_stream_of_small_requests() {
    within(PATIENCE, || {
        let server = echo_server();
        let mut session = Session::open(&server);
        // Long enough that the next are there before the worker is free again.
        let small = busy(500, 1);
        for _ in 0..200 {
            session.infer(&small);
        }
        let bulk = session.infer(&echo(0, 3000));
        // Each answer is followed by another request. Its share of the worker gives bulk its turn within far fewer.
        for answered in 0..100_000 {
            let (id, answer) = session.next();
            assert!(matches!(answer, ServerMessage::Result(..)), "{answer:?}");
            if id == bulk {
                assert!(answered > 10, "the small ones went first");
                return;
            }
            session.infer(&small);
        }
        panic!("100,000 small requests were answered, and the bulk request was not");
    });
}

#[test]
fn small_requests_that_wait_run_together_and_get_their_own_rows() {
    within(PATIENCE, || {
        let server = echo_server();
        let client = server.client();
        let before = settled(&client).totals;
        let requests: Vec<Request> = (0..40).map(|i| echo(i, 1 + i as usize % 3)).collect();
        let answers = behind(&server, &requests);
        let mut places = order(&answers);
        for (place, answer) in &answers {
            let sent = &requests[*place].inputs.tensors[0];
            assert_eq!(output(answer).data(), sent.data(), "request {place}");
        }
        places.sort_unstable();
        assert_eq!(places, (0..40).collect::<Vec<_>>());
        let after = settled(&client).totals;
        let coalesced = after.coalesced - before.coalesced;
        // The first two may have been at the worker before the others came.
        assert!(coalesced >= 38, "{coalesced} of 40");
        let (chunks, requests) = (
            after.chunks - before.chunks,
            after.requests - before.requests,
        );
        assert!(
            chunks < requests / 4,
            "{chunks} chunks for {requests} requests"
        );

        // Other parameters may mean another answer: these do not run together.
        let requests: Vec<Request> = (0..8)
            .map(|i| {
                let mut request = echo(i, 1);
                request.params.insert("tag".to_owned(), i.into());
                request
            })
            .collect();
        assert_eq!(order(&behind(&server, &requests)), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(settled(&client).totals.coalesced, after.coalesced);
    });
}

#[test]
fn in_a_shared_batch_only_the_guilty_request_fails() {
    within(PATIENCE, || {
        let server = server(&[("fails", onnx::failing_at_run())], &[]);
        let client = server.client();
        let index = |i: i64| request("fails", Tensor::from_vec("x", vec![1], vec![i]).unwrap());
        let table: Vec<f32> = (0..10)
            .map(|i| {
                let response = client.infer(&[i as i64], "fails").unwrap();
                response.array::<f32>("y").unwrap()[0]
            })
            .collect();
        let before = settled(&client).totals;
        let requests: Vec<Request> = [1, 2, 77, 3, 9, -11, 5].into_iter().map(index).collect();
        let answers = behind(&server, &requests);
        assert_eq!(answers.len(), 7);
        for (place, answer) in answers {
            match [1, 2, 77, 3, 9, -11, 5][place] {
                good @ 0..10 => {
                    let got = output(&answer).to_vec::<f32>().unwrap();
                    assert_eq!(got, [table[good as usize]]);
                }
                bad => {
                    let ServerMessage::Error(error) = answer else {
                        panic!("{bad} is no index: {answer:?}");
                    };
                    assert_eq!(error.code(), ErrorCode::Internal);
                    // Both in the engine's words: which model's node, and which index.
                    for word in ["\"fails\"", "Gather", &format!("idx={bad}")] {
                        assert!(error.message().contains(word), "{error}");
                    }
                }
            }
        }
        let after = settled(&client).totals;
        assert!(after.coalesced >= before.coalesced + 5);
        assert!(after.errors["INTERNAL"] >= before.errors["INTERNAL"] + 2);
        // A bulk request's failure is its own as well, and the first one's words are kept.
        let many: Vec<i64> = (0..500)
            .map(|i| if i == 300 { 10 } else { i % 10 })
            .collect();
        let error = client.infer(many, "fails").unwrap_err();
        assert!(error.message().contains("idx=10"), "{error}");
        assert!(client.infer(vec![4i64; 500], "fails").is_ok());
    });
}
