//! A plugin in Rust in the real server: rows, records, errors with rows, a panic, and one in C beside it.

use std::time::Duration;

use mdm::client::Call;
use mdm::plugin::{Context, LoadContext, Model, dump, dump_entry};
use mdm::{Batch, ErrorCode, Params, Result, Tensor};
use serde_json::{Value, json};

use crate::common::{PATIENCE, within};
use crate::{build_sample, refused, serve};

const ECHO: &str = r#"{"mdm":1,"plugin":"libecho.so","entry":"echo"}"#;
const SHOUT: &str = r#"{"mdm":1,"plugin":"libecho.so","entry":"shout","state":{"mark":"!"}}"#;
const FAULTY: &str = r#"{"mdm":1,"plugin":"libecho.so","entry":"faulty"}"#;

fn call(model: &str, params: Value) -> Call {
    Call::model(model).params(params.as_object().expect("an object").clone())
}

#[test]
fn rows_of_any_kind_go_through_a_plugin_and_come_back_in_order() {
    within(PATIENCE, || {
        let server = serve(&[("echo.proxy", ECHO)], &["--num-worker", "2"]);
        let client = server.client();
        let numbers: Vec<i64> = (0..50_000).collect();
        let response = client.infer(numbers.clone(), "echo").unwrap();
        assert_eq!(
            response
                .array::<i64>("")
                .unwrap()
                .into_raw_vec_and_offset()
                .0,
            numbers
        );
        assert!(response.stats().chunks > 1);
        // Small requests that are not alike never share a batch, whatever they are.
        let ways: Vec<Tensor> = vec![
            Tensor::from_slice("a", vec![2, 2], &[1f32, 2., 3., 4.]).unwrap(),
            Tensor::from_slice("b", vec![2, 2], &[1f32, 2., 3., 4.]).unwrap(),
            Tensor::from_slice("a", vec![2], &[1u8, 2]).unwrap(),
            Tensor::from_strings("a", None, &["x", "yz"]).unwrap(),
            Tensor::from_json_rows("a", &[json!({"k": [1]}), json!(null)]).unwrap(),
        ];
        let tickets: Vec<_> = ways
            .iter()
            .cycle()
            .take(100)
            .map(|tensor| client.submit(tensor.clone(), "echo").unwrap())
            .collect();
        let answers = client.fetch_all(tickets);
        for (answer, sent) in answers.into_iter().zip(ways.iter().cycle()) {
            let answer = answer.unwrap();
            assert_eq!(answer.tensor(sent.name()).unwrap(), *sent);
        }
    });
}

#[test]
fn text_becomes_records_and_a_bad_row_is_named_by_its_number_in_the_request() {
    within(PATIENCE, || {
        let server = serve(
            &[("shout.proxy", SHOUT)],
            &["--max-chunk-ms", "0", "--max-batch-size", "64"],
        );
        let client = server.client();
        let by_path = json!({"model_proxy_path": "shout.proxy", "times": 2});
        let params = by_path.as_object().unwrap().clone();
        let response = client
            .infer(&["né", "two"], Call::default().params(params))
            .unwrap();
        let rows: Vec<Value> = response.json_rows("shouted").unwrap();
        assert_eq!(rows[0], json!({"text": "né", "letters": 2, "loud": "NÉ!!"}));
        assert_eq!(rows[1]["loud"], "TWO!!");
        let mut texts = vec!["good"; 500];
        texts[333] = "";
        let refusal = client.infer(texts, "shout");
        refused(
            refusal,
            ErrorCode::InvalidArgument,
            &["row 333: ", "libecho.so", "nothing to shout"],
        );
        let mut bytes: Vec<&[u8]> = vec![b"good"; 200];
        bytes[150] = b"\xff";
        let tensor = Tensor::from_strings("text", None, &bytes).unwrap();
        refused(
            client.infer(tensor, "shout"),
            ErrorCode::InvalidArgument,
            &["row 150: ", "not UTF-8"],
        );
        refused(
            client.infer(&[1f32], "shout"),
            ErrorCode::InvalidArgument,
            &["expected BYTES, got FP32"],
        );
        assert_eq!(
            client
                .infer(&["ok"], "shout")
                .unwrap()
                .json_rows::<Value>("shouted")
                .unwrap()
                .len(),
            1
        );
    });
}

#[test]
fn a_panic_is_an_error_and_the_model_is_loaded_afresh() {
    within(PATIENCE, || {
        let server = serve(&[("faulty.proxy", FAULTY)], &[]);
        let client = server.client();
        let runs = |params: Value| {
            let response = client.infer(&[1i32, 2], call("faulty", params))?;
            response.array::<i64>("runs").map(|runs| runs[0])
        };
        assert_eq!(runs(json!({})).unwrap(), 1);
        assert_eq!(runs(json!({})).unwrap(), 2);
        refused(
            runs(json!({"do": "panic"})),
            ErrorCode::Internal,
            &[
                "rows 0 to 1: ",
                "the model panicked: told to panic in run 3",
            ],
        );
        assert_eq!(runs(json!({})).unwrap(), 1, "another instance");
        refused(
            runs(json!({"do": "lose a row"})),
            ErrorCode::Internal,
            &["output \"runs\": shape [1] for 2 rows"],
        );
        assert_eq!(runs(json!({})).unwrap(), 3, "the same instance");
        // It sees that its request is over.
        let wait = call("faulty", json!({"do": "wait"})).timeout(Duration::from_millis(200));
        refused(
            client.infer(&[1i32], wait),
            ErrorCode::DeadlineExceeded,
            &[],
        );
        assert_eq!(runs(json!({})).unwrap(), 5);
    });
}

