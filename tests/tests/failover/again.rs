//! Activities that are played again: what happens to each of them when a process is late, or its word is lost.

use async_trait::async_trait;
use backstay_activities::site::Adds;
use backstay_engine::machine::Direction;
use backstay_engine::{Activity, Context, Failure, Registry};
use backstay_tests::{Around, With};

/// How.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Again {
    /// The second follows on the first, in one attempt.
    Behind,
    /// Two at the same moment: that of a process that lost its lease, and that of its heir.
    AtOnce,
    /// What the first came to was never heard; the second is an attempt of its own.
    Unheard,
}

/// Steps and their undos.
pub struct All(pub Again);
/// Undos alone.
pub struct Undos(pub Again);

struct Repeated {
    how: Again,
    undos_alone: bool,
}

#[async_trait]
impl Around for Repeated {
    async fn run<A>(&self, activity: &A, context: &Context, input: A::Input) -> Result<A::Output, Failure>
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        let again = || activity.run(context, input.clone());
        if self.undos_alone && context.direction() == Direction::Forward {
            return again().await;
        }
        match self.how {
            Again::Behind => {
                again().await?;
                again().await
            }
            Again::AtOnce => {
                let (one, other) = tokio::join!(again(), again());
                one.or(other)
            }
            Again::Unheard if context.attempt() == 1 => {
                again().await?;
                Err(Failure::retryable("unheard", "it was done, and nobody heard of it"))
            }
            Again::Unheard => again().await,
        }
    }
}

impl Adds for All {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        // The second attempt of a conversion is told by its checkpoint that there was a first. Two that begin at the same moment
        // are not what happens to it: the deaths in sweep.rs are.
        match (self.0, A::NAME) {
            (Again::AtOnce, "inject-drivers") => registry.with(activity),
            (how, _) => registry.with(With(Repeated { how, undos_alone: false }, activity)),
        }
    }
}

impl Adds for Undos {
    fn add<A>(&self, registry: Registry, activity: A) -> Registry
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        registry.with(With(Repeated { how: self.0, undos_alone: true }, activity))
    }
}
