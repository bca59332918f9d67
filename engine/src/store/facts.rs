//! Facts: named values that change by compare-and-set, in the commit of the success that changes them.

use backstay_machine::{Fact, FactChange, RunId, Seq, Time};
use sqlx::PgConnection;

use super::{Batch, Life, Store, StoreError};

/// Rows of a batch that are written only if a fact still is as their run has seen it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proviso {
    /// The run: these are its last rows in the batch.
    pub run: RunId,
    /// The first of them.
    pub from: Seq,
    /// What they say of the fact.
    pub change: FactChange,
}

/// A fact was not as it was seen: nothing of the proviso was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The run that had seen it otherwise.
    pub run: RunId,
    /// The fact.
    pub found: Option<Fact>,
}

struct FactRow {
    name: String,
    value: String,
    version: i64,
    changed_by: uuid::Uuid,
    changed_at: Time,
}

impl FactRow {
    fn read(self) -> Fact {
        let Self { name, value, version, changed_by, changed_at } = self;
        Fact { name, value, version, by: RunId(changed_by), at: changed_at }
    }
}

impl Batch {
    /// Without the rows whose proviso does not hold.
    pub(super) fn without(&self, moved: &[Moved]) -> Self {
        let mut rest = self.clone();
        let fails = |one: &Proviso| moved.iter().any(|moved| moved.run == one.run);
        rest.facts.retain(|one| !fails(one));
        rest.events.retain(|(run, row)| {
            !self.facts.iter().any(|one| one.run == *run && fails(one) && row.seq >= one.from)
        });
        rest
    }

    /// Whether a row stands under a proviso.
    pub(super) fn is_provided(&self, run: RunId, seq: Seq) -> bool {
        self.facts.iter().any(|one| one.run == run && seq >= one.from)
    }
}

impl Store {
    /// Changes the facts that are as they were seen, and tells of the others. It is a statement for each, in the
    /// transaction of the rows and before them, rather than a part of theirs: a batch without facts costs nothing more than
    /// it did, and one of two runs that want the same fact in the same batch sees what the other has made of it.
    pub(super) async fn change_facts(
        conn: &mut PgConnection,
        life: &Life,
        provisos: &[Proviso],
    ) -> Result<Vec<Moved>, StoreError> {
        // In one order everywhere, so that two nodes do not wait for each other; of one fact, as they came.
        let mut provisos: Vec<_> = provisos.iter().collect();
        provisos.sort_by(|one, other| one.change.name.cmp(&other.change.name));
        let mut moved = Vec::new();
        for Proviso { run, change, .. } in provisos {
            let FactChange { name, to, version, .. } = change;
            let row = sqlx::query_file!(
                "src/store/change_fact.sql",
                life.epoch.0,
                life.token,
                name,
                to,
                run.0,
                *version
            )
            .fetch_one(&mut *conn)
            .await
            .map_err(StoreError::database("change a fact"))?;
            if row.fenced == 0 {
                return Err(StoreError::Fenced);
            }
            if row.changed == 0 {
                moved.push(Moved { run: *run, found: Self::fact_on(conn, name).await? });
            }
        }
        Ok(moved)
    }

    pub(super) async fn fact_on(conn: &mut PgConnection, name: &str) -> Result<Option<Fact>, StoreError> {
        let row = sqlx::query_as!(
            FactRow,
            "select name, value, version, changed_by, changed_at from facts where name = $1",
            name
        )
        .fetch_optional(conn)
        .await
        .map_err(StoreError::database("read a fact"))?;
        Ok(row.map(FactRow::read))
    }

    /// One fact, if anybody has set it.
    pub(crate) async fn fact(&self, name: &str) -> Result<Option<Fact>, StoreError> {
        let mut conn = self.pool.acquire().await.map_err(StoreError::database("read a fact"))?;
        Self::fact_on(&mut conn, name).await
    }

    /// Facts whose names begin so, in the order of their names, after this one.
    pub(crate) async fn facts(&self, prefix: &str, after: &str, most: i64) -> Result<Vec<Fact>, StoreError> {
        let rows = sqlx::query_as!(
            FactRow,
            r#"select name, value, version, changed_by, changed_at from facts
               where starts_with(name, $1) and name collate "C" > $2 collate "C"
               order by name collate "C" limit $3"#,
            prefix,
            after,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list facts"))?;
        Ok(rows.into_iter().map(FactRow::read).collect())
    }
}
