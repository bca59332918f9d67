//! A server of HTTP on this machine, written by hand so that it can do what no decent server does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One request as it was heard.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Heard {
    pub fn key(&self) -> String {
        self.headers.get("idempotency-key").cloned().unwrap_or_default()
    }
}

/// What is done with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The bytes of an answer with this status, these lines of its head, and this body.
    Say(u16, Vec<String>, String),
    /// As it is.
    Raw(Vec<u8>),
    /// Nothing is said, for so long, and then it hangs up.
    Silence(Duration),
    /// A head, and then a byte now and then, without end.
    Trickle,
    /// A head that promises so many bytes, and all of them.
    Flood(usize),
}

impl Reply {
    pub fn json(status: u16, body: Value) -> Self {
        Self::Say(status, vec!["content-type: application/json".into()], body.to_string())
    }

    pub fn status(status: u16) -> Self {
        Self::Say(status, Vec::new(), String::new())
    }

    pub fn with(self, line: &str) -> Self {
        match self {
            Self::Say(status, mut lines, body) => {
                lines.push(line.into());
                Self::Say(status, lines, body)
            }
            other => other,
        }
    }
}

type Answer = dyn Fn(&Heard, usize) -> Reply + Send + Sync;

/// A target.
pub struct Target {
    pub address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    /// How many bytes of a flood left.
    pub sent: Arc<std::sync::atomic::AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Target {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Target {
    /// It is told each request, and the how manieth it is.
    pub async fn new(answer: impl Fn(&Heard, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let sent: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let (list, count, answer) = (Arc::clone(&heard), Arc::clone(&sent), Arc::new(answer));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (list, count, answer) = (Arc::clone(&list), Arc::clone(&count), Arc::clone(&answer));
                tokio::spawn(async move {
                    let _ = serve(stream, &list, &count, &*answer).await;
                });
            }
        });
        Self { address, heard, sent, task }
    }

    /// A shelf of things: POST makes one (once for each key, if it keeps keys), GET looks, DELETE takes it away.
    pub async fn shelf(keeps_keys: bool) -> (Self, Arc<Mutex<Vec<(String, String)>>>) {
        let things: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let shelf = Arc::clone(&things);
        let target = Self::new(move |heard, _| {
            let mut shelf = shelf.lock().unwrap();
            stand(heard, keeps_keys, &mut shelf)
        });
        (target.await, things)
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

/// What a shelf does: things have an id, and a name that is the body's.
pub fn stand(heard: &Heard, keeps_keys: bool, shelf: &mut Vec<(String, String)>) -> Reply {
    let body: Value = serde_json::from_str(&heard.body).unwrap_or_default();
    let name = body["name"].as_str().unwrap_or_default().to_owned();
    match (heard.method.as_str(), heard.path.as_str()) {
        ("POST", "/things") => {
            let id = match keeps_keys {
                true => heard.key().trim_matches('"').to_owned(),
                false => format!("id-{}", shelf.len()),
            };
            if !shelf.iter().any(|(known, _)| *known == id) {
                shelf.push((id.clone(), name));
            }
            Reply::json(201, json!({ "id": id })).with(&format!("location: /things/{id}"))
        }
        ("GET", path) if path.starts_with("/things?name=") => {
            let name = path.trim_start_matches("/things?name=");
            let found: Vec<_> = shelf.iter().filter(|(_, known)| known == name).collect();
            Reply::json(
                200,
                json!({ "items": found.iter().map(|(id, _)| json!({ "id": id })).collect::<Vec<_>>() }),
            )
        }
        (method, path) if path.starts_with("/things/") => {
            let id = path.trim_start_matches("/things/");
            let at = shelf.iter().position(|(known, _)| known == id);
            match (method, at) {
                ("PUT", None) => {
                    shelf.push((id.to_owned(), name));
                    Reply::status(201)
                }
                ("PUT", Some(_)) => Reply::status(200),
                (_, None) => Reply::status(404),
                ("DELETE", Some(at)) => {
                    shelf.remove(at);
                    Reply::status(204)
                }
                _ => Reply::json(200, json!({ "id": id })),
            }
        }
        _ => Reply::status(405),
    }
}

async fn serve(
    mut stream: TcpStream,
    heard: &Mutex<Vec<Heard>>,
    sent: &std::sync::atomic::AtomicUsize,
    answer: &Answer,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(request) = read(&mut stream, &mut bytes).await? {
        let nth = {
            let mut heard = heard.lock().unwrap();
            heard.push(request.clone());
            heard.len()
        };
        match answer(&request, nth) {
            Reply::Say(status, lines, body) => {
                let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
                let text =
                    format!("HTTP/1.1 {status} Said\r\n{lines}content-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(text.as_bytes()).await?;
            }
            Reply::Raw(bytes) => {
                stream.write_all(&bytes).await?;
                return Ok(());
            }
            Reply::Silence(time) => {
                tokio::time::sleep(time).await;
                return Ok(());
            }
            Reply::Trickle => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await?;
                loop {
                    stream.write_all(b"x").await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Reply::Flood(size) => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                let piece = vec![b'x'; 64 << 10];
                for _ in 0..size / piece.len() {
                    stream.write_all(&piece).await?;
                    sent.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
                }
            }
        }
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> std::io::Result<Option<Heard>> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let mut lines = head.lines();
            let mut first = lines.next().unwrap_or_default().split(' ');
            let mut request = Heard {
                method: first.next().unwrap_or_default().into(),
                path: first.next().unwrap_or_default().into(),
                ..Heard::default()
            };
            for line in lines {
                if let Some((name, value)) = line.split_once(':') {
                    request.headers.insert(name.to_ascii_lowercase(), value.trim().into());
                }
            }
            let length: usize =
                request.headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                request.body = String::from_utf8_lossy(&bytes[end + 4..end + 4 + length]).into_owned();
                bytes.drain(..end + 4 + length);
                return Ok(Some(request));
            }
        }
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(None);
        }
        bytes.extend(&buffer[..read]);
    }
}
