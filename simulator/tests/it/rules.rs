//! What CloudStack refuses, and what its commands do when it does not. The OMA runs all the time, as the real one does.

use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Power, VmState, VolumeState};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Site, site};

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

fn sql() -> [Uuid; 2] {
    [estate::replica("sql-01", 2000), estate::replica("sql-01", 2001)]
}

async fn no(site: &Site, command: &str, params: &[(&str, &str)]) -> (u16, String) {
    site.cloud.job(command, params).await.expect_err(command)
}

#[tokio::test]
async fn a_root_is_attached_only_where_nothing_is_at_device_0_and_the_vm_is_off() {
    let site = site(|_| ()).await;
    let volume = web().to_string();
    let vm = site.deploy("dr-web-01", false).await;
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    let attach = [("id", volume.as_str()), ("virtualmachineid", vm.as_str()), ("deviceid", "0")];
    let told = no(&site, "attachVolume", &attach).await;
    assert_eq!(told, (431, "Vm already has root volume attached to it".into()));
    // The OMA has its own root, and runs.
    let oma = site.oma();
    assert_eq!(
        no(&site, "attachVolume", &[("id", &volume), ("virtualmachineid", &oma), ("deviceid", "0")]).await.0,
        431
    );

    let root = site.cloud.ok("listVolumes", &[("virtualmachineid", &vm)]).await["volume"][0].clone();
    assert_eq!(
        (&root["state"], &root["type"]),
        (&json!("Allocated"), &json!("ROOT")),
        "never started, so no storage"
    );
    let root = root["id"].as_str().unwrap().to_owned();
    site.cloud.job("detachVolume", &[("id", &root)]).await.unwrap();
    let told = site.cloud.ok("listVolumes", &[("id", &root)]).await;
    assert_eq!(told["volume"][0]["type"], "DATADISK", "a root that is detached is a data disk");
    let told = site.cloud.job("attachVolume", &attach).await.unwrap();
    assert_eq!((&told["volume"]["type"], &told["volume"]["deviceid"]), (&json!("ROOT"), &json!(0)));
    assert_eq!(site.site.truth().holders(web()), [vm.parse().unwrap()].into());
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(
        no(&site, "detachVolume", &[("id", &volume)]).await.0,
        431,
        "the root of a VM that runs stays"
    );
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    assert!(site.site.truth().holders(web()).is_empty());
}

#[tokio::test]
async fn a_data_disk_takes_the_first_free_device_but_never_the_cd_and_a_taken_one_is_refused() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-archive-01", false).await;
    let mut devices = Vec::new();
    for key in 2000..2004 {
        let volume = estate::replica("archive-01", key).to_string();
        site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
        let told =
            site.cloud.job("attachVolume", &[("id", &volume), ("virtualmachineid", &vm)]).await.unwrap();
        devices.push(told["volume"]["deviceid"].as_u64().unwrap());
    }
    assert_eq!(devices, [1, 2, 4, 5]);
    let fifth = estate::replica("archive-01", 2004).to_string();
    site.cloud.job("detachVolume", &[("id", &fifth)]).await.unwrap();
    let taken = [("id", fifth.as_str()), ("virtualmachineid", vm.as_str()), ("deviceid", "4")];
    assert_eq!(no(&site, "attachVolume", &taken).await.0, 530);
    site.site.truth().set(|settings| settings.cloudstack.most_data_disks = 4);
    let told = no(&site, "attachVolume", &[("id", &fifth), ("virtualmachineid", &vm)]).await;
    assert!(told.1.contains("maximum number of data disks (4)"), "{told:?}");
}

#[tokio::test]
async fn what_is_attached_is_not_attached_again_and_what_is_not_is_not_detached() {
    let site = site(|_| ()).await;
    let (volume, vm) = (web().to_string(), site.deploy("dr-web-01", false).await);
    let twice = [("id", volume.as_str()), ("virtualmachineid", vm.as_str())];
    assert_eq!(
        no(&site, "attachVolume", &twice).await,
        (431, "Please specify a volume that is not attached to any VM.".into())
    );
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    assert_eq!(no(&site, "detachVolume", &[("id", &volume)]).await.0, 431);
    assert_eq!(no(&site, "detachVolume", &[]).await.0, 431);
    let by_slot = [("virtualmachineid", vm.as_str()), ("deviceid", "7")];
    assert_eq!(no(&site, "detachVolume", &by_slot).await.0, 431);
    site.cloud.job("attachVolume", &twice).await.unwrap();
    let told = site.cloud.job("detachVolume", &[("virtualmachineid", &vm), ("deviceid", "1")]).await.unwrap();
    assert_eq!(told["volume"]["id"], volume);
    let nobody = Uuid::new_v4().to_string();
    assert_eq!(no(&site, "attachVolume", &[("id", &nobody), ("virtualmachineid", &vm)]).await.0, 431);
}

