//! Pictures of a plan, and what a failure would undo.

use std::collections::BTreeSet;

use backstay_machine::plan::{Certainty, StepSpec};
use backstay_machine::*;

use crate::support::{Activities, Dice, End, Sim, checked, diamond, every_dag, spec, step};

fn hostile() -> Vec<StepSpec> {
    let titles = [
        r#"He said "no""#,
        "a] --> evil[b",
        "<script>alert(1)</script>",
        r"back\slash\n",
        "%%{init: {'theme': 'x'}}%%",
        "`**bold**` #quot; &amp;",
        "Größe (2/3), ok: 5+1",
    ];
    titles
        .iter()
        .enumerate()
        .map(|(n, title)| StepSpec { title: Some((*title).into()), ..step(format!("s{n}"), &[]) })
        .collect()
}

#[test]
fn a_picture_shows_steps_with_their_undo_and_their_order() {
    let mut steps = diamond();
    steps[3].undo = None;
    steps[3].nothing_to_undo = Some("it only looks".into());
    let plan = checked(spec(steps));
    insta::assert_snapshot!(plan.to_dot(), @r#"
    digraph "test" {
      rankdir=LR;
      node [shape=box, style=rounded];
      s0 [label="a\ndo / undo"];
      s1 [label="b\ndo / undo"];
      s0 -> s1;
      s2 [label="c\ndo / undo"];
      s0 -> s2;
      s3 [label="d\ndo"];
      s1 -> s3;
      s2 -> s3;
    }
    "#);
    insta::assert_snapshot!(plan.to_mermaid(), @r#"
    flowchart LR
      s0["a<br/>do / undo"]
      s1["b<br/>do / undo"]
      s0 --> s1
      s2["c<br/>do / undo"]
      s0 --> s2
      s3["d<br/>do"]
      s1 --> s3
      s2 --> s3
    "#);
}

#[test]
fn no_title_can_leave_its_label() {
    let plan = Plan::check(spec(hostile()), &Activities::anything()).unwrap();
    insta::assert_snapshot!(plan.to_dot(), @r#"
    digraph "test" {
      rankdir=LR;
      node [shape=box, style=rounded];
      s0 [label="He said \"no\"\ndo / undo"];
      s1 [label="a] --> evil[b\ndo / undo"];
      s2 [label="<script>alert(1)</script>\ndo / undo"];
      s3 [label="back\\slash\\n\ndo / undo"];
      s4 [label="%%{init: {'theme': 'x'}}%%\ndo / undo"];
      s5 [label="`**bold**` #quot; &amp;\ndo / undo"];
      s6 [label="Größe (2/3), ok: 5+1\ndo / undo"];
    }
    "#);
    insta::assert_snapshot!(plan.to_mermaid(), @r##"
    flowchart LR
      s0["He said #34;no#34;<br/>do / undo"]
      s1["a#93; --#62; evil#91;b<br/>do / undo"]
      s2["#60;script#62;alert(1)#60;/script#62;<br/>do / undo"]
      s3["back#92;slash#92;n<br/>do / undo"]
      s4["#37;#37;#123;init: #123;#39;theme#39;: #39;x#39;#125;#125;#37;#37;<br/>do / undo"]
      s5["#96;#42;#42;bold#42;#42;#96; #35;quot#59; #38;amp#59;<br/>do / undo"]
      s6["Größe (2/3), ok: 5+1<br/>do / undo"]
    "##);
}

#[test]
fn the_preview_of_a_diamond_names_what_is_sure_and_what_is_possible() {
    let plan = checked(spec(diamond()));
    let shown = |name: &str| {
        let undone = plan.if_fails(plan.find(name).unwrap());
        undone.iter().map(|u| format!("{} {:?}", u.step, u.certainty)).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(shown("a"), "a Certain");
    assert_eq!(shown("b"), "c Possible, b Certain, a Certain");
    assert_eq!(shown("c"), "c Certain, b Possible, a Certain");
    assert_eq!(shown("d"), "d Certain, c Certain, b Certain, a Certain");
}

#[test]
fn what_is_undone_is_what_the_preview_said_in_an_order_that_it_allows() {
    let most = if crate::full_sweep() { 4 } else { 3 };
    for steps in (1..=most).flat_map(every_dag) {
        let plan = checked(spec(steps));
        for (failing, step) in plan.steps() {
            let preview = plan.if_fails(failing);
            let place = |name: &str| preview.iter().position(|u| u.step == name);
            // A reverse order of execution: whatever comes after a step is undone before it.
            for (ix, step) in plan.steps() {
                for before in &plan.step(ix).after {
                    if let (Some(this), Some(that)) = (place(&step.name), place(&plan.step(*before).name)) {
                        assert!(this < that);
                    }
                }
            }
            for dice in [Dice::First, Dice::Last] {
                let mut sim = Sim::new(plan.clone()).failing(&step.name);
                assert_eq!(sim.run(&mut dice.clone()), End::RolledBack);
                let undone: BTreeSet<_> =
                    sim.world.undone.iter().map(|ix| plan.step(*ix).name.to_string()).collect();
                assert!(undone.iter().all(|name| place(name).is_some()), "{undone:?} of {preview:?}");
                for sure in preview.iter().filter(|u| u.certainty == Certainty::Certain) {
                    assert!(undone.contains(&sure.step), "{undone:?} of {preview:?}");
                }
            }
        }
    }
}

#[test]
fn one_step_at_a_time_a_run_is_undone_in_exactly_the_order_of_the_preview() {
    let plan = checked(spec(diamond()));
    let failing = plan.find("d").unwrap();
    let mut sim = Sim::new(plan.clone()).failing("d");
    sim.room = 1;
    sim.run(&mut Dice::First);
    let undone: BTreeSet<_> = sim.world.undone.iter().map(|ix| plan.step(*ix).name.to_string()).collect();
    let said: BTreeSet<_> = plan.if_fails(failing).into_iter().map(|u| u.step).collect();
    assert_eq!(undone, said);
    let first_and_last = (sim.world.undone[0], sim.world.undone[3]);
    assert_eq!(first_and_last, (failing, plan.find("a").unwrap()));
}
