//! The audit trail of what no journal holds.

use backstay_machine::{Json, Time};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::store::{Store, StoreError};

/// One line of the trail.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditRow {
    /// Its place, from 1.
    pub nr: i64,
    /// When, by the database's clock.
    pub at: Time,
    /// Who did or tried what.
    pub entry: Json,
    #[serde(skip)]
    hash: Vec<u8>,
}

/// Which lines to read.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only of this principal.
    pub who: Option<String>,
    /// Only about this.
    pub about: Option<String>,
    /// Only refused attempts, or only changes.
    pub refused: Option<bool>,
    /// Only earlier ones than this.
    pub before: Option<i64>,
    /// At most so many; 0 means 100.
    pub limit: u32,
}

/// The end of the chain. Kept somewhere else it proves that nothing before it was changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Lines.
    pub nr: i64,
    /// Over all of them, in hexadecimal.
    pub hash: String,
}

/// Where the trail is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The line.
    pub nr: i64,
    /// What is wrong there.
    pub why: String,
}

impl Store {
    /// Writes lines that belong to no change: attempts that were refused.
    pub async fn audit(&self, entries: &[String]) -> Result<(), StoreError> {
        sqlx::query_scalar!("select audit_write($1)", entries)
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database("write the audit trail"))?;
        Ok(())
    }

    /// Lines, the newest first.
    pub async fn audit_rows(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        let limit = if filter.limit == 0 { 100 } else { i64::from(filter.limit.min(1_000)) };
        let rows = sqlx::query!(
            r#"select nr, at, entry::text as "entry!", hash from audit
               where ($1::bigint is null or nr < $1) and ($2::text is null or entry ->> 'who' = $2)
                 and ($3::text is null or entry ->> 'about' = $3)
                 and ($4::bool is null or (entry ->> 'refused' is not null) = $4)
               order by nr desc limit $5"#,
            filter.before,
            filter.who.as_deref(),
            filter.about.as_deref(),
            filter.refused,
            limit
        )
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::database("read the audit trail"))?;
        rows.into_iter().map(|row| line(row.nr, row.at, &row.entry, row.hash)).collect()
    }

    /// The end of the chain.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        let row = sqlx::query!("select nr, hash from audit_head")
            .fetch_one(&self.pool)
            .await
            .map_err(StoreError::database("read the end of the audit trail"))?;
        Ok(Head { nr: row.nr, hash: hex(&row.hash) })
    }

    /// Reads the whole trail: whether each line follows on the one before, to the end that is written down. The first
    /// fault, if there is one; `told` is called now and then with how many lines were read.
    pub async fn audit_verify(
        &self,
        mut told: impl FnMut(i64),
    ) -> Result<(Head, Option<Broken>), StoreError> {
        let head = self.audit_head().await?;
        let mut hash = Sha256::digest(b"backstay audit").to_vec();
        let mut nr = 0;
        while nr < head.nr {
            let rows = sqlx::query!(
                r#"select nr, at, entry::text as "entry!", hash from audit where nr > $1 and nr <= $2 order by nr limit 5000"#,
                nr,
                head.nr
            )
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::database("read the audit trail"))?;
            let broken = |nr, why: &str| Some(Broken { nr, why: why.to_owned() });
            if rows.is_empty() {
                return Ok((head, broken(nr + 1, "it is missing, and all after it")));
            }
            for row in rows {
                nr += 1;
                if row.nr != nr {
                    return Ok((head, broken(nr, "it is missing")));
                }
                let mut next = Sha256::new();
                next.update(&hash);
                next.update(format!("{nr}\n{}\n{}", row.at.timestamp_micros(), row.entry));
                hash = next.finalize().to_vec();
                if hash != row.hash {
                    return Ok((
                        head,
                        broken(nr, "it is not what was written, or does not follow on the one before"),
                    ));
                }
            }
            told(nr);
        }
        let broken = (hex(&hash) != head.hash)
            .then(|| Broken { nr, why: "it is not the end that is written down".into() });
        Ok((head, broken))
    }
}

fn line(nr: i64, at: Time, entry: &str, hash: Vec<u8>) -> Result<AuditRow, StoreError> {
    let entry = Json::parse_text(entry).map_err(|error| {
        StoreError::Undecodable(format!("line {nr} of the audit trail is no JSON: {error}"))
    })?;
    Ok(AuditRow { nr, at, entry, hash })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
