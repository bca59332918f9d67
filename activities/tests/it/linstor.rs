//! The client of LINSTOR, against what the real one answers.

use backstay_activities::linstor::{
    Entry, Linstor, LinstorAuth, LinstorSettings, Removed, ReturnCode, Severity, Use, codes, entries,
    is_in_use, is_taken,
};
use backstay_activities::remote::{Kind, SecretName, Word};
use backstay_engine::machine::Applied;
use serde_json::{Value, json};

use crate::support::{Heard, Reply, Target, secrets_for};

/// Create, of a snapshot.
const ABOUT: u64 = 0x0100_0000 | 0x000C_0000;
const ERROR: u64 = 0xC000_0000_0000_0000;
const WARNING: u64 = 0x8000_0000_0000_0000;
const INFORMATION: u64 = 0x4000_0000_0000_0000;

fn entry(severity: u64, code: u16, message: &str) -> Value {
    json!({ "ret_code": (severity | ABOUT | u64::from(code)).cast_signed(), "message": message, "obj_refs": { "Snapshot": "s" } })
}

async fn linstor_with(
    auth: Option<LinstorAuth>,
    answer: impl Fn(&Heard, usize) -> Reply + Send + Sync + 'static,
) -> (Linstor, Target, tempfile::TempDir) {
    let target = Target::new(answer).await;
    let (dir, secrets) =
        secrets_for(&target, &[("linstor-password", "pw-canary-123"), ("token", "token-canary-9")]);
    let settings = LinstorSettings { url: target.origin(), auth, ..LinstorSettings::default() };
    (Linstor::new(settings, secrets).unwrap(), target, dir)
}

async fn linstor(
    answer: impl Fn(&Heard, usize) -> Reply + Send + Sync + 'static,
) -> (Linstor, Target, tempfile::TempDir) {
    linstor_with(None, answer).await
}

#[test]
fn a_code_is_taken_apart() {
    let of = |code: i64| (ReturnCode(code).severity(), ReturnCode(code).code());
    // As the controller writes them: a snapshot made, one that is there already, one that is not.
    assert_eq!(of((ABOUT | 1).cast_signed()), (Severity::Success, 1));
    assert_eq!(of(-4611686018409823740), (Severity::Error, 516));
    assert_eq!(of((WARNING | 0x030C_0000 | 3000).cast_signed()), (Severity::Warning, codes::WARN_NOT_FOUND));
    assert_eq!(of((INFORMATION | 5).cast_signed()), (Severity::Information, 5));
    assert_eq!((of(-1).0, of(0)), (Severity::Error, (Severity::Success, 0)));
    assert!((ERROR | ABOUT | 516).cast_signed() < 0, "errors are negative");
    assert!(entries(b"[]").is_err(), "that there is nothing says nothing");
    let read: Vec<Entry> = entries(b"[{\"ret_code\": \"-1\", \"message\": \"m\"}]").unwrap();
    assert_eq!(read[0].ret_code, ReturnCode(-1));
}

#[tokio::test]
async fn one_error_among_many_entries_is_an_error() {
    let answers = vec![
        entry(0, 1, "made on node a"),
        entry(INFORMATION, 2, "by the way"),
        entry(ERROR, codes::IN_USE, "in use on node b"),
        entry(0, 1, "made on node c"),
    ];
    let (linstor, _target, _dir) = linstor(move |_, _| Reply::json(200, Value::from(answers.clone()))).await;
    let trouble = linstor.rollback("r", "s").await.unwrap_err();
    assert_eq!((trouble.kind(), trouble.applied()), (Kind::Look, Applied::Maybe), "some of it was done");
    assert!(is_in_use(&trouble) && trouble.text().starts_with("in use on node b"), "{trouble}");
}

