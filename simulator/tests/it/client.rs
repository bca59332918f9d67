//! A small client of CloudStack for the tests: it signs by itself, so that a mistake in the server's signing shows.

use std::time::{Duration, Instant};

use axum::body::Body;
use backstay_simulator::world::estate;
use backstay_simulator::world::things::{VmState, Volume};
use backstay_simulator::world::{State, Violation};
use backstay_simulator::{Datacentre, Start};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

/// A data centre with four source VMs, fast, and who asks it.
pub struct Site {
    pub site: Datacentre,
    pub cloud: Cloud,
}

/// Starts one; `set` changes what there is before it starts.
pub async fn site(set: impl FnOnce(&mut State)) -> Site {
    let mut state = estate::small();
    state.settings.pace = 0.002;
    // Nobody fails over while the source runs, unless the test is about that.
    state.sources.values_mut().for_each(|s| s.power = backstay_simulator::world::things::Power::Off);
    set(&mut state);
    let cloud =
        |site: &Datacentre| Cloud::of(&site.cloudstack_url(), site.world().look(|s| s.accounts[0].clone()));
    let site = Datacentre::start(Start::with(state)).await.unwrap();
    let cloud = cloud(&site);
    Site { site, cloud }
}

impl Site {
    pub fn oma(&self) -> String {
        self.site.world().look(|state| state.oma.to_string())
    }

    pub fn volume(&self, id: Uuid) -> Volume {
        self.site.world().look(|state| state.volumes[&id].clone())
    }

    pub fn vm_state(&self, id: &str) -> VmState {
        self.site.world().look(|state| state.vms[&id.parse().unwrap()].state)
    }

    /// The invariants that were broken, each once, in order.
    pub fn broken(&self) -> Vec<String> {
        let mut names: Vec<String> = self.violations().into_iter().map(|v| v.invariant).collect();
        names.dedup();
        names
    }

    pub fn violations(&self) -> Vec<Violation> {
        self.site.truth().violations()
    }

    /// A VM without storage of its own: what a failover deploys. Its blank root is dropped if `bare`.
    pub async fn deploy(&self, name: &str, bare: bool) -> String {
        self.deploy_in(name, bare, "test-lan").await
    }

    pub async fn deploy_in(&self, name: &str, bare: bool, network: &str) -> String {
        let network = estate::id("network", network).to_string();
        let told = self
            .cloud
            .job(
                "deployVirtualMachine",
                &[
                    ("zoneid", &estate::id("zone", "zone-1").to_string()),
                    ("serviceofferingid", &estate::id("service-offering", "custom").to_string()),
                    ("templateid", &estate::id("template", "tiny").to_string()),
                    ("networkids", &network),
                    ("name", name),
                    ("startvm", "false"),
                    ("details[0].cpuNumber", "2"),
                    ("details[0].memory", "2048"),
                ],
            )
            .await
            .unwrap();
        let vm = told["virtualmachine"]["id"].as_str().unwrap().to_owned();
        if bare {
            let listed = self.cloud.ok("listVolumes", &[("virtualmachineid", &vm), ("type", "ROOT")]).await;
            let root = listed["volume"][0]["id"].as_str().unwrap().to_owned();
            self.cloud.job("detachVolume", &[("id", &root)]).await.unwrap();
            self.cloud.ok("deleteVolume", &[("id", &root)]).await;
        }
        vm
    }

    /// Takes a replica from the OMA and attaches it elsewhere.
    pub async fn move_to(&self, volume: Uuid, vm: &str, device: Option<&str>) {
        let volume = volume.to_string();
        self.cloud.job("detachVolume", &[("id", &volume)]).await.unwrap();
        let mut params = vec![("id", volume.as_str()), ("virtualmachineid", vm)];
        params.extend(device.map(|device| ("deviceid", device)));
        self.cloud.job("attachVolume", &params).await.unwrap();
    }
}

/// An answer: its status and its body.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub status: u16,
    pub body: String,
    pub kind: String,
}

/// An error of CloudStack: its code, and its text.
pub type No = (u16, String);

#[derive(Clone)]
pub struct Cloud {
    pub address: String,
    pub key: String,
    pub secret: String,
    pub post: bool,
    /// How far from now its signatures end, with version 3; none: version 2.
    pub expires: Option<i64>,
}

