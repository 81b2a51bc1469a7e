//! A door: a client of the pipeline inside this process, for programs that bring protocols of their own.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::message::{Params, Protocol, ReplyTo, Request, RequestId};
use crate::pipeline::door_queues::{AnswerQueue, Doors, MAX_CALLERS, MAX_OPEN, Question, Said};
use crate::wire::client::ClientMessage;
use crate::wire::params::RawParams;
use crate::wire::server::ServerMessage;

/// Requests and questions to a server in this process, for many callers; tensors cross as they are, uncopied.
///
/// Nothing here blocks. Answers come from [`Door::try_next`] when the door's descriptor ([`AsFd`]) can be read. A door
/// can be sent to another thread; each has a session of its own, and dropping it takes back all that is open.
///
/// A caller is a number that the user of the door chooses, one for each client behind it: turns and bounds count callers as
/// they count sessions, so that one of them does not starve the others.
///
/// ```no_run
/// # fn main() -> mdm::Result<()> {
/// use mdm::server::Server;
/// use mdm::wire::server::ServerMessage;
/// use mdm::{Batch, Request, Tensor};
///
/// let server = Server::start(mdm::config::Config::parse_from(["--port", "0", "--port-out", "0"])?)?;
/// let mut door = server.door()?;
/// let row = Tensor::from_vec("x", vec![1, 4], vec![1f32, 2., 3., 4.])?;
/// let request = Request {
///     model: Some("echo".to_owned()),
///     inputs: Batch { tensors: vec![row] },
///     ..Request::default()
/// };
/// let id = door.submit(7, request)?;
/// // Once its descriptor can be read:
/// if let Some(answer) = door.try_next()? {
///     assert_eq!((answer.caller, answer.id), (7, id));
///     if let ServerMessage::Result(outputs, _) = answer.message {
///         println!("{:?}", outputs.parts);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Door {
    number: u32,
    kind: Protocol,
    doors: Arc<Doors>,
    answers: Arc<AnswerQueue>,
    last_id: u64,
    /// The caller of each request and question that is open.
    open: HashMap<RequestId, u64>,
    /// How many each caller has.
    callers: HashMap<u64, usize>,
    /// What is asked waits for [`Door::wake`].
    wakes_by_hand: bool,
}

/// What a caller is told: the result, a part or the end of a stream, the answer to a question, or an error.
#[derive(Debug)]
pub struct DoorAnswer {
    /// The caller that it is for.
    pub caller: u64,
    /// The request or question that it answers.
    pub id: RequestId,
    /// The answer.
    pub message: ServerMessage,
}

impl DoorAnswer {
    /// Whether nothing follows for this request or question.
    pub fn is_final(&self) -> bool {
        !matches!(self.message, ServerMessage::Part(..))
    }
}

impl Door {
    pub(super) fn open(doors: Arc<Doors>, kind: Protocol) -> Result<Door> {
        let (number, answers) = doors.open(kind)?;
        Ok(Door {
            number,
            kind,
            doors,
            answers,
            last_id: 0,
            open: HashMap::new(),
            callers: HashMap::new(),
            wakes_by_hand: false,
        })
    }

    /// Whether the server has stopped without waiting for anybody, and not after a drain.
    pub fn has_ended_at_once(&self) -> bool {
        self.doors.has_ended_at_once()
    }

    /// Sends rows to a model. The answer is a [`ServerMessage::Result`], or parts and their end for a stream, or an
    /// error.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too much waits or is open, or too many callers have something open; `UNAVAILABLE` if the
    /// server has stopped; `INVALID_ARGUMENT` for parameters that no request can have. What else is wrong comes as its
    /// answer.
    pub fn submit(&mut self, caller: u64, request: Request) -> Result<RequestId> {
        let request = Request {
            params: RawParams::of(&request.params)?,
            model: request.model,
            inputs: request.inputs,
            timeout_ms: request.timeout_ms,
            priority: request.priority,
            stream: request.stream,
            on_bad_row: request.on_bad_row,
        };
        self.say(caller, |id| ClientMessage::Infer(id, Box::new(request)))
    }

