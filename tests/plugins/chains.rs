//! Stages and proxies: a chain in one worker, methods, options.

use mdm::model::BatchKind;
use mdm::{ErrorCode, Tensor};

use crate::common::{PATIENCE, onnx, within};
use crate::place::{Place, ramp};
use crate::{echo_plugin, refused, serve};

const PASS: &str = r#"{"plugin":"libecho.so","entry":"echo"}"#;

/// A folder of these files, the example's plugin and a few ONNX models.
fn place(proxies: &[(&str, String)]) -> Place {
    let mut files: Vec<(&str, Vec<u8>)> = proxies
        .iter()
        .map(|(name, text)| (*name, text.clone().into_bytes()))
        .collect();
    files.push(("libecho.so", std::fs::read(echo_plugin()).unwrap()));
    files.push(("mlp.onnx", onnx::mlp()));
    files.push(("fixed.onnx", onnx::fixed_batch(4)));
    files.push(("whole.onnx", onnx::no_batch()));
    Place::new(&files)
}

fn stages(stages: &[&str]) -> String {
    format!(r#"{{"mdm":1,"stages":[{}]}}"#, stages.join(","))
}

#[test]
fn a_chain_gives_what_its_model_gives() {
    let place = place(&[
        (
            "chain.proxy",
            stages(&[PASS, r#"{"onnx":"mlp.onnx"}"#, PASS]),
        ),
        (
            "fixed.proxy",
            stages(&[PASS, r#"{"onnx":"fixed.onnx","options":{"batch":4}}"#]),
        ),
        ("whole.proxy", stages(&[PASS, r#"{"onnx":"fixed.onnx"}"#])),
    ]);
    let plain = place.find("mlp").unwrap();
    let rows = ramp(&plain.inputs[0].name, &[5, plain_width(&plain)]);
    let expected = place.infer("mlp", vec![rows.clone()]).unwrap();
    let chain = place.find("chain").unwrap();
    assert_eq!(chain.kind, BatchKind::Batched);
    assert_eq!(place.infer("chain", vec![rows]).unwrap(), expected);
    assert_eq!(place.find("fixed").unwrap().kind, BatchKind::Fixed(4));
    let (_, mut fixed) = place.open("fixed");
    let x = ramp("x", &[7, 8]);
    let outputs = fixed.infer(&x.into(), &mdm::Params::new()).unwrap();
    assert_eq!(outputs.rows().unwrap(), 7);
    assert_eq!(place.find("whole").unwrap().kind, BatchKind::Whole);
}

fn plain_width(model: &mdm::model::Description) -> usize {
    match model.inputs[0].shape.last() {
        Some(mdm::model::Dim::Fixed(width)) => *width,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_goes_wrong_in_a_stage_names_it() {
    let named = |name: &str, rest: &str| format!(r#"{{"name":"{name}",{rest}}}"#);
    let place = place(&[
        (
            "loses.proxy",
            stages(&[
                PASS,
                &named("last", r#""plugin":"libecho.so","entry":"faulty""#),
            ]),
        ),
        (
            "apart.proxy",
            stages(&[
                &named(
                    "text",
                    r#""plugin":"libecho.so","entry":"shout","state":{"mark":""}"#,
                ),
                &named("net", r#""onnx":"mlp.onnx""#),
            ]),
        ),
        (
            "gone.proxy",
            stages(&[PASS, &named("net", r#""onnx":"gone.onnx""#)]),
        ),
    ]);
    let (_, mut loses) = place.open("loses");
    let params = crate::place::params(serde_json::json!({"do": "lose a row"}));
    let e = loses
        .infer(&ramp("x", &[3, 1]).into(), &params)
        .unwrap_err();
    assert!(e.message().contains("stage \"last\": plugin"), "{e}");
    assert!(e.message().contains("shape [2] for 3 rows"), "{e}");
    assert_eq!(e.rows(), None, "whose rows they are nobody knows");
    let e = place.find("apart").unwrap_err();
    assert_eq!(e.code(), ErrorCode::FailedPrecondition);
    assert!(
        e.message().contains("stage \"net\" behind stage \"text\""),
        "{e}"
    );
    let e = place.find("gone").unwrap_err();
    assert!(
        e.message().contains("stage \"net\": onnx \"gone.onnx\""),
        "{e}"
    );
}

#[test]
fn a_proxy_has_options_and_methods() {
    let place = place(&[
        (
            "four.proxy",
            r#"{"mdm":1,"onnx":"mlp.onnx","options":{"batch":4,"intra_op_threads":1,"graph_optimization":"none"}}"#
                .to_owned(),
        ),
        (
            "wrong.proxy",
            r#"{"mdm":1,"onnx":"fixed.onnx","options":{"batch":3}}"#.to_owned(),
        ),
        (
            "both.proxy",
            format!(r#"{{"mdm":1,"methods":{{"predict":{{"onnx":"mlp.onnx"}},"pass":{{"stages":[{PASS}]}}}}}}"#),
        ),
    ]);
    let plain = place.find("mlp").unwrap();
    let rows = ramp(&plain.inputs[0].name, &[6, plain_width(&plain)]);
    let expected = place.infer("mlp", vec![rows.clone()]).unwrap();
    assert_eq!(place.find("four").unwrap().kind, BatchKind::Fixed(4));
    let four = place.infer("four", vec![rows.clone()]).unwrap();
    for (one, other) in four.iter().zip(&expected) {
        let (one, other) = (one.to_vec::<f32>().unwrap(), other.to_vec::<f32>().unwrap());
        assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-4));
    }
    let e = place.find("wrong").unwrap_err();
    assert!(e.message().contains("takes exactly 4 rows"), "{e}");
    assert_eq!(place.infer("both", vec![rows.clone()]).unwrap(), expected);
    assert_eq!(
        place.infer("both.predict", vec![rows.clone()]).unwrap(),
        expected
    );
    assert_eq!(
        place.infer("both.pass", vec![rows.clone()]).unwrap(),
        vec![rows]
    );
    let e = place.find("both.other").unwrap_err();
    assert_eq!(e.code(), ErrorCode::NotFound);
    assert!(e.message().contains("\"pass\", \"predict\""), "{e}");
    assert_eq!(
        place.find("mlp.other").unwrap_err().code(),
        ErrorCode::NotFound
    );
}

#[test]
fn a_chain_serves_rows_in_order_from_several_workers() {
    within(PATIENCE, || {
        let shout = r#"{"plugin":"libecho.so","entry":"shout","state":{"mark":"?"}}"#;
        let server = serve(
            &[
                ("chain.proxy", &stages(&[PASS, shout, PASS])),
                (
                    "whole.proxy",
                    &stages(&[PASS]).replace("\"stages\"", "\"rows\":\"whole\",\"stages\""),
                ),
            ],
            &["--num-worker", "3"],
        );
        let client = server.client();
        let texts: Vec<String> = (0..3_000).map(|i| format!("row {i}")).collect();
        let response = client.infer(("text", &texts), "chain").unwrap();
        let rows: Vec<serde_json::Value> = response.json_rows("shouted").unwrap();
        assert_eq!(rows[2_999]["loud"], "ROW 2999?");
        assert!(
            rows.iter()
                .zip(&texts)
                .all(|(row, text)| row["text"] == **text)
        );
        let mut bad = texts.clone();
        bad[1_234].clear();
        let refusal = client.infer(("text", &bad), "chain");
        refused(
            refusal,
            ErrorCode::InvalidArgument,
            &["row 1234: ", "stage \"libecho.so:shout\""],
        );
        // Whole: tensors need not agree in their first dimension.
        let a = Tensor::from_slice("a", vec![2], &[1i32, 2]).unwrap();
        let b = Tensor::from_slice("b", vec![3], &[1i32, 2, 3]).unwrap();
        let answer = client.infer(vec![a, b.clone()], "whole").unwrap();
        assert_eq!(answer.tensor("b").unwrap(), b);
    });
}
