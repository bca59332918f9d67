//! Whole runs as text: a diff reads as a changed story.

use backstay_machine::{Command, CourseId, Event, StepEvent, decide};

use crate::support::{Dice, End, Sim, chain};

#[test]
fn a_chain_runs_to_its_end() {
    let mut sim = Sim::new(chain(&["a", "b", "c"]));
    assert_eq!(sim.run(&mut Dice::First), End::Succeeded);
    insta::assert_snapshot!(sim.story(), @r"
    1 submitted
    2 claimed
    3 started a #1
    4 succeeded a #1
    5 started b #1
    6 succeeded b #1
    7 started c #1
    8 succeeded c #1
    9 finished succeeded
    ");
}

#[test]
fn a_step_that_fails_for_good_turns_the_run_round() {
    let mut sim = Sim::new(chain(&["a", "b", "c"])).failing("b");
    assert_eq!(sim.run(&mut Dice::First), End::RolledBack);
    insta::assert_snapshot!(sim.story(), @r"
    1 submitted
    2 claimed
    3 started a #1
    4 succeeded a #1
    5 started b #1
    6 failed b #1
    7 rolling_back
    8 started undo b #1
    9 succeeded undo b #1
    10 started undo a #1
    11 succeeded undo a #1
    12 finished rolled_back
    ");
}

#[test]
fn nothing_is_decided_twice() {
    let sim = Sim::new(chain(&["a"]));
    let decision = decide(&sim.state, sim.now, 10);
    assert_eq!(decision, decide(&sim.state, sim.now, 10));
    assert!(matches!(
        decision.commands.as_slice(),
        [Command::Append(Event::Step { course, what: StepEvent::Started { .. }, .. })] if *course == CourseId::forward(sim.plan().find("a").unwrap())
    ));
}
