//! The client: sends rows to a server, and gets results.
//!
//! ```text
//! Client ── infer ───────▶ a session of the pool, for the length of the call    (pool.rs)
//!        ── infer, small ▶ a session that they share, where there are more calls at once than cores, and one for each
//!                          core of those that are many more    (small_sessions.rs, tickets.rs)
//!        ── infer_stream ▶ a session of the pool, for as long as the parts are read
//!        ── submit ──────▶ a session that tickets share ◀── fetch     (tickets.rs)
//!        ── status, … ───▶ a session of the pool without a way for results     (control.rs)
//!
//! Session ── Dealer ▶ port        what ends one of them ends the session: what is in flight
//!         └─ Dealer ▶ port_out    fails at once, and the next call opens a new session    (session.rs, zmtp/dealer.rs)
//! ```
//! There is no thread of the client's own: the caller's thread reads and writes the connections itself, or waits for
//! another caller that does so for both. So an idle session sends nothing, for as long as its owner likes; heartbeats are
//! sent only while a caller waits. A session takes two descriptors.

mod address;
mod call;
mod control;
mod encoded;
mod gathering;
mod inputs;
mod pool;
mod response;
mod session;
mod shared_place;
mod small_sessions;
mod stream;
#[cfg(test)]
mod tests;
mod tickets;

use std::sync::Arc;
use std::time::Duration;

use address::Address;
use call::{TimeLimit, gave_up};
use encoded::Encoded;
use inputs::LentInputs;
use pool::{Pool, SessionFor};
use session::{Next, Purpose, Session, Settings};
use tickets::{SharedSession, Submitted};

pub use call::Call;
pub use control::StopOutcome;
pub use inputs::{Inputs, IntoInputs, JsonRows};
pub use response::{Part, Response};
pub use stream::Parts;
pub use tickets::Ticket;

pub use crate::message::FailedRows;
pub use crate::wire::client::StopMode;
pub use crate::wire::server::{ModelInfo, Status, Welcome};

use crate::error::{Error, Result};
use crate::tensor::Batch;
use crate::wire::client::Delivery;

/// How long connecting may take, unless the builder says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a server, to be shared by any number of threads.
///
/// ```no_run
#[doc = include_str!("example.rs")]
/// ```
///
/// Data goes out as anything that is [`IntoInputs`]; what comes back is a [`Response`]. Arrays are those of
/// [`mdm::ndarray`](crate::ndarray).
///
/// Other languages: Python has a client of ours (`mdm::guide::python`); any that can ask over HTTP or gRPC uses the doors
/// (`mdm::guide::doors`); and [`mdm::wire`](crate::wire) has all that it takes to write a client such as this one.
pub struct Client {
    pool: Pool,
    timeout: Option<Duration>,
}

/// What a [`Client`] is made with.
#[derive(Clone, Default)]
pub struct Builder {
    connect_timeout: Option<Duration>,
    timeout: Option<Duration>,
    port_out: Option<String>,
}

impl Builder {
    /// The longest that opening a session may take; [`CONNECT_TIMEOUT`] by default.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Builder {
        self.connect_timeout = Some(timeout);
        self
    }

    /// The longest that a request may take, where its [`Call`] does not say it. Without it the server's default holds,
    /// and the client waits for as long as the session lives.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Builder {
        self.timeout = Some(timeout);
        self
    }

    /// Where results leave, if that is not where the server believes: `tcp://HOST:PORT`, as seen from outside.
    #[must_use]
    pub fn port_out(mut self, address: impl Into<String>) -> Builder {
        self.port_out = Some(address.into());
        self
    }

    /// Connects: a session is open when this returns.
    ///
    /// # Errors
    /// Within the connect timeout, saying which: `INVALID_ARGUMENT` for what is no address, `UNAVAILABLE` for a server
    /// that is not there or does not answer, `FAILED_PRECONDITION` for one of another kind or protocol version.
    pub fn connect(self, address: &str) -> Result<Client> {
        let client = self.connect_later(address)?;
        let session = Session::open(client.pool.settings(), Purpose::Infer)?;
        client.pool.give_back(session);
        Ok(client)
    }

    /// A client that connects at its first call. It also serves where only questions are to be asked, which take less
    /// of a server than rows do.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no address.
    pub fn connect_later(self, address: &str) -> Result<Client> {
        Ok(Client {
            pool: Pool::new(Settings {
                address: Address::parse(address)?,
                port_out: self.port_out.as_deref().map(Address::parse).transpose()?,
                connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            }),
            timeout: self.timeout,
        })
    }
}

impl Client {
    /// Connects to `tcp://HOST:PORT`, `HOST:PORT` or `ipc://PATH` (the server's `mdm-PORT.in`).
    ///
    /// # Errors
    /// As [`Builder::connect`].
    pub fn connect(address: &str) -> Result<Client> {
        Client::builder().connect(address)
    }

