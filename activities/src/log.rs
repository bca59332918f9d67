//! The activity `log`: says something, in the log of whichever node runs it and in the journal.

use async_trait::async_trait;
use backstay_engine::{Activity, Context, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Says something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log;

/// What is said.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogInput {
    /// For people.
    pub text: String,
    /// How loud.
    #[serde(default)]
    pub level: Level,
    /// More, for programs; what other steps gave can stand here.
    #[serde(default)]
    pub data: Value,
}

/// How loud something is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "they say it themselves")]
pub enum Level {
    #[default]
    Info,
    Warn,
    Error,
}

/// What was said.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct LogOutput {
    /// The text.
    pub text: String,
}

#[async_trait]
impl Activity for Log {
    const NAME: &'static str = "log";
    type Input = LogInput;
    type Output = LogOutput;

    async fn run(&self, context: &Context, input: LogInput) -> Result<LogOutput, Failure> {
        // The text may be anybody's: as a field it cannot pretend to be a line of its own.
        let (run, step, text, data) = (context.run(), context.step(), &input.text, &input.data);
        match input.level {
            Level::Info => tracing::info!(%run, step, text, %data, "a plan says"),
            Level::Warn => tracing::warn!(%run, step, text, %data, "a plan says"),
            Level::Error => tracing::error!(%run, step, text, %data, "a plan says"),
        }
        Ok(LogOutput { text: input.text })
    }
}
