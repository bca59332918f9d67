//! The files in the documents are workflows.

use std::path::Path;

use backstay_workflows::Template;

use crate::support::{activities, listed};

#[test]
fn every_workflow_in_the_documents_is_right() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/workflows.md");
    let page = std::fs::read_to_string(page).unwrap();
    let shown: Vec<_> = page
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```"))
        .map(|(file, _)| file)
        .collect();
    let whole: Vec<_> = shown.iter().filter(|file| file.contains("workflow:")).collect();
    assert!(whole.len() >= 2);
    for file in whole {
        if let Err(problems) = Template::load(file, &activities()) {
            panic!("{}{file}", listed(&problems));
        }
    }
}
