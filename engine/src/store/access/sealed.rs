//! What only the server can read: secrets, and answers that are kept for those who ask again.

use std::time::Duration;

use backstay_machine::Time;

use super::{Change, Changed, changed};
use crate::store::{Store, StoreError};

/// An answer that is kept. Its key is the asker's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Who asked.
    pub principal: String,
    /// Under which key.
    pub key: String,
    /// A digest of what was asked.
    pub asked: Vec<u8>,
    /// The answer's status.
    pub status: i16,
    /// The answer, sealed.
    pub answer: Vec<u8>,
}

/// `Kept` as parameters of a statement: all of them, or none.
#[derive(Default)]
pub(in crate::store) struct KeptRow<'a> {
    pub principal: Option<&'a str>,
    pub key: Option<&'a str>,
    pub asked: Option<&'a [u8]>,
    pub status: Option<i16>,
    pub answer: Option<&'a [u8]>,
}

impl Change {
    pub(in crate::store) fn kept(&self) -> KeptRow<'_> {
        self.kept.as_ref().map_or_else(KeptRow::default, |kept| KeptRow {
            principal: Some(&kept.principal),
            key: Some(&kept.key),
            asked: Some(&kept.asked),
            status: Some(kept.status),
            answer: Some(&kept.answer),
        })
    }
}

/// A secret as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSecret {
    /// Its name.
    pub name: String,
    /// Which of the installation's keys seals its own.
    pub key_id: String,
    /// Its own key, sealed.
    pub sealed_key: Vec<u8>,
    /// Its text, sealed.
    pub sealed: Vec<u8>,
    /// Where it may be sent.
    pub origins: Vec<String>,
    /// The programs that may be given it.
    pub programs: Vec<String>,
}

/// The same, with what the database knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    /// The secret.
    pub secret: SealedSecret,
    /// Another with every change, and never one that a secret has had before, also if it was removed since.
    pub version: i32,
    /// When it was changed last.
    pub changed_at: Time,
    /// By whom.
    pub changed_by: String,
}

/// A key that was sealed by one key of the installation, and is by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resealed {
    /// Whose key.
    pub name: String,
    /// As it was: if it is not any more, nothing is changed.
    pub was: Vec<u8>,
    /// Which of the installation's keys seals it now.
    pub key_id: String,
    /// As it is now.
    pub sealed_key: Vec<u8>,
}

/// The columns of a secret, as a row of them is read.
struct SecretRow {
    name: String,
    key_id: String,
    sealed_key: Vec<u8>,
    sealed: Vec<u8>,
    origins: Vec<String>,
    programs: Vec<String>,
    version: i32,
    changed_at: Time,
    changed_by: String,
}

impl From<SecretRow> for StoredSecret {
    fn from(row: SecretRow) -> Self {
        let SecretRow {
            name,
            key_id,
            sealed_key,
            sealed,
            origins,
            programs,
            version,
            changed_at,
            changed_by,
        } = row;
        let secret = SealedSecret { name, key_id, sealed_key, sealed, origins, programs };
        Self { secret, version, changed_at, changed_by }
    }
}

