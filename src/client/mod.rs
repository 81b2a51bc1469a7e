//! The client: rows in, results out.
//!
//! ```text
//! Client ── infer ───────▶ a session of the pool, for the length of the call
//!        ── infer, small ▶ a session that they share, where there are more calls at once than cores    (tickets.rs)
//!        ── infer_stream ▶ a session of the pool, for as long as the parts are read
//!        ── submit ──────▶ a session that tickets share ◀── fetch     (tickets.rs)
//!        ── status, … ───▶ a session of another pool, without a way for results     (control.rs)
//!
//! Session ── Dealer ▶ port        what ends one of them ends the session: what is in flight
//!         └─ Dealer ▶ port_out    fails at once, and the next call opens a new session    (session.rs, zmtp/dealer.rs)
//! ```
//! There is no thread of the client's own: the caller's thread reads and writes the connections itself, or waits for
//! another caller that does so for both. So a session that nobody uses says nothing, for as long as its owner likes; only
//! while somebody waits is the server asked for signs of life. A session takes two descriptors.

mod address;
mod call;
mod control;
mod encoded;
mod inputs;
mod response;
mod session;
mod stream;
#[cfg(test)]
mod tests;
mod tickets;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use address::Address;
use call::{Answer, Limit, gave_up};
use encoded::Encoded;
use inputs::LentInputs;
use session::{Event, Purpose, Session, Settings};
use tickets::{Shared, Submitted};

pub use call::Call;
pub use control::StopOutcome;
pub use inputs::{Inputs, IntoInputs, Rows};
pub use response::{PartRows, Response};
pub use stream::Parts;
pub use tickets::Ticket;

pub use crate::wire::client::StopMode;
pub use crate::wire::server::{ModelInfo, Status, Welcome};

use crate::error::{Error, Result};
use crate::tensor::Batch;

