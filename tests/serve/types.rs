//! Every datatype there and back, and every shape of a model.

use half::{bf16, f16};
use mdm::client::{Client, Inputs, JsonRows};
use mdm::tensor::Data;
use mdm::{DataType, ErrorCode, Tensor};

use crate::common::onnx::{self, echo, fixed_batch};
use crate::common::{PATIENCE, Server, models, within};
use crate::exact::{noise, run, session};
use crate::refused;

/// A tensor of any bits, but for BOOL, whose bytes are 0 or 1.
fn tensor(datatype: DataType, shape: &[usize]) -> Tensor {
    let size = datatype.size().expect("a size");
    let bytes = shape.iter().product::<usize>() * size;
    let mut data: Vec<u8> = noise(bytes).map(|n| n as u8).collect();
    if datatype == DataType::Bool {
        data.iter_mut().for_each(|byte| *byte &= 1);
    }
    let shape = shape.to_vec();
    Tensor::new("x", datatype, shape, Data::Fixed(data.into())).expect("a tensor")
}

/// What was sent comes back: datatype, shape and every bit.
fn comes_back(client: &Client, model: &str, sent: &Tensor) {
    let response = client.infer(sent.clone(), model).expect(model);
    let got = response.tensor("y").expect("y");
    assert_eq!(got.datatype(), sent.datatype(), "{model}");
    assert_eq!(got.shape(), sent.shape(), "{model}");
    assert!(got.data() == sent.data(), "{model}: other bytes");
}

#[test]
fn every_datatype_comes_back_as_it_went() {
    within(PATIENCE, || {
        let fixed: Vec<DataType> = DataType::ALL
            .into_iter()
            .filter(|datatype| datatype.size().is_some())
            .collect();
        assert_eq!(fixed.len(), 13);
        let mut files = Vec::new();
        for &datatype in &fixed {
            files.push((format!("{datatype}_flat.onnx"), echo(datatype, &[])));
            files.push((format!("{datatype}_deep.onnx"), echo(datatype, &[3, 1, 5])));
        }
        let files: Vec<(&str, Vec<u8>)> =
            files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        let server = Server::start(models(&files), &["--num-worker", "2"]);
        let client = server.client();
        for datatype in fixed {
            // One row, a chunk of a few, and several chunks.
            for rows in [1, 16, 333] {
                comes_back(
                    &client,
                    &format!("{datatype}_flat"),
                    &tensor(datatype, &[rows]),
                );
                let deep = tensor(datatype, &[rows, 3, 1, 5]);
                comes_back(&client, &format!("{datatype}_deep"), &deep);
            }
        }
        // Values that a conversion on the way would change.
        let r = client.infer(
            &[f16::NAN, f16::MIN_POSITIVE, f16::NEG_INFINITY],
            "FP16_flat",
        );
        let got = r.unwrap().array::<f16>("").unwrap();
        assert!(got[0].is_nan() && got[1] == f16::MIN_POSITIVE && got[2] == f16::NEG_INFINITY);
        let r = client
            .infer(&[bf16::MAX, bf16::EPSILON], "BF16_flat")
            .unwrap();
        let got = r.array::<bf16>("y").unwrap();
        assert_eq!(got.as_slice().unwrap(), [bf16::MAX, bf16::EPSILON]);
        let r = client.infer(&[u64::MAX, 1], "UINT64_flat").unwrap();
        assert_eq!(r.array::<u64>("y").unwrap()[0], u64::MAX);
        let r = client
            .infer(&[f64::MIN_POSITIVE / 2.0, -0.0], "FP64_flat")
            .unwrap();
        let got = r.array::<f64>("y").unwrap();
        assert!(got[0] == f64::MIN_POSITIVE / 2.0 && got[1].is_sign_negative());
        let r = client.infer(&[true, false, true], "BOOL_flat").unwrap();
        let got = r.array::<bool>("y").unwrap();
        assert_eq!(got.as_slice().unwrap(), [true, false, true]);
    });
}

