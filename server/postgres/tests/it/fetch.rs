//! Fetching binaries, from a web server of our own, for a machine whose own binaries are hidden.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use backstay_postgres::{Archive, Error, FetchError, Postgres, Progress, Search, Settings, Started};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Scratch, ask};

/// An archive in the published form, made of the server that this machine has.
static ARCHIVE: LazyLock<(Vec<u8>, Archive)> = LazyLock::new(|| {
    let system = Search::from_environment().find(None).expect("a Postgres server to make an archive of");
    let root = format!("postgresql-{}.0.0-test", system.major);
    let mut builder =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none()));
    for program in ["postgres", "initdb"] {
        builder.append_path_with_name(system.folder.join(program), format!("{root}/bin/{program}")).unwrap();
    }
    // A moved server looks for its modules beside its bin folder.
    for module in ["dict_snowball.so", "plpgsql.so"] {
        let source = system.folder.join("../lib").join(module);
        builder.append_path_with_name(source, format!("{root}/lib/{module}")).unwrap();
    }
    let bytes = builder.into_inner().unwrap().finish().unwrap();
    let sha256 = hex::encode(Sha256::digest(&bytes));
    (bytes, Archive { version: format!("{}.0.0", system.major), target: "test".into(), sha256 })
});

/// A web server that answers every request alike, and counts.
struct Mirror {
    url: String,
    requests: Arc<AtomicUsize>,
    paths: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    /// Sends `body`, but promises `promised` bytes.
    async fn serve(body: &'static [u8], promised: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, paths) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, seen) = (requests.clone(), paths.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                seen.lock().unwrap().extend(text.split(' ').nth(1).map(String::from));
                count.fetch_add(1, Ordering::SeqCst);
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {promised}\r\nconnection: close\r\n\r\n");
                // The client may refuse early; that is its right.
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.write_all(body).await;
                let _ = stream.shutdown().await;
            }
        });
        Self { url, requests, paths }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn bare_machine(scratch: &Scratch, data: &str, mirror: &str) -> Settings {
    let mut settings = Settings::new(scratch.path().join(data));
    settings.search = Search::default();
    settings.cache_dir = scratch.path().join("cache");
    settings.archive = Some(ARCHIVE.1.clone());
    settings.mirror = Some(mirror.into());
    settings
}

/// What a failed fetch must not leave: anything but the lock.
fn cached(scratch: &Scratch) -> Vec<String> {
    let entries = fs::read_dir(scratch.path().join("cache")).unwrap();
    let names = entries.flatten().map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name != "install.lock").collect()
}

