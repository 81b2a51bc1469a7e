//! What a load looks at where plugins are: their files, and those that they open through the server.

use std::fs;
use std::io::Write;

use mdm::client::Call;
use mdm::message::WorkerId;
use mdm::model::{Description, ModelSource};
use mdm::{DataType, ErrorCode, Params, Tensor};

use crate::common::{PATIENCE, eventually, onnx, within};
use crate::place::Place;
use crate::{build_sample, echo_plugin, refused, serve};

#[test]
fn a_changed_plugin_or_proxy_is_taken_up_by_the_next_load() {
    let place = Place::new(&[
        ("libecho.so", fs::read(echo_plugin()).unwrap()),
        ("m.onnx", onnx::echo(DataType::Int64, &[])),
        (
            "c.proxy",
            br#"{"mdm":1,"stages":[{"plugin":"libecho.so","entry":"echo"},{"onnx":"m.onnx"}]}"#
                .to_vec(),
        ),
        (
            "s.proxy",
            br#"{"mdm":1,"plugin":"libecho.so","entry":"shout","state":{"mark":"!"}}"#.to_vec(),
        ),
    ]);
    let at = |name: &str| place.folder.path().join(name);
    let shout = |model: &Description| {
        let mut opened = place.models.open(model.id, 0, WorkerId(0)).unwrap();
        let text = Tensor::from_strings("text", None, &["a"]).unwrap();
        let outputs = opened.infer(&text.into(), &Params::new()).unwrap();
        let rows = outputs.tensors[0].json_rows::<serde_json::Value>().unwrap();
        rows[0]["loud"].as_str().unwrap().to_owned()
    };
    let (chain, first) = (place.load("c"), place.load("s"));
    assert_eq!(
        (place.load("c").id, place.load("s").id),
        (chain.id, first.id)
    );
    // State: the proxy's own.
    let text = fs::read_to_string(at("s.proxy")).unwrap().replace('!', "?");
    fs::write(at("s.proxy"), text).unwrap();
    assert_eq!(place.find("s").unwrap().id, first.id);
    assert_eq!(shout(&first), "A!");
    let second = place.load("s");
    assert_ne!(second.id, first.id);
    assert_eq!(
        (shout(&first), shout(&second)),
        ("A!".to_owned(), "A?".to_owned())
    );
    // The library, written over in place; bytes behind its end do not matter to the loader.
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(at("libecho.so"))
        .unwrap();
    file.write_all(b"another").unwrap();
    drop(file);
    assert_eq!(place.find("c").unwrap().id, chain.id);
    assert_eq!(place.find("s").unwrap().id, second.id);
    assert_ne!(place.load("c").id, chain.id);
    let third = place.load("s");
    assert_ne!(third.id, second.id);
    assert_eq!(
        (shout(&second), shout(&third)),
        ("A?".to_owned(), "A?".to_owned())
    );
}

#[test]
fn a_file_that_a_plugin_opens_is_one_of_its_models() {
    let place = Place::new(&[
        ("net.onnx", table(1)),
        (
            "p.proxy",
            br#"{"mdm":1,"plugin":"libsample.so","state":{"do":"session","onnx":"net.onnx"}}"#
                .to_vec(),
        ),
    ]);
    build_sample(&place.folder.path().join("libsample.so"));
    let first = place.load("p");
    let run = |model: &Description, worker| {
        let mut opened = place.models.open(model.id, 0, WorkerId(worker)).unwrap();
        let x = Tensor::from_vec("x", vec![2], vec![1i32, 2]).unwrap();
        let outputs = opened.infer(&x.into(), &Params::new()).unwrap();
        outputs.tensors[0].to_vec::<i32>().unwrap()
    };
    assert_eq!(run(&first, 0), [1, 2]);
    // What it takes is known from now on, and counts.
    let net = table(1).len() as u64;
    assert!(place.models.size(first.id) > net);
    assert_eq!(place.load("p").id, first.id);
    let new = place.folder.path().join("new");
    fs::write(&new, table(10)).unwrap();
    fs::rename(&new, place.folder.path().join("net.onnx")).unwrap();
    // Another worker has the one that the first had.
    assert_eq!(run(&first, 1), [1, 2]);
    let second = place.load("p");
    assert_ne!(second.id, first.id);
    assert_eq!(
        (run(&first, 2), run(&second, 0)),
        (vec![1, 2], vec![10, 20])
    );
}

