//! What LINSTOR answers to whatever it is told to do: a list of entries, and any of them can be the error. The code of an
//! entry is a number of 64 bits, written as a signed one, so errors are negative:
//!
//! ```text
//!   error, warning, information, success   2 bits
//!   what was done                          2 bits
//!   to what                                5 bits
//!   the code                              15 bits
//! ```

use serde::{Deserialize, Serialize};

use super::SYSTEM;
use crate::remote::{Kind, Said, Shape, Trouble, decode, loose};

/// The codes that mean something here.
#[allow(missing_docs, reason = "the names are LINSTOR's")]
pub mod codes {
    pub const NOT_FOUND_RSC_DFN: u16 = 301;
    pub const NOT_FOUND_RSC: u16 = 302;
    pub const NOT_FOUND_SNAPSHOT_DFN: u16 = 313;
    pub const NOT_FOUND_SNAPSHOT: u16 = 315;
    pub const EXISTS_SNAPSHOT_DFN: u16 = 514;
    pub const EXISTS_SNAPSHOT: u16 = 516;
    pub const SNAPSHOT_ROLLBACK_IN_PROGRESS: u16 = 971;
    pub const NOT_ALL_UPTODATE: u16 = 974;
    pub const SNAPSHOT_NOT_UPTODATE: u16 = 979;
    pub const RSC_BUSY: u16 = 992;
    pub const SNAPSHOTS_NOT_SUPPORTED: u16 = 994;
    pub const NOT_CONNECTED: u16 = 995;
    pub const IN_USE: u16 = 997;
    pub const WARN_NOT_FOUND: u16 = 3000;
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it says.
    pub ret_code: ReturnCode,
    /// For people.
    #[serde(deserialize_with = "loose::text")]
    pub message: String,
    /// Why.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub cause: Option<String>,
    /// What can be done about it.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub correction: Option<String>,
    /// More.
    #[serde(default, deserialize_with = "loose::some_text")]
    pub details: Option<String>,
}

/// The code of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReturnCode(#[serde(deserialize_with = "loose::number")] pub i64);

/// What kind of entry it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It was done.
    Success,
    /// Something to know.
    Information,
    /// It was done, or was done already, and something is odd.
    Warning,
    /// It was not done, or not all of it.
    Error,
}

const SEVERITY: u64 = 0xC000_0000_0000_0000;
const WARNING: u64 = 0x8000_0000_0000_0000;
const INFORMATION: u64 = 0x4000_0000_0000_0000;
const CODE: u64 = 0x7FFF;

impl ReturnCode {
    /// What kind of entry it is.
    pub fn severity(self) -> Severity {
        match self.bits() & SEVERITY {
            0 => Severity::Success,
            INFORMATION => Severity::Information,
            WARNING => Severity::Warning,
            _ => Severity::Error,
        }
    }

    /// What is said, without the kind of entry and what it is about.
    pub fn code(self) -> u16 {
        (self.bits() & CODE) as u16
    }

    fn bits(self) -> u64 {
        self.0.cast_unsigned()
    }
}

/// Reads all entries. That there are none says nothing, so it is an error.
pub fn entries(bytes: &[u8]) -> Result<Vec<Entry>, Shape> {
    let all: Vec<Entry> = decode(bytes)?;
    if all.is_empty() { Err(Shape::new("says nothing")) } else { Ok(all) }
}

/// Whether it was done: only if no entry is an error.
pub(super) fn judge(said: &Said) -> Result<(), Trouble> {
    let all = match entries(&said.body) {
        Ok(all) => all,
        Err(shape) if said.is_fine() => return Err(said.unknown(&shape)),
        Err(_) => return Err(said.by_status(said.excerpt())),
    };
    match worst(&all) {
        Some(error) => Err(trouble(error, &all, said)),
        // A warning about something that is not there comes with 404 as well.
        None if said.is_fine() || says_missing(&all) => Ok(()),
        None => Err(said.by_status(texts(&all))),
    }
}

/// A call that only looks was refused.
pub(super) fn refused(said: &Said) -> Trouble {
    match entries(&said.body) {
        Ok(all) => match worst(&all) {
            Some(error) => trouble(error, &all, said),
            None => said.by_status(texts(&all)),
        },
        Err(_) => said.by_status(said.excerpt()),
    }
}

/// The error that decides: one that no trying again gets over, if there is one.
fn worst(all: &[Entry]) -> Option<&Entry> {
    let errors = all.iter().filter(|entry| entry.ret_code.severity() == Severity::Error);
    errors.min_by_key(|entry| kind(entry.ret_code.code()).is_retryable())
}

fn kind(code: u16) -> Kind {
    match code {
        codes::NOT_FOUND_RSC_DFN
        | codes::NOT_FOUND_RSC
        | codes::NOT_FOUND_SNAPSHOT_DFN
        | codes::NOT_FOUND_SNAPSHOT => Kind::Missing,
        codes::EXISTS_SNAPSHOT_DFN | codes::EXISTS_SNAPSHOT | codes::IN_USE => Kind::Look,
        codes::SNAPSHOT_ROLLBACK_IN_PROGRESS
        | codes::NOT_ALL_UPTODATE
        | codes::SNAPSHOT_NOT_UPTODATE
        | codes::RSC_BUSY
        | codes::NOT_CONNECTED => Kind::Busy,
        codes::SNAPSHOTS_NOT_SUPPORTED => Kind::Refused,
        _ => Kind::Internal,
    }
}

fn trouble(error: &Entry, all: &[Entry], said: &Said) -> Trouble {
    let code = error.ret_code.code();
    let trouble = Trouble::new(SYSTEM, kind(code), texts(all))
        .code_of(code.into(), None)
        .status(said.status)
        .retry_after(said.rest())
        .of(said.nature);
    // These are found out before anything is done; but of several resources, others may have been dealt with.
    let before =
        !matches!(kind(code), Kind::Internal) && all.iter().all(|entry| entry.ret_code == error.ret_code);
    if before { trouble.not_applied() } else { trouble }
}

/// All that is said, the errors first.
fn texts(all: &[Entry]) -> String {
    const MOST: usize = 1_000;
    let mut sorted: Vec<&Entry> = all.iter().collect();
    sorted.sort_by_key(|entry| std::cmp::Reverse(entry.ret_code.severity()));
    let texts = sorted.into_iter().map(|entry| {
        let more = [&entry.cause, &entry.correction, &entry.details].into_iter().flatten();
        let more: String = more.map(|text| format!(" ({text})")).collect();
        format!("{}{more}", entry.message)
    });
    texts.collect::<Vec<_>>().join("; ").chars().take(MOST).collect()
}

/// Whether nothing is said but that it is not there.
pub(super) fn says_missing(all: &[Entry]) -> bool {
    let says = |entry: &Entry| {
        entry.ret_code.severity() == Severity::Warning && entry.ret_code.code() == codes::WARN_NOT_FOUND
    };
    all.iter().any(says) && all.iter().all(|entry| entry.ret_code.severity() != Severity::Error)
}

/// Of the snapshot: that its resource is not there is another matter.
pub(super) fn is_missing_snapshot(code: i64) -> bool {
    [codes::NOT_FOUND_SNAPSHOT_DFN, codes::NOT_FOUND_SNAPSHOT].map(i64::from).contains(&code)
}

pub(super) fn is_taken(code: i64) -> bool {
    [codes::EXISTS_SNAPSHOT_DFN, codes::EXISTS_SNAPSHOT].map(i64::from).contains(&code)
}
