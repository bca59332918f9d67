//! A template is tried before anybody uses it: with its examples, and with inputs made up from its schema.

use std::collections::HashSet;

use backstay_machine::plan::Problem as PlanProblem;
use backstay_machine::{Catalog, Plan};
use serde_json::Value;

use crate::expression::Meter;
use crate::limits;
use crate::problem::{Problem, Problems, Rule, clipped};
use crate::samples::samples;
use crate::template::{Example, Template, nothing_to_do};

/// What was found so far.
pub(crate) struct Trial<'a> {
    template: &'a Template,
    catalog: &'a dyn Catalog,
    problems: Problems,
    /// What was said, without the input it was found with: most mistakes are found with every input.
    said: HashSet<String>,
    /// The written steps that some plan had.
    seen: HashSet<usize>,
    tried: usize,
    /// 1 is what trying may cost.
    cost: f64,
}

impl<'a> Trial<'a> {
    pub(crate) fn of(template: &'a Template, catalog: &'a dyn Catalog) -> Self {
        let problems = Problems::default();
        Self { template, catalog, problems, said: HashSet::new(), seen: HashSet::new(), tried: 0, cost: 0.0 }
    }

    /// Tries an input that the file brings. That it does not fit is a mistake.
    pub(crate) fn example(&mut self, example: &Example) {
        match self.template.inputs.accept(&example.input) {
            Ok(input) => {
                let title = example.title.as_deref();
                let name =
                    title.map_or("an example".to_owned(), |t| format!("the example \"{}\"", clipped(t)));
                if self.one(&input, &name) == Some(0) {
                    self.add(nothing_to_do(), &name);
                }
            }
            Err(wrong) => {
                for problem in wrong {
                    let message = match problem.place.as_str() {
                        "" => problem.message,
                        place => format!("{place}: {}", problem.message),
                    };
                    self.problems.add(example.spot.problem(problem.rule, message));
                }
            }
        }
    }

    /// Tries inputs that are made up, until there are enough. That one of them leaves nothing to do is no mistake:
    /// whoever gives it will hear of it.
    pub(crate) fn made_up(&mut self) {
        for input in samples(self.template.inputs.schema()) {
            if self.problems.full() || self.cost > 1.0 {
                break;
            }
            if let Ok(accepted) = self.template.inputs.accept(&input) {
                self.one(&accepted, &format!("the input {}", clipped(&input.to_string())));
            }
        }
    }

    /// Everything that is wrong.
    pub(crate) fn finish(mut self) -> Result<(), Vec<Problem>> {
        if self.tried == 0 && !self.problems.any() {
            let message = "no input could be made up that fits the schema, so nothing was checked; give one under \"examples\"";
            self.problems.add(Problem::new(Rule::Reach, "input", message));
        } else if !self.problems.any() {
            for (n, step) in self.template.outline.steps.iter().enumerate() {
                if !self.seen.contains(&n) {
                    let message = format!(
                        "no example and no input that was made up has the step \"{}\", so it was not checked; give an input under \"examples\" that has it",
                        step.name
                    );
                    self.problems.add(step.spot.problem(Rule::Reach, message));
                }
            }
        }
        self.problems.into_result(())
    }

    /// How many steps there are for this input, if that can be said.
    fn one(&mut self, input: &Value, name: &str) -> Option<usize> {
        self.tried += 1;
        let mut own = Problems::default();
        let mut meter = Meter::default();
        let made = self.template.make(input, &mut meter, &mut own);
        self.cost += meter.used() as f64 / limits::WORK as f64;
        if own.any() {
            own.into_list().into_iter().for_each(|problem| self.add(problem, name));
            return None;
        }
        let (prepared, expanded) = made?;
        self.cost += expanded.written.len() as f64 / limits::TRIED_STEPS as f64;
        self.seen.extend(&expanded.written);
        if expanded.written.is_empty() {
            return Some(0);
        }
        let steps: Vec<_> = prepared.plan.steps.iter().map(|step| step.name.clone()).collect();
        if let Err(error) = Plan::check(prepared.plan, self.catalog) {
            for problem in error.problems {
                let step = problem.step.as_ref().and_then(|name| steps.iter().position(|step| step == name));
                self.add_of_plan(problem, step.and_then(|n| expanded.written.get(n)).copied(), name);
            }
        }
        Some(steps.len())
    }

    fn add_of_plan(&mut self, problem: PlanProblem, written: Option<usize>, name: &str) {
        let step = written.and_then(|n| self.template.outline.steps.get(n));
        let spot = step.map(|step| step.spot.clone()).unwrap_or_default();
        // Steps of one list fail alike; once is enough, even if each names another.
        let alike = problem.message.split(':').next().unwrap_or_default();
        if self.said.insert(format!("{:?} {} {alike}", spot.mark, problem.rule)) {
            let step = problem.step.map(|step| format!("step \"{}\": ", clipped(&step))).unwrap_or_default();
            let message = format!("{step}{} (with {name})", problem.message);
            self.problems.add(spot.problem(Rule::Plan(problem.rule), message));
        }
    }

    fn add(&mut self, mut problem: Problem, name: &str) {
        if self.said.insert(format!("{:?} {} {}", problem.mark, problem.rule, problem.message)) {
            problem.message = format!("{} (with {name})", problem.message);
            self.problems.add(problem);
        }
    }
}