    /// Timeouts and other settings.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs rows through a model and waits for all results.
    ///
    /// `call` is a model's name, a JSON object of parameters, or a [`Call`].
    ///
    /// # Errors
    /// The server's, by its code. `UNAVAILABLE` at once if the session is lost, and the next call opens a new one.
    /// `RESOURCE_EXHAUSTED` for more bytes than the server takes at once.
    pub fn infer<'data>(
        &self,
        data: impl IntoInputs + 'data,
        call: impl Into<Call>,
    ) -> Result<Response> {
        self.infer_lent(data.lend_inputs()?, call.into())
    }

    fn infer_lent(&self, inputs: LentInputs<'_>, call: Call) -> Result<Response> {
        let (request, limit) = call.encode(inputs, self.timeout, Delivery::Whole)?;
        let place = self.pool.session_for(&request);
        if let SessionFor::Sharing(others) = &place {
            return self.infer_sharing(request, limit, others.before);
        }
        let mut session = match self.pool.take(Purpose::Infer) {
            Ok(session) => session,
            // The server may have no more to give (`--max-sessions`).
            Err(_) if self.pool.has_small() => return self.infer_sharing(request, limit, 0),
            Err(e) => return Err(e),
        };
        let deadline = limit.deadline();
        let answer = session.send_now(request, deadline).and_then(|id| {
            loop {
                match session.next(deadline)? {
                    Next::Message(of, message) if of == id => {
                        return Response::from_message(message);
                    }
                    // The late answer to a request that was given up.
                    Next::Message(..) => {}
                    Next::TimedOut => {
                        session.send_cancel(id);
                        return Err(gave_up());
                    }
                }
            }
        });
        self.pool.give_back(session);
        answer
    }

    /// Runs rows on a session that small requests share, of so many `calls` at once.
    fn infer_sharing(
        &self,
        request: Encoded<'_>,
        limit: TimeLimit,
        calls: usize,
    ) -> Result<Response> {
        let ticket = submit_to(|| self.pool.for_small(calls), request.into_owned(), limit)?;
        let response = ticket.fetch()?;
        let bytes = response.parts().iter().map(Batch::payload_bytes).sum();
        self.pool.note_result(bytes);
        Ok(response)
    }

    /// Sends rows to a model, and leaves the results to [`Client::fetch`].
    ///
    /// # Errors
    /// As [`Client::infer`], as far as they show before an answer.
    pub fn submit(&self, data: impl IntoInputs, call: impl Into<Call>) -> Result<Ticket> {
        let inputs = data.into_inputs()?.into();
        let (request, limit) = call.into().encode(inputs, self.timeout, Delivery::Whole)?;
        submit_to(|| self.pool.for_tickets(), request, limit)
    }

    /// Waits for the results of a request, whatever has come before or comes after.
    ///
    /// # Errors
    /// As [`Client::infer`].
    pub fn fetch(&self, ticket: Ticket) -> Result<Response> {
        ticket.fetch()
    }

    /// Waits for the results of several requests, and gives them in the order of the tickets.
    pub fn fetch_all(&self, tickets: impl IntoIterator<Item = Ticket>) -> Vec<Result<Response>> {
        tickets.into_iter().map(Ticket::fetch).collect()
    }

    /// Takes a request back. It ends with `CANCELLED`, or with its result if that was faster.
    pub fn cancel(&self, ticket: &Ticket) {
        ticket.cancel();
    }

    /// Runs rows through a model, and gives parts of the results as they finish, in any order.
    ///
    /// # Errors
    /// As [`Client::infer`], as far as they show before an answer.
    pub fn infer_stream(&self, data: impl IntoInputs, call: impl Into<Call>) -> Result<Parts<'_>> {
        let inputs = data.into_inputs()?.into();
        let (request, limit) = call.into().encode(inputs, self.timeout, Delivery::Parts)?;
        let mut session = self.pool.take(Purpose::Infer)?;
        match session.send_owned(request, limit.deadline()) {
            Ok(id) => Ok(Parts::new(self, session, id, limit.deadline())),
            Err(e) => {
                self.pool.give_back(session);
                Err(e)
            }
        }
    }
}

/// Submits a request on the session that `shared` gives.
fn submit_to(
    shared: impl Fn() -> Result<Arc<SharedSession>>,
    mut request: Encoded<'static>,
    limit: TimeLimit,
) -> Result<Ticket> {
    // A session may be lost right after it was found or opened. Twice in a row is reported.
    for _ in 0..2 {
        match shared()?.submit(request, limit)? {
            Submitted::Ticket(ticket) => return Ok(ticket),
            Submitted::Lost(back) => request = back,
        }
    }
    Err(Error::unavailable("the session was lost as it was opened"))
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.pool.settings().address.to_string())
            .finish_non_exhaustive()
    }
}