/// A plugin's session whose inputs and outputs all begin with 4 takes any number of rows only if its options say so.
#[test]
fn a_plugins_session_of_a_constant_batch_is_given_rows_if_its_options_say_batch() {
    let proxy = |more: &str| {
        let state = format!(r#"{{"do":"session","onnx":"net.onnx"{more}}}"#);
        format!(r#"{{"mdm":1,"plugin":"libsample.so","state":{state}}}"#).into_bytes()
    };
    let place = Place::new(&[
        ("net.onnx", onnx::fixed_batch(4)),
        ("plain.proxy", proxy("")),
        ("four.proxy", proxy(r#","batch":"4""#)),
        ("five.proxy", proxy(r#","batch":"5""#)),
    ]);
    build_sample(&place.folder.path().join("libsample.so"));
    let run = |name: &str, rows: usize| {
        let x = Tensor::from_vec("x", vec![rows, 8], vec![1f32; rows * 8]).unwrap();
        let outputs = place.infer(name, vec![x])?;
        Ok(outputs[0].shape().to_vec())
    };
    assert_eq!(run("plain", 4).unwrap(), [4, 4]);
    let words = ["[7, 8]", r#""options": {"batch": 4}"#, "plugin's session"];
    refused(run("plain", 7), ErrorCode::InvalidArgument, &words);
    assert_eq!(run("four", 7).unwrap(), [7, 4]);
    let description = place.find("five").unwrap();
    let Err(e) = place.models.open(description.id, 0, WorkerId(0)) else {
        panic!("it takes four")
    };
    assert!(e.message().contains("takes exactly 4 rows"), "{e}");
}

#[test]
fn a_plugins_session_takes_no_empty_dimension_either() {
    let place = Place::new(&[
        ("net.onnx", onnx::recurrent(onnx::Place::Top)),
        (
            "p.proxy",
            br#"{"mdm":1,"plugin":"libsample.so","state":{"do":"session","onnx":"net.onnx"}}"#
                .to_vec(),
        ),
    ]);
    build_sample(&place.folder.path().join("libsample.so"));
    let run = |shape: [usize; 3]| {
        let count = shape.iter().product();
        let x = Tensor::from_vec("x", shape.to_vec(), vec![1f32; count]).unwrap();
        place.infer("p", vec![x])
    };
    let words = ["\"x\" has shape [1, 0, 4]", "recurrent"];
    refused(run([1, 0, 4]), ErrorCode::InvalidArgument, &words);
    assert_eq!(run([1, 2, 4]).unwrap()[0].shape(), [1, 2, 2]);
}

/// "x" INT32 [N] -> "y" INT32 [N] and "z" FP32 [N,2], as the sample declares: x times a factor.
fn table(factor: i64) -> Vec<u8> {
    use onnx::parts::proto::{ElementType, TensorProto};
    use onnx::parts::{D, graph, int, integers, node, value};
    let n = D::Sym("N");
    let cast = |from: &str, to: &str, element: ElementType| {
        node("Cast", &[from], &[to], vec![int("to", element as i64)])
    };
    let weights: Vec<TensorProto> = vec![
        integers("factor", &[factor]),
        integers("axes", &[1]),
        integers("two", &[1, 2]),
    ];
    graph(
        vec![
            cast("x", "wide", ElementType::Int64),
            node("Mul", &["wide", "factor"], &["product"], vec![]),
            cast("product", "y", ElementType::Int32),
            cast("product", "real", ElementType::Float),
            node("Unsqueeze", &["real", "axes"], &["column"], vec![]),
            node("Tile", &["column", "two"], &["z"], vec![]),
        ],
        vec![value("x", ElementType::Int32, &[n])],
        vec![
            value("y", ElementType::Int32, &[n]),
            value("z", ElementType::Float, &[n, D::Fix(2)]),
        ],
        weights,
    )
}

#[test]
fn a_plugin_that_fails_on_its_sample_is_an_error_at_the_load() {
    within(PATIENCE, || {
        let proxy = |sample: &str| {
            format!(
                r#"{{"mdm":1,"warm_up":{{{sample}}},"stages":[{{"plugin":"libecho.so","entry":"echo"}},{{"name":"loud",
                   "plugin":"libecho.so","entry":"shout","state":{{"mark":"!"}}}}]}}"#
            )
        };
        let server = serve(
            &[
                ("good.proxy", &proxy(r#""text":["a","b"]"#)),
                ("bad.proxy", &proxy(r#""text":["a",""]"#)),
                ("number.proxy", &proxy(r#""text":[1]"#)),
                // Three legs with extra workers: the last is warmed with what the others made of the sample.
                (
                    "legs.proxy",
                    r#"{"mdm":1,"warm_up":{"text":[""]},"stages":[{"plugin":"libecho.so","entry":"echo"},
                        {"onnx":"upper.onnx"},{"plugin":"libecho.so","entry":"shout","state":{"mark":"!"}}]}"#,
                ),
            ],
            &[
                "--num-worker",
                "2",
                "--num-parallel-workers",
                "1",
                "--preload",
                "good",
            ],
        );
        let client = server.client();
        let words = ["\"bad\": warm_up: ", "stage \"loud\"", "nothing to shout"];
        refused(client.load("bad"), ErrorCode::FailedPrecondition, &words);
        let words = ["warm_up: ", "stage \"loud\"", "expected BYTES, got INT64"];
        refused(client.load("number"), ErrorCode::FailedPrecondition, &words);
        fs::write(server.models().join("upper.onnx"), onnx::upper_case()).unwrap();
        let words = [
            "\"legs\": warm_up: ",
            "libecho.so:shout",
            "nothing to shout",
        ];
        let refusal = client.load("legs");
        refused(refusal, ErrorCode::FailedPrecondition, &words);
        let names: Vec<String> = client
            .models()
            .unwrap()
            .into_iter()
            .map(|m| m.name)
            .collect();
        assert_eq!(names, ["good"]);
        assert!(client.infer(("text", &["a"]), "good").is_ok());
    });
}

/// The bug: a panic left a value for the thread's end, and so the library in memory, once for each load.
#[test]
fn a_plugin_that_has_panicked_leaves_memory_when_its_model_is_unloaded() {
    within(PATIENCE, || {
        let proxy = r#"{"mdm":1,"plugin":"libecho.so","entry":"faulty"}"#;
        let server = serve(&[("faulty.proxy", proxy)], &[]);
        let client = server.client();
        let call = || Call::model("faulty").param("do", "panic");
        let copies = || {
            let maps = std::fs::read_to_string(format!("/proc/{}/maps", server.pid())).unwrap();
            let code = maps.lines().filter(|line| line.contains(" r-xp "));
            code.filter(|line| line.contains("libecho.so")).count()
        };
        for _ in 0..4 {
            let why = client.infer(&["a"], call()).unwrap_err();
            assert!(why.message().contains("told to panic"), "{why}");
            assert!(client.infer(&["a"], "faulty").is_ok());
            client.unload("faulty").unwrap();
        }
        // The worker lets go of it a moment after the answer.
        eventually("no library left", || copies() == 0);
    });
}
