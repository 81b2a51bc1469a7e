//! `mdm-infer` against a real server: lines of JSON, models that are served whole, bounds, and what it leaves alone.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use mdm::DataType;
use serde_json::{Value, json};

use crate::commands::{npy, run};
use crate::common::{PATIENCE, Server, command, models, onnx, within};
use crate::numbered;

/// The inputs and outputs are whole tensors, one of them a scalar.
#[test]
fn infer_runs_models_that_are_served_whole() {
    within(PATIENCE, || {
        let dir = models(&[("whole.onnx", onnx::no_batch())]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let here = server.dir.path();
        let a = vec![vec![1.0; 4]; 3];
        let b: Vec<Vec<f64>> = (0..4)
            .map(|row| (0..5).map(|column| f64::from(row * 5 + column)).collect())
            .collect();
        let line = json!({"a": a, "b": b}).to_string();
        fs::write(here.join("in.jsonl"), format!("{line}\n")).unwrap();
        let infer = |flags: &[&str]| {
            let flags = [&["--model", "whole", "--input", "in.jsonl"], flags].concat();
            run("mdm-infer", &server, here, &flags)
        };
        let ran = |flags: &[&str]| {
            let (code, out, said) = infer(flags);
            assert_eq!(code, Some(0), "{flags:?}: {said}");
            out
        };
        let row: Vec<f64> = (0..5).map(|column| f64::from(30 + 4 * column)).collect();
        let y = vec![row; 3];
        let shown = ran(&[]);
        for words in ["y FP32 [3, 5]", "size INT64 []", "  0: 15\n", "1 request"] {
            assert!(shown.contains(words), "{words:?} is not in: {shown}");
        }
        ran(&["--output", "out.jsonl"]);
        let text = fs::read_to_string(here.join("out.jsonl")).unwrap();
        let out: Value = serde_json::from_str(&text).expect("one object");
        assert_eq!(out, json!({"y": y, "size": 15}));
        ran(&["--output", "out.npz"]);
        let mut archive = npyz::npz::NpzArchive::open(here.join("out.npz")).unwrap();
        let array = archive.by_name("y").unwrap().expect("y");
        assert_eq!(array.shape(), [3, 5]);
        assert_eq!(array.into_vec::<f32>().unwrap()[4], 46.0);
        let array = archive.by_name("size").unwrap().expect("size");
        assert_eq!(array.shape(), [0u64; 0]);
        assert_eq!(array.into_vec::<i64>().unwrap(), [15]);
        let (code, _, said) = infer(&["--output", "out.npy"]);
        assert_eq!(code, Some(1));
        assert!(said.contains("use .npz"), "{said}");
        // A second line would be a second request.
        fs::write(here.join("in.jsonl"), format!("{line}\n{line}\n")).unwrap();
        let (code, _, said) = infer(&[]);
        assert_eq!(code, Some(1));
        assert!(said.contains("in.jsonl: line 2"), "{said}");
    });
}

#[test]
fn infer_makes_tensors_of_json_lines() {
    within(PATIENCE, || {
        let dir = models(&[
            ("two.onnx", onnx::two_inputs_two_outputs()),
            ("echo.onnx", onnx::echo(DataType::Int64, &[2])),
            ("words.onnx", onnx::echo(DataType::Bytes, &[])),
            ("fixed.onnx", onnx::fixed_batch(4)),
            ("fixed.proxy", onnx::rows_at_a_time("fixed.onnx", 4)),
        ]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let here = server.dir.path();
        let infer = |model: &str, lines: &str| {
            fs::write(here.join("in.jsonl"), lines).unwrap();
            let flags = [
                "--model",
                model,
                "--input",
                "in.jsonl",
                "--output",
                "out.jsonl",
            ];
            let (code, _, said) = run("mdm-infer", &server, here, &flags);
            match code {
                Some(0) => {
                    let text = fs::read_to_string(here.join("out.jsonl")).unwrap();
                    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
                    Ok(lines.collect::<Vec<Value>>())
                }
                code => {
                    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
                    Err(said)
                }
            }
        };
        let lines = "{\"a\":[1,2,3],\"b\":[10,20,30]}\n\n{\"b\":[1,1,1],\"a\":[0.5,0,0]}\n";
        let out = infer("two", lines).unwrap();
        assert_eq!(out.len(), 2);
        assert_eq!(out[0]["sum"], json!([11.0, 22.0, 33.0]));
        assert_eq!(out[1]["sum"][0], json!(1.5));
        assert_eq!(
            infer("echo", "[1,2]\n{\"x\":[3,4]}\n").unwrap(),
            [json!({"y": [1, 2]}), json!({"y": [3, 4]})]
        );
        assert_eq!(
            infer("words", "\"one\"\n\"zwei ü\"\n").unwrap(),
            [json!({"y": "one"}), json!({"y": "zwei ü"})]
        );
        let row = json!([0, 1, 2, 3, 4, 5, 6, 7]).to_string();
        assert_eq!(
            infer("fixed", &format!("{row}\n").repeat(6)).unwrap().len(),
            6
        );
        for (model, lines, words) in [
            (
                "echo",
                "[1,2]\n[1]\n",
                "in.jsonl: line 2: input \"x\" has shape [1]",
            ),
            (
                "echo",
                "[1,2]\n[1,2.5]\n",
                "line 2: input \"x\": expected INT64, got 2.5",
            ),
            ("echo", "{\"z\":[1,2]}\n", "line 1: input \"x\" is missing"),
            (
                "two",
                "[1]\n",
                "line 1: expected an object with the model's inputs \"a\" and \"b\"",
            ),
            (
                "words",
                "\"a\"\n7\n",
                "line 2: input \"x\": expected BYTES, got 7",
            ),
        ] {
            let said = infer(model, lines).unwrap_err();
            assert!(said.contains(words), "{words:?} is not in: {said}");
        }
    });
}

/// A file of 4 MiB where the server takes 1 MiB at once, and holds as much of results.
#[test]
fn infer_keeps_to_the_servers_bounds_whatever_the_files_size() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", onnx::echo(DataType::Int64, &[128]))]);
        let flags = ["--max-request-bytes=1MiB", "--max-client-bytes=1MiB"];
        let server = Server::start(dir, &flags);
        let here = server.dir.path();
        let rows = 4096;
        let mut writer = npyz::npz::NpzWriter::create(here.join("in.npz")).unwrap();
        {
            use npyz::WriterBuilder;
            let mut array = writer
                .array("x", npyz::zip::write::FileOptions::default())
                .unwrap()
                .default_dtype()
                .shape(&[rows, 128])
                .begin_nd()
                .unwrap();
            array.extend(0..rows as i64 * 128).unwrap();
            array.finish().unwrap();
        }
        drop(writer);
        let flags = ["--model=echo", "--input=in.npz", "--output=out.npy"];
        let (code, _, said) = run("mdm-infer", &server, here, &flags);
        assert_eq!(code, Some(0), "{said}");
        let (shape, file) = npy(&here.join("out.npy"));
        assert_eq!(shape, [rows, 128]);
        assert!(
            file.into_vec::<i64>()
                .unwrap()
                .into_iter()
                .eq(0..rows as i64 * 128)
        );
    });
}

