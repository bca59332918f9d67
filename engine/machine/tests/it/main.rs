//! The machine, proven without a database.

mod support;

use backstay_machine::{Command, CourseId, Event, StepEvent, decide};
use support::{Sim, chain};

#[test]
fn a_chain_runs_to_its_end() {
    let mut sim = Sim::new(chain(&["a", "b", "c"]));
    sim.run_to_end();
    insta::assert_snapshot!(sim.story(), @r"
    1 submitted
    2 started a #1
    3 succeeded a #1
    4 started b #1
    5 succeeded b #1
    6 started c #1
    7 succeeded c #1
    8 finished succeeded
    ");
}

#[test]
fn a_step_that_fails_for_good_turns_the_run_round() {
    let mut sim = Sim::new(chain(&["a", "b", "c"]));
    sim.fails_for_good("b");
    sim.run_to_end();
    insta::assert_snapshot!(sim.story(), @r"
    1 submitted
    2 started a #1
    3 succeeded a #1
    4 started b #1
    5 failed b #1
    6 rolling_back
    7 started undo b #1
    8 succeeded undo b #1
    9 started undo a #1
    10 succeeded undo a #1
    11 finished rolled_back
    ");
}

#[test]
fn nothing_is_decided_twice() {
    let sim = Sim::new(chain(&["a"]));
    let decision = decide(sim.state(), sim.now(), 10);
    assert_eq!(decision, decide(sim.state(), sim.now(), 10));
    assert!(matches!(
        decision.commands.as_slice(),
        [Command::Append(Event::Step { course, what: StepEvent::Started { .. }, .. })] if *course == CourseId::forward(sim.state().plan().find("a").unwrap())
    ));
}
