//! Each invariant, broken once on purpose, is recorded with the call that broke it; a failover done right breaks none.

use backstay_simulator::world::things::{DiskRef, Power, VmState};
use backstay_simulator::world::{Cause, State, estate};
use uuid::Uuid;

use crate::client::{Site, http, site};

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

fn sql(key: u32) -> Uuid {
    estate::replica("sql-01", key)
}

fn disk(name: &str, key: u32) -> DiskRef {
    DiskRef { source: estate::source(name), key }
}

impl Site {
    fn change<T>(&self, call: &str, change: impl FnOnce(&mut State) -> T) -> T {
        self.site.world().change(Cause::new("test", call, "key"), change)
    }

    /// The one invariant that is broken, by this call.
    fn only(&self, invariant: &str, call: &str) {
        let found = self.violations();
        assert!(!found.is_empty(), "{invariant} is not recorded");
        for violation in &found {
            assert_eq!(
                (violation.invariant.as_str(), violation.cause.call.as_str()),
                (invariant, call),
                "{found:#?}"
            );
        }
    }

    /// Asks the VMA whether a source is on.
    async fn ask_power(&self, name: &str) -> String {
        let path = format!(
            "/api/v1/vm/{}/power-state?vcenter=vcenter.example&username=administrator%40vsphere.local&password={}",
            estate::source(name),
            "pretend-vcenter-password"
        );
        let vma = self.site.vma_url();
        let told = http(vma.trim_start_matches("http://"), "GET", &path, None).await.unwrap();
        let told: serde_json::Value = serde_json::from_str(&told.body).unwrap();
        told["power_state"].as_str().unwrap_or_default().to_owned()
    }

    async fn snapshot(&self, volume: Uuid, name: &str) -> String {
        let told = self
            .cloud
            .job("createSnapshot", &[("volumeid", &volume.to_string()), ("name", name)])
            .await
            .unwrap();
        told["snapshot"]["id"].as_str().unwrap().to_owned()
    }

    async fn detach(&self, volume: Uuid) {
        self.cloud.job("detachVolume", &[("id", &volume.to_string())]).await.unwrap();
    }

    async fn attach(&self, volume: Uuid, vm: &str, device: Option<&str>) {
        let volume = volume.to_string();
        let mut params = vec![("id", volume.as_str()), ("virtualmachineid", vm)];
        params.extend(device.map(|device| ("deviceid", device)));
        self.cloud.job("attachVolume", &params).await.unwrap();
    }
}

#[tokio::test]
async fn a_failover_and_its_way_back_done_right_break_nothing() {
    let site = site(|_| ()).await;
    let oma = site.oma();
    for key in [2000, 2001] {
        site.change("final sync", |state| state.replicate(&disk("sql-01", key), true).unwrap());
    }
    let before = [2000, 2001].map(|key| site.volume(sql(key)).content);
    let vm = site.deploy_in("dr-sql-01", true, "prod-lan").await;
    let mut kept = Vec::new();
    for key in [2000, 2001] {
        site.detach(sql(key)).await;
        kept.push(site.snapshot(sql(key), &format!("run-{key}")).await);
    }
    site.attach(sql(2000), &vm, Some("0")).await;
    site.attach(sql(2001), &vm, None).await;
    assert_eq!(site.ask_power("sql-01").await, "poweredOff");
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    for (key, kept) in [2000, 2001].into_iter().zip(&kept) {
        site.detach(sql(key)).await;
        site.cloud.job("revertSnapshot", &[("id", kept)]).await.unwrap();
        site.attach(sql(key), &oma, None).await;
    }
    site.cloud.job("destroyVirtualMachine", &[("id", &vm), ("expunge", "true")]).await.unwrap();
    for kept in &kept {
        site.cloud.job("deleteSnapshot", &[("id", kept)]).await.unwrap();
    }
    assert_eq!(site.violations(), []);
    assert_eq!([2000, 2001].map(|key| site.volume(sql(key)).content), before);
    assert!(site.site.truth().adrift()[&sql(2000)] > 0, "it was nowhere for a moment, and that is counted");
    assert_eq!(site.site.truth().effect("deployVirtualMachine"), 1);
    assert_eq!(site.site.truth().effect("revertSnapshot"), 2);
}

#[tokio::test]
async fn i1_a_protected_volume_at_two_vms() {
    let site = site(|_| ()).await;
    let vm: Uuid = site.deploy("two", false).await.parse().unwrap();
    site.change("plug", |state| state.plug(web(), vm).unwrap());
    site.only("I1", "plug");
    site.change("unrelated", |_| ());
    assert_eq!(site.violations().len(), 1, "one break is recorded once");
}