/// Where rows follow each other a file is read, sent and written in parts, which a user does not see.
#[test]
fn infer_runs_files_of_many_requests_in_row_order() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", onnx::echo(DataType::Int64, &[128])),
            ("words.onnx", onnx::echo(DataType::Bytes, &[])),
        ]);
        let flags = ["--max-request-bytes=256KiB", "--max-client-bytes=512KiB"];
        let server = Server::start(dir, &flags);
        let here = server.dir.path();
        let infer = |model: &str, input: &str, output: &str| {
            let flags = ["--model", model, "--input", input, "--output", output];
            let (code, out, said) = run("mdm-infer", &server, here, &flags);
            assert_eq!(code, Some(0), "{said}");
            out
        };
        let rows = 3000;
        let numbers: Vec<i64> = (0..rows * 128).collect();
        write_npy(&here.join("in.npy"), &[rows as u64, 128], &numbers);
        let out = infer("echo", "in.npy", "out.npy");
        assert!(
            out.contains("3000 rows in ") && out.contains(" writing"),
            "{out}"
        );
        let (shape, file) = npy(&here.join("out.npy"));
        assert_eq!(shape, [rows as u64, 128]);
        assert_eq!(file.into_vec::<i64>().unwrap(), numbers);

        // How many rows there are is known at the end.
        infer("echo", "in.npy", "rows.jsonl");
        let lines = fs::read_to_string(here.join("rows.jsonl")).unwrap();
        fs::write(here.join("in.jsonl"), lines.replace("\"y\":", "\"x\":")).unwrap();
        infer("echo", "in.jsonl", "again.npy");
        let (shape, file) = npy(&here.join("again.npy"));
        assert_eq!(shape, [rows as u64, 128]);
        assert_eq!(file.into_vec::<i64>().unwrap(), numbers);

        let texts: Vec<String> = (0..50_000).map(|i| format!("zeile ü {i}")).collect();
        fs::write(here.join("in.txt"), texts.join("\n")).unwrap();
        infer("words", "in.txt", "out.jsonl");
        let lines = fs::read_to_string(here.join("out.jsonl")).unwrap();
        let lines = lines.lines().map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["y"].as_str().unwrap().to_owned()
        });
        assert!(lines.eq(texts.iter().cloned()));
        infer("words", "in.txt", "words.npy");
        assert_eq!(npy(&here.join("words.npy")).0, [50_000]);
    });
}

