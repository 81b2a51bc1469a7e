//! Where the stages around a net run: in the client, in the server's worker, or in extra workers beside it.
//! `benches/README.md` says what is measured and how.
//!
//! ```text
//! cargo bench --bench image                                 100 photographs x 10, of two nets (minutes)
//! cargo bench --bench image -- digits                       one of them
//! cargo bench --bench image -- --images 20 --rounds 2       fewer
//! cargo bench --bench image -- --quick                      the same, too short to be believed
//! cargo bench --bench image -- --extra-workers 1            instead of 2
//! ```
//! The plugin has to be built: `cargo build --release --example image`, which `make bench-image` does.

#[path = "table/children.rs"]
mod children;
#[path = "../examples/image/digits.rs"]
mod digits;
#[path = "table/engine.rs"]
mod engine;
#[path = "../examples/image/folder.rs"]
mod folder;
#[allow(unused_imports)] // benchmarks are built as tests are, but without the modules' tests
#[path = "../examples/image/pictures.rs"]
mod pictures;
#[allow(unused_imports)] // benchmarks are built as tests are, but without the modules' tests
#[path = "../examples/image/resnet50.rs"]
mod resnet50;
#[path = "../examples/image/stages.rs"]
mod stages;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mdm::client::Client;
use mdm::plugin::{Context, LoadContext, Model};
use mdm::{Batch, Params, Tensor};
use ort::session::SessionInputValue;
use ort::value::TensorRef;
use serde_json::Value;

use children::{Models, Server};
use stages::{Postprocess, Preprocess, PreprocessState};

/// Rounds of a net end after so long, once there are two: a slow or busy machine gets its table too.
const LONGEST: Duration = Duration::from_secs(480);

/// How often the last stage is run to be timed.
const MANY: u32 = 1000;

/// How much is measured.
struct Plan {
    images: usize,
    rounds: usize,
    extra_workers: usize,
    nets: Vec<String>,
}

impl Plan {
    fn read() -> Result<Option<Plan>> {
        let mut plan = Plan {
            images: 100,
            rounds: 10,
            extra_workers: 2,
            nets: Vec::new(),
        };
        let mut asked = false;
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut count = || -> Result<usize> {
                let value = arguments.next().unwrap_or_default();
                let count = value
                    .parse()
                    .with_context(|| format!("{argument} {value:?}"))?;
                ensure!(count > 0, "{argument} 0: there is nothing to do");
                Ok(count)
            };
            match argument.as_str() {
                "--bench" => asked = true,
                "--images" => plan.images = count()?,
                "--rounds" => plan.rounds = count()?,
                "--extra-workers" => plan.extra_workers = count()?,
                "--quick" => (plan.images, plan.rounds) = (20, 2),
                net @ ("digits" | "resnet50") => plan.nets.push(net.to_owned()),
                other => bail!(
                    "{other:?} is unknown, expected digits, resnet50, --images, --rounds, --extra-workers or --quick"
                ),
            }
        }
        if plan.nets.is_empty() {
            plan.nets = ["digits", "resnet50"].map(str::to_owned).to_vec();
        }
        Ok(asked.then_some(plan))
    }
}

fn main() -> Result<()> {
    mdm::model::without_telemetry();
    let Some(plan) = Plan::read()? else {
        println!(
            "benchmarks are run by `cargo bench --bench image`; as a test there is nothing to do"
        );
        return Ok(());
    };
    let cores = std::thread::available_parallelism()?;
    println!(
        "{cores} cores; one worker with one engine thread, and one request of {} photographs at a time",
        plan.images
    );
    for net in &plan.nets {
        measure(net, &plan)?;
    }
    Ok(())
}

/// One thread's stages, as the plugin has them.
struct Stages {
    before: Preprocess,
    behind: Postprocess,
}

