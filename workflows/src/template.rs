//! A workflow that is a file.
//!
//! ```text
//!   read     text -> document -> what is written, every expression read and judged by the names it uses
//!   check    a plan for each example and for inputs made up from the schema, each checked against the activities
//!   plan     input -> judged, filled up -> steps -> plan
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backstay_machine::plan::limits as plan_limits;
use backstay_machine::{Catalog, Plan, PlanSpec, canonical};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::document::{self, Kind, Node};
use crate::expand::{Expanded, expand};
use crate::expression::{Meter, Scope};
use crate::fill::{Form, Outputs, Reference, Spot, Targets};
use crate::input::Inputs;
use crate::names::Names;
use crate::outline::{Outline, only_words};
use crate::problem::{Problem, Problems, Rule, clipped, of_plan};
use crate::trial::Trial;
use crate::{Prepared, Workflow, limits};

/// A workflow that was read from a file, and whose every expression is known to be one.
#[derive(Debug)]
pub struct Template {
    name: String,
    title: Option<String>,
    description: Option<String>,
    version: String,
    source: Arc<str>,
    pub(crate) inputs: Inputs,
    examples: Vec<Example>,
    key: Option<Form>,
    labels: Vec<(String, Form)>,
    /// What plans have beside steps.
    rest: Vec<(String, Form, Spot)>,
    pub(crate) outline: Outline,
}

/// An input that the file brings.
#[derive(Debug)]
pub(crate) struct Example {
    pub title: Option<String>,
    pub input: Value,
    pub spot: Spot,
}

impl Template {
    /// Reads a workflow out of the text of a file, YAML or JSON, and checks what can be checked without activities.
    pub fn read(text: &str) -> Result<Self, Vec<Problem>> {
        let node = document::read(text).map_err(|problem| vec![problem])?;
        let mut problems = Problems::default();
        let template = read(&node, text, &mut problems);
        match template {
            Some(template) => problems.into_result(template),
            None => Err(problems.into_list()),
        }
    }

    /// Reads a workflow and tries it with inputs: see [`Template::check`].
    pub fn load(text: &str, catalog: &dyn Catalog) -> Result<Self, Vec<Problem>> {
        let template = Self::read(text)?;
        template.check(catalog)?;
        Ok(template)
    }

    /// The text of the file.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Makes a plan of every example, and of inputs that are made up from the schema, and checks each plan against the
    /// activities. A step that none of them has is a problem too: nobody would know whether it is right.
    pub fn check(&self, catalog: &dyn Catalog) -> Result<(), Vec<Problem>> {
        let mut trial = Trial::of(self, catalog);
        self.examples.iter().for_each(|example| trial.example(example));
        trial.made_up();
        trial.finish()
    }

    /// The plan for an input that was accepted.
    pub(crate) fn make(
        &self,
        input: &Value,
        meter: &mut Meter,
        problems: &mut Problems,
    ) -> Option<(Prepared, Expanded)> {
        let scope = Scope::default().with("inputs", input);
        let mut plan = Map::new();
        for (key, form, _) in &self.rest {
            plan.insert(key.clone(), form.fill(&scope, meter, &mut NoOutputs, problems));
        }
        plan.insert("workflow".into(), Value::from(self.name.as_str()));
        plan.insert("steps".into(), json!([]));
        let exclusive = self.key.as_ref().map(|form| form.fill(&scope, meter, &mut NoOutputs, problems));
        let exclusive = exclusive.filter(|key| !key.is_null()).map(as_text);
        let labels: BTreeMap<_, _> = self
            .labels
            .iter()
            .map(|(name, form)| (name.clone(), form.fill(&scope, meter, &mut NoOutputs, problems)))
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name, as_text(value)))
            .collect();
        let mut expanded = expand(&self.outline, &scope, meter, problems);
        match serde_json::from_value::<PlanSpec>(Value::Object(plan)) {
            Ok(mut plan) => {
                plan.steps = std::mem::take(&mut expanded.steps);
                Some((
                    Prepared { plan, input: input.clone(), exclusive, labels, version: self.version.clone() },
                    expanded,
                ))
            }
            Err(error) => {
                let wrong = error.to_string();
                let named =
                    wrong.split('`').nth(1).and_then(|name| self.rest.iter().find(|(key, ..)| key == name));
                let spot = named.map(|(_, _, spot)| spot.clone()).unwrap_or_default();
                problems.add(spot.problem(Rule::Form, format!("this is no plan: {wrong}")));
                None
            }
        }
    }
}

