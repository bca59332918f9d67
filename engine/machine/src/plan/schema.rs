//! What JSON Schemas let us say about inputs and bindings before anything runs.
//!
//! Outputs are not known yet when a plan is checked, so three questions are asked of the schemas alone: can an
//! output have this place, can this input take what may stand there, and is the rest of the input right?

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::problem::tamed;
use super::{ActivitySpec, limits};
use crate::json::escape;

/// What may stand at a place.
pub(super) struct Place {
    /// The schema allows the place to be there.
    pub possible: bool,
    /// It may also be missing.
    optional: bool,
    /// The JSON types that may stand there; `None` if the schema does not say.
    types: Option<Vec<String>>,
}

/// Looks along a JSON pointer into a schema.
pub(super) fn at(schema: &Value, pointer: &str) -> Place {
    let mut at = vec![schema];
    let mut optional = false;
    for segment in pointer.split('/').skip(1) {
        let segment = segment.replace("~1", "/").replace("~0", "~");
        let mut next = Vec::new();
        for node in at.iter().flat_map(|node| variants(schema, node, 0)) {
            optional |= !required(node, &segment);
            next.extend(child(node, &segment));
        }
        if next.is_empty() {
            return Place { possible: false, optional, types: None };
        }
        at = next;
    }
    let mut types = Vec::new();
    for node in at.iter().flat_map(|node| variants(schema, node, 0)) {
        match own_types(node) {
            Some(some) => {
                types.extend(some.into_iter().filter(|one| !types.contains(one)).collect::<Vec<_>>())
            }
            None => return Place { possible: true, optional, types: None },
        }
    }
    Place { possible: true, optional, types: Some(types) }
}

/// An input's schema, compiled.
pub(super) struct Shape<'a> {
    schema: &'a Value,
    validator: Arc<Compiled>,
}

type Compiled = Result<jsonschema::Validator, String>;
type Known = (Value, Arc<Compiled>);

/// Those of activities' inputs, by the activities' names: to compile them was half the work of checking a small plan, and
/// they are the same from plan to plan.
static COMPILED: LazyLock<Mutex<HashMap<String, Known>>> = LazyLock::new(Mutex::default);
/// No process has so many activities, but its tests may.
const MOST: usize = 1_000;

