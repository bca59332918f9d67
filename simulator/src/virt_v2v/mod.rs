//! A stand-in for virt-v2v-in-place: the real one's command line, exit codes and words, on a device that is a small file.
//!
//! The file says which volume it stands for and where the data centre listens. There the program tells that it opens the volume,
//! begins to write and is through, and hears what shall go wrong. Which version it pretends to be stands in the environment, as
//! `PRETEND_VIRT_V2V_VERSION` (2.8.1 when left out): older ones do not know every option.

mod command_line;
mod control;

use std::io::{BufRead as _, Write as _};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::conversion::{Device, Guest, Misfortune, Open, Opened, Process};
use command_line::{Input, Options, Root, Task};

/// The version that it pretends to be.
const VERSION: &str = "PRETEND_VIRT_V2V_VERSION";

/// Set for the child that does the work, when it is to do it in a child.
const CHILD: &str = "PRETEND_VIRT_V2V_CHILD";

/// The program.
pub fn main() -> ExitCode {
    run(std::env::args().skip(1).collect())
}

/// The program, within another one: these are its arguments. What it does in a child is for a program of its own.
pub fn run(arguments: Vec<String>) -> ExitCode {
    let version = std::env::var(VERSION).unwrap_or_else(|_| "2.8.1".to_owned());
    let options = match command_line::parse(&arguments, &version) {
        Ok(Task::Convert(options)) => options,
        Ok(Task::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("virt-v2v-in-place: {why}");
            return ExitCode::FAILURE;
        }
    };
    match convert(&options, &version, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("virt-v2v-in-place: error: {why}");
            eprintln!();
            eprintln!("If reporting bugs, run virt-v2v with debugging enabled and include the complete ");
            eprintln!("output:");
            eprintln!();
            eprintln!("  virt-v2v -v -x [...]");
            ExitCode::FAILURE
        }
    }
}

fn convert(options: &Options, version: &str, arguments: &[String]) -> Result<(), String> {
    let talk = Talk { since: Instant::now(), quiet: options.quiet };
    if options.verbose {
        eprintln!("info: virt-v2v-in-place: virt-v2v {version} (x86_64)");
    }
    talk.says(&format!("Setting up the source: {}", options.input));
    let devices = open_devices(&options.input)?;
    let Some(control) = devices.first().map(|device| device.control.clone()) else {
        return Err("source has no disks".to_owned());
    };
    let volumes = devices.iter().map(|device| device.volume).collect();
    talk.says("Opening the source");
    let opened = control::open(&control, &Open { volumes, process: Process::this() })?;
    if opened.misfortune == Some(Misfortune::WorksInChild) && std::env::var_os(CHILD).is_none() {
        control::step(&control, opened.id, "handed-over")?;
        return in_child(arguments);
    }
    work(&talk, options, &control, &opened)
}

/// Like the appliance of the real one, the child lives on when only its parent is killed.
fn in_child(arguments: &[String]) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let ended =
        Command::new(program).args(arguments).env(CHILD, "yes").status().map_err(|e| e.to_string())?;
    if ended.success() {
        Ok(())
    } else {
        Err("libguestfs error: the appliance closed the connection unexpectedly".to_owned())
    }
}

fn work(talk: &Talk, options: &Options, control: &str, opened: &Opened) -> Result<(), String> {
    let pause = |share: f64| std::thread::sleep(Duration::from_secs_f64(opened.seconds * share));
    pause(0.3);
    talk.says("Inspecting the source");
    let guest = match inspect(options, opened) {
        Ok(guest) => guest,
        Err(why) => {
            control::step(control, opened.id, "failed")?;
            return Err(why);
        }
    };
    talk.says("Checking for sufficient free disk space in the guest");
    if opened.misfortune == Some(Misfortune::HangsBefore) {
        hang();
    }
    talk.says(&format!("Converting {} to run on KVM", guest.product));
    control::step(control, opened.id, "write")?;
    pause(0.4);
    match opened.misfortune {
        Some(Misfortune::HangsAfter) => hang(),
        Some(Misfortune::DiesAfter) => std::process::abort(),
        Some(Misfortune::FailsAfter) => {
            control::step(control, opened.id, "failed")?;
            return Err(
                "libguestfs error: hivex_commit: write: /Windows/System32/config/SYSTEM: Input/output error"
                    .to_owned(),
            );
        }
        _ => (),
    }
    let drivers = opened.misfortune != Some(Misfortune::NoDrivers);
    if drivers {
        println!("virt-v2v-in-place: This guest has virtio drivers installed.");
    } else {
        eprintln!(
            "virt-v2v-in-place: warning: there are no virtio drivers available for this version of Windows ({}). \
             The guest will be configured to use slower emulated devices.",
            guest.product
        );
        println!("virt-v2v-in-place: This guest does not have virtio drivers installed.");
    }
    talk.says("Mapping filesystem data to avoid copying unused and blank areas");
    pause(0.3);
    talk.says("Closing the overlay");
    talk.says("Assigning disks to buses");
    talk.says("Checking if the guest needs BIOS or UEFI to boot");
    if guest.uefi {
        println!("virt-v2v-in-place: This guest requires UEFI on the target to boot.");
    }
    control::step(control, opened.id, if drivers { "done" } else { "plain" })?;
    if let Some(to) = &options.inspection {
        write_inspection(to, &guest, options.block_driver.as_deref())?;
    }
    talk.says("Finishing off");
    Ok(())
}

