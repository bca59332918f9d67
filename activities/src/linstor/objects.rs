//! Resources and snapshots of LINSTOR.

use serde::{Deserialize, Serialize};

use crate::remote::{Shape, decode, loose};

/// A snapshot of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are LINSTOR's")]
pub struct Snapshot {
    #[serde(deserialize_with = "loose::text")]
    pub name: String,
    #[serde(deserialize_with = "loose::text")]
    pub resource_name: String,
    /// Where it is to be.
    #[serde(default, deserialize_with = "loose::list")]
    pub nodes: Vec<String>,
    #[serde(default, deserialize_with = "loose::list")]
    pub flags: Vec<String>,
    /// What each node has of it.
    #[serde(default, deserialize_with = "loose::list")]
    pub snapshots: Vec<NodeSnapshot>,
    #[serde(default, deserialize_with = "loose::some_text")]
    pub uuid: Option<String>,
}

/// What one node has of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are LINSTOR's")]
pub struct NodeSnapshot {
    #[serde(deserialize_with = "loose::text")]
    pub node_name: String,
    #[serde(default, deserialize_with = "loose::list")]
    pub flags: Vec<String>,
    /// In milliseconds since 1970.
    #[serde(default, deserialize_with = "loose::some_number")]
    pub create_timestamp: Option<i64>,
}

impl Snapshot {
    /// Whether all of it is there, and can be put back: every node has it, and none says that it failed or goes.
    pub fn is_whole(&self) -> bool {
        let bad = |flag: &String| flag.starts_with("FAILED") || flag.starts_with("DELETE");
        let has = |node: &String| self.snapshots.iter().any(|one| one.node_name.eq_ignore_ascii_case(node));
        !self.nodes.is_empty()
            && self.nodes.iter().all(has)
            && !self.flags.iter().any(bad)
            && !self.snapshots.iter().any(|one| one.flags.iter().any(bad))
    }
}

/// A resource on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are LINSTOR's")]
pub struct Resource {
    #[serde(deserialize_with = "loose::text")]
    pub name: String,
    #[serde(deserialize_with = "loose::text")]
    pub node_name: String,
    #[serde(default, deserialize_with = "loose::list")]
    pub flags: Vec<String>,
    /// Not there while the node is away.
    #[serde(default)]
    pub state: Option<ResourceState>,
}

/// How a resource is on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are LINSTOR's")]
pub struct ResourceState {
    #[serde(default, deserialize_with = "loose::some_flag")]
    pub in_use: Option<bool>,
}

/// Whether anybody uses a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Somebody does.
    Used,
    /// Nobody does, as every node says.
    Free,
    /// A node does not say.
    Unknown,
}

/// Over all nodes of a resource.
pub fn in_use(all: &[Resource]) -> Use {
    let of = |one: &Resource| one.state.as_ref().and_then(|state| state.in_use);
    if all.iter().any(|one| of(one) == Some(true)) {
        Use::Used
    } else if !all.is_empty() && all.iter().all(|one| of(one) == Some(false)) {
        Use::Free
    } else {
        Use::Unknown
    }
}

/// Reads a list of snapshots.
pub fn snapshots(bytes: &[u8]) -> Result<Vec<Snapshot>, Shape> {
    decode(bytes)
}

/// Reads a resource on each of its nodes.
pub fn resources(bytes: &[u8]) -> Result<Vec<Resource>, Shape> {
    decode(bytes)
}
