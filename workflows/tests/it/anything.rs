//! Whatever a file, an expression or an input says: an answer, never a panic.

use backstay_workflows::{Template, Workflow};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::activities;

/// Pieces of expressions, put together in any order.
fn expression() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "inputs",
        ".",
        "a",
        "list",
        "s",
        "n",
        "[",
        "]",
        "(",
        ")",
        "{",
        "}",
        "'",
        "\"",
        "\\",
        "1",
        "0",
        "-1",
        "1.5",
        "9223372036854775807",
        "1e308",
        "+",
        "-",
        "/",
        "//",
        "%",
        "==",
        "!=",
        "<",
        ">=",
        "=",
        " and ",
        " or ",
        " not ",
        " in ",
        " is ",
        " if ",
        " else ",
        "|",
        ",",
        ":",
        " ",
        "true",
        "none",
        "default",
        "length",
        "first",
        "last",
        "sort",
        "join",
        "split",
        "replace",
        "map",
        "attribute",
        "sum",
        "int",
        "round",
        "abs",
        "times",
        "string",
        "keys",
        "selectattr",
        "min",
        "unique",
        "defined",
        "index",
        "é",
        "\u{0}",
        "$",
        "${",
        "'x'",
        "[1,2]",
        "{'k':1}",
        "(1)",
        "('a','b')",
    ]);
    prop::collection::vec(piece, 1..25).prop_map(|pieces| pieces.concat())
}

/// Expressions of the right form, with values that do not fit.
fn sentence() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "inputs.list",
        "inputs.s",
        "inputs.n",
        "inputs.none",
        "inputs.o",
        "inputs",
        "1",
        "-1",
        "0",
        "0.5",
        "'x'",
        "''",
        "[]",
        "{}",
        "none",
        "true",
        "18446744073709551615",
        "1e308",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 24, 3, |inner| {
        let filter = prop::sample::select(vec![
            "abs",
            "first",
            "int",
            "last",
            "length",
            "lower",
            "max",
            "min",
            "round",
            "sort",
            "sum",
            "trim",
            "unique",
            "upper",
            "join",
            "join(', ')",
            "keys",
            "string",
            "default(1)",
            "split(',')",
            "replace('x','y')",
            "times(3)",
            "map(attribute='x')",
            "selectattr('x')",
            "selectattr('x', 'eq', 1)",
            "rejectattr('x', 'in', [1])",
            "round(2)",
            "int(5)",
            "sort(attribute='x', reverse=true)",
            "sum(attribute='x')",
            "round(-400)",
            "round(400)",
            "trim('x')",
        ]);
        prop_oneof![
            (inner.clone(), filter).prop_map(|(a, f)| format!("({a} | {f})")),
            (
                inner.clone(),
                prop::sample::select(vec![
                    "+",
                    "-",
                    "/",
                    "//",
                    "%",
                    "==",
                    "<",
                    ">=",
                    "in",
                    "not in",
                    "and",
                    "or",
                    "is eq",
                    "is lt",
                    "is in",
                    "is startingwith"
                ]),
                inner.clone()
            )
                .prop_map(|(a, op, b)| format!("({a} {op} {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[{b}]")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(a, b, c)| format!("{a}[{b}:{c}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}[::{b}]")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("({a} if {b} else {c})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("[{a}, {b}]")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{{{a}: {b}}}")),
            inner.clone().prop_map(|a| format!("(not {a})")),
            inner.prop_map(|a| format!("(-{a})")),
        ]
    })
}

fn file_with(expression: &str) -> String {
    let quoted = json!(expression);
    let whole = json!(format!("${{{expression}}}"));
    format!(
        "workflow: w\ninput: {{ list: any, s: any, n: any, none: any, o: any }}\nsteps:\n  - {{ name: z, activity: log, input: {{ text: t }}, nothing_to_undo: n }}\n  - name: a\n    when: {quoted}\n    activity: log\n    input: {{ text: t }}\n    nothing_to_undo: n\n  - {{ name: b, activity: log, input: {{ text: t, data: {whole} }}, nothing_to_undo: n }}\n"
    )
}

fn given() -> Value {
    json!({ "list": [{ "x": 1 }, { "x": "y" }, 3, null, "x,y"], "s": "a,é,x\u{1F600}", "n": -7, "none": null, "o": { "x": [1], "y": { "z": 2.5 } } })
}

/// A panic of the library is caught, and shows here.
fn must_not_fail<T>(answer: Result<T, Vec<backstay_workflows::Problem>>) {
    let said = answer.err().map(|problems| crate::support::listed(&problems)).unwrap_or_default();
    assert!(!said.contains("has failed"), "{said}");
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "${inputs.x}",
            "$output",
            "a/b",
            "inputs.x",
            "${",
            "one_by_one",
            "10s",
            "log",
            "a-${index}"
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let key = prop::sample::select(vec![
            "workflow",
            "input",
            "input_schema",
            "steps",
            "name",
            "activity",
            "each",
            "as",
            "key",
            "when",
            "after",
            "order",
            "examples",
            "run",
            "labels",
            "undo",
            "requires",
            "step",
            "$output",
            "default",
            "plan",
            "retry",
            "type",
            "properties",
            "items",
            "enum",
            "title",
            "x",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..8).prop_map(|entries| Value::Object(
                entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
        let _ = Template::load(&text, &activities());
    }

    #[test]
    fn any_mixture_of_yaml_is_read_or_refused(pieces in prop::collection::vec(prop::sample::select(vec!["a", ":", " ", "\n", "  ", "- ", "[", "]", "{", "}", "\"", "'", "|", ">", "&x", "*x", "!t", "#", "?", "%", "---", "...", "\t", "é", "1", ",", "workflow: w\n", "steps:\n", "\\u0000"]), 0..60)) {
        let _ = Template::load(&pieces.concat(), &activities());
    }

    #[test]
    fn any_document_is_read_or_refused(mut value in json_value()) {
        if let Some(map) = value.as_object_mut() {
            map.insert("workflow".into(), json!("w"));
        }
        let _ = Template::load(&value.to_string(), &activities());
    }

    #[test]
    fn any_pieces_of_an_expression_are_read_or_refused(expression in expression()) {
        if let Ok(template) = Template::read(&file_with(&expression)) {
            must_not_fail(template.prepare(&given()));
        }
    }

    #[test]
    fn any_expression_has_a_value_or_an_error(expression in sentence()) {
        if let Ok(template) = Template::read(&file_with(&expression)) {
            must_not_fail(template.prepare(&given()));
        }
    }

    #[test]
    fn any_input_is_taken_or_refused(input in json_value()) {
        let template = Template::read(&file_with("inputs.list | length > 1")).unwrap();
        let _ = template.prepare(&json!({ "list": input, "s": input, "n": 1, "none": null, "o": {} }));
    }
}
