//! A small data centre and somebody who calls it.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use backstay_simulator::truth::Truth;
use backstay_simulator::world::things::{Content, Power, Vm, VmState};
use backstay_simulator::world::{State, World, estate};
use backstay_simulator::{Datacentre, Start};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use uuid::Uuid;

/// A data centre with a directory for its devices.
pub struct Site {
    pub centre: Datacentre,
    pub devices: TempDir,
}

/// What came back.
#[derive(Debug)]
pub struct Told {
    pub status: u16,
    pub kind: String,
    pub text: String,
}

impl Told {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The body, of an answer with this status.
    #[track_caller]
    pub fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.json()
    }
}

impl Site {
    pub async fn small() -> Self {
        Self::with(|_| ()).await
    }

    /// A thousand times as fast as the real thing, unless `change` says otherwise.
    pub async fn with(change: impl FnOnce(&mut State)) -> Self {
        let devices = tempfile::tempdir().unwrap();
        let mut state = estate::small();
        state.settings.pace = 0.001;
        state.settings.device_dir = Some(devices.path().to_owned());
        add_destination(&mut state);
        change(&mut state);
        let centre = Datacentre::start(Start::with(state)).await.unwrap();
        Self { centre, devices }
    }

    pub fn world(&self) -> &World {
        self.centre.world()
    }

    pub fn truth(&self) -> &Truth {
        self.centre.truth()
    }

    pub fn oma(&self) -> Uuid {
        self.world().look(|state| state.oma)
    }

    pub async fn daemon(&self, call: &str, body: Option<Value>) -> Told {
        self.call(&format!("{}/api/v1", self.centre.daemon_url()), call, body).await
    }

    pub async fn vma(&self, call: &str, body: Option<Value>) -> Told {
        self.call(&format!("{}/api/v1", self.centre.vma_url()), call, body).await
    }

    pub async fn linstor(&self, call: &str, body: Option<Value>) -> Told {
        self.call(&format!("{}/v1", self.centre.linstor_url()), call, body).await
    }

    /// `GET /path`, with a body or without.
    pub async fn call(&self, base: &str, call: &str, body: Option<Value>) -> Told {
        self.try_call(base, call, body).await.unwrap()
    }

    pub async fn try_call(&self, base: &str, call: &str, body: Option<Value>) -> anyhow::Result<Told> {
        let (method, path) = call.split_once(' ').unwrap();
        let prefix = prefix_of(base);
        let host = base.strip_prefix("http://").unwrap().strip_suffix(prefix).unwrap();
        let request = Request::builder().method(method).uri(format!("{prefix}{path}")).header("host", host);
        let request = request.header("content-type", "application/json");
        let request = request.body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))?;
        let stream = TcpStream::connect(host).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        let kind = answer.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await?;
        Ok(Told { status, kind, text: String::from_utf8(body.to_vec())? })
    }

    /// Waits until something is so; a test that waits for what never comes fails.
    pub async fn until(&self, what: &str, so: impl FnMut(&State) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(30), self.world().until(so)).await;
        assert!(waited.is_ok(), "in half a minute it never was so: {what}");
    }

    pub fn content(&self, volume: Uuid) -> Content {
        self.world().look(|state| state.volumes[&volume].content.clone())
    }

    pub fn holders(&self, volume: Uuid) -> BTreeSet<Uuid> {
        self.truth().holders(volume)
    }

    /// The names of the invariants that were broken.
    pub fn broken(&self) -> Vec<String> {
        self.truth().violations().into_iter().map(|violation| violation.invariant).collect()
    }
}

/// The keys of an object, in order.
pub fn keys(value: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = value
        .as_object()
        .unwrap_or_else(|| panic!("no object: {value}"))
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    keys
}

/// A VM without a root, off, in a network for tests: what a failover attaches disks to.
pub fn destination() -> Uuid {
    estate::id("vm", "destination")
}

fn add_destination(state: &mut State) {
    let like = &state.vms[&estate::id("vm", "jump-host")];
    let mut vm = Vm { id: destination(), name: "destination".to_owned(), ..like.clone() };
    (vm.state, vm.power, vm.host) = (VmState::Stopped, Power::Off, None);
    vm.nics[0].id = estate::id("nic", "destination");
    vm.nics[0].network = estate::id("network", "test-lan");
    state.vms.insert(vm.id, vm);
}

/// `/api/v1` of `http://127.0.0.1:1/api/v1`.
fn prefix_of(base: &str) -> &str {
    base.splitn(4, '/').nth(3).map_or("", |rest| &base[base.len() - rest.len() - 1..])
}
