//! Nothing is called that the configuration does not allow, however it is spelt, and wherever its name leads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstay_activities::HttpSettings;
use backstay_activities::http::{Allowed, Call, CallError, Client, Names};
use backstay_engine::async_trait;
use reqwest::Method;
use reqwest::header::HeaderMap;
use url::Url;

use crate::support::{Reply, Target, here};

/// Names lead where the test says; one answer after the other, the last one for ever.
#[derive(Clone, Default)]
struct Stub {
    answers: Arc<Mutex<BTreeMap<String, Vec<Vec<IpAddr>>>>>,
    asked: Arc<Mutex<u32>>,
}

impl Stub {
    fn leads(self, name: &str, answers: &[&[&str]]) -> Self {
        let read = |list: &&[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect();
        self.answers.lock().unwrap().insert(name.into(), answers.iter().map(read).collect());
        self
    }
}

#[async_trait]
impl Names for Stub {
    async fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        *self.asked.lock().unwrap() += 1;
        let mut answers = self.answers.lock().unwrap();
        let list = answers.get_mut(name).ok_or_else(|| std::io::Error::other("there is no such name"))?;
        Ok(if list.len() > 1 { list.remove(0) } else { list[0].clone() })
    }
}

fn client(origins: Vec<Allowed>, names: Stub) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = HttpSettings { origins, ..HttpSettings::default() };
    Client::with_names(settings, Arc::new(names)).unwrap()
}

async fn get(client: &Client, url: &str) -> Result<u16, CallError> {
    let call = Call {
        method: Method::GET,
        url: Url::parse(url).unwrap(),
        headers: HeaderMap::new(),
        body: None,
        timeout: Duration::from_secs(5),
        most: 1_000,
    };
    client.call(call).await.map(|answer| answer.status.as_u16())
}

/// Ways to write or reach what must not be called. Each is asked for by a client whose allow-list has only
/// `http://allowed.example`, and by one whose allow-list has that very origin, but permits no network.
const BYPASSES: [&str; 66] = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://0x7f.1/",
    "http://127.000.000.001/",
    "http://127.0.0.1./",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://%31%32%37.0.0.1/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://0/",
    "http://0.0.0.0/",
    "http://0x0/",
    "http://127.255.255.254/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::]/",
    "http://[2001:0:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[fd20:ce::254]/",
    "http://[ff02::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://0xa9fea9fe/",
    "http://2852039166/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://100.64.0.1/",
    "http://10.0.0.1/",
    "http://10.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://metadata.internal/",
    "http://both.example/",
    "http://mapped.example/",
    "http://nat64.example/",
    "http://sixtofour.example/",
    "http://private.example/",
    "http://cgnat.example/",
];

fn names() -> Stub {
    Stub::default()
        .leads("localhost", &[&["127.0.0.1", "::1"]])
        .leads("localhost.", &[&["127.0.0.1"]])
        .leads("metadata.internal", &[&["169.254.169.254"]])
        .leads("both.example", &[&["8.8.8.8", "127.0.0.1"]])
        .leads("mapped.example", &[&["::ffff:127.0.0.1"]])
        .leads("nat64.example", &[&["64:ff9b::7f00:1"]])
        .leads("sixtofour.example", &[&["2002:7f00:1::"]])
        .leads("private.example", &[&["192.168.7.7"]])
        .leads("cgnat.example", &[&["100.64.1.1"]])
}

#[tokio::test]
async fn no_spelling_and_no_name_leads_to_what_is_not_permitted() {
    let elsewhere = client(vec![Allowed::new("http://allowed.example")], names());
    for bypass in BYPASSES {
        // An unlisted origin is refused before anybody asks where it leads.
        let refused = get(&elsewhere, bypass).await.unwrap_err();
        assert!(
            matches!(&refused, CallError::Refused(why) if why.contains("http.origins")),
            "{bypass}: {refused}"
        );
        // A listed one leads where it leads, and that is not permitted.
        let listed =
            client(vec![Allowed::new(Url::parse(bypass).unwrap().origin().ascii_serialization())], names());
        let refused = get(&listed, bypass).await.unwrap_err();
        let says = |why: &str| why.contains("its address is") && why.contains("networks");
        assert!(matches!(&refused, CallError::Refused(why) if says(why)), "{bypass}: {refused}");
    }
}

