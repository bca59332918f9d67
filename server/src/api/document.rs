//! The document of the API, OpenAPI 3.1, out of the table of operations.
#![allow(clippy::indexing_slicing, reason = "into JSON that is written here, of no data from outside")]

use std::collections::BTreeSet;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::BASE;
use super::operation::Operation;
use super::problem::{
    AWAY, BAD_REQUEST, CATALOGUE, FORBIDDEN, INTERNAL, Kind, TOO_LARGE, TOO_SLOW, UNAUTHENTICATED,
    UNSUPPORTED,
};

/// Writes the document.
pub fn document(operations: &[Operation]) -> Value {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|s| s.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths = Map::new();
    let mut tags = BTreeSet::new();
    for operation in operations {
        tags.insert(operation.tag);
        let types = (operation.describe)(&mut generator);
        let mut parameters = parameters("path", types.path.as_value());
        parameters.extend(self::parameters("query", types.query.as_value()));
        let writes = operation.method != axum::http::Method::GET;
        if writes {
            parameters.push(json!({
                "name": "Idempotency-Key", "in": "header", "required": false,
                "description": "Asking again under the same key is the same asking: it is done once and answered the same.",
                "schema": { "type": "string", "minLength": 1, "maxLength": 150, "pattern": "^[!-~]+$" },
            }));
            parameters.push(json!({
                "name": "If-Match", "in": "header", "required": false,
                "description": "The ETag that was seen: refused if what it is about has changed since.",
                "schema": { "type": "string", "pattern": "^(\"[0-9]{1,18}\"|\\*)$" },
            }));
        }
        let mut answers = Map::new();
        for (status, content) in types.answers {
            let mut answer = json!({ "description": description(status) });
            if let Some((media, schema)) = content {
                answer["content"] = json!({ media: { "schema": schema } });
            }
            answers.insert(status.to_string(), answer);
        }
        for kind in problems_of(operation, types.body.is_some()) {
            let about = format!("{} (`{}`)", kind.title, kind.slug);
            let known = answers.entry(kind.status.to_string()).or_insert_with(|| {
                json!({
                    "description": "",
                    "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
                })
            });
            let before = known["description"].as_str().unwrap_or_default();
            known["description"] =
                json!(if before.is_empty() { about } else { format!("{before}; {about}") });
        }
        let summary = operation.about.split(". ").next().unwrap_or_default().trim_end_matches('.');
        let mut entry = json!({
            "operationId": operation.id,
            "tags": [operation.tag],
            "summary": summary,
            "description": format!("{}\n\nNeeds the right `{}`.", operation.about, operation.right),
            "parameters": parameters,
            "responses": answers,
            "security": [{ "token": [operation.right.name()] }],
            "x-right": operation.right.name(),
        });
        if let Some(body) = types.body {
            entry["requestBody"] =
                json!({ "required": true, "content": { "application/json": { "schema": body } } });
        }
        let path = paths.entry(format!("{BASE}{}", operation.path)).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = entry;
    }
    let mut schemas = generator.take_definitions(true);
    schemas.insert("Problem".into(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Backstay",
            "version": "1",
            "description": "Long, dangerous procedures on real infrastructure: journaled, resumed after any crash, undone \
                            when they fail.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags.into_iter().map(|tag| json!({ "name": tag })).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

/// The document, as it is printed and kept in the repository.
pub fn text() -> String {
    format!("{:#}\n", document(&super::operations()))
}

/// The catalogue of problems, as a page.
pub fn problems() -> String {
    let mut page = String::from(
        "# What can go wrong in the API\n\nErrors are answered as RFC 9457 problems: `application/problem+json` with a \
         `type` that never changes, and `detail` about the very case. This page is printed by `backstay openapi \
         --problems`; each type is also a page of the server, at its own path.\n",
    );
    for kind in CATALOGUE {
        page += &format!(
            "\n## {}\n\nStatus {}, type `/problems/{}`\n\n{}\n",
            kind.title, kind.status, kind.slug, kind.about
        );
    }
    page
}

/// What always can go wrong, and what is declared.
fn problems_of(operation: &Operation, has_body: bool) -> Vec<&'static Kind> {
    let mut all: Vec<&'static Kind> =
        vec![&BAD_REQUEST, &UNAUTHENTICATED, &FORBIDDEN, &TOO_LARGE, &INTERNAL, &AWAY];
    if has_body {
        all.push(&TOO_SLOW);
        all.push(&UNSUPPORTED);
    }
    all.extend(&operation.problems);
    all
}

fn parameters(place: &str, schema: &Value) -> Vec<Value> {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().collect();
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        let mut one = json!({
            "name": name, "in": place, "schema": schema,
            "required": place == "path" || required.iter().any(|one| *one == name),
        });
        if let Some(about) = about {
            one["description"] = about;
        }
        one
    };
    properties.iter().map(parameter).collect()
}

fn description(status: u16) -> &'static str {
    match status {
        201 => "It is there now",
        202 => "It is durable, and goes on by itself",
        204 => "It is done",
        _ => "Here it is",
    }
}

fn problem() -> Value {
    let types: Vec<_> = CATALOGUE.iter().map(|kind| format!("/problems/{}", kind.slug)).collect();
    json!({
        "type": "object",
        "description": "What went wrong (RFC 9457). The page at `type` says what to do.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string", "enum": types },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "request_id": { "type": "string" },
            "errors": { "type": "array", "items": { "type": "object" } },
        },
    })
}
