//! The NER example by number of sentences and of workers, and where its time goes. `benches/README.md` says how.
//!
//! ```text
//! cargo build --release --example ner --example ner-dump && cargo bench --bench ner
//! cargo bench --bench ner -- table | share | --quick
//! ```

#[path = "../tests/common/built.rs"]
mod built;
#[path = "table/children.rs"]
mod children;
#[path = "table/engine.rs"]
mod engine;
#[allow(dead_code)] // the plugin uses all of it
#[path = "../examples/ner/model.rs"]
mod model;
#[allow(dead_code)] // as above
#[path = "../examples/ner/text.rs"]
mod text;
#[path = "../examples/ner/viterbi.rs"]
mod viterbi;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mdm::client::{Call, Client};
use mdm::{Batch, Response, Tensor};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, TensorRef};
use plotters::prelude::*;
use serde_json::{Value, json};

use children::{Models, Server, own_cpu};
use model::{Emissions, Entity};
use text::{Plan, Sentences, Vocabulary};
use viterbi::{Crf, Decoder};

const WORKERS: [usize; 4] = [1, 2, 4, 8];
const STEP: usize = 400;
const MOST: usize = 8000;
/// Sentences of the requests that are compared with the engine alone: short, so that the machine is the same for both.
const COMPARED: usize = 1600;

/// What is measured how often.
struct Extent {
    /// Requests of each size; the fastest counts.
    repeats: usize,
    sizes: Vec<usize>,
    /// Pairs of a request and the engine alone.
    pairs: usize,
}

fn main() -> Result<()> {
    mdm::model::without_telemetry();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|arg| arg == "--bench") {
        println!("benchmarks are run by `make bench-ner`; as a test there is nothing to do");
        return Ok(());
    }
    let (mut extent, mut chosen) = (
        Extent {
            repeats: 2,
            sizes: (STEP..=MOST).step_by(STEP).collect(),
            pairs: 25,
        },
        Vec::new(),
    );
    for arg in &args {
        match arg.as_str() {
            "--bench" => {}
            "--quick" => {
                extent = Extent {
                    repeats: 1,
                    sizes: vec![STEP, MOST / 2],
                    pairs: 5,
                }
            }
            "table" | "share" => chosen.push(arg.as_str()),
            other => bail!("{other:?} is no part; there are table, share and --quick"),
        }
    }
    let sentences = sentences()?;
    if chosen.is_empty() || chosen.contains(&"table") {
        table(&sentences, &extent)?;
    }
    if chosen.is_empty() || chosen.contains(&"share") {
        share(&sentences, &extent)?;
    }
    Ok(())
}

/// As many as the largest request has: the held-out ones again and again.
fn sentences() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(built::sources("ner").join("heldout.jsonl"))?;
    let lines: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let texts = lines.iter().filter_map(|line| line["text"].as_str());
    Ok(texts.map(str::to_owned).cycle().take(MOST).collect())
}

/// A server over what `ner-dump` writes. A worker's engine has one thread, whatever the machine has.
fn serve(workers: usize) -> Result<(Server, Models)> {
    built::plugin("ner");
    let models = Models::write(&[])?;
    let status = Command::new(built::program("ner-dump"))
        .arg(models.path())
        .stdout(Stdio::null())
        .status()?;
    ensure!(status.success(), "ner-dump: {status}");
    let workers = workers.to_string();
    let flags = ["--num-worker", &workers, "--intra-op-threads", "1"];
    Ok((Server::start(&models, &flags)?, models))
}

/// The request of the ancestor's manual.
fn request(client: &Client, sentences: &[String]) -> Result<Response> {
    let params = json!({
        "model_proxy_path": "ner_model.proxy",
        "c_tag": "BD",
        "is_independent": false,
        "word2id_path": "word2id.json",
    });
    let params = params.as_object().context("an object")?.clone();
    Ok(client.infer(sentences, Call::default().params(params))?)
}

