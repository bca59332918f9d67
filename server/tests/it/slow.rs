//! Clients that cost: silent ones, slow ones, too many, and those who want TLS to be right.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::served::{Served, said, waiting_plan};
use crate::support::{Place, Running, ran};

impl Served {
    fn address(&self) -> SocketAddr {
        self.base.rsplit('/').next().unwrap().parse().unwrap()
    }
}

/// Reads until the other side closes, and says after how long.
async fn closed(mut stream: TcpStream) -> Duration {
    let since = Instant::now();
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(40), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection is never closed");
    since.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_cut_and_others_do_not_notice() {
    let api = Served::start().await;
    let at = api.address();
    let mut bad = tokio::task::JoinSet::new();
    for n in 0..300 {
        bad.spawn(async move {
            let mut stream = TcpStream::connect(at).await.unwrap();
            match n % 3 {
                // Says nothing.
                0 => {}
                // A byte of a header now and then.
                1 => {
                    let head = b"GET /api/v1/me HTTP/1.1\r\nhost: x\r\nx-a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
                    for byte in head {
                        if stream.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(400)).await;
                    }
                }
                // Half a request, and no more.
                _ => stream.write_all(b"POST /api/v1/runs HTTP/1.1\r\nhost: x\r\ncontent-le").await.unwrap(),
            }
            closed(stream).await
        });
    }
    let mut took = Vec::new();
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        let since = Instant::now();
        api.get("/api/v1/me").await.is(200);
        took.push(since.elapsed());
    }
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    assert!(took.len() > 100 && p99 < Duration::from_millis(500), "{} requests, p99 {p99:?}", took.len());
    while let Some(ended) = bad.join_next().await {
        let ended = ended.unwrap();
        assert!(ended < Duration::from_secs(20), "{ended:?}");
    }
    api.get("/api/v1/me").await.is(200);
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_connections_and_no_more() {
    let settings = [("BACKSTAY_LISTEN__CONNECTIONS_PER_ADDRESS", "5")];
    let api = Served::with(Place::with_url().await, "n1", &settings).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(TcpStream::connect(api.address()).await.unwrap());
    }
    let mut one_more = TcpStream::connect(api.address()).await.unwrap();
    let mut told = String::new();
    one_more.read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(5);
    let free = async || {
        let request = api.request(reqwest::Method::GET, "/api/v1/me", &api.admin).send().await;
        request.is_ok_and(|answer| answer.status() == 200)
    };
    while !free().await {
        assert!(Instant::now() < deadline, "the places of those who left are free again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_is_sent_on_when_the_server_ends_and_answers_under_way_come_to_their_end() {
    let api = Served::start().await;
    let run = api.waiting_run().await;
    api.until(&run, "waiting").await;
    let path = format!("/api/v1/runs/{run}/events");
    let mut watching = api.request(reqwest::Method::GET, &path, &api.admin).send().await.unwrap();
    let first = watching.chunk().await.unwrap().unwrap();
    assert!(first.starts_with(b"id: 1\nevent: submitted\n"));
    let ready = crate::served::client().get(format!("{}/readyz", api.health));
    said(ready.try_clone().unwrap()).await.is(200);
    let figures = said(crate::served::client().get(format!("{}/metrics", api.health))).await.is(200);
    assert!(
        figures
            .text
            .contains("backstay_http_requests_total{method=\"POST\",path=\"/api/v1/runs\",status=\"202\"} 1"),
        "{}",
        figures.text
    );
    let since = Instant::now();
    api.signal(Signal::TERM);
    let mut rest = Vec::new();
    while let Ok(Some(some)) = watching.chunk().await {
        rest.extend_from_slice(&some);
    }
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.ends_with("event: away\ndata: {}\n\n"), "{rest}");
    api.ended().await;
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
}

