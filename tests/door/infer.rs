//! `POST …/infer`: what comes back is what the ZeroMQ client gets, however it travels.

use mdm::{DataType, Tensor};
use serde_json::{Value, json};

use crate::common::{Server, within};
use crate::http::Http;
use crate::{LIMIT, server};

/// Rows for the model "mlp", which no two rows have alike.
pub fn rows(count: usize) -> Vec<f32> {
    (0..count * 64).map(|i| (i as f32 * 0.37).sin()).collect()
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// What the ZeroMQ client gets for them.
pub fn expected(server: &Server, values: &[f32]) -> Vec<f32> {
    let rows = Tensor::from_slice("x", vec![values.len() / 64, 64], values).unwrap();
    let answer = server.client().infer(rows, "mlp").expect("a result");
    answer.tensor("y").unwrap().to_vec().unwrap()
}

/// Numbers of JSON as FP32, bit for bit.
fn floats(data: &Value) -> Vec<f32> {
    let read = data.as_array().expect("numbers").iter();
    read.map(|n| n.to_string().parse().expect("a number"))
        .collect()
}

#[test]
fn json_and_binary_answers_are_those_of_the_zeromq_client_bit_for_bit() {
    within(LIMIT, || {
        let server = server(&["--num-worker", "2", "--max-batch-size", "64"]);
        let mut http = Http::to(&server);
        for count in [1, 3, 700] {
            let values = rows(count);
            let expected = expected(&server, &values);
            let input = json!({"name": "x", "datatype": "FP32", "shape": [count, 64]});
            // Flat, and nested as the shape is.
            let nested: Vec<&[f32]> = values.chunks(64).collect();
            for data in [json!(values), json!(nested)] {
                let mut input = input.clone();
                input["data"] = data;
                let answer = http.post(
                    "/v2/models/mlp/infer",
                    &json!({"id": "a b", "inputs": [input]}),
                );
                assert_eq!(answer.status, 200, "{answer:?}");
                assert_eq!(answer.header("content-type"), Some("application/json"));
                let read = answer.json();
                assert_eq!(
                    (&read["id"], &read["model_name"]),
                    (&json!("a b"), &json!("mlp"))
                );
                let output = &read["outputs"][0];
                assert_eq!(output["shape"], json!([count, 10]));
                assert_eq!(
                    (&output["name"], &output["datatype"]),
                    (&json!("y"), &json!("FP32"))
                );
                assert_eq!(floats(&output["data"]), expected);
            }
            let mut input = input.clone();
            input["parameters"] = json!({"binary_data_size": values.len() * 4});
            for wanted in [
                json!({"inputs": [input], "parameters": {"binary_data_output": true}}),
                json!({"inputs": [input], "outputs": [{"name": "y", "parameters": {"binary_data": true}}]}),
            ] {
                let answer = http.post_binary("/v2/models/mlp/infer", &wanted, &bytes(&values));
                assert_eq!(answer.status, 200, "{answer:?}");
                let (read, behind) = answer.parts();
                let output = &read["outputs"][0];
                assert_eq!(
                    output["parameters"],
                    json!({"binary_data_size": expected.len() * 4})
                );
                assert_eq!(output["shape"], json!([count, 10]));
                assert_eq!(behind, bytes(&expected));
            }
        }
    });
}

#[test]
fn strings_and_two_outputs_travel_both_ways() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let input = json!({"name": "x", "datatype": "BYTES", "shape": [2], "data": ["a\"b", "ü"]});
        let answer = http.post("/v2/models/upper/infer", &json!({"inputs": [input]}));
        assert_eq!(answer.json()["outputs"][0]["data"], json!(["A\"B", "ü"]));
        let input = json!({
            "name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6},
        });
        let wanted = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
        let answer = http.post_binary("/v2/models/upper/infer", &wanted, b"\x02\0\0\0ab");
        assert_eq!(answer.parts().1, b"\x02\0\0\0AB");

        let inputs = json!([
            {"name": "b", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]},
            {"name": "a", "datatype": "FP32", "shape": [1, 3], "data": [[10, 20, 30]]},
        ]);
        let outputs = json!([
            {"name": "difference", "parameters": {"binary_data": true}}, {"name": "sum"},
        ]);
        let answer = http.post(
            "/v2/models/two/infer",
            &json!({"inputs": inputs, "outputs": outputs}),
        );
        let (read, behind) = answer.parts();
        let names = [&read["outputs"][0]["name"], &read["outputs"][1]["name"]];
        assert_eq!(names, ["difference", "sum"]);
        assert_eq!(floats(&read["outputs"][1]["data"]), [11., 22., 33.]);
        let difference = Tensor::new(
            "d",
            DataType::Int64,
            vec![3],
            mdm::tensor::Data::Fixed(behind.to_vec().into()),
        );
        assert_eq!(difference.unwrap().to_vec::<i64>().unwrap(), [9, 18, 27]);
    });
}

#[test]
fn a_model_without_rows_gives_its_outputs_whole() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let input = |name: &str, shape: [usize; 2]| {
            let data = vec![1; shape[0] * shape[1]];
            json!({"name": name, "datatype": "FP32", "shape": shape, "data": data})
        };
        let inputs = json!({"inputs": [input("a", [3, 4]), input("b", [4, 5])]});
        let answer = http.post("/v2/models/whole/infer", &inputs);
        let read = answer.json();
        assert_eq!(read["outputs"][0]["shape"], json!([3, 5]));
        assert_eq!(floats(&read["outputs"][0]["data"]), [4.; 15]);
        assert_eq!(
            (&read["outputs"][1]["shape"], &read["outputs"][1]["data"]),
            (&json!([]), &json!([15]))
        );
    });
}
