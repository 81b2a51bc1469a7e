//! Under which names things are counted: a number for each name of a model that was ever served, up to a bound.

use foldhash::HashMap;

use crate::message::{ModelId, ModelLabel};

/// Names of models that are counted each by itself. A name keeps its counters when its model is reloaded or unloaded,
/// until the server ends; the names that are served after so many others are counted together, as [`OTHER`].
pub const MAX_NAMES: usize = 256;

/// What is counted that reached no model: its name is unknown, or its file could not be read, or it ended before that
/// was known.
pub const UNKNOWN: &str = "unknown";

/// What is counted of models beyond [`MAX_NAMES`].
pub const OTHER: &str = "other";

const OTHERS: ModelLabel = ModelLabel(1);

/// Models whose labels are remembered; what is forgotten is found by its name again.
const MAX_MODELS: usize = 65_536;

/// The numbers of names. A model that has one of the two names above is counted with what they stand for.
#[derive(Debug)]
pub(crate) struct Labels {
    names: Vec<String>,
    by_name: HashMap<String, ModelLabel>,
    by_model: HashMap<ModelId, ModelLabel>,
}

impl Labels {
    pub(crate) fn new() -> Labels {
        let mut labels = Labels {
            names: Vec::new(),
            by_name: HashMap::default(),
            by_model: HashMap::default(),
        };
        labels.add(UNKNOWN);
        labels.add(OTHER);
        labels
    }

    fn add(&mut self, name: &str) -> ModelLabel {
        let label = ModelLabel(self.names.len() as u32);
        self.names.push(name.to_owned());
        self.by_name.insert(name.to_owned(), label);
        label
    }

    /// The number for a model of that name, which is served or has been.
    pub(crate) fn of(&mut self, model: ModelId, name: &str) -> ModelLabel {
        if let Some(label) = self.by_model.get(&model) {
            return *label;
        }
        let label = match self.by_name.get(name) {
            Some(label) => *label,
            None if self.names.len() < MAX_NAMES + 2 => self.add(name),
            None => OTHERS,
        };
        if self.by_model.len() >= MAX_MODELS {
            self.by_model.clear();
        }
        self.by_model.insert(model, label);
        label
    }

    /// The model is not needed any more. What was counted under its name stays.
    pub(crate) fn forget(&mut self, model: ModelId) {
        self.by_model.remove(&model);
    }

    /// Each name, in the order of the numbers.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reloaded_model_is_counted_under_the_same_label() {
        let mut labels = Labels::new();
        let first = labels.of(ModelId(1), "m");
        assert_eq!(labels.of(ModelId(2), "m"), first);
        labels.forget(ModelId(1));
        labels.forget(ModelId(2));
        assert!(labels.by_model.is_empty());
        assert_eq!(labels.of(ModelId(3), "m"), first);
        assert_ne!(labels.of(ModelId(4), "n"), first);
        assert_eq!(labels.names(), [UNKNOWN, OTHER, "m", "n"]);
    }

    #[test]
    fn models_without_end_make_no_labels_without_end() {
        let mut labels = Labels::new();
        for model in 0..1000 {
            let label = labels.of(ModelId(model), &format!("m{model}"));
            assert_eq!(label == OTHERS, model >= MAX_NAMES as u64, "{model}");
        }
        assert_eq!(labels.names().len(), MAX_NAMES + 2);
        for model in 0..2 * MAX_MODELS as u64 {
            labels.of(ModelId(model), "m0");
            assert!(labels.by_model.len() <= MAX_MODELS);
        }
        assert_eq!(labels.of(ModelId(1 << 40), OTHER), OTHERS);
        assert_eq!(labels.of(ModelId(1 << 41), UNKNOWN), ModelLabel(0));
    }
}
