//! An activity as it is, but for what a test does around its runs.

use backstay_engine::machine::plan::Effect;
use backstay_engine::{Activity, Context, Failure, Probe, async_trait};

/// What is done around a run.
#[async_trait]
pub trait Around: Send + Sync + 'static {
    /// In place of the activity's own.
    async fn run<A>(&self, activity: &A, context: &Context, input: A::Input) -> Result<A::Output, Failure>
    where
        A: Activity,
        A::Input: Clone + Sync;
}

/// The activity with that around it.
#[derive(Debug)]
pub struct With<W, A>(pub W, pub A);

#[async_trait]
impl<W: Around, A: Activity> Activity for With<W, A>
where
    A::Input: Clone + Sync,
{
    const NAME: &'static str = A::NAME;
    type Input = A::Input;
    type Output = A::Output;

    fn effect(&self) -> Effect {
        self.1.effect()
    }

    fn pool(&self) -> Option<String> {
        self.1.pool()
    }

    async fn run(&self, context: &Context, input: A::Input) -> Result<A::Output, Failure> {
        self.0.run(&self.1, context, input).await
    }

    async fn probe(&self, context: &Context, input: A::Input) -> Result<Probe<A::Output>, Failure> {
        self.1.probe(context, input).await
    }
}

/// Has each attempt run twice, as a node that was taken for dead may.
#[derive(Debug)]
pub struct Twice;

#[async_trait]
impl Around for Twice {
    async fn run<A>(&self, activity: &A, context: &Context, input: A::Input) -> Result<A::Output, Failure>
    where
        A: Activity,
        A::Input: Clone + Sync,
    {
        let _ = activity.run(context, input.clone()).await;
        activity.run(context, input).await
    }
}