#[tokio::test]
async fn what_is_no_plain_origin_is_not_called() {
    let client = client(vec![Allowed::new("http://allowed.example")], names());
    for url in [
        "http://allowed.example@127.0.0.1/",
        "http://me:hunter2@allowed.example/",
        "http://me@allowed.example/",
        "https://allowed.example/",
        "http://allowed.example:8080/",
        "http://allowed.example.evil.example/",
        "http://evil.example/#allowed.example",
        "http://evil.example\\@allowed.example/",
        "ftp://allowed.example/",
        "file:///etc/passwd",
        "gopher://allowed.example/",
        "data:text/plain,x",
    ] {
        let refused = get(&client, url).await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(_)), "{url}: {refused}");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
}

#[tokio::test]
async fn a_network_is_permitted_for_one_origin_and_no_other() {
    let (a, b) = (Target::new(|_, _| Reply::status(200)).await, Target::new(|_, _| Reply::status(200)).await);
    let client = client(vec![here(&a.origin()), Allowed::new(b.origin())], Stub::default());
    assert_eq!(get(&client, &a.url("/")).await.unwrap(), 200);
    assert!(matches!(get(&client, &b.url("/")).await, Err(CallError::Refused(_))));
    assert!(b.heard().is_empty());
}

/// The name leads to an honest address when it is looked at, and elsewhere a moment later.
#[tokio::test]
async fn a_name_that_changes_its_mind_is_resolved_once_a_connection_and_checked_each_time() {
    let target = Target::new(|_, _| Reply::status(200).with("connection: close")).await;
    let port = target.address.port();
    // Both lead to this machine; one of them is permitted.
    let names = Stub::default().leads("turns.example", &[&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"]]);
    let mut allowed = Allowed::new(format!("http://turns.example:{port}"));
    allowed.networks = vec!["127.0.0.1/32".parse().unwrap()];
    let client = client(vec![allowed], names.clone());
    let url = format!("http://turns.example:{port}/");
    assert_eq!(get(&client, &url).await.unwrap(), 200);
    assert_eq!(*names.asked.lock().unwrap(), 1, "what was checked is what was connected to");
    assert!(matches!(get(&client, &url).await, Err(CallError::Refused(_))));
    assert_eq!(get(&client, &url).await.unwrap(), 200);
    assert_eq!((*names.asked.lock().unwrap(), target.heard().len()), (3, 2));
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let inner = Target::new(|_, _| Reply::status(200)).await;
    for status in [301, 302, 303, 307, 308] {
        let location = format!("location: {}", inner.url("/secret"));
        let outer = Target::new(move |_, _| Reply::status(status).with(&location)).await;
        // Even to a place that could be called itself.
        let client = client(vec![here(&outer.origin()), here(&inner.origin())], Stub::default());
        assert_eq!(get(&client, &outer.url("/")).await.unwrap(), status);
        assert_eq!((outer.heard().len(), inner.heard().len()), (1, 0));
    }
}

/// The environment of a process is for all its threads, so this test is one of a process of its own.
#[test]
fn the_environment_names_no_proxy() {
    const INSIDE: &str = "BACKSTAY_TEST_INSIDE";
    if std::env::var(INSIDE).is_ok() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let target = Target::new(|_, _| Reply::status(200)).await;
            let client = client(vec![here(&target.origin())], Stub::default());
            assert_eq!(get(&client, &target.url("/")).await.unwrap(), 200);
        });
        return;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "addresses::the_environment_names_no_proxy"]).env(INSIDE, "1");
    for variable in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        command.env(variable, "http://127.0.0.1:1");
    }
    for variable in ["no_proxy", "NO_PROXY"] {
        command.env_remove(variable);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
