//! The workflows that a server has.

use clap::ValueEnum;
use reqwest::Method;
use serde_json::{Value, json};

use super::args::Where;
use super::client::{Api, segment};
use crate::cli::Drawing;
use crate::config::Config;
use crate::trouble::Trouble;

/// Those of one server.
pub(crate) struct OfServer(Api);

impl OfServer {
    pub(crate) fn open(at: &Where, config: &Config) -> Result<Self, Trouble> {
        Api::at(at, config).map(Self)
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        self.0.address()
    }

    /// A line of each.
    pub(crate) async fn list(&self) -> Result<Vec<Value>, Trouble> {
        let all = self.0.get("/workflows", &[]).await?;
        Ok(all.as_array().cloned().unwrap_or_default())
    }

    /// All about one.
    pub(crate) async fn one(&self, name: &str) -> Result<Value, Trouble> {
        let mut one = self.0.get(&format!("/workflows/{}", segment(name)), &[]).await?;
        // As those of files are shown.
        if let Some(map) = one.as_object_mut() {
            let schema = map.remove("input").unwrap_or_default();
            map.insert("input_schema".into(), schema);
        }
        Ok(one)
    }

    /// The plan that one makes of an input.
    pub(crate) async fn plan(
        &self,
        name: &str,
        input: &Value,
        failing: Option<&String>,
    ) -> Result<Value, Trouble> {
        let path = format!("/workflows/{}/plan", segment(name));
        let query: Vec<_> = failing.map(|step| ("failing", step.clone())).into_iter().collect();
        self.0.ask(Method::POST, &path, &query, Some(&json!({ "input": input })), None).await?.json()
    }

    /// A picture of it.
    pub(crate) async fn picture(&self, name: &str, input: &Value, form: Drawing) -> Result<String, Trouble> {
        let path = format!("/workflows/{}/picture", segment(name));
        let form = form.to_possible_value().map(|form| form.get_name().to_owned()).unwrap_or_default();
        let body = json!({ "input": input });
        Ok(self.0.ask(Method::POST, &path, &[("as", form)], Some(&body), None).await?.text)
    }
}
