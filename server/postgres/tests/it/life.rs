//! Starting, stopping, refusing.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::str::FromStr;

use backstay_postgres::{Error, Postgres, Search, Settings, Started, testing};
use sqlx::postgres::PgConnectOptions;

use crate::support::{
    Holder, READ_THE_MARK, Scratch, ask, is_root, is_running, leave_a_mark, processes_of, until,
};

#[tokio::test]
async fn the_first_start_creates_a_durable_cluster_and_the_second_finds_it() {
    let scratch = Scratch::new();
    let first = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_eq!(first.how(), Started::Created);
    let url = first.url("postgres");
    for (setting, value) in [
        ("show fsync", "on"),
        ("show synchronous_commit", "on"),
        ("show full_page_writes", "on"),
        ("show data_checksums", "on"),
        ("show listen_addresses", ""),
        ("show max_connections", "200"),
        ("show server_encoding", "UTF8"),
    ] {
        assert_eq!(ask(&url, setting).await, value, "{setting}");
    }
    leave_a_mark(&url).await;
    let pid = first.pid();
    assert!(is_running(pid));
    first.stop().await.unwrap();
    assert!(!is_running(pid), "stop returned before the server was gone");
    assert_eq!(processes_of(scratch.path()), Vec::<u32>::new());

    let second = Postgres::start(Settings::new(scratch.data())).await.unwrap();
    assert_eq!(second.how(), Started::Restarted);
    assert_eq!(ask(&second.url("postgres"), READ_THE_MARK).await, "still here");
    second.stop().await.unwrap();
}

#[tokio::test]
async fn a_throwaway_server_saves_the_disk_and_leaves_nothing() {
    let settings = Settings::throwaway().unwrap();
    let folder = settings.data_dir.clone();
    let postgres = Postgres::start(settings).await.unwrap();
    let url = postgres.url("postgres");
    for setting in ["show fsync", "show full_page_writes"] {
        assert_eq!(ask(&url, setting).await, "off", "{setting}");
    }
    postgres.stop().await.unwrap();
    assert!(!folder.exists());
    assert_eq!(processes_of(&folder), Vec::<u32>::new());
}

#[tokio::test]
async fn dropping_a_server_ends_it() {
    let postgres = Postgres::start(Settings::throwaway().unwrap()).await.unwrap();
    let pid = postgres.pid();
    drop(postgres);
    until("the server is gone", || !is_running(pid)).await;
}

#[tokio::test]
async fn the_url_leads_sqlx_to_the_private_socket() {
    let postgres = Postgres::start(Settings::throwaway().unwrap()).await.unwrap();
    let options = PgConnectOptions::from_str(&postgres.url("a b")).unwrap();
    assert_eq!(options.get_socket().map(std::path::PathBuf::as_path), Some(postgres.socket_dir()));
    assert_eq!(options.get_database(), Some("a b"));
    assert_eq!(options.get_username(), "postgres");
    assert_eq!(options.get_port(), 5432);
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_else_can_reach_the_socket() {
    let scratch = Scratch::with_cluster().await;
    let mut settings = Settings::new(scratch.data());
    settings.server_settings.push(("port".into(), "5433".into()));
    let postgres = Postgres::start(settings).await.unwrap();
    let socket = postgres.socket_dir().join(".s.PGSQL.5433");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(postgres.socket_dir()), 0o700);
    assert_eq!(mode(&scratch.data().join("data")), 0o700);
    assert_eq!(mode(&socket), 0o700);
    // 5433 would be the port, if there were a listener.
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, 5433)).is_err());
    if is_root() {
        let owner = fs::metadata(&socket).unwrap().uid();
        assert_ne!(owner, 0, "the server runs as root");
        assert_eq!(fs::metadata(format!("/proc/{}", postgres.pid())).unwrap().uid(), owner);
        let can_write = |uid: u32| {
            Command::new("test").arg("-w").arg(&socket).uid(uid).gid(uid).status().unwrap().success()
        };
        assert!(can_write(owner), "the trial itself is wrong");
        assert!(!can_write(54_321), "a stranger can reach the socket");
    }
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_long_path_gets_its_socket_elsewhere() {
    let scratch = Scratch::new();
    let postgres = Postgres::start(Settings::new(scratch.path().join("x".repeat(100)))).await.unwrap();
    let socket_dir = postgres.socket_dir().to_path_buf();
    assert_eq!(fs::metadata(&socket_dir).unwrap().mode() & 0o777, 0o700);
    assert_eq!(ask(&postgres.url("postgres"), "show listen_addresses").await, "");
    postgres.stop().await.unwrap();
    assert!(!socket_dir.exists());
}

