//! Credentials that change while a failover is under way.

use backstay_engine::machine::Verb;
use backstay_engine::{RunId, Status};
use backstay_simulator::world::State;

use crate::play::Play;

const NEW_KEY: &str = "another-key";
const NEW_SECRET: &str = "another-secret";
const NEW_PASSWORD: &str = "another-password";

/// From now on these are good, and the old ones are not.
fn rotated(state: &mut State, _: RunId) {
    for account in state.accounts.iter_mut().filter(|account| account.root_admin) {
        (account.key, account.secret) = (NEW_KEY.into(), NEW_SECRET.into());
    }
}

fn tell(play: &Play) {
    play.stage.secrets.tell("cloudstack-key", NEW_KEY);
    play.stage.secrets.tell("cloudstack-secret", NEW_SECRET);
}

/// What an operator does once there are new ones: each step that is held is tried again.
async fn goes_on(play: &Play) -> anyhow::Result<Status> {
    let mut status = Status::Held;
    for _ in 0..3 {
        for step in play.held().await? {
            let verb = Verb::Retry { step, undo: false, input: None, in_doubt: false };
            play.stage.act(play.engine(), play.run(), verb).await?;
        }
        status = play.settled_after(Status::Held).await?;
        if status != Status::Held {
            break;
        }
    }
    Ok(status)
}

// Break 46: keys were read once, at the start.
#[tokio::test(flavor = "multi_thread")]
async fn new_keys_that_are_told_in_time_are_used_and_nobody_notices() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "live").await?;
    let secrets = std::sync::Arc::clone(&play.stage.secrets);
    play.before("take-snapshots", move |state, run| {
        rotated(state, run);
        secrets.tell("cloudstack-key", NEW_KEY);
        secrets.tell("cloudstack-secret", NEW_SECRET);
    });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.failures().await?, Vec::<String>::new());
    play.is_well(play.back().await?, Status::RolledBack).await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_no_good_any_more_hold_a_failover_until_it_has_new_ones() -> anyhow::Result<()> {
    // In the middle of the disks, right before the copy starts, and where a conversion has just ended.
    for (name, activity, step) in [
        ("db-01", "take-snapshots", "snapshot"),
        ("web-01", "start-vm", "start-vm"),
        ("sql-01", "inject-drivers", "inject-drivers"),
    ] {
        let mut play = Play::new(name, "live").await?;
        play.before(activity, rotated);
        play.begin().await?;
        assert_eq!(play.settled().await?, Status::Held, "{name}, {step}");
        play.failed_with(&format!("{step}: needs_operator")).await?;
        tell(&play);
        play.is_well(goes_on(&play).await?, Status::Succeeded).await?;
        play.is_well(play.back().await?, Status::RolledBack).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_go_bad_on_the_way_back_leave_it_stuck_until_there_are_new_ones() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.before("revert-snapshots", rotated);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.back().await?, Status::Stuck);
    play.failed_with("needs_operator").await?;
    tell(&play);
    play.is_well(play.retried().await?, Status::RolledBack).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_vcenter_that_is_no_good_any_more_holds_it_too() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.before("final-sync", |state, _| state.vma.vcenter.password = NEW_PASSWORD.into());
    play.begin().await?;
    assert_eq!(play.settled().await?, Status::Held);
    play.failed_with("final-sync: needs_operator").await?;
    play.stage.secrets.tell("vcenter", NEW_PASSWORD);
    play.is_well(goes_on(&play).await?, Status::Succeeded).await
}
