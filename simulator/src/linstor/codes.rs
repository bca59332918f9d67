//! Its answers: lists of entries with a code of many parts.
//!
//! | bits | |
//! |---|---|
//! | `0xC000_0000_0000_0000` | error (both), warning (the first), info (the second), success (none) |
//! | `0x0000_0000_0300_0000` | create, modify, delete |
//! | `0x0000_0000_007C_0000` | about what |
//! | `0x0000_0000_0000_7FFF` | what |
//!
//! In JSON the number is signed: errors and warnings are negative.

use chrono::Utc;
use serde_json::{Value, json};

use crate::answer::Answer;

/// How bad it is.
pub const ERROR: u64 = 0xC000_0000_0000_0000;
pub const WARN: u64 = 0x8000_0000_0000_0000;
pub const INFO: u64 = 0x4000_0000_0000_0000;
pub const SUCCESS: u64 = 0;

/// What was done.
pub const CREATE: u64 = 0x0100_0000;
pub const MODIFY: u64 = 0x0200_0000;
pub const DELETE: u64 = 0x0300_0000;

/// To what.
const SNAPSHOT: u64 = 0x000C_0000;

/// What came of it.
pub const CREATED: u64 = 1;
pub const DELETED: u64 = 2;
pub const MODIFIED: u64 = 3;
pub const INVALID_SNAPSHOT_NAME: u64 = 218;
pub const NO_RESOURCE_DEFINITION: u64 = 301;
pub const NO_SNAPSHOT_DEFINITION: u64 = 313;
pub const SNAPSHOT_DEFINITION_EXISTS: u64 = 514;
pub const ROLLBACK_IN_PROGRESS: u64 = 971;
pub const SNAPSHOT_NOT_UP_TO_DATE: u64 = 979;
pub const NOT_CONNECTED: u64 = 995;
pub const IN_USE: u64 = 997;
pub const UNKNOWN_ERROR: u64 = 999;
pub const WARN_NOT_FOUND: u64 = 3000;

/// An entry about a snapshot.
pub fn entry(kind: u64, doing: u64, code: u64, message: impl Into<String>) -> Value {
    let bits = kind | doing | SNAPSHOT | code;
    json!({"ret_code": i64::from_ne_bytes(bits.to_ne_bytes()), "message": message.into(), "created_at": Utc::now()})
}

/// An entry that says what to do about it.
pub fn with(mut entry: Value, more: Value) -> Value {
    if let (Some(entry), Value::Object(more)) = (entry.as_object_mut(), more) {
        entry.extend(more);
    }
    entry
}

/// The list goes out: the status is the worst of it, and says less than the list.
pub fn list(success: u16, entries: Vec<Value>) -> Answer {
    let codes = || {
        entries
            .iter()
            .filter_map(|entry| entry.get("ret_code")?.as_i64())
            .map(|code| u64::from_ne_bytes(code.to_ne_bytes()))
    };
    let failed = |code: u64| code & ERROR == ERROR;
    let missing = codes().any(|code| failed(code) && (301..=320).contains(&(code & 0x7FFF)));
    let status = match (missing, codes().any(failed)) {
        (true, _) => 404,
        (false, true) => 500,
        (false, false) => success,
    };
    Answer::json(status, &Value::Array(entries))
}

/// Something is wrong that is about nothing in particular.
pub fn wrong(status: u16, text: &str) -> Answer {
    let bits = ERROR | UNKNOWN_ERROR;
    Answer::json(
        status,
        &json!([{"ret_code": i64::from_ne_bytes(bits.to_ne_bytes()), "message": text, "created_at": Utc::now()}]),
    )
}
