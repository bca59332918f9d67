//! What a job leaves behind that did not end as it should: done all the same, done later, half done for ever.

use std::time::Duration;

use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::truth::System;
use backstay_simulator::world::things::VmState;
use backstay_simulator::world::{State, World, estate};
use serde_json::json;
use uuid::Uuid;

use crate::client::{Site, site};

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

fn next(site: &Site, command: &str, fault: Fault) {
    site.site.faults().rule(Rule::every("cloudstack", command, fault).once());
}

async fn until(site: &Site, holds: impl FnMut(&State) -> bool) {
    let world: &World = site.site.world();
    tokio::time::timeout(Duration::from_secs(5), world.until(holds)).await.expect("it came true");
}

#[tokio::test]
async fn a_job_that_is_refused_mends_nothing_that_another_left_half_way() {
    let site = site(|state| state.settings.cloudstack.restart_leaves_transitions = true).await;
    let vm = site.deploy("stuck", false).await;
    next(&site, "startVirtualMachine", Fault::Stuck);
    site.cloud.ok("startVirtualMachine", &[("id", &vm)]).await;
    let id: Uuid = vm.parse().unwrap();
    until(&site, |state| state.vms[&id].state == VmState::Starting).await;
    site.site.truth().restart(System::CloudStack, Duration::ZERO);
    for command in ["startVirtualMachine", "stopVirtualMachine"] {
        assert_eq!(site.cloud.job(command, &[("id", &vm)]).await.expect_err(command).0, 431);
        assert_eq!(site.vm_state(&vm), VmState::Starting, "{command}");
    }
}

#[tokio::test]
async fn what_hangs_at_a_vm_that_is_off_is_a_row_and_the_row_outlives_its_job() {
    let site = site(|_| ()).await;
    let (vm, volume) = (site.deploy("dr-web-01", true).await, web().to_string());
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    for (command, there) in [("attachVolume", true), ("detachVolume", false)] {
        next(&site, command, Fault::JobCancelledButDone { ms: 0 });
        let all = [("id", volume.as_str()), ("virtualmachineid", vm.as_str()), ("deviceid", "0")];
        let asked = if there { &all[..] } else { &all[..1] };
        assert_eq!(site.cloud.job(command, asked).await.expect_err(command).0, 530);
        let row = site.volume(web());
        assert_eq!((row.attached.is_some(), row.plugged.len()), (there, usize::from(there)), "{command}");
    }
}

#[tokio::test]
async fn a_cancelled_job_can_have_its_effect_later() {
    let site = site(|_| ()).await;
    next(&site, "detachVolume", Fault::JobCancelledButDone { ms: 150 });
    assert_eq!(site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap_err().0, 530);
    assert_eq!(site.volume(web()).plugged.len(), 1, "not yet");
    until(&site, |state| state.volumes[&web()].plugged.is_empty()).await;
    assert!(site.volume(web()).attached.is_some(), "and nobody told the row");
}

#[tokio::test]
async fn a_state_that_a_list_shows_is_the_one_that_the_next_job_finds() {
    let site = site(|_| ()).await;
    let (oma, volume) = (site.oma(), web().to_string());
    next(&site, "detachVolume", Fault::Lagging { ms: 400 });
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    let attach = [("id", volume.as_str()), ("virtualmachineid", oma.as_str())];
    let told = site.cloud.job("attachVolume", &attach).await.unwrap_err();
    assert!(told.0 == 431 && told.1.contains("transitional"), "{told:?}");
    tokio::time::sleep(Duration::from_millis(450)).await;
    site.cloud.job("attachVolume", &attach).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_can_be_stuck_and_nobody_can_delete_it() {
    let site = site(|state| state.settings.cloudstack.restart_leaves_snapshots = true).await;
    let volume = web().to_string();
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    next(&site, "createSnapshot", Fault::JobCancelledButDone { ms: 0 });
    let begun = site.cloud.ok("createSnapshot", &[("volumeid", &volume)]).await;
    site.cloud.wait(begun["jobid"].as_str().unwrap()).await.unwrap_err();
    let id = begun["id"].as_str().unwrap();
    for _ in 0..2 {
        let told = site.cloud.job("deleteSnapshot", &[("id", id)]).await.unwrap_err();
        assert!(told.0 == 431 && told.1.contains("in Creating Status"), "{told:?}");
    }
    let shown = site.cloud.ok("listVolumes", &[("id", &volume)]).await;
    assert_eq!(shown["volume"][0]["state"], "Ready", "its volume is free");
}

#[tokio::test]
async fn a_guest_wants_its_firmware_and_windows_its_drivers() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-sql-01", true).await;
    let id: Uuid = vm.parse().unwrap();
    let root = estate::replica("sql-01", 2000);
    site.move_to(root, &vm, Some("0")).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    let change = |change: &dyn Fn(&mut State)| site.site.world().change(Default::default(), change);
    for (firmware, converted, comes_up) in
        [("BIOS", true, false), ("UEFI", false, false), ("UEFI", true, true)]
    {
        change(&|state| {
            state.vms.get_mut(&id).unwrap().boot_type = firmware.into();
            let written = if converted { vec!["virtio now".to_owned()] } else { Vec::new() };
            state.volumes.get_mut(&root).unwrap().content.foreign = written;
        });
        let shown = site.cloud.ok("listVirtualMachines", &[("id", &vm)]).await;
        let address = &shown["virtualmachine"][0]["nic"][0]["ipaddress"];
        assert_eq!(address != &json!(null), comes_up, "{firmware}, {converted}");
    }
}
