//! Who may speak to this installation: principals, what they show, and what they did.
//!
//! It is beside the journal because it has to be in the same commits: a change and its line in the audit trail are
//! written together or not at all. Each change is one statement, which nobody can leave half done.
//!
//! ```text
//!   mod      principals and tokens
//!   audit    the trail: appended to by every change, chained, read back and verified
//!   sealed   secrets, and answers that are kept for those who ask again
//! ```

mod audit;
mod sealed;

use backstay_machine::Time;
use serde::Serialize;
use uuid::Uuid;

use super::{Store, StoreError};

pub use audit::{AuditFilter, AuditRow, Broken, Head};
pub use sealed::{Kept, Resealed, SealedSecret, StoredSecret};

/// Somebody who may speak to this installation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Principal {
    /// Unique, for ever.
    pub name: String,
    /// What they may do, by the names that the server knows.
    pub roles: Vec<String>,
    /// Since when.
    pub created_at: Time,
    /// Since when they may not any more.
    pub disabled_at: Option<Time>,
    /// Counts the changes.
    pub version: i32,
}

/// What a principal shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Token {
    /// Its id; no secret.
    pub id: Uuid,
    /// Whose.
    pub principal: String,
    /// What for.
    pub label: String,
    /// At most these rights; `None`: whatever the principal may.
    pub rights: Option<Vec<String>>,
    /// Only about runs of these workflows; `None`: of all.
    pub workflows: Option<Vec<String>>,
    /// Since when.
    pub created_at: Time,
    /// By whom.
    pub created_by: String,
    /// Until when.
    pub expires_at: Time,
    /// Since when not any more.
    pub revoked_at: Option<Time>,
    /// About when it was last used.
    pub used_at: Option<Time>,
}

/// A token that is not there yet.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Made by whoever asks.
    pub id: Uuid,
    /// Whose.
    pub principal: String,
    /// Of its text.
    pub hash: [u8; 32],
    /// What for.
    pub label: String,
    /// See [`Token`].
    pub rights: Option<Vec<String>>,
    /// See [`Token`].
    pub workflows: Option<Vec<String>>,
    /// By whom.
    pub created_by: String,
    /// Until when.
    pub expires_at: Time,
}

/// What is written with a change, in its commit.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The line of the audit trail: JSON.
    pub entry: String,
    /// The answer, for whoever asks again under the same key.
    pub kept: Option<Kept>,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is durable; this is the version now.
    Done(i32),
    /// What it is about is not there, or is there already.
    Missing,
    /// Somebody else changed it since.
    Moved,
    /// Something was answered under this key before.
    Known,
}

