//! From the steps of a file and an input to the steps of a plan.
//!
//! ```text
//!   walk     every block and step, once for each item: what is there, what it is called, what is left out
//!   link     what each comes after; the way through what is left out
//!   fill     its fields, with every expression and every name of another step in place
//! ```
//!
//! A name means the nearest: within a block that is repeated it means the step of the same item, from outside of it
//! the steps of all items. A step that is left out passes on what it would have come after.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use backstay_machine::plan::{StepSpec, limits as plan_limits};
use serde_json::{Value, json};

use crate::expression::{Meter, Scope};
use crate::fill::{Form, Outputs, Reference, Targets, text};
use crate::limits;
use crate::outline::{Member, Outline, Step};
use crate::problem::{Problems, Rule, clipped};

/// The steps of a plan, and of which written step each is one.
#[derive(Debug, Default)]
pub(crate) struct Expanded {
    pub steps: Vec<StepSpec>,
    pub written: Vec<usize>,
}

/// One step of a plan, or one that is left out.
#[derive(Debug)]
struct One {
    written: usize,
    /// Which item of each block around it.
    items: Vec<usize>,
    name: String,
    scope: Scope,
    left_out: bool,
}

/// One pass through a block: what it holds, and the pass that it waits for.
struct Pass {
    block: usize,
    items: Vec<usize>,
    scope: Scope,
    ones: Range<usize>,
    waits_for: Option<Range<usize>>,
}

/// Expands all steps. Every problem is told; what is returned is whole only if there is none.
pub(crate) fn expand(
    outline: &Outline,
    scope: &Scope,
    meter: &mut Meter,
    problems: &mut Problems,
) -> Expanded {
    let mut walk =
        Walk { outline, meter, problems, ones: Vec::new(), passes: Vec::new(), turns: 0, stopped: false };
    walk.members(&outline.members, scope, &[], &[], false);
    let (ones, passes, stopped) = (walk.ones, walk.passes, walk.stopped);
    let mut expanded = Expanded::default();
    if stopped {
        return expanded;
    }
    let mut link = Link::new(outline, &ones);
    let Some(after) = link.all(&passes, meter, problems) else { return expanded };
    for (n, one) in ones.iter().enumerate().filter(|(_, one)| !one.left_out) {
        let Some(step) = outline.steps.get(one.written) else { continue };
        let Some(mut filled) = fill(step, one, &mut At { link: &link, one: n }, meter, problems) else {
            continue;
        };
        let names =
            after.get(n).into_iter().flatten().filter_map(|of| ones.get(*of)).map(|of| of.name.clone());
        filled.after = names.collect();
        expanded.steps.push(filled);
        expanded.written.push(one.written);
        if problems.full() {
            break;
        }
    }
    expanded
}

struct Walk<'a> {
    outline: &'a Outline,
    meter: &'a mut Meter,
    problems: &'a mut Problems,
    ones: Vec<One>,
    passes: Vec<Pass>,
    turns: usize,
    stopped: bool,
}

