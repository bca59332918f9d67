//! A target that counts the calls to it: how many at once, when each began, in which order. It lies in the memory of the
//! test's process, with all nodes in that process.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_engine::machine::Direction;
use backstay_engine::{Activity, Context, Engine, Failure, Registry, Store, async_trait};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::Lab;

/// What the target has seen.
#[derive(Debug)]
pub struct Meter {
    now: AtomicUsize,
    most: AtomicUsize,
    down: AtomicBool,
    begun: Mutex<Vec<Begun>>,
    /// Calls that are to wait do so until somebody adds permits.
    pub gate: Semaphore,
}

/// A call, as it began.
#[derive(Clone, Debug)]
pub struct Begun {
    pub at: Instant,
    /// That of an undo begins with "undo ".
    pub name: String,
    /// How many were under way with it.
    pub under_way: usize,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            now: AtomicUsize::default(),
            most: AtomicUsize::default(),
            down: AtomicBool::default(),
            begun: Mutex::default(),
            gate: Semaphore::new(0),
        }
    }
}

impl Meter {
    /// Calls under way.
    pub fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    /// The most calls that were under way at once since this was asked last.
    pub fn most(&self) -> usize {
        self.most.swap(self.now(), Ordering::SeqCst)
    }

    /// Whether it answers from now on.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// All calls so far, in the order in which they began.
    pub fn begun(&self) -> Vec<Begun> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many different things were called.
    pub fn different(&self) -> usize {
        self.begun().into_iter().map(|call| call.name).collect::<HashSet<_>>().len()
    }

    /// An engine whose activity `call` goes here.
    pub async fn engine(self: &Arc<Self>, lab: &Lab) -> anyhow::Result<Engine> {
        let registry = Registry::new().with(Call(Arc::clone(self)));
        Ok(Engine::open(Store::connect(&lab.url).await?, registry).await?)
    }
}

/// A call to it.
#[derive(Debug)]
pub struct Call(pub Arc<Meter>);

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct What {
    pub name: String,
    pub millis: u64,
    pub waits: bool,
    pub fails: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Called {
    pub ok: bool,
}

/// It ends when the call does, however that may be.
struct Under<'a>(&'a Meter);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Activity for Call {
    const NAME: &'static str = "call";
    type Input = What;
    type Output = Called;

    async fn run(&self, context: &Context, what: What) -> Result<Called, Failure> {
        let Self(meter) = self;
        let under = meter.now.fetch_add(1, Ordering::SeqCst) + 1;
        let _under = Under(meter);
        meter.most.fetch_max(under, Ordering::SeqCst);
        let undo = if context.direction() == Direction::Undo { "undo " } else { "" };
        let name = format!("{undo}{}", what.name);
        meter.begun.lock().unwrap_or_else(PoisonError::into_inner).push(Begun {
            at: Instant::now(),
            name,
            under_way: under,
        });
        if what.waits {
            meter.gate.acquire().await?.forget();
        }
        if meter.down.load(Ordering::SeqCst) {
            return Err(Failure::target_down("it does not answer").not_applied());
        }
        tokio::time::sleep(Duration::from_millis(what.millis)).await;
        if what.fails {
            return Err(Failure::permanent("broken", "it was to fail"));
        }
        Ok(Called { ok: true })
    }
}
