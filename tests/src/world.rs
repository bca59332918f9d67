//! A world outside: things that are made and unmade, with a record of every touch. It lies in tables of the test's
//! database, so that it outlives the processes that touch it; the engine knows nothing of them.

use std::time::Duration;

use backstay_engine::machine::Direction;
use backstay_engine::machine::checker::{self, WorldLog};
use backstay_engine::{Activity, Context, Effect, Failure, Probe, Span, async_trait};
use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgPool, PgPoolOptions};
use uuid::Uuid;

const TABLES: &str = "
create table gates (name text primary key);
create table world (key uuid primary key, step text not null);
create table touches (id bigint generated always as identity primary key, key uuid not null, step text not null,
                      undo boolean not null, attempt int not null, what text not null,
                      changed boolean not null,
                      at timestamptz not null default clock_timestamp());
create index on touches (step);
create index on world (step);";

/// What is there, and what was done.
#[derive(Clone, Debug)]
pub struct World {
    pool: PgPool,
}

impl World {
    pub async fn create(url: &str) -> anyhow::Result<Self> {
        let world = Self::open(url).await?;
        sqlx::raw_sql(TABLES).execute(&world.pool).await?;
        Ok(world)
    }

    pub async fn open(url: &str) -> anyhow::Result<Self> {
        Ok(Self { pool: PgPoolOptions::new().max_connections(4).connect(url).await? })
    }

    pub async fn close(self) {
        self.pool.close().await;
    }

