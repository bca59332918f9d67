//! The procedure: moving a machine with two disks from one host to another.
//!
//! ```text
//!   snapshot -> copy-disk-0 -> create-vm -> attach -> check
//!            '> copy-disk-1 -^
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::machine::{Catalog, CourseId, Direction};
use backstay_engine::{Plan, PlanBuilder, Retry};
use serde_json::json;

use crate::trouble::Trouble;

/// The demo plays the procedure twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// web-1 arrives.
    First,
    /// db-1 does not, and is rolled back.
    Second,
}

pub(crate) const WORKFLOW: &str = "demo-move";
const STEPS: [&str; 6] = ["snapshot", "copy-disk-0", "copy-disk-1", "create-vm", "attach", "check"];
/// The second run never comes to its last step.
const FAILING: &str = "attach";

impl Part {
    pub(crate) const ALL: [Part; 2] = [Part::First, Part::Second];

    /// What is played after it.
    pub(crate) fn later(self) -> &'static [Part] {
        match self {
            Part::First => &[Part::Second],
            Part::Second => &[],
        }
    }

    /// As its run's label says it.
    pub(crate) fn number(self) -> &'static str {
        match self {
            Part::First => "1",
            Part::Second => "2",
        }
    }

    pub(crate) fn of_number(number: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.number() == number)
    }

    pub(crate) fn vm(self) -> &'static str {
        match self {
            Part::First => "web-1",
            Part::Second => "db-1",
        }
    }

    pub(crate) fn title(self) -> String {
        format!("move {} from old-host to new-host", self.vm())
    }
}

/// The plan. Everything that differs between the two runs is input.
pub(crate) fn plan(
    part: Part,
    folder: &Path,
    quick: bool,
    catalog: &dyn Catalog,
) -> Result<Arc<Plan>, Trouble> {
    let ms = |watchable: u64| if quick { 0 } else { watchable };
    let at =
        |pause_ms| json!({ "folder": folder.to_string_lossy(), "vm": part.vm(), "pause_ms": ms(pause_ms) });
    let with = |pause_ms, more: serde_json::Value| {
        let mut input = at(pause_ms);
        if let (Some(input), serde_json::Value::Object(more)) = (input.as_object_mut(), more) {
            input.extend(more);
        }
        input
    };
    let (busy, slots) = match part {
        Part::First => (1, 2),
        Part::Second => (0, 1),
    };
    let mut plan = PlanBuilder::new(WORKFLOW);
    plan.titled(part.title())
        .retry(Retry::fixed(5, Duration::from_millis(ms(1_200).max(20))))
        .undo_retry(Retry::fixed(20, Duration::from_millis(500)))
        .timeout(Duration::from_mins(2))
        .settle_within(Duration::from_secs(10));

    let snapshot = plan
        .step("snapshot", "demo-take-snapshot")
        .titled("Take a snapshot on old-host")
        .input(at(900))
        .undone_by("demo-delete-snapshot", at(700))
        .done();
    let copy = |plan: &mut PlanBuilder, disk: usize| {
        plan.step(format!("copy-disk-{disk}"), "demo-copy-disk")
            .titled(format!("Copy disk {disk} to new-host"))
            .input(with(70, json!({ "disk": disk })))
            .after([&snapshot])
            .undone_by("demo-delete-copy", with(900 + disk as u64 * 500, json!({ "disk": disk })))
            .done()
    };
    let disks = [copy(&mut plan, 0), copy(&mut plan, 1)];
    let files = json!(disks.each_ref().map(|disk| disk.output("/file")));
    let vm = plan
        .step("create-vm", "demo-create-vm")
        .titled("Create the machine on new-host")
        .input(with(700, json!({ "disks": files, "busy": busy })))
        .after(&disks)
        .undone_by("demo-delete-vm", at(700))
        .done();
    let attach = plan
        .step("attach", "demo-attach-disks")
        .titled("Attach the disks")
        .input(with(600, json!({ "disks": files, "slots": slots, "vm_id": vm.output("/id") })))
        .after([&vm])
        .undone_by("demo-detach-disks", at(700))
        .done();
    plan.step("check", "demo-check-vm")
        .titled("Compare the disks with the snapshot")
        .input(with(600, json!({ "digests": snapshot.output("/digests") })))
        .after([&attach])
        .nothing_to_undo("it only looks");
    plan.check(catalog).map_err(|error| Trouble::failed(format!("The demo's plan is wrong: {error}")))
}

/// What is undone if the second run fails where it will: computed from the plan, before anything runs.
pub(crate) fn preview(plan: &Plan) -> String {
    let undone = plan.find(FAILING).map(|step| plan.if_fails(step)).unwrap_or_default();
    undone.into_iter().map(|undoing| undoing.step).collect::<Vec<_>>().join(", ")
}

/// Where `--kill-after` kills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KillAfter {
    part: Part,
    direction: Direction,
    step: String,
    /// As it was given.
    pub name: String,
}

impl KillAfter {
    pub(crate) fn parse(name: &str) -> Result<Self, Trouble> {
        let (part, direction, step, last) = match name.split_once(':') {
            None => (Part::First, Direction::Forward, name, "check"),
            Some(("second", step)) => (Part::Second, Direction::Forward, step, FAILING),
            Some(("undo", step)) => (Part::Second, Direction::Undo, step, FAILING),
            Some(_) => return Err(unknown(name)),
        };
        let steps = reached(last);
        if !steps.contains(&step) {
            return Err(unknown(name));
        }
        Ok(Self { part, direction, step: step.to_owned(), name: name.to_owned() })
    }

    pub(crate) fn is(&self, part: Part, course: CourseId, plan: &Plan) -> bool {
        (self.part, self.direction) == (part, course.direction) && *plan.step(course.step).name == *self.step
    }
}

fn reached(last: &str) -> Vec<&'static str> {
    let end = STEPS.iter().position(|step| *step == last).unwrap_or(0);
    STEPS.into_iter().take(end + 1).collect()
}

fn unknown(name: &str) -> Trouble {
    let list = |prefix: &str, steps: Vec<&str>| {
        steps.into_iter().map(|step| format!("{prefix}{step}")).collect::<Vec<_>>().join(", ")
    };
    let back = reached(FAILING).into_iter().rev().collect();
    Trouble::usage(format!(
        "There is no step \"{}\" to kill after. There are\n  in the first run:     {}\n  in the second run:    {}\n  \
         while it is undone:   {}",
        name.escape_debug(),
        list("", STEPS.to_vec()),
        list("second:", reached(FAILING)),
        list("undo:", back),
    ))
}
