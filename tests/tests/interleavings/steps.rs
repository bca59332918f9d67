//! The operations, and what they answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::Row;
use backstay_engine::store::{Batch, Claimed, Life, Outgoing, Told, probe};
use backstay_engine::{RunId, StoreError};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::Mutex;

use crate::scene::{After, LEASE, Scene};

/// What one session does. The number is the life that does it, where it is somebody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Events, a change of the index, and a new run.
    Append1,
    /// Events alone.
    AppendEvents1,
    /// The writer dies before its commit.
    AppendThatDies1,
    /// One event, and the run is given up.
    GiveUp1,
    Append2,
    Renew1,
    Renew2,
    /// Whoever finds that a lease ran out.
    TakeOver,
    /// And dies before its commit; meanwhile life 3 claims what is free, writes to it and gives it up.
    TakeOverThatDies,
    ClaimDue1,
    ClaimDue2,
    ClaimDue3,
    ClaimOrphans1,
    ClaimOrphans2,
    ClaimOrphans3,
    ClaimThenRead2,
    /// Takes over, claims, reads.
    Recover2,
    End1,
    /// Another process of the same name begins.
    Supersede1,
    /// Takes over, claims, reads the inbox.
    RecoverMail2,
    ClaimMail2,
    /// Somebody speaks to `a`.
    Tell,
    /// The same to another run, under the same id.
    TellElsewhere,
    /// The message that is there already, once more.
    TellAgain,
    TellThatDies,
    TellRest,
    /// To a run that is over: one message that brings it back, and one that does not.
    TellBack,
    TellOver,
    /// To four runs at once.
    TellMany,
    /// Answers the message that is there.
    Answer1,
    AnswerThatDies1,
    /// And waits for people; and ends.
    AnswerRest1,
    AnswerEnd1,
    /// Waits for people, and ends, and has not read the message.
    Rest1,
    Finish1,
    /// A message comes and is answered at once.
    TellAnswer1,
    /// Two runs change.
    Change1,
    /// A new run takes the key of the one that is over.
    Rival1,
    /// Looks for a message in both places.
    Look,
    /// What is over is removed.
    Purge,
    PurgeThatDies,
    /// A new run under the client key of the one that is over: without a node, and by one.
    AdmitHeir,
    AppendHeir1,
    /// A fact is changed that is there; and one that is not.
    Fact1,
    Fact2,
    FactThatDies1,
    NewFact1,
    NewFact2,
    /// Mistakes.
    ClaimReadInOne2,
    RecoverInOneSnapshot2,
    AnswerThenClear1,
    ClearThenAnswer1,
}

/// What is about messages: each is played with each other and with all that the store does.
pub const SPOKEN: [Op; 20] = [
    Op::RecoverMail2,
    Op::ClaimMail2,
    Op::Tell,
    Op::TellElsewhere,
    Op::TellAgain,
    Op::TellThatDies,
    Op::TellRest,
    Op::TellBack,
    Op::TellOver,
    Op::TellMany,
    Op::Answer1,
    Op::AnswerThatDies1,
    Op::AnswerRest1,
    Op::AnswerEnd1,
    Op::Rest1,
    Op::Finish1,
    Op::TellAnswer1,
    Op::Change1,
    Op::Rival1,
    Op::Look,
];

/// What is about runs that are removed.
pub const REMOVED: [Op; 4] = [Op::Purge, Op::PurgeThatDies, Op::AdmitHeir, Op::AppendHeir1];

/// What is about facts.
pub const FACTS: [Op; 5] = [Op::Fact1, Op::Fact2, Op::FactThatDies1, Op::NewFact1, Op::NewFact2];

