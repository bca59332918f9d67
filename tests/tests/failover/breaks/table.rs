//! The table of what must never come again is true: each number is in it once, and each test that it names is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// How many breaks of the old system are known.
const KNOWN: usize = 85;

fn read(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the house");
    std::fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of all tests, where a file has tests.
fn tests_of(text: &str) -> impl Iterator<Item = String> {
    let mut lines = text.lines();
    let mut marked = false;
    std::iter::from_fn(move || {
        for line in lines.by_ref() {
            let line = line.trim();
            if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                marked = true;
            }
            let name = line.split_once("fn ").and_then(|(before, rest)| {
                let is_head = ["", "async ", "pub ", "pub async "].contains(&before);
                is_head.then(|| rest.split('(').next().unwrap_or_default().to_owned())
            });
            if let Some(name) = name
                && std::mem::take(&mut marked)
            {
                return Some(name);
            }
        }
        None
    })
}

#[test]
fn every_break_is_in_the_table_and_every_test_of_the_table_is_there() {
    let listed = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard", "*.rs"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in the house"))
        .output()
        .expect("the tests run in a clone");
    let files = String::from_utf8(listed.stdout).expect("names of files are text");
    let mut there: BTreeSet<String> = BTreeSet::new();
    let mut of_breaks: BTreeSet<String> = BTreeSet::new();
    for file in files.lines().filter(|file| !file.is_empty()) {
        let text = read(file);
        // Properties are tests as well; proptest writes their heads itself.
        let marked: Vec<_> = tests_of(&text).collect();
        if file.starts_with("tests/tests/failover/breaks/") {
            of_breaks.extend(marked.iter().cloned());
        }
        there.extend(marked);
    }
    assert!(there.len() > 500, "{} tests were found", there.len());

    let mut numbers = BTreeSet::new();
    let mut named = BTreeSet::new();
    for row in read("docs/breaks.md").lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [number, what, proof] = cells.as_slice() else { panic!("three columns: {row}") };
        let Ok(number) = number.parse::<usize>() else { continue };
        assert!(numbers.insert(number), "{number} is there twice");
        assert!(!what.is_empty(), "{row}");
        let tests: Vec<_> = proof.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert!(
            !tests.is_empty() || proof.starts_with("later: "),
            "{number} has neither a test nor a place: {row}"
        );
        for test in tests {
            assert!(there.contains(&test), "{number} names {test}, and there is no such test");
            named.insert(test);
        }
    }
    assert_eq!(numbers, (1..=KNOWN).collect(), "each break is in the table");
    of_breaks.remove("every_break_is_in_the_table_and_every_test_of_the_table_is_there");
    let unnamed: Vec<_> = of_breaks.difference(&named).collect();
    assert!(
        unnamed.is_empty(),
        "these keep something from coming again, and the table does not say what: {unnamed:#?}"
    );
}
