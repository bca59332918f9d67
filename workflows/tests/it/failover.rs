//! The order of the runbook, for whatever is moved and however.

use std::collections::BTreeMap;

use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;
use serde_json::{Value, json};

fn input(mode: &str, snapshots: &str, windows: bool, final_sync: bool, disks: usize) -> Value {
    let disks: Vec<_> = (0..disks)
        .map(|n| json!({ "key": 2000 + n, "volume": format!("00000000-0000-4000-8000-{n:012}"), "size": 1 << 30 }))
        .collect();
    json!({
        "context": "one", "mode": mode, "snapshots": snapshots, "final_sync": final_sync,
        "source": {
            "id": "4205a841-0265-f4bd-39a6-39fd92196f53", "name": "one", "path": "/DC/vm/one", "windows": windows,
            "boot_type": "UEFI", "cpus": 2, "memory_mb": 4096, "disks": disks,
            "vcenter": {
                "host": "vcenter.example", "datacenter": "DC", "username": "administrator@vsphere.local",
                "password": { "secret": "vcenter" },
            },
        },
        "destination": {
            "zone": "00000000-0000-4000-8000-0000000000a1", "offering": "00000000-0000-4000-8000-0000000000a2",
            "template": "00000000-0000-4000-8000-0000000000a3",
            "nics": [{ "network": "00000000-0000-4000-8000-0000000000a4" }],
        },
    })
}

/// For each step all that is done before it, directly or not.
fn before(input: &Value) -> BTreeMap<String, Vec<String>> {
    let prepared = FailoverWorkflow.prepare(input).unwrap_or_else(|problems| panic!("{problems:?}"));
    let mut before = BTreeMap::<String, Vec<String>>::new();
    // A step stands behind those that it names.
    for step in &prepared.plan.steps {
        let direct = step.after.iter().map(ToString::to_string);
        let mut all: Vec<String> = direct.chain(step.requires.iter().map(|p| p.step.to_string())).collect();
        for name in all.clone() {
            all.extend(before.get(&name).cloned().unwrap_or_default());
        }
        before.insert(step.name.to_string(), all);
    }
    before
}

/// Every way of it that there is.
fn all() -> Vec<Value> {
    let mut all = Vec::new();
    for mode in ["live", "test"] {
        for (snapshots, windows) in [
            ("cloudstack", false),
            ("cloudstack", true),
            ("linstor", false),
            ("linstor", true),
            ("machine", false),
            ("none", false),
        ] {
            // A rehearsal writes, and is always taken back.
            if (mode, snapshots) == ("test", "none") {
                continue;
            }
            for final_sync in [true, false] {
                all.extend([1, 3].map(|disks| input(mode, snapshots, windows, final_sync, disks)));
            }
        }
    }
    all
}

/// What replication writes behind a snapshot is neither in the copy nor in the way back, and a disk that somebody writes to
/// does not come off.
#[test]
fn replication_is_shut_out_before_a_disk_leaves_and_before_its_snapshot() {
    for input in all() {
        let before = before(&input);
        let disks = input["source"]["disks"].as_array().unwrap().len();
        let first = before.get("close-exports").unwrap_or_else(|| panic!("no close-exports: {input}"));
        let mut behind: Vec<_> = (0..disks).map(|n| format!("release-disk-{n}")).collect();
        if input["snapshots"] != "none" {
            behind.push("snapshot".into());
        }
        for step in &behind {
            let all = before.get(step).unwrap_or_else(|| panic!("no {step}: {input}"));
            assert!(
                all.iter().any(|one| one == "close-exports"),
                "{step} comes after {all:?} alone: {input}"
            );
        }
        // The other way round nobody could make the last copy, and nobody would know that it is the last.
        let copied = first.iter().any(|one| one == "final-sync");
        let off = first.iter().any(|one| one == "source-off");
        let live = input["mode"] == "live";
        assert_eq!((off, copied), (live, live && input["final_sync"] == true), "{first:?}: {input}");
    }
}

/// A snapshot is of disks that are off the appliance, and the copy starts from nothing that could not be put back.
#[test]
fn a_snapshot_comes_between_the_appliance_and_the_copy() {
    for input in all() {
        let before = before(&input);
        let disks = input["source"]["disks"].as_array().unwrap().len();
        let is_before = |one: &str, other: &str| before[other].iter().any(|name| name == one);
        for n in 0..disks {
            let (released, attached) = (format!("release-disk-{n}"), format!("attach-disk-{n}"));
            assert!(is_before(&released, &attached) && is_before(&attached, "start-vm"), "{input}");
            match input["snapshots"].as_str() {
                Some("none") => assert!(!before.contains_key("snapshot"), "{input}"),
                Some("machine") => assert!(is_before(&attached, "snapshot"), "{input}"),
                _ => assert!(
                    is_before(&released, "snapshot") && is_before("snapshot", &attached),
                    "disk {n}: {input}"
                ),
            }
        }
        assert!(input["snapshots"] == "none" || is_before("snapshot", "start-vm"), "{input}");
    }
}

/// An attempt that was cut off begins to wait anew, and would never come to the force.
#[test]
fn a_guest_has_all_of_its_time_within_one_attempt() {
    for (force_after, attempt, undo) in [("5m", "30m", json!("5m")), ("1h", "2h 5m", json!("25m"))] {
        let mut input = input("live", "cloudstack", false, true, 1);
        input["force_after"] = force_after.into();
        let prepared = FailoverWorkflow.prepare(&input).unwrap_or_else(|problems| panic!("{problems:?}"));
        let plan = serde_json::to_value(&prepared.plan).unwrap();
        let off = plan["steps"].as_array().unwrap().iter().find(|step| step["name"] == "source-off").unwrap();
        let timeout = off.get("timeout").unwrap_or(&plan["defaults"]["timeout"]);
        assert_eq!(timeout, attempt, "{force_after}: {off:#}");
        assert_eq!(off.pointer("/undo/input/force_after"), Some(&undo), "{force_after}: {off:#}");
    }
}
