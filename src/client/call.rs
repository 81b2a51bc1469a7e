//! What goes with the rows: the model, parameters, a time limit, a priority.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::encoded::Encoded;
use super::inputs::LentInputs;
use super::session::PATIENCE;
use crate::error::{Error, ErrorCode, Result};
use crate::message::{Params, Priority};
use crate::wire::client::{InferHeader, check_params};
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
    /// What was wrong with what the call was made from; told when it is used.
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

    /// What asks which model it would get: the name, the parameters, and how long the answer may take.
    pub(super) fn into_question(self) -> Result<(Option<String>, Params, Option<Duration>)> {
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
        answer: Answer,
    ) -> Result<(Encoded<'_>, Limit)> {
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
            answer == Answer::Parts,
        );
        Ok((Encoded::infer(header, inputs), Limit(timeout)))
    }
}

/// How an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// At once, all rows.
    Whole,
    /// In parts, as they finish.
    Parts,
}

/// How long a request may take, as its client sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(Option<Duration>);

impl Limit {
    /// When the request's own time is over, if it is sent now.
    pub(super) fn end(self) -> Option<Instant> {
        Instant::now().checked_add(self.0?)
    }

    /// When a client gives up a request that it sends now: a little after the server should have.
    pub(super) fn deadline(self) -> Option<Instant> {
        // A time beyond what a clock can hold is no limit.
        Instant::now().checked_add(self.0?.checked_add(PATIENCE)?)
    }
}

/// The error of a client that waited longer than the server should have taken.
pub(super) fn gave_up() -> Error {
    Error::new(
        ErrorCode::DeadlineExceeded,
        "the server did not answer within the request's time; the request was taken back",
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
                    "parameters are a JSON object, got {other}"
                ))),
                ..Call::default()
            },
        }
    }
}
