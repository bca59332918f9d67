//! Who may do what: principals and their tokens.

use axum::http::{Method, header};
use backstay_engine::machine::Time;
use backstay_engine::store::access::{Changed, NewToken, Principal, Token};
use chrono::{TimeDelta, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::gate::{Permit, TOKEN_PREFIX, digest};
use super::operation::{Ask, Done, InJson, Made, Operation, Reply, operation};
use super::problem::{BAD_REQUEST, CONFLICT, FORBIDDEN, KEY_REUSED, MOVED, NOT_FOUND, Problem};
use super::rights::{Right, Role};
use super::runs::limited;
use super::views::Page;

/// How long a token is good if nobody says.
const TOKEN_DAYS: u32 = 90;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/me", "whoAmI", Right::View, me)
            .about("people", "Who asks, and what they may do."),
        operation(Method::GET, "/principals", "listPrincipals", Right::Admin, list)
            .about("people", "Lists principals: people and programs that may speak to this installation."),
        operation(Method::POST, "/principals", "addPrincipal", Right::Admin, add)
            .about("people", "Adds a principal. A token comes apart.")
            .fails(&[&CONFLICT, &KEY_REUSED]),
        operation(Method::PATCH, "/principals/{name}", "changePrincipal", Right::Admin, change)
            .about("people", "Gives a principal other roles, or disables or enables them. It works at once on this node, within seconds on others.")
            .fails(&[&NOT_FOUND, &MOVED, &CONFLICT]),
        operation(Method::GET, "/tokens", "listTokens", Right::Admin, tokens)
            .about("people", "Lists tokens, the newest first. Their texts are known to their owners alone."),
        operation(Method::POST, "/tokens", "addToken", Right::Admin, add_token)
            .about("people", "Makes a token for a principal. The answer is the only place where its text stands.")
            .fails(&[&NOT_FOUND, &KEY_REUSED, &CONFLICT]),
        operation(Method::DELETE, "/tokens/{id}", "revokeToken", Right::Admin, revoke)
            .about("people", "Revokes a token. Every node refuses it within five seconds.")
            .fails(&[&NOT_FOUND]),
    ]
}

#[derive(Serialize, JsonSchema)]
struct Me {
    /// The principal.
    name: String,
    /// Its roles.
    roles: Vec<String>,
    /// What this token may do.
    rights: Vec<Right>,
    /// The token's id.
    token: Uuid,
    /// Until when it is good.
    expires_at: Time,
    /// The workflows that it is about; none: all.
    workflows: Option<Vec<String>>,
}

