//! The source: its power, and the copy of its last changes.

use backstay_engine::Status;
use backstay_simulator::faults::Fault;
use backstay_simulator::truth::System;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::Power;
use serde_json::json;

use crate::play::Play;

const REPLICATE: &str = "vma POST /replicate";
const PROGRESS: &str = "vma GET /progress/{job}";
const POWER_OFF: &str = "vma POST /vm/{id}/power-off";

// Break 5.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_goes_on_is_never_begun_again_by_the_next_process() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.change(|state| state.settings.vma.disk_ms = 300_000);
    play.begin().await?;
    let faults = play.stage.centre.faults().clone();
    play.until("the copy is asked about", |_| faults.calls().get(PROGRESS).is_some_and(|n| *n > 1)).await?;
    play.kill().await;
    play.node().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls(REPLICATE), 1);
    Ok(())
}

/// A copy comes to a half, and then the VMA begins anew and knows nothing of it.
async fn forgotten(an_old_build: bool) -> anyhow::Result<Play> {
    let mut play = Play::new("web-01", "live").await?;
    play.change(|state| state.settings.vma.not_found_is_200 = an_old_build);
    play.faults("vma", "POST /replicate", 1..=1, Fault::Stuck);
    play.begin().await?;
    let faults = play.stage.centre.faults().clone();
    play.until("the copy is asked about", |_| faults.calls().get(PROGRESS).is_some_and(|n| *n > 1)).await?;
    play.stage.centre.truth().restart(System::Vma, std::time::Duration::ZERO);
    Ok(play)
}

// Break 7: a job that was not known any more, behind nine tenths, was taken for a copy that is through.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_the_vma_forgot_is_never_taken_for_completed() -> anyhow::Result<()> {
    let play = forgotten(false).await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls(REPLICATE), 2, "it was begun again");
    Ok(())
}

// Break 8: the status 200 with the text "job not found".
#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_says_not_found_is_never_taken_for_progress() -> anyhow::Result<()> {
    let play = forgotten(true).await?;
    let begun = std::time::Instant::now();
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls(REPLICATE), 2, "it was begun again");
    assert!(begun.elapsed().as_secs() < 8, "nobody waited for a copy that nobody makes");
    Ok(())
}

// Break 61: whether a copy was begun was not known, and another one was.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_beginning_got_no_answer_is_never_begun_beside_itself() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.change(|state| state.settings.vma.disk_ms = 60_000);
    play.faults("vma", "POST /replicate", 1..=1, Fault::DoneThenDropped);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.calls(REPLICATE), 1);
    Ok(())
}

// Break 19.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_never_stays_off_after_a_failover_that_failed() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.fault("cloudstack", "startVirtualMachine", Fault::JobFails { code: 530 });
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    assert_eq!(play.output("source-off").await?["state"], "poweredOff", "it was off meanwhile");
    Ok(())
}

// Break 20: after two minutes it was an error, without force and without a way back, whatever was asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_go_down_is_never_left_half_way() -> anyhow::Result<()> {
    let mut play = Play::new("web-01", "live").await?;
    play.change(|state| state.settings.vma.hangs_at_prompt.insert("web-01".into()));
    play.input["force_after"] = json!("200ms");
    play.begin().await?;
    play.is_well(play.settled().await?, Status::Succeeded).await?;
    assert_eq!(play.output("source-off").await?["method"], "forced");

    let mut play = Play::new("web-01", "live").await?;
    play.change(|state| state.settings.vma.hangs_at_prompt.insert("web-01".into()));
    play.input["force_after"] = json!(null);
    play.attempts = (1, 3);
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    assert_eq!(play.calls(POWER_OFF), 1, "nobody may force it");
    assert_eq!(play.look(|state| state.sources[&estate::source("web-01")].power), Power::On);
    Ok(())
}

// Break 21: the answer said success while the guest was still going down; or it never goes, or comes back.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_says_off_is_never_taken_for_off() -> anyhow::Result<()> {
    for comes_back in [false, true] {
        let mut play = Play::new("web-01", "live").await?;
        match comes_back {
            false => play.faults("vma", "POST /vm/{id}/power-off", 1..=1, Fault::StopsOnlyInName),
            true => play.change(|state| {
                state.settings.vma.comes_back_after_ms.insert("web-01".into(), 5_000);
            }),
        }
        play.input["force_after"] = json!("300ms");
        play.begin().await?;
        play.is_well(play.settled().await?, Status::Succeeded).await?;
        assert_eq!(play.calls(POWER_OFF), 2, "comes back: {comes_back}");
    }
    Ok(())
}

// Break 63: what was known of one disk was stored for another, and a disk that a copy left out was taken for copied.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_no_copy_was_made_of_is_never_taken_for_copied() -> anyhow::Result<()> {
    let mut play = Play::new("db-01", "live").await?;
    play.input["source"]["disks"][2]["key"] = 2005.into();
    play.begin().await?;
    assert_eq!(play.settled().await?, Status::RolledBack);
    play.failed_with("the source has no disk 2005, the source's disk-2002 is not among those that are moved")
        .await?;
    assert_eq!(play.changing_calls(), Vec::<String>::new());

    // One was taken out, and another put in, after it was looked.
    let mut play = Play::new("db-01", "live").await?;
    play.before("final-sync", |state, _| {
        state.sources.get_mut(&estate::source("db-01")).unwrap().disks[2].key = 2005;
    });
    play.begin().await?;
    assert_eq!(play.settled().await?, Status::RolledBack);
    play.failed_with("final-sync: other_disks").await?;

    // It is there, and the copy says that it ended well, without it.
    let mut play = Play::new("db-01", "live").await?;
    play.change(|state| state.settings.vma.leaves_out.insert(2001));
    play.begin().await?;
    play.is_well(play.settled().await?, Status::RolledBack).await?;
    play.failed_with("final-sync: disk_left_out").await
}
