//! Guests that do not come up in one go, and what a cluster that keeps VMs up does about it. How a guest behaves is said of the
//! source whose disk it starts from.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::vms;
use crate::world::table::Tie;
use crate::world::things::VmState;
use crate::world::{Cause, State, World};

/// How a guest behaves once it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    /// It goes down so often, is started again each time, and stays up then: as Windows does with new drivers.
    Restarts(u32),
    /// It goes down each time, and is started again each time.
    Crashes,
    /// It goes down, and stays down.
    StaysDown,
    /// It runs, and has no address: whatever is wrong is wrong inside of it.
    HasNoAddress,
}

/// How the guest of a VM behaves, if somebody said so.
pub fn of(state: &State, vm: Uuid) -> Option<Guest> {
    let guests = &state.settings.cloudstack.guests;
    let mut attached = state.volumes.tied(&Tie::Attached(vm));
    let root = attached.find(|volume| volume.attached.is_some_and(|at| at.device == 0))?;
    let source = state.sources.get(&root.replica_of.as_ref()?.source)?;
    // Another firmware finds no loader; Windows without the drivers finds no disk.
    let firmware = if source.firmware == "efi" { "UEFI" } else { "BIOS" };
    let has_drivers = !source.windows || root.content.foreign.iter().any(|write| write.starts_with("virtio"));
    if state.vms.get(&vm)?.boot_type != firmware || !has_drivers {
        return Some(Guest::HasNoAddress);
    }
    guests.get(&source.id).or_else(|| guests.get(&source.name)).copied()
}

/// A VM was started: its guest does what it does.
pub fn begins(world: &World, vm: Uuid) {
    let (downs, stays) = match world.look(|state| of(state, vm)) {
        Some(Guest::Restarts(times)) => (times, false),
        Some(Guest::Crashes) => (u32::MAX, false),
        Some(Guest::StaysDown) => (1, true),
        Some(Guest::HasNoAddress) | None => return,
    };
    let later = world.clone();
    world.spawn(async move {
        let (up, down) = later.look(|state| {
            let switches = &state.settings.cloudstack;
            (switches.guest_up_ms, switches.guest_down_ms)
        });
        for _ in 0..downs {
            later.pause(Duration::from_millis(up)).await;
            let cause = Cause::new("cloudstack", "guest goes down", vm.to_string());
            if !later.change(cause, |state| goes_down(state, vm)) || stays {
                return;
            }
            later.pause(Duration::from_millis(down).max(Duration::from_millis(1))).await;
            let cause = Cause::new("cloudstack", "high availability", vm.to_string());
            if !later.change(cause, |state| state.cloudstack.coming_back.remove(&vm) && comes_back(state, vm))
            {
                return;
            }
        }
    });
}

/// The hypervisor reports at once that it is down. Whoever stops it now has it stay down.
fn goes_down(state: &mut State, vm: Uuid) -> bool {
    let runs = state.vm(vm).is_ok_and(|row| row.state == VmState::Running);
    if !runs || state.cloudstack.busy.contains_key(&vm) {
        return false;
    }
    state.power_off(vm);
    if let Ok(row) = state.vm_mut(vm) {
        row.state = VmState::Stopped;
        row.host = None;
    }
    state.cloudstack.coming_back.insert(vm);
    true
}

/// A VM that is stopped is started by nobody that anybody knows.
pub fn comes_back(state: &mut State, vm: Uuid) -> bool {
    let stopped = state.vm(vm).is_ok_and(|row| row.state == VmState::Stopped);
    if !stopped || state.cloudstack.busy.contains_key(&vm) {
        return false;
    }
    let Ok(host) = vms::room_for(state, vm) else { return false };
    if state.power_on(vm).is_err() || vms::is_up(state, vm).is_err() {
        return false;
    }
    if let Ok(row) = state.vm_mut(vm) {
        row.host = Some(host);
    }
    true
}