#[tokio::test]
async fn while_a_vm_snapshot_exists_nothing_is_attached_detached_or_reverted() {
    let site = site(|_| ()).await;
    let [root, data] = sql();
    let vm = site.deploy("dr-sql-01", true).await;
    site.move_to(root, &vm, Some("0")).await;
    let (root, data) = (root.to_string(), data.to_string());
    let kept = site.cloud.job("createSnapshot", &[("volumeid", &root), ("name", "before")]).await.unwrap();
    let kept = kept["snapshot"]["id"].as_str().unwrap().to_owned();
    let of_vm = [("virtualmachineid", vm.as_str()), ("name", "whole")];
    let whole = site.cloud.job("createVMSnapshot", &of_vm).await.unwrap();
    let whole = whole["vmsnapshot"]["id"].as_str().unwrap().to_owned();
    assert_eq!(no(&site, "createVMSnapshot", &of_vm).await.0, 431, "its name is unique for the VM");
    site.cloud.job("detachVolume", &[("id", &data)]).await.unwrap();
    for (command, params) in [
        ("detachVolume", vec![("id", root.as_str())]),
        ("attachVolume", vec![("id", data.as_str()), ("virtualmachineid", vm.as_str())]),
        ("revertSnapshot", vec![("id", kept.as_str())]),
    ] {
        assert_eq!(no(&site, command, &params).await.0, 431, "{command}");
    }
    assert!(site.broken().contains(&"I12".to_owned()));
    site.cloud.job("deleteVMSnapshot", &[("vmsnapshotid", &whole)]).await.unwrap();
    site.cloud.job("revertSnapshot", &[("id", &kept)]).await.unwrap();
    site.cloud.job("detachVolume", &[("id", &root)]).await.unwrap();
}

#[tokio::test]
async fn a_vm_snapshot_wants_a_root_with_storage_and_a_vm_that_is_off_for_its_revert() {
    let site = site(|_| ()).await;
    let blank = site.deploy("blank", false).await;
    let told = no(&site, "createVMSnapshot", &[("virtualmachineid", &blank)]).await;
    assert!(told.0 == 431 && told.1.contains("not in Ready state"), "{told:?}");
    let oma = site.oma();
    assert_eq!(
        no(&site, "createVMSnapshot", &[("virtualmachineid", &oma)]).await.0,
        431,
        "a KVM VM that runs"
    );
    let memory = [("virtualmachineid", oma.as_str()), ("snapshotmemory", "true")];
    assert_eq!(no(&site, "createVMSnapshot", &memory).await.0, 431);

    let vm = site.deploy("dr-web-01", true).await;
    site.move_to(web(), &vm, Some("0")).await;
    let told =
        site.cloud.job("createVMSnapshot", &[("virtualmachineid", &vm), ("name", "clean")]).await.unwrap();
    let whole = told["vmsnapshot"]["id"].as_str().unwrap().to_owned();
    assert_eq!(
        (&told["vmsnapshot"]["state"], &told["vmsnapshot"]["displayname"]),
        (&json!("Ready"), &json!("clean"))
    );
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert!(!site.volume(web()).content.foreign.is_empty(), "its guest wrote");
    assert_eq!(no(&site, "revertToVMSnapshot", &[("vmsnapshotid", &whole)]).await.0, 431);
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.cloud.job("revertToVMSnapshot", &[("vmsnapshotid", &whole)]).await.unwrap();
    assert!(site.volume(web()).content.foreign.is_empty(), "what it wrote is gone");
}