#[tokio::test]
async fn i2_a_call_to_delete_a_protected_volume_or_its_vm_counts_although_it_is_refused() {
    let site = site(|_| ()).await;
    assert!(site.cloud.call("deleteVolume", &[("id", &web().to_string())]).await.is_err());
    site.only("I2", "deleteVolume");
    assert_eq!(site.violations()[0].cause, Cause::new("cloudstack", "deleteVolume", web().to_string()));
    assert!(site.cloud.job("destroyVolume", &[("id", &web().to_string())]).await.is_err());
    let vm = site.deploy("holder", false).await;
    site.move_to(web(), &vm, None).await;
    site.cloud.job("destroyVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.cloud.job("expungeVirtualMachine", &[("id", &vm)]).await.unwrap();
    let calls: Vec<String> =
        site.violations().into_iter().map(|v| format!("{} {}", v.invariant, v.cause.call)).collect();
    let wanted =
        ["I2 deleteVolume", "I2 destroyVolume", "I2 destroyVirtualMachine", "I2 expungeVirtualMachine"];
    assert_eq!(calls, wanted);
}

#[tokio::test]
async fn i3_source_and_destination_both_on_in_a_production_network() {
    let site = site(|_| ()).await;
    let vm = site.deploy_in("dr-web-01", true, "prod-lan").await;
    site.detach(web()).await;
    site.snapshot(web(), "k").await;
    site.attach(web(), &vm, Some("0")).await;
    assert_eq!(site.ask_power("web-01").await, "poweredOff");
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.violations(), []);
    site.change("power-on", |state| state.source_power(&estate::source("web-01"), Power::On).unwrap());
    site.only("I3", "power-on");
}

#[tokio::test]
async fn i3_a_test_vm_beside_its_source_gets_a_production_nic() {
    let site = site(|state| {
        state.sources.values_mut().for_each(|source| source.power = Power::On);
    })
    .await;
    let vm = site.deploy("test-web-01", true).await;
    site.detach(web()).await;
    site.snapshot(web(), "k").await;
    site.attach(web(), &vm, Some("0")).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.violations(), [], "in an isolated network both may run");
    let lan = estate::id("network", "prod-lan").to_string();
    site.cloud
        .job("addNicToVirtualMachine", &[("virtualmachineid", &vm), ("networkid", &lan)])
        .await
        .unwrap();
    site.only("I3", "addNicToVirtualMachine");
}

#[tokio::test]
async fn i4_a_start_without_a_look_at_the_source_counts_although_it_is_refused() {
    let site = site(|_| ()).await;
    let vm = site.deploy_in("dr-web-01", true, "prod-lan").await;
    site.detach(web()).await;
    site.attach(web(), &vm, Some("0")).await;
    // Seen off, and on since: what was seen is worth nothing.
    assert_eq!(site.ask_power("web-01").await, "poweredOff");
    for power in [Power::On, Power::Off] {
        site.change("power", |state| state.source_power(&estate::source("web-01"), power).unwrap());
    }
    site.change("stop", |state| state.vm_mut(vm.parse().unwrap()).unwrap().state = VmState::Stopping);
    assert!(site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.is_err());
    site.only("I4", "startVirtualMachine");
    site.change("stopped", |state| state.vm_mut(vm.parse().unwrap()).unwrap().state = VmState::Stopped);
    assert_eq!(site.ask_power("web-01").await, "poweredOff");
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.violations().len(), 1);
}

#[tokio::test]
async fn i5_a_final_sync_while_the_source_runs_or_the_volume_is_not_at_the_oma() {
    let site = site(|state| {
        state.sources.values_mut().for_each(|source| source.power = Power::On);
    })
    .await;
    site.change("sync", |state| state.replicate(&disk("web-01", 2000), false).unwrap());
    assert_eq!(site.violations(), [], "an ordinary sync may");
    site.change("final sync", |state| state.replicate(&disk("web-01", 2000), true).unwrap());
    site.only("I5", "final sync");
    site.detach(web()).await;
    site.change("final sync", |state| state.replicate(&disk("web-01", 2000), false).unwrap());
    site.only("I5", "final sync");
}

#[tokio::test]
async fn i6_replication_over_what_others_wrote() {
    let site = site(|_| ()).await;
    site.change("inject", |state| state.write(web(), "virtio"));
    site.change("sync", |state| state.replicate(&disk("web-01", 2000), false).unwrap());
    site.only("I6", "sync");
    assert!(site.volume(web()).content.mixed, "what is on it cannot be trusted");
}

#[tokio::test]
async fn i7_the_last_clean_copy_is_deleted_before_the_revert() {
    let site = site(|_| ()).await;
    site.detach(web()).await;
    let [first, second] = [site.snapshot(web(), "a").await, site.snapshot(web(), "b").await];
    site.change("inject", |state| state.write(web(), "virtio"));
    site.cloud.job("deleteSnapshot", &[("id", &first)]).await.unwrap();
    assert_eq!(site.violations(), [], "there is another one");
    site.cloud.job("deleteSnapshot", &[("id", &second)]).await.unwrap();
    site.only("I7", "deleteSnapshot");
}

