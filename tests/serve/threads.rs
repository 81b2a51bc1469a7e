//! What the server asks the system for its threads, seen from outside.
#![cfg(target_os = "linux")]

use std::collections::HashMap;
use std::process::Command;

use mdm::DataType;

use crate::common::{PATIENCE, Server, models, onnx, within};

/// The niceness of each thread, by the thread's name.
fn niceness(pid: u32) -> HashMap<String, i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let one = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        let (start, behind) = stat.rsplit_once(") ")?;
        // Field 19; the first behind the name is field 3.
        let nice = behind.split_whitespace().nth(16)?;
        let name = start.split_once('(')?.1;
        Some((name.to_owned(), nice.parse().expect("a niceness")))
    };
    tasks.flatten().filter_map(one).collect()
}

/// Whether the system lets who runs these tests lower niceness.
fn may_come_first() -> bool {
    // The inner one says what the outer one got.
    let said = Command::new("nice").args(["-n", "-10", "nice"]).output();
    let now = Command::new("nice").output();
    said.expect("nice runs").stdout != now.expect("nice runs").stdout
}

#[test]
fn ventilator_and_sink_come_first_where_they_may_and_workers_go_last() {
    within(PATIENCE, || {
        let echo = models(&[("echo.onnx", onnx::echo(DataType::Int64, &[2]))]);
        let server = Server::start(echo, &["--num-worker", "1", "--worker-nice", "3"]);
        let of = niceness(server.pid());
        // The first thread bears the program's name, cut off.
        let usual = of["mdm-server-star"];
        let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        let by = match several && may_come_first() {
            true => (10, 4),
            false => (0, 0),
        };
        assert_eq!(
            (of["ventilator"], of["sink"]),
            (usual - by.0, usual - by.1),
            "{of:?}"
        );
        assert_eq!(of["worker-0"], usual + 3, "{of:?}");
    });
}
