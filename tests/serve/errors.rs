//! What is wrong with a request is told by a code and a message that names it, and the server lives on.

use std::fs;
use std::os::unix::fs::symlink;

use mdm::client::{Call, Client, Inputs};
use mdm::{DataType, ErrorCode, Tensor};
use serde_json::json;

use crate::common::{PATIENCE, Server, models, onnx, within};
use crate::{numbered, refused};

use ErrorCode::{FailedPrecondition, Internal, InvalidArgument, NotFound, PermissionDenied};

/// The server still answers.
#[track_caller]
fn lives(client: &Client) {
    let response = client.infer(numbered(1, 20), "echo").expect("it lives on");
    assert_eq!(response.only().unwrap().data(), numbered(1, 20).data());
}

fn echo() -> Vec<u8> {
    onnx::echo(DataType::Int64, &[2])
}

fn floats(shape: &[usize]) -> Tensor {
    Tensor::from_vec("x", shape.to_vec(), vec![1f32; shape.iter().product()]).unwrap()
}

#[test]
fn a_file_that_is_no_model_is_said_to_be_none() {
    within(PATIENCE, || {
        let mlp = onnx::mlp();
        let dir = models(&[
            ("echo.onnx", echo()),
            (
                "noise.onnx",
                (0..5000u32).map(|i| (i * 193 % 251) as u8).collect(),
            ),
            ("cut.onnx", mlp[..mlp.len() / 2].to_vec()),
            ("cut_early.onnx", mlp[..10].to_vec()),
            ("empty.onnx", vec![]),
            ("text.onnx", b"this is no model\n".to_vec()),
            ("sequence.onnx", onnx::sequence_output()),
            ("pickled.proxy", b"\x80\x04\x95\x10\x00\x00\x00".to_vec()),
            ("no_json.proxy", b"{\"mdm\":1,".to_vec()),
            (
                "no_onnx.proxy",
                b"{\"mdm\":1,\"onnx\":\"gone.onnx\"}".to_vec(),
            ),
            (
                "leaves.proxy",
                b"{\"mdm\":1,\"onnx\":\"../outside.onnx\"}".to_vec(),
            ),
            (
                "good.proxy",
                b"{\"mdm\":1,\"onnx\":\"echo.onnx\",\"rows\":\"whole\"}".to_vec(),
            ),
            ("folder/readme.txt", b"nothing here".to_vec()),
        ]);
        fs::write(dir.path().join("outside.onnx"), echo()).unwrap();
        let server = Server::start(dir, &[]);
        let client = server.client();
        let table: &[(&str, ErrorCode, &[&str])] = &[
            ("noise", FailedPrecondition, &["\"noise\"", "noise.onnx"]),
            ("cut", FailedPrecondition, &["\"cut\"", "cut.onnx"]),
            ("cut_early", FailedPrecondition, &["cut_early.onnx"]),
            ("empty", FailedPrecondition, &["empty.onnx", "is empty"]),
            ("text", FailedPrecondition, &["text.onnx"]),
            ("sequence", FailedPrecondition, &["\"y\"", "only tensors"]),
            (
                "pickled",
                FailedPrecondition,
                &["pickled.proxy", "pickle", "never loaded", "export"],
            ),
            ("no_json", FailedPrecondition, &["no_json.proxy", "JSON"]),
            (
                "no_onnx",
                FailedPrecondition,
                &["no_onnx.proxy", "gone.onnx"],
            ),
            (
                "leaves",
                PermissionDenied,
                &["leaves.proxy", "../outside.onnx"],
            ),
            ("folder", NotFound, &["\"folder\"", "VERSION/model.onnx"]),
            ("no_such", NotFound, &["\"no_such\"", "no_such.onnx"]),
            ("folder/2", NotFound, &["\"folder/2\""]),
        ];
        for (model, code, words) in table {
            refused(client.infer(numbered(1, 1), *model), *code, words);
            // No error is remembered in place of a model, and load says the same.
            refused(client.load(model), *code, words);
            lives(&client);
        }
        assert_eq!(client.load("good").unwrap().kind, "whole");
        let response = client.infer(numbered(2, 500), "good").unwrap();
        assert_eq!((response.parts().len(), response.rows()), (1, None));
        // Where a file lies is nobody's business who sends requests.
        let error = client.load("noise").unwrap_err();
        let folder = server.models().display().to_string();
        assert!(!error.message().contains(&folder), "{error}");
    });
}

