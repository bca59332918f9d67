//! Who the server runs as. Postgres refuses root; for root the server gets an account of its own, otherwise ours.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// The best first. `nobody` is shared by other programs, which could then read the data: hence last.
const CANDIDATES: [&str; 3] = ["backstay", "postgres", "nobody"];

/// The account that root hands the server to.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub uid: u32,
    pub gid: u32,
    name: String,
}

impl Account {
    /// `None` when we are not root. A folder that already belongs to somebody keeps its owner, so that an account
    /// which appears later cannot take the data away from the server.
    pub fn for_folder(folder: &Path) -> Result<Option<Self>, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        if let Ok(metadata) = fs::metadata(folder)
            && metadata.uid() != 0
        {
            let name = format!("user {}", metadata.uid());
            return Ok(Some(Self { uid: metadata.uid(), gid: metadata.gid(), name }));
        }
        match CANDIDATES.into_iter().find_map(Self::named) {
            Some(account) => {
                if account.name == "nobody" {
                    tracing::warn!(
                        "Postgres runs as nobody; an account of its own is safer: useradd --system backstay"
                    );
                }
                Ok(Some(account))
            }
            None => Err(Error::NoAccount { tried: CANDIDATES.join(", ") }),
        }
    }

    /// Asks `id`, which also knows accounts that are in no file.
    fn named(name: &str) -> Option<Self> {
        let ask = |what: &str| {
            let output = Command::new("id").args([what, name]).stderr(Stdio::null()).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse::<u32>().ok()
        };
        let (uid, gid) = (ask("-u")?, ask("-g")?);
        (uid != 0).then(|| Self { uid, gid, name: name.to_string() })
    }

    /// Drops root (and, in std, the supplementary groups) in a child that is about to be spawned.
    pub fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// A folder is of no use to the account when a folder above it is closed, as root's home is. The account itself
    /// tries, so that access lists and the like count too.
    pub fn check_reach(&self, wanted: &Path) -> Result<(), Error> {
        let mut ancestors: Vec<&Path> =
            wanted.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        ancestors.reverse();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"for folder; do [ -x "$folder" ] || exit 1; echo; done"#, "sh"])
            .args(&ancestors)
            .current_dir("/")
            .stdin(Stdio::null());
        self.apply(&mut command);
        let output = command.output().map_err(Error::file("Looking from the server's account at", wanted))?;
        if output.status.success() {
            return Ok(());
        }
        let entered = output.stdout.iter().filter(|byte| **byte == b'\n').count();
        let blocked = ancestors.get(entered).copied().unwrap_or(wanted);
        Err(Error::NotReachable {
            account: self.name.clone(),
            blocked: blocked.to_path_buf(),
            wanted: wanted.to_path_buf(),
        })
    }
}