#[tokio::test]
async fn i7_after_a_commit_or_a_revert_a_snapshot_may_go() {
    let site = site(|_| ()).await;
    site.detach(web()).await;
    let kept = site.snapshot(web(), "a").await;
    site.change("inject", |state| state.write(web(), "virtio"));
    site.cloud.job("revertSnapshot", &[("id", &kept)]).await.unwrap();
    site.cloud.job("deleteSnapshot", &[("id", &kept)]).await.unwrap();
    let kept = site.snapshot(web(), "b").await;
    site.change("inject", |state| state.write(web(), "virtio"));
    site.site.truth().commit(&estate::source("web-01"));
    site.cloud.job("deleteSnapshot", &[("id", &kept)]).await.unwrap();
    assert_eq!(site.violations(), []);
}

#[tokio::test]
async fn i8_disks_of_one_source_at_two_destinations() {
    let site = site(|_| ()).await;
    for (key, name) in [(2000, "one"), (2001, "two")] {
        let vm = site.deploy(name, false).await;
        site.move_to(sql(key), &vm, None).await;
    }
    site.only("I8", "attachVolume");
}

#[tokio::test]
async fn i12_a_call_to_attach_or_detach_where_a_vm_snapshot_is() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-web-01", true).await;
    site.move_to(web(), &vm, Some("0")).await;
    site.cloud.job("createVMSnapshot", &[("virtualmachineid", &vm)]).await.unwrap();
    assert!(site.cloud.job("detachVolume", &[("id", &web().to_string())]).await.is_err());
    site.only("I12", "detachVolume");
}

#[tokio::test]
async fn i13_any_call_at_the_omas_own_root() {
    let site = site(|_| ()).await;
    let (oma, root) = (site.oma(), estate::id("volume", "ROOT-oma").to_string());
    let volume = web().to_string();
    site.detach(web()).await;
    for (command, params) in [
        ("detachVolume", vec![("id", root.as_str())]),
        ("detachVolume", vec![("virtualmachineid", oma.as_str()), ("deviceid", "0")]),
        (
            "attachVolume",
            vec![("id", volume.as_str()), ("virtualmachineid", oma.as_str()), ("deviceid", "0")],
        ),
        ("createSnapshot", vec![("volumeid", root.as_str())]),
        ("deleteVolume", vec![("id", root.as_str())]),
    ] {
        let before = site.violations().len();
        assert!(site.cloud.job(command, &params).await.is_err(), "{command}");
        let found = site.violations();
        assert!(found.len() > before, "{command}");
        assert!(
            found[before..].iter().all(|v| v.invariant == "I13" && v.cause.call == command),
            "{found:#?}"
        );
    }
}

#[tokio::test]
async fn i15_a_destination_runs_with_some_of_the_disks_or_writes_before_all_are_safe() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-sql-01", true).await;
    for key in [2000, 2001] {
        site.detach(sql(key)).await;
    }
    site.snapshot(sql(2000), "k").await;
    site.change("inject", |state| state.write(sql(2000), "virtio"));
    site.only("I15", "inject");
    site.attach(sql(2000), &vm, Some("0")).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    let found = site.violations();
    assert_eq!(found.len(), 2, "{found:#?}");
    assert_eq!((found[1].invariant.as_str(), found[1].cause.call.as_str()), ("I15", "startVirtualMachine"));
}

#[tokio::test]
async fn i16_after_the_commit_nothing_is_taken_from_the_destination() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-web-01", true).await;
    site.move_to(web(), &vm, Some("0")).await;
    site.site.truth().commit(&estate::source("web-01"));
    site.detach(web()).await;
    site.only("I16", "detachVolume");
}

#[tokio::test]
async fn i10_every_effect_is_counted_by_its_target() {
    let site = site(|_| ()).await;
    site.deploy("counted", false).await;
    let effects = site.site.truth().effects();
    assert_eq!(effects["deployVirtualMachine"]["counted"], 1);
    site.detach(web()).await;
    site.attach(web(), &site.oma(), None).await;
    site.detach(web()).await;
    let effects = site.site.truth().effects();
    assert_eq!(effects["detachVolume"][&format!("{} {}", web(), site.oma())], 2);
}

#[tokio::test]
async fn i9_what_was_made_and_is_still_there_is_listed() {
    let site = site(|_| ()).await;
    assert_eq!(site.site.truth().made(), []);
    let vm = site.deploy("leak", true).await;
    site.detach(web()).await;
    let kept = site.snapshot(web(), "left behind").await;
    let made = site.site.truth().made();
    let made: Vec<(&str, &str)> = made.iter().map(|made| (made.kind, made.name.as_str())).collect();
    assert_eq!(made, [("vm", "leak"), ("snapshot", "left behind")], "and the blank root is gone");
    site.cloud.job("destroyVirtualMachine", &[("id", &vm), ("expunge", "true")]).await.unwrap();
    site.cloud.job("deleteSnapshot", &[("id", &kept)]).await.unwrap();
    assert_eq!(site.site.truth().made(), []);
}