impl<'a> Shape<'a> {
    /// Of the input of an activity.
    pub(super) fn of(activity: &'a ActivitySpec) -> Self {
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, validator)) = compiled.get(&activity.name)
            && *of == activity.input
        {
            return Self { schema: &activity.input, validator: Arc::clone(validator) };
        }
        let shape = Self::new(&activity.input);
        if compiled.len() >= MOST {
            compiled.clear();
        }
        compiled.insert(activity.name.clone(), (activity.input.clone(), Arc::clone(&shape.validator)));
        shape
    }

    pub(super) fn new(schema: &'a Value) -> Self {
        Self {
            schema,
            validator: Arc::new(jsonschema::validator_for(schema).map_err(|error| tamed(&error.to_string()))),
        }
    }

    /// What is wrong with the schema itself.
    pub(super) fn unusable(&self) -> Option<&str> {
        (*self.validator).as_ref().err().map(String::as_str)
    }

    /// Whether the input at this place takes what may come; otherwise why not.
    pub(super) fn takes(&self, pointer: &str, output: &Place, may_miss: bool) -> Option<String> {
        let wanted = at(self.schema, pointer);
        let wanted = wanted.possible.then_some(wanted.types)??;
        let fits =
            |given: &str| wanted.iter().any(|want| want == given || (want == "number" && given == "integer"));
        if may_miss && !fits("null") {
            return Some(
                "the output may be missing, and then null stands here, which the activity does not take"
                    .into(),
            );
        }
        if output.optional && !fits("null") {
            return Some(
                "it may be missing, and then null stands here, which the activity does not take".into(),
            );
        }
        let given = output.types.as_ref()?;
        if let Some(bad) = given.iter().find(|given| !fits(given)) {
            return Some(format!("it may give {bad}, but {} is wanted", wanted.join(" or ")));
        }
        None
    }

    /// What is wrong with an input, wherever no binding stands: the first things, if there are very many.
    pub(super) fn problems(&self, value: &Value, bound: &HashSet<String>) -> Vec<(String, String)> {
        let (mut found, mut closed) = (Vec::new(), Vec::new());
        if let Ok(validator) = &*self.validator {
            for error in validator.iter_errors(value) {
                let at = error.instance_path().to_string();
                // A binding is an object now and something else later: what is said of it means nothing, nor
                // does a verdict on alternatives around it.
                let keyword = error.schema_path().to_string();
                let alternatives = keyword.ends_with("anyOf") || keyword.ends_with("oneOf");
                if about_binding(&at, bound) || (alternatives && bound.iter().any(|place| within(place, &at)))
                {
                    continue;
                }
                // `unknown_fields` says it with the names that there are, unless alternatives keep it from knowing.
                if keyword.ends_with("additionalProperties") {
                    if closed.len() < limits::PROBLEMS {
                        closed.push((at, tamed(&error.to_string())));
                    }
                    continue;
                }
                found.push((at, tamed(&error.to_string())));
                if found.len() >= limits::PROBLEMS {
                    return found;
                }
            }
        }
        let known = found.len();
        self.unknown_fields(value, bound, &mut found);
        let named: Vec<_> = found.iter().skip(known).map(|(at, _)| at.clone()).collect();
        closed.retain(|(at, _)| !named.iter().any(|field| within(field, at)));
        closed.truncate(limits::PROBLEMS.saturating_sub(found.len()));
        found.extend(closed);
        found
    }

    /// A schema without "additionalProperties" lets misspelt fields pass; we do not.
    fn unknown_fields(&self, value: &Value, bound: &HashSet<String>, found: &mut Vec<(String, String)>) {
        let mut todo = vec![(value, String::new(), vec![self.schema])];
        while let Some((value, pointer, schemas)) = todo.pop() {
            if bound.contains(&pointer) || found.len() >= limits::PROBLEMS {
                continue;
            }
            let mut nodes: Vec<_> = schemas.iter().flat_map(|node| variants(self.schema, node, 0)).collect();
            // Alternatives that lead to the same place are one; else their number doubles with each level.
            let mut seen = HashSet::new();
            nodes.retain(|node| seen.insert(std::ptr::from_ref(*node)));
            // Where the schema says nothing, nothing below can be misspelt.
            if nodes.iter().all(|node| node.is_empty()) {
                continue;
            }
            match value {
                Value::Object(map) => {
                    for (key, item) in map {
                        let next: Vec<_> = nodes.iter().flat_map(|node| child(node, key)).collect();
                        let place = format!("{pointer}/{}", escape(key));
                        if next.is_empty() && nodes.iter().any(|node| lists_fields(node)) {
                            let known: Vec<_> = nodes
                                .iter()
                                .filter_map(|node| node.get("properties")?.as_object())
                                .flat_map(Map::keys)
                                .map(String::as_str)
                                .collect();
                            let known = tamed(&known.join(", "));
                            found.push((place, format!("is no field of this input; there are {known}")));
                            if found.len() >= limits::PROBLEMS {
                                return;
                            }
                        } else if item.is_object() || item.is_array() {
                            todo.push((item, place, next));
                        }
                    }
                }
                Value::Array(items) => {
                    for (n, item) in items.iter().enumerate() {
                        if item.is_object() || item.is_array() {
                            let next: Vec<_> =
                                nodes.iter().flat_map(|node| child(node, &n.to_string())).collect();
                            todo.push((item, format!("{pointer}/{n}"), next));
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A schema, for judging values by it.
#[derive(Debug)]
pub struct Fit(jsonschema::Validator);

impl Fit {
    /// `None` if it is no schema.
    pub fn to(schema: &Value) -> Option<Self> {
        jsonschema::validator_for(schema).ok().map(Self)
    }

    /// Why a value does not fit.
    pub fn misfit(&self, value: &Value) -> Option<String> {
        let error = self.0.iter_errors(value).next()?;
        Some(tamed(&format!("at \"{}\" {error}", error.instance_path())))
    }
}

fn lists_fields(node: &Map<String, Value>) -> bool {
    node.contains_key("properties") || node.get("additionalProperties") == Some(&Value::Bool(false))
}

/// Whether a place is that of a binding or lies below one.
fn about_binding(place: &str, bound: &HashSet<String>) -> bool {
    let mut at = place;
    loop {
        if bound.contains(at) {
            return true;
        }
        match at.rfind('/') {
            Some(slash) => at = at.get(..slash).unwrap_or_default(),
            None => return false,
        }
    }
}

/// Whether `place` lies at or below `outer`.
fn within(place: &str, outer: &str) -> bool {
    place.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The object schemas that a schema may mean: itself, behind its `$ref`, and its alternatives.
fn variants<'a>(root: &'a Value, node: &'a Value, depth: usize) -> Vec<&'a Map<String, Value>> {
    let Some(map) = node.as_object() else {
        // `true` takes anything, as `{}` does.
        return if *node == Value::Bool(true) { vec![&NOTHING_SAID] } else { Vec::new() };
    };
    // Schemas may refer to themselves.
    if depth > 16 {
        return Vec::new();
    }
    let mut found = Vec::new();
    if let Some(target) =
        map.get("$ref").and_then(Value::as_str).and_then(|r| root.pointer(r.strip_prefix('#')?))
    {
        found.extend(variants(root, target, depth + 1));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for alternative in map.get(key).and_then(Value::as_array).into_iter().flatten() {
            found.extend(variants(root, alternative, depth + 1));
        }
    }
    if found.is_empty() || map.contains_key("properties") || map.contains_key("type") {
        found.push(map);
    }
    found
}

static ANYTHING: Value = Value::Bool(true);
static NOTHING_SAID: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// The schema of a field or an element; nothing if the schema rules it out.
fn child<'a>(node: &'a Map<String, Value>, segment: &str) -> Option<&'a Value> {
    let types = own_types(node);
    let may_be = |wanted: &str| types.as_ref().is_none_or(|types| types.iter().any(|t| t == wanted));
    if may_be("object") {
        if let Some(field) = node.get("properties").and_then(|p| p.get(segment)) {
            return Some(field);
        }
        match node.get("additionalProperties") {
            Some(Value::Bool(false)) => {}
            Some(more) => return Some(more),
            None if !node.contains_key("properties")
                && !node.contains_key("items")
                && !node.contains_key("prefixItems") =>
            {
                return Some(&ANYTHING);
            }
            None => {}
        }
    }
    if may_be("array")
        && let Ok(n) = segment.parse::<usize>()
    {
        if let Some(item) = node.get("prefixItems").and_then(Value::as_array).and_then(|items| items.get(n)) {
            return Some(item);
        }
        return node.get("items").or(Some(&ANYTHING)).filter(|items| **items != Value::Bool(false));
    }
    None
}

fn required(node: &Map<String, Value>, segment: &str) -> bool {
    let listed = node.get("required").and_then(Value::as_array);
    let least = node.get("minItems").and_then(Value::as_u64);
    listed.is_some_and(|fields| fields.iter().any(|field| field == segment))
        || segment.parse::<u64>().is_ok_and(|n| least.is_some_and(|least| n < least))
}

fn own_types(node: &Map<String, Value>) -> Option<Vec<String>> {
    if let Some(value) = node.get("const") {
        return Some(vec![type_of(value).into()]);
    }
    match node.get("type") {
        Some(Value::String(one)) => Some(vec![one.clone()]),
        Some(Value::Array(many)) => Some(many.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        _ => node
            .get("enum")
            .and_then(Value::as_array)
            .map(|values| values.iter().map(|v| type_of(v).into()).collect()),
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
