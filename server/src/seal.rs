//! Sealing: what only this installation can read again. Each text has a key of its own, and that key is sealed by one of
//! the installation's; so changing the installation's key changes no text.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

/// The installation's keys, the current one and those before it.
#[derive(Clone)]
pub struct Keyring {
    current: String,
    keys: BTreeMap<String, [u8; 32]>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("current", &self.current).finish_non_exhaustive()
    }
}

/// A sealed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Which of the installation's keys seals its own.
    pub key_id: String,
    /// Its own key.
    pub key: Vec<u8>,
    /// The text.
    pub text: Vec<u8>,
}

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The machine gives no random bytes.
    #[error("the machine gives no random bytes")]
    Random,
    /// The key is not here.
    #[error("it is sealed by the key \"{0}\", which is not among the keys of this installation")]
    NoKey(String),
    /// It was changed, or another key of that name sealed it.
    #[error("it cannot be opened: it was changed, or the key \"{0}\" is not the one that sealed it")]
    Broken(String),
    /// The keys cannot be read.
    #[error("{place} {wrong}")]
    Keys {
        /// Where they should be.
        place: String,
        /// What is wrong.
        wrong: String,
    },
}

/// Random bytes, good enough for keys and tokens.
pub fn random(bytes: &mut [u8]) -> Result<(), SealError> {
    SystemRandom::new().fill(bytes).map_err(|_| SealError::Random)
}

impl Keyring {
    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Self, SealError> {
        let place = format!("the key file {}", path.display());
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &place),
            Err(error) => Err(SealError::Keys { place, wrong: format!("cannot be read: {error}") }),
        }
    }

    /// Reads keys: a line `name:64 hexadecimal digits` for each, the current one first. `#` begins a comment. `place` is
    /// where they stand, for people.
    pub fn parse(text: &str, place: &str) -> Result<Self, SealError> {
        let wrong = |wrong: String| SealError::Keys { place: place.to_owned(), wrong };
        let mut keys = BTreeMap::new();
        let mut current = None;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line itself is never shown.
            let bad = || wrong(format!("is wrong in line {}: it looks like k1:64 hexadecimal digits", n + 1));
            let (name, digits) = line.split_once(':').ok_or_else(bad)?;
            let bytes = hex::decode(digits.trim()).map_err(|_| bad())?;
            let key: [u8; 32] = bytes.try_into().map_err(|_| bad())?;
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if name.is_empty() || name.len() > 40 || !name.chars().all(good) {
                return Err(bad());
            }
            if keys.insert(name.to_owned(), key).is_some() {
                return Err(wrong(format!("names the key \"{name}\" twice")));
            }
            current.get_or_insert_with(|| name.to_owned());
        }
        let current = current.ok_or_else(|| wrong("has no key".into()))?;
        Ok(Self { current, keys })
    }

    /// The name of the key that seals what is new.
    pub fn current(&self) -> &str {
        &self.current
    }

    /// The names of all keys that are here.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(String::as_str)
    }

    /// Reads a key file, or makes one with a fresh key that nobody else may read.
    pub fn read_or_make(path: &Path) -> Result<Self, SealError> {
        let wrong = |error: std::io::Error| SealError::Keys {
            place: format!("the key file {}", path.display()),
            wrong: format!("cannot be written: {error}"),
        };
        if !path.exists() {
            let mut key = [0; 32];
            random(&mut key)?;
            let mut name = [0; 4];
            random(&mut name)?;
            // Written whole before it has its name: whoever finds it finds all of it.
            let part = path.with_extension(format!("part-{}", hex::encode(name)));
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&part)
                .map_err(wrong)?;
            // The key's name is its own, so that two installations never take each other's key for theirs.
            let text = format!(
                "# Seals the secrets of this installation. Keep a copy elsewhere.\nk-{}:{}\n",
                hex::encode(name),
                hex::encode(key)
            );
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(wrong)?;
            match std::fs::hard_link(&part, path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(wrong(error)),
                _ => std::fs::remove_file(&part).map_err(wrong)?,
            }
        }
        Self::read(path)
    }

    /// Seals a text. `about` is not secret, and has to be the same when it is opened.
    pub fn seal(&self, about: &str, text: &[u8]) -> Result<Sealed, SealError> {
        let mut own = [0; 32];
        random(&mut own)?;
        let text = encrypt(&own, about, text)?;
        let (key_id, key) = self.wrap(about, &own)?;
        Ok(Sealed { key_id, key, text })
    }

    /// Its key, sealed by the current one: the text stays as it is.
    pub fn rewrap(&self, about: &str, sealed: &Sealed) -> Result<(String, Vec<u8>), SealError> {
        // What cannot be opened is not made to look as if it could.
        self.open(about, sealed)?;
        self.wrap(about, &self.unwrap(about, sealed)?)
    }

    /// Opens it.
    pub fn open(&self, about: &str, sealed: &Sealed) -> Result<Vec<u8>, SealError> {
        let own = self.unwrap(about, sealed)?;
        decrypt(&own, about, &sealed.text).ok_or_else(|| SealError::Broken(sealed.key_id.clone()))
    }

    fn wrap(&self, about: &str, own: &[u8; 32]) -> Result<(String, Vec<u8>), SealError> {
        Ok((self.current.clone(), encrypt(self.key(&self.current)?, about, own)?))
    }

    fn unwrap(&self, about: &str, sealed: &Sealed) -> Result<[u8; 32], SealError> {
        let own = decrypt(self.key(&sealed.key_id)?, about, &sealed.key);
        own.and_then(|own| own.try_into().ok()).ok_or_else(|| SealError::Broken(sealed.key_id.clone()))
    }

    fn key(&self, name: &str) -> Result<&[u8; 32], SealError> {
        self.keys.get(name).ok_or_else(|| SealError::NoKey(name.to_owned()))
    }
}

