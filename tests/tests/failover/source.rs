//! The source and its last copy: what is on record about it, and what the VMA can do.

use std::sync::Arc;

use backstay_engine::{PlanBuilder, Status};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::things::Power;
use backstay_simulator::world::{Cause, State, estate};
use serde_json::{Value, json};

use crate::alone::{Alone, undone, vcenter};
use crate::play::Play;
use crate::stage::Stage;

fn web(state: &mut State) -> &mut backstay_simulator::world::things::Source {
    state.sources.get_mut(&estate::source("web-01")).unwrap()
}

fn power(alone: &Alone) -> Power {
    alone.stage.centre.world().look(|state| state.sources[&estate::source("web-01")].power)
}

fn whom(more: Value) -> Value {
    let mut input = json!({ "id": estate::source("web-01"), "vcenter": vcenter() });
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    input
}

async fn with_the_source(power: Power) -> anyhow::Result<Alone> {
    Alone::new(Stage::new().await?, Arc::new(move |state, _| web(state).power = power)).await
}

fn on_again(left: Value) -> PlanBuilder {
    undone(|_| left, "power-on-source", |_| whom(json!({ "copy": { "base": "copy-01" } })))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_back_is_not_taken_for_nothing() -> anyhow::Result<()> {
    for left in [
        json!({ "saved": { "original": "asleep" } }),
        json!({ "saved": "nonsense" }),
        json!({ "output": { "state": "poweredOff" } }),
    ] {
        let alone = with_the_source(Power::Off).await?;
        let (run, status) = alone.play(on_again(left.clone())).await?;
        let (code, message) = alone.failure(run, "left").await?;
        assert_eq!((status, code.as_str()), (Status::Stuck, "needs_operator"), "{left}: {message}");
        assert!(message.contains("how the source machine was before cannot be read"), "{message}");
        assert_eq!((power(&alone), alone.changed()), (Power::Off, Vec::new()), "{left}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_as_it_was_by_whatever_is_on_record() -> anyhow::Result<()> {
    let done = |original: &str| json!({ "state": "poweredOff", "original": original, "method": "graceful" });
    for (is, left, becomes) in [
        (Power::Off, json!({ "saved": { "original": "poweredOn" } }), Power::On),
        // Somebody switched it off by hand, and said so.
        (Power::Off, json!({ "output": done("poweredOn") }), Power::On),
        // What was saved counts: the output of a step may be a person's.
        (
            Power::Off,
            json!({ "saved": { "original": "poweredOff" }, "output": done("poweredOn") }),
            Power::Off,
        ),
        (Power::Off, json!({}), Power::Off),
        // Somebody has suspended it meanwhile.
        (Power::Suspended, json!({ "saved": { "original": "poweredOn" } }), Power::On),
    ] {
        let alone = with_the_source(is).await?;
        let (run, status) = alone.play(on_again(left.clone())).await?;
        assert_eq!(status, Status::RolledBack, "{left}:\n{}", alone.stage.lab.story(run).await?);
        assert_eq!(power(&alone), becomes, "{left}");
        alone.stage.is_sound()?;
    }
    Ok(())
}

/// It was off when it was first looked at, and on when it was touched: then it was on before.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_started_meanwhile_was_on() -> anyhow::Result<()> {
    let alone =
        Alone::new(Stage { look_twice: crate::stage::ms(300), ..Stage::new().await? }, Arc::new(|_, _| {}))
            .await?;
    let world = alone.stage.centre.world();
    world.change(Cause::new("people", "off", ""), |state| web(state).power = Power::Off);
    let looked = "vma GET /vm/{id}/power-state";
    let starter = {
        let (world, faults) = (world.clone(), alone.stage.centre.faults().clone());
        tokio::spawn(async move {
            while faults.calls().get(looked).copied().unwrap_or_default() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
            world.change(Cause::new("people", "on", ""), |state| web(state).power = Power::On);
        })
    };
    let mut plan = PlanBuilder::new("off");
    let off = plan
        .step("off", "power-off-source")
        .input(whom(json!({ "force_after": "1s" })))
        .undone_by("power-on-source", whom(json!({ "copy": { "base": "copy-01" } })))
        .done();
    plan.step("enough", "pretend").input(json!({ "fails": true })).after([&off]).nothing_to_undo("a test");
    let (run, status) = alone.play(plan).await?;
    starter.await?;
    assert_eq!(status, Status::RolledBack, "{}", alone.stage.lab.story(run).await?);
    assert_eq!(alone.output(run, "off").await?["original"], "poweredOn");
    assert_eq!(power(&alone), Power::On);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_source_is_left_as_it_is() -> anyhow::Result<()> {
    for (mode, wanted) in [("live", Status::RolledBack), ("test", Status::Succeeded)] {
        let stage = Stage::new().await?;
        let world = stage.centre.world();
        world.change(Cause::new("people", "suspend", ""), |state| web(state).power = Power::Suspended);
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = stage.submit(&engine, &stage.input("web-01", mode)).await?;
        let status = stage.settled(&engine, run).await?;
        assert_eq!(status, wanted, "{mode}:\n{}", stage.lab.story(run).await?);
        assert_eq!(world.look(|state| state.sources[&estate::source("web-01")].power), Power::Suspended);
        stage.is_sound()?;
    }
    Ok(())
}

/// The call that is made for it where the VMA has it, and the ordinary one where it has not.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_changes_are_copied_with_and_without_a_call_that_is_made_for_it() -> anyhow::Result<()> {
    for (has, replicated) in [(true, None), (false, Some(1))] {
        let mut state = estate::small();
        state.settings.vma.has_final_sync = has;
        let stage = Stage::with(state).await?;
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = stage.submit(&engine, &stage.input("db-01", "live")).await?;
        let status = stage.settled(&engine, run).await?;
        assert_eq!(status, Status::Succeeded, "{}", stage.lab.story(run).await?);
        let calls = stage.centre.faults().calls();
        assert_eq!(calls.get("vma POST /sync/final"), Some(&1));
        assert_eq!(calls.get("vma POST /replicate").copied(), replicated, "{calls:?}");
        stage.centre.world().look(|state| {
            for disk in &state.sources[&estate::source("db-01")].disks {
                assert_eq!(state.volumes[&disk.replica].content.replicated, disk.version);
            }
        });
        stage.is_sound()?;
    }
    Ok(())
}

/// The VMA ends no copy because somebody asks it to. One that goes on would be of a source that is on.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_not_on_again_before_its_last_copy_has_ended() -> anyhow::Result<()> {
    for (process_dies, fault) in [(false, None), (true, None), (false, Some(Fault::Stuck))] {
        let mut play = Play::new("web-01", "live").await?;
        play.change(|state| state.settings.vma.disk_ms = 300_000);
        if let Some(fault) = &fault {
            play.faults("vma", "POST /replicate", 1..=1, fault.clone());
        }
        play.begin().await?;
        let faults = play.stage.centre.faults().clone();
        let asked = "vma GET /progress/{job}";
        play.until("the copy is asked about", |_| faults.calls().get(asked).is_some_and(|n| *n > 2)).await?;
        if process_dies {
            play.kill().await;
            play.node().await?;
        }
        let back = play.back().await?;
        play.is_well(back, Status::RolledBack).await?;
        if fault.is_none() {
            assert!(play.output_of_undo("final-sync").await?["job"].is_string(), "it was waited for");
        }
    }
    Ok(())
}

/// By its key with or without a word before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_known_by_whichever_name_the_vma_has_for_it() -> anyhow::Result<()> {
    for bare in [false, true] {
        let mut state = estate::small();
        state.settings.vma.bare_disk_ids = bare;
        let stage = Stage::with(state).await?;
        let (engine, _node) = stage.node(Stage::config("a")).await?;
        let run = stage.submit(&engine, &stage.input("db-01", "live")).await?;
        let status = stage.settled(&engine, run).await?;
        assert_eq!(status, Status::Succeeded, "bare {bare}:\n{}", stage.lab.story(run).await?);
        stage.is_sound()?;
    }
    Ok(())
}

