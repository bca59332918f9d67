//! Files that were written to hurt: each is refused, or read, in under a second of an unoptimized build, with a message
//! that names the place and is safe to print.

use std::time::Duration;

use backstay_workflows::{Template, Workflow, limits};
use serde_json::json;

use crate::support::{activities, listed, template};

/// The processor time of this thread: others run beside it.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Everything that is said of it; nothing if it is taken.
fn judged(what: &str, text: &str) -> String {
    let mut fastest = Duration::MAX;
    let mut said = String::new();
    // A busy machine is slow at times; what is slow by itself is slow every time.
    for _ in 0..3 {
        // A thread of a server has this much.
        let (answer, took) = std::thread::scope(|threads| {
            let run = || (Template::load(text, &activities()), cpu());
            std::thread::Builder::new()
                .stack_size(2 << 20)
                .spawn_scoped(threads, run)
                .unwrap()
                .join()
                .unwrap()
        });
        fastest = fastest.min(took);
        said = answer.err().map(|problems| listed(&problems)).unwrap_or_default();
        if fastest < Duration::from_secs(1) {
            break;
        }
    }
    println!("{what}: {fastest:?} {}", said.chars().take(150).collect::<String>());
    assert!(fastest < Duration::from_secs(1), "{what} took {fastest:?}");
    assert!(said.len() < 100_000, "{what}: {} bytes of complaint", said.len());
    let hostile = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(!said.chars().any(hostile), "{said}");
    said
}

#[track_caller]
fn is_refused(what: &str, text: &str, because: &str) {
    let said = judged(what, text);
    assert!(
        said.contains(because),
        "{what}: \"{because}\" is not in\n{}",
        said.chars().take(2_000).collect::<String>()
    );
}

fn with(steps: &str) -> String {
    format!("workflow: w\ninput: {{ n: \"integer[]\" }}\nsteps:\n{steps}\n")
}

const STEP: &str = "activity: log, input: { text: t }, nothing_to_undo: n";

#[test]
fn what_is_large() {
    is_refused(
        "two megabytes",
        &"a: 1\n".repeat(400_000),
        "the file has 2000000 bytes; at most 1048576 are taken",
    );
    let text = "x".repeat(1_000_000);
    is_refused(
        "a megabyte in a field",
        &with(&format!("  - {{ name: a, title: \"{text}\", {STEP} }}")),
        "4:23: [limit]: this text has 1000000 bytes",
    );
    is_refused(
        "a megabyte in a key",
        &format!("? {text}\n: 1\n"),
        "1:3: [limit]: this text has 1000000 bytes",
    );
    is_refused("a megabyte in a block", &format!("a: |\n  {text}\n"), "[limit]: this text has 1000001 bytes");
    is_refused("many values", &format!("[{}1]", "1,".repeat(60_000)), "the file has more than 50000 values");
    let many = format!("  - {{ name: a, {STEP} }}\n").repeat(2_000);
    is_refused("2,000 steps of one name", &with(&many), "at most 1000 steps and blocks");
    is_refused("an empty file", "", "the file is empty");
    is_refused("nothing but a remark", "# a\n", "the file is empty");
}

