//! Peers that stall, crawl or break off, over sockets of this machine; seconds pass as they are told to.

use std::sync::Weak;
use std::task::Waker;

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body, Frame};

use super::super::serving::{self, HttpVersion};
use super::super::watched::Watched;
use super::*;
use crate::config::{Asked, Config};

/// How HTTP/2 begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Settings: the window of a stream has no byte.
const NO_WINDOW: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";
/// `GET http:/` on stream 1, whole.
const GET: &[u8] = b"\0\0\x03\x01\x05\0\0\0\x01\x82\x86\x84";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0whatever";
/// The window of stream 1 has a byte more.
const A_BYTE_MORE: &[u8] = b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\x01";

/// Runs a test on a thread's runtime, as a door's.
fn on_a_thread(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let limited = async {
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, test()).await.expect("it hangs");
    };
    tokio::task::LocalSet::new().block_on(&runtime, limited);
}

fn connections() -> Rc<Connections> {
    let config = Config::from_command_line(["p".into()], |_| None).unwrap();
    let Asked::Run(config) = config else {
        panic!("no flags were given")
    };
    Connections::new(Arc::new(Shared::new(&config)))
}

/// A body of one piece.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Bytes of an answer that can be seen to be let go.
struct Seen(Arc<Vec<u8>>);

impl AsRef<[u8]> for Seen {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A peer of a connection.
struct Peer(TcpStream);

impl Peer {
    async fn send(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.0.writable().await.unwrap();
            match self.0.try_write(bytes) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return, // it is closed, which the next read tells
            }
        }
    }

    /// What has come; nothing once it is closed.
    async fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        loop {
            self.0.readable().await.unwrap();
            match self.0.try_read(&mut bytes) {
                Ok(read) => {
                    bytes.truncate(read);
                    return bytes;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Vec::new(),
            }
        }
    }

    /// Asks whether the other end is there; `false` if it has closed.
    async fn ping(&self) -> bool {
        self.send(PING).await;
        let mut read = Vec::new();
        loop {
            let more = self.read().await;
            if more.is_empty() {
                return false;
            }
            read.extend(more);
            if read.windows(8).any(|bytes| bytes == b"whatever") {
                return true;
            }
        }
    }
}

/// The two ends of a connection.
async fn pair() -> (TcpStream, Peer) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peer = TcpStream::connect(address).await.unwrap();
    (listener.accept().await.unwrap().0, Peer(peer))
}

/// A connection of HTTP/2 that answers each request with 100,000 bytes.
async fn served(connections: &Rc<Connections>) -> (Peer, Rc<Connection>, Weak<Vec<u8>>) {
    let (stream, peer) = pair().await;
    let address = stream.peer_addr().unwrap();
    let connection = connections.add(Protocol::Grpc, address).unwrap();
    let answer = Arc::new(vec![7; 100_000]);
    let seen = Arc::downgrade(&answer);
    let serving = {
        let (connections, connection) = (connections.clone(), connection.clone());
        let answer = Rc::new(Cell::new(Some(Bytes::from_owner(Seen(answer)))));
        async move {
            let answer =
                move |_open, _request| std::future::ready(Response::new(Whole(answer.take())));
            serving::serve(
                HttpVersion::Http2(HttpVersion::http2()),
                stream,
                &connection,
                &connections.shared,
                answer,
            )
            .await;
            connection.linger().await;
            connections.remove(&connection);
        }
    };
    tokio::task::spawn_local(serving);
    (peer, connection, seen)
}

#[test]
fn a_peer_that_opens_no_window_but_answers_is_closed_and_its_answer_let_go() {
    on_a_thread(async || {
        let connections = connections();
        let (peer, connection, answer) = served(&connections).await;
        peer.send(&[PREFACE, NO_WINDOW, GET].concat()).await;
        assert!(peer.ping().await);
        assert_eq!(connection.owed.get(), 1);
        for _ in 0..STALL_SECONDS {
            connections.look();
            assert!(peer.ping().await, "closed too soon");
        }
        connections.look();
        assert!(!peer.ping().await, "it is served for ever");
        assert!(answer.upgrade().is_none());
        assert!(connections.all.borrow().is_empty());
    });
}