#[test]
fn what_is_wrong_with_a_plugin_is_told_to_who_asks_for_it() {
    within(PATIENCE, || {
        let proxy = |rest: &str| format!(r#"{{"mdm":1,"plugin":{rest}}}"#);
        let server = serve(
            &[
                ("mute.proxy", &proxy(r#""libecho.so","entry":"shout""#)),
                ("which.proxy", &proxy(r#""libecho.so""#)),
                ("text.so", "no library"),
                ("text.proxy", &proxy(r#""text.so""#)),
                ("gone.proxy", &proxy(r#""gone.so""#)),
                ("out.proxy", &proxy(r#""/lib/libc.so""#)),
                ("echo.proxy", ECHO),
            ],
            &[],
        );
        let client = server.client();
        for (model, code, words) in [
            (
                "mute",
                ErrorCode::FailedPrecondition,
                &["\"mute\"", "\"mark\" is null"][..],
            ),
            (
                "which",
                ErrorCode::FailedPrecondition,
                &["\"echo\", \"shout\", \"pause\", \"faulty\"", "dump_entry"],
            ),
            ("text", ErrorCode::FailedPrecondition, &["text.so"]),
            (
                "gone",
                ErrorCode::FailedPrecondition,
                &["gone.so", "has it been built?"],
            ),
            ("out", ErrorCode::PermissionDenied, &["libc.so"]),
        ] {
            refused(client.infer(&["x"], model), code, words);
        }
        assert!(client.infer(&["x"], "echo").is_ok());
    });
}

/// What a program of an author's has at hand where it makes a model.
struct Loud;

impl Model for Loud {
    fn load(_state: &Value, _context: &LoadContext) -> Result<Self> {
        Ok(Loud)
    }

    fn dump(&self) -> Result<Value> {
        Ok(json!({"mark": "?"}))
    }

    fn inference(&mut self, batch: &Batch, _params: &Params, _context: &Context) -> Result<Batch> {
        Ok(batch.clone())
    }
}

#[test]
fn a_proxy_of_one_of_several_entries_loads_if_it_was_dumped_with_its_entry() {
    within(PATIENCE, || {
        let dir = crate::folder(&[]);
        let models = dir.path().join("models");
        dump_entry(&Loud, "libecho.so", "shout", models.join("loud.proxy")).unwrap();
        dump(&Loud, "libecho.so", models.join("which.proxy")).unwrap();
        let server = crate::common::Server::start(dir, &[]);
        let client = server.client();
        let rows: Vec<Value> = client.infer(&["a"], "loud").unwrap().json_rows("").unwrap();
        assert_eq!(rows[0]["loud"], "A?");
        // The error says which function would have named the entry.
        refused(
            client.infer(&["a"], "which"),
            ErrorCode::FailedPrecondition,
            &["several entries", "\"shout\"", "dump_entry"],
        );
    });
}

#[test]
fn a_plugin_in_c_serves_beside_it_and_a_replaced_file_is_the_next_load() {
    within(PATIENCE, || {
        let state = |what: &str| {
            format!(r#"{{"mdm":1,"plugin":"libsample.so","state":{{"do":"{what}"}}}}"#)
        };
        let dir = crate::folder(&[
            ("pass.proxy", state("pass").into_bytes()),
            ("double.proxy", state("alloc").into_bytes()),
            ("rows.proxy", state("fail_row").into_bytes()),
        ]);
        let file = dir.path().join("models/libsample.so");
        build_sample(&file);
        let server = crate::common::Server::start(dir, &["--num-worker", "2"]);
        let client = server.client();
        let numbers: Vec<i32> = (0..10_000).collect();
        let pass = client.infer(("x", numbers.clone()), "pass").unwrap();
        assert_eq!(pass.array::<i32>("x").unwrap().as_slice().unwrap(), numbers);
        let double = client.infer(("x", numbers.clone()), "double").unwrap();
        assert_eq!(double.array::<i32>("x").unwrap()[9_999], 19_998);
        let mut bad = numbers.clone();
        bad[7_777] = -1;
        refused(
            client.infer(("x", bad), "rows"),
            ErrorCode::InvalidArgument,
            &["row 7777: ", "a number is below 0"],
        );
        // Written over as `cp` does, under the old one's users.
        std::fs::copy(crate::echo_plugin(), &file).unwrap();
        std::fs::write(
            server.models().join("pass.proxy"),
            ECHO.replace("echo.so", "sample.so"),
        )
        .unwrap();
        client.unload("pass").unwrap();
        let text = client.infer(&["a"], "pass").unwrap();
        assert_eq!(text.tensor("").unwrap().strings().unwrap(), ["a"]);
        assert!(client.infer(("x", numbers), "double").is_ok());
    });
}
