//! What an answer or an exit code means that is not the expected one.

use backstay_engine::Failure;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether trying again can help, and whether the effect may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meaning {
    /// Trying again can help; it may have been done.
    Retry,
    /// Trying again can help; it was not done.
    RetryNotApplied,
    /// Trying again cannot help; it may have been done.
    Fail,
    /// Trying again cannot help; it was not done.
    FailNotApplied,
}

impl Meaning {
    /// As a failure.
    pub fn failure(self, code: impl Into<String>, message: impl std::fmt::Display) -> Failure {
        match self {
            Self::Retry => Failure::retryable(code, message),
            Self::RetryNotApplied => Failure::retryable(code, message).not_applied(),
            Self::Fail => Failure::permanent(code, message),
            Self::FailNotApplied => Failure::permanent(code, message).not_applied(),
        }
    }
}