async fn me(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Me>, Problem> {
    let caller = permit.caller();
    Ok(Reply::new(Me {
        name: caller.principal.name.clone(),
        roles: caller.principal.roles.clone(),
        rights: caller.rights().to_vec(),
        token: caller.token.id,
        expires_at: caller.token.expires_at,
        workflows: caller.token.workflows.clone(),
    }))
}

#[derive(Serialize, JsonSchema)]
struct PrincipalView {
    /// Unique, for ever.
    name: String,
    /// What they may do.
    roles: Vec<String>,
    /// Since when.
    created_at: Time,
    /// Since when they may not any more.
    disabled_at: Option<Time>,
    /// Counts the changes; it is the ETag.
    version: i32,
}

impl From<Principal> for PrincipalView {
    fn from(one: Principal) -> Self {
        let Principal { name, roles, created_at, disabled_at, version } = one;
        Self { name, roles, created_at, disabled_at, version }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Names {
    /// At most so many: 1 to 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: String,
}

async fn list(permit: Permit, ask: Ask<(), Names, ()>) -> Result<Reply<Page<PrincipalView>>, Problem> {
    let limit = limited(ask.query.limit)?;
    no_nul("query/cursor", &ask.query.cursor)?;
    let mut found = permit.store().principals(&ask.query.cursor, i64::from(limit) + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = more.then(|| found.last().map(|one| one.name.clone())).flatten();
    Ok(Reply::new(Page { items: found.into_iter().map(PrincipalView::from).collect(), next }))
}

pub(super) fn no_nul(place: &str, text: &str) -> Result<(), Problem> {
    match text.contains('\0') {
        true => Err(Problem::at(&BAD_REQUEST, place, "it holds the character U+0000")),
        false => Ok(()),
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Added {
    /// Letters, digits, and . _ @ + - ; it stays for ever.
    #[schemars(length(min = 1, max = 100), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._@+-]*$"))]
    name: String,
    /// What they may do.
    roles: Vec<Role>,
}

fn names(roles: &[Role]) -> Vec<String> {
    let mut names: Vec<_> = roles.iter().map(|role| role.name().to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

async fn add(permit: Permit, ask: Ask<(), (), InJson<Added>>) -> Result<Made<PrincipalView>, Problem> {
    let Added { name, roles } = ask.body.0;
    let roles = names(&roles);
    let good = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.len() > 100 || !name.chars().all(good) {
        return Err(Problem::at(
            &BAD_REQUEST,
            "body/name",
            "it has letters, digits, and . _ @ + - , and begins with one of the first two",
        ));
    }
    let key = ask.key.as_deref();
    let mut change = permit.change(&name, json!({ "roles": roles }));
    change.kept = permit.kept(key, &ask.digest, 201, &json!(name))?;
    let added = permit.store().add_principal(&name, &roles, &change).await?;
    // Asked again, since the first answer was lost: it was done then.
    if !matches!(added, Changed::Done(_)) && permit.answered(key, &ask.digest).await?.is_none() {
        return Err(Problem::new(&CONFLICT, format!("there is a principal {name} already")));
    }
    let one = permit.store().principal(&name).await?.ok_or_else(|| gone(&name))?;
    let version = one.version;
    Ok(Made::new(PrincipalView::from(one))
        .version(version)
        .with(header::LOCATION, format!("{}/principals/{name}", super::BASE)))
}

fn gone(name: &str) -> Problem {
    Problem::new(&NOT_FOUND, format!("there is no principal {name}"))
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    /// The principal's name.
    name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Change {
    /// In place of those they have.
    #[serde(default)]
    roles: Option<Vec<Role>>,
    /// Whether they may not any more.
    #[serde(default)]
    disabled: Option<bool>,
}

async fn change(
    permit: Permit,
    ask: Ask<Named, (), InJson<Change>>,
) -> Result<Reply<PrincipalView>, Problem> {
    let Change { roles, disabled } = ask.body.0;
    let name = ask.path.name;
    no_nul("path/name", &name)?;
    let roles = roles.map(|roles| names(&roles));
    let seen = ask.if_match.map(|seen| i32::try_from(seen).unwrap_or(-1));
    let keeps = roles.as_ref().is_none_or(|roles| roles.iter().any(|role| role == Role::Admin.name()));
    if name == permit.who() && (disabled == Some(true) || !keeps) {
        return Err(Problem::new(
            &CONFLICT,
            "nobody takes the administration away from themselves; ask another admin",
        ));
    }
    let change = permit.change(&name, json!({ "roles": roles, "disabled": disabled }));
    match permit.store().change_principal(&name, seen, roles.as_deref(), disabled, &change).await? {
        Changed::Done(_) => {}
        Changed::Moved => {
            return Err(Problem::new(&MOVED, format!("{name} has been changed since it was read")));
        }
        _ => return Err(gone(&name)),
    }
    let one = permit.store().principal(&name).await?.ok_or_else(|| gone(&name))?;
    let version = one.version;
    Ok(Reply::new(PrincipalView::from(one)).version(version))
}

#[derive(Serialize, JsonSchema)]
struct TokenView {
    /// Its id; no secret.
    id: Uuid,
    /// Whose.
    principal: String,
    /// What for.
    label: String,
    /// At most these rights; none: whatever the principal may.
    rights: Option<Vec<String>>,
    /// Only about runs of these workflows; none: of all.
    workflows: Option<Vec<String>>,
    /// Since when.
    created_at: Time,
    /// By whom.
    created_by: String,
    /// Until when.
    expires_at: Time,
    /// Since when not any more.
    revoked_at: Option<Time>,
    /// About when it was last used.
    used_at: Option<Time>,
}

impl From<Token> for TokenView {
    fn from(one: Token) -> Self {
        let Token {
            id,
            principal,
            label,
            rights,
            workflows,
            created_at,
            created_by,
            expires_at,
            revoked_at,
            used_at,
        } = one;
        Self {
            id,
            principal,
            label,
            rights,
            workflows,
            created_at,
            created_by,
            expires_at,
            revoked_at,
            used_at,
        }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WhichTokens {
    /// Only of this principal.
    #[serde(default)]
    principal: Option<String>,
    /// At most so many: 1 to 500.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<u32>,
    /// `next` of the page before.
    #[serde(default)]
    cursor: Option<Uuid>,
}

async fn tokens(permit: Permit, ask: Ask<(), WhichTokens, ()>) -> Result<Reply<Page<TokenView>>, Problem> {
    let limit = limited(ask.query.limit)?;
    no_nul("query/principal", ask.query.principal.as_deref().unwrap_or_default())?;
    let principal = ask.query.principal.as_deref();
    let mut found = permit.store().tokens(principal, ask.query.cursor, i64::from(limit) + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = more.then(|| found.last().map(|one| one.id.to_string())).flatten();
    Ok(Reply::new(Page { items: found.into_iter().map(TokenView::from).collect(), next }))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// Whose.
    principal: String,
    /// What for.
    #[schemars(length(min = 1, max = 200))]
    label: String,
    /// At most these rights. Left out: whatever the principal may.
    #[serde(default)]
    rights: Option<Vec<Right>>,
    /// Only about runs of these workflows. Left out: of all.
    #[serde(default)]
    workflows: Option<Vec<String>>,
    /// For so many days, 1 to 366. Left out: 90.
    #[serde(default)]
    #[schemars(range(min = 1, max = 366))]
    days: Option<u32>,
}

#[derive(Serialize, JsonSchema)]
struct MadeToken {
    /// Its id; no secret.
    id: Uuid,
    /// Whose.
    principal: String,
    /// Its text. It stands nowhere else; send it as `Authorization: Bearer …`.
    token: String,
    /// Until when it is good.
    expires_at: Time,
}

/// A token's text: random, and long.
pub fn fresh_text() -> Result<String, Problem> {
    let mut bytes = [0; 32];
    crate::seal::random(&mut bytes)
        .map_err(|_| Problem::new(&super::problem::INTERNAL, "there is no randomness"))?;
    Ok(format!("{TOKEN_PREFIX}{}", hex::encode(bytes)))
}

async fn add_token(permit: Permit, ask: Ask<(), (), InJson<Asked>>) -> Result<Made<MadeToken>, Problem> {
    let Asked { principal, label, rights, workflows, days } = ask.body.0;
    no_nul("body/principal", &principal)?;
    if label.is_empty() || label.chars().count() > 200 || label.chars().any(char::is_control) {
        return Err(Problem::at(
            &BAD_REQUEST,
            "body/label",
            "it has 1 to 200 characters, none of them control characters",
        ));
    }
    let days = days.unwrap_or(TOKEN_DAYS);
    if !(1..=366).contains(&days) {
        return Err(Problem::at(&BAD_REQUEST, "body/days", "it is 1 to 366"));
    }
    if permit.caller().token.rights.is_some() || permit.workflows().is_some() {
        return Err(Problem::new(&FORBIDDEN, "a token with fewer rights than its owner makes no tokens"));
    }
    if let Some(before) = known(&permit, ask.key.as_deref(), &ask.digest).await? {
        return Ok(Made::new(before));
    }
    let text = fresh_text()?;
    let token = NewToken {
        id: Uuid::now_v7(),
        principal: principal.clone(),
        hash: digest(&text),
        label: label.clone(),
        rights: rights.map(|rights| rights.into_iter().map(|right| right.name().to_owned()).collect()),
        workflows,
        created_by: permit.who().to_owned(),
        expires_at: Utc::now() + TimeDelta::days(i64::from(days)),
    };
    let made =
        MadeToken { id: token.id, principal: principal.clone(), token: text, expires_at: token.expires_at };
    let details = json!({ "token": token.id, "label": label, "rights": token.rights, "workflows": token.workflows,
        "expires_at": token.expires_at });
    let mut change = permit.change(&principal, details);
    change.kept = permit.kept(ask.key.as_deref(), &ask.digest, 201, &json!(made))?;
    match permit.store().add_token(&token, &change).await? {
        Changed::Done(_) => Ok(Made::new(made)),
        Changed::Known => match known(&permit, ask.key.as_deref(), &ask.digest).await? {
            Some(before) => Ok(Made::new(before)),
            None => Err(Problem::new(&CONFLICT, "it was asked twice at the same time; ask again")),
        },
        _ => Err(Problem::new(&NOT_FOUND, format!("there is no principal {principal}, or it is disabled"))),
    }
}

async fn known(permit: &Permit, key: Option<&str>, digest: &[u8]) -> Result<Option<MadeToken>, Problem> {
    #[derive(Deserialize)]
    struct Before {
        id: Uuid,
        principal: String,
        token: String,
        expires_at: Time,
    }
    let before = permit.answered(key, digest).await?;
    let before = before.and_then(|before| serde_json::from_value::<Before>(before).ok());
    Ok(before.map(|Before { id, principal, token, expires_at }| MadeToken {
        id,
        principal,
        token,
        expires_at,
    }))
}

#[derive(Deserialize, JsonSchema)]
struct OfToken {
    /// The token's id.
    id: Uuid,
}

async fn revoke(permit: Permit, ask: Ask<OfToken, (), ()>) -> Result<Done, Problem> {
    let id = ask.path.id;
    let change = permit.change(id.to_string(), json!(null));
    match permit.store().revoke_token(id, &change).await? {
        Changed::Done(_) => Ok(Done),
        // Revoked before: it is as it was asked.
        _ if permit.store().has_token(id).await? => Ok(Done),
        _ => Err(Problem::new(&NOT_FOUND, format!("there is no token {id}"))),
    }
}
