//! A client of HTTP/1.1 that can be as odd as a test needs it to be.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use serde_json::Value;

use crate::common::{PATIENCE, Server};

/// One connection.
pub struct Http {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value, by its name in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        let read = serde_json::from_slice(&self.body);
        read.unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The message of an error.
    pub fn error(&self) -> String {
        let json = self.json();
        json["error"].as_str().expect("an error").to_owned()
    }

    /// The JSON ahead of binary tensors, and their bytes.
    pub fn parts(&self) -> (Value, &[u8]) {
        let length = self.header("inference-header-content-length");
        let length: usize = length.expect("a length").parse().expect("a number");
        let (json, behind) = self.body.split_at(length);
        (serde_json::from_slice(json).expect("JSON"), behind)
    }
}

impl Http {
    pub fn to(server: &Server) -> Http {
        Http::to_port(server.http_port)
    }

    pub fn to_port(port: u16) -> Http {
        assert_ne!(port, 0, "a server with a door");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Http {
            stream: BufReader::new(stream),
        }
    }

    /// Sends bytes as they are; `false` if the server has closed.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Another hold of the same connection.
    pub fn other_end(&self) -> Http {
        let stream = self.stream.get_ref().try_clone().expect("a descriptor");
        Http {
            stream: BufReader::new(stream),
        }
    }

    /// The connection, of which nothing was read yet.
    pub fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }

    /// Whether something has come that was not read.
    pub fn has_answer(&self) -> bool {
        let stream = self.stream.get_ref();
        stream.set_nonblocking(true).expect("an option");
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("an option");
        peeked.is_ok_and(|bytes| bytes > 0)
    }

    /// Closes the connection, whoever else holds it.
    pub fn hang_up(self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both); // it may be closed
    }

    /// A request with a body and its length.
    pub fn request_of(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Vec<u8> {
        let mut request = format!("{method} {path} HTTP/1.1\r\n");
        if headers
            .iter()
            .all(|(name, _)| !name.eq_ignore_ascii_case("host"))
        {
            request += "host: localhost\r\n";
        }
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        if method != "GET" {
            request += &format!("content-length: {}\r\n", body.len());
        }
        request += "\r\n";
        [request.as_bytes(), body].concat()
    }

    /// Sends a request with a body and its length.
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let request = self.request_of(method, path, headers, body);
        assert!(self.send(&request), "{method} {path} was not taken");
    }

    /// Sends a request and reads its answer.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        self.ask(method, path, headers, body);
        self.answer().expect("an answer")
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    /// Posts JSON.
    pub fn post(&mut self, path: &str, json: &Value) -> Answer {
        self.request("POST", path, &[], json.to_string().as_bytes())
    }

    /// Posts JSON with tensors behind it.
    pub fn post_binary(&mut self, path: &str, json: &Value, behind: &[u8]) -> Answer {
        let json = json.to_string();
        let length = json.len().to_string();
        let headers = [("Inference-Header-Content-Length", length.as_str())];
        self.request("POST", path, &headers, &[json.as_bytes(), behind].concat())
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = self.stream.read_until(b'\n', &mut line).ok()?;
        (read > 0).then(|| String::from_utf8(line).expect("text").trim_end().to_owned())
    }

    /// The next answer's status and headers; `None` if the connection has closed.
    pub fn head(&mut self) -> Option<Answer> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).expect("a status");
        let status = status.parse().expect("a number");
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        Some(Answer {
            status,
            headers,
            body: Vec::new(),
        })
    }

    /// The next answer; `None` if the connection has closed.
    pub fn answer(&mut self) -> Option<Answer> {
        let mut answer = self.head()?;
        if answer.status == 100 {
            return Some(answer);
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                answer.body.extend_from_slice(&chunk);
            }
            return Some(answer);
        }
        let length = answer.header("content-length").map_or("0", |length| length);
        answer.body = vec![0; length.parse().expect("a number")];
        self.stream.read_exact(&mut answer.body).ok()?;
        Some(answer)
    }

    /// A chunk of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let length = usize::from_str_radix(&self.line()?, 16).expect("a length");
        let mut chunk = vec![0; length];
        self.stream.read_exact(&mut chunk).ok()?;
        self.line()?;
        (length > 0).then_some(chunk)
    }

    /// Whether the server closes, and sends nothing before. One that does neither for as long as answers are waited for has
    /// not closed.
    pub fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(read) => read == 0,
            // Any other error is a reset, which is as good.
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// All that comes until the server closes.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset ends it as well.
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }

    /// Answers are waited for no longer than that.
    pub fn wait_for(&self, time: std::time::Duration) {
        let set = self.stream.get_ref().set_read_timeout(Some(time));
        set.expect("a timeout");
    }

    /// Ends one direction, and goes on reading.
    pub fn end_writing(&self) {
        let ended = self.stream.get_ref().shutdown(Shutdown::Write);
        ended.expect("an open connection");
    }
}
