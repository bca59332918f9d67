//! A node, or somebody who speaks to a run, as a process of its own: for tests that kill and freeze processes. It says
//! what it does on its output.
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use backstay_engine::Store;
use backstay_tests::Lab;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(name), Some(lease)) = (args.next(), args.next(), args.next()) else {
        anyhow::bail!("usage: lab-node URL NAME LEASE_MILLIS, or URL say RUN ACTION");
    };
    let lab = Lab::open(&url).await?;
    if name == "say" {
        let action = serde_json::from_str(&args.next().unwrap_or_default())?;
        println!("{:?}", lab.engine.act(lease.parse()?, &action).await?);
        return Ok(());
    }
    let mut config = Lab::config(&name);
    config.lease = std::time::Duration::from_millis(lease.parse()?);
    config.rejoin = false;
    if let Ok(most) = std::env::var("BACKSTAY_MAX_CRASHES") {
        config.max_crashes = most.parse()?;
    }
    let (_engine, node) = match std::env::var("BACKSTAY_LONGEST_STATEMENT") {
        Ok(millis) => {
            let longest = std::time::Duration::from_millis(millis.parse()?);
            lab.node_on(Store::connect_within(&url, longest).await?, config).await?
        }
        Err(_) => lab.node(config).await?,
    };
    println!("UP");
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = node.ended() => println!("LOST"),
        _ = terminated.recv() => {
            node.drain(std::time::Duration::from_millis(300)).await;
            println!("DRAINED");
        }
    }
    Ok(())
}
