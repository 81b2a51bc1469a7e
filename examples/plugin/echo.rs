//! A plugin in Rust with four models, each a way to begin one: rows handed through, text to records, one that takes its
//! time, and one that goes wrong when it is told to.
//!
//! ```text
//! $ cargo build --release --example echo_plugin       -> target/release/examples/libecho_plugin.so
//! {"mdm": 1, "plugin": "libecho_plugin.so", "entry": "shout", "state": {"mark": "!"}}
//! ```

use std::time::Duration;

use mdm::plugin::{Context, LoadContext, Model, Signature};
use mdm::{Batch, DataType, Error, Params, Result, Tensor};
use serde::Serialize;
use serde_json::{Value, json};

/// Takes anything, and gives it back without a copy.
struct Echo;

impl Model for Echo {
    fn load(_state: &Value, _context: &LoadContext) -> Result<Self> {
        Ok(Echo)
    }

    fn dump(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn inference(&mut self, batch: &Batch, _params: &Params, _context: &Context) -> Result<Batch> {
        Ok(batch.clone())
    }
}

/// One text in, one record out.
struct Shout {
    mark: String,
}

#[derive(Serialize)]
struct Shouted<'a> {
    text: &'a str,
    letters: usize,
    loud: String,
}

impl Model for Shout {
    fn signature(_state: &Value) -> Result<Signature> {
        Ok(Signature::new()
            .input("text", DataType::Bytes, &["N".into()])
            .output("shouted", DataType::Json, &["N".into()]))
    }

    fn load(state: &Value, _context: &LoadContext) -> Result<Self> {
        match state["mark"].as_str() {
            Some(mark) => Ok(Shout {
                mark: mark.to_owned(),
            }),
            None => Err(Error::precondition(format!(
                "the state's \"mark\" is {}, expected a text",
                state["mark"]
            ))),
        }
    }

    fn dump(&self) -> Result<Value> {
        Ok(json!({ "mark": self.mark }))
    }

    fn inference(&mut self, batch: &Batch, params: &Params, context: &Context) -> Result<Batch> {
        let times = params.get("times").and_then(Value::as_u64).unwrap_or(1) as usize;
        let mut records = Vec::new();
        // Text that is no UTF-8 is the client's error, about that row.
        for (row, text) in batch.tensor("text")?.texts()?.enumerate() {
            let text = text?;
            if text.is_empty() {
                return Err(context.bad_row(row, "there is nothing to shout"));
            }
            records.push(Shouted {
                text,
                letters: text.chars().count(),
                loud: text.to_uppercase() + &self.mark.repeat(times),
            });
        }
        Ok(Tensor::from_json_rows("shouted", &records)?.into())
    }
}

/// Gives numbers back, each run as many milliseconds later as its state says: a model to measure a server with.
struct Pause {
    each: Duration,
}

impl Model for Pause {
    fn signature(_state: &Value) -> Result<Signature> {
        Ok(Signature::new()
            .input("x", DataType::Fp32, &["N".into()])
            .output("y", DataType::Fp32, &["N".into()]))
    }

    fn load(state: &Value, _context: &LoadContext) -> Result<Self> {
        match state["ms"].as_u64() {
            Some(ms) => Ok(Pause {
                each: Duration::from_millis(ms),
            }),
            None => Err(Error::precondition(format!(
                "the state's \"ms\" is {}, expected a whole number",
                state["ms"]
            ))),
        }
    }

    fn dump(&self) -> Result<Value> {
        Ok(json!({ "ms": self.each.as_millis() as u64 }))
    }

    fn inference(&mut self, batch: &Batch, _params: &Params, _context: &Context) -> Result<Batch> {
        std::thread::sleep(self.each);
        Ok(batch.tensor("x")?.clone().renamed("y").into())
    }
}

/// Counts its runs, and goes wrong as the parameter "do" says, and its state before it is there: what the tests look at.
struct Faulty {
    runs: i64,
}

impl Model for Faulty {
    fn signature(state: &Value) -> Result<Signature> {
        if let Some(path) = state["wait_for"].as_str() {
            // A named pipe: it ends when somebody has opened it for writing, and closed it.
            std::fs::read(path).map_err(|e| Error::precondition(format!("{path:?}: {e}")))?;
        }
        Ok(Signature::new())
    }

    fn load(_state: &Value, _context: &LoadContext) -> Result<Self> {
        Ok(Faulty { runs: 0 })
    }

    fn dump(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    fn inference(&mut self, batch: &Batch, params: &Params, context: &Context) -> Result<Batch> {
        self.runs += 1;
        let rows = batch.rows()?;
        let numbers = batch.tensors.first().map(Tensor::to_vec::<f32>);
        let is_bad = numbers.is_some_and(|n| n.is_ok_and(|n| n.iter().any(|n| *n < 0.0)));
        match params.get("do").and_then(Value::as_str) {
            // Whoever asks to have bad rows reported finds out which they are.
            Some("fail below 0") if is_bad => Err(Error::invalid("somewhere a number is below 0")),
            Some("panic below 0") if is_bad => panic!("a number is below 0"),
            Some("fail slowly below 0") if is_bad => {
                std::thread::sleep(Duration::from_millis(20));
                Err(Error::invalid("somewhere a number is below 0"))
            }
            Some("blame a row that is not there") => {
                Err(context.bad_row(99_999, "it is not there"))
            }
            Some("panic") => panic!("told to panic in run {}", self.runs),
            Some("lose a row") => {
                let runs = vec![self.runs; rows - 1];
                Ok(Tensor::from_vec("runs", vec![rows - 1], runs)?.into())
            }
            Some("wait") => {
                // Until nobody wants the answer any more.
                while !context.cancelled() {
                    std::thread::yield_now();
                }
                Err(Error::internal("nobody waits"))
            }
            _ => Ok(Tensor::from_vec("runs", vec![rows], vec![self.runs; rows])?.into()),
        }
    }
}

mdm::export_model!("echo" => Echo, "shout" => Shout, "pause" => Pause, "faulty" => Faulty);