impl Sealed {
    /// As one piece.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 + self.key_id.len() + self.key.len() + self.text.len());
        // Names and keys are short: `Keyring` sees to that.
        bytes.push(self.key_id.len() as u8);
        bytes.extend(self.key_id.as_bytes());
        bytes.push(self.key.len() as u8);
        bytes.extend(&self.key);
        bytes.extend(&self.text);
        bytes
    }

    /// Out of one piece.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&len, rest) = bytes.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(len))?;
        let (&len, rest) = rest.split_first()?;
        let (key, text) = rest.split_at_checked(usize::from(len))?;
        let key_id = String::from_utf8(name.to_vec()).ok()?;
        Some(Self { key_id, key: key.to_vec(), text: text.to_vec() })
    }
}

fn encrypt(key: &[u8; 32], about: &str, text: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_LEN];
    random(&mut nonce)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealError::Random)?);
    let mut sealed = text.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(about), &mut sealed)
        .map_err(|_| SealError::Random)?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn decrypt(key: &[u8; 32], about: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, text) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let mut text = text.to_vec();
    let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(about), &mut text).ok()?;
    Some(opened.to_vec())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_sealed_opens_under_its_key_and_its_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let ring = Keyring::read_or_make(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let sealed = ring.seal("vcenter", b"hunter2").unwrap();
        assert!(!format!("{sealed:?}{ring:?}").contains("hunter2"));
        assert_eq!(Keyring::read_or_make(&path).unwrap().open("vcenter", &sealed).unwrap(), b"hunter2");
        assert!(ring.open("another", &sealed).is_err(), "moved to another name");
        let bytes = sealed.to_bytes();
        assert_eq!(Sealed::from_bytes(&bytes).unwrap(), sealed);
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 1;
            let opened = Sealed::from_bytes(&bent).map(|bent| ring.open("vcenter", &bent));
            assert!(!matches!(opened, Some(Ok(_))), "byte {at} was changed");
            assert!(Sealed::from_bytes(&bytes[..at]).is_none_or(|cut| ring.open("vcenter", &cut).is_err()));
        }

        // A new key in front: what was sealed opens still, and can be moved over to it, and its text stays as it was.
        let first = ring.current().to_owned();
        let old = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("k2:{}\n{old}", "ab".repeat(32))).unwrap();
        let both = Keyring::read(&path).unwrap();
        assert_eq!(both.open("vcenter", &sealed).unwrap(), b"hunter2");
        let (key_id, key) = both.rewrap("vcenter", &sealed).unwrap();
        let moved = Sealed { key_id, key, text: sealed.text.clone() };
        assert_eq!(moved.key_id, "k2");
        let cut = Sealed { text: sealed.text[1..].to_vec(), ..sealed.clone() };
        assert!(both.rewrap("vcenter", &cut).is_err(), "what cannot be opened is left as it is");
        std::fs::write(&path, format!("k2:{}\n", "ab".repeat(32))).unwrap();
        let new = Keyring::read(&path).unwrap();
        assert_eq!(new.open("vcenter", &moved).unwrap(), b"hunter2");
        assert!(matches!(new.open("vcenter", &sealed), Err(SealError::NoKey(name)) if name == first));
        for wrong in ["", "k1", "k1:12", "k1:zz", "a b:00", &format!("k:{0}\nk:{0}", "ab".repeat(32))] {
            std::fs::write(&path, wrong).unwrap();
            assert!(Keyring::read(&path).is_err(), "{wrong}");
        }
    }
}
