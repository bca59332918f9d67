//! The ground with real sockets, short limits, and clients that mean no good.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Limits, layered, listen, serve};
use crate::api::problem::{Problem, UNAUTHENTICATED};

fn short() -> Limits {
    Limits {
        connections: 200,
        per_address: 100,
        first_request: Duration::from_millis(400),
        idle: Duration::from_millis(1_500),
        head: Duration::from_millis(400),
        stalled: Duration::from_millis(600),
        given_up: 20,
        grace: Duration::from_secs(4),
    }
}

/// Bytes of an answer that takes a while.
const SOME: usize = 1_500_000;

/// What the handlers were asked.
#[derive(Clone, Default)]
struct Asked(Arc<AtomicUsize>);

fn router(asked: &Asked) -> Router {
    let asked = asked.clone();
    let endless = async || {
        let events = stream::unfold((), |()| async {
            sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"data: {}\n\n")), ()))
        });
        ([("content-type", "text/event-stream")], Body::from_stream(events))
    };
    let refuse = async || Problem::new(&UNAUTHENTICATED, "a valid token is needed").into_response();
    let routes = Router::new()
        .route("/quick", get(async || "quick\n"))
        .route("/take", post(async |body: Bytes| body.len().to_string()))
        .route("/refuse", post(refuse).get(refuse))
        .route("/slow", get(async || sleep(Duration::from_millis(700)).await))
        .route("/some", get(async || vec![b'a'; SOME]))
        .route("/large", get(async || vec![b'a'; 32 << 20]))
        .route("/events", get(endless))
        .route("/panic", get(async || panic!("as asked") as &str))
        .route(
            "/hang",
            get(async move || {
                asked.0.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }),
        );
    layered(routes, false)
}

