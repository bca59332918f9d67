//! The accept loop. A server that is meant for the network meets clients that send nothing, or a byte a minute, or take
//! nothing of what they asked for; each of these may cost a connection for a while, and nobody else anything.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::socket::{Cut, Pulse, Socket};
use super::tls::Tls;

/// What a client is told that comes when there is no room.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
/// What a client is told that speaks plainly where TLS is spoken.
const SPEAKS_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 38\r\n\
    connection: close\r\n\r\nThis port speaks TLS: ask with https.\n";
/// The first byte of everything that begins with agreeing on TLS.
const TLS_BEGINS: u8 = 0x16;
/// So many who find no room are told at once, and for so long; the others are only sent away.
const TOLD: (usize, Duration) = (64, Duration::from_millis(500));
/// So many may wait to be accepted, if the machine allows it.
const QUEUE: i32 = 4_096;
/// How long a connection that was told to leave may go on asking nothing.
const LEAVE: Duration = Duration::from_secs(2);

/// How much a client may have of us.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address; of IPv6, from one network of 64 bits.
    pub per_address: usize,
    /// How long the first request, or its TLS, may take to come.
    pub first_request: Duration,
    /// How long a connection may stay between requests.
    pub idle: Duration,
    /// How long the head of a request may take.
    pub head: Duration,
    /// How long a client may take nothing of an answer.
    pub stalled: Duration,
    /// Requests that one connection may give up before they are answered, in a minute.
    pub given_up: u32,
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
            given_up: 100,
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
    more_files();
    // Those who knock all at once wait for the loop, and not for the machine to let them try again after a second.
    if let Err(error) = rustix::net::listen(&listener, QUEUE) {
        tracing::debug!(%error, "the queue stays short");
    }
    let door = Door::new(tls, router, limits, stop.clone());
    let (mut connections, mut told) = (JoinSet::new(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
            // What has ended is not kept.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            Some(_) = told.join_next(), if !told.is_empty() => continue,
        };
        match accepted {
            Ok((stream, from)) => match door.seat(from.ip()) {
                Ok(seat) => {
                    connections.spawn(door.clone().meet(stream, from, seat));
                }
                Err(why) => {
                    metrics::counter!("backstay_connections_refused_total", "why" => why).increment(1);
                    // Whoever speaks TLS would first have to agree on it.
                    if door.tls.is_none() && told.len() < TOLD.0 {
                        told.spawn(tokio::time::timeout(TOLD.1, turn_away(stream, FULL)));
                    }
                }
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
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
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
pub(super) struct Door {
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
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                seats.remove(&self.of);
            }
        }
        metrics::gauge!("backstay_connections").decrement(1.0);
    }
}

impl Door {
    pub(super) fn new(
        tls: Option<Arc<Tls>>,
        router: Router,
        limits: Limits,
        stop: CancellationToken,
    ) -> Self {
        Self { tls, router, limits, stop, seats: Arc::default() }
    }

