//! The engine without a server: sessions in this process, as a program has them that does without us.
#![allow(dead_code)] // each benchmark uses some of it

use std::fmt::{Debug, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use mdm::model::{Engine, EngineLog};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorRef};

/// The library, for us and for the servers that are measured: `ORT_DYLIB_PATH`, or what `make onnxruntime` fetched.
pub fn library() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH") {
        return Ok(path.into());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".onnxruntime");
    std::fs::read_dir(&folder)
        .ok()
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|n| n.starts_with("libonnxruntime.") && !n.contains("providers"))
        })
        .max()
        .with_context(|| {
            format!(
                "no ONNX Runtime in {}: `make onnxruntime` fetches it",
                folder.display()
            )
        })
}

/// A session with one thread.
pub fn session(model: &[u8]) -> Result<Session> {
    Ok(
        Session::builder(Engine::load(Some(&library()?), EngineLog::Problems)?.environment())?
            .with_intra_threads(1)
            .map_err(|e| anyhow!("{e}"))?
            .commit_from_memory(model)?,
    )
}

/// What rows are made of.
pub trait Number: PrimitiveTensorElementType + Copy + Debug + Send + Sync + 'static {}

impl<T: PrimitiveTensorElementType + Copy + Debug + Send + Sync + 'static> Number for T {}

/// Rows of numbers in one piece, each of the same dimensions.
#[derive(Clone, Debug)]
pub struct Rows<T> {
    pub elements: Vec<T>,
    pub dims: Vec<usize>,
}

impl<T> Rows<T> {
    pub fn count(&self) -> usize {
        self.elements.len() / self.width()
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.dims.iter().product()
    }
}

impl<T: Clone> Rows<T> {
    /// So many of them, or all if there are fewer.
    pub fn first(&self, count: usize) -> Rows<T> {
        Rows {
            elements: self.elements[..count.min(self.count()) * self.width()].to_vec(),
            dims: self.dims.clone(),
        }
    }
}

/// Runs rows `from..to`, seen where they lie; gives the first output.
pub fn run<T: Number>(
    session: &mut Session,
    rows: &Rows<T>,
    from: usize,
    to: usize,
) -> Result<DynValue> {
    let width = rows.width();
    let view = &rows.elements[from * width..to * width];
    let shape = [&[to - from], &rows.dims[..]].concat();
    let input = TensorRef::from_array_view((shape, view))?;
    let outputs = session.run([SessionInputValue::from(input)])?;
    let first = outputs.into_iter().next();
    let (_, value) = first.context("a model without outputs")?;
    Ok(value)
}

/// Runs all rows through the sessions, a thread each, `batch` rows at a time: whoever is free takes the next. The
/// outputs are kept to the end and put in order, as a program would that wants them. Gives the time that it took.
pub fn run_all<T: Number>(
    sessions: &mut [Session],
    rows: &Rows<T>,
    batch: usize,
) -> Result<Duration> {
    let (next, count) = (AtomicUsize::new(0), rows.count());
    let start = Instant::now();
    let mut outputs = thread::scope(|scope| {
        let threads: Vec<_> = sessions
            .iter_mut()
            .map(|session| {
                let next = &next;
                scope.spawn(move || {
                    let mut outputs = Vec::new();
                    loop {
                        let from = next.fetch_add(batch, Ordering::Relaxed);
                        if from >= count {
                            return anyhow::Ok(outputs);
                        }
                        let to = (from + batch).min(count);
                        outputs.push((from, run(session, rows, from, to)?));
                    }
                })
            })
            .collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        anyhow::Ok(all)
    })?;
    outputs.sort_by_key(|(from, _)| *from);
    let took = start.elapsed();
    drop(outputs);
    Ok(took)
}

/// The batch size of these that suits the sessions best, tried with these rows, and for a note what each gave.
pub fn best_batch<T: Number>(
    sessions: &mut [Session],
    rows: &Rows<T>,
    batches: &[usize],
    longest: Duration,
) -> Result<(usize, String)> {
    let (mut best, mut found) = ((0.0, 1), String::new());
    let start = Instant::now();
    for &batch in batches {
        if start.elapsed() > longest {
            write!(found, " (no time for more)")?;
            break;
        }
        // Twice: the first run of a shape plans its memory.
        let mut rate = 0f64;
        for _ in 0..2 {
            let took = run_all(sessions, rows, batch)?;
            rate = rate.max(rows.count() as f64 / took.as_secs_f64());
        }
        if rate > best.0 {
            best = (rate, batch);
        }
        let digits = usize::from(rate < 100.0);
        write!(found, " {batch}:{rate:.digits$}")?;
    }
    Ok((best.1, found.trim_start().to_owned()))
}
