//! What is said to runs: messages, from whoever sends them to the journal that answers them.
//!
//! ```text
//!   tell            into the inbox, with the run's row locked; whichever node the sender reaches
//!   mail, mail_for  out of it, by the owner: after a claim, and whenever somebody may have sent something
//!   append          the answer; it takes the message out of the inbox in the same commit
//!   answers         what the journal says about messages, for those who sent them
//! ```

use std::collections::HashMap;

use backstay_machine::{Action, RunId, Seq};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Life, Store, StoreError};

/// Messages of one run that its new owner is given with it. What is more comes a little later.
pub(crate) const AT_CLAIM: i64 = 20;

/// The name of the signal that stands in the journal for a message that nobody understood.
pub const UNREADABLE: &str = "(not understood)";

/// A message that waits for its answer.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Its place in the inbox.
    pub nr: i64,
    /// Its id.
    pub id: Uuid,
    /// To whom.
    pub run: RunId,
    /// What it says: JSON, and nothing else is certain.
    pub body: String,
}

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// To whom.
    pub run: RunId,
    /// Its id.
    pub id: Uuid,
    /// What it says.
    pub body: String,
    /// It may bring back a run that has succeeded.
    pub reopens: bool,
}

/// What became of a message that was sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// It is durable, and will be answered.
    Told,
    /// It was sent before: to this run, with this body.
    Known(RunId, String),
    /// There is no such run.
    Missing,
    /// The run is over, and this does not bring it back. The run's status.
    Over(String),
    /// The run would have to have its exclusive key again; this run has it, or had it a moment ago.
    Exclusive(Option<RunId>),
}

/// What the journal says about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The message.
    pub id: Uuid,
    /// The run.
    pub run: Uuid,
    /// The event.
    pub seq: Seq,
    /// Why it was refused, if it was.
    pub because: Option<String>,
}

struct LetterRow {
    nr: i64,
    id: Uuid,
    run_id: Uuid,
    body: String,
}

impl From<LetterRow> for Letter {
    fn from(row: LetterRow) -> Self {
        Self { nr: row.nr, id: row.id, run: RunId(row.run_id), body: row.body }
    }
}

impl Letter {
    /// What is asked. Its id is the message's, whatever its text says: by that it leaves the inbox.
    pub(crate) fn read(&self) -> Result<Action, String> {
        let action: Action = serde_json::from_str(&self.body).map_err(|error| error.to_string())?;
        Ok(Action { id: self.id, ..action })
    }
}

impl Store {
    /// Sends messages, all in one commit; repeating it changes nothing. The answers are in the order of the messages.
    pub(crate) async fn tell(&self, messages: &[Outgoing]) -> Result<Vec<Told>, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(StoreError::database("send a message"))?;
        Self::tell_on(&mut conn, messages).await
    }

    pub(crate) async fn tell_on(
        conn: &mut PgConnection,
        messages: &[Outgoing],
    ) -> Result<Vec<Told>, StoreError> {
        let runs: Vec<_> = messages.iter().map(|message| message.run.0).collect();
        let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
        let bodies: Vec<_> = messages.iter().map(|message| message.body.clone()).collect();
        let reopen: Vec<_> = messages.iter().map(|message| message.reopens).collect();
        let rows = sqlx::query!(
            r#"select verdict as "verdict!", about, said from tell($1, $2, $3, $4) order by place"#,
            &runs,
            &ids,
            &bodies,
            &reopen
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("send a message"))?;
        let told = rows.into_iter().map(|row| {
            let about = row.about.map(RunId);
            let said = row.said.unwrap_or_default();
            match (row.verdict.as_str(), about) {
                ("told", _) => Ok(Told::Told),
                ("known", Some(run)) => Ok(Told::Known(run, said)),
                ("missing", _) => Ok(Told::Missing),
                ("over", _) => Ok(Told::Over(said)),
                ("exclusive", holder) => Ok(Told::Exclusive(holder)),
                (other, _) => Err(StoreError::Undecodable(format!("sending a message came to \"{other}\""))),
            }
        });
        told.collect()
    }

    /// What has been said to the runs of this life, after a place in the inbox. It begins at the inbox, which is
    /// nearly always empty, and looks up each run by its key.
    pub(crate) async fn mail(
        conn: &mut PgConnection,
        life: &Life,
        after: i64,
        most: i64,
    ) -> Result<Vec<Letter>, StoreError> {
        let rows = sqlx::query_as!(
            LetterRow,
            r#"select i.nr, i.id, i.run_id, i.body::text as "body!"
               from inbox i join runs r on r.run_id = i.run_id
               -- Not "owner = $1": the planner would go by the index of owners.
               where i.nr > $2 and r.owner is not distinct from $1
               order by i.nr limit $3"#,
            life.epoch.0,
            after,
            most
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("look into the inbox"))?;
        Ok(rows.into_iter().map(Letter::from).collect())
    }

    /// The first messages to these runs, on the connection of whoever claimed them, in a later statement. A run
    /// with none has lost them to a hand: it is not in the answer.
    pub(crate) async fn mail_for(
        conn: &mut PgConnection,
        runs: &[RunId],
    ) -> Result<HashMap<RunId, Vec<Letter>>, StoreError> {
        let ids: Vec<_> = runs.iter().map(|run| run.0).collect();
        let rows = sqlx::query_as!(
            LetterRow,
            r#"select i.nr as "nr!", i.id as "id!", r.run_id as "run_id!", i.body::text as "body!"
               from unnest($1::uuid[]) as r (run_id),
                    lateral (select nr, id, body from inbox where inbox.run_id = r.run_id order by nr limit $2) as i
               order by i.nr"#,
            &ids,
            AT_CLAIM
        )
        .fetch_all(conn)
        .await
        .map_err(StoreError::database("look into the inbox"))?;
        let mut mail: HashMap<RunId, Vec<Letter>> = HashMap::new();
        for row in rows {
            mail.entry(RunId(row.run_id)).or_default().push(row.into());
        }
        Ok(mail)
    }

    /// What the journal says about these messages; those that nobody has answered yet are not in it.
    pub(crate) async fn answers(&self, ids: &[Uuid]) -> Result<Vec<Answered>, StoreError> {
        let rows = sqlx::query_as!(
            Answered,
            r#"select key as "id!", run_id as run, seq, case kind when 'refused' then body ->> 'because' end as because
               from journal where key = any ($1) and kind in ('acted', 'refused')"#,
            ids
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("look for an answer"))?;
        Ok(rows)
    }

    /// Whether a message waits for its answer.
    pub(crate) async fn is_asked(&self, run: RunId, id: Uuid) -> Result<bool, StoreError> {
        sqlx::query_scalar!(
            r#"select exists (select from inbox where id = $1 and run_id = $2) as "it!""#,
            id,
            run.0
        )
        .fetch_one(&self.pool)
        .await
        .map_err(StoreError::database("look for a message"))
    }
}