#[tokio::test]
async fn a_second_instance_is_told_who_holds_the_folder() {
    let scratch = Scratch::with_cluster().await;
    let holder = Holder::start(&scratch, "holds").await;
    let error = Postgres::start(Settings::new(scratch.data())).await.err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, Error::InUse { pid: Some(pid), .. } if pid == holder.pid()), "{text}");
    assert!(text.contains("choose another data folder"), "{text}");
    assert_eq!(ask(&holder.report.url, "show fsync").await, "on", "the first instance was disturbed");
}

#[tokio::test]
async fn a_folder_with_other_files_is_left_alone() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.data()).unwrap();
    fs::set_permissions(scratch.data(), Permissions::from_mode(0o755)).unwrap();
    fs::write(scratch.data().join("thesis.txt"), "years of work").unwrap();
    let error = Postgres::start(Settings::new(scratch.data())).await.err().unwrap();
    assert!(matches!(&error, Error::NotOurs { found, .. } if found == "thesis.txt"), "{error}");
    assert_eq!(fs::read_dir(scratch.data()).unwrap().count(), 1);
    assert_eq!(fs::metadata(scratch.data()).unwrap().mode() & 0o777, 0o755);
}

#[tokio::test]
async fn a_cluster_of_another_version_is_refused_with_the_way_out() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.data().join("data")).unwrap();
    fs::write(scratch.data().join("backstay.lock"), "").unwrap();
    fs::write(scratch.data().join("data/PG_VERSION"), "12\n").unwrap();
    let mut settings = Settings::new(scratch.data());
    settings.archive = None;
    let error = Postgres::start(settings).await.err().unwrap();
    assert!(matches!(error, Error::WrongVersion { data_major: 12, .. }), "{error}");
    assert!(error.to_string().contains("pg_dumpall"), "{error}");
    assert_eq!(fs::read_dir(scratch.data().join("data")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_closed_folder_on_the_way_is_named() {
    if !is_root() {
        return; // Only root hands the server to another account.
    }
    let scratch = Scratch::new();
    let closed = scratch.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let error = Postgres::start(Settings::new(closed.join("a/pg"))).await.err().unwrap();
    let expected = closed.canonicalize().unwrap();
    assert!(matches!(&error, Error::NotReachable { blocked, .. } if *blocked == expected), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_start_shows_what_it_said() {
    let scratch = Scratch::with_cluster().await;
    let mut settings = Settings::new(scratch.data());
    settings.server_settings.push(("shared_buffers".into(), "nonsense".into()));
    let error = Postgres::start(settings).await.err().unwrap();
    assert!(matches!(error, Error::ServerEnded { .. }), "{error}");
    assert!(error.to_string().contains("invalid value for parameter \"shared_buffers\""), "{error}");
    // And the folder is free and usable.
    Postgres::start(Settings::new(scratch.data())).await.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn a_throwaway_that_does_not_start_leaves_nothing() {
    let mut settings = Settings::throwaway().unwrap();
    let folder = settings.data_dir.clone();
    settings.search = Search::default();
    settings.archive = None;
    settings.cache_dir = folder.join("cache");
    assert!(matches!(Postgres::start(settings).await, Err(Error::NoServer { .. })));
    assert!(!folder.exists());
}

#[tokio::test]
async fn the_environment_names_binaries_and_a_mirror() {
    let scratch = Scratch::new();
    let environment =
        [("BACKSTAY_POSTGRES_BIN", "/my/bin"), ("BACKSTAY_POSTGRES_MIRROR", "http://my.mirror")];
    let mut holder = Holder::spawn(&scratch, "settings", &environment);
    assert_eq!(holder.read_report(&scratch).await.url, "/my/bin http://my.mirror");
}

#[tokio::test]
async fn all_tests_of_a_process_share_one_cluster() {
    let first = testing::cluster().await;
    assert!(std::ptr::eq(first, testing::cluster().await));
    if std::env::var_os("TEST_DATABASE_URL").is_none() {
        assert_eq!(ask(&first.url("postgres"), "show fsync").await, "off");
    }
}

#[tokio::test]
async fn a_given_test_database_is_used_instead_of_a_cluster() {
    let scratch = Scratch::new();
    let given = ("TEST_DATABASE_URL", "postgres://me:secret@db.example:7000/other?sslmode=require");
    let mut holder = Holder::spawn(&scratch, "cluster", &[given]);
    let report = holder.read_report(&scratch).await;
    assert_eq!(report.url, "postgres://me:secret@db.example:7000/postgres?sslmode=require");
}
