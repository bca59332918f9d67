//! Whatever is cut off, and wherever: the end is the one that was asked for, or a true word about how it ended.
//!
//! A calm failover tells which points its node passes, and which calls it makes. Then, for some of them, the node dies there,
//! or the call goes wrong there. For all of them with `BACKSTAY_SWEEP=full`; for each tenth, say, with `BACKSTAY_SWEEP=1/10`,
//! and then at least once for each point.
//! `BACKSTAY_SCENE=archive-01` plays those of one machine alone. The long form is twice as fast with
//! `CARGO_PROFILE_DEV_OPT_LEVEL=2`, and twice again with `TMPDIR` on a file system in memory.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use backstay_engine::crash::CrashPoint;
use backstay_engine::machine::{Phase, Verb};
use backstay_engine::{RunId, Status};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::truth::System;
use backstay_simulator::world::Cause;
use backstay_tests::Deaths;

use crate::judge::{Before, judge_all};
use crate::play::{SOON, held};
use crate::stage::Stage;
use crate::steps::Fails;

/// What is played.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    pub name: &'static str,
    pub live: bool,
    pub then: Then,
    /// Who takes the snapshots.
    pub snapshots: &'static str,
    /// The key is no root administrator's.
    pub ordinary: bool,
}

/// What is done once it has succeeded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    Nothing,
    Back,
    Commit,
}

impl Scene {
    pub fn of(name: &'static str, live: bool, then: Then, snapshots: &'static str) -> Self {
        Self { name, live, then, snapshots, ordinary: false }
    }

    pub fn ordinary(self) -> Self {
        Self { ordinary: true, ..self }
    }

    pub async fn stage(self) -> anyhow::Result<Stage> {
        if self.ordinary { Stage::ordinary().await } else { Stage::new().await }
    }

    pub fn input(self, stage: &Stage) -> serde_json::Value {
        let mut input = stage.input(self.name, if self.live { "live" } else { "test" });
        input["snapshots"] = self.snapshots.into();
        input
    }
}

/// With one, two, three and eight disks; the second runs Windows.
fn scenes() -> Vec<Scene> {
    let mut scenes = vec![
        Scene::of("web-01", true, Then::Commit, "cloudstack"),
        Scene::of("sql-01", false, Then::Back, "cloudstack").ordinary(),
        Scene::of("db-01", true, Then::Back, "cloudstack"),
        Scene::of("archive-01", false, Then::Back, "cloudstack"),
    ];
    if stride().is_some() {
        scenes.extend([
            Scene::of("web-01", true, Then::Nothing, "cloudstack"),
            Scene::of("sql-01", false, Then::Back, "cloudstack"),
            Scene::of("sql-01", true, Then::Back, "linstor"),
            Scene::of("sql-01", true, Then::Commit, "linstor"),
            Scene::of("db-01", false, Then::Back, "linstor"),
            Scene::of("db-01", true, Then::Back, "machine"),
            Scene::of("db-01", true, Then::Commit, "machine").ordinary(),
        ]);
    }
    of_one(scenes)
}

