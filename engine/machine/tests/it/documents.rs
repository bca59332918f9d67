//! The plans in the documents are plans.

use std::path::Path;

use backstay_machine::plan::Effect;
use backstay_machine::{ActivitySpec, Catalog, Plan};
use serde_json::json;

/// Takes every name for an activity that takes and gives anything.
struct Any(std::collections::BTreeMap<String, ActivitySpec>);

impl Catalog for Any {
    fn activity(&self, name: &str) -> Option<&ActivitySpec> {
        self.0.get(name)
    }
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

#[test]
fn every_plan_in_the_documents_is_a_plan() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plans.md");
    let page = std::fs::read_to_string(page).unwrap();
    let plans: Vec<_> = page
        .split("```json\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("\n```"))
        .map(|(plan, _)| plan)
        .collect();
    assert!(plans.len() >= 4);
    for plan in plans {
        let mut any = Any(std::collections::BTreeMap::new());
        for part in plan.split("\"activity\": \"").skip(1) {
            let name = part.split('"').next().unwrap();
            let spec = ActivitySpec {
                name: name.into(),
                input: json!({}),
                output: json!({}),
                effect: Effect::default(),
                pool: None,
            };
            any.0.insert(name.into(), spec);
        }
        if let Err(error) = Plan::check_json(plan, &any) {
            panic!("{error}\n{plan}");
        }
    }
}