impl Walk<'_> {
    fn members(
        &mut self,
        members: &[Member],
        scope: &Scope,
        items: &[usize],
        keys: &[String],
        left_out: bool,
    ) {
        for member in members {
            if self.stopped {
                return;
            }
            match *member {
                Member::Step(step) => self.step(step, scope, items, keys, left_out),
                Member::Block(block) => self.block(block, scope, items, keys, left_out),
            }
        }
    }

    fn step(&mut self, number: usize, scope: &Scope, items: &[usize], keys: &[String], left_out: bool) {
        let Some(step) = self.outline.steps.get(number) else { return };
        if self.ones.len() >= plan_limits::STEPS {
            let message = format!("for this input there are more than {} steps", plan_limits::STEPS);
            self.stop(step.spot.problem(Rule::Limit, message));
            return;
        }
        let left_out = left_out
            || match &step.when {
                None => false,
                Some(when) => match when.value(scope, self.meter) {
                    Ok(Value::Bool(truth)) => !truth,
                    Ok(_) => {
                        self.problems.add(when.problem("its value is neither true nor false"));
                        return;
                    }
                    Err(problem) => {
                        self.problems.add(problem);
                        return;
                    }
                },
            };
        let name = std::iter::once(step.name.as_str())
            .chain(keys.iter().map(String::as_str))
            .collect::<Vec<_>>()
            .join("-");
        self.ones.push(One { written: number, items: items.to_vec(), name, scope: scope.clone(), left_out });
    }

    fn block(&mut self, number: usize, scope: &Scope, items: &[usize], keys: &[String], left_out: bool) {
        let Some(block) = self.outline.blocks.get(number) else { return };
        let left_out = left_out
            || match block.when.as_ref().map(|when| (when, when.value(scope, self.meter))) {
                None => false,
                Some((_, Ok(Value::Bool(truth)))) => !truth,
                Some((when, Ok(_))) => {
                    self.problems.add(when.problem("its value is neither true nor false"));
                    return;
                }
                Some((_, Err(problem))) => {
                    self.problems.add(problem);
                    return;
                }
            };
        let Some(each) = &block.each else {
            let from = self.ones.len();
            self.members(&block.members, scope, items, keys, left_out);
            self.pass(number, items, scope, from, None);
            return;
        };
        // Its list may not even be there; what refers to its steps finds the way through.
        if left_out {
            return;
        }
        let list = match each.items.fill(scope, self.meter, &mut NoOutputs, self.problems) {
            Value::Array(list) => list,
            Value::Null if self.problems.any() => return,
            other => {
                let message = format!("\"each\" goes through a list, and this is {}", kind(&other));
                self.problems.add(each.spot.problem(Rule::Expression, message));
                return;
            }
        };
        let mut waits_for: Option<Range<usize>> = None;
        for (index, item) in list.iter().enumerate() {
            self.turns += 1;
            if self.turns > limits::PASSES {
                let message =
                    format!("for this input \"each\" is passed through more than {} times", limits::PASSES);
                self.stop(each.spot.problem(Rule::Limit, message));
            }
            if self.stopped || self.problems.full() {
                return;
            }
            let scope = scope.clone().with(&each.name, item).with("index", &json!(index));
            let key = match &each.key {
                None => index.to_string(),
                Some(key) => match key.value(&scope, self.meter) {
                    Ok(Value::String(text)) => text,
                    Ok(Value::Number(number)) => number.to_string(),
                    Ok(other) => {
                        self.problems.add(key.problem(&format!(
                            "its value is {}, and a text or a number is wanted",
                            kind(&other)
                        )));
                        return;
                    }
                    Err(problem) => {
                        self.problems.add(problem);
                        return;
                    }
                },
            };
            if let Some(key_spot) = &each.key
                && (key.is_empty()
                    || !key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
            {
                let message = format!(
                    "its value is \"{}\", and a part of a step's name has letters, digits, '-', '_' and '.'",
                    clipped(&key)
                );
                self.problems.add(key_spot.problem(&message));
                return;
            }
            let from = self.ones.len();
            let (mut items, mut keys) = (items.to_vec(), keys.to_vec());
            items.push(index);
            keys.push(key);
            self.members(&block.members, &scope, &items, &keys, false);
            let before = waits_for.clone().filter(|_| each.one_by_one);
            self.pass(number, &items, &scope, from, before);
            if self.ones.len() > from {
                waits_for = Some(from..self.ones.len());
            }
        }
    }

    fn pass(
        &mut self,
        block: usize,
        items: &[usize],
        scope: &Scope,
        from: usize,
        waits_for: Option<Range<usize>>,
    ) {
        let ones = from..self.ones.len();
        let after = self.outline.blocks.get(block).is_some_and(|block| !block.after.is_empty());
        if !ones.is_empty() && (after || waits_for.is_some()) {
            self.passes.push(Pass { block, items: items.to_vec(), scope: scope.clone(), ones, waits_for });
        }
    }

    fn stop(&mut self, problem: crate::problem::Problem) {
        self.problems.add(problem);
        self.stopped = true;
    }
}

/// Where lists are made nothing can be read of steps: they are not there yet.
struct NoOutputs;

impl Outputs for NoOutputs {
    fn steps(&mut self, reference: &Reference, _: &mut Meter, problems: &mut Problems) -> Targets {
        problems
            .add(reference.spot.problem(Rule::Reference, "no step's output is known when a plan is made"));
        None
    }
}

