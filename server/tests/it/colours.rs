//! Colours are for terminals that have them and for people who want them; what programs read has none.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::served::Served;
use crate::support::{Place, ran};

/// A terminal: the side that shows, and the side that is written to.
fn terminal() -> (OwnedFd, OwnedFd) {
    let shows = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&shows).unwrap();
    unlockpt(&shows).unwrap();
    let name = ptsname(&shows, Vec::new()).unwrap();
    let written = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&written, size).unwrap();
    (shows, written)
}

/// All that it shows, until nobody can write to it any more; each time there is more, somebody may look.
async fn shown(terminal: OwnedFd, mut look: impl FnMut(&str) + Send + 'static) -> String {
    let reading = tokio::task::spawn_blocking(move || {
        let (mut terminal, mut all) = (std::fs::File::from(terminal), Vec::new());
        let mut some = [0; 4096];
        // Linux calls it an error when the other side is closed.
        while let Ok(n @ 1..) = terminal.read(&mut some) {
            all.extend_from_slice(&some[..n]);
            look(&String::from_utf8_lossy(&all));
        }
        String::from_utf8(all).unwrap()
    });
    tokio::time::timeout(std::time::Duration::from_secs(50), reading).await.unwrap().unwrap()
}

/// What a command shows whose stdout is a terminal, and its exit code.
async fn on_terminal(mut command: Command) -> (String, Option<i32>) {
    let (shows, written) = terminal();
    let mut child = command.stdout(Stdio::from(written)).stderr(Stdio::null()).spawn().unwrap();
    // It holds the side that is written to.
    drop(command);
    let all = shown(shows, |_| {}).await;
    (all, child.wait().await.unwrap().code())
}

/// Whether it changes colour or weight.
fn is_coloured(text: &str) -> bool {
    text.split("\x1b[").skip(1).any(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';');
        end.is_some_and(|end| rest[end..].starts_with('m'))
    })
}

const ABLE: [(&str, &str); 2] = [("TERM", "xterm-256color"), ("NO_COLOR", "")];

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_coloured_on_a_terminal_and_nowhere_else() {
    let api = Served::start().await;
    let step = json!({ "name": "say", "activity": "log", "input": { "text": "hello" }, "nothing_to_undo": "it talks" });
    let plan = api.place.file("plan.json", &json!({ "workflow": "greets", "steps": [step] }).to_string());
    let plan = plan.to_str().unwrap();
    let run = api.cli(&["run", "start", "--plan", plan]).await.exits(0).out;
    let run = run.trim();
    api.until(run, "succeeded").await;
    let command = |arguments: &[&str], settings: &[(&str, &str)]| {
        let mut command = api.place.command(arguments);
        command.env("BACKSTAY_SERVER", &api.base).envs(ABLE).envs(settings.iter().copied());
        command
    };
    let watch = ["run", "watch", run];

    let (seen, code) = on_terminal(command(&watch, &[])).await;
    assert!(code == Some(0) && seen.contains("say") && is_coloured(&seen), "{code:?} {seen:?}");
    let piped = ran(&mut command(&watch, &[])).await.exits(0).says("say");
    assert!(!piped.out.contains('\x1b') && !piped.err.contains('\x1b'), "{piped:?}");
    let (seen, _) = on_terminal(command(&watch, &[("NO_COLOR", "1")])).await;
    assert!(seen.contains("say") && !is_coloured(&seen), "{seen:?}");
    // It cannot be drawn on either.
    let (seen, _) = on_terminal(command(&watch, &[("TERM", "dumb")])).await;
    assert!(seen.contains("say") && !seen.contains('\x1b'), "{seen:?}");

    for arguments in [
        &["run", "watch", run, "-o", "json"][..],
        &["run", "get", run, "-o", "json"],
        &["run", "list", "-o", "json"],
        &["run", "steps", run, "-o", "json"],
        &["run", "explain", run, "-o", "json"],
        &["run", "list", "-o", "name"],
        &["run", "start", "--wait", "-o", "json", "--plan", plan],
    ] {
        let (seen, code) = on_terminal(command(arguments, &[])).await;
        assert!(
            code == Some(0) && !seen.is_empty() && !seen.contains('\x1b'),
            "{arguments:?}: {code:?} {seen:?}"
        );
        let mut values = serde_json::Deserializer::from_str(&seen).into_iter::<Value>();
        assert!(arguments.contains(&"name") || values.all(|value| value.is_ok()), "{arguments:?}: {seen:?}");
    }
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_coloured_on_a_terminal_and_json_never_is() {
    let place = Place::with_url().await;
    place.run(&["db", "migrate"]).await.exits(0);
    let logs = async |settings: &[(&str, &str)]| {
        let (shows, written) = terminal();
        let mut command = place.command(&["node", "--name", "n1"]);
        command.envs(ABLE).envs(settings.iter().copied()).stderr(Stdio::from(written)).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        drop(command);
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        let mut asked = false;
        let all = shown(shows, move |seen| {
            // Once: a second signal would end it at once.
            if !asked && seen.contains("the node is ready") {
                asked = true;
                kill_process(pid, Signal::TERM).unwrap();
            }
        });
        let all = all.await;
        assert_eq!(child.wait().await.unwrap().code(), Some(0), "{all}");
        all
    };
    let able = logs(&[]).await;
    assert!(is_coloured(&able), "{able:?}");
    for unwanted in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = logs(&[unwanted]).await;
        assert!(!plain.contains('\x1b'), "{unwanted:?}: {plain:?}");
    }
    let in_json = logs(&[("BACKSTAY_LOG__FORMAT", "json")]).await;
    assert!(!in_json.contains('\x1b'), "{in_json:?}");
    for line in in_json.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "{line:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn help_is_coloured_on_a_terminal_and_nowhere_else() {
    let place = Place::embedded();
    let help = |settings: &[(&str, &str)]| {
        let mut command = place.command(&["run", "start", "--help"]);
        command.envs(ABLE).envs(settings.iter().copied());
        command
    };
    let (seen, _) = on_terminal(help(&[])).await;
    assert!(is_coloured(&seen), "{seen:?}");
    for unwanted in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        for elsewhere in [("CI", "true"), ("CLICOLOR", "1")] {
            let (plain, _) = on_terminal(help(&[unwanted, elsewhere])).await;
            assert!(!plain.contains('\x1b'), "{unwanted:?}, {elsewhere:?}: {plain:?}");
        }
    }
    let piped = ran(&mut help(&[])).await.exits(0);
    assert!(!piped.out.contains('\x1b'), "{piped:?}");
}