#[tokio::test]
async fn each_code_says_what_to_do_about_it() {
    for (code, kind, applied) in [
        (codes::EXISTS_SNAPSHOT_DFN, Kind::Look, Applied::No),
        (codes::EXISTS_SNAPSHOT, Kind::Look, Applied::No),
        (codes::NOT_FOUND_RSC_DFN, Kind::Missing, Applied::No),
        (codes::NOT_ALL_UPTODATE, Kind::Busy, Applied::No),
        (codes::SNAPSHOT_ROLLBACK_IN_PROGRESS, Kind::Busy, Applied::No),
        (codes::NOT_CONNECTED, Kind::Busy, Applied::No),
        (codes::SNAPSHOTS_NOT_SUPPORTED, Kind::Refused, Applied::No),
        (999, Kind::Internal, Applied::Maybe),
    ] {
        let answer = Value::from(vec![entry(ERROR, code, "no")]);
        let (linstor, _target, _dir) = linstor(move |_, _| Reply::json(500, answer.clone())).await;
        let trouble = linstor.create_snapshot("r", "s").await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.applied()), (kind, applied), "{code}");
        assert_eq!(trouble.code(), Some(code.into()));
        assert_eq!(is_taken(&trouble), matches!(code, 514 | 516));
    }
}

#[tokio::test]
async fn what_says_nothing_is_no_success() {
    for (status, body, kind) in [
        (201, "[]", Kind::Unknown),
        (201, "", Kind::Unknown),
        (200, "{}", Kind::Unknown),
        (200, "[{\"message\": \"done\"}]", Kind::Unknown),
        (200, "[{\"ret_code\": 1.5, \"message\": \"done\"}]", Kind::Unknown),
        (200, "<html>", Kind::Unknown),
        (500, "[]", Kind::Internal),
        (500, "[{\"ret_code\": 1, \"message\": \"done\"}]", Kind::Internal),
        (502, "<html>", Kind::Down),
        (401, "Unauthorized", Kind::Operator),
    ] {
        let (linstor, _target, _dir) = linstor(move |_, _| Reply::Say(status, Vec::new(), body.into())).await;
        let trouble = linstor.create_snapshot("r", "s").await.unwrap_err();
        assert_eq!(trouble.kind(), kind, "{status} {body}");
    }
    let (linstor, target, _dir) =
        linstor(|_, _| Reply::json(201, Value::from(vec![entry(0, 1, "made"), entry(WARNING, 7, "odd")])))
            .await;
    linstor.create_snapshot("r", "s").await.unwrap();
    linstor.create_snapshots(&["r1", "r2"], "s").await.unwrap();
    let heard = target.heard();
    assert_eq!(
        (heard[0].path.as_str(), heard[0].body.as_str()),
        ("/v1/resource-definitions/r/snapshots", "{\"name\":\"s\"}")
    );
    assert_eq!(heard[1].path, "/v1/actions/snapshot/multi");
    let all = json!({ "snapshots": [{ "name": "s", "resource_name": "r1" }, { "name": "s", "resource_name": "r2" }] });
    assert_eq!(serde_json::from_str::<Value>(&heard[1].body).unwrap(), all);
}

#[tokio::test]
async fn a_snapshot_that_is_not_there_is_gone() {
    for (status, severity, code, wanted) in [
        (200, 0, 1, Some(Removed::Now)),
        (200, WARNING, codes::WARN_NOT_FOUND, Some(Removed::Before)),
        (404, WARNING, codes::WARN_NOT_FOUND, Some(Removed::Before)),
        (404, ERROR, codes::NOT_FOUND_SNAPSHOT, Some(Removed::Before)),
        (404, ERROR, codes::NOT_FOUND_SNAPSHOT_DFN, Some(Removed::Before)),
        (404, ERROR, codes::NOT_FOUND_RSC_DFN, None),
        (500, ERROR, 999, None),
    ] {
        let answer = Value::from(vec![entry(severity, code, "x")]);
        let (linstor, target, _dir) = linstor(move |_, _| Reply::json(status, answer.clone())).await;
        assert_eq!(linstor.delete_snapshot("r", "s").await.ok(), wanted, "{status} {code}");
        assert_eq!(target.heard()[0].path, "/v1/resource-definitions/r/snapshots/s");
    }
}

