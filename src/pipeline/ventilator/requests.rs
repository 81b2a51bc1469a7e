//! The requests in the queue and the chunks that are out: a pure state machine. It knows no socket and no clock; what it
//! wants done comes out as [`Action`]s, to be done in their order.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::HashMap;

use crate::error::{Error, ErrorCode, Result};
use crate::message::{
    Chunk, Credit, Handed, Member, ModelId, ModelLabel, OnBadRow, ReplyTo, RequestId, Rows, Serial,
    WorkerId,
};
use crate::model::{BatchKind, Description};
use crate::schedule::{Assignment, Job, Lane, Limits, Scheduler, Waiting};
use crate::shares::{Amount, Shares};
use crate::tensor::Batch;
use crate::wire::inner::{Arrived, Close, CloseEnd, LostWorker, Out, ToSink};

/// A request of at most so many bytes is copied beside the others of its chunk: as one message they are cheaper to send
/// and to run than each by itself. The copying of larger ones is the worker's, who has no clients to serve.
const JOINED_BYTES: usize = 4096;

/// A request in the queue, with its rows: they are kept until its last chunk's credit is back.
pub(crate) struct Held {
    pub(crate) reply: ReplyTo,
    pub(crate) request: RequestId,
    pub(crate) inputs: Batch,
    /// As msgpack, part of the request's header.
    pub(crate) params: Bytes,
    pub(crate) rows: usize,
    pub(crate) stream: bool,
    pub(crate) on_bad_row: OnBadRow,
    pub(crate) arrived_us: u64,
    pub(crate) model: Arc<Description>,
    /// Under which name it is counted.
    pub(crate) label: ModelLabel,
}

/// What an earlier leg gave for a chunk's rows.
#[derive(Debug)]
pub(crate) struct LegOutputs {
    handed: Vec<Handed>,
    spent_us: u64,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Action {
    TellSink(ToSink),
    /// Workers need not run its chunks any more.
    Cancel(Serial),
    /// A request has ended, whether its chunks have or not.
    Ended {
        reply: ReplyTo,
        request: RequestId,
        model: ModelId,
    },
}

/// A chunk, and where it goes.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) worker: WorkerId,
    pub(crate) lane: Lane,
    pub(crate) chunk: Chunk<Bytes>,
}

/// What a lost worker does while it is settled what it has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Down,
    /// It is up again, and waits for chunks.
    Up,
}

/// The queue, with what is held for its requests.
pub(crate) struct Requests {
    scheduler: Scheduler<Arc<LegOutputs>>,
    held: HashMap<Serial, Held>,
    /// Lost workers of which the sink has not said yet what had arrived, and how they are meanwhile.
    settling: HashMap<WorkerId, Meanwhile>,
    actions: Vec<Action>,
}

impl Requests {
    pub(crate) fn new(limits: Limits) -> Requests {
        Requests {
            scheduler: Scheduler::new(limits),
            held: HashMap::default(),
            settling: HashMap::default(),
            actions: Vec::new(),
        }
    }

    /// What is to be done now, in this order.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Takes a request into the queue.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if there is no room in it.
    pub(crate) fn submit(&mut self, job: Job, held: Held) -> Result<()> {
        let serial = job.serial;
        self.scheduler.submit(job)?;
        self.held.insert(serial, held);
        Ok(())
    }

    /// A worker is ready, for the first time or again.
    pub(crate) fn worker_up(&mut self, worker: WorkerId, now_us: u64) {
        match self.settling.get_mut(&worker) {
            // What it was given before and what it gets now must not be mixed up in the sink.
            Some(meanwhile) => *meanwhile = Meanwhile::Up,
            None => self.scheduler.worker_up(worker, now_us),
        }
    }

    /// A chunk has ended. False if it was given up before: its worker had been counted as lost.
    pub(crate) fn credit(&mut self, credit: Credit, now_us: u64) -> bool {
        if !self.scheduler.is_out(credit.chunk) {
            return false;
        }
        let ran = (credit.rows > 0).then_some((credit.rows as usize, credit.compute_us));
        // Closed before the credit is booked: a request whose last chunk failed is not finished but failed.
        for (serial, error) in &credit.failed {
            tracing::debug!(serial = serial.0, %error, "a chunk failed");
            self.close(*serial, error);
        }
        if !credit.handed.is_empty() {
            let leg_outputs = Arc::new(LegOutputs {
                handed: credit.handed,
                spent_us: credit.spent_us + credit.compute_us,
            });
            let closed = self
                .scheduler
                .hand_back(credit.chunk, ran, leg_outputs, now_us);
            for serial in closed {
                // What failed was sent to the sink as a part; of the others nothing will come.
                if !credit.failed.iter().any(|(failed, _)| *failed == serial) {
                    self.tell_sink(ToSink::Lost(serial, 1));
                }
            }
            return true;
        }
        for serial in self.scheduler.credit(credit.chunk, ran, now_us) {
            self.finish(serial);
        }
        true
    }