#[test]
fn what_is_deep() {
    is_refused("brackets", &"[".repeat(100_000), "1:");
    is_refused("braces", &"{a: ".repeat(100_000), "1:");
    let ladder: String = (0..1_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    is_refused("a ladder", &ladder, ":");
    is_refused("dashes", &"- ".repeat(50_000), "1:");
    is_refused("questions", &"? ".repeat(50_000), "1:");
    let nested = (0..40).fold("1".to_owned(), |inner, _| format!("[{inner}]"));
    is_refused("within the parser's limit", &format!("a: {}", nested.replace('1', &nested)), "limit");
}

#[test]
fn what_yaml_has_and_no_workflow_needs() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (n, m) in ('b'..='i').zip('a'..='h') {
        bomb += &format!("{n}: &{n} [{}]\n", vec![format!("*{m}"); 9].join(", "));
    }
    is_refused("a billion laughs", &bomb, "1:7: [form]: an anchor");
    is_refused("an alias of itself", "a: &a [*a]\n", "[form]: an anchor");
    is_refused("an alias of nothing", "a: *b\n", "1:4: [form]: an alias");
    is_refused("a merge", "<<: { a: 1 }\n", "1:1: [form]: a merge");
    is_refused("a tag", "a: !!python/object/apply:os.system [x]\n", "a tag");
    is_refused("a directive", "%TAG ! tag:x,2000:\n---\na: 1\n", "1:1: [form]");
    is_refused("a second document", "a: 1\n---\nb: 2\n", "2:1: [form]: a second document");
    is_refused(
        "a key twice",
        "a: 1\nb: { c: 1, d: 2, \"c\": 3 }\n",
        "2:18: [form]: the key \"c\" stands twice",
    );
    is_refused("a key in disguise", "a: 1\n\"\\x61\": 2\n", "2:1: [form]: the key \"a\" stands twice");
    is_refused("a list as a key", "[a]: 1\n", "a key is a text");
    is_refused("a number as a key", "1: 1\n", "the key is a number, and has to be a text");
    is_refused("the key null", "null: 1\n", "has to be a text");
    is_refused(
        "a truth that is none",
        "workflow: no\n",
        "1:11: [form]: no is a text to some and a truth to others",
    );
    is_refused("a number that is none", "a: 0777\n", "1:4: [form]: 0777 looks like a number");
    is_refused("a tab before a key", "a:\n\tb: 1\n", "2:");
}

#[test]
fn characters_that_pretend() {
    is_refused("U+0000", "a: \"x\u{0}y\"\n", "1:6: [form]: the character U+0000");
    is_refused("U+0000, written out", "a: \"x\\0y\"\n", "1:4: [form]: this text holds the character U+0000");
    is_refused("U+0000 in a key", "\"x\\u0000\": 1\n", "1:1: [form]: this text holds the character U+0000");
    is_refused("a remark that runs backwards", "a: 1 # \u{202e} b\n", "1:8: [form]: the character U+202E");
    is_refused("an escape sequence", "a: \u{1b}[31m\n", "1:4: [form]: the character U+001B");
    is_refused("a line that is none", "a: x\u{2028}b: 1\n", "1:5: [form]: the character U+2028");
    is_refused("half a character", "a: \"\\ud800\"\n", "1:");
    is_refused(
        "a title that obeys",
        &with(&format!("  - {{ name: a, title: \"\\e[31m\", {STEP} }}")),
        "has control characters",
    );
    is_refused(
        "an activity with colours",
        &with("  - { name: a, activity: \"\\e[31mx\", nothing_to_undo: n }"),
        r"\u{1b}[31mx",
    );
}

