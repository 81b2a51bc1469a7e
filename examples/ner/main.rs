//! A client: sends sentences to a server that serves `ner_model.proxy`, and prints the birth dates in them.
//!
//! ```text
//! $ ner-client [--server tcp://localhost:5555] [--check] [FILE]
//! ```
//! The file has a sentence on each line; in a `.jsonl` each line is `{"text": ...}`, with the right `"entities"` if it
//! has them: then it says how many of them were found. Without a file it is `heldout.jsonl`. With `--check` it fails if
//! the span F1 is under 0.98.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use mdm::client::{Call, Client};
use serde::Deserialize;
use serde_json::json;

/// What the model promises.
const LEAST_F1: f64 = 0.98;
/// More are counted, not printed.
const MOST_LINES: usize = 5;

/// A line of a `.jsonl`.
#[derive(Deserialize)]
struct Line {
    text: String,
    #[serde(default)]
    entities: Vec<(usize, usize, String)>,
}

/// What the server found.
#[derive(Deserialize)]
struct Entity {
    text: String,
    start: usize,
    end: usize,
    tag: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut address = "tcp://localhost:5555".to_owned();
    let mut file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ner/heldout.jsonl");
    let mut check = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--server" => address = args.next().ok_or("--server needs an address")?,
            "--check" => check = true,
            flag if flag.starts_with('-') => return Err(format!("{flag} is no flag").into()),
            path => file = PathBuf::from(path),
        }
    }
    let lines = read(&file)?;
    let sentences: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();

    let params = json!({
        "model_proxy_path": "ner_model.proxy",
        "c_tag": "BD",
        "is_independent": false,
        "word2id_path": "word2id.json",
    });
    let params = params.as_object().cloned().unwrap_or_default();
    let client = Client::connect(&address)?;
    let started = Instant::now();
    let response = client.infer(&sentences, Call::default().params(params))?;
    let seconds = started.elapsed().as_secs_f64();
    let found: Vec<Vec<Entity>> = response.json_rows("entities")?;

    let shown = found.iter().enumerate().filter(|(_, own)| !own.is_empty());
    for (row, own) in shown.take(MOST_LINES) {
        let own: Vec<String> = own
            .iter()
            .map(|e| format!("{} {}..{} {}", e.tag, e.start, e.end, e.text))
            .collect();
        println!("{row}: {}", own.join(", "));
    }
    let count: usize = found.iter().map(Vec::len).sum();
    println!(
        "{count} entities in {} sentences, {seconds:.2} s",
        sentences.len()
    );
    match score(&lines, &found) {
        Some(f1) if check && f1 < LEAST_F1 => {
            Err(format!("expected a span F1 of {LEAST_F1}").into())
        }
        None if check => Err("there are no entities in the file to check with".into()),
        _ => Ok(()),
    }
}

fn read(file: &Path) -> Result<Vec<Line>, Box<dyn Error>> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    let is_json = file
        .extension()
        .is_some_and(|extension| extension == "jsonl");
    let line = |text: &str| {
        Ok(if is_json {
            serde_json::from_str(text)?
        } else {
            Line {
                text: text.to_owned(),
                entities: Vec::new(),
            }
        })
    };
    text.lines().map(line).collect()
}

/// Prints how well the entities fit those of the file, if it has any: the span F1.
fn score(lines: &[Line], found: &[Vec<Entity>]) -> Option<f64> {
    let there: usize = lines.iter().map(|line| line.entities.len()).sum();
    if there == 0 {
        return None;
    }
    let count: usize = found.iter().map(Vec::len).sum();
    let mut right = 0;
    for (line, own) in lines.iter().zip(found) {
        let known = |e: &&Entity| {
            let same = |(start, end, tag): &(usize, usize, String)| {
                (*start, *end, tag) == (e.start, e.end, &e.tag)
            };
            line.entities.iter().any(same)
        };
        right += own.iter().filter(known).count();
    }
    let f1 = 2.0 * right as f64 / (count + there) as f64;
    println!("{right} right of {count} found and {there} there: span F1 {f1:.4}");
    Some(f1)
}
