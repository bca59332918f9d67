//! The steps of a file as they are written: blocks within blocks, and what each says of the others.

use backstay_machine::plan::limits as plan_limits;
use serde_json::Value;

use crate::document::{Kind, Node};
use crate::expression::Expression;
use crate::fill::{Form, Reference, Spot, Written};
use crate::limits;
use crate::names::Names;
use crate::problem::{Problem, Problems, Rule, clipped};

/// All that stands under `steps`.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    pub members: Vec<Member>,
    pub steps: Vec<Step>,
    pub blocks: Vec<Block>,
}

/// A part of a block, by its place in the outline.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Member {
    Step(usize),
    Block(usize),
}

/// Steps that are repeated, or left out, together.
#[derive(Debug)]
pub(crate) struct Block {
    pub when: Option<Written>,
    pub each: Option<Each>,
    pub after: Vec<Reference>,
    pub members: Vec<Member>,
}

/// A list that a block is repeated for.
#[derive(Debug)]
pub(crate) struct Each {
    pub items: Form,
    pub spot: Spot,
    /// What an item is called in expressions.
    pub name: String,
    /// What tells the steps of one item from those of another; the index if nothing is said.
    pub key: Option<Written>,
    /// Each item waits for the one before.
    pub one_by_one: bool,
}

/// One step as it is written. It stands for none, one or many steps of a plan.
#[derive(Debug)]
pub(crate) struct Step {
    pub name: String,
    pub spot: Spot,
    pub when: Option<Written>,
    pub after: Vec<Reference>,
    pub requires: Vec<(Reference, Form)>,
    /// Everything else, as plans have it.
    pub rest: Form,
    /// The fields, for errors that name one.
    pub fields: Vec<(String, Spot)>,
    /// The blocks that it stands in, the outermost first.
    pub within: Vec<usize>,
}

impl Outline {
    /// The blocks around a step that repeat it.
    pub(crate) fn loops(&self, step: &Step) -> Vec<usize> {
        let repeats = |block: &&usize| self.blocks.get(**block).is_some_and(|block| block.each.is_some());
        step.within.iter().filter(repeats).copied().collect()
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.name == name)
    }

    /// Reads the list of steps.
    pub(crate) fn read(node: &Node, names: &Names, problems: &mut Problems) -> Self {
        let mut reader = Reader { outline: Self::default(), problems, within: Vec::new(), too_many: false };
        let members = reader.members(node, "steps", names);
        let mut outline = std::mem::take(&mut reader.outline);
        outline.members = members;
        outline.judge_references(problems);
        outline
    }

    /// That names are unique, and that what is named plainly is there.
    fn judge_references(&self, problems: &mut Problems) {
        let mut names = std::collections::HashSet::new();
        for step in &self.steps {
            if !names.insert(step.name.as_str()) {
                let message = format!("\"{}\" is the name of more than one step", clipped(&step.name));
                problems.add(step.spot.problem(Rule::Name, message));
            }
        }
        let judge = |reference: &Reference, problems: &mut Problems| {
            let Some(name) = reference.plain() else { return };
            if !name.is_empty() && !names.contains(name) {
                let known =
                    self.steps.iter().take(12).map(|step| clipped(&step.name)).collect::<Vec<_>>().join(", ");
                let message = format!("\"{}\" is no step of this file; there are {known}", clipped(name));
                problems.add(reference.spot.problem(Rule::Reference, message));
            }
        };
        for step in &self.steps {
            step.after
                .iter()
                .chain(step.requires.iter().map(|(step, _)| step))
                .for_each(|r| judge(r, problems));
            references(&step.rest, &mut |reference| judge(reference, problems));
        }
        self.blocks.iter().flat_map(|block| &block.after).for_each(|reference| judge(reference, problems));
    }
}

fn references(form: &Form, found: &mut dyn FnMut(&Reference)) {
    match form {
        Form::Output { reference, default, .. } => {
            found(reference);
            default.iter().for_each(|form| references(form, found));
        }
        Form::List(items) => items.iter().for_each(|form| references(form, found)),
        Form::Map(entries) => entries.iter().for_each(|(_, form)| references(form, found)),
        Form::Fixed(_) | Form::Whole(_) | Form::Text(_) => {}
    }
}

/// The words of a block; all others belong to a step.
const OF_BLOCKS: [&str; 7] = ["each", "as", "key", "order", "when", "after", "steps"];
const OF_LOOPS: [&str; 4] = ["each", "as", "key", "order"];

struct Reader<'a> {
    outline: Outline,
    problems: &'a mut Problems,
    within: Vec<usize>,
    too_many: bool,
}

