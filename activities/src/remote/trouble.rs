//! The one error of all clients.
//!
//! It keeps the system's own code and words for people, and says for the engine what is known: whether trying again can
//! help, when, and whether the call may have had its effect. What it says is of one call; an attempt may have made others
//! before, so turning it into a [`Failure`] with `?` claims nothing, and [`Trouble::alone`] claims what the call claims.

use std::fmt;
use std::time::Duration;

use backstay_engine::Failure;
use backstay_engine::machine::Applied;
use serde_json::json;

/// What kind of trouble it is: each stands for one thing to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The system as a whole is not there: later.
    Down,
    /// It was called, and gave no whole answer.
    Unanswered,
    /// It answered in a shape that nobody knows: what it did is unknown, and never success.
    Unknown,
    /// It asks to be left alone for a while, or has no room just now: later.
    Busy,
    /// Something broke inside of it: read how things are, then try again.
    Internal,
    /// It refuses as things stand, or says that it failed: only how things are can tell what to do.
    Look,
    /// What was asked for is not there.
    Missing,
    /// It will never do this.
    Refused,
    /// Credentials, permissions or quotas: only a person can help, and undoing needs the same credentials.
    Operator,
    /// The time for waiting is over, and over there it may still go on.
    Late,
    /// Whoever waited was asked to stop, and over there it may still go on.
    Cancelled,
}

impl Kind {
    /// Whether trying again can help by itself.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Look | Self::Missing | Self::Refused | Self::Operator => false,
            Self::Down
            | Self::Unanswered
            | Self::Unknown
            | Self::Busy
            | Self::Internal
            | Self::Late
            | Self::Cancelled => true,
        }
    }
}

/// Whether a call changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// It only looks; it may be repeated.
    Looks,
    /// It may change something, and is made once.
    Changes,
}

/// What went wrong with one call, or with waiting for what it began. It is no `std::error::Error`, as `?` would then take
/// each for an error of the same kind.
#[derive(Clone, PartialEq)]
pub struct Trouble(Box<Parts>);

#[derive(Clone, PartialEq)]
struct Parts {
    system: &'static str,
    kind: Kind,
    reason: Option<&'static str>,
    code: Option<i64>,
    detail: Option<i64>,
    status: Option<u16>,
    text: String,
    applied: Applied,
    retry_after: Option<Duration>,
    garbled: bool,
}

impl Trouble {
    /// Of this system. Unless more is known, the call may have had its effect.
    pub fn new(system: &'static str, kind: Kind, text: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            system,
            kind,
            reason: None,
            code: None,
            detail: None,
            status: None,
            text: shown(&text.into()),
            applied: Applied::Maybe,
            retry_after: None,
            garbled: false,
        }))
    }

    /// The call had no effect and will have none.
    pub fn not_applied(mut self) -> Self {
        self.0.applied = Applied::No;
        self
    }

    /// What was asked about may have had its effect, though the asking had none.
    pub(crate) fn maybe_applied(mut self) -> Self {
        self.0.applied = Applied::Maybe;
        self
    }

    /// The longer of both rests.
    pub(crate) fn rest_at_least(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = self.0.retry_after.max(wait);
        self
    }

    /// The same where the call only looked.
    pub(crate) fn of(self, nature: Nature) -> Self {
        match nature {
            Nature::Looks => self.not_applied(),
            Nature::Changes => self,
        }
    }

    /// A name for what happened, where the system has no code for it.
    pub(crate) fn because(mut self, reason: &'static str) -> Self {
        self.0.reason = Some(reason);
        self
    }

    /// The system's own code, and the finer one beside it, if it has two.
    pub(crate) fn code_of(mut self, code: i64, detail: Option<i64>) -> Self {
        self.0.code = Some(code);
        self.0.detail = detail;
        self
    }

    /// The status of HTTP that it came with.
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    /// How long the system wants to be left alone.
    pub(crate) fn retry_after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    /// What came was no answer of the system's, or half of one.
    pub(crate) fn garbled(mut self) -> Self {
        self.0.garbled = true;
        self
    }

    /// Whether the same look may come to something a moment later. An answer of unknown shape is no such matter: nothing that
    /// comes after it could be trusted more. One that never was the system's, or broke off, is.
    pub(crate) fn passes(&self) -> bool {
        let passing = matches!(self.0.kind, Kind::Down | Kind::Unanswered | Kind::Busy | Kind::Internal);
        passing || self.0.garbled
    }

    /// With a hint for people behind what the system said.
    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.0.text = format!("{}; {hint}", self.0.text);
        self
    }

    /// Which system.
    pub fn system(&self) -> &'static str {
        self.0.system
    }

    /// What to do about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The system's own code, such as 431 of CloudStack or 997 of LINSTOR.
    pub fn code(&self) -> Option<i64> {
        self.0.code
    }

    /// The name of what happened, where the system has no code for it, such as `hibernated`.
    pub fn reason(&self) -> Option<&'static str> {
        self.0.reason
    }

    /// The finer code beside it, such as CloudStack's `cserrorcode`.
    pub fn detail(&self) -> Option<i64> {
        self.0.detail
    }

    /// What the system said, without secrets. For people: nothing should be decided by it.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// Whether this call may have had its effect.
    pub fn applied(&self) -> Applied {
        self.0.applied
    }

    /// How long to wait, if the system said so.
    pub fn wants_rest(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The failure of an attempt that has changed nothing by other calls: what holds of the call holds of it.
    pub fn alone(self) -> Failure {
        let applied = self.0.applied;
        let failure = Failure::from(self);
        if applied == Applied::No { failure.not_applied() } else { failure }
    }

    /// A stable code, such as `cloudstack_431`.
    fn stable_code(&self) -> String {
        let system = self.0.system.to_ascii_lowercase().replace([' ', '-'], "_");
        match (self.0.kind, self.0.reason, self.0.code) {
            (Kind::Operator, ..) => "needs_operator".into(),
            (Kind::Cancelled, ..) => "cancelled".into(),
            (_, Some(reason), _) => format!("{system}_{reason}"),
            (_, None, Some(code)) => format!("{system}_{code}"),
            (kind, None, None) => format!("{system}_{}", format!("{kind:?}").to_ascii_lowercase()),
        }
    }
}

