//! Calls that only look are made again where that may help; those that change something are made once, whatever happens.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_activities::cloudstack::{CloudStack, CloudStackSettings};
use backstay_activities::daemon::{Daemon, DaemonSettings};
use backstay_activities::linstor::{Linstor, LinstorSettings};
use backstay_activities::remote::{Kind, Looks, SecretName, Trouble, Word};
use backstay_activities::secrets::NoSecrets;
use backstay_activities::vma::{VCenter, Vma, VmaSettings};
use backstay_engine::Span;
use serde_json::json;

use crate::cloudstack::form;
use crate::support::{Heard, Reply, Target, secrets_for};

/// A call of a client, with whatever it gives thrown away.
type Made = Pin<Box<dyn Future<Output = Result<(), Trouble>> + Send>>;

/// A way to make a call.
type Way = fn(&Clients) -> Made;

/// A way of each client to look, and to change something; and how a good look is answered.
struct Clients {
    target: Arc<Target>,
    all: Vec<(&'static str, Way, Way)>,
    cloudstack: CloudStack,
    daemon: Daemon,
    vma: Vma,
    linstor: Linstor,
    vcenter: VCenter,
    dir: tempfile::TempDir,
}

fn good(heard: &Heard) -> Reply {
    match heard.path.as_str() {
        "/client/api" => Reply::json(200, json!({ "listzonesresponse": {} })),
        path if path.ends_with("/device") => Reply::json(200, json!({ "volume_uuid": "v" })),
        path if path.contains("power-state") => {
            Reply::json(200, json!({ "vm_id": "u", "power_state": "poweredOff" }))
        }
        _ => Reply::json(200, json!([])),
    }
}

async fn clients(looks: Looks, answer: impl Fn(&Heard, usize) -> Reply + Send + Sync + 'static) -> Clients {
    let target = Target::new(answer).await;
    let texts = [("cloudstack-api-key", "a key"), ("cloudstack-secret-key", "a secret"), ("vc", "password")];
    let (dir, secrets) = secrets_for(&target, &texts);
    let timeout = Span::secs(3);
    let cloudstack = CloudStackSettings { url: target.origin(), timeout, looks, ..Default::default() };
    let daemon = DaemonSettings { url: target.url("/api/v1"), timeout, looks, ..Default::default() };
    let vma = VmaSettings { url: target.url("/api/v1"), power_timeout: timeout, looks, ..Default::default() };
    let linstor = LinstorSettings { url: target.origin(), timeout, looks, ..Default::default() };
    let (host, datacenter, password) = ("vc.example".into(), "DC1".into(), SecretName::new("vc"));
    Clients {
        target: Arc::new(target),
        all: vec![
            (
                "CloudStack",
                |all| made(&all.cloudstack, |one| async move { one.list_zones().await.map(drop) }),
                |all| made(&all.cloudstack, |one| async move { one.start_vm("v", None).await.map(drop) }),
            ),
            (
                "the Volume Daemon",
                |all| made(&all.daemon, |one| async move { one.device("v").await.map(drop) }),
                |all| made(&all.daemon, |one| async move { one.attach("v", "m").await.map(drop) }),
            ),
            (
                "the VMA",
                |all| {
                    let vcenter = all.vcenter.clone();
                    made(&all.vma, |one| async move { one.power_state("u", &vcenter).await.map(drop) })
                },
                |all| {
                    let vcenter = all.vcenter.clone();
                    made(&all.vma, |one| async move { one.power_off("u", &vcenter, false).await.map(drop) })
                },
            ),
            (
                "LINSTOR",
                |all| made(&all.linstor, |one| async move { one.resources("r").await.map(drop) }),
                |all| made(&all.linstor, |one| async move { one.create_snapshot("r", "s").await }),
            ),
        ],
        cloudstack: CloudStack::new(cloudstack, Arc::clone(&secrets)).unwrap(),
        daemon: Daemon::new(daemon, Arc::new(NoSecrets)).unwrap(),
        vma: Vma::new(vma, secrets).unwrap(),
        linstor: Linstor::new(linstor, Arc::new(NoSecrets)).unwrap(),
        vcenter: VCenter { host, datacenter, username: Word::Plain("anna".into()), password },
        dir,
    }
}

fn made<C, F>(client: &C, call: impl FnOnce(C) -> F) -> Made
where
    C: Clone,
    F: Future<Output = Result<(), Trouble>> + Send + 'static,
{
    Box::pin(call(client.clone()))
}

fn quick(tries: u32) -> Looks {
    Looks { tries, first: Span::millis(5), ceiling: Span::millis(20) }
}

/// All that can go wrong with a call and be over the next moment.
fn passing() -> Vec<(&'static str, Reply)> {
    let page = || "<html><body>Bad Gateway</body></html>".to_owned();
    vec![
        ("a reset", Reply::Silence(Duration::ZERO)),
        ("half a body", Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"a\": ".to_vec())),
        ("half a body that looks whole", Reply::Say(200, Vec::new(), "{\"listzonesresponse\": {".into())),
        ("nothing", Reply::status(200)),
        ("nothing, with 404", Reply::status(404)),
        ("a 404 that breaks off", Reply::Say(404, Vec::new(), "{\"error\": \"not fou".into())),
        ("garbage", Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec())),
        ("429", Reply::status(429)),
        ("500", Reply::status(500)),
        ("502", Reply::Say(502, Vec::new(), page())),
        ("503", Reply::status(503).with("retry-after: 0")),
        ("a page of HTML", Reply::Say(200, Vec::new(), page())),
    ]
}