/// All else that the store does.
pub const OPS: [Op; 19] = [
    Op::Append1,
    Op::AppendEvents1,
    Op::AppendThatDies1,
    Op::GiveUp1,
    Op::Append2,
    Op::Renew1,
    Op::Renew2,
    Op::TakeOver,
    Op::TakeOverThatDies,
    Op::ClaimDue1,
    Op::ClaimDue2,
    Op::ClaimDue3,
    Op::ClaimOrphans1,
    Op::ClaimOrphans2,
    Op::ClaimOrphans3,
    Op::ClaimThenRead2,
    Op::Recover2,
    Op::End1,
    Op::Supersede1,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Begin,
    BeginSnapshot,
    Append(u8, What),
    Renew(u8),
    TakeOver,
    ClaimDue(u8),
    ClaimOrphans(u8),
    ClaimDueAndRead(u8),
    Read,
    ReadMail,
    Tell(To),
    /// The message is taken out of the inbox, apart from its answer.
    Clear,
    LookForLetter,
    Purge,
    AdmitHeir,
    End,
    Supersede,
    /// Life 3 claims, writes and gives up, on a session of its own.
    RoundOfThree,
    Commit,
    Rollback,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    All,
    Events,
    GiveUp,
    /// The message that is there is answered, or not; and then.
    Answer(bool, After),
    /// The one that was sent just now.
    AnswerNew,
    Two,
    Rival,
    Heir,
    Fact,
    NewFact,
}

/// Which message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    A,
    Elsewhere,
    Again,
    Rest,
    Back,
    Over,
    Many,
}

impl To {
    pub fn messages(self, scene: &Scene) -> Vec<Outgoing> {
        let one = |run, id| vec![scene.message(run, id)];
        match self {
            To::A => one(scene.a, scene.x),
            To::Elsewhere => one(scene.b, scene.x),
            To::Again => one(scene.a, scene.letter),
            To::Rest => one(scene.at_rest, scene.to_rest),
            To::Back => one(scene.over, scene.back),
            To::Over => one(scene.over, scene.late),
            To::Many => [scene.also, scene.a, scene.at_rest, scene.free]
                .into_iter()
                .zip(scene.many)
                .map(|(run, id)| scene.message(run, id))
                .collect(),
        }
    }
}

