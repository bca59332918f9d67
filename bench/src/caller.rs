//! Callers who ask again once they were answered, and what an answer costs: time, and the processor time of each side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::host::{Host, process_cpu};
use crate::{Args, round, seconds};

/// Asks once, and is told whether it went well.
pub(crate) trait Caller: Send + 'static {
    fn ask(&mut self) -> impl Future<Output = anyhow::Result<bool>> + Send;
}

/// One connection that stays, a request whose bytes are ready, and of the answer no more than its status and its end:
/// callers share the machine with what is measured, and are to cost it little.
pub(crate) struct OverHttp {
    stream: TcpStream,
    request: Arc<[u8]>,
    answer: Vec<u8>,
}

impl OverHttp {
    pub(crate) async fn open(base: &str, request: &Arc<[u8]>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(base.strip_prefix("http://").unwrap_or(base)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request: Arc::clone(request), answer: Vec::with_capacity(4096) })
    }

    /// The length of the whole answer, once its head is there.
    fn length(&self) -> anyhow::Result<Option<usize>> {
        let Some(head) = self.answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let text = std::str::from_utf8(self.answer.get(..head).unwrap_or_default())?;
        let body = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        Ok(Some(head + 4 + body.context("an answer whose length is not known")?))
    }
}

impl Caller for OverHttp {
    async fn ask(&mut self) -> anyhow::Result<bool> {
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        let mut whole = None;
        while whole.is_none_or(|whole| self.answer.len() < whole) {
            anyhow::ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the server hung up");
            whole = match whole {
                None => self.length()?,
                known => known,
            };
        }
        Ok(self.answer.get(9) == Some(&b'2'))
    }
}

/// Whose processor time counts.
pub(crate) struct Sides {
    /// The server's process, if it is not this one.
    pub server: Option<String>,
    /// The first process of Postgres.
    pub postmaster: Option<String>,
}

impl Sides {
    pub(crate) async fn of(host: &Host, server: Option<String>) -> Self {
        Self { server, postmaster: host.postmaster().await.ok() }
    }

    /// Processor seconds so far: of this process, of the server, of Postgres.
    fn cpu(&self) -> [f64; 3] {
        let database = self.postmaster.as_deref().map_or(f64::NAN, crate::host::family_cpu);
        [process_cpu("self"), self.server.as_deref().map_or(0.0, process_cpu), database]
    }
}

/// What was measured.
pub(crate) struct Asked {
    pub per_second: f64,
    p50: f64,
    p99: f64,
    errors: usize,
    /// Microseconds for each answer: callers, server, Postgres.
    cpu: [f64; 3],
}

impl Asked {
    pub(crate) fn report(&self) -> Value {
        let [callers, server, postgres] = self.cpu.map(|micros| round(micros, 0));
        json!({ "per_s": round(self.per_second, 0), "p50_ms": round(self.p50, 2), "p99_ms": round(self.p99, 2),
                "errors": self.errors, "cpu_us_callers": callers, "cpu_us_server": server, "cpu_us_postgres": postgres })
    }
}

/// All of them at once, each asking again once it was answered.
pub(crate) async fn closed_loop<C: Caller>(
    args: &Args,
    sides: &Sides,
    callers: Vec<C>,
) -> anyhow::Result<Asked> {
    let (measuring, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut tasks = tokio::task::JoinSet::new();
    for mut caller in callers {
        let (measuring, stop) = (Arc::clone(&measuring), Arc::clone(&stop));
        tasks.spawn(async move {
            let (mut took, mut errors) = (Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let good = caller.ask().await?;
                if measuring.load(Ordering::Relaxed) && !stop.load(Ordering::Relaxed) {
                    took.push(begun.elapsed().as_secs_f64() * 1_000.0);
                    errors += usize::from(!good);
                }
            }
            anyhow::Ok((took, errors))
        });
    }
    let measured = seconds(args) / 3;
    tokio::time::sleep(measured / 3).await;
    let (begun, before) = (Instant::now(), sides.cpu());
    measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(measured).await;
    stop.store(true, Ordering::Relaxed);
    let (lasted, after) = (begun.elapsed().as_secs_f64(), sides.cpu());
    let (mut took, mut errors) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (some, bad) = done??;
        took.extend(some);
        errors += bad;
    }
    took.sort_by(f64::total_cmp);
    let at = |q: f64| took.get(((took.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(f64::NAN);
    let each = |side: fn([f64; 3]) -> f64| 1e6 * (side(after) - side(before)) / took.len().max(1) as f64;
    Ok(Asked {
        per_second: took.len() as f64 / lasted,
        p50: at(0.5),
        p99: at(0.99),
        errors,
        cpu: [
            each(|[callers, _, _]| callers),
            each(|[_, server, _]| server),
            each(|[_, _, database]| database),
        ],
    })
}
