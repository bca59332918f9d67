//! What is wrong with a workflow or with an input, and where: all of it at once, within bounds, and safe to print.

use std::fmt;
use std::path::{Path, PathBuf};

use backstay_machine::CheckError;
use serde::{Serialize, Serializer};

/// How many problems one answer lists; the rest is counted.
pub(crate) const MOST: usize = 100;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Where in the text of the file.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// The place in the document, such as `steps[2].input.volume`; in an input, such as `disks[0].size`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// The rule that is broken.
    pub rule: Rule,
    /// What is wrong, for people.
    pub message: String,
}

/// A place in a text; both are counted from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Problem {
    pub(crate) fn new(rule: Rule, place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { file: None, mark: None, place: cut(&place.into(), 200), rule, message: tamed(&message.into()) }
    }

    pub(crate) fn at(mut self, mark: Option<Mark>) -> Self {
        self.mark = mark;
        self
    }

    pub(crate) fn in_file(mut self, file: &Path) -> Self {
        self.file = Some(file.to_owned());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}:", tamed(&file.to_string_lossy()))?;
        }
        if let Some(Mark { line, column }) = self.mark {
            write!(f, "{line}:{column}:")?;
        }
        if self.file.is_some() || self.mark.is_some() {
            f.write_str(" ")?;
        }
        if !self.place.is_empty() {
            write!(f, "{} ", self.place)?;
        }
        write!(f, "[{}]: {}", self.rule, self.message)
    }
}

/// The rules of workflows that are files, and of what they are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The file can be read.
    File,
    /// It is YAML or JSON of the right form.
    Form,
    /// It keeps within the limits.
    Limit,
    /// Names are unique and plain.
    Name,
    /// What an input looks like is said in a way that can be checked.
    Schema,
    /// An input is what the workflow says it takes.
    Input,
    /// An expression can be read, names only what there is, and gives what is wanted there.
    Expression,
    /// What steps say of each other leads to steps that are there.
    Reference,
    /// Every step is seen in some example, so that it was checked.
    Reach,
    /// A rule of plans; see `backstay_machine::plan::Rule`.
    Plan(backstay_machine::plan::Rule),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::File => "file",
            Rule::Form => "form",
            Rule::Limit => "limit",
            Rule::Name => "name",
            Rule::Schema => "schema",
            Rule::Input => "input",
            Rule::Expression => "expression",
            Rule::Reference => "reference",
            Rule::Reach => "reach",
            Rule::Plan(rule) => return write!(f, "plan {rule}"),
        })
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A list of problems that does not grow without end, and says a thing once.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<Problem>,
    more: usize,
}

impl Problems {
    pub(crate) fn add(&mut self, problem: Problem) {
        if self.found.contains(&problem) {
            return;
        }
        if self.found.len() < MOST {
            self.found.push(problem);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.add(problem));
    }

    pub(crate) fn any(&self) -> bool {
        !self.found.is_empty()
    }

    pub(crate) fn full(&self) -> bool {
        self.found.len() >= MOST
    }

    /// Everything that was found, in the order of the text.
    pub(crate) fn into_list(mut self) -> Vec<Problem> {
        self.found.sort_by_key(|problem| problem.mark.map(|mark| (mark.line, mark.column)));
        if self.more > 0 {
            let message = format!("and {} more problems", self.more);
            self.found.push(Problem::new(Rule::Limit, "", message));
        }
        self.found
    }

    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.any() { Err(self.into_list()) } else { Ok(value) }
    }
}

/// What is wrong with a plan, where nothing is known of the text it came from.
pub(crate) fn of_plan(error: CheckError) -> Vec<Problem> {
    let more = error.more;
    let mut problems: Vec<_> = error
        .problems
        .into_iter()
        .map(|problem| {
            let place = problem.step.map(|step| format!("step {}", clipped(&step))).unwrap_or_default();
            Problem::new(Rule::Plan(problem.rule), place, problem.message)
        })
        .collect();
    if more > 0 {
        problems.push(Problem::new(Rule::Limit, "", format!("and {more} more problems")));
    }
    problems
}

/// Text of strangers on a screen: what a terminal would obey, but for line breaks, is written out.
pub fn harmless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if is_hostile(c) && c != '\n' { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    out
}

/// Text of strangers between quotes in a message: short, and without anything that a terminal would obey.
pub(crate) fn clipped(text: &str) -> String {
    tamed(&cut(text, 80))
}

/// The same for a whole message.
fn tamed(message: &str) -> String {
    let mut out = String::new();
    for c in cut(message, 600).chars() {
        match c {
            '"' | '\'' | '\\' => out.push(c),
            c if is_hostile(c) || !c.is_ascii() => out.extend(c.escape_debug()),
            c => out.push(c),
        }
    }
    out
}

/// Characters that a screen obeys or that make a text look like another one.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
