//! By the key of an ordinary account, which cannot choose the ids of what it makes: a machine that was asked for is found again
//! by its mark alone. The daemon's jobs are another account's, and not to be seen.

use backstay_engine::Status;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::Cause;
use backstay_simulator::world::things::{Power, VmState};

use crate::judge::{Before, judge};
use crate::stage::Stage;
use crate::sweep::{Scene, Then, Trouble, each};

#[tokio::test(flavor = "multi_thread")]
async fn an_ordinary_account_moves_machines_there_and_back() -> anyhow::Result<()> {
    for (name, live, snapshots) in [
        ("web-01", true, "cloudstack"),
        ("sql-01", false, "linstor"),
        ("sql-01", true, "cloudstack"),
        ("db-01", true, "machine"),
        ("archive-01", false, "cloudstack"),
    ] {
        let scene = Scene::of(name, live, Then::Back, snapshots).ordinary();
        let stage = scene.stage().await?;
        let before = Before::of(&stage, name);
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = stage.submit(&engine, &scene.input(&stage)).await?;
        for wanted in [Status::Succeeded, Status::RolledBack] {
            let status = stage.settled(&engine, run).await?;
            let wrong = judge(&stage, name, live, &before, run, status).await?;
            let story = stage.lab.story(run).await?;
            anyhow::ensure!(
                wrong.is_empty() && status == wanted,
                "{scene:?}: {status:?}, {wrong:#?}\n{story}"
            );
            if wanted == Status::Succeeded {
                stage.roll_back(&engine, run).await?;
                stage.moves_on(&engine, run, Status::Succeeded).await?;
            }
        }
    }
    Ok(())
}

/// The machine is there, and nobody heard its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_once_although_its_maker_died_over_it() -> anyhow::Result<()> {
    let scenes = [
        Scene::of("web-01", true, Then::Nothing, "cloudstack"),
        Scene::of("sql-01", false, Then::Back, "cloudstack"),
    ];
    for scene in scenes.into_iter().flat_map(|scene| [scene, scene.ordinary()]) {
        let deploy = Rule::nth("cloudstack", "deployVirtualMachine", 1, Fault::DoneThenSilent).once();
        for (_, played) in each(scene, vec![("the deploy".into(), Trouble::DeathIn(deploy))]).await? {
            let wanted = if scene.then == Then::Back { Status::RolledBack } else { Status::Succeeded };
            let calls = played.calls["cloudstack deployVirtualMachine"];
            anyhow::ensure!(
                played.happened && (played.status, played.helped, calls) == (wanted, 0, 1),
                "{scene:?}: {:?} after {calls} calls, helped {} times\n{}",
                played.status,
                played.helped,
                played.story
            );
        }
    }
    Ok(())
}

/// Names are no help either: another machine of the same name would be accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_made_once_although_its_name_may_be_taken_twice() -> anyhow::Result<()> {
    for scene in [
        Scene::of("web-01", true, Then::Nothing, "cloudstack"),
        Scene::of("web-01", true, Then::Nothing, "cloudstack").ordinary(),
        Scene::of("web-01", true, Then::Nothing, "machine").ordinary(),
    ] {
        let stage = scene.stage().await?;
        let before = Before::of(&stage, scene.name);
        for command in ["deployVirtualMachine", "createVMSnapshot"] {
            let faults = stage.centre.faults();
            faults.rule(Rule::nth("cloudstack", command, 1, Fault::DoneThenDropped));
            faults.rule(Rule::every("cloudstack", command, Fault::DuplicateName));
        }
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = stage.submit(&engine, &scene.input(&stage)).await?;
        let status = stage.settled(&engine, run).await?;
        let wrong = judge(&stage, scene.name, scene.live, &before, run, status).await?;
        let story = stage.lab.story(run).await?;
        anyhow::ensure!(
            wrong.is_empty() && status == Status::Succeeded,
            "{scene:?}: {status:?}, {wrong:#?}\n{story}"
        );
        assert_eq!(stage.centre.truth().effect("deployVirtualMachine"), 1, "{story}");
        let taken = u64::from(scene.snapshots == "machine");
        assert_eq!(stage.centre.truth().effect("createVMSnapshot"), taken, "{story}");
    }
    Ok(())
}

/// CloudStack does not let everybody expunge. What is destroyed is off for good, and expunged by CloudStack in its own time.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_expunge_destroys_and_leaves_the_rest_to_cloudstack() -> anyhow::Result<()> {
    let scene = Scene::of("web-01", true, Then::Back, "cloudstack").ordinary();
    let stage = scene.stage().await?;
    stage.centre.world().change(Cause::new("people", "updateConfiguration", ""), |state| {
        state.configurations.insert("allow.user.expunge.recover.vm".into(), "false".into());
    });
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = stage.submit(&engine, &scene.input(&stage)).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::Succeeded, "{}", stage.lab.story(run).await?);
    stage.roll_back(&engine, run).await?;
    stage.moves_on(&engine, run, Status::Succeeded).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::RolledBack, "{}", stage.lab.story(run).await?);
    let mark = format!("backstay-run-{run}");
    let copy = stage.centre.world().look(|state| {
        let copy = state.vms.values().find(|vm| vm.group.as_deref() == Some(&mark)).unwrap();
        (copy.state, copy.power)
    });
    assert_eq!(copy, (VmState::Destroyed, Power::Off));
    stage.is_sound()
}
