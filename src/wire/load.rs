//! What a server says of a load besides the model.

/// What an order to load a model has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadOutcome {
    /// It was not loaded before.
    Loaded,
    /// It takes the place of what was loaded: its files had changed, or a newer version is there.
    LoadedAnew,
    /// It was loaded from these files already: nothing.
    Unchanged,
}

impl LoadOutcome {
    const ALL: [LoadOutcome; 3] = [
        LoadOutcome::Loaded,
        LoadOutcome::LoadedAnew,
        LoadOutcome::Unchanged,
    ];

    /// What the wire and people call it.
    pub fn as_str(self) -> &'static str {
        match self {
            LoadOutcome::Loaded => "loaded",
            LoadOutcome::LoadedAnew => "loaded anew",
            LoadOutcome::Unchanged => "unchanged",
        }
    }

    pub(super) fn parse(text: &str) -> Option<LoadOutcome> {
        LoadOutcome::ALL
            .into_iter()
            .find(|outcome| outcome.as_str() == text)
    }
}