impl Stages {
    fn new(side: u32) -> Result<Stages> {
        let here = LoadContext::of(".");
        let state = serde_json::to_value(PreprocessState::of(side))?;
        Ok(Stages {
            before: Preprocess::load(&state, &here)?,
            behind: Postprocess::load(&Value::Null, &here)?,
        })
    }

    fn before(&mut self, pictures: &Tensor) -> Result<Batch> {
        Ok(run(&mut self.before, &pictures.clone().into())?)
    }

    fn behind(&mut self, scores: Tensor) -> Result<Vec<String>> {
        labels(&run(&mut self.behind, &scores.into())?.tensors)
    }
}

fn run(model: &mut impl Model, batch: &Batch) -> mdm::Result<Batch> {
    let none = Params::new();
    model.inference(batch, &none, &Context::of(".", &none))
}

fn labels(outputs: &[Tensor]) -> Result<Vec<String>> {
    let label = outputs.iter().find(|tensor| tensor.name() == "label");
    let texts = label.context("no labels")?.strings()?;
    Ok(texts.into_iter().map(str::to_owned).collect())
}

fn measure(net: &str, plan: &Plan) -> Result<()> {
    let photographs = photographs(plan.images)?;
    let bytes: usize = photographs.iter().map(Vec::len).sum();
    let rows = Tensor::from_strings("image", None, &photographs)?;
    let dir = tempfile::tempdir()?;
    let library = folder::built_library()?;
    let (side, onnx_name, onnx) = match net {
        "digits" => {
            folder::write_digits(dir.path(), &library)?;
            let onnx = folder::DIGITS_CNN.to_vec();
            (folder::DIGITS_SIDE, "digits_cnn.onnx", onnx)
        }
        _ => {
            let onnx = resnet50::resnet50(1);
            folder::write_resnet50(dir.path(), &library, &onnx)?;
            (folder::RESNET_SIDE, "resnet50.onnx", onnx)
        }
    };
    let mut stages = Stages::new(side)?;
    let cost = Cost::measure(&mut stages, &rows, &onnx, side)?;
    let models = Models::of(dir);
    let flags = ["--num-worker", "1", "--intra-op-threads", "1"];
    let extra = plan.extra_workers.to_string();
    let plain = Server::start(&models, &flags)?;
    let helped = Server::start(
        &models,
        &[&flags[..], &["--num-parallel-workers", &extra]].concat(),
    )?;
    let (plain_client, helped_client) = (plain.client()?, helped.client()?);

    let in_client = |stages: &mut Stages| -> Result<Vec<String>> {
        let numbers = stages.before(&rows)?;
        let response = plain_client.infer(numbers, onnx_name)?;
        stages.behind(response.tensor("scores")?)
    };
    let in_server = |client: &Client| -> Result<Vec<String>> {
        let response = client.infer(rows.clone(), net)?;
        labels(&[response.tensor("label")?])
    };
    // Models are loaded, and the paces found; all ways give the same.
    let expected = in_client(&mut stages)?;
    ensure!(
        in_server(&plain_client)? == expected,
        "the server's labels are others"
    );
    ensure!(
        in_server(&helped_client)? == expected,
        "the extra workers' labels are others"
    );
    let mut times: [Vec<f64>; 3] = Default::default();
    let begun = Instant::now();
    while times[0].len() < plan.rounds && (times[0].len() < 2 || begun.elapsed() < LONGEST) {
        let mut round = |way: usize, once: &mut dyn FnMut() -> Result<Vec<String>>| {
            let started = Instant::now();
            once()?;
            let elapsed = started.elapsed().as_secs_f64();
            times[way].push(elapsed * 1e3 / plan.images as f64);
            anyhow::Ok(())
        };
        round(0, &mut || in_client(&mut stages))?;
        round(1, &mut || in_server(&plain_client))?;
        round(2, &mut || in_server(&helped_client))?;
    }

    println!(
        "\n{net}: {} photographs of {:.0} KB each, {} rounds",
        plan.images,
        bytes as f64 / 1e3 / plan.images as f64,
        times[0].len()
    );
    println!("  pre- and postprocessing                      ms per image          ratio");
    let in_client = times[0].clone();
    let ways = [
        "in the client, one thread".to_owned(),
        "in the server, by its worker".to_owned(),
        format!("in the server, {extra} extra workers"),
    ];
    for (way, times) in ways.iter().zip(&times) {
        let ratios = times.iter().zip(&in_client).map(|(a, b)| a / b).collect();
        println!("  {way:34} {}  {:8.2}", spread(times), middle(ratios));
    }
    println!("  {cost}");
    Ok(())
}