#[test]
fn rows_that_do_not_fit_name_the_input_and_both_sides() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", echo()),
            ("mlp.onnx", onnx::mlp()),
            ("two.onnx", onnx::two_inputs_two_outputs()),
            ("symbols.onnx", onnx::two_symbols()),
        ]);
        let server = Server::start(dir, &[]);
        let client = server.client();
        let a = |rows: usize| Tensor::from_vec("a", vec![rows, 3], vec![0f32; rows * 3]).unwrap();
        let b = |rows: usize| Tensor::from_vec("b", vec![rows, 3], vec![0i64; rows * 3]).unwrap();
        let integers = Tensor::from_vec("x", vec![2, 64], vec![0i64; 128]).unwrap();
        let table: Vec<(&str, Vec<Tensor>, &[&str])> = vec![
            (
                "mlp",
                vec![floats(&[2, 64]).renamed("z")],
                &["\"x\" is missing", "\"z\""],
            ),
            (
                "mlp",
                vec![integers],
                &["\"x\"", "expected FP32, got INT64"],
            ),
            (
                "mlp",
                vec![floats(&[64])],
                &["\"x\"", "expected shape [N, 64], got [64]"],
            ),
            (
                "mlp",
                vec![floats(&[2, 2, 64])],
                &["\"x\"", "[N, 64], got [2, 2, 64]"],
            ),
            (
                "mlp",
                vec![floats(&[2, 63])],
                &["\"x\"", "[N, 64], got [2, 63]"],
            ),
            ("mlp", vec![floats(&[0, 64])], &["\"mlp\"", "no rows"]),
            ("mlp", vec![], &["no inputs"]),
            ("mlp", vec![floats(&[])], &["\"x\"", "[N, 64], got []"]),
            (
                "two",
                vec![a(3), b(2)],
                &["\"a\" has 3 rows", "\"b\" has 2"],
            ),
            ("two", vec![a(3)], &["\"b\" is missing"]),
            ("two", vec![a(3), b(3), b(3)], &["\"b\" is given twice"]),
            (
                "two",
                vec![a(3), b(3), floats(&[3, 3])],
                &["\"x\" is unknown"],
            ),
            (
                "symbols",
                vec![floats(&[3, 4]), floats(&[3, 5]).renamed("mask")],
                &["\"mask\"", "S", "equal"],
            ),
        ];
        for (model, inputs, words) in table {
            refused(client.infer(inputs, model), InvalidArgument, words);
            lives(&client);
        }
        let calls: [(Call, &[&str]); 3] = [
            (Call::default(), &["no model is named", "model_proxy_path"]),
            (Call::model(""), &["model"]),
            (
                Call::from(json!({"model": "echo", "model_proxy_path": 7})),
                &["model_proxy_path", "a number"],
            ),
        ];
        for (call, words) in calls {
            refused(client.infer(numbered(1, 1), call), InvalidArgument, words);
            lives(&client);
        }
        // A request may be wrong for a model that is not known yet, too: it waits for it and then is told.
        let fresh = server.client();
        fresh.unload("two").unwrap();
        refused(
            fresh.infer(vec![a(1)], "two"),
            InvalidArgument,
            &["\"b\" is missing"],
        );
        // Whoever is refused here made no error there.
        assert_eq!(fresh.status().unwrap().totals.errors["INTERNAL"], 0);
    });
}

