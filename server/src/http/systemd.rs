//! What the service manager is told, if there is one (sd_notify).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Tells it something: `READY=1`, `STOPPING=1`, `STATUS=…`. Nobody has to listen.
pub fn tell(what: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = path.as_encoded_bytes();
    // A name that begins with @ is in no folder.
    let address = match bytes.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let told = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // One that stands still would otherwise stop us as soon as it has no room for more.
        socket.set_write_timeout(Some(Duration::from_millis(100)))?;
        socket.send_to_addr(what.as_bytes(), &address)
    });
    if let Err(error) = told {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// Tells it that files are read again; `READY=1` has to follow. It asks for the time, to tell one reload from another.
pub fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1_000;
    tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
}

/// Under a service manager SIGHUP means that files are to be read again, and ends no process that has none to read.
pub async fn nothing_to_reload() {
    use tokio::signal::unix::{SignalKind, signal};
    let hangup = std::env::var_os("NOTIFY_SOCKET").and_then(|_| signal(SignalKind::hangup()).ok());
    let Some(mut hangup) = hangup else { return };
    while hangup.recv().await.is_some() {
        reloading();
        tell("READY=1");
    }
}

/// How often it wants to hear that all is well, if it does: half of what it allows.
pub fn watchdog() -> Option<Duration> {
    let micros: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    let for_us = std::env::var("WATCHDOG_PID").ok().is_none_or(|pid| pid.parse() == Ok(std::process::id()));
    (for_us && micros > 0).then(|| Duration::from_micros(micros / 2))
}

/// Says that this process is alive, for as long as it is awaited. That the database is away does not count: a new process
/// would not find it either, and what this one has in flight would be in doubt.
pub async fn keep_alive() {
    let Some(every) = watchdog() else { return std::future::pending().await };
    loop {
        tell("WATCHDOG=1");
        tokio::time::sleep(every).await;
    }
}