#[test]
fn a_peer_that_takes_its_answer_slowly_is_not_closed() {
    on_a_thread(async || {
        let connections = connections();
        let (peer, connection, answer) = served(&connections).await;
        peer.send(&[PREFACE, NO_WINDOW, GET].concat()).await;
        for _ in 0..3 {
            for _ in 0..STALL_SECONDS {
                connections.look();
                assert!(peer.ping().await);
            }
            peer.send(A_BYTE_MORE).await;
            assert!(peer.ping().await);
        }
        assert_eq!(connection.owed.get(), 1);
        assert!(answer.upgrade().is_some());
    });
}

#[test]
fn a_connection_of_http2_that_does_not_begin_is_closed_like_a_head_that_does_not_come() {
    on_a_thread(async || {
        let connections = connections();
        let (silent, ..) = served(&connections).await;
        let (slow, ..) = served(&connections).await;
        let (good, ..) = served(&connections).await;
        good.send(&[PREFACE, NO_WINDOW].concat()).await;
        assert!(good.ping().await);
        for letter in PREFACE.chunks(1).take(HEAD_SECONDS as usize + 1) {
            assert_eq!(connections.all.borrow().len(), 3);
            slow.send(letter).await;
            tokio::task::yield_now().await;
            connections.look();
        }
        // What the server says of itself, and then the end.
        for peer in [silent, slow] {
            while !peer.read().await.is_empty() {}
        }
        assert!(good.ping().await);
        assert_eq!(connections.all.borrow().len(), 1);
    });
}

/// A connection whose protocol has ended as this says, with bytes of the peer unread, and as many bytes on the way to the
/// peer as the system takes.
async fn ended(
    connections: &Rc<Connections>,
    how: Result<(), &'static str>,
) -> (Rc<Connection>, Peer, usize) {
    let (stream, peer) = pair().await;
    let address = stream.peer_addr().unwrap();
    let connection = connections.add(Protocol::Grpc, address).unwrap();
    connection.speaks.set(Speaks::Streams);
    stream.writable().await.unwrap();
    let mut written = 0;
    while let Ok(more) = stream.try_write(&[7; 65_536]) {
        written += more;
    }
    peer.send(PING).await;
    let watched = Watched::new(stream, connection.clone());
    let protocol = async move {
        let _watched = watched;
        how
    };
    connection.drive(protocol, |_| {}).await;
    (connection, peer, written)
}

/// Whether a future is over when it is looked at once.
fn is_over(future: Pin<&mut impl Future>) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    future.poll(&mut cx).is_ready()
}

#[test]
fn the_last_answer_is_not_lost_when_its_peer_still_sends_while_it_is_closed() {
    on_a_thread(async || {
        let connections = connections();
        let (connection, peer, written) = ended(&connections, Ok(())).await;
        let lingering = tokio::task::spawn_local(async move { connection.linger().await });
        let mut read = 0;
        loop {
            // It tells what it has taken.
            peer.send(PING).await;
            let more = peer.read().await;
            if more.is_empty() {
                break;
            }
            read += more.len();
        }
        assert_eq!(read, written);
        drop(peer);
        lingering.await.unwrap();
    });
}

#[test]
fn a_connection_that_lingers_is_closed_when_that_is_told() {
    on_a_thread(async || {
        let connections = connections();
        let (connection, _peer, _) = ended(&connections, Ok(())).await;
        let mut lingering = std::pin::pin!(connection.linger());
        assert!(!is_over(lingering.as_mut()));
        connection.tell(Wanted::Finish);
        assert!(!is_over(lingering.as_mut()));
        connection.tell(Wanted::Close);
        assert!(is_over(lingering));
    });
}

#[test]
fn a_connection_that_broke_or_was_told_to_close_does_not_linger() {
    on_a_thread(async || {
        let connections = connections();
        let (broken, _peer, _) = ended(&connections, Err("it broke")).await;
        assert!(is_over(std::pin::pin!(broken.linger())));
        let (peer, told, _) = served(&connections).await;
        peer.send(&[PREFACE, NO_WINDOW].concat()).await;
        assert!(peer.ping().await);
        told.tell(Wanted::Close);
        while !peer.read().await.is_empty() {}
        assert!(told.left.take().is_none());
    });
}
