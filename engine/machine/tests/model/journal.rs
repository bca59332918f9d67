//! The journal of the model: rows as the crate has them, hash-consed, each with the state that its replay gives.
//!
//! A [`Journal`] is a handle on its last row. Equal journals are one and the same page, so the checker hashes and
//! compares a number, and no journal is ever replayed twice: the state behind a row is the state behind the row
//! before it, plus one call of the crate's own `State::apply`.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

use backstay_machine::{Epoch, Event, Illegal, Journaled, Plan, RunId, State};
use uuid::Uuid;

use crate::history::History;
use crate::time;

/// A journal, by its last row.
#[derive(Clone)]
pub struct Journal(Arc<Page>);

/// A row and everything that follows from it and those before it.
pub struct Page {
    id: u32,
    before: Option<Journal>,
    pub len: u32,
    pub row: Journaled,
    /// What the machine makes of it.
    pub state: Result<State, Illegal>,
    /// What our own book-keeping makes of it, without a line of the machine's state.
    pub history: History,
}

impl std::ops::Deref for Journal {
    type Target = Page;
    fn deref(&self) -> &Page {
        &self.0
    }
}

impl PartialEq for Journal {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
impl Eq for Journal {}
impl Hash for Journal {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.id.hash(hasher);
    }
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.history.plan();
        let mut list = f.debug_list();
        for page in self.pages() {
            let row = page.row.to_row(plan);
            let undo = if row.undo { "undo " } else { "" };
            let step = row.step.as_deref().unwrap_or("");
            list.entry(&format_args!(
                "{} {} {undo}{step} g{}#{} (claim {}, epoch {}, at {})",
                row.seq,
                row.kind,
                row.generation,
                row.attempt,
                row.claim,
                row.epoch,
                row.at.timestamp()
            ));
        }
        list.finish()
    }
}

impl Journal {
    /// Its rows, the first one first.
    pub fn pages(&self) -> Vec<&Page> {
        let mut pages: Vec<&Page> = Vec::with_capacity(self.len as usize);
        let mut at = Some(self);
        while let Some(journal) = at {
            pages.push(&journal.0);
            at = journal.before.as_ref();
        }
        pages.reverse();
        pages
    }

    /// The rows that come after `base`, or `None` if `base` is not how it begins.
    pub fn since(&self, base: &Journal) -> Option<Vec<&Journaled>> {
        let mut rows = Vec::new();
        let mut at = self;
        while at.len > base.len {
            rows.push(&at.row);
            at = at.before.as_ref()?;
        }
        rows.reverse();
        (at == base).then_some(rows)
    }

    /// The machine's state. A journal that does not replay has none; the property M0 says that there is no such.
    pub fn live(&self) -> Option<&State> {
        self.state.as_ref().ok()
    }
}

/// Where all journals of one model live.
pub struct Library {
    plan: Arc<Plan>,
    pages: Mutex<HashMap<(u32, String), Journal>>,
}

impl Library {
    pub fn new(plan: Arc<Plan>) -> Self {
        Self { plan, pages: Mutex::default() }
    }

    pub fn run() -> RunId {
        RunId(Uuid::nil())
    }

    /// The journal of a run that was just submitted.
    pub fn first(&self) -> Journal {
        let row = Journaled {
            seq: 1,
            claim: 0,
            epoch: Epoch(0),
            at: time(0),
            event: Event::Submitted { by: None },
        };
        self.page(None, row)
    }

    /// The journal with one more row.
    pub fn with(&self, journal: &Journal, row: Journaled) -> Journal {
        self.page(Some(journal), row)
    }

    fn page(&self, before: Option<&Journal>, row: Journaled) -> Journal {
        let key = (before.map_or(0, |journal| journal.id), format!("{row:?}"));
        let mut pages = self.pages.lock().unwrap();
        let id = pages.len() as u32 + 1;
        let new = || {
            let (state, history) = match before {
                None => (Ok(State::new(Self::run(), Arc::clone(&self.plan))), History::new(&self.plan)),
                Some(journal) => (journal.state.clone(), journal.history.clone()),
            };
            let state = state.and_then(|mut state| state.apply(&row).map(|()| state));
            let history = history.with(&row);
            let len = before.map_or(0, |journal| journal.len) + 1;
            Journal(Arc::new(Page { id, before: before.cloned(), len, row: row.clone(), state, history }))
        };
        pages.entry(key).or_insert_with(new).clone()
    }

    /// How many journals were ever written or thought of.
    pub fn len(&self) -> usize {
        self.pages.lock().unwrap().len()
    }
}
