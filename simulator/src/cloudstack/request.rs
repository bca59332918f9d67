//! A request: its parameters, its signature, and who asks.

use std::borrow::Cow;
use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::{RawQuery, State as Shared};
use axum::http::Response;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use uuid::Uuid;

use super::commands;
use crate::answer::{Answer, answer};
use crate::faults::Fault;
use crate::world::moves::Refusal;
use crate::world::things::Account;
use crate::world::{Cause, State, World};

/// A call that was let in.
#[derive(Clone)]
pub struct Asked {
    /// Which command.
    pub command: String,
    /// With what.
    pub params: Params,
    /// By whom.
    pub account: Account,
    /// For which system: `cloudstack` itself, unless the Volume Daemon calls it.
    pub by: String,
    /// What goes wrong, where that is for the command to do.
    pub fault: Option<Fault>,
}

impl Asked {
    /// Why something changes.
    pub fn cause(&self) -> Cause {
        let names = ["id", "virtualmachineid", "volumeid", "resourceids", "name", "jobid"];
        let key = names.iter().find_map(|name| self.params.get(name)).unwrap_or_default();
        Cause::new(&self.by, self.command.clone(), key)
    }

    /// A VM that is there, and that the caller may use.
    pub fn may_use_vm(&self, state: &State, id: Uuid) -> Result<(), Refusal> {
        self.may_use(&state.vm(id)?.account)
    }

    /// A volume that is there, and that the caller may use.
    pub fn may_use_volume(&self, state: &State, id: Uuid) -> Result<(), Refusal> {
        self.may_use(&state.volume(id)?.account)
    }

    fn may_use(&self, owner: &str) -> Result<(), Refusal> {
        if self.account.root_admin || self.account.name == owner {
            return Ok(());
        }
        Err(Refusal {
            code: 531,
            cs: 4365,
            text: format!(
                "Account {} does not have permission to operate with resource of {owner}",
                self.account.name
            ),
        })
    }

    /// What was deleted is there again after a while.
    pub fn reappear(&self, world: &World, ms: u64, back: impl FnOnce(&mut State) + Send + 'static) {
        let cause = self.cause();
        world.change_after(ms, Cause { call: format!("{} comes undone", cause.call), ..cause }, back);
    }
}

/// The parameters, by their names in lower case.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<String, String>);

impl Params {
    /// Parameters that were not sent over HTTP.
    pub fn of(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(name, value)| (name.to_lowercase(), (*value).to_owned())).collect())
    }

    /// One that is there and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// One that must be there.
    pub fn need(&self, name: &str) -> Result<&str, Refusal> {
        self.get(name).ok_or_else(|| {
            Refusal::code(431, format!("Unable to execute API command due to missing parameter {name}"))
        })
    }

    /// An id that may be there.
    pub fn id(&self, name: &str) -> Result<Option<Uuid>, Refusal> {
        self.get(name).map(|value| parse_id(name, value)).transpose()
    }

    /// An id that must be there.
    pub fn need_id(&self, name: &str) -> Result<Uuid, Refusal> {
        parse_id(name, self.need(name)?)
    }

    /// Ids with commas between them.
    pub fn ids(&self, name: &str) -> Result<Vec<Uuid>, Refusal> {
        let values = self.get(name).unwrap_or_default().split(',').filter(|value| !value.is_empty());
        values.map(|value| parse_id(name, value)).collect()
    }

    /// Yes or no.
    pub fn flag(&self, name: &str, otherwise: bool) -> bool {
        self.get(name).map_or(otherwise, |value| value.eq_ignore_ascii_case("true"))
    }

    /// A number that may be there.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let wrong = |value| {
            Refusal::code(
                431,
                format!(
                    "Unable to execute API command due to invalid value. Invalid parameter {name} value={value}"
                ),
            )
        };
        self.get(name).map(|value| value.parse().map_err(|_| wrong(value))).transpose()
    }

    /// `tags[0].key=…&tags[0].value=…`. A key alone has no value.
    pub fn pairs(&self, name: &str) -> BTreeMap<String, Option<String>> {
        self.numbered(name)
            .into_values()
            .filter_map(|mut one| Some((one.remove("key")?, one.remove("value"))))
            .collect()
    }

    /// `details[0].cpunumber=…&details[0].memory=…`, as names and values.
    pub fn details(&self, name: &str) -> BTreeMap<String, String> {
        self.numbered(name).into_values().flatten().collect()
    }

    /// `name[n].field=value`, by n.
    pub fn numbered(&self, name: &str) -> BTreeMap<u32, BTreeMap<String, String>> {
        let mut found: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
        for (key, value) in &self.0 {
            let Some(rest) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('[')) else { continue };
            let Some((number, field)) = rest.split_once("].") else { continue };
            if let Ok(number) = number.parse() {
                found.entry(number).or_default().insert(field.to_owned(), value.clone());
            }
        }
        found
    }
}

