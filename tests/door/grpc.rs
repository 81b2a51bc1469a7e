//! gRPC: what comes back is what the ZeroMQ client gets, and what is wrong has its status.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_prost::ProstCodec;

use self::protocol::infer_parameter::ParameterChoice;
use self::protocol::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use self::protocol::*;
use crate::common::{Server, within};
use crate::infer::{bytes, expected, rows};
use crate::{LIMIT, server_of};

/// The messages of the protocol.
#[allow(dead_code, missing_docs, clippy::all, reason = "generated")]
#[path = "../../src/door/grpc/open_inference.rs"]
pub mod protocol;

/// A client of gRPC, by a library that is not ours.
#[derive(Clone)]
pub struct Client(Grpc<Channel>);

impl Client {
    pub async fn to(server: &Server) -> Client {
        Client::to_port(server.grpc_port).await
    }

    pub async fn to_port(port: u16) -> Client {
        assert_ne!(port, 0, "a server with a door for gRPC");
        let address = format!("http://127.0.0.1:{port}");
        let channel = Channel::from_shared(address).expect("an address");
        let channel = channel.connect().await.expect("a connection");
        let most = 1 << 30;
        let client = Grpc::new(channel);
        Client(
            client
                .max_decoding_message_size(most)
                .max_encoding_message_size(most),
        )
    }

    /// Calls a method of the protocol.
    pub async fn call<Q, A>(&mut self, method: &str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let path = format!("/inference.GRPCInferenceService/{method}");
        self.call_at(&path, tonic::Request::new(message)).await
    }

    pub async fn call_at<Q, A>(
        &mut self,
        path: &str,
        message: tonic::Request<Q>,
    ) -> Result<A, Status>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        self.0.ready().await.expect("a connection");
        let path: PathAndQuery = path.parse().expect("a path");
        let codec = ProstCodec::<Q, A>::default();
        let answer = self.0.unary(message, path, codec).await?;
        Ok(answer.into_inner())
    }

    /// Opens a stream of requests, and of their answers.
    pub async fn stream(&mut self) -> (Requests, Streaming<ModelStreamInferResponse>) {
        self.0.ready().await.expect("a connection");
        let (requests, received) = mpsc::unbounded_channel();
        let path = PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
        let codec = ProstCodec::<ModelInferRequest, ModelStreamInferResponse>::default();
        let requests_sent = tonic::Request::new(Received(received));
        let answers = self.0.streaming(requests_sent, path, codec).await;
        (requests, answers.expect("a stream").into_inner())
    }

    /// Opens a stream of questions about what there is to call; none is asked.
    pub async fn reflect(&mut self) -> (Requests, Streaming<HealthCheckResponse>) {
        self.0.ready().await.expect("a connection");
        let (questions, received) = mpsc::unbounded_channel();
        let path =
            PathAndQuery::from_static("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
        // Messages of any kind: there are none.
        let codec = ProstCodec::<ModelInferRequest, HealthCheckResponse>::default();
        let questions_sent = tonic::Request::new(Received(received));
        let answers = self.0.streaming(questions_sent, path, codec).await;
        (questions, answers.expect("a stream").into_inner())
    }

    /// Watches the server's health.
    pub async fn watch(&mut self) -> Streaming<HealthCheckResponse> {
        self.0.ready().await.expect("a connection");
        let path = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
        let codec = ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let asked = tonic::Request::new(HealthCheckRequest::default());
        let told = self.0.server_streaming(asked, path, codec).await;
        told.expect("a stream").into_inner()
    }

    pub async fn infer(
        &mut self,
        request: ModelInferRequest,
    ) -> Result<ModelInferResponse, Status> {
        self.call("ModelInfer", request).await
    }
}

/// Where the requests of a stream are put; it ends when this is dropped.
pub type Requests = mpsc::UnboundedSender<ModelInferRequest>;

struct Received(mpsc::UnboundedReceiver<ModelInferRequest>);

