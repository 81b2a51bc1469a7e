//! `ModelStreamInfer`: many requests on one call, each answered on it whole or in parts.
//!
//! Requests run beside each other. Whole answers leave in the order of their requests, as Triton's do, whose clients may go
//! by it; parts leave as they come. What is wrong with one request is told in its answer, and the call goes on.

use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::incoming::Messages;
use super::infer;
use super::messages::{ModelInferResponse, ModelStreamInferResponse};
use super::reply::{self, Reply, Said};
use super::request::{Asked, Refused};
use super::response::{self, ANSWER_OF_STREAM, Parameter};
use super::route::Call;
use super::status::{status, stopped};
use crate::door::incoming::{Reserved, Whole};
use crate::door::ordered::Ordered;
use crate::door::submit::{Held, Part};
use crate::door::turn::{Expected, Turn, Window};
use crate::error::{Error, Result};
use crate::message::Stats;

/// Most requests of one call that are open; beyond it the next one is read when one has ended.
const MOST_OPEN: usize = 256;
/// Most answers that wait to be written; those behind them wait in the pipeline's bounds.
const WAITING_ANSWERS: usize = 4;
/// A message that is to be told, and the count of its bytes.
type Told = (Vec<Bytes>, Option<Held>);

/// Whether an answer is its request's last.
const FINAL: &str = "triton_final_response";

/// Answers a call.
pub(super) fn answer(call: Call, messages: Messages) -> Reply {
    let (say, said) = mpsc::channel(WAITING_ANSWERS);
    let task = tokio::task::spawn_local(async move {
        let call = Rc::new(call);
        let ended = call.within(read_on(&call, messages, &say)).await;
        if let Err(status) = ended {
            // It fails for a client that is gone.
            let _ = say.send(Said::End(status)).await;
        }
    });
    reply::of_stream(said, task)
}

/// Reads requests and starts each, until there is none, or the server has stopped. Dropped, it takes back all that run.
async fn read_on(
    call: &Rc<Call>,
    mut messages: Messages,
    say: &mpsc::Sender<Said>,
) -> Result<(), Status> {
    let mut running = JoinSet::new();
    let mut last = None;
    let window = Window::new(call.local.shared.max_client_bytes);
    let connection = call.open.connection();
    let ended = loop {
        let message = match connection.unless_told(messages.next()).await {
            Some(Ok(message)) => message,
            // Its client is gone, and nobody waits for what runs.
            Some(Err(status)) if status.code() == Code::Cancelled => return Err(status),
            Some(Err(status)) => break Err(status),
            None => break Err(stopped()),
        };
        let Some(message) = message else {
            break Ok(());
        };
        while running.try_join_next().is_some() {}
        while running.len() >= MOST_OPEN {
            running.join_next().await;
        }
        window.has_room().await;
        let expected = window.expect(message.bytes.len());
        let turn = Turn::behind(&mut last);
        let one = one(call.clone(), message, say.clone(), (turn, expected));
        running.spawn_local(one);
    };
    while running.join_next().await.is_some() {}
    ended
}

/// Answers one request.
async fn one(
    call: Rc<Call>,
    message: Whole,
    say: mpsc::Sender<Said>,
    (mut turn, mut expected): (Turn, Expected),
) {
    let (mut asked, reserved) = match infer::read(&call, message).await {
        Ok(read) => read,
        Err(Refused { model, id, error }) => {
            turn.come().await;
            tell(&say, (refusal((&model, &id), error), None)).await;
            return;
        }
    };
    if asked.in_parts {
        turn.pass();
        drop(expected); // no answer is held back
        if let Err(error) = in_parts(&call, &mut asked, reserved, &say).await {
            tell(&say, (refusal(named(&asked), error), None)).await;
        }
        return;
    }
    let mut told = match whole(&call, &mut asked, reserved, &turn).await {
        Ok((message, held)) => (message, Some(held)),
        Err(error) => (refusal(named(&asked), error), None),
    };
    expected.has_come(told.1.as_ref().map_or(0, Held::bytes));
    turn.come().await;
    if let Some(held) = &mut told.1 {
        held.has_turn();
    }
    tell(&say, told).await;
}

