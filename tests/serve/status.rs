//! `mdm-server-status` as an instrument: rates of the last seconds, models that do not open, extra workers, one screen.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mdm::client::{Client, StopMode};
use mdm::{DataType, ErrorCode};
use serde_json::Value;

use crate::commands::run;
use crate::common::{PATIENCE, Server, command, models, onnx, within};
use crate::models::{BUSY_ROWS, busy, busy_rows};
use crate::start::Started;
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
        let dir = models(&[("busy.onnx", busy()), ("busy.proxy", busy_rows("busy"))]);
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
            (
                "no_onnx.proxy",
                b"{\"mdm\":1,\"onnx\":\"gone.onnx\"}".to_vec(),
            ),
            (
                "no_plugin.proxy",
                b"{\"mdm\":1,\"plugin\":\"libgone.so\"}".to_vec(),
            ),
        ]);
        let server = Server::start(dir, &["--num-worker=1", "--num-parallel-workers=1"]);
        let client = server.client();
        client.infer(numbered(1, 3), "good").unwrap();
        for name in ["broken", "odd", "no_onnx", "no_plugin"] {
            let error = client.infer(numbered(1, 3), name).unwrap_err();
            assert_eq!(error.code(), ErrorCode::FailedPrecondition, "{error}");
        }
        client.infer(numbered(1, 3), "no_such").unwrap_err();
        let told = status(&server);
        let broken = told["broken"].as_array().expect("a list");
        let names: Vec<&Value> = broken.iter().map(|of| &of["name"]).collect();
        let all = ["broken", "odd", "no_onnx", "no_plugin"];
        assert_eq!(names, all, "{told}");
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
            "; has it been built?",
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

/// Name, version and what is served on, of each model that does not open.
fn marks(server: &Server) -> Vec<(String, Option<String>, Option<String>)> {
    let told = status(server);
    let text = |of: &Value| of.as_str().map(str::to_owned);
    let broken = told["broken"].as_array().expect("a list").iter();
    let marks = broken.map(|of| {
        let name = text(&of["name"]).expect("a name");
        (name, text(&of["version"]), text(&of["served_on"]))
    });
    marks.collect()
}

fn mark(
    name: &str,
    version: &str,
    on: Option<&str>,
) -> Vec<(String, Option<String>, Option<String>)> {
    vec![(
        name.to_owned(),
        Some(version.to_owned()),
        on.map(str::to_owned),
    )]
}

/// What is known of one version says nothing of another, and what is not there is not broken.
#[test]
fn a_mark_is_of_a_version_and_goes_when_the_name_leads_elsewhere() {
    within(PATIENCE, || {
        let echo = || onnx::echo(DataType::Int64, &[2]);
        let junk = || b"this is no model".to_vec();
        let dir = models(&[
            ("vv/1/model.onnx", echo()),
            ("vv/2/model.onnx", junk()),
            ("ver/2/model.onnx", echo()),
            ("ver/10/model.onnx", echo()),
            ("bb.onnx", junk()),
            ("cc.onnx", junk()),
        ]);
        let server = Server::start(dir, &[]);
        let client = server.client();
        let path = |name: &str| server.models().join(name);
        let code = |name: &str| {
            client
                .infer(numbered(1, 3), name)
                .map_err(|e| e.code())
                .err()
        };
        let page = || run("mdm-server-status", &server, server.dir.path(), &[]).1;
        let broken = Some(ErrorCode::FailedPrecondition);

        assert_eq!(code("vv"), broken);
        assert_eq!(code("vv/1"), None);
        assert_eq!(code("vv"), broken);
        assert_eq!(marks(&server), mark("vv", "2", None));
        let (told, is_there) = (page(), "! vv, version 2, does not open: ");
        assert!(told.contains(is_there), "{told}");
        std::fs::remove_dir_all(path("vv/2")).unwrap();
        assert_eq!(code("vv"), None);
        assert_eq!(marks(&server), [], "vv leads to its version 1");

        // Two versions are served, and another comes, which does not open.
        assert_eq!((code("ver"), code("ver/2")), (None, None));
        std::fs::create_dir(path("ver/11")).unwrap();
        std::fs::write(path("ver/11/model.onnx"), junk()).unwrap();
        client.load("ver").unwrap_err();
        assert_eq!(code("ver"), None);
        assert_eq!(marks(&server), mark("ver", "11", Some("10")));
        let (told, on) = (
            page(),
            "! ver, version 11, does not open (version 10 is served on): ",
        );
        assert!(told.contains(on), "{told}");
        client.unload("ver").unwrap();
        assert_eq!(marks(&server), [], "it is wanted no more");
        assert_eq!(code("ver"), broken);
        assert_eq!(code("ver/10"), None);
        assert_eq!(marks(&server), mark("ver", "11", None));
        let told = page();
        assert!(!told.contains("served on"), "{told}");
        std::fs::remove_dir_all(path("ver/11")).unwrap();
        assert_eq!(code("ver"), None);
        assert_eq!(marks(&server), [], "ver leads to its version 10");

        // What was removed, or is wanted no more.
        assert_eq!((code("bb"), code("cc")), (broken, broken));
        assert_eq!(marks(&server).len(), 2);
        std::fs::remove_file(path("bb.onnx")).unwrap();
        assert_eq!(code("bb"), Some(ErrorCode::NotFound));
        let refused = client.unload("cc").unwrap_err();
        assert_eq!(refused.code(), ErrorCode::NotFound, "{refused}");
        assert_eq!(marks(&server), []);
    });
}

