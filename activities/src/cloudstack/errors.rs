//! What CloudStack's errors mean. Its codes say little and its texts are for people, and not the same for everybody; so
//! most of them mean no more than: look how things are.

use std::time::Duration;

use super::SYSTEM;
use super::envelope::{ApiError, INTERNAL};
use crate::remote::{Kind, Nature, Trouble};

/// Bad credentials, a bad signature, one that has expired, an unknown command.
pub(super) const UNAUTHORIZED: i64 = 401;
/// A wrong parameter, and every condition that does not hold: also "there is no such thing".
pub(super) const PARAMETER: i64 = 431;

/// The trouble that an error is. Where there is no room, it is asked again after `no_room`.
pub(super) fn trouble(error: &ApiError, nature: Nature, no_room: Duration) -> Trouble {
    let of = |kind| Trouble::new(SYSTEM, kind, error.text.as_str()).code_of(error.code, error.cs_code);
    let trouble = match error.code {
        // Who calls is not known, has to prove more, may not do this, or has used up what he may have.
        UNAUTHORIZED | 411 | 531 | 532 => of(Kind::Operator).not_applied(),
        535 => of(Kind::Operator),
        // No such method, a malformed parameter, a command that is not there or is switched off.
        405 | 430 | 432 => of(Kind::Refused).not_applied(),
        429 => of(Kind::Busy).not_applied().retry_after(rest(&error.text)),
        // The server is about to stop, and begins nothing.
        503 => of(Kind::Busy).not_applied().retry_after(rest(&error.text)),
        // No capacity, or no host: what was begun may be there in part.
        533 => of(Kind::Busy).retry_after(Some(no_room)),
        534 => of(Kind::Busy).retry_after(rest(&error.text)),
        PARAMETER | 536 | 537 => of(Kind::Look),
        // So `listApis` says that there is none for us; an error of this code may be anything else.
        INTERNAL if error.text.contains("unable to find an api by that name") => of(Kind::Missing),
        500..600 => of(Kind::Internal),
        400..500 => of(Kind::Refused).not_applied(),
        _ => of(Kind::Unknown),
    };
    trouble.of(nature)
}

/// The longest rest that is believed.
const LONGEST: u64 = 86_400_000;

/// How long it wants to be left alone, as the text says: "retry after [1500] ms".
fn rest(text: &str) -> Option<Duration> {
    let lower = text.to_ascii_lowercase();
    let (_, behind) = lower.split_once("retry after")?;
    let digits: String =
        behind.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
    let millis: u64 = digits.parse().ok()?;
    Some(Duration::from_millis(millis.min(LONGEST)))
}
