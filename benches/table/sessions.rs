//! 10,000 sessions that do nothing: the memory that the server holds for each.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mdm::message::RequestId;
use mdm::wire::client::{ClientMessage, write_message};
use mdm::wire::server::{self, ServerMessage};

use super::Plan;
use super::children::{Models, Server};
use super::report::{Bar, Pairs, Table, median};
use super::sides::Sides;
use super::zmtp::Peer;

const SESSIONS: usize = 10_000;
/// As many are enough to compare two servers by, and no trial for one that gets slower with each.
const COMPARED_SESSIONS: usize = 1_000;
/// How long opening them may take.
const OPENING: Duration = Duration::from_secs(60);
/// Descriptors of a process that are not sessions'.
const OTHER_DESCRIPTORS: u64 = 512;
/// What a session may hold.
const MOST_BYTES: f64 = 8.0 * 1024.0;
/// How often connections are looked after: a server may give one up that is silent for six seconds.
const TEND: Duration = Duration::from_secs(1);
/// How long the sessions sit there before the memory is read, and at least how long.
const SIT: Duration = Duration::from_secs(2);
const LEAST_SIT: Duration = Duration::from_millis(500);

/// What a server with all its sessions was like.
struct Opened {
    bytes_each: f64,
    seconds: f64,
}

pub fn measure(plan: &Plan, table: &mut Table) -> Result<()> {
    // The servers inherit it, and need as many.
    let limit = rlimit::increase_nofile_limit(u64::MAX)?;
    let wanted = plan.times(SESSIONS);
    let most = usize::try_from(limit.saturating_sub(OTHER_DESCRIPTORS) / 2)?;
    let count = wanted.min(most);
    ensure!(count > 0, "{limit} descriptors are too few for a session");
    if count < wanted {
        table.note(format!(
            "sessions: {count} and not {wanted}: a process may have {limit} descriptors here"
        ));
    }
    let sit = plan.long(SIT).max(LEAST_SIT);
    let models = Models::write(&[])?;
    // One server at a time: the clients' side needs all the descriptors that it may have.
    let mut programs = Sides::of(plan, |program| Ok(program.to_owned()))?;
    let fewer = count.min(plan.times(COMPARED_SESSIONS));
    let (mut bytes, mut to_server) = (Pairs::default(), Pairs::default());
    let mut seconds = Vec::new();
    while plan.goes_on(bytes.count()) {
        let opened = open(&programs.ours, &models, count, sit)?;
        bytes.push(opened.bytes_each, MOST_BYTES);
        seconds.push(opened.seconds);
        if programs.other.is_some() {
            let opened = programs.each(|program| open(program, &models, fewer, sit))?;
            to_server.push_sides(opened.map(|opened| opened.bytes_each));
        }
    }
    let what = format!("sessions: {count} idle, resident memory each, to 8 KiB");
    table.add(&what, &bytes, "B", Bar::AtMost(1.0));
    let what = format!("{fewer} idle");
    table.add_server(&what, &to_server, "B", Bar::None);
    let seconds = median(seconds);
    table.note(format!(
        "sessions: {count} were opened, one after the other, in {seconds:.1} s"
    ));
    Ok(())
}

/// Opens so many sessions with a new server.
fn open(program: &Path, models: &Models, count: usize, sit: Duration) -> Result<Opened> {
    let server = Server::start_program(program, models, &[])?;
    let mut peers = Vec::with_capacity(2 * count);
    // What the first one costs is not each one's.
    session(&server, 0, &mut peers)?;
    let before = server.process.memory()?.rss;
    let (start, mut tended) = (Instant::now(), Instant::now());
    for number in 1..=count {
        ensure!(
            start.elapsed() < OPENING,
            "{number} of {count} sessions were open after {OPENING:?}"
        );
        session(&server, number, &mut peers)
            .with_context(|| format!("session {number} of {count}"))?;
        if tended.elapsed() >= TEND {
            tend(&mut peers)?;
            tended = Instant::now();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let opened = Instant::now();
    while opened.elapsed() < sit {
        std::thread::sleep(TEND / 4);
        tend(&mut peers)?;
    }
    Ok(Opened {
        bytes_each: (server.process.memory()?.rss - before) / count as f64,
        seconds,
    })
}

/// A session is two connections of one id, each of which has said hello.
fn session(server: &Server, number: usize, peers: &mut Vec<Peer>) -> Result<()> {
    let id = format!("idle{number:012}");
    let hello = write_message(&ClientMessage::Hello(RequestId(1))).concat();
    for port in [server.port, server.port_out] {
        let (peer, answer) = Peer::connect(port, id.as_bytes(), &hello)?;
        match server::read(vec![answer])? {
            (_, ServerMessage::HelloOk(_) | ServerMessage::Welcome) => peers.push(peer),
            (_, other) => bail!("a hello was answered with {other:?}"),
        }
    }
    Ok(())
}

fn tend(peers: &mut [Peer]) -> Result<()> {
    let open = peers.len();
    for (index, peer) in peers.iter_mut().enumerate() {
        peer.tend()
            .with_context(|| format!("connection {index} of {open}"))?;
    }
    Ok(())
}
