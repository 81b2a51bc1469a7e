//! The Open Inference Protocol over gRPC: any server that speaks it.

mod connection;
mod exchange;
#[allow(dead_code, missing_docs, clippy::all, reason = "generated")]
#[path = "../../../../door/grpc/open_inference.rs"]
mod protocol;
mod socket;

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use hyper::Uri;
use mdm::wire::server::ModelInfo;
use mdm::{Batch, Params};
use prost::Message;
use serde_json::Value;

use self::connection::Kept;
use self::exchange::framed;
use self::protocol::infer_parameter::ParameterChoice;
use self::protocol::model_infer_request::InferInputTensor;
use self::protocol::*;
use super::super::drive::Connection;
use super::super::report::ServerTimes;
use super::inference::{Counted, TensorMetadata, datatype, model_info, server_times, write_binary};
use super::url::Url;
use super::{Asked, Door, error};

/// What is asked of a server over gRPC.
pub struct Grpc {
    at: Url,
    asked: Asked,
    requests: Arc<[Bytes]>,
}

impl Grpc {
    /// # Errors
    /// If it is no URL of a server over gRPC.
    pub fn new(url: &str, asked: Asked) -> Result<Grpc> {
        Ok(Grpc {
            at: Url::read(url, &["grpc://", "http://"])?,
            asked,
            requests: Arc::new([]),
        })
    }

    fn kept(&self, method: &str, in_flight: usize) -> Result<Kept> {
        let Url { authority, folder } = &self.at;
        let uri = format!("http://{authority}{folder}/inference.GRPCInferenceService/{method}");
        let uri: Uri = uri.parse().with_context(|| uri.clone())?;
        Ok(Kept::new(uri, self.asked.timeout, in_flight))
    }

    /// Calls another method than that of requests.
    fn call<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A> {
        let place = || format!("grpc://{}: {method}", self.at.authority);
        let answer = self.kept(method, 1)?.exchange(framed(message)?);
        let answer = answer.map_err(error).with_context(place)?;
        A::decode(answer).with_context(place)
    }

    fn request(&self, batch: &Batch) -> Result<Bytes> {
        let mut request = ModelInferRequest {
            model_name: self.asked.model.clone(),
            parameters: parameters(&self.asked.params)?,
            ..ModelInferRequest::default()
        };
        for tensor in &batch.tensors {
            let shape = tensor.shape().iter().map(|&dim| i64::try_from(dim));
            request.inputs.push(InferInputTensor {
                name: tensor.name().to_owned(),
                datatype: datatype(tensor).to_owned(),
                shape: shape.collect::<Result<_, _>>()?,
                ..InferInputTensor::default()
            });
            let mut bytes = Vec::with_capacity(tensor.payload_bytes());
            write_binary(tensor, &mut bytes)?;
            request.raw_input_contents.push(bytes.into());
        }
        framed(&request)
    }
}

fn parameters(params: &Params) -> Result<std::collections::HashMap<String, InferParameter>> {
    let choice = |value: &Value| {
        Some(match value {
            Value::Bool(value) => ParameterChoice::BoolParam(*value),
            Value::String(text) => ParameterChoice::StringParam(text.clone()),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => ParameterChoice::Int64Param(number),
                (None, Some(number)) => ParameterChoice::Uint64Param(number),
                (None, None) => ParameterChoice::DoubleParam(number.as_f64()?),
            },
            Value::Null | Value::Array(_) | Value::Object(_) => return None,
        })
    };
    let parameters = params.iter().map(|(name, value)| {
        let choice = choice(value).with_context(|| {
            format!("--params: {name} is {value}; over grpc a parameter is a number, a text, true or false")
        })?;
        let parameter = InferParameter {
            parameter_choice: Some(choice),
        };
        Ok((name.clone(), parameter))
    });
    parameters.collect()
}

impl Door for Grpc {
    fn describe(&self) -> Result<ModelInfo> {
        let asked = ModelMetadataRequest {
            name: self.asked.model.clone(),
            version: String::new(),
        };
        let told: ModelMetadataResponse = self.call("ModelMetadata", &asked)?;
        let inputs = told.inputs.into_iter().map(|input| TensorMetadata {
            name: input.name,
            datatype: input.datatype,
            shape: input.shape,
        });
        let inputs = inputs.collect();
        Ok(model_info(&self.asked.model, &told.versions, inputs))
    }