/// What a reference leads to.
enum Found {
    /// The step, or the one that is left out.
    One(usize),
    /// All of those; none if their block is left out or its list is empty.
    Many(Vec<usize>),
}

struct Link<'a> {
    outline: &'a Outline,
    ones: &'a [One],
    loops: Vec<Vec<usize>>,
    by_name: HashMap<&'a str, usize>,
    /// By written step and the items of the outer blocks, for each number of outer blocks.
    by_items: HashMap<(usize, &'a [usize]), Vec<usize>>,
    /// What steps that are left out pass on.
    passed: HashMap<usize, BTreeSet<usize>>,
}

impl<'a> Link<'a> {
    fn new(outline: &'a Outline, ones: &'a [One]) -> Self {
        let mut by_items: HashMap<_, Vec<_>> = HashMap::new();
        for (n, one) in ones.iter().enumerate() {
            for outer in 0..=one.items.len() {
                by_items
                    .entry((one.written, one.items.get(..outer).unwrap_or_default()))
                    .or_default()
                    .push(n);
            }
        }
        let loops = outline.steps.iter().map(|step| outline.loops(step)).collect();
        let by_name = ones.iter().enumerate().map(|(n, one)| (one.name.as_str(), n)).collect();
        Self { outline, ones, loops, by_name, by_items, passed: HashMap::new() }
    }

    /// Follows a reference from a place in these blocks, with these items.
    fn find(
        &self,
        reference: &Reference,
        from: (&[usize], &[usize]),
        scope: &Scope,
        meter: &mut Meter,
        problems: &mut Problems,
    ) -> Option<Found> {
        let name = match text(&reference.text, scope, meter) {
            Ok(name) => name,
            Err(problem) => {
                problems.add(problem);
                return None;
            }
        };
        if reference.plain().is_none() {
            let found = self.by_name.get(name.as_str()).copied().map(Found::One);
            if found.is_none() {
                let message = format!("\"{}\" is no step of the plan for this input", clipped(&name));
                problems.add(reference.spot.problem(Rule::Reference, message));
            }
            return found;
        }
        let written = self.outline.find(&name)?;
        let (loops, items) = from;
        let own = self.loops.get(written)?;
        let common = own.iter().zip(loops).take_while(|(a, b)| a == b).count().min(items.len());
        let ones = self.by_items.get(&(written, items.get(..common)?)).cloned().unwrap_or_default();
        match ones.as_slice() {
            [one] if common == own.len() => Some(Found::One(*one)),
            _ => Some(Found::Many(ones)),
        }
    }

