//! Whatever an operator does, and wherever a node dies over it, the run comes to the end that it would have reached.
//!
//! Each play brings a run to where somebody has to act, acts, and sees it to its end. A calm play tells which crash
//! points are passed; then a node dies at each of them. Who acts repeats the same action until it is answered.
//! `BACKSTAY_SWEEP=full` plays every passage; the default the first and the last.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::plan::{Commit, Ending};
use backstay_engine::machine::{Action, CourseAt, CourseId, RollBack, Verb};
use backstay_engine::{
    Answer, Engine, OnFailure, Plan, PlanBuilder, Retry, RunId, Span, Status, SubmitOptions,
};
use backstay_tests::{Deaths, Lab, plans};
use serde_json::{Value, json};

/// A run with somebody who acts upon it.
struct Play {
    lab: Lab,
    run: RunId,
}

impl Play {
    /// Until the run is so.
    async fn is(&self, status: Status) -> anyhow::Result<()> {
        let waiting = async {
            while self.lab.engine.get(self.run).await?.status != status {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(Duration::from_secs(20), waiting).await {
            Ok(done) => done,
            Err(_) => anyhow::bail!("it is never {status:?}:\n{}", self.lab.story(self.run).await?),
        }
    }

    /// Until a step is so.
    async fn step_is(&self, step: &str, so: impl Fn(&CourseAt) -> bool) -> anyhow::Result<()> {
        let waiting = async {
            loop {
                let state = self.lab.engine.state(self.run).await?;
                let Some(ix) = state.plan().find(step) else { anyhow::bail!("no step {step}") };
                if so(&state.course(CourseId::forward(ix)).at) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await?
    }

    /// Asks, again and again under one id, until there is an answer.
    async fn ask(&self, who: &str, verb: Verb) -> anyhow::Result<Answer> {
        let action = Action::new(who, "it is time", verb);
        for _ in 0..40 {
            let patience = Duration::from_millis(500);
            match self.lab.engine.act_within(self.run, &action, patience).await? {
                Answer::Waiting => {}
                answer => return Ok(answer),
            }
        }
        anyhow::bail!("nobody answers:\n{}", self.lab.story(self.run).await?)
    }

    async fn does(&self, who: &str, verb: Verb) -> anyhow::Result<()> {
        match self.ask(who, verb).await? {
            Answer::Accepted { .. } => Ok(()),
            other => anyhow::bail!("{other:?}\n{}", self.lab.story(self.run).await?),
        }
    }
}

type Script = fn(Arc<Play>) -> std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// A plan, what somebody does, and how it ends.
struct Scene {
    name: &'static str,
    plan: fn(&mut PlanBuilder),
    script: Script,
    ends: Status,
    things: &'static [&'static str],
}

macro_rules! script {
    (|$play:ident| $body:expr) => {
        |$play: Arc<Play>| Box::pin(async move { $body })
    };
}

fn retry(step: &str) -> Verb {
    Verb::Retry { step: step.into(), undo: false, input: None, in_doubt: false }
}

fn signal(name: &str) -> Verb {
    Verb::Signal { name: name.into(), payload: json!({}) }
}

/// `a`, then `b` which is held when it breaks, then `c`.
fn held_at_b(plan: &mut PlanBuilder, b: Value) {
    let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
    let b = plan.step("b", "make").input(b).after([&a]).retry(Retry::never()).on_failure(OnFailure::Hold);
    let b = b.undone_by("unmake", json!({})).done();
    plan.step("c", "make").after([&b]).undone_by("unmake", json!({}));
}

fn scenes() -> Vec<Scene> {
    vec![
        Scene {
            name: "a held step is retried with another input",
            plan: |plan| held_at_b(plan, json!({ "fails": "not-applied" })),
            script: script!(|play| {
                play.is(Status::Held).await?;
                let retry = Verb::Retry {
                    step: "b".into(),
                    undo: false,
                    input: Some(json!({ "millis": 1 })),
                    in_doubt: false,
                };
                play.does("anna", retry).await
            }),
            ends: Status::Succeeded,
            things: &["a", "b", "c"],
        },
        Scene {
            name: "a held step is skipped",
            plan: |plan| held_at_b(plan, json!({ "fails": "not-applied" })),
            script: script!(|play| {
                play.is(Status::Held).await?;
                let output = json!({ "id": "by hand", "attempt": 0 });
                play.does("anna", Verb::Skip { step: "b".into(), undo: false, output }).await
            }),
            ends: Status::Succeeded,
            things: &["a", "c"],
        },
        Scene {
            name: "a step is undone by itself and done again",
            plan: |plan| held_at_b(plan, json!({ "fails": "not-applied" })),
            script: script!(|play| {
                play.is(Status::Held).await?;
                play.does("anna", Verb::UndoStep { step: "a".into(), cascade: true }).await?;
                play.step_is("a", |at| matches!(at, CourseAt::Held { .. })).await?;
                play.does("anna", retry("a")).await?;
                play.step_is("a", CourseAt::is_done).await?;
                let output = json!({ "id": "by hand", "attempt": 0 });
                play.does("anna", Verb::Skip { step: "b".into(), undo: false, output }).await
            }),
            ends: Status::Succeeded,
            things: &["a", "c"],
        },
        Scene {
            name: "a step that waits for its next attempt is retried now",
            plan: |plan| {
                let a = plan.step("a", "make").input(json!({ "fails": "1" }));
                a.retry(Retry::fixed(3, Duration::from_secs(3600))).undone_by("unmake", json!({}));
            },
            script: script!(|play| {
                // After a death the second attempt comes at once, and works.
                play.step_is("a", |at| at.is_done() || matches!(at, CourseAt::BackingOff { .. })).await?;
                if play.lab.engine.get(play.run).await?.status != Status::Succeeded {
                    play.ask("anna", retry("a")).await?;
                }
                Ok(())
            }),
            ends: Status::Succeeded,
            things: &["a"],
        },
        Scene {
            name: "a signal is waited for",
            plan: |plan| {
                let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
                let go = plan.wait("go", json!({ "signal": "go", "within": "1h" })).after([&a]).done();
                plan.step("b", "make").after([&go]).undone_by("unmake", json!({}));
            },
            script: script!(|play| play.does("a client", signal("go")).await),
            ends: Status::Succeeded,
            things: &["a", "b"],
        },
        Scene {
            name: "two people approve",
            plan: |plan| {
                let yes = plan.step("yes", "approve").input(json!({ "right": "go", "people": 2 })).done();
                plan.step("b", "make").after([&yes]).undone_by("unmake", json!({}));
            },
            script: script!(|play| {
                play.is(Status::Waiting).await?;
                let plan = play.lab.engine.get(play.run).await?.plan_hash;
                let yes = || Verb::Approve { step: "yes".into(), right: "go".into(), plan: plan.clone() };
                play.does("anna", yes()).await?;
                let again = play.ask("anna", yes()).await?;
                anyhow::ensure!(matches!(again, Answer::Refused { .. }), "{again:?}");
                play.does("bert", yes()).await
            }),
            ends: Status::Succeeded,
            things: &["b"],
        },
        Scene {
            name: "somebody says no",
            plan: |plan| {
                let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
                plan.approve("yes", "go").after([&a]);
            },
            script: script!(|play| {
                play.is(Status::Waiting).await?;
                play.does("anna", Verb::Reject { step: "yes".into(), right: "go".into() }).await
            }),
            ends: Status::RolledBack,
            things: &[],
        },
        Scene {
            name: "a proof is overridden by two",
            plan: |plan| {
                let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
                let b = plan.step("b", "make").after([&a]).requires(&a, "/attempt", json!(7));
                b.undone_by("unmake", json!({}));
            },
            script: script!(|play| {
                play.is(Status::Held).await?;
                play.does("anna", Verb::Override { step: "b".into() }).await?;
                let alone = play.ask("anna", Verb::Override { step: "b".into() }).await?;
                anyhow::ensure!(matches!(alone, Answer::Refused { .. }), "{alone:?}");
                play.does("bert", Verb::Override { step: "b".into() }).await
            }),
            ends: Status::Succeeded,
            things: &["a", "b"],
        },
        Scene {
            name: "a run is paused and goes on",
            plan: |plan| {
                let a = plan
                    .step("a", "make")
                    .input(json!({ "millis": 30 }))
                    .undone_by("unmake", json!({}))
                    .done();
                plan.step("b", "make").after([&a]).undone_by("unmake", json!({}));
            },
            script: script!(|play| {
                if play.ask("anna", Verb::Pause).await? == (Answer::Waiting) {
                    anyhow::bail!("no answer");
                }
                if play.lab.engine.state(play.run).await?.paused().is_some() {
                    play.is(Status::Paused).await?;
                    play.does("anna", Verb::Resume).await?;
                }
                Ok(())
            }),
            ends: Status::Succeeded,
            things: &["a", "b"],
        },
        Scene {
            name: "a run under way is cancelled",
            plan: |plan| {
                let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
                let b = plan.step("b", "make").input(json!({ "fails": "hang" })).after([&a]);
                b.undone_by("unmake", json!({}));
            },
            script: script!(|play| {
                play.step_is("b", |at| matches!(at, CourseAt::Running)).await?;
                play.does("anna", Verb::RollBack(RollBack::default())).await
            }),
            ends: Status::RolledBack,
            things: &[],
        },
        Scene {
            name: "a run that has succeeded is committed, and finished",
            plan: |plan| {
                plan.commit(Commit::default());
                let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
                plan.step("last", "make").after([&a]).finalize();
            },
            script: script!(|play| {
                play.is(Status::Succeeded).await?;
                play.does("anna", Verb::Commit).await
            }),
            ends: Status::Committed,
            things: &["a", "last"],
        },
        Scene {
            name: "a run is rolled back by its timer",
            plan: |plan| {
                plan.commit(Commit {
                    within: Some(Span::millis(300)),
                    then: Some(Ending::RollBack),
                    signal: None,
                });
                plan.step("a", "make").undone_by("unmake", json!({}));
            },
            script: script!(|play| play.is(Status::RolledBack).await),
            ends: Status::RolledBack,
            things: &[],
        },
        Scene {
            name: "a run that has succeeded is rolled back later, but for one step",
            plan: |plan| {
                let a = plan.step("a", "make").undone_by("unmake", json!({})).done();
                plan.step("b", "make").after([&a]).undone_by("unmake", json!({}));
            },
            script: script!(|play| {
                play.is(Status::Succeeded).await?;
                let how = RollBack { leave: vec!["a".into()], ..RollBack::default() };
                play.does("anna", Verb::RollBack(how)).await
            }),
            ends: Status::RolledBack,
            things: &["a"],
        },
        Scene {
            name: "an undo that failed for good is tried with another input",
            plan: stuck_at_a,
            script: script!(|play| {
                play.is(Status::Stuck).await?;
                let again =
                    Verb::Retry { step: "a".into(), undo: true, input: Some(json!({})), in_doubt: false };
                play.does("anna", again).await
            }),
            ends: Status::RolledBack,
            things: &[],
        },
        Scene {
            name: "an undo is done by hand",
            plan: stuck_at_a,
            script: script!(|play| {
                play.is(Status::Stuck).await?;
                play.does("anna", Verb::Skip { step: "a".into(), undo: true, output: Value::Null }).await
            }),
            ends: Status::RolledBack,
            things: &["a"],
        },
        Scene {
            name: "a stuck run is closed",
            plan: stuck_at_a,
            script: script!(|play| {
                play.is(Status::Stuck).await?;
                play.does("anna", Verb::Close { manifest: json!(["a stays"]) }).await
            }),
            ends: Status::Closed,
            things: &["a"],
        },
    ]
}

/// `b` breaks, and the undo of `a` does too.
fn stuck_at_a(plan: &mut PlanBuilder) {
    let a = plan.step("a", "make").undone_by("unmake", json!({ "fails": "permanent" })).done();
    let b = plan.step("b", "make").input(json!({ "fails": "not-applied" })).after([&a]);
    b.undone_by("unmake", json!({}));
}

fn planned(scene: &Scene, engine: &Engine) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("verbs");
    plan.retry(plans::quick()).undo_retry(plans::quick()).settle_within(Duration::from_millis(300));
    (scene.plan)(&mut plan);
    Ok(plan.check(engine.registry())?)
}

async fn play(scene: &Scene, deaths: &Deaths) -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let plan = planned(scene, &lab.engine)?;
    let run = lab.engine.submit(&plan, SubmitOptions::default()).await?.run;
    let mut config = Lab::config("a");
    config.lease = Duration::from_secs(30);
    config.park_after = Duration::from_millis(50);
    let keeper = {
        // A node that dies is succeeded by one of its name.
        let (lab, mut config, hook) = (lab.clone(), config.clone(), deaths.hook());
        config.crash_hook = Some(hook);
        let first = lab.node(config.clone()).await?;
        config.crash_hook = None;
        tokio::spawn(async move {
            first.1.ended().await;
            drop(first);
            let _second = lab.node(config).await?;
            std::future::pending::<anyhow::Result<()>>().await
        })
    };
    let stage = Arc::new(Play { lab: lab.clone(), run });
    let played = (scene.script)(stage).await;
    let ended = match played {
        Ok(()) => lab.settled_for_good(run).await,
        Err(error) => Err(error),
    };
    keeper.abort();
    let status = match ended {
        Ok(status) => status,
        Err(error) => return Err(error.context(lab.story(run).await?)),
    };
    anyhow::ensure!(status == scene.ends, "it is {status:?}\n{}", lab.story(run).await?);
    let things = lab.world.things().await?;
    anyhow::ensure!(things == scene.things, "there are {things:?}\n{}", lab.story(run).await?);
    lab.assert_history(run).await
}

async fn sweep(scene: Scene) -> anyhow::Result<usize> {
    let calm = Deaths::none();
    play(&scene, &calm).await.map_err(|error| error.context(format!("{}: calm", scene.name)))?;
    let passed = calm.passed();
    let full = std::env::var("BACKSTAY_SWEEP").is_ok_and(|form| form == "full");
    let mut died = 0;
    for (point, nth) in &passed {
        let last = passed.iter().filter(|(p, _)| p == point).map(|(_, n)| *n).max().unwrap_or(1);
        if !(full || *nth == 1 || *nth == last) {
            continue;
        }
        let deaths = Deaths::at(point, *nth);
        play(&scene, &deaths)
            .await
            .map_err(|error| error.context(format!("{}: death at {point} #{nth}", scene.name)))?;
        died += usize::from(deaths.fired());
    }
    Ok(died)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_operators_do_comes_to_the_same_wherever_a_node_dies() -> anyhow::Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    let mut scenes = scenes().into_iter();
    let (mut total, mut failed) = (0, Vec::new());
    loop {
        // Some side by side: they wait most of the time.
        while tasks.len() < 4
            && let Some(scene) = scenes.next()
        {
            tasks.spawn(async move {
                let name = scene.name;
                (name, sweep(scene).await)
            });
        }
        let Some(done) = tasks.join_next().await else { break };
        match done? {
            (name, Ok(died)) => {
                assert!(died >= 5, "{name}: only {died} deaths");
                total += died;
            }
            (_, Err(error)) => failed.push(format!("{error:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    println!("{total} deaths");
    Ok(())
}