    /// Takes a request back: it ends with `CANCELLED`, or with its result if that was faster.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(caller) = self.open.get(&id) {
            // If that fails, the server has stopped and the request with it, or too much waits and the request runs on.
            let _ = self.doors.say(Said::Message(
                self.reply(*caller),
                ClientMessage::Cancel(id),
            ));
            self.said();
        }
    }

    /// From now on the server is woken by [`Door::wake`] alone, for whoever asks much at a time.
    #[cfg(feature = "gateway")]
    pub(crate) fn wake_by_hand(&mut self) {
        self.wakes_by_hand = true;
    }

    /// Wakes the server for what was asked since.
    pub(crate) fn wake(&self) {
        self.doors.wake();
    }

    fn said(&self) {
        if !self.wakes_by_hand {
            self.wake();
        }
    }

    /// Asks how the server is: [`ServerMessage::StatusOk`].
    ///
    /// # Errors
    /// As [`Door::submit`]; so have the questions below.
    pub fn status(&mut self, caller: u64) -> Result<RequestId> {
        self.say(caller, ClientMessage::Status)
    }

    /// Asks for the counters: [`ServerMessage::MetricsOk`].
    ///
    /// # Errors
    /// As [`Door::submit`].
    pub fn metrics(&mut self, caller: u64) -> Result<RequestId> {
        self.ask(caller, Question::Metrics)
    }

    /// Asks whether the server is ready: [`ServerMessage::HealthOk`]. The question goes through both of the loops that
    /// serve requests, so an answer shows that they turn; whoever probes sets a time for it to come.
    ///
    /// # Errors
    /// As [`Door::submit`].
    pub fn health(&mut self, caller: u64) -> Result<RequestId> {
        self.ask(caller, Question::Health)
    }

    /// Asks which models are loaded: [`ServerMessage::ModelsOk`].
    ///
    /// # Errors
    /// As [`Door::submit`].
    pub fn models(&mut self, caller: u64) -> Result<RequestId> {
        self.say(caller, ClientMessage::Models)
    }

    /// Asks what a request with this model and these parameters would get: [`ServerMessage::ModelsOk`] of one model.
    ///
    /// # Errors
    /// As [`Door::submit`].
    pub fn describe(
        &mut self,
        caller: u64,
        model: Option<String>,
        params: &Params,
    ) -> Result<RequestId> {
        let params = RawParams::of(params)?;
        self.say(caller, |id| ClientMessage::Describe(id, model, params))
    }

    /// Loads a model: [`ServerMessage::LoadOk`].
    ///
    /// # Errors
    /// As [`Door::submit`].
    pub fn load(&mut self, caller: u64, model: &str) -> Result<RequestId> {
        self.say(caller, |id| ClientMessage::Load(id, model.to_owned()))
    }

    /// Unloads a model: [`ServerMessage::UnloadOk`].
    ///
    /// # Errors
    /// As [`Door::submit`].
    pub fn unload(&mut self, caller: u64, model: &str) -> Result<RequestId> {
        self.say(caller, |id| ClientMessage::Unload(id, model.to_owned()))
    }

    /// The next answer, if one has come.
    ///
    /// # Errors
    /// `UNAVAILABLE` once the server has stopped and every answer was taken.
    pub fn try_next(&mut self) -> Result<Option<DoorAnswer>> {
        let Some(told) = self.answers.next()? else {
            return Ok(None);
        };
        let answer = DoorAnswer {
            caller: told.caller,
            id: told.id,
            message: told.message,
        };
        if answer.is_final() && self.open.remove(&answer.id).is_some() {
            self.release(answer.caller);
        }
        Ok(Some(answer))
    }

    fn reply(&self, caller: u64) -> ReplyTo {
        ReplyTo::of_caller(self.kind, self.number, caller)
    }

    fn say(
        &mut self,
        caller: u64,
        message: impl FnOnce(RequestId) -> ClientMessage<RawParams>,
    ) -> Result<RequestId> {
        self.begin(caller, |reply, id| Said::Message(reply, message(id)))
    }

    fn ask(&mut self, caller: u64, question: Question) -> Result<RequestId> {
        self.begin(caller, |reply, id| Said::Question(reply, id, question))
    }

    fn begin(
        &mut self,
        caller: u64,
        said: impl FnOnce(ReplyTo, RequestId) -> Said,
    ) -> Result<RequestId> {
        if self.callers.len() >= MAX_CALLERS && !self.callers.contains_key(&caller) {
            return Err(Error::exhausted(format!(
                "{MAX_CALLERS} callers have something open at this door; try later"
            )));
        }
        if self.open.len() >= MAX_OPEN {
            return Err(Error::exhausted(format!(
                "{MAX_OPEN} requests and questions of this door are open; take their answers first"
            )));
        }
        let id = RequestId(self.last_id + 1);
        self.doors.say(said(self.reply(caller), id))?;
        self.said();
        self.last_id = id.0;
        self.open.insert(id, caller);
        *self.callers.entry(caller).or_default() += 1;
        Ok(id)
    }

    fn release(&mut self, caller: u64) {
        if let Some(count) = self.callers.get_mut(&caller) {
            *count -= 1;
            if *count == 0 {
                self.callers.remove(&caller);
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.answers.waker().as_fd()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.doors.close(self.number);
    }
}
