//! What only the server can read: secrets, and answers that are kept for those who ask again.

use std::time::Duration;

use backstay_machine::Time;
use serde::Serialize;

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
pub(super) struct KeptRow<'a> {
    pub principal: Option<&'a str>,
    pub key: Option<&'a str>,
    pub asked: Option<&'a [u8]>,
    pub status: Option<i16>,
    pub answer: Option<&'a [u8]>,
}

impl Change {
    pub(super) fn kept(&self) -> KeptRow<'_> {
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
    /// Counts the changes.
    pub version: i32,
}

/// What people may know of a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretInfo {
    /// Its name.
    pub name: String,
    /// Which of the installation's keys seals its own.
    pub key_id: String,
    /// Where it may be sent.
    pub origins: Vec<String>,
    /// Counts the changes.
    pub version: i32,
    /// When it was changed last.
    pub changed_at: Time,
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

    /// Stores a secret, in place of the one that has its name. `secret.version` is what whoever asks saw: 0 for none.
    pub async fn put_secret(&self, secret: &SealedSecret, change: &Change) -> Result<Changed, StoreError> {
        let kept = change.kept();
        let done = sqlx::query_scalar!(
            r#"with done as (
                 insert into secrets as s (name, key_id, sealed_key, sealed, origins)
                 select $1, $2, $3, $4, $5 where $6::int = 0 or exists (select from secrets where name = $1)
                 on conflict (name) do update set key_id = $2, sealed_key = $3, sealed = $4, origins = $5,
                   version = s.version + 1, changed_at = clock_timestamp()
                 where s.version = $6
                 returning version),
                 kept as (insert into answers (principal, key, asked, status, answer)
                          select $8, $9, $10, $11, $12 from done where $9::text is not null)
               select version as "version!" from done where audit_write(array[$7::text]) is not null"#,
            secret.name,
            secret.key_id,
            secret.sealed_key,
            secret.sealed,
            &secret.origins,
            secret.version,
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

    /// Removes a secret.
    pub async fn drop_secret(&self, name: &str, change: &Change) -> Result<Changed, StoreError> {
        let done = sqlx::query_scalar!(
            r#"with done as (delete from secrets where name = $1 returning version)
               select version as "version!" from done where audit_write(array[$2::text]) is not null"#,
            name,
            change.entry
        )
        .fetch_optional(&self.pool)
        .await;
        changed(done, "remove a secret")
    }

    /// One secret, sealed.
    pub async fn secret(&self, name: &str) -> Result<Option<SealedSecret>, StoreError> {
        sqlx::query_as!(
            SealedSecret,
            "select name, key_id, sealed_key, sealed, origins, version from secrets where name = $1",
            name
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look for a secret"))
    }

    /// All secrets, by name.
    pub async fn secrets(&self) -> Result<Vec<SecretInfo>, StoreError> {
        sqlx::query_as!(
            SecretInfo,
            "select name, key_id, origins, version, changed_at from secrets order by name"
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list secrets"))
    }
}
