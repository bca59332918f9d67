//! Activities that change facts, and give them back.

use backstay_engine::{Activity, Context, Failure, async_trait};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::world::World;

/// What a fact is to be.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Becoming {
    pub fact: String,
    pub to: String,
    /// Only from one of these, or from nothing; left out: from whatever it is.
    pub from: Option<Vec<String>>,
    /// Between the look and the end it waits for this gate.
    pub waits: Option<String>,
    /// It fails all the same.
    #[serde(default)]
    pub fails: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Became {
    pub was: Option<String>,
}

/// Changes a fact.
#[derive(Debug)]
pub struct Become(pub World);

#[async_trait]
impl Activity for Become {
    const NAME: &'static str = "become";
    type Input = Becoming;
    type Output = Became;

    async fn run(&self, context: &Context, input: Becoming) -> Result<Became, Failure> {
        let seen = context.fact(&input.fact).await?;
        if let (Some(value), Some(by), Some(from)) = (seen.value(), seen.by(), &input.from)
            && !from.iter().any(|one| one == value)
        {
            let message = format!("{} is {value}, by run {by}", input.fact);
            return Err(Failure::permanent("not_so", message).not_applied());
        }
        self.0.note(context.key(), context, "look").await?;
        if let Some(gate) = &input.waits {
            self.0.wait_for_gate(gate).await?;
        }
        seen.becomes(&input.to)?;
        if input.fails {
            return Err(Failure::permanent("broken", "it broke"));
        }
        Ok(Became { was: seen.value().map(str::to_owned) })
    }
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Back {
    pub fact: String,
    pub to: String,
}

/// Gives a fact back, if it is the run's.
#[derive(Debug)]
pub struct GiveBack;

#[async_trait]
impl Activity for GiveBack {
    const NAME: &'static str = "give-back";
    type Input = Back;
    type Output = Became;

    async fn run(&self, context: &Context, input: Back) -> Result<Became, Failure> {
        let seen = context.fact(&input.fact).await?;
        let had = context.undone().is_some_and(|undone| undone.output.is_some());
        if seen.is_ours() {
            seen.becomes(&input.to)?;
        } else if had {
            let message = format!("{} was changed by {:?} meanwhile", input.fact, seen.by());
            return Err(Failure::permanent("not_ours", message).not_applied());
        }
        Ok(Became { was: seen.value().map(str::to_owned) })
    }
}
