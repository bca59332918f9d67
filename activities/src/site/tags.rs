//! Notes on things over there, for whoever finds them without us.

use std::collections::BTreeMap;
use std::future::Future;

use backstay_engine::{Context, Failure};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use super::Site;
use super::change::{Begun, Saved};
use crate::cloudstack::Started;
use crate::remote::{Kind, Trouble};

impl Site {
    /// Puts a tag on something, in place of one with the same key.
    pub(super) async fn tag<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        (kind, id): (&str, &str),
        (key, value): (&str, &str),
    ) -> Result<(), Failure> {
        let wanted = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let mut trouble = None;
        let end = self.patience();
        for turn in 0.. {
            match self.tag_of(kind, id, key).await? {
                Some(is) if is == value => return Ok(()),
                _ if turn > 0 && Instant::now() >= end => break,
                // CloudStack does not replace one.
                Some(_) => {
                    let call =
                        |job| async move { self.cloudstack.delete_tags(kind, id, &[key], Some(job)).await };
                    trouble =
                        self.change_tag(context, saved, &format!("untag {id} {key} {turn}"), call).await?;
                }
                None => {}
            }
            let call = |job| self.cloudstack.create_tags(kind, id, &wanted, Some(job));
            let what = format!("tag {id} {key} {turn}");
            trouble = self.change_tag(context, saved, &what, call).await?.or(trouble);
            if trouble.is_some() || turn > 0 {
                // What was listed may be what was.
                self.breathe(context, "looking at a tag again").await?;
            }
        }
        Err(not_seen(trouble, format!("the tag {key} of {kind} {id} does not show")))
    }

    /// Takes a tag off something.
    pub(super) async fn untag<S: Serialize + Sync>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        (kind, id): (&str, &str),
        key: &str,
    ) -> Result<(), Failure> {
        let mut trouble = None;
        let end = self.patience();
        for turn in 0.. {
            if self.tag_of(kind, id, key).await?.is_none() {
                return Ok(());
            }
            if turn > 0 && Instant::now() >= end {
                break;
            }
            let call = |job| async move { self.cloudstack.delete_tags(kind, id, &[key], Some(job)).await };
            trouble = self.change_tag(context, saved, &format!("untag {id} {key} {turn}"), call).await?;
            if trouble.is_some() || turn > 0 {
                self.breathe(context, "looking at a tag again").await?;
            }
        }
        Err(not_seen(trouble, format!("the tag {key} of {kind} {id} does not go")))
    }

    /// What is lost once may be lost again, but not for ever.
    fn patience(&self) -> Instant {
        Instant::now() + self.settings.settle.0
    }

    async fn tag_of(&self, kind: &str, id: &str, key: &str) -> Result<Option<String>, Failure> {
        let tags = self.cloudstack.list_tags(kind, id).await?;
        Ok(tags.into_iter().find(|tag| tag.key == key).map(|tag| tag.value.unwrap_or_default()))
    }

    /// One call, to its end. What is there afterwards is for a look to say.
    async fn change_tag<S, Calling>(
        &self,
        context: &Context,
        saved: &mut Saved<S>,
        what: &str,
        call: impl FnOnce(Uuid) -> Calling,
    ) -> Result<Option<Trouble>, Failure>
    where
        S: Serialize + Sync,
        Calling: Future<Output = Result<Started, Trouble>>,
    {
        let planned = Uuid::new_v5(&context.key(), format!("{what} {}", context.attempt()).as_bytes());
        saved.begun = Some(Begun::Job(planned.to_string()));
        context.save(saved).await?;
        let started = match call(planned).await {
            Ok(started) => started,
            Err(trouble) if may_pass(&trouble) => return Ok(Some(trouble)),
            Err(trouble) => return Err(trouble.into()),
        };
        let begun = Some(Begun::Job(started.jobid.clone()));
        if saved.begun != begun {
            saved.begun = begun;
            context.save(saved).await?;
        }
        let end = self.cloudstack.finish(&started.jobid, None, context.cancelled()).await;
        saved.begun = None;
        match end {
            Ok(_) => Ok(None),
            Err(trouble) if may_pass(&trouble) => Ok(Some(trouble)),
            Err(trouble) => Err(trouble.into()),
        }
    }
}

/// A look tells more about it, and another try may help. What wants to be left alone, or a person, is for the next attempt.
fn may_pass(trouble: &Trouble) -> bool {
    matches!(trouble.kind(), Kind::Look | Kind::Missing | Kind::Unanswered | Kind::Unknown | Kind::Internal)
}

/// What was refused as it stood may stand otherwise: a tag that is listed and gone cannot be removed, and is no longer listed a
/// little later.
fn not_seen(trouble: Option<Trouble>, what: String) -> Failure {
    match trouble {
        Some(trouble) if trouble.kind() == Kind::Look => {
            Failure::retryable("not_seen", format!("{what}: {trouble}"))
        }
        Some(trouble) => trouble.into(),
        None => Failure::retryable("not_seen", what),
    }
}
