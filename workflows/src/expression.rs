//! Expressions: questions about the inputs, with an answer or an error, soon.
//!
//! The language is that of Jinja's expressions, read and evaluated by `minijinja`. What makes it total: it has no loops,
//! no definitions and no names for results in between, so an expression takes as many steps as it has words. What
//! makes it bounded: words and nesting are counted before the library sees them, what multiplies text is left out, what
//! is left of its functions gives at most [`limits::TEXT`] bytes, and a meter counts what all expressions of one
//! expansion read. See docs/decisions/0007-expressions-and-yaml.md.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, filters, tests};
use serde_json::{Map, Number, Value as Json};

use crate::limits;
use crate::problem::clipped;

/// An expression that can be evaluated.
#[derive(Debug)]
pub(crate) struct Expression {
    source: String,
    program: minijinja::Expression<'static, 'static>,
    /// Every mention of a name from outside: `disk.size` is `["disk", "size"]`.
    mentions: Vec<Vec<String>>,
    words: usize,
}

/// The names that an expression may use, and what they stand for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    names: BTreeMap<String, Named>,
}

#[derive(Clone, Debug)]
struct Named {
    value: Value,
    bytes: usize,
    /// What its fields take, so that a mention of one is not counted as a mention of all.
    fields: BTreeMap<String, usize>,
}

/// Counts what the expressions of one expansion read and make.
#[derive(Debug)]
pub(crate) struct Meter {
    left: usize,
}

impl Default for Meter {
    fn default() -> Self {
        Self { left: limits::WORK }
    }
}

impl Meter {
    pub(crate) fn used(&self) -> usize {
        limits::WORK - self.left
    }

    pub(crate) fn charge(&mut self, work: usize) -> Result<(), String> {
        match self.left.checked_sub(work) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err("this workflow reads and makes too much for one input".into())
            }
        }
    }
}

impl Scope {
    pub(crate) fn with(mut self, name: &str, value: &Json) -> Self {
        let fields =
            value.as_object().map(|map| map.iter().map(|(key, v)| (key.clone(), bytes(v))).collect());
        let named = Named { value: of_json(value), bytes: bytes(value), fields: fields.unwrap_or_default() };
        self.names.insert(name.to_owned(), named);
        self
    }
}

fn bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len() + 8,
        Json::Array(items) => items.iter().map(bytes).sum::<usize>() + 8,
        Json::Object(map) => map.iter().map(|(key, value)| key.len() + 8 + bytes(value)).sum::<usize>() + 8,
        _ => 8,
    }
}

impl Expression {
    /// Reads an expression.
    pub(crate) fn read(source: &str) -> Result<Self, String> {
        let source = source.trim();
        let tokens = scan(source)?;
        judge(&tokens)?;
        let program = calmly(|| ENVIRONMENT.compile_expression_owned(source.to_owned()))?;
        Ok(Self { source: source.to_owned(), program, mentions: mentions(&tokens), words: tokens.len() })
    }

    /// As it was written.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// The names from outside that it mentions, each with the fields that follow.
    pub(crate) fn mentions(&self) -> &[Vec<String>] {
        &self.mentions
    }

    /// The one name, with its fields, that it consists of, if it is nothing else.
    pub(crate) fn path(&self) -> Option<&[String]> {
        let [only] = self.mentions.as_slice() else { return None };
        (self.source == only.join(".")).then_some(only.as_slice())
    }

    /// Its value.
    pub(crate) fn value(&self, scope: &Scope, meter: &mut Meter) -> Result<Json, String> {
        let mut work = self.words * 16;
        for mention in &self.mentions {
            let Some(named) = mention.first().and_then(|name| scope.names.get(name)) else { continue };
            let field = mention.get(1).and_then(|field| named.fields.get(field));
            work += field.copied().unwrap_or(named.bytes);
        }
        meter.charge(work)?;
        let context: BTreeMap<&str, Value> =
            scope.names.iter().map(|(name, named)| (name.as_str(), named.value.clone())).collect();
        let mut room = limits::RESULT;
        // What is lazy is worked out while it is copied.
        let value =
            calmly(|| self.program.eval(Value::from(context)).map(|value| json(&value, &mut room, 0)))??;
        meter.charge(limits::RESULT - room)?;
        Ok(value)
    }
}

