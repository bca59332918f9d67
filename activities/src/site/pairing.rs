//! Which disk of a machine is which volume. The plan says it, and nobody else knows: neither VMware nor CloudStack has a word
//! about the other, and two disks of one size look alike. The one trace there is: an export bears the number that whoever had
//! it made gave its disk. Where those numbers tell another order than the plan, one of the two is wrong, and nothing is written.

use crate::daemon::Export;

/// Why the exports contradict the plan, if they do. Disks are given by key and volume, in the plan's order.
///
/// Some count from 0, some from 1, and some say 0 of each: only the order of numbers that differ says anything, and only where
/// the plan itself goes by the order of the keys.
pub(super) fn numbered_otherwise(disks: &[(u32, &str)], exports: &[Export]) -> Option<String> {
    let numbered: Vec<(u32, &str, i64)> = disks
        .iter()
        .filter_map(|(key, volume)| {
            let export = exports.iter().find(|export| export.volume_id == *volume)?;
            Some((*key, *volume, export.disk_number()?))
        })
        .collect();
    let mut numbers: Vec<_> = numbered.iter().map(|(.., number)| *number).collect();
    let in_order = numbers.is_sorted();
    numbers.sort_unstable();
    numbers.dedup();
    if in_order || numbers.len() < numbered.len() || !disks.is_sorted_by_key(|(key, _)| *key) {
        return None;
    }
    let told: Vec<_> = numbered
        .iter()
        .map(|(key, volume, number)| format!("of the volume {volume} for disk {key}, number {number}"))
        .collect();
    Some(format!(
        "the exports were made for the disks in another order than they are given here ({}): look which disk each volume is \
         the copy of. If they are given rightly, delete the exports and have them made anew",
        told.join("; ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn export(volume: &str, metadata: Value) -> Export {
        let export = json!({ "volume_id": volume, "export_name": volume, "metadata": metadata });
        serde_json::from_value(export).unwrap()
    }

    fn numbers(numbers: [Value; 3]) -> Vec<Export> {
        let all = ["a", "b", "c"].into_iter().zip(numbers);
        all.map(|(volume, number)| export(volume, json!({ "disk_number": number }))).collect()
    }

    #[test]
    fn only_numbers_that_differ_and_contradict_say_anything() {
        let disks = [(2000, "a"), (2001, "b"), (2002, "c")];
        let other_order = [(2001, "a"), (2000, "b"), (2002, "c")];
        let none = json!(null);
        for (what, told, contradict) in [
            ("from 0", [json!(0), json!(1), json!(2)], false),
            ("from 1, as texts", [json!("1"), json!("2"), json!("3")], false),
            ("keys, with a gap", [json!(2000), json!(2001), json!(2016)], false),
            ("0 of each", [json!(0), json!(0), json!(0)], false),
            ("one is known", [none.clone(), json!(7), none.clone()], false),
            ("two are known", [json!(0), none.clone(), json!(2)], false),
            ("swapped", [json!(1), json!(0), json!(2)], true),
            ("two are known, swapped", [json!(2), none.clone(), json!(1)], true),
            ("moved round", [json!(2), json!(0), json!(1)], true),
            ("swapped, and two are the same", [json!(1), json!(0), json!(0)], false),
        ] {
            let exports = numbers(told);
            assert_eq!(numbered_otherwise(&disks, &exports).is_some(), contradict, "{what}");
            assert_eq!(
                numbered_otherwise(&other_order, &exports),
                None,
                "{what}: the plan has no order of keys"
            );
        }
        for metadata in [json!(null), json!([]), json!("x"), json!({ "disk_number": "first" })] {
            let exports = [export("a", metadata.clone()), export("b", json!({ "disk_number": 0 }))];
            assert_eq!(numbered_otherwise(&disks[..2], &exports), None, "{metadata}");
        }
    }
}
