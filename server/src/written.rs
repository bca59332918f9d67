//! What people write in files, or pipe in: YAML or JSON.

use std::io::Read;
use std::path::Path;

use backstay_workflows::harmless;
use serde_json::Value;

use crate::trouble::Trouble;

/// So many bytes are taken: as much as the API takes.
const MOST: u64 = 1 << 20;
/// How deep JSON may be, as in the API.
const DEPTH: usize = 64;

/// Reads a file, or stdin where it is called `-`. An error names the place: the line and the column.
pub(crate) fn read(file: &Path) -> Result<Value, Trouble> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { "stdin".into() } else { file.display().to_string() };
    // One byte more than is taken, so that what is too long is seen to be.
    let mut text = String::new();
    let read = if is_stdin {
        std::io::stdin().take(MOST + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MOST + 1).read_to_string(&mut text))
    };
    read.map_err(Trouble::file("Reading", file))?;
    if text.len() as u64 > MOST {
        return Err(Trouble::usage(format!(
            "{name} has more than {MOST} bytes, and no server takes so much."
        )));
    }
    parse(file, &text)
        .map_err(|wrong| Trouble::usage(harmless(&format!("{name} is not understood: {wrong}."))))
}

/// What looks like JSON is read as JSON: a plan of ten thousand steps is more than is read of YAML, and its mistakes are told
/// in the words of JSON.
fn parse(file: &Path, text: &str) -> Result<Value, String> {
    let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let is_json = match ending {
        "json" => true,
        "yaml" | "yml" => false,
        _ => text.trim_start().starts_with(['{', '[']),
    };
    if is_json {
        backstay_engine::machine::strict_json(text.as_bytes(), DEPTH)
    } else {
        backstay_workflows::read_input(text).map_err(|problem| match problem.mark {
            Some(mark) => format!("{} at line {} column {}", problem.message, mark.line, mark.column),
            None => problem.message,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_are_read_and_say_where_they_are_wrong() {
        let read = |name: &str, text: &str| parse(Path::new(name), text);
        for (name, text) in
            [("a.yaml", "b:\n  - 1"), ("-", "b: [1]"), ("a.json", "{\"b\":[1]}"), ("-", "{\"b\":[1]}")]
        {
            assert_eq!(read(name, text).unwrap(), json!({ "b": [1] }), "{name}: {text}");
        }
        for (name, text, place) in [
            ("a.yaml", "a: 1\nb: [1\n", "at line 2 column 4"),
            ("a.yml", "a: 1\na: 2\n", "at line 2 column 1"),
            ("a.json", "{\"a\": 1,\n \"b\": x}", "at line 2 column 7"),
            ("-", "{\"a\": 1,\n \"a\": 2}", "at line 2 column 4"),
        ] {
            let wrong = read(name, text).unwrap_err();
            assert!(wrong.ends_with(place), "{name}: {wrong}");
        }
    }
}
