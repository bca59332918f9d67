//! Waiting for something in another system: looking again and again, less and less often, never in step with others.
//!
//! ```text
//!   wait         looks until something is so over there
//!   Looks        makes one look again that came to no answer
//! ```

use std::future::Future;
use std::iter::Take;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use backstay_engine::Span;
use serde::{Deserialize, Serialize};
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

/// Pauses that grow, each between a half and all of what is said.
fn pauses(first: Span, ceiling: Span) -> ExponentialBackoff {
    let half = |span: Span| (span.0 / 2).max(Duration::from_millis(1));
    ExponentialBuilder::new()
        .with_factor(FACTOR)
        .with_min_delay(half(first))
        .with_max_delay(half(ceiling).max(half(first)))
        .without_max_times()
        .with_jitter()
        .build()
}

/// How a call that only looks is made again if it came to no answer, or to one that passes: a broken connection, 5xx, 429,
/// a page of HTML, half a body. One that changes something is made once, whatever comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Looks {
    /// How often in all, as long as the time of the whole call lasts.
    pub tries: u32,
    /// The first pause; a longer one that the system asks for counts. Each is between a half and all of what is said here.
    pub first: Span,
    /// The longest pause.
    pub ceiling: Span,
}

impl Default for Looks {
    fn default() -> Self {
        Self { tries: 4, first: Span::millis(200), ceiling: Span::secs(2) }
    }
}

impl Looks {
    /// The tries of one look, which has until `end` for all of them.
    pub(crate) fn until(self, end: Instant) -> Tries {
        let most = self.tries.saturating_sub(1) as usize;
        Tries { pauses: pauses(self.first, self.ceiling).take(most), end }
    }
}

/// What is left of the tries of a look.
pub(crate) struct Tries {
    pauses: Take<ExponentialBackoff>,
    end: Instant,
}

impl Tries {
    /// How much time there is for the next one.
    pub(crate) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Rests before the next one. The trouble of the last one, if there is no next one or it would come to the same.
    pub(crate) async fn again(&mut self, trouble: Trouble) -> Result<(), Trouble> {
        let Some(pause) = self.pauses.next().filter(|_| trouble.passes()) else { return Err(trouble) };
        let again = Instant::now() + pause.max(trouble.wants_rest().unwrap_or_default());
        // Whoever asks for more rest than there is time gets it from the engine.
        if again >= self.end {
            return Err(trouble);
        }
        tracing::debug!(%trouble, "looking again");
        sleep_until(again).await;
        Ok(())
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
        for pause in pauses(pace.first, pace.ceiling) {
            let mut rest = pause;
            match look().await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => last = None,
                Err(trouble) if trouble.passes() => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_ceiling_and_are_never_the_same() {
        let pauses: Vec<_> = pauses(Span::secs(1), Span::secs(10)).take(200).collect();
        assert!(
            pauses.iter().all(|pause| (Duration::from_millis(500)..=Duration::from_secs(10)).contains(pause))
        );
        assert!(pauses[0] <= Duration::from_secs(1));
        let late = &pauses[20..];
        assert!(late.iter().all(|pause| *pause >= Duration::from_secs(5)));
        assert!(late.iter().max().unwrap().abs_diff(*late.iter().min().unwrap()) > Duration::from_secs(2));
    }
}
