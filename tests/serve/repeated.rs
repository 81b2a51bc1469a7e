//! Requests that say what others said before: the server does not read their headers again, and must answer as if it did.

use std::fs;

use mdm::client::{Call, Client};
use mdm::wire::server::ServerMessage;
use mdm::{DataType, ErrorCode, Request, Tensor};
use serde_json::json;

use crate::behind::{Session, behind, output, request};
use crate::common::{PATIENCE, Server, models, onnx, within};
use crate::exact::noise;
use crate::{refused, settled};

/// After so many requests with the same header it is surely known.
const OFTEN: usize = 4;

fn same() -> Vec<u8> {
    onnx::echo(DataType::Fp32, &[4])
}

/// Gives its rows with the other sign.
fn negative() -> Vec<u8> {
    onnx::dynamic_unnamed()
}

/// What the same request is answered each time, if that is the same.
#[track_caller]
fn always(client: &Client, call: impl Fn() -> Call) -> f32 {
    let rows = Tensor::from_vec("x", vec![1, 4], vec![2f32; 4]).unwrap();
    let answers: Vec<f32> = (0..OFTEN)
        .map(|_| {
            let response = client.infer(rows.clone(), call()).unwrap();
            response.array::<f32>("y").unwrap()[[0, 0]]
        })
        .collect();
    assert!(answers.iter().all(|y| *y == answers[0]), "{answers:?}");
    answers[0]
}

fn replace(server: &Server, name: &str, bytes: &[u8]) {
    let new = server.models().join("new");
    fs::write(&new, bytes).unwrap();
    fs::rename(new, server.models().join(name)).unwrap();
}

#[test]
fn a_header_that_came_before_leads_to_what_is_served_now() {
    within(PATIENCE, || {
        let dir = models(&[
            ("m.onnx", negative()),
            ("v/1/model.onnx", negative()),
            ("v/2/model.onnx", same()),
        ]);
        let server = Server::start(dir, &[]);
        let (client, other) = (server.client(), server.client());
        let m = || Call::model("m");
        assert_eq!(always(&client, m), -2.0);
        assert_eq!(always(&other, m), -2.0);
        // Until it is loaded anew the model is the one that was.
        replace(&server, "m.onnx", &same());
        assert_eq!(always(&client, m), -2.0);
        client.load("m").unwrap();
        assert_eq!(always(&client, m), 2.0);
        assert_eq!(always(&other, m), 2.0);
        replace(&server, "m.onnx", &negative());
        other.unload("m").unwrap();
        assert_eq!(always(&client, m), -2.0);
        // Gone with its file.
        fs::remove_file(server.models().join("m.onnx")).unwrap();
        client.unload("m").unwrap();
        let rows = Tensor::from_vec("x", vec![1, 4], vec![2f32; 4]).unwrap();
        refused(client.infer(rows, "m"), ErrorCode::NotFound, &["m"]);
        // Versions are told apart, in the name and in the parameters.
        let version = |version: i64| move || Call::model("v").param("model_version", version);
        for _ in 0..2 {
            assert_eq!(always(&client, version(1)), -2.0);
            assert_eq!(always(&client, || Call::model("v")), 2.0);
            assert_eq!(always(&client, version(2)), 2.0);
            assert_eq!(always(&client, || Call::model("v/1")), -2.0);
        }
    });
}

/// The proxy that a path names says another file: who asks by name gets that once it is loaded.
#[test]
fn a_header_with_a_path_leads_to_what_the_path_leads_to() {
    within(PATIENCE, || {
        let proxy = |file: &str| json!({"mdm": 1, "onnx": file}).to_string().into_bytes();
        let dir = models(&[
            ("a.onnx", negative()),
            ("b.onnx", same()),
            ("p.proxy", proxy("a.onnx")),
        ]);
        let server = Server::start(dir, &[]);
        let client = server.client();
        let by_path = || Call::default().param("model_proxy_path", "p.proxy");
        let by_name = || Call::model("p");
        assert_eq!(always(&client, by_path), -2.0);
        assert_eq!(always(&client, by_name), -2.0);
        replace(&server, "p.proxy", &proxy("b.onnx"));
        client.load("p").unwrap();
        assert_eq!(always(&client, by_name), 2.0);
        // That path was found before, and nobody has asked for it to be loaded anew.
        assert_eq!(always(&client, by_path), -2.0);
        // Outside of what is allowed: refused each time, however often it comes.
        for _ in 0..OFTEN {
            let rows = Tensor::from_vec("x", vec![1, 4], vec![2f32; 4]).unwrap();
            let call = Call::model("p").param("other_path", "/etc/passwd");
            refused(
                client.infer(rows, call),
                ErrorCode::PermissionDenied,
                &["/etc/passwd"],
            );
        }
    });
}

