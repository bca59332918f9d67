//! Secrets are named, never written: a plan, an input and a journal hold `{"secret": "name"}`, and the text is opened in
//! the worker, for one call, where the configuration says that it may go.
//!
//! What comes back is scrubbed: an answer that repeats the secret is kept without it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use async_trait::async_trait;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::Origin;

/// Where secrets are kept.
#[async_trait]
pub trait Secrets: Send + Sync + 'static {
    /// The secret of that name. The error is a sentence for people, and never holds the text.
    async fn open(&self, name: &str) -> Result<Secret, SecretError>;
}

/// A secret, opened for one call.
pub struct Secret {
    /// The text.
    pub text: SecretString,
    /// Where it may be sent.
    pub origins: Vec<Origin>,
    /// The programs, as `command` knows them, that may be given it.
    pub programs: Vec<String>,
    /// Who says so.
    pub said: Said,
}

/// Who says where a secret may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The configuration.
    Settings,
    /// Whoever set it: it is kept with it.
    Setter,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("origins", &self.origins).field("programs", &self.programs).finish()
    }
}

/// Why a secret is not given.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It will not be given later either.
    #[error("{0}")]
    Refused(String),
    /// It cannot be read now.
    #[error("{0}")]
    Unreadable(String),
}

/// Where a secret may go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretUse {
    /// The origins that it may be sent to, such as `https://cloud.example:8443`.
    pub origins: Vec<String>,
    /// The programs that may be given it.
    pub programs: Vec<String>,
}

/// There are none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSecrets;

#[async_trait]
impl Secrets for NoSecrets {
    async fn open(&self, name: &str) -> Result<Secret, SecretError> {
        Err(SecretError::Refused(format!(
            "there is no secret \"{name}\", as no secrets are configured: set secrets.dir to a folder with one file each"
        )))
    }
}

/// A folder with one file for each secret, named after it, as systemd and others hand credentials to a service. The
/// files are read at each use, so a new text is used from the next call on.
#[derive(Clone, Debug)]
pub struct FileSecrets {
    dir: PathBuf,
    uses: BTreeMap<String, (Vec<Origin>, Vec<String>)>,
}

/// Larger ones are not read.
pub const MOST: usize = 64 << 10;
/// Shorter ones could not be scrubbed without making a hash of every text.
pub const LEAST: usize = 4;
/// Shorter ones are so short when they are encoded that they might stand anywhere.
const LEAST_ENCODED: usize = 8;

impl FileSecrets {
    /// Over a folder. What is not named in `uses` may go nowhere.
    pub fn new(dir: impl Into<PathBuf>, uses: &BTreeMap<String, SecretUse>) -> Result<Self, String> {
        let mut known = BTreeMap::new();
        for (name, one) in uses {
            let origins: Result<Vec<_>, _> = one.origins.iter().map(|text| Origin::parse(text)).collect();
            let origins = origins.map_err(|wrong| format!("the secret \"{name}\": {wrong}"))?;
            known.insert(name.clone(), (origins, one.programs.clone()));
        }
        Ok(Self { dir: dir.into(), uses: known })
    }

    /// Whether the folder has a file of that name. A folder that is not there says nothing about its files.
    pub async fn has(&self, name: &str) -> Result<bool, SecretError> {
        let path = self.path(name)?;
        let there = match tokio::fs::symlink_metadata(&path).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tokio::fs::metadata(&self.dir).await.map(|_| false)
            }
            other => other.map(|_| true),
        };
        there.map_err(|error| {
            SecretError::Unreadable(format!(
                "whether the folder of secrets.dir has \"{name}\" is not known: {error}"
            ))
        })
    }

    fn path(&self, name: &str) -> Result<PathBuf, SecretError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(fits) {
            return Err(SecretError::Refused(format!(
                "\"{}\" is no name of a secret; it has letters, digits, and - _ . between them",
                name.escape_debug()
            )));
        }
        Ok(self.dir.join(name))
    }
}

