//! Workers share a model's weights: the memory of eight sessions against that of one. And it goes back to the system when
//! a model is unloaded. One measures this whole process, the other a server's. And mdm-infer holds little of a large file.
#![cfg(target_os = "linux")]

#[path = "common/mod.rs"]
mod common;

use common::onnx;
use common::within::{LIMIT, within};

use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use mdm::message::WorkerId;
use mdm::model::{Device, Engine, EngineLog, Lookup, ModelSource, StoreConfig};
use mdm::server::ModelFolder;
use mdm::{Batch, Params, Tensor};
use npyz::{WriteOptions, WriterBuilder};

/// One after the other: what one test makes would be measured by the other.
static ALONE: Mutex<()> = Mutex::new(());

/// The process's memory now and at its highest, in MB.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            / 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

#[test]
fn eight_workers_take_at_most_1_3_times_the_memory_of_one() {
    within(LIMIT, || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Many weights of a few megabytes are harder than one large one: malloc keeps such pieces.
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("m.onnx"), onnx::matmul_weights(100)).unwrap();
        let models = Arc::new(
            ModelFolder::new(
                Engine::load(None, EngineLog::Problems).unwrap(),
                StoreConfig {
                    run_script_dir: folder.path().to_owned(),
                    allow_paths: vec![],
                    devices: vec![Device::Cpu],
                    intra_op_threads: 1,
                    gpu_memory_fraction: 0.0,
                    extra_workers: false,
                    express_workers: 0,
                    max_model_bytes: None,
                },
            )
            .unwrap(),
        );
        let none = memory();
        let lookup = Lookup::of(Some("m"), &Params::new());
        let id = models.resolve(&lookup).unwrap().id;
        let described = memory();
        // Each worker opens and runs in its own thread, and stays until all have been measured.
        let (ready, is_ready) = mpsc::channel();
        let mut workers = Vec::new();
        let mut measured = Vec::new();
        for worker in 0..8 {
            let (stop, stopped) = mpsc::channel::<()>();
            let (models, ready) = (models.clone(), ready.clone());
            let thread = std::thread::spawn(move || {
                let mut model = models.open(id, 0, WorkerId(worker)).unwrap();
                let x = Tensor::from_vec("x", vec![64, 1024], vec![0.5f32; 64 * 1024]).unwrap();
                let outputs = model
                    .infer(&Batch { tensors: vec![x] }, &Params::new())
                    .unwrap();
                drop(outputs);
                ready.send(()).unwrap();
                // Ends with an error when the test drops the other end.
                let _ = stopped.recv();
            });
            is_ready.recv().unwrap();
            measured.push(memory());
            workers.push((stop, thread));
        }
        println!(
            "MB now and at most: none {none:?}, described {described:?}, workers {measured:?}"
        );
        for (stop, thread) in workers {
            drop(stop);
            thread.join().unwrap();
        }
        let (one, eight) = (measured[0].0, measured[7].0);
        assert!(
            eight * 10 <= one * 13,
            "8 workers hold {eight} MB, 1 holds {one} MB: {measured:?}"
        );
    })
}

/// A model of 100 MB on 4 workers: what loading and running it took is back after it was unloaded, but for a fifth.
#[test]
fn the_memory_of_an_unloaded_model_goes_back_to_the_system() {
    within(LIMIT, || {
        let files = [
            ("m.onnx", onnx::matmul_weights(100)),
            ("small.onnx", onnx::mlp()),
        ];
        let flags = [
            "--num-worker",
            "4",
            "--preload",
            "small",
            "--intra-op-threads",
            "1",
        ];
        let server = common::Server::start(common::models(&files), &flags);
        let client = server.client();
        let x = Tensor::from_vec("x", vec![64, 1024], vec![0.5f32; 64 * 1024]).unwrap();
        let empty = server.resident_bytes();
        for round in 0..3 {
            let before = server.resident_bytes();
            client.load("m").unwrap();
            for _ in 0..20 {
                client.infer(x.clone(), "m").unwrap();
            }
            let loaded = server.resident_bytes();
            client.unload("m").unwrap();
            // Taking down a session takes a while, which the answer does not wait for. Of some 200 MB malloc keeps 40 now and
            // then, once and not in each round.
            let mut after = loaded;
            common::eventually("the memory is back", || {
                after = server.resident_bytes();
                after.saturating_sub(before) * 3 <= loaded - empty
            });
            let mb = |bytes: u64| bytes >> 20;
            println!(
                "MB: {round}: before {}, loaded {}, after {}",
                mb(before),
                mb(loaded),
                mb(after)
            );
            // Of what malloc kept of the round before it needs no more.
            assert!(loaded - empty > 100 << 20, "it was loaded");
        }
    })
}

/// 256 MiB in and as much out, of which mdm-infer holds a few requests at a time.
#[test]
fn a_file_larger_than_its_memory_goes_through_mdm_infer() {
    const ROWS: u64 = 256 << 10;
    const ROW_BYTES: u64 = 256 * 4;
    const MOST_BYTES: u64 = 48 << 20;

    within(LIMIT, || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let echo = onnx::echo(mdm::DataType::Fp32, &[256]);
        let server = common::Server::start(common::models(&[("echo.onnx", echo)]), &[]);
        let (input, output) = (
            server.dir.path().join("in.npy"),
            server.dir.path().join("out.npy"),
        );
        // Zeros that take no room on the disk, and a last row of ones.
        let header = WriteOptions::new_header_only()
            .dtype(npyz::DType::Plain("<f4".parse().unwrap()))
            .shape(&[ROWS, 256])
            .writer(std::fs::File::create(&input).unwrap())
            .write_header_only();
        let mut file = header.unwrap();
        let start = file.stream_position().unwrap();
        let ones = 1f32.to_le_bytes().repeat(256);
        file.seek(SeekFrom::Start(start + (ROWS - 1) * ROW_BYTES))
            .unwrap();
        file.write_all(&ones).unwrap();

        let mut infer = common::command("mdm-infer")
            .args(["--model", "echo", "--port", &server.port.to_string()])
            .arg("--input")
            .arg(&input)
            .arg("--output")
            .arg(&output)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut peak = 0;
        let status = loop {
            peak = common::peak_bytes_unless_ended(infer.id()).unwrap_or(peak);
            if let Some(status) = infer.try_wait().unwrap() {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(status.success(), "{status}");
        println!("MB at most: {}", peak >> 20);
        assert!(peak > 0, "it ended before its memory was looked at");
        assert!(peak <= MOST_BYTES, "{} MB", peak >> 20);
        let mut file = std::fs::File::open(&output).unwrap();
        let read = npyz::NpyHeader::from_reader(&mut file).unwrap();
        assert_eq!(read.shape(), [ROWS, 256]);
        let start = file.stream_position().unwrap();
        assert_eq!(file.metadata().unwrap().len(), start + ROWS * ROW_BYTES);
        file.seek(SeekFrom::End(-(ROW_BYTES as i64))).unwrap();
        let mut last = Vec::new();
        file.read_to_end(&mut last).unwrap();
        assert_eq!(last, ones);
    })
}
