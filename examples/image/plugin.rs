//! The plugin of the image example: what stands before and behind a net that classifies pictures.
//!
//! ```text
//! $ cargo build --release --example image             -> target/release/examples/libimage.so
//! {"mdm": 1, "stages": [{"plugin": "libimage.so", "entry": "preprocess", "state": {"size": 224}},
//!                       {"onnx": "resnet50.onnx"},
//!                       {"plugin": "libimage.so", "entry": "postprocess"}]}
//! ```

mod stages;

mdm::export_model!("preprocess" => stages::Preprocess, "postprocess" => stages::Postprocess);
