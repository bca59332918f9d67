//! The OMA's devices: a directory in which a file stands for each volume that is plugged there, exactly while it is.
//!
//! The name is what udev makes of a volume: `virtio-` and the first 20 characters of its id without dashes. In the file stands
//! what the stand-in for virt-v2v-in-place needs, see [`crate::conversion::Device`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use uuid::Uuid;

use crate::conversion::Device;
use crate::world::{Moves, State};

/// Keeps the directory as the world is.
#[derive(Default)]
pub struct Devices {
    control: OnceLock<String>,
    there: Mutex<There>,
}

/// What it made, and where.
#[derive(Default)]
struct There {
    directory: PathBuf,
    files: BTreeMap<Uuid, PathBuf>,
}

/// The path of a volume's device at the OMA: in the directory, or where it really would be when there is none.
#[must_use]
pub fn path(state: &State, volume: Uuid) -> String {
    let directory = state.settings.device_dir.as_deref().unwrap_or(Path::new("/dev/disk/by-id"));
    directory.join(name(volume)).display().to_string()
}

fn name(volume: Uuid) -> String {
    let mut plain = volume.simple().to_string();
    plain.truncate(20);
    format!("virtio-{plain}")
}

impl Devices {
    /// Where the control endpoint answers, `host:port`: from now on there are files.
    pub fn answers_at(&self, control: String) {
        let _ = self.control.set(control);
    }

    /// Makes the directory as `state` is, after what a change has touched. It is called with the world locked, so that no two
    /// do it at once.
    pub fn follow(&self, state: &State, moves: &Moves) {
        let (Some(directory), Some(control)) = (&state.settings.device_dir, self.control.get()) else {
            return;
        };
        let mut there = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        let anew = there.directory != *directory;
        if anew {
            sweep(directory);
            *there = There { directory: directory.clone(), files: BTreeMap::new() };
        }
        let touched: BTreeSet<Uuid> = if anew || moves.all {
            there.files.keys().chain(state.volumes.keys()).copied().collect()
        } else {
            moves.volumes.keys.clone()
        };
        for id in touched {
            let volume = state.volumes.get(&id).filter(|volume| volume.plugged.contains(&state.oma));
            match (volume, there.files.contains_key(&id)) {
                (Some(volume), false) => {
                    let file = directory.join(name(id));
                    let device = Device { volume: id, size: volume.size, control: control.clone() };
                    if let Err(error) = write(&file, &device) {
                        tracing::error!("the device {} cannot be made: {error}", file.display());
                    }
                    there.files.insert(id, file);
                }
                (None, true) => {
                    if let Some(gone) = there.files.remove(&id) {
                        let _ = std::fs::remove_file(gone);
                    }
                }
                _ => {}
            }
        }
    }

    /// Takes all devices away: the appliance is gone.
    pub fn remove(&self) {
        let there = std::mem::take(&mut *self.there.lock().unwrap_or_else(PoisonError::into_inner));
        for file in there.files.into_values() {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Takes away what a data centre that was killed left behind.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("virtio-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Whole or not at all: who waits for the file must not read half of it.
fn write(file: &Path, device: &Device) -> std::io::Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let beside = file.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(device).map_err(std::io::Error::other)?)?;
    std::fs::rename(beside, file)
}