    /// The things that are there, by the step that made them; a thing made twice is there twice.
    pub async fn things(&self) -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar("select step from world order by step").fetch_all(&self.pool).await?)
    }

    /// Everything that was done, in order: `make a`, `unmake a`, `stop a`.
    pub async fn touches(&self) -> anyhow::Result<Vec<String>> {
        Ok(sqlx::query_scalar("select what || ' ' || step from touches order by id")
            .fetch_all(&self.pool)
            .await?)
    }

    pub async fn touched(&self, what: &str, step: &str) -> anyhow::Result<i64> {
        let count = "select count(*) from touches where what = $1 and step = $2";
        Ok(sqlx::query_scalar(count).bind(what).bind(step).fetch_one(&self.pool).await?)
    }

    /// What waits for this gate goes on, and what comes later does not wait.
    pub async fn open_gate(&self, name: &str) -> anyhow::Result<()> {
        let open = "insert into gates values ($1) on conflict do nothing";
        sqlx::query(open).bind(name).execute(&self.pool).await?;
        Ok(())
    }

    pub(crate) async fn wait_for_gate(&self, name: &str) -> Result<(), Failure> {
        let open = "select exists (select from gates where name = $1)";
        while !sqlx::query_scalar::<_, bool>(open).bind(name).fetch_one(&self.pool).await? {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub(crate) async fn note(&self, key: Uuid, context: &Context, what: &str) -> Result<(), Failure> {
        self.note_change(key, context, what, false).await
    }

    async fn note_change(
        &self,
        key: Uuid,
        context: &Context,
        what: &str,
        changed: bool,
    ) -> Result<(), Failure> {
        sqlx::query(
            "insert into touches (key, step, undo, attempt, what, changed) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(key)
        .bind(context.step())
        .bind(context.direction() == Direction::Undo)
        .bind(context.attempt() as i32)
        .bind(what)
        .bind(changed)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The ground truth for the checker. Steps of one run have names that no other run of the lab uses, or the lab
    /// has one run.
    pub async fn truth(&self, steps: &[String]) -> anyhow::Result<WorldLog> {
        type Touch = (Uuid, String, bool, DateTime<Utc>);
        let touches = "select key, step, undo, at from touches where changed and step = any ($1) order by id";
        let touches: Vec<Touch> = sqlx::query_as(touches).bind(steps).fetch_all(&self.pool).await?;
        let things = "select step from world where step = any ($1)";
        let things: Vec<String> = sqlx::query_scalar(things).bind(steps).fetch_all(&self.pool).await?;
        let effects = touches
            .into_iter()
            .map(|(key, step, undo, at)| checker::Effect {
                key,
                step,
                undo,
                begun_at: at,
                ended_at: Some(at),
            })
            .collect();
        let present = steps.iter().map(|step| (step.clone(), things.contains(step))).collect();
        Ok(WorldLog { effects, present, skew: Span::millis(20) })
    }
}

/// What a thing is like.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Thing {
    /// How making it goes wrong: `permanent`, `half` (what it made is there), `not-applied`, `panic`, `hang`, `huge`, a number of
    /// attempts that are refused before one works, or `late:` and a number of attempts that work and do not say so.
    pub fails: Option<String>,
    /// It waits for this gate before it does anything.
    pub waits: Option<String>,
    /// Its probe waits for this gate before it looks.
    pub probe_waits: Option<String>,
    /// How many times it says that it is as good as done, all at once.
    pub reports: u32,
    /// How long it takes.
    pub millis: u64,
    /// Save a checkpoint half way.
    pub saves: bool,
    /// Given by another step; only passed on.
    pub from: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Made {
    /// Names the thing.
    pub id: String,
    /// Attempts so far.
    pub attempt: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<String>,
}

/// Makes a thing. Its key is the thing's name, so a second attempt finds the first one's.
#[derive(Debug)]
pub struct Make(pub World);

#[async_trait]
impl Activity for Make {
    const NAME: &'static str = "make";
    type Input = Thing;
    type Output = Made;

    fn effect(&self) -> Effect {
        Effect { probed: true, refuses_duplicates: true, ..Effect::default() }
    }

    async fn run(&self, context: &Context, thing: Thing) -> Result<Made, Failure> {
        let Self(world) = self;
        let fails = thing.fails.as_deref().unwrap_or_default();
        if let Some(gate) = &thing.waits {
            world.note(context.key(), context, "wait").await?;
            world.wait_for_gate(gate).await?;
        }
        for _ in 0..thing.reports {
            // At 100 nothing is left out.
            context.progress(100.0, "");
        }
        match fails {
            "permanent" => return Err(Failure::permanent("broken", "it broke, and may have done something")),
            "not-applied" => return Err(Failure::permanent("refused", "it was refused").not_applied()),
            "panic" => std::panic::panic_any("the maker fell over"),
            "hang" => {
                world.note(context.key(), context, "hang").await?;
                context.cancelled().await;
                world.note(context.key(), context, "stop").await?;
                return Err(Failure::retryable("stopped", "it was told to stop"));
            }
            _ => {}
        }
        if fails.parse().is_ok_and(|times: u32| context.attempt() <= times) {
            return Err(Failure::retryable("busy", "try again").not_applied());
        }
        if thing.saves {
            let earlier: Option<String> = context.saved()?;
            if earlier.is_none() {
                context.save(&format!("job of {}", context.step())).await?;
            }
            world.note(context.key(), context, if earlier.is_some() { "resume" } else { "begin" }).await?;
        }
        if thing.millis > 0 {
            tokio::time::sleep(Duration::from_millis(thing.millis)).await;
        }
        let made = sqlx::query("insert into world values ($1, $2) on conflict do nothing")
            .bind(context.key())
            .bind(context.step())
            .execute(&world.pool)
            .await?;
        world.note_change(context.key(), context, "make", made.rows_affected() > 0).await?;
        if fails == "half" {
            return Err(Failure::permanent("broken", "it broke half way"));
        }
        if fails
            .strip_prefix("late:")
            .is_some_and(|times| times.parse().is_ok_and(|times: u32| context.attempt() <= times))
        {
            return Err(Failure::retryable("late", "no answer came"));
        }
        let padding = (fails == "huge").then(|| "x".repeat(1 << 20));
        Ok(Made { id: context.key().to_string(), attempt: context.attempt(), padding })
    }

    async fn probe(&self, context: &Context, thing: Thing) -> Result<Probe<Made>, Failure> {
        if let Some(gate) = &thing.probe_waits {
            self.0.note(context.key(), context, "ask").await?;
            self.0.wait_for_gate(gate).await?;
        }
        let there: bool = sqlx::query_scalar("select exists (select from world where key = $1)")
            .bind(context.key())
            .fetch_one(&self.0.pool)
            .await?;
        self.0.note(context.key(), context, "probe").await?;
        let made = Made { id: context.key().to_string(), attempt: context.attempt(), padding: None };
        Ok(if there { Probe::Present(made) } else { Probe::Absent })
    }
}

/// What an undo is told by the plan; what it goes by is the key of the step.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gone {
    pub id: Option<String>,
    /// As for making.
    pub fails: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Unmade {
    pub gone: bool,
}

/// Unmakes what a step made, or may have made.
#[derive(Debug)]
pub struct Unmake(pub World);

#[async_trait]
impl Activity for Unmake {
    const NAME: &'static str = "unmake";
    type Input = Gone;
    type Output = Unmade;

    async fn run(&self, context: &Context, gone: Gone) -> Result<Unmade, Failure> {
        let Self(world) = self;
        let fails = gone.fails.as_deref().unwrap_or_default();
        if fails == "permanent" {
            return Err(Failure::permanent("stays", "it does not go away"));
        }
        if fails.parse().is_ok_and(|times: u32| context.attempt() <= times) {
            return Err(Failure::retryable("busy", "try again"));
        }
        let key = context
            .undone()
            .map(|undone| undone.key)
            .ok_or(Failure::permanent("no_step", "this is no undo"))?;
        let done = sqlx::query("delete from world where key = $1").bind(key).execute(&world.pool).await?;
        // The touch is written under the undo's own key, as the world sees it.
        world.note_change(context.key(), context, "unmake", done.rows_affected() > 0).await?;
        Ok(Unmade { gone: done.rows_affected() > 0 })
    }
}
