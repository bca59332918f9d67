//! The demo keeps its promises, also when it is killed.

use rustix::process::Signal;

use crate::support::{Place, Running};

/// What is there once both runs are over.
fn the_files_are_as_promised(place: &Place) {
    let arrived = ["disk-0.img", "disk-1.img", "slot-0.json", "slot-1.json", "vm.json"];
    assert_eq!(place.demo_files("new-host"), arrived.map(|name| format!("new-host/web-1/{name}")));
    assert_eq!(
        place.demo_files("old-host"),
        ["db-1/disk-0.img", "db-1/disk-1.img", "web-1/disk-0.img", "web-1/disk-1.img", "web-1/snapshot.json"]
            .map(|name| format!("old-host/{name}"))
    );
    for disk in ["disk-0.img", "disk-1.img"] {
        let read =
            |host: &str| std::fs::read(place.path("demo").join(host).join("web-1").join(disk)).unwrap();
        assert!(read("old-host") == read("new-host"), "{disk}");
    }
}

/// What stands behind the step in each tree. Other lines begin with a time.
fn states_in_trees<'a>(out: &'a str, step: &str) -> Vec<&'a str> {
    let lines = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let trees = lines.filter(|words| {
        words.first().is_some_and(|first| *first != "because" && first.parse::<f64>().is_err())
    });
    let state = |words: Vec<&'a str>| {
        let at = words.iter().position(|word| *word == step).filter(|at| (1..=2).contains(at))?;
        words.get(at + 1).copied()
    };
    trees.filter_map(state).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_shows_one_run_that_succeeds_and_one_that_is_rolled_back() {
    let place = Place::embedded();
    for _ in 0..2 {
        let ran = place.run(&["demo", "--quick"]).await.exits(0);
        let ran = ran.says("Run 1 of 2: move web-1").says("Run 2 of 2: move db-1");
        let ran = ran.says("attempt 1 failed: new-host is busy").says("undo copy-disk-0  undone in");
        let ran = ran.says(
            "should \"attach\" fail, these are undone: attach, create-vm, copy-disk-1, copy-disk-0, snapshot",
        );
        let ran = ran.says("Everything came out as promised");
        assert!(!ran.out.contains('\x1b') && !ran.out.contains("last demo"), "{}", ran.out);
        for (step, first, second) in [
            ("snapshot", "done", "undone"),
            ("copy-disk-1", "done", "undone"),
            ("attach", "done", "undone"),
            ("check", "done", "not"),
        ] {
            assert_eq!(states_in_trees(&ran.out, step), [first, second], "{step}: {}", ran.out);
        }
        the_files_are_as_promised(&place);
        place.is_left_alone().await;
    }
}

/// Killed once it is there, and played to its end by the next.
async fn killed_after(step: &str) {
    let place = Place::with_url().await;
    place.run(&["demo", "--quick", "--kill-after", step]).await.was_killed();
    let ran = place.run(&["demo", "--quick"]).await.exits(0);
    let ran =
        ran.says("The last demo was ").says("What was resumed:").says("Everything came out as promised");
    assert!(
        ran.out.contains("The last demo was killed after ")
            || ran.out.contains("The last demo was cut off after "),
        "{step}: {}",
        ran.out
    );
    the_files_are_as_promised(&place);
    place.run(&["check"]).await.exits(0).says("checked 2 runs, ").says(" events: 0 violations");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_step_of_the_first_run_it_is_resumed() {
    for step in ["snapshot", "copy-disk-0", "copy-disk-1", "create-vm", "attach", "check"] {
        killed_after(step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_step_of_the_second_run_it_is_resumed() {
    for step in ["snapshot", "copy-disk-0", "copy-disk-1", "create-vm", "attach"] {
        killed_after(&format!("second:{step}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_any_undo_it_is_rolled_back_to_the_end() {
    for step in ["attach", "create-vm", "copy-disk-1", "copy-disk-0", "snapshot"] {
        killed_after(&format!("undo:{step}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twice_it_says_what_was_not_repeated_and_what_was_in_doubt() {
    let place = Place::embedded();
    place.run(&["demo", "--kill-after", "snapshot"]).await.was_killed();
    place.is_left_alone().await;
    let second = place.run(&["demo", "--kill-after", "copy-disk-0"]).await.was_killed();
    second.says("The last demo was killed after snapshot: run ").says(" goes on.");
    place.is_left_alone().await;
    let third = place.run(&["demo", "--quick"]).await.exits(0);
    let third = third.says("The last demo was killed after copy-disk-0: run ");
    let third = third.says("Not repeated, because the result was in the journal: snapshot, copy-disk-0.");
    third.says("In doubt was copy-disk-1: a part of it was found, and attempt ");
    the_files_are_as_promised(&place);
    // It was told once; the next demo begins anew.
    let again = place.run(&["demo", "--quick"]).await.exits(0);
    assert!(!again.out.contains("last demo"), "{}", again.out);
    place.run(&["check"]).await.exits(0).says("checked 4 runs, ").says(" events: 0 violations");
    place.is_left_alone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_demo_in_the_same_folder_is_refused_and_ctrl_c_leaves_nothing_running() {
    let place = Place::embedded();
    let mut first = Running::start(&mut place.command(&["demo"]));
    first.until_it_says(" of 2.0 MiB").await;
    let refused = place.run(&["demo", "--quick"]).await.exits(4);
    refused.complains("A demo is playing in ").complains("name another folder with --data-dir");
    first.signal(Signal::INT);
    first.end().await.exits(130).says("Stopped. Everything so far is in the journal");
    // Nothing to wait for: the database was stopped before the exit.
    place.is_left_alone().await;
    let next = place.run(&["demo", "--quick"]).await.exits(0);
    next.says("The last demo was stopped after snapshot: run ")
        .says("In doubt was copy-disk-0: a part of it was found");
    the_files_are_as_promised(&place);
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_while_the_database_is_created_leaves_nothing_running() {
    let place = Place::embedded();
    let mut demo = Running::start_for_logs(&mut place.command(&["demo"]));
    demo.until_it_says("Creating the database").await;
    demo.signal(Signal::INT);
    demo.end().await.exits(130);
    place.is_left_alone().await;
    place.run(&["demo", "--quick"]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_step_is_refused_with_the_steps_that_there_are() {
    let place = Place::embedded();
    for step in ["copy", "second:check", "undo:check", "third:attach"] {
        let refused = place.run(&["demo", "--kill-after", step]).await.exits(2);
        let refused = refused.complains(&format!("There is no step \"{step}\" to kill after."));
        refused.complains("snapshot, copy-disk-0, copy-disk-1, create-vm, attach, check");
    }
    assert!(!place.path("demo").exists(), "nothing is begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_files_of_others_is_left_alone() {
    let place = Place::embedded();
    std::fs::create_dir_all(place.path("demo/new-host")).unwrap();
    place.run(&["demo", "--quick"]).await.exits(4).complains("has files that no demo made");
    assert!(place.path("demo/new-host").exists());
}
