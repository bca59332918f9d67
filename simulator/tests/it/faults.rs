//! Every fault is seen to fire: what the client meets, and what was done all the same.

use std::time::{Duration, Instant};

use backstay_simulator::faults::{Calls, Fault, Rule};
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{Power, VmState, VolumeState};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{Site, Told, site};

fn web() -> Uuid {
    estate::replica("web-01", 2000)
}

/// Detaches a replica under a fault; what came back, and whether it was done in the end.
async fn detach(site: &Site, fault: Fault) -> (anyhow::Result<Told>, bool) {
    site.site.faults().rule(Rule::every("cloudstack", "detachVolume", fault).once());
    let volume = web().to_string();
    let params = [("id", volume.as_str())];
    let call = site.cloud.raw("detachVolume", &params);
    let told = tokio::time::timeout(Duration::from_secs(10), call)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("silent")));
    assert_eq!(site.site.faults().fired()[0].times, 1, "the fault was there");
    let done = site.site.world().until(|state| state.volumes[&web()].attached.is_none());
    let done = tokio::time::timeout(Duration::from_millis(300), done).await.is_ok();
    (told, done)
}

fn body(told: &Told) -> Value {
    serde_json::from_str(&told.body).unwrap_or(Value::Null)
}

#[tokio::test]
async fn a_call_that_fails_before_its_effect_has_none() {
    for (fault, status, kind) in [
        (Fault::Refused { status: 503 }, 503, "application/json"),
        (Fault::TooMany { ms: 700 }, 429, "application/json"),
        (Fault::Html { status: 502 }, 502, "text/html"),
        (Fault::ErrorWith200, 200, "application/json"),
    ] {
        let site = site(|_| ()).await;
        let (told, done) = detach(&site, fault.clone()).await;
        let told = told.unwrap();
        assert_eq!((told.status, told.kind.as_str(), done), (status, kind, false), "{fault:?} {told:?}");
        match fault {
            Fault::TooMany { .. } => assert!(told.body.contains("retry after 700 ms"), "{told:?}"),
            Fault::ErrorWith200 => assert_eq!(body(&told)["detachvolumeresponse"]["errorcode"], 530),
            _ => {}
        }
    }
    let site = site(|_| ()).await;
    let (told, done) = detach(&site, Fault::Dropped).await;
    assert!(told.is_err() && !done, "{told:?}");
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_has_its_effect() {
    for fault in [
        Fault::DoneThenRefused { status: 500 },
        Fault::DoneThenDropped,
        Fault::Reset,
        Fault::Empty,
        Fault::Slow { ms: 80 },
        Fault::Trickle { ms: 1 },
        Fault::Huge { bytes: 3 << 20 },
    ] {
        let site = site(|_| ()).await;
        let began = Instant::now();
        let (told, done) = detach(&site, fault.clone()).await;
        let took = began.elapsed();
        assert!(done, "{fault:?} is about the answer alone");
        match fault {
            Fault::DoneThenRefused { .. } => assert_eq!(told.unwrap().status, 500),
            Fault::DoneThenDropped | Fault::Reset => assert!(told.is_err(), "{fault:?} {told:?}"),
            Fault::Empty => assert_eq!(told.unwrap().body, ""),
            Fault::Slow { .. } => {
                assert!(body(&told.unwrap()).is_object() && took > Duration::from_millis(80))
            }
            Fault::Trickle { .. } => {
                assert!(body(&told.unwrap()).is_object() && took > Duration::from_millis(50), "{took:?}")
            }
            _ => {
                let told = told.unwrap();
                assert!(told.body.len() > 3 << 20 && body(&told).is_object());
            }
        }
    }
}

#[tokio::test]
async fn a_silent_call_has_its_effect_and_never_answers() {
    let site = site(|_| ()).await;
    site.site.faults().rule(Rule::every("cloudstack", "detachVolume", Fault::DoneThenSilent).once());
    let volume = web().to_string();
    let params = [("id", volume.as_str())];
    let call = site.cloud.raw("detachVolume", &params);
    assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
    assert!(site.volume(web()).attached.is_none());
}

#[tokio::test]
async fn jobs_are_lost_fail_are_cancelled_and_done_and_hang() {
    let site = site(|_| ()).await;
    let params = [("id".to_owned(), web().to_string())];
    let params: Vec<(&str, &str)> = params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let once =
        |fault| site.site.faults().rule(Rule::every("cloudstack", "detachVolume", fault).once()).clone();

    once(Fault::JobFails { code: 534 });
    assert_eq!(site.cloud.job("detachVolume", &params).await.unwrap_err().0, 534);
    assert!(site.volume(web()).attached.is_some() && !site.volume(web()).plugged.is_empty());

    once(Fault::JobCancelledButDone { ms: 0 });
    let told = site.cloud.job("detachVolume", &params).await.unwrap_err();
    assert!(
        told.0 == 530 && told.1.contains("job cancelled because of management server restart"),
        "{told:?}"
    );
    site.site.world().until(|state| state.volumes[&web()].plugged.is_empty()).await;
    assert!(site.volume(web()).attached.is_some(), "the rows know nothing of it");

    once(Fault::JobLost);
    let told = site.cloud.ok("detachVolume", &params).await;
    let lost = site.cloud.call("queryAsyncJobResult", &[("jobid", told["jobid"].as_str().unwrap())]).await;
    assert_eq!(lost.unwrap_err().0, 431);
    site.site.world().until(|state| state.volumes[&web()].attached.is_none()).await;

    let attach = [("id", params[0].1), ("virtualmachineid", &site.oma())].map(|(k, v)| (k, v.to_owned()));
    let attach: Vec<(&str, &str)> = attach.iter().map(|(k, v)| (*k, v.as_str())).collect();
    site.site.faults().rule(Rule::every("cloudstack", "attachVolume", Fault::Stuck).once());
    let told = site.cloud.ok("attachVolume", &attach).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let told = site.cloud.ok("queryAsyncJobResult", &[("jobid", told["jobid"].as_str().unwrap())]).await;
    assert_eq!((&told["jobstatus"], site.volume(web()).state), (&json!(0), VolumeState::Attaching));
    assert!(site.site.faults().fired().iter().all(|fired| fired.times == 1));
}

#[tokio::test]
async fn a_job_succeeds_and_what_it_was_about_lags_behind() {
    let site = site(|_| ()).await;
    let volume = web().to_string();
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    site.site.faults().rule(Rule::every("cloudstack", "attachVolume", Fault::Lagging { ms: 200 }).once());
    site.cloud.job("attachVolume", &[("id", &volume), ("virtualmachineid", &site.oma())]).await.unwrap();
    let state =
        || async { site.cloud.ok("listVolumes", &[("id", &volume)]).await["volume"][0]["state"].clone() };
    assert_eq!(state().await, "Attaching");
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(state().await, "Ready");
}

#[tokio::test]
async fn lists_go_stale_and_fresh_again() {
    let site = site(|_| ()).await;
    let volume = web().to_string();
    let at = || async {
        site.cloud.ok("listVolumes", &[("id", &volume)]).await["volume"][0]["virtualmachineid"].clone()
    };
    site.site.faults().rule(Rule::every("cloudstack", "listVolumes", Fault::Stale { ms: 400 }).once());
    assert_eq!(at().await, site.oma());
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    assert_eq!(at().await, site.oma(), "an old truth");
    tokio::time::sleep(Duration::from_millis(420)).await;
    assert_eq!(at().await, Value::Null);
}

#[tokio::test]
async fn a_name_that_is_taken_is_accepted() {
    let site = site(|_| ()).await;
    site.deploy("twin", false).await;
    site.site.faults().rule(Rule::every("cloudstack", "deployVirtualMachine", Fault::DuplicateName).once());
    site.deploy("twin", false).await;
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("name", "twin")]).await["count"], 2);
}