/// Calls the library. It has been seen to panic on a short expression (`''[::-1]`, which is refused now), so there may
/// be others: whoever submits a run must not end more than the answer to it. Nothing is shared with what is called.
fn calmly<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(answer) => answer.map_err(|error| said(&error)),
        Err(_) => Err("the library that evaluates it has failed; say it in another way".into()),
    }
}

/// What the library says, without what it says of templates.
fn said(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::UndefinedError, None) => "something that it names is not there".into(),
        (ErrorKind::OutOfFuel, _) => "it takes too many steps".into(),
        (ErrorKind::SyntaxError, Some(detail)) => format!("it cannot be read: {detail}"),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

fn of_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(truth) => Value::from(*truth),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(small), _, _) => Value::from(small),
            (_, Some(large), _) => Value::from(large),
            (_, _, float) => Value::from(float.unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(of_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from(
            map.iter().map(|(key, value)| (key.as_str(), of_json(value))).collect::<BTreeMap<_, _>>(),
        ),
    }
}

/// A result as JSON, if it is small enough and JSON has it.
fn json(value: &Value, room: &mut usize, depth: usize) -> Result<Json, String> {
    let mut take = |n: usize| {
        *room = room.checked_sub(n).ok_or(format!("its value has more than {} bytes", limits::RESULT))?;
        Ok::<_, String>(())
    };
    if depth > limits::INPUT_DEPTH {
        return Err(format!("its value is nested more than {} deep", limits::INPUT_DEPTH));
    }
    take(8)?;
    Ok(match value.kind() {
        ValueKind::Undefined => return Err("something that it names is not there".into()),
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number => number(value)?,
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            take(text.len())?;
            Json::from(text)
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut items = Vec::new();
            for item in value.try_iter().map_err(|error| said(&error))? {
                items.push(json(&item, room, depth + 1)?);
            }
            Json::Array(items)
        }
        ValueKind::Map => {
            let mut map = Map::new();
            for key in value.try_iter().map_err(|error| said(&error))? {
                let name = key.as_str().ok_or("a key of its value is no text")?;
                // In a plan such a key is an instruction; only the file itself may give one.
                if name.starts_with('$') {
                    return Err(format!(
                        "its value has the key \"{}\", which only a plan may write",
                        clipped(name)
                    ));
                }
                *room = room.checked_sub(name.len()).ok_or("its value is too large")?;
                let item = value.get_item(&key).map_err(|error| said(&error))?;
                map.insert(name.to_owned(), json(&item, room, depth + 1)?);
            }
            Json::Object(map)
        }
        kind => return Err(format!("its value is {kind}, which JSON does not have")),
    })
}

fn number(value: &Value) -> Result<Json, String> {
    let number = if value.is_integer() {
        let small = i64::try_from(value.clone()).ok().map(Number::from);
        small.or_else(|| u64::try_from(value.clone()).ok().map(Number::from))
    } else {
        f64::try_from(value.clone()).ok().and_then(Number::from_f64)
    };
    number.map(Json::Number).ok_or_else(|| "its value is a number that JSON does not have".into())
}

