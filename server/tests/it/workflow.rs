//! Workflows that are files, at the command line.

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::{Place, ran};

const GOOD: &str = "\
workflow: soak
title: Wait ${inputs.times} times
input:
  times: { type: integer, minimum: 1, maximum: 5, default: 2 }
  length: { type: string, pattern: \"^[0-9]+s$\", examples: [10s], description: How long each wait is. }
run: { key: soak, labels: { length: \"${inputs.length}\" } }
steps:
  - name: wait
    each: \"[1, 2, 3, 4, 5][:inputs.times]\"
    order: one_by_one
    activity: wait
    input: { for: \"${inputs.length}\" }
  - { name: agreed, after: [wait], activity: approve, input: { right: release } }
";

fn place() -> Place {
    let place = Place::embedded();
    std::fs::create_dir_all(place.path("flows")).unwrap();
    std::fs::write(place.path("flows/soak.yaml"), GOOD).unwrap();
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_is_a_line_that_an_editor_can_jump_to() {
    let place = place();
    let dir = place.path("flows");
    let dir = dir.to_str().unwrap();
    place.run(&["workflow", "check", dir]).await.exits(0).says("checked 1 file: they are right\n");
    std::fs::write(place.path("flows/bad.yaml"), GOOD.replace("soak", "bad").replace("approve", "aprove"))
        .unwrap();
    std::fs::write(
        place.path("flows/worse.json"),
        "{\"workflow\": \"w\",\n \"steps\": [{}], \"workflow\": 1}",
    )
    .unwrap();
    let found = place.run(&["workflow", "check", dir]).await.exits(1);
    let found = found.says(&format!("{dir}/bad.yaml:13:5: steps[1] [plan activity]: step \"agreed\": its step runs \"aprove\", which is no activity here"));
    found
        .says(&format!("{dir}/worse.json:2:17: [form]: the key \"workflow\" stands twice"))
        .complains("3 problems found in 3 files.");
    let found = place.run(&["workflow", "check", "--json", dir]).await.exits(1);
    let found: Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(found["files"], 3);
    assert_eq!((&found["problems"][2]["line"], &found["problems"][2]["rule"]), (&2.into(), &"form".into()));
    let one = place.path("flows/soak.yaml");
    let one = one.to_str().unwrap();
    place.run(&["workflow", "check", one, one]).await.exits(0).says("checked 1 file");
    place
        .run(&["workflow", "check", "/nowhere.yaml"])
        .await
        .exits(1)
        .says("/nowhere.yaml: [file]: the file cannot be read");
    let refused = place.run(&["workflow", "list", "--dir", dir]).await.exits(1);
    refused.complains("[plan activity]").complains("The workflows are not right: 3 problems.");
    place.is_left_alone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_are_listed_shown_and_planned_without_a_database() {
    let place = place();
    let dir = place.path("flows");
    let dir = dir.to_str().unwrap();
    place.run(&["workflow", "list"]).await.exits(2).complains("set workflows.dir");
    place
        .run(&["workflow", "list", "--dir", dir])
        .await
        .exits(0)
        .says("soak  ")
        .says("  Wait ${inputs.times} times\n");
    let mut list = place.command(&["workflow", "list", "--json"]);
    let listed = ran(list.env("BACKSTAY_WORKFLOWS__DIR", dir)).await.exits(0);
    let listed: Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(listed[0]["input_schema"]["required"], serde_json::json!(["length"]));
    let shown = place.run(&["workflow", "show", "soak", "--dir", dir]).await.exits(0);
    shown
        .says("  length  string, such as \"10s\": How long each wait is.\n")
        .says("  times   integer, 2 if it is not given\n");
    place
        .run(&["workflow", "show", "sok", "--dir", dir])
        .await
        .exits(3)
        .complains("There is no workflow \"sok\"; there are: soak.");

    let input = place.file("input.yaml", "length: 10s\n");
    let input = input.to_str().unwrap();
    let planned = place.run(&["workflow", "plan", "soak", "--dir", dir, "--input", input]).await.exits(0);
    let planned =
        planned.says("Title:    Wait 2 times\n").says("Key:      soak\n").says("Label:    length=10s\n");
    planned.says(
        "3 steps:\n  wait-0: wait\n  wait-1: wait, after wait-0\n  agreed: approve, after wait-0, wait-1\n",
    );
    let planned =
        place.run(&["workflow", "plan", "soak", "--dir", dir, "--input", input, "--json"]).await.exits(0);
    let planned: Value = serde_json::from_str(&planned.out).unwrap();
    assert_eq!(planned["plan"]["steps"][1]["input"], serde_json::json!({ "for": "10s" }));
    assert_eq!(planned["hash"].as_str().unwrap().len(), 64);

    // What each failure would undo, as the server says it, and the picture.
    assert_eq!(planned["if_fails"][0]["step"], "wait-0");
    let whole = place.run(&["workflow", "plan", "soak", "--dir", dir, "--input", input]).await.exits(0);
    whole.says("\nIf wait-0 fails for good, nothing is undone\n").says("If agreed fails for good, ");
    let one = ["workflow", "plan", "soak", "--dir", dir, "--input", input, "--failing", "agreed"];
    let one = place.run(&one).await.exits(0).says("If agreed fails for good, ");
    assert!(!one.out.contains("If wait-0 fails"), "{one:?}");
    place
        .run(&["workflow", "plan", "soak", "--dir", dir, "--input", input, "--failing", "nobody"])
        .await
        .exits(3)
        .complains("The plan has no step \"nobody\"; there are: wait-0, wait-1, agreed.");
    let picture = async |form: &[&str]| {
        let mut all = vec!["workflow", "picture", "soak", "--dir", dir, "--input", input];
        all.extend(form);
        place.run(&all).await.exits(0).out
    };
    assert!(picture(&[]).await.starts_with("<svg"));
    assert!(picture(&["--as", "dot"]).await.starts_with("digraph"));
    assert!(picture(&["--as", "mermaid"]).await.starts_with("flowchart"));

    let refused = place.run(&["workflow", "plan", "soak", "--dir", dir]).await.exits(1);
    refused
        .says("\"length\" is a required property")
        .complains("There is no plan for this input: 1 problem.");
    let mut command = place.command(&["workflow", "plan", "soak", "--dir", dir, "--input", "-"]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\"length\": \"10s\", \"times\": 9}").await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("times [input]: 9 is greater than the maximum of 5")
    );
    place.is_left_alone().await;
}

/// A site, and nothing else.
const SITE: &str = "[cloudstack]\nurl = \"https://cloud.example\"\n[site]\noma = \"oma\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_field_is_made_of_is_shown_below_it() {
    let place = Place::embedded();
    let site = place.file("site.toml", SITE);
    let shown =
        place.run(&["workflow", "show", "failover", "--config", site.to_str().unwrap()]).await.exits(0);
    for line in [
        "  mode           \"test\" or \"live\": A rehearsal (`test`) or for real (`live`).\n",
        "    \"live\"  The copy takes the place of the source.\n",
        "  source         object: The machine at VMware.\n",
        "    boot_type  \"BIOS\" or \"UEFI\": How it starts.\n",
        "    disks      list of object: All of its disks; it starts from the first.\n      key     integer: Its key at VMware, from 2000.\n",
        "    vcenter    object: Where it is.\n",
        "      password    object: The password: the name of a secret, as `{\"secret\": \"name\"}`.\n        secret  string: The name.\n",
        "    nics      list of object: Its cards; the first is the default one.\n      mac      string or null, null if it is not given:",
        "  test_for       string, \"2h\" if it is not given: A rehearsal is undone after so long,",
        "  commit_within  string or null, null if it is not given: Live:",
    ] {
        assert!(shown.out.contains(line), "{line:?} is missing in\n{}", shown.out);
    }
    // The user may be a word or the name of a secret: that is the only field that can be anything.
    assert_eq!(shown.out.matches("anything").count(), 1, "{}", shown.out);
    assert!(shown.out.contains("      username    anything: Who calls"), "{}", shown.out);

    // Definitions that lead round in a circle, or nowhere, come to an end.
    std::fs::create_dir_all(place.path("flows")).unwrap();
    let circle = r##"{ "workflow": "circle", "input_schema": { "type": "object", "properties": {
        "tree": { "$ref": "#/$defs/tree" }, "round": { "$ref": "#/$defs/round" } },
        "$defs": { "tree": { "type": "object", "properties": { "left": { "$ref": "#/$defs/tree" } } },
            "round": { "anyOf": [{ "$ref": "#/$defs/round" }, { "type": "null" }] } } },
        "steps": [{ "name": "w", "activity": "wait", "input": { "for": "1s" } }] }"##;
    std::fs::write(place.path("flows/circle.json"), circle).unwrap();
    let dir = place.path("flows");
    let shown = place.run(&["workflow", "show", "circle", "--dir", dir.to_str().unwrap()]).await.exits(0);
    shown.says("  tree   object, may be missing\n").says("    left  object, may be missing\n");
}