/// As the older ones say it: with the status 200.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_an_older_vma_forgot_is_begun_anew() -> anyhow::Result<()> {
    let mut state = estate::small();
    state.settings.vma.not_found_is_200 = true;
    let stage = Stage::with(state).await?;
    stage.centre.faults().rule(Rule::nth("vma", "POST /replicate", 1, Fault::JobLost));
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = stage.submit(&engine, &stage.input("web-01", "live")).await?;
    let status = stage.settled(&engine, run).await?;
    assert_eq!(status, Status::Succeeded, "{}", stage.lab.story(run).await?);
    assert_eq!(stage.centre.faults().calls()["vma POST /replicate"], 2);
    stage.is_sound()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_copied_beside_a_copy_of_somebody_else() -> anyhow::Result<()> {
    let alone = with_the_source(Power::On).await?;
    let replica = estate::replica("web-01", 2000);
    alone.stage.centre.faults().rule(Rule::nth("vma", "POST /replicate", 1, Fault::Stuck));
    alone.stage.copy_of_somebody_else().await?;
    let world = alone.stage.centre.world();
    world.change(Cause::new("people", "off", ""), |state| web(state).power = Power::Off);
    let mut plan = PlanBuilder::new("sync");
    let disks = json!([{ "key": 2000, "volume": replica }]);
    plan.step("sync", "final-sync")
        .input(whom(json!({ "path": "/DatabanxDC/vm/web-01", "disks": disks, "within": "500ms" })))
        .nothing_to_undo("it is a test");
    let (run, status) = alone.play(plan).await?;
    let (code, message) = alone.failure(run, "sync").await?;
    assert_eq!((status, code.as_str()), (Status::RolledBack, "another_copy"), "{message}");
    assert!(message.contains("nightly"), "{message}");
    assert_eq!(alone.stage.centre.faults().calls()["vma POST /replicate"], 1);
    Ok(())
}
