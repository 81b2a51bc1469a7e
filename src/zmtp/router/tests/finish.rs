//! The end: what was written arrives, however late its reader begins; nobody makes the end wait for ever.

use std::sync::mpsc;
use std::thread;

use super::*;

/// Reads until the end of the stream, with pauses; the bytes that came, and whether it ended as it should.
fn read_all(raw: &Raw, pause: Duration) -> (usize, bool) {
    let mut stream = raw.stream.try_clone().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(TEST_LIMIT)).unwrap();
    let (mut buffer, mut came) = (vec![0; 256 * 1024], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (came, true),
            Ok(count) => came += count,
            Err(_) => return (came, false),
        }
        thread::sleep(pause);
    }
}

/// A server that has to bring a frame of so many bytes to a peer which has read everything up to it.
fn with_waiting(bytes: usize) -> (Server, Raw, ReplyTo) {
    let mut server = Server::new(BOUNDS);
    let (mut raw, reply) = server.join(1, &ID);
    server.send(reply, &[b"first"]);
    assert_eq!(server.hear(&mut raw), heard(&[b"first"]));
    server
        .router
        .send(reply, [Bytes::from(vec![6; bytes])])
        .unwrap();
    (server, raw, reply)
}

#[test]
fn what_waits_reaches_a_reader_that_begins_after_the_end_began() {
    let (mut server, raw, _) = with_waiting(20 * MIB);
    let (begun, begins) = mpsc::channel();
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            begins.recv().unwrap();
            thread::sleep(Duration::from_millis(300));
            read_all(&raw, Duration::ZERO)
        });
        begun.send(()).unwrap();
        assert_eq!(server.router.finish(None).unwrap(), 0);
        assert_eq!(reader.join().unwrap(), (20 * MIB + 9, true));
    });
}

#[test]
fn one_that_never_reads_is_given_up_and_the_others_are_not() {
    let (mut server, _never, _) = with_waiting(20 * MIB);
    let (raw, reply) = server.join(1, b"another");
    server
        .router
        .send(reply, [Bytes::from(vec![6; 20 * MIB])])
        .unwrap();
    let begun = Instant::now();
    thread::scope(|scope| {
        // It reads 256 KiB at most a time: longer than the stall limit in all, with progress all the time.
        let reader = scope.spawn(move || read_all(&raw, Duration::from_millis(10)));
        let silence = Duration::from_millis(500);
        let lost = server.router.finish_with(None, silence).unwrap();
        assert!(lost > MIB as u64, "{lost}");
        let (came, ended) = reader.join().unwrap();
        assert!(ended && came >= 20 * MIB, "{came}");
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_end_takes_no_longer_than_it_may() {
    let (mut server, _never, _) = with_waiting(20 * MIB);
    let begun = Instant::now();
    let most = Some(Duration::from_millis(200));
    assert!(server.router.finish(most).unwrap() > MIB as u64);
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_peer_that_keeps_sending_gets_all_of_its_answers() {
    let (mut server, mut raw, _) = with_waiting(8 * MIB);
    thread::scope(|scope| {
        let peer = scope.spawn(move || {
            let sent = message(&[&[3; 1000]]);
            let (mut buffer, mut came, mut rest) = (vec![0; 64 * 1024], 0, &sent[..]);
            while came < 8 * MIB + 9 {
                // Its own words may find nobody any more, once the last answer has arrived.
                rest = &rest[raw.stream.write(rest).unwrap_or(0)..];
                if rest.is_empty() {
                    rest = &sent;
                }
                match raw.stream.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => came += count,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => thread::yield_now(),
                    Err(e) => panic!("{e} after {came} bytes"),
                }
            }
            came
        });
        assert_eq!(server.router.finish(None).unwrap(), 0);
        assert_eq!(peer.join().unwrap(), 8 * MIB + 9);
    });
}

#[test]
fn a_ping_behind_the_end_of_the_stream_is_not_waited_for() {
    // It fits into what the system holds, so that the stream's end follows at once.
    let (mut server, mut raw, _) = with_waiting(MIB);
    let begun = Instant::now();
    thread::scope(|scope| {
        let peer = scope.spawn(move || {
            thread::sleep(Duration::from_millis(100));
            let mut ping = Vec::new();
            codec::push_ping(&mut ping);
            assert_eq!(raw.say(&ping), ping.len());
            thread::sleep(Duration::from_millis(100));
            // It does not close when it has read the end.
            (read_all(&raw, Duration::ZERO), raw)
        });
        assert_eq!(server.router.finish(None).unwrap(), 0);
        assert!(begun.elapsed() < Duration::from_secs(4));
        assert_eq!(peer.join().unwrap().0, (MIB + 9, true));
    });
}

#[test]
fn those_without_a_handshake_are_not_waited_for() {
    let mut server = Server::new(BOUNDS);
    let mut raw = Raw::connect(server.address);
    server.wait_for(|server| server.router.peers.len() == 1);
    assert_eq!(server.router.finish(None).unwrap(), 0);
    while !raw.is_closed {
        raw.read();
    }
}

/// What this thread has used of a processor.
#[cfg(target_os = "linux")]
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos = text.split_whitespace().next().unwrap();
    Duration::from_nanos(nanos.parse().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn an_inner_socket_that_nobody_reads_does_not_make_the_end_spin() {
    use std::os::unix::net::UnixStream;

    let (mut server, _never, _) = with_waiting(20 * MIB);
    let (mut near, far) = UnixStream::pair().unwrap();
    near.write_all(b"unread").unwrap();
    server.router.watch(&far).unwrap();
    let before = processor_time();
    let silence = Duration::from_secs(1);
    assert!(server.router.finish_with(None, silence).unwrap() > 0);
    let used = processor_time() - before;
    assert!(used < Duration::from_millis(300), "{used:?}");
}