/// Where expressions are evaluated: nothing is there but what stands here.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_fuel(Some(limits::FUEL));
    env.add_filter("abs", filters::abs);
    env.add_filter("first", filters::first);
    env.add_filter("int", filters::int);
    env.add_filter("last", filters::last);
    env.add_filter("length", filters::length);
    env.add_filter("lower", filters::lower);
    env.add_filter("max", filters::max);
    env.add_filter("min", filters::min);
    env.add_filter("rejectattr", filters::rejectattr);
    env.add_filter("round", filters::round);
    env.add_filter("selectattr", filters::selectattr);
    env.add_filter("sort", filters::sort);
    env.add_filter("sum", filters::sum);
    env.add_filter("trim", filters::trim);
    env.add_filter("unique", filters::unique);
    env.add_filter("upper", filters::upper);
    // Those of the library know only "not there", or multiply text.
    env.add_filter("default", default);
    env.add_filter("join", join);
    env.add_filter("keys", keys);
    env.add_filter("map", map);
    env.add_filter("replace", replace);
    env.add_filter("split", split);
    env.add_filter("string", string);
    env.add_filter("times", times);
    env.add_test("boolean", tests::is_boolean);
    env.add_test("defined", tests::is_defined);
    env.add_test("endingwith", tests::is_endingwith);
    env.add_test("eq", tests::is_eq);
    env.add_test("ge", tests::is_ge);
    env.add_test("gt", tests::is_gt);
    env.add_test("in", tests::is_in);
    env.add_test("integer", tests::is_integer);
    env.add_test("le", tests::is_le);
    env.add_test("lt", tests::is_lt);
    env.add_test("mapping", tests::is_mapping);
    env.add_test("ne", tests::is_ne);
    env.add_test("none", tests::is_none);
    env.add_test("number", tests::is_number);
    env.add_test("sequence", tests::is_sequence);
    env.add_test("startingwith", tests::is_startingwith);
    env.add_test("string", tests::is_string);
    env.add_test("undefined", tests::is_undefined);
    env
});

/// The functions that follow a `|`.
pub(crate) const FILTERS: [&str; 26] = [
    "abs",
    "default",
    "first",
    "int",
    "join",
    "keys",
    "last",
    "length",
    "lower",
    "map",
    "max",
    "min",
    "rejectattr",
    "replace",
    "round",
    "selectattr",
    "sort",
    "split",
    "string",
    "sum",
    "times",
    "trim",
    "unique",
    "upper",
    "else",
    "if",
];
/// The questions that follow an `is`.
pub(crate) const TESTS: [&str; 18] = [
    "boolean",
    "defined",
    "endingwith",
    "eq",
    "ge",
    "gt",
    "in",
    "integer",
    "le",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "sequence",
    "startingwith",
    "string",
    "undefined",
];
const WORDS: [&str; 14] =
    ["and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None", "loop"];

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn short(text: String) -> Result<String, Error> {
    if text.len() > limits::TEXT {
        return Err(wrong(format!("a text of more than {} bytes", limits::TEXT)));
    }
    Ok(text)
}

fn default(value: &Value, other: Value) -> Value {
    if value.is_undefined() || value.is_none() { other } else { value.clone() }
}

fn join(value: &Value, between: Option<&str>) -> Result<String, Error> {
    if value.as_str().is_some() {
        return Err(wrong("join takes a list"));
    }
    let mut out = String::new();
    for (n, item) in value.try_iter()?.enumerate() {
        if n > 0 {
            out.push_str(between.unwrap_or_default());
        }
        out = short(out + &scalar(&item)?)?;
    }
    Ok(out)
}

fn scalar(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Number | ValueKind::Bool => short(value.to_string()),
        kind => Err(wrong(format!("{kind} has no text of its own"))),
    }
}

fn string(value: &Value) -> Result<String, Error> {
    scalar(value)
}

fn keys(value: &Value) -> Result<Vec<Value>, Error> {
    if value.kind() != ValueKind::Map {
        return Err(wrong("keys takes a map"));
    }
    let mut keys: Vec<_> = value.try_iter()?.collect();
    keys.sort();
    Ok(keys)
}

fn map(value: &Value, kwargs: Kwargs, rest: Rest<Value>) -> Result<Vec<Value>, Error> {
    if !rest.is_empty() {
        return Err(wrong("map takes a field, as in map(attribute=\"name\")"));
    }
    let attribute: &str = kwargs.get("attribute")?;
    kwargs.assert_all_used()?;
    value.try_iter()?.map(|item| item.get_attr(attribute)).collect()
}

fn replace(value: &str, from: &str, to: &str) -> Result<String, Error> {
    if from.is_empty() {
        return Err(wrong("replace takes a text to look for"));
    }
    let found = value.matches(from).count();
    if value.len() + found * to.len() > limits::TEXT {
        return Err(wrong(format!("a text of more than {} bytes", limits::TEXT)));
    }
    Ok(value.replace(from, to))
}

