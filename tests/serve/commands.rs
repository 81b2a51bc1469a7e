//! `mdm-server-status` and `mdm-infer` against a real server.

use std::path::Path;
use std::process::Output;

use mdm::DataType;
use serde_json::{Value, json};

use crate::common::{PATIENCE, Server, command, models, onnx, within};
use crate::{numbered, settled};

pub fn run(
    name: &str,
    server: &Server,
    dir: &Path,
    flags: &[&str],
) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(name)
        .current_dir(dir)
        .args(["--port", &server.port.to_string()])
        .args(flags)
        .output()
        .expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn status_shows_what_the_server_is_and_does() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
            ("two.onnx", onnx::two_inputs_two_outputs()),
        ]);
        let server = Server::start(dir, &["--num-worker", "2", "--preload", "two"]);
        let client = server.client();
        client.infer(numbered(1, 100), "echo").unwrap();
        client.infer(numbered(1, 1), "no_such").unwrap_err();
        settled(&client);
        let here = server.dir.path();
        let (_, page, _) = run("mdm-server-status", &server, here, &[]);
        assert!(!page.contains("max_batch_size"), "{page}");
        let (code, page, said) = run("mdm-server-status", &server, here, &["--settings"]);
        assert_eq!((code, said.as_str()), (Some(0), ""));
        for word in [
            env!("CARGO_PKG_VERSION"),
            "max_batch_size",
            "1024",
            "cpu",
            "idle",
            "echo",
            "x INT64 [N,2]",
            "a FP32 [N,3], b INT64 [N,3]",
            "sum FP32 [N,3], difference INT64 [N,3]",
            "batched",
            "2 requests, 100 rows",
            "1 NOT_FOUND",
            "p99",
        ] {
            assert!(page.contains(word), "{word:?} is not in: {page}");
        }
        let flags = ["--json", "-ip=127.0.0.1"];
        let (code, line, said) = run("mdm-server-status", &server, here, &flags);
        assert_eq!(
            (code, said.as_str(), line.lines().count()),
            (Some(0), "", 1)
        );
        let status: Value = serde_json::from_str(&line).expect("JSON");
        for field in [
            "version",
            "uptime_s",
            "settings",
            "models",
            "workers",
            "queue",
            "totals",
            "latency_us",
        ] {
            assert!(status.get(field).is_some(), "{field} is not in: {line}");
        }
        let fields = |value: &Value, names: &[&str]| {
            let missing: Vec<&&str> = names
                .iter()
                .filter(|name| value.get(**name).is_none())
                .collect();
            assert!(missing.is_empty(), "{missing:?} of {value}");
        };
        fields(
            &status["models"][0],
            &["name", "version", "kind", "inputs", "outputs"],
        );
        fields(&status["queue"], &["requests", "rows", "bytes"]);
        fields(&status["totals"], &["requests", "rows", "errors"]);
        fields(&status["latency_us"], &["p50", "p90", "p99"]);
        assert_eq!(status["workers"].as_array().map(Vec::len), Some(2));
        for worker in status["workers"].as_array().unwrap() {
            fields(
                worker,
                &["id", "device", "state", "model", "chunks", "rows", "busy"],
            );
            assert_eq!(
                (&worker["device"], &worker["state"]),
                (&json!("cpu"), &json!("idle"))
            );
        }
        assert_eq!(status["settings"]["num_worker"], "2");
        assert_eq!(status["totals"]["rows"], 100);
        assert_eq!(status["totals"]["errors"]["NOT_FOUND"], 1);
        assert!(status["latency_us"]["p50"].as_u64().unwrap() > 0);
    });
}

pub fn npy(path: &Path) -> (Vec<u64>, npyz::NpyFile<std::io::Cursor<Vec<u8>>>) {
    let bytes = std::fs::read(path).expect("a file");
    let file = npyz::NpyFile::new(std::io::Cursor::new(bytes)).expect(".npy");
    (file.shape().to_vec(), file)
}