impl Cloud {
    pub fn of(url: &str, account: backstay_simulator::world::things::Account) -> Cloud {
        let address = url.strip_prefix("http://").unwrap().strip_suffix("/client/api").unwrap().to_owned();
        Cloud { address, key: account.key, secret: account.secret, post: true, expires: Some(600) }
    }

    /// The query of a call, signed.
    pub fn signed(&self, command: &str, params: &[(&str, &str)]) -> String {
        let mut all: Vec<(String, String)> =
            params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        all.push(("command".into(), command.into()));
        all.push(("apikey".into(), self.key.clone()));
        all.push(("response".into(), "json".into()));
        if let Some(seconds) = self.expires {
            let until = chrono::Utc::now() + chrono::TimeDelta::seconds(seconds);
            all.push(("signatureversion".into(), "3".into()));
            all.push(("expires".into(), until.format("%Y-%m-%dT%H:%M:%S+0000").to_string()));
        }
        all.sort();
        let to_sign =
            all.iter().map(|(k, v)| format!("{k}={}", java(v))).collect::<Vec<_>>().join("&").to_lowercase();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, self.secret.as_bytes());
        all.push(("signature".into(), base64(ring::hmac::sign(&key, to_sign.as_bytes()).as_ref())));
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(all).finish()
    }

    /// A call, as it comes back.
    pub async fn raw(&self, command: &str, params: &[(&str, &str)]) -> anyhow::Result<Told> {
        let query = self.signed(command, params);
        if self.post {
            http(&self.address, "POST", "/client/api", Some(query)).await
        } else {
            http(&self.address, "GET", &format!("/client/api?{query}"), None).await
        }
    }

    /// A call: what is in the envelope, or the error.
    pub async fn call(&self, command: &str, params: &[(&str, &str)]) -> Result<Value, No> {
        let told = self.raw(command, params).await.unwrap();
        let body: Value = serde_json::from_str(&told.body).unwrap_or_else(|_| panic!("{told:?}"));
        let (name, inner) = body.as_object().unwrap().iter().next().unwrap();
        if told.status == 200 {
            assert_eq!(name, &format!("{}response", command.to_lowercase()));
            return Ok(inner.clone());
        }
        assert_eq!(inner["errorcode"], told.status, "{body}");
        Err((told.status, inner["errortext"].as_str().unwrap().to_owned()))
    }

    /// A call that must succeed.
    pub async fn ok(&self, command: &str, params: &[(&str, &str)]) -> Value {
        self.call(command, params).await.unwrap_or_else(|no| panic!("{command} {params:?}: {no:?}"))
    }

    /// A job: its result once it is over.
    pub async fn job(&self, command: &str, params: &[(&str, &str)]) -> Result<Value, No> {
        let told = self.call(command, params).await?;
        self.wait(told["jobid"].as_str().unwrap()).await
    }

    pub async fn wait(&self, job: &str) -> Result<Value, No> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let told = self.call("queryAsyncJobResult", &[("jobid", job)]).await?;
            match told["jobstatus"].as_u64().unwrap() {
                1 => return Ok(told.get("jobresult").cloned().unwrap_or(json!({}))),
                2 => {
                    let code = u16::try_from(told["jobresultcode"].as_u64().unwrap()).unwrap();
                    let result = &told["jobresult"];
                    let text = result.as_str().or(result["errortext"].as_str()).unwrap().to_owned();
                    return Err((code, text));
                }
                _ => assert!(Instant::now() < until, "the job never ends: {told}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A request on a connection of its own.
pub async fn http(address: &str, method: &str, path: &str, body: Option<String>) -> anyhow::Result<Told> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", address)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(body.unwrap_or_default()))?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let kind =
        response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    let body = axum::body::to_bytes(Body::new(response.into_body()), 64 << 20).await?;
    Ok(Told { status, body: String::from_utf8(body.to_vec())?, kind })
}

fn java(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'*' | b'_' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    let letters: Vec<char> = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']).collect();
    let bits: String = bytes.iter().map(|byte| format!("{byte:08b}")).collect();
    let sixes = bits.as_bytes().chunks(6).map(|six| {
        let six = format!("{:0<6}", std::str::from_utf8(six).unwrap());
        letters[usize::from_str_radix(&six, 2).unwrap()]
    });
    let text: String = sixes.collect();
    format!("{text}{}", "=".repeat((4 - text.len() % 4) % 4))
}
