//! Guests that do not come up in one go, and VMs that do not stay down.

use std::time::Duration;

use backstay_simulator::cloudstack::Guest;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::State;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Power, VmState};
use uuid::Uuid;

use crate::client::{Site, site};

/// A VM that starts from the replica of `web-01`, whose guest is like that, and is started.
async fn started(guest: Guest) -> (Site, String) {
    let site = site(|state| _ = state.settings.cloudstack.guests.insert("web-01".into(), guest)).await;
    let vm = site.deploy("dr-web-01", true).await;
    site.move_to(estate::replica("web-01", 2000), &vm, Some("0")).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    (site, vm)
}

async fn until(site: &Site, what: &str, mut is: impl FnMut(&State) -> bool) {
    let waiting = site.site.world().until(|state| is(state));
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect(what);
}

fn id(vm: &str) -> Uuid {
    vm.parse().unwrap()
}

#[tokio::test]
async fn one_restarts_so_often_and_stays_up() {
    let (site, vm) = started(Guest::Restarts(2)).await;
    until(&site, "it was started three times", |state| state.vms[&id(&vm)].boots == 3).await;
    assert_eq!(site.vm_state(&vm), VmState::Running);
    let written = site.volume(estate::replica("web-01", 2000)).content.foreign;
    assert_eq!(written.last().map(String::as_str), Some("guest of dr-web-01 boot 3"));
    assert_eq!(site.broken(), [""; 0]);
}

#[tokio::test]
async fn one_crashes_until_somebody_stops_it() {
    let (site, vm) = started(Guest::Crashes).await;
    until(&site, "it was started again and again", |state| state.vms[&id(&vm)].boots > 3).await;
    until(&site, "it is down", |state| state.vms[&id(&vm)].state == VmState::Stopped).await;
    // Also a stop of what is down already is one.
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    let boots = site.site.world().look(|state| state.vms[&id(&vm)].boots);
    // Another one lives through more than it would have taken.
    let other = site.deploy("another", false).await;
    site.cloud.job("startVirtualMachine", &[("id", &other)]).await.unwrap();
    site.cloud.job("stopVirtualMachine", &[("id", &other)]).await.unwrap();
    assert_eq!(site.site.world().look(|state| state.vms[&id(&vm)].boots), boots);
}

#[tokio::test]
async fn one_goes_down_and_one_has_no_address() {
    let (site, vm) = started(Guest::StaysDown).await;
    until(&site, "it is down", |state| state.vms[&id(&vm)].power == Power::Off).await;
    assert_eq!(site.vm_state(&vm), VmState::Stopped);

    let (site, vm) = started(Guest::HasNoAddress).await;
    let told = site.cloud.ok("listVirtualMachines", &[("id", &vm)]).await;
    let nic = &told["virtualmachine"][0]["nic"][0];
    assert!(nic["ipaddress"].is_null() && nic["macaddress"].is_string(), "{nic}");
}

#[tokio::test]
async fn a_vm_that_was_stopped_can_run_again() {
    let (site, vm) = started(Guest::Restarts(0)).await;
    site.site.faults().rule(Rule::nth("cloudstack", "stopVirtualMachine", 1, Fault::Reappears { ms: 30 }));
    let told = site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(told["virtualmachine"]["state"], "Stopped");
    until(&site, "it runs", |state| state.vms[&id(&vm)].power == Power::On).await;
    assert_eq!(site.vm_state(&vm), VmState::Running);
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.vm_state(&vm), VmState::Stopped);
}
