//! Values with expressions in them, and how they are filled in.
//!
//! `${…}` in a text is replaced by what the expression gives; a text that is nothing else becomes the value itself, a
//! number stays a number. What is filled in is never looked at again: an input that holds `${` or `$output` stays text,
//! or is refused.

use serde_json::{Map, Value, json};

use crate::document::{Kind, Node};
use crate::expression::{Expression, Meter, Scope};
use crate::limits;
use crate::problem::{Mark, Problem, Problems, Rule, clipped};

/// A value as it is written.
#[derive(Debug)]
pub(crate) enum Form {
    Fixed(Value),
    /// One expression, which gives the whole value.
    Whole(Written),
    Text(Vec<Part>),
    List(Vec<Form>),
    Map(Vec<(String, Form)>),
    /// `{$output: "step/pointer", default: …}`.
    Output {
        reference: Reference,
        pointer: String,
        default: Option<Box<Form>>,
    },
}

#[derive(Debug)]
pub(crate) enum Part {
    Text(String),
    Written(Written),
}

/// An expression and where it stands.
#[derive(Debug)]
pub(crate) struct Written {
    pub expression: Expression,
    pub spot: Spot,
}

/// A place of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spot {
    pub mark: Option<Mark>,
    pub place: String,
}

/// What one step says of another: the name as it is written, or the full name of one of many, put together.
#[derive(Debug)]
pub(crate) struct Reference {
    pub text: Vec<Part>,
    pub spot: Spot,
}

/// The steps that a reference means, and whether they are a list.
pub(crate) type Targets = Option<(Vec<Option<String>>, bool)>;

/// Turns references into names of steps while a value is filled in.
pub(crate) trait Outputs {
    /// The steps that are meant; `None` in place of one that is left out. The flag: it is a list of its own, since the
    /// step stands in an `each`.
    fn steps(&mut self, reference: &Reference, meter: &mut Meter, problems: &mut Problems) -> Targets;
}

impl Spot {
    pub(crate) fn of(node: &Node, place: impl Into<String>) -> Self {
        Self { mark: node.mark, place: place.into() }
    }

    pub(crate) fn problem(&self, rule: Rule, message: impl Into<String>) -> Problem {
        Problem::new(rule, self.place.clone(), message).at(self.mark)
    }
}

impl Reference {
    /// The name, if it has no expression.
    pub(crate) fn plain(&self) -> Option<&str> {
        match self.text.as_slice() {
            [Part::Text(name)] => Some(name),
            _ => None,
        }
    }

    /// Reads `step` or `copy-${disk.slot}`.
    pub(crate) fn read(
        text: &str,
        spot: Spot,
        names: &mut dyn FnMut(&Expression, &Spot),
        problems: &mut Problems,
    ) -> Option<Self> {
        match parts(text, &spot, names) {
            Ok(text) => Some(Self { text, spot }),
            Err(problem) => {
                problems.add(problem);
                None
            }
        }
    }
}

impl Written {
    pub(crate) fn read(
        source: &str,
        spot: Spot,
        names: &mut dyn FnMut(&Expression, &Spot),
    ) -> Result<Self, Problem> {
        match Expression::read(source) {
            Ok(expression) => {
                names(&expression, &spot);
                Ok(Self { expression, spot })
            }
            Err(wrong) => {
                Err(spot.problem(Rule::Expression, format!("\"{}\": {wrong}", clipped(source.trim()))))
            }
        }
    }

    pub(crate) fn value(&self, scope: &Scope, meter: &mut Meter) -> Result<Value, Problem> {
        self.expression.value(scope, meter).map_err(|wrong| self.problem(&wrong))
    }

    pub(crate) fn problem(&self, wrong: &str) -> Problem {
        let source = clipped(self.expression.source());
        self.spot.problem(Rule::Expression, format!("\"{source}\": {wrong}"))
    }
}

impl Form {
    /// Reads a value. `names` hears of every expression; `outputs`: whether `$output` names steps of this file.
    pub(crate) fn read(
        node: &Node,
        place: &str,
        outputs: bool,
        names: &mut dyn FnMut(&Expression, &Spot),
        problems: &mut Problems,
    ) -> Form {
        match &node.kind {
            Kind::Plain(value) => Form::Fixed(value.clone()),
            Kind::Text(text) => match parts(text, &Spot::of(node, place), names) {
                Ok(parts) => Form::of_parts(parts),
                Err(problem) => {
                    problems.add(problem);
                    Form::Fixed(Value::Null)
                }
            },
            Kind::List(items) => {
                let items = items.iter().enumerate();
                Form::List(
                    items
                        .map(|(n, item)| Form::read(item, &format!("{place}[{n}]"), outputs, names, problems))
                        .collect(),
                )
            }
            Kind::Map(_) if outputs && node.get("$output").is_some() => {
                Form::output(node, place, names, problems)
            }
            Kind::Map(entries) => Form::Map(
                entries
                    .iter()
                    .map(|(key, item)| {
                        let place = format!("{place}.{}", key.text);
                        (key.text.clone(), Form::read(item, &place, outputs, names, problems))
                    })
                    .collect(),
            ),
        }
    }