/// Those of the machine that was asked for, if one was.
pub fn of_one(mut scenes: Vec<Scene>) -> Vec<Scene> {
    if let Ok(name) = std::env::var("BACKSTAY_SCENE") {
        scenes.retain(|scene| scene.name == name);
    }
    scenes
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Trouble {
    Nothing,
    /// The node dies at the n-th passage of a point.
    Death(Deaths),
    /// The n-th call of a kind goes wrong.
    Call(Rule),
    /// The n-th call of a kind is done, and the node dies before it hears of it.
    DeathIn(Rule),
    /// A step fails for good, and after that the node dies at the n-th passage of a point.
    Fails(Fails, Deaths),
}

impl Trouble {
    /// It is there until people see to it: nobody has the patience of a real failover.
    fn lasts(&self) -> bool {
        let Self::Call(Rule { fault, .. }) = self else { return false };
        matches!(fault, Fault::Stuck | Fault::HostDown)
    }
}

pub struct Played {
    pub status: Status,
    pub passed: Vec<(CrashPoint, u64)>,
    pub calls: BTreeMap<String, u64>,
    pub happened: bool,
    /// So often it waited for people.
    pub helped: u32,
    pub wrong: Vec<String>,
    pub story: String,
}

async fn play(scene: Scene, trouble: Trouble) -> anyhow::Result<Played> {
    let mut stage = scene.stage().await?;
    let lasts = trouble.lasts();
    if lasts {
        (stage.job_deadline, stage.daemon_deadline) = (SOON, SOON);
    }
    let before = Before::of(&stage, scene.name);
    let mut config = Stage::config("a");
    let (deaths, fails) = match &trouble {
        Trouble::Death(deaths) => (deaths.clone(), Fails::never()),
        Trouble::Fails(fails, deaths) => (deaths.clone(), fails.clone()),
        _ => (Deaths::none(), Fails::never()),
    };
    config.lease = Duration::from_secs(30);
    config.crash_hook = Some(fails.after_that(deaths.hook()));
    if let Trouble::Call(rule) | Trouble::DeathIn(rule) = &trouble {
        stage.centre.faults().rule(rule.clone());
    }
    let (engine, first) = stage.node_of(config.clone(), &fails).await?;
    let input = scene.input(&stage);
    let submit = async {
        match lasts {
            true => stage.submit_in_a_hurry(&engine, &input, (3, 3)).await,
            false => stage.submit(&engine, &input).await,
        }
    };
    let submitted = tokio::time::timeout(Duration::from_secs(20), submit).await;
    // Asked from beside it: the node may die over anything.
    let beside = stage.beside().await?;
    let run = match submitted {
        Ok(Ok(run)) => run,
        _ => stage.submit(&beside, &input).await?,
    };
    let (fires, help) = (|| any_fired(&stage), Help { fails: fails.clone(), lasts, ..Help::default() });
    let cut_off = async {
        match &trouble {
            Trouble::DeathIn(_) => {
                while !fires() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            _ => first.ended().await,
        }
    };
    let mut over = None;
    tokio::select! {
        () = cut_off => {}
        status = ends(&stage, scene, &beside, run, &help) => over = Some(status?),
    }
    let mut second = None;
    let status = match over {
        Some(status) => status,
        None => {
            first.kill().await;
            config.crash_hook = None;
            second = Some(stage.node_of(config, &fails).await?);
            ends(&stage, scene, &beside, run, &help).await?
        }
    };
    let happened = match &trouble {
        Trouble::Nothing => true,
        Trouble::Death(deaths) | Trouble::Fails(_, deaths) => deaths.fired(),
        Trouble::Call(_) | Trouble::DeathIn(_) => fires() || help.fired.load(Ordering::SeqCst),
    };
    let calls = stage.centre.faults().calls();
    let mut wrong = judge_all(&stage, scene.name, scene.live, &before, run, status).await?;
    wrong.extend(stage.lab.assert_facts().await.err().map(|error| error.to_string()));
    let story = stage.lab.story(run).await?;
    if let Some((_, node)) = second {
        node.kill().await;
    }
    drop(engine);
    stage.lab.remove().await?;
    let helped = help.times.load(Ordering::SeqCst);
    Ok(Played { helped, status, passed: deaths.passed(), calls, happened, wrong, story })
}

/// What people did.
#[derive(Default)]
struct Help {
    /// Something had gone wrong before they ended that.
    fired: AtomicBool,
    times: AtomicU32,
    /// What they mend.
    fails: Fails,
    /// See [`Trouble::lasts`].
    lasts: bool,
}

/// Jobs that never end are ended, and hosts come up again.
fn people_mend(stage: &Stage) {
    stage.centre.truth().restart(System::CloudStack, Duration::ZERO);
    stage.centre.world().change(Cause::new("people", "mend", ""), |state| {
        state.hosts.iter_mut().for_each(|host| host.state = "Up".into());
    });
}

fn any_fired(stage: &Stage) -> bool {
    stage.centre.faults().fired().iter().any(|rule| rule.times > 0)
}

/// Sees it to its end; what people have to decide, somebody does.
async fn ends(
    stage: &Stage,
    scene: Scene,
    engine: &backstay_engine::Engine,
    run: RunId,
    help: &Help,
) -> anyhow::Result<Status> {
    let mut then = scene.then;
    // With the rules goes what is known of how often they fired.
    let clear = || {
        help.fired.fetch_or(any_fired(stage), Ordering::SeqCst);
        help.times.fetch_add(1, Ordering::SeqCst);
        stage.centre.faults().clear();
        help.fails.mend();
        if help.lasts {
            people_mend(stage);
        }
    };
    for _ in 0..6 {
        let status = stage.settled(engine, run).await?;
        match status {
            Status::Succeeded if then != Then::Nothing => {
                match then {
                    Then::Commit => stage.commit(engine, run, scene.name).await?,
                    _ => stage.roll_back(engine, run).await?,
                }
                then = Then::Nothing;
                stage.moves_on(engine, run, Status::Succeeded).await?;
            }
            // There is no way back any more: what failed is done again.
            Status::Held if engine.state(run).await?.phase() == Phase::Committing => {
                clear();
                for step in held(engine, run).await? {
                    let verb = Verb::Retry { step, undo: false, input: None, in_doubt: false };
                    // Its node may have died over the last one, and another goes on with that just now.
                    if let Err(refused) = stage.act(engine, run, verb).await {
                        let goes_on =
                            ["is running", "is over"].iter().any(|so| refused.to_string().contains(so));
                        anyhow::ensure!(goes_on, "{refused}");
                    }
                }
                stage.moves_on(engine, run, Status::Held).await?;
            }
            Status::Held => {
                clear();
                stage.roll_back(engine, run).await?;
                stage.moves_on(engine, run, Status::Held).await?;
            }
            Status::Stuck => {
                clear();
                stage.unplug_what_cloudstack_lost();
                let stuck = stage.stuck(engine, run).await?;
                if stuck.is_empty() {
                    stage.account_for_what_is_left(engine, run).await?;
                }
                for step in stuck {
                    let verb = Verb::Retry { step, undo: true, input: None, in_doubt: false };
                    stage.act(engine, run, verb).await?;
                }
                stage.moves_on(engine, run, Status::Stuck).await?;
            }
            other => return Ok(other),
        }
    }
    anyhow::bail!("it does not come to an end:\n{}", stage.lab.story(run).await?)
}

/// In the long form: of so many, one is played.
pub fn stride() -> Option<usize> {
    let form = std::env::var("BACKSTAY_SWEEP").ok()?;
    if form == "full" { Some(1) } else { form.strip_prefix("1/")?.parse().ok().filter(|n| *n > 0) }
}

/// Plays it with each trouble, a few at a time. Says in how many of them the trouble was there.
async fn all(scene: Scene, troubles: Vec<(String, Trouble)>) -> anyhow::Result<usize> {
    let played = each(scene, troubles).await?;
    Ok(played.iter().filter(|(_, played)| played.happened).count())
}

/// The same, with what came of each.
pub async fn each(scene: Scene, troubles: Vec<(String, Trouble)>) -> anyhow::Result<Vec<(String, Played)>> {
    let (mut over, mut failures, mut said) = (Vec::new(), Vec::<String>::new(), 0);
    let mut tasks = tokio::task::JoinSet::new();
    let (begun, all) = (std::time::Instant::now(), troubles.len());
    let mut left = troubles.into_iter();
    // They mostly wait. Where few are played, other tests run beside them.
    let at_once = if stride().is_some() { 8 } else { 3 };
    loop {
        while tasks.len() < at_once
            && let Some((what, trouble)) = left.next()
        {
            tasks.spawn(async move { (what, play(scene, trouble).await) });
        }
        let Some(done) = tasks.join_next().await else { break };
        match done? {
            (what, Ok(played)) if played.wrong.is_empty() => over.push((what, played)),
            (what, Ok(played)) => {
                failures.push(format!("{scene:?}, {what}: {:#?}\n{}", played.wrong, played.story));
            }
            (what, Err(error)) => failures.push(format!("{scene:?}, {what}: {error:#}")),
        }
        // The long form goes on for an hour and more: what is found is said at once.
        if let Some(last) = failures.get(said..).and_then(<[String]>::first) {
            println!("{last}");
            said = failures.len();
        }
    }
    println!("{scene:?}: {all} plays in {} s, {} went wrong", begun.elapsed().as_secs(), failures.len());
    anyhow::ensure!(
        failures.is_empty(),
        "{} of the plays went wrong:\n{}",
        failures.len(),
        failures.join("\n\n")
    );
    Ok(over)
}

/// One after the other, whatever becomes of those before: the long form is too long to be begun again for each of them.
pub async fn in_each(
    scenes: Vec<Scene>,
    plays: impl AsyncFn(usize, Scene) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (place, scene) in scenes.into_iter().enumerate() {
        wrong.extend(plays(place, scene).await.err().map(|error| format!("{error:#}")));
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}

/// Some of them, spread over all.
pub fn some<T>(all: Vec<T>, about: usize) -> Vec<T> {
    let each = stride().unwrap_or((all.len() / about).max(1));
    all.into_iter().step_by(each).collect()
}

/// Of the passages of each point one of so many, and of each point at least one; which of them differs from place to place.
pub fn passages(passed: Vec<(CrashPoint, u64)>, apart: usize, place: usize) -> Vec<(CrashPoint, u64)> {
    let mut points = BTreeMap::<String, Vec<_>>::new();
    for (point, nth) in passed {
        points.entry(point.to_string()).or_default().push((point, nth));
    }
    let some = |all: Vec<_>| {
        let first = place * 53 % apart.min(all.len());
        all.into_iter().skip(first).step_by(apart)
    };
    points.into_values().flat_map(some).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_ends_well_wherever_its_node_dies() -> anyhow::Result<()> {
    in_each(scenes(), async |place, scene| {
        let calm = play(scene, Trouble::Nothing).await?;
        anyhow::ensure!(
            calm.wrong.is_empty() && calm.helped == 0,
            "{scene:?}, helped {} times: {:#?}\n{}",
            calm.helped,
            calm.wrong,
            calm.story
        );
        let points = match stride() {
            Some(apart) => passages(calm.passed, apart, place),
            None => some(calm.passed, 5),
        };
        let troubles = points
            .into_iter()
            .map(|(point, nth)| (format!("death at {point} #{nth}"), Trouble::Death(Deaths::at(point, nth))));
        let troubles: Vec<_> = troubles.collect();
        let planned = troubles.len();
        let died = all(scene, troubles).await?;
        // Batches depend on timing: a passage of the calm run may not come in another one.
        anyhow::ensure!(died * 2 >= planned, "{scene:?}: only {died} of {planned} deaths");
        Ok(())
    })
    .await
}

/// The calls that change something.
pub fn changes(calls: &BTreeMap<String, u64>) -> Vec<(String, String, u64)> {
    let mut found = Vec::new();
    for (name, count) in calls {
        let Some((system, command)) = name.split_once(' ') else { continue };
        let looks = match system {
            "cloudstack" => command.starts_with("list") || command.starts_with("query"),
            "vma" => command.starts_with("GET") || command.contains("discover"),
            _ => command.starts_with("GET"),
        };
        if !looks {
            found.extend((1..=*count).map(|n| (system.to_owned(), command.to_owned(), n)));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_ends_well_if_its_node_dies_in_any_call() -> anyhow::Result<()> {
    in_each(scenes(), async |_, scene| {
        let calm = play(scene, Trouble::Nothing).await?;
        let calls = some(changes(&calm.calls), 4);
        let troubles: Vec<_> = calls
            .into_iter()
            .map(|(system, command, n)| {
                let rule = Rule::nth(&system, &command, n, Fault::DoneThenSilent).once();
                (format!("death in {system} {command} #{n}"), Trouble::DeathIn(rule))
            })
            .collect();
        let planned = troubles.len();
        let died = all(scene, troubles).await?;
        anyhow::ensure!(died * 4 >= planned * 3, "{scene:?}: only {died} of {planned} deaths");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_ends_well_whatever_goes_wrong_with_a_call() -> anyhow::Result<()> {
    let faults = [
        Fault::Refused { status: 500 },
        Fault::DoneThenRefused { status: 503 },
        Fault::Dropped,
        Fault::DoneThenDropped,
        Fault::Reset,
        Fault::TooMany { ms: 50 },
        Fault::Html { status: 502 },
        Fault::Html { status: 200 },
        Fault::ErrorWith200,
        Fault::Empty,
        Fault::JobLost,
        Fault::JobCancelledButDone { ms: 0 },
        Fault::JobFails { code: 530 },
        Fault::Lagging { ms: 300 },
    ];
    in_each(scenes(), async |_, scene| {
        let calm = play(scene, Trouble::Nothing).await?;
        let mut troubles = Vec::new();
        for (place, (system, command, n)) in changes(&calm.calls).into_iter().enumerate() {
            for (kind, fault) in faults.iter().enumerate() {
                if !fault.concerns(&system, &command) || (place * 5 + kind * 3) % stride().unwrap_or(61) != 0
                {
                    continue;
                }
                let rule = Rule::nth(&system, &command, n, fault.clone()).once();
                troubles.push((format!("{fault:?} in {system} {command} #{n}"), Trouble::Call(rule)));
            }
        }
        let planned = troubles.len();
        let happened = all(scene, troubles).await?;
        // How often a call is made depends on timing: the last of a kind may not come in another run.
        anyhow::ensure!(happened * 4 >= planned * 3, "{scene:?}: only {happened} of {planned} faults");
        Ok(())
    })
    .await
}

/// What a system says of a call is not so, or what was begun never ends. That a name which is taken is accepted is shown in
/// ordinary.rs: it takes a second call of the same name.
fn untrue(system: &str, command: &str) -> Vec<Fault> {
    let at_once = Fault::Reappears { ms: 0 };
    // Within the time that the site's settings give it.
    let later = Fault::JobCancelledButDone { ms: 80 };
    match (system, command) {
        // Seen down once; it is looked at again after a little longer. Not here: a stop that is one only in name. CloudStack
        // then says of what runs on that it is stopped, and nobody can know better.
        ("cloudstack", "stopVirtualMachine") => {
            vec![Fault::Stuck, Fault::HostDown, Fault::Reappears { ms: 10 }, later]
        }
        ("cloudstack", "deleteVolume") => vec![at_once],
        ("cloudstack", "destroyVirtualMachine" | "destroyVolume") => {
            vec![Fault::Stuck, Fault::HostDown, at_once, later]
        }
        ("cloudstack", "deleteSnapshot" | "deleteVMSnapshot") => {
            vec![Fault::Stuck, Fault::HostDown, at_once, later]
        }
        ("cloudstack", look) if look.starts_with("list") => vec![Fault::Stale { ms: 300 }],
        ("cloudstack", "deployVirtualMachine") => vec![Fault::Stuck, Fault::HostDown, Fault::Partial, later],
        ("cloudstack", command) if Fault::Stuck.concerns(system, command) => {
            vec![Fault::Stuck, Fault::HostDown, later]
        }
        ("daemon", command) if Fault::Stuck.concerns(system, command) => {
            vec![Fault::Stuck, Fault::Lagging { ms: 80 }]
        }
        ("linstor", command) if command.starts_with("DELETE") => vec![at_once],
        ("vma", "POST /vm/{id}/power-off") => vec![Fault::StopsOnlyInName],
        _ => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_ends_well_although_what_a_system_says_is_not_so() -> anyhow::Result<()> {
    in_each(scenes(), async |place, scene| {
        let calm = play(scene, Trouble::Nothing).await?;
        let mut troubles = Vec::new();
        for (name, count) in &calm.calls {
            let Some((system, command)) = name.split_once(' ') else { continue };
            for fault in untrue(system, command) {
                // Some lists are asked for again and again.
                for n in (1..=*count).step_by(1 + *count as usize / 12) {
                    let rule = Rule::nth(system, command, n, fault.clone()).once();
                    troubles.push((format!("{fault:?} in {system} {command} #{n}"), Trouble::Call(rule)));
                }
            }
        }
        // Which of them differs from scene to scene.
        let apart = stride().unwrap_or((troubles.len() / 2).max(1));
        let troubles: Vec<_> = troubles.into_iter().skip(place * 7 % apart).step_by(apart).collect();
        let planned = troubles.len();
        let happened = all(scene, troubles).await?;
        // How often a list is asked for depends on timing: of two plays one may miss its call, never both.
        let missed = planned - happened;
        anyhow::ensure!(missed <= 1.max(planned / 4), "{scene:?}: only {happened} of {planned} faults");
        Ok(())
    })
    .await
}

/// The copy of the last changes is no call that goes wrong and is over: it fails, stops or is forgotten later. Another one is
/// made; if all of them end like that, the source is on again.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_failover_copes_with_whatever_becomes_of_its_last_copy() -> anyhow::Result<()> {
    let faults = [Fault::JobFails { code: 530 }, Fault::JobLost, Fault::Stuck];
    let long = stride().is_some();
    let names = if long { vec!["web-01", "sql-01", "db-01", "archive-01"] } else { vec!["web-01"] };
    let scenes = names.into_iter().map(|name| Scene::of(name, true, Then::Nothing, "cloudstack"));
    in_each(of_one(scenes.collect()), async |_, scene| {
        let name = scene.name;
        let mut troubles = Vec::new();
        for fault in &faults {
            let first = Rule::nth("vma", "POST /replicate", 1, fault.clone());
            let every = Rule::every("vma", "POST /replicate", fault.clone());
            troubles.push((format!("the first copy: {fault:?}"), Trouble::Call(first)));
            if long || *fault != Fault::Stuck {
                troubles.push((format!("every copy: {fault:?}"), Trouble::Call(every)));
            }
        }
        for (what, played) in each(scene, troubles).await? {
            let every = what.starts_with("every");
            // Of a copy that stands still people get tired sooner: see `Trouble::lasts`.
            let most = if what.ends_with("Stuck") { 3 } else { 5 };
            let (wanted, copies) = if every { (Status::RolledBack, most) } else { (Status::Succeeded, 2) };
            let made = played.calls.get("vma POST /replicate").copied().unwrap_or_default();
            anyhow::ensure!(played.happened, "{name}, {what}: it was not there");
            anyhow::ensure!(
                (played.status, made) == (wanted, copies),
                "{name}, {what}: it is {} after {made} copies\n{}",
                played.status.as_str(),
                played.story
            );
        }
        Ok(())
    })
    .await
}
