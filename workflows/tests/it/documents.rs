//! The files in the documents are workflows.

use std::path::Path;

use backstay_workflows::{Template, Workflow};

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
    for (n, file) in whole.into_iter().enumerate() {
        let template = Template::load(file, &activities());
        let template = template.unwrap_or_else(|problems| panic!("{}{file}", listed(&problems)));
        // What the page shows of the first one is what the command prints.
        let version = &template.version()[..12];
        assert!(n > 0 || page.contains(&format!("restart  {version}  Restart")), "{version}");
    }
}
