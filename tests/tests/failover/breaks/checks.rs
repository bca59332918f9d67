//! What is known before anything is touched, and what is asked once more right before it is.

use backstay_engine::Status;
use backstay_engine::machine::Verb;
use backstay_simulator::world::State;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{VmSnapshot, Volume};
use serde_json::{Value, json};

use crate::play::Play;

/// Something that is wrong: in the input, or in the world.
type Wrong = (&'static str, fn(&mut Value), fn(&mut State));

fn disk(state: &mut State) -> &mut Volume {
    let replica = state.sources[&estate::source("web-01")].disks[0].replica;
    state.volumes.get_mut(&replica).expect("it has a replica")
}

fn fixture(kind: &str, name: &str) -> Value {
    estate::id(kind, name).to_string().into()
}

const WRONG: [Wrong; 15] = [
    (
        "take one of at most 2147483648",
        |input| input["destination"]["template"] = fixture("template", "windows-base"),
        |_| (),
    ),
    (
        "the template is not ready",
        |input| input["destination"]["template"] = fixture("template", "still-downloading"),
        |_| (),
    ),
    (
        "is of a fixed size",
        |input| input["destination"]["offering"] = fixture("service-offering", "medium"),
        |_| (),
    ),
    ("there is no zone", |input| input["destination"]["zone"] = fixture("zone", "nowhere"), |_| ()),
    (
        "is not marked as one for rehearsals",
        |input| input["destination"]["nics"][0]["network"] = fixture("network", "prod-lan"),
        |_| (),
    ),
    (
        "there is a machine called jump-host already",
        |input| {
            input["mode"] = "live".into();
            input["destination"]["name"] = "jump-host".into();
            input["destination"]["nics"][0]["network"] = fixture("network", "prod-lan");
        },
        |_| (),
    ),
    ("fewer than the", |input| input["source"]["disks"][0]["size"] = json!(1_u64 << 50), |_| ()),
    (
        "does not know its volume",
        |input| input["source"]["disks"][0]["volume"] = fixture("volume", "none"),
        |_| (),
    ),
    (
        "is attached to nothing",
        |_| (),
        |state| {
            let disk = disk(state);
            (disk.attached, disk.plugged) = (None, [].into());
        },
    ),
    (
        "it needs a full copy first",
        |_| (),
        |state| {
            disk(state).tags.insert("backstay-dirty".into(), "an-earlier-run".into());
        },
    ),
    (
        "the Volume Daemon does not know its device",
        |_| (),
        |state| {
            let id = disk(state).id.to_string();
            state.daemon.mappings.retain(|row| row.volume_uuid != id);
        },
    ),
    (
        "CloudStack makes backups of the appliance",
        |_| (),
        |state| {
            let oma = state.oma;
            let offering = Some(estate::id("backup-offering", "nightly"));
            state.vms.get_mut(&oma).expect("it is there").backup_offering = offering;
        },
    ),
    (
        "is on one host's own storage",
        |_| (),
        |state| disk(state).pool = Some(estate::id("pool", "kvm-01-disks")),
    ),
    (
        "lie on several storages (linstor-primary, nfs-east)",
        |input| {
            let volume = estate::replica("sql-01", 2001).to_string();
            let disks = input["source"]["disks"].as_array_mut().expect("it has some");
            disks.push(json!({ "key": 2001, "volume": volume, "size": 1 }));
        },
        |state| disk(state).pool = Some(estate::id("pool", "nfs-east")),
    ),
    (
        "the appliance has the snapshot",
        |_| (),
        |state| {
            let (id, vm) = (estate::id("vm snapshot", "of the oma"), state.oma);
            let created = state.vms[&vm].created;
            let snapshot = VmSnapshot {
                id,
                display_name: "before the update".into(),
                vm,
                contents: [].into(),
                state: "Ready".into(),
                tags: [].into(),
                created,
                removed: None,
            };
            state.vm_snapshots.insert(id, snapshot);
        },
    ),
];

// Breaks 51 and 52: what was checked was asked of the wrong machine, and thrown away; that the template was too large showed when
// four fifths were done.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ever_touched_after_a_check_that_failed() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    let (right, as_was) = (play.input.clone(), play.look(Clone::clone));
    play.node().await?;
    for (says, input, world) in WRONG {
        play.input = right.clone();
        input(&mut play.input);
        play.change(world);
        play.again().await?;
        assert_eq!(play.settled().await?, Status::RolledBack, "{says}");
        play.failed_with("validate: not_ready").await?;
        play.failed_with(says).await?;
        assert_eq!(play.changing_calls(), Vec::<String>::new(), "{says}");
        play.change(|state| {
            state.vms = as_was.vms.clone();
            state.volumes = as_was.volumes.clone();
            state.daemon.mappings = as_was.daemon.mappings.clone();
            state.vm_snapshots.clear();
        });
    }
    Ok(())
}