impl Reader<'_> {
    fn wrong(&mut self, rule: Rule, place: &str, node: &Node, message: impl Into<String>) {
        self.problems.add(Problem::new(rule, place, message).at(node.mark));
    }

    fn members(&mut self, node: &Node, place: &str, names: &Names) -> Vec<Member> {
        let Kind::List(items) = &node.kind else {
            self.wrong(Rule::Form, place, node, format!("\"steps\" is a list, not {}", node.what()));
            return Vec::new();
        };
        if items.is_empty() {
            self.wrong(Rule::Form, place, node, "there is no step");
        }
        let items = items.iter().enumerate();
        items.filter_map(|(n, item)| self.member(item, &format!("{place}[{n}]"), names)).collect()
    }

    fn member(&mut self, node: &Node, place: &str, names: &Names) -> Option<Member> {
        let Kind::Map(_) = &node.kind else {
            self.wrong(Rule::Form, place, node, format!("a step is a map, not {}", node.what()));
            return None;
        };
        if self.outline.steps.len() + self.outline.blocks.len() >= limits::WRITTEN_STEPS {
            if !std::mem::replace(&mut self.too_many, true) {
                let message = format!("a file has at most {} steps and blocks", limits::WRITTEN_STEPS);
                self.wrong(Rule::Limit, place, node, message);
            }
            return None;
        }
        if node.get("steps").is_some() {
            return self.block(node, place, names, true);
        }
        if OF_LOOPS.iter().any(|key| node.get(key).is_some()) {
            return self.block(node, place, names, false);
        }
        self.step(node, place, names).map(Member::Step)
    }

    /// A block, or a step with an `each`, which is a block of one.
    fn block(&mut self, node: &Node, place: &str, names: &Names, of_many: bool) -> Option<Member> {
        let loops = self
            .within
            .iter()
            .filter(|block| self.outline.blocks.get(**block).is_some_and(|b| b.each.is_some()));
        if self.within.len() >= 2 * limits::EACH || loops.count() >= limits::EACH {
            let message = format!(
                "blocks stand at most {} deep within each other, {} with \"each\"",
                2 * limits::EACH,
                limits::EACH
            );
            self.wrong(Rule::Limit, place, node, message);
            return None;
        }
        if of_many {
            for (key, _) in node.entries().iter().filter(|(key, _)| !OF_BLOCKS.contains(&key.text.as_str())) {
                let message = format!(
                    "\"{}\" is no field of a block of steps; there are {}",
                    clipped(&key.text),
                    OF_BLOCKS.join(", ")
                );
                self.problems.add(Problem::new(Rule::Form, place, message).at(key.mark));
            }
        }
        let each = self.each(node, place, names);
        let inner = match &each {
            Some((each, item)) => names
                .with(&each.name, item.clone())
                .with("index", Some(serde_json::json!({ "type": "integer" }))),
            None => names.clone(),
        };
        let key = node
            .get("key")
            .and_then(|key| self.expression(key, &format!("{place}.key"), &inner, &["string", "integer"]));
        let when = of_many.then(|| node.get("when")).flatten();
        let when = when.and_then(|when| self.expression(when, &format!("{place}.when"), names, &["boolean"]));
        let after = if of_many { self.after(node, place, names) } else { Vec::new() };
        let each = each.map(|(each, _)| Each { key, ..each });
        let number = self.outline.blocks.len();
        self.outline.blocks.push(Block { when, each, after, members: Vec::new() });
        self.within.push(number);
        let members = match node.get("steps").filter(|_| of_many) {
            Some(steps) => self.members(steps, &format!("{place}.steps"), &inner),
            None => self.step(node, place, &inner).map(Member::Step).into_iter().collect(),
        };
        self.within.pop();
        if let Some(block) = self.outline.blocks.get_mut(number) {
            block.members = members;
        }
        Some(Member::Block(number))
    }

    /// The list of a block, and the schema of its items if it is known.
    fn each(&mut self, node: &Node, place: &str, names: &Names) -> Option<(Each, Option<Value>)> {
        let Some(list) = node.get("each") else {
            if let Some((key, _)) =
                node.entries().iter().find(|(key, _)| OF_LOOPS.contains(&key.text.as_str()))
            {
                let message = format!("\"{}\" says something of an \"each\", but there is none", key.text);
                self.problems.add(Problem::new(Rule::Form, place, message).at(key.mark));
            }
            return None;
        };
        let at = format!("{place}.each");
        let spot = Spot::of(list, &at);
        let (items, schema) = match &list.kind {
            Kind::List(_) => (self.form(list, &at, names, false), None),
            Kind::Text(_) => {
                let written = self.expression(list, &at, names, &["array"])?;
                let schema = written
                    .expression
                    .path()
                    .and_then(|path| names.schema_of(path))
                    .and_then(|s| s.get("items").cloned());
                (Form::Whole(written), schema)
            }
            _ => {
                self.wrong(
                    Rule::Form,
                    &at,
                    list,
                    format!("\"each\" is an expression or a list, not {}", list.what()),
                );
                return None;
            }
        };
        let name = match node.get("as").map(|name| (name, name.text())) {
            None => "item".to_owned(),
            Some((_, Some(name))) if Names::may_be(name) => name.to_owned(),
            Some((name, _)) => {
                let message = "\"as\" is a name of letters, digits and '_', and none that is taken, such as inputs or index";
                self.wrong(Rule::Name, &format!("{place}.as"), name, message);
                "item".to_owned()
            }
        };
        if names.has(&name) {
            let message = format!(
                "an item of the block around this one is called \"{name}\" already; give another name with \"as\""
            );
            self.wrong(Rule::Name, place, node, message);
        }
        let one_by_one = match node.get("order").map(|order| (order, order.text())) {
            None | Some((_, Some("at_once"))) => false,
            Some((_, Some("one_by_one"))) => true,
            Some((order, _)) => {
                self.wrong(
                    Rule::Form,
                    &format!("{place}.order"),
                    order,
                    "\"order\" is at_once or one_by_one",
                );
                false
            }
        };
        Some((Each { items, spot, name, key: None, one_by_one }, schema))
    }

    fn step(&mut self, node: &Node, place: &str, names: &Names) -> Option<usize> {
        let name = self.name(node, place)?;
        only_words(node, place, self.problems);
        let when = node
            .get("when")
            .and_then(|when| self.expression(when, &format!("{place}.when"), names, &["boolean"]));
        let after = self.after(node, place, names);
        let requires = self.requires(node, place, names);
        let own =
            |key: &str| OF_LOOPS.contains(&key) || matches!(key, "name" | "when" | "after" | "requires");
        let mut rest = Vec::new();
        for (key, field) in node.entries().iter().filter(|(key, _)| !own(&key.text)) {
            // The steps of a plan within are its own; only expressions are filled in.
            let outputs = key.text != "plan";
            rest.push((key.text.clone(), self.form(field, &format!("{place}.{}", key.text), names, outputs)));
        }
        let fields = node.entries().iter();
        let fields = fields.map(|(key, _)| {
            (key.text.clone(), Spot { mark: key.mark, place: format!("{place}.{}", key.text) })
        });
        self.outline.steps.push(Step {
            name,
            spot: Spot::of(node, place),
            when,
            after,
            requires,
            rest: Form::Map(rest),
            fields: fields.collect(),
            within: self.within.clone(),
        });
        Some(self.outline.steps.len() - 1)
    }

    fn name(&mut self, node: &Node, place: &str) -> Option<String> {
        let Some(name) = node.get("name") else {
            self.wrong(Rule::Form, place, node, "a step has a \"name\"");
            return None;
        };
        let good = |text: &&str| {
            let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
            starts
                && text.len() <= plan_limits::NAME
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        match name.text().filter(good) {
            Some(name) => Some(name.to_owned()),
            None => {
                let message = match name.text() {
                    Some(text) if text.contains("${") => {
                        "a name has no expression: a step with \"each\" gets its index behind its name, or what \"key\" says".to_owned()
                    }
                    _ => format!(
                        "a name starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most {} characters",
                        plan_limits::NAME
                    ),
                };
                self.wrong(Rule::Name, &format!("{place}.name"), name, message);
                None
            }
        }
    }

    fn after(&mut self, node: &Node, place: &str, names: &Names) -> Vec<Reference> {
        let Some(after) = node.get("after") else { return Vec::new() };
        let place = format!("{place}.after");
        let Kind::List(items) = &after.kind else {
            self.wrong(
                Rule::Form,
                &place,
                after,
                format!("\"after\" is a list of steps, not {}", after.what()),
            );
            return Vec::new();
        };
        let items = items.iter().enumerate();
        items.filter_map(|(n, item)| self.reference(item, &format!("{place}[{n}]"), names)).collect()
    }

    fn reference(&mut self, node: &Node, place: &str, names: &Names) -> Option<Reference> {
        let Some(text) = node.text() else {
            self.wrong(Rule::Form, place, node, format!("this is the name of a step, not {}", node.what()));
            return None;
        };
        let mut found = Vec::new();
        let read = Reference::read(
            text,
            Spot::of(node, place),
            &mut |e, s| names.judge(e, s, &mut found),
            self.problems,
        );
        self.problems.extend(found);
        read
    }

    fn requires(&mut self, node: &Node, place: &str, names: &Names) -> Vec<(Reference, Form)> {
        let Some(requires) = node.get("requires") else { return Vec::new() };
        let place = format!("{place}.requires");
        let Kind::List(items) = &requires.kind else {
            self.wrong(
                Rule::Form,
                &place,
                requires,
                format!("\"requires\" is a list, not {}", requires.what()),
            );
            return Vec::new();
        };
        let mut found = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let place = format!("{place}[{n}]");
            let Some(step) = item.get("step") else {
                self.wrong(Rule::Form, &place, item, "a proof has a \"step\", \"at\" and \"equals\"");
                continue;
            };
            let Some(reference) = self.reference(step, &format!("{place}.step"), names) else { continue };
            let entries = item.entries().iter().filter(|(key, _)| key.text != "step").cloned().collect();
            let rest = Node { mark: item.mark, kind: Kind::Map(entries) };
            found.push((reference, self.form(&rest, &place, names, false)));
        }
        found
    }

    fn form(&mut self, node: &Node, place: &str, names: &Names, outputs: bool) -> Form {
        let mut found = Vec::new();
        let form = Form::read(node, place, outputs, &mut |e, s| names.judge(e, s, &mut found), self.problems);
        self.problems.extend(found);
        form
    }

    /// An expression that stands without `${}`, and what it has to give.
    fn expression(&mut self, node: &Node, place: &str, names: &Names, wanted: &[&str]) -> Option<Written> {
        let text = match (&node.kind, node.text()) {
            (_, Some(text)) => text.to_owned(),
            (Kind::Plain(Value::Bool(truth)), _) => truth.to_string(),
            _ => {
                self.wrong(
                    Rule::Form,
                    place,
                    node,
                    format!("this is an expression, such as inputs.name, not {}", node.what()),
                );
                return None;
            }
        };
        if text.contains("${") {
            self.wrong(
                Rule::Expression,
                place,
                node,
                "this is an expression as it is; leave out \"${\" and \"}\"",
            );
            return None;
        }
        let mut found = Vec::new();
        let read = Written::read(&text, Spot::of(node, place), &mut |e: &Expression, s: &Spot| {
            names.judge(e, s, &mut found);
            names.judge_type(e, s, wanted, &mut found);
        });
        self.problems.extend(found);
        match read {
            Ok(written) => Some(written),
            Err(problem) => {
                self.problems.add(problem);
                None
            }
        }
    }
}