fn write_npy<T: npyz::AutoSerialize>(path: &Path, shape: &[u64], elements: &[T]) {
    use npyz::WriterBuilder;
    let file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let mut array = npyz::WriteOptions::new()
        .default_dtype()
        .shape(shape)
        .writer(file)
        .begin_nd()
        .unwrap();
    array.extend(elements).unwrap();
    array.finish().unwrap();
}

/// `numpy.save` of what NumPy computes is float64, and most models take FP32.
#[test]
fn infer_casts_float64_where_it_is_asked_to() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", onnx::echo(DataType::Fp32, &[2])),
            ("ids.onnx", onnx::echo(DataType::Int64, &[2])),
        ]);
        let server = Server::start(dir, &[]);
        let here = server.dir.path();
        write_npy(
            &here.join("in.npy"),
            &[3, 2],
            &[0.5f64, 1.0, 2.0, 3.0, 4.0, 5.0],
        );
        let infer = |flags: &[&str]| {
            let flags = [&["--input=in.npy", "--output=out.jsonl"], flags].concat();
            let (code, _, said) = run("mdm-infer", &server, here, &flags);
            (code, said)
        };
        let (code, said) = infer(&["--model=echo"]);
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
        let start =
            "mdm-infer: INVALID_ARGUMENT: in.npy: input \"x\": expected FP32, got FP64; --cast";
        assert!(said.starts_with(start), "{said}");
        let (code, said) = infer(&["--model=echo", "--cast"]);
        assert_eq!(code, Some(0), "{said}");
        let out = fs::read_to_string(here.join("out.jsonl")).unwrap();
        assert_eq!(
            out,
            "{\"y\":[0.5,1.0]}\n{\"y\":[2.0,3.0]}\n{\"y\":[4.0,5.0]}\n"
        );
        // Half of one is no whole number.
        let (code, said) = infer(&["--model=ids", "--cast"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("in.npy: row 0: input \"x\": 0.5 cannot be INT64"),
            "{said}"
        );
    });
}