    /// A worker is gone. What it held may have reached the sink all the same: the sink is asked.
    pub(crate) fn worker_down(&mut self, worker: WorkerId) {
        let chunks = self.scheduler.worker_down(worker);
        if let Some(meanwhile) = self.settling.get_mut(&worker) {
            *meanwhile = Meanwhile::Down; // once more: it was given nothing since
        } else if !chunks.is_empty() {
            self.settling.insert(worker, Meanwhile::Down);
            let last = self.scheduler.last_chunk();
            self.tell_sink(ToSink::WorkerLost(LostWorker {
                worker,
                chunks,
                last,
            }));
        }
    }

    /// The sink has said what had arrived of a lost worker's chunks: the rest runs again.
    pub(crate) fn arrived(&mut self, arrived: Arrived, now_us: u64) {
        for (chunk, serials) in arrived.chunks {
            let losses = self.scheduler.lost(chunk, &serials);
            for serial in losses.finished {
                self.finish(serial);
            }
            for (serial, parts) in losses.lost {
                self.tell_sink(ToSink::Lost(serial, parts));
            }
            for serial in losses.abandoned {
                let error = Error::unavailable("each worker that ran it was lost");
                self.close(serial, &error);
            }
        }
        if self.settling.remove(&arrived.worker) == Some(Meanwhile::Up) {
            self.scheduler.worker_up(arrived.worker, now_us);
        }
    }

    /// The sink wants to know which chunks are out.
    pub(crate) fn tell_what_is_out(&mut self) {
        let (chunks, last) = (self.scheduler.out(), self.scheduler.last_chunk());
        self.tell_sink(ToSink::Out(Out { chunks, last }));
    }

    /// Ends a request with an error, if it has not ended: then its answer is on its way.
    pub(crate) fn close(&mut self, serial: Serial, error: &Error) {
        self.end(serial, || CloseEnd::Error(error.clone()));
    }

    /// The sink has ended a request with an error of its own, and wants to know how many chunks of it were given out.
    pub(crate) fn answered_by_sink(&mut self, serial: Serial) {
        self.end(serial, || CloseEnd::AnsweredBySink);
    }

    fn end(&mut self, serial: Serial, end: impl FnOnce() -> CloseEnd) {
        let Some(chunks) = self.scheduler.close(serial) else {
            return;
        };
        if chunks > 0 {
            self.actions.push(Action::Cancel(serial));
        }
        if let Some(held) = self.finish(serial) {
            self.tell_sink(ToSink::Close(Close {
                serial,
                reply: held.reply,
                request: held.request,
                label: held.label,
                chunks,
                arrived_us: held.arrived_us,
                end: end(),
            }));
        }
    }

    /// Closes the requests whose deadline has passed.
    pub(crate) fn expire(&mut self, now_us: u64) {
        for serial in self.scheduler.expired(now_us) {
            self.close(serial, &deadline_passed());
        }
    }

    /// The next chunk for a worker that has a place for it; `None` when nothing can be given out now.
    pub(crate) fn next(&mut self, now_us: u64) -> Option<Given> {
        let assignment = self.scheduler.next(now_us)?;
        Some(Given {
            worker: assignment.worker,
            lane: assignment.lane,
            chunk: self.chunk(assignment, now_us),
        })
    }

    /// Whether a client may add a request of so many `bytes` to what waits here, beside what is `parked`, and what else
    /// counts in the queue's bounds.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`, saying of what there is no more room.
    pub(crate) fn check_room(
        &self,
        client: ReplyTo,
        bytes: u64,
        parked: &Shares,
        beside: Amount,
    ) -> Result<()> {
        self.scheduler.check_room(client, bytes, parked, beside)
    }

    /// A model is forgotten: so is its pace.
    pub(crate) fn forget_model(&mut self, model: ModelId) {
        self.scheduler.forget(model);
    }

    /// What waits.
    pub(crate) fn waiting(&self) -> Waiting {
        self.scheduler.waiting()
    }

    /// When something will be due without any event.
    pub(crate) fn due_us(&self) -> Option<u64> {
        self.scheduler.due_us()
    }

    /// No request is open and no chunk is out.
    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Every request that is not closed.
    pub(crate) fn open(&self) -> Vec<Serial> {
        self.scheduler.open()
    }

