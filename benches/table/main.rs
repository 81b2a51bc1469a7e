//! One table of ratios: this server against what the same machine does without it. `benches/README.md` says what each
//! line measures and how.
//!
//! ```text
//! cargo bench --bench table                       everything, some minutes on two cores
//! cargo bench --bench table -- small mixed        some of it
//! cargo bench --bench table -- --quick            everything, too short to be believed
//! cargo bench --bench table -- --server PATH      and each server's line to another server's program
//! ```
//! A missed bar is no failure: a number on a busy machine says nothing about the program.
#![allow(clippy::duplicate_mod)] // two makers of models, each with the parts that ONNX files are made of

mod bare;
mod bulk;
mod children;
mod clients;
mod dealers;
mod doors;
mod echo;
mod engine;
#[allow(dead_code, unused_imports)] // what mdm-bench measures with, of which the doors need some
#[path = "../../src/bin/mdm-bench/generator/mod.rs"]
mod generator;
mod heavy;
mod host;
mod idle;
mod large;
mod loops;
mod memory;
mod mixed;
#[path = "../../tests/common/onnx.rs"]
mod onnx;
mod pipelined;
mod plugin;
mod report;
#[allow(unused_imports)] // benchmarks are built as tests are, but without the modules' tests
#[allow(clippy::duplicate_mod)] // it brings the parts of `onnx` for itself
#[path = "../../examples/image/resnet50.rs"]
mod resnet50;
mod sessions;
mod sides;
mod small;
mod tcp;
mod zmtp;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use host::Ticks;
use report::Table;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pairs of a measurement of ours and one of the baseline.
    pub pairs: usize,
    /// The program of another server, to which ours is compared.
    pub server: Option<PathBuf>,
    /// What lengths and counts are multiplied with.
    scale: f64,
    /// When a part should come to its end, with fewer pairs if need be: a slow or busy machine gets its table too.
    until: Instant,
}

impl Plan {
    fn new(quick: bool, server: Option<PathBuf>) -> Plan {
        let (pairs, scale) = if quick { (2, 0.15) } else { (5, 1.0) };
        Plan {
            pairs,
            server,
            scale,
            until: Instant::now(),
        }
    }

    /// The same plan for something that begins now and may take so long.
    pub fn within(&self, full: Duration) -> Plan {
        // Each server has its time.
        let servers = 1 + u32::from(self.server.is_some());
        Plan {
            until: Instant::now() + (self.long(full) * servers).max(Duration::from_secs(5)),
            ..self.clone()
        }
    }

    /// Whether another pair is to be measured after so many.
    pub fn goes_on(&self, pairs: usize) -> bool {
        pairs < 2 || pairs < self.pairs && Instant::now() < self.until
    }

    /// So many repetitions, or fewer for a quick look.
    pub fn times(&self, full: usize) -> usize {
        ((full as f64 * self.scale) as usize).max(1)
    }

    /// So long, or less for a quick look.
    pub fn long(&self, full: Duration) -> Duration {
        full.mul_f64(self.scale)
    }
}

/// How long a part may take, about; `doors` has three.
const PART: Duration = Duration::from_secs(45);

type Part = fn(&Plan, &mut Table) -> Result<()>;

const PARTS: [(&str, Part); 13] = [
    ("bulk", bulk::measure),
    ("heavy", heavy::measure),
    ("small", small::measure),
    ("pipelined", pipelined::measure),
    ("clients", clients::measure),
    ("dealers", dealers::measure),
    ("large", large::measure),
    ("mixed", mixed::measure),
    ("memory", memory::measure),
    ("idle", idle::measure),
    ("sessions", sessions::measure),
    ("plugin", plugin::measure),
    ("doors", doors::measure),
];

fn main() -> Result<()> {
    mdm::model::without_telemetry();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        // This program again, as a process of its own for the far end of a baseline.
        Some(bare::SERVE) => return bare::serve(&args[1..]),
        Some(tcp::SERVE) => return tcp::serve(&args[1..]),
        Some(tcp::ECHO) => return tcp::echo(&args[1..]),
        Some(echo::HTTP) => return echo::serve_http(&args[1..]),
        Some(echo::GRPC) => return echo::serve_grpc(&args[1..]),
        _ => {}
    }
    if !args.iter().any(|arg| arg == "--bench") {
        println!(
            "benchmarks are run by `cargo bench --bench table`; as a test there is nothing to do"
        );
        return Ok(());
    }
    let (plan, chosen) = asked(args)?;
    let (started, ticks) = (Instant::now(), Ticks::now());
    let mut table = Table::default();
    for (name, part) in chosen {
        let (begun, ticks) = (Instant::now(), Ticks::now());
        eprint!("{name} … ");
        // One part that cannot run leaves the others their lines.
        match part(&plan.within(PART), &mut table) {
            Ok(()) => eprintln!(
                "{:.0} s{}",
                begun.elapsed().as_secs_f64(),
                Ticks::stolen_since(ticks)
            ),
            Err(e) => {
                eprintln!("failed: {e:#}");
                table.failed(name, &e);
            }
        }
    }
    if let Some(server) = &plan.server {
        table.note(format!("SERVER is {}", server.display()));
    }
    table.print(started.elapsed(), &Ticks::stolen_since(ticks));
    Ok(())
}

/// What the command line asks for.
fn asked(args: Vec<String>) -> Result<(Plan, Vec<(&'static str, Part)>)> {
    let (mut quick, mut server, mut chosen) = (false, None, Vec::new());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match PARTS.iter().find(|(name, _)| *name == arg) {
            Some(part) => chosen.push(*part),
            None if arg == "--bench" => {}
            None if arg == "--quick" => quick = true,
            None if arg == "--server" => {
                let path = args.next().context("--server needs a server's program")?;
                // Servers are started in folders of their own.
                let path = std::fs::canonicalize(&path)
                    .with_context(|| format!("--server {path}: no server's program"))?;
                server = Some(path);
            }
            None => {
                let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
                bail!(
                    "{arg:?} is no part; there are {}, --quick and --server PATH",
                    names.join(", ")
                );
            }
        }
    }
    if chosen.is_empty() {
        chosen = PARTS.to_vec();
    }
    Ok((Plan::new(quick, server), chosen))
}
