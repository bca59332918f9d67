//! Secrets, for the activities that use them: those in files, and those that are sealed in the database.
//!
//! A file wins over the database: whoever has the machine has the last word, also when the database or the keys are away.
//! What is sealed in the database is opened for each use, so a new text is used from the next call on.
//!
//! Where a secret may go is sealed with it. Who can write into the database can break a secret or bring an old one back,
//! and cannot have it sent to another place.

use std::collections::BTreeMap;

use backstay_activities::http::Origin;
use backstay_activities::secrets::{FileSecrets, Said, Secret, SecretError, SecretUse, Secrets};
use backstay_engine::store::access::{Resealed, SealedSecret, StoredSecret};
use backstay_engine::{Store, async_trait};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;

use crate::config::Config;
use crate::keys::{Keys, Place, unusable};
use crate::seal::{Keyring, SealError, Sealed};
use crate::trouble::{Trouble, sentence};

/// The secrets of a node.
pub struct Vault {
    store: Store,
    keys: Option<Keys>,
    files: Option<FileSecrets>,
    /// What the configuration says of single ones. What is in the database goes only where this allows it as well.
    uses: BTreeMap<String, SecretUse>,
}

impl Vault {
    /// With what the configuration says. Without keys only the files are of use.
    pub fn open(config: &Config, store: Store, keys: Option<Keys>) -> Result<Self, Trouble> {
        let files =
            config.secrets.in_files().map_err(|why| Trouble::usage(format!("secrets.uses: {why}.")))?;
        Ok(Self { store, keys, files, uses: config.secrets.uses.clone() })
    }

    fn told(&self, name: &str, stored: &StoredSecret) -> Result<Secret, SecretError> {
        let keys = self.keys.as_ref().ok_or_else(|| {
            SecretError::Unreadable(format!(
                "the secret \"{name}\" cannot be opened: this node has no keys; bring the key file of the installation \
                 here (secrets.key_file)"
            ))
        })?;
        let text = open(&keys.now(), &stored.secret).map_err(|error| {
            let text = format!("the secret \"{name}\" cannot be opened: {error}");
            match error {
                // The file of this node may be behind that of others.
                SealError::NoKey(_) => SecretError::Unreadable(text),
                _ => SecretError::Refused(text),
            }
        })?;
        let mut origins = parsed(&stored.secret.origins);
        let mut programs = stored.secret.programs.clone();
        let mut said = Said::Setter;
        if let Some(only) = self.uses.get(name) {
            let allowed = parsed(&only.origins);
            if !origins.iter().all(|origin| allowed.contains(origin))
                || !programs.iter().all(|name| only.programs.contains(name))
            {
                said = Said::Settings;
            }
            origins.retain(|origin| allowed.contains(origin));
            programs.retain(|name| only.programs.contains(name));
        }
        Ok(Secret { text, origins, programs, said })
    }
}

#[async_trait]
impl Secrets for Vault {
    async fn open(&self, name: &str) -> Result<Secret, SecretError> {
        if let Some(files) = &self.files
            && files.has(name).await?
        {
            return files.open(name).await;
        }
        match self.store.secret(name).await {
            Ok(Some(stored)) => self.told(name, &stored),
            Ok(None) => Err(SecretError::Refused(format!(
                "there is no secret \"{}\": neither in the database (backstay secret set) nor in a file of secrets.dir",
                name.escape_debug()
            ))),
            Err(error) => {
                let error = sentence(&error);
                tracing::warn!(error, secret = name, "a secret cannot be read");
                Err(SecretError::Unreadable(format!(
                    "the secret \"{name}\" cannot be read: the database does not answer"
                )))
            }
        }
    }
}

/// What was taken once is taken again; what is none allows nothing.
fn parsed(origins: &[String]) -> Vec<Origin> {
    origins.iter().filter_map(|text| Origin::parse(text).ok()).collect()
}

/// Not secret, and part of the seal.
fn about(name: &str, origins: &[String], programs: &[String]) -> String {
    json!(["secret", name, origins, programs]).to_string()
}

fn sealed(secret: &SealedSecret) -> (String, Sealed) {
    let SealedSecret { name, key_id, sealed_key, sealed, origins, programs } = secret.clone();
    (about(&name, &origins, &programs), Sealed { key_id, key: sealed_key, text: sealed })
}

/// Seals a secret.
pub fn seal(
    ring: &Keyring,
    name: &str,
    text: &SecretString,
    origins: Vec<String>,
    programs: Vec<String>,
) -> Result<SealedSecret, SealError> {
    let sealed = ring.seal(&about(name, &origins, &programs), text.expose_secret().as_bytes())?;
    let Sealed { key_id, key, text } = sealed;
    Ok(SealedSecret { name: name.to_owned(), key_id, sealed_key: key, sealed: text, origins, programs })
}

/// Opens it.
pub fn open(ring: &Keyring, secret: &SealedSecret) -> Result<SecretString, SealError> {
    let (about, sealed) = sealed(secret);
    let text = ring.open(&about, &sealed)?;
    String::from_utf8(text).map(SecretString::from).map_err(|_| SealError::Broken(sealed.key_id))
}

/// Seals its key by the current one.
pub fn reseal(ring: &Keyring, secret: &SealedSecret) -> Result<Resealed, SealError> {
    let (about, sealed) = sealed(secret);
    let (key_id, sealed_key) = ring.rewrap(&about, &sealed)?;
    Ok(Resealed { name: secret.name.clone(), was: sealed.key, key_id, sealed_key })
}

/// The secrets of the database that cannot be opened, and why.
pub async fn broken(store: &Store, ring: Option<&Keyring>) -> Result<Vec<(String, String)>, Trouble> {
    const PAGE: i64 = 100;
    let mut found = Vec::new();
    let mut after = String::new();
    loop {
        let page = store.secrets(&after, None, PAGE).await?;
        for one in &page {
            let why = match ring {
                None => Some("there are no keys here".to_owned()),
                Some(ring) => open(ring, &one.secret).err().map(|error| error.to_string()),
            };
            found.extend(why.map(|why| (one.secret.name.clone(), why)));
        }
        match page.last() {
            Some(last) if page.len() as i64 == PAGE => after.clone_from(&last.secret.name),
            _ => return Ok(found),
        }
    }
}

/// Logs them, once, when a node begins: a call that needs one of them fails.
pub async fn complain(store: &Store, keys: Option<&Keys>) -> Result<(), Trouble> {
    let ring = keys.map(Keys::now);
    for (secret, why) in broken(store, ring.as_deref()).await? {
        tracing::error!(secret, why, "a secret cannot be opened here; calls that need it fail");
    }
    Ok(())
}

/// The keys of a server. The first start makes one; where something is sealed already, a new one would be of no use.
pub async fn keys(config: &Config, store: &Store) -> Result<Keys, Trouble> {
    let place = Place::of(config)?;
    if let Some(keys) = place.read().map_err(unusable)? {
        return Ok(keys);
    }
    let sealed = store.secrets_by_key().await?;
    let names: Vec<_> = sealed.iter().map(|(key, _)| format!("\"{key}\"")).collect();
    match place.file() {
        Some(file) if !sealed.is_empty() => Err(Trouble::failed(format!(
            "The key file {} is not there, and {} secrets in the database are sealed by the key {}. Bring the file back \
             from its copy, or that of another server of this database. If it is lost, make a new one and set every \
             secret anew: docs/secrets.md says how.",
            file.display(),
            sealed.iter().map(|(_, count)| count).sum::<i64>(),
            names.join(", ")
        ))),
        _ => place.make(),
    }
}
