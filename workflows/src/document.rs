//! A file as a tree that knows where each part of it stands.
//!
//! YAML has more than a plan needs, and what it has more is what is used to hurt: anchors that grow, keys that stand
//! twice, tags that mean something to a program, several documents in one text, numbers that are read in three ways.
//! None of these is taken. What is left is JSON with comments and fewer quotes.

use std::collections::HashSet;

use granit_parser::{Event, Options, Parser, ScalarStyle, ScanError, Span};
use serde_json::{Map, Number, Value};

use crate::limits;
use crate::problem::{Mark, Problem, Rule, clipped, is_hostile};

/// A part of a document.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub mark: Option<Mark>,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Null, a boolean or a number.
    Plain(Value),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub mark: Option<Mark>,
    pub text: String,
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|(name, _)| name.text == key).map(|(_, node)| node)
    }

    pub(crate) fn entries(&self) -> &[(Key, Node)] {
        match &self.kind {
            Kind::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The same without places.
    pub(crate) fn value(&self) -> Value {
        match &self.kind {
            Kind::Plain(value) => value.clone(),
            Kind::Text(text) => Value::from(text.as_str()),
            Kind::List(items) => items.iter().map(Node::value).collect(),
            Kind::Map(entries) => {
                let entries = entries.iter().map(|(key, node)| (key.text.clone(), node.value()));
                Value::Object(entries.collect::<Map<_, _>>())
            }
        }
    }

    /// What people call it.
    pub(crate) fn what(&self) -> &'static str {
        match &self.kind {
            Kind::Plain(Value::Null) => "nothing",
            Kind::Plain(Value::Bool(_)) => "true or false",
            Kind::Plain(_) => "a number",
            Kind::Text(_) => "a text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }
}

/// Reads a document. The first mistake ends it: after that, nobody knows what the rest would have meant.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    if text.len() > limits::FILE_BYTES {
        let message = format!("the file has {} bytes; at most {} are taken", text.len(), limits::FILE_BYTES);
        return Err(Problem::new(Rule::Limit, "", message));
    }
    if let Some((mark, c)) = hostile(text) {
        let message = format!(
            "the character U+{:04X} stands here, which looks like nothing or like something else",
            c as u32
        );
        return Err(Problem::new(Rule::Form, "", message).at(Some(mark)));
    }
    let mut options = Options::default();
    options.disallow_directives = true;
    options.emit_anchor_events = true;
    options.emit_unresolved_aliases = true;
    options.flow_nesting_limit = limits::DEPTH;
    options.block_nesting_limit = limits::DEPTH;
    let mut reader = Reader { parser: Parser::new_from_str_with_options(text, options), nodes: 0 };
    reader.document()
}

fn hostile(text: &str) -> Option<(Mark, char)> {
    for (n, line) in text.lines().enumerate() {
        let found = line.chars().enumerate().find(|(_, c)| is_hostile(*c) && *c != '\t');
        if let Some((column, c)) = found {
            return Some((Mark { line: n + 1, column: column + 1 }, c));
        }
    }
    None
}

struct Reader<'a> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Option<Mark>), Problem> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, Some(mark(&span)))),
            Some(Err(error)) => Err(unreadable(&error)),
            None => Ok((Event::StreamEnd, None)),
        }
    }

    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(..) if root.is_some() => {
                    let message = "a second document begins here; a file holds one workflow";
                    return Err(Problem::new(Rule::Form, "", message).at(at));
                }
                Event::DocumentStart(..) => {
                    let (event, at) = self.next()?;
                    root = Some(self.node(event, at, 1)?);
                }
                Event::StreamEnd => break,
                _ => return Err(Problem::new(Rule::Form, "", "nothing is expected here").at(at)),
            }
        }
        root.ok_or_else(|| Problem::new(Rule::Form, "", "the file is empty"))
    }

    /// The parser has bounded the depth; this bounds it again, as this is what calls itself.
    fn node(&mut self, event: Event<'a>, at: Option<Mark>, depth: usize) -> Result<Node, Problem> {
        let wrong = |rule, message: String| Err(Problem::new(rule, "", message).at(at));
        self.nodes += 1;
        if depth > limits::DEPTH {
            return wrong(Rule::Limit, format!("this is nested more than {} deep", limits::DEPTH));
        }
        if self.nodes > limits::NODES {
            return wrong(Rule::Limit, format!("the file has more than {} values", limits::NODES));
        }
        if let Event::Scalar(_, _, anchor, tag)
        | Event::SequenceStart(_, anchor, tag)
        | Event::MappingStart(_, anchor, tag) = &event
        {
            if *anchor != 0 {
                return wrong(
                    Rule::Form,
                    "an anchor (\"&name\") is not taken; write the value where it belongs".into(),
                );
            }
            if tag.is_some() {
                return wrong(Rule::Form, "a tag (\"!name\") is not taken".into());
            }
        }
        let kind = match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) => match plain(&text) {
                Ok(Value::String(text)) => Kind::Text(text),
                Ok(value) => Kind::Plain(value),
                Err(message) => return wrong(Rule::Form, message),
            },
            Event::Scalar(text, ..) => Kind::Text(text.into_owned()),
            Event::SequenceStart(..) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break Kind::List(items),
                        (event, at) => items.push(self.node(event, at, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(..) => self.map(depth)?,
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return wrong(
                    Rule::Form,
                    "an alias (\"*name\") is not taken; write the value where it belongs, or in quotes if it is text"
                        .into(),
                );
            }
            _ => return wrong(Rule::Form, "a value is expected here".into()),
        };
        if let Kind::Text(text) = &kind {
            if text.len() > limits::TEXT {
                let message =
                    format!("this text has {} bytes; at most {} are taken", text.len(), limits::TEXT);
                return wrong(Rule::Limit, message);
            }
            if text.contains('\0') {
                return wrong(
                    Rule::Form,
                    "this text holds the character U+0000, which cannot be stored".into(),
                );
            }
        }
        Ok(Node { mark: at, kind })
    }

    fn map(&mut self, depth: usize) -> Result<Kind, Problem> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut seen = HashSet::new();
        loop {
            let (event, at) = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Kind::Map(entries));
            }
            let is_quoted = !matches!(&event, Event::Scalar(_, ScalarStyle::Plain, ..));
            let text = match self.node(event, at, depth + 1)?.kind {
                Kind::Text(text) => text,
                _ if is_quoted => {
                    return Err(Problem::new(Rule::Form, "", "a key is a text, no list and no map").at(at));
                }
                kind => {
                    let message = format!(
                        "the key is {}, and has to be a text: write it in quotes",
                        Node { mark: at, kind }.what()
                    );
                    return Err(Problem::new(Rule::Form, "", message).at(at));
                }
            };
            if text == "<<" {
                return Err(Problem::new(Rule::Form, "", "a merge (\"<<\") is not taken").at(at));
            }
            if !seen.insert(text.clone()) {
                let message = format!("the key \"{}\" stands twice in one map", clipped(&text));
                return Err(Problem::new(Rule::Form, "", message).at(at));
            }
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            entries.push((Key { mark: at, text }, value));
        }
    }
}

