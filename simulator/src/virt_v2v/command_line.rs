//! The real one's command line: long options with two dashes, `-if` and its like with one, values apart or after `=`.

use std::fmt;

/// What it is to do.
pub enum Task {
    /// Its work.
    Convert(Options),
    /// Print this and end.
    Print(String),
}

/// What was said.
#[derive(Default)]
pub struct Options {
    pub input: Input,
    pub root: Root,
    pub block_driver: Option<String>,
    pub inspection: Option<String>,
    pub verbose: bool,
    pub quiet: bool,
}

/// Where the guest is.
#[derive(Default)]
pub enum Input {
    /// One disk.
    Disk(String),
    /// A domain of libvirt, in a file.
    LibvirtXml(String),
    /// A domain of the libvirt that is not here.
    #[default]
    Libvirt,
}

/// Which of several systems.
#[derive(Default)]
pub enum Root {
    #[default]
    Ask,
    Single,
    First,
    Device(String),
}

/// Options with a value that are taken and change nothing here: those of virt-customize among them.
const WITH_VALUE: &[&str] = &[
    "-ic",
    "-io",
    "-ip",
    "-b",
    "--bridge",
    "-n",
    "--network",
    "--mac",
    "--key",
    "--run",
    "--run-command",
    "--firstboot",
    "--firstboot-command",
    "--firstboot-install",
    "--install",
    "--upload",
    "--copy-in",
    "--mkdir",
    "--delete",
    "--write",
    "--inject-virtio-win",
    "--inject-qemu-ga",
    "--hostname",
    "--timezone",
    "--memsize",
    "--smp",
];

/// Options without one.
const PLAIN: &[&str] =
    &["-x", "--keys-from-stdin", "--colors", "--colours", "--color", "--colour", "--wrap", "--no-fstrim"];

/// Options that came with a version.
const SINCE: &[(&str, [u32; 3])] = &[
    ("--block-driver", [2, 3, 4]),
    ("-O", [2, 7, 2]),
    ("--memsize", [2, 5, 3]),
    ("--smp", [2, 5, 3]),
    ("--no-fstrim", [2, 9, 5]),
];

/// Reads the command line as a program of this version does.
pub fn parse(arguments: &[String], version: &str) -> Result<Task, String> {
    let mut options = Options::default();
    let (mut mode, mut rest, mut machine_readable) = (None, Vec::new(), false);
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        let (name, mut given) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        if SINCE.iter().any(|(option, since)| *option == name && number(version) < *since) {
            return Err(unknown(name));
        }
        let mut value = || given.take().or_else(|| left.next().cloned()).ok_or_else(|| needs_value(name));
        match name {
            "-i" => mode = Some(value()?),
            "-if" => drop(value().and_then(raw)?),
            "--root" => options.root = root(&value()?)?,
            "--block-driver" => options.block_driver = Some(value().and_then(driver)?),
            "-O" => options.inspection = Some(value()?),
            "-v" | "--verbose" => options.verbose = true,
            "-q" | "--quiet" => options.quiet = true,
            "-V" | "--version" => return Ok(Task::Print(format!("virt-v2v-in-place {version}\n"))),
            "--help" => return Ok(Task::Print(help(version))),
            "--machine-readable" => machine_readable = true,
            "--print-source" => {
                return Ok(Task::Print("Source guest information (--print-source option):\n".to_owned()));
            }
            other if PLAIN.contains(&other) => (),
            other if WITH_VALUE.contains(&other) => drop(value()?),
            other if other.starts_with('-') && other.len() > 1 => return Err(unknown(other)),
            other => rest.push(other.to_owned()),
        }
    }
    if rest.is_empty() && machine_readable {
        return Ok(Task::Print(FACTS.to_owned()));
    }
    options.input = input(mode.as_deref(), rest)?;
    Ok(Task::Convert(options))
}

fn input(mode: Option<&str>, mut rest: Vec<String>) -> Result<Input, String> {
    let only = if rest.len() == 1 { rest.pop() } else { None };
    match mode {
        Some("disk" | "local") => only.map(Input::Disk).ok_or_else(|| {
            "error: -i disk: expecting a disk image (filename) on the command line".to_owned()
        }),
        Some("libvirtxml") => only.map(Input::LibvirtXml).ok_or_else(|| {
            "error: -i libvirtxml: expecting a libvirt XML file name on the command line".to_owned()
        }),
        Some("libvirt") | None => Ok(Input::Libvirt),
        Some(other) => Err(format!("error: unknown -i option: {other}")),
    }
}

