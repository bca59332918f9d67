//! The process that begins the last part, and is killed in its middle.

use std::os::unix::process::ExitStatusExt;

use crate::interrupt::Interrupt;
use crate::tree::Screen;
use crate::trouble::Trouble;

/// Where the process is killed that begins the last part.
const KILLED_AFTER: &str = "attach-disk-0";

/// Has another process begin the last part. It kills itself in the middle.
pub(super) async fn over_the_last(interrupt: &Interrupt) -> Result<(), Trouble> {
    let mut screen = Screen::new();
    screen.say(
        "\nThe third run is begun by a process of its own, which kills itself (SIGKILL) once the first disk is attached.",
    );
    let no_process = |error| Trouble::failed(format!("A process for the third run cannot be had: {error}."));
    // In a group of its own: what a terminal sends it gets from us, and once.
    let mut child = tokio::process::Command::new(std::env::current_exe().map_err(no_process)?)
        .args(std::env::args_os().skip(1))
        .args(["--kill-after", KILLED_AFTER])
        .stdin(std::process::Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(no_process)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    let (ended, asked) = tokio::select! {
        ended = child.wait() => (ended, None),
        trouble = interrupt.asked() => {
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            }
            (child.wait().await, Some(trouble))
        }
    };
    let status = ended.map_err(no_process)?;
    match asked {
        Some(trouble) => Err(trouble),
        None if status.signal() == Some(rustix::process::Signal::KILL.as_raw()) => {
            screen.say("\nThat process is gone, as after a power cut. This one opens what it has left:");
            Ok(())
        }
        None => Err(Trouble::failed(format!(
            "The process that was to be killed over the third run ended by itself ({status})."
        ))),
    }
}
