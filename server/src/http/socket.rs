//! A connection that knows when it was last heard of, and how many requests are under way on it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    // Never 0, which means never.
    u64::try_from(BEGINNING.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
}

/// What is known of a connection. Times are in milliseconds since the program began.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    heard: AtomicU64,
    /// Since when the other side takes nothing of what is sent to it; 0: it does.
    stalled: AtomicU64,
    requests: AtomicUsize,
    begun: AtomicUsize,
}

impl Pulse {
    pub(super) fn new() -> Arc<Self> {
        let pulse = Self::default();
        pulse.heard.store(now(), Ordering::Relaxed);
        Arc::new(pulse)
    }

    /// For how long nothing was heard while nothing was under way.
    pub(super) fn idle(&self) -> Option<Duration> {
        (self.requests.load(Ordering::Relaxed) == 0).then(|| since(self.heard.load(Ordering::Relaxed)))
    }

    /// For how long the other side has taken nothing.
    pub(super) fn stalled(&self) -> Option<Duration> {
        match self.stalled.load(Ordering::Relaxed) {
            0 => None,
            at => Some(since(at)),
        }
    }

    /// Whether there was a request at all.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Relaxed) > 0
    }

    pub(super) fn request(self: &Arc<Self>) -> UnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(self))
    }
}

fn since(at: u64) -> Duration {
    Duration::from_millis(now().saturating_sub(at))
}

/// A request that is not answered to its end.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Pulse>);

impl UnderWay {
    /// It is under way until the last byte of this is sent.
    pub(super) fn until_sent(self, body: Body) -> Body {
        Body::new(Watched { body, _under_way: self })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
        self.0.heard.store(now(), Ordering::Relaxed);
    }
}

struct Watched {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
        match written {
            Poll::Ready(_) => self.pulse.stalled.store(0, Ordering::Relaxed),
            Poll::Pending => {
                let _ = self.pulse.stalled.compare_exchange(0, now(), Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        // A byte of a header now and then is not being heard of: only whole requests count, and their bodies.
        if read.is_ready() && self.pulse.requests.load(Ordering::Relaxed) > 0 {
            self.pulse.heard.store(now(), Ordering::Relaxed);
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
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