#[test]
fn paths_that_leave_the_folder_are_denied_and_allow_path_allows_them() {
    within(PATIENCE, || {
        let files = || {
            let dir = models(&[
                ("echo.onnx", echo()),
                ("words.txt", b"x".to_vec()),
                ("sub/in.onnx", echo()),
            ]);
            let outside = dir.path().join("outside");
            fs::create_dir(&outside).unwrap();
            fs::write(outside.join("far.onnx"), echo()).unwrap();
            symlink(
                outside.join("far.onnx"),
                dir.path().join("models/link.onnx"),
            )
            .unwrap();
            symlink(&outside, dir.path().join("models/linked")).unwrap();
            symlink("echo.onnx", dir.path().join("models/alias.onnx")).unwrap();
            (outside.display().to_string(), dir)
        };
        let (outside, dir) = files();
        let server = Server::start(dir, &[]);
        let client = server.client();
        let far = format!("{outside}/far");
        for model in [
            "../outside/far",
            "sub/../../outside/far.onnx",
            &far,
            "link",
            "linked/far",
            "/etc/passwd",
        ] {
            refused(
                client.infer(numbered(1, 1), model),
                PermissionDenied,
                &["model", model, "--allow-path"],
            );
            lives(&client);
        }
        // A file that is not there either: nobody learns what is outside.
        refused(
            client.infer(numbered(1, 1), "../nothing"),
            PermissionDenied,
            &["../nothing"],
        );
        for path in [
            "../outside/far.onnx",
            &format!("{far}.onnx"),
            "linked/far.onnx",
        ] {
            let call = Call::model("echo").param("words_path", path);
            refused(
                client.infer(numbered(1, 1), call),
                PermissionDenied,
                &["words_path", path],
            );
            let call = Call::default().param("model_proxy_path", path);
            refused(
                client.infer(numbered(1, 1), call),
                PermissionDenied,
                &["model_proxy_path", path],
            );
            lives(&client);
        }
        // What stays inside may be written as one likes.
        for model in ["sub/../echo", "./echo.onnx", "alias", "sub/in"] {
            client.infer(numbered(1, 1), model).expect(model);
        }
        let call = Call::model("echo")
            .param("words_path", "words.txt")
            .param("other", "../x");
        client.infer(numbered(1, 1), call).expect("both are there");
        let call = Call::model("echo").param("words_path", "gone.txt");
        refused(
            client.infer(numbered(1, 1), call),
            NotFound,
            &["words_path", "gone.txt"],
        );
        let call = Call::model("echo").param("model_proxy_path", "sub/in.onnx");
        refused(
            client.infer(numbered(1, 1), call),
            InvalidArgument,
            &["\"echo\"", "model_proxy_path", "sub/in.onnx", "different"],
        );
        let call = Call::model("echo").param("model_proxy_path", "echo.onnx");
        client.infer(numbered(1, 1), call).expect("the same file");
        let call = Call::default().param("model_proxy_path", "gone.proxy");
        refused(
            client.infer(numbered(1, 1), call),
            NotFound,
            &["model_proxy_path", "gone.proxy"],
        );
        lives(&client);
        drop(server);

        let (outside, dir) = files();
        let server = Server::start(dir, &["--allow-path", &outside]);
        let client = server.client();
        let far = format!("{outside}/far");
        for model in ["../outside/far", &far, "link", "linked/far"] {
            client.infer(numbered(1, 1), model).expect(model);
        }
        let call = Call::model("echo").param("words_path", format!("{far}.onnx"));
        client.infer(numbered(1, 1), call).expect("allowed");
        refused(
            client.infer(numbered(1, 1), "../log.txt"),
            PermissionDenied,
            &["../log.txt"],
        );
        lives(&client);
    });
}

#[test]
fn a_model_that_fails_is_quoted_and_the_next_request_runs() {
    within(PATIENCE, || {
        let dir = models(&[
            ("echo.onnx", echo()),
            ("fails.onnx", onnx::failing_at_run()),
            ("rows.onnx", onnx::wrong_rows()),
        ]);
        let server = Server::start(dir, &["--num-worker", "2"]);
        let client = server.client();
        for rows in [1, 100] {
            let indices = vec![10i64; rows];
            refused(
                client.infer(indices, "fails"),
                Internal,
                &["\"fails\"", "Gather", "idx=10"],
            );
            lives(&client);
            refused(
                client.infer(floats(&[rows, 2]), "rows"),
                Internal,
                // Twice the rows of a run.
                &["\"y\"", &format!("[{}, 2]", 2 * rows.min(8))],
            );
            lives(&client);
        }
        let error = client.infer_stream(vec![11i64; 40], "fails").unwrap();
        let answers: Vec<_> = error.collect();
        assert!(answers.last().expect("an end").is_err());
        let named = Inputs::new().with("x", &[1i64, 2]);
        assert_eq!(client.infer(named, "fails").unwrap().rows(), Some(2));
        lives(&client);
    });
}
