//! From text to what the engine takes: ids of characters, and which sentences run together.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use mdm::plugin::Context;
use mdm::{Error, Params, Result, Tensor};

/// Longest sentence, and most ids (rows times columns) of one run: the engine takes about 8 kB for each.
pub const MOST_CHARACTERS: usize = 20_000;
/// Most rows of one run. Measured: from 4 to 12 rows an id is cheapest; see [`cost_of`].
const MOST_ROWS: usize = 16;
const MOST_WORD2ID_BYTES: u64 = 16 << 20;
/// Files of ids that are kept, for requests that name different ones in turn.
const KEPT: usize = 4;
/// A run, in the time of one id.
const RUN_COST: f32 = 10.0;

/// The sentences of a batch.
#[derive(Debug)]
pub struct Sentences<'a> {
    pub texts: Vec<&'a str>,
    /// In characters.
    pub lengths: Vec<usize>,
}

impl<'a> Sentences<'a> {
    /// Of a column of BYTES that are UTF-8.
    ///
    /// # Errors
    /// What is not text, or is too long: the row, and why.
    pub fn of(tensor: &'a Tensor) -> Result<Sentences<'a>> {
        let &[rows] = tensor.shape() else {
            return Err(Error::invalid(format!(
                "input \"text\": expected one sentence in each row, shape [N], got {:?}",
                tensor.shape()
            )));
        };
        let mut texts = Vec::with_capacity(rows);
        let mut lengths = Vec::with_capacity(rows);
        for (row, text) in tensor.texts()?.enumerate() {
            let text = text?;
            let length = text.chars().count();
            if length > MOST_CHARACTERS {
                let why = format!(
                    "the sentence has {length} characters, and {MOST_CHARACTERS} is the most"
                );
                return Err(Error::invalid(why).at_rows(row..row + 1));
            }
            texts.push(text);
            lengths.push(length);
        }
        Ok(Sentences { texts, lengths })
    }
}

/// The id of every character, by its code point.
#[derive(Debug)]
pub struct Vocabulary {
    ids: Vec<i32>,
    unknown: i32,
    padding: i32,
}

impl Vocabulary {
    /// `{"character": id}`, with `<UNK>` for what is not there, and `<PAD>`.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: the file, and what is wrong with it.
    pub fn read(path: &Path) -> Result<Vocabulary> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let wrong = |why: String| Error::precondition(format!("{name}: {why}"));
        let mut text = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MOST_WORD2ID_BYTES + 1).read_to_end(&mut text))
            .map_err(|e| wrong(e.to_string()))?;
        if text.len() as u64 > MOST_WORD2ID_BYTES {
            return Err(wrong(format!(
                "more than {MOST_WORD2ID_BYTES} bytes are no table of characters"
            )));
        }
        let words: HashMap<Cow<'_, str>, i32> = serde_json::from_slice(&text)
            .map_err(|e| wrong(format!("expected {{\"character\": id, ...}}: {e}")))?;
        let special = |word: &str| {
            let id = words.get(word).copied();
            id.ok_or_else(|| wrong(format!("there is no {word:?} in it")))
        };
        let (unknown, padding) = (special("<UNK>")?, special("<PAD>")?);
        let mut ids = Vec::new();
        for (word, &id) in &words {
            let mut characters = word.chars();
            if let (Some(character), None) = (characters.next(), characters.next()) {
                let at = character as usize;
                if ids.len() <= at {
                    ids.resize(at + 1, unknown);
                }
                ids[at] = id;
            }
        }
        Ok(Vocabulary {
            ids,
            unknown,
            padding,
        })
    }

    /// `ids` [rows, columns] and `lengths` [rows], as wide as the longest of these sentences.
    ///
    /// # Errors
    /// None, as long as the rows are sentences.
    pub fn inputs(&self, sentences: &Sentences<'_>, rows: &[usize]) -> Result<[Tensor; 2]> {
        let lengths: Vec<i32> = rows
            .iter()
            .map(|&row| sentences.lengths[row] as i32)
            .collect();
        let columns = lengths.iter().copied().max().unwrap_or(0) as usize;
        let mut ids = vec![i64::from(self.padding); rows.len() * columns];
        for (line, &row) in ids.chunks_exact_mut(columns.max(1)).zip(rows) {
            for (id, character) in line.iter_mut().zip(sentences.texts[row].chars()) {
                let known = self.ids.get(character as usize).copied();
                *id = i64::from(known.unwrap_or(self.unknown));
            }
        }
        Ok([
            Tensor::from_vec("ids", vec![rows.len(), columns], ids)?,
            Tensor::from_vec("lengths", vec![rows.len()], lengths)?,
        ])
    }
}