#[tokio::test]
async fn what_was_deleted_is_there_again() {
    let site = site(|_| ()).await;
    let (volume, vm) = (web().to_string(), site.deploy("ghost", false).await);
    site.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
    let told = site.cloud.job("createSnapshot", &[("volumeid", &volume)]).await.unwrap();
    let kept = told["snapshot"]["id"].as_str().unwrap().to_owned();
    let root = site.cloud.ok("listVolumes", &[("virtualmachineid", &vm)]).await["volume"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    for command in ["deleteSnapshot", "destroyVirtualMachine", "deleteVolume"] {
        site.site.faults().rule(Rule::every("cloudstack", command, Fault::Reappears { ms: 150 }).once());
    }
    site.cloud.job("deleteSnapshot", &[("id", &kept)]).await.unwrap();
    assert_eq!(site.cloud.ok("listSnapshots", &[("id", &kept)]).await, json!({}));
    site.cloud.job("detachVolume", &[("id", &root)]).await.unwrap();
    site.cloud.ok("deleteVolume", &[("id", &root)]).await;
    assert_eq!(site.cloud.ok("listVolumes", &[("id", &root)]).await, json!({}));
    site.cloud.job("destroyVirtualMachine", &[("id", &vm), ("expunge", "true")]).await.unwrap();
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("id", &vm)]).await, json!({}));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(site.cloud.ok("listSnapshots", &[("id", &kept)]).await["count"], 1);
    assert_eq!(site.cloud.ok("listVolumes", &[("id", &root)]).await["count"], 1);
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("id", &vm)]).await["count"], 1);
}

