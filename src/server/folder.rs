//! A folder of models without a server around it: the catalog and the store joined, each question answered before the call
//! returns. It is how models are looked at from a program, and how the catalog is tested over real files.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::catalog::{Action, Answer, Arrival, Asker, Catalog, Change, MostModels, Named, Parked};
use crate::error::{Error, Result};
use crate::message::{ModelId, ReplyTo, RequestId, Role, Serial, WorkerId};
use crate::model::{Description, Engine, Lookup, Model, ModelSource, Store, StoreConfig};
use crate::wire::server::ModelInfo;

/// Who asks here.
const CALLER: Asker = Asker {
    client: ReplyTo([1; 16]),
    id: RequestId(1),
};
/// Who opens models before they are served.
const WORKER: WorkerId = WorkerId(0);

/// A folder of models, and those of them that were read.
pub struct ModelFolder {
    store: Store,
    catalog: Mutex<Catalog<()>>,
}

/// What came of a call.
#[derive(Default)]
struct Outcome {
    found: Option<Result<Arc<Description>>>,
    answer: Option<Answer>,
    /// A worker is to open it.
    open: Option<ModelId>,
    unlearnt: Vec<ModelId>,
}

impl ModelFolder {
    /// A folder of which no model was read yet.
    ///
    /// # Errors
    /// As [`Store::new`].
    pub fn new(engine: Engine, config: StoreConfig) -> Result<ModelFolder> {
        let most = MostModels {
            count: usize::MAX,
            bytes: config.max_model_bytes,
        };
        Ok(ModelFolder {
            store: Store::new(engine, config)?,
            catalog: Mutex::new(Catalog::new(most)),
        })
    }

    /// The model that a request would get, as it was loaded: what has become of its files since is not looked at. The
    /// first time they are read; the same file under another name is the same model. A failure is not remembered.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT`, `PERMISSION_DENIED`, `NOT_FOUND` from the lookup; `FAILED_PRECONDITION` if the file cannot be
    /// opened as a model; `RESOURCE_EXHAUSTED` if its files are larger than the bound.
    pub fn resolve(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        let mut catalog = self.catalog();
        if let Some(known) = catalog.known(lookup) {
            return Ok(known.clone());
        }
        let arrival = Arrival {
            serial: Serial(1),
            reply: CALLER.client,
            request: CALLER.id,
            arrived_us: 0,
            deadline_us: None,
            bytes: 0,
        };
        catalog.park(self.named(lookup), Parked { arrival, body: () })?;
        let outcome = self.act(&mut catalog)?;
        outcome.found.unwrap_or_else(|| Err(no_answer()))
    }

    /// The model that a name leads to now. If its files, or the highest version, are not those that are served, it is
    /// another model, which requests find only after [`ModelFolder::serve`]; until then they have the one that they had.
    ///
    /// # Errors
    /// As [`ModelFolder::resolve`].
    pub fn load(&self, lookup: &Lookup) -> Result<Arc<Description>> {
        let mut catalog = self.catalog();
        catalog.load(CALLER, self.named(lookup))?;
        let outcome = self.act(&mut catalog)?;
        match (outcome.open, outcome.answer) {
            (Some(model), _) => catalog.describe(model).cloned().ok_or_else(no_answer),
            (None, Some(Answer::Refused(error))) => Err(error),
            (None, _) => Err(no_answer()),
        }
    }

    /// Every worker has a loaded model open: from now on requests find it by the name that it was loaded under, and not
    /// what it replaces. `false` if it was unloaded meanwhile.
    pub fn serve(&self, model: ModelId) -> bool {
        let mut catalog = self.catalog();
        catalog.opened(WORKER, model, None);
        let outcome = self.act(&mut catalog);
        matches!(outcome.map(|o| o.answer), Ok(Some(Answer::Loaded(..))))
    }

    /// Forgets what a name or its file leads to: the models that no lookup finds any more.
    ///
    /// # Errors
    /// As [`ModelFolder::resolve`]; `NOT_FOUND` also if the model is not known.
    pub fn unload(&self, lookup: &Lookup) -> Result<Vec<ModelId>> {
        let mut catalog = self.catalog();
        catalog.unload(CALLER, self.named(lookup))?;
        let outcome = self.act(&mut catalog)?;
        match outcome.answer {
            Some(Answer::Refused(error)) => Err(error),
            _ => Ok(outcome.unlearnt),
        }
    }

    /// A request needs a model: it can be opened until [`ModelFolder::release`], even if it leaves.
    pub fn hold(&self, model: ModelId) {
        self.catalog().hold(model);
    }

    /// That request has ended.
    pub fn release(&self, model: ModelId) {
        let mut catalog = self.catalog();
        catalog.release(model);
        // Nobody waits for an answer to that.
        let _ = self.act(&mut catalog);
    }

    /// What is known of a model by its number.
    pub fn describe(&self, model: ModelId) -> Option<Arc<Description>> {
        self.catalog().describe(model).cloned()
    }

    /// Whether requests find it.
    pub fn is_served(&self, model: ModelId) -> bool {
        self.catalog().served().any(|served| served.id == model)
    }

    /// Every model that requests find, in the order in which they were read.
    pub fn models(&self) -> Vec<ModelInfo> {
        self.catalog().served().map(|model| model.info()).collect()
    }

    /// The bytes of the files of a model. What a plugin reads by itself is not known.
    pub fn size(&self, model: ModelId) -> u64 {
        let sizes = self.store.sizes().into_iter();
        let its = sizes.filter(|(id, _)| *id == model);
        its.map(|(_, bytes)| bytes).sum()
    }

    /// Where the models are.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn named(&self, lookup: &Lookup) -> Named {
        Named {
            name: self.store.name_of(lookup),
            lookup: Arc::new(lookup.clone()),
        }
    }

    fn act(&self, catalog: &mut Catalog<()>) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        loop {
            let actions = catalog.take_actions();
            if actions.is_empty() {
                return Ok(outcome);
            }
            for action in actions {
                match action {
                    Action::AskLoader { ticket, job, .. }
                    | Action::GoOn {
                        ticket,
                        job: Some(job),
                    } => {
                        let answer = job.run(&self.store);
                        catalog.sized(self.store.sizes());
                        catalog.answered(ticket, answer)?;
                    }
                    Action::Open(model) => {
                        catalog.told(model, vec![WORKER]);
                        outcome.open = Some(model);
                    }
                    Action::Admit(_, model) => outcome.found = Some(Ok(model)),
                    Action::Refuse(_, error) => outcome.found = Some(Err(error)),
                    Action::Answer(_, answer) => outcome.answer = Some(answer),
                    Action::Changed(Change::NotFoundAnyMore(model)) => outcome.unlearnt.push(model),
                    Action::Changed(Change::Dropped(model)) => self.store.let_go(model),
                    Action::Changed(Change::LeadsTo(..))
                    | Action::Started(_)
                    | Action::GoOn { job: None, .. }
                    | Action::Withdraw { .. } => {} // nothing waits here
                }
            }
        }
    }

    fn catalog(&self) -> MutexGuard<'_, Catalog<()>> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelSource for ModelFolder {
    fn open(&self, model: ModelId, leg: u32, worker: WorkerId) -> Result<Box<dyn Model>> {
        self.store.open(model, leg, worker)
    }

    fn legs(&self, model: ModelId) -> Result<Arc<[Role]>> {
        self.store.legs(model)
    }
}

fn no_answer() -> Error {
    Error::internal("the catalog has no answer")
}
