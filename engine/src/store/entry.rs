//! A row of the journal's table: what a run says in one write, an event and those that follow it.

use std::collections::HashMap;
use std::fmt::Write as _;

use backstay_machine::event::kind;
use backstay_machine::{Json, Row, RunId, Seq};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

/// About half a page of Postgres: longer rows would leave much of their pages empty.
const ROOM: usize = 3_800;

/// The kind of an event of another release.
pub(super) const UNKNOWN: &str = "of another release";

/// A row on its way to the table.
pub(super) struct Entry<'a> {
    pub run: RunId,
    pub first: &'a Row,
    /// What follows, as the table has it; empty: nothing does.
    pub more: String,
    next: Seq,
}

impl<'a> Entry<'a> {
    /// Each run's events, in order, in as few rows as may be.
    pub fn of(events: &'a [(RunId, Row)]) -> Vec<Self> {
        let mut entries: Vec<Self> = Vec::with_capacity(events.len());
        // Runs take turns within a write.
        let mut last: HashMap<RunId, usize> = HashMap::new();
        for (run, row) in events {
            match last.get(run).and_then(|place| entries.get_mut(*place)) {
                Some(entry) if entry.takes(row) => entry.add(row),
                _ => {
                    last.insert(*run, entries.len());
                    entries.push(Self { run: *run, first: row, more: String::new(), next: row.seq + 1 });
                }
            }
        }
        for entry in entries.iter_mut().filter(|entry| !entry.more.is_empty()) {
            entry.more.push(']');
        }
        entries
    }

    /// Only the first can have a seal, or be found by its key: an answer to a message. And only the first can have a text that
    /// JSON allows and Postgres cannot show, as `\u0000`: nobody could look at what is in one row with it.
    fn takes(&self, row: &'a Row) -> bool {
        let first = self.first;
        let follows = (row.seq, row.claim, row.epoch) == (self.next, first.claim, first.epoch);
        let is_plain = row.seal.is_none() && !matches!(row.kind, "acted" | "refused");
        let body = |row: &'a Row| row.body.as_ref().map_or("", Json::as_str);
        let (begun, said) = (body(first), body(row));
        follows && is_plain && !said.contains("\\u") && begun.len() + self.more.len() + said.len() < ROOM
    }

    fn add(&mut self, row: &Row) {
        let more = &mut self.more;
        more.push(if more.is_empty() { '[' } else { ',' });
        let step = row.step.as_deref().map(|step| serde_json::Value::from(step).to_string());
        let step = step.as_deref().unwrap_or("null");
        let later = row.at.timestamp_micros() - self.first.at.timestamp_micros();
        // A string takes all that it is given.
        let _ = write!(more, "[[\"{}\",{step},{},{},{},", row.kind, row.undo, row.generation, row.attempt);
        let _ = match row.key {
            Some(key) => write!(more, "\"{key}\",{later}]"),
            None => write!(more, "null,{later}]"),
        };
        if let Some(body) = &row.body {
            more.push(',');
            more.push_str(body.as_str());
        }
        more.push(']');
        self.next = row.seq + 1;
    }
}

/// The events of a row of the table: its first, and what follows.
pub(super) fn events(first: Row, more: Option<&str>, into: &mut Vec<Row>) {
    let (at, claim, epoch, mut seq) = (first.at, first.claim, first.epoch, first.seq);
    into.push(first);
    let Some(more) = more else { return };
    // What cannot be read, or is of another release, is an event of no kind in its place: whoever folds the run refuses it by
    // its number.
    for said in serde_json::from_str(more).unwrap_or_else(|_| vec![RawValue::NULL]) {
        seq += 1;
        let (head, body) = parts(said).unwrap_or_default();
        into.push(Row {
            seq,
            claim,
            epoch,
            at: at.checked_add_signed(chrono::TimeDelta::microseconds(head.later)).unwrap_or(at),
            kind: kind(&head.kind).unwrap_or(UNKNOWN),
            step: head.step.map(Into::into),
            undo: head.undo,
            generation: head.generation,
            attempt: head.attempt,
            key: head.key,
            body,
            seal: None,
        });
    }
}

/// An event behind the first, as the migration describes it. A later release may add to either array.
#[derive(Default)]
struct Head {
    kind: String,
    step: Option<String>,
    undo: bool,
    generation: i32,
    attempt: i32,
    key: Option<Uuid>,
    later: i64,
}

fn parts(said: &RawValue) -> Option<(Head, Option<Json>)> {
    let parts: Vec<&RawValue> = read(said)?;
    let head: Vec<&RawValue> = read(parts.first()?)?;
    let head = Head {
        kind: read(head.first()?)?,
        step: read(head.get(1)?)?,
        undo: read(head.get(2)?)?,
        generation: read(head.get(3)?)?,
        attempt: read(head.get(4)?)?,
        key: read(head.get(5)?)?,
        later: read(head.get(6)?)?,
    };
    let body = match parts.get(1) {
        Some(body) => Some(Json::parse_text(body.get()).ok()?),
        None => None,
    };
    Some((head, body))
}

fn read<'a, T: Deserialize<'a>>(value: &'a RawValue) -> Option<T> {
    serde_json::from_str(value.get()).ok()
}

#[cfg(test)]
mod tests {
    use backstay_machine::{Json, Row, RunId};
    use chrono::DateTime;
    use uuid::Uuid;

    use super::{Entry, ROOM, UNKNOWN, events};

