//! Where volumes lie, and what CloudStack makes of it: what it refuses to attach and detach, and what it copies first.

use std::time::Duration;

use backstay_simulator::conversion::{self, Process};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::things::VmState;
use backstay_simulator::world::{Cause, State, estate};
use serde_json::json;
use uuid::Uuid;

use crate::client::{Site, site};

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

fn lies_on(state: &mut State, volume: Uuid, pool: &str) {
    state.volumes.get_mut(&volume).unwrap().pool = Some(estate::id("pool", pool));
}

fn change(site: &Site, change: impl FnOnce(&mut State)) {
    site.site.world().change(Cause::new("test", "change", ""), change);
}

async fn attached(site: &Site, volume: Uuid, vm: &str, device: Option<&str>) -> Result<(), (u16, String)> {
    let volume = volume.to_string();
    let mut params = vec![("id", volume.as_str()), ("virtualmachineid", vm)];
    params.extend(device.map(|device| ("deviceid", device)));
    site.cloud.job("attachVolume", &params).await.map(|_| ())
}

#[tokio::test]
async fn from_a_vm_with_backups_nothing_is_detached_and_nothing_is_attached_to_it() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-web-01", true).await;
    let offering = estate::id("backup-offering", "nightly");
    let oma: Uuid = site.oma().parse().unwrap();
    change(&site, |state| state.vms.get_mut(&oma).unwrap().backup_offering = Some(offering));
    let shown = site.cloud.ok("listVirtualMachines", &[("id", &site.oma())]).await;
    assert_eq!(shown["virtualmachine"][0]["backupofferingid"], offering.to_string());
    let told = site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap_err();
    assert!(told.0 == 431 && told.1.contains("has backups"), "{told:?}");
    change(&site, |state| {
        state.vms.get_mut(&oma).unwrap().backup_offering = None;
        state.vms.get_mut(&vm.parse().unwrap()).unwrap().backup_offering = Some(offering);
    });
    site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap();
    let told = attached(&site, web(), &vm, Some("0")).await.unwrap_err();
    assert!(told.0 == 431 && told.1.contains("does not have any backups"), "{told:?}");
}

#[tokio::test]
async fn what_lies_where_the_vm_cannot_have_it_is_not_attached() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-web-01", true).await;
    site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap();
    for (pool, says) in [
        ("kvm-01-disks", "is on local storage"),
        ("xen-shared", "created by: XenServer to a KVM vm"),
        ("array", "managed storage pool"),
    ] {
        change(&site, |state| lies_on(state, web(), pool));
        let told = attached(&site, web(), &vm, Some("0")).await.unwrap_err();
        assert!(told.0 == 431 && told.1.contains(says), "{pool}: {told:?}");
    }
    // Managed storage is no matter for what is no root; one that became a root elsewhere stays where it is.
    attached(&site, web(), &vm, None).await.unwrap();
    change(&site, |state| state.attach_row(web(), vm.parse().unwrap(), 0).unwrap());
    let told = site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap_err();
    assert!(told.0 == 431 && told.1.contains("managed storage pool"), "{told:?}");
    assert_eq!(site.volume(web()).attached.unwrap().device, 0);
}