/// Opens the sessions of all workers, and lets the pace settle.
fn warm_up(client: &Client, sentences: &[String]) -> Result<()> {
    for _ in 0..3 {
        request(client, &sentences[..2000])?;
    }
    Ok(())
}

/// Seconds by size, for each number of workers.
fn table(sentences: &[String], extent: &Extent) -> Result<()> {
    let mut seconds: Vec<Vec<f64>> = Vec::new();
    for workers in WORKERS {
        eprint!("{workers} workers … ");
        let begun = Instant::now();
        let (server, _models) = serve(workers)?;
        let client = server.client()?;
        warm_up(&client, sentences)?;
        let mut column = Vec::new();
        for &size in &extent.sizes {
            let mut least = f64::INFINITY;
            for _ in 0..extent.repeats {
                let start = Instant::now();
                let response = request(&client, &sentences[..size])?;
                least = least.min(start.elapsed().as_secs_f64());
                ensure!(response.rows() == Some(size), "a row was lost");
            }
            column.push(least);
        }
        eprintln!("{:.0} s", begun.elapsed().as_secs_f64());
        seconds.push(column);
    }
    print!("sentences");
    for workers in WORKERS {
        print!("   {:>18}", count(workers));
    }
    println!();
    for (line, size) in extent.sizes.iter().enumerate() {
        print!("{size:>9}");
        for column in &seconds {
            let took = column[line];
            print!("   {took:>6.2} s {:>6.0} /s", *size as f64 / took);
        }
        println!();
    }
    let path = built::target().join("ner.svg");
    plot(&path, &extent.sizes, &seconds)?;
    println!("plot: {}", path.display());
    Ok(())
}

fn count(workers: usize) -> String {
    match workers {
        1 => "1 worker".to_owned(),
        more => format!("{more} workers"),
    }
}

