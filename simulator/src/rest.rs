//! A call to one of the systems that speak REST: which route it takes, and what stands in it.

use std::future::Future;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::world::World;

/// A call that has a route.
#[derive(Clone, Debug)]
pub struct Call {
    /// `POST /api/v1/volumes/{id}/attach`: the match on it says what is done.
    pub route: &'static str,
    /// What stands where the route has braces, decoded.
    pub args: Vec<String>,
    /// The query, decoded.
    pub query: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
}

impl Call {
    /// Reads a request; without a route of these, nothing. A body of more than 8 MiB is cut off, and reads as nonsense.
    pub async fn read(routes: &'static [&'static str], request: Request<Body>) -> Option<Call> {
        let (head, body) = request.into_parts();
        let (route, args) = routes.iter().find_map(|route| {
            let (method, pattern) = route.split_once(' ')?;
            (method == head.method.as_str())
                .then(|| matches(pattern, head.uri.path()))
                .flatten()
                .map(|args| (*route, args))
        })?;
        let query = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
        let body = to_bytes(body, 8 << 20).await.unwrap_or_default();
        Some(Call { route, args, query, body })
    }

    /// The name that faults and counts go by: the route without the part that all of them share.
    pub fn command(&self, shared: &str) -> String {
        self.route.replacen(&format!(" {shared}/"), " /", 1)
    }

    /// What stands at the n-th brace.
    pub fn arg(&self, n: usize) -> &str {
        self.args.get(n).map_or("", String::as_str)
    }

    /// A part of the query; an empty one counts as left out.
    pub fn asked(&self, name: &str) -> Option<&str> {
        self.all(name).next().filter(|value| !value.is_empty())
    }

    /// A part of the query that may be there several times.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.query.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON. No body is an empty object.
    pub fn json<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_slice(if self.body.is_empty() { b"{}" } else { &self.body })
    }
}

/// Does it to its end, whether the client waits for the answer or not.
pub async fn to_the_end<T: Send + 'static>(
    world: &World,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let (done, answer) = oneshot::channel();
    world.spawn(async move {
        let _ = done.send(work.await);
    });
    match answer.await {
        Ok(answer) => answer,
        // The data centre is stopped: nobody answers any more.
        Err(_) => std::future::pending().await,
    }
}

fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut args = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(args),
            (Some(part), Some(value)) if part.starts_with('{') && !value.is_empty() => {
                args.push(percent_decode_str(value).decode_utf8_lossy().into_owned());
            }
            (Some(part), Some(value)) if part == value => (),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_may_hold_an_escaped_slash_and_a_space() {
        let path = "/api/v1/vms/%2FDatabanxDC%2Fvm%2FPayroll%20Server%202016/cbt-status";
        let args = matches("/api/v1/vms/{path}/cbt-status", path);
        assert_eq!(args, Some(vec!["/DatabanxDC/vm/Payroll Server 2016".to_owned()]));
        assert_eq!(matches("/volumes/{id}", "/volumes/"), None);
        assert_eq!(matches("/volumes/{id}", "/volumes/7/device"), None);
    }
}