#[test]
fn infer_runs_each_kind_of_file_through_models() {
    within(PATIENCE, || {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/digits");
        let model = std::fs::read(digits.join("digits.onnx")).unwrap();
        let dir = models(&[
            ("digits.onnx", model),
            ("two.onnx", onnx::two_inputs_two_outputs()),
            ("words.onnx", onnx::echo(DataType::Bytes, &[])),
        ]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let here = server.dir.path();
        let infer = |flags: &[&str]| run("mdm-infer", &server, here, flags);
        let ran = |flags: &[&str]| {
            let (code, out, said) = infer(flags);
            assert_eq!(code, Some(0), "{flags:?}: {said}");
            out
        };

        // The digits, and all of their classes in one archive.
        let images = digits.join("images.npy").display().to_string();
        let digits_to =
            |output| ran(&["--model", "digits", "--input", &images, "--output", output]);
        let totals = digits_to("all.npz");
        assert!(totals.contains("1797"), "{totals}");
        digits_to("all.jsonl");
        let rows: Vec<Value> = (std::fs::read_to_string(here.join("all.jsonl"))
            .unwrap()
            .lines())
        .map(|line| serde_json::from_str(line).expect("a JSON row"))
        .collect();
        assert_eq!(rows.len(), 1797);
        let shown = ran(&["-model=digits", &format!("-input={images}")]);
        assert!(shown.contains("1797"), "{shown}");
        let mut archive = npyz::npz::NpzArchive::open(here.join("all.npz")).unwrap();
        let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
        for name in &names {
            let array = archive.by_name(name).unwrap().expect("the array");
            assert_eq!(array.shape()[0], 1797, "{name}");
            assert!(rows[0].get(name).is_some(), "{name} is not in {}", rows[0]);
        }
        assert!(!names.is_empty());

        // Named inputs; the outputs of one run are the inputs of the next.
        let a =
            mdm::Tensor::from_vec("a", vec![40, 3], (0..120).map(|i| i as f32).collect()).unwrap();
        let b = mdm::Tensor::from_vec("b", vec![40, 3], vec![1i64; 120]).unwrap();
        let expected = server.client().infer(vec![a, b], "two").unwrap();
        let mut writer = npyz::npz::NpzWriter::create(here.join("in.npz")).unwrap();
        {
            use npyz::WriterBuilder;
            let options = zip_options();
            let mut array = writer
                .array("a", options)
                .unwrap()
                .default_dtype()
                .shape(&[40, 3])
                .begin_nd()
                .unwrap();
            array.extend((0..120).map(|i| i as f32)).unwrap();
            array.finish().unwrap();
            let mut array = writer
                .array("b", zip_options())
                .unwrap()
                .default_dtype()
                .shape(&[40, 3])
                .begin_nd()
                .unwrap();
            array.extend(vec![1i64; 120]).unwrap();
            array.finish().unwrap();
        }
        drop(writer);
        ran(&["--model", "two", "--input", "in.npz", "--output", "out.npz"]);
        let mut archive = npyz::npz::NpzArchive::open(here.join("out.npz")).unwrap();
        let sum: Vec<f32> = archive.by_name("sum").unwrap().unwrap().into_vec().unwrap();
        assert_eq!(
            sum,
            expected.tensor("sum").unwrap().to_vec::<f32>().unwrap()
        );
        let difference: Vec<i64> = archive
            .by_name("difference")
            .unwrap()
            .unwrap()
            .into_vec()
            .unwrap();
        assert_eq!(
            difference,
            expected
                .tensor("difference")
                .unwrap()
                .to_vec::<i64>()
                .unwrap()
        );

        // Lines of text, there and back.
        std::fs::write(here.join("words.txt"), "one\n\nzwei ü\n日本\n").unwrap();
        ran(&[
            "--model",
            "words",
            "--input",
            "words.txt",
            "--output",
            "words.jsonl",
        ]);
        let lines: Vec<Value> = (std::fs::read_to_string(here.join("words.jsonl"))
            .unwrap()
            .lines())
        .map(|line| serde_json::from_str(line).expect("a JSON row"))
        .collect();
        let words = ["one", "", "zwei ü", "日本"];
        assert_eq!(lines, words.map(|word| json!({"y": word})));
        ran(&[
            "--model",
            "words",
            "--input",
            "words.txt",
            "--output",
            "words.npy",
        ]);
        assert_eq!(npy(&here.join("words.npy")).0, [4]);

        // What is wrong is one line that says what, and no output is left.
        std::fs::write(here.join("rows.jsonl"), "{\"a\":1}\n").unwrap();
        let wrong: [(&[&str], &[&str]); 5] = [
            (
                &["--model", "no_such", "--input", "words.txt"],
                &["\"no_such\""],
            ),
            (
                &["--model", "digits", "--input", "words.txt"],
                &["expected FP32, got BYTES"],
            ),
            (
                &["--model", "digits", "--input", "rows.jsonl"],
                &["rows.jsonl: line 1: input", "is missing"],
            ),
            (&["--model", "digits", "--input", "gone.npy"], &["gone.npy"]),
            (&["--input", "words.txt"], &["no model is named"]),
        ];
        for (flags, words) in wrong {
            let (code, _, said) = infer(&[flags, &["--output", "none.npz"]].concat());
            assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
            for word in words {
                assert!(said.contains(word), "{word:?} is not in: {said}");
            }
            assert!(!here.join("none.npz").exists());
        }
        let late = [
            "--model",
            "digits",
            "--input",
            &images,
            "--params",
            "{\"tag\":1}",
        ];
        ran(&[&late[..], &["--timeout-ms", "60000"]].concat());
    });
}

fn zip_options() -> npyz::zip::write::FileOptions {
    npyz::zip::write::FileOptions::default()
}
