//! The way to the control endpoint: one request on one connection, as little HTTP as that takes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::conversion::{Open, Opened};
use uuid::Uuid;

/// Tells that volumes are open, and hears what is on them.
pub fn open(control: &str, call: &Open) -> Result<Opened, String> {
    let body = serde_json::to_string(call).map_err(|e| e.to_string())?;
    let answer = post(control, "/virt-v2v/open", &body)?;
    serde_json::from_str(&answer).map_err(|e| format!("libguestfs error: the appliance spoke nonsense: {e}"))
}

/// Tells how far the run is.
pub fn step(control: &str, run: Uuid, what: &str) -> Result<(), String> {
    post(control, &format!("/virt-v2v/{run}/{what}"), "").map(|_| ())
}

/// A data centre that is away is a device that cannot be read.
fn post(control: &str, path: &str, body: &str) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(control)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {control}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().map_err(|e| format!("libguestfs error: read: Input/output error ({e})"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(body.to_owned()),
        _ => Err(format!("libguestfs error: read: Input/output error ({body})")),
    }
}