struct Ground {
    at: SocketAddr,
    asked: Asked,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Ground {
    async fn with(limits: Limits) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (at, asked, stop) = (listener.local_addr().unwrap(), Asked::default(), CancellationToken::new());
        let serving = tokio::spawn(serve(listener, None, router(&asked), limits, stop.clone()));
        Self { at, asked, stop, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    async fn ask(&self, path: &str) -> String {
        ask(&mut self.connect().await, path).await
    }

    /// Tells it to end, and says how long that took.
    async fn ended(self) -> Duration {
        let since = Instant::now();
        self.stop.cancel();
        timeout(Duration::from_secs(20), self.serving).await.unwrap().unwrap();
        since.elapsed()
    }
}

/// Asks, and reads one answer that has a length.
async fn ask(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    answer(stream).await
}

async fn answer(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut byte = [0];
    while !all.ends_with(b"\r\n\r\n") {
        let read = timeout(Duration::from_secs(20), stream.read(&mut byte)).await.unwrap().unwrap();
        assert_eq!(read, 1, "it was closed after {}", String::from_utf8_lossy(&all));
        all.push(byte[0]);
    }
    let head = String::from_utf8(all).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    head + &String::from_utf8(body).unwrap()
}

/// Reads until the other side closes, and says after how long.
async fn closed(stream: &mut TcpStream) -> Duration {
    let since = Instant::now();
    let mut rest = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "the connection is never closed");
    since.elapsed()
}

const MILLIS: fn(u64) -> Duration = Duration::from_millis;

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_may_come_again_after_a_while_but_not_slowly() {
    let ground = Ground::with(short()).await;
    let mut calm = ground.connect().await;
    for _ in 0..3 {
        assert!(ask(&mut calm, "/quick").await.starts_with("HTTP/1.1 200"));
        // More than a head may take, and less than a connection may idle.
        sleep(MILLIS(800)).await;
    }
    let idle = closed(&mut calm).await;
    assert!((MILLIS(300)..MILLIS(5_000)).contains(&idle), "{idle:?}");

    let mut slow = ground.connect().await;
    ask(&mut slow, "/quick").await;
    slow.write_all(b"GET /quick HT").await.unwrap();
    let head = closed(&mut slow).await;
    assert!((MILLIS(300)..MILLIS(1_300)).contains(&head), "{head:?}");
    ground.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_a_byte_now_and_then_is_cut() {
    let ground = Ground::with(short()).await;
    let mut silent = ground.connect().await;
    let took = closed(&mut silent).await;
    assert!((MILLIS(300)..MILLIS(3_000)).contains(&took), "{took:?}");

    let mut slow = ground.connect().await;
    let since = Instant::now();
    while slow.write_all(b"G").await.is_ok() {
        assert!(since.elapsed() < MILLIS(5_000));
        sleep(MILLIS(50)).await;
    }
    ground.ended().await;
}

/// One end of a connection that has no socket, and whether it is over. Of sockets the machine cuts some by itself.
fn without_a_socket(asked: &Asked, http2: bool) -> (tokio::io::DuplexStream, JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let door = listen::Door::new(None, router(asked), short(), CancellationToken::new());
    let from = SocketAddr::from(([127, 0, 0, 1], 1));
    (ours, tokio::spawn(async move { door.speak(theirs, from, http2).await }))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_of_an_answer_is_cut() {
    let (mut deaf, served) = without_a_socket(&Asked::default(), false);
    deaf.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let since = Instant::now();
    timeout(Duration::from_secs(10), served).await.expect("it is cut").unwrap();
    // Later it would be cut because nothing is asked.
    assert!((MILLIS(500)..MILLIS(3_000)).contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_an_answer_slowly_gets_it_whole() {
    for http2 in [false, true] {
        let (mut ours, _served) = without_a_socket(&Asked::default(), http2);
        let mut got = 0;
        // For longer than a connection may idle, and than it may stay once it was told to leave.
        let pause = MILLIS(150);
        if http2 {
            let (client, connection) = h2::client::handshake(ours).await.unwrap();
            tokio::spawn(connection);
            let (answer, _) = client.ready().await.unwrap().send_request(of("/some"), true).unwrap();
            let mut body = answer.await.unwrap().into_body();
            while let Some(data) = body.data().await {
                let length = data.unwrap_or_else(|error| panic!("{error} after {got}")).len();
                got += length;
                body.flow_control().release_capacity(length).unwrap();
                sleep(pause.mul_f64(length as f64 / 65_536.0)).await;
            }
        } else {
            ours.write_all(b"GET /some HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut some = vec![0; 64 << 10];
            while let Ok(read @ 1..) = ours.read(&mut some).await {
                got += read;
                sleep(pause.mul_f64(read as f64 / 65_536.0)).await;
            }
        }
        assert!(got >= SOME, "HTTP/2 {http2}: it was cut after {got}");
    }
}

/// A connection in HTTP/2, and whether it is over.
async fn http2(
    asked: &Asked,
    window: u32,
) -> (h2::client::SendRequest<Bytes>, JoinHandle<()>, JoinHandle<()>) {
    let (ours, served) = without_a_socket(asked, true);
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (client, connection) = builder.handshake(ours).await.unwrap();
    let client_side = tokio::spawn(async move {
        let _ = connection.await;
    });
    (client, served, client_side)
}

fn of(path: &str) -> axum::http::Request<()> {
    axum::http::Request::get(format!("http://x{path}")).body(()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_request_after_request_is_cut() {
    let asked = Asked::default();
    let (client, served, _client) = http2(&asked, 65_535).await;
    let mut client = client.ready().await.unwrap();
    let mut begun = 0;
    for n in 1..=100 {
        let Ok((answer, mut stream)) = client.send_request(of("/hang"), true) else { break };
        // The handler has begun, so it is not the library that refuses.
        let deadline = Instant::now() + MILLIS(2_000);
        while asked.0.load(Ordering::SeqCst) < n && Instant::now() < deadline && !served.is_finished() {
            sleep(MILLIS(2)).await;
        }
        begun = asked.0.load(Ordering::SeqCst);
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
        match timeout(MILLIS(2_000), client.ready()).await {
            Ok(Ok(ready)) => client = ready,
            _ => break,
        }
        if n > 25 {
            // It is looked at now and then.
            sleep(MILLIS(20)).await;
        }
    }
    timeout(Duration::from_secs(3), served).await.expect("it is cut").unwrap();
    assert!((20..60).contains(&begun), "{begun}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_requests_that_are_given_up_cost_nobody_the_connection() {
    let asked = Asked::default();
    let (client, served, _client) = http2(&asked, 65_535).await;
    let mut client = client.ready().await.unwrap();
    for n in 1..=10 {
        let (answer, mut stream) = client.send_request(of("/hang"), true).unwrap();
        while asked.0.load(Ordering::SeqCst) < n {
            sleep(MILLIS(2)).await;
        }
        stream.send_reset(h2::Reason::CANCEL);
        drop(answer);
        client = client.ready().await.unwrap();
    }
    sleep(MILLIS(300)).await;
    let (answer, _) = client.send_request(of("/quick"), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    assert!(!served.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_room_for_an_answer_in_http2_is_cut() {
    let (client, served, _client) = http2(&Asked::default(), 0).await;
    let (answer, _) = client.ready().await.unwrap().send_request(of("/large"), true).unwrap();
    let answer = answer.await.unwrap();
    assert_eq!(answer.status(), 200);
    timeout(Duration::from_secs(4), served).await.expect("it is cut").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_seen_also_by_who_is_still_sending() {
    let ground = Ground::with(short()).await;
    for (path, status) in [("/refuse", 401), ("/take", 413), ("/nothing", 404)] {
        for _ in 0..5 {
            let mut stream = ground.connect().await;
            let length = 4 << 20;
            let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![b' '; length]).await.expect("it is read");
            let answer = answer(&mut stream).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
        }
    }
    // Who would send for ever is not read for ever.
    let mut endless = ground.connect().await;
    let head = format!("POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", 1_u64 << 40);
    endless.write_all(head.as_bytes()).await.unwrap();
    let since = Instant::now();
    let some = vec![b' '; 1 << 20];
    while endless.write_all(&some).await.is_ok() {
        assert!(since.elapsed() < Duration::from_secs(10));
    }
    // Nor is one waited for that sends nothing.
    let mut silent = ground.connect().await;
    silent.write_all(b"POST /refuse HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n").await.unwrap();
    let since = Instant::now();
    assert!(answer(&mut silent).await.starts_with("HTTP/1.1 401"));
    assert!(since.elapsed() < Duration::from_secs(5));
    ground.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_there_is_no_room_is_told_so_also_after_asking() {
    let ground = Ground::with(Limits { per_address: 1, ..short() }).await;
    let mut held = ground.connect().await;
    ask(&mut held, "/quick").await;
    for _ in 0..20 {
        let mut late = ground.connect().await;
        late.write_all(b"GET /quick HTTP/1.1\r\n").await.unwrap();
        sleep(MILLIS(20)).await;
        late.write_all(b"host: x\r\n").await.unwrap();
        sleep(MILLIS(20)).await;
        late.write_all(b"\r\n").await.expect("it is read, and not broken off");
        assert!(answer(&mut late).await.starts_with("HTTP/1.1 503"));
    }
    ground.ended().await;
}

/// Another machine floods the server: it takes what one address may have, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_from_one_address_is_not_felt_by_another() {
    let ground = Ground::with(short()).await;
    let at = ground.at;
    let mut flood = JoinSet::new();
    for _ in 0..4 {
        flood.spawn(async move {
            loop {
                let mut held = Vec::new();
                for _ in 0..100 {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
                    if let Ok(Ok(stream)) = timeout(MILLIS(200), socket.connect(at)).await {
                        let _ = stream.try_write(b"GET /quick HT");
                        held.push(stream);
                    }
                }
                sleep(MILLIS(100)).await;
            }
        });
    }
    let mut took = Vec::new();
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        let since = Instant::now();
        assert!(ground.ask("/quick").await.starts_with("HTTP/1.1 200"));
        took.push(since.elapsed());
        sleep(MILLIS(5)).await;
    }
    flood.shutdown().await;
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    assert!(took.len() > 50 && p99 < MILLIS(500), "{} requests, p99 {p99:?}", took.len());
    ground.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_answers_and_for_nobody_who_asks_nothing() {
    let ground = Ground::with(Limits { first_request: Duration::from_secs(30), ..short() }).await;
    let mut silent = ground.connect().await;
    let mut half = ground.connect().await;
    half.write_all(b"GET /quick HT").await.unwrap();
    let mut kept = ground.connect().await;
    ask(&mut kept, "/quick").await;
    let mut slow = ground.connect().await;
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    sleep(MILLIS(100)).await;
    let (at, since) = (ground.at, Instant::now());
    let ending = tokio::spawn(ground.ended());
    for stream in [&mut silent, &mut half, &mut kept] {
        closed(stream).await;
    }
    assert!(since.elapsed() < MILLIS(650), "{:?}", since.elapsed());
    assert!(TcpStream::connect(at).await.is_err(), "nobody is let in any more");
    let answer = answer(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    let took = ending.await.unwrap();
    assert!(took < MILLIS(2_500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_silent_or_plain_where_tls_is_spoken_is_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    super::tls::tests::issue(dir.path(), "a", 30);
    let tls = super::Tls::read(&dir.path().join("a.pem"), &dir.path().join("a.key"), None).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (at, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let router = router(&Asked::default());
    let serving = tokio::spawn(serve(listener, Some(tls), router, short(), stop.clone()));
    let mut plain = TcpStream::connect(at).await.unwrap();
    let told = ask(&mut plain, "/quick").await;
    assert!(told.starts_with("HTTP/1.1 400") && told.ends_with("TLS: ask with https.\n"), "{told}");
    for begins in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00"] {
        let mut silent = TcpStream::connect(at).await.unwrap();
        silent.write_all(begins).await.unwrap();
        let took = closed(&mut silent).await;
        assert!((MILLIS(300)..MILLIS(2_000)).contains(&took), "{begins:?}: {took:?}");
    }
    let mut silent = TcpStream::connect(at).await.unwrap();
    sleep(MILLIS(50)).await;
    let since = Instant::now();
    stop.cancel();
    closed(&mut silent).await;
    assert!(since.elapsed() < MILLIS(300), "{:?}", since.elapsed());
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_does_not_wait_for_ever() {
    let ground = Ground::with(Limits { grace: MILLIS(500), ..short() }).await;
    let mut hangs = ground.connect().await;
    hangs.write_all(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    while ground.asked.0.load(Ordering::SeqCst) == 0 {
        sleep(MILLIS(5)).await;
    }
    let took = ground.ended().await;
    assert!((MILLIS(400)..MILLIS(2_500)).contains(&took), "{took:?}");
    closed(&mut hangs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_has_the_id_of_its_request_and_a_panic_is_one() {
    let ground = Ground::with(short()).await;
    for (path, slug) in [("/refuse", "unauthenticated"), ("/panic", "internal")] {
        let mut stream = ground.connect().await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-request-id: abc-1\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("x-request-id: abc-1") && head.contains("nosniff"), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(
            (&body["type"], &body["request_id"]),
            (&format!("/problems/{slug}").into(), &"abc-1".into())
        );
    }
    ground.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compressed_and_events_are_not() {
    let ground = Ground::with(short()).await;
    for (path, compressed) in [("/large", true), ("/events", false)] {
        let mut stream = ground.connect().await;
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut some = vec![0; 2_000];
        let read = stream.read(&mut some).await.unwrap();
        let head = String::from_utf8_lossy(&some[..read]).into_owned();
        assert_eq!(head.contains("content-encoding: gzip"), compressed, "{head}");
    }
    ground.stop.cancel();
}