/// What a run does and who may decide about it stands in the file in words: no input chooses an activity, a right or
/// how many people it takes.
pub(crate) fn only_words(node: &Node, place: &str, problems: &mut Problems) {
    let is_written = |node: &Node| node.text().is_some_and(|text| text.contains("${"));
    let approves = node.get("activity").and_then(Node::text) == Some("approve");
    for (key, field) in node.entries() {
        let place = format!("{place}.{}", key.text);
        match key.text.as_str() {
            "activity" | "override_alone" if is_written(field) => {
                let message = format!("\"{}\" is stated in words: no input may choose it", key.text);
                problems.add(Problem::new(Rule::Expression, place, message).at(field.mark));
            }
            "input" if approves => {
                for (key, field) in field.entries() {
                    if matches!(key.text.as_str(), "right" | "people") && is_written(field) {
                        let message =
                            format!("\"{}\" is stated in words: no input may choose who approves", key.text);
                        problems.add(
                            Problem::new(Rule::Expression, format!("{place}.{}", key.text), message)
                                .at(field.mark),
                        );
                    }
                }
                if is_written(field) {
                    let message =
                        "what an approval takes is stated in words: no input may choose who approves";
                    problems.add(Problem::new(Rule::Expression, place, message).at(field.mark));
                }
            }
            "input" => {}
            "plan" | "undo" => only_words(field, &place, problems),
            "steps" => {
                if let Kind::List(steps) = &field.kind {
                    for (n, step) in steps.iter().enumerate() {
                        only_words(step, &format!("{place}[{n}]"), problems);
                    }
                }
            }
            _ => {}
        }
    }
    // Put together as a whole, they would be chosen all at once.
    for key in ["undo", "plan"] {
        if let Some(field) = node.get(key).filter(|field| is_written(field)) {
            let message = format!("\"{key}\" is stated in words: no input may choose an activity");
            problems.add(Problem::new(Rule::Expression, format!("{place}.{key}"), message).at(field.mark));
        }
    }
}