impl Store {
    /// What was answered to this principal under this key.
    pub async fn answered(&self, principal: &str, key: &str) -> Result<Option<Kept>, StoreError> {
        sqlx::query_as!(
            Kept,
            "select principal, key, asked, status, answer from answers where principal = $1 and key = $2",
            principal,
            key
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look for an earlier answer"))
    }

    /// Keeps an answer to which nothing was changed. If there is one under that key, it stays.
    pub async fn keep_answer(&self, kept: &Kept) -> Result<(), StoreError> {
        sqlx::query!(
            "insert into answers (principal, key, asked, status, answer) values ($1, $2, $3, $4, $5)
             on conflict do nothing",
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::database("keep an answer"))?;
        Ok(())
    }

    /// Forgets answers that are older than this.
    pub async fn forget_answers(&self, older_than: Duration) -> Result<u64, StoreError> {
        let done = sqlx::query!(
            "delete from answers where at < clock_timestamp() - make_interval(secs => $1)",
            older_than.as_secs_f64()
        )
        .execute(&self.pool)
        .await
        .map_err(StoreError::database("forget old answers"))?;
        Ok(done.rows_affected())
    }

    /// Stores a secret, in place of the one that has its name. `seen` is the version that whoever asks saw: 0 for none.
    pub async fn put_secret(
        &self,
        secret: &SealedSecret,
        seen: i32,
        by: &str,
        change: &Change,
    ) -> Result<Changed, StoreError> {
        let kept = change.kept();
        let done = sqlx::query_scalar!(
            r#"with done as (
                 insert into secrets as s (name, key_id, sealed_key, sealed, origins, programs, changed_by)
                 select $1, $2, $3, $4, $5, $6, $8 where $7::int = 0 or exists (select from secrets where name = $1)
                 on conflict (name) do update set key_id = $2, sealed_key = $3, sealed = $4, origins = $5, programs = $6,
                   version = nextval('secret_versions'), changed_at = clock_timestamp(), changed_by = $8
                 where s.version = $7
                 returning version),
                 kept as (insert into answers (principal, key, asked, status, answer)
                          select $10, $11, $12, $13, $14 from done where $11::text is not null)
               select version as "version!" from done where audit_write(array[$9::text]) is not null"#,
            secret.name,
            secret.key_id,
            secret.sealed_key,
            secret.sealed,
            &secret.origins,
            &secret.programs,
            seen,
            by,
            change.entry,
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .fetch_optional(&self.pool)
        .await;
        Ok(match changed(done, "store a secret")? {
            Changed::Missing => Changed::Moved,
            other => other,
        })
    }

    /// Removes a secret. `seen` is the version that whoever asks saw, if it matters.
    pub async fn drop_secret(
        &self,
        name: &str,
        seen: Option<i32>,
        change: &Change,
    ) -> Result<Changed, StoreError> {
        let kept = change.kept();
        let done = sqlx::query_scalar!(
            r#"with done as (delete from secrets where name = $1 and ($2::int is null or version = $2) returning version),
                 kept as (insert into answers (principal, key, asked, status, answer)
                          select $4, $5, $6, $7, $8 from done where $5::text is not null)
               select version as "version!" from done where audit_write(array[$3::text]) is not null"#,
            name,
            seen,
            change.entry,
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .fetch_optional(&self.pool)
        .await;
        let done = changed(done, "remove a secret")?;
        if done == Changed::Missing && seen.is_some() && self.secret(name).await?.is_some() {
            return Ok(Changed::Moved);
        }
        Ok(done)
    }

    /// One secret, sealed.
    pub async fn secret(&self, name: &str) -> Result<Option<StoredSecret>, StoreError> {
        let row = sqlx::query_as!(
            SecretRow,
            "select name, key_id, sealed_key, sealed, origins, programs, version, changed_at, changed_by
             from secrets where name = $1",
            name
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look for a secret"))?;
        Ok(row.map(StoredSecret::from))
    }

    /// Secrets, by name, after this one; only those that another key than this seals, if one is named.
    pub async fn secrets(
        &self,
        after: &str,
        not_by: Option<&str>,
        most: i64,
    ) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = sqlx::query_as!(
            SecretRow,
            "select name, key_id, sealed_key, sealed, origins, programs, version, changed_at, changed_by
             from secrets where name > $1 and ($2::text is null or key_id <> $2) order by name limit $3",
            after,
            not_by,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list secrets"))?;
        Ok(rows.into_iter().map(StoredSecret::from).collect())
    }

    /// How many secrets each of the installation's keys seals.
    pub async fn secrets_by_key(&self) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query!(
            r#"select key_id, count(*) as "count!" from secrets group by key_id order by key_id"#
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("count secrets"))?;
        Ok(rows.into_iter().map(|row| (row.key_id, row.count)).collect())
    }

    /// Puts newly sealed keys in the place of those that they were: all of them, or none if one was changed meanwhile. No
    /// text is touched, and no version: what a secret is does not change.
    pub async fn reseal(&self, keys: &[Resealed], change: &Change) -> Result<Changed, StoreError> {
        let names: Vec<_> = keys.iter().map(|one| one.name.clone()).collect();
        let was: Vec<_> = keys.iter().map(|one| one.was.clone()).collect();
        let ids: Vec<_> = keys.iter().map(|one| one.key_id.clone()).collect();
        let sealed: Vec<_> = keys.iter().map(|one| one.sealed_key.clone()).collect();
        let kept = change.kept();
        let done = sqlx::query_scalar!(
            r#"with locked as materialized (
                 select s.name from secrets s join unnest($1::text[], $2::bytea[]) as n(name, was)
                   on s.name = n.name and s.sealed_key = n.was
                 order by s.name for update of s),
                 whole as materialized (
                 select count(*)::int as n from locked having count(*) = cardinality($1::text[])),
                 done as (
                 update secrets s set key_id = n.key_id, sealed_key = n.sealed_key
                 from unnest($1::text[], $3::text[], $4::bytea[]) as n(name, key_id, sealed_key), whole
                 where s.name = n.name),
                 kept as (insert into answers (principal, key, asked, status, answer)
                          select $6, $7, $8, $9, $10 from whole where $7::text is not null)
               select n as "n!" from whole where audit_write(array[$5::text]) is not null"#,
            &names,
            &was,
            &ids,
            &sealed,
            change.entry,
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .fetch_optional(&self.pool)
        .await;
        Ok(match changed(done, "re-seal keys")? {
            Changed::Missing => Changed::Moved,
            other => other,
        })
    }
}
