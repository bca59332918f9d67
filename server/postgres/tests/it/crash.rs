//! Every way to lose a process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use backstay_postgres::{Postgres, Settings, Started};
use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;

use crate::support::{
    Holder, READ_THE_MARK, Scratch, ask, children_of, connect, is_running, kill, leave_a_mark, processes_of,
    until,
};

/// It does not wait for sessions to end either.
#[tokio::test]
async fn the_server_ends_when_its_holder_is_killed() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    let _open_session = connect(&holder.report.url).await;
    holder.kill();
    until("the server and its guard are gone", || processes_of(scratch.path()).is_empty()).await;
    assert!(!is_running(holder.report.server));
}

#[tokio::test]
async fn the_server_ends_when_its_holder_panics() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "panics").await;
    holder.wait();
    until("the server and its guard are gone", || processes_of(scratch.path()).is_empty()).await;
}

/// Ctrl-C must not reach the server itself, or it would end before the program had finished its work; and what follows
/// is a proper shutdown.
#[tokio::test]
async fn the_server_is_shut_down_properly_after_ctrl_c() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    let group =
        |pid: u32| rustix::process::getpgid(rustix::process::Pid::from_raw(pid.cast_signed())).unwrap();
    assert_ne!(group(holder.report.server), group(holder.pid()));
    holder.press_ctrl_c();
    until("the server and its guard are gone", || processes_of(scratch.path()).is_empty()).await;

    let next = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_eq!(next.how(), Started::Restarted);
    next.stop().await.unwrap();
}

/// The previous server is still shutting down, with a session open: the new life waits for it.
#[tokio::test]
async fn a_start_right_after_the_kill_finds_all_committed_work() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    leave_a_mark(&holder.report.url).await;
    let _open_session = connect(&holder.report.url).await;
    holder.kill();

    let next = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_ne!(next.how(), Started::Created);
    assert_ne!(next.pid(), holder.report.server);
    assert_eq!(ask(&next.url("postgres"), READ_THE_MARK).await, "still here");
    next.stop().await.unwrap();
}

/// A power cut, as far as processes go; and then the old numbers belong to an innocent process of the same account.
#[tokio::test]
async fn a_start_recovers_after_everything_was_killed_and_the_pid_was_reused() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    leave_a_mark(&holder.report.url).await;
    kill_guards(&scratch, &holder);
    kill(holder.report.server, Signal::KILL);
    holder.kill();
    until("everything is gone", || processes_of(scratch.path()).is_empty()).await;

    let pid_file = scratch.data().join("data/postmaster.pid");
    let owner = fs::metadata(&pid_file).unwrap();
    let mut innocent = Command::new("sleep").arg("60").uid(owner.uid()).gid(owner.gid()).spawn().unwrap();
    for path in [&pid_file, &scratch.data().join(".s.PGSQL.5432.lock")] {
        let text = fs::read_to_string(path).unwrap();
        let (_, rest) = text.split_once('\n').unwrap();
        fs::write(path, format!("{}\n{rest}", innocent.id())).unwrap();
    }

    let next = Postgres::start(Settings::new(scratch.data())).await;
    let is_innocent_alive = innocent.try_wait().unwrap().is_none();
    innocent.kill().unwrap();
    innocent.wait().unwrap();
    let next = next.unwrap();
    assert!(is_innocent_alive, "an innocent process was killed");
    assert_eq!(next.how(), Started::Recovered);
    assert_eq!(ask(&next.url("postgres"), READ_THE_MARK).await, "still here");
    next.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_lost_its_guard_is_replaced() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    leave_a_mark(&holder.report.url).await;
    kill_guards(&scratch, &holder);
    holder.kill();
    assert!(is_running(holder.report.server), "nothing was left to end it");

    let next = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_eq!(next.how(), Started::Recovered);
    assert!(!is_running(holder.report.server));
    assert_eq!(ask(&next.url("postgres"), READ_THE_MARK).await, "still here");
    next.stop().await.unwrap();
}

