//! The activity `fail`: fails as it is told, so that people can see what a plan does then before it does it in earnest.

use async_trait::async_trait;
use backstay_engine::{Activity, Context, Failure, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Fails as it is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fail;

/// How to fail.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FailInput {
    /// The code of the failure.
    pub code: String,
    /// Its text.
    pub message: String,
    /// Trying again can help.
    pub retryable: bool,
    /// What is said of the effect.
    pub applied: Said,
    /// Only the first so many attempts fail; the next one succeeds. Left out: all of them fail.
    pub attempts: Option<u32>,
    /// It takes so long before it fails or succeeds, such as "2s".
    #[schemars(with = "Option<String>")]
    pub after: Option<Span>,
    /// It asks to be left alone for so long, such as "1m".
    #[schemars(with = "Option<String>")]
    pub retry_after: Option<Span>,
}

impl Default for FailInput {
    fn default() -> Self {
        Self {
            code: "drill".into(),
            message: "it was told to fail".into(),
            retryable: false,
            applied: Said::Maybe,
            attempts: None,
            after: None,
            retry_after: None,
        }
    }
}

/// What a failure says of the effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// It may be there, so it is undone.
    #[default]
    Maybe,
    /// It is not there.
    No,
}

/// What it gives once it no longer fails.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FailOutput {
    /// The attempt that succeeded.
    pub attempt: u32,
}

#[async_trait]
impl Activity for Fail {
    const NAME: &'static str = "fail";
    type Input = FailInput;
    type Output = FailOutput;

    async fn run(&self, context: &Context, input: FailInput) -> Result<FailOutput, Failure> {
        if let Some(after) = input.after {
            tokio::select! {
                () = tokio::time::sleep(after.0) => {}
                () = context.cancelled() => {
                    return Err(Failure::permanent("cancelled", "it was asked to stop").not_applied());
                }
            }
        }
        if input.attempts.is_some_and(|most| context.attempt() > most) {
            return Ok(FailOutput { attempt: context.attempt() });
        }
        let mut failure = match input.retryable {
            true => Failure::retryable(input.code, input.message),
            false => Failure::permanent(input.code, input.message),
        };
        if input.applied == Said::No {
            failure = failure.not_applied();
        }
        if let Some(span) = input.retry_after {
            failure = failure.retry_after(span);
        }
        Err(failure)
    }
}
