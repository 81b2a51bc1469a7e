//! The way into the pipeline for the tasks of one door thread: questions as futures, which cancel when they are dropped.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use foldhash::HashMap;
use tokio::time::Instant;

use super::turn::Ended;
use crate::error::{Error, Result};
use crate::message::{Params, Request, RequestId, Stats};
use crate::metrics::{Health, Snapshot};
use crate::server::{Door, DoorAnswer};
use crate::wire::server::{ModelInfo, Outputs, ServerMessage, Status};

/// How long a request may have been on its way, at most, and by how much its client may have rounded its time.
const MOST_ON_ITS_WAY: Duration = Duration::from_millis(50);
const MOST_ROUNDED: Duration = Duration::from_secs(1);

/// The pipeline of a door thread is woken once for what all tasks that could run have asked.
#[derive(Default)]
struct Asked {
    /// Something was asked since the pipeline was woken.
    since: Cell<bool>,
    /// Of the task that wakes it.
    waker: Cell<Option<Waker>>,
}

impl Asked {
    /// Something was asked.
    fn note(&self) {
        if !self.since.replace(true)
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

/// Who asks: a connection. Its number is what the pipeline's turns and bounds go by.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    number: u64,
    unread: Arc<Unread>,
}

/// Bytes of answers that a caller has not read.
#[derive(Debug, Default)]
struct Unread {
    held: AtomicU64,
    /// Of these, what waits for answers before it on its stream: nobody could have read it.
    parked: AtomicU64,
}

impl Unread {
    /// Whether an answer of so many bytes may wait to be read, of at most so many.
    fn takes(&self, bytes: u64, has_turn: bool, most: u64) -> bool {
        let held = self.held.load(Ordering::Relaxed);
        // One whose turn has come does not end for those that wait for it.
        let counted = match has_turn {
            true => held.saturating_sub(self.parked.load(Ordering::Relaxed)),
            false => held,
        };
        // One answer is always taken: the sink has bounded it.
        bytes == 0 || counted == 0 || counted + bytes <= most
    }
}

impl Caller {
    pub(crate) fn new(number: u64) -> Caller {
        Caller {
            number,
            unread: Arc::default(),
        }
    }

    /// The number, unique in its thread.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

/// Bytes of answers that a caller has not read yet; they count as long as this lives.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: u64,
    is_parked: bool,
    of: Arc<Unread>,
}

impl Held {
    fn new(of: &Arc<Unread>, bytes: u64, has_turn: bool) -> Held {
        of.held.fetch_add(bytes, Ordering::Relaxed);
        if !has_turn {
            of.parked.fetch_add(bytes, Ordering::Relaxed);
        }
        Held {
            bytes,
            is_parked: !has_turn,
            of: of.clone(),
        }
    }

    /// How many.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// They wait for no answer before them any more.
    pub(crate) fn has_turn(&mut self) {
        if std::mem::take(&mut self.is_parked) {
            self.of.parked.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.has_turn();
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Outputs, and the count of their bytes.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) outputs: Outputs,
    pub(crate) held: Held,
}

impl Rows {
    /// How many they are.
    pub(crate) fn count(&self) -> u64 {
        self.outputs.rows()
    }
}

/// One answer of a streamed request.
#[derive(Debug)]
pub(crate) enum Part {
    /// Rows from an offset on.
    Rows(u64, Rows),
    /// All there is, from a model that has no rows to split. Nothing follows.
    Whole(Rows, Stats),
    /// All rows have come: so many. Nothing follows.
    End(u64, Stats),
}

/// Asks the server, for any caller. Clones are the same.
#[derive(Clone)]
pub(crate) struct Pipeline(Rc<Inner>);

struct Inner {
    door: RefCell<Door>,
    asked: Asked,
    waiting: RefCell<HashMap<RequestId, Rc<Slot>>>,
    /// Most bytes that a caller may leave unread.
    max_client_bytes: u64,
    /// The server has stopped.
    over: Cell<bool>,
}

/// Where the answers to one question wait for the task that asked.
struct Slot {
    answers: RefCell<VecDeque<(ServerMessage, Held)>>,
    waker: Cell<Option<Waker>>,
    unread: Arc<Unread>,
    /// The turn before that of the answer, if it waits for one.
    before: Option<Rc<Ended>>,
}

impl Slot {
    fn has_turn(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.is_over())
    }