/// What the real one finds out before it writes.
fn inspect(options: &Options, opened: &Opened) -> Result<Guest, String> {
    let nothing = "inspection could not detect the source guest (or physical machine) operating system.\n\n\
                   No root device found in this operating system image.";
    let guest = opened.guest.clone().ok_or(nothing)?;
    match opened.misfortune {
        Some(Misfortune::NoOs) => Err(nothing.to_owned()),
        Some(Misfortune::MultiBoot) => choose_root(&options.root).map(|()| guest),
        Some(Misfortune::Hibernated) => Err(
            "unable to mount the disk image for writing. This has probably happened because Windows Hibernation or Fast Restart is \
             being used in this guest. You have to disable this (in the guest) in order to use virt-v2v.\n\nOriginal error message: \
             mount: /sysroot: The disk contains an unclean file system (0, 0). The NTFS partition is in an unsafe state."
                .to_owned(),
        ),
        Some(Misfortune::BitLocker) => Err(
            "libguestfs error: cryptsetup: open: /dev/sda3: could not find key to open BitLocker encrypted /dev/sda3.\n\n\
             Try using --key on the command line."
                .to_owned(),
        ),
        Some(Misfortune::NoSpace) => {
            Err("not enough free space for conversion on filesystem ‘/’.  12.5 MB free < 100 MB needed".to_owned())
        }
        Some(Misfortune::NoHostSpace) => Err(
            "insufficient free space in the conversion server temporary directory /var/tmp (204.2M).".to_owned(),
        ),
        _ => Ok(guest),
    }
}

fn choose_root(root: &Root) -> Result<(), String> {
    match root {
        Root::First => {
            println!("virt-v2v-in-place: Picked /dev/sda2 because '--root first' was used.");
            Ok(())
        }
        Root::Device(device) if ["/dev/sda2", "/dev/sda3"].contains(&device.as_str()) => {
            println!("virt-v2v-in-place: Picked {device} because '--root {device}' was used.");
            Ok(())
        }
        Root::Device(device) => Err(format!("root device {device} not found.  Roots found were: /dev/sda2 /dev/sda3")),
        Root::Single => Err("multi-boot operating systems are not supported by virt-v2v. Use the --root option to change how \
                             virt-v2v handles this."
            .to_owned()),
        Root::Ask => {
            println!("\n***\nDual- or multi-boot operating system detected.  Choose the root filesystem");
            println!("that contains the main operating system from the list below:\n\n [1] /dev/sda2\n [2] /dev/sda3\n");
            for line in std::io::stdin().lock().lines() {
                match line.unwrap_or_default().as_str() {
                    "1" | "2" => return Ok(()),
                    "exit" | "q" | "quit" => std::process::exit(1),
                    _ => println!("Enter a number between 1 and 2, or ‘exit’: "),
                }
            }
            Err("exception: End_of_file".to_owned())
        }
    }
}

fn open_devices(input: &Input) -> Result<Vec<Device>, String> {
    input
        .paths()?
        .iter()
        .map(|path| {
            let text = std::fs::read(path).map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => format!("access: {path}: No such file or directory"),
                _ => format!("access: {path}: {e}"),
            })?;
            serde_json::from_slice(&text).map_err(|_| format!("libguestfs error: {path}: not a disk image"))
        })
        .collect()
}

fn write_inspection(to: &str, guest: &Guest, driver: Option<&str>) -> Result<(), String> {
    let (name, distro) = if guest.windows { ("windows", "windows") } else { ("linux", "linux") };
    let bus = if driver == Some("virtio-scsi") { "virtio-scsi" } else { "virtio-blk" };
    let firmware = if guest.uefi { "uefi" } else { "bios" };
    let text = format!(
        "<?xml version='1.0' encoding='utf-8'?>\n<v2v-inspection>\n  <firmware type='{firmware}'/>\n  <operatingsystem>\n    \
         <name>{name}</name>\n    <distro>{distro}</distro>\n    <product_name>{}</product_name>\n  </operatingsystem>\n  \
         <guestcaps>\n    <block-bus>{bus}</block-bus>\n    <net-bus>virtio-net</net-bus>\n  </guestcaps>\n</v2v-inspection>\n",
        guest.product
    );
    if to == "-" {
        print!("{text}");
        return Ok(());
    }
    std::fs::write(to, text).map_err(|e| format!("{to}: {e}"))
}

fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Its progress, as it shows it: seconds since it began, and what it does.
struct Talk {
    since: Instant,
    quiet: bool,
}

impl Talk {
    fn says(&self, what: &str) {
        if !self.quiet {
            println!("[{:6.1}] {what}", self.since.elapsed().as_secs_f64());
            let _ = std::io::stdout().flush();
        }
    }
}