fn root(value: &str) -> Result<Root, String> {
    match value {
        "ask" => Ok(Root::Ask),
        "single" => Ok(Root::Single),
        "first" => Ok(Root::First),
        device if device.starts_with("/dev/") => Ok(Root::Device(device.to_owned())),
        other => Err(format!("error: unknown --root option: {other}")),
    }
}

fn driver(value: String) -> Result<String, String> {
    match value.as_str() {
        "virtio-blk" | "virtio-scsi" => Ok(value),
        other => Err(format!("error: unknown block driver ‘--block-driver {other}’")),
    }
}

fn raw(value: String) -> Result<String, String> {
    if value == "raw" { Ok(value) } else { Err(format!("error: the device is raw, not {value}")) }
}

fn unknown(name: &str) -> String {
    format!(
        "unrecognized option '{name}'\nTry ‘virt-v2v-in-place --help’ or consult virt-v2v-in-place(1) for more information."
    )
}

fn needs_value(name: &str) -> String {
    format!(
        "option '{name}' requires an argument\nTry ‘virt-v2v-in-place --help’ or consult virt-v2v-in-place(1) for more information."
    )
}

fn number(version: &str) -> [u32; 3] {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 3].map(|()| parts.next().unwrap_or(0))
}

fn help(version: &str) -> String {
    let mut text = "virt-v2v-in-place: convert a guest to use KVM in-place\n\nOptions:\n".to_owned();
    let all = [
        "-i <disk|libvirt|libvirtxml|ova|vmx>",
        "-if <format>",
        "--root <ask|... >",
        "--machine-readable[=format]",
        "-v",
        "-x",
    ];
    for option in all {
        text.push_str(&format!("  {option}\n"));
    }
    for (option, since) in SINCE {
        if number(version) >= *since {
            text.push_str(&format!("  {option}\n"));
        }
    }
    text
}

/// What `--machine-readable` says when nothing else is said.
const FACTS: &str = "virt-v2v-in-place\nvirt-v2v-in-place-2.0\nlibguestfs-rewrite\ncolours-option\nin-place\nio\nmac-option\n\
                     mac-ip-option\ncustomize-ops\ninput:disk\ninput:libvirt\ninput:libvirtxml\ninput:ova\ninput:vmx\n\
                     convert:linux\nconvert:windows\novf:rhvexp\novf:vdsm\n";

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(path) => write!(f, "-i disk {path}"),
            Self::LibvirtXml(path) => write!(f, "-i libvirtxml {path}"),
            Self::Libvirt => write!(f, "-i libvirt"),
        }
    }
}

impl Input {
    /// The devices, the one that boots first.
    pub fn paths(&self) -> Result<Vec<String>, String> {
        match self {
            Self::Disk(path) => Ok(vec![path.clone()]),
            Self::LibvirtXml(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
                disks_of(&text).ok_or_else(|| {
                    format!("unable to parse the libvirt XML in {path}: there is no domain with a name")
                })
            }
            Self::Libvirt => {
                Err("could not connect to libvirt (default URI): there is none in this data centre"
                    .to_owned())
            }
        }
    }
}

/// The sources of a domain's disks. Enough of XML for what libvirt writes, and no more.
fn disks_of(text: &str) -> Option<Vec<String>> {
    let text = without_comments(text);
    let domain = text.split_once("<domain")?.1;
    domain.split_once("<name>")?;
    let disks =
        domain.split("<disk").skip(1).filter_map(|disk| disk.split_once("</disk>")).map(|(disk, _)| disk);
    let hard = disks.filter(|disk| {
        let kind = disk.split_once('>').and_then(|(head, _)| attribute(head, "device"));
        !matches!(kind.as_deref(), Some("cdrom" | "floppy"))
    });
    let sources = hard.filter_map(|disk| {
        let head = disk.split_once("<source")?.1.split_once('>')?.0.to_owned();
        attribute(&head, "file").or_else(|| attribute(&head, "dev"))
    });
    Some(sources.collect())
}

fn attribute(head: &str, name: &str) -> Option<String> {
    let (_, after) = head.split_once(&format!(" {name}="))?;
    let quote = after.chars().next()?;
    Some(after.get(1..)?.split_once(quote)?.0.to_owned())
}

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!--") {
        kept.push_str(before);
        rest = after.split_once("-->").map_or("", |(_, after)| after);
    }
    kept + rest
}
