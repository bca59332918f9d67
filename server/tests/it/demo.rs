//! The demo keeps its promises, also when it is killed.

use rustix::process::Signal;

use crate::served::client;
use crate::support::{Place, Ran, Running, ran};

/// The whole of it, in a slow place, takes longer than a command should.
async fn demo(place: &Place, arguments: &[&str]) -> Ran {
    let mut all = vec!["demo", "--quick"];
    all.extend(arguments);
    ran(&mut place.command(&all)).await
}

/// What is said of the data centre after the runs that were shown.
fn truths(out: &str) -> Vec<&str> {
    let is_about =
        |line: &&str| ["source  ", "copy    ", "rules   "].iter().any(|about| line.starts_with(about));
    out.lines().map(str::trim).filter(is_about).collect()
}

const SOUND: &str = "rules   I1 to I16 held at every change";
const THIRD: [&str; 3] =
    ["source  web-01 is off at VMware", "copy    web-01 runs at CloudStack, in prod-lan", SOUND];

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
async fn a_demo_tells_of_a_rehearsal_a_rollback_and_a_failover_that_lasts() {
    let place = Place::embedded();
    for _ in 0..2 {
        let ran = demo(&place, &[]).await.exits(0);
        let ran = ran.says("Run 1 of 3: rehearse the failover of sql-01").says("Run 2 of 3: fail db-01 over");
        let ran = ran.says("Run 3 of 3: fail web-01 over").says("Everything came out as promised");
        let ran = ran.says("fault   POST /volumes/*/attach (daemon) was done, and its answer was lost, once");
        let ran = ran.says("fault   startVirtualMachine (cloudstack) failed, once");
        assert!(!ran.out.contains('\x1b'), "{}", ran.out);
        let ran = ran.says("this process kills itself now").says("What was resumed:");
        let resumed: Vec<_> = ran.out.lines().filter(|line| line.contains("last demo")).collect();
        let [one] = resumed.as_slice() else { panic!("{}", ran.out) };
        assert!(one.starts_with("The last demo was killed after attach-disk-0: run "), "{one}");
        for (step, states) in [
            ("inject-drivers", ["done"].as_slice()),
            ("source-off", &["undone", "done"]),
            ("attach-disk-0", &["undone", "undone", "done"]),
            ("start-vm", &["undone", "undone", "done"]),
        ] {
            assert_eq!(states_in_trees(&ran.out, step), states, "{step}: {}", ran.out);
        }
        let home = |vm: &str| {
            [format!("source  {vm} is on at VMware"), "copy    there is none any more".into(), SOUND.into()]
        };
        let mut told = home("sql-01").to_vec();
        told.extend(home("db-01"));
        told.extend(THIRD.map(str::to_owned));
        assert_eq!(truths(&ran.out), told, "{}", ran.out);
        place.is_left_alone().await;
    }
}

