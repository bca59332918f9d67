//! How an answer goes out, and how it goes wrong: one place for every system, so that each fault exists once.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::stream;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use crate::faults::Fault;

/// What a system says when nothing goes wrong on the way.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Its content type.
    pub kind: &'static str,
    /// Its body.
    pub body: Bytes,
    /// More headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Answer {
    /// An answer in JSON.
    pub fn json(status: u16, body: &Value) -> Answer {
        Answer { status, kind: "application/json", body: body.to_string().into(), headers: Vec::new() }
    }

    /// An answer in plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: body.into().into(), headers: Vec::new() }
    }

    /// With a header.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Answer {
        self.headers.push((name, value.into()));
        self
    }

    /// As it goes out.
    pub fn response(self) -> Response<Body> {
        let (body, length) = (self.body.clone(), self.body.len() as u64);
        self.response_with(Body::from(body), Some(length))
    }

    fn response_with(self, body: Body, length: Option<u64>) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        for (name, value) in self.headers {
            // What a header cannot say, like a line break in an error's text, it says as a space.
            let value: String =
                value.chars().map(|c| if (' '..='~').contains(&c) { c } else { ' ' }).collect();
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        response
    }
}

/// Answers a call under its fault. `error` is how the system says that something is wrong: the status and the text.
/// The effect is told the fault too: those that are not about the answer are its own to play.
///
/// A client that goes away drops this future: an effect that must end all the same belongs in a task of the world.
pub async fn answer<F, Fut>(
    fault: Option<Fault>,
    error: impl Fn(u16, &str) -> Answer,
    effect: F,
) -> Response<Body>
where
    F: FnOnce(Option<Fault>) -> Fut,
    Fut: Future<Output = Answer>,
{
    let Some(fault) = fault else { return effect(None).await.response() };
    match fault {
        Fault::Refused { status } => error(status, "something went wrong, and nothing was done").response(),
        // As releases before 4.20 say it; CloudStack's own throttle here says it with brackets, as later ones do.
        Fault::TooMany { ms } => error(
            429,
            &format!("The given user has reached his/her account api limit, please retry after {ms} ms."),
        )
        .response(),
        Fault::Html { status } => Answer {
            status,
            kind: "text/html",
            body: "<html><head><title>502 Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"
                .into(),
            headers: Vec::new(),
        }
        .response(),
        Fault::ErrorWith200 => {
            Answer { status: 200, ..error(530, "something went wrong, and nothing was done") }.response()
        }
        Fault::Dropped => cut(),
        Fault::DoneThenRefused { status } => {
            effect(None).await;
            error(status, "something went wrong on the way back").response()
        }
        Fault::DoneThenDropped => {
            effect(None).await;
            cut()
        }
        Fault::DoneThenSilent => {
            effect(None).await;
            std::future::pending().await
        }
        Fault::Empty => Answer { body: Bytes::new(), ..effect(None).await }.response(),
        Fault::Slow { ms } => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            effect(None).await.response()
        }
        Fault::Reset => {
            let answer = effect(None).await;
            let half = answer.body.slice(..answer.body.len() / 2);
            let length = answer.body.len() as u64;
            let torn = stream::iter([Ok(half), Err(io::Error::other("broken in the middle on purpose"))]);
            answer.response_with(Body::from_stream(torn), Some(length.max(1)))
        }
        Fault::Trickle { ms } => {
            let answer = effect(None).await;
            let length = answer.body.len() as u64;
            let drops = stream::unfold((answer.body.clone(), 0_usize), move |(body, at)| async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                let drop = body.get(at..at + 1).map(Bytes::copy_from_slice)?;
                Some((io::Result::Ok(drop), (body, at + 1)))
            });
            answer.response_with(Body::from_stream(drops), Some(length))
        }
        Fault::Huge { bytes } => {
            let answer = effect(None).await;
            let spaces = Bytes::from(vec![b' '; 64 * 1024]);
            let rest = stream::unfold(bytes, move |left| {
                let part = left.min(64 * 1024);
                let piece = spaces.slice(..usize::try_from(part).unwrap_or(0));
                async move { (part > 0).then_some((io::Result::Ok(piece), left - part)) }
            });
            let head = stream::iter([Ok(answer.body.clone())]);
            answer.response_with(Body::from_stream(futures_util::StreamExt::chain(head, rest)), None)
        }
        other => effect(Some(other)).await.response(),
    }
}

/// Marks an answer that never goes out: the connection is closed instead.
#[derive(Clone)]
struct Cut;

fn cut() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(Cut);
    response
}

/// A system's listener. It can hang up on everybody, and refuse to be reached for a while.
pub struct Server {
    address: SocketAddr,
    gate: Arc<Gate>,
}

struct Gate {
    hung_up: watch::Sender<u64>,
    away_until: Mutex<Option<Instant>>,
}

impl Server {
    /// Listens, and serves `router` until `stopped`.
    pub async fn start(
        address: SocketAddr,
        router: Router,
        stopped: CancellationToken,
    ) -> anyhow::Result<Server> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| anyhow::anyhow!("cannot listen at {address}: {e}; is another one running there?"))?;
        let address = listener.local_addr()?;
        let gate = Arc::new(Gate { hung_up: watch::Sender::new(0), away_until: Mutex::new(None) });
        let door = gate.clone();
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, _)) if !door.is_away() => {
                        tokio::spawn(connection(
                            stream,
                            router.clone(),
                            door.hung_up.subscribe(),
                            stopped.clone(),
                        ));
                    }
                    Ok(_) => {}
                    // Too many open files, mostly: it passes.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        Ok(Server { address, gate })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address as the head of a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends every connection, whatever is under way on it, and takes no new one for a while.
    pub fn hang_up(&self, away: Duration) {
        *self.gate.away_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + away);
        self.gate.hung_up.send_modify(|n| *n += 1);
    }
}

impl Gate {
    fn is_away(&self) -> bool {
        let until = *self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    mut hung_up: watch::Receiver<u64>,
    stopped: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut router = router.clone();
        async move {
            let response = match router.call(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if response.extensions().get::<Cut>().is_some() {
                return Err(io::Error::other("dropped on purpose"));
            }
            Ok(response)
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = serving => (),
        _ = hung_up.changed() => (),
        () = stopped.cancelled() => (),
    }
}