    fn push(&self, message: ServerMessage, bytes: u64) {
        let held = Held::new(&self.unread, bytes, self.has_turn());
        self.answers.borrow_mut().push_back((message, held));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Pipeline {
    pub(super) fn new(mut door: Door, max_client_bytes: u64) -> Pipeline {
        door.wake_by_hand();
        Pipeline(Rc::new(Inner {
            door: RefCell::new(door),
            asked: Asked::default(),
            waiting: RefCell::default(),
            max_client_bytes,
            over: Cell::new(false),
        }))
    }

    /// Sends rows to a model and waits for all of its outputs. Dropping the future cancels the request.
    ///
    /// # Errors
    /// What the server answers; `UNAVAILABLE` once it has stopped.
    pub(crate) async fn infer(&self, caller: &Caller, request: Request) -> Result<(Rows, Stats)> {
        self.infer_behind(caller, request, None).await
    }

    /// The same for an answer that waits for its turn behind another.
    ///
    /// # Errors
    /// As [`Pipeline::infer`].
    pub(crate) async fn infer_behind(
        &self,
        caller: &Caller,
        request: Request,
        before: Option<Rc<Ended>>,
    ) -> Result<(Rows, Stats)> {
        let near_end = near_end(&request);
        let ask = |door: &mut Door, caller| door.submit(caller, request);
        let mut answers = self.ask_behind(caller, before, ask)?;
        answers.near_end = near_end;
        match answers.next().await? {
            (ServerMessage::Result(outputs, stats), held) => Ok((Rows { outputs, held }, stats)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sends rows to a model; their outputs come in parts as chunks finish. Dropping what this gives cancels the request.
    ///
    /// # Errors
    /// As [`crate::server::Door::submit`].
    pub(crate) fn stream(&self, caller: &Caller, request: Request) -> Result<Parts> {
        let request = Request {
            stream: true,
            ..request
        };
        let near_end = near_end(&request);
        let mut answers = self.ask(caller, |door, caller| door.submit(caller, request))?;
        answers.near_end = near_end;
        Ok(Parts(answers))
    }

    /// Whether the server serves; both of the loops that serve requests take part in the answer.
    ///
    /// # Errors
    /// What the server answers; `UNAVAILABLE` once it has stopped. So have the questions below.
    pub(crate) async fn health(&self, caller: &Caller) -> Result<Health> {
        let mut answers = self.ask(caller, Door::health)?;
        match answers.next().await? {
            (ServerMessage::HealthOk(health), _) => Ok(health),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// All that is counted, at one moment.
    ///
    /// # Errors
    /// As [`Pipeline::health`].
    pub(crate) async fn metrics(&self, caller: &Caller) -> Result<Snapshot> {
        let mut answers = self.ask(caller, Door::metrics)?;
        match answers.next().await? {
            (ServerMessage::MetricsOk(snapshot), _) => Ok(*snapshot),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The models that are loaded.
    ///
    /// # Errors
    /// As [`Pipeline::health`].
    pub(crate) async fn models(&self, caller: &Caller) -> Result<Vec<ModelInfo>> {
        let mut answers = self.ask(caller, Door::models)?;
        match answers.next().await? {
            (ServerMessage::ModelsOk(models), _) => Ok(models),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The server's status.
    ///
    /// # Errors
    /// As [`Pipeline::health`].
    pub(crate) async fn status(&self, caller: &Caller) -> Result<Status> {
        let mut answers = self.ask(caller, Door::status)?;
        match answers.next().await? {
            (ServerMessage::StatusOk(status), _) => Ok(*status),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The model that a request with this name and these parameters would get; it is read if nobody has asked for it yet.
    ///
    /// # Errors
    /// As [`Pipeline::health`].
    pub(crate) async fn describe(
        &self,
        caller: &Caller,
        model: &str,
        params: &Params,
    ) -> Result<ModelInfo> {
        let model = Some(model.to_owned());
        let mut answers = self.ask(caller, |door, caller| door.describe(caller, model, params))?;
        match answers.next().await? {
            (ServerMessage::ModelsOk(models), _) => models.into_iter().next().ok_or_else(|| {
                Error::internal("the description of a model has come without a model")
            }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Loads a model on every worker.
    ///
    /// # Errors
    /// As [`Pipeline::health`].
    pub(crate) async fn load(&self, caller: &Caller, model: &str) -> Result<ModelInfo> {
        let mut answers = self.ask(caller, |door, caller| door.load(caller, model))?;
        match answers.next().await? {
            (ServerMessage::LoadOk(model, _), _) => Ok(*model),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Forgets a model.
    ///
    /// # Errors
    /// As [`Pipeline::health`].
    pub(crate) async fn unload(&self, caller: &Caller, model: &str) -> Result<()> {
        let mut answers = self.ask(caller, |door, caller| door.unload(caller, model))?;
        match answers.next().await? {
            (ServerMessage::UnloadOk(_), _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    fn ask(
        &self,
        caller: &Caller,
        ask: impl FnOnce(&mut Door, u64) -> Result<RequestId>,
    ) -> Result<Answers> {
        self.ask_behind(caller, None, ask)
    }

    fn ask_behind(
        &self,
        caller: &Caller,
        before: Option<Rc<Ended>>,
        ask: impl FnOnce(&mut Door, u64) -> Result<RequestId>,
    ) -> Result<Answers> {
        if self.0.over.get() {
            return Err(stopped());
        }
        let id = ask(&mut self.0.door.borrow_mut(), caller.number)?;
        self.0.asked.note();
        let slot = Rc::new(Slot {
            answers: RefCell::default(),
            waker: Cell::new(None),
            unread: caller.unread.clone(),
            before,
        });
        self.0.waiting.borrow_mut().insert(id, slot.clone());
        Ok(Answers {
            pipeline: self.clone(),
            id,
            slot,
            ended: false,
            near_end: None,
        })
    }

    /// Wakes the server for what was asked, once for all tasks that could run: it is queued behind them. It never ends.
    pub(super) async fn wake_server(self) {
        poll_fn(|cx| {
            let inner = &self.0;
            if inner.asked.since.replace(false) {
                inner.door.borrow().wake();
            }
            inner.asked.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Hands out the answers that have come.
    ///
    /// # Errors
    /// `UNAVAILABLE` once the server has stopped and all were handed out: then everybody who still waits is told.
    pub(super) fn hand_out(&self) -> Result<()> {
        loop {
            let next = self.0.door.borrow_mut().try_next();
            match next {
                Ok(Some(answer)) => self.hand(answer),
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
    }

    /// Whether the server has stopped without waiting for anybody.
    pub(super) fn has_ended_at_once(&self) -> bool {
        self.0.door.borrow().has_ended_at_once()
    }

    /// The server has stopped, or is about to be left: whoever waits is told.
    pub(super) fn end(&self) {
        self.0.over.set(true);
        for (_, slot) in self.0.waiting.borrow_mut().drain() {
            slot.push(ServerMessage::Error(stopped()), 0);
        }
    }

    fn hand(&self, answer: DoorAnswer) {
        let id = answer.id;
        let mut waiting = self.0.waiting.borrow_mut();
        let slot = match answer.is_final() {
            true => waiting.remove(&id),
            false => waiting.get(&id).cloned(),
        };
        let Some(slot) = slot else {
            return; // whoever asked has gone
        };
        let bytes = payload_bytes(&answer.message);
        let has_turn = slot.has_turn();
        if slot.unread.takes(bytes, has_turn, self.0.max_client_bytes) {
            slot.push(answer.message, bytes);
            return;
        }
        waiting.remove(&id);
        drop(waiting);
        if !answer.is_final() {
            self.0.door.borrow_mut().cancel(id);
            self.0.asked.note();
        }
        let error = Error::exhausted(format!(
            "more than {} bytes of answers wait for {} (--max-client-bytes)",
            self.0.max_client_bytes,
            match has_turn {
                true => "this connection to read them",
                false => "those before them on their stream",
            }
        ));
        slot.push(ServerMessage::Error(error), 0);
    }
}

/// The answers to one question. Dropped before the last one was taken, it takes the question back, or leaves it to its
/// deadline if that has come.
struct Answers {
    pipeline: Pipeline,
    id: RequestId,
    slot: Rc<Slot>,
    ended: bool,
    /// From then on whoever leaves does so since the time is over, which ends the request by itself.
    near_end: Option<Instant>,
}

impl Answers {
    async fn next(&mut self) -> Result<(ServerMessage, Held)> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(ServerMessage, Held)>> {
        let Some((message, held)) = self.slot.answers.borrow_mut().pop_front() else {
            if self.ended {
                return Poll::Ready(Err(Error::internal(
                    "an answer was awaited after the last one",
                )));
            }
            self.slot.waker.set(Some(cx.waker().clone()));
            return Poll::Pending;
        };
        self.ended = !matches!(message, ServerMessage::Part(..));
        Poll::Ready(match message {
            ServerMessage::Error(error) => Err(error),
            message => Ok((message, held)),
        })
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let inner = &self.pipeline.0;
        let is_waiting = inner.waiting.borrow_mut().remove(&self.id).is_some();
        let is_over = self.near_end.is_some_and(|end| end <= Instant::now());
        if is_waiting && !is_over {
            inner.door.borrow_mut().cancel(self.id);
            inner.asked.note();
        }
    }
}

/// The parts of a streamed request. Dropping it cancels the request.
pub(crate) struct Parts(Answers);

impl Parts {
    /// The next part, or the end; nothing comes after the end or an error.
    ///
    /// # Errors
    /// What ended the request.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part>> {
        self.0.poll_next(cx).map(|answer| match answer? {
            (ServerMessage::Part(offset, outputs), held) => {
                Ok(Part::Rows(offset, Rows { outputs, held }))
            }
            (ServerMessage::End(rows, stats), _) => Ok(Part::End(rows, stats)),
            (ServerMessage::Result(outputs, stats), held) => {
                Ok(Part::Whole(Rows { outputs, held }, stats))
            }
            (other, _) => Err(unexpected(&other)),
        })
    }
}

/// When a client that leaves has waited as long as it wanted to. Clients of gRPC tell their time rounded up by as much as a
/// hundredth, count it from before it was sent, and reset their call when it is over: mostly a moment before it is here.
fn near_end(request: &Request) -> Option<Instant> {
    let time = Duration::from_millis(request.timeout_ms?);
    let before = MOST_ON_ITS_WAY.min(time / 8) + MOST_ROUNDED.min(time / 64);
    Instant::now().checked_add(time.saturating_sub(before))
}

fn payload_bytes(message: &ServerMessage) -> u64 {
    match message {
        ServerMessage::Result(outputs, _) | ServerMessage::Part(_, outputs) => outputs.bytes(),
        _ => 0,
    }
}

fn stopped() -> Error {
    Error::unavailable("the server has stopped")
}

fn unexpected(message: &ServerMessage) -> Error {
    Error::internal(format!(
        "the pipeline has answered another question: {}",
        message.kind()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_whose_turn_has_come_does_not_end_for_those_that_wait_for_it() {
        let unread: Arc<Unread> = Arc::default();
        assert!(unread.takes(200, true, 100) && unread.takes(200, false, 100));
        let mut parked = Held::new(&unread, 90, false);
        assert!(unread.takes(10, false, 100) && !unread.takes(11, false, 100));
        assert!(unread.takes(200, true, 100));
        let read = Held::new(&unread, 50, true);
        assert!(unread.takes(50, true, 100) && !unread.takes(51, true, 100));
        drop(read);
        parked.has_turn();
        assert!(unread.takes(10, true, 100) && !unread.takes(11, true, 100));
        drop(parked);
        assert!(unread.takes(200, true, 100));
    }
}
