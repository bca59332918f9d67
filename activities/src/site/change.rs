//! The protocol of every change.
//!
//! ```text
//!   what an earlier attempt began ──> wait for its end ─┐
//!                                                       v
//!                          ┌──────────────────────── look ── it is as wanted ──────> done
//!                          │ nothing is at work         │ └─ it never can be ──────> failed
//!                          v                            └─── a job is at work ──> wait for it, look again
//!        the id of the job is saved, then the call
//!                          │
//!                          v
//!                  wait for its end ──> look, until it shows or the time is over
//! ```
//!
//! Whether it is done is decided by looking alone. A job that succeeded whose effect is not there, and one that failed
//! whose effect is, are what they look like. What an operation of the daemon says counts no more: it may have died with the
//! daemon, and then nobody ever ends it.

use std::future::Future;
use std::time::Duration;

use backstay_engine::machine::{Applied, Json};
use backstay_engine::{Context, Failure, Probe, Span};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::cloudstack::Started;
use crate::daemon::{ListOperations, Operation, OperationStatus};
use crate::remote::{Kind, Trouble};

use super::Site;

/// What a look found.
pub(super) enum Found<T> {
    /// It is as wanted.
    Done(T),
    /// It is not, and nothing is at work.
    Todo,
    /// This job of CloudStack is at work on it.
    AtWork(String),
    /// It is on its way, and no job says so.
    Moving(String),
}

impl<T> Found<T> {
    /// The same, as the answer of a probe. `done` says what it means for it that things are as wanted:
    /// [`Probe::Present`], or [`Probe::Partial`] where more belongs to it than a look can see.
    pub(super) fn probe<U>(self, done: impl FnOnce(T) -> Probe<U>) -> Probe<U> {
        match self {
            Self::Done(it) => done(it),
            Self::Todo => Probe::Absent,
            Self::AtWork(job) => Probe::Unknown(format!("the job {job} of CloudStack is at work on it")),
            Self::Moving(state) => Probe::Unknown(format!("it is {state}")),
        }
    }
}

/// What was begun over there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Begun {
    /// A job of CloudStack, by its id, or by the one that we chose for it.
    Job(String),
    /// An operation of the Volume Daemon.
    Operation(String),
}

impl From<Started> for Begun {
    fn from(started: Started) -> Self {
        Self::Job(started.jobid)
    }
}

impl From<Operation> for Begun {
    fn from(operation: Operation) -> Self {
        Self::Operation(operation.id)
    }
}

/// Why a change was not begun, or perhaps was.
pub(super) enum NotBegun {
    /// It must not be, as things are at this moment. Nothing was called.
    Guarded(Failure),
    /// It was called for, and this came of it.
    Called(Trouble),
}

impl From<Failure> for NotBegun {
    fn from(failure: Failure) -> Self {
        Self::Guarded(failure)
    }
}

impl From<Trouble> for NotBegun {
    fn from(trouble: Trouble) -> Self {
        Self::Called(trouble)
    }
}

/// What is saved before the call, and after it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Saved<S = ()> {
    /// What was begun last, or is about to be.
    pub begun: Option<Begun>,
    /// How many calls were made.
    pub calls: u32,
    /// What else has to outlive us.
    pub more: S,
}

/// A change, in words, and how long its job may take.
pub(super) struct Change<'a> {
    pub what: &'a str,
    /// Nothing: as long as any job.
    pub within: Option<Span>,
}

impl<'a> From<&'a str> for Change<'a> {
    fn from(what: &'a str) -> Self {
        Self { what, within: None }
    }
}

impl<'a> From<&'a String> for Change<'a> {
    fn from(what: &'a String) -> Self {
        Self { what, within: None }
    }
}

/// The code of what others are at work on, or what is on its way and does not arrive.
pub(super) const STILL_MOVING: &str = "still_moving";

/// For an undo: what the step left in the journal. What cannot be read is no sign that nothing was done: then a person has
/// to look.
pub(super) fn left<T: DeserializeOwned>(what: &str, text: Option<&Json>) -> Result<Option<T>, Failure> {
    let Some(text) = text else { return Ok(None) };
    serde_json::from_str(text.as_str()).map_err(|error| {
        let message = format!(
            "{what} cannot be read ({error}), so it is not known what has to be undone. Look how things are, mend them by \
             hand, and skip this undo"
        );
        Failure::needs_operator(message).not_applied()
    })
}