#[tokio::test]
async fn kvm_takes_no_snapshot_of_a_disk_of_a_vm_that_runs_unless_it_is_allowed() {
    let site = site(|_| ()).await;
    let volume = web().to_string();
    let take = [("volumeid", volume.as_str()), ("name", "one")];
    let told = no(&site, "createSnapshot", &take).await;
    assert!(told.0 == 530 && told.1.starts_with("KVM Snapshot is not supported for Running VMs"), "{told:?}");
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    site.cloud.job("createSnapshot", &take).await.expect("detached is allowed");
    let oma = site.oma();
    site.cloud.job("attachVolume", &[("id", &volume), ("virtualmachineid", &oma)]).await.unwrap();
    site.site.world().change(backstay_simulator::world::Cause::new("test", "gate", ""), |state| {
        state.configurations.insert("kvm.snapshot.enabled".into(), "true".into());
    });
    site.cloud.job("createSnapshot", &take).await.expect("and with the gate open");
    let told = site.cloud.ok("listSnapshots", &[("volumeid", &volume), ("name", "one")]).await;
    assert_eq!(told["count"], 2, "names of snapshots are not unique");
    assert_eq!(no(&site, "createSnapshot", &[("volumeid", &volume), ("quiescevm", "true")]).await.0, 530);
}

#[tokio::test]
async fn a_second_snapshot_on_the_same_vm_is_refused_while_the_first_is_under_way() {
    let site = site(|state| {
        state.configurations.insert("kvm.snapshot.enabled".into(), "true".into());
        state.settings.cloudstack.snapshot_ms = 100_000;
    })
    .await;
    let [root, data] = sql().map(|id| id.to_string());
    let first = site.cloud.ok("createSnapshot", &[("volumeid", &root)]).await;
    assert!(first["id"].is_string(), "its row is there before its job is done: {first}");
    let second = site.cloud.call("createSnapshot", &[("volumeid", &data)]).await.unwrap_err();
    assert!(second.0 == 431 && second.1.contains("other active snapshot"), "{second:?}");
    let shown = site.cloud.ok("listSnapshots", &[("id", first["id"].as_str().unwrap())]).await;
    assert_ne!(shown["snapshot"][0]["state"], "BackedUp");
    site.cloud.wait(first["jobid"].as_str().unwrap()).await.unwrap();
    site.cloud.job("createSnapshot", &[("volumeid", &data)]).await.unwrap();
}

#[tokio::test]
async fn a_revert_brings_back_what_was_there_and_only_where_no_vm_runs_with_it() {
    let site = site(|_| ()).await;
    let volume = web().to_string();
    let before = site.volume(web()).content;
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    let kept = site.cloud.job("createSnapshot", &[("volumeid", &volume), ("name", "k")]).await.unwrap();
    assert_eq!(kept["snapshot"]["state"], "BackedUp");
    let kept = kept["snapshot"]["id"].as_str().unwrap().to_owned();
    let vm = site.deploy("dr-web-01", true).await;
    site.cloud
        .job("attachVolume", &[("id", &volume), ("virtualmachineid", &vm), ("deviceid", "0")])
        .await
        .unwrap();
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.volume(web()).content.foreign, ["guest of dr-web-01 boot 1"]);
    assert_eq!(no(&site, "revertSnapshot", &[("id", &kept)]).await.0, 431, "the VM runs");
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.cloud.job("revertSnapshot", &[("id", &kept)]).await.unwrap();
    assert_eq!(site.volume(web()).content, before);
    site.cloud.job("deleteSnapshot", &[("id", &kept)]).await.unwrap();
    assert_eq!(site.cloud.ok("listSnapshots", &[("id", &kept)]).await, json!({}));
    assert_eq!(no(&site, "deleteSnapshot", &[("id", &kept)]).await.0, 431, "gone is unknown");
    assert_eq!(site.broken(), [""; 0]);
}