/// JPEGs of digits, 48 KB to 330 KB.
fn photographs(count: usize) -> Result<Vec<Vec<u8>>> {
    let digits = digits::held_out(count)?;
    let photograph = |(number, digit): (usize, &digits::Digit)| {
        pictures::photograph(&digit.pixels, number as u64 | 13 << 32)
    };
    Ok(digits.iter().enumerate().map(photograph).collect())
}

/// Processor time per image of each part, one thread, in this process.
struct Cost {
    before_ms: f64,
    net_ms: f64,
    behind_ms: f64,
}

impl Cost {
    fn measure(stages: &mut Stages, rows: &Tensor, onnx: &[u8], side: u32) -> Result<Cost> {
        let images = rows.rows().context("no rows")?;
        let mut session = engine::session(onnx)?;
        let side = side as usize;
        let mut score = |image: &[f32]| -> Result<Vec<f32>> {
            let input = TensorRef::from_array_view(([1, 3, side, side], image))?;
            let outputs = session.run([SessionInputValue::from(input)])?;
            Ok(outputs[0].try_extract_tensor::<f32>()?.1.to_vec())
        };
        // What is made once is not counted.
        let first = stages.before(&rows.slice_rows(0, 1))?;
        score(&first.tensor("image")?.to_vec::<f32>()?)?;

        let (numbers, before_ms) = timed(|| stages.before(rows))?;
        let numbers = numbers.tensor("image")?.to_vec::<f32>()?;
        let all = || {
            let images = numbers.chunks_exact(3 * side * side);
            images.map(&mut score).collect::<Result<Vec<_>>>()
        };
        let (scores, net_ms) = timed(all)?;
        let scores = scores.concat();
        let scores = Tensor::from_vec("scores", vec![images, scores.len() / images], scores)?;
        // The system's clock of a thread goes by milliseconds.
        let many = || (0..MANY).try_for_each(|_| stages.behind(scores.clone()).map(drop));
        let ((), behind_ms) = timed(many)?;
        let images = images as f64;
        Ok(Cost {
            before_ms: before_ms / images,
            net_ms: net_ms / images,
            behind_ms: behind_ms / images / f64::from(MANY),
        })
    }
}

impl std::fmt::Display for Cost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "processor time per image, one thread: decode and resize {:.2} ms, net {:.2} ms, postprocess {:.4} ms",
            self.before_ms, self.net_ms, self.behind_ms
        )
    }
}

/// What it gives, and the processor time that it takes, in milliseconds.
fn timed<T>(once: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = thread_ms()?;
    let value = once()?;
    Ok((value, thread_ms()? - start))
}

/// Processor time of this thread so far, in milliseconds.
fn thread_ms() -> Result<f64> {
    let path = "/proc/thread-self/schedstat";
    let text = std::fs::read_to_string(path).context(path)?;
    let nanoseconds: f64 = text.split_whitespace().next().context(path)?.parse()?;
    Ok(nanoseconds / 1e6)
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let half = numbers.len() / 2;
    match numbers.len() % 2 {
        0 => (numbers[half - 1] + numbers[half]) / 2.0,
        _ => numbers[half],
    }
}

/// The median, with the least and the greatest.
fn spread(times: &[f64]) -> String {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = times.iter().copied().fold(0.0, f64::max);
    format!("{:8.2} ({least:.2}..{greatest:.2})", middle(times.to_vec()))
}