    fn row(seq: i64, kind: &'static str) -> Row {
        Row {
            seq,
            claim: 3,
            epoch: 7,
            at: DateTime::from_timestamp_micros(1_700_000_000_000_000 + seq * 3).unwrap(),
            kind,
            step: Some(r#"a "step" \ of ünicode"#.into()),
            undo: seq % 2 == 0,
            generation: 2,
            attempt: 4,
            key: (seq % 3 == 0).then(|| Uuid::from_u128(u128::from(seq as u64))),
            body: (seq % 4 != 0).then(|| Json::parse_text(r#"{"b":1.0,  "a":[1e5,"é\n"]}"#).unwrap()),
            seal: None,
        }
    }

    /// As the table gives them back.
    fn read(written: &[Entry<'_>]) -> Vec<Row> {
        let mut rows = Vec::new();
        for entry in written {
            events(entry.first.clone(), (!entry.more.is_empty()).then_some(&entry.more[..]), &mut rows);
        }
        rows
    }

    fn of(run: RunId, rows: &[Row]) -> Vec<(RunId, Row)> {
        rows.iter().map(|row| (run, row.clone())).collect()
    }

    #[test]
    fn what_is_written_together_is_one_row_and_is_read_as_it_was() {
        let mut rows: Vec<_> = (1..=20).map(|seq| row(seq, "started")).collect();
        rows[5].body = Some(Json::null());
        rows[6].step = None;
        let batch = of(RunId(Uuid::from_u128(1)), &rows);
        let written = Entry::of(&batch);
        assert_eq!(written.len(), 1);
        assert!(serde_json::from_str::<serde_json::Value>(&written[0].more).is_ok());
        assert_eq!(read(&written), rows);
    }

    #[test]
    fn rows_begin_where_something_else_is_said() {
        let first = RunId(Uuid::from_u128(1));
        let mut rows: Vec<_> = (1..=12).map(|seq| row(seq, "succeeded")).collect();
        rows[2].seal = Some([1; 32]);
        rows[4].kind = "acted";
        rows[6].claim = 4;
        rows[8].epoch = 8;
        rows[10].seq = 30;
        rows[11].seq = 31;
        let batch = of(first, &rows);
        let written = Entry::of(&batch);
        // 7 is of another claim than 6 and 8; 9 of another life than 8 and 10.
        let begun: Vec<_> = written.iter().map(|entry| entry.first.seq).collect();
        assert_eq!(begun, [1, 3, 5, 7, 8, 9, 10, 30]);
        assert_eq!(read(&written), rows);

        // Runs take turns.
        let second = RunId(Uuid::from_u128(2));
        let turns: Vec<_> =
            rows[..2].iter().flat_map(|row| [(first, row.clone()), (second, row.clone())]).collect();
        let written = Entry::of(&turns);
        assert_eq!(written.iter().map(|entry| entry.run).collect::<Vec<_>>(), [first, second]);
        assert_eq!(read(&written), [&rows[..2], &rows[..2]].concat());
    }

    #[test]
    fn a_row_stays_small() {
        let long = Json::of(&"x".repeat(ROOM / 3).into());
        let rows: Vec<_> =
            (1..=9).map(|seq| Row { body: Some(long.clone()), ..row(seq, "succeeded") }).collect();
        let batch = of(RunId(Uuid::from_u128(1)), &rows);
        let written = Entry::of(&batch);
        assert_eq!(written.len(), 5);
        assert_eq!(read(&written), rows);
    }

    #[test]
    fn what_nobody_can_look_at_begins_a_row() {
        let odd = Json::parse_text(r#"{"said":"\u0000"}"#).unwrap();
        let rows: Vec<_> = (1..=3).map(|seq| Row { body: Some(odd.clone()), ..row(seq, "failed") }).collect();
        let batch = of(RunId(Uuid::from_u128(1)), &rows);
        let written = Entry::of(&batch);
        assert_eq!(written.len(), 3);
        assert_eq!(read(&written), rows);
    }

    #[test]
    fn what_a_hand_made_of_it_is_an_event_of_no_kind_in_its_place() {
        let whole = r#"[["started",null,false,0,0,null,5]]"#;
        for odd in ["{}", "[]", "[[]]", r#"["started"]"#, r#"[["started",null,false,0,0,null,"soon"]]"#, "7"]
        {
            let mut rows = Vec::new();
            events(row(1, "started"), Some(&format!("[{whole},{odd},{whole}]")), &mut rows);
            let found: Vec<_> = rows.iter().map(|row| (row.seq, row.kind)).collect();
            assert_eq!(found, [(1, "started"), (2, "started"), (3, UNKNOWN), (4, "started")], "{odd}");
        }
        for more in ["{}", "[", "7"] {
            let mut rows = Vec::new();
            events(row(1, "started"), Some(more), &mut rows);
            let kinds: Vec<_> = rows.iter().map(|row| row.kind).collect();
            assert_eq!(kinds, ["started", UNKNOWN], "{more}");
        }
    }

    #[test]
    fn a_later_release_may_say_more_of_an_event() {
        let mut rows = Vec::new();
        let more = r#"[[["succeeded","a",true,1,2,null,5,"new"],{"x":1},"newer"],[["failed","b",false,0,1,null,6]]]"#;
        events(row(7, "started"), Some(more), &mut rows);
        let found: Vec<_> =
            rows.iter().map(|row| (row.seq, row.kind, row.attempt, row.body.is_some())).collect();
        assert_eq!(found[1..], [(8, "succeeded", 2, true), (9, "failed", 1, false)]);
    }
}
