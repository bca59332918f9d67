//! Secrets: set and listed, never shown; and the keys that seal them.

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, header};
use backstay_activities::http::Origin;
use backstay_activities::secrets::{LEAST, MOST};
use backstay_engine::machine::Time;
use backstay_engine::store::access::{Changed, StoredSecret};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::gate::Permit;
use super::operation::{Ask, Content, Done, InJson, Operation, Reply, operation};
use super::people::no_nul;
use super::problem::{
    BAD_REQUEST, CONFLICT, INTERNAL, KEY_REUSED, MOVED, NOT_FOUND, NOT_HERE, PRECONDITION_REQUIRED, Problem,
    UNSUPPORTED,
};
use super::rights::Right;
use super::runs::limited;
use super::views::Page;
use crate::seal::Keyring;
use crate::vault;

/// Keys that are sealed anew in one request.
const BATCH: i64 = 100;
/// Origins, and programs, of one secret.
const PLACES: usize = 50;

pub(super) fn operations() -> Vec<Operation> {
    vec![
        operation(Method::GET, "/secrets", "listSecrets", Right::Admin, list)
            .about("secrets", "Lists secrets: their names, and never their texts.")
            .fails(&[&NOT_HERE]),
        operation(Method::GET, "/secrets/{name}", "getSecret", Right::Admin, one)
            .about("secrets", "What may be known of a secret. Its text is shown to nobody.")
            .fails(&[&NOT_FOUND, &NOT_HERE]),
        operation(Method::PUT, "/secrets/{name}", "setSecret", Right::Admin, set)
            .about("secrets", "Sets a secret, and where it may go. One that is there is replaced, text and all, and its ETag has to be sent as If-Match; calls use the new text from the next one on.")
            .fails(&[&MOVED, &PRECONDITION_REQUIRED, &KEY_REUSED, &NOT_FOUND, &CONFLICT, &NOT_HERE]),
        operation(Method::DELETE, "/secrets/{name}", "removeSecret", Right::Admin, remove)
            .about("secrets", "Removes a secret. Calls that name it fail from then on.")
            .fails(&[&NOT_FOUND, &MOVED, &KEY_REUSED, &NOT_HERE]),
        operation(Method::GET, "/keys", "listKeys", Right::Admin, keys)
            .about("secrets", "The keys that seal secrets, by name, and how many secrets each of them seals.")
            .fails(&[&NOT_HERE]),
        operation(Method::POST, "/keys/rewrap", "rewrapSecrets", Right::Admin, rewrap)
            .about("secrets", "Seals the next hundred secrets by the current key. What was done stays done: asked again, under another key or none, it goes on with those that are left.")
            .fails(&[&CONFLICT, &KEY_REUSED, &NOT_HERE]),
    ]
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    /// The secret's name.
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct SecretView {
    /// Its name, as plans have it.
    name: String,
    /// The origins that it may be sent to.
    origins: Vec<String>,
    /// The programs that may be given it.
    programs: Vec<String>,
    /// Another with every change, and never the same again; it is the ETag.
    version: i32,
    /// When it was set last.
    changed_at: Time,
    /// By whom.
    changed_by: String,
    /// The name of the key that seals it.
    key: String,
    /// Why it cannot be opened with the keys that this server has; none: it can.
    broken: Option<String>,
}

impl SecretView {
    fn of(stored: StoredSecret, ring: &Keyring) -> Self {
        let broken = vault::open(ring, &stored.secret).err().map(|error| error.to_string());
        let StoredSecret { secret, version, changed_at, changed_by } = stored;
        Self {
            name: secret.name,
            origins: secret.origins,
            programs: secret.programs,
            version,
            changed_at,
            changed_by,
            key: secret.key_id,
            broken,
        }
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

async fn list(permit: Permit, ask: Ask<(), Names, ()>) -> Result<Reply<Page<SecretView>>, Problem> {
    let limit = limited(ask.query.limit)?;
    no_nul("query/cursor", &ask.query.cursor)?;
    let ring = permit.keys()?;
    let mut found = permit.store().secrets(&ask.query.cursor, None, i64::from(limit) + 1).await?;
    let more = found.len() > limit as usize;
    found.truncate(limit as usize);
    let next = more.then(|| found.last().map(|one| one.secret.name.clone())).flatten();
    Ok(Reply::new(Page { items: found.into_iter().map(|one| SecretView::of(one, &ring)).collect(), next }))
}

async fn one(permit: Permit, ask: Ask<Named, (), ()>) -> Result<Reply<SecretView>, Problem> {
    no_nul("path/name", &ask.path.name)?;
    shown(&permit, &ask.path.name).await
}

async fn shown(permit: &Permit, name: &str) -> Result<Reply<SecretView>, Problem> {
    let stored = permit.store().secret(name).await?.ok_or_else(|| gone(name))?;
    let version = stored.version;
    Ok(Reply::new(SecretView::of(stored, &*permit.keys()?)).version(version))
}

fn gone(name: &str) -> Problem {
    Problem::new(&NOT_FOUND, format!("there is no secret \"{}\"", name.escape_debug()))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The text: 4 characters to 64 KiB, and never shown again.
    #[serde(deserialize_with = "hidden")]
    #[schemars(with = "String", length(min = 4, max = 65_536), extend("writeOnly" = true))]
    text: SecretString,
    /// The origins that it may be sent to, such as `https://cloud.example:8443`.
    #[serde(default)]
    #[schemars(length(max = 50))]
    origins: Vec<String>,
    /// The programs, as the configuration names them, that may be given it.
    #[serde(default)]
    #[schemars(length(max = 50))]
    programs: Vec<String>,
}

fn hidden<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

/// A body that holds a secret, perhaps in the wrong place: what is wrong with it is said without a word of it.
struct Hidden(Wanted);

impl Content for Hidden {
    fn read(headers: &HeaderMap, bytes: &Bytes) -> Result<Self, Problem> {
        let clean = |problem: Problem| match problem.is(&UNSUPPORTED) {
            true => problem,
            false => Problem::at(
                &BAD_REQUEST,
                "body",
                "it looks like {\"text\": \"…\", \"origins\": [\"https://cloud.example\"], \"programs\": []}; as it may hold a \
                 secret, nothing of it is repeated here",
            ),
        };
        InJson::<Wanted>::read(headers, bytes).map(|InJson(wanted)| Self(wanted)).map_err(clean)
    }

    fn schema(generator: &mut SchemaGenerator) -> Option<Schema> {
        InJson::<Wanted>::schema(generator)
    }
}

impl Wanted {
    fn checked(mut self) -> Result<Self, Problem> {
        let wrong = |at: &str, what: String| Problem::at(&BAD_REQUEST, format!("body/{at}"), what);
        if !(LEAST..=MOST).contains(&self.text.expose_secret().len()) {
            return Err(wrong("text", format!("it has {LEAST} to {MOST} bytes")));
        }
        for origin in &mut self.origins {
            *origin = Origin::parse(origin).map_err(|what| wrong("origins", what))?.to_string();
        }
        let name = |name: &String| (1..=100).contains(&name.len()) && !name.chars().any(char::is_control);
        if !self.programs.iter().all(name) {
            return Err(wrong(
                "programs",
                "a name has 1 to 100 characters, none of them control characters".into(),
            ));
        }
        for (at, list) in [("origins", &mut self.origins), ("programs", &mut self.programs)] {
            list.sort_unstable();
            list.dedup();
            if list.len() > PLACES {
                return Err(wrong(at, format!("there are at most {PLACES}")));
            }
        }
        if self.origins.is_empty() && self.programs.is_empty() {
            return Err(wrong("origins", "it may go nowhere: name origins, or programs".into()));
        }
        Ok(self)
    }

    /// Of everything but the text: it is kept as it is, and a plain digest of a short text can be guessed back.
    fn digest(&self, name: &str, seen: Option<i64>) -> Vec<u8> {
        let asked = json!(["setSecret", name, self.origins, self.programs, seen]);
        Sha256::digest(asked.to_string()).to_vec()
    }

    /// Of the text. It is kept sealed.
    fn text_digest(&self) -> Value {
        json!(hex::encode(Sha256::digest(self.text.expose_secret())))
    }
}

async fn set(permit: Permit, ask: Ask<Named, (), Hidden>) -> Result<Reply<SecretView>, Problem> {
    let name = ask.path.name;
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || name.len() > 100 || !name.chars().all(good) {
        return Err(Problem::at(
            &BAD_REQUEST,
            "path/name",
            "it has letters, digits, and . _ - , and begins with one of the first two",
        ));
    }
    let wanted = ask.body.0.checked()?;
    let (key, digest, of) = (ask.key.as_deref(), wanted.digest(&name, ask.if_match), wanted.text_digest());
    // Asked again, since the first answer was lost: it was done then.
    if known(&permit, key, &digest, &of).await? {
        return shown(&permit, &name).await;
    }
    let now = permit.store().secret(&name).await?;
    let seen = match (ask.if_match, now) {
        (Some(seen), _) => i32::try_from(seen).unwrap_or(-1),
        (None, None) => 0,
        (None, Some(now)) if ask.headers.contains_key(header::IF_MATCH) => now.version,
        (None, Some(_)) => {
            return Err(Problem::new(
                &PRECONDITION_REQUIRED,
                format!("there is a secret \"{name}\" already; to replace it, send its ETag as If-Match"),
            ));
        }
    };
    let ring = permit.keys()?;
    let Wanted { text, origins, programs } = wanted;
    let details =
        json!({ "origins": origins, "programs": programs, "key": ring.current(), "in_place_of": seen });
    let secret = vault::seal(&ring, &name, &text, origins, programs).map_err(unsealed)?;
    let mut change = permit.change(&name, details);
    change.kept = permit.kept(key, &digest, 200, &json!({ "of": of }))?;
    match permit.store().put_secret(&secret, seen, permit.who(), &change).await? {
        Changed::Done(_) => shown(&permit, &name).await,
        Changed::Known if known(&permit, key, &digest, &of).await? => shown(&permit, &name).await,
        Changed::Known => Err(Problem::new(&CONFLICT, "it was asked twice at the same time; ask again")),
        _ => Err(Problem::new(&MOVED, format!("the secret \"{name}\" has been changed since it was read"))),
    }
}

/// Whether the same was asked, and done, under this key.
async fn known(permit: &Permit, key: Option<&str>, digest: &[u8], of: &Value) -> Result<bool, Problem> {
    match permit.answered(key, digest).await? {
        None => Ok(false),
        Some(before) if before.get("of") == Some(of) => Ok(true),
        Some(_) => Err(Problem::new(&KEY_REUSED, "something else was asked under this key")),
    }
}

fn unsealed(error: impl std::fmt::Display) -> Problem {
    tracing::error!(%error, "a secret cannot be sealed");
    Problem::new(&INTERNAL, "the secret cannot be sealed; the log says why")
}

async fn remove(permit: Permit, ask: Ask<Named, (), ()>) -> Result<Done, Problem> {
    let name = ask.path.name;
    no_nul("path/name", &name)?;
    let key = ask.key.as_deref();
    let seen = ask.if_match.map(|seen| i32::try_from(seen).unwrap_or(-1));
    let mut change = permit.change(&name, json!(null));
    change.kept = permit.kept(key, &ask.digest, 204, &json!({ "removed": name }))?;
    match permit.store().drop_secret(&name, seen, &change).await? {
        Changed::Done(_) => Ok(Done),
        _ if permit.answered(key, &ask.digest).await?.is_some() => Ok(Done),
        Changed::Moved => {
            Err(Problem::new(&MOVED, format!("the secret \"{name}\" has been changed since it was read")))
        }
        _ => Err(gone(&name)),
    }
}

#[derive(Serialize, JsonSchema)]
struct KeyView {
    /// Its name; the key itself is shown to nobody.
    name: String,
    /// It seals what is new.
    current: bool,
    /// This server has it.
    here: bool,
    /// Secrets that it seals.
    secrets: i64,
}

async fn keys(permit: Permit, _: Ask<(), (), ()>) -> Result<Reply<Vec<KeyView>>, Problem> {
    let ring = permit.keys()?;
    let sealed = permit.store().secrets_by_key().await?;
    let mut names: Vec<_> = ring.names().map(str::to_owned).collect();
    names.extend(sealed.iter().map(|(name, _)| name.clone()));
    names.sort_unstable();
    names.dedup();
    let view = |name: String| KeyView {
        current: name == ring.current(),
        here: ring.names().any(|here| here == name),
        secrets: sealed.iter().find(|(key, _)| *key == name).map_or(0, |(_, count)| *count),
        name,
    };
    Ok(Reply::new(names.into_iter().map(view).collect()))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct After {
    /// `next` of the batch before.
    #[serde(default)]
    after: String,
}

/// What became of a batch.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Rewrapped {
    /// The key that is current.
    key: String,
    /// So many are sealed by it now that were not before.
    resealed: u64,
    /// So many are sealed by others still, those of `failed` among them.
    left: i64,
    /// Those of this batch that cannot be opened; they are as they were.
    failed: Vec<Failed>,
    /// Where the next batch begins; none: this was the last one.
    next: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Failed {
    /// The secret.
    name: String,
    /// Why it cannot be opened.
    why: String,
}

async fn rewrap(permit: Permit, ask: Ask<(), After, ()>) -> Result<Reply<Rewrapped>, Problem> {
    no_nul("query/after", &ask.query.after)?;
    let idempotency = ask.key.as_deref();
    // Each time some secret of the batch was set anew between the look and the change.
    for _ in 0..5 {
        if let Some(before) = permit.answered(idempotency, &ask.digest).await? {
            return serde_json::from_value(before).map(Reply::new).map_err(unsealed);
        }
        let ring = permit.keys()?;
        let key = ring.current().to_owned();
        let batch = permit.store().secrets(&ask.query.after, Some(&key), BATCH).await?;
        let (mut keys, mut failed) = (Vec::new(), Vec::new());
        for one in &batch {
            match vault::reseal(&ring, &one.secret) {
                Ok(resealed) => keys.push(resealed),
                Err(error) => failed.push(Failed { name: one.secret.name.clone(), why: error.to_string() }),
            }
        }
        let others = permit.store().secrets_by_key().await?.into_iter().filter(|(name, _)| *name != key);
        let left = others.map(|(_, count)| count).sum::<i64>() - keys.len() as i64;
        let more = batch.len() as i64 == BATCH;
        let next = more.then(|| batch.last().map(|one| one.secret.name.clone())).flatten();
        let names: Vec<_> = keys.iter().map(|one| &one.name).collect();
        let mut change = permit.change("secrets", json!({ "key": key, "names": names }));
        let done = Rewrapped { key, resealed: keys.len() as u64, left, failed, next };
        if keys.is_empty() && idempotency.is_none() {
            return Ok(Reply::new(done));
        }
        change.kept = permit.kept(idempotency, &ask.digest, 200, &json!(done))?;
        if matches!(permit.store().reseal(&keys, &change).await?, Changed::Done(_)) {
            return Ok(Reply::new(done));
        }
    }
    Err(Problem::new(&CONFLICT, "the secrets are being changed at the same time; ask again"))
}
