//! `mdm-server-status` as an instrument: rates of the last seconds, models that do not open, extra workers, one screen.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mdm::DataType;
use serde_json::Value;

use crate::commands::run;
use crate::common::{PATIENCE, Server, command, models, onnx, within};
use crate::models::{BUSY_ROWS, busy};
use crate::{numbered, settled};

fn status(server: &Server) -> Value {
    let (code, line, said) = run("mdm-server-status", server, server.dir.path(), &["--json"]);
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&line).expect("JSON")
}

/// The entry of a window.
fn window(of: &Value, seconds: u64) -> &Value {
    let windows = of["recent"].as_array().expect("windows");
    let found = windows.iter().find(|of| of["seconds"] == seconds);
    found.unwrap_or_else(|| panic!("{seconds} s is not in {of}"))
}

fn number(of: &Value, key: &str) -> f64 {
    of[key].as_f64().unwrap_or_else(|| panic!("{key} in {of}"))
}

/// A server that was busy for a day and stands still now looks idle, and the other way round.
#[test]
fn rates_are_of_the_last_seconds_and_not_of_the_time_since_the_start() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
            ("two.onnx", onnx::echo(DataType::Int64, &[2])),
        ]);
        let server = Server::start(dir, &["--num-worker", "2", "--preload", "two"]);
        let client = server.client();
        let begun = Instant::now();
        let mut rows = 0;
        while begun.elapsed() < Duration::from_millis(2500) {
            client.infer(numbered(1, 100), "echo").unwrap();
            rows += 100;
        }
        let all = begun.elapsed().as_secs_f64();
        let then = status(&server);
        assert_eq!(then["format"], 1);
        let ten = window(&then, 10);
        let told = number(ten, "rows_per_s") * number(ten, "over_ms") / 1000.0;
        assert!(
            (told - f64::from(rows)).abs() <= f64::from(rows) / 10.0,
            "{told} of {rows}"
        );
        let last = number(window(&then, 1), "rows_per_s");
        let mean = f64::from(rows) / all;
        assert!(last > mean / 5.0 && last < mean * 5.0, "{last}, {mean}");
        assert!(number(window(&then, 1), "busy") > 0.0);
        assert!(number(&window(&then, 1)["latency_us"], "p50") > 0.0);
        let of = |name: &str| {
            let counts = then["by_model"].as_array().expect("models").iter();
            let mut own = counts.filter(|of| of["name"] == name);
            own.next().unwrap_or_else(|| panic!("{name}")).clone()
        };
        let echo = of("echo");
        assert_eq!(
            (&echo["rows"], &of("two")["rows"]),
            (&rows.into(), &0.into())
        );
        assert_eq!(number(window(&echo, 1), "rows_per_s"), last);
        assert_eq!(number(window(&of("two"), 60), "rows_per_s"), 0.0);

        // The same server two seconds later: it has done nothing in the last one.
        settled(&client);
        std::thread::sleep(Duration::from_millis(2200));
        let later = status(&server);
        for of in [window(&later, 1), window(&later["workers"][0], 1)] {
            assert_eq!(
                (number(of, "rows_per_s"), number(of, "busy")),
                (0.0, 0.0),
                "{later}"
            );
        }
        assert!(number(window(&later, 10), "rows_per_s") > 0.0);
        assert_eq!(later["totals"]["rows"], rows);
    });
}

/// Chunks count when they end: a worker that has been running one for seconds is busy, not idle.
#[test]
fn a_worker_that_runs_one_long_chunk_is_shown_as_busy() {
    within(PATIENCE, || {
        let dir = models(&[("busy.onnx", busy())]);
        let server = Server::start(dir, &["--preload", "busy"]);
        let client = server.client();
        let rows = vec![60_000_000i64; BUSY_ROWS];
        let ticket = client.submit(rows, "busy").unwrap();
        std::thread::sleep(Duration::from_millis(3000));
        let now = status(&server);
        let worker = &now["workers"][0];
        assert_eq!(worker["state"], "busy", "{now}");
        assert!(number(window(worker, 1), "busy") > 0.9, "{now}");
        client.cancel(&ticket);
    });
}

#[test]
fn models_that_do_not_open_and_extra_workers_are_marked() {
    within(PATIENCE, || {
        let dir = models(&[
            ("good.onnx", onnx::echo(DataType::Int64, &[2])),
            ("broken.onnx", b"this is no model".to_vec()),
            ("odd.proxy", b"{\"mdm\": 1,".to_vec()),
        ]);
        let server = Server::start(dir, &["--num-worker=1", "--num-parallel-workers=1"]);
        let client = server.client();
        client.infer(numbered(1, 3), "good").unwrap();
        for name in ["broken", "odd"] {
            client.infer(numbered(1, 3), name).unwrap_err();
        }
        client.infer(numbered(1, 3), "no_such").unwrap_err();
        let told = status(&server);
        let broken = told["broken"].as_array().expect("a list");
        let names: Vec<&Value> = broken.iter().map(|of| &of["name"]).collect();
        assert_eq!(names, ["broken", "odd"], "{told}");
        assert_eq!(broken[0]["code"], "FAILED_PRECONDITION");
        let extra: Vec<&Value> = told["workers"]
            .as_array()
            .expect("workers")
            .iter()
            .collect();
        assert_eq!(
            (&extra[0]["extra"], &extra[1]["extra"]),
            (&false.into(), &true.into())
        );
        let (_, page, _) = run("mdm-server-status", &server, server.dir.path(), &[]);
        for words in [
            "! broken does not open: FAILED_PRECONDITION: ",
            "! odd does not open: ",
            " extra ",
        ] {
            assert!(page.contains(words), "{words:?} is not in: {page}");
        }
        // Mended, it is served, and the mark is gone. What is served goes on when its file is broken.
        let path = |name: &str| server.models().join(name);
        std::fs::copy(path("good.onnx"), path("broken.onnx")).unwrap();
        client.infer(numbered(1, 3), "broken").unwrap();
        std::fs::write(path("good.onnx"), "no model any more").unwrap();
        client.load("good").unwrap_err();
        let (_, page, _) = run("mdm-server-status", &server, server.dir.path(), &[]);
        assert!(!page.contains("! broken"), "{page}");
        let still = "! good does not open (what was loaded before it is served on): ";
        assert!(page.contains(still), "{page}");
    });
}

/// On a terminal, which Python makes.
#[cfg(unix)]
#[test]
fn watching_redraws_one_screen() {
    within(PATIENCE, || {
        let server = Server::start(models(&[]), &[]);
        let status = command("mdm-server-status");
        let spawn = "import pty, sys; pty.spawn(sys.argv[1:])";
        let mut child = Command::new("python3")
            .args(["-c", spawn])
            .arg(status.get_program())
            .args(["--port", &server.port.to_string(), "--watch=0.1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("make test needs python3");
        let mut shown = String::new();
        let mut out = child.stdout.take().expect("stdout");
        let mut buffer = [0; 4096];
        while shown.matches("\x1b[H").count() < 4 {
            let count = out.read(&mut buffer).expect("it goes on");
            assert!(count > 0, "{shown}");
            shown += &String::from_utf8_lossy(&buffer[..count]);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(
            shown.matches("\x1b[2J").count(),
            1,
            "cleared once: {shown:?}"
        );
        let screens: Vec<&str> = shown.split("\x1b[H").skip(1).take(3).collect();
        for screen in screens {
            assert!(
                screen.contains("in the last") && screen.contains("workers busy"),
                "{screen}"
            );
            assert!(
                screen.matches('\n').count() < 24,
                "it would scroll: {screen}"
            );
        }
    });
}