impl Op {
    pub fn steps(self) -> &'static [Step] {
        use Step::{
            Append, Begin, BeginSnapshot, ClaimDue, ClaimDueAndRead, ClaimOrphans, Commit, End, Read,
        };
        use Step::{
            Clear, LookForLetter, ReadMail, Renew, Rollback, RoundOfThree, Supersede, TakeOver, Tell,
        };
        match self {
            Op::Append1 => &[Begin, Append(1, What::All), Commit],
            Op::AppendEvents1 => &[Begin, Append(1, What::Events), Commit],
            Op::AppendThatDies1 => &[Begin, Append(1, What::All), Rollback],
            Op::GiveUp1 => &[Begin, Append(1, What::GiveUp), Commit],
            Op::Append2 => &[Begin, Append(2, What::All), Commit],
            Op::Renew1 => &[Begin, Renew(1), Commit],
            Op::Renew2 => &[Begin, Renew(2), Commit],
            Op::TakeOver => &[Begin, TakeOver, Commit],
            Op::TakeOverThatDies => &[TakeOver, RoundOfThree, Rollback],
            Op::ClaimDue1 => &[Begin, ClaimDue(1), Commit],
            Op::ClaimDue2 => &[Begin, ClaimDue(2), Commit],
            Op::ClaimDue3 => &[Begin, ClaimDue(3), Commit],
            Op::ClaimOrphans1 => &[Begin, ClaimOrphans(1), Commit],
            Op::ClaimOrphans2 => &[Begin, ClaimOrphans(2), Commit],
            Op::ClaimOrphans3 => &[Begin, ClaimOrphans(3), Commit],
            Op::ClaimThenRead2 => &[ClaimDue(2), Commit, Read],
            Op::Recover2 => &[TakeOver, Commit, ClaimOrphans(2), Commit, Read],
            Op::End1 => &[Begin, End, Commit],
            Op::Supersede1 => &[Begin, Supersede, Commit],
            Op::RecoverMail2 => &[Step::TakeOver, Commit, ClaimOrphans(2), Commit, ReadMail],
            Op::ClaimMail2 => &[ClaimDue(2), Commit, ReadMail],
            Op::Tell => &[Begin, Tell(To::A), Commit],
            Op::TellElsewhere => &[Begin, Tell(To::Elsewhere), Commit],
            Op::TellAgain => &[Begin, Tell(To::Again), Commit],
            Op::TellThatDies => &[Begin, Tell(To::A), Rollback],
            Op::TellRest => &[Begin, Tell(To::Rest), Commit],
            Op::TellBack => &[Begin, Tell(To::Back), Commit],
            Op::TellOver => &[Begin, Tell(To::Over), Commit],
            Op::TellMany => &[Begin, Tell(To::Many), Commit],
            Op::Answer1 => &[Begin, Append(1, What::Answer(true, After::GoOn)), Commit],
            Op::AnswerThatDies1 => &[Begin, Append(1, What::Answer(true, After::GoOn)), Rollback],
            Op::AnswerRest1 => &[Begin, Append(1, What::Answer(true, After::Rest)), Commit],
            Op::AnswerEnd1 => &[Begin, Append(1, What::Answer(true, After::End)), Commit],
            Op::Rest1 => &[Begin, Append(1, What::Answer(false, After::Rest)), Commit],
            Op::Finish1 => &[Begin, Append(1, What::Answer(false, After::End)), Commit],
            Op::TellAnswer1 => &[Tell(To::A), Append(1, What::AnswerNew), Commit],
            Op::Change1 => &[Begin, Append(1, What::Two), Commit],
            Op::Rival1 => &[Begin, Append(1, What::Rival), Commit],
            Op::Look => &[LookForLetter, LookForLetter],
            Op::Purge => &[Begin, Step::Purge, Commit],
            Op::PurgeThatDies => &[Begin, Step::Purge, Rollback],
            Op::AdmitHeir => &[Begin, Step::AdmitHeir, Commit],
            Op::AppendHeir1 => &[Begin, Append(1, What::Heir), Commit],
            Op::Fact1 => &[Begin, Append(1, What::Fact), Commit],
            Op::Fact2 => &[Begin, Append(2, What::Fact), Commit],
            Op::FactThatDies1 => &[Begin, Append(1, What::Fact), Rollback],
            Op::NewFact1 => &[Begin, Append(1, What::NewFact), Commit],
            Op::NewFact2 => &[Begin, Append(2, What::NewFact), Commit],
            Op::AnswerThenClear1 => &[Append(1, What::Answer(true, After::GoOn)), Commit, Clear, Commit],
            Op::ClearThenAnswer1 => &[Clear, Commit, Append(1, What::Answer(true, After::GoOn)), Rollback],
            Op::ClaimReadInOne2 => &[ClaimDueAndRead(2), Commit],
            Op::RecoverInOneSnapshot2 => &[BeginSnapshot, TakeOver, ClaimOrphans(2), Read, Commit],
        }
    }

    /// Who does it.
    pub fn life(self, scene: &Scene) -> Option<&Life> {
        match format!("{self:?}").chars().last() {
            Some('1') if !matches!(self, Op::End1 | Op::Supersede1) => Some(&scene.one),
            Some('2') => Some(&scene.two),
            Some('3') => Some(&scene.three),
            _ => None,
        }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub enum Answer {
    Done,
    Appended {
        refused: Vec<RunId>,
        /// A fact was not as it was seen.
        moved: bool,
    },
    /// The life is over.
    Fenced,
    /// The events were there already.
    Duplicate,
    TookOver(Vec<String>),
    Claimed(Vec<Claimed>),
    Read(Journals),
    /// What became of each message.
    Told(Vec<(Outgoing, Told)>),
    /// How many runs were removed.
    Purged(i64),
    /// Whether the run was taken on.
    Admitted(bool),
    /// The messages to runs that were claimed.
    Mail(Vec<uuid::Uuid>),
    /// Whether a message was in the inbox, and whether in the journal.
    Looked(bool, bool),
    Failed(String),
}

/// What a read found: positions and lives of events, of each run.
pub type Journals = HashMap<RunId, Vec<(i64, i64)>>;

/// What a session remembers between its steps.
pub struct Session {
    pub conn: PgConnection,
    pub claimed: Vec<Claimed>,
    /// The last message was taken on.
    pub told: bool,
    pub open: bool,
    pub third: Arc<Mutex<PgConnection>>,
    /// The production text of the claim.
    pub claim_text: Option<String>,
}

fn positions(journals: HashMap<RunId, Vec<Row>>) -> Journals {
    let of = |rows: Vec<Row>| rows.iter().map(|row| (row.seq, row.epoch)).collect();
    journals.into_iter().map(|(run, rows)| (run, of(rows))).collect()
}

impl Session {
    pub async fn perform(&mut self, step: Step, scene: &Scene) -> Answer {
        match self.try_to(step, scene).await {
            Ok(answer) => answer,
            Err(StoreError::Fenced) => Answer::Fenced,
            Err(StoreError::Database { source: sqlx::Error::Database(error), .. })
                if error.is_unique_violation() =>
            {
                Answer::Duplicate
            }
            Err(error) => Answer::Failed(format!("{error:?}")),
        }
    }

    async fn say(&mut self, text: &'static str) -> Result<(), StoreError> {
        let done = sqlx::raw_sql(text).execute(&mut self.conn).await;
        done.map(drop).map_err(|source| StoreError::Database { doing: text, source })
    }

    async fn try_to(&mut self, step: Step, scene: &Scene) -> Result<Answer, StoreError> {
        let life = |number| match number {
            1 => &scene.one,
            2 => &scene.two,
            _ => &scene.three,
        };
        // What has no begin of its own is begun with its first statement; reading needs none.
        if !self.open
            && !matches!(
                step,
                Step::Begin | Step::BeginSnapshot | Step::Read | Step::ReadMail | Step::LookForLetter
            )
        {
            self.say("begin").await?;
            self.open = true;
        }
        let conn = &mut self.conn;
        Ok(match step {
            Step::Begin => {
                self.say("begin").await?;
                self.open = true;
                Answer::Done
            }
            Step::BeginSnapshot => {
                self.say("begin isolation level repeatable read").await?;
                self.open = true;
                Answer::Done
            }
            Step::Commit | Step::Rollback => {
                self.say(if step == Step::Commit { "commit" } else { "rollback" }).await?;
                self.open = false;
                Answer::Done
            }
            // Nobody answers what was not taken on.
            Step::Append(_, What::AnswerNew) if !self.told => Answer::Done,
            Step::Append(number, what) => {
                let (run, new) = if number == 1 { (scene.a, scene.new[0]) } else { (scene.b, scene.new[1]) };
                let batch = match what {
                    What::All => scene.batch_of(life(number), run, new),
                    What::Events => scene.events_of(life(number), run),
                    What::GiveUp => scene.farewell_of(life(number), run, 3, 1),
                    What::Answer(read, then) => {
                        scene.answer_of(read.then_some(scene.letter), i32::from(read), then)
                    }
                    What::AnswerNew => scene.answer_of(Some(scene.x), 1, After::GoOn),
                    What::Two => scene.changes_of_two(),
                    What::Rival => scene.rival(),
                    What::Fact => scene.fact_of(life(number), run, false),
                    What::NewFact => scene.fact_of(life(number), run, true),
                    What::Heir => {
                        let (admission, first) = scene.heir(1);
                        let (admissions, events) = (vec![admission], vec![(scene.heirs[1], first)]);
                        Batch { admissions, events, ..Batch::default() }
                    }
                };
                // What takes more than one statement has a transaction of its own; here it is the test's.
                let done = match batch.facts.is_empty() {
                    true => probe::append(conn, life(number), &batch).await?,
                    false => probe::append_all(conn, life(number), &batch).await?,
                };
                Answer::Appended { refused: done.refused, moved: !done.moved.is_empty() }
            }
            Step::Renew(number) => {
                probe::renew(conn, life(number), LEASE).await?;
                Answer::Done
            }
            Step::TakeOver => Answer::TookOver(probe::take_over(conn).await?),
            Step::ClaimDue(number) => {
                self.claimed = probe::claim_due(conn, life(number), &[], 10).await?;
                Answer::Claimed(self.claimed.clone())
            }
            Step::ClaimOrphans(number) => {
                self.claimed = probe::claim_orphans(conn, life(number), &[], false, 10).await?;
                Answer::Claimed(self.claimed.clone())
            }
            Step::Read => {
                let runs: Vec<_> = self.claimed.iter().map(|claimed| claimed.run).collect();
                Answer::Read(positions(probe::journals(conn, &runs).await?))
            }
            Step::ReadMail => {
                let runs: Vec<_> = self.claimed.iter().map(|claimed| claimed.run).collect();
                let mail = probe::mail_for(conn, &runs).await?;
                Answer::Mail(mail.into_values().flatten().map(|letter| letter.id).collect())
            }
            Step::Tell(to) => {
                let messages = to.messages(scene);
                let told = probe::tell(conn, &messages).await?;
                self.told = told.contains(&Told::Told);
                Answer::Told(messages.into_iter().zip(told).collect())
            }
            Step::Purge => {
                let month = Duration::from_secs(30 * 86_400);
                Answer::Purged(probe::purge(conn, Duration::from_secs(1_800), month, 10).await?.runs)
            }
            Step::AdmitHeir => {
                let (admission, first) = scene.heir(0);
                Answer::Admitted(probe::admit(conn, &admission, &first).await?)
            }
            Step::Clear => {
                let cleared =
                    sqlx::query("delete from inbox where id = $1").bind(scene.letter).execute(conn).await;
                cleared.map_err(|source| StoreError::Database { doing: "clear", source })?;
                Answer::Done
            }
            Step::LookForLetter => {
                let (inbox, journal) = sqlx::query_as(
                    "select exists (select from inbox where id = $1), exists (select from journal where key = $1)",
                )
                .bind(scene.letter)
                .fetch_one(conn)
                .await
                .map_err(|source| StoreError::Database { doing: "look", source })?;
                Answer::Looked(inbox, journal)
            }
            Step::ClaimDueAndRead(number) => {
                let claim = self.claim_text.clone().unwrap_or_default();
                let text = format!(
                    "with claimed as ({claim})
                     select run_id, j.seq, j.epoch from claimed left join events j using (run_id) order by 1, 2"
                );
                let rows: Vec<(uuid::Uuid, i64, i64)> = sqlx::query_as(AssertSqlSafe(text))
                    .bind(life(number).epoch.0)
                    .bind(life(number).token)
                    .bind(Vec::<String>::new())
                    .bind(10_i64)
                    .fetch_all(conn)
                    .await
                    .map_err(|source| StoreError::Database { doing: "claim and read", source })?;
                let mut journals = Journals::new();
                for (run, seq, epoch) in rows {
                    journals.entry(RunId(run)).or_default().push((seq, epoch));
                }
                Answer::Read(journals)
            }
            Step::End => {
                probe::end_life(conn, &scene.one).await?;
                Answer::Done
            }
            Step::Supersede => {
                probe::begin_life(conn, "one", &[], LEASE).await?;
                Answer::Done
            }
            Step::RoundOfThree => {
                let mut third = self.third.lock().await;
                let claimed = probe::claim_due(&mut third, &scene.three, &[], 10).await?;
                let found =
                    probe::journals(&mut third, &claimed.iter().map(|c| c.run).collect::<Vec<_>>()).await?;
                for claim in &claimed {
                    let seq = found.get(&claim.run).map_or(0, Vec::len) as i64 + 1;
                    let batch = scene.farewell_of(&scene.three, claim.run, seq, claim.claim);
                    probe::append(&mut third, &scene.three, &batch).await?;
                }
                Answer::Done
            }
        })
    }
}