    /// What every step comes after, with the way through what is left out.
    fn all(
        &mut self,
        passes: &[Pass],
        meter: &mut Meter,
        problems: &mut Problems,
    ) -> Option<Vec<BTreeSet<usize>>> {
        let mut direct: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); self.ones.len()];
        for (n, one) in self.ones.iter().enumerate() {
            let Some(step) = self.outline.steps.get(one.written) else { continue };
            let loops = self.loops.get(one.written).cloned().unwrap_or_default();
            let mut found = BTreeSet::new();
            for reference in &step.after {
                self.follow(reference, (&loops, &one.items), &one.scope, &mut found, meter, problems);
            }
            if let Some(place) = direct.get_mut(n) {
                *place = found;
            }
        }
        for pass in passes {
            self.join(pass, &mut direct, meter, problems);
        }
        for n in 0..self.ones.len() {
            if let Err(wrong) = self.pass_on(n, &direct, meter) {
                let step = self.ones.get(n).and_then(|one| self.outline.steps.get(one.written));
                problems
                    .add(step.map(|step| step.spot.clone()).unwrap_or_default().problem(Rule::Limit, wrong));
                return None;
            }
        }
        let mut edges = 0;
        let mut all = Vec::new();
        for (n, one) in self.ones.iter().enumerate() {
            let mut after = BTreeSet::new();
            if !one.left_out {
                for of in direct.get(n).into_iter().flatten() {
                    match self.passed.get(of) {
                        Some(passed) => after.extend(passed),
                        None => {
                            after.insert(*of);
                        }
                    }
                }
            }
            edges += after.len();
            if edges > plan_limits::EDGES {
                let spot =
                    self.outline.steps.get(one.written).map(|step| step.spot.clone()).unwrap_or_default();
                let message = format!(
                    "for this input steps come after each other in more than {} ways; let one step wait for all and the others for that one",
                    plan_limits::EDGES
                );
                problems.add(spot.problem(Rule::Limit, message));
                return None;
            }
            all.push(after);
        }
        Some(all)
    }

    /// Adds what a reference leads to; where that is nothing, what it would have come after.
    fn follow(
        &self,
        reference: &Reference,
        from: (&[usize], &[usize]),
        scope: &Scope,
        found: &mut BTreeSet<usize>,
        meter: &mut Meter,
        problems: &mut Problems,
    ) {
        let mut todo = vec![reference];
        let mut seen = HashSet::new();
        while let Some(reference) = todo.pop() {
            match self.find(reference, from, scope, meter, problems) {
                None => {}
                Some(Found::One(one)) => {
                    found.insert(one);
                }
                Some(Found::Many(ones)) if !ones.is_empty() => {
                    if let Err(wrong) = meter.charge(ones.len() * limits::WORK_OF_A_STEP) {
                        problems.add(reference.spot.problem(Rule::Limit, wrong));
                        return;
                    }
                    found.extend(ones);
                }
                Some(Found::Many(_)) => {
                    let Some(step) = reference.plain().and_then(|name| self.outline.find(name)) else {
                        continue;
                    };
                    if !seen.insert(step) {
                        continue;
                    }
                    let Some(step) = self.outline.steps.get(step) else { continue };
                    // Expressions of a step that is not there have no item to speak of.
                    let blocks = step.within.iter().filter_map(|block| self.outline.blocks.get(*block));
                    let further = step.after.iter().chain(blocks.flat_map(|block| &block.after));
                    todo.extend(further.filter(|reference| reference.plain().is_some()));
                }
            }
        }
    }

    /// The first steps of a pass come after what its block comes after, and after the last of the pass before.
    fn join(&self, pass: &Pass, direct: &mut [BTreeSet<usize>], meter: &mut Meter, problems: &mut Problems) {
        let mut before = BTreeSet::new();
        if let Some(block) = self.outline.blocks.get(pass.block) {
            let loops = self.around(pass.block);
            for reference in &block.after {
                self.follow(reference, (&loops, &pass.items), &pass.scope, &mut before, meter, problems);
            }
        }
        if let Some(last) = &pass.waits_for {
            let mut ends: BTreeSet<usize> = last.clone().collect();
            for after in direct.get(last.clone()).into_iter().flatten() {
                after.iter().for_each(|of| {
                    ends.remove(of);
                });
            }
            before.extend(ends);
        }
        for after in direct.get_mut(pass.ones.clone()).into_iter().flatten() {
            if !after.iter().any(|of| pass.ones.contains(of)) {
                if let Err(wrong) = meter.charge(before.len() * limits::WORK_OF_A_STEP) {
                    let step =
                        self.ones.get(pass.ones.start).and_then(|one| self.outline.steps.get(one.written));
                    let spot = step.map(|step| step.spot.clone()).unwrap_or_default();
                    problems.add(spot.problem(Rule::Limit, wrong));
                    return;
                }
                after.extend(&before);
            }
        }
    }

    /// The repeated blocks around a block, and itself if it is one.
    fn around(&self, block: usize) -> Vec<usize> {
        let mut of = self.outline.steps.iter().filter(|step| step.within.contains(&block));
        let within = of.next().map(|step| step.within.clone()).unwrap_or_default();
        let outer = within.iter().position(|one| *one == block).map_or(0, |at| at + 1);
        let repeats =
            |block: &&usize| self.outline.blocks.get(**block).is_some_and(|block| block.each.is_some());
        within.iter().take(outer).filter(repeats).copied().collect()
    }

    /// What a step that is left out passes on: the steps that are there before it.
    fn pass_on(&mut self, from: usize, direct: &[BTreeSet<usize>], meter: &mut Meter) -> Result<(), String> {
        let left_out = |n: usize| self.ones.get(n).is_some_and(|one| one.left_out);
        if !left_out(from) || self.passed.contains_key(&from) {
            return Ok(());
        }
        // Depth first on a stack of its own: a chain of them can be as long as a plan.
        let mut open = HashSet::from([from]);
        let mut stack = vec![from];
        while let Some(n) = stack.last().copied() {
            let after = direct.get(n).into_iter().flatten();
            let next = after
                .clone()
                .find(|of| left_out(**of) && !self.passed.contains_key(of) && !open.contains(of));
            if let Some(next) = next {
                open.insert(*next);
                stack.push(*next);
                continue;
            }
            let mut passed = BTreeSet::new();
            for of in after {
                match self.passed.get(of) {
                    Some(further) => {
                        meter.charge(further.len() * limits::WORK_OF_A_STEP)?;
                        passed.extend(further.iter().copied());
                    }
                    None if left_out(*of) => {}
                    None => {
                        passed.insert(*of);
                    }
                }
            }
            self.passed.insert(n, passed);
            stack.pop();
        }
        Ok(())
    }
}