#[test]
fn a_payload_that_its_header_does_not_fit_is_told_however_often_the_header_came() {
    within(PATIENCE, || {
        let server = Server::start(models(&[("m.onnx", same())]), &[]);
        let mut session = Session::open(&server);
        let good = request(
            "m",
            Tensor::from_vec("x", vec![1, 4], vec![2f32; 4]).unwrap(),
        );
        for _ in 0..OFTEN {
            session.infer(&good);
            assert!(matches!(session.next(), (_, ServerMessage::Result(..))));
        }
        for cut in [15, 17, 0] {
            let id = session.infer_with(&good, |payload| {
                payload[0] = vec![0; cut].into();
            });
            let (of, answer) = session.next();
            let ServerMessage::Error(error) = answer else {
                panic!("{answer:?}")
            };
            assert_eq!((of, error.code()), (id, ErrorCode::InvalidArgument));
            assert!(error.message().contains("\"x\""), "{error}");
        }
        let id = session.infer_with(&good, |payload| payload.push(payload[0].clone()));
        let (of, answer) = session.next();
        assert!(matches!(answer, ServerMessage::Error(_)) && of == id);
        session.infer(&good);
        assert!(matches!(session.next(), (_, ServerMessage::Result(..))));
    });
}

/// Of one to three rows, of any bits that the datatype takes.
fn some_rows(datatype: DataType, number: usize) -> Tensor {
    let rows = 1 + number % 3;
    if datatype == DataType::Bytes {
        let texts: Vec<String> = (0..2 * rows)
            .map(|i| "ab".repeat(number * 7 % 50 + i))
            .collect();
        return Tensor::from_strings("x", Some(vec![rows, 2]), &texts).unwrap();
    }
    let bytes = rows * 2 * datatype.size().expect("a size");
    let mut data: Vec<u8> = noise(bytes + number)
        .skip(number)
        .map(|n| n as u8)
        .collect();
    if datatype == DataType::Bool {
        data.iter_mut().for_each(|byte| *byte &= 1);
    }
    let data = mdm::tensor::Data::Fixed(data.into());
    Tensor::new("x", datatype, vec![rows, 2], data).unwrap()
}

#[test]
fn small_requests_of_every_datatype_share_chunks_and_get_their_own_bits() {
    within(PATIENCE, || {
        let types = DataType::ALL.into_iter().filter(|t| *t != DataType::Json);
        let types: Vec<DataType> = types.collect();
        let mut files = vec![
            ("busy.onnx".to_owned(), crate::models::busy()),
            ("busy.proxy".to_owned(), crate::models::busy_rows("busy")),
        ];
        files.extend(
            types
                .iter()
                .map(|t| (format!("{t}.onnx"), onnx::echo(*t, &[2]))),
        );
        let files: Vec<(&str, Vec<u8>)> =
            files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
        let server = Server::start(models(&files), &["--preload", "busy"]);
        let client = server.client();
        for datatype in types {
            let model = datatype.to_string();
            let requests: Vec<Request> = (0..20)
                .map(|number| request(&model, some_rows(datatype, number)))
                .collect();
            let before = settled(&client).totals.coalesced;
            for round in 0..2 {
                for (place, answer) in behind(&server, &requests) {
                    let sent = &requests[place].inputs.tensors[0];
                    let got = output(&answer);
                    assert_eq!(got.shape(), sent.shape(), "{model} {place} {round}");
                    assert!(got.data() == sent.data(), "{model} {place} {round}");
                }
            }
            let shared = settled(&client).totals.coalesced - before;
            assert!(shared >= 30, "{model}: {shared} of 40 shared a chunk");
        }
    });
}