    fn prepare(&mut self, requests: Vec<Batch>) -> Result<()> {
        let requests = requests.iter().map(|batch| self.request(batch));
        self.requests = requests.collect::<Result<Vec<_>>>()?.into();
        Ok(())
    }

    fn try_one(&self) -> Result<usize> {
        let mut kept = self.kept("ModelInfer", 1)?;
        let answer = kept.exchange(self.requests[0].clone());
        Ok(answer.map_err(error)?.len())
    }

    fn connect(&self, in_flight: usize) -> Result<Box<dyn Connection>> {
        let mut kept = self.kept("ModelInfer", in_flight)?;
        kept.connect()
            .with_context(|| format!("grpc://{}", self.at.authority))?;
        Ok(Box::new(kept.of(Arc::clone(&self.requests))))
    }

    fn server_times(&self) -> Option<ServerTimes> {
        let asked = ModelStatisticsRequest {
            name: self.asked.model.clone(),
            version: String::new(),
        };
        // Not every server has them, and a table without shares is no failure.
        let told: ModelStatisticsResponse = self.call("ModelStatistics", &asked).ok()?;
        let of_versions = told.model_stats.iter().filter_map(|model| {
            let stats = model.inference_stats?;
            Some(Counted {
                count: stats.queue?.count,
                queue_ns: stats.queue?.ns,
                run_ns: stats.compute_infer?.ns,
            })
        });
        Some(server_times(of_versions))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tensors_and_parameters_are_those_of_the_request() {
        let params = json!({"a": 1, "b": 0.5, "c": "x", "d": true, "e": u64::MAX});
        let Value::Object(params) = params else {
            unreachable!()
        };
        let asked = Asked {
            model: "m".to_owned(),
            params,
            timeout: std::time::Duration::from_secs(1),
        };
        let grpc = Grpc::new("grpc://a:1", asked).unwrap();
        let x = mdm::Tensor::from_vec("x", vec![2, 1], vec![1i32, -2]).unwrap();
        let s = mdm::Tensor::from_strings("s", None, &["ü", "b"]).unwrap();
        let j = mdm::Tensor::from_json_rows("j", &[json!({"a": 1}), json!(null)]).unwrap();
        let batch = Batch {
            tensors: vec![x, s, j],
        };
        let framed = grpc.request(&batch).unwrap();
        assert_eq!(framed[0], 0);
        assert_eq!(framed[1..5], (framed.len() as u32 - 5).to_be_bytes());
        let request = ModelInferRequest::decode(framed.slice(5..)).unwrap();
        let inputs = request.inputs.iter();
        let inputs: Vec<_> = inputs
            .map(|i| (&*i.name, &*i.datatype, &i.shape[..]))
            .collect();
        assert_eq!(
            inputs,
            [
                ("x", "INT32", &[2, 1][..]),
                ("s", "BYTES", &[2]),
                ("j", "BYTES", &[2])
            ]
        );
        assert_eq!(
            request.raw_input_contents,
            [
                &b"\x01\0\0\0\xfe\xff\xff\xff"[..],
                b"\x02\0\0\0\xc3\xbc\x01\0\0\0b",
                b"\x07\0\0\0{\"a\":1}\x04\0\0\0null"
            ]
        );
        let choice = |name: &str| request.parameters[name].parameter_choice.clone().unwrap();
        assert_eq!(choice("a"), ParameterChoice::Int64Param(1));
        assert_eq!(choice("b"), ParameterChoice::DoubleParam(0.5));
        assert_eq!(choice("c"), ParameterChoice::StringParam("x".to_owned()));
        assert_eq!(choice("d"), ParameterChoice::BoolParam(true));
        assert_eq!(choice("e"), ParameterChoice::Uint64Param(u64::MAX));

        let odd = Params::from_iter([("a".to_owned(), json!([1]))]);
        let e = parameters(&odd).unwrap_err().to_string();
        assert!(e.contains("a is [1]"), "{e}");
    }
}