impl Stream for Received {
    type Item = ModelInferRequest;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<ModelInferRequest>> {
        self.0.poll_recv(cx)
    }
}

/// Runs a test of a server with a door for gRPC.
pub fn with_server(flags: &[&str], test: impl AsyncFnOnce(&Server) + Send + 'static) {
    let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
    within(LIMIT, move || {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let server = server_of(&[&["--grpc-port", "0"], &flags[..]].concat());
        block_on(test(&server));
    });
}

/// Runs what a client of gRPC does.
pub fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

/// Waits until something holds; the client's own tasks go on meanwhile.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

/// Rows for the model "mlp", as bytes.
pub fn mlp(values: &[f32]) -> ModelInferRequest {
    ModelInferRequest {
        model_name: "mlp".to_owned(),
        id: "a b".to_owned(),
        inputs: vec![input("x", "FP32", &[values.len() as i64 / 64, 64])],
        raw_input_contents: vec![bytes(values).into()],
        ..ModelInferRequest::default()
    }
}

pub fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter {
        parameter_choice: Some(choice),
    }
}

#[test]
fn grpc_answers_are_those_of_the_zeromq_client_bit_for_bit() {
    with_server(
        &["--num-worker", "2", "--max-batch-size", "64"],
        async |server| {
            let mut client = Client::to(server).await;
            // The last is longer than a frame of HTTP/2, and comes back in parts that are not copied.
            for count in [1, 3, 700, 20_000] {
                let values = rows(count);
                let expected = expected(server, &values);
                let answer = client.infer(mlp(&values)).await.expect("an answer");
                assert_eq!((&*answer.model_name, &*answer.id), ("mlp", "a b"));
                let [output] = &answer.outputs[..] else {
                    panic!("one output: {:?}", answer.outputs)
                };
                assert_eq!((&*output.name, &*output.datatype), ("y", "FP32"));
                assert_eq!(output.shape, [count as i64, 10]);
                assert_eq!(answer.raw_output_contents, [bytes(&expected)]);
            }
        },
    );
}

#[test]
fn the_server_and_its_models_tell_what_they_are() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        let live: ServerLiveResponse = client
            .call("ServerLive", ServerLiveRequest {})
            .await
            .unwrap();
        let ready: ServerReadyResponse = client
            .call("ServerReady", ServerReadyRequest {})
            .await
            .unwrap();
        assert!(live.live && ready.ready);
        let about: ServerMetadataResponse = client
            .call("ServerMetadata", ServerMetadataRequest {})
            .await
            .unwrap();
        assert_eq!(about.name, "mdm");
        let named = |name: &str| ModelMetadataRequest {
            name: name.to_owned(),
            version: String::new(),
        };
        let model: ModelMetadataResponse =
            client.call("ModelMetadata", named("mlp")).await.unwrap();
        assert_eq!((&*model.name, &*model.platform), ("mlp", "mdm"));
        assert_eq!(
            (&*model.inputs[0].name, &*model.inputs[0].datatype),
            ("x", "FP32")
        );
        assert_eq!(model.inputs[0].shape, [-1, 64]);
        assert_eq!(model.outputs[0].shape, [-1, 10]);
        let asked: Result<ModelMetadataResponse, Status> =
            client.call("ModelMetadata", named("none")).await;
        let status = asked.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        assert!(
            status.message().starts_with("Request for unknown model"),
            "{status}"
        );
        for (name, is_ready) in [("mlp", true), ("none", false)] {
            let asked = ModelReadyRequest {
                name: name.to_owned(),
                version: String::new(),
            };
            let model: ModelReadyResponse = client.call("ModelReady", asked).await.unwrap();
            assert_eq!(model.ready, is_ready, "{name}");
        }
        for (version, versions) in [("", &["1", "3"][..]), ("1", &["1"])] {
            let asked = ModelMetadataRequest {
                name: "old".to_owned(),
                version: version.to_owned(),
            };
            let told: ModelMetadataResponse = client.call("ModelMetadata", asked).await.unwrap();
            assert_eq!(told.versions, versions);
        }
        let asked = ModelConfigRequest {
            name: "mlp".to_owned(),
            version: String::new(),
        };
        let answer: ModelConfigResponse = client.call("ModelConfig", asked).await.unwrap();
        let config = answer.config.unwrap();
        assert!(config.max_batch_size > 0);
        assert_eq!(config.input[0].data_type(), DataType::TypeFp32);
        assert_eq!(config.input[0].dims, [64]);
    });
}