    /// Small requests that shared a chunk so far.
    pub(crate) fn coalesced(&self) -> u64 {
        self.scheduler.coalesced()
    }

    /// Whether express workers hold chunks and no other does.
    pub(crate) fn only_express_are_busy(&self) -> bool {
        self.scheduler.only_express_are_busy()
    }

    /// Workers that hold chunks.
    pub(crate) fn busy_workers(&self) -> usize {
        self.scheduler.busy_workers()
    }

    /// Whether a worker holds chunks.
    pub(crate) fn is_busy(&self, worker: WorkerId) -> bool {
        self.scheduler.held(worker) > 0
    }

    /// Whether small requests wait for a worker.
    pub(crate) fn small_ones_wait(&self) -> bool {
        self.scheduler.small_ones_wait()
    }

    /// No worker has a place for another small chunk: what is small waits until a chunk ends.
    pub(crate) fn is_full_of_small(&self, now_us: u64) -> bool {
        self.scheduler.is_full_of_small(now_us)
    }

    /// Chunks that are out.
    #[cfg(test)]
    pub(crate) fn chunks_out(&self) -> usize {
        self.scheduler.out().len()
    }

    /// Requests whose rows are held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Forgets a request that has ended.
    fn finish(&mut self, serial: Serial) -> Option<Held> {
        let held = self.held.remove(&serial)?;
        self.actions.push(Action::Ended {
            reply: held.reply,
            request: held.request,
            model: held.model.id,
        });
        Some(held)
    }

    fn tell_sink(&mut self, message: ToSink) {
        self.actions.push(Action::TellSink(message));
    }

    /// A chunk with the rows of an assignment: those of small requests in one piece, others shared and not copied.
    fn chunk(&self, assignment: Assignment<Arc<LegOutputs>>, now_us: u64) -> Chunk<Bytes> {
        let leg_outputs = assignment.leg_outputs.as_deref();
        // In the order of the pieces, of which some may have been closed since.
        let mut handed = leg_outputs
            .map_or(&[][..], |leg_outputs| &leg_outputs.handed)
            .iter();
        let mut chunk = Chunk {
            id: assignment.chunk,
            leg: assignment.legs.start,
            until: assignment.legs.end,
            goes_on: false,
            spent_us: leg_outputs.map_or(0, |leg_outputs| leg_outputs.spent_us),
            model: assignment.model,
            label: ModelLabel::default(),
            run: assignment.run.map(|rows| rows as u64),
            params: Bytes::new(),
            members: Vec::with_capacity(assignment.pieces.len()),
            rows: Rows::Each(Vec::new()),
            failed: Vec::new(),
        };
        let mut each = Vec::with_capacity(assignment.pieces.len());
        for piece in &assignment.pieces {
            let Some(held) = self.held.get(&piece.serial) else {
                continue; // closed requests are not given out: every piece is held
            };
            let whole = held.model.kind == BatchKind::Whole;
            chunk.label = held.label; // alike too: it is the model's
            chunk.goes_on = (chunk.until as usize) < held.model.legs.len();
            chunk.members.push(Member {
                serial: piece.serial,
                reply: held.reply,
                request: held.request,
                offset: piece.offset as u64,
                rows: piece.rows as u64,
                total: held.rows as u64,
                stream: held.stream,
                on_bad_row: held.on_bad_row,
                whole,
                arrived_us: held.arrived_us,
                queue_us: now_us.saturating_sub(held.arrived_us),
            });
            let earlier = handed.find(|handed| handed.serial == piece.serial);
            each.push(if let Some(earlier) = earlier {
                let failed = earlier.failed.iter().cloned();
                chunk.failed.extend(failed.map(|rows| (piece.serial, rows)));
                Cow::Borrowed(&earlier.batch)
            } else if whole || piece.rows == held.rows {
                Cow::Borrowed(&held.inputs)
            } else {
                Cow::Owned(held.inputs.slice_rows(piece.offset, piece.rows))
            });
            if chunk.params.is_empty() && !held.params.is_empty() {
                chunk.params = held.params.clone(); // alike in all members of a group
            }
        }
        // Rows that have legs left part again before the next.
        let is_last = !chunk.goes_on && leg_outputs.is_none();
        let joined = is_last.then(|| Batch::joined(&each, JOINED_BYTES));
        chunk.rows = match joined.flatten() {
            Some(joined) => Rows::Joined(joined),
            None => Rows::Each(each.into_iter().map(Cow::into_owned).collect()),
        };
        chunk
    }
}

/// What a request ends with that was not answered in time.
pub(super) fn deadline_passed() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "the deadline passed before the result was complete",
    )
}