/// How long connecting may take, unless the builder says otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a server, to be shared by any number of threads.
///
/// ```no_run
/// use mdm::client::Client;
///
/// # fn main() -> mdm::Result<()> {
/// let client = Client::connect("tcp://localhost:5555")?;
/// let images = ndarray::Array2::<f32>::zeros((1797, 64));
/// let response = client.infer(&images, "digits")?;
/// println!("{:?}", response.array::<f32>("probabilities")?);
/// # Ok(())
/// # }
/// ```
pub struct Client {
    settings: Settings,
    timeout: Option<Duration>,
    /// Idle sessions for rows.
    idle: Mutex<Vec<Session>>,
    /// Idle sessions for questions.
    idle_ask: Mutex<Vec<Session>>,
    /// The session of all tickets.
    tickets: Mutex<Option<Arc<Shared>>>,
    /// The session of small requests when there are many at once. Not that of tickets: theirs may be large, and what is
    /// behind them would wait.
    small: Mutex<Option<Arc<Shared>>>,
    cores: usize,
    /// Calls of [`Client::infer`] that have a session of their own.
    calls: AtomicUsize,
    /// Calls that share one.
    sharing: AtomicUsize,
    /// Results were so large that requests do not share a session for it.
    large_results: AtomicBool,
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
        let session = Session::open(&client.settings, Purpose::Infer)?;
        client.give_back(session);
        Ok(client)
    }

    /// A client that connects at its first call. It also serves where only questions are to be asked, which take less
    /// of a server than rows do.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what is no address.
    pub fn connect_later(self, address: &str) -> Result<Client> {
        Ok(Client {
            settings: Settings {
                address: Address::parse(address)?,
                port_out: self.port_out.as_deref().map(Address::parse).transpose()?,
                connect_timeout: self.connect_timeout.unwrap_or(CONNECT_TIMEOUT),
            },
            timeout: self.timeout,
            idle: Mutex::default(),
            idle_ask: Mutex::default(),
            tickets: Mutex::default(),
            small: Mutex::default(),
            // Asked once: the answer is in files.
            cores: thread::available_parallelism().map_or(1, usize::from),
            calls: AtomicUsize::new(0),
            sharing: AtomicUsize::new(0),
            large_results: AtomicBool::new(false),
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
        let is_small = inputs.payload_bytes() <= SHARED_BYTES;
        let (request, limit) = call.encode(inputs, self.timeout, Answer::Whole)?;
        let calls = Counted::new(&self.calls);
        if is_small && self.many_at_once(calls.before) {
            drop(calls);
            let _sharing = Counted::new(&self.sharing);
            let request = request.into_owned();
            let response = self.submit_to(&self.small, request, limit)?.fetch()?;
            let bytes: usize = response.parts().iter().map(Batch::payload_bytes).sum();
            if bytes > SHARED_BYTES {
                self.large_results.store(true, Ordering::Relaxed);
            }
            return Ok(response);
        }
        let mut session = self.borrow(Purpose::Infer)?;
        let deadline = limit.deadline();
        let answer = session.send_now(request, deadline).and_then(|id| {
            loop {
                match session.next(deadline)? {
                    Event::Message(of, message) if of == id => {
                        return Response::from_message(message);
                    }
                    // What a request that was given up left behind.
                    Event::Message(..) => {}
                    Event::TimedOut => {
                        session.send_cancel(id);
                        return Err(gave_up());
                    }
                }
            }
        });
        self.give_back(session);
        answer
    }

    /// Whether small requests should share a session: as soon as there are more than there are cores to answer them
    /// to, and for as long as those that share have company.
    fn many_at_once(&self, calls: usize) -> bool {
        if self.large_results.load(Ordering::Relaxed) {
            return false;
        }
        calls >= self.cores || self.sharing.load(Ordering::Relaxed) > 0
    }

    /// Sends rows to a model, and leaves the results to [`Client::fetch`].
    ///
    /// # Errors
    /// As [`Client::infer`], as far as they show before an answer.
    pub fn submit(&self, data: impl IntoInputs, call: impl Into<Call>) -> Result<Ticket> {
        let inputs = data.into_inputs()?.into();
        let (request, limit) = call.into().encode(inputs, self.timeout, Answer::Whole)?;
        self.submit_to(&self.tickets, request, limit)
    }

    fn submit_to(
        &self,
        place: &Mutex<Option<Arc<Shared>>>,
        mut request: Encoded<'static>,
        limit: Limit,
    ) -> Result<Ticket> {
        // A session may be lost just as it was found, or made; twice would be no accident.
        for _ in 0..2 {
            let session = self.shared_session(place)?;
            match session.submit(request, limit)? {
                Submitted::Ticket(ticket) => return Ok(ticket),
                Submitted::Lost(back) => request = back,
            }
        }
        Err(Error::unavailable("the session was lost as it was opened"))
    }

    fn shared_session(&self, place: &Mutex<Option<Arc<Shared>>>) -> Result<Arc<Shared>> {
        if let Some(session) = &*lock(place)
            && !session.is_lost()
        {
            return Ok(session.clone());
        }
        let session = self.borrow(Purpose::Infer)?;
        let mut shared = lock(place);
        if let Some(other) = shared.clone()
            && !other.is_lost()
        {
            // Another thread was faster.
            drop(shared);
            self.give_back(session);
            return Ok(other);
        }
        let session = Shared::new(session)?;
        Ok(shared.insert(Arc::new(session)).clone())
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
        let (request, limit) = call.into().encode(inputs, self.timeout, Answer::Parts)?;
        let mut session = self.borrow(Purpose::Infer)?;
        match session.send_owned(request) {
            Ok(id) => Ok(Parts::new(self, session, id, limit.deadline())),
            Err(e) => {
                self.give_back(session);
                Err(e)
            }
        }
    }

    /// An idle session that is still alive, or a new one.
    fn borrow(&self, purpose: Purpose) -> Result<Session> {
        // Not `while let`: its lock would last through the body.
        loop {
            let idle = lock(self.pool(purpose)).pop();
            let Some(mut session) = idle else {
                return Session::open(&self.settings, purpose);
            };
            if session.is_alive() {
                return Ok(session);
            }
        }
    }

    /// Keeps a session for the next call, unless it is lost.
    fn give_back(&self, session: Session) {
        if session.is_reusable() {
            lock(self.pool(session.purpose())).push(session);
        }
    }

    fn pool(&self, purpose: Purpose) -> &Mutex<Vec<Session>> {
        match purpose {
            Purpose::Infer => &self.idle,
            Purpose::Ask => &self.idle_ask,
        }
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("server", &self.settings.address.to_string())
            .finish_non_exhaustive()
    }
}

/// Larger requests, and results, have a session to themselves: what is behind them would wait.
const SHARED_BYTES: usize = 64 * 1024;

/// One more, for as long as this lives.
struct Counted<'a> {
    count: &'a AtomicUsize,
    before: usize,
}

impl Counted<'_> {
    fn new(count: &AtomicUsize) -> Counted<'_> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        Counted { count, before }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lists of sessions are whole between any two statements, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
