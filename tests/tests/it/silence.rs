//! Connections that fall silent without an error: nobody answers, and nobody hangs up. They are given up, and the node
//! goes on by itself.

use std::time::Duration;

use backstay_engine::{Engine, Node, NodeConfig, Status, Store, SubmitOptions};
use backstay_tests::{Cut, Lab, Wire, plans};
use serde_json::json;

use crate::until;

/// A node that gives a silent connection up after a second and a little.
async fn impatient(lab: &Lab, wire: &Wire, rejoin: bool) -> anyhow::Result<(Engine, Node)> {
    let store = Store::connect_within(wire.url(), Duration::from_secs(1)).await?;
    lab.node_on(store, NodeConfig { lease: Duration::from_secs(20), rejoin, ..Lab::config("a") }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_never_answered_is_found_to_be_committed() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let (engine, node) = impatient(&lab, &wire, false).await?;
    let epoch = node.epoch();
    wire.cut(1, &[Cut::Late]);
    let plan = plans::diamond(&engine, &[])?;
    let client = engine.clone();
    let submitting = tokio::spawn(async move { client.submit(&plan, SubmitOptions::default()).await });
    until("the write is not answered", async || Ok(wire.cuts() == [Cut::Late])).await?;
    wire.cut(0, &[]);
    let submitted = tokio::time::timeout(Duration::from_secs(20), submitting).await???;
    let run = submitted.run;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert_eq!(lab.story(run).await?.matches("submitted").count(), 1);
    assert_eq!(node.epoch(), epoch, "the node goes on");
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_whose_claim_is_never_answered_are_taken_up_again() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let plan = plans::diamond(&lab.engine, &[])?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    wire.mark("due as materialized");
    wire.cut(1, &[Cut::Late]);
    let (_engine, node) = impatient(&lab, &wire, false).await?;
    let epoch = node.epoch();
    until("the claim is not answered", async || Ok(wire.cuts() == [Cut::Late])).await?;
    wire.cut(0, &[]);
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert_eq!(lab.engine.get(run).await?.claim, 2, "by a second claim");
    assert_eq!(node.epoch(), epoch, "the node goes on");
    lab.assert_history(run).await
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_claimed_although_nobody_answers_how_many_there_are() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    // For the metrics.
    wire.mark("group by status");
    wire.cut(1, &[Cut::Late]);
    let (_engine, _node) = impatient(&lab, &wire, false).await?;
    until("the count is not answered", async || Ok(wire.cuts() == [Cut::Late])).await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_drained_ends_although_nobody_answers() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    wire.mark("clock_timestamp(), ended_why = 'stopped'");
    wire.cut(1, &[Cut::Late]);
    let (engine, node) = impatient(&lab, &wire, false).await?;
    let plan = plans::single(&engine, json!({}))?;
    assert_eq!(engine.submit(&plan, SubmitOptions::default()).await?.ended().await?, Status::Succeeded);
    // Its life cannot be ended, only renewed: otherwise the renewal would tell it that it is over.
    let mut holder = lab.sql().await?;
    sqlx::raw_sql("begin; select from nodes for key share").execute(&mut holder).await?;
    tokio::time::timeout(Duration::from_secs(20), node.drain(Duration::ZERO)).await?;
    assert_eq!(wire.cuts(), [Cut::Late]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_connections_come_to_nothing_finds_runs_once_they_do() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    wire.silence(Some("backstay scout"));
    let (_engine, _node) = impatient(&lab, &wire, false).await?;
    until("a connection comes to nothing", async || Ok(wire.silenced() >= 1)).await?;
    wire.silence(None);
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_connections_come_to_nothing_begins_anew_once_they_do() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let (_engine, node) = impatient(&lab, &wire, true).await?;
    let epoch = node.epoch();
    wire.silence(Some("backstay lease"));
    let over = "update nodes set ended_at = clock_timestamp(), ended_why = 'lost'";
    sqlx::raw_sql(over).execute(&mut lab.sql().await?).await?;
    // Its next write is refused, and it begins anew.
    let plan = plans::single(&lab.engine, json!({}))?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("a connection comes to nothing", async || Ok(wire.silenced() >= 1)).await?;
    wire.silence(None);
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    assert!(node.epoch() > epoch);
    Ok(())
}