#[tokio::test]
async fn what_lies_elsewhere_than_the_vms_other_disks_is_copied_there_first_and_is_another_resource_then() {
    let [root, data] = [2000, 2001].map(|key| estate::replica("sql-01", key));
    let site = site(|state| {
        lies_on(state, root, "nfs-east");
        lies_on(state, data, "nfs-west");
        state.settings.cloudstack.move_ms = 20_000;
    })
    .await;
    let vm = site.deploy("dr-sql-01", true).await;
    site.move_to(root, &vm, Some("0")).await;
    let before = site.volume(data);
    site.cloud.job("detachVolume", &[("id", &data.to_string())]).await.unwrap();
    let kept = site.cloud.job("createSnapshot", &[("volumeid", &data.to_string())]).await.unwrap();
    let asked = [("id", data.to_string()), ("virtualmachineid", vm.clone())];
    let asked = asked.each_ref().map(|(name, value)| (*name, value.as_str()));
    let job = site.cloud.ok("attachVolume", &asked).await["jobid"].as_str().unwrap().to_owned();
    let is_copied = |state: &State| format!("{:?}", state.volumes[&data].state) == "Migrating";
    tokio::time::timeout(Duration::from_secs(5), site.site.world().until(is_copied)).await.unwrap();
    let told = site.cloud.job("attachVolume", &asked).await.unwrap_err();
    assert_eq!(told.0, 431, "it is attached meanwhile: {told:?}");
    site.cloud.wait(&job).await.unwrap();
    let after = site.volume(data);
    assert_eq!((after.pool, &after.content), (Some(estate::id("pool", "nfs-east")), &before.content));
    assert_ne!(after.path, before.path, "whoever knew it by its path knows it no more");
    let shown = site.cloud.ok("listVolumes", &[("id", &data.to_string())]).await;
    assert_eq!(
        (&shown["volume"][0]["storage"], &shown["volume"][0]["storagetype"]),
        (&json!("nfs-east"), &json!("shared"))
    );
    let kept = kept["snapshot"]["id"].as_str().unwrap().to_owned();
    let shown = site.cloud.ok("listSnapshots", &[("id", &kept)]).await;
    assert_eq!(shown["snapshot"][0]["state"], "BackedUp", "it is on the secondary storage");
    assert_eq!(site.site.truth().effect("move volume"), 1);
}

#[tokio::test]
async fn a_disk_that_a_conversion_works_on_is_not_let_go_by_the_appliance() {
    let site = site(|_| ()).await;
    let open = conversion::Open { volumes: vec![web()], process: Process::this() };
    let run = conversion::open(site.site.world(), open).unwrap().id;
    let told = site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap_err();
    assert!(told.0 == 530 && told.1.contains("in use by the guest"), "{told:?}");
    assert!(site.volume(web()).attached.is_some());
    conversion::step(site.site.world(), run, "failed").unwrap();
    site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap();
}

#[tokio::test]
async fn a_machine_can_be_made_without_its_disk_and_is_in_error_then() {
    let site = site(|_| ()).await;
    site.site.faults().rule(Rule::nth("cloudstack", "deployVirtualMachine", 1, Fault::Partial));
    let id = Uuid::new_v4().to_string();
    let asked = [
        ("zoneid", estate::id("zone", "zone-1").to_string()),
        ("serviceofferingid", estate::id("service-offering", "small").to_string()),
        ("templateid", estate::id("template", "tiny").to_string()),
        ("networkids", estate::id("network", "test-lan").to_string()),
        ("startvm", "false".to_owned()),
        ("customid", id.clone()),
    ];
    let mut asked: Vec<_> = asked.iter().map(|(name, value)| (*name, value.as_str())).collect();
    asked.push(("boottype", "uefi"));
    let told = site.cloud.call("deployVirtualMachine", &asked).await.unwrap_err();
    assert!(told.0 == 431 && told.1.contains("bootmode"), "{told:?}");
    asked.push(("bootmode", "SECURE"));
    // The first call was refused, and counted.
    site.site.faults().clear();
    site.site.faults().rule(Rule::every("cloudstack", "deployVirtualMachine", Fault::Partial).once());
    let told = site.cloud.job("deployVirtualMachine", &asked).await.unwrap_err();
    assert_eq!(told.0, 530, "{told:?}");
    assert_eq!(site.vm_state(&id), VmState::Error);
    assert_eq!(site.cloud.ok("listVolumes", &[("virtualmachineid", &id)]).await, json!({}));
    site.cloud.job("expungeVirtualMachine", &[("id", &id)]).await.unwrap();
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("id", &id)]).await, json!({}));
}

#[tokio::test]
async fn i1_a_protected_volume_that_hangs_nowhere_for_too_long() {
    let site = site(|state| state.settings.most_adrift_ms = 50).await;
    site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.unwrap();
    let nothing = || change(&site, |state| state.applied("nothing", ""));
    let late = || site.violations().iter().filter(|one| one.what.contains("for too long")).count();
    assert_eq!(late(), 0);
    tokio::time::sleep(Duration::from_millis(60)).await;
    nothing();
    nothing();
    assert_eq!((late(), site.broken()), (1, vec!["I1".to_owned()]), "once, and not with each change");
    let oma = site.oma();
    attached(&site, web(), &oma, None).await.unwrap();
    nothing();
    assert_eq!(late(), 1);
    assert!(site.site.world().look(|state| state.late.is_empty()));
}