/// Killed once it is there, and played to its end by the next.
async fn killed_after(step: &str) {
    let place = Place::embedded();
    demo(&place, &["--kill-after", step]).await.was_killed();
    let ran = demo(&place, &[]).await.exits(0);
    let ran = ran.says("What was resumed:").says("Everything came out as promised");
    assert!(
        ran.out.contains("The last demo was killed after ")
            || ran.out.contains("The last demo was cut off after "),
        "{step}: {}",
        ran.out
    );
    let truths = truths(&ran.out);
    assert!(
        truths.ends_with(&THIRD) && truths.iter().filter(|one| **one == SOUND).count() == truths.len() / 3,
        "{}",
        ran.out
    );
    let folder = place.path("demo");
    let folder = folder.to_str().unwrap();
    place.run(&["check", "--data-dir", folder]).await.exits(0).says(" events: 0 violations");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_a_step_of_the_third_run_it_is_resumed() {
    for step in ["source-off", "create-vm", "snapshot", "attach-disk-0", "start-vm", "check-boot"] {
        killed_after(step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_rehearsal_it_is_resumed() {
    for step in ["first:inject-drivers", "first:check-boot"] {
        killed_after(step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_failover_that_fails_it_is_rolled_back_to_the_end() {
    for step in ["second:final-sync", "undo:attach-disk-1", "undo:source-off"] {
        killed_after(step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_twice_it_says_what_was_not_repeated_and_begins_anew_after_its_end() {
    let place = Place::embedded();
    demo(&place, &["--kill-after", "source-off"]).await.was_killed();
    place.is_left_alone().await;
    let second = demo(&place, &["--kill-after", "attach-disk-0"]).await.was_killed();
    second.says("The last demo was killed after ").says(" goes on.");
    place.is_left_alone().await;
    let third = demo(&place, &[]).await.exits(0);
    let third = third.says("The last demo was killed after attach-disk-0: run ");
    third.says("Not repeated, because the result was in the journal: ").says("attach-disk-0");
    // It was told once; the next demo begins anew.
    let again = demo(&place, &["--kill-after", "create-vm"]).await.was_killed();
    assert!(!again.out.contains("last demo"), "{}", again.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stays_up_with_what_to_try_and_a_killed_one_is_found_as_it_was() {
    let place = Place::embedded();
    demo(&place, &["--kill-after", "start-vm"]).await.was_killed();
    for left in ["killed", "ended"] {
        let mut demo = Running::start(&mut place.command(&["demo"]));
        let exports = demo.until_it_says("export BACKSTAY_SERVER=").await;
        demo.until_it_says("  curl -s ").await;
        let words: Vec<_> = exports.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        let mut list = place.command(&["run", "list"]);
        let list = ran(list.envs(words.clone())).await.exits(0);
        list.says("failover").says("succeeded");
        let file = place.path("demo/archive-01.json");
        let mut preview =
            place.command(&["run", "start", "failover", "--dry-run", "--input", file.to_str().unwrap()]);
        ran(preview.envs(words.clone())).await.exits(0).says("attach-disk-7");
        let server = words.iter().find(|(name, _)| *name == "BACKSTAY_SERVER").unwrap().1;
        let refused = client().get(format!("{server}/api/v1/runs")).send().await.unwrap();
        assert_eq!(refused.status(), 401);
        match left {
            "killed" => {
                demo.signal(Signal::KILL);
                demo.end().await.was_killed().says("What was resumed:");
            }
            _ => {
                demo.signal(Signal::INT);
                demo.end().await.exits(0).says("was over by then, and the demo goes on");
            }
        }
        place.is_left_alone().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_demo_in_the_same_folder_is_refused_and_ctrl_c_leaves_nothing_running() {
    let place = Place::embedded();
    let mut first = Running::start(&mut place.command(&["demo"]));
    first.until_it_says("snapshot").await;
    let refused = demo(&place, &[]).await.exits(4);
    refused.complains("A demo is playing in ").complains("name another folder with --data-dir");
    first.signal(Signal::INT);
    first.end().await.exits(130).says("Stopped. Everything so far is in the journal");
    // Nothing to wait for: the database was stopped before the exit.
    place.is_left_alone().await;
    demo(&place, &[]).await.exits(0).says("The last demo was stopped after ").says("Run 1 of 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_while_the_database_is_created_leaves_nothing_running() {
    let place = Place::embedded();
    let mut first = Running::start_for_logs(&mut place.command(&["demo"]));
    first.until_it_says("Creating the database").await;
    first.signal(Signal::INT);
    first.end().await.exits(130);
    place.is_left_alone().await;
    demo(&place, &["--kill-after", "create-vm"]).await.was_killed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configured_database_is_left_alone() {
    let place = Place::embedded();
    let mut command = place.command(&["demo", "--quick", "--kill-after", "create-vm"]);
    let ran = ran(command.env("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/x")).await.was_killed();
    ran.says("The configured database is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_step_is_refused_with_the_steps_that_there_are() {
    let place = Place::embedded();
    for step in ["copy", "second:check-boot", "undo:check-boot", "third:start-vm", "final"] {
        let refused = place.run(&["demo", "--kill-after", step]).await.exits(2);
        let refused = refused.complains(&format!("There is no step \"{step}\" to kill after."));
        refused.complains("attach-disk-0, start-vm, check-boot").complains("first:inject-drivers");
    }
    assert!(!place.path("demo").exists(), "nothing is begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_with_files_of_others_is_left_alone() {
    let place = Place::embedded();
    std::fs::create_dir_all(place.path("demo/mine")).unwrap();
    demo(&place, &[]).await.exits(4).complains("has files that no demo made");
    assert!(place.path("demo/mine").exists());
}