fn split(value: &str, at: &str) -> Result<Vec<String>, Error> {
    if at.is_empty() {
        return Err(wrong("split takes a text to look for"));
    }
    if value.matches(at).count() >= limits::LIST {
        return Err(wrong(format!("a list of more than {} values", limits::LIST)));
    }
    Ok(value.split(at).map(str::to_owned).collect())
}

fn times(value: &Value, by: &Value) -> Result<Value, Error> {
    let both = |value: &Value| value.is_integer().then(|| i64::try_from(value.clone()).ok()).flatten();
    if let (Some(a), Some(b)) = (both(value), both(by)) {
        return a.checked_mul(b).map(Value::from).ok_or_else(|| wrong("the product is too large"));
    }
    if value.kind() != ValueKind::Number || by.kind() != ValueKind::Number {
        return Err(wrong("times takes two numbers"));
    }
    let (a, b) = (f64::try_from(value.clone())?, f64::try_from(by.clone())?);
    Ok(Value::from(a * b))
}

/// A word of an expression.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Name(&'a str),
    Number,
    Text,
    Sign(&'a str),
}

/// Cuts an expression into words. What the library would read as something else is an error here or there: nothing
/// is decided by this alone.
fn scan(source: &str) -> Result<Vec<Token<'_>>, String> {
    if source.is_empty() {
        return Err("it is empty".into());
    }
    if source.len() > limits::EXPRESSION {
        return Err(format!("it has {} bytes; at most {} are taken", source.len(), limits::EXPRESSION));
    }
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let (token, length) = match c {
            ' ' | '\t' | '\n' => (None, 1),
            'a'..='z' | 'A'..='Z' | '_' => {
                let length =
                    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Some(Token::Name(rest.get(..length).unwrap_or_default())), length)
            }
            '0'..='9' => {
                let length =
                    rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                (Some(Token::Number), length)
            }
            '\'' | '"' => (Some(Token::Text), quoted(rest, c)?),
            '(' | ')' | '[' | ']' | '{' | '}' | '.' | ',' | ':' | '|' | '+' | '-' | '/' | '%' | '<' | '>'
            | '=' | '!' | '*' | '~' => (rest.get(..1).map(Token::Sign), 1),
            c => {
                return Err(format!(
                    "it has the character \"{}\", which means nothing here",
                    clipped(&c.to_string())
                ));
            }
        };
        tokens.extend(token);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(tokens)
}

/// The bytes of a text in quotes.
fn quoted(rest: &str, quote: char) -> Result<usize, String> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("a text in it has no end".into())
}