impl Store {
    /// Who shows a token with this hash: the token, and its principal as they are now.
    pub async fn token(&self, hash: &[u8; 32]) -> Result<Option<(Token, Principal)>, StoreError> {
        let row = sqlx::query!(
            r#"select t.token_id, t.label, t.rights, t.workflows, t.created_at, t.created_by, t.expires_at,
                      t.revoked_at, t.used_at, p.name, p.roles, p.created_at as since, p.disabled_at, p.version
               from tokens t join principals p on p.name = t.principal where t.hash = $1"#,
            hash.as_slice()
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look who shows a token"))?;
        Ok(row.map(|row| {
            let token = Token {
                id: row.token_id,
                principal: row.name.clone(),
                label: row.label,
                rights: row.rights,
                workflows: row.workflows,
                created_at: row.created_at,
                created_by: row.created_by,
                expires_at: row.expires_at,
                revoked_at: row.revoked_at,
                used_at: row.used_at,
            };
            let principal = Principal {
                name: row.name,
                roles: row.roles,
                created_at: row.since,
                disabled_at: row.disabled_at,
                version: row.version,
            };
            (token, principal)
        }))
    }

    /// Notes that these tokens were used.
    pub async fn tokens_used(&self, tokens: &[Uuid]) -> Result<(), StoreError> {
        sqlx::query!("update tokens set used_at = clock_timestamp() where token_id = any($1)", tokens)
            .execute(&self.pool)
            .await
            .map_err(StoreError::database("note that a token was used"))?;
        Ok(())
    }

    /// Principals, by name, after this one.
    pub async fn principals(&self, after: &str, most: i64) -> Result<Vec<Principal>, StoreError> {
        sqlx::query_as!(
            Principal,
            "select name, roles, created_at, disabled_at, version from principals where name > $1 order by name limit $2",
            after,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list principals"))
    }

    /// One principal.
    pub async fn principal(&self, name: &str) -> Result<Option<Principal>, StoreError> {
        sqlx::query_as!(
            Principal,
            "select name, roles, created_at, disabled_at, version from principals where name = $1",
            name
        )
        .fetch_optional(&self.pool)
        .await
        .map_err(StoreError::database("look for a principal"))
    }

    /// Adds a principal.
    pub async fn add_principal(
        &self,
        name: &str,
        roles: &[String],
        change: &Change,
    ) -> Result<Changed, StoreError> {
        let kept = change.kept();
        let done = sqlx::query_scalar!(
            r#"with done as (insert into principals (name, roles) values ($1, $2) on conflict do nothing returning version),
                 kept as (insert into answers (principal, key, asked, status, answer)
                          select $4, $5, $6, $7, $8 from done where $5::text is not null)
               select version as "version!" from done where audit_write(array[$3::text]) is not null"#,
            name,
            roles,
            change.entry,
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .fetch_optional(&self.pool)
        .await;
        changed(done, "add a principal")
    }

    /// Gives a principal other roles, or disables or enables them. `seen` is the version that whoever asks saw.
    pub async fn change_principal(
        &self,
        name: &str,
        seen: Option<i32>,
        roles: Option<&[String]>,
        disabled: Option<bool>,
        change: &Change,
    ) -> Result<Changed, StoreError> {
        let done = sqlx::query_scalar!(
            r#"with done as (
                 update principals set
                   roles = coalesce($3, roles),
                   disabled_at = case when $4::bool is null then disabled_at
                                      when $4 then coalesce(disabled_at, clock_timestamp()) end,
                   version = version + 1
                 where name = $1 and ($2::int is null or version = $2) returning version)
               select version as "version!" from done where audit_write(array[$5::text]) is not null"#,
            name,
            seen,
            roles,
            disabled,
            change.entry
        )
        .fetch_optional(&self.pool)
        .await;
        let done = changed(done, "change a principal")?;
        if done == Changed::Missing && seen.is_some() && self.principal(name).await?.is_some() {
            return Ok(Changed::Moved);
        }
        Ok(done)
    }

    /// The tokens of a principal, or all; the newest first, before this one.
    pub async fn tokens(
        &self,
        principal: Option<&str>,
        before: Option<Uuid>,
        most: i64,
    ) -> Result<Vec<Token>, StoreError> {
        sqlx::query_as!(
            Token,
            "select token_id as id, principal, label, rights, workflows, created_at, created_by, expires_at, revoked_at,
                    used_at
             from tokens where ($1::text is null or principal = $1) and ($2::uuid is null or token_id < $2)
             order by token_id desc limit $3",
            principal,
            before,
            most
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("list tokens"))
    }

    /// Whether there is, or was, such a token.
    pub async fn has_token(&self, id: Uuid) -> Result<bool, StoreError> {
        sqlx::query_scalar!(r#"select exists (select from tokens where token_id = $1) as "it!""#, id)
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database("look for a token"))
    }

    /// Adds a token to a principal who is there and not disabled.
    pub async fn add_token(&self, token: &NewToken, change: &Change) -> Result<Changed, StoreError> {
        let kept = change.kept();
        let done = sqlx::query_scalar!(
            r#"with done as (
                 insert into tokens (token_id, principal, hash, label, rights, workflows, created_by, expires_at)
                 select $1, name, $3, $4, $5, $6, $7, $8 from principals
                 where name = $2 and disabled_at is null for share
                 returning 1 as version),
                 kept as (insert into answers (principal, key, asked, status, answer)
                          select $10, $11, $12, $13, $14 from done where $11::text is not null)
               select version as "version!" from done where audit_write(array[$9::text]) is not null"#,
            token.id,
            token.principal,
            token.hash.as_slice(),
            token.label,
            token.rights.as_deref(),
            token.workflows.as_deref(),
            token.created_by,
            token.expires_at,
            change.entry,
            kept.principal,
            kept.key,
            kept.asked,
            kept.status,
            kept.answer
        )
        .fetch_optional(&self.pool)
        .await;
        changed(done, "add a token")
    }

    /// Revokes a token. Nodes hear of it within seconds.
    pub async fn revoke_token(&self, id: Uuid, change: &Change) -> Result<Changed, StoreError> {
        let done = sqlx::query_scalar!(
            r#"with done as (
                 update tokens set revoked_at = clock_timestamp() where token_id = $1 and revoked_at is null returning 1 as version)
               select version as "version!" from done where audit_write(array[$2::text]) is not null"#,
            id,
            change.entry
        )
        .fetch_optional(&self.pool)
        .await;
        changed(done, "revoke a token")
    }

    /// The first principal of an installation that has none, with a token. False if it has some.
    pub async fn first_principal(
        &self,
        roles: &[String],
        token: &NewToken,
        change: &Change,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query_scalar!(
            r#"with nobody as materialized (select from audit_head where not exists (select from principals) for update),
                 who as (insert into principals (name, roles) select $1, $2 from nobody returning name),
                 done as (insert into tokens (token_id, principal, hash, label, created_by, expires_at)
                          select $3, name, $4, $5, $6, $7 from who returning 1 as version)
               select version as "version!" from done where audit_write(array[$8::text]) is not null"#,
            token.principal,
            roles,
            token.id,
            token.hash.as_slice(),
            token.label,
            token.created_by,
            token.expires_at,
            change.entry
        )
        .fetch_optional(&self.pool)
        .await;
        // Two that begin at once: one of them adds the principal.
        Ok(matches!(changed(done, "add the first principal")?, Changed::Done(_)))
    }
}

/// A change that is not made either finds nothing to do, or finds that its key was used.
pub(super) fn changed(
    done: Result<Option<i32>, sqlx::Error>,
    doing: &'static str,
) -> Result<Changed, StoreError> {
    match done.map_err(StoreError::database(doing)) {
        Ok(Some(version)) => Ok(Changed::Done(version)),
        Ok(None) => Ok(Changed::Missing),
        Err(error) if error.is_duplicate() => Ok(Changed::Known),
        Err(error) => Err(error),
    }
}
