//! The activity `command`, with real processes: what may run, what it is given, and that nothing of it is left behind.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_activities::secrets::NoSecrets;
use backstay_activities::{Command, CommandSettings, Meaning, Program};
use backstay_engine::{Span, Status};
use backstay_tests::Lab;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};

use crate::support::{House, Settings, count, not_applied, program, quick, single, until};

/// A house that may run this one program.
async fn house(program: Program, locks: Option<&Path>) -> House {
    let programs = [("tool".to_owned(), program)].into();
    let command = CommandSettings { programs, locks: locks.map(Path::to_owned) };
    House::new(Settings { command, ..Settings::default() }).await
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    (dir, path)
}

/// Whether a process is there, and more than a dead one that nobody has asked after.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let dead = stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z');
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok() && !dead
}

/// The pids that a script has written into a file, once there are so many.
async fn pids(path: &Path, wanted: usize) -> Vec<i32> {
    let read = || -> Vec<i32> {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    };
    until("the script has written its pids", || read().len() >= wanted).await;
    read()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_run_until_the_configuration_says_what() {
    let house = House::new(Settings::default()).await;
    for name in ["sh", "/bin/sh", "../sh", "tool"] {
        let refused = house.once("command", json!({ "program": name })).await.unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retryable), ("command_refused", false));
        assert!(
            refused.message.contains("add command.programs.NAME") && not_applied(&refused),
            "{}",
            refused.message
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_arrive_as_they_are_and_only_those_that_are_allowed() {
    let (_dir, path) = folder();
    let mut tool = program(&path, "tool", r#"for a in "$@"; do printf '<%s>' "$a"; done"#);
    tool.args = vec!["fixed".into()];
    tool.allow = vec!["*".into(), "--name=*".into()];
    let house = house(tool, None).await;
    let run = async |args: Value| house.once("command", json!({ "program": "tool", "args": args })).await;
    let output = run(json!(["$(id)", "a;b", "`id`", "", 7, "--name=x y"])).await.unwrap();
    assert_eq!(output["stdout"], "<fixed><$(id)><a;b><`id`><><7><--name=x y>");
    for args in [json!(["--config=/etc/passwd"]), json!(["-x"]), json!(["a", "--names"])] {
        let refused = run(args).await.unwrap_err();
        assert!(refused.message.contains("command.programs.tool.allow"), "{}", refused.message);
    }
    for args in [json!([null]), json!([{ "secret": "x" }])] {
        assert_eq!(run(args.clone()).await.unwrap_err().code, "input", "{args}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_environment_is_the_configurations() {
    let (_dir, path) = folder();
    let mut tool = program(&path, "tool", "/usr/bin/env; cat; pwd");
    tool.allow_env = vec!["LEVEL".into()];
    let house = house(tool, None).await;
    let run = async |env: Value| {
        house.once("command", json!({ "program": "tool", "stdin": "from the plan\n", "env": env })).await
    };
    let output = run(json!({ "LEVEL": 3 })).await.unwrap();
    let out = output["stdout"].as_str().unwrap();
    let mut names: Vec<_> =
        out.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name).collect();
    names.retain(|name| !matches!(*name, "PWD" | "_" | "SHLVL" | "OLDPWD"));
    names.sort_unstable();
    assert_eq!(
        names,
        ["BACKSTAY_ATTEMPT", "BACKSTAY_KEY", "BACKSTAY_RUN", "BACKSTAY_STEP", "LEVEL", "PATH"],
        "{out}"
    );
    assert!(out.contains("BACKSTAY_STEP=only") && out.contains("LEVEL=3") && out.contains("from the plan"));
    assert!(out.trim_end().ends_with(&*path.to_string_lossy()));
    for name in ["LD_PRELOAD", "PATH", "BACKSTAY_KEY"] {
        let refused = run(json!({ name: "x" })).await.unwrap_err();
        assert!(refused.message.contains("allow_env"), "{}", refused.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_means_what_the_configuration_says() {
    let (_dir, path) = folder();
    let mut tool = program(&path, "tool", "echo \"it went wrong\" >&2; exit $1");
    tool.allow = vec!["*".into()];
    tool.codes = [("9".to_owned(), Meaning::FailNotApplied)].into();
    let house = house(tool, None).await;
    let run = async |code: u8, more: Value| {
        let mut input = json!({ "program": "tool", "args": [code] });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        house.once("command", input).await
    };
    for (code, retryable, nothing_done) in [(1, false, false), (75, true, false), (9, false, true)] {
        let failed = run(code, json!({})).await.unwrap_err();
        assert_eq!(
            (failed.code.clone(), failed.retryable, not_applied(&failed)),
            (format!("exit_{code}"), retryable, nothing_done)
        );
        assert!(failed.message.ends_with(": it went wrong"), "{}", failed.message);
    }
    assert_eq!(run(3, json!({ "expect": [0, 3] })).await.unwrap()["code"], 3);
    assert!(run(0, json!({ "expect": [3] })).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn json_that_it_writes_can_be_read_by_other_steps() {
    let (_dir, path) = folder();
    let house = house(program(&path, "tool", r#"echo '{"id": "v-7"}'"#), None).await;
    let plan = json!({ "workflow": "reads", "steps": [
        { "name": "make", "activity": "command", "input": { "program": "tool", "json": true }, "nothing_to_undo": "a test" },
        { "name": "say", "activity": "log", "after": ["make"], "nothing_to_undo": "it talks",
          "input": { "text": "made", "data": { "$output": "make/result/id" } } } ] });
    let (run, status) = house.play(plan).await;
    assert_eq!(status, Status::Succeeded);
    assert_eq!(house.outcome(run, "make", false).await.unwrap()["result"], json!({ "id": "v-7" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_writes_is_kept_at_its_end_and_told_by_the_line() {
    let (_dir, path) = folder();
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo the end";
    let house = house(program(&path, "tool", script), None).await;
    let mut plan = single("command", json!({ "program": "tool" }));
    plan["steps"][0]["timeout"] = "30s".into();
    let (run, _) = house.play(plan).await;
    let output = house.outcome(run, "only", false).await.unwrap();
    let out = output["stdout"].as_str().unwrap();
    assert!(out.len() <= 32 << 10 && out.ends_with("the end\n"));
    assert_eq!(output["truncated"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_was_not_run() {
    let (_dir, path) = folder();
    let mut tool = program(&path, "tool", "");
    tool.path = path.join("gone");
    let house = house(tool, None).await;
    let failed = house.once("command", json!({ "program": "tool" })).await.unwrap_err();
    assert_eq!(
        (failed.code.as_str(), failed.retryable, not_applied(&failed)),
        ("command_unstarted", false, true)
    );
}

/// A program that starts another one, and neither ends by being asked.
const STUBBORN: &str = r#"
trap '' TERM
sh -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 0.1; done' &
echo $$ >> pids
while :; do sleep 0.1; done"#;

#[tokio::test(flavor = "multi_thread")]
async fn its_time_is_up_for_all_its_processes() {
    let (_dir, path) = folder();
    let house = house(program(&path, "tool", STUBBORN), None).await;
    let failed = house.once("command", json!({ "program": "tool", "timeout": "700ms" })).await.unwrap_err();
    assert_eq!(
        (failed.code.as_str(), failed.retryable, not_applied(&failed)),
        ("command_timeout", true, false)
    );
    // No waiting: when the attempt has ended, so have they.
    for pid in pids(&path.join("pids"), 2).await {
        assert!(!lives(pid), "{pid}");
    }
}

/// The engine drops the attempt: its own time is up, and nothing of the activity runs any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_dropped_leaves_no_process() {
    let (_dir, path) = folder();
    let house = house(program(&path, "tool", STUBBORN), None).await;
    let mut plan = single("command", json!({ "program": "tool" }));
    plan["steps"][0]["timeout"] = "700ms".into();
    let (run, _) = house.play(plan).await;
    assert_eq!(house.outcome(run, "only", false).await.unwrap_err().code, "timeout");
    let pids = pids(&path.join("pids"), 2).await;
    until("they are gone", || pids.iter().all(|pid| !lives(*pid))).await;
}

/// The node's process ends, and with it everything that could have waited for the program to end by itself.
#[test]
fn a_node_that_ends_leaves_no_process() {
    let (_dir, path) = folder();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tool = program(&path, "tool", STUBBORN);
    let (house, pids) = runtime.block_on(async {
        let house = house(Program { grace: Span::secs(600), ..tool }, None).await;
        house.submit(single("command", json!({ "program": "tool" }))).await;
        let pids = pids(&path.join("pids"), 2).await;
        (house, pids)
    });
    drop(house);
    runtime.shutdown_background();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|pid| lives(*pid)) {
        assert!(std::time::Instant::now() < end, "they still run");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_stops_what_still_runs() {
    let (_dir, path) = folder();
    let house = house(program(&path, "tool", STUBBORN), None).await;
    let plan = json!({ "workflow": "stops", "retry": quick(1), "settle_within": "10s", "steps": [
        { "name": "long", "activity": "command", "input": { "program": "tool" }, "nothing_to_undo": "a test" },
        { "name": "turn", "activity": "fail", "input": { "after": "500ms" }, "nothing_to_undo": "a test" } ] });
    let (run, status) = house.play(plan).await;
    assert_eq!(status, Status::RolledBack);
    assert_eq!(house.outcome(run, "long", false).await.unwrap_err().code, "cancelled");
    for pid in pids(&path.join("pids"), 2).await {
        assert!(!lives(pid), "{pid}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_leaves_running_ends_with_it() {
    let (_dir, path) = folder();
    let script =
        "sh -c 'echo $$ > pids; exec sleep 600' & while ! [ -s pids ]; do sleep 0.05; done; echo done";
    let house = house(program(&path, "tool", script), None).await;
    let output = house.once("command", json!({ "program": "tool" })).await.unwrap();
    assert_eq!(output["stdout"], "done\n", "it is not waited for, though it holds the pipe");
    for pid in pids(&path.join("pids"), 1).await {
        assert!(!lives(pid), "{pid}");
    }
}

/// A script that sees whether another one runs beside it, under the same key.
const ALONE: &str = r#"
mkdir busy-$BACKSTAY_KEY 2>/dev/null || { echo "$BACKSTAY_ATTEMPT" >> beside; exit 1; }
echo $$ >> pids
echo "$BACKSTAY_ATTEMPT" >> runs
while ! [ -e go ]; do sleep 0.05; done
rmdir busy-$BACKSTAY_KEY"#;

/// Its node is gone at once and its program is not: the next attempt waits for it, and then runs alone. The program is
/// made to outlive its group's end as after a SIGKILL of the node: it leaves the group first, and keeps the lock.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_attempt_never_runs_beside_one_that_was_left_behind() {
    for locked in [true, false] {
        let (_dir, path) = folder();
        let locks = path.join("locks");
        let script = format!("setsid -w sh -c '{}'", ALONE.replace('\'', "'\\''"));
        let mut tool = program(&path, "tool", &script);
        tool.timeout = Span::secs(15);
        let mut house = house(tool, locked.then_some(&*locks)).await;
        let node = house.node.take().unwrap();
        let run = {
            let mut plan = single("command", json!({ "program": "tool" }));
            plan["retry"] = quick(1);
            house.submit(plan).await
        };
        let first = pids(&path.join("pids"), 1).await[0];
        node.kill().await;
        let _lives = house.another(Lab::config("c")).await;
        let journaled = async || count(&house.story(run).await, "started only");
        while journaled().await < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if locked {
            // It has begun, and waits; what it waits for is alive.
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(lives(first) && !path.join("beside").exists());
            assert_eq!(std::fs::read_to_string(path.join("runs")).unwrap(), "1\n");
        } else {
            // Without a lock they meet: this test can see it.
            until("they have met", || path.join("beside").exists()).await;
        }
        std::fs::write(path.join("go"), "").unwrap();
        house.lab.settled(run).await.unwrap();
        if locked {
            assert_eq!(
                house.outcome(run, "only", false).await.unwrap()["code"],
                0,
                "{}",
                house.story(run).await
            );
            assert_eq!(std::fs::read_to_string(path.join("runs")).unwrap(), "1\n2\n");
            assert_eq!(std::fs::read_dir(&locks).unwrap().count(), 0, "the lock is taken away");
        }
        until("the first is gone", || !lives(first)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_waits_for_an_earlier_one_says_so() {
    let (_dir, path) = folder();
    let locks = path.join("locks");
    let mut tool = program(&path, "tool", "true");
    tool.timeout = Span::millis(400);
    let mut house = house(tool, Some(&locks)).await;
    drop(house.node.take());
    let run = house.submit(single("command", json!({ "program": "tool" }))).await;
    // Somebody else holds the lock of its key.
    std::fs::create_dir_all(&locks).unwrap();
    let key = backstay_engine::machine::idempotency_key(
        run,
        "only",
        backstay_engine::machine::Direction::Forward,
        0,
    );
    let held = std::fs::File::create(locks.join(key.to_string())).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let _node = house.another(Lab::config("c")).await;
    house.lab.settled(run).await.unwrap();
    let failed = house.outcome(run, "only", false).await.unwrap_err();
    assert_eq!((failed.code.as_str(), failed.retryable), ("command_running", true), "{}", failed.message);
    assert!(!not_applied(&failed), "the earlier one may have done it");
}

/// A program that makes a thing under its key, and one that takes away what was made under another, however often.
#[tokio::test(flavor = "multi_thread")]
async fn an_undo_knows_what_to_undo_whether_it_was_done_or_not() {
    for (fails, made) in [("", true), ("exit 1", true), ("exit 9; ", false)] {
        let (_dir, path) = folder();
        let undo = "rm -f made-$BACKSTAY_UNDONE_KEY; [ $BACKSTAY_ATTEMPT -gt 1 ] || exit 75";
        let script = if made { "touch made-$BACKSTAY_KEY; touch was-made; " } else { "" };
        let script = format!("[ -n \"$BACKSTAY_UNDONE_KEY\" ] && {{ {undo}; exit 0; }}; {script}{fails}");
        let house = house(program(&path, "tool", &script), None).await;
        let plan = json!({ "workflow": "by-key", "retry": quick(2), "undo_retry": quick(4), "steps": [
            { "name": "make", "activity": "command", "input": { "program": "tool" },
              "undo": { "activity": "command", "input": { "program": "tool" } } },
            { "name": "turn", "activity": "fail", "after": ["make"], "nothing_to_undo": "a test" } ] });
        let (run, status) = house.play(plan).await;
        let story = house.story(run).await;
        assert_eq!(status, Status::RolledBack, "{story}");
        assert_eq!(count(&story, "started undo make"), 2, "{story}");
        let there = |start: &str| {
            let names = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
            names.filter(|name| name.to_string_lossy().starts_with(start)).count()
        };
        assert_eq!((there("made-"), there("was-made")), (0, usize::from(made)));
    }
}

#[test]
fn settings_that_cannot_be_right_are_refused() {
    let (_dir, path) = folder();
    let refuse = |change: fn(&mut Program)| {
        let mut tool = program(&path, "tool", "");
        change(&mut tool);
        let programs = [("tool".to_owned(), tool)].into();
        Command::new(CommandSettings { programs, locks: None }, Arc::new(NoSecrets)).err().unwrap()
    };
    assert!(refuse(|tool| tool.path = "sh".into()).contains("no absolute path"));
    assert!(refuse(|tool| tool.codes = [("300".to_owned(), Meaning::Retry)].into()).contains("no exit code"));
    assert!(refuse(|tool| tool.allow_env = vec!["A=B".into()]).contains("nobody can set"));
    assert!(
        refuse(|tool| tool.env = [("BACKSTAY_KEY".to_owned(), "x".to_owned())].into())
            .contains("nobody can set")
    );
    assert!(refuse(|tool| tool.allow_env = vec!["TRACEPARENT".into()]).contains("nobody can set"));
}
