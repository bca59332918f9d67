//! The wire between a node and Postgres, in our hands: it can be cut around a commit, and statements can be
//! exchanged on it. It reads just as much of Postgres' protocol as that takes.
//!
//! ```text
//!   client -- Parse (text) --> here: recorded, exchanged        --> server
//!   client -- Bind, Execute, Sync of a write --> here: counted  --> server
//!   client <-- here: held back until ReadyForQuery, then given or cut -- server
//!   client     here: swallowed <-- NotificationResponse            -- server
//! ```

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// Where the connection is cut around a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// The server never hears of it.
    Before,
    /// The server has heard all of it and is at work; it goes on, and its answer reaches nobody.
    Underway,
    /// The server has committed and said so; the client does not hear it.
    Answered,
    /// No cut: the server has committed and said so, and its answer is a long time coming. It arrives, or is lost for
    /// good, when the test says so; until then the way is silent.
    Late,
}

/// A way to a database that leads through the test.
#[derive(Clone, Debug)]
pub struct Wire {
    url: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// A statement whose text holds this is a write; if it is one word, whose text is this.
    mark: Mutex<String>,
    plan: Mutex<Plan>,
    exchanges: Mutex<Vec<Exchange>>,
    heard: Mutex<Vec<String>>,
    writes: AtomicU64,
    cuts: Mutex<Vec<Cut>>,
    late: watch::Sender<Late>,
    /// New connections of this name get no answer, and are not hung up on.
    silent: Mutex<Option<String>>,
    silenced: AtomicU64,
    /// Notifications do not get through.
    deaf: AtomicBool,
    swallowed: AtomicU64,
}

/// What becomes of an answer that is late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Late {
    #[default]
    Held,
    Arrives,
    Lost,
}

#[derive(Debug, Default)]
struct Plan {
    /// Every so many writes ...
    every: u64,
    /// ... one of these, in turn.
    cuts: Vec<Cut>,
    next: usize,
}