    fn of_parts(mut parts: Vec<Part>) -> Form {
        if !parts.iter().any(|part| matches!(part, Part::Written(_))) {
            let text =
                parts.into_iter().map(|part| if let Part::Text(text) = part { text } else { String::new() });
            return Form::Fixed(Value::from(text.collect::<String>()));
        }
        match (parts.len(), parts.pop()) {
            (1, Some(Part::Written(written))) => Form::Whole(written),
            (_, last) => {
                parts.extend(last);
                Form::Text(parts)
            }
        }
    }

    fn output(
        node: &Node,
        place: &str,
        names: &mut dyn FnMut(&Expression, &Spot),
        problems: &mut Problems,
    ) -> Form {
        let nothing = Form::Fixed(Value::Null);
        if let Some((key, _)) =
            node.entries().iter().find(|(key, _)| !matches!(key.text.as_str(), "$output" | "default"))
        {
            let message =
                format!("\"$output\" stands alone or with \"default\", not with \"{}\"", clipped(&key.text));
            problems.add(Problem::new(Rule::Reference, place, message).at(key.mark));
            return nothing;
        }
        let Some(target) = node.get("$output") else { return nothing };
        let spot = Spot::of(target, place);
        let Some(text) = target.text() else {
            problems.add(spot.problem(Rule::Reference, "\"$output\" is a text such as \"step/field\""));
            return nothing;
        };
        let default = node
            .get("default")
            .map(|node| Form::read(node, &format!("{place}.default"), false, names, problems));
        // Expressions choose the step, never the place in its output: what was given may not lead elsewhere.
        let (name, pointer) = match split(text) {
            Some(slash) => (text.get(..slash).unwrap_or_default(), text.get(slash..).unwrap_or_default()),
            None => (text, ""),
        };
        if pointer.contains("${") {
            problems.add(spot.problem(
                Rule::Reference,
                "an expression may choose the step of an output, not the place in it",
            ));
            return nothing;
        }
        match Reference::read(name, spot, names, problems) {
            Some(reference) => {
                Form::Output { reference, pointer: pointer.to_owned(), default: default.map(Box::new) }
            }
            None => nothing,
        }
    }

    /// The value, with everything filled in. What is wrong is told, and stands as null.
    pub(crate) fn fill(
        &self,
        scope: &Scope,
        meter: &mut Meter,
        outputs: &mut dyn Outputs,
        problems: &mut Problems,
    ) -> Value {
        match self {
            Form::Fixed(value) => value.clone(),
            Form::Whole(written) => written.value(scope, meter).unwrap_or_else(|problem| {
                problems.add(problem);
                Value::Null
            }),
            Form::Text(parts) => Value::from(text(parts, scope, meter).unwrap_or_else(|problem| {
                problems.add(problem);
                String::new()
            })),
            Form::List(items) => {
                items.iter().map(|item| item.fill(scope, meter, outputs, problems)).collect()
            }
            Form::Map(entries) => {
                let filled = entries
                    .iter()
                    .map(|(key, item)| (key.clone(), item.fill(scope, meter, outputs, problems)));
                Value::Object(filled.collect::<Map<_, _>>())
            }
            Form::Output { reference, pointer, default } => {
                // In an undo: the step that is undone.
                if reference.plain().is_some_and(str::is_empty) {
                    return json!({ "$output": pointer });
                }
                let Some((steps, is_list)) = outputs.steps(reference, meter, problems) else {
                    return Value::Null;
                };
                let mut values = Vec::new();
                for step in steps {
                    match (step, default) {
                        (Some(step), _) => values.push(json!({ "$output": format!("{step}{pointer}") })),
                        (None, Some(default)) => values.push(default.fill(scope, meter, outputs, problems)),
                        (None, None) if is_list => {}
                        (None, None) => {
                            let message = "reads a step that is left out for this input; give a \"default\" beside \"$output\"";
                            problems.add(reference.spot.problem(Rule::Reference, message));
                        }
                    }
                }
                if is_list { Value::Array(values) } else { values.pop().unwrap_or(Value::Null) }
            }
        }
    }
}

