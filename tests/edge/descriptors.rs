//! Descriptors that are used up: the server goes on, hears that it should stop, and does not spin.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Server, descriptors, eventually, processor_time, within};
use crate::peer::plain;
use crate::raw::{Raw, receive, send};
use crate::{LIMIT, folder, server, slow, wide};

/// The processor time that a server uses in a second in which nobody asks it for anything.
fn busy_in_a_second(server: &Server) -> Duration {
    let before = processor_time(server.pid());
    thread::sleep(Duration::from_secs(1));
    processor_time(server.pid()) - before
}

fn stops_soon(server: &mut Server) {
    let begun = Instant::now();
    server.signal("TERM");
    assert!(server.wait().success());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(6), "it took {took:?}");
}

/// The thread that hears signals needed a socket to pass them on, and there was no descriptor for it.
#[test]
fn sigterm_is_heard_with_all_descriptors_used_up() {
    within(LIMIT, || {
        let mut server = Server::start_limited(90, folder(), &["--preload", "echo"]);
        let mut raw = Raw::open(&server);
        raw.round(&[[1.0; 4]]);
        let held: Vec<_> = (0..120)
            .map(|number| plain([server.port, server.port_out][number % 2]))
            .collect();
        raw.round(&[[2.0; 4]]);
        let busy = busy_in_a_second(&server);
        assert!(busy < Duration::from_millis(400), "{busy:?} in a second");
        // There are descriptors for a model that nobody has asked for yet.
        let id = raw.id();
        send(&raw.port, &wide(id, 2));
        assert_eq!(receive(&raw.out).kind(), "result");
        stops_soon(&mut server);
        drop(held);
    });
}

/// Sets how many descriptors a running process may have, by a command of util-linux.
fn set_limit(pid: u32, descriptors: usize) -> bool {
    let status = Command::new("prlimit")
        .arg(format!("--pid={pid}"))
        .arg(format!("--nofile={descriptors}:"))
        .status();
    status.is_ok_and(|status| status.success())
}

/// The system says that a connection waits, and does not let anybody have it.
#[test]
fn accepting_does_not_spin_when_no_descriptor_is_left_and_goes_on_when_there_is() {
    within(LIMIT, || {
        let mut server = server(&["--preload", "slow"]);
        let mut raw = Raw::open(&server);
        raw.round(&[[1.0; 4]]);
        let own = descriptors(server.pid());
        if !set_limit(server.pid(), own) {
            println!("skipped: there is no prlimit command here, or it may not do this");
            return;
        }
        let held: Vec<_> = (0..40)
            .map(|number| plain([server.port, server.port_out][number % 2]))
            .collect();
        eventually("it has noticed", || {
            server.log().contains("no connection can be accepted")
        });
        let busy = busy_in_a_second(&server);
        assert!(busy < Duration::from_millis(400), "{busy:?} in a second");
        raw.round(&[[2.0; 4]]);
        assert!(set_limit(server.pid(), 1_000));
        Raw::open(&server).round(&[[3.0; 4]]);
        // Again, and it is told to stop while it has something to do.
        assert!(set_limit(server.pid(), own));
        let id = raw.id();
        send(&raw.port, &slow(id, 2_000));
        raw.greet();
        stops_soon(&mut server);
        assert_eq!(receive(&raw.out).kind(), "result");
        drop(held);
    });
}
