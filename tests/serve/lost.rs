//! A server that dies: what is in flight fails at once, and the next call finds the next server.

use std::sync::Arc;

use mdm::client::Client;
use mdm::{DataType, ErrorCode};

use crate::behind::FOR_EVER;
use crate::common::{PATIENCE, Server, eventually, models, onnx, within};
use crate::{numbered, refused, settled};

#[test]
fn a_session_is_lost_with_its_server_and_opened_anew() {
    within(PATIENCE, || {
        let dir = models(&[
            ("busy.onnx", crate::models::busy()),
            ("busy.proxy", crate::models::busy_rows("busy")),
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
        ]);
        let preload = ["--preload", "busy", "--preload", "echo"];
        let mut server = Server::start(dir, &preload);
        let (port, port_out) = (server.port, server.port_out);
        let client = Arc::new(server.client());
        client.infer(numbered(1, 100), "echo").unwrap();
        settled(&client);
        let running = client.submit(&[FOR_EVER], "busy").unwrap();
        eventually("the worker is busy", || {
            client.status().unwrap().workers[0].state == "busy"
        });
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let client = client.clone();
                std::thread::spawn(move || client.infer(numbered(1, 17), "echo"))
            })
            .collect();
        let tickets = [running, client.submit(numbered(1, 1), "echo").unwrap()];
        let mut stream = client.infer_stream(numbered(1, 100), "echo").unwrap();
        eventually("all are in flight", || {
            let status = client.status().unwrap();
            assert_eq!(status.totals.requests, 1, "the first one only");
            status.queue.requests == 6
        });
        server.signal("KILL");
        for thread in threads {
            let answer = thread.join().expect("an answer");
            refused(answer, ErrorCode::Unavailable, &["lost"]);
        }
        for ticket in tickets {
            refused(client.fetch(ticket), ErrorCode::Unavailable, &["lost"]);
        }
        refused(
            stream.next().expect("an error"),
            ErrorCode::Unavailable,
            &["lost"],
        );
        assert!(stream.next().is_none());
        drop(stream);
        server.wait();
        refused(
            client.infer(numbered(1, 1), "echo"),
            ErrorCode::Unavailable,
            &["no server"],
        );
        refused(client.status(), ErrorCode::Unavailable, &["no server"]);

        // What a killed server left in the folder is in nobody's way.
        let dir = std::mem::replace(&mut server.dir, models(&[]));
        let again = Server::start_on(dir, port, port_out, &[]);
        for rows in [1, 300] {
            let sent = numbered(2, rows);
            let response = client.infer(sent.clone(), "echo").expect("a new session");
            assert_eq!(response.only().unwrap().data(), sent.data());
            let ticket = client.submit(sent.clone(), "echo").expect("a new session");
            let response = client.fetch(ticket).expect("a new session");
            assert_eq!(response.only().unwrap().data(), sent.data());
        }
        assert_eq!(client.status().unwrap().totals.requests, 4);
        let address = again.dir.path().join("s").join(format!("mdm-{port}.in"));
        let local = Client::connect(&format!("ipc://{}", address.display())).expect("a session");
        let response = local.infer(numbered(3, 300), "echo").unwrap();
        assert_eq!(response.only().unwrap().data(), numbered(3, 300).data());
    });
}