#[test]
fn what_was_counted_of_a_model_is_told() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        client.infer(mlp(&rows(7))).await.expect("an answer");
        let mut wrong = mlp(&rows(1));
        wrong.inputs[0].name = "z".to_owned();
        client.infer(wrong).await.expect_err("no such input");
        for name in ["mlp", ""] {
            let asked = ModelStatisticsRequest {
                name: name.to_owned(),
                version: String::new(),
            };
            let answer: ModelStatisticsResponse =
                client.call("ModelStatistics", asked).await.unwrap();
            let [model] = &answer.model_stats[..] else {
                panic!("one model: {answer:?}")
            };
            assert_eq!((&*model.name, model.inference_count), ("mlp", 7));
            let stats = model.inference_stats.unwrap();
            assert_eq!(stats.success.unwrap().count, 1);
            assert_eq!(stats.fail.unwrap().count, 1);
            assert!(stats.success.unwrap().ns >= stats.compute_infer.unwrap().ns);
            assert!(model.last_inference > 0);
        }
    });
}

#[test]
fn lists_of_each_datatype_travel_both_ways() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        let contents = |ints: &[i64], floats: &[f32]| InferTensorContents {
            int64_contents: ints.to_vec(),
            fp32_contents: floats.to_vec(),
            ..InferTensorContents::default()
        };
        let with = |mut tensor: InferInputTensor, contents| {
            tensor.contents = Some(contents);
            tensor
        };
        let mut request = ModelInferRequest {
            model_name: "two".to_owned(),
            inputs: vec![
                with(input("b", "INT64", &[1, 3]), contents(&[1, 2, -3], &[])),
                with(input("a", "FP32", &[1, 3]), contents(&[], &[10., 20., 30.])),
            ],
            ..ModelInferRequest::default()
        };
        let raw = client.infer(request.clone()).await.unwrap();
        assert_eq!(raw.outputs.len(), raw.raw_output_contents.len());
        let as_lists = parameter(ParameterChoice::BoolParam(false));
        request
            .parameters
            .insert("binary_data_output".to_owned(), as_lists);
        request.outputs = ["difference", "sum"]
            .map(|name| InferRequestedOutputTensor {
                name: name.to_owned(),
                ..InferRequestedOutputTensor::default()
            })
            .to_vec();
        let lists = client.infer(request).await.unwrap();
        assert!(lists.raw_output_contents.is_empty());
        let [difference, sum] = &lists.outputs[..] else {
            panic!("two outputs: {lists:?}")
        };
        assert_eq!(
            difference.contents.as_ref().unwrap().int64_contents,
            [9, 18, 33]
        );
        assert_eq!(
            sum.contents.as_ref().unwrap().fp32_contents,
            [11., 22., 27.]
        );

        let text = Bytes::from_static(b"\x02\0\0\0ab\x01\0\0\0c");
        let strings = ModelInferRequest {
            model_name: "upper".to_owned(),
            inputs: vec![input("x", "BYTES", &[2])],
            raw_input_contents: vec![text],
            ..ModelInferRequest::default()
        };
        let answer = client.infer(strings).await.unwrap();
        assert_eq!(
            answer.raw_output_contents[0],
            &b"\x02\0\0\0AB\x01\0\0\0C"[..]
        );
    });
}