/// A model counts rows in what it is given; a user looks at lines.
#[test]
fn infer_names_the_line_that_a_model_blames() {
    within(PATIENCE, || {
        let dir = models(&[("words.onnx", onnx::echo(DataType::Bytes, &[]))]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let here = server.dir.path();
        let mut text = b"good\n".repeat(1999);
        text.extend(b"b\xffd\n");
        text.extend(b"good\n".repeat(1000));
        fs::write(here.join("in.txt"), text).unwrap();
        let flags = ["--model=words", "--input=in.txt", "--output=out.jsonl"];
        let (code, _, said) = run("mdm-infer", &server, here, &flags);
        assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
        let start = "mdm-infer: INVALID_ARGUMENT: in.txt: line 2000: ";
        assert!(said.starts_with(start) && said.contains("UTF-8"), "{said}");
        assert!(!here.join("out.jsonl").exists());
        // All others are written where that is asked for.
        let flags = [&flags[..], &["--on-bad-row=report"]].concat();
        let (code, out, said) = run("mdm-infer", &server, here, &flags);
        assert_eq!((code, said.lines().count()), (Some(4), 1), "{said}");
        let start = "mdm-infer: line 2000: INVALID_ARGUMENT: ";
        assert!(said.starts_with(start), "{said}");
        assert!(out.contains("1 row failed\n3000 rows in "), "{out}");
        let lines = fs::read_to_string(here.join("out.jsonl")).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        assert_eq!(lines.len(), 3000);
        assert_eq!(
            lines[1998..2001].concat(),
            "{\"y\":\"good\"}{\"y\":\"\"}{\"y\":\"good\"}"
        );
    });
}

#[test]
fn infer_does_not_overwrite_what_it_reads() {
    within(PATIENCE, || {
        let dir = models(&[("echo.onnx", onnx::echo(DataType::Int64, &[2]))]);
        let server = Server::start(dir, &[]);
        let here = server.dir.path();
        write_npy(&here.join("same.npy"), &[1, 2], &[1i64, 2]);
        std::os::unix::fs::symlink("same.npy", here.join("link.npy")).unwrap();
        let before = fs::read(here.join("same.npy")).unwrap();
        for output in ["same.npy", "./same.npy", "link.npy"] {
            let flags = ["--model=echo", "--input=same.npy", "--output", output];
            let (code, _, said) = run("mdm-infer", &server, here, &flags);
            assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
            assert!(said.contains("would be overwritten"), "{said}");
            assert_eq!(fs::read(here.join("same.npy")).unwrap(), before);
        }
        assert!(here.join("link.npy").is_symlink());
    });
}

/// Whoever runs rows does not load a model anew for everybody, under whatever name it is asked for.
#[test]
fn infer_leaves_what_is_served_as_it_is() {
    within(PATIENCE, || {
        let proxy = br#"{"mdm":1,"methods":{"predict":{"onnx":"m.onnx"}}}"#;
        let dir = models(&[
            ("m.onnx", onnx::echo(DataType::Int64, &[2])),
            ("by_method.proxy", proxy.to_vec()),
            ("versions/1/model.onnx", onnx::echo(DataType::Int64, &[2])),
            ("versions/2/model.onnx", onnx::echo(DataType::Fp32, &[3])),
        ]);
        let server = Server::start(dir, &[]);
        let here = server.dir.path();
        fs::write(here.join("in.jsonl"), "[1,2]\n").unwrap();
        let infer = |named: &[&str]| {
            let flags = [named, &["--input=in.jsonl", "--output=out.jsonl"]].concat();
            let (code, _, said) = run("mdm-infer", &server, here, &flags);
            assert_eq!(code, Some(0), "{named:?}: {said}");
            let text = fs::read_to_string(here.join("out.jsonl")).unwrap();
            assert_eq!(text, "{\"y\":[1,2]}\n", "{named:?}");
        };
        let client = server.client();
        client.infer(numbered(1, 1), "m").unwrap();
        // Another model lies there now, which nobody has asked the server to load.
        replace(&server.models().join("m.onnx"), &onnx::mlp());
        infer(&["--model=m"]);
        infer(&["--params={\"model_proxy_path\":\"m.onnx\"}"]);
        infer(&["--model=./m"]);
        let described = client.describe("m").unwrap();
        assert_eq!(
            (described.name.as_str(), &*described.kind),
            ("m", "batched")
        );
        assert_eq!(client.models().unwrap(), [described]);
        replace(
            &server.models().join("m.onnx"),
            &onnx::echo(DataType::Int64, &[2]),
        );

        infer(&["--model=versions/1"]);
        infer(&["--model=versions", "--params={\"model_version\":1}"]);
        infer(&["--model=by_method.predict"]);
        infer(&["--model=by_method"]);
        let error = client.describe("no_such").unwrap_err();
        assert!(error.message().contains("\"no_such\""), "{error}");
    });
}

fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(&new, path).unwrap();
}

/// A person who ends it in the middle finds no half of a file.
#[test]
fn infer_that_is_ended_by_a_signal_leaves_no_file() {
    within(PATIENCE, || {
        let server = Server::start(
            models(&[("echo.onnx", onnx::echo(DataType::Fp32, &[256]))]),
            &[],
        );
        let here = server.dir.path().join("work");
        fs::create_dir(&here).unwrap();
        let mut infer = command("mdm-infer");
        infer.args(["--model", "echo", "--server", &server.address()]);
        infer.args([
            "--input",
            "-",
            "--input-format",
            "jsonl",
            "--output",
            "out.jsonl",
        ]);
        let mut child = infer
            .current_dir(&here)
            .stdin(Stdio::piped())
            .spawn()
            .expect("it runs");
        // Rows without end, until it is gone.
        let mut rows = child.stdin.take().expect("standard input");
        let line = json!(vec![1.0; 256]).to_string() + "\n";
        let writer = thread::spawn(move || while rows.write_all(line.as_bytes()).is_ok() {});
        let names = || {
            fs::read_dir(&here)
                .unwrap()
                .flatten()
                .map(|file| file.file_name())
        };
        while names().next().is_none() {
            assert!(
                child.try_wait().unwrap().is_none(),
                "it has ended by itself"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let pid = child.id().to_string();
        let signal = Command::new("kill").args(["-INT", &pid]).status();
        assert!(signal.expect("kill runs").success());
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(2), "{status:?}");
        writer.join().unwrap();
        assert_eq!(names().collect::<Vec<_>>(), [""; 0]);
    });
}
