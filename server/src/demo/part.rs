//! The three parts of the story, and where in them the process may kill itself.

use std::collections::BTreeSet;

use backstay_engine::machine::{CourseId, Direction};
use backstay_engine::{Plan, Status};
use backstay_simulator::world::{State, estate};
use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;
use serde_json::{Value, json};

use crate::trouble::Trouble;

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A rehearsal, which ends by its own timer.
    Rehearsal,
    /// A failover that loses an answer, fails, and is rolled back.
    Failing,
    /// A failover that takes over, also if the process is killed in its middle.
    Lasting,
}

/// The second run never comes past this step.
pub(super) const FAILING: &str = "start-vm";

impl Part {
    pub(super) const ALL: [Part; 3] = [Part::Rehearsal, Part::Failing, Part::Lasting];

    /// It, and what is played after it.
    pub(super) fn and_later(self) -> &'static [Part] {
        match self {
            Part::Rehearsal => &[Part::Rehearsal, Part::Failing, Part::Lasting],
            Part::Failing => &[Part::Failing, Part::Lasting],
            Part::Lasting => &[Part::Lasting],
        }
    }

    /// What is played after it.
    pub(super) fn later(self) -> &'static [Part] {
        self.and_later().get(1..).unwrap_or_default()
    }

    /// As its run's label says it.
    pub(super) fn number(self) -> &'static str {
        match self {
            Part::Rehearsal => "1",
            Part::Failing => "2",
            Part::Lasting => "3",
        }
    }

    pub(super) fn of_number(number: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.number() == number)
    }

    /// The machine that is moved.
    pub(super) fn vm(self) -> &'static str {
        match self {
            Part::Rehearsal => "sql-01",
            Part::Failing => "db-01",
            Part::Lasting => "web-01",
        }
    }

    pub(super) fn is_live(self) -> bool {
        self != Part::Rehearsal
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Part::Rehearsal => "rehearse the failover of sql-01: Windows, two disks; a timer ends it",
            Part::Failing => "fail db-01 over: Linux, three disks; an answer is lost, then it fails for good",
            Part::Lasting => "fail web-01 over: Linux, one disk",
        }
    }

    /// How its run has to end.
    pub(super) fn promised(self) -> Status {
        match self {
            Part::Rehearsal | Part::Failing => Status::RolledBack,
            Part::Lasting => Status::Succeeded,
        }
    }

    /// Whether nothing more happens in it by itself: a rehearsal that has succeeded waits for its timer.
    pub(super) fn is_over(self, status: Status) -> bool {
        status.is_end() && (self, status) != (Part::Rehearsal, Status::Succeeded)
    }

    /// The input of its run.
    pub(super) fn input(self, estate: &State, quick: bool) -> Result<Value, Trouble> {
        let test_for = if quick { "1s" } else { "8s" };
        input(self.vm(), self.is_live(), test_for, quick, estate)
    }
}

/// The input of the workflow for a machine of the estate.
pub(super) fn input(
    vm: &str,
    live: bool,
    test_for: &str,
    quick: bool,
    estate: &State,
) -> Result<Value, Trouble> {
    let source = estate.sources.get(&estate::source(vm));
    let source = source.ok_or_else(|| Trouble::failed(format!("The pretend data centre has no {vm}.")))?;
    let of = |kind: &str, name: &str| estate::id(kind, name).to_string();
    let disks: Vec<_> = source
        .disks
        .iter()
        .map(|disk| json!({ "key": disk.key, "volume": disk.replica.to_string(), "size": disk.size }))
        .collect();
    let network = if live { "prod-lan" } else { "test-lan" };
    Ok(json!({
        "context": vm,
        "mode": if live { "live" } else { "test" },
        "source": {
            "id": source.id,
            "name": source.name,
            "path": source.path,
            "windows": source.windows,
            "boot_type": if source.firmware == "efi" { "UEFI" } else { "BIOS" },
            "cpus": source.cpus,
            "memory_mb": source.memory_mb,
            "vcenter": {
                "host": "vcenter.example",
                "datacenter": "DatabanxDC",
                "username": "administrator@vsphere.local",
                "password": { "secret": super::centre::VCENTER },
            },
            "disks": disks,
        },
        "destination": {
            "zone": of("zone", "zone-1"),
            "offering": of("service-offering", "custom"),
            "template": of("template", "tiny"),
            "nics": [{ "network": of("network", network) }],
        },
        "force_after": "10s",
        "test_for": test_for,
        "steady": if quick { "100ms" } else { "1s" },
        "boot_within": "20s",
    }))
}

/// Where `--kill-after` kills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KillAfter {
    pub part: Part,
    direction: Direction,
    step: String,
    /// As it was given.
    pub name: String,
}

/// The steps that one word in front of a step's name is about.
struct Places {
    prefix: &'static str,
    part: Part,
    direction: Direction,
    steps: Vec<String>,
}

fn places() -> Result<Vec<Places>, Trouble> {
    let estate = estate::small();
    let mut places = Vec::new();
    for (prefix, part, direction) in [
        ("", Part::Lasting, Direction::Forward),
        ("first:", Part::Rehearsal, Direction::Forward),
        ("second:", Part::Failing, Direction::Forward),
        ("undo:", Part::Failing, Direction::Undo),
    ] {
        let plan = FailoverWorkflow.plan(&part.input(&estate, true)?);
        let plan =
            plan.map_err(|problems| Trouble::failed(format!("The demo's plan is wrong: {problems:?}")))?;
        // Nothing that comes after the step that fails is ever begun.
        let mut never = BTreeSet::new();
        for step in &plan.steps {
            let fails = |name: &String| part == Part::Failing && name == FAILING;
            if step.after.iter().any(|before| fails(before) || never.contains(before)) {
                never.insert(step.name.clone());
            }
        }
        let steps = plan.steps.into_iter().filter(|step| {
            let has_undo = direction == Direction::Forward || step.undo.is_some();
            has_undo && !step.finalize && !never.contains(&step.name)
        });
        let steps = steps.map(|step| step.name).collect();
        places.push(Places { prefix, part, direction, steps });
    }
    Ok(places)
}

impl KillAfter {
    pub(crate) fn parse(name: &str) -> Result<Self, Trouble> {
        let places = places()?;
        for Places { prefix, part, direction, steps } in &places {
            if let Some(step) = name.strip_prefix(prefix).filter(|step| steps.iter().any(|one| one == step)) {
                let (part, direction, step) = (*part, *direction, step.to_owned());
                return Ok(Self { part, direction, step, name: name.to_owned() });
            }
        }
        let lines = places.iter().map(|Places { prefix, steps, .. }| {
            let steps: Vec<_> = steps.iter().map(|step| format!("{prefix}{step}")).collect();
            format!("\n  {}", steps.join(", "))
        });
        Err(Trouble::usage(format!(
            "There is no step \"{}\" to kill after. There are, in the third run, the first, the second, and while the \
             second is undone:{}",
            name.escape_debug(),
            lines.collect::<String>()
        )))
    }

    pub(super) fn is(&self, part: Part, course: CourseId, plan: &Plan) -> bool {
        (self.part, self.direction) == (part, course.direction) && *plan.step(course.step).name == *self.step
    }
}