#[test]
fn strings_come_back_empty_long_and_in_any_script() {
    within(PATIENCE, || {
        let dir = models(&[
            ("flat.onnx", echo(DataType::Bytes, &[])),
            ("pairs.onnx", echo(DataType::Bytes, &[2])),
            ("deep.onnx", echo(DataType::Bytes, &[2, 3])),
        ]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let client = server.client();
        let long = "å".repeat(500_000);
        let some = [
            "",
            "a",
            &long,
            "Ελληνικά",
            "",
            "日本語",
            "e\u{301}",
            "🦀🦀",
            "\u{feff}",
            "\n\r\t",
        ];
        let r = client.infer(&some, "flat").unwrap();
        assert_eq!(r.strings("y").unwrap(), some);
        let r = client.infer(&["", "", ""], "flat").unwrap();
        assert_eq!(r.strings("y").unwrap(), ["", "", ""]);
        let many: Vec<String> = (0..1200)
            .map(|i| "ü".repeat(i % 7) + &i.to_string())
            .collect();
        for (model, shape) in [
            ("flat", vec![1200]),
            ("pairs", vec![600, 2]),
            ("deep", vec![200, 2, 3]),
        ] {
            let sent = Tensor::from_strings("x", Some(shape), &many).unwrap();
            comes_back(&client, model, &sent);
        }
        // What strings of an ONNX model cannot be.
        let latin = Tensor::from_strings("x", None, &[&b"ok"[..], &b"\xe9t\xe9"[..]]).unwrap();
        refused(
            client.infer(latin, "flat"),
            ErrorCode::InvalidArgument,
            &["\"x\"", "element 1", "UTF-8"],
        );
        refused(
            client.infer(&["a\0b"], "flat"),
            ErrorCode::InvalidArgument,
            &["\"x\"", "element 0", "NUL"],
        );
        let rows = [serde_json::json!({"text": "a"})];
        refused(
            client.infer(JsonRows(&rows), "flat"),
            ErrorCode::InvalidArgument,
            &["\"x\"", "BYTES", "JSON"],
        );
    });
}

#[test]
fn models_of_every_shape_take_and_give_the_rows_that_their_shapes_say() {
    within(PATIENCE, || {
        let fixed = fixed_batch(8);
        let dir = models(&[
            ("fixed.onnx", fixed.clone()),
            ("fixed.proxy", onnx::rows_at_a_time("fixed.onnx", 8)),
            ("whole.onnx", onnx::no_batch()),
            ("two.onnx", onnx::two_inputs_two_outputs()),
            ("unnamed.onnx", onnx::dynamic_unnamed()),
            ("ranks.onnx", onnx::any_rank()),
            ("symbols.onnx", onnx::two_symbols()),
            ("through.onnx", onnx::pass_through()),
            ("3/7/model.onnx", onnx::dynamic_unnamed()),
        ]);
        let flags = ["--num-worker", "2", "--intra-op-threads", "1"];
        let server = Server::start(dir, &flags);
        let client = server.client();
        a_fixed_batch_takes_any_number_of_rows(&client, &fixed);
        no_batch_dimension_means_whole(&client);
        several_inputs_and_outputs(&client);

        let negated = |model: &str, shape: &[usize]| {
            let sent = Tensor::from_vec(
                "x",
                shape.to_vec(),
                (0..shape.iter().product())
                    .map(|i: usize| i as f32)
                    .collect(),
            );
            let response = client.infer(sent.unwrap(), model).expect(model);
            let got = response.only().unwrap();
            assert_eq!(got.shape(), shape, "{model}");
            let floats = got.to_vec::<f32>().unwrap();
            assert!(
                floats.iter().enumerate().all(|(i, f)| *f == -(i as f32)),
                "{model}"
            );
            response.parts().len()
        };
        // Dynamic without a name counts as a row, so it is split.
        assert!(negated("unnamed", &[500, 4]) > 1);
        assert_eq!(negated("3", &[2, 4]), 1);
        for shape in [&[2usize][..], &[300, 4], &[2, 1, 3, 1]] {
            assert_eq!(negated("ranks", shape), 1);
        }
        let kinds: Vec<(String, String)> = (client.models().unwrap().into_iter())
            .map(|m| (m.name, m.kind))
            .collect();
        for (name, kind) in [
            ("fixed", "fixed:8"),
            ("whole", "whole"),
            ("two", "batched"),
            ("unnamed", "batched"),
            ("ranks", "whole"),
        ] {
            assert!(
                kinds.contains(&(name.into(), kind.into())),
                "{name}: {kinds:?}"
            );
        }
        // Two requests bind the second symbol differently.
        for columns in [1, 3, 7] {
            let x = Tensor::from_vec("x", vec![40, columns], vec![3f32; 40 * columns]).unwrap();
            let mask = x.clone().renamed("mask");
            let r = client.infer(vec![mask, x], "symbols").unwrap();
            let y = r.array::<f32>("y").unwrap();
            assert!(y.shape() == [40, columns] && y.iter().all(|f| *f == 9.0));
        }
        // An output that is the input itself is still the client's after the request is gone.
        let x: Vec<f32> = (0..512 * 100).map(|i| i as f32).collect();
        let sent = Tensor::from_vec("x", vec![100, 512], x).unwrap();
        let r = client.infer(sent.clone(), "through").unwrap();
        assert!(r.tensor("x").unwrap().data() == sent.data());
        assert_eq!(r.array::<f32>("y").unwrap()[[99, 511]], -51199.0);
    });
}

fn a_fixed_batch_takes_any_number_of_rows(client: &Client, model: &[u8]) {
    let mut engine = session(model);
    for rows in [1usize, 7, 8, 9, 16, 20, 803] {
        let floats: Vec<f32> = noise(rows * 8).map(|n| (n % 1000) as f32).collect();
        let sent = Tensor::from_vec("x", vec![rows, 8], floats).unwrap();
        let response = client.infer(sent.clone(), "fixed").unwrap();
        let got = response.array::<f32>("y").unwrap();
        assert_eq!(got.shape(), [rows, 4]);
        // The engine itself, eight rows at a time, the last ones repeated.
        let mut expected = Vec::new();
        for start in (0..rows).step_by(8) {
            let some = (rows - start).min(8);
            let mut pieces = vec![sent.slice_rows(start, some)];
            pieces.resize(1 + 8 - some, sent.slice_rows(start + some - 1, 1));
            let eight = Tensor::concat(&pieces).unwrap();
            expected.extend_from_slice(&run::<f32>(&mut engine, &eight)[..some * 4]);
        }
        assert!(got.iter().eq(expected.iter()), "{rows} rows");
    }
    let wrong = Tensor::from_vec("x", vec![8, 7], vec![0f32; 56]).unwrap();
    refused(
        client.infer(wrong, "fixed"),
        ErrorCode::InvalidArgument,
        &["\"x\"", "[rows, 8]", "[8, 7]"],
    );
}

fn no_batch_dimension_means_whole(client: &Client) {
    // The inputs do not agree in dimension 0, and need not.
    let a = Tensor::from_vec("a", vec![3, 4], vec![1f32; 12]).unwrap();
    let b = Tensor::from_vec("b", vec![4, 5], (0..20).map(|i| i as f32).collect()).unwrap();
    let response = client.infer(vec![a.clone(), b.clone()], "whole").unwrap();
    let y = response.array::<f32>("y").unwrap();
    assert_eq!(y.shape(), [3, 5]);
    assert_eq!(y[[2, 4]], 4.0 + 9.0 + 14.0 + 19.0);
    let size = response.tensor("size").unwrap();
    assert_eq!(size.shape(), [0usize; 0]);
    assert_eq!(size.to_vec::<i64>().unwrap(), [15]);
    assert_eq!((response.rows(), response.parts().len()), (None, 1));
    let stream = client.infer_stream(vec![a.clone(), b], "whole");
    let mut stream = stream.unwrap();
    let parts: Vec<_> = stream.by_ref().map(Result::unwrap).collect();
    assert_eq!((parts.len(), parts[0].offset), (1, 0));
    assert_eq!(parts[0].outputs, response.parts()[0]);
    assert_eq!((stream.rows(), stream.stats().unwrap().chunks), (None, 1));
    refused(
        client.infer(vec![a.clone(), a.renamed("b")], "whole"),
        ErrorCode::InvalidArgument,
        &["\"b\"", "[4, 5]", "[3, 4]"],
    );
}

fn several_inputs_and_outputs(client: &Client) {
    let a = Tensor::from_vec("a", vec![200, 3], (0..600).map(|i| i as f32).collect()).unwrap();
    let b = Tensor::from_vec("b", vec![200, 3], (0..600i64).map(|i| i * 10).collect()).unwrap();
    for inputs in [
        Inputs::new().with("a", a.clone()).with("b", b.clone()),
        Inputs::new().with("b", b.clone()).with("a", a.clone()),
    ] {
        let response = client.infer(inputs, "two").unwrap();
        assert_eq!(
            response.outputs().collect::<Vec<_>>(),
            ["sum", "difference"]
        );
        assert!(response.parts().len() > 1);
        let sum = response.array::<f32>("sum").unwrap();
        let difference = response.array::<i64>("difference").unwrap();
        for i in 0..600 {
            assert_eq!(sum[[i / 3, i % 3]], 11.0 * i as f32);
            assert_eq!(difference[[i / 3, i % 3]], -9 * i as i64);
        }
    }
    // Names are optional for one input only.
    refused(
        client.infer(vec![a.renamed(""), b], "two"),
        ErrorCode::InvalidArgument,
        &["\"a\" is missing", "\"a\", \"b\""],
    );
}