#[async_trait]
impl Secrets for FileSecrets {
    async fn open(&self, name: &str) -> Result<Secret, SecretError> {
        let path = self.path(name)?;
        let Some((origins, programs)) = self.uses.get(name).cloned() else {
            return Err(SecretError::Refused(format!(
                "the secret \"{name}\" may go nowhere: name the origins or programs that may have it in \
                 secrets.uses.{name}"
            )));
        };
        let unreadable = |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => SecretError::Refused(format!(
                "there is no secret \"{name}\": the folder of secrets.dir has no file of that name"
            )),
            _ => SecretError::Unreadable(format!("the secret \"{name}\" cannot be read: {error}")),
        };
        let about = tokio::fs::metadata(&path).await.map_err(unreadable)?;
        if about.mode() & 0o007 != 0 {
            return Err(SecretError::Refused(format!(
                "the file of the secret \"{name}\" is open to every user of this machine; take that away (chmod o= FILE)"
            )));
        }
        if !about.is_file() || about.len() > MOST as u64 {
            return Err(SecretError::Refused(format!(
                "the secret \"{name}\" is no file of at most {MOST} bytes"
            )));
        }
        let text = tokio::fs::read_to_string(&path).await.map_err(unreadable)?;
        // Editors end files with a line break; no password does.
        let text = SecretString::from(text.trim_end_matches(['\r', '\n']));
        if text.expose_secret().len() < LEAST {
            return Err(SecretError::Refused(format!(
                "the secret \"{name}\" is shorter than {LEAST} characters"
            )));
        }
        Ok(Secret { text, origins, programs, said: Said::Settings })
    }
}

/// The secrets of one call, for taking them out of whatever comes back.
#[derive(Default)]
pub struct Scrub {
    /// Each way in which a secret may be repeated, the longest first, and its name.
    forms: Vec<(SecretString, String)>,
}

impl std::fmt::Debug for Scrub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scrub of {} forms", self.forms.len())
    }
}

impl Scrub {
    /// Takes this one out from now on.
    pub fn learn(&mut self, name: &str, text: &SecretString) {
        let text = text.expose_secret();
        let mut forms = vec![
            text.to_owned(),
            text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;"),
            utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
            utf8_percent_encode(text, UNRESERVED).to_string(),
            url::form_urlencoded::byte_serialize(text.as_bytes()).collect(),
        ];
        forms.extend(
            forms.clone().into_iter().filter(|form| form.contains('%')).map(|form| form.to_lowercase()),
        );
        // As a text of JSON, in the ways of several libraries; and as a text of JSON that is a text of JSON.
        let quoted = quote(text);
        for mut form in
            [quoted.clone(), ascii(&quoted), quoted.replace('/', "\\/"), ascii(&quoted).replace('/', "\\/")]
        {
            forms.push(form.clone());
            for _ in 0..2 {
                form = quote(&form);
                forms.push(form.clone());
            }
        }
        if text.len() >= LEAST_ENCODED {
            forms.extend(encoded(text.as_bytes()));
        }
        // A key of many lines may come back line by line.
        forms.extend(text.lines().filter(|line| line.len() >= 8).map(str::to_owned));
        forms.retain(|form| form.len() >= LEAST);
        self.forms.extend(forms.into_iter().map(|form| (SecretString::from(form), name.to_owned())));
        self.forms.sort_by_key(|(form, _)| std::cmp::Reverse(form.expose_secret().len()));
        self.forms.dedup_by(|a, b| a.0.expose_secret() == b.0.expose_secret());
    }

    /// The text without them, and without the one character that Postgres cannot keep.
    pub fn text(&self, text: &str) -> String {
        let mut out = text.replace('\0', "\u{fffd}");
        for (form, name) in &self.forms {
            if out.contains(form.expose_secret()) {
                out = out.replace(form.expose_secret(), &format!("[secret {name}]"));
            }
        }
        out
    }

    /// The same for a text that was cut off at its end: there may be the beginning of one there.
    pub fn text_cut(&self, text: &str) -> String {
        // A character that was cut in two.
        let mut end = text.strip_suffix('\u{fffd}').unwrap_or(text);
        for (form, _) in &self.forms {
            let form = form.expose_secret();
            let begun =
                (1..form.len()).rev().filter_map(|n| form.get(..n)).find(|begun| end.ends_with(begun));
            end = begun.and_then(|begun| end.strip_suffix(begun)).unwrap_or(end);
        }
        self.text(end)
    }

