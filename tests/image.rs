//! The image example through the real server: bytes of pictures in, labels out.
#![allow(clippy::duplicate_mod)] // the tests' models and the ResNet-50 are made of the same parts of ONNX files

mod common;
#[path = "common/place.rs"]
mod place;

// The modules' own tests run here, too.
#[path = "../examples/image/digits.rs"]
mod digits;
#[path = "../examples/image/folder.rs"]
mod folder;
#[path = "../examples/image/pictures.rs"]
mod pictures;
#[path = "../examples/image/preprocess/tests.rs"]
mod preprocess;
#[path = "../examples/image/resnet50.rs"]
mod resnet50;
#[path = "../examples/image/stages.rs"]
mod stages;

use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use image_preprocess::{MEAN, Preprocess, STD};
use mdm::client::Client;
use mdm::plugin::{Context, LoadContext, Model};
use mdm::{ErrorCode, Params, Result, Tensor};
use serde_json::{Value, json};

use common::{Server, within};
use preprocess::{jpeg_bomb, png_bomb};

/// Photographs are made, decoded and classified without optimisation, on machines with other work.
const PATIENCE: Duration = Duration::from_secs(180);
const MEGABYTE: u64 = 1 << 20;

/// A picture and what it shows.
struct Shown {
    bytes: Vec<u8>,
    label: String,
}

/// Pictures of 60 digits that training has not seen; each third is a PNG.
fn held_out() -> &'static [Shown] {
    static PICTURES: OnceLock<Vec<Shown>> = OnceLock::new();
    PICTURES.get_or_init(|| {
        let digits = digits::held_out(60).expect("the digits");
        let picture = |(number, digit): (usize, &digits::Digit)| {
            let seed = digit.index as u64 | 11 << 32;
            let bytes = match number % 3 {
                0 => pictures::png(&digit.pixels, seed),
                _ => pictures::photograph(&digit.pixels, seed),
            };
            let label = digit.label.to_string();
            Shown { bytes, label }
        };
        digits.iter().enumerate().map(picture).collect()
    })
}

fn bytes_of(pictures: &[Shown]) -> Vec<Vec<u8>> {
    pictures.iter().map(|shown| shown.bytes.clone()).collect()
}

fn serve(flags: &[&str]) -> Server {
    let dir = common::models(&[]);
    let library = folder::built_library().expect("`cargo test` without --test builds it");
    folder::write_digits(&dir.path().join("models"), &library).expect("a folder");
    Server::start(dir, flags)
}

/// Labels and scores.
fn classify(client: &Client, model: &str, pictures: &[Vec<u8>]) -> Result<(Vec<String>, Vec<f32>)> {
    let rows = Tensor::from_strings("image", None, pictures)?;
    let response = client.infer(rows, model)?;
    let labels = response.strings("label")?.into_iter().map(str::to_owned);
    let scores = response.array::<f32>("score")?;
    Ok((labels.collect(), scores.into_iter().collect()))
}

/// What the same stage and net give in this process, without the chain, the plugin's library and the other stage.
fn expected() -> &'static [String] {
    static LABELS: OnceLock<Vec<String>> = OnceLock::new();
    LABELS.get_or_init(|| {
        let mut stage = Preprocess::new(32, MEAN, STD);
        let place = place::Place::new(&[("net.onnx", folder::DIGITS_CNN.to_vec())]);
        let label = |shown: &Shown| {
            let mut row = vec![0.0; stage.numbers()];
            stage.run(&shown.bytes, &mut row).expect("a picture");
            let row = Tensor::from_vec("image", vec![1, 3, 32, 32], row).expect("a row");
            let outputs = place.infer("net", vec![row]).expect("scores");
            let scores = outputs[0].to_vec::<f32>().expect("numbers");
            let best = (0..10).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
            best.expect("ten scores").to_string()
        };
        held_out().iter().map(label).collect()
    })
}

#[track_caller]
fn assert_accurate(labels: &[String]) {
    let shown = held_out().iter().map(|shown| &shown.label);
    let right = shown.zip(labels).filter(|(a, b)| a == b).count();
    let accuracy = right as f64 / labels.len() as f64;
    assert!(accuracy >= 0.95, "{right} of {}", labels.len());
}

#[test]
fn pictures_of_unseen_digits_get_their_labels_in_order() {
    within(PATIENCE, || {
        let server = serve(&["--num-worker", "2"]);
        let client = server.client();
        let pictures = bytes_of(held_out());
        let (labels, scores) = classify(&client, "digits.predict", &pictures).unwrap();
        assert_eq!(labels, expected());
        assert_accurate(&labels);
        assert!(scores.iter().all(|score| (0.1..=1.0).contains(score)));
        // The same model without its method's name, and the other way round.
        let (again, _) = classify(&client, "digits", &pictures).unwrap();
        assert_eq!(again, labels);
        let backwards: Vec<Vec<u8>> = pictures.iter().rev().cloned().collect();
        let (mut again, _) = classify(&client, "digits", &backwards).unwrap();
        again.reverse();
        assert_eq!(again, labels);
    });
}

