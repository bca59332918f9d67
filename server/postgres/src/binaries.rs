//! Finding server binaries: those that are named, else those of the machine, else those that were fetched.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::FetchError;
use crate::{Error, Settings, folder, install};

/// The oldest version that this project is tested with.
const OLDEST: u32 = 15;

/// A bin folder with a server in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// Holds `postgres` and `initdb`, at least.
    pub folder: PathBuf,
    /// The server's major version.
    pub major: u32,
}

impl Binaries {
    pub(crate) fn postgres(&self) -> PathBuf {
        self.folder.join("postgres")
    }

    pub(crate) fn initdb(&self) -> PathBuf {
        self.folder.join("initdb")
    }

    /// Client-only packages have a bin folder, too: so both programs have to be there, and the server has to run.
    pub(crate) fn inspect(folder: &Path) -> Result<Self, String> {
        let binaries = Self { folder: folder.to_path_buf(), major: 0 };
        for program in [binaries.postgres(), binaries.initdb()] {
            if !program.is_file() {
                return Err(format!("there is no {} in it", folder::file_name(&program)));
            }
        }
        let output = Command::new(binaries.postgres())
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("its postgres does not run: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_string();
            return Err(format!("its postgres does not run: {said}"));
        }
        let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
        match parse_major(&said) {
            Some(major) if major >= OLDEST => Ok(Self { major, ..binaries }),
            Some(major) => Err(format!("it is Postgres {major}, and {OLDEST} or later is needed")),
            None => Err(format!("its version is not understood: {said}")),
        }
    }
}

/// Where to look, in this order. Each part can be replaced, so that a test can hide what the machine has.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// A bin folder that must be used; nothing else is tried.
    pub named: Option<PathBuf>,
    /// The same from `BACKSTAY_POSTGRES_BIN`.
    pub named_in_environment: Option<PathBuf>,
    /// The `pg_config` program to ask.
    pub pg_config: Option<PathBuf>,
    /// Bin folders of Linux distributions, with `{major}` for the version. The highest version goes first.
    pub distribution: Vec<String>,
    /// The same of Homebrew and the like.
    pub homebrew: Vec<String>,
    /// The folders of `PATH`.
    pub path: Vec<PathBuf>,
}