    /// The same for a text whose beginning was cut off.
    pub fn text_cut_before(&self, text: &str) -> String {
        let mut start = text.trim_start_matches('\u{fffd}');
        for (form, _) in &self.forms {
            let form = form.expose_secret();
            let rest = (1..form.len()).filter_map(|n| form.get(n..)).find(|rest| start.starts_with(rest));
            start = rest.and_then(|rest| start.strip_prefix(rest)).unwrap_or(start);
        }
        self.text(start)
    }

    /// The same for every text in a value.
    pub fn value(&self, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(&text).into(),
            // A secret of digits comes back as a number.
            Value::Number(number) => {
                let text = number.to_string();
                let clean = self.text(&text);
                if clean == text { Value::Number(number) } else { clean.into() }
            }
            Value::Array(items) => items.into_iter().map(|item| self.value(item)).collect(),
            Value::Object(map) => {
                map.into_iter().map(|(key, item)| (self.text(&key), self.value(item))).collect()
            }
            other => other,
        }
    }
}

/// What is not escaped in a URL.
const UNRESERVED: &percent_encoding::AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// As it stands in JSON, without the quotation marks around it.
fn quote(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default().to_owned()
}

/// In hexadecimal, and in base64 wherever it begins in what was encoded: without the characters that others have a part in.
fn encoded(bytes: &[u8]) -> Vec<String> {
    let lower: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![lower.to_uppercase(), lower];
    for before in 0..3 {
        let padded: Vec<u8> = std::iter::repeat_n(0, before).chain(bytes.iter().copied()).collect();
        let (first, last) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
        let digit = |at: usize| {
            let six = (0..6).fold(0, |six, bit| {
                let at = at * 6 + bit;
                let byte = padded.get(at / 8).copied().unwrap_or_default();
                six << 1 | (byte >> (7 - at % 8)) & 1
            });
            match six {
                0..26 => b'A' + six,
                26..52 => b'a' + six - 26,
                52..62 => b'0' + six - 52,
                62 => b'+',
                _ => b'/',
            }
        };
        let form: String = (first..last).map(|at| char::from(digit(at))).collect();
        forms.extend([form.replace('+', "-").replace('/', "_"), form.replace('/', "\\/"), form]);
    }
    forms
}

/// The same in ASCII alone.
fn ascii(quoted: &str) -> String {
    let mut units = [0; 2];
    quoted.chars().fold(String::new(), |mut out, c| {
        if c.is_ascii() {
            out.push(c);
        } else {
            out.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_taken_out_however_it_is_written() {
        let mut scrub = Scrub::default();
        scrub.learn("token", &SecretString::from("p&ss \"word\"/1"));
        scrub.learn("pin", &SecretString::from("987654321"));
        for text in
            ["p&ss \"word\"/1", "p&ss \\\"word\\\"/1", "p%26ss%20%22word%22%2F1", "p%26ss+%22word%22%2F1"]
        {
            assert_eq!(scrub.text(&format!("<{text}>")), "<[secret token]>");
        }
        // "x:987654321" and others in base64, and as a whole in hexadecimal.
        for text in ["eDo5ODc2NTQzMjE=", "eHg6OTg3NjU0MzIx", "eHh4Ojk4NzY1NDMyMQ==", "393837363534333231"] {
            assert!(scrub.text(text).contains("[secret pin]"), "{}", scrub.text(text));
        }
        assert_eq!(scrub.text_cut("a 98765"), "a ");
        assert_eq!(scrub.text_cut("a 987654321"), "a [secret pin]");
        assert_eq!(scrub.text_cut_before("54321 a"), " a");
        assert_eq!(scrub.text_cut_before("987654321 a"), "[secret pin] a");
        let value = serde_json::json!({ "987654321": [987654321, { "a": "x987654321" }], "n": 5 });
        let clean = serde_json::json!({ "[secret pin]": ["[secret pin]", { "a": "x[secret pin]" }], "n": 5 });
        assert_eq!(scrub.value(value), clean);
        assert!(!format!("{scrub:?}").contains("987654321"));
    }
}