fn parse_id(name: &str, value: &str) -> Result<Uuid, Refusal> {
    value.parse().map_err(|_| {
        Refusal::code(431, format!("Unable to execute API command due to invalid value. Invalid parameter {name} value={value} due to incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the field in api cmd class."))
    })
}

/// `GET /client/api`
pub async fn get(Shared(world): Shared<World>, RawQuery(query): RawQuery) -> Response<Body> {
    handle(world, query.unwrap_or_default(), false).await
}

/// `POST /client/api`
pub async fn post(Shared(world): Shared<World>, RawQuery(query): RawQuery, body: Bytes) -> Response<Body> {
    let form = String::from_utf8_lossy(&body);
    handle(world, [query.unwrap_or_default().as_str(), &form].join("&"), true).await
}

async fn handle(world: World, raw: String, post: bool) -> Response<Body> {
    let sent: Vec<(String, String)> = raw
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        })
        .collect();
    let params = Params(sent.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect());
    let command = params.get("command").unwrap_or_default().to_owned();
    let fault = world.faults().draw("cloudstack", &command);
    let key = match commands::find(&command) {
        Some(_) => format!("{}response", command.to_lowercase()),
        None => "errorresponse".to_owned(),
    };
    let strings = world.look(|state| state.settings.cloudstack.numbers_as_strings);
    answer(
        fault,
        |code, text| refused(&key, &Refusal::code(code, text)),
        async |fault| {
            let told = let_in(&world, &sent, params, command.clone(), post, fault)
                .and_then(|asked| commands::answer(&world, asked));
            match told {
                Ok(mut body) => {
                    if strings {
                        to_strings(&mut body);
                    }
                    Answer::json(200, &json!({ &key: body }))
                }
                Err(refusal) => refused(&key, &refusal),
            }
        },
    )
    .await
}

fn refused(key: &str, refusal: &Refusal) -> Answer {
    let body = json!({ key: {
        "uuidList": [], "errorcode": refusal.code, "cserrorcode": refusal.cs, "errortext": refusal.text,
    } });
    Answer::json(refusal.code, &body).with("x-description", refusal.text.clone())
}

/// Numbers, and yes and no, as old releases say them.
fn to_strings(value: &mut Value) {
    match value {
        Value::Number(number) => *value = Value::String(number.to_string()),
        Value::Bool(yes) => *value = Value::String(yes.to_string()),
        Value::Array(values) => values.iter_mut().for_each(to_strings),
        Value::Object(values) => values.values_mut().for_each(to_strings),
        Value::Null | Value::String(_) => {}
    }
}