#[tokio::test]
async fn a_vm_without_a_root_does_not_start_and_the_first_start_gives_storage_to_a_blank_root() {
    let site = site(|_| ()).await;
    let bare = site.deploy("bare", true).await;
    assert_eq!(no(&site, "startVirtualMachine", &[("id", &bare)]).await.0, 530);
    assert_eq!(site.vm_state(&bare), VmState::Stopped);
    let whole = site.deploy("whole", false).await;
    let root = || async {
        site.cloud.ok("listVolumes", &[("virtualmachineid", &whole)]).await["volume"][0]["state"].clone()
    };
    assert_eq!(root().await, "Allocated");
    let told = site.cloud.job("startVirtualMachine", &[("id", &whole)]).await.unwrap();
    assert_eq!(told["virtualmachine"]["state"], "Running");
    assert_eq!(root().await, "Ready");
    assert_eq!(no(&site, "startVirtualMachine", &[("id", &whole)]).await.0, 431, "it runs already");
    site.cloud.job("stopVirtualMachine", &[("id", &whole)]).await.unwrap();
    site.cloud
        .job("stopVirtualMachine", &[("id", &whole)])
        .await
        .expect("a stop of what is stopped is no error");
}

#[tokio::test]
async fn destroying_a_vm_destroys_its_root_and_spares_its_data_disks() {
    let site = site(|_| ()).await;
    let [root, data] = sql();
    let vm = site.deploy("dr-sql-01", true).await;
    site.move_to(root, &vm, Some("0")).await;
    site.move_to(data, &vm, None).await;
    assert_eq!(
        no(&site, "expungeVirtualMachine", &[("id", &vm)]).await.0,
        431,
        "it has to be destroyed first"
    );
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    let told = site.cloud.job("destroyVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(told["virtualmachine"]["state"], "Destroyed");
    assert_eq!(site.site.world().look(|state| state.vms[&vm.parse().unwrap()].power), Power::Off);
    assert!(site.volume(root).removed.is_none(), "what is destroyed can be brought back");
    site.cloud.job("expungeVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("id", &vm)]).await, json!({}));
    assert!(site.volume(root).removed.is_some(), "the data is lost");
    assert!(site.volume(data).removed.is_none() && site.volume(data).attached.is_none());
    for invariant in ["I1", "I2"] {
        assert!(site.broken().contains(&invariant.to_owned()), "{invariant}: {:?}", site.violations());
    }
}

#[tokio::test]
async fn a_volume_is_deleted_only_when_it_is_detached() {
    let site = site(|_| ()).await;
    let offering = estate::id("disk-offering", "custom").to_string();
    let zone = estate::id("zone", "zone-1").to_string();
    let made =
        [("name", "extra"), ("diskofferingid", offering.as_str()), ("zoneid", zone.as_str()), ("size", "7")];
    let told = site.cloud.job("createVolume", &made).await.unwrap();
    assert_eq!(
        (&told["volume"]["state"], &told["volume"]["size"]),
        (&json!("Allocated"), &json!(7_u64 << 30))
    );
    let id = told["volume"]["id"].as_str().unwrap().to_owned();
    assert_eq!(no(&site, "createVolume", &made[..3]).await.0, 431, "this offering has no size of its own");
    let vm = site.deploy("holder", false).await;
    let told = site.cloud.job("attachVolume", &[("id", &id), ("virtualmachineid", &vm)]).await.unwrap();
    assert_eq!(told["volume"]["state"], "Ready", "the first attachment gives it storage");
    assert_eq!(site.cloud.call("deleteVolume", &[("id", &id)]).await.unwrap_err().0, 431);
    assert_eq!(no(&site, "destroyVolume", &[("id", &id), ("expunge", "true")]).await.0, 431);
    site.cloud.job("detachVolume", &[("id", &id)]).await.unwrap();
    let told = site.cloud.job("destroyVolume", &[("id", &id)]).await.unwrap();
    assert_eq!(told["volume"]["state"], "Destroy");
    assert_eq!(site.cloud.ok("deleteVolume", &[("id", &id)]).await, json!({ "success": true }));
    assert_eq!(site.cloud.call("deleteVolume", &[("id", &id)]).await.unwrap_err().0, 431, "gone is unknown");
    assert_eq!(site.volume(id.parse().unwrap()).state, VolumeState::Expunged, "its row is still there");
}

fn deployment() -> Vec<(&'static str, String)> {
    vec![
        ("zoneid", estate::id("zone", "zone-1").to_string()),
        ("serviceofferingid", estate::id("service-offering", "small").to_string()),
        ("templateid", estate::id("template", "tiny").to_string()),
        ("networkids", estate::id("network", "test-lan").to_string()),
        ("startvm", "false".to_owned()),
    ]
}

#[tokio::test]
async fn a_deployment_is_refused_before_anything_is_made() {
    let site = site(|_| ()).await;
    let deploy = |change: Vec<(&'static str, String)>| {
        let mut params = deployment();
        for (name, value) in change {
            params.retain(|(there, _)| *there != name);
            params.push((name, value));
        }
        let cloud = site.cloud.clone();
        async move {
            let params: Vec<(&str, &str)> =
                params.iter().map(|(name, value)| (*name, value.as_str())).collect();
            cloud.call("deployVirtualMachine", &params).await
        }
    };
    let custom = estate::id("service-offering", "custom").to_string();
    let lans = format!("{},{}", estate::id("network", "test-lan"), estate::id("network", "broken-lan"));
    let vms = || site.site.world().look(|state| state.vms.len());
    let before = vms();
    for (change, code) in [
        (vec![("zoneid", String::new())], 431),
        (vec![("templateid", estate::id("template", "still-downloading").to_string())], 431),
        (vec![("templateid", Uuid::new_v4().to_string())], 431),
        (
            vec![
                ("templateid", estate::id("template", "windows-base").to_string()),
                ("rootdisksize", "99".into()),
            ],
            431,
        ),
        (vec![("serviceofferingid", custom)], 431),
        (vec![("details[0].cpuNumber", "4".into())], 431),
        (vec![("networkids", lans)], 431),
        (vec![("networkids", String::new())], 431),
        (vec![("name", "no_underscores".into())], 431),
        (vec![("name", "a".repeat(64))], 431),
        (vec![("customid", site.oma())], 431),
        (vec![("ipaddress", "192.168.1.1".into())], 533),
    ] {
        let told = deploy(change.clone()).await.unwrap_err();
        assert_eq!(told.0, code, "{change:?}: {told:?}");
    }
    assert_eq!(vms(), before);
    assert!(deploy(vec![("name", "one".into())]).await.is_ok());
    let twice = deploy(vec![("name", "ONE".into())]).await.unwrap_err();
    assert!(twice.0 == 431 && twice.1.contains("already exists in the network domain"), "{twice:?}");
    let l2 = estate::id("network", "test-l2").to_string();
    let told =
        deploy(vec![("name", "one".into()), ("networkids", l2)]).await.expect("an L2 network has no domain");
    let vm = site.cloud.wait(told["jobid"].as_str().unwrap()).await.unwrap();
    assert_eq!(vm["virtualmachine"]["nic"][0]["ipaddress"], Value::Null);
}

#[tokio::test]
async fn a_custom_id_is_the_vms_id_once_and_for_ever_and_only_a_root_admin_has_it() {
    let site = site(|_| ()).await;
    let id = Uuid::new_v4().to_string();
    let mut params = deployment();
    params.push(("customid", id.clone()));
    let with = |params: &[(&'static str, String)]| {
        let owned: Vec<(&'static str, String)> = params.to_vec();
        move |cloud: crate::client::Cloud| async move {
            let params: Vec<(&str, &str)> =
                owned.iter().map(|(name, value)| (*name, value.as_str())).collect();
            cloud.job("deployVirtualMachine", &params).await
        }
    };
    assert_eq!(with(&params)(site.cloud.clone()).await.unwrap()["virtualmachine"]["id"], id);
    site.cloud.job("destroyVirtualMachine", &[("id", &id), ("expunge", "true")]).await.unwrap();
    let again = with(&params)(site.cloud.clone()).await.unwrap_err();
    assert_eq!(again.0, 431, "a removed row still has it");
    let tenant = site.site.world().look(|state| state.accounts[1].clone());
    let tenant = crate::client::Cloud::of(&site.site.cloudstack_url(), tenant);
    assert_eq!(with(&params)(tenant).await.unwrap_err().0, 531);
}

#[tokio::test]
async fn what_is_full_is_full() {
    let site = site(|state| {
        state.accounts[0].limits = [("vm".to_owned(), 4), ("snapshot".to_owned(), 0)].into();
        state.hosts.iter_mut().for_each(|host| host.memory_mb = 13_000);
    })
    .await;
    let vm = site.deploy("fits", false).await;
    assert_eq!(no(&site, "createSnapshot", &[("volumeid", &web().to_string())]).await.0, 535);
    let params = deployment();
    let params: Vec<(&str, &str)> = params.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(no(&site, "deployVirtualMachine", &params).await.0, 535);
    site.site.world().change(backstay_simulator::world::Cause::new("test", "full", ""), |state| {
        state.hosts.iter_mut().for_each(|host| host.memory_mb = 100);
    });
    assert_eq!(no(&site, "startVirtualMachine", &[("id", &vm)]).await.0, 533);
    assert_eq!(site.vm_state(&vm), VmState::Stopped);
}

#[tokio::test]
async fn a_deployment_with_a_disk_offering_has_one_more_disk_and_starts_unless_told_otherwise() {
    let site = site(|_| ()).await;
    let mut params = deployment();
    params.retain(|(name, _)| *name != "startvm");
    params.push(("diskofferingid", estate::id("disk-offering", "100 GB").to_string()));
    let params: Vec<(&str, &str)> = params.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let vm = site.cloud.job("deployVirtualMachine", &params).await.unwrap()["virtualmachine"].clone();
    assert_eq!(vm["state"], "Running");
    let volumes = site.cloud.ok("listVolumes", &[("virtualmachineid", vm["id"].as_str().unwrap())]).await;
    assert_eq!(volumes["count"], 2);
}

#[tokio::test]
async fn nics_are_added_removed_and_made_the_default() {
    let site = site(|_| ()).await;
    let vm = site.deploy("nics", false).await;
    let dmz = estate::id("network", "test-dmz").to_string();
    let add =
        [("virtualmachineid", vm.as_str()), ("networkid", dmz.as_str()), ("macaddress", "02:00:00:00:00:01")];
    let told = site.cloud.job("addNicToVirtualMachine", &add).await.unwrap();
    let nics = told["virtualmachine"]["nic"].as_array().unwrap().clone();
    assert_eq!(
        (nics.len(), &nics[0]["isdefault"], &nics[1]["macaddress"]),
        (2, &json!(true), &json!("02:00:00:00:00:01"))
    );
    assert_eq!(no(&site, "addNicToVirtualMachine", &add).await.0, 431, "the same network twice");
    let [first, second] = [&nics[0]["id"], &nics[1]["id"]].map(|id| id.as_str().unwrap());
    let remove = [("virtualmachineid", vm.as_str()), ("nicid", first)];
    assert_eq!(no(&site, "removeNicFromVirtualMachine", &remove).await.0, 431, "the default stays");
    let default = [("virtualmachineid", vm.as_str()), ("nicid", second)];
    site.cloud.job("updateDefaultNicForVirtualMachine", &default).await.unwrap();
    let told = site.cloud.job("removeNicFromVirtualMachine", &remove).await.unwrap();
    assert_eq!(told["virtualmachine"]["nic"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn tags_are_made_once_found_and_deleted() {
    let site = site(|_| ()).await;
    let volume = web().to_string();
    let tag = [
        ("resourceids", volume.as_str()),
        ("resourcetype", "Volume"),
        ("tags[0].key", "backstay-run"),
        ("tags[0].value", "Run-1"),
    ];
    assert_eq!(site.cloud.job("createTags", &tag).await.unwrap(), json!({ "success": true }));
    assert_eq!(no(&site, "createTags", &tag).await.0, 530, "the key is there");
    let found =
        site.cloud.ok("listVolumes", &[("tags[0].key", "backstay-run"), ("tags[0].value", "Run-1")]).await;
    assert_eq!((&found["count"], &found["volume"][0]["id"]), (&json!(1), &json!(volume)));
    assert_eq!(
        site.cloud.ok("listVolumes", &[("tags[0].key", "backstay-run"), ("tags[0].value", "run-2")]).await,
        json!({})
    );
    assert_eq!(site.cloud.ok("listTags", &[("resourceid", &volume)]).await["tag"][0]["value"], "Run-1");
    assert_eq!(site.site.truth().tagged("backstay-run", None), [format!("volume {volume}")]);
    site.cloud.job("deleteTags", &tag[..3]).await.unwrap();
    assert_eq!(no(&site, "deleteTags", &tag[..3]).await.0, 431, "nothing to delete");
    assert!(site.site.truth().tagged("backstay-run", None).is_empty());
}
