//! Arrays that `infer` borrows: nothing of them is in use when the call has ended.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use mdm::ErrorCode;
use mdm::client::{Call, Client};
use mdm::wire::server::Welcome;

use crate::fake::{Fake, Manners, echoes};
use crate::within;

/// Passes on what goes to `port`; of the first connection only so many bytes, and then it reads no more.
fn stalling(port: u16, most: u64) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut most = most;
        while let Ok((client, _)) = listener.accept() {
            let server = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let most = std::mem::replace(&mut most, u64::MAX);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut (&client).take(most), &mut &server);
                std::thread::sleep(Duration::from_secs(20));
            });
        }
    });
    number
}

#[test]
fn an_array_that_was_lent_is_free_when_the_call_ends_whatever_became_of_it() {
    within(Duration::from_secs(30), || {
        let server = Fake::with(
            Manners {
                welcome: Welcome {
                    max_request_bytes: 1 << 26,
                    ..Manners::default().welcome
                },
                ..Manners::default()
            },
            echoes,
        );
        let mut array = ndarray::Array1::<u8>::from_elem(1 << 25, 1);
        let client = server.client();
        for turn in 1..4 {
            array.fill(turn);
            let r = client.infer(&array, "m").unwrap();
            array.fill(0);
            assert!(
                r.tensor("")
                    .unwrap()
                    .to_vec::<u8>()
                    .unwrap()
                    .iter()
                    .all(|x| *x == turn)
            );
        }
        // More than the connection takes up: most of it is not out when the time is over.
        let port = stalling(server.port, 1 << 16);
        let client = Client::connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
        let call = Call::model("m").timeout(Duration::from_millis(100));
        let start = Instant::now();
        let e = client.infer(&array, call.clone()).unwrap_err();
        assert_eq!(e.code(), ErrorCode::DeadlineExceeded, "{e}");
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(array);
        // Half a request is out on that connection, so the next call has another one.
        client.infer(&[1u8], "m").unwrap();
    });
}