/// The tables of characters: the model's own, and those that requests name.
#[derive(Debug)]
pub struct Vocabularies {
    own: Option<Vocabulary>,
    /// The one that was read last is the last.
    named: Vec<Named>,
}

#[derive(Debug)]
struct Named {
    path: PathBuf,
    stamp: (Option<SystemTime>, u64),
    vocabulary: Vocabulary,
}

impl Vocabularies {
    pub fn new(own: Option<Vocabulary>) -> Vocabularies {
        Vocabularies {
            own,
            named: Vec::new(),
        }
    }

    /// The one that the request names as `word2id_path`, or else the model's own. A file is read again when it has
    /// changed.
    ///
    /// # Errors
    /// What is wrong with the file, or that there is none.
    pub fn of(&mut self, params: &Params, context: &Context) -> Result<&Vocabulary> {
        const KEY: &str = "word2id_path";
        if params.get(KEY).is_none_or(serde_json::Value::is_null) {
            return self.own.as_ref().ok_or_else(|| {
                Error::invalid(format!(
                    "the parameter {KEY:?} is missing, and the model's state names no \"word2id\""
                ))
            });
        }
        let path = context.path(KEY)?;
        let about = fs::metadata(&path)
            .map_err(|e| Error::not_found(format!("{KEY} {}: {e}", params[KEY])))?;
        let stamp = (about.modified().ok(), about.len());
        let kept = self.named.iter().position(|named| named.path == path);
        let at = match kept {
            Some(at) if self.named[at].stamp == stamp => at,
            stale => {
                let vocabulary = Vocabulary::read(&path).map_err(|e| e.context(KEY))?;
                if let Some(at) = stale {
                    self.named.remove(at);
                } else if self.named.len() == KEPT {
                    self.named.remove(0);
                }
                self.named.push(Named {
                    path,
                    stamp,
                    vocabulary,
                });
                self.named.len() - 1
            }
        };
        Ok(&self.named[at].vocabulary)
    }
}

/// Which rows run together.
#[derive(Debug, Default)]
pub struct Plan {
    /// The rows that have characters, by length.
    order: Vec<usize>,
    /// For each row of the order: the cost of all up to it, and how many rows run with it as the last.
    best: Vec<(f32, usize)>,
    runs: Vec<Range<usize>>,
}

impl Plan {
    /// Cuts the sorted rows where it costs least: sorted rows differ little in length, so little is padding.
    pub fn make(&mut self, lengths: &[usize], most_rows: usize) {
        let most_rows = most_rows.clamp(1, MOST_ROWS);
        self.order.clear();
        let rows = (0..lengths.len()).filter(|&row| lengths[row] > 0);
        self.order.extend(rows);
        self.order.sort_unstable_by_key(|&row| (lengths[row], row));
        self.best.clear();
        self.best.push((0.0, 0));
        for last in 0..self.order.len() {
            let columns = lengths[self.order[last]];
            let mut best = (f32::INFINITY, 1);
            for rows in 1..=most_rows.min(last + 1) {
                if rows > 1 && rows * columns > MOST_CHARACTERS {
                    break;
                }
                let cost = self.best[last + 1 - rows].0 + cost_of(rows, columns);
                if cost < best.0 {
                    best = (cost, rows);
                }
            }
            self.best.push(best);
        }
        self.runs.clear();
        let mut end = self.order.len();
        while end > 0 {
            let rows = self.best[end].1;
            self.runs.push(end - rows..end);
            end -= rows;
        }
    }

    /// The rows of each run; none is empty, and rows of empty sentences are in none.
    pub fn runs(&self) -> impl Iterator<Item = &[usize]> {
        self.runs.iter().map(|run| &self.order[run.clone()])
    }
}

/// What a run costs, in ids: as measured with ONNX Runtime 1.31.1 and one thread, a sentence alone costs half as much
/// again, and ids beyond 400 are dearer, as the caches are full.
fn cost_of(rows: usize, columns: usize) -> f32 {
    let cells = (rows * columns) as f32;
    let cells = if rows == 1 { cells * 1.5 } else { cells };
    RUN_COST + cells + 0.15 * (cells - 400.0).max(0.0)
}
