//! The two stages around a classifier of pictures, as models of a plugin.
//!
//! ```text
//! "preprocess"   image BYTES [N] (JPEG or PNG)   ->  image FP32 [N,3,size,size]
//! "postprocess"  scores FP32 [N,K]               ->  label BYTES [N], score FP32 [N]
//! ```
#![allow(dead_code)] // each example and benchmark uses some of it

use std::panic::{AssertUnwindSafe, catch_unwind};

use mdm::plugin::{Context, LoadContext, Model, Signature};
use mdm::{Batch, DataType, Error, ErrorCode, Params, Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The largest side that a picture is made to have: 12 MB of numbers a row.
const MOST_SIDE: u32 = 1024;
/// The most labels that a row may get.
const MOST_LABELS: usize = 1000;

/// What a proxy says of the first stage: `{"size":224,"mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessState {
    /// The side of what the net takes, in pixels.
    pub size: u32,
    /// Of R, G and B, where 1 is the brightest. ImageNet's, unless told.
    #[serde(default = "mean")]
    pub mean: [f64; 3],
    /// As `mean`.
    #[serde(default = "std")]
    pub std: [f64; 3],
}

/// As the file should have it: 0.485, not the 0.48500001430511475 that the f32 is.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(number.into())
}

fn mean() -> [f64; 3] {
    image_preprocess::MEAN.map(shortest)
}

fn std() -> [f64; 3] {
    image_preprocess::STD.map(shortest)
}

impl PreprocessState {
    /// For a net that takes pictures of `size` x `size`, normalised as ImageNet's are.
    pub fn of(size: u32) -> PreprocessState {
        PreprocessState {
            size,
            mean: mean(),
            std: std(),
        }
    }

    fn read(state: &Value) -> Result<PreprocessState> {
        let state: PreprocessState = read("preprocess", state)?;
        let normal = |numbers: [f64; 3]| numbers.iter().all(|number| number.is_finite());
        if !(1..=MOST_SIDE).contains(&state.size) {
            return Err(Error::precondition(format!(
                "the state of preprocess: \"size\" is {}, expected 1 to {MOST_SIDE}",
                state.size
            )));
        }
        if !normal(state.mean) || !state.std.iter().all(|&std| std.is_normal() && std > 0.0) {
            return Err(Error::precondition(format!(
                "the state of preprocess: \"mean\" {:?} and \"std\" {:?}: expected numbers, \"std\" above 0",
                state.mean, state.std
            )));
        }
        Ok(state)
    }

    fn stage(&self) -> image_preprocess::Preprocess {
        let [mean, std] = [self.mean, self.std].map(|numbers| numbers.map(|number| number as f32));
        image_preprocess::Preprocess::new(self.size, mean, std)
    }
}

fn read<T: for<'a> Deserialize<'a>>(stage: &str, state: &Value) -> Result<T> {
    T::deserialize(state)
        .map_err(|e| Error::precondition(format!("the state of {stage}: {e}: {state}")))
}

/// Encoded pictures in, numbers for a net out.
pub struct Preprocess {
    state: PreprocessState,
    stage: image_preprocess::Preprocess,
}

impl Preprocess {
    /// One row. Whatever a decoder does, the row is named and the next one is run.
    fn row(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(), String> {
        let stage = &mut self.stage;
        match catch_unwind(AssertUnwindSafe(|| stage.run(bytes, out))) {
            Ok(outcome) => outcome.map_err(|refused| refused.to_string()),
            Err(_) => {
                // What the decoder was at is in an unknown state.
                self.stage = self.state.stage();
                Err("the picture makes its decoder panic".to_owned())
            }
        }
    }
}

impl Model for Preprocess {
    fn signature(state: &Value) -> Result<Signature> {
        let side = PreprocessState::read(state)?.size as usize;
        let numbers = ["N".into(), 3.into(), side.into(), side.into()];
        Ok(Signature::new()
            .input("image", DataType::Bytes, &["N".into()])
            .output("image", DataType::Fp32, &numbers))
    }

    fn load(state: &Value, _context: &LoadContext) -> Result<Self> {
        let state = PreprocessState::read(state)?;
        let stage = state.stage();
        Ok(Preprocess { state, stage })
    }

    fn dump(&self) -> Result<Value> {
        json(&self.state)
    }