    fn seat(&self, of: IpAddr) -> Result<Seat, &'static str> {
        let of = neighbourhood(of);
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = seats.values().sum();
        let own = seats.get(&of).copied().unwrap_or(0);
        if all >= self.limits.connections {
            return Err("full");
        }
        if own >= self.limits.per_address {
            return Err("too many of one address");
        }
        seats.insert(of, own + 1);
        metrics::gauge!("backstay_connections").increment(1.0);
        Ok(Seat { of, seats: Arc::clone(&self.seats) })
    }

    async fn meet(self, stream: TcpStream, from: SocketAddr, _seat: Seat) {
        tuned(&stream, &self.limits);
        let Some(tls) = self.tls.clone() else { return self.speak(stream, from, false).await };
        let agreed = tokio::time::timeout(self.limits.first_request, agree(stream, &tls));
        let agreed = tokio::select! {
            // Nothing was asked, so nobody waits for anything.
            () = self.stop.cancelled() => return,
            agreed = agreed => agreed,
        };
        match agreed {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                self.speak(stream, from, http2).await;
            }
            Ok(Err(error)) => tracing::debug!(%from, %error, "no TLS came about"),
            Err(_) => tracing::debug!(%from, "TLS took too long"),
        }
    }

    pub(super) async fn speak<S>(&self, stream: S, from: SocketAddr, http2: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let pulse = Pulse::new(http2);
        let router = self.router.clone();
        let of_requests = Arc::clone(&pulse);
        let service = service_fn(move |request: Request<Incoming>| {
            let under_way = of_requests.request();
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(from));
            let answer = router.clone().call(request);
            async move { answer.await.map(|response| response.map(|body| under_way.until_sent(body))) }
        });
        let io = TokioIo::new(Socket::new(stream, Arc::clone(&pulse)));
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
                .max_send_buf_size(64 << 10)
                .keep_alive_interval(Some(Duration::from_secs(20)))
                .keep_alive_timeout(Duration::from_secs(20));
            let connection = pin!(builder.serve_connection(io, service));
            self.accompany(connection, |connection| connection.graceful_shutdown(), from, &pulse).await;
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            // The clock for heads is that of the pulse.
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(None::<Duration>)
                .max_buf_size(64 << 10)
                .half_close(false);
            let connection = pin!(builder.serve_connection(io, service));
            self.accompany(connection, |connection| connection.graceful_shutdown(), from, &pulse).await;
        }
    }

    /// Until it ends, has been enough, or was told to leave and did not.
    async fn accompany<C>(
        &self,
        mut connection: Pin<&mut C>,
        leave: impl Fn(Pin<&mut C>),
        from: SocketAddr,
        pulse: &Pulse,
    ) where
        C: Future<Output = Result<(), hyper::Error>>,
    {
        let limits = &self.limits;
        let shortest = limits.first_request.min(limits.idle).min(limits.head).min(limits.stalled);
        let mut look = tokio::time::interval((shortest / 4).clamp(Duration::from_millis(10), LEAVE / 2));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving: Option<Instant> = None;
        let why = loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::debug!(%from, %error, "a connection ended in an error");
                    }
                    return;
                }
                () = self.stop.cancelled(), if leaving.is_none() => {
                    // Here too nothing was asked.
                    if pulse.is_new() {
                        return;
                    }
                    leaving = Some(Instant::now());
                    leave(connection.as_mut());
                }
                _ = look.tick() => match (pulse.verdict(limits), leaving) {
                    // A client that is about to ask again hears that what it asks was not begun.
                    (Some(Cut::Idle), None) => {
                        leaving = Some(Instant::now());
                        leave(connection.as_mut());
                    }
                    (Some(cut), _) if cut != Cut::Idle => break cut,
                    (_, Some(since)) if pulse.is_quiet() && since.elapsed() >= LEAVE => break Cut::Idle,
                    _ => {}
                },
            }
        };
        metrics::counter!("backstay_connections_cut_total", "why" => why.name()).increment(1);
        tracing::debug!(%from, why = why.name(), "a connection was cut");
    }
}

async fn agree(stream: TcpStream, tls: &Tls) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0_u8];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first != [TLS_BEGINS] {
        // Whoever forgot the s of https is told so, instead of being shown an alert in binary.
        let _ = tokio::time::timeout(TOLD.1, turn_away(stream, SPEAKS_TLS)).await;
        return Err(io::Error::other("the client speaks something else"));
    }
    tls.accept(stream).await
}

/// Tells a client something and closes. What it has sent is read, or closing would take back what it is told.
async fn turn_away(mut stream: TcpStream, what: &[u8]) -> io::Result<()> {
    stream.write_all(what).await?;
    stream.shutdown().await?;
    let mut some = [0_u8; 1024];
    for _ in 0..64 {
        if stream.read(&mut some).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Whoever has one address of IPv6 has a whole network of them.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

/// A client that is gone without a word is noticed, whether something is sent to it or not.
fn tuned(stream: &TcpStream, limits: &Limits) {
    use rustix::net::sockopt;
    let tune = || -> io::Result<()> {
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(stream, 3)?;
        let stalled = u32::try_from(limits.stalled.as_millis()).unwrap_or(u32::MAX);
        Ok(sockopt::set_tcp_user_timeout(stream, stalled)?)
    };
    if let Err(error) = tune() {
        tracing::debug!(%error, "a connection cannot be tuned");
    }
}

/// Programs begin with leave for a thousand files, mostly, and have more for the asking. Without it the connections that
/// the limits allow would leave none for the database.
fn more_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::debug!(%error, "there are no more files to be had");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_its_ipv4() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[tokio::test]
    async fn a_client_that_is_gone_is_noticed_by_the_machine() {
        use rustix::net::sockopt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tuned(&stream, &Limits::default());
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), Duration::from_secs(30));
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 60_000);
    }
}
