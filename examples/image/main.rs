//! The client of the image example: pictures out, labels in.
//!
//! ```text
//! image-client                                       starts a server of its own, and sends 100 pictures of digits
//! image-client --server tcp://HOST:PORT [--model M]  to one that runs, over the folder that image-dump wrote
//!              [--pictures N | FILE...]              so many pictures, or these files
//! ```
//! Pictures of digits are photographs (and a quarter PNGs) that no training has seen, so their accuracy is printed;
//! of a file its label and how probable it is. A file that is no picture is an error that names it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use mdm::Tensor;
use mdm::client::Client;

mod digits;
mod folder;
mod pictures;
#[path = "../setup/server.rs"]
mod server;
mod stages;

use server::Server;

/// What was asked for.
struct Asked {
    server: Option<String>,
    model: String,
    pictures: usize,
    files: Vec<PathBuf>,
}

impl Asked {
    fn read() -> Result<Asked> {
        let mut asked = Asked {
            server: None,
            model: "digits.predict".to_owned(),
            pictures: 100,
            files: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .with_context(|| format!("{argument} wants a value"))
            };
            match argument.as_str() {
                "--server" => asked.server = Some(value()?),
                "--model" => asked.model = value()?,
                "--pictures" => asked.pictures = value()?.parse().context("--pictures")?,
                flag if flag.starts_with('-') => {
                    bail!("{flag} is unknown, expected --server, --model, --pictures or files")
                }
                file => asked.files.push(file.into()),
            }
        }
        ensure!(asked.pictures > 0, "--pictures 0: there is nothing to do");
        Ok(asked)
    }
}

fn main() -> Result<()> {
    let asked = Asked::read()?;
    if let Some(address) = &asked.server {
        return send(&Client::connect(address)?, &asked);
    }
    let scratch = std::env::temp_dir().join(format!("mdm-image-{}", std::process::id()));
    let outcome = alone(&scratch, &asked);
    // What was not made cannot be removed: the reason is the outcome's.
    let _ = std::fs::remove_dir_all(&scratch);
    outcome
}

/// With a server of its own.
fn alone(scratch: &Path, asked: &Asked) -> Result<()> {
    let models = scratch.join("models");
    folder::write_digits(&models, &folder::built_library()?)?;
    let server = Server::start(&models, scratch)?;
    send(&Client::connect(&server.address())?, asked)?;
    server.stop()
}

fn send(client: &Client, asked: &Asked) -> Result<()> {
    match asked.files.as_slice() {
        [] => send_digits(client, asked),
        files => send_files(client, &asked.model, files),
    }
}

/// A label for each picture, and how probable it is: one request.
fn classify(client: &Client, model: &str, pictures: &[Vec<u8>]) -> Result<Vec<(String, f32)>> {
    let rows = Tensor::from_strings("image", None, pictures)?;
    let response = client.infer(rows, model)?;
    let labels = response.strings("label")?;
    let scores = response.array::<f32>("score")?;
    ensure!(labels.len() == pictures.len(), "a row was lost");
    let labels = labels.into_iter().map(str::to_owned);
    Ok(labels.zip(scores).collect())
}

fn send_digits(client: &Client, asked: &Asked) -> Result<()> {
    let digits = digits::held_out(asked.pictures)?;
    let mut bytes = 0;
    let pictures: Vec<Vec<u8>> = digits
        .iter()
        .enumerate()
        .map(|(number, digit)| {
            // Training had 0 to 3 in the upper half.
            let seed = digit.index as u64 | 9 << 32;
            let picture = match number % 4 {
                3 => pictures::png(&digit.pixels, seed),
                _ => pictures::photograph(&digit.pixels, seed),
            };
            bytes += picture.len();
            picture
        })
        .collect();
    println!(
        "{} pictures of digits that training has not seen, {:.1} MB",
        pictures.len(),
        bytes as f64 / 1e6
    );
    let started = Instant::now();
    let found = classify(client, &asked.model, &pictures)?;
    let elapsed = started.elapsed().as_secs_f64();
    for (digit, (label, score)) in digits.iter().zip(&found).take(5) {
        println!("a {} is taken for a {label} ({score:.3})", digit.label);
    }
    let right = digits
        .iter()
        .zip(&found)
        .filter(|(digit, (label, _))| digit.label.to_string() == *label)
        .count();
    let accuracy = right as f64 / digits.len() as f64;
    println!(
        "{right} of {} right: accuracy {accuracy:.4}, {:.2} ms a picture",
        digits.len(),
        elapsed * 1e3 / digits.len() as f64
    );
    ensure!(
        digits.len() < 50 || accuracy >= 0.95,
        "the classifier is known to be better than that"
    );
    Ok(())
}

fn send_files(client: &Client, model: &str, files: &[PathBuf]) -> Result<()> {
    let pictures = files
        .iter()
        .map(|file| std::fs::read(file).with_context(|| file.display().to_string()))
        .collect::<Result<Vec<_>>>()?;
    // One request each: a file that is no picture leaves the others their labels.
    let mut failed = 0;
    for (file, picture) in files.iter().zip(pictures) {
        match classify(client, model, &[picture]) {
            Ok(found) => {
                for (label, score) in found {
                    println!("{}: {label} ({score:.3})", file.display());
                }
            }
            Err(e) => {
                failed += 1;
                println!("{}: {e:#}", file.display());
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} files failed", files.len());
    Ok(())
}