#[test]
fn one_picture_at_a_time_gets_the_same_labels() {
    within(PATIENCE, || {
        let server = serve(&[]);
        let client = server.client();
        for (shown, label) in held_out().iter().zip(expected()).take(12) {
            let (labels, scores) =
                classify(&client, "digits", std::slice::from_ref(&shown.bytes)).unwrap();
            assert_eq!(labels, [label.as_str()]);
            assert_eq!(scores.len(), 1);
        }
    });
}

#[test]
fn extra_workers_for_the_stages_give_the_same_answers() {
    within(PATIENCE, || {
        let flags = ["--num-worker", "1", "--num-parallel-workers", "2"];
        let server = serve(&flags);
        let client = server.client();
        let pictures = bytes_of(held_out());
        for _ in 0..3 {
            let (labels, _) = classify(&client, "digits.predict", &pictures).unwrap();
            assert_eq!(labels, expected());
        }
        let mut bad = pictures.clone();
        bad[41] = b"no picture".to_vec();
        refused(&client, &bad, 41, "not a JPEG or PNG");
        let (labels, _) = classify(&client, "digits", &pictures[..1]).unwrap();
        assert_eq!(labels, expected()[..1]);
    });
}

/// The request is refused, for the reason and with the row's number in it.
#[track_caller]
fn refused(client: &Client, pictures: &[Vec<u8>], row: usize, why: &str) {
    let error = classify(client, "digits.predict", pictures).expect_err("a bad picture");
    assert_eq!(error.code(), ErrorCode::InvalidArgument, "{error}");
    let place = format!("row {row}:");
    for words in [place.as_str(), "preprocess", why] {
        assert!(
            error.message().contains(words),
            "{words:?} is not in: {error}"
        );
    }
}

#[test]
fn a_bad_picture_is_named_within_bounded_memory_and_the_next_request_works() {
    within(PATIENCE, || {
        let server = serve(&["--num-worker", "2"]);
        let client = server.client();
        // Enough for several chunks, of which the bad picture is in a later one.
        let good: Vec<Vec<u8>> = bytes_of(held_out()).into_iter().cycle().take(100).collect();
        let (labels, _) = classify(&client, "digits", &good).unwrap();
        let before = server.resident_bytes();
        let (photograph, png) = (&good[1], &good[0]);
        let huge = "30000 x 30000 pixels: at most";
        let bad: [(Vec<u8>, &str); 7] = [
            (Vec::new(), "the picture has 0 bytes"),
            (
                photograph[..photograph.len() / 2].to_vec(),
                "the picture is truncated: a JPEG",
            ),
            (
                png[..png.len() - 20].to_vec(),
                "the picture is truncated: a PNG",
            ),
            (b"seven".to_vec(), "not a JPEG or PNG"),
            ("七".repeat(1000).into_bytes(), "not a JPEG or PNG"),
            (png_bomb(30_000, 30_000), huge),
            (jpeg_bomb(30_000, 30_000), huge),
        ];
        for (number, (picture, why)) in bad.into_iter().enumerate() {
            let row = 31 + 11 * number;
            let mut pictures = good.clone();
            pictures[row] = picture.clone();
            refused(&client, &pictures, row, why);
            refused(&client, &[picture], 0, why);
            let (next, _) = classify(&client, "digits", &good[..7]).unwrap();
            assert_eq!(next, labels[..7]);
        }
        // 30,000 x 30,000 pixels would be 2.7 GB; and nothing of what was refused is kept.
        let peak = common::peak_bytes(server.pid());
        assert!(
            peak < before + 256 * MEGABYTE,
            "{} MB at most, {} MB before",
            peak / MEGABYTE,
            before / MEGABYTE
        );
        let after = server.resident_bytes();
        assert!(
            after < before + 64 * MEGABYTE,
            "{} MB after, {} MB before",
            after / MEGABYTE,
            before / MEGABYTE
        );
        println!(
            "before {} MB, at most {} MB, after {} MB",
            before / MEGABYTE,
            peak / MEGABYTE,
            after / MEGABYTE
        );
    });
}