impl Site {
    /// Brings something about. `look` tells how things are, and fails where they never can become as wanted; `call` begins
    /// the change, under the id for a job of CloudStack that it is given. Whatever forbids it is asked in `call`, right before.
    pub(super) async fn bring_about<T, S, B, E, Looking, Calling>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        what: impl Into<Change<'_>>,
        mut look: impl FnMut() -> Looking,
        mut call: impl FnMut(Uuid) -> Calling,
    ) -> Result<T, Failure>
    where
        S: Serialize + Sync,
        B: Into<Begun>,
        E: Into<NotBegun>,
        Looking: Future<Output = Result<Found<T>, Failure>>,
        Calling: Future<Output = Result<B, E>>,
    {
        let Change { what, within } = what.into();
        let mut trouble = None;
        if let Some(begun) = saved.begun.clone() {
            trouble = self.end_of(context, &begun, within, &mut look).await?;
        }
        let mut called = false;
        // Others are at work on it, one after the other perhaps: for as long as a job may take.
        let patience = within.unwrap_or(self.cloudstack.settings().job_deadline).0;
        let mut others = Instant::now() + patience;
        loop {
            match look().await? {
                Found::Done(it) => return Ok(it),
                Found::AtWork(job) if Instant::now() >= others => {
                    let message =
                        format!("{what}: the job {job} of CloudStack is at work on it, and does not end");
                    return Err(Failure::retryable(STILL_MOVING, message));
                }
                Found::Moving(state) if Instant::now() >= others => {
                    let message = format!("{what}: it is {state}, and stays so");
                    return Err(Failure::retryable(STILL_MOVING, message));
                }
                Found::AtWork(job) => {
                    context.progress(50.0, format!("{what}: a job of CloudStack is at work"));
                    trouble = self.end_of(context, &Begun::Job(job), within, &mut look).await?.or(trouble);
                    // Its row may say so a moment longer than the job lasts.
                    self.breathe(context, what).await?;
                    continue;
                }
                Found::Moving(state) => {
                    context.progress(50.0, format!("{what}: it is {state}"));
                    self.breathe(context, what).await?;
                    continue;
                }
                Found::Todo if called => {
                    // It is over, and what it was to do is not there. Not yet, perhaps.
                    match self.until_it_shows(context, what, trouble.is_some(), &mut look).await? {
                        Some(it) => return Ok(it),
                        None => break,
                    }
                }
                Found::Todo => {}
            }
            called = true;
            let planned =
                Uuid::new_v5(&context.key(), format!("{} {}", context.attempt(), saved.calls).as_bytes());
            saved.calls += 1;
            saved.begun = Some(Begun::Job(planned.to_string()));
            context.save(saved).await?;
            context.progress(20.0, what);
            match call(planned).await.map_err(Into::into) {
                Ok(begun) => {
                    let begun = begun.into();
                    if saved.begun.as_ref() != Some(&begun) {
                        saved.begun = Some(begun.clone());
                        context.save(saved).await?;
                    }
                    trouble = self.end_of(context, &begun, within, &mut look).await?;
                    others = Instant::now() + patience;
                }
                Err(NotBegun::Guarded(failure)) => return Err(failure),
                // Nothing left this machine, or it was refused: nothing can come of it.
                Err(NotBegun::Called(refused)) if refused.applied() == Applied::No => {
                    return Err(refused.into());
                }
                // The answer is lost. If the job is known by the id that we chose, it was begun.
                Err(NotBegun::Called(lost)) => {
                    trouble = Some(lost);
                    if let Ok(Some(_)) = self.cloudstack.job(&planned.to_string()).await {
                        let begun = Begun::Job(planned.to_string());
                        trouble = self.end_of(context, &begun, within, &mut look).await?;
                    }
                }
            }
        }
        Err(match trouble {
            // What was asked for was right when it was asked, and is not there: nothing speaks against another try.
            Some(trouble) if trouble.kind() == Kind::Look => {
                Failure::retryable("not_done", format!("{what}: {trouble}"))
            }
            Some(trouble) => trouble.into(),
            None => Failure::retryable(
                "not_seen",
                format!("{what}: it was answered as done, but it does not show"),
            ),
        })
    }

    /// Waits for the end of what was begun, or until what it was to do is there. How it ended is only asked for the words of
    /// an error.
    async fn end_of<T, Looking>(
        &self,
        context: &Context,
        begun: &Begun,
        within: Option<Span>,
        look: &mut impl FnMut() -> Looking,
    ) -> Result<Option<Trouble>, Failure>
    where
        Looking: Future<Output = Result<Found<T>, Failure>>,
    {
        match begun {
            Begun::Job(job) => match self.cloudstack.finish(job, within, context.cancelled()).await {
                Ok(_) => Ok(None),
                // It may go on over there: whoever comes next finds its id.
                Err(trouble) if matches!(trouble.kind(), Kind::Late | Kind::Cancelled | Kind::Down) => {
                    Err(trouble.into())
                }
                Err(trouble) => Ok(Some(trouble)),
            },
            Begun::Operation(id) => self.end_of_operation(context, id, look).await,
        }
    }

    /// Waits for what the daemon was asked to do with a volume, by whomever, and does still: it may come after all that is
    /// looked at now. Asked before an undo, as the step may have been cut off over its call, and after an answer that was lost.
    pub(super) async fn at_rest<S>(
        &self,
        context: &Context,
        saved: &Saved<S>,
        volume: &str,
    ) -> Result<(), Failure> {
        let is_lost = matches!(saved.begun, Some(Begun::Job(_)));
        let is_new = saved.begun.is_none() && saved.calls == 0 && context.undone().is_some();
        if !is_lost && !is_new {
            return Ok(());
        }
        // Once CloudStack has been asked the volume itself shows it; one that died with the daemon never ends.
        let end = Instant::now() + self.settings.settle.0;
        let which = ListOperations { volume: Some(volume.to_owned()), ..ListOperations::default() };
        loop {
            let all = self.daemon.list_operations(&which).await?;
            let is_under_way = |one: &&Operation| {
                matches!(one.status, OperationStatus::Pending | OperationStatus::Executing)
            };
            let Some(one) = all.iter().find(is_under_way) else { return Ok(()) };
            if Instant::now() >= end {
                tracing::warn!(
                    operation = one.id,
                    volume,
                    "an operation does not end; it may have died with the daemon"
                );
                return Ok(());
            }
            let what = format!("waiting for the operation {} of the Volume Daemon", one.id);
            context.progress(10.0, &what);
            self.breathe_for(context, &what, self.daemon.settings().poll.0).await?;
        }
    }

    async fn end_of_operation<T, Looking>(
        &self,
        context: &Context,
        id: &str,
        look: &mut impl FnMut() -> Looking,
    ) -> Result<Option<Trouble>, Failure>
    where
        Looking: Future<Output = Result<Found<T>, Failure>>,
    {
        let (begun, settings) = (Instant::now(), self.daemon.settings());
        let deadline = begun + settings.attach_deadline.0.max(settings.detach_deadline.0);
        let mut there_since = None;
        loop {
            match self.daemon.operation(id).await {
                Ok(Some(operation)) => match operation.status {
                    OperationStatus::Completed => return Ok(None),
                    OperationStatus::Failed | OperationStatus::Cancelled => {
                        let text = operation.error.unwrap_or_else(|| format!("its operation {id} failed"));
                        return Ok(Some(Trouble::new("Volume Daemon", Kind::Look, text)));
                    }
                    OperationStatus::Pending | OperationStatus::Executing => {}
                },
                Ok(None) => {
                    let text =
                        format!("it does not have the operation {id}, which says nothing about what it did");
                    return Ok(Some(Trouble::new("Volume Daemon", Kind::Look, text)));
                }
                // It cannot be asked at this moment; CloudStack can.
                Err(trouble) if trouble.kind().is_retryable() => {
                    tracing::debug!(%trouble, operation = id, "the Volume Daemon does not tell how it goes");
                }
                Err(trouble) => return Err(trouble.into()),
            }
            // An operation that died with the daemon never ends, but its effect may be there.
            if let Found::Done(_) = look().await? {
                let since = *there_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= self.settings.settle.0 {
                    return Ok(None);
                }
            }
            if Instant::now() >= deadline {
                let text = format!("its operation {id} does not end; it may have died with the daemon");
                return Ok(Some(Trouble::new("Volume Daemon", Kind::Late, text)));
            }
            self.breathe_for(context, "waiting for the Volume Daemon", settings.poll.0).await?;
        }
    }

    /// Looks until what was done shows: lists are old for a moment, and states change behind the end of a job. What is said
    /// to have failed is given a shorter time.
    async fn until_it_shows<T, Looking>(
        &self,
        context: &Context,
        what: &str,
        failed: bool,
        look: &mut impl FnMut() -> Looking,
    ) -> Result<Option<T>, Failure>
    where
        Looking: Future<Output = Result<Found<T>, Failure>>,
    {
        let patience = if failed { self.settings.settle.0 / 10 } else { self.settings.settle.0 };
        let end = Instant::now() + patience;
        loop {
            if let Found::Done(it) = look().await? {
                return Ok(Some(it));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            self.breathe(context, what).await?;
        }
    }

    /// One pause, unless this attempt should stop.
    pub(super) async fn breathe(&self, context: &Context, what: &str) -> Result<(), Failure> {
        self.breathe_for(context, what, self.cloudstack.settings().poll_first.0).await
    }

    pub(super) async fn breathe_for(
        &self,
        context: &Context,
        what: &str,
        pause: Duration,
    ) -> Result<(), Failure> {
        tokio::select! {
            biased;
            () = context.cancelled() => Err(Failure::retryable("cancelled", format!("{what}; it was asked to stop"))),
            () = tokio::time::sleep(pause) => Ok(()),
        }
    }
}