impl Search {
    /// The usual places of this machine, with `BACKSTAY_POSTGRES_BIN` and `PATH` as they are now.
    pub fn from_environment() -> Self {
        let variable = std::env::var_os("BACKSTAY_POSTGRES_BIN").filter(|value| !value.is_empty());
        Self {
            named: None,
            named_in_environment: variable.map(PathBuf::from),
            pg_config: Some("pg_config".into()),
            distribution: [
                "/usr/lib/postgresql/{major}/bin",
                "/usr/pgsql-{major}/bin",
                "/usr/lib/postgresql{major}/bin",
                "/usr/lib64/postgresql-{major}/bin",
                "/usr/libexec/postgresql{major}",
            ]
            .map(String::from)
            .to_vec(),
            homebrew: [
                "/opt/homebrew/opt/postgresql@{major}/bin",
                "/usr/local/opt/postgresql@{major}/bin",
                "/home/linuxbrew/.linuxbrew/opt/postgresql@{major}/bin",
                "/Applications/Postgres.app/Contents/Versions/{major}/bin",
            ]
            .map(String::from)
            .to_vec(),
            path: std::env::var_os("PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
        }
    }

    /// The first usable binaries, of this version if one is wanted; the named ones aside.
    pub fn find(&self, wanted: Option<u32>) -> Result<Binaries, Missing> {
        let mut missing = Missing::default();
        for (source, folder) in self.candidates(&mut missing.tried) {
            match Binaries::inspect(&folder) {
                Ok(found) if wanted.is_none_or(|wanted| wanted == found.major) => return Ok(found),
                Ok(found) => {
                    missing.tried.push(format!(
                        "{source}: {} has Postgres {}",
                        folder.display(),
                        found.major
                    ));
                    missing.other_version.get_or_insert(found);
                }
                Err(reason) => missing.tried.push(format!("{source}: {}: {reason}", folder.display())),
            }
        }
        Err(missing)
    }

    fn candidates(&self, tried: &mut Vec<String>) -> Vec<(&'static str, PathBuf)> {
        let mut found = Vec::new();
        if let Some(program) = &self.pg_config {
            match ask_for_bindir(program) {
                Some(folder) => found.push(("pg_config --bindir", folder)),
                None => tried.push("pg_config --bindir: no answer".into()),
            }
        }
        for (source, patterns) in [("distribution", &self.distribution), ("Homebrew", &self.homebrew)] {
            let folders = expand_all(patterns);
            if folders.is_empty() && !patterns.is_empty() {
                tried.push(format!("{source}: nothing like {}", patterns.join(", ")));
            }
            found.extend(folders.into_iter().map(|folder| (source, folder)));
        }
        let with_server = self.path.iter().filter(|folder| folder.join("postgres").is_file());
        let before = found.len();
        found.extend(with_server.map(|folder| ("PATH", folder.clone())));
        if found.len() == before {
            tried.push("PATH: no postgres in any of its folders".into());
        }
        found
    }
}

/// What a search in vain has to tell.
#[derive(Debug, Default)]
pub struct Missing {
    /// Each place, and what was wrong with it.
    pub tried: Vec<String>,
    /// The first usable binaries of a version that was not wanted.
    pub other_version: Option<Binaries>,
}

/// Picks the binaries for a cluster of this version (any, where there is no cluster yet). Binaries that somebody named
/// are used or refused, never silently replaced by others.
pub(crate) async fn choose(settings: &Settings, wanted: Option<u32>) -> Result<Binaries, Error> {
    let search = &settings.search;
    let named = [("the settings", &search.named), ("BACKSTAY_POSTGRES_BIN", &search.named_in_environment)];
    for (named_by, folder) in named {
        if let Some(folder) = folder {
            let folder = folder.clone();
            let binaries = Binaries::inspect(&folder).map_err(|reason| Error::UnusableBinaries {
                named_by,
                folder,
                reason,
            })?;
            return of_version(settings, binaries, wanted);
        }
    }
    let missing = match search.find(wanted) {
        Ok(binaries) => return Ok(binaries),
        Err(missing) => missing,
    };
    let fetched = match &settings.archive {
        None => Err(FetchError::NotOffered),
        Some(archive) => match (wanted, archive.major()) {
            (Some(wanted), offered) if offered != wanted => Err(FetchError::OtherVersion { offered, wanted }),
            _ => install::install(archive, settings).await,
        },
    };
    match (fetched, missing.other_version) {
        (Ok(binaries), _) => of_version(settings, binaries, wanted),
        (Err(_), Some(other)) => of_version(settings, other, wanted),
        (Err(fetch), None) => Err(Error::NoServer { tried: missing.tried, fetch: Box::new(fetch) }),
    }
}

fn of_version(settings: &Settings, binaries: Binaries, wanted: Option<u32>) -> Result<Binaries, Error> {
    match wanted {
        Some(data_major) if data_major != binaries.major => Err(Error::WrongVersion {
            folder: settings.data_dir.clone(),
            data_major,
            binaries: binaries.folder,
            binaries_major: binaries.major,
        }),
        _ => Ok(binaries),
    }
}

fn ask_for_bindir(pg_config: &Path) -> Option<PathBuf> {
    let output =
        Command::new(pg_config).arg("--bindir").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?.trim().to_string();
    (output.status.success() && !folder.is_empty()).then(|| folder.into())
}

/// The existing folders behind the patterns, the highest version first.
fn expand_all(patterns: &[String]) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = patterns.iter().flat_map(|pattern| expand(pattern)).collect();
    found.sort_by_key(|(major, _)| Reverse(*major));
    found.into_iter().map(|(_, folder)| folder).collect()
}

fn expand(pattern: &str) -> Vec<(u32, PathBuf)> {
    let Some((before, after)) = pattern.split_once("{major}") else { return Vec::new() };
    let Some((parent, prefix)) = before.rsplit_once('/') else { return Vec::new() };
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((major, PathBuf::from(format!("{before}{major}{after}"))))
        })
        .filter(|(_, folder)| folder.is_dir())
        .collect()
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`; also `17beta1`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.strip_prefix("postgres (PostgreSQL) ")?;
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}