/// On a terminal, which Python makes.
#[cfg(unix)]
#[test]
fn watching_redraws_one_screen() {
    within(PATIENCE, || {
        let echo = onnx::echo(DataType::Int64, &[2]);
        let names: Vec<String> = (1..=5).map(|number| format!("echo{number}")).collect();
        let files: Vec<String> = names.iter().map(|name| format!("{name}.onnx")).collect();
        let files: Vec<_> = files.iter().map(|file| (&**file, echo.clone())).collect();
        let server = Server::start(models(&files), &["--num-worker=2"]);
        let client = server.client();
        for name in &names {
            client.infer(numbered(1, 3), name.as_str()).unwrap();
        }
        let status = command("mdm-server-status");
        let spawn = "import pty, sys; pty.spawn(sys.argv[1:])";
        let small = "stty rows 20 cols 120; exec \"$@\"";
        let mut child = Command::new("python3")
            .args(["-c", spawn, "sh", "-c", small, "sh"])
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
            // A small terminal has models and workers, not only counters and errors.
            for words in ["up ", "echo", " main ", "rows/s 10 s", "in the last"] {
                assert!(screen.contains(words), "{words:?} is not in {screen}");
            }
            assert!(
                screen.matches('\n').count() < 20,
                "it would scroll: {screen}"
            );
        }
    });
}

/// Without `--logger` nobody has named the file, and with rotation none has the name that was said.
#[test]
fn the_default_log_is_in_status_and_is_said_by_the_name_of_a_file_that_is_there() {
    within(PATIENCE, || {
        for rotation in ["never", "daily"] {
            let dir = models(&[]);
            let state = dir.path().join("state");
            let started = Started::new(
                command("mdm-server-start")
                    .current_dir(dir.path())
                    .args(["--port=0", "--port-out=0", "--run-script-dir=models"])
                    .args(["--logger-rotation", rotation])
                    .env("XDG_STATE_HOME", &state),
            );
            let port = started.numbers()[0];
            let client = Client::connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
            let settings = client.status().unwrap().settings;
            let log = state.join(format!("mdm/mdm-{port}.log"));
            assert_eq!(settings["logger"], log.display().to_string());
            let stopped = client.terminate(StopMode::Drain, PATIENCE, |_| {});
            stopped.expect("it stops");
            let (_, said) = started.end();
            let mut lines = said.lines();
            let line = lines.find_map(|line| line.strip_prefix("# the log is "));
            let line = line.unwrap_or_else(|| panic!("no log: {said}"));
            let (file, more) = line.split_once(", and").unwrap_or((line, ""));
            assert!(Path::new(file).is_file(), "{file} is not there");
            let daily = rotation == "daily";
            assert_eq!(more, if daily { " a new file each day" } else { "" });
        }
    });
}
