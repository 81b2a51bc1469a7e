//! What the guide's `curl` lines do, without a curl: GET, or POST with `-d`, and headers with `-H`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use crate::common::PATIENCE;

/// Runs a line against a server whose door has this port, and gives what it prints. Files are in `dir`.
pub fn run(line: &str, http_port: &str, dir: &Path) -> String {
    let mut headers = String::new();
    let (mut url, mut body) = (None, None);
    let mut words = words(line).into_iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-H" => headers += &format!("{}\r\n", words.next().expect("a header")),
            "-d" => {
                let data = words.next().expect("data");
                body = Some(match data.strip_prefix('@') {
                    Some(file) => std::fs::read_to_string(dir.join(file)).expect("a file"),
                    None => data,
                });
            }
            word => url = Some(word.to_owned()),
        }
    }
    let url = url.expect("an address");
    let path = url.strip_prefix("localhost:8000").expect("our address");
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(format!("127.0.0.1:{http_port}")).expect("a door");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("it is taken");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{line}: {answer}");
    body.to_owned()
}

/// The words of a line; quotes hold one together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("a word").push(c),
        }
    }
    words
}
