//! Sessions over every kind of endpoint, and servers side by side.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use mdm::DataType;
use tempfile::TempDir;

use crate::common::{Server, models, onnx, within};
use crate::ids::echo_server;
use crate::raw::{Raw, routing_id};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_session_lost_and_opened_anew() {
    within(LIMIT, || {
        let server = echo_server(&[]);
        for number in 0..20 {
            let mut raw = Raw::open(&server);
            // Numbers begin again in a new session.
            raw.round(&[[number as f32; 4]]);
            raw.submit(&[[0.0; 4]; 1000]);
            raw.vanish();
        }
        // The same routing id, once its session is over, begins anew as well.
        let id = routing_id();
        let addresses = [server.port, server.port_out].map(|p| format!("tcp://127.0.0.1:{p}"));
        let mut raw = Raw::at(&addresses[0], &addresses[1], Some(&id));
        raw.greet();
        raw.round(&[[1.0; 4]]);
    });
}

fn ipc(folder: &Path, port: u16) -> [String; 2] {
    ["in", "out"].map(|end| format!("ipc://{}/mdm-{port}.{end}", folder.display()))
}

#[test]
fn local_sockets_serve_as_tcp_does() {
    within(LIMIT, || {
        let server = echo_server(&[]);
        let [port, out] = ipc(&server.dir.path().join("s"), server.port);
        let mut local = Raw::at(&port, &out, Some(&routing_id()));
        local.greet();
        let mut remote = Raw::open(&server);
        for number in 0..10 {
            local.round(&[[number as f32; 4]; 40]);
            remote.round(&[[-(number as f32); 4]; 40]);
        }
        // One end here, the other there: the routing id is what counts.
        let tcp = format!("tcp://127.0.0.1:{}", server.port);
        let mut mixed = Raw::at(&tcp, &out, Some(&routing_id()));
        mixed.greet();
        mixed.round(&[[7.0; 4]]);
        local.vanish();
        mixed.round(&[[8.0; 4]]);
    });
}

/// A folder with the echo, whose local sockets are elsewhere.
fn folder_with_sockets_in(sockets: &Path) -> TempDir {
    let folder = models(&[("echo.onnx", onnx::echo(DataType::Fp32, &[4]))]);
    std::os::unix::fs::symlink(sockets, folder.path().join("s")).expect("a link");
    folder
}

#[test]
fn servers_side_by_side_in_one_folder_of_sockets() {
    within(LIMIT, || {
        let sockets = TempDir::new().expect("a temporary folder");
        let a = Server::start(folder_with_sockets_in(sockets.path()), &[]);
        let mut b = Server::start(folder_with_sockets_in(sockets.path()), &[]);
        let mut sessions: Vec<Raw> = [&a, &b]
            .map(|server| {
                let [port, out] = ipc(sockets.path(), server.port);
                Raw::at(&port, &out, Some(&routing_id()))
            })
            .into();
        for raw in &mut sessions {
            raw.greet();
            raw.round(&[[1.0; 4]]);
        }
        // One ends, and takes nothing of the other's with it.
        b.signal("TERM");
        assert!(b.wait().success());
        sessions[0].round(&[[2.0; 4]]);
        let [port, out] = ipc(sockets.path(), a.port);
        let mut raw = Raw::at(&port, &out, Some(&routing_id()));
        raw.greet();
        raw.round(&[[3.0; 4]]);
        let left: Vec<_> = std::fs::read_dir(sockets.path())
            .expect("a folder")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("a name")
            })
            .collect();
        let own = format!("mdm-{}.", a.port);
        assert!(
            left.len() == 3 && left.iter().all(|name| name.starts_with(&own)),
            "{left:?}"
        );
    });
}

#[test]
fn what_a_killed_server_left_is_no_obstacle() {
    within(LIMIT, || {
        let sockets = TempDir::new().expect("a temporary folder");
        let mut dead = Server::start(folder_with_sockets_in(sockets.path()), &[]);
        Raw::open(&dead).round(&[[1.0; 4]]);
        dead.signal("KILL");
        assert!(!dead.wait().success());
        let left = std::fs::read_dir(sockets.path()).expect("a folder").count();
        assert_eq!(left, 3, "a killed server cleans nothing up");
        let folder = folder_with_sockets_in(sockets.path());
        let server = Server::start_on(folder, dead.port, 0, &[]);
        assert_eq!(server.port, dead.port);
        let [port, out] = ipc(sockets.path(), server.port);
        let mut raw = Raw::at(&port, &out, Some(&routing_id()));
        raw.greet();
        raw.round(&[[2.0; 4]]);
    });
}

#[test]
fn a_server_on_an_ipv6_address_answers() {
    if let Err(e) = TcpListener::bind("[::1]:0") {
        println!("skipped: this machine has no IPv6 loopback: {e}");
        return;
    }
    within(LIMIT, || {
        let server = echo_server(&["--host", "::1"]);
        let [port, out] = [server.port, server.port_out].map(|p| format!("tcp://[::1]:{p}"));
        let mut raw = Raw::at(&port, &out, Some(&routing_id()));
        raw.greet();
        raw.round(&[[6.0; 4]; 100]);
    });
}
