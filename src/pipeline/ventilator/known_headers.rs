//! Headers that came before: most requests of a client say what its last one said, but for their ids.
//!
//! A header that equals an earlier one leads straight to the model and to what is known of its inputs. Everything else goes
//! the long way, which judges it, and which remembers a header here once it has come twice. What a header leads to holds
//! until its model is forgotten, or its name leads to another; lookups with paths of their own are not kept.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;

use crate::message::{ModelId, OnBadRow, Priority, RequestId};
use crate::model::{Description, Lookup};
use crate::tensor::{Batch, Data, DataType, Tensor};
use crate::wire::id;

/// Headers that are kept, each where its hash says: a newcomer takes the place of what was there.
const PLACES: usize = 512;
/// Longer headers are not kept.
const MAX_BYTES: usize = 1024;

/// What a header leads to.
pub(in crate::pipeline) struct KnownInfer {
    pub(in crate::pipeline) lookup: Arc<Lookup>,
    pub(in crate::pipeline) model: Arc<Description>,
    pub(in crate::pipeline) group: u64,
    pub(in crate::pipeline) rows: usize,
    pub(in crate::pipeline) params: Bytes,
    /// Of the parameters, once they are read.
    pub(in crate::pipeline) params_bytes: u64,
    pub(in crate::pipeline) priority: Priority,
    pub(in crate::pipeline) stream: bool,
    pub(in crate::pipeline) on_bad_row: OnBadRow,
    pub(in crate::pipeline) timeout_ms: Option<u64>,
    pub(in crate::pipeline) header_bytes: usize,
    /// In the model's order.
    pub(in crate::pipeline) inputs: Vec<KnownInput>,
    /// Payload frames, of all inputs.
    pub(in crate::pipeline) frames: usize,
}

/// An input, and which of the payload's frames it begins with.
pub(in crate::pipeline) struct KnownInput {
    pub(in crate::pipeline) frame: usize,
    pub(in crate::pipeline) name: Arc<str>,
    pub(in crate::pipeline) datatype: DataType,
    pub(in crate::pipeline) shape: Vec<usize>,
}

impl KnownInfer {
    /// The inputs of a message with this header. `None` if the payload is not what the header says: the long way tells
    /// what is wrong with it.
    pub(in crate::pipeline) fn inputs(&self, frames: &[Bytes]) -> Option<Batch> {
        let (_, payload) = frames.split_first()?;
        if payload.len() != self.frames {
            return None;
        }
        let tensors = self.inputs.iter().map(|input| {
            let frame = |index: usize| payload.get(input.frame + index).cloned();
            let data = match input.datatype.size() {
                Some(_) => Data::Fixed(frame(0)?),
                None => Data::Variable {
                    offsets: frame(0)?,
                    values: frame(1)?,
                },
            };
            let shape = input.shape.clone();
            Tensor::unchecked(input.name.clone(), input.datatype, shape, data).ok()
        });
        let tensors = tensors.collect::<Option<_>>()?;
        Some(Batch { tensors })
    }
}

/// What is known of a header.
pub(in crate::pipeline) enum Sight {
    Known(RequestId, Arc<KnownInfer>),
    /// It has come before: worth keeping, with what it leads to.
    Again,
    New,
}

/// A header without its id.
struct Place {
    before: Box<[u8]>,
    behind: Box<[u8]>,
    leads_to: Arc<KnownInfer>,
}

/// The headers that are known.
#[derive(Default)]
pub(in crate::pipeline) struct KnownHeaders {
    hasher: RandomState,
    places: Vec<Option<Place>>,
    /// For each place the hash of the header that came last and was not kept.
    seen: Vec<u64>,
}

impl KnownHeaders {
    fn hash(&self, before: &[u8], behind: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(behind);
        hasher.write(before);
        hasher.finish()
    }

    /// Looks a header up, and notes that it has come.
    pub(in crate::pipeline) fn find(&mut self, header: &[u8]) -> Sight {
        if header.len() > MAX_BYTES {
            return Sight::New;
        }
        let Some((before, id, behind)) = id::split(header) else {
            return Sight::New;
        };
        let hash = self.hash(before, behind);
        let index = hash as usize % PLACES;
        if let Some(Some(place)) = self.places.get(index)
            && *place.behind == *behind
            && *place.before == *before
        {
            return Sight::Known(id, place.leads_to.clone());
        }
        self.seen.resize(PLACES, 0);
        match std::mem::replace(&mut self.seen[index], hash) == hash {
            true => Sight::Again,
            false => Sight::New,
        }
    }

    /// Keeps what a header leads to.
    pub(in crate::pipeline) fn keep(&mut self, header: &[u8], leads_to: KnownInfer) {
        if leads_to.lookup.has_other_paths() || header.len() > MAX_BYTES {
            return;
        }
        let Some((before, _, behind)) = id::split(header) else {
            return;
        };
        let index = self.hash(before, behind) as usize % PLACES;
        self.places.resize_with(PLACES, || None);
        self.places[index] = Some(Place {
            before: before.into(),
            behind: behind.into(),
            leads_to: Arc::new(leads_to),
        });
    }

    fn remove(&mut self, is_gone: impl Fn(&KnownInfer) -> bool) {
        for place in &mut self.places {
            if place.as_ref().is_some_and(|place| is_gone(&place.leads_to)) {
                *place = None;
            }
        }
    }

    /// Nothing leads to that model any more.
    pub(in crate::pipeline) fn forget(&mut self, model: ModelId) {
        self.remove(|known| known.model.id == model);
    }

