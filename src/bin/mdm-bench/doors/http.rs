//! The Open Inference Protocol over REST: any server that speaks it.

mod body;
mod connection;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mdm::wire::server::{DimInfo, ModelInfo, PortInfo};
use mdm::{Batch, Params};
use serde::Deserialize;

use super::Door;
use crate::drive::Connection;
use crate::measure::{Failure, Outcome};
use crate::report::ServerTimes;
use connection::{Kept, Reply};

pub use body::Encoding;

/// How long a message from a server may be before it is cut.
const MESSAGE_CHARS: usize = 500;

/// What is asked of a server over HTTP.
pub struct Http {
    /// `HOST:PORT`.
    authority: String,
    /// Of the model: `/v2/models/NAME`, behind what the URL has before that.
    path: String,
    model: String,
    params: Params,
    encoding: Encoding,
    timeout: Duration,
    requests: Arc<[Vec<u8>]>,
}

/// Which model, and how.
pub struct Asked {
    pub model: String,
    pub params: Params,
    pub encoding: Encoding,
    pub timeout: Duration,
}

/// A model's metadata.
#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    inputs: Vec<TensorMetadata>,
}

#[derive(Deserialize)]
struct TensorMetadata {
    name: String,
    datatype: String,
    shape: Vec<i64>,
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
    pub fn new(url: &str, asked: Asked) -> Result<Http> {
        let expected = "expected http://HOST:PORT, as in http://localhost:8000";
        let rest = url.strip_prefix("http://");
        let rest = rest.with_context(|| format!("{url:?}: {expected}"))?;
        let (host, folder) = rest.split_once('/').unwrap_or((rest, ""));
        ensure!(
            !host.is_empty() && !host.contains(['@', '?', '#']),
            "{url:?}: {expected}"
        );
        let has_port = host
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let folder = match folder.trim_end_matches('/') {
            "" => String::new(),
            folder => format!("/{folder}"),
        };
        Ok(Http {
            authority,
            path: format!("{folder}/v2/models/{}", encoded(&asked.model)),
            model: asked.model,
            params: asked.params,
            encoding: asked.encoding,
            timeout: asked.timeout,
            requests: Arc::new([]),
        })
    }

    fn kept(&self) -> Kept {
        Kept::new(self.authority.clone(), self.timeout)
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
        let body = body::write(batch, &self.params, self.encoding)?;
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
        let is_open = |input: &TensorMetadata| input.shape.first() == Some(&-1);
        let kind = match metadata.inputs.iter().all(is_open) {
            true => "batched",
            false => "whole",
        };
        let port = |input: TensorMetadata| PortInfo {
            name: input.name,
            dtype: input.datatype,
            shape: input.shape.into_iter().map(DimInfo::Size).collect(),
        };
        Ok(ModelInfo {
            name: self.model.clone(),
            version: metadata.versions.last().cloned().unwrap_or_default(),
            kind: kind.to_owned(),
            inputs: metadata.inputs.into_iter().map(port).collect(),
            outputs: Vec::new(),
        })
    }

    fn prepare(&mut self, requests: Vec<Batch>) -> Result<()> {
        let requests = requests.iter().map(|batch| self.request(batch));
        self.requests = requests.collect::<Result<Vec<_>>>()?.into();
        Ok(())
    }

    fn connect(&self) -> Result<Box<dyn Connection>> {
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
        let of_versions = told
            .model_stats
            .into_iter()
            .map(|model| model.inference_stats);
        Some(
            of_versions.fold(ServerTimes::default(), |sum, stats| ServerTimes {
                requests: sum.requests + stats.queue.count,
                queue: sum.queue + Duration::from_nanos(stats.queue.ns),
                run: sum.run + Duration::from_nanos(stats.compute_infer.ns),
            }),
        )
    }
}

struct OneAtATime {
    kept: Kept,
    requests: Arc<[Vec<u8>]>,
}

impl Connection for OneAtATime {
    fn ask(&mut self, request: usize) -> Outcome {
        match self.kept.ask(&self.requests[request]) {
            Ok(Reply { status: 200, .. }) => Ok(None),
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
}

/// What an answer that is no result says.
fn message(reply: &Reply<'_>) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(reply.body).ok();
    let field = document.as_ref().and_then(|document| {
        let text = |name| document.get(name)?.as_str();
        text("error").or_else(|| text("detail"))
    });
    let text = match field {
        Some(text) => text.to_owned(),
        None => String::from_utf8_lossy(reply.body).into_owned(),
    };
    text.chars().take(MESSAGE_CHARS).collect()
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

    fn http(url: &str) -> Result<Http> {
        let asked = Asked {
            model: "a b/ü.predict".to_owned(),
            params: Params::default(),
            encoding: Encoding::Json,
            timeout: Duration::from_secs(1),
        };
        Http::new(url, asked)
    }

    #[test]
    fn urls_are_read() {
        let path = "/v2/models/a%20b%2F%C3%BC.predict";
        for (url, authority, folder) in [
            ("http://localhost:8000", "localhost:8000", ""),
            ("http://localhost", "localhost:80", ""),
            ("http://[::1]:9/", "[::1]:9", ""),
            (
                "http://10.0.0.1:80/some/place/",
                "10.0.0.1:80",
                "/some/place",
            ),
        ] {
            let http = http(url).unwrap();
            assert_eq!(
                (&*http.authority, http.path),
                (authority, format!("{folder}{path}"))
            );
        }
        for url in [
            "https://localhost",
            "localhost:8000",
            "http://",
            "http://a@b",
            "tcp://localhost:1",
        ] {
            let e = http(url).err().unwrap().to_string();
            assert!(e.contains("http://HOST:PORT"), "{e}");
        }
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
        assert_eq!(said(&"x".repeat(10_000)).len(), MESSAGE_CHARS);
    }
}