#[derive(Debug)]
struct Exchange {
    what: String,
    by: String,
    /// Only in statements that hold this.
    within: String,
    done: u64,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wire {
    /// A way to this database. Nothing is done on it yet.
    pub async fn to(url: &str) -> anyhow::Result<Self> {
        let mut here: url::Url = url.parse()?;
        let folder = here.query_pairs().find(|(name, _)| name == "host").map(|(_, value)| value.into_owned());
        let server = match folder {
            Some(folder) => Server::Socket(format!("{folder}/.s.PGSQL.{}", here.port().unwrap_or(5432))),
            None => Server::Address(format!(
                "{}:{}",
                here.host_str().context("a URL without a host")?,
                here.port().unwrap_or(5432)
            )),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        here.set_host(Some("127.0.0.1"))?;
        here.set_port(Some(listener.local_addr()?.port())).ok().context("a URL without a port")?;
        here.set_query(Some("sslmode=disable"));
        let state = Arc::new(State::default());
        *lock(&state.mark) = "insert into journal".into();
        let wire = Self { url: here.into(), state: Arc::clone(&state) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, state) = (server.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    let _ = match server {
                        Server::Socket(path) => match UnixStream::connect(path).await {
                            Ok(server) => carry(client, server, state).await,
                            Err(error) => Err(error),
                        },
                        Server::Address(at) => match TcpStream::connect(at).await {
                            Ok(server) => carry(client, server, state).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Ok(wire)
    }

    /// The database by this way.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on: the wire is cut around one write in so many, in each of these ways in turn.
    pub fn cut(&self, every: u64, cuts: &[Cut]) {
        *lock(&self.state.plan) = Plan { every, cuts: cuts.to_vec(), next: 0 };
    }

    /// Which statements count as writes: those that hold this, or, if it is one word, are this. It is the journal's, unless said
    /// otherwise.
    pub fn mark(&self, text: &str) {
        *lock(&self.state.mark) = text.into();
    }

    /// Which cuts were made.
    pub fn cuts(&self) -> Vec<Cut> {
        lock(&self.state.cuts).clone()
    }

    /// Answers that are late arrive now.
    pub fn let_arrive(&self) {
        self.state.late.send_replace(Late::Arrives);
    }

    /// Answers that are late are lost, and their connections cut.
    pub fn hang_up(&self) {
        self.state.late.send_replace(Late::Lost);
    }

    /// From now on, new connections of this name get no answer, and are not hung up on; `None`: all do again.
    pub fn silence(&self, name: Option<&str>) {
        *lock(&self.state.silent) = name.map(str::to_owned);
    }

    /// How many connections got no answer.
    pub fn silenced(&self) -> u64 {
        self.state.silenced.load(Ordering::SeqCst)
    }

    /// From now on no notification gets through.
    pub fn swallow_notifications(&self) {
        self.state.deaf.store(true, Ordering::SeqCst);
    }

    /// How many notifications did not get through.
    pub fn swallowed(&self) -> u64 {
        self.state.swallowed.load(Ordering::SeqCst)
    }

    /// Exchanges a part of every statement that holds `within`, from now on.
    pub fn exchange(&self, within: &str, what: &str, by: &str) {
        let (within, what, by) = (within.into(), what.into(), by.into());
        lock(&self.state.exchanges).push(Exchange { what, by, within, done: 0 });
    }

    /// How many statements were changed, for each exchange.
    pub fn exchanged(&self) -> Vec<u64> {
        lock(&self.state.exchanges).iter().map(|exchange| exchange.done).collect()
    }

    /// The text of a statement that was prepared on this way.
    pub fn heard(&self, within: &str) -> Option<String> {
        lock(&self.state.heard).iter().find(|text| text.contains(within)).cloned()
    }
}

#[derive(Clone)]
enum Server {
    Socket(String),
    Address(String),
}

/// One connection.
async fn carry<S>(client: TcpStream, server: S, state: Arc<State>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    client.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    // What becomes of the write under way.
    let underway: Mutex<Option<Option<Cut>>> = Mutex::new(None);
    let up = async {
        let mut first = true;
        let mut writes = HashSet::new();
        loop {
            let begins = std::mem::take(&mut first);
            let mut message = read_message(&mut from_client, begins).await?;
            if begins && state.is_silent(&message) {
                state.silenced.fetch_add(1, Ordering::SeqCst);
                // Until the client has had enough.
                while read_message(&mut from_client, false).await.is_ok() {}
                return Ok(());
            }
            match message.first() {
                Some(b'P') => parsed(&state, &mut message, &mut writes),
                Some(b'B') if bound(&message).is_some_and(|name| writes.contains(&name)) => {
                    let cut = state.next_cut();
                    if cut == Some(Cut::Before) {
                        lock(&state.cuts).push(Cut::Before);
                        return Ok(());
                    }
                    *lock(&underway) = Some(cut);
                }
                _ => {}
            }
            to_server.write_all(&message).await?;
            if message.first() == Some(&b'S') && *lock(&underway) == Some(Some(Cut::Underway)) {
                lock(&state.cuts).push(Cut::Underway);
                return std::io::Result::Ok(());
            }
        }
    };
    let down = async {
        let mut held = Vec::new();
        loop {
            let message = read_message(&mut from_server, false).await?;
            if message.first() == Some(&b'A') && state.deaf.load(Ordering::SeqCst) {
                state.swallowed.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let ready = message.first() == Some(&b'Z');
            held.extend_from_slice(&message);
            let write = *lock(&underway);
            match write {
                Some(_) if !ready => continue,
                Some(Some(Cut::Answered)) => {
                    lock(&state.cuts).push(Cut::Answered);
                    return std::io::Result::Ok(());
                }
                Some(Some(Cut::Late)) => {
                    let mut late = state.late.subscribe();
                    lock(&state.cuts).push(Cut::Late);
                    if late.wait_for(|late| *late != Late::Held).await.is_ok_and(|late| *late == Late::Lost) {
                        return std::io::Result::Ok(());
                    }
                }
                _ => {}
            }
            *lock(&underway) = None;
            to_client.write_all(&held).await?;
            held.clear();
        }
    };
    let ended = tokio::select! {
        ended = up => ended,
        ended = down => ended,
    };
    if *lock(&underway) == Some(Some(Cut::Underway)) {
        // The client is gone at once; the server finishes what it has heard.
        drop((from_client, to_client));
        while read_message(&mut from_server, false).await?.first() != Some(&b'Z') {}
    }
    ended
}

impl State {
    /// Whether the first message of a connection gives a name that gets no answer.
    fn is_silent(&self, startup: &[u8]) -> bool {
        let Some(name) = lock(&self.silent).clone() else { return false };
        let name = format!("application_name\0{name}\0");
        startup.windows(name.len()).any(|window| window == name.as_bytes())
    }

    fn next_cut(&self) -> Option<Cut> {
        let write = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        let mut plan = lock(&self.plan);
        if plan.every == 0 || !write.is_multiple_of(plan.every) {
            return None;
        }
        plan.next += 1;
        plan.cuts.get((plan.next - 1) % plan.cuts.len().max(1)).copied()
    }
}

/// A whole message with its head. The first one of a connection has no type.
async fn read_message<R: AsyncRead + Unpin>(from: &mut R, first: bool) -> std::io::Result<Vec<u8>> {
    let mut message = if first { Vec::new() } else { vec![from.read_u8().await?] };
    let length = from.read_u32().await?;
    message.extend_from_slice(&length.to_be_bytes());
    let at = message.len();
    message.resize(at + (length as usize).saturating_sub(4), 0);
    if let Some(body) = message.get_mut(at..) {
        from.read_exact(body).await?;
    }
    Ok(message)
}

/// Parse: the statement's name, its text, the types of its parameters.
fn parsed(state: &State, message: &mut Vec<u8>, writes: &mut HashSet<Vec<u8>>) {
    let body = message.get(5..).unwrap_or_default();
    let mut parts = body.splitn(3, |byte| *byte == 0);
    let (Some(name), Some(text), Some(types)) = (parts.next(), parts.next(), parts.next()) else { return };
    let mut text = String::from_utf8_lossy(text).into_owned();
    for exchange in lock(&state.exchanges).iter_mut() {
        if text.contains(&exchange.within) && text.contains(&exchange.what) {
            text = text.replace(&exchange.what, &exchange.by);
            exchange.done += 1;
        }
    }
    let mark = lock(&state.mark);
    if text == *mark || (mark.contains(' ') && text.contains(mark.as_str())) {
        writes.insert(name.to_vec());
    }
    let mut new = name.to_vec();
    new.push(0);
    new.extend_from_slice(text.as_bytes());
    new.push(0);
    new.extend_from_slice(types);
    let length = (new.len() as u32 + 4).to_be_bytes();
    lock(&state.heard).push(text);
    *message = [&b"P"[..], &length[..], &new[..]].concat();
}

/// Bind: the portal, the statement's name, and more.
fn bound(message: &[u8]) -> Option<Vec<u8>> {
    let mut parts = message.get(5..)?.splitn(3, |byte| *byte == 0);
    parts.next()?;
    parts.next().map(<[u8]>::to_vec)
}
