//! The plugin: `model.rs` under the name that a proxy gives. See README.md.
//!
//! ```text
//! $ cargo build --release --example ner       -> target/release/examples/libner.so
//! ```

mod model;
mod text;
mod viterbi;

mdm::export_model!(model::Ner);
