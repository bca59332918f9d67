//! How old the schema is. It asks the migrator's own table, so it is the one place whose SQL is not checked here.

use sqlx::migrate::Migrate;

use super::{MIGRATIONS, Store, StoreError};

/// Which migrations a database has had.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Schema {
    /// Those that it has had.
    pub applied: Vec<i64>,
    /// Those that this release has and the database has not.
    pub pending: Vec<i64>,
    /// Those that the database has had and this release does not know.
    pub unknown: Vec<i64>,
    /// Those that the database has had in another form than this release has them.
    pub changed: Vec<i64>,
}

impl Schema {
    /// The database has had exactly what this release has.
    pub fn is_current(&self) -> bool {
        self.pending.is_empty() && self.unknown.is_empty() && self.changed.is_empty()
    }
}

impl Store {
    /// Which migrations the database has had. Changes nothing.
    pub async fn schema(&self) -> Result<Schema, StoreError> {
        let doing = "read the version of the schema";
        let mut conn = self.pool.acquire().await.map_err(StoreError::database(doing))?;
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(MIGRATIONS.table_name.as_ref())
            .fetch_one(&mut *conn)
            .await
            .map_err(StoreError::database(doing))?;
        let applied = match exists {
            true => {
                conn.list_applied_migrations(&MIGRATIONS.table_name).await.map_err(StoreError::Migrate)?
            }
            false => Vec::new(),
        };
        let changed = |done: &&sqlx::migrate::AppliedMigration| {
            MIGRATIONS.iter().any(|ours| ours.version == done.version && ours.checksum != done.checksum)
        };
        let changed = applied.iter().filter(changed).map(|migration| migration.version).collect();
        let applied: Vec<i64> = applied.into_iter().map(|migration| migration.version).collect();
        let known: Vec<i64> = MIGRATIONS.iter().map(|migration| migration.version).collect();
        let without = |from: &[i64], those: &[i64]| {
            from.iter().filter(|version| !those.contains(version)).copied().collect()
        };
        Ok(Schema {
            pending: without(&known, &applied),
            unknown: without(&applied, &known),
            changed,
            applied,
        })
    }
}