#[tokio::test]
async fn a_snapshot_is_whole_if_every_node_has_it() {
    let of = |name: &str, flags: Value, nodes: Value| {
        json!({ "name": name, "resource_name": "cs-1", "nodes": ["a", "b"], "flags": flags, "snapshots": nodes,
            "volume_definitions": [{ "volume_number": 0, "size_kib": 1024 }] })
    };
    let node = |name: &str, flags: Value| json!({ "node_name": name, "snapshot_name": "s", "flags": flags });
    let ok = json!(["SUCCESSFUL"]);
    let all = json!([
        of("whole", ok.clone(), json!([node("a", json!([])), node("b", ok.clone())])),
        of("half", ok.clone(), json!([node("a", json!([]))])),
        of("failed", json!(["FAILED_DEPLOYMENT"]), json!([node("a", json!([])), node("b", json!([]))])),
        of("failing", ok.clone(), json!([node("a", json!(["FAILED_DISCONNECT"])), node("b", json!([]))])),
        of("going", json!(["DELETE"]), json!([node("a", json!([])), node("b", json!([]))])),
        of("bare", json!(null), json!(null)),
        { "name": "other", "resource_name": "cs-2", "nodes": ["a"] },
    ]);
    let (linstor, target, _dir) = linstor(move |_, _| Reply::json(200, all.clone())).await;
    let found = linstor.view_snapshots(&["cs-1"]).await.unwrap();
    let whole: Vec<_> = found.iter().filter(|one| one.is_whole()).map(|one| one.name.as_str()).collect();
    assert_eq!((whole, found.len()), (vec!["whole"], 6));
    assert_eq!(target.heard()[0].path, "/v1/view/snapshots?resources=cs-1");
    assert_eq!(linstor.resource_of("1"), "cs-1");
}

#[tokio::test]
async fn whether_somebody_uses_it_is_only_known_if_every_node_says_so() {
    let node = |name: &str, state: Value| json!({ "name": "r", "node_name": name, "state": state });
    for (states, wanted) in [
        (vec![json!({ "in_use": false }), json!({ "in_use": false })], Use::Free),
        (vec![json!({ "in_use": false }), json!({ "in_use": true })], Use::Used),
        (vec![json!(null), json!({ "in_use": true })], Use::Used),
        (vec![json!({ "in_use": false }), json!({})], Use::Unknown),
        (vec![json!({ "in_use": false }), json!(null)], Use::Unknown),
        (vec![], Use::Unknown),
    ] {
        let all: Vec<Value> =
            states.iter().enumerate().map(|(n, state)| node(&format!("n{n}"), state.clone())).collect();
        let (linstor, _target, _dir) = linstor(move |_, _| Reply::json(200, Value::from(all.clone()))).await;
        assert_eq!(linstor.used("r").await.unwrap(), wanted, "{states:?}");
    }
    let missing = Value::from(vec![entry(ERROR, codes::NOT_FOUND_RSC_DFN, "not found")]);
    let (linstor, _target, _dir) = linstor(move |_, _| Reply::json(404, missing.clone())).await;
    let trouble = linstor.used("r").await.unwrap_err();
    assert_eq!((trouble.kind(), trouble.code(), trouble.applied()), (Kind::Missing, Some(301), Applied::No));
}

#[tokio::test]
async fn it_is_told_who_calls_and_does_not_tell_on() {
    for (auth, wanted) in [
        (LinstorAuth::Bearer(SecretName::new("token")), "Bearer token-canary-9".to_owned()),
        (
            LinstorAuth::Basic {
                user: Word::Plain("anna".into()),
                password: SecretName::new("linstor-password"),
            },
            "Basic YW5uYTpwdy1jYW5hcnktMTIz".into(),
        ),
    ] {
        let (linstor, target, _dir) = linstor_with(Some(auth), |heard, _| {
            Reply::Say(500, Vec::new(), format!("who is {}?", heard.headers["authorization"]))
        })
        .await;
        let trouble = linstor.rollback("r", "s").await.unwrap_err();
        assert_eq!(target.heard()[0].headers["authorization"], wanted);
        let shown = format!("{trouble} {trouble:?}");
        assert!(!shown.contains("canary") && !shown.contains("YW5uYTpw"), "{shown}");
    }
}
