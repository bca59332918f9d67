//! Waiting for something in another system: looking again and again, less and less often, never in step with others.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use backstay_engine::Span;
use tokio::time::{Instant, sleep_until};

use super::trouble::{Kind, Trouble};

/// How often is looked, and for how long in all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// The first pause. Each is between a half and all of what is said here, so that many do not look at once.
    pub first: Span,
    /// The longest pause.
    pub ceiling: Span,
    /// How long in all.
    pub deadline: Span,
}

/// How much longer each pause is than the one before.
const FACTOR: f32 = 1.6;

impl Pace {
    fn pauses(self) -> impl Iterator<Item = Duration> {
        let half = |span: Span| (span.0 / 2).max(Duration::from_millis(1));
        ExponentialBuilder::new()
            .with_factor(FACTOR)
            .with_min_delay(half(self.first))
            .with_max_delay(half(self.ceiling).max(half(self.first)))
            .without_max_times()
            .with_jitter()
            .build()
    }
}

/// Looks until something is found, the time is over, or `stop` comes. A look that fails in a passing way is no reason to
/// give up: what it looks for goes on without it.
pub async fn wait<T, Looking>(
    system: &'static str,
    what: &str,
    pace: Pace,
    stop: impl Future<Output = ()>,
    mut look: impl FnMut() -> Looking,
) -> Result<T, Trouble>
where
    Looking: Future<Output = Result<Option<T>, Trouble>>,
{
    let end = Instant::now() + pace.deadline.0;
    let mut last: Option<Trouble> = None;
    let looking = async {
        for pause in pace.pauses() {
            let mut rest = pause;
            match look().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => last = None,
                Err(trouble) if passes(&trouble) => {
                    rest = rest.max(trouble.wants_rest().unwrap_or_default());
                    last = Some(trouble);
                }
                Err(trouble) => return Err(trouble),
            }
            sleep_until(Instant::now() + rest).await;
        }
        Err(Trouble::new(system, Kind::Late, what))
    };
    tokio::select! {
        // Who is asked to stop stops, whatever else is ready.
        biased;
        () = stop => return Err(Trouble::new(system, Kind::Cancelled, what)),
        found = looking => return found,
        () = sleep_until(end) => {}
    }
    let deadline = pace.deadline;
    let text = match last {
        Some(trouble) => format!("{what}, {deadline} passed; at last, {trouble}"),
        None => format!("{what}, {deadline} passed"),
    };
    Err(Trouble::new(system, Kind::Late, text))
}

/// An answer of unknown shape is no passing matter: nothing that comes after it could be trusted more.
fn passes(trouble: &Trouble) -> bool {
    matches!(trouble.kind(), Kind::Down | Kind::Unanswered | Kind::Busy | Kind::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_ceiling_and_are_never_the_same() {
        let pace = Pace { first: Span::secs(1), ceiling: Span::secs(10), deadline: Span::secs(60) };
        let pauses: Vec<_> = pace.pauses().take(200).collect();
        assert!(
            pauses.iter().all(|pause| (Duration::from_millis(500)..=Duration::from_secs(10)).contains(pause))
        );
        assert!(pauses[0] <= Duration::from_secs(1));
        let late = &pauses[20..];
        assert!(late.iter().all(|pause| *pause >= Duration::from_secs(5)));
        assert!(late.iter().max().unwrap().abs_diff(*late.iter().min().unwrap()) > Duration::from_secs(2));
    }
}
