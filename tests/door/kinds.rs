//! Datatypes and forms that not every request has: FP16, records, classification, a body that is one tensor.

use mdm::Tensor;
use serde_json::{Value, json};

use crate::common::{Server, within};
use crate::http::Http;
use crate::{LIMIT, built, server};

#[test]
fn fp16_travels_as_bytes_and_as_numbers() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let bytes = [0x00, 0x3e, 0x00, 0xc0]; // 1.5 and -2
        let input = json!({
            "name": "x", "datatype": "FP16", "shape": [1, 2], "parameters": {"binary_data_size": 4},
        });
        let request = json!({"inputs": [input], "parameters": {"binary_data_output": true}});
        let answer = http.post_binary("/v2/models/half/infer", &request, &bytes);
        assert_eq!(answer.parts().1, bytes);
        let input = json!({"name": "x", "datatype": "FP16", "shape": [1, 2], "data": [1.5, -2]});
        let answer = http.post("/v2/models/half/infer", &json!({"inputs": [input]}));
        assert_eq!(answer.json()["outputs"][0]["data"], json!([1.5, -2.0]));
    });
}

#[test]
fn records_travel_as_json_text() {
    within(LIMIT, || {
        let plugin = std::fs::read(built::plugin("echo_plugin")).unwrap();
        let shout =
            json!({"mdm": 1, "plugin": "libecho.so", "entry": "shout", "state": {"mark": "!"}});
        let echo = json!({"mdm": 1, "plugin": "libecho.so", "entry": "echo"});
        let folder = crate::common::models(&[
            ("libecho.so", plugin),
            ("shout.proxy", shout.to_string().into_bytes()),
            ("anything.proxy", echo.to_string().into_bytes()),
        ]);
        let server = Server::start(folder, &["--http-port", "0"]);
        let mut http = Http::to(&server);
        let input = json!({"name": "text", "datatype": "BYTES", "shape": [2], "data": ["hé", "b"]});
        let request = json!({"inputs": [input], "parameters": {"times": 2}});
        let answer = http.post("/v2/models/shout/infer", &request).json();
        let output = &answer["outputs"][0];
        assert_eq!(
            (&output["datatype"], &output["shape"]),
            (&json!("BYTES"), &json!([2]))
        );
        let record: Value = serde_json::from_str(output["data"][0].as_str().unwrap()).unwrap();
        assert_eq!(record, json!({"text": "hé", "letters": 2, "loud": "HÉ!!"}));
        // As the ZeroMQ client has it.
        let client = server.client();
        let rows = Tensor::from_strings("text", None, &["hé", "b"]).unwrap();
        let params = json!({"model": "shout", "times": 2});
        let expected = client.infer(rows, params).unwrap();
        let expected: Vec<Value> = expected.tensor("shouted").unwrap().json_rows().unwrap();
        assert_eq!(record, expected[0]);
        // Records in: what takes anything is given documents where they are said to be such.
        let input =
            json!({"name": "r", "datatype": "JSON", "shape": [1], "data": ["{\"a\":[1,null]}"]});
        let answer = http
            .post("/v2/models/anything/infer", &json!({"inputs": [input]}))
            .json();
        let output = &answer["outputs"][0];
        assert_eq!(
            (&output["datatype"], &output["data"]),
            (&json!("BYTES"), &json!(["{\"a\":[1,null]}"]))
        );
    });
}

#[test]
fn classification_gives_the_highest_of_each_row() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let input = json!({"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 9, 3, 2, 0, 0, 7, 5]});
        for binary in [false, true] {
            let parameters = json!({"classification": 2, "binary_data": binary});
            let outputs = json!([{"name": "y", "parameters": parameters}]);
            let answer = http.post(
                "/v2/models/echo/infer",
                &json!({"inputs": [input], "outputs": outputs}),
            );
            let expected = ["9.000000:1", "3.000000:2", "7.000000:2", "5.000000:3"];
            if binary {
                let (read, behind) = answer.parts();
                assert_eq!(read["outputs"][0]["shape"], json!([2, 2]));
                let texts: Vec<u8> = expected
                    .iter()
                    .flat_map(|text| {
                        let length = (text.len() as u32).to_le_bytes();
                        [&length[..], text.as_bytes()].concat()
                    })
                    .collect();
                assert_eq!(behind, texts);
            } else {
                let output = &answer.json()["outputs"][0];
                assert_eq!(
                    (&output["datatype"], &output["data"]),
                    (&json!("BYTES"), &json!(expected))
                );
            }
        }
    });
}

#[test]
fn a_body_that_is_one_tensor_takes_its_shape_from_the_model() {
    within(LIMIT, || {
        let server = server(&[]);
        let mut http = Http::to(&server);
        let values: Vec<u8> = [1f32, 2., 3., 4., 5., 6., 7., 8.]
            .iter()
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let headers = [("Inference-Header-Content-Length", "0")];
        let answer = http.request("POST", "/v2/models/echo/infer", &headers, &values);
        let (read, behind) = answer.parts();
        assert_eq!(
            (&read["outputs"][0]["shape"], behind),
            (&json!([2, 4]), &values[..])
        );
        let answer = http.request("POST", "/v2/models/upper/infer", &headers, b"one text");
        assert_eq!(answer.parts().1, b"\x08\0\0\0ONE TEXT");
        for (model, bytes) in [("echo", 7), ("two", 12), ("whole", 48)] {
            let path = format!("/v2/models/{model}/infer");
            let answer = http.request("POST", &path, &headers, &vec![0; bytes]);
            assert_eq!(answer.status, 400, "{model}: {answer:?}");
        }
    });
}