/// Puts a text together.
pub(crate) fn text(parts: &[Part], scope: &Scope, meter: &mut Meter) -> Result<String, Problem> {
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Written(written) => match written.value(scope, meter)? {
                Value::String(text) => out.push_str(&text),
                value @ (Value::Bool(_) | Value::Number(_)) => out.push_str(&value.to_string()),
                Value::Null => {
                    return Err(written.problem("its value is nothing, and cannot be a part of a text"));
                }
                _ => {
                    return Err(
                        written.problem("its value is a list or a map, and cannot be a part of a text")
                    );
                }
            },
        }
        if out.len() > limits::TEXT {
            let spot =
                parts.iter().find_map(|part| if let Part::Written(w) = part { Some(&w.spot) } else { None });
            let message = format!("the text has more than {} bytes once it is filled in", limits::TEXT);
            return Err(spot.cloned().unwrap_or_default().problem(Rule::Limit, message));
        }
    }
    Ok(out)
}

/// The first `/` that is not in an expression.
fn split(text: &str) -> Option<usize> {
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        let slash = rest.find('/');
        match (rest.find("${"), slash) {
            (Some(open), Some(slash)) if open < slash => at += open + 2 + end(rest.get(open + 2..)?)? + 1,
            (_, slash) => return slash.map(|slash| at + slash),
        }
    }
}

/// Cuts a text at its expressions. `$${` stands for `${`.
pub(crate) fn parts(
    text: &str,
    spot: &Spot,
    names: &mut dyn FnMut(&Expression, &Spot),
) -> Result<Vec<Part>, Problem> {
    let mut out = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(open) = rest.find("${") {
        let before = rest.get(..open).unwrap_or_default();
        let inside = rest.get(open + 2..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            plain.push_str(before);
            plain.push_str("${");
            rest = inside;
            continue;
        }
        plain.push_str(before);
        let Some(close) = end(inside) else {
            let message =
                format!("\"${{{}\" has no end; for the text itself write \"$${{\"", clipped(inside));
            return Err(spot.problem(Rule::Expression, message));
        };
        if !plain.is_empty() {
            out.push(Part::Text(std::mem::take(&mut plain)));
        }
        out.push(Part::Written(Written::read(inside.get(..close).unwrap_or_default(), spot.clone(), names)?));
        if out.len() > limits::WORDS {
            return Err(spot.problem(Rule::Limit, format!("a text has at most {} parts", limits::WORDS)));
        }
        rest = inside.get(close + 1..).unwrap_or_default();
    }
    plain.push_str(rest);
    if !plain.is_empty() || out.is_empty() {
        out.push(Part::Text(plain));
    }
    Ok(out)
}

/// Where the expression that begins here ends: at its `}`, not at one of a map or of a text in it.
fn end(inside: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, c) in inside.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;

    struct NoSteps;

    impl Outputs for NoSteps {
        fn steps(&mut self, _: &Reference, _: &mut Meter, _: &mut Problems) -> Targets {
            None
        }
    }

    fn filled(yaml: &str) -> Result<Value, Vec<Problem>> {
        let mut problems = Problems::default();
        let form =
            Form::read(&document::read(yaml).map_err(|p| vec![p])?, "x", true, &mut |_, _| {}, &mut problems);
        let scope = Scope::default()
            .with("inputs", &json!({ "n": 3, "s": "${inputs.n}", "l": [1], "o": { "a": 1 }, "none": null }));
        let value = form.fill(&scope, &mut Meter::default(), &mut NoSteps, &mut problems);
        problems.into_result(value)
    }

    #[test]
    fn a_whole_expression_keeps_its_type_and_a_part_becomes_text() {
        let value = filled("a: ${inputs.n}\nb: v${inputs.n}.${inputs.n + 1}\nc: ${inputs.l}\nd: [\"${ {'x': inputs.o} }\"]\n").unwrap();
        assert_eq!(value, json!({ "a": 3, "b": "v3.4", "c": [1], "d": [{ "x": { "a": 1 } }] }));
    }

    #[test]
    fn what_was_filled_in_is_not_looked_at_again() {
        assert_eq!(filled("${inputs.s}").unwrap(), json!("${inputs.n}"));
        assert_eq!(filled("$${inputs.n} and $5").unwrap(), json!("${inputs.n} and $5"));
    }

    #[test]
    fn what_cannot_be_a_part_of_a_text_is_refused() {
        for yaml in ["x${inputs.l}", "x${inputs.none}", "x${inputs.o}", "${inputs.n", "${}", "a ${'}'} ${"] {
            assert!(filled(yaml).is_err(), "{yaml}");
        }
        assert_eq!(filled("\"${'}'}${'a\\\\'b'}\"").unwrap(), json!("}a'b"));
    }
}