#[tokio::test]
async fn what_was_destroyed_or_expunged_is_there_again_too() {
    let site = site(|_| ()).await;
    let vm = site.deploy("ghost", true).await;
    let other = site.deploy("other", false).await;
    let listed = site.cloud.ok("listVolumes", &[("virtualmachineid", &other)]).await;
    let root = listed["volume"][0]["id"].as_str().unwrap().to_owned();
    site.cloud.job("detachVolume", &[("id", &root)]).await.unwrap();
    site.move_to(web(), &vm, Some("0")).await;
    let told = site.cloud.job("createVMSnapshot", &[("virtualmachineid", &vm)]).await.unwrap();
    let whole = told["vmsnapshot"]["id"].as_str().unwrap().to_owned();
    for command in ["destroyVolume", "deleteVMSnapshot", "expungeVirtualMachine"] {
        site.site.faults().rule(Rule::every("cloudstack", command, Fault::Reappears { ms: 200 }).once());
    }
    site.cloud.job("deleteVMSnapshot", &[("vmsnapshotid", &whole)]).await.unwrap();
    assert_eq!(site.cloud.ok("listVMSnapshot", &[("virtualmachineid", &vm)]).await, json!({}));
    site.cloud.job("destroyVolume", &[("id", &root), ("expunge", "true")]).await.unwrap();
    assert_eq!(site.cloud.ok("listVolumes", &[("id", &root)]).await, json!({}));
    site.cloud.job("destroyVirtualMachine", &[("id", &other)]).await.unwrap();
    site.cloud.job("expungeVirtualMachine", &[("id", &other)]).await.unwrap();
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("id", &other)]).await, json!({}));
    let world = site.site.world();
    let (root, whole, other): (Uuid, Uuid, Uuid) =
        (root.parse().unwrap(), whole.parse().unwrap(), other.parse().unwrap());
    world
        .until(|state| {
            state.volume(root).is_ok() && state.vm_snapshot(whole).is_ok() && state.vm(other).is_ok()
        })
        .await;
}

#[tokio::test]
async fn credentials_expire_in_the_middle() {
    let site = site(|_| ()).await;
    site.site.faults().rule(Rule::nth("cloudstack", "listZones", 2, Fault::CredentialsExpire));
    site.cloud.ok("listZones", &[]).await;
    assert_eq!(site.cloud.call("listZones", &[]).await.unwrap_err().0, 401);
    assert_eq!(site.cloud.call("listVolumes", &[]).await.unwrap_err().0, 401, "from now on");
}

#[tokio::test]
async fn a_host_is_shown_as_down_and_its_vms_run_on_also_after_a_forced_stop() {
    let site = site(|_| ()).await;
    let vm = site.deploy("alive", false).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    let id: Uuid = vm.parse().unwrap();
    let power = || site.site.world().look(|state| state.vms[&id].power);
    site.site.faults().rule(Rule::every("cloudstack", "listVirtualMachines", Fault::HostDown).once());
    let told = site.cloud.ok("listVirtualMachines", &[("id", &vm)]).await["virtualmachine"][0].clone();
    assert_eq!((&told["hostcontrolstate"], power()), (&json!("Offline"), Power::On));
    assert_eq!(site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap_err().0, 534);
    assert_eq!(site.vm_state(&vm), VmState::Running);
    site.cloud.job("stopVirtualMachine", &[("id", &vm), ("forced", "true")]).await.unwrap();
    assert_eq!((site.vm_state(&vm), power()), (VmState::Stopped, Power::On), "split brain");
}

#[tokio::test]
async fn a_stop_in_name_only_leaves_a_guest_that_writes() {
    let site = site(|_| ()).await;
    let vm = site.deploy("dr-web-01", true).await;
    site.move_to(web(), &vm, Some("0")).await;
    site.cloud.job("startVirtualMachine", &[("id", &vm)]).await.unwrap();
    site.site.faults().rule(Rule::every("cloudstack", "stopVirtualMachine", Fault::StopsOnlyInName).once());
    site.cloud.job("stopVirtualMachine", &[("id", &vm)]).await.unwrap();
    assert_eq!(site.vm_state(&vm), VmState::Stopped);
    assert_eq!(site.volume(web()).content.foreign.len(), 2);
    assert!(site.site.truth().running().iter().any(|running| running.name == "dr-web-01"));
}

#[tokio::test]
async fn a_storm_of_every_fault_leaves_a_server_that_answers() {
    let site = site(|_| ()).await;
    for fault in [
        Fault::Refused { status: 500 },
        Fault::DoneThenDropped,
        Fault::Reset,
        Fault::Html { status: 503 },
        Fault::TooMany { ms: 1 },
        Fault::Empty,
    ] {
        site.site.faults().rule(Rule {
            system: "*".into(),
            command: "list*".into(),
            calls: Calls::Chance(0.1),
            at_most: None,
            fault,
        });
    }
    let calls = (0..8).map(|_| {
        let cloud = site.cloud.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                let _ = cloud.raw("listVolumes", &[]).await;
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert!(
        site.site.faults().fired().iter().all(|fired| fired.times > 5),
        "{:?}",
        site.site.faults().fired()
    );
    site.site.faults().clear();
    site.cloud.ok("listVolumes", &[]).await;
}