/// Claims nothing about what the attempt did before.
impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let kind = trouble.kind();
        let failure = match kind {
            Kind::Down => Failure::target_down(&trouble),
            kind if kind.is_retryable() => Failure::retryable(trouble.stable_code(), &trouble),
            _ => Failure::permanent(trouble.stable_code(), &trouble),
        };
        let Parts { system, reason, code, detail, status, text, retry_after, .. } = *trouble.0;
        let failure = failure.details(json!({
            "system": system, "kind": format!("{kind:?}").to_ascii_lowercase(),
            "reason": reason, "code": code, "detail": detail, "status": status, "text": text,
        }));
        match retry_after {
            Some(wait) => failure.retry_after(wait),
            None => failure,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { system, kind, code, detail, text, .. } = &*self.0;
        let means = match kind {
            Kind::Down => "is not there",
            Kind::Unanswered => "gave no whole answer",
            Kind::Unknown => "answered in a way that is not known, so what it did is not known",
            Kind::Busy => "cannot do it just now",
            Kind::Internal => "failed inside",
            Kind::Look => "did not do it as things stand",
            Kind::Missing => "does not have it",
            Kind::Refused => "refuses it",
            Kind::Operator => "needs an operator (credentials, permissions or quota)",
            Kind::Late => "took too long, and may still be at it",
            Kind::Cancelled => "was no longer waited for, and may still be at it",
        };
        write!(f, "{system} {means}")?;
        match (code, detail) {
            (Some(code), Some(detail)) => write!(f, " ({code}/{detail})")?,
            (Some(code), None) => write!(f, " ({code})")?,
            (None, _) => {}
        }
        if text.is_empty() { Ok(()) } else { write!(f, ": {text}") }
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} [{:?}", self.0.kind)?;
        if let Some(status) = self.0.status {
            write!(f, ", HTTP {status}")?;
        }
        if let Some(wait) = self.0.retry_after {
            write!(f, ", again in {wait:?}")?;
        }
        write!(f, ", applied {:?}]", self.0.applied)
    }
}

/// The longest text that is kept.
const MOST: usize = 2_000;

/// A text that can be stored and shown, and does not go on without end.
fn shown(text: &str) -> String {
    text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// What a decoder says of bytes in which it does not find what it looks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(String);

impl Shape {
    /// A sentence that goes on after "the answer".
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into().chars().take(300).collect())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<serde_json::Error> for Shape {
    fn from(error: serde_json::Error) -> Self {
        Self::new(format!("cannot be read: {error}"))
    }
}
