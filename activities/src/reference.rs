//! What an input names and a worker fills in at the moment of the call, so that no journal holds it:
//!
//! ```text
//!   {"secret": "name"}                        a secret
//!   {"secret": "name", "prefix": "Bearer "}   the same, with something before it
//!   {"key_of": "this"}                        the idempotency key of this step
//!   {"key_of": "undone"}                      in an undo: that of the step which is undone
//! ```
//!
//! Only the plan's own words count. What a step's output filled in is data, whatever it looks like: else a target could
//! answer `{"secret": "…"}` and have ours sent on.

use std::borrow::Cow;
use std::collections::BTreeSet;

use backstay_engine::{Context, Failure, Filled};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::http::Origin;
use crate::secrets::{Said, Scrub, SecretError, Secrets};

/// A text of an input: written out, as a number, or named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Text(pub Value);

impl JsonSchema for Text {
    fn schema_name() -> Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A text, a number, true or false; null leaves it out. Or a reference that is filled in at \
                the moment of the call: {\"secret\": \"name\"} or {\"key_of\": \"this\" | \"undone\"}.",
            "type": ["string", "number", "boolean", "null", "object"],
            "properties": {
                "secret": { "type": "string", "description": "The name of a secret." },
                "prefix": { "type": "string", "description": "What stands before the secret, such as \"Bearer \"." },
                "key_of": { "enum": ["this", "undone"], "description": "Whose idempotency key." },
            },
            "additionalProperties": false,
        })
    }
}

/// The idempotency keys that can be named.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub this: Uuid,
    pub undone: Option<Uuid>,
}

impl Keys {
    pub(crate) fn of(context: &Context) -> Self {
        Self { this: context.key(), undone: context.undone().map(|undone| undone.key) }
    }
}

/// Whom the secrets of a call are for.
#[derive(Clone, Debug)]
pub(crate) enum Receiver {
    Origin(Origin),
    Program(String),
}

/// Fills in what an input names.
pub(crate) struct Opener<'a> {
    pub secrets: &'a dyn Secrets,
    pub keys: Keys,
    pub filled: &'a [Filled],
    pub receiver: Receiver,
    /// Knows every secret that was opened.
    pub scrub: Scrub,
}

impl Opener<'_> {
    /// The text that stands at this place of the input; nothing if it is null.
    pub(crate) async fn text(&mut self, at: &str, text: &Text) -> Result<Option<String>, Failure> {
        match self.value(at, &text.0).await? {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(text)),
            Value::Bool(flag) => Ok(Some(flag.to_string())),
            Value::Number(number) => Ok(Some(number.to_string())),
            Value::Array(_) | Value::Object(_) => Err(wrong(format!("at \"{at}\" stands no text"))),
        }
    }

    /// A value with everything in it that is named filled in.
    pub(crate) async fn value(&mut self, at: &str, value: &Value) -> Result<Value, Failure> {
        let mut named = Vec::new();
        self.find(at, value, &mut named);
        let mut out = value.clone();
        for (place, name) in named {
            let text = self.open(&name).await?;
            let place = place.strip_prefix(at).unwrap_or_default();
            if let Some(here) = out.pointer_mut(place) {
                *here = text.into();
            }
        }
        Ok(out)
    }

    fn find(&self, at: &str, value: &Value, named: &mut Vec<(String, Named)>) {
        if self.filled.iter().any(|filled| filled.at == at) {
            return;
        }
        match value {
            Value::Object(map) => match Named::read(map).filter(|_| !self.is_filled_below(at)) {
                Some(name) => named.push((at.to_owned(), name)),
                None => {
                    for (key, item) in map {
                        let key = key.replace('~', "~0").replace('/', "~1");
                        self.find(&format!("{at}/{key}"), item, named);
                    }
                }
            },
            Value::Array(items) => {
                for (n, item) in items.iter().enumerate() {
                    self.find(&format!("{at}/{n}"), item, named);
                }
            }
            _ => {}
        }
    }

    /// The name of a secret is the plan's as well.
    fn is_filled_below(&self, at: &str) -> bool {
        self.filled.iter().any(|filled| filled.at.strip_prefix(at).is_some_and(|rest| rest.starts_with('/')))
    }

    async fn open(&mut self, named: &Named) -> Result<String, Failure> {
        match named {
            Named::Key { undone: false } => Ok(self.keys.this.to_string()),
            Named::Key { undone: true } => self
                .keys
                .undone
                .map(|key| key.to_string())
                .ok_or_else(|| wrong("{\"key_of\": \"undone\"} stands in a step that is no undo".into())),
            Named::Secret { name, prefix } => {
                let secret =
                    open_for(self.secrets, name, &self.receiver).await.map_err(|error| match error {
                        SecretError::Refused(_) => Failure::permanent("secret_refused", error).not_applied(),
                        SecretError::Unreadable(_) => {
                            Failure::retryable("secret_unreadable", error).not_applied()
                        }
                    })?;
                self.scrub.learn(name, &secret);
                let text = secret.expose_secret();
                if let Some(prefix) = prefix {
                    self.scrub.learn(name, &SecretString::from(format!("{prefix}{text}")));
                    return Ok(format!("{prefix}{text}"));
                }
                Ok(text.to_owned())
            }
        }
    }
}

/// Opens a secret for one receiver, if it may have it.
pub(crate) async fn open_for(
    secrets: &dyn Secrets,
    name: &str,
    receiver: &Receiver,
) -> Result<SecretString, SecretError> {
    let secret = secrets.open(name).await?;
    let (may, whom, place) = match receiver {
        Receiver::Origin(origin) => {
            (secret.origins.contains(origin), format!("be sent to {origin}"), "origin")
        }
        Receiver::Program(name) => {
            (secret.programs.contains(name), format!("be given to the program \"{name}\""), "program")
        }
    };
    if may {
        return Ok(secret.text);
    }
    let todo = match secret.said {
        Said::Settings => format!("add it to secrets.uses.{name}.{place}s"),
        Said::Setter => format!("set it anew with --{place} (backstay secret set {name})"),
    };
    Err(SecretError::Refused(format!("the secret \"{name}\" may not {whom}: {todo}")))
}

/// The secrets that a value names.
pub fn secrets_named(value: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(map) => match Named::read(map) {
                Some(Named::Secret { name, .. }) => {
                    names.insert(name);
                }
                _ => rest.extend(map.values()),
            },
            Value::Array(items) => rest.extend(items),
            _ => {}
        }
    }
    names
}

enum Named {
    Secret { name: String, prefix: Option<String> },
    Key { undone: bool },
}

impl Named {
    fn read(map: &serde_json::Map<String, Value>) -> Option<Self> {
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        match (text("secret"), text("prefix"), text("key_of"), map.len()) {
            (Some(name), None, None, 1) => Some(Self::Secret { name: name.into(), prefix: None }),
            (Some(name), Some(prefix), None, 2) => {
                Some(Self::Secret { name: name.into(), prefix: Some(prefix.into()) })
            }
            (None, None, Some("this"), 1) => Some(Self::Key { undone: false }),
            (None, None, Some("undone"), 1) => Some(Self::Key { undone: true }),
            _ => None,
        }
    }
}

/// What is wrong with an input: nothing was done, and trying again does not help.
pub(crate) fn wrong(what: String) -> Failure {
    Failure::permanent("input", what).not_applied()
}