/// Certificates, and who signs them.
pub struct Papers {
    dir: tempfile::TempDir,
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Papers {
    pub fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
        let papers = Self { dir: tempfile::tempdir().unwrap(), authority };
        std::fs::write(papers.path("ca.pem"), papers.authority.pem()).unwrap();
        papers
    }

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate and its key, signed by our authority.
    pub fn issue(&self, file: &str, name: &str, valid: bool) {
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        if !valid {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

fn trusting(authority: &Path, identity: Option<String>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let pem = std::fs::read(authority).unwrap();
    let builder = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10));
    let builder = builder.tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()]);
    match identity {
        None => builder.build().unwrap(),
        Some(pem) => builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap()).build().unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_as_it_should_be_and_follows_its_files() {
    let papers = Papers::new();
    papers.issue("server", "localhost", true);
    papers.issue("client", "ci", true);
    let (pem, key, ca) = (papers.path("server.pem"), papers.path("server.key"), papers.path("ca.pem"));
    let settings = [
        ("BACKSTAY_LISTEN__CERTIFICATE", pem.to_str().unwrap()),
        ("BACKSTAY_LISTEN__KEY", key.to_str().unwrap()),
    ];
    let api = Served::with(Place::with_url().await, "n1", &settings).await;
    assert!(api.base.starts_with("https://"));
    let port = api.address().port();
    let me = |client: &reqwest::Client, host: &str| {
        client.get(format!("https://{host}:{port}/api/v1/me")).bearer_auth(&api.admin).send()
    };
    let client = trusting(&ca, None);
    let answer = me(&client, "localhost").await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    assert!(answer.headers().contains_key("strict-transport-security"));
    assert!(me(&client, "127.0.0.1").await.is_err(), "another name than the certificate's");
    assert!(
        me(&trusting(&Papers::new().path("ca.pem"), None), "localhost").await.is_err(),
        "another authority"
    );
    let plain = crate::served::client().get(format!("http://localhost:{port}/api/v1/me")).send().await;
    assert_eq!(plain.unwrap().status(), 400, "no TLS");

    // A certificate that does not go with its key is not shown; a new one is, and nobody is cut off for it.
    let mut shown = trusting(&ca, None);
    papers.issue("other", "localhost", true);
    std::fs::copy(papers.path("other.pem"), &pem).unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    me(&trusting(&ca, None), "localhost").await.unwrap();
    papers.issue("server", "elsewhere.example", true);
    let deadline = Instant::now() + Duration::from_secs(12);
    while me(&shown, "localhost").await.is_ok() {
        assert!(Instant::now() < deadline, "the new certificate is shown");
        tokio::time::sleep(Duration::from_millis(200)).await;
        shown = trusting(&ca, None);
    }
    assert_eq!(me(&client, "localhost").await.unwrap().status(), 200, "who was there before goes on");
    let place = api.end().await;

    // Only clients of our authority.
    papers.issue("server", "localhost", true);
    papers.issue("old", "ci", false);
    let settings = [settings[0], settings[1], ("BACKSTAY_LISTEN__CLIENT_AUTHORITY", ca.to_str().unwrap())];
    let api = Served::with(place, "n1", &settings).await;
    let port = api.address().port();
    let identity = |file: &str| {
        let read = |name: String| std::fs::read_to_string(papers.path(&name)).unwrap();
        Some(read(format!("{file}.key")) + &read(format!("{file}.pem")))
    };
    for (who, identity, good) in
        [("with", identity("client"), true), ("without", None, false), ("expired", identity("old"), false)]
    {
        let asked = trusting(&ca, identity)
            .get(format!("https://localhost:{port}/api/v1/me"))
            .bearer_auth(&api.admin);
        assert_eq!(asked.send().await.is_ok(), good, "{who}");
    }
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_readable_by_others_is_refused() {
    let place = Place::embedded();
    let check = async |settings: &[(&str, &str)]| {
        ran(place.command(&["config", "check"]).envs(settings.iter().copied())).await
    };
    let open = ("BACKSTAY_LISTEN__ADDRESS", "0.0.0.0:7433");
    check(&[open])
        .await
        .exits(2)
        .complains("listen.address")
        .complains("state listen.certificate and listen.key");
    check(&[open, ("BACKSTAY_LISTEN__PLAIN", "yes")]).await.exits(2).complains("readable-by-all");
    check(&[open, ("BACKSTAY_LISTEN__PLAIN", "readable-by-all")]).await.exits(0);
    check(&[("BACKSTAY_LISTEN__HEALTH", "0.0.0.0:7434")]).await.exits(2).complains("listen.health");
    check(&[("BACKSTAY_LISTEN__CERTIFICATE", "/x")]).await.exits(2).complains("listen.key");
    check(&[("BACKSTAY_LISTEN__ADRESS", "x")]).await.exits(2);
    // What is in the files counts, and not only that they are named.
    let papers = Papers::new();
    for (file, valid) in [("good", true), ("old", false), ("other", true)] {
        papers.issue(file, "localhost", valid);
    }
    let files = async |certificate: &str, key: &str| {
        let (certificate, key) = (papers.path(certificate), papers.path(key));
        let certificate = ("BACKSTAY_LISTEN__CERTIFICATE", certificate.to_str().unwrap());
        check(&[open, certificate, ("BACKSTAY_LISTEN__KEY", key.to_str().unwrap())]).await
    };
    files("good.pem", "good.key").await.exits(0);
    files("good.pem", "other.key").await.exits(2).complains("it does not go with the key in");
    files("old.pem", "old.key").await.exits(2).complains("days ago, on 2020-01-01");
    files("none.pem", "good.key").await.exits(2).complains("none.pem");
    let serve = place
        .command(&["serve"])
        .envs([
            ("BACKSTAY_LISTEN__CERTIFICATE", "/no/such.pem"),
            ("BACKSTAY_LISTEN__KEY", "/no/such.key"),
            ("DATABASE_URL", "postgres://localhost:9/none"),
        ])
        .output()
        .await
        .unwrap();
    assert!(!serve.status.success());
}

/// A caller who goes away while its answer is made, and one whose line is cut in the middle of its body.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_body_submits_nothing() {
    let api = Served::start().await;
    let body = json!({ "plan": waiting_plan("waits") }).to_string();
    for cut in [0, 1, body.len() / 2, body.len() - 1] {
        let mut stream = TcpStream::connect(api.address()).await.unwrap();
        let head = format!(
            "POST /api/v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            api.admin,
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body.as_bytes()[..cut]).await.unwrap();
        stream.shutdown().await.unwrap();
        closed(stream).await;
    }
    assert_eq!(api.get("/api/v1/runs").await.is(200).json()["items"], json!([]));
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told() {
    let place = Place::with_url().await;
    let path = place.file("notify", "");
    std::fs::remove_file(&path).unwrap();
    let socket = tokio::net::UnixDatagram::bind(&path).unwrap();
    let mut command = place.command(&["serve"]);
    command.env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0").env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0");
    let server = Running::start(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000"));
    let mut heard = Vec::new();
    let mut buf = [0; 200];
    let hear = async |heard: &mut Vec<String>, buf: &mut [u8], what: &str| {
        while !heard.iter().any(|text| text == what) {
            let len = tokio::time::timeout(Duration::from_secs(20), socket.recv(buf)).await.unwrap().unwrap();
            heard.push(String::from_utf8_lossy(&buf[..len]).into_owned());
        }
    };
    hear(&mut heard, &mut buf, "READY=1").await;
    heard.clear();
    hear(&mut heard, &mut buf, "WATCHDOG=1").await;
    server.signal(Signal::TERM);
    hear(&mut heard, &mut buf, "STOPPING=1").await;
    server.end().await.exits(0);
}
