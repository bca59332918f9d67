//! Who may do what in the database: an owner who migrates, a role that serves, a role that reads.
//!
//! `roles.sql` is for whoever runs the Postgres server, `grants.sql` for the owner. What the serving role needs and may
//! not do itself stands in functions of the owner's: see `migrations/0011_roles.sql`.

use std::fmt;
use std::str::FromStr;

use sqlx::{AssertSqlSafe, PgConnection};

use super::{Store, StoreError};

/// The name of a role or a database, of letters, digits and underscores: it can stand in SQL as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleName(String);

impl FromStr for RoleName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
        let goes_on = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_';
        match begins && name.len() <= 63 && name.chars().all(goes_on) && !name.starts_with("pg_") {
            true => Ok(Self(name.to_owned())),
            false => Err(
                "a name has up to 63 small letters, digits and underscores, begins with a letter, and not with pg_"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The roles of one database.
#[derive(Clone, Debug)]
pub struct Roles {
    /// Brings the schema up to date.
    pub owner: RoleName,
    /// Serves, and works on runs.
    pub server: RoleName,
    /// Reads the views.
    pub reader: RoleName,
}

impl Roles {
    /// What whoever runs the Postgres server does once.
    pub fn creation(&self, database: &RoleName) -> String {
        self.fill(include_str!("roles.sql")).replace("{database}", &database.0)
    }

    /// What the owner does in the database; again and again does no harm.
    pub fn grants(&self) -> String {
        self.fill(include_str!("grants.sql"))
    }

    fn fill(&self, template: &str) -> String {
        let Self { owner, server, reader } = self;
        template.replace("{owner}", &owner.0).replace("{server}", &server.0).replace("{reader}", &reader.0)
    }
}

impl Store {
    /// Tells the two roles what they may do, in one commit. The names of those that are not there come back, and then
    /// nothing was done.
    pub async fn grant(&self, roles: &Roles) -> Result<Vec<RoleName>, StoreError> {
        let failed = StoreError::database("tell the roles what they may do");
        let mut conn = self.dedicated("roles").await?;
        let mut missing = Vec::new();
        for role in [&roles.server, &roles.reader] {
            if !exists(&mut conn, &role.0).await.map_err(&failed)? {
                missing.push(role.clone());
            }
        }
        if missing.is_empty() {
            sqlx::raw_sql(AssertSqlSafe(roles.grants())).execute(&mut conn).await.map_err(&failed)?;
        }
        Ok(missing)
    }

    /// After a migration: the same for the roles that were told before.
    pub(super) async fn grant_again(&self) -> Result<(), StoreError> {
        let failed = StoreError::database("tell the roles what they may do");
        let known = sqlx::query!("select server, reader from database_roles order by server, reader")
            .fetch_all(&self.pool)
            .await
            .map_err(&failed)?;
        if known.is_empty() {
            return Ok(());
        }
        let mut conn = self.dedicated("roles").await?;
        for row in known {
            let there = exists(&mut conn, &row.server).await.map_err(&failed)?
                && exists(&mut conn, &row.reader).await.map_err(&failed)?;
            match (row.server.parse::<RoleName>(), row.reader.parse::<RoleName>()) {
                (Ok(server), Ok(reader)) if there => {
                    let roles = Roles { owner: server.clone(), server, reader };
                    sqlx::raw_sql(AssertSqlSafe(roles.grants())).execute(&mut conn).await.map_err(&failed)?;
                }
                _ => tracing::warn!(
                    server = row.server,
                    reader = row.reader,
                    "one of these roles is gone, so neither was told what is new: see \"backstay db roles\""
                ),
            }
        }
        Ok(())
    }
}

async fn exists(conn: &mut PgConnection, role: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(r#"select exists (select from pg_roles where rolname = $1) as "it!""#, role)
        .fetch_one(conn)
        .await
}
