//! An HTTP/1.1 connection that is kept and has one request at a time on it: as much of the protocol as a generator needs
//! that is to cost next to nothing.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// No line is as long as this, and no head has so many.
const MOST_LINE_BYTES: u64 = 64 << 10;
const MOST_LINES: usize = 1000;

type Stream = BufReader<TcpStream>;

/// A client's end.
pub struct Kept {
    /// `HOST:PORT`.
    authority: String,
    /// The longest that nothing may come or go.
    timeout: Duration,
    stream: Option<Stream>,
    body: Vec<u8>,
}

/// An answer.
pub struct Reply<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

impl Kept {
    pub fn new(authority: String, timeout: Duration) -> Kept {
        Kept {
            authority,
            timeout,
            stream: None,
            body: Vec::new(),
        }
    }

    /// Connects, before there is something to send.
    pub fn connect(&mut self) -> io::Result<()> {
        self.stream = Some(self.open()?);
        Ok(())
    }

    fn open(&self) -> io::Result<Stream> {
        let stream = TcpStream::connect(&self.authority)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(BufReader::with_capacity(64 << 10, stream))
    }

    /// Sends a whole request and reads the whole answer. An error ends the connection, and the next request opens another.
    pub fn ask(&mut self, request: &[u8]) -> io::Result<Reply<'_>> {
        let (mut stream, first) = match self.stream.take().map(|kept| send(kept, request)) {
            // A server may close a connection that was idle, just as it is used again.
            Some(Err(e)) if is_closed(&e) => send(self.open()?, request)?,
            Some(sent) => sent?,
            None => send(self.open()?, request)?,
        };
        let head = head(&mut stream, &first)?;
        self.body.clear();
        match head.body {
            Some(length) => read_body(&mut stream, length, &mut self.body)?,
            None => read_chunks(&mut stream, &mut self.body)?,
        }
        if !head.closes {
            self.stream = Some(stream);
        }
        Ok(Reply {
            status: head.status,
            body: &self.body,
        })
    }
}

/// Sends a request, and waits for the first line of its answer.
fn send(mut stream: Stream, request: &[u8]) -> io::Result<(Stream, String)> {
    stream.get_mut().write_all(request)?;
    let first = line(&mut stream)?;
    Ok((stream, first))
}

/// What a head says.
struct Head {
    status: u16,
    /// The body's length; `None` if it comes in chunks. One that only the connection's end delimits is not read.
    body: Option<u64>,
    /// Whether the connection ends with the answer.
    closes: bool,
}

fn head(stream: &mut Stream, first: &str) -> io::Result<Head> {
    let mut words = first.split(' ');
    let status = match (words.next(), words.next().map(str::parse)) {
        (Some("HTTP/1.1"), Some(Ok(status))) => status,
        _ => return Err(bad("it does not begin with a status")),
    };
    let mut head = Head {
        status,
        body: Some(0),
        closes: false,
    };
    for _ in 0..MOST_LINES {
        let line = line(stream)?;
        if line.is_empty() {
            return Ok(head);
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| bad("a header without a name"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse();
            head.body = Some(length.map_err(|_| bad("a Content-Length that is no number"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.body = None;
        } else if name.eq_ignore_ascii_case("connection") {
            head.closes = value.eq_ignore_ascii_case("close");
        }
    }
    Err(bad("a head that does not end"))
}

fn read_body(stream: &mut Stream, length: u64, into: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.take(length).read_to_end(into)?;
    match read as u64 == length {
        true => Ok(()),
        false => Err(closed()),
    }
}

fn read_chunks(stream: &mut Stream, into: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let size = line(stream)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        match u64::from_str_radix(size, 16) {
            Ok(0) => break,
            Ok(size) => read_body(stream, size, into)?,
            Err(_) => return Err(bad("a chunk without a size")),
        }
        line(stream)?;
    }
    // Trailers, then an empty line.
    while !line(stream)?.is_empty() {}
    Ok(())
}

/// A line without its end.
fn line(stream: &mut Stream) -> io::Result<String> {
    let mut line = String::new();
    stream.take(MOST_LINE_BYTES).read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(whole) => Ok(whole.trim_end_matches('\r').to_owned()),
        None if line.len() as u64 == MOST_LINE_BYTES => Err(bad("a line that does not end")),
        None => Err(closed()),
    }
}

fn closed() -> io::Error {
    io::Error::new(ErrorKind::UnexpectedEof, "the server closed the connection")
}

fn is_closed(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
    )
}

fn bad(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the answer is not HTTP/1.1: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers each connection in turn, once something has come on it, piece by piece; then it closes.
    fn server(answers: Vec<Vec<&'static [u8]>>) -> Kept {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for pieces in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut some = [0; 100];
                for piece in pieces {
                    if piece.is_empty() {
                        // The next request.
                        let _ = stream.read(&mut some);
                    }
                    let _ = stream.write_all(piece);
                    let _ = stream.flush();
                }
            }
        });
        Kept::new(authority, Duration::from_secs(20))
    }

    #[track_caller]
    fn answered(kept: &mut Kept, status: u16, body: &str) {
        let reply = kept.ask(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(
            (reply.status, std::str::from_utf8(reply.body).unwrap()),
            (status, body)
        );
    }

    #[test]
    fn bodies_of_every_kind_are_read_on_one_connection() {
        let mut kept = server(vec![vec![
            b"",
            b"HTTP/1.1 200 OK\r\ncontent-le",
            b"ngth: 5\r\n\r\nhel",
            b"lo",
            b"",
            b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456",
            b"789\r\n0\r\nLate: 1\r\n\r\n",
            b"",
            b"HTTP/1.1 204 None\r\n\r\n",
            b"",
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nend",
        ]]);
        answered(&mut kept, 200, "hello");
        answered(&mut kept, 503, "abc0123456789");
        answered(&mut kept, 204, "");
        answered(&mut kept, 200, "end");
        assert!(kept.stream.is_none(), "the server closes it");
    }

    #[test]
    fn a_connection_that_was_closed_while_idle_is_opened_anew() {
        let good: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n";
        let mut kept = server(vec![vec![b"", good, b"1"], vec![b"", good, b"2"]]);
        answered(&mut kept, 200, "1");
        answered(&mut kept, 200, "2");
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for wrong in [
            &b"ZMTP/3.0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1",
        ] {
            let mut kept = server(vec![vec![b"", wrong]]);
            let e = kept.ask(b"GET / HTTP/1.1\r\n\r\n").err().unwrap();
            let e = e.to_string();
            assert!(e.contains("not HTTP/1.1") || e.contains("closed"), "{e}");
        }
    }
}