/// A backend that outlives its server holds the shared memory; a new server beside it would ruin the data.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_backend_that_outlived_its_server_is_ended_first() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    let backend = children_of(holder.report.server)[0];
    kill(backend, Signal::STOP);
    kill(holder.report.server, Signal::KILL);
    holder.kill();
    assert!(is_running(backend));

    let next = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_eq!(next.how(), Started::Recovered);
    assert!(!is_running(backend));
    next.stop().await.unwrap();
}

/// A service manager sends SIGTERM to all processes at once. The guard outlives it: the program may need its database
/// for its last words.
#[tokio::test]
async fn a_guard_that_is_told_to_terminate_goes_on_guarding() {
    let scratch = Scratch::with_cluster().await;
    let mut holder = Holder::start(&scratch, "holds").await;
    for guard in guards(&scratch, &holder) {
        kill(guard, Signal::TERM);
    }
    assert_eq!(ask(&holder.report.url, "show fsync").await, "on");
    holder.kill();
    until("the server and its guard are gone", || processes_of(scratch.path()).is_empty()).await;
}

#[tokio::test]
async fn a_killed_creation_leaves_nothing_half_made() {
    let scratch = Scratch::new();
    let mut holder = Holder::spawn(&scratch, "holds", &[]);
    until("initdb has begun", || unfinished(&scratch.data()).is_some()).await;
    holder.kill();
    assert!(!scratch.data().join("data").exists(), "the kill came too late to mean anything");
    // initdb tidies up when it is told to end. This is what it leaves when it was killed, too.
    fs::create_dir(scratch.data().join("data.new-killed")).unwrap();

    let next = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_eq!(next.how(), Started::Created);
    assert_eq!(unfinished(&scratch.data()), None);
    next.stop().await.unwrap();
}

#[tokio::test]
async fn a_shared_test_cluster_is_removed_when_its_process_is_killed() {
    let scratch = Scratch::new();
    let mut holder = Holder::spawn(&scratch, "cluster", &[("TEST_DATABASE_URL", "")]);
    let report = holder.read_report(&scratch).await;
    let folder = PgConnectOptions::from_str(&report.url).unwrap().get_socket().unwrap().clone();
    assert!(folder.join("data").exists());
    holder.kill();
    until("the data is gone", || !folder.exists()).await;
    until("the processes are gone", || processes_of(&folder).is_empty()).await;
}

/// What remains when the guard was killed, too.
#[tokio::test]
async fn a_forgotten_throwaway_is_removed_by_the_next_cluster() {
    let scratch = Scratch::new();
    let forgotten = scratch.path().join("backstay-throwaway-forgotten");
    let young = scratch.path().join("backstay-throwaway-young");
    for folder in [&forgotten, &young] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("backstay.lock"), "").unwrap();
    }
    let an_hour_ago = SystemTime::now() - Duration::from_hours(1);
    fs::File::open(forgotten.join("backstay.lock")).unwrap().set_modified(an_hour_ago).unwrap();

    let temporary = scratch.path().to_str().unwrap();
    let mut holder = Holder::spawn(&scratch, "cluster", &[("TEST_DATABASE_URL", ""), ("TMPDIR", temporary)]);
    holder.read_report(&scratch).await;
    assert!(!forgotten.exists());
    assert!(young.exists(), "its owner may be about to take the lock");
    holder.kill();
    until("the processes are gone", || processes_of(scratch.path()).is_empty()).await;
}

fn unfinished(data: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(data).ok()?;
    let is_unfinished = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("data.new");
    entries.flatten().map(|entry| entry.path()).find(is_unfinished)
}

fn kill_guards(scratch: &Scratch, holder: &Holder) {
    for guard in guards(scratch, holder) {
        kill(guard, Signal::KILL);
    }
}

/// The guard and its watcher, but neither the server nor the holder.
fn guards(scratch: &Scratch, holder: &Holder) -> Vec<u32> {
    let others = [holder.report.server, holder.pid()];
    let guards: Vec<u32> =
        processes_of(scratch.path()).into_iter().filter(|pid| !others.contains(pid)).collect();
    assert_eq!(guards.len(), 2, "the guard and its watcher");
    guards
}