/// One step that is being filled in.
struct At<'a, 'b> {
    link: &'a Link<'b>,
    one: usize,
}

impl Outputs for At<'_, '_> {
    fn steps(&mut self, reference: &Reference, meter: &mut Meter, problems: &mut Problems) -> Targets {
        let one = self.link.ones.get(self.one)?;
        let loops = self.link.loops.get(one.written).cloned().unwrap_or_default();
        let found = self.link.find(reference, (&loops, &one.items), &one.scope, meter, problems)?;
        let name = |n: usize| self.link.ones.get(n).filter(|one| !one.left_out).map(|one| one.name.clone());
        Some(match found {
            Found::One(one) => (vec![name(one)], false),
            Found::Many(ones) => {
                if let Err(wrong) = meter.charge(ones.len() * limits::WORK_OF_A_STEP) {
                    problems.add(reference.spot.problem(Rule::Limit, wrong));
                    return None;
                }
                (ones.into_iter().map(name).collect(), true)
            }
        })
    }
}

fn fill(
    step: &Step,
    one: &One,
    at: &mut At<'_, '_>,
    meter: &mut Meter,
    problems: &mut Problems,
) -> Option<StepSpec> {
    let mut own = Problems::default();
    let mut value = step.rest.fill(&one.scope, meter, at, &mut own);
    let mut proofs = Vec::new();
    for (reference, form) in &step.requires {
        proofs.extend(proof(reference, form, one, meter, at, &mut own));
    }
    if own.any() {
        problems.extend(own.into_list());
        return None;
    }
    let map = value.as_object_mut()?;
    map.insert("name".into(), Value::from(one.name.as_str()));
    if !proofs.is_empty() {
        map.insert("requires".into(), Value::Array(proofs));
    }
    match serde_json::from_value(value) {
        Ok(spec) => Some(spec),
        Err(error) => {
            let wrong = error.to_string();
            // "unknown field `retries`": the field's own place is better than the step's.
            let field =
                wrong.split('`').nth(1).and_then(|name| step.fields.iter().find(|(field, _)| field == name));
            let spot = field.map_or(&step.spot, |(_, spot)| spot);
            problems.add(spot.problem(Rule::Form, format!("this is no step: {wrong}")));
            None
        }
    }
}

fn proof(
    reference: &Reference,
    form: &Form,
    one: &One,
    meter: &mut Meter,
    at: &mut At<'_, '_>,
    problems: &mut Problems,
) -> Vec<Value> {
    let rest = form.fill(&one.scope, meter, at, problems);
    let Some((steps, _)) = at.steps(reference, meter, problems) else { return Vec::new() };
    if steps.is_empty() || steps.iter().any(Option::is_none) {
        let message =
            "requires a proof of a step that is left out for this input; that it was left out is no proof";
        problems.add(reference.spot.problem(Rule::Reference, message));
        return Vec::new();
    }
    let with = |step: String| {
        let mut proof = rest.clone();
        if let Some(map) = proof.as_object_mut() {
            map.insert("step".into(), Value::from(step));
        }
        proof
    };
    steps.into_iter().flatten().map(with).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}