impl Workflow for Template {
    fn name(&self) -> &str {
        &self.name
    }

    fn title(&self) -> Option<&str> {
        self.title.as_deref()
    }

    fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn input_schema(&self) -> Value {
        let mut schema = self.inputs.schema().clone();
        if let Some(map) = schema.as_object_mut() {
            map.insert("title".into(), Value::from(self.name.as_str()));
            let inputs: Vec<_> = self.examples.iter().map(|example| example.input.clone()).collect();
            if !inputs.is_empty() {
                map.insert("examples".into(), Value::Array(inputs));
            }
        }
        schema
    }

    fn source(&self) -> Option<&str> {
        Some(&self.source)
    }

    fn prepare(&self, input: &Value) -> Result<Prepared, Vec<Problem>> {
        let input = self.inputs.accept(input)?;
        let mut problems = Problems::default();
        let made = self.make(&input, &mut Meter::default(), &mut problems);
        match made {
            Some((prepared, _)) if prepared.plan.steps.is_empty() && !problems.any() => {
                Err(vec![nothing_to_do()])
            }
            Some((prepared, _)) => problems.into_result(prepared),
            None => Err(problems.into_list()),
        }
    }

    fn checked(&self, input: &Value, catalog: &dyn Catalog) -> Result<Arc<Plan>, Vec<Problem>> {
        Plan::check(self.prepare(input)?.plan, catalog).map_err(of_plan)
    }
}

pub(crate) fn nothing_to_do() -> Problem {
    Problem::new(Rule::Limit, "steps", "for this input there is nothing to do: every step is left out")
}

/// A plan's own fields read no step.
struct NoOutputs;

impl Outputs for NoOutputs {
    fn steps(&mut self, reference: &Reference, _: &mut Meter, problems: &mut Problems) -> Targets {
        problems.add(reference.spot.problem(Rule::Reference, "only steps read the outputs of steps"));
        None
    }
}

fn as_text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// The words of a file; all others are those of a plan.
const OWN: [&str; 9] =
    ["workflow", "title", "description", "input", "input_schema", "examples", "run", "steps", "parent"];

