//! A call: what goes with the rows, such as the model, parameters, a time limit, a priority.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::encoded::Encoded;
use super::inputs::LentInputs;
use super::session::ANSWER_GRACE;
use crate::error::{Error, ErrorCode, Result};
use crate::message::{OnBadRow, Params, Priority};
use crate::wire::client::{Delivery, InferHeader, check_params};
use crate::wire::id;

/// Which model the rows go through, and how.
///
/// ```
/// use std::time::Duration;
/// use mdm::client::Call;
///
/// let call = Call::model("tagger").param("c_tag", "BD").timeout(Duration::from_secs(60));
/// // What a JSON document says is the same, with the model's name among the parameters:
/// let same = Call::from(serde_json::json!({"model": "tagger", "c_tag": "BD"}));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Call {
    model: Option<String>,
    params: Params,
    timeout: Option<Duration>,
    priority: Priority,
    on_bad_row: OnBadRow,
    /// The error in what the call was made from: returned when the call is used.
    problem: Option<Error>,
}

impl Call {
    /// A call of the model of that name.
    pub fn model(name: impl Into<String>) -> Call {
        Call {
            model: Some(name.into()),
            ..Call::default()
        }
    }

    /// The same call of the model of that name.
    #[must_use]
    pub fn for_model(mut self, name: impl Into<String>) -> Call {
        self.model = Some(name.into());
        self
    }

    /// Adds one parameter for the model.
    #[must_use]
    pub fn param(mut self, key: impl Into<String>, value: impl Into<Value>) -> Call {
        self.params.insert(key.into(), value.into());
        self
    }

    /// Adds parameters for the model.
    #[must_use]
    pub fn params(mut self, params: Params) -> Call {
        self.params.extend(params);
        self
    }

    /// The longest that the request may take; without it the client's own, then the server's default holds.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Call {
        self.timeout = Some(timeout);
        self
    }

    /// Ahead of other bulk requests. Small requests overtake those anyway.
    #[must_use]
    pub fn high_priority(mut self) -> Call {
        self.priority = Priority::High;
        self
    }

    /// Rows that fail do not end the request: all others are answered, and [`Response::failed`](super::Response::failed)
    /// says which failed and why. In the outputs they are zeros, empty strings or JSON nulls. If every row fails, the call
    /// fails. Only for models whose rows are independent.
    ///
    /// ```no_run
    /// # fn main() -> mdm::Result<()> {
    /// # let client = mdm::Client::connect("localhost:5555")?;
    /// use mdm::client::Call;
    ///
    /// let texts = ["born in 1980", "no date here"];
    /// let response = client.infer(&texts, Call::model("dates").report_bad_rows())?;
    /// for failed in response.failed() {
    ///     eprintln!("{failed}"); // row 1: INVALID_ARGUMENT: …
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn report_bad_rows(mut self) -> Call {
        self.on_bad_row = OnBadRow::Report;
        self
    }

    /// The parts of a describe request: the model's name, the parameters, and how long the answer may take.
    pub(super) fn into_describe(self) -> Result<(Option<String>, Params, Option<Duration>)> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        check_params(&self.params)?;
        Ok((self.model, self.params, self.timeout))
    }

    /// The request as it goes out, and when its client gives up.
    pub(super) fn encode(
        self,
        inputs: LentInputs<'_>,
        default_timeout: Option<Duration>,
        delivery: Delivery,
    ) -> Result<(Encoded<'_>, TimeLimit)> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        check_params(&self.params)?;
        let timeout = self.timeout.or(default_timeout);
        let timeout_ms =
            timeout.map(|t| u64::try_from(t.as_micros().div_ceil(1000)).unwrap_or(u64::MAX));
        let header = InferHeader::new(id::UNKNOWN, self.model.as_deref(), &self.params).with(
            timeout_ms,
            self.priority,
            delivery,
        );
        let header = header.on_bad_row(self.on_bad_row);
        Ok((Encoded::infer(header, inputs), TimeLimit(timeout)))
    }
}

/// How long a request may take, as its client sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimit(Option<Duration>);

impl TimeLimit {
    /// When the request's own time is over, if it is sent now.
    pub(super) fn end(self) -> Option<Instant> {
        Instant::now().checked_add(self.0?)
    }

    /// When a client gives up a request that it sends now: a little after the server should have.
    pub(super) fn deadline(self) -> Option<Instant> {
        // A time that an `Instant` cannot hold is no limit.
        Instant::now().checked_add(self.0?.checked_add(ANSWER_GRACE)?)
    }
}

/// The error when the server should have answered by now and has not.
pub(super) fn gave_up() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "the server did not answer within the request's time; the request was cancelled",
    )
}

impl From<&str> for Call {
    fn from(model: &str) -> Call {
        Call::model(model)
    }
}

impl From<&String> for Call {
    fn from(model: &String) -> Call {
        Call::model(model)
    }
}

impl From<String> for Call {
    fn from(model: String) -> Call {
        Call::model(model)
    }
}

impl From<Params> for Call {
    fn from(mut params: Params) -> Call {
        let (model, problem) = match params.remove("model") {
            None => (None, None),
            Some(Value::String(model)) => (Some(model), None),
            Some(other) => {
                let problem = format!("the parameter \"model\" is {other}, expected a string");
                (None, Some(Error::invalid(problem)))
            }
        };
        Call {
            model,
            params,
            problem,
            ..Call::default()
        }
    }
}

impl From<Value> for Call {
    /// An object: its keys are parameters, but for `model`. Anything else is an error when the call is used.
    fn from(value: Value) -> Call {
        match value {
            Value::Object(params) => Call::from(params),
            other => Call {
                problem: Some(Error::invalid(format!(
                    "parameters: expected a JSON object, got {other}"
                ))),
                ..Call::default()
            },
        }
    }
}