async fn fetch_error(settings: Settings) -> (FetchError, String) {
    let error = Postgres::start(settings).await.err().unwrap();
    let text = error.to_string();
    match error {
        Error::NoServer { fetch, .. } => (*fetch, text),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn binaries_can_be_fetched_beforehand_and_nothing_else_is_touched() {
    let (bytes, archive) = &*ARCHIVE;
    let scratch = Scratch::new();
    let mirror = Mirror::serve(bytes, bytes.len()).await;
    let settings = bare_machine(&scratch, "one", &mirror.url);
    let first = backstay_postgres::binaries(&settings).await.unwrap();
    assert_eq!(first.major.to_string(), archive.version.split('.').next().unwrap());
    assert!(first.folder.starts_with(scratch.path().join("cache")));
    assert_eq!(backstay_postgres::binaries(&settings).await.unwrap(), first);
    assert_eq!(mirror.requests(), 1);
    assert!(!settings.data_dir.exists());
    // A cluster of another version has the last word.
    fs::create_dir_all(settings.data_dir.join("data")).unwrap();
    fs::write(settings.data_dir.join("data/PG_VERSION"), "9\n").unwrap();
    let refused = backstay_postgres::binaries(&settings).await.unwrap_err();
    assert!(matches!(refused, Error::NoServer { .. }), "{refused}");
}

#[tokio::test]
async fn binaries_are_fetched_once_and_then_come_from_the_cache() {
    let (bytes, archive) = &*ARCHIVE;
    let scratch = Scratch::new();
    let mirror = Mirror::serve(bytes, bytes.len()).await;
    let steps = Arc::new(Mutex::new(Vec::new()));

    let mut settings = bare_machine(&scratch, "one", &mirror.url);
    let seen = steps.clone();
    settings.on_progress = Some(Arc::new(move |step| seen.lock().unwrap().push(step)));
    let first = Postgres::start(settings).await.unwrap();
    assert_eq!(first.how(), Started::Created);
    assert_eq!(ask(&first.url("postgres"), "show fsync").await, "on");
    let running = fs::read_link(format!("/proc/{}/exe", first.pid())).unwrap();
    assert!(running.starts_with(scratch.path().join("cache")), "{running:?}");
    first.stop().await.unwrap();

    let version = &archive.version;
    assert_eq!(*mirror.paths.lock().unwrap(), [format!("/{version}/postgresql-{version}-test.tar.gz")]);
    let length = bytes.len() as u64;
    let all_of_it =
        Progress::Fetching { url: archive.url(&mirror.url), received: length, total: Some(length) };
    assert!(steps.lock().unwrap().contains(&all_of_it));

    let second = Postgres::start(bare_machine(&scratch, "one", &mirror.url)).await.unwrap();
    second.stop().await.unwrap();
    assert_eq!(mirror.requests(), 1, "the cache was not used");
}

#[tokio::test]
async fn two_that_fetch_at_once_fetch_once() {
    let (bytes, _) = &*ARCHIVE;
    let scratch = Scratch::new();
    let mirror = Mirror::serve(bytes, bytes.len()).await;
    let (one, two) = tokio::join!(
        Postgres::start(bare_machine(&scratch, "one", &mirror.url)),
        Postgres::start(bare_machine(&scratch, "two", &mirror.url)),
    );
    one.unwrap().stop().await.unwrap();
    two.unwrap().stop().await.unwrap();
    assert_eq!(mirror.requests(), 1);
}

#[tokio::test]
async fn another_content_than_the_pinned_one_is_refused_and_removed() {
    let (bytes, _) = &*ARCHIVE;
    let scratch = Scratch::new();
    let mirror = Mirror::serve(bytes, bytes.len()).await;
    let mut settings = bare_machine(&scratch, "pg", &mirror.url);
    settings.archive.as_mut().unwrap().sha256 = "0".repeat(64);
    let (error, _) = fetch_error(settings).await;
    assert!(matches!(&error, FetchError::WrongHash { found, .. } if *found == ARCHIVE.1.sha256), "{error}");
    assert_eq!(cached(&scratch), Vec::<String>::new());
}

#[tokio::test]
async fn half_an_archive_is_refused_and_removed() {
    let (bytes, _) = &*ARCHIVE;
    let scratch = Scratch::new();
    let mirror = Mirror::serve(&bytes[..bytes.len() / 2], bytes.len()).await;
    let (error, _) = fetch_error(bare_machine(&scratch, "pg", &mirror.url)).await;
    assert!(matches!(error, FetchError::Transfer { .. }), "{error}");
    assert_eq!(cached(&scratch), Vec::<String>::new());
}

#[tokio::test]
async fn without_network_one_screen_says_what_to_do() {
    let scratch = Scratch::new();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (error, text) = fetch_error(bare_machine(&scratch, "pg", &format!("http://127.0.0.1:{port}"))).await;
    assert!(matches!(error, FetchError::Transfer { .. }), "{error}");
    for part in [
        "apt-get install postgresql",
        "dnf install",
        "brew install",
        "DATABASE_URL",
        "Connection refused",
        "PATH",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert!(text.lines().count() < 24, "{text}");
    assert_eq!(cached(&scratch), Vec::<String>::new());
}

#[tokio::test]
async fn leftovers_and_broken_installations_are_replaced() {
    let (bytes, archive) = &*ARCHIVE;
    let scratch = Scratch::new();
    let mirror = Mirror::serve(bytes, bytes.len()).await;
    let hash: String = archive.sha256.chars().take(12).collect();
    let installed = scratch.path().join(format!("cache/postgresql-{}-test-{hash}/bin", archive.version));
    fs::create_dir_all(&installed).unwrap();
    fs::write(installed.join("postgres"), "cut off").unwrap();
    fs::write(installed.join("initdb"), "").unwrap();
    fs::set_permissions(installed.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(scratch.path().join("cache/.incoming-killed/unpacked")).unwrap();

    Postgres::start(bare_machine(&scratch, "pg", &mirror.url)).await.unwrap().stop().await.unwrap();
    assert_eq!(cached(&scratch).len(), 1);
}

/// A typing error in a hash would show only on the machine of somebody without Postgres.
#[test]
fn this_kind_of_machine_has_a_pinned_archive() {
    let archive = Archive::for_this_machine().unwrap();
    assert_eq!(archive.sha256.len(), 64);
    assert!(archive.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let url = archive.url("https://mirror.example/");
    assert!(url.starts_with("https://mirror.example/18.4.0/postgresql-18.4.0-"), "{url}");
    assert!(Path::new(&url).extension().is_some_and(|ending| ending == "gz"));
}