#[test]
fn what_is_wrong_with_a_request_has_its_status() {
    with_server(&[], async |server| {
        let mut client = Client::to(server).await;
        let right = mlp(&rows(1));
        type Change = fn(&mut ModelInferRequest);
        let wrong: [(Change, Code, &str); 13] = [
            (
                |r| r.model_name = "none".to_owned(),
                Code::NotFound,
                "Request for unknown model",
            ),
            (|r| r.model_name.clear(), Code::InvalidArgument, "model"),
            (
                |r| r.raw_input_contents.clear(),
                Code::InvalidArgument,
                "fp32_contents has 0 values, and its shape has 64",
            ),
            (
                |r| r.raw_input_contents.push(Bytes::new()),
                Code::InvalidArgument,
                "raw_input_contents has 2 entries, and there are 1 inputs",
            ),
            (
                |r| r.raw_input_contents[0] = Bytes::from_static(b"abcd"),
                Code::InvalidArgument,
                "takes 256 bytes, got 4",
            ),
            (
                |r| r.inputs[0].shape = vec![-1, 64],
                Code::InvalidArgument,
                "negative dimension -1",
            ),
            (
                |r| r.inputs[0].shape = vec![i64::MAX, i64::MAX],
                Code::InvalidArgument,
                "more elements than memory",
            ),
            (
                |r| r.inputs[0].shape = vec![1; 65],
                Code::InvalidArgument,
                "more than 64 dimensions",
            ),
            (
                |r| r.inputs[0].datatype = "FLOAT".to_owned(),
                Code::InvalidArgument,
                "unknown datatype \"FLOAT\"",
            ),
            (
                |r| r.inputs = vec![r.inputs[0].clone(); 1025],
                Code::InvalidArgument,
                "more than 1024 entries",
            ),
            (
                |r| {
                    r.outputs = vec![InferRequestedOutputTensor {
                        name: "z".to_owned(),
                        ..Default::default()
                    }]
                },
                Code::InvalidArgument,
                "output \"z\" was asked for",
            ),
            (
                |r| {
                    r.parameters.insert(
                        "timeout".to_owned(),
                        parameter(ParameterChoice::StringParam("soon".to_owned())),
                    );
                },
                Code::InvalidArgument,
                "parameters.timeout",
            ),
            (
                |r| {
                    r.inputs[0].parameters.insert(
                        "shared_memory_region".to_owned(),
                        parameter(ParameterChoice::StringParam("r".to_owned())),
                    );
                },
                Code::InvalidArgument,
                "no shared memory",
            ),
        ];
        for (change, code, why) in wrong {
            let mut request = right.clone();
            change(&mut request);
            let status = client.infer(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{why}: {status}");
            assert!(status.message().contains(why), "{why}: {status}");
        }
        // The same connection goes on.
        let answer = client.infer(right).await.expect("an answer");
        assert_eq!(answer.outputs[0].shape, [1, 10]);
        let nothing: Result<ServerLiveResponse, Status> =
            client.call("ServerSleep", ServerLiveRequest {}).await;
        assert_eq!(nothing.unwrap_err().code(), Code::Unimplemented);
    });
}

#[test]
fn a_message_beyond_the_bound_is_refused_and_a_compressed_one_is_inflated() {
    with_server(&["--max-request-bytes", "1MiB"], async |server| {
        let mut client = Client::to(server).await;
        let status = client.infer(mlp(&rows(5000))).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("--max-request-bytes"), "{status}");
        let mut packing = client.clone();
        packing.0 = packing
            .0
            .send_compressed(tonic::codec::CompressionEncoding::Gzip);
        let values = rows(3);
        let expected = expected(server, &values);
        let answer = packing.infer(mlp(&values)).await.expect("an answer");
        assert_eq!(answer.raw_output_contents, [bytes(&expected)]);
        // Few bytes that would be many.
        let zeros = vec![0.; 64 * 10_000];
        let status = packing.infer(mlp(&zeros)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(status.message().contains("inflated"), "{status}");
    });
}
