//! Write a model of your own: what the author of a plugin needs (feature `plugin`; no engine, no server).
//!
//! ```
//! use mdm::plugin::{Context, LoadContext, Model, Signature};
//! use mdm::{Batch, DataType, Params, Result, Tensor};
//! use serde_json::{Value, json};
//!
//! /// Counts the words of each text.
//! struct Words {
//!     least: usize,
//! }
//!
//! impl Model for Words {
//!     fn signature(_state: &Value) -> Result<Signature> {
//!         Ok(Signature::new()
//!             .input("text", DataType::Bytes, &["N".into()])
//!             .output("words", DataType::Int64, &["N".into()]))
//!     }
//!
//!     fn load(state: &Value, _context: &LoadContext) -> Result<Self> {
//!         let least = state["least"].as_u64().unwrap_or(0) as usize;
//!         Ok(Words { least })
//!     }
//!
//!     fn dump(&self) -> Result<Value> {
//!         Ok(json!({ "least": self.least }))
//!     }
//!
//!     fn inference(&mut self, batch: &Batch, _params: &Params, _context: &Context) -> Result<Batch> {
//!         let texts = batch.tensor("text")?.strings()?;
//!         let count = |text: &&str| text.split_whitespace().count().max(self.least) as i64;
//!         let words: Vec<i64> = texts.iter().map(count).collect();
//!         Ok(Tensor::from_vec("words", vec![words.len()], words)?.into())
//!     }
//! }
//!
//! mdm::export_model!(Words);
//! # fn main() -> Result<()> {
//!
//! // A model runs without a server, too: in a test, or where it is trained.
//! let mut model = Words::load(&json!({"least": 1}), &LoadContext::of("."))?;
//! let batch = Tensor::from_strings("text", None, &["two words", ""])?.into();
//! let answer = model.inference(&batch, &Params::new(), &Context::of(".", &Params::new()))?;
//! assert_eq!(answer.tensors[0].to_vec::<i64>()?, [2, 1]);
//! # Ok(())
//! # }
//! ```
//! The crate that holds it is a `cdylib`, and an `rlib` too for a program that makes the model: there [`dump`] writes the
//! proxy that names the library and holds the state ([`dump_entry`] for one of several entries). In the server `load` makes one instance in each worker, which `inference` runs by `&mut`: a model need not be [`Send`]. A
//! panic in it is an error for the client, and the instance is dropped and loaded afresh; it must not be built with
//! `panic = "abort"`.
//!
//! # What is where
//!
//! Both sides of the C interface are here and not with the server's models: so the author's side compiles without the server,
//! and all that crosses is in one place. Signatures cross as JSON, which C writes as a literal.
//!
//! | file | what it owns |
//! |---|---|
//! | `model/mdm_model.h`, `abi.rs` | the C interface, in C and in Rust |
//! | `context.rs`, `proxy.rs` | the author's side: contexts and engine sessions, proxies of models; safe |
//! | `glue.rs` | the author's side of the C interface |
//! | `host/` | the server's side of it: libraries, calls, memory, and the checks of all that plugins return |

pub(crate) mod abi;
mod context;
#[doc(hidden)]
pub mod glue;
#[cfg(feature = "server")]
pub(crate) mod host;
mod panics;
mod proxy;

pub use context::{Context, EngineSession, LoadContext};
pub use glue::{Level, log};
pub use proxy::{Proxy, dump, dump_entry};
use serde_json::Value;

pub use crate::error::{Error, ErrorCode, Result};
pub use crate::message::Params;
pub use crate::signature::{Dim, Port, Rows, Signature};
pub use crate::tensor::{Batch, DataType, Tensor};

/// A model that is written in Rust. [`export_model!`](crate::export_model) makes a plugin of it.
pub trait Model: Sized + 'static {
    /// What it takes and gives: the server checks requests against it, and outputs. By default it takes anything and
    /// gives anything, and its rows are independent. Called in a thread that loads models, before any `load`.
    ///
    /// # Errors
    /// What is wrong with the state.
    fn signature(state: &Value) -> Result<Signature> {
        let _ = state;
        Ok(Signature::new())
    }

    /// Makes a model from a proxy's state (null if it has none), in the worker's thread.
    ///
    /// # Errors
    /// What is wrong with the state or with a file that it names; the client reads it.
    fn load(state: &Value, context: &LoadContext) -> Result<Self>;

    /// The state from which [`Model::load`] makes an equal model. [`dump`] writes it into a proxy.
    ///
    /// # Errors
    /// What of it JSON cannot hold.
    fn dump(&self) -> Result<Value>;

    /// Runs a batch: rows in columns, in the order of the signature's inputs. The memory is the server's own, and an
    /// input can be kept, or given back as an output, without a copy. Where rows are independent every output has as
    /// many rows as the inputs.
    ///
    /// # Errors
    /// What went wrong, for the client to read; [`Error::at_rows`] says for which rows of the batch.
    fn inference(&mut self, batch: &Batch, params: &Params, context: &Context) -> Result<Batch>;
}

/// Makes a plugin of a crate: exports one model, or several under names that proxies give as `"entry"`.
///
/// ```ignore
/// mdm::export_model!(Ner);
/// mdm::export_model!("preprocess" => Preprocess, "postprocess" => Postprocess);
/// ```
/// It can be written once in a library.
#[macro_export]
macro_rules! export_model {
    ($($name:literal => $model:ty),+ $(,)?) => {
        const _: () = {
            static ENTRIES: &[$crate::plugin::glue::Entry] =
                &[$($crate::plugin::glue::Entry::of::<$model>($name)),+];
            static TABLE: $crate::plugin::glue::Table = $crate::plugin::glue::Table::of(ENTRIES);
            #[allow(unsafe_code)] // a symbol for the system's loader
            #[unsafe(no_mangle)]
            extern "C" fn mdm_plugin_entry(
                host: $crate::plugin::glue::HostPointer,
            ) -> $crate::plugin::glue::TablePointer {
                $crate::plugin::glue::enter(host, &TABLE)
            }
        };
    };
    ($model:ty $(,)?) => {
        $crate::export_model!("model" => $model);
    };
}