fn read(node: &Node, source: &str, problems: &mut Problems) -> Option<Template> {
    let Kind::Map(_) = &node.kind else {
        let message =
            format!("a workflow is a map with \"workflow\", \"input\" and \"steps\", not {}", node.what());
        problems.add(Problem::new(Rule::Form, "", message).at(node.mark));
        return None;
    };
    let name = name(node, problems);
    let description = text(node, "description", 4_000, problems);
    let inputs = match (node.get("input"), node.get("input_schema")) {
        (Some(short), None) => Inputs::read_short(short, problems),
        (None, Some(schema)) => Inputs::read_schema(schema, problems),
        (None, None) => Inputs::none(),
        (Some(_), Some(schema)) => {
            let message =
                "there are both \"input\" and \"input_schema\"; they say the same in two ways, so give one";
            problems.add(Problem::new(Rule::Schema, "input_schema", message).at(schema.mark));
            None
        }
    };
    // Without inputs every expression would be wrong for the same reason.
    let inputs = inputs?;
    let names = Names::default().with("inputs", Some(inputs.schema().clone()));
    let mut found = Vec::new();
    let mut rest = Vec::new();
    for (key, field) in node.entries().iter().filter(|(key, _)| !OWN.contains(&key.text.as_str())) {
        let form = Form::read(field, &key.text, true, &mut |e, s| names.judge(e, s, &mut found), problems);
        rest.push((key.text.clone(), form, Spot { mark: key.mark, place: key.text.clone() }));
    }
    if let Some(title) = node.get("title") {
        let form = Form::read(title, "title", false, &mut |e, s| names.judge(e, s, &mut found), problems);
        rest.push(("title".into(), form, Spot::of(title, "title")));
    }
    if let Some((key, _)) = node.entries().iter().find(|(key, _)| key.text == "parent") {
        let message = "names a \"parent\"; the engine does that for runs that are steps";
        problems.add(Problem::new(Rule::Form, "parent", message).at(key.mark));
    }
    let outer = Node {
        mark: node.mark,
        kind: Kind::Map(
            node.entries().iter().filter(|(key, _)| key.text == "override_alone").cloned().collect(),
        ),
    };
    only_words(&outer, "", problems);
    let (key, labels) = run(node, &names, &mut found, problems);
    problems.extend(found);
    let examples = examples(node, problems);
    let outline = match node.get("steps") {
        Some(steps) => Outline::read(steps, &names, problems),
        None => {
            problems.add(Problem::new(Rule::Form, "", "a workflow has \"steps\"").at(node.mark));
            return None;
        }
    };
    let version = Sha256::digest(canonical(&node.value()).as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let title = node.get("title").and_then(Node::text).map(str::to_owned);
    Some(Template {
        name: name?,
        title,
        description,
        version,
        source: source.into(),
        inputs,
        examples,
        key,
        labels,
        rest,
        outline,
    })
}

fn name(node: &Node, problems: &mut Problems) -> Option<String> {
    let good = |text: &&str| {
        let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        starts
            && text.len() <= plan_limits::NAME
            && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    let given = node.get("workflow");
    if let Some(name) = given.and_then(Node::text).filter(good) {
        return Some(name.to_owned());
    }
    let message = format!(
        "a workflow has its name under \"workflow\": it starts with a letter or a digit, goes on with letters, digits, '-', '_' or '.', and has at most {} characters",
        plan_limits::NAME
    );
    problems.add(Problem::new(Rule::Name, "workflow", message).at(given.unwrap_or(node).mark));
    None
}

fn text(node: &Node, key: &str, most: usize, problems: &mut Problems) -> Option<String> {
    let field = node.get(key)?;
    match field.text() {
        Some(text) if text.len() <= most => Some(text.to_owned()),
        Some(text) => {
            let message = format!("has {} bytes; at most {most} are taken", text.len());
            problems.add(Problem::new(Rule::Limit, key, message).at(field.mark));
            None
        }
        None => {
            problems.add(
                Problem::new(Rule::Form, key, format!("this is a text, not {}", field.what())).at(field.mark),
            );
            None
        }
    }
}

/// What a run of it is submitted with.
fn run(
    node: &Node,
    names: &Names,
    found: &mut Vec<Problem>,
    problems: &mut Problems,
) -> (Option<Form>, Vec<(String, Form)>) {
    let mut key = None;
    let mut labels = Vec::new();
    let Some(run) = node.get("run") else { return (key, labels) };
    if !matches!(run.kind, Kind::Map(_)) {
        problems.add(
            Problem::new(Rule::Form, "run", "\"run\" is a map with \"key\" and \"labels\"").at(run.mark),
        );
    }
    for (field, value) in run.entries() {
        match field.text.as_str() {
            "key" => {
                key =
                    Some(Form::read(value, "run.key", false, &mut |e, s| names.judge(e, s, found), problems))
            }
            "labels" => {
                for (label, value) in value.entries() {
                    let place = format!("run.labels.{}", label.text);
                    let form =
                        Form::read(value, &place, false, &mut |e, s| names.judge(e, s, found), problems);
                    labels.push((label.text.clone(), form));
                }
            }
            other => {
                let message = format!("\"{}\" is no field of \"run\"; there are key, labels", clipped(other));
                problems.add(Problem::new(Rule::Form, "run", message).at(field.mark));
            }
        }
    }
    (key, labels)
}

fn examples(node: &Node, problems: &mut Problems) -> Vec<Example> {
    let Some(examples) = node.get("examples") else { return Vec::new() };
    let Kind::List(items) = &examples.kind else {
        problems.add(Problem::new(Rule::Form, "examples", "\"examples\" is a list").at(examples.mark));
        return Vec::new();
    };
    if items.len() > limits::TRIES {
        let message = format!("there are {} examples; at most {} are taken", items.len(), limits::TRIES);
        problems.add(Problem::new(Rule::Limit, "examples", message).at(examples.mark));
        return Vec::new();
    }
    let mut found = Vec::new();
    for (n, item) in items.iter().enumerate() {
        let spot = Spot::of(item, format!("examples[{n}]"));
        let known: BTreeSet<_> = item.entries().iter().map(|(key, _)| key.text.as_str()).collect();
        let Some(input) =
            item.get("input").filter(|_| known.iter().all(|key| matches!(*key, "title" | "input")))
        else {
            problems.add(spot.problem(Rule::Form, "an example has an \"input\", and perhaps a \"title\""));
            continue;
        };
        let title = item.get("title").and_then(Node::text).map(str::to_owned);
        found.push(Example {
            title,
            input: input.value(),
            spot: Spot { mark: input.mark, place: format!("examples[{n}].input") },
        });
    }
    found
}
