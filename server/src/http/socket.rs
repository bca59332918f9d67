//! A connection that knows what goes on in it, and when it has been enough.
//!
//! ```text
//!   accepted --first request--> under way --answered--> idle --bytes--> a head comes --> under way
//!      |  first_request            |  stalled            |  idle             |  head
//!      v                           v                     v                   v
//!     cut                         cut             told to leave             cut
//! ```
//!
//! The HTTP library has a clock of its own for heads. It also runs between requests, so that a caller who comes again after
//! a while would be cut as if it were slow. So the clock is kept here, and the library's is off.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::listen::Limits;

/// Answers are handed on in pieces of so many bytes, however large they are made: a whole one would be under way no more
/// once it is handed on, long before a client has taken it.
const PIECE: usize = 16 << 10;
/// Requests that are given up are counted for so long.
const WINDOW: Duration = Duration::from_secs(60);

/// Why a connection ends before its client wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// The first request did not come.
    Silent,
    /// The head of a later one took too long.
    SlowHead,
    /// Nothing was asked for too long.
    Idle,
    /// The client does not take what it asked for.
    Stalled,
    /// The client gives up too much of what it asks for: it costs us more than it costs it.
    GivesUp,
}

impl Cut {
    /// For figures and logs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::SlowHead => "slow-head",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::GivesUp => "gives-up",
        }
    }
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<State>);

#[derive(Debug)]
struct State {
    http2: bool,
    begun: Instant,
    asked: u64,
    under_way: usize,
    /// Since when nothing is under way.
    idle: Instant,
    /// Since when a request's head is coming.
    head: Option<Instant>,
    /// Since when the socket takes nothing of what is sent.
    stalled: Option<Instant>,
    /// Answers of which a part is made that the client has no room for, and since when. HTTP/2 has room for each answer
    /// apart from the socket's.
    offered: BTreeMap<u64, Instant>,
    given_up: u32,
    window: Instant,
}

impl Pulse {
    pub(super) fn new(http2: bool) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self(Mutex::new(State {
            http2,
            begun: now,
            asked: 0,
            under_way: 0,
            idle: now,
            head: None,
            stalled: None,
            offered: BTreeMap::new(),
            given_up: 0,
            window: now,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it has been enough.
    pub(super) fn verdict(&self, limits: &Limits) -> Option<Cut> {
        let now = Instant::now();
        let over = |since: Instant, most: Duration| now.saturating_duration_since(since) >= most;
        let state = self.state();
        let stalled = state.stalled.iter().chain(state.offered.values()).any(|at| over(*at, limits.stalled));
        if stalled {
            Some(Cut::Stalled)
        } else if state.given_up > limits.given_up {
            Some(Cut::GivesUp)
        } else if state.under_way > 0 {
            None
        } else if state.asked == 0 {
            over(state.begun, limits.first_request).then_some(Cut::Silent)
        } else if state.head.is_some_and(|at| over(at, limits.head)) {
            Some(Cut::SlowHead)
        } else {
            over(state.idle, limits.idle).then_some(Cut::Idle)
        }
    }

    /// Whether no request is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.state().under_way == 0
    }

    /// Whether there was no request yet.
    pub(super) fn is_new(&self) -> bool {
        self.state().asked == 0
    }

    pub(super) fn request(self: &Arc<Self>) -> UnderWay {
        let mut state = self.state();
        state.asked += 1;
        state.under_way += 1;
        state.head = None;
        UnderWay { nr: state.asked, answered: false, pulse: Arc::clone(self) }
    }

    fn read(&self) {
        let mut state = self.state();
        // In HTTP/2 bytes can be anything; what is no request does not keep it from being idle.
        if !state.http2 && state.asked > 0 && state.under_way == 0 {
            state.head.get_or_insert_with(Instant::now);
        }
    }

    fn wrote(&self, done: bool) {
        let mut state = self.state();
        match done {
            true => state.stalled = None,
            false => {
                state.stalled.get_or_insert_with(Instant::now);
            }
        }
    }
}

/// A request that is not answered to its end.
#[derive(Debug)]
pub(super) struct UnderWay {
    nr: u64,
    answered: bool,
    pulse: Arc<Pulse>,
}

impl UnderWay {
    /// It is under way until the last byte of this is sent.
    pub(super) fn until_sent(mut self, body: Body) -> Body {
        self.answered = true;
        Body::new(Watched { body, rest: Bytes::new(), under_way: self })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.pulse.state();
        state.under_way = state.under_way.saturating_sub(1);
        state.offered.remove(&self.nr);
        state.idle = now;
        if !self.answered {
            if now.saturating_duration_since(state.window) >= WINDOW {
                (state.window, state.given_up) = (now, 0);
            }
            state.given_up += 1;
        }
    }
}

struct Watched {
    body: Body,
    /// Of the last part that was made, what is not handed on.
    rest: Bytes,
    under_way: UnderWay,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // More is wanted, so there is room.
        self.under_way.pulse.state().offered.remove(&self.under_way.nr);
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                None => return Poll::Ready(None),
                Some(Ok(data)) => self.rest = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        self.under_way.pulse.state().offered.insert(self.under_way.nr, Instant::now());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.rest.len() as u64;
        let of_body = self.body.size_hint();
        let mut hint = SizeHint::new();
        // The upper bound comes first: the lower one may not be above it.
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(of_body.lower().saturating_add(rest));
        hint
    }
}

/// A stream whose reads and writes are noted.
pub(super) struct Socket<S> {
    stream: S,
    pulse: Arc<Pulse>,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, pulse: Arc<Pulse>) -> Self {
        Self { stream, pulse }
    }

    fn wrote<T>(&self, written: Poll<T>) -> Poll<T> {
        self.pulse.wrote(written.is_ready());
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.pulse.read();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS keeps what the socket does not take, and says so only here.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.wrote(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.wrote(shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