    /// A lookup leads to that model now: what it led to before is forgotten.
    pub(in crate::pipeline) fn forget_others(&mut self, lookup: &Lookup, model: ModelId) {
        self.remove(|known| known.model.id != model && *known.lookup == *lookup);
    }

    /// Nothing is known.
    pub(in crate::pipeline) fn clear(&mut self) {
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Request;
    use crate::model::mock::{Behaviour, MockSource};
    use crate::wire::client::write_infer;

    fn infer(id: u64, name: &str, rows: usize) -> Vec<Bytes> {
        let request = Request {
            model: Some(name.to_owned()),
            inputs: Tensor::from_slice("x", vec![rows, 1], &vec![1f32; rows])
                .unwrap()
                .into(),
            ..Request::default()
        };
        write_infer(RequestId(id), &request)
    }

    fn leads_to(name: &str, model: &Arc<Description>) -> KnownInfer {
        KnownInfer {
            lookup: Arc::new(Lookup::of(Some(name), &crate::message::Params::new())),
            model: model.clone(),
            group: 1,
            rows: 2,
            params: Bytes::new(),
            params_bytes: 0,
            priority: Priority::Normal,
            stream: false,
            on_bad_row: OnBadRow::Fail,
            timeout_ms: None,
            header_bytes: 0,
            inputs: vec![KnownInput {
                frame: 0,
                name: "x".into(),
                datatype: DataType::Fp32,
                shape: vec![2, 1],
            }],
            frames: 1,
        }
    }

    fn is_known(headers: &mut KnownHeaders, frames: &[Bytes]) -> bool {
        matches!(headers.find(&frames[0]), Sight::Known(..))
    }

    #[test]
    fn a_header_that_differs_in_any_byte_but_its_id_goes_the_long_way() {
        let source = MockSource::default();
        let model = source.add("m", Behaviour::Echo);
        let mut headers = KnownHeaders::default();
        let first = infer(1, "m", 2);
        assert!(matches!(headers.find(&first[0]), Sight::New));
        assert!(matches!(headers.find(&infer(2, "m", 2)[0]), Sight::Again));
        headers.keep(&first[0], leads_to("m", &model));
        for id in [0, 3, 127, 128, 255, 256, 65_535, 65_536, 1 << 32, u64::MAX] {
            let Sight::Known(found, known) = headers.find(&infer(id, "m", 2)[0]) else {
                panic!("{id}")
            };
            assert_eq!(found, RequestId(id));
            assert!(known.inputs(&first).is_some());
        }
        assert!(!is_known(&mut headers, &infer(1, "n", 2)));
        assert!(!is_known(&mut headers, &infer(1, "m", 3)));
        let (before, _, _) = id::split(&first[0]).unwrap();
        let id_at = before.len();
        for at in (0..first[0].len()).filter(|at| *at != id_at) {
            for bit in 0..8 {
                let mut header = first[0].to_vec();
                header[at] ^= 1 << bit;
                assert!(!matches!(headers.find(&header), Sight::Known(..)), "{at}");
            }
        }
        for cut in 0..first[0].len() {
            assert!(!matches!(headers.find(&first[0][..cut]), Sight::Known(..)));
        }
    }

    #[test]
    fn a_payload_that_is_not_what_the_header_says_goes_the_long_way() {
        let source = MockSource::default();
        let known = leads_to("m", &source.add("m", Behaviour::Echo));
        let good = infer(1, "m", 2);
        assert!(known.inputs(&good).is_some());
        for bad in [
            vec![good[0].clone()],
            vec![good[0].clone(), good[1].slice(1..)],
            vec![good[0].clone(), good[1].clone(), good[1].clone()],
            vec![],
        ] {
            assert!(known.inputs(&bad).is_none());
        }
    }

    #[test]
    fn nothing_leads_to_a_model_that_is_forgotten_or_replaced() {
        let source = MockSource::default();
        let (old, new) = (
            source.add("m", Behaviour::Echo),
            source.add("n", Behaviour::Echo),
        );
        let mut headers = KnownHeaders::default();
        let frames = infer(1, "m", 2);
        let lookup = Lookup::of(Some("m"), &crate::message::Params::new());
        headers.keep(&frames[0], leads_to("m", &old));
        headers.forget_others(&lookup, old.id);
        headers.forget(new.id);
        assert!(is_known(&mut headers, &frames));
        headers.forget_others(&lookup, new.id);
        assert!(!is_known(&mut headers, &frames));
        headers.keep(&frames[0], leads_to("m", &old));
        headers.forget(old.id);
        assert!(!is_known(&mut headers, &frames));
        headers.keep(&frames[0], leads_to("m", &old));
        headers.clear();
        assert!(!is_known(&mut headers, &frames));
    }

    #[test]
    fn headers_without_end_take_no_more_than_their_places() {
        let source = MockSource::default();
        let model = source.add("m", Behaviour::Echo);
        let mut headers = KnownHeaders::default();
        for number in 0..10_000 {
            let name = number.to_string();
            let frames = infer(1, &name, 2);
            headers.find(&frames[0]);
            headers.keep(&frames[0], leads_to(&name, &model));
        }
        let kept = headers.places.iter().flatten().count();
        assert!(kept > PLACES / 2 && kept <= PLACES);
        assert!(headers.places.len() <= PLACES && headers.seen.len() <= PLACES);
        let long = infer(1, &"x".repeat(2 * MAX_BYTES), 2);
        headers.keep(&long[0], leads_to("m", &model));
        assert!(!is_known(&mut headers, &long));
    }
}
