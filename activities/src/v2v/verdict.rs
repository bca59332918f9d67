//! What the last words of virt-v2v-in-place mean. Its exit code says only that it failed; why stands in a text for
//! people, broken into lines anywhere.

/// Why it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There is no system that it knows on the disks.
    NoSystem,
    /// There are several, and nobody said which.
    MultiBoot,
    /// The guest sleeps, or was not shut down cleanly; Windows does so with its fast start.
    Hibernated,
    /// The disks are encrypted, as by BitLocker.
    Encrypted,
    /// There is no room, in the guest or here.
    NoSpace,
    /// There are no drivers for this guest.
    NoDrivers,
    /// Something else.
    Unknown,
}

impl Cause {
    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSystem => "no_system",
            Self::MultiBoot => "multi_boot",
            Self::Hibernated => "hibernated",
            Self::Encrypted => "encrypted",
            Self::NoSpace => "no_space",
            Self::NoDrivers => "no_drivers",
            Self::Unknown => "failed",
        }
    }

    /// For people.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::NoSystem => "it finds no system on the disks",
            Self::MultiBoot => "it finds several systems on the disks; say which with v2v.root",
            Self::Hibernated => {
                "the guest was not shut down cleanly; switch its fast start off, and shut it down"
            }
            Self::Encrypted => "the disks are encrypted; decrypt them in the guest",
            Self::NoSpace => "there is not enough room, in the guest or in v2v.tmp",
            Self::NoDrivers => "there are no drivers for this guest; see v2v.virtio_win",
            Self::Unknown => "it failed",
        }
    }
}

/// What is odd though it succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// There are no drivers for this guest: it uses slow devices, or does not start.
    MissingDrivers,
    /// The guest's policies may keep it from taking the drivers.
    GroupPolicy,
}

/// What was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why it failed, if it did.
    pub cause: Cause,
    /// What is odd.
    pub warnings: Vec<Warning>,
    /// Its last error, or its last words.
    pub text: String,
}

/// The longest text that is kept.
const MOST: usize = 600;

/// Reads what it wrote to its standard error.
pub fn verdict(bytes: &[u8]) -> Verdict {
    let text = String::from_utf8_lossy(bytes);
    let shown = |c: char| if c.is_control() { ' ' } else { c };
    let words: Vec<_> =
        text.split_whitespace().map(|word| word.chars().map(shown).collect::<String>()).collect();
    let said = words.join(" ");
    let lower = said.to_ascii_lowercase();
    // The same places in both: only letters of ASCII have changed.
    let error = lower.rfind(": error:").map(|at| at + ": error:".len());
    let part = |of: &str| of.get(error.unwrap_or(0)..).unwrap_or_default().trim().to_owned();
    let skip = said.chars().count().saturating_sub(MOST);
    let text = match error {
        Some(_) => part(&said).chars().take(MOST).collect(),
        None => said.chars().skip(skip).collect(),
    };
    Verdict { cause: cause(&part(&lower), &lower), warnings: warnings(&lower), text }
}

fn cause(error: &str, all: &str) -> Cause {
    let says = |words: &[&str]| words.iter().any(|word| error.contains(word));
    if says(&["bitlocker", "encrypted"]) {
        Cause::Encrypted
    } else if says(&["hibernation", "fast restart", "unsafe state", "not cleanly unmounted"]) {
        Cause::Hibernated
    } else if says(&["multi-boot"]) {
        Cause::MultiBoot
    } else if says(&["free space", "no space left", "not enough available inodes"]) {
        Cause::NoSpace
    } else if says(&["there are no virtio drivers"]) {
        Cause::NoDrivers
    } else if says(&[
        "could not detect the source guest",
        "no root device found",
        "not an installed operating",
    ]) {
        // What it cannot read it does not find.
        if all.contains("bitlocker") { Cause::Encrypted } else { Cause::NoSystem }
    } else {
        Cause::Unknown
    }
}

fn warnings(all: &str) -> Vec<Warning> {
    let mut found = Vec::new();
    let missing = ["there are no virtio drivers", "slower emulated devices", "does not have virtio drivers"];
    if missing.iter().any(|words| all.contains(words)) {
        found.push(Warning::MissingDrivers);
    }
    if all.contains("group policy") {
        found.push(Warning::GroupPolicy);
    }
    found
}
