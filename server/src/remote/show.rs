//! Tables, JSON and names.

use serde_json::Value;

use super::args::Form;
use crate::db::print;

/// A column: its head, and how to read it.
pub(super) type Column = (&'static str, fn(&Value) -> String);

/// A field as text.
pub(crate) fn field(value: &Value, name: &str) -> String {
    match value.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
            .collect::<Vec<_>>()
            .join(","),
        Some(other) => other.to_string(),
    }
}

/// A time without fractions of a second.
pub(super) fn time(value: &Value, name: &str) -> String {
    let text = field(value, name);
    match text.split_once('.') {
        Some((seconds, _)) => format!("{}Z", seconds),
        None => text,
    }
}

/// What each failure would undo, of a plan that was checked.
pub(crate) fn if_fails(checked: &Value) -> String {
    let mut text = String::new();
    for fails in checked.get("if_fails").and_then(Value::as_array).into_iter().flatten() {
        let undone = fails.get("undone").and_then(Value::as_array).into_iter().flatten();
        let names = undone.map(|one| match one.get("if_begun") == Some(&Value::Bool(true)) {
            true => format!("{} (if it has begun)", field(one, "step")),
            false => field(one, "step"),
        });
        let names = names.collect::<Vec<_>>().join(", ");
        let names =
            if names.is_empty() { "nothing is undone".to_owned() } else { format!("undone: {names}") };
        text += &clean(&format!("If {} fails for good, {names}", field(fails, "step")));
        text.push('\n');
    }
    if checked.get("if_fails_cut") == Some(&Value::Bool(true)) {
        text += "The plan has more steps than are shown here.\n";
    }
    text
}

/// Shows a list.
pub(super) fn list(items: &[Value], form: Form, name: &str, columns: &[Column]) {
    match form {
        Form::Json => items.iter().for_each(|item| print(&format!("{item}\n"))),
        Form::Name => items.iter().for_each(|item| print(&format!("{}\n", field(item, name)))),
        Form::Table => print(&table(items, columns)),
    }
}

/// Shows one thing.
pub(super) fn one(item: &Value, form: Form, name: &str) {
    match form {
        Form::Json => print(&format!("{item:#}\n")),
        Form::Name => print(&format!("{}\n", field(item, name))),
        Form::Table => {
            let fields =
                item.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
            let width = fields.iter().map(|name| name.chars().count()).max().unwrap_or(0);
            for name in fields.iter().filter(|name| !field(item, name).is_empty()) {
                print(&format!("{name:width$}  {}\n", clean(&field(item, name))));
            }
        }
    }
}

fn table(items: &[Value], columns: &[Column]) -> String {
    let mut rows: Vec<Vec<String>> = vec![columns.iter().map(|(head, _)| (*head).to_owned()).collect()];
    rows.extend(items.iter().map(|item| columns.iter().map(|(_, read)| clean(&read(item))).collect()));
    let width = |n: usize| {
        rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += cell;
            line += &" ".repeat(width - cell.chars().count() + 2);
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// What comes from outside must not move the cursor.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