/// What is refused before the library is asked.
fn judge(tokens: &[Token<'_>]) -> Result<(), String> {
    if tokens.len() > limits::WORDS {
        return Err(format!("it has more than {} words and signs", limits::WORDS));
    }
    // For each bracket that is open: the colons in it, if it cuts a list.
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut before = None;
    for (n, token) in tokens.iter().enumerate() {
        match *token {
            Token::Sign(sign @ ("(" | "[" | "{")) => open.push((sign == "[").then_some(0)),
            Token::Sign(")" | "]" | "}") => {
                open.pop();
            }
            Token::Sign(":") => {
                if let Some(Some(colons)) = open.last_mut() {
                    *colons += 1;
                    if *colons > 1 {
                        return Err("a list is cut as in list[1:3], without a step".into());
                    }
                }
            }
            Token::Sign("*") => {
                return Err(
                    "\"*\" is not taken, as it can repeat a text without end; numbers: \"a | times(b)\""
                        .into(),
                );
            }
            Token::Sign("~") => {
                return Err("\"~\" is not taken; write one text after the other: \"${a}-${b}\"".into());
            }
            Token::Name(name) if before == Some(Token::Sign("|")) && !FILTERS.contains(&name) => {
                let known = FILTERS
                    .iter()
                    .filter(|name| !WORDS.contains(name))
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(format!("there is no function \"{}\"; there are {known}", clipped(name)));
            }
            Token::Name("not") => continue,
            Token::Name(name) if before == Some(Token::Name("is")) && !TESTS.contains(&name) => {
                return Err(format!(
                    "there is no test \"{}\"; there are {}",
                    clipped(name),
                    TESTS.join(", ")
                ));
            }
            _ => {}
        }
        if open.len() > limits::NESTING {
            return Err(format!("it is nested more than {} deep", limits::NESTING));
        }
        before = tokens.get(n).copied();
    }
    Ok(())
}

/// Every mention of a name that the expression does not bring itself.
fn mentions(tokens: &[Token<'_>]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut n = 0;
    while let Some(token) = tokens.get(n) {
        let before = n.checked_sub(1).and_then(|n| tokens.get(n));
        let before_that = n.checked_sub(2).and_then(|n| tokens.get(n));
        let is = |token: Option<&Token<'_>>, text: &str| token == Some(&Token::Name(text));
        n += 1;
        let Token::Name(name) = token else { continue };
        let named_argument =
            tokens.get(n) == Some(&Token::Sign("=")) && tokens.get(n + 1) != Some(&Token::Sign("="));
        let of_another = matches!(before, Some(Token::Sign("." | "|")))
            || is(before, "is")
            || (is(before, "not") && is(before_that, "is"));
        if WORDS.contains(name) && *name != "loop" || of_another || named_argument {
            continue;
        }
        let mut path = vec![(*name).to_owned()];
        while let (Some(Token::Sign(".")), Some(Token::Name(field))) = (tokens.get(n), tokens.get(n + 1)) {
            path.push((*field).to_owned());
            n += 2;
        }
        found.push(path);
    }
    found
}

#[cfg(test)]
mod tests_of_expressions {
    use super::*;
    use serde_json::json;

    fn scope() -> Scope {
        Scope::default()
            .with("inputs", &json!({ "n": 3, "name": "web", "on": true, "none": null, "list": [{ "x": 1, "s": true }, { "x": 5, "s": false }], "text": "a,b,c" }))
            .with("index", &json!(0))
    }

    fn value(source: &str) -> Result<Json, String> {
        Expression::read(source)?.value(&scope(), &mut Meter::default())
    }

    #[test]
    fn expressions_answer_questions_about_inputs() {
        for (source, is) in [
            ("inputs.n + 1", json!(4)),
            ("inputs.n | times(1024)", json!(3072)),
            ("inputs.on and inputs.n > 2", json!(true)),
            ("not inputs.on or inputs.name == 'web'", json!(true)),
            ("inputs.name in ['web', 'db']", json!(true)),
            ("inputs.list | length", json!(2)),
            ("inputs.list[1].x", json!(5)),
            ("inputs.list | selectattr('s') | map(attribute='x')", json!([1])),
            ("inputs.list | map(attribute='x') | sum", json!(6)),
            ("inputs.none | default('d')", json!("d")),
            ("inputs.none is none", json!(true)),
            ("inputs.nowhere is defined", json!(false)),
            ("inputs.nowhere is not defined", json!(true)),
            ("inputs.text | split(',') | last", json!("c")),
            ("inputs.text | split(',') | join('-')", json!("a-b-c")),
            ("inputs.text | replace(',', '')", json!("abc")),
            ("'yes' if inputs.on else 'no'", json!("yes")),
            ("inputs.name | upper", json!("WEB")),
            ("{'a': [1, 2.5, none]}", json!({ "a": [1, 2.5, null] })),
            ("7 // 2", json!(3)),
            ("7 / 2", json!(3.5)),
        ] {
            assert_eq!(value(source).as_ref(), Ok(&is), "{source}");
        }
    }

    #[test]
    fn what_cannot_be_answered_is_an_error() {
        for source in [
            "inputs.nowhere",
            "nothing",
            "inputs.n.x.y",
            "1 / 0",
            "1 % 0",
            "'a' + 1",
            "9223372036854775807 + 1 - 1 + 9223372036854775807 | times(2)",
            "f(1)",
            "inputs.name.upper()",
            "range(10)",
            "1 if inputs.on",
            "a b",
            "1 }} {{ 2",
            "(",
            ")",
            "'",
            "",
            " ",
            "inputs.n | nope",
            "inputs.n is nope",
            "'x' * 100",
            "[1] * 100",
            "2 ** 3",
            "'a' ~ 'b'",
            "a; b",
            "a\u{0}",
            "ä",
            "{'$output': 'x'}",
            "inputs.on | string | int",
            "1e999",
            "inputs.list | join",
        ] {
            if let Ok(value) = value(source) {
                assert!(source == "1 if inputs.on", "{source} is {value}");
            }
        }
    }

    /// It came to one in `''[::-1]`, which is refused now.
    #[test]
    fn a_panic_of_the_library_is_an_error_here() {
        assert!(Expression::read("''[::-1]").unwrap_err().contains("without a step"));
        let panics = || ENVIRONMENT.compile_expression("''[::-1]").and_then(|e| e.eval(()));
        let said = calmly(|| panics().map(|_| ())).unwrap_err();
        assert!(said.contains("has failed"), "{said}: if the library is mended, this test has done its work");
    }

    #[test]
    fn mentions_are_the_names_from_outside() {
        let all = |source: &str| {
            Expression::read(source).unwrap().mentions.iter().map(|m| m.join(".")).collect::<Vec<_>>()
        };
        assert_eq!(
            all("inputs.a.b + x if inputs.c else y[z:w]"),
            ["inputs.a.b", "x", "inputs.c", "y", "z", "w"]
        );
        assert_eq!(all("inputs.list | map(attribute='x') | length == 2 and true"), ["inputs.list"]);
        assert_eq!(all("inputs.x is not none and 'inputs.y' == inputs['z']"), ["inputs.x", "inputs"]);
        assert_eq!(Expression::read(" inputs.a ").unwrap().path().unwrap(), ["inputs", "a"]);
        assert!(Expression::read("inputs.a[0]").unwrap().path().is_none());
    }

    #[test]
    fn an_expression_ends_soon_whatever_it_says() {
        let big = "x".repeat(limits::TEXT - 1);
        let list: Vec<_> = (0..limits::LIST).collect();
        let scope = Scope::default().with("inputs", &json!({ "s": big, "l": list }));
        let chain = |unit: &str, n: usize| format!("inputs.s{}", unit.repeat(n));
        let hostile = [
            chain("|replace('x','xxxxxxxxxxxxxxxxxxxxxxxxxxx')", 16),
            chain("|split('x')|join('xxxxxxxx')", 16),
            chain(" + inputs.s", 39),
            format!("inputs.l{}", " + inputs.l".repeat(39)),
            format!("(inputs.l{}) | sort | length", " + inputs.l".repeat(36)),
            "not ".repeat(100) + "1",
            "-".repeat(119) + "1",
            "1 if 1 else ".repeat(28) + "2",
            "(".repeat(16) + "1" + &")".repeat(16),
            "[".repeat(500) + "1",
            "[[".repeat(8) + "1" + &"]]".repeat(8),
            "inputs.s".to_owned() + &"[0:]".repeat(20),
            "a".repeat(limits::EXPRESSION),
            "1<".repeat(59) + "1",
        ];
        for source in &hostile {
            let before = std::time::Instant::now();
            // A thread of a server has this much; the library calls itself.
            let answer = std::thread::scope(|threads| {
                let scope = &scope;
                let run = move || {
                    Expression::read(source).and_then(|e| e.value(scope, &mut Meter::default())).is_ok()
                };
                std::thread::Builder::new()
                    .stack_size(1 << 20)
                    .spawn_scoped(threads, run)
                    .unwrap()
                    .join()
                    .unwrap()
            });
            let took = before.elapsed();
            println!("{answer} {took:?} {}", source.chars().take(40).collect::<String>());
            assert!(took.as_millis() < 500, "{took:?} {source}");
        }
    }
}
