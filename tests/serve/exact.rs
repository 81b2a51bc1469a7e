//! The numbers are the engine's own: bit for bit what a session in this process gives for the same chunks.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mdm::Tensor;
use mdm::client::{Client, Response};
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::TensorRef;

use crate::common::{PATIENCE, Server, models, onnx, within};

/// The library that the server uses too, unless the machine has another one and none was fetched.
fn library() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return path.into();
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".onnxruntime");
    let mut entries = std::fs::read_dir(&folder)
        .expect("`make onnxruntime` fetches the library")
        .map(|entry| entry.expect("an entry").path());
    entries
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libonnxruntime.")
        })
        .expect("`make onnxruntime` fetches the library")
}

/// A session such as a worker's, but plain: it reads its own weights.
pub fn session(model: &[u8]) -> Session {
    // One for the process, and never taken down: the engine's own statics would go before it.
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    let environment = ENVIRONMENT.get_or_init(|| {
        let builder = ort::init_from(library()).expect("the library");
        builder.build().expect("an environment")
    });
    let built = || -> ort::Result<Session> {
        Session::builder(environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .commit_from_memory(model)
    };
    built().expect("a session")
}

/// What the session gives for these rows.
pub fn run<T>(session: &mut Session, rows: &Tensor) -> Vec<f32>
where
    T: mdm::Element + ort::value::PrimitiveTensorElementType + 'static,
{
    let elements = rows.to_vec::<T>().expect("elements");
    let view = TensorRef::from_array_view((rows.shape(), elements.as_slice())).expect("a view");
    let outputs = session.run(ort::inputs![view]).expect("a run");
    let (_, values) = outputs[0].try_extract_tensor::<f32>().expect("floats");
    values.to_vec()
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|f| f.to_bits()).collect()
}

/// Each part against the session, over the rows that are in it.
fn check<T>(session: &mut Session, sent: &Tensor, response: &Response)
where
    T: mdm::Element + ort::value::PrimitiveTensorElementType + 'static,
{
    let mut start = 0;
    for part in response.parts() {
        let output = &part.tensors[0];
        let rows = output.rows().expect("rows");
        let expected = run::<T>(session, &sent.slice_rows(start, rows));
        let got = output.to_vec::<f32>().expect("floats");
        assert!(
            bits(&got) == bits(&expected),
            "rows {start}..{} of {:?} differ from the engine's own",
            start + rows,
            sent.shape()
        );
        start += rows;
    }
    assert_eq!(Some(start), sent.rows());
}

/// Numbers without a pattern, the same every time.
pub fn noise(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    })
}

fn ask(client: &Client, sent: &Tensor, model: &str) -> Response {
    client.infer(sent.clone(), model).expect("results")
}

#[test]
fn results_are_the_engines_own_bit_for_bit() {
    within(PATIENCE, || {
        let (mlp, bilstm) = (onnx::mlp(), onnx::bilstm());
        let dir = models(&[("mlp.onnx", mlp.clone()), ("bilstm.onnx", bilstm.clone())]);
        // Two workers, and so two sessions that share their weights.
        let server = Server::start(dir, &["--num-worker", "2", "--intra-op-threads", "1"]);
        let client = server.client();

        let mut engine = session(&mlp);
        for rows in [1, 16, 100, 3000, 3000, 8000] {
            let floats = noise(rows * 64).map(|n| (n as f32 / u32::MAX as f32) - 0.5);
            let sent = Tensor::from_vec("x", vec![rows, 64], floats.collect()).unwrap();
            check::<f32>(&mut engine, &sent, &ask(&client, &sent, "mlp"));
        }
        let mut engine = session(&bilstm);
        for rows in [1, 20, 300, 500] {
            let ids = noise(rows * 64).map(|n| (n % 5000) as i64);
            let sent = Tensor::from_vec("ids", vec![rows, 64], ids.collect()).unwrap();
            check::<i64>(&mut engine, &sent, &ask(&client, &sent, "bilstm"));
        }
    });
}
