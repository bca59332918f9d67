//! Whole failovers, with nothing going wrong.

use backstay_engine::Status;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::Power;

use crate::stage::Stage;

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_comes_up_beside_its_source_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    for name in ["web-01", "db-01", "archive-01", "sql-01"] {
        let before = stage.centre.world().look(|state| state.volumes.clone());
        let run = stage.submit(&engine, &stage.input(name, "test")).await?;
        let status = stage.settled(&engine, run).await?;
        assert_eq!(status, Status::Succeeded, "{name}:\n{}", stage.lab.story(run).await?);
        let running = stage.centre.truth().running();
        assert_eq!(
            running.iter().filter(|vm| vm.name.starts_with(&format!("{name}-test-"))).count(),
            1,
            "{running:?}"
        );

        stage.roll_back(&engine, run).await?;
        let status = stage.settled(&engine, run).await?;
        assert_eq!(status, Status::RolledBack, "{name}:\n{}", stage.lab.story(run).await?);
        stage.is_sound()?;
        let oma = stage.centre.world().look(|state| state.oma);
        stage.centre.world().look(|state| {
            for disk in &state.sources[&estate::source(name)].disks {
                let volume = &state.volumes[&disk.replica];
                assert_eq!(volume.plugged.iter().collect::<Vec<_>>(), [&oma], "{name}");
                assert_eq!(volume.content, before[&disk.replica].content, "{name}");
            }
            assert_eq!(state.sources[&estate::source(name)].power, Power::On);
        });
        assert_eq!(stage.centre.truth().tagged("backstay-run", Some(&run.to_string())), Vec::<String>::new());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_failover_takes_over_with_all_that_was_written() -> anyhow::Result<()> {
    let stage = Stage::new().await?;
    let (engine, _node) = stage.node(Stage::config("a")).await?;
    for name in ["web-01", "db-01", "archive-01", "sql-01"] {
        let run = stage.submit(&engine, &stage.input(name, "live")).await?;
        let status = stage.settled(&engine, run).await?;
        assert_eq!(status, Status::Succeeded, "{name}:\n{}", stage.lab.story(run).await?);
        // By this word the VMA, and whoever watches over I5, tell the last copy from others.
        let copies = stage.centre.truth().effects()["replication job"].clone();
        assert!(copies.keys().any(|id| id.contains("final")), "{copies:?}");
        stage.is_sound()?;
        stage.centre.world().look(|state| {
            let source = &state.sources[&estate::source(name)];
            assert_eq!(source.power, Power::Off);
            let holders: Vec<_> =
                source.disks.iter().map(|disk| state.volumes[&disk.replica].plugged.clone()).collect();
            assert!(holders.iter().all(|one| *one == holders[0] && one.len() == 1), "{holders:?}");
            for disk in &source.disks {
                assert_eq!(
                    state.volumes[&disk.replica].content.replicated, disk.version,
                    "{name}: a write was lost"
                );
            }
        });
    }
    Ok(())
}
