//! The accept loop. A server that is meant for the network meets clients that send nothing, or a byte a minute, or take
//! nothing of what they asked for; each of these may cost a connection for a while, and nobody else anything.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::socket::{Pulse, Socket};
use super::tls::Tls;

/// How much a client may have of us.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub per_address: usize,
    /// How long the first request, or its TLS, may take to come.
    pub first_request: Duration,
    /// How long a connection may stay between requests.
    pub idle: Duration,
    /// How long the head of a request may take.
    pub head: Duration,
    /// How long a client may take nothing of an answer.
    pub stalled: Duration,
    /// How long answers under way may take when the server ends.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4_096,
            per_address: 1_024,
            first_request: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            head: Duration::from_secs(10),
            stalled: Duration::from_secs(60),
            grace: Duration::from_secs(10),
        }
    }
}

/// Serves until `stop`, then lets answers under way come to their end, for a while.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let door = Door { tls, router, limits, stop: stop.clone(), seats: Arc::default() };
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            // What has ended is not kept.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, from)) => match door.seat(from.ip()) {
                Some(seat) => {
                    connections.spawn(door.clone().meet(stream, from, seat));
                }
                None => turn_away(&stream, door.tls.is_some()),
            },
            // The client went away while it waited.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            // Out of file descriptors, mostly: trying again at once would only burn the processor.
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted at this moment");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.grace, all_ended).await.is_err() {
        tracing::info!("connections that did not end in time are cut");
    }
}

#[derive(Clone)]
struct Door {
    tls: Option<Arc<Tls>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    seats: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// A connection that is counted.
struct Seat {
    of: IpAddr,
    seats: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = seats.get_mut(&self.of) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.of);
            }
        }
        metrics::gauge!("backstay_connections").decrement(1.0);
    }
}

impl Door {
    fn seat(&self, of: IpAddr) -> Option<Seat> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = seats.values().sum();
        let own = seats.get(&of).copied().unwrap_or(0);
        if all >= self.limits.connections || own >= self.limits.per_address {
            metrics::counter!("backstay_connections_refused_total").increment(1);
            return None;
        }
        seats.insert(of, own + 1);
        metrics::gauge!("backstay_connections").increment(1.0);
        Some(Seat { of, seats: Arc::clone(&self.seats) })
    }

    async fn meet(self, stream: TcpStream, from: SocketAddr, _seat: Seat) {
        let _ = stream.set_nodelay(true);
        let pulse = Pulse::new();
        match self.tls.clone() {
            None => self.speak(Socket::new(stream, Arc::clone(&pulse)), from, pulse, false).await,
            Some(tls) => match tokio::time::timeout(self.limits.first_request, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    self.speak(Socket::new(stream, Arc::clone(&pulse)), from, pulse, http2).await;
                }
                Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS came about"),
                Err(_) => tracing::debug!(%from, "TLS took too long"),
            },
        }
    }

    async fn speak<S>(&self, socket: Socket<S>, from: SocketAddr, pulse: Arc<Pulse>, http2: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router.clone();
        let of_requests = Arc::clone(&pulse);
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = of_requests.request();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(from));
            let answer = router.clone().call(request);
            async move { answer.await.map(|response| response.map(|body| under_way.until_sent(body))) }
        });
        let io = TokioIo::new(socket);
        // Which protocol it is, TLS has agreed on; without TLS it is HTTP/1. So there is no guessing by first bytes,
        // for which a silent client could keep us waiting.
        if http2 {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(100)
                .max_header_list_size(32 << 10)
                .max_pending_accept_reset_streams(Some(20))
                .max_local_error_reset_streams(Some(100))
                .keep_alive_interval(Some(Duration::from_secs(20)))
                .keep_alive_timeout(Duration::from_secs(20));
            let mut connection = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = connection.as_mut() => return told(from, ended),
                () = self.patience(&pulse) => return,
                () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            told(from, connection.await);
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(self.limits.head)
                .max_buf_size(64 << 10)
                .half_close(false);
            let mut connection = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                ended = connection.as_mut() => return told(from, ended),
                () = self.patience(&pulse) => return,
                () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            told(from, connection.await);
        }
    }

    /// Ends when the client has kept us waiting for too long.
    async fn patience(&self, pulse: &Pulse) {
        let limits = &self.limits;
        let look = limits.first_request.min(limits.idle).min(limits.stalled) / 4;
        loop {
            tokio::time::sleep(look).await;
            let may_idle = if pulse.has_begun() { limits.idle } else { limits.first_request };
            let idle = pulse.idle().is_some_and(|idle| idle >= may_idle);
            let stalled = pulse.stalled().is_some_and(|stalled| stalled >= limits.stalled);
            if idle || stalled {
                metrics::counter!("backstay_connections_cut_total").increment(1);
                return;
            }
        }
    }
}

fn told(from: SocketAddr, ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%from, %error, "a connection ended in an error");
    }
}

/// There are too many. Whoever speaks plain HTTP is told so, if that can be done without waiting.
fn turn_away(stream: &TcpStream, is_tls: bool) {
    if !is_tls {
        let _ = stream.try_write(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    }
}
