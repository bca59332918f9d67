//! What only looks: how much of it there is, and what becomes of it when calls fail.

use backstay_engine::Status;
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::estate;

use crate::play::Play;
use crate::stage::Stage;
use crate::sweep::changes;

/// Everything that can be known is known from few calls: a busy site is not asked for each disk, right and network.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_checked_at_the_beginning_is_asked_for_once() -> anyhow::Result<()> {
    let stage = Stage::with(estate::of(1, 8)).await?;
    let mut input = stage.input("linux-001", "test");
    // One of the checks fails, so nothing comes after them.
    input["destination"]["template"] = estate::id("template", "still-downloading").to_string().into();
    input["snapshots"] = "cloudstack".into();
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    let run = stage.submit(&engine, &input).await?;
    assert_eq!(stage.settled(&engine, run).await?, Status::RolledBack);
    let calls = stage.centre.faults().calls();
    let all: u64 = calls.values().sum();
    println!("{all} calls: {calls:#?}");
    assert_eq!(calls["cloudstack listApis"], 1, "{calls:#?}");
    assert!(all <= 16, "{all} calls: {calls:#?}");
    stage.is_sound()
}

/// A failover there and back, whose looks fail as often as not.
async fn there_and_back(faults: bool) -> anyhow::Result<Play> {
    let mut play = Play::new("sql-01", "live").await?;
    // Of a thousand looks not one is to fail for good.
    play.stage.looks.tries = 24;
    let kinds = [
        Fault::Refused { status: 500 },
        Fault::Dropped,
        Fault::DoneThenDropped,
        Fault::Reset,
        Fault::TooMany { ms: 20 },
        Fault::Html { status: 503 },
        Fault::Html { status: 200 },
        Fault::Empty,
    ];
    let each = 1.0 - 0.5_f64.powf(1.0 / kinds.len() as f64);
    let looks = [
        ("cloudstack", "list*"),
        ("cloudstack", "query*"),
        ("daemon", "GET *"),
        ("vma", "GET *"),
        ("vma", "POST *discover"),
        ("linstor", "GET *"),
    ];
    for kind in kinds.iter().filter(|_| faults) {
        for (system, command) in looks {
            play.stage.centre.faults().rule(Rule::chance(system, command, each, kind.clone()));
        }
    }
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    play.is_well(play.back().await?, Status::RolledBack).await?;
    Ok(play)
}

#[tokio::test(flavor = "multi_thread")]
async fn looks_that_fail_as_often_as_not_fail_no_step_and_repeat_no_change() -> anyhow::Result<()> {
    let stormy = there_and_back(true).await?;
    let fired = stormy.stage.centre.faults().fired();
    let all: u64 = fired.iter().map(|rule| rule.times).sum();
    println!("{all} looks failed");
    assert!(all > 50, "{fired:#?}");
    for kind in fired.chunk_by(|one, other| one.rule.fault == other.rule.fault) {
        assert!(kind.iter().any(|rule| rule.times > 0), "{:?} never was", kind[0].rule.fault);
    }
    assert_eq!(stormy.failures().await?, Vec::<String>::new());
    let calm = there_and_back(false).await?;
    let changes = |play: &Play| changes(&play.stage.centre.faults().calls());
    assert_eq!(changes(&stormy), changes(&calm), "what changes something is sent as often as without faults");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_answer_is_lost_is_left_to_the_engine() -> anyhow::Result<()> {
    for fault in [Fault::Dropped, Fault::DoneThenDropped, Fault::Reset, Fault::Refused { status: 503 }] {
        let mut play = Play::new("web-01", "test").await?;
        play.attempts = (1, 3);
        play.fault("cloudstack", "deployVirtualMachine", fault.clone());
        play.begin().await?;
        let status = play.settled().await?;
        assert_eq!(play.calls("cloudstack deployVirtualMachine"), 1, "{fault:?}: {}", status.as_str());
    }
    Ok(())
}