#[test]
fn the_client_prints_the_accuracy_and_the_labels_of_files() {
    within(PATIENCE, || {
        let server = serve(&[]);
        let library = folder::built_library().unwrap();
        let program = library.with_file_name("image-client");
        let client = |arguments: &[&str]| {
            let output = Command::new(&program)
                .args(["--server", &server.address()])
                .args(arguments)
                .output()
                .expect("image-client, which `cargo test` without --test builds");
            let text = String::from_utf8(output.stdout).expect("text");
            (output.status.success(), text)
        };
        let (right, text) = client(&["--pictures", "10"]);
        assert!(right && text.contains("of 10 right: accuracy "), "{text}");
        let file = server.dir.path().join("a digit.png");
        std::fs::write(&file, &held_out()[0].bytes).unwrap();
        let broken = server.dir.path().join("broken.jpg");
        std::fs::write(&broken, b"").unwrap();
        let (right, text) = client(&[broken.to_str().unwrap(), file.to_str().unwrap()]);
        assert!(!right, "one of them is no picture");
        assert!(text.contains("the picture has 0 bytes"), "{text}");
        let label = format!("a digit.png: {} (", expected()[0]);
        assert!(text.contains(&label), "{text}");
    });
}

fn load<M: Model>(state: &Value) -> Result<M> {
    M::signature(state)?;
    M::load(state, &LoadContext::of("."))
}

#[test]
fn a_state_that_is_none_says_what_is_expected() {
    for (state, why) in [
        (json!({}), "missing field `size`"),
        (json!({"size": 0}), "\"size\" is 0, expected 1 to 1024"),
        (
            json!({"size": 100_000}),
            "\"size\" is 100000, expected 1 to 1024",
        ),
        (json!({"size": 32, "sise": 1}), "unknown field `sise`"),
        (
            json!({"size": 32, "std": [1, 0, 1]}),
            "expected numbers, \"std\" above 0",
        ),
    ] {
        let error = load::<stages::Preprocess>(&state)
            .err()
            .expect("a bad state");
        assert_eq!(error.code(), ErrorCode::FailedPrecondition);
        assert!(error.message().contains(why), "{error}");
    }
    for (state, why) in [
        (json!({"top": 0}), "\"top\" is 0, expected 1 to 1000"),
        (
            json!({"top": 3, "labels": ["a", "b"]}),
            "\"top\" is 3, expected 1 to 2",
        ),
        (json!({"label": []}), "unknown field `label`"),
    ] {
        let error = load::<stages::Postprocess>(&state)
            .err()
            .expect("a bad state");
        assert!(error.message().contains(why), "{error}");
    }
}

/// Labels and scores of two rows of scores.
fn labelled(state: Value, scores: [f32; 6]) -> Result<(Vec<String>, Tensor)> {
    let mut model: stages::Postprocess = load(&state)?;
    let batch = Tensor::from_slice("scores", vec![2, 3], &scores)?.into();
    let none = Params::new();
    let outputs = model.inference(&batch, &none, &Context::of(".", &none))?;
    let labels = outputs.tensor("label")?.strings()?;
    let labels = labels.into_iter().map(str::to_owned).collect();
    Ok((labels, outputs.tensor("score")?.clone()))
}

#[test]
fn scores_become_labels_and_probabilities() {
    // e^1 is twice e^(1 - ln 2), so the probabilities are 1/2, 1/4 and 1/4.
    let half = 1.0 - 2f32.ln();
    let scores = [half, 1.0, half, 1000.0, 0.0, -1000.0];
    let (labels, probabilities) = labelled(Value::Null, scores).unwrap();
    assert_eq!(labels, ["1", "0"]);
    assert_eq!(probabilities.shape(), [2]);
    let found = probabilities.to_vec::<f32>().unwrap();
    assert!(
        (found[0] - 0.5).abs() < 1e-6 && found[1] == 1.0,
        "{found:?}"
    );
    let state = json!({"labels": ["a", "b", "c"], "top": 2});
    let (labels, probabilities) = labelled(state, scores).unwrap();
    // Of equal ones the first comes first.
    assert_eq!(labels, ["b", "a", "a", "b"]);
    assert_eq!(probabilities.shape(), [2, 2]);
    let found = probabilities.to_vec::<f32>().unwrap();
    assert!(
        (found[1] - 0.25).abs() < 1e-6 && found[3] == 0.0,
        "{found:?}"
    );
}

#[test]
fn what_does_not_fit_the_labels_is_an_error() {
    let error = labelled(json!({"labels": ["a", "b"]}), [0.0; 6]).unwrap_err();
    assert!(
        error.message().contains("3 scores a row for 2 labels"),
        "{error}"
    );
    let scores = [0.0, 0.0, 0.0, 1.0, f32::NAN, 0.0];
    let error = labelled(Value::Null, scores).unwrap_err();
    assert!(error.message().contains("the score NaN"), "{error}");
    assert_eq!(error.rows(), Some(1..2));
}