    fn inference(&mut self, batch: &Batch, _params: &Params, context: &Context) -> Result<Batch> {
        let pictures = batch.tensor("image")?;
        let rows = batch.rows()?;
        let mut numbers = vec![0f32; rows * self.stage.numbers()];
        let outs = numbers.chunks_exact_mut(self.stage.numbers());
        for (row, (bytes, out)) in pictures.byte_strings().zip(outs).enumerate() {
            if context.cancelled() {
                return Err(Error::new(
                    ErrorCode::Cancelled,
                    "nobody waits for these pictures",
                ));
            }
            self.row(bytes, out)
                .map_err(|why| context.bad_row(row, why))?;
        }
        let side = self.state.size as usize;
        Ok(Tensor::from_vec("image", vec![rows, 3, side, side], numbers)?.into())
    }
}

/// What a proxy says of the last stage: `{"labels":["zero","one"],"top":1}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostprocessState {
    /// The classes' names, in the order of the scores; their numbers unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// How many labels a row gets, the best first. Of more than one, the outputs are [N,top].
    #[serde(default = "one")]
    pub top: usize,
}

fn one() -> usize {
    1
}

impl PostprocessState {
    fn read(state: &Value) -> Result<PostprocessState> {
        let state: PostprocessState = if state.is_null() {
            PostprocessState {
                labels: None,
                top: 1,
            }
        } else {
            read("postprocess", state)?
        };
        let most = state.labels.as_ref().map_or(MOST_LABELS, Vec::len);
        if !(1..=most).contains(&state.top) {
            return Err(Error::precondition(format!(
                "the state of postprocess: \"top\" is {}, expected 1 to {most}",
                state.top
            )));
        }
        Ok(state)
    }
}

/// A net's scores in, the names of the best classes out, and how probable they are.
pub struct Postprocess(PostprocessState);

impl Model for Postprocess {
    fn signature(state: &Value) -> Result<Signature> {
        let state = PostprocessState::read(state)?;
        let out = match state.top {
            1 => vec!["N".into()],
            top => vec!["N".into(), top.into()],
        };
        let classes = match &state.labels {
            Some(labels) => labels.len().into(),
            None => "K".into(),
        };
        Ok(Signature::new()
            .input("scores", DataType::Fp32, &["N".into(), classes])
            .output("label", DataType::Bytes, &out)
            .output("score", DataType::Fp32, &out))
    }

    fn load(state: &Value, _context: &LoadContext) -> Result<Self> {
        PostprocessState::read(state).map(Postprocess)
    }

    fn dump(&self) -> Result<Value> {
        json(&self.0)
    }

    fn inference(&mut self, batch: &Batch, _params: &Params, _context: &Context) -> Result<Batch> {
        let PostprocessState { labels, top } = &self.0;
        let input = batch.tensor("scores")?;
        let [rows, classes] = *input.shape() else {
            return Err(Error::internal(format!(
                "scores of shape {:?}, expected [N, K]",
                input.shape()
            )));
        };
        let expected = labels.as_ref().map_or(classes, Vec::len);
        if classes != expected || classes < *top {
            return Err(Error::internal(format!(
                "{classes} scores a row for {expected} labels, of which the best {top} are wanted"
            )));
        }
        let scores = input.to_vec::<f32>()?;
        let mut names = Vec::with_capacity(rows * top);
        let mut probabilities = Vec::with_capacity(rows * top);
        for (row, scores) in scores.chunks_exact(classes).enumerate() {
            if let Some(odd) = scores.iter().find(|score| !score.is_finite()) {
                return Err(
                    Error::internal(format!("the net gave the score {odd}")).at_rows(row..row + 1)
                );
            }
            for (class, probability) in best(scores, *top) {
                names.push(match labels {
                    Some(labels) => labels[class].clone(),
                    None => class.to_string(),
                });
                probabilities.push(probability);
            }
        }
        let shape = match top {
            1 => vec![rows],
            top => vec![rows, *top],
        };
        Ok(Batch {
            tensors: vec![
                Tensor::from_strings("label", Some(shape.clone()), &names)?,
                Tensor::from_vec("score", shape, probabilities)?,
            ],
        })
    }
}

/// The classes of the highest scores, the best first (of equal ones the first), with their softmax probabilities.
fn best(scores: &[f32], top: usize) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    let by_score = |&a: &usize, &b: &usize| scores[b].total_cmp(&scores[a]).then(a.cmp(&b));
    if top < order.len() {
        order.select_nth_unstable_by(top, by_score);
        order.truncate(top);
    }
    order.sort_unstable_by(by_score);
    let highest = scores[order[0]];
    let sum: f32 = scores.iter().map(|score| (score - highest).exp()).sum();
    let probability = |class: usize| (scores[class] - highest).exp() / sum;
    order
        .into_iter()
        .map(|class| (class, probability(class)))
        .collect()
}

fn json(state: &impl Serialize) -> Result<Value> {
    serde_json::to_value(state).map_err(|e| Error::internal(e.to_string()))
}
