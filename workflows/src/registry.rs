//! The workflows there are.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_machine::Catalog;

use crate::problem::{Problem, Rule, clipped};
use crate::{Template, Workflow, limits};

/// Workflows by name.
#[derive(Clone, Default)]
pub struct Workflows {
    known: BTreeMap<String, Arc<dyn Workflow>>,
}

impl Workflows {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. A name stands for one workflow: if it is taken, that is a problem.
    pub fn insert(&mut self, workflow: Arc<dyn Workflow>) -> Result<(), Problem> {
        let name = workflow.name().to_owned();
        if self.known.contains_key(&name) {
            let message = format!("there is a workflow \"{}\" already", clipped(&name));
            return Err(Problem::new(Rule::Name, "workflow", message));
        }
        self.known.insert(name, workflow);
        Ok(())
    }

    /// Adds the workflows of every file `*.yaml`, `*.yml` and `*.json` of a directory. If anything is wrong nothing is
    /// added, and everything that is wrong is told.
    pub fn load_dir(&mut self, dir: &Path, catalog: &dyn Catalog) -> Result<(), Vec<Problem>> {
        self.load(&files(dir)?, catalog)
    }

    /// The files of a path: the file itself, or every file `*.yaml`, `*.yml` and `*.json` of a directory, by name. What
    /// begins with a dot is an editor's.
    pub fn files(path: &Path) -> Result<Vec<PathBuf>, Vec<Problem>> {
        if path.is_dir() { files(path) } else { Ok(vec![path.to_owned()]) }
    }

    /// Adds the workflows of these files. If anything is wrong nothing is added.
    pub fn load(&mut self, files: &[PathBuf], catalog: &dyn Catalog) -> Result<(), Vec<Problem>> {
        let mut all = self.clone();
        let mut wrong = Vec::new();
        for file in files {
            let template = read(file).and_then(|text| Template::load(&text, catalog));
            let template =
                template.map_err(|problems| problems.into_iter().map(|problem| problem.in_file(file)));
            match template {
                Ok(template) => {
                    wrong.extend(all.insert(Arc::new(template)).err().map(|problem| problem.in_file(file)))
                }
                Err(problems) => wrong.extend(problems),
            }
        }
        if wrong.is_empty() {
            *self = all;
            Ok(())
        } else {
            Err(wrong)
        }
    }

    /// The workflow of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Workflow>> {
        self.known.get(name)
    }

    /// All of them, by name.
    pub fn list(&self) -> impl Iterator<Item = &Arc<dyn Workflow>> {
        self.known.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

impl fmt::Debug for Workflows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.known.keys()).finish()
    }
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, Vec<Problem>> {
    let unreadable = |error: std::io::Error| {
        vec![Problem::new(Rule::File, "", format!("the directory cannot be read: {error}")).in_file(dir)]
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let ending = path.extension().map(|ending| ending.to_string_lossy().into_owned());
        if !hidden && matches!(ending.as_deref(), Some("yaml" | "yml" | "json")) && !path.is_dir() {
            files.push(path);
        }
        if files.len() > limits::FILES {
            let message = format!("the directory has more than {} workflows", limits::FILES);
            return Err(vec![Problem::new(Rule::Limit, "", message).in_file(dir)]);
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file, but not one that never ends.
fn read(file: &Path) -> Result<String, Vec<Problem>> {
    use std::io::Read;
    let wrong = |rule, message: String| vec![Problem::new(rule, "", message)];
    let unreadable = |error: std::io::Error| wrong(Rule::File, format!("the file cannot be read: {error}"));
    // To open a pipe is to wait for somebody to write to it.
    if !std::fs::metadata(file).map_err(unreadable)?.is_file() {
        return Err(wrong(Rule::File, "this is no file".into()));
    }
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let mut bytes = Vec::new();
    opened.take(limits::FILE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > limits::FILE_BYTES {
        return Err(wrong(Rule::Limit, format!("the file has more than {} bytes", limits::FILE_BYTES)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(error.as_bytes().get(..at).unwrap_or_default()).into_owned();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        vec![Problem::new(Rule::Form, "", "this is no UTF-8").at(Some(crate::Mark { line, column }))]
    })
}