fn mark(span: &Span) -> Mark {
    Mark { line: span.start.line(), column: span.start.col() + 1 }
}

fn unreadable(error: &ScanError) -> Problem {
    let at = error.marker();
    Problem::new(Rule::Form, "", format!("this cannot be read: {}", error.info()))
        .at(Some(Mark { line: at.line(), column: at.col() + 1 }))
}

/// What a value without quotes means. Where two readers of YAML would differ, neither reading is taken.
fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        "yes" | "Yes" | "YES" | "no" | "No" | "NO" | "on" | "On" | "ON" | "off" | "Off" | "OFF" => {
            return Err(format!(
                "{text} is a text to some and a truth to others: write true or false, or put it in quotes"
            ));
        }
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Ok(Value::from(text));
    }
    let unsure = || {
        Err(format!(
            "{} looks like a number but is none of JSON; put it in quotes if it is a text",
            clipped(text)
        ))
    };
    if matches!(digits.to_ascii_lowercase().as_str(), ".inf" | ".nan") {
        return unsure();
    }
    if let Some(rest) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0o")) {
        return if rest.chars().all(|c| c.is_ascii_hexdigit()) { unsure() } else { Ok(Value::from(text)) };
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        if digits.len() > 1 && digits.starts_with('0') || text.starts_with('+') {
            return unsure();
        }
        return match text.parse::<Number>() {
            Ok(number) if !number.is_f64() || text == "-0" => Ok(Value::Number(number)),
            _ => Err(format!("the number {} cannot be kept exactly; put it in quotes", clipped(text))),
        };
    }
    // "1.5", "1e3" and such; everything else that begins with a digit ("10s", "1.2.3", "2026-01-01") is text.
    let looks =
        digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<Number>() {
        Ok(number) if looks && number.as_f64().is_some_and(f64::is_finite) => Ok(Value::Number(number)),
        Err(_) if looks && digits.parse::<f64>().is_ok() => unsure(),
        _ => Ok(Value::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_without_quotes_mean_what_they_mean_in_json() {
        let read = |text: &str| plain(text).unwrap();
        assert_eq!(read("12"), json!(12));
        assert_eq!(read("-3"), json!(-3));
        assert_eq!(read("1.5"), json!(1.5));
        assert_eq!(read("1e3"), json!(1000.0));
        assert_eq!(read("18446744073709551615"), json!(u64::MAX));
        for text in ["10s", "1.2.3", "2026-01-01", "a", "-", "0xyz", "127.0.0.1", "-x", "12:30"] {
            assert_eq!(read(text), json!(text));
        }
    }

    #[test]
    fn what_two_readers_would_read_differently_is_refused() {
        for text in [
            "yes",
            "off",
            "010",
            "0x10",
            "0o7",
            ".inf",
            "-.INF",
            "+1",
            "1.",
            ".5",
            "18446744073709551616",
            "1e999",
        ] {
            assert!(plain(text).is_err(), "{text}");
        }
    }

    #[test]
    fn each_part_knows_its_place() {
        let node = read("a: 1\nb:\n  - x\n  - {c: d}\n").unwrap();
        let Kind::List(items) = &node.get("b").unwrap().kind else { panic!() };
        assert_eq!(items[1].get("c").unwrap().mark, Some(Mark { line: 4, column: 9 }));
        assert_eq!(node.value(), json!({ "a": 1, "b": ["x", { "c": "d" }] }));
    }

    #[test]
    fn json_is_read_too() {
        let text = r#"{"a": [1, 2.5, "x\n\u00e9\/", null, true], "b": {}}"#;
        assert_eq!(read(text).unwrap().value(), serde_json::from_str::<Value>(text).unwrap());
    }
}
