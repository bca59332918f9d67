//! Interfaces: those that a VM is deployed with, and those that it gets and loses later.

use serde_json::{Value, json};
use uuid::Uuid;

use super::jobs::{Begun, End, Job};
use super::request::{Asked, Params};
use super::show;
use crate::world::State;
use crate::world::moves::Refusal;
use crate::world::table::Tie;
use crate::world::things::{Nic, VmState};

type Result<T> = std::result::Result<T, Refusal>;

/// An interface that is asked for.
pub struct Wanted {
    /// Where it leads.
    pub network: Uuid,
    ip: Option<String>,
    mac: Option<String>,
    default: bool,
}

/// What a deployment asks for: `networkids`, the first of which is the default, or `iptonetworklist`.
pub fn wanted(state: &State, params: &Params, zone: Uuid) -> Result<Vec<Wanted>> {
    let mut wanted = Vec::new();
    for (index, network) in params.ids("networkids")?.into_iter().enumerate() {
        let only_first = |name: &str| params.get(name).filter(|_| index == 0).map(str::to_owned);
        wanted.push(Wanted {
            network,
            ip: only_first("ipaddress"),
            mac: only_first("macaddress"),
            default: index == 0,
        });
    }
    for (index, one) in params.numbered("iptonetworklist") {
        if params.get("networkids").is_some() {
            return Err(Refusal::param("networkids and iptonetworklist can't be specified at the same time"));
        }
        let network = one.get("networkid").and_then(|id| id.parse().ok());
        let network =
            network.ok_or_else(|| Refusal::param(format!("No networkid in iptonetworklist[{index}]")))?;
        let (ip, mac) = (one.get("ip").cloned(), one.get("mac").cloned());
        wanted.push(Wanted { network, ip, mac, default: wanted.is_empty() });
    }
    if wanted.is_empty() {
        return Err(Refusal::param(
            "No network is given, and the zone has no default network for the account",
        ));
    }
    for wish in &wanted {
        check_network(state, wish.network, zone)?;
        if wanted.iter().filter(|other| other.network == wish.network).count() > 1 {
            return Err(Refusal::param("The same network is given twice"));
        }
    }
    Ok(wanted)
}

fn check_network(state: &State, id: Uuid, zone: Uuid) -> Result<()> {
    let network = state
        .networks
        .get(&id)
        .ok_or_else(|| Refusal::code(431, format!("Unable to find network by id {id}")))?;
    if !matches!(network.state.as_str(), "Implemented" | "Allocated" | "Setup") {
        return Err(Refusal::param(format!(
            "Network {} is in state {} and cannot be used",
            network.name, network.state
        )));
    }
    if network.zone != zone {
        return Err(Refusal::param(format!("Network {} is not in the zone of the VM", network.name)));
    }
    Ok(())
}

/// An interface as it was asked for, with what was not asked for made up. An L2 network gives no address.
pub fn new_nic(state: &State, wish: Wanted) -> Result<Nic> {
    let network =
        state.networks.get(&wish.network).ok_or_else(|| Refusal::internal("the network is gone"))?;
    let taken = |ip: &str| {
        let alive = state.vms.tied(&Tie::Network(wish.network)).filter(|vm| vm.removed.is_none());
        alive.flat_map(|vm| &vm.nics).any(|nic| nic.network == wish.network && nic.ip.as_deref() == Some(ip))
    };
    let ip =
        match (&network.prefix, wish.ip) {
            (None, _) => None,
            (Some(prefix), Some(ip)) if !ip.starts_with(prefix.as_str()) || taken(&ip) => {
                return Err(Refusal::code(
                    533,
                    format!("Unable to acquire the address {ip} in network {}", network.name),
                ));
            }
            (Some(_), Some(ip)) => Some(ip),
            (Some(prefix), None) => {
                let free = (10..250).map(|host| format!("{prefix}{host}")).find(|ip| !taken(ip));
                Some(free.ok_or_else(|| {
                    Refusal::code(533, format!("Network {} has no free address", network.name))
                })?)
            }
        };
    let id = Uuid::new_v4();
    let mac = wish.mac.unwrap_or_else(|| {
        let [a, b, c, ..] = id.into_bytes();
        format!("1e:00:{a:02x}:{b:02x}:{c:02x}:01")
    });
    Ok(Nic { id, network: wish.network, mac, ip, default: wish.default })
}