/// Who asks, if the signature is theirs and still good: otherwise the answer is always the same.
fn let_in(
    world: &World,
    sent: &[(String, String)],
    params: Params,
    command: String,
    post: bool,
    fault: Option<Fault>,
) -> Result<Asked, Refusal> {
    let stranger = || Refusal::code(401, "unable to verify user credentials and/or request signature");
    if fault == Some(Fault::CredentialsExpire) {
        let key = params.get("apikey").unwrap_or_default();
        world.change(Cause::new("cloudstack", "credentials expire", key), |state| {
            state
                .accounts
                .iter_mut()
                .filter(|account| account.key == key)
                .for_each(|account| account.expired = true);
        });
    }
    let (account, enforced) = world.look(|state| {
        let key = params.get("apikey").unwrap_or_default();
        let account = state.accounts.iter().find(|account| account.key == key && !account.expired).cloned();
        (account, state.settings.cloudstack.enforce_post_and_timestamps)
    });
    let account = account.ok_or_else(stranger)?;
    let signature = params.get("signature").ok_or_else(stranger)?;
    if signature != sign(sent, &account.secret) {
        return Err(stranger());
    }
    let v3 = params.get("signatureversion") == Some("3");
    if v3 {
        let expires = params.get("expires").ok_or_else(stranger)?;
        let until =
            DateTime::parse_from_str(expires, "%Y-%m-%dT%H:%M:%S%z").map_err(|_| stranger())?.to_utc();
        if until < Utc::now() || (enforced && until > Utc::now() + TimeDelta::minutes(15)) {
            return Err(stranger());
        }
    }
    let Some(found) = commands::find(&command) else {
        return Err(Refusal::code(
            401,
            format!("The given command:{command} does not exist or it is not available for user"),
        ));
    };
    if enforced && (!v3 || (!post && !found.only_reads())) {
        return Err(stranger());
    }
    if !account.root_admin && world.look(|state| state.configured("api.throttling.enabled")) {
        world.change(Cause::new("cloudstack", "throttle", ""), |state| throttle(state, &account))?;
    }
    Ok(Asked { command, params, account, by: "cloudstack".to_owned(), fault })
}

/// So many calls of an account in a second.
fn throttle(state: &mut State, account: &Account) -> Result<(), Refusal> {
    let most = state.configurations.get("api.throttling.max").and_then(|n| n.parse().ok()).unwrap_or(25_u32);
    let now = Utc::now();
    let calls = state.cloudstack.throttle.entry(account.id).or_default();
    if calls.0 != now.timestamp() {
        *calls = (now.timestamp(), 0);
    }
    calls.1 += 1;
    if calls.1 > most {
        let left = 1000 - now.timestamp_subsec_millis().min(999);
        return Err(Refusal::code(
            429,
            format!("The given user has reached his/her account api limit, please retry after [{left}] ms."),
        ));
    }
    Ok(())
}

/// What Java's URLEncoder leaves alone.
const JAVA: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'*').remove(b'_');

/// The signature: names sorted as they are, values encoded as Java does it, all of it in lower case, HMAC-SHA1, base64.
pub fn sign(sent: &[(String, String)], secret: &str) -> String {
    let mut sorted: Vec<_> =
        sent.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("signature")).collect();
    sorted.sort();
    let text: Vec<String> = sorted
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, JAVA)).to_lowercase())
        .collect();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    base64(ring::hmac::sign(&key, text.join("&").as_bytes()).as_ref())
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().chain([&0, &0]).take(3).fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            let letter = LETTERS.get(bits >> (18 - 6 * place) & 63).copied().unwrap_or(b'=');
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

fn decoded(text: &str) -> String {
    let spaced: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
    percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the test suites of two clients that work with the real thing.
    #[test]
    fn the_signatures_that_others_published_are_ours() {
        let signed = |params: &[(&str, &str)]| {
            let fixed = [("apiKey", "foo"), ("response", "json"), ("command", "listVirtualMachines")];
            let sent =
                fixed.iter().chain(params).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            sign(&sent.collect::<Vec<_>>(), "bar")
        };
        assert_eq!(signed(&[("listall", "true")]), "B0d6hBsZTcFVCiioSxzwKA9Pke8=");
        assert_eq!(signed(&[("listall", "1"), ("unicode_param", "éèààû")]), "gABU/KFJKD3FLAgKDuxQoryu4sA=");
    }

    #[test]
    fn base64_pads() {
        for (plain, encoded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn parameters_with_numbers_are_put_together() {
        let params = Params::of(&[
            ("tags[0].key", "a"),
            ("tags[0].value", "1"),
            ("tags[1].key", "b"),
            ("details[0].cpuNumber", "2"),
            ("details[0].memory", "512"),
        ]);
        assert_eq!(
            params.pairs("tags"),
            BTreeMap::from([("a".into(), Some("1".into())), ("b".into(), None)])
        );
        assert_eq!(
            params.details("details"),
            BTreeMap::from([("cpunumber".into(), "2".into()), ("memory".into(), "512".into())])
        );
    }
}
