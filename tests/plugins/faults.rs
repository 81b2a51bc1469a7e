//! What goes wrong inside a model, in the server's log: once for many, with what an operator needs to find it.

use std::collections::BTreeMap;

use mdm::client::Call;
use mdm::{ErrorCode, Params};
use serde_json::json;

use crate::common::{PATIENCE, Server, command, eventually, onnx, within};
use crate::{folder, refused};

/// The version of the example that panics when it is told to.
const FAULTY: &[u8] = br#"{"mdm":1,"plugin":"../../libecho.so","entry":"faulty"}"#;

/// `key="value"` and `key=7` of the lines of a log that have these words in them.
fn fields(log: &str, words: &str) -> Vec<BTreeMap<String, String>> {
    let lines = log.lines().filter(|line| line.contains(words));
    let of_line = |line: &str| {
        let keys = ["model", "version", "place", "request_id", "count"];
        let field = |key: &&str| {
            let rest = line.split(&format!(" {key}=")).nth(1)?;
            let value = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next()?,
                None => rest.split(' ').next()?,
            };
            Some(((*key).to_owned(), value.to_owned()))
        };
        keys.iter().filter_map(field).collect()
    };
    lines.map(of_line).collect()
}

#[test]
fn panics_of_a_model_are_in_the_log_once_for_many() {
    within(PATIENCE, || {
        let files = [
            ("v/1/model.onnx", onnx::mlp()),
            ("v/3/model.proxy", FAULTY.to_vec()),
        ];
        let mut server = Server::start(folder(&files), &[]);
        let client = server.client();
        let panics = || {
            let params = json!({ "do": "panic" });
            let params: Params = params.as_object().unwrap().clone();
            client.infer(&[1i32, 2], Call::model("v").params(params))
        };
        const PANICS: u64 = 40;
        for _ in 0..PANICS {
            // An error of a versioned model says which version it was.
            let words = ["model \"v\", version 3: ", "the model panicked: told to"];
            refused(panics(), ErrorCode::Internal, &words);
        }
        eventually("the first is a line at once", || {
            !fields(&server.log(), "a model panicked").is_empty()
        });
        drop(client);
        server.signal("TERM");
        server.wait();
        let lines = fields(&server.log(), "a model panicked");
        let counts = lines
            .iter()
            .map(|line| line["count"].parse::<u64>().unwrap());
        assert_eq!(counts.sum::<u64>(), PANICS, "{lines:?}");
        assert!(lines.len() <= 4, "{lines:?}");
        for line in &lines {
            assert_eq!((&*line["model"], &*line["version"]), ("v", "3"), "{line:?}");
            assert!(
                line["place"].contains("worker 0") && line["place"].contains(".rs:"),
                "{line:?}"
            );
            assert!(line["request_id"].parse::<u64>().is_ok(), "{line:?}");
        }
    });
}

#[test]
fn an_internal_error_is_in_the_log() {
    within(PATIENCE, || {
        let mut server = Server::start(folder(&[("table.onnx", onnx::failing_at_run())]), &[]);
        refused(
            server.client().infer(&[3i64, 99], "table"),
            ErrorCode::Internal,
            &["\"table\" failed"],
        );
        eventually("the log has it", || {
            let lines = fields(&server.log(), "a model failed");
            lines
                .first()
                .is_some_and(|line| line["model"] == "table" && !line["request_id"].is_empty())
        });
        // What a client did wrong is not the server's to log.
        refused(
            server.client().infer(&[3i32], "table"),
            ErrorCode::InvalidArgument,
            &["expected INT64"],
        );
        // The log is written a moment later, and whole when the server has ended.
        server.signal("TERM");
        server.wait();
        let log = server.log();
        assert!(log.contains("stopped"), "{log}");
        assert!(!log.contains("expected INT64"), "{log}");
    });
}

