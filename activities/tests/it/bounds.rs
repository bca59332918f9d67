//! The bounds of every call to a real system, and what an error says of the effect.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backstay_activities::daemon::{Daemon, DaemonSettings};
use backstay_activities::remote::{Kind, Trouble};
use backstay_activities::secrets::NoSecrets;
use backstay_engine::Span;
use backstay_engine::machine::Applied;

use crate::support::{Reply, Target, told};

fn daemon(url: String) -> Daemon {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let settings = DaemonSettings {
        url: format!("{url}/api/v1"),
        timeout: Span::millis(800),
        answer_timeout: Span::millis(400),
        max_answer: 1 << 20,
        ..DaemonSettings::default()
    };
    Daemon::new(settings, Arc::new(NoSecrets)).unwrap()
}

async fn attach(reply: Reply) -> (Trouble, Target, Duration) {
    let target = Target::new(move |_, _| reply.clone()).await;
    let begun = Instant::now();
    let trouble = daemon(target.origin()).attach("v", "m").await.unwrap_err();
    (trouble, target, begun.elapsed())
}

#[tokio::test]
async fn a_flood_is_cut_while_it_comes() {
    const FLOOD: usize = 50 << 20;
    let (trouble, target, _) = attach(Reply::Flood(FLOOD)).await;
    assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unknown, Applied::Maybe), "{trouble}");
    assert!(trouble.to_string().contains("larger than the 1048576 bytes"), "{trouble}");
    assert!(target.sent.load(Ordering::Relaxed) < FLOOD / 2, "most of it never left");
}

#[tokio::test]
async fn a_trickle_and_a_silence_have_as_long_as_the_call_has() {
    for reply in [Reply::Trickle, Reply::Silence(Duration::from_secs(60))] {
        let (trouble, target, took) = attach(reply).await;
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unanswered, Applied::Maybe), "{trouble}");
        assert!(took < Duration::from_secs(4), "{took:?}");
        assert_eq!(target.heard().len(), 1);
        assert_eq!(told(trouble.alone()), ("volume_daemon_unanswered".into(), true, false));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_may_have_been_done() {
    let half = b"HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\n{\"id\": \"x\"".to_vec();
    for reply in [
        Reply::Raw(half),
        Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()),
        Reply::Silence(Duration::ZERO),
    ] {
        let (trouble, target, _) = attach(reply).await;
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unanswered, Applied::Maybe), "{trouble}");
        assert_eq!(target.heard().len(), 1);
    }
}

#[tokio::test]
async fn json_without_end_does_no_harm() {
    for body in [
        "[".repeat(100_000),
        "{\"a\":".repeat(100_000),
        "9".repeat(400),
        "{\"id\": 1e999}".into(),
        "\u{0}".into(),
    ] {
        let (trouble, ..) = attach(Reply::Say(201, Vec::new(), body)).await;
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unknown, Applied::Maybe));
    }
}

#[tokio::test]
async fn nobody_at_home_means_that_nothing_was_sent() {
    let gone = Target::new(|_, _| Reply::status(200)).await;
    let url = gone.origin();
    drop(gone);
    // Its task may still be about to close the door.
    let mut trouble = daemon(url.clone()).attach("v", "m").await.unwrap_err();
    while trouble.kind() != Kind::Down {
        trouble = daemon(url.clone()).attach("v", "m").await.unwrap_err();
    }
    assert_eq!(trouble.applied(), Applied::No);
    assert_eq!(
        told(trouble.clone()),
        ("target_down".into(), true, false),
        "what was done before is not known"
    );
    assert_eq!(told(trouble.alone()), ("target_down".into(), true, true));
}

#[tokio::test]
async fn a_detour_is_not_taken() {
    let elsewhere = Target::new(|_, _| Reply::status(200)).await;
    let (trouble, ..) = attach(Reply::status(307).with(&format!("location: {}", elsewhere.url("/")))).await;
    assert_eq!(trouble.kind(), Kind::Refused);
    assert_eq!(elsewhere.heard().len(), 0);
}

#[tokio::test]
async fn who_wants_to_be_left_alone_says_how_long() {
    for (status, kind) in [(429, Kind::Busy), (503, Kind::Down)] {
        let (trouble, ..) = attach(Reply::status(status).with("retry-after: 9")).await;
        assert_eq!((trouble.kind(), trouble.wants_rest()), (kind, Some(Duration::from_secs(9))));
    }
}
