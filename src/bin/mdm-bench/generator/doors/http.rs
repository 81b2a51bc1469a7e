//! The Open Inference Protocol over REST: any server that speaks it.

mod body;
mod connection;

use std::io::ErrorKind;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use mdm::Batch;
use mdm::wire::server::ModelInfo;
use serde::Deserialize;

use super::super::drive::Connection;
use super::super::measure::{Failure, Outcome};
use super::super::report::ServerTimes;
use super::inference::{Counted, TensorMetadata, model_info, server_times, shortened};
use super::url::Url;
use super::{Asked, Door, error};
use connection::{Kept, Reply};

pub use body::Encoding;

/// What is asked of a server over HTTP.
pub struct Http {
    /// `HOST:PORT`.
    authority: String,
    /// Of the model: `/v2/models/NAME`, behind what the URL has before that.
    path: String,
    asked: Asked,
    encoding: Encoding,
    requests: Arc<[Vec<u8>]>,
}

/// A model's metadata.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    inputs: Vec<TensorMetadata>,
}

/// The statistics extension's counters, as far as they are used.
#[derive(Deserialize)]
struct Statistics {
    model_stats: Vec<ModelStatistics>,
}

#[derive(Deserialize)]
struct ModelStatistics {
    inference_stats: InferenceStatistics,
}

#[derive(Deserialize)]
struct InferenceStatistics {
    queue: Counter,
    compute_infer: Counter,
}

#[derive(Deserialize)]
struct Counter {
    count: u64,
    ns: u64,
}

impl Http {
    /// # Errors
    /// If it is no URL of a server over HTTP.
    pub fn new(url: &str, encoding: Encoding, asked: Asked) -> Result<Http> {
        let Url { authority, folder } = Url::read(url, &["http://"])?;
        Ok(Http {
            authority,
            path: format!("{folder}/v2/models/{}", encoded(&asked.model)),
            asked,
            encoding,
            requests: Arc::new([]),
        })
    }

    fn kept(&self) -> Kept {
        Kept::new(self.authority.clone(), self.asked.timeout)
    }

    /// Asks for a document.
    fn get<T: for<'de> Deserialize<'de>>(&self, path: &str) -> Result<T> {
        let mut kept = self.kept();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.authority);
        let place = || format!("http://{}{path}", self.authority);
        let reply = kept.ask(request.as_bytes()).with_context(place)?;
        if reply.status != 200 {
            bail!("{}: HTTP {}: {}", place(), reply.status, message(&reply));
        }
        serde_json::from_slice(reply.body).with_context(place)
    }

    fn request(&self, batch: &Batch) -> Result<Vec<u8>> {
        let body = body::write(batch, &self.asked.params, self.encoding)?;
        let (kind, length) = match body.json_bytes {
            Some(json) => (
                "application/octet-stream",
                format!("Inference-Header-Content-Length: {json}\r\n"),
            ),
            None => ("application/json", String::new()),
        };
        let head = format!(
            "POST {}/infer HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\n{length}Content-Length: {}\r\n\r\n",
            self.path,
            self.authority,
            body.bytes.len()
        );
        Ok([head.into_bytes(), body.bytes].concat())
    }
}

impl Door for Http {
    fn describe(&self) -> Result<ModelInfo> {
        let metadata: Metadata = self.get(&self.path)?;
        Ok(model_info(
            &self.asked.model,
            &metadata.versions,
            metadata.inputs,
        ))
    }

    fn prepare(&mut self, requests: Vec<Batch>) -> Result<()> {
        let requests = requests.iter().map(|batch| self.request(batch));
        self.requests = requests.collect::<Result<Vec<_>>>()?.into();
        Ok(())
    }

    fn try_one(&self) -> Result<usize> {
        let mut kept = self.kept();
        let answer = asked(&mut kept, &self.requests[0]).map_err(error)?;
        Ok(answer.body.len())
    }

    fn connect(&self, _in_flight: usize) -> Result<Box<dyn Connection>> {
        let mut kept = self.kept();
        kept.connect()
            .with_context(|| format!("http://{}", self.authority))?;
        Ok(Box::new(OneAtATime {
            kept,
            requests: Arc::clone(&self.requests),
        }))
    }

    fn server_times(&self) -> Option<ServerTimes> {
        // Not every server has them, and a table without shares is no failure.
        let told: Statistics = self.get(&format!("{}/stats", self.path)).ok()?;
        let of_versions = told.model_stats.iter().map(|model| {
            let stats = &model.inference_stats;
            Counted {
                count: stats.queue.count,
                queue_ns: stats.queue.ns,
                run_ns: stats.compute_infer.ns,
            }
        });
        Some(server_times(of_versions))
    }
}

struct OneAtATime {
    kept: Kept,
    requests: Arc<[Vec<u8>]>,
}

impl Connection for OneAtATime {
    fn ask(&mut self, request: usize) -> Outcome {
        asked(&mut self.kept, &self.requests[request]).map(|_| None)
    }
}

/// Sends a request, and gives its result.
fn asked<'a>(kept: &'a mut Kept, request: &[u8]) -> Result<Reply<'a>, Failure> {
    match kept.ask(request) {
        Ok(reply @ Reply { status: 200, .. }) => Ok(reply),
        Ok(reply) => Err(Failure {
            code: format!("HTTP-{}", reply.status),
            message: message(&reply),
        }),
        Err(error) => {
            let code = match error.kind() {
                // What a read that took too long gives depends on the system.
                ErrorKind::TimedOut | ErrorKind::WouldBlock => "TIMEOUT",
                ErrorKind::InvalidData => "BAD-ANSWER",
                _ => "CONNECTION",
            };
            Err(Failure {
                code: code.to_owned(),
                message: error.to_string(),
            })
        }
    }
}

/// What an answer that is no result says.
fn message(reply: &Reply<'_>) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(reply.body).ok();
    let field = document.as_ref().and_then(|document| {
        let text = |name| document.get(name)?.as_str();
        text("error").or_else(|| text("detail"))
    });
    match field {
        Some(text) => shortened(text),
        None => shortened(&String::from_utf8_lossy(reply.body)),
    }
}

/// A name as a part of a path.
fn encoded(name: &str) -> String {
    let mut path = String::new();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                path.push(byte.into())
            }
            other => path += &format!("%{other:02X}"),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_paths() {
        assert_eq!(encoded("a b/ü.predict"), "a%20b%2F%C3%BC.predict");
    }

    #[test]
    fn what_a_server_says_is_the_message() {
        let said = |body: &str| {
            message(&Reply {
                status: 400,
                body: body.as_bytes(),
            })
        };
        assert_eq!(said("{\"error\": \"no such model\"}"), "no such model");
        assert_eq!(said("{\"detail\": \"wrong\"}"), "wrong");
        assert_eq!(said("Not Found"), "Not Found");
        assert_eq!(said(&"x".repeat(10_000)).len(), 500);
    }
}