fn plot(path: &Path, sizes: &[usize], seconds: &[Vec<f64>]) -> Result<()> {
    let longest = seconds.iter().flatten().copied().fold(0.0, f64::max);
    let root = SVGBackend::new(path, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let x: RangeInclusive<usize> = 0..=sizes.last().copied().unwrap_or(MOST);
    let mut chart = ChartBuilder::on(&root)
        .caption(
            "Birth dates in sentences: time of a request",
            ("sans-serif", 20),
        )
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(*x.start()..*x.end(), 0.0..longest * 1.05)?;
    chart
        .configure_mesh()
        .x_desc("sentences")
        .y_desc("seconds")
        .draw()?;
    let colors = [&RED, &BLUE, &GREEN, &MAGENTA];
    for ((workers, column), color) in WORKERS.iter().zip(seconds).zip(colors) {
        let points: Vec<(usize, f64)> = sizes.iter().copied().zip(column.iter().copied()).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color))?
            .label(count(*workers))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color));
        chart.draw_series(
            points
                .into_iter()
                .map(|at| Circle::new(at, 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

/// Where the time of one request went.
#[derive(Clone, Copy, Default)]
struct Spent {
    /// From the call to the answer, with a server of one worker.
    wall: Duration,
    server_cpu: Duration,
    /// Inside the model, as the server counts it.
    model: Duration,
    prepare: Duration,
    engine: Duration,
    engine_cpu: Duration,
    viterbi: Duration,
    rows: Duration,
    runs: usize,
    chunks: usize,
    /// Ids that are no character's, among all.
    padding: f64,
}

impl Spent {
    /// The share of the request's time that was not the engine's.
    fn outside(&self) -> f64 {
        1.0 - self.engine.as_secs_f64() / self.wall.as_secs_f64()
    }
}

/// One worker against the engine alone, with exactly the same runs.
fn share(sentences: &[String], extent: &Extent) -> Result<()> {
    let (server, _models) = serve(1)?;
    let client = server.client()?;
    warm_up(&client, sentences)?;
    let mut alone = Alone::new()?;
    let compared = &sentences[..COMPARED];
    let mut all: Vec<Spent> = Vec::new();
    for _ in 0..extent.pairs {
        let (start, cpu) = (Instant::now(), server.process.cpu()?);
        let response = request(&client, compared)?;
        let (wall, server_cpu) = (start.elapsed(), server.process.cpu()? - cpu);
        let chunks = response.parts().iter().map(Batch::rows);
        let chunks = chunks.collect::<mdm::Result<Vec<usize>>>()?;
        let spent = alone.spent(compared, &chunks)?;
        all.push(Spent {
            wall,
            server_cpu,
            model: Duration::from_micros(response.stats().compute_us),
            ..spent
        });
    }
    let whole = alone.spent(compared, &[COMPARED])?;
    all.sort_by(|a, b| a.outside().total_cmp(&b.outside()));
    let (middle, count) = (all[all.len() / 2], all.len());
    let quarters = [count / 4, count * 3 / 4].map(|at| 100.0 * all[at].outside());
    let sum = |of: fn(&Spent) -> Duration| all.iter().map(of).sum::<Duration>().as_secs_f64();
    let outside_cpu = 1.0 - sum(|one| one.engine_cpu) / sum(|one| one.server_cpu);
    let median = |of: &dyn Fn(&Spent) -> f64| {
        let mut each: Vec<f64> = all.iter().map(of).collect();
        each.sort_by(f64::total_cmp);
        each[each.len() / 2]
    };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{COMPARED} sentences, 1 worker, {} chunks, {} runs of the engine, {:.1} % padding; medians of {count} pairs:",
        middle.chunks,
        middle.runs,
        100.0 * middle.padding,
    );
    let line = |what: &str, of: &dyn Fn(&Spent) -> f64| {
        let share = median(&|one| 100.0 * of(one) / ms(one.wall));
        println!("  {what:<36}{:>9.1} ms {share:>6.1} %", median(of));
    };
    line("the request", &|one| ms(one.wall));
    line("the engine alone, the same runs", &|one| ms(one.engine));
    line("UTF-8, order, ids, padding", &|one| ms(one.prepare));
    line("Viterbi, spans", &|one| ms(one.viterbi));
    line("entities to rows", &|one| ms(one.rows));
    line("the plugin's interface, sessions", &|one| {
        ms(one.model) - ms(one.prepare + one.engine + one.viterbi + one.rows)
    });
    line("server and client, before and after", &|one| {
        ms(one.wall) - ms(one.model)
    });
    println!(
        "the engine alone, all sentences sorted at once: {:.1} ms, {} runs, {:.1} % padding",
        ms(whole.engine),
        whole.runs,
        100.0 * whole.padding
    );
    println!(
        "outside the engine: {:.1} % of the time (half of the pairs: {:.1}..{:.1}; target: under 10), {:.1} % of the \
         processor time of all",
        100.0 * middle.outside(),
        quarters[0],
        quarters[1],
        100.0 * outside_cpu,
    );
    Ok(())
}

/// What the plugin does, step by step, in this thread.
struct Alone {
    session: Session,
    vocabulary: Vocabulary,
    crf: Crf,
}

impl Alone {
    fn new() -> Result<Alone> {
        let sources: PathBuf = built::sources("ner");
        let parameters = std::fs::read(sources.join("crf.json"))?;
        Ok(Alone {
            session: engine::session(&std::fs::read(sources.join("models/ner.onnx"))?)?,
            vocabulary: Vocabulary::read(&sources.join("models/word2id.json"))?,
            crf: Crf::new(&serde_json::from_slice(&parameters)?)?,
        })
    }

    /// Each step for all chunks, before the next step.
    fn spent(&mut self, texts: &[String], chunks: &[usize]) -> Result<Spent> {
        let column = Tensor::from_strings("text", None, texts)?;
        let mut spent = Spent {
            chunks: chunks.len(),
            ..Spent::default()
        };
        let (mut row, mut columns) = (0, Vec::new());
        for &rows in chunks {
            columns.push(column.slice_rows(row, rows));
            row += rows;
        }

        let start = Instant::now();
        let (mut plan, mut prepared) = (Plan::default(), Vec::new());
        for column in &columns {
            let sentences = Sentences::of(column)?;
            plan.make(&sentences.lengths, usize::MAX);
            let inputs = plan
                .runs()
                .map(|rows| Ok((rows.to_vec(), self.vocabulary.inputs(&sentences, rows)?)))
                .collect::<mdm::Result<Vec<_>>>()?;
            prepared.push((sentences, inputs));
        }
        spent.prepare = start.elapsed();

        let (start, cpu) = (Instant::now(), own_cpu()?);
        let mut outputs = Vec::new();
        for (_, inputs) in prepared.iter().flat_map(|(_, inputs)| inputs) {
            outputs.push(run(&mut self.session, inputs)?);
        }
        (spent.engine, spent.engine_cpu) = (start.elapsed(), own_cpu()? - cpu);
        spent.runs = outputs.len();
        let ids = prepared.iter().flat_map(|(_, inputs)| inputs);
        let ids: usize = ids.map(|(_, inputs)| inputs[0].elements()).sum();
        let characters: usize = texts.iter().map(|text| text.chars().count()).sum();
        spent.padding = 1.0 - characters as f64 / ids as f64;

        // As the server's sessions give them, which costs next to nothing there.
        let mut emissions = Vec::new();
        for value in &outputs {
            let (shape, numbers) = value.try_extract_tensor::<f32>()?;
            let shape = shape.iter().map(|&size| size as usize).collect();
            emissions.push(Batch::from(Tensor::from_slice(
                "emissions",
                shape,
                numbers,
            )?));
        }

        let start = Instant::now();
        let (mut decoder, mut answers) = (Decoder::default(), Vec::new());
        let mut emissions = emissions.iter();
        for (sentences, inputs) in &prepared {
            let mut entities = Vec::new();
            let mut of_rows = vec![0..0; sentences.texts.len()];
            for (rows, [ids, _]) in inputs {
                let outputs = emissions.next().context("an output for each run")?;
                let tags = self.crf.tags();
                let own = Emissions::of(outputs, rows.len(), ids.row_elements(), tags)?;
                for (place, &row) in rows.iter().enumerate() {
                    let own = own.row(place, sentences.lengths[row]);
                    let first = entities.len();
                    let spans = decoder.decode(&self.crf, own);
                    entities.extend(Entity::all(&self.crf, sentences.texts[row], spans));
                    of_rows[row] = first..entities.len();
                }
            }
            answers.push((entities, of_rows));
        }
        spent.viterbi = start.elapsed();

        let start = Instant::now();
        for (entities, of_rows) in &answers {
            let rows = of_rows.iter().map(|range| &entities[range.clone()]);
            let rows: Vec<&[Entity<'_>]> = rows.collect();
            Tensor::from_json_rows("entities", &rows)?;
        }
        spent.rows = start.elapsed();
        Ok(spent)
    }
}

/// A run of the engine on tensors as the plugin makes them.
fn run(session: &mut Session, [ids, lengths]: &[Tensor; 2]) -> Result<DynValue> {
    let numbers: &[i64] = ids.as_slice().context("ids")?;
    let ids = TensorRef::from_array_view((ids.shape().to_vec(), numbers))?;
    let numbers: &[i32] = lengths.as_slice().context("lengths")?;
    let lengths = TensorRef::from_array_view((lengths.shape().to_vec(), numbers))?;
    let outputs = session.run([
        SessionInputValue::from(ids),
        SessionInputValue::from(lengths),
    ])?;
    let (_, emissions) = outputs.into_iter().next().context("emissions")?;
    Ok(emissions)
}
