//! The processes of one attempt. They are a group of their own, and end together: when the program ends, when its time is
//! up, when the attempt is cancelled, and when the attempt is simply dropped.

use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;

use super::LOOK_AGAIN;
use super::lock::Lock;

/// A program and everything that it starts, as far as that stays in its group.
pub(crate) struct Group {
    /// Gone once it is over.
    members: Option<Members>,
}

struct Members {
    child: Child,
    leader: Pid,
    grace: Duration,
    over: bool,
}

impl Group {
    /// Starts it. The locks are handed to it, so they are held until the last of its processes is gone.
    pub(crate) fn spawn(command: &mut Command, locks: &[Lock], grace: Duration) -> std::io::Result<Self> {
        command.process_group(0);
        let child = Lock::hand_to(locks, || command.spawn())?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let leader = pid.ok_or_else(|| std::io::Error::other("it ended before it had begun"))?;
        Ok(Self { members: Some(Members { child, leader, grace, over: false }) })
    }

    /// The number of the group.
    pub(crate) fn number(&self) -> Option<Pid> {
        self.members.as_ref().map(|members| members.leader)
    }

    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.members.as_mut()?.child.stdin.take()
    }

    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.members.as_mut()?.child.stdout.take()
    }

    pub(crate) fn stderr(&mut self) -> Option<ChildStderr> {
        self.members.as_mut()?.child.stderr.take()
    }

    /// Waits for the program itself; others of its group may go on.
    pub(crate) async fn leader_ended(&mut self) -> std::io::Result<ExitStatus> {
        match &mut self.members {
            Some(members) => members.child.wait().await,
            None => Err(std::io::Error::other("it is over")),
        }
    }

    /// Ends all of them: asks, waits a little, kills. Dropped half way, it goes on by itself.
    pub(crate) async fn end(&mut self) {
        if let Some(members) = self.members.take() {
            // In a task of its own: whoever waits here may be dropped, and somebody has to kill.
            let _ = tokio::spawn(members.end()).await;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let (Some(members), Ok(runtime)) = (self.members.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(members.end());
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // The process ends before it could wait for them any longer.
        if !self.over {
            let _ = kill_process_group(self.leader, Signal::KILL);
        }
    }
}

impl Members {
    async fn end(mut self) {
        let _ = kill_process_group(self.leader, Signal::TERM);
        let end = Instant::now() + self.grace;
        // A group is gone when nobody can be signalled in it; the leader counts until it has been waited for.
        while self.is_there() && Instant::now() < end {
            let _ = tokio::time::timeout(LOOK_AGAIN, self.child.wait()).await;
            if self.child.id().is_none() && self.is_there() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
        if self.is_there() {
            let _ = kill_process_group(self.leader, Signal::KILL);
        }
        let _ = self.child.wait().await;
        self.over = true;
    }

    fn is_there(&self) -> bool {
        test_kill_process_group(self.leader).is_ok()
    }
}
