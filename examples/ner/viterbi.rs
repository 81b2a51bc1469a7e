//! The CRF: the best path of tags through a sentence's emissions, and the spans that it marks.

use mdm::{Error, Result};
use serde::{Deserialize, Serialize};

/// A path is kept as bytes.
const MOST_TAGS: usize = 255;

/// What is in `crf.json`. Its numbers are FP32 numbers, kept as they were written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// "O", "B-LABEL", "I-LABEL", in the order of the emissions.
    tags: Vec<String>,
    orientation: Orientation,
    /// A row for the tag before, a column for the tag after.
    transitions: Vec<Vec<f64>>,
    start: Vec<f64>,
    end: Vec<f64>,
}

/// There is one; a file that says another is not read wrongly.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Orientation {
    #[serde(rename = "transitions[from][to]")]
    FromTo,
}

/// What a tag says of its character; labels are numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tag {
    Outside,
    Begins(usize),
    Inside(usize),
}

/// Ready to decode.
#[derive(Debug)]
pub struct Crf {
    tags: Vec<Tag>,
    labels: Vec<String>,
    /// A row for the tag after, so that those that lead to it lie together.
    transitions: Vec<f32>,
    start: Vec<f32>,
    end: Vec<f32>,
}

/// The memory of decoding, used again for each sentence.
#[derive(Debug, Default)]
pub struct Decoder {
    score: Vec<f32>,
    next: Vec<f32>,
    /// For each character but the first, and each tag of it: the tag before.
    back: Vec<u8>,
    path: Vec<u8>,
    spans: Vec<Span>,
}

/// Characters `start..end` of a sentence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    pub start: usize,
    pub end: usize,
    label: usize,
}

impl Crf {
    /// # Errors
    /// `FAILED_PRECONDITION`: sizes that do not fit, or a tag that is none.
    pub fn new(parameters: &Parameters) -> Result<Crf> {
        let count = parameters.tags.len();
        let rows = &parameters.transitions;
        let fits = (1..=MOST_TAGS).contains(&count)
            && [parameters.start.len(), parameters.end.len(), rows.len()] == [count; 3]
            && rows.iter().all(|row| row.len() == count);
        if !fits {
            return Err(Error::precondition(format!(
                "the state's \"crf\": for {count} tags (at most {MOST_TAGS}), expected as many rows and columns of \
                 \"transitions\", and as many numbers of \"start\" and \"end\""
            )));
        }
        let mut labels: Vec<String> = Vec::new();
        let mut number = |label: &str| {
            let known = labels.iter().position(|other| other == label);
            known.unwrap_or_else(|| {
                labels.push(label.to_owned());
                labels.len() - 1
            })
        };
        let tag_of = |tag: &String| match tag.split_once('-') {
            None if tag == "O" => Ok(Tag::Outside),
            Some(("B", label)) => Ok(Tag::Begins(number(label))),
            Some(("I", label)) => Ok(Tag::Inside(number(label))),
            _ => Err(Error::precondition(format!(
                "the state's \"crf\": the tag {tag:?}, expected \"O\", \"B-LABEL\" or \"I-LABEL\""
            ))),
        };
        let tags = parameters
            .tags
            .iter()
            .map(tag_of)
            .collect::<Result<Vec<_>>>()?;
        let turned = (0..count).flat_map(|to| rows.iter().map(move |row| row[to] as f32));
        let single = |numbers: &[f64]| numbers.iter().map(|&number| number as f32).collect();
        Ok(Crf {
            transitions: turned.collect(),
            start: single(&parameters.start),
            end: single(&parameters.end),
            tags,
            labels,
        })
    }

    /// How many emissions a character has.
    pub fn tags(&self) -> usize {
        self.tags.len()
    }

    /// What a span is.
    pub fn label(&self, span: Span) -> &str {
        &self.labels[span.label]
    }
}

impl Decoder {
    /// The spans of a sentence, from its emissions: [`Crf::tags`] for each character.
    pub fn decode(&mut self, crf: &Crf, emissions: &[f32]) -> &[Span] {
        self.spans.clear();
        self.find_path(crf, emissions);
        let mut open: Option<(usize, usize)> = None;
        let after_the_last = [Tag::Outside];
        let tags = self.path.iter().map(|&tag| crf.tags[usize::from(tag)]);
        for (at, tag) in tags.chain(after_the_last).enumerate() {
            if let Some((start, label)) = open
                && tag != Tag::Inside(label)
            {
                self.spans.push(Span {
                    start,
                    end: at,
                    label,
                });
                open = None;
            }
            if let Tag::Begins(label) = tag {
                open = Some((at, label));
            }
        }
        &self.spans
    }

    /// Viterbi in FP32. The first of equals wins.
    fn find_path(&mut self, crf: &Crf, emissions: &[f32]) {
        let count = crf.tags.len();
        self.path.clear();
        self.back.clear();
        let mut characters = emissions.chunks_exact(count);
        let Some(first) = characters.next() else {
            return;
        };
        let begin = crf.start.iter().zip(first).map(|(start, own)| start + own);
        self.score.clear();
        self.score.extend(begin);
        self.next.resize(count, 0.0);
        for emission in characters {
            let ways = crf.transitions.chunks_exact(count);
            for ((next, own), ways) in self.next.iter_mut().zip(emission).zip(ways) {
                let (from, score) = best(self.score.iter().zip(ways).map(|(a, b)| a + b));
                *next = score + own;
                self.back.push(from);
            }
            std::mem::swap(&mut self.score, &mut self.next);
        }
        let (mut tag, _) = best(self.score.iter().zip(&crf.end).map(|(a, b)| a + b));
        self.path.push(tag);
        for before in self.back.chunks_exact(count).rev() {
            tag = before[usize::from(tag)];
            self.path.push(tag);
        }
        self.path.reverse();
    }
}

fn best(scores: impl Iterator<Item = f32>) -> (u8, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (tag, score) in scores.enumerate() {
        if score > best.1 {
            // There are at most 255.
            best = (tag as u8, score);
        }
    }
    best
}
