//! The disks of a guest, and how the program is told of them: one by its name, several by a description of the guest.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::V2vSettings;
use crate::remote::Shape;

/// A guest whose disks lie here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its disks; it starts from the first.
    pub disks: Vec<GuestDisk>,
    /// Its memory, in MiB.
    #[serde(default = "memory")]
    pub memory_mib: u32,
    /// Its processors.
    #[serde(default = "processors")]
    pub vcpus: u32,
    /// How it starts.
    #[serde(default)]
    pub firmware: Firmware,
}

fn memory() -> u32 {
    2048
}

fn processors() -> u32 {
    1
}

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestDisk {
    /// The device, or the file.
    pub device: PathBuf,
    /// How it is written there.
    #[serde(default)]
    pub format: Format,
}

/// How a disk is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// As it is.
    #[default]
    Raw,
    /// In the format of QEMU.
    Qcow2,
}

/// How a guest starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// As it always was.
    #[default]
    Bios,
    /// UEFI.
    Uefi,
}

/// The driver that a guest starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BlockDriver {
    /// Disks of their own.
    VirtioBlk,
    /// Disks at a controller.
    VirtioScsi,
}

/// What the program can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The kinds of guests that it takes, such as `disk` and `libvirtxml`.
    pub inputs: BTreeSet<String>,
    /// It can be told which driver to prepare for.
    pub block_driver: bool,
}

/// Reads what the program says that it can do: a word in each line.
pub fn features(bytes: &[u8]) -> Result<Features, Shape> {
    let text = String::from_utf8_lossy(bytes);
    let words: BTreeSet<&str> = text.lines().map(str::trim).collect();
    if !words.contains("virt-v2v-in-place") && !words.contains("in-place") {
        return Err(Shape::new("is not that of virt-v2v-in-place"));
    }
    let inputs = words.iter().filter_map(|word| word.strip_prefix("input:")).map(str::to_owned).collect();
    Ok(Features { inputs, block_driver: words.contains("block-driver-option") })
}

/// Whether a list of options has this one.
pub(super) fn lists_option(bytes: &[u8], option: &str) -> bool {
    String::from_utf8_lossy(bytes).lines().any(|line| line.trim().trim_start_matches('-') == option)
}

impl Guest {
    /// What is wrong with it.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.disks.is_empty() {
            return Err("it has no disks".into());
        }
        // What is written into its description is a text of XML.
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err("its name is empty, or has characters that nobody sees".into());
        }
        for disk in &self.disks {
            let fits = |path: &str| path.starts_with('/') && !path.chars().any(char::is_control);
            if !disk.device.to_str().is_some_and(fits) {
                return Err(format!("{} is no absolute path of a disk", disk.device.display()));
            }
        }
        Ok(())
    }

    /// The arguments for the program.
    pub(super) fn args(
        &self,
        settings: &V2vSettings,
        features: &Features,
        described: &Path,
    ) -> Result<Vec<String>, String> {
        let input = if self.disks.len() > 1 { "libvirtxml" } else { "disk" };
        if !features.inputs.contains(input) {
            return Err(format!("the program does not take guests as \"{input}\"; a newer one does"));
        }
        let mut args: Vec<String> = Vec::new();
        if settings.verbose {
            args.extend(["-v".into(), "-x".into()]);
        }
        args.extend(["--root".into(), settings.root.clone()]);
        if let Some(driver) = settings.block_driver.filter(|_| features.block_driver) {
            let driver = match driver {
                BlockDriver::VirtioBlk => "virtio-blk",
                BlockDriver::VirtioScsi => "virtio-scsi",
            };
            args.extend(["--block-driver".into(), driver.into()]);
        }
        args.extend(["-i".into(), input.into()]);
        match self.disks.as_slice() {
            [only] => args.extend(["-if".into(), only.format.name().into(), text(&only.device)]),
            _ => args.push(text(described)),
        }
        Ok(args)
    }

    /// The description of the guest, as libvirt writes it.
    pub fn describe(&self) -> String {
        let firmware = match self.firmware {
            Firmware::Bios => "",
            Firmware::Uefi => " firmware='efi'",
        };
        let disks: String = self.disks.iter().enumerate().map(|(n, disk)| disk.describe(n)).collect();
        format!(
            "<domain type='kvm'>\n  <name>{}</name>\n  <memory unit='MiB'>{}</memory>\n  <vcpu>{}</vcpu>\n  \
             <os{firmware}>\n    <type>hvm</type>\n    <boot dev='hd'/>\n  </os>\n  <features><acpi/></features>\n  \
             <devices>\n{disks}  </devices>\n</domain>\n",
            escape(&self.name),
            self.memory_mib,
            self.vcpus,
        )
    }
}

impl GuestDisk {
    fn describe(&self, nth: usize) -> String {
        let is_block = std::fs::metadata(&self.device).is_ok_and(|about| about.file_type().is_block_device());
        let (kind, source) = if is_block { ("block", "dev") } else { ("file", "file") };
        format!(
            "    <disk type='{kind}' device='disk'>\n      <driver name='qemu' type='{}'/>\n      \
             <source {source}='{}'/>\n      <target dev='sd{}' bus='scsi'/>\n    </disk>\n",
            self.format.name(),
            escape(&text(&self.device)),
            letters(nth),
        )
    }
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// a, b, … z, aa, ab, …
fn letters(mut nth: usize) -> String {
    let mut out = Vec::new();
    loop {
        out.push(char::from(b'a' + (nth % 26) as u8));
        if nth < 26 {
            break;
        }
        nth = nth / 26 - 1;
    }
    out.into_iter().rev().collect()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&apos;")
        .replace('"', "&quot;")
}