// Break 31: the appliance was written down wrongly.
#[tokio::test(flavor = "multi_thread")]
async fn another_machine_is_never_taken_for_the_appliance() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.stage.wrong_oma = Some(estate::id("vm", "jump-host").to_string());
    play.begin().await?;
    assert_eq!(play.settled().await?, Status::RolledBack);
    play.failed_with("not to the appliance").await?;
    assert_eq!(play.changing_calls(), Vec::<String>::new());
    Ok(())
}

// Break 47: where a password was missing, one that was built in was taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_not_there_is_never_replaced_by_another() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    play.input["source"]["vcenter"]["password"]["secret"] = "forgotten".into();
    play.begin().await?;
    assert_eq!(play.settled().await?, Status::Held);
    play.failed_with("needs_operator").await?;
    assert_eq!(play.changing_calls(), Vec::<String>::new());
    play.stage.secrets.tell("forgotten", "pretend-vcenter-password");
    let verb = Verb::Retry { step: "validate".into(), undo: false, input: None, in_doubt: false };
    play.stage.act(play.engine(), play.run(), verb).await?;
    play.is_well(play.settled_after(Status::Held).await?, Status::Succeeded).await
}

// Break 55: the network came from a setting, whatever was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_never_starts_where_the_world_can_see_it() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "test").await?;
    // It was one for rehearsals when that was checked.
    play.before("start-vm", |state, _| {
        let network = state.networks.get_mut(&estate::id("network", "test-lan")).expect("there is one");
        network.tags.clear();
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.failed_with("start-vm: not_a_test_network").await?;
    assert_eq!(play.calls("cloudstack startVirtualMachine"), 0);
    Ok(())
}

// Break 53: the right to take snapshots was missing, which showed when the machine was half way.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_missing_is_never_found_out_on_the_way() -> anyhow::Result<()> {
    for (snapshots, one) in [("cloudstack", "revertSnapshot"), ("machine", "revertToVMSnapshot")] {
        let mut whole = Play::new("web-01", "live").await?;
        whole.input["snapshots"] = snapshots.into();
        whole.begin().await?;
        whole.is_well(whole.settled().await?, Status::Succeeded).await?;
        whole.is_well(whole.back().await?, Status::RolledBack).await?;
        let calls = whole.changing_calls();
        // The daemon attaches by a key of its own.
        let mut used: Vec<_> = calls.iter().filter_map(|call| call.strip_prefix("cloudstack ")).collect();
        used.retain(|command| *command != "attachVolume");
        used.dedup();
        assert!(used.contains(&one) && used.contains(&"destroyVirtualMachine"), "{used:?}");

        let mut play = Play::new("web-01", "live").await?;
        play.input["snapshots"] = snapshots.into();
        play.node().await?;
        for command in used {
            play.change(|state| state.settings.cloudstack.denied = [command.to_owned()].into());
            play.again().await?;
            assert_eq!(play.settled().await?, Status::RolledBack, "{command}");
            play.failed_with(&format!("the key at CloudStack has no right to {command}")).await?;
        }
        assert_eq!(play.changing_calls(), Vec::<String>::new(), "{snapshots}");
    }
    Ok(())
}