/// All three are about a VM.
pub fn begin(state: &mut State, asked: &Asked) -> Result<Begun> {
    let vm = asked.params.need_id("virtualmachineid")?;
    asked.may_use_vm(state, vm)?;
    let named = if asked.command.starts_with("add") { "networkid" } else { "nicid" };
    asked.params.need_id(named)?;
    Ok(Begun { instance: Some(("VirtualMachine", vm)), line: Some(vm), id: None })
}

async fn change(
    job: Job,
    change: impl FnOnce(&mut State, Uuid, &Params) -> Result<()>,
) -> std::result::Result<Value, End> {
    let vm = job.asked.params.need_id("virtualmachineid")?;
    job.rows(|state| match state.vm(vm)?.state {
        VmState::Running | VmState::Stopped => Ok(()),
        other => Err(Refusal::param(format!(
            "NICs can be changed for VMs that are Running or Stopped only, this one is {other:?}"
        ))),
    })?;
    job.pause(job.world.look(|state| state.settings.cloudstack.other_ms)).await;
    job.effect(|state| {
        change(state, vm, &job.asked.params)?;
        state.applied(&job.asked.command, vm);
        Ok(())
    })
    .await?;
    job.rows(|state| Ok(json!({ "virtualmachine": show::vm(state, state.vm(vm)?) })))
}

/// `addNicToVirtualMachine`
pub async fn add(job: Job) -> std::result::Result<Value, End> {
    change(job, |state, vm, params| {
        let network = params.need_id("networkid")?;
        let row = state.vm(vm)?;
        check_network(state, network, row.zone)?;
        if row.nics.iter().any(|nic| nic.network == network) {
            return Err(Refusal::param(format!("A NIC already exists for VM {vm} in network {network}")));
        }
        let text = |name: &str| params.get(name).map(str::to_owned);
        let wish =
            Wanted { network, ip: text("ipaddress"), mac: text("macaddress"), default: row.nics.is_empty() };
        let nic = new_nic(state, wish)?;
        state.vm_mut(vm)?.nics.push(nic);
        Ok(())
    })
    .await
}

/// `removeNicFromVirtualMachine`
pub async fn remove(job: Job) -> std::result::Result<Value, End> {
    change(job, |state, vm, params| {
        let id = params.need_id("nicid")?;
        let nics = &mut state.vm_mut(vm)?.nics;
        match nics.iter().find(|nic| nic.id == id) {
            None => return Err(Refusal::param(format!("Unable to find NIC {id} of VM {vm}"))),
            Some(nic) if nic.default => {
                return Err(Refusal::param(format!(
                    "Unable to remove NIC from VM {vm}: it is the default NIC"
                )));
            }
            Some(_) => nics.retain(|nic| nic.id != id),
        }
        Ok(())
    })
    .await
}

/// `updateDefaultNicForVirtualMachine`
pub async fn make_default(job: Job) -> std::result::Result<Value, End> {
    change(job, |state, vm, params| {
        let id = params.need_id("nicid")?;
        let nics = &mut state.vm_mut(vm)?.nics;
        match nics.iter().find(|nic| nic.id == id) {
            None => Err(Refusal::param(format!("Unable to find NIC {id} of VM {vm}"))),
            Some(nic) if nic.default => Err(Refusal::param("The NIC is the default NIC already")),
            Some(_) => {
                nics.iter_mut().for_each(|nic| nic.default = nic.id == id);
                Ok(())
            }
        }
    })
    .await
}
