//! The model: sentences in, the entities of each out.

use std::borrow::Cow;

use mdm::plugin::{Context, EngineSession, LoadContext, Model, Signature};
use mdm::{Batch, DataType, Error, ErrorCode, Params, Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::text::{Plan, Sentences, Vocabularies, Vocabulary};
use crate::viterbi::{Crf, Decoder, Parameters, Span};

/// What a proxy holds. The files are beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// ids INT64 [N, L], lengths INT32 [N] -> emissions FP32 [N, L, tags].
    pub onnx: String,
    /// The ids of characters, for requests without a `word2id_path`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub word2id: Option<String>,
    /// What `crf.json` holds.
    pub crf: Parameters,
}

impl State {
    fn of(state: &Value) -> Result<State> {
        State::deserialize(state).map_err(|e| Error::precondition(format!("the state: {e}")))
    }
}

/// A BiLSTM-CRF over characters.
pub struct Ner {
    state: State,
    session: EngineSession,
    vocabularies: Vocabularies,
    crf: Crf,
    decoder: Decoder,
    plan: Plan,
}

/// What the client gets a list of, for each sentence.
#[derive(Debug, Serialize)]
pub struct Entity<'a> {
    pub text: &'a str,
    /// Counted in characters.
    pub start: usize,
    /// Exclusive.
    pub end: usize,
    pub tag: &'a str,
}

/// What a request's parameters say.
struct Asked<'a> {
    /// Only entities of this tag.
    tag: Option<&'a str>,
    most_rows: usize,
}

impl Model for Ner {
    fn signature(state: &Value) -> Result<Signature> {
        Crf::new(&State::of(state)?.crf)?;
        Ok(Signature::new()
            .input("text", DataType::Bytes, &["N".into()])
            .output("entities", DataType::Json, &["N".into()]))
    }

    fn load(state: &Value, context: &LoadContext) -> Result<Self> {
        let state = State::of(state)?;
        let own = match &state.word2id {
            Some(path) => Some(Vocabulary::read(&context.path(path)?)?),
            None => None,
        };
        Ok(Ner {
            session: context.session(&state.onnx)?,
            crf: Crf::new(&state.crf)?,
            vocabularies: Vocabularies::new(own),
            decoder: Decoder::default(),
            plan: Plan::default(),
            state,
        })
    }

    fn dump(&self) -> Result<Value> {
        serde_json::to_value(&self.state).map_err(|e| Error::internal(e.to_string()))
    }

    fn inference(&mut self, batch: &Batch, params: &Params, context: &Context) -> Result<Batch> {
        let asked = Asked::of(params)?;
        let sentences = Sentences::of(batch.tensor("text")?)?;
        let vocabulary = self.vocabularies.of(params, context)?;
        self.plan.make(&sentences.lengths, asked.most_rows);

        let mut entities: Vec<Entity<'_>> = Vec::new();
        let mut of_rows = vec![0..0; sentences.texts.len()];
        for rows in self.plan.runs() {
            if context.cancelled() {
                return Err(Error::new(ErrorCode::Cancelled, "nobody waits for it"));
            }
            let inputs = vocabulary.inputs(&sentences, rows)?;
            let columns = inputs[0].row_elements();
            let outputs = self.session.run(&Vec::from(inputs).into())?;
            let emissions = Emissions::of(&outputs, rows.len(), columns, self.crf.tags())?;
            for (place, &row) in rows.iter().enumerate() {
                let first = entities.len();
                let own = emissions.row(place, sentences.lengths[row]);
                let spans = self.decoder.decode(&self.crf, own);
                let found = Entity::all(&self.crf, sentences.texts[row], spans);
                entities.extend(found.filter(|entity| asked.wants(entity.tag)));
                of_rows[row] = first..entities.len();
            }
        }
        let of_rows = of_rows.into_iter().map(|range| &entities[range]);
        let of_rows: Vec<&[Entity<'_>]> = of_rows.collect();
        Ok(Tensor::from_json_rows("entities", &of_rows)?.into())
    }
}

impl<'a> Entity<'a> {
    /// Of spans in the order of the text, which is walked through once.
    pub fn all(crf: &'a Crf, text: &'a str, spans: &[Span]) -> impl Iterator<Item = Entity<'a>> {
        let (mut rest, mut passed) = (text, 0);
        let mut pass = move |to: usize| {
            let middle = rest.char_indices().nth(to - passed);
            let (before, after) = rest.split_at(middle.map_or(rest.len(), |(at, _)| at));
            (rest, passed) = (after, to);
            before
        };
        spans.iter().map(move |span| {
            pass(span.start);
            Entity {
                text: pass(span.end),
                start: span.start,
                end: span.end,
                tag: crf.label(*span),
            }
        })
    }
}

/// What the engine made of a run.
pub struct Emissions<'a> {
    /// [rows, columns, tags]
    numbers: Cow<'a, [f32]>,
    columns: usize,
    tags: usize,
}

impl<'a> Emissions<'a> {
    /// # Errors
    /// `FAILED_PRECONDITION`: the model is another one.
    pub fn of(outputs: &'a Batch, rows: usize, columns: usize, tags: usize) -> Result<Self> {
        let wrong = |got: String| {
            Error::precondition(format!(
                "the ONNX model should give emissions FP32 [{rows}, {columns}, {tags}], got {got}"
            ))
        };
        let tensor = outputs
            .tensor("emissions")
            .map_err(|e| wrong(e.message().to_owned()))?;
        if tensor.datatype() != DataType::Fp32 || tensor.shape() != [rows, columns, tags] {
            return Err(wrong(format!("{} {:?}", tensor.datatype(), tensor.shape())));
        }
        let numbers = match tensor.as_slice() {
            Some(numbers) => Cow::Borrowed(numbers),
            None => Cow::Owned(tensor.to_vec()?),
        };
        Ok(Emissions {
            numbers,
            columns,
            tags,
        })
    }

    /// Those of a row's characters, without its padding.
    pub fn row(&self, row: usize, characters: usize) -> &[f32] {
        let start = row * self.columns * self.tags;
        &self.numbers[start..start + characters * self.tags]
    }
}

impl Asked<'_> {
    fn of(params: &Params) -> Result<Asked<'_>> {
        let wrong = |key: &str, expected: &str| {
            let got = &params[key];
            Error::invalid(format!(
                "the parameter {key:?} is {got}, expected {expected}"
            ))
        };
        let tag = match params.get("c_tag") {
            None | Some(Value::Null) => None,
            Some(Value::String(tag)) => Some(tag.as_str()),
            Some(_) => return Err(wrong("c_tag", "the tag of the entities that are wanted")),
        };
        let most_rows = match params.get("is_independent") {
            None | Some(Value::Null | Value::Bool(false)) => usize::MAX,
            Some(Value::Bool(true)) => 1,
            Some(_) => return Err(wrong("is_independent", "true or false")),
        };
        Ok(Asked { tag, most_rows })
    }

    fn wants(&self, tag: &str) -> bool {
        self.tag.is_none_or(|wanted| wanted == tag)
    }
}