#[tokio::test]
async fn what_looks_is_asked_again_and_what_changes_is_sent_once() {
    for (what, reply) in passing() {
        let first = reply.clone();
        let all = clients(quick(3), move |heard, nth| if nth % 3 == 0 { good(heard) } else { first.clone() });
        let all = all.await;
        for (n, (name, look, _)) in all.all.iter().enumerate() {
            look(&all).await.unwrap_or_else(|trouble| panic!("{name} after {what}: {trouble:?}"));
            assert_eq!(all.target.heard().len(), 3 * (n + 1), "{name} after {what}");
        }
        let all = clients(quick(3), move |_, _| reply.clone()).await;
        for (n, (name, _, change)) in all.all.iter().enumerate() {
            let ended = change(&all).await;
            assert!(ended.is_err(), "{name} after {what}: {ended:?}");
            assert_eq!(all.target.heard().len(), n + 1, "{name} after {what}: it is sent once");
        }
        // And looks are not made without end.
        let before = all.target.heard().len();
        for (n, (name, look, _)) in all.all.iter().enumerate() {
            look(&all).await.expect_err(name);
            assert_eq!(all.target.heard().len() - before, 3 * (n + 1), "{name} after {what}");
        }
    }
}

/// Asking again does not help there, and may lock an account.
#[tokio::test]
async fn what_was_answered_for_good_is_not_asked_again() {
    let of = |status, body: &str| Reply::Say(status, Vec::new(), body.to_owned());
    for (name, reply, calls) in [
        ("CloudStack", of(431, "{\"r\": {\"errorcode\": 431, \"errortext\": \"no\"}}"), 1),
        // Once by the credentials and the clock of that moment.
        ("CloudStack", of(401, "{\"r\": {\"errorcode\": 401, \"errortext\": \"who?\"}}"), 2),
        ("CloudStack", of(200, "{\"r\": {\"zones\": 1}}"), 1),
        ("the Volume Daemon", of(404, "{\"error\": \"mapping not found\"}"), 1),
        ("the Volume Daemon", of(200, "{\"volume_uuid\": {}}"), 1),
        ("the VMA", of(401, "no"), 1),
        ("the VMA", of(500, "Cannot complete login due to an incorrect user name or password."), 1),
        ("LINSTOR", of(500, "[{\"ret_code\": -4611686018409823740, \"message\": \"it is there\"}]"), 1),
    ] {
        let told = reply.clone();
        let all = clients(quick(4), move |_, _| told.clone()).await;
        let (_, look, _) = all.all.iter().find(|(one, ..)| *one == name).unwrap();
        let ended = look(&all).await;
        assert_eq!(all.target.heard().len(), calls, "{name}: {reply:?}: {ended:?}");
    }
}

#[tokio::test]
async fn each_look_is_signed_with_the_credentials_of_its_moment() {
    let key: Arc<std::sync::Mutex<Option<std::path::PathBuf>>> = Arc::default();
    let file = Arc::clone(&key);
    let all = clients(quick(3), move |heard, nth| {
        if nth == 3 {
            return good(heard);
        }
        let path = file.lock().unwrap().clone().unwrap();
        std::fs::write(path, format!("key {nth}")).unwrap();
        Reply::status(503)
    });
    let all = all.await;
    *key.lock().unwrap() = Some(all.dir.path().join("cloudstack-api-key"));
    all.cloudstack.list_zones().await.unwrap();
    let heard: Vec<_> = all.target.heard().iter().map(form).collect();
    let keys: Vec<_> = heard.iter().map(|sent| sent["apikey"].as_str()).collect();
    assert_eq!(keys, ["a key", "key 1", "key 2"]);
    assert!(heard[0]["signature"] != heard[1]["signature"]);
}

#[tokio::test]
async fn the_rest_that_is_asked_for_is_given_as_long_as_there_is_time() {
    let busy = |seconds: u64| Reply::status(429).with(&format!("retry-after: {seconds}"));
    let all = clients(quick(4), move |heard, nth| if nth % 2 == 0 { good(heard) } else { busy(1) }).await;
    for (name, look, _) in &all.all {
        let begun = Instant::now();
        look(&all).await.unwrap_or_else(|trouble| panic!("{name}: {trouble:?}"));
        assert!(begun.elapsed() >= Duration::from_secs(1), "{name}: {:?}", begun.elapsed());
    }
    // More than there is: the engine waits, and not the call.
    let all = clients(quick(4), move |_, _| busy(60)).await;
    for (name, look, _) in &all.all {
        let begun = Instant::now();
        let trouble = look(&all).await.unwrap_err();
        let wanted = (Kind::Busy, Some(Duration::from_secs(60)));
        assert_eq!((trouble.kind(), trouble.wants_rest()), wanted, "{name}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{name}: {:?}", begun.elapsed());
    }
    assert_eq!(all.target.heard().len(), all.all.len());
}

/// However often it is tried, the time of the whole call is all there is.
#[tokio::test]
async fn a_look_that_is_made_again_has_no_more_time_than_one() {
    let all = clients(quick(1_000), |_, _| Reply::Silence(Duration::from_millis(700))).await;
    for (name, look, _) in &all.all {
        let begun = Instant::now();
        assert_eq!(look(&all).await.unwrap_err().kind(), Kind::Unanswered, "{name}");
        let took = begun.elapsed();
        assert!((Duration::from_secs(2)..Duration::from_secs(5)).contains(&took), "{name}: {took:?}");
    }
    assert!(all.target.heard().len() > 8);
}
