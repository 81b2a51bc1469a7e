//! What the answers want done, and who does it.

use crate::message::{Member, ModelLabel, ReplyTo, RequestId};
use crate::wire::inner::ToVentilator;
use crate::wire::result_writer::ResultRows;
use crate::wire::server::ServerMessage;

/// What is to be done, at once.
#[derive(Debug)]
pub(crate) enum Action<'a> {
    /// Give a client its result.
    Result {
        reply: ReplyTo,
        request: RequestId,
        rows: ResultRows<'a>,
    },
    /// Tell a client.
    Answer {
        reply: ReplyTo,
        request: RequestId,
        message: ServerMessage,
    },
    TellVentilator(ToVentilator),
}

/// Performs the actions, and knows how many bytes are still unsent to each client.
pub(crate) trait Outlet {
    /// Bytes that were given to [`Outlet::perform`] for a client and have not left yet.
    fn unsent_bytes(&self, reply: ReplyTo) -> u64;

    fn perform(&mut self, action: Action<'_>);
}

/// Who gets an answer.
#[derive(Clone, Copy)]
pub(super) struct Recipient {
    pub(super) reply: ReplyTo,
    pub(super) request: RequestId,
    pub(super) arrived_us: u64,
    /// Under which model's name the answer is counted.
    pub(super) label: ModelLabel,
}

impl Recipient {
    pub(super) fn of(member: &Member, label: ModelLabel) -> Recipient {
        Recipient {
            reply: member.reply,
            request: member.request,
            arrived_us: member.arrived_us,
            label,
        }
    }
}

/// What one message is handled with: the time, and where its actions go.
pub(super) struct Handling<'a, O> {
    pub(super) now_us: u64,
    pub(super) outlet: &'a mut O,
}

impl<O: Outlet> Handling<'_, O> {
    pub(super) fn answer(&mut self, recipient: Recipient, message: ServerMessage) {
        self.outlet.perform(Action::Answer {
            reply: recipient.reply,
            request: recipient.request,
            message,
        });
    }

    pub(super) fn tell_ventilator(&mut self, message: ToVentilator) {
        self.outlet.perform(Action::TellVentilator(message));
    }
}