#[test]
fn an_error_of_a_versioned_model_says_which_version() {
    within(PATIENCE, || {
        let files = [
            ("ver/1/model.onnx", onnx::mlp()),
            ("ver/2/model.onnx", onnx::failing_at_run()),
            ("ver/10/model.onnx", b"noise".to_vec()),
            ("odd/4/model.proxy", br#"{"mdm":1,"onx":"m"}"#.to_vec()),
            ("plain.onnx", onnx::mlp()),
        ];
        let server = Server::start(folder(&files), &[]);
        let client = server.client();
        let wrong = [1f64, 2.0];
        for (name, version) in [("ver/1", 1), ("ver/2", 2)] {
            let words = format!("model \"ver\", version {version}: input");
            refused(
                client.infer(&wrong, name),
                ErrorCode::InvalidArgument,
                &[&words],
            );
        }
        refused(
            client.infer(&[99i64], "ver/2"),
            ErrorCode::Internal,
            &["model \"ver\", version 2"],
        );
        refused(
            client.infer(&wrong, "ver"),
            ErrorCode::FailedPrecondition,
            &["model \"ver\", version 10"],
        );
        refused(
            client.infer(&wrong, "odd"),
            ErrorCode::FailedPrecondition,
            &["model \"odd\", version 4: \"model.proxy\"", "\"onx\""],
        );
        let error = client.infer(&wrong, "plain").unwrap_err();
        assert!(!error.message().contains("version"), "{error}");
        // However they were asked for, both are versions of one model.
        let models = client.models().unwrap().into_iter();
        let mut shown: Vec<String> = models
            .map(|m| format!("{} {}", m.name, m.version))
            .collect();
        shown.sort();
        assert_eq!(shown, ["plain 1", "ver 1", "ver 2"]);
        eventually("its run is booked", || {
            let workers = client.status().unwrap().workers;
            workers[0].model.as_deref() == Some("ver")
        });
    });
}

#[test]
fn a_reload_says_whether_it_has_changed_anything() {
    within(PATIENCE, || {
        let server = Server::start(folder(&[("m.onnx", onnx::mlp())]), &[]);
        let port = server.port.to_string();
        let reload = || {
            let output = command("mdm-model")
                .args(["reload", "m", "--port", &port, "--ip", "127.0.0.1"])
                .output()
                .unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert_eq!(reload(), "loaded m, version 1 (batched)\n");
        assert_eq!(reload(), "unchanged: m, version 1 (batched)\n");
        let new = server.models().join("new");
        std::fs::write(&new, onnx::dynamic_unnamed()).unwrap();
        std::fs::rename(&new, server.models().join("m.onnx")).unwrap();
        assert_eq!(reload(), "loaded anew m, version 1 (batched)\n");
        assert_eq!(reload(), "unchanged: m, version 1 (batched)\n");
    });
}

/// `MDM_NUM_WORKERS=3` started one worker, and nothing said why.
#[test]
fn a_variable_that_no_command_reads_is_said() {
    within(PATIENCE, || {
        let dir = folder(&[("m.onnx", onnx::mlp())]);
        let run = |name: &str, variables: &[(&str, &str)]| {
            let mut command = command(name);
            match name {
                "mdm-model" => command.arg("list").arg(dir.path().join("models")),
                "mdm-infer" => command.args([
                    "--input", "gone.npy", "--output", "gone.npz", "--model", "m",
                ]),
                "mdm-bench" => command.args(["--model", "m", "--rows", "1", "--port", "1"]),
                "mdm-server-start" => {
                    command.args(["--run-script-dir", "models", "--port=0", "--port-out=0"])
                }
                _ => command.args(["--port", "1"]),
            };
            command.envs(variables.iter().copied());
            let output = command.current_dir(dir.path()).output().unwrap();
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.code(), err)
        };
        for name in [
            "mdm-server-start",
            "mdm-server-status",
            "mdm-server-terminate",
            "mdm-model",
            "mdm-infer",
            "mdm-bench",
        ] {
            let (code, err) = run(name, &[("MDM_NUM_WORKERS", "3")]);
            assert_eq!(code, Some(2), "{name}: {err}");
            let said = format!(
                "{name}: error: MDM_NUM_WORKERS in the environment is read by no command: did you mean \
                 MDM_NUM_WORKER, which is --num-worker?\n"
            );
            assert_eq!(err, said);
        }
        let others = [("MDM_WEATHER", "wet"), ("MDM_ANYTHING_ELSE", "1")];
        let (code, err) = run("mdm-model", &others);
        assert_eq!(code, Some(0), "{err}");
        let said = "mdm-model: warning: MDM_ANYTHING_ELSE, MDM_WEATHER in the environment: read by no command\n";
        assert_eq!(err, said);
        let known = [
            ("MDM_LOG", "info"),
            ("MDM_NUM_WORKER", "3"),
            ("MDM_SERVICE_HOST", "10.0.0.1"),
            ("MDM_PORT_5555_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(run("mdm-model", &known), (Some(0), String::new()));
        // It is not the port that is asked.
        let (code, err) = run("mdm-model", &[("MDM_PORT", "tcp://10.0.0.1:5555")]);
        assert_eq!(code, Some(0), "{err}");
        assert!(
            err.starts_with("mdm-model: warning: MDM_PORT=tcp://10.0.0.1:5555 is not read"),
            "{err}"
        );
    });
}