async fn tell(say: &mpsc::Sender<Said>, (message, held): Told) {
    // It fails for a client that is gone, and then this task is on its end too.
    let _ = say.send(Said::Message(message, held)).await;
}

async fn whole(
    call: &Call,
    asked: &mut Asked,
    reserved: Reserved,
    turn: &Turn,
) -> Result<(Vec<Bytes>, Held)> {
    let request = infer::take_request(call, asked, reserved).await?;
    let pipeline = &call.local.pipeline;
    let infer = pipeline.infer_behind(call.caller(), request, turn.before());
    let (rows, _stats) = infer.await?;
    let parameters = [(FINAL, Parameter::Flag(true))];
    infer::write(call, asked, (rows, &parameters), Some(ANSWER_OF_STREAM)).await
}

/// Tells parts as they come, then their end.
async fn in_parts(
    call: &Call,
    asked: &mut Asked,
    reserved: Reserved,
    say: &mpsc::Sender<Said>,
) -> Result<()> {
    let request = infer::take_request(call, asked, reserved).await?;
    let parts = call.local.pipeline.stream(call.caller(), request)?;
    let mut parts = Ordered::new(parts, asked.infer.wanted.in_order);
    loop {
        match parts.next().await? {
            Part::Rows(offset, rows) => {
                let count = rows.count();
                let parameters = [
                    (FINAL, Parameter::Flag(false)),
                    ("offset", Parameter::Number(offset)),
                    ("rows", Parameter::Number(count)),
                ];
                let written =
                    infer::write(call, asked, (rows, &parameters), Some(ANSWER_OF_STREAM));
                let (message, held) = written.await?;
                tell(say, (message, Some(held))).await;
            }
            // A model without rows to split gives all at once.
            Part::Whole(rows, stats) => {
                let count = rows.count();
                let parameters = [(FINAL, Parameter::Flag(false))];
                let written =
                    infer::write(call, asked, (rows, &parameters), Some(ANSWER_OF_STREAM));
                let (message, held) = written.await?;
                tell(say, (message, Some(held))).await;
                tell(say, (end(asked, count, stats)?, None)).await;
                return Ok(());
            }
            Part::End(rows, stats) => {
                tell(say, (end(asked, rows, stats)?, None)).await;
                return Ok(());
            }
        }
    }
}

/// What ends parts: no rows, and what the request took.
fn end(asked: &Asked, rows: u64, stats: Stats) -> Result<Vec<Bytes>> {
    let parameters = [
        (FINAL, Parameter::Flag(true)),
        ("rows", Parameter::Number(rows)),
        ("queue_us", Parameter::Number(stats.queue_us)),
        ("compute_us", Parameter::Number(stats.compute_us)),
        ("chunks", Parameter::Number(stats.chunks)),
    ];
    response::write_end(asked.answered(), &parameters)
}

/// The model and the id of a request.
fn named(asked: &Asked) -> (&str, &str) {
    let id = asked.infer.id.as_deref();
    (&asked.model.name, id.unwrap_or_default())
}

/// What was wrong with a request, and which it was, if anything of it tells.
fn refusal((model, id): (&str, &str), error: Error) -> Vec<Bytes> {
    let status = status(error);
    let is_named = !(model.is_empty() && id.is_empty());
    let infer_response = is_named.then(|| ModelInferResponse {
        model_name: model.to_owned(),
        id: id.to_owned(),
        ..ModelInferResponse::default()
    });
    let refusal = ModelStreamInferResponse {
        error_message: status.message().to_owned(),
        infer_response,
    };
    vec![reply::framed(&refusal)]
}