#[test]
fn each_within_each_within_each() {
    let list = format!("[{}]", vec!["1"; 300].join(","));
    let twice = format!(
        "  - each: {list}\n    as: a\n    steps:\n      - {{ name: s, each: {list}, as: b, {STEP} }}"
    );
    is_refused("300 times 300", &with(&twice), "for this input there are more than 10000 steps");
    let thrice = format!(
        "  - {{ name: z, {STEP} }}\n  - each: {list}\n    as: a\n    steps:\n      - each: {list}\n        as: b\n        steps:\n          - {{ name: s, each: inputs.n, {STEP} }}"
    );
    is_refused(
        "300 times 300 times nothing",
        &with(&thrice),
        "\"each\" is passed through more than 20000 times",
    );
    let deep = (0..8).fold(format!("{{ name: s, each: [1], as: z, {STEP} }}"), |inner, n| {
        format!("{{ each: [1, 2], as: i{n}, steps: [{inner}] }}")
    });
    is_refused(
        "nine deep",
        &with(&format!("  - {deep}")),
        "blocks stand at most 6 deep within each other, 3 with \"each\"",
    );
    let all = format!(
        "  - {{ name: a, each: {list}, {STEP} }}\n  - {{ name: b, each: {list}, after: [a], {STEP} }}"
    );
    is_refused("300 after 300", &with(&all), "in more than 50000 ways");
    let left_out = format!(
        "  - {{ name: a, each: {list}, {STEP} }}\n  - {{ name: b, each: {list}, when: false, after: [a], {STEP} }}\n  - {{ name: c, each: {list}, when: false, after: [b], {STEP} }}\n  - {{ name: d, each: {list}, when: false, after: [b, c], {STEP} }}\n  - {{ name: e, after: [d], {STEP} }}"
    );
    is_refused("300 left out after 300", &with(&left_out), "reads and makes too much for one input");
    let circle = format!(
        "  - {{ name: a, when: false, after: [b], {STEP} }}\n  - {{ name: b, when: false, after: [a], {STEP} }}\n  - {{ name: c, after: [a], {STEP} }}"
    );
    is_refused("a circle of what is left out", &with(&circle), "[reach]");
    let reads = format!(
        "  - {{ name: a, each: {list}, {STEP} }}\n  - {{ name: b, each: {list}, after: [a], activity: log, input: {{ text: t, data: [{}] }}, nothing_to_undo: n }}",
        vec!["{ $output: a/text }"; 50].join(",")
    );
    is_refused("300 that read 300, 50 times", &with(&reads), "[");
}

#[test]
fn expressions_that_work_too_hard() {
    let when = |expression: &str| {
        with(&format!(
            "  - {{ name: z, {STEP} }}\n  - name: a\n    when: {}\n    {}",
            serde_json::json!(expression),
            STEP.replace(", ", "\n    ")
        ))
    };
    for (what, expression, because) in [
        ("long", "1 == 1 and ".repeat(200) + "true", "at most 1000 are taken"),
        ("many words", "1+".repeat(200) + "1 > 0", "more than 120 words"),
        ("deep", "(".repeat(40) + "true" + &")".repeat(40), "nested more than"),
        ("repeated", "'x' * 100000000 == ''".into(), "\"*\" is not taken"),
        ("a power", "9 ** 9 ** 9 > 1".into(), "\"*\" is not taken"),
        ("a function that is not there", "range(1000000000) | length > 1".into(), "there is no \"range\""),
        (
            "a function of the library",
            "'x' | center(1000000000) == ''".into(),
            "there is no function \"center\"",
        ),
        (
            "replaced",
            "'x'".to_owned() + &"| replace('x', 'xxxxxxxxxxxxxxxxxxxx')".repeat(12) + " == ''",
            "a text of more than 65536 bytes",
        ),
        ("its own environment", "self.__class__.__mro__ is defined".into(), "there is no \"self\""),
        ("a template", "1 }}{% for x in [1] %}{{ 2".into(), "[expression]"),
    ] {
        is_refused(what, &when(&expression), because);
    }
}

/// Each expression is cheap; ten thousand that read everything are not.
#[test]
fn an_expansion_reads_only_so_much() {
    let t = template(
        "workflow: w\ninput: { big: { type: array, items: string }, n: \"integer[]\" }\nsteps:\n  - { name: z, activity: log, input: { text: t }, nothing_to_undo: n }\n  - { name: a, each: inputs.n, when: \"inputs.big | sort | length == 0\", activity: log, input: { text: t }, nothing_to_undo: n }\n",
    );
    let big: Vec<_> = (0..limits::LIST).map(|n| format!("some longer text {n}")).collect();
    let before = cpu();
    let said = t.prepare(&json!({ "big": big, "n": vec![1; 5_000] })).unwrap_err();
    let took = cpu() - before;
    println!("{took:?} {}", listed(&said));
    assert!(listed(&said).contains("reads and makes too much for one input"));
    assert!(took < Duration::from_secs(30), "{took:?}");
}
