//! The client of CloudStack, against a server that answers as the real one does.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use backstay_activities::cloudstack::{
    AttachVolume, CloudStack, CloudStackSettings, DeployVm, ListVms, envelope, sign,
};
use backstay_activities::remote::{Kind, Trouble};
use backstay_engine::machine::Applied;
use backstay_engine::{Failure, Span};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Heard, Reply, Target, secrets_for, told};

const KEY: &str = "api-key-canary-5f3a";
const SECRET: &str = "secret-key-canary~*+/9c";

fn params(pairs: &[(&str, &str)]) -> sign::Params {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// What was sent, as a server reads it.
pub fn form(heard: &Heard) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(heard.body.as_bytes()).into_owned().collect()
}

struct Cloud {
    client: CloudStack,
    target: Target,
    dir: tempfile::TempDir,
}

impl std::ops::Deref for Cloud {
    type Target = CloudStack;

    fn deref(&self) -> &CloudStack {
        &self.client
    }
}

async fn cloud_with(
    change: impl FnOnce(&mut CloudStackSettings),
    answer: impl Fn(&BTreeMap<String, String>, usize) -> Reply + Send + Sync + 'static,
) -> Cloud {
    let target = Target::new(move |heard, nth| answer(&form(heard), nth)).await;
    let texts = [("cloudstack-api-key", KEY), ("cloudstack-secret-key", SECRET)];
    let (dir, secrets) = secrets_for(&target, &texts);
    let mut settings = CloudStackSettings {
        url: target.origin(),
        poll_first: Span::millis(5),
        poll_ceiling: Span::millis(20),
        job_deadline: Span::secs(5),
        timeout: Span::secs(5),
        ..CloudStackSettings::default()
    };
    change(&mut settings);
    Cloud { client: CloudStack::new(settings, secrets).unwrap(), target, dir }
}

async fn cloud(answer: impl Fn(&BTreeMap<String, String>, usize) -> Reply + Send + Sync + 'static) -> Cloud {
    cloud_with(|_| {}, answer).await
}

fn api_error(code: u16, text: &str) -> Reply {
    Reply::json(
        code,
        json!({ "anyresponse": { "uuidList": [], "errorcode": code, "cserrorcode": 4350, "errortext": text } }),
    )
}

#[test]
fn published_signatures_come_out() {
    // Of libcloud's tests, with the names in the case in which they are signed there.
    let deploy = |display: &'static str| {
        params(&[
            ("apikey", "fnord"),
            ("command", "deployVirtualMachine"),
            ("displayname", display),
            ("name", "fred"),
            ("networkids", "42"),
            ("response", "json"),
            ("serviceofferingid", "5"),
            ("templateid", "17"),
            ("zoneid", "23"),
        ])
    };
    let list = params(&[("apikey", "fnord"), ("command", "listVirtualMachines"), ("response", "json")]);
    for (params, wanted) in [
        (list, "z/a9Y7J52u48VpqIgiwaGUMCso0="),
        (deploy("George"), "gHTo7mYmadZ+zluKHzlEKb1i/QU="),
        (deploy("George+Ringo"), "tAgfrreI1ZvWlWLClD3gu4+aKv4="),
    ] {
        assert_eq!(sign::signature(&params, "abracadabra"), wanted, "{params:?}");
    }
    // Of the tests of ngine-io/cs.
    let list = [("apiKey", "foo"), ("command", "listVirtualMachines"), ("response", "json")];
    for (more, wanted) in [
        (vec![("listall", "true")], "B0d6hBsZTcFVCiioSxzwKA9Pke8="),
        (
            vec![
                ("zoneId", "2"),
                ("templateId", "3"),
                ("temPlateidd", "4"),
                ("pageSize", "10"),
                ("page", "1"),
            ],
            "mMS7XALuGkCXk7kj5SywySku0Z0=",
        ),
        (vec![("listall", "1"), ("unicode_param", "éèààû")], "gABU/KFJKD3FLAgKDuxQoryu4sA="),
        (
            vec![("foo", "foo,bar"), ("bar[0].baz", "blah"), ("bar[0].foo", "1000"), ("bytes_param", "blah")],
            "ImJ/5F0P2RDL7yn4LdLnGcEx5WE=",
        ),
        (vec![("blah", "brah")], "58VvLSaVUqHnG9DhXNOAiDFwBoA="),
        (
            vec![
                ("command", "scaleVirtualMachine"),
                ("id", "a"),
                ("details[0].cpunumber", "1000"),
                ("details[0].memory", "640k"),
            ],
            "ZNl66z3gFhnsx2Eo3vvCIM0kAgI=",
        ),
        (
            vec![("command", "createNetwork"), ("name", ""), ("display_text", "")],
            "CistTEiPt/4Rv1v4qSyILvPbhmg=",
        ),
    ] {
        let all = params(&[&list[..], &more[..]].concat());
        assert_eq!(sign::signature(&all, "bar"), wanted, "{more:?}");
    }
}

#[test]
fn values_are_encoded_as_java_does() {
    assert_eq!(
        sign::encode("aZ09-._* ~+/:,[]é\u{1F600}"),
        "aZ09-._*%20%7E%2B%2F%3A%2C%5B%5D%C3%A9%F0%9F%98%80"
    );
    let text = sign::signed_text(&params(&[("details[0].cpuNumber", "A~*"), ("name", "")]));
    assert_eq!(text, "details[0].cpunumber=a%7e*&name=", "names are not encoded, and empty values stay");
}

/// The server's half, written anew from what it receives.
fn is_signed(sent: &BTreeMap<String, String>) -> bool {
    let text: Vec<String> = sent
        .iter()
        .filter(|(name, _)| *name != "signature")
        .map(|(name, value)| {
            let java: String = value
                .bytes()
                .map(|byte| match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'*' | b'_' => {
                        char::from(byte).to_string()
                    }
                    other => format!("%{other:02X}"),
                })
                .collect();
            format!("{name}={java}").to_lowercase()
        })
        .collect();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, SECRET.as_bytes());
    let tag = ring::hmac::sign(&key, text.join("&").as_bytes());
    use base64::Engine;
    sent.get("signature") == Some(&base64::engine::general_purpose::STANDARD.encode(tag))
}

#[tokio::test]
async fn a_call_is_a_signed_form_that_expires_soon() {
    let cloud = cloud(|sent, _| {
        assert!(is_signed(sent), "{sent:?}");
        Reply::json(200, json!({ "deployvirtualmachineresponse": { "id": "v", "jobid": "j" } }))
    })
    .await;
    let job = Uuid::parse_str("018F3F10-0000-7000-8000-00000000ABCD").unwrap();
    let vm = DeployVm {
        name: "a*b~c d".into(),
        displayname: Some("München & Söhne [1]".into()),
        networkids: vec!["n1".into(), "n2".into()],
        details: [("cpuNumber".to_owned(), "2".to_owned())].into(),
        customid: Some(job),
        ..DeployVm::default()
    };
    let started = cloud.client.deploy_vm(&vm, Some(job)).await.unwrap();
    assert_eq!((started.jobid.as_str(), started.id.as_deref()), ("j", Some("v")));
    let heard = cloud.target.heard().remove(0);
    assert_eq!((heard.method.as_str(), heard.path.as_str()), ("POST", "/client/api"));
    let sent = form(&heard);
    for (name, value) in [
        ("startvm", "false"),
        ("networkids", "n1,n2"),
        ("details[0].cpuNumber", "2"),
        ("customjobid", "018f3f10-0000-7000-8000-00000000abcd"),
        ("customid", "018f3f10-0000-7000-8000-00000000abcd"),
        ("signatureversion", "3"),
        ("response", "json"),
        ("displayname", "München & Söhne [1]"),
    ] {
        assert_eq!(sent.get(name).map(String::as_str), Some(value), "{name}");
    }
    let expires = chrono::DateTime::parse_from_str(&sent["expires"], "%Y-%m-%dT%H:%M:%S%z").unwrap();
    let life = (expires.to_utc() - chrono::Utc::now()).num_seconds();
    assert!((590..=600).contains(&life), "{life}");
}

#[tokio::test]
async fn an_id_for_the_job_is_not_sent_where_that_is_switched_off() {
    let said = |_: &BTreeMap<String, String>, _| Reply::json(200, json!({ "r": { "jobid": "j" } }));
    let cloud = cloud_with(|settings| settings.custom_job_ids = false, said).await;
    cloud.client.start_vm("v", Some(Uuid::nil())).await.unwrap();
    assert!(!form(&cloud.target.heard()[0]).contains_key("customjobid"));
}

#[tokio::test]
async fn lists_are_read_in_every_way_they_are_written() {
    let cloud = cloud(|sent, _| {
        let body = match sent["command"].as_str() {
            "listZones" => json!({ "listzonesresponse": {} }),
            "listVolumes" => json!({ "listvolumesresponse": { "count": 1, "volume": [{
                "id": 7, "name": "d", "type": "DATADISK", "size": "10737418240", "deviceid": "3",
                "virtualmachineid": "", "state": "Ready", "unheard": [1] }] } }),
            "listServiceOfferings" => {
                json!({ "listserviceofferingsresponse": { "count": 1, "serviceoffering":
                [{ "id": "o", "iscustomized": "true", "memory": null }] } })
            }
            "deleteVolume" => json!({ "deletevolumeresponse": { "success": "true" } }),
            "listCapabilities" => json!({ "listcapabilitiesresponse": { "capability":
                { "cloudstackversion": "4.20.1.0", "kvmsnapshotenabled": true } } }),
            "listNetworks" => json!({ "listnetworksresponse": { "count": 3 } }),
            other => panic!("{other}"),
        };
        Reply::json(200, body)
    })
    .await;
    assert_eq!(cloud.list_zones().await.unwrap(), vec![]);
    let volume = cloud.volume("7").await.unwrap().unwrap();
    assert_eq!((volume.id.as_str(), volume.size, volume.deviceid), ("7", Some(10 << 30), Some(3)));
    assert_eq!(volume.virtualmachineid, None, "an empty text is no machine");
    assert_eq!(cloud.list_service_offerings(None).await.unwrap()[0].iscustomized, Some(true));
    cloud.delete_volume("7").await.unwrap();
    assert_eq!(cloud.capabilities().await.unwrap().kvmsnapshotenabled, Some(true));
    assert_eq!(cloud.list_networks(None).await.unwrap_err().kind(), Kind::Unknown);
}

#[tokio::test]
async fn what_nobody_knows_is_an_unknown_outcome_and_never_success() {
    for body in [
        "{}",
        "[]",
        "null",
        "\"jobid\"",
        "{\"a\":{\"jobid\":\"j\"},\"b\":{}}",
        "{\"attachvolumeresponse\":[]}",
        "{\"attachvolumeresponse\":{}}",
        "{\"attachvolumeresponse\":{\"jobid\":null}}",
        "{\"attachvolumeresponse\":{\"jobid\":{\"x\":1}}}",
        "{\"attachvolumeresponse\":{\"success\":true}}",
        "{\"attachvolumeresponse\":{\"errortext\":\"broken\"}}",
        "<!DOCTYPE html><html>Please log in</html>",
        "",
    ] {
        let cloud = cloud(move |_, _| Reply::Say(200, Vec::new(), body.into())).await;
        let trouble = cloud.client.attach_volume(&AttachVolume::default(), None).await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unknown, Applied::Maybe), "{body}");
        assert_eq!(cloud.target.heard().len(), 1, "it is not made again: {body}");
    }
    for body in ["{\"r\":{}}", "{\"r\":{\"success\":false}}", "{\"r\":{\"success\":\"maybe\"}}"] {
        let cloud = cloud(move |_, _| Reply::Say(200, Vec::new(), body.into())).await;
        assert_eq!(cloud.delete_volume("x").await.unwrap_err().kind(), Kind::Unknown, "{body}");
    }
}

#[tokio::test]
async fn each_error_says_what_to_do_about_it() {
    use Kind::{Busy, Internal, Look, Operator, Refused};
    for (code, text, kind, not_applied, rest) in [
        (401, "unable to verify user credentials", Operator, true, None),
        (405, "no", Refused, true, None),
        (411, "2FA", Operator, true, None),
        (429, "The given user has reached the limit. Retry after [1500] ms.", Busy, true, Some(1500)),
        (430, "malformed", Refused, true, None),
        (431, "Please specify a volume that is not attached", Look, false, None),
        (432, "disabled", Refused, true, None),
        (503, "maintenance, retry after 30000 ms", Busy, true, Some(30_000)),
        (530, "Internal error", Internal, false, None),
        (531, "permission", Operator, true, None),
        (532, "limit", Operator, true, None),
        (533, "capacity", Busy, false, Some(60_000)),
        (534, "host down", Busy, false, None),
        (535, "quota", Operator, false, None),
        (536, "in use", Look, false, None),
        (537, "conflict", Look, false, None),
        (539, "who knows", Internal, false, None),
    ] {
        let cloud = cloud(move |_, _| api_error(code, text)).await;
        let trouble = cloud.client.start_vm("v", None).await.unwrap_err();
        assert_eq!(trouble.kind(), kind, "{code}");
        assert_eq!(trouble.applied() == Applied::No, not_applied, "{code}");
        assert_eq!(trouble.wants_rest().map(|rest| rest.as_millis()), rest, "{code}");
        assert_eq!((trouble.code(), trouble.detail()), (Some(code.into()), Some(4350)), "{code}");
        assert!(trouble.to_string().contains(text), "{trouble}");
        let calls = if code == 401 { 2 } else { 1 };
        assert_eq!(cloud.target.heard().len(), calls, "{code}");
        let permanent = matches!(kind, Operator | Refused | Look);
        let wanted = if kind == Operator { "needs_operator".into() } else { format!("cloudstack_{code}") };
        assert_eq!(
            told(trouble.clone()),
            (wanted.clone(), !permanent, false),
            "{code}: claims no more than it can"
        );
        assert_eq!(told(trouble.alone()), (wanted, !permanent, not_applied), "{code}");
    }
    let cloud = cloud(|_, _| api_error(530, "x").with("retry-after: 7")).await;
    let looked = cloud.list_zones().await.unwrap_err();
    assert_eq!((looked.applied(), looked.wants_rest()), (Applied::No, Some(Duration::from_secs(7))));
}

#[tokio::test]
async fn pages_of_somebody_else_are_judged_by_their_status() {
    for (status, kind) in [(502, Kind::Down), (503, Kind::Down), (500, Kind::Internal), (404, Kind::Missing)]
    {
        let page = "<html><body>Bad Gateway</body></html>";
        let cloud = cloud(move |_, _| Reply::Say(status, Vec::new(), page.into())).await;
        let trouble = cloud.start_vm("v", None).await.unwrap_err();
        assert_eq!(trouble.kind(), kind, "{status}");
        assert_eq!(told(trouble).0 == "target_down", kind == Kind::Down, "{status}");
    }
}

#[tokio::test]
async fn who_is_not_known_signs_once_more_with_the_credentials_of_that_moment() {
    let (dir, known) = (std::sync::Arc::new(Mutex::new(None::<std::path::PathBuf>)), "new-key-canary-77");
    let place = std::sync::Arc::clone(&dir);
    let cloud = cloud(move |sent, _| {
        if sent["apikey"] == known {
            return Reply::json(200, json!({ "r": { "jobid": "j" } }));
        }
        // Somebody changes the key just now.
        std::fs::write(place.lock().unwrap().as_ref().unwrap().join("cloudstack-api-key"), known).unwrap();
        api_error(401, "unable to verify user credentials and/or request signature")
    })
    .await;
    *dir.lock().unwrap() = Some(cloud.dir.path().to_owned());
    assert_eq!(cloud.client.start_vm("v", None).await.unwrap().jobid, "j");
    let keys: Vec<_> = cloud.target.heard().iter().map(|heard| form(heard)["apikey"].clone()).collect();
    assert_eq!(keys, [KEY, known]);
    let signatures: Vec<_> =
        cloud.target.heard().iter().map(|heard| form(heard)["signature"].clone()).collect();
    assert_ne!(signatures[0], signatures[1]);
}

#[tokio::test]
async fn changed_credentials_are_used_by_the_next_call() {
    let cloud = cloud(|_, _| Reply::json(200, json!({ "r": {} }))).await;
    cloud.client.list_zones().await.unwrap();
    std::fs::write(cloud.dir.path().join("cloudstack-api-key"), "another-key-1").unwrap();
    cloud.client.list_zones().await.unwrap();
    let keys: Vec<_> = cloud.target.heard().iter().map(|heard| form(heard)["apikey"].clone()).collect();
    assert_eq!(keys, [KEY, "another-key-1"]);
}

#[tokio::test]
async fn by_a_clock_that_differs_from_ours_it_is_signed_for_that_clock() {
    let cloud = cloud(|sent, _| {
        let theirs = chrono::Utc::now() + chrono::TimeDelta::hours(1);
        let expires = chrono::DateTime::parse_from_str(&sent["expires"], "%Y-%m-%dT%H:%M:%S%z").unwrap();
        if expires > theirs {
            return Reply::json(200, json!({ "r": {} }));
        }
        api_error(401, "expired").with(&format!("date: {}", httpdate::fmt_http_date(theirs.into())))
    })
    .await;
    assert_eq!(cloud.client.list_zones().await.unwrap(), vec![]);
    assert_eq!(cloud.target.heard().len(), 2);
}

#[tokio::test]
async fn a_name_is_found_exactly_among_all_pages() {
    // The server finds every name that has it in it, and gives two at a time.
    let names = ["web-1-test", "web-10", "WEB-1", "old-web-1", "web-1"];
    let cloud = cloud_with(
        |settings| settings.page = 2,
        move |sent, _| {
            assert_eq!(sent["name"], "web-1");
            let page: usize = sent["page"].parse().unwrap();
            let of_page = names.iter().enumerate().skip((page - 1) * 2).take(2);
            let found: Vec<Value> =
                of_page.map(|(n, name)| json!({ "id": format!("vm-{n}"), "name": name })).collect();
            Reply::json(200, json!({ "r": { "count": names.len(), "virtualmachine": found } }))
        },
    )
    .await;
    let which = ListVms { name: Some("web-1".into()), ..ListVms::default() };
    let found = cloud.client.list_vms(&which).await.unwrap();
    assert_eq!(found.iter().map(|vm| vm.id.as_str()).collect::<Vec<_>>(), ["vm-4"]);
    assert_eq!(cloud.target.heard().len(), 3);
}

#[tokio::test]
async fn what_is_asked_for_by_id_and_not_there_is_nothing() {
    let gone = cloud(|_, _| api_error(431, "Unable to execute API command due to invalid value.")).await;
    assert_eq!(gone.vm("x").await.unwrap(), None);
    assert_eq!(gone.volume("x").await.unwrap(), None);
    assert_eq!(gone.volumes_of("x").await.unwrap_err().kind(), Kind::Look, "no volumes is another answer");
    let other = cloud(|_, _| {
        Reply::json(200, json!({ "r": { "count": 1, "virtualmachine": [{ "id": "another" }] } }))
    })
    .await;
    assert_eq!(other.client.vm("x").await.unwrap(), None, "a server that does not filter");
}

/// A job that gives these answers one after the other, and the last one again and again.
async fn job_of(answers: Vec<Reply>) -> Cloud {
    cloud(move |sent, nth| {
        assert_eq!((sent["command"].as_str(), sent["jobid"].as_str()), ("queryAsyncJobResult", "j"));
        answers[nth.min(answers.len()) - 1].clone()
    })
    .await
}

fn state(status: Value, code: Value, result: Value) -> Reply {
    let mut job = json!({ "jobid": "j", "jobstatus": status, "jobresultcode": code });
    if !result.is_null() {
        job["jobresult"] = result;
    }
    Reply::json(200, json!({ "queryasyncjobresultresponse": job }))
}

#[tokio::test]
async fn a_job_is_waited_for_until_it_ends() {
    let under_way = || state(json!(0), json!(0), Value::Null);
    let volume = json!({ "volume": { "id": "d" } });
    let hiccups = vec![
        under_way(),
        Reply::Say(502, Vec::new(), "<html>".into()),
        Reply::Silence(Duration::ZERO),
        state(json!("0"), json!("0"), Value::Null),
        state(json!("1"), json!("0"), volume.clone()),
    ];
    let cloud = job_of(hiccups).await;
    assert_eq!(cloud.client.finish("j", None, pending()).await.unwrap(), volume);
    let cloud = job_of(vec![state(json!(1), json!(0), Value::Null)]).await;
    assert_eq!(cloud.client.finish("j", None, pending()).await.unwrap(), Value::Null);
}

#[tokio::test]
async fn a_job_that_failed_or_is_not_known_may_have_done_it() {
    let restart = "job cancelled because of management server restart or shutdown";
    for (reply, kind, code, text, name) in [
        (
            state(json!(2), json!(530), json!({ "errorcode": 533, "errortext": "no host" })),
            Kind::Busy,
            Some(533),
            "no host",
            "cloudstack_533",
        ),
        (state(json!(2), json!(530), json!(restart)), Kind::Internal, Some(530), restart, "cloudstack_530"),
        (
            state(json!(2), json!(431), json!({ "errortext": "attached" })),
            Kind::Look,
            Some(431),
            "attached",
            "cloudstack_431",
        ),
        (state(json!(2), Value::Null, Value::Null), Kind::Internal, Some(530), "", "cloudstack_530"),
        (
            api_error(431, "entity does not exist"),
            Kind::Look,
            Some(431),
            "does not know the job",
            "cloudstack_job_unknown",
        ),
        (state(json!(3), json!(0), json!({})), Kind::Unknown, None, "status 3", "cloudstack_unknown"),
        (
            state(Value::Null, json!(0), json!({})),
            Kind::Unknown,
            None,
            "without a status",
            "cloudstack_unknown",
        ),
        (state(json!(1), json!(530), json!({})), Kind::Unknown, None, "error", "cloudstack_unknown"),
        (
            state(json!(1), json!(0), json!({ "errorcode": 530 })),
            Kind::Unknown,
            None,
            "error",
            "cloudstack_unknown",
        ),
    ] {
        let cloud = job_of(vec![reply]).await;
        let trouble = cloud.client.finish("j", None, pending()).await.unwrap_err();
        assert_eq!((trouble.kind(), trouble.code()), (kind, code), "{trouble:?}");
        assert!(trouble.to_string().contains(text), "{trouble}");
        assert_eq!(trouble.applied(), Applied::Maybe, "{trouble:?}");
        assert_eq!(told(trouble).0, name);
    }
}

#[tokio::test]
async fn waiting_ends_when_it_should() {
    let cloud = job_of(vec![state(json!(0), json!(0), Value::Null)]).await;
    let begun = Instant::now();
    let late = cloud.client.finish("j", Some(Span::millis(100)), pending()).await.unwrap_err();
    assert_eq!((late.kind(), late.applied()), (Kind::Late, Applied::Maybe));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let asked = async {
        let _ = stopped.await;
    };
    let client = cloud.client.clone();
    let waiting = tokio::spawn(async move { client.finish("j", Some(Span::secs(600)), asked).await });
    stop.send(()).unwrap();
    let cancelled = waiting.await.unwrap().unwrap_err();
    assert_eq!((cancelled.kind(), cancelled.applied()), (Kind::Cancelled, Applied::Maybe));
    assert!(begun.elapsed() < Duration::from_secs(5));
    // A server that says nothing does not keep it either.
    let mute = cloud_with(|_| {}, |_, _| Reply::Silence(Duration::from_secs(60))).await;
    let late = mute.client.finish("j", Some(Span::millis(100)), pending()).await.unwrap_err();
    assert_eq!(late.kind(), Kind::Late);
}

#[tokio::test]
async fn what_changes_something_is_sent_once_and_what_looks_is_sent_again() {
    let cloud = cloud(|sent, nth| match (sent["command"].as_str(), nth) {
        ("listZones", 3) => Reply::json(200, json!({ "r": {} })),
        _ => Reply::Silence(Duration::ZERO),
    })
    .await;
    assert_eq!(cloud.client.list_zones().await.unwrap(), vec![]);
    assert_eq!(cloud.target.heard().len(), 3);
    let trouble = cloud.client.start_vm("v", None).await.unwrap_err();
    assert_eq!((trouble.kind(), trouble.applied()), (Kind::Unanswered, Applied::Maybe));
    assert_eq!(cloud.target.heard().len(), 4, "nothing was repeated beneath the engine");
}

const COMMANDS: [&str; 4] = ["startVirtualMachine", "stopVirtualMachine", "deleteVolume", "createTags"];

fn api(name: &str) -> Value {
    json!({ "name": name, "isasync": true, "params": [{ "name": "id", "required": true }], "response": [] })
}

/// Allows the first and the third, and what is not asked about, on pages of what is asked for.
fn discovery(sent: &BTreeMap<String, String>, pages: bool) -> Reply {
    let mine = [COMMANDS[0], "listZones", COMMANDS[2], "listApis", "listVolumes"];
    let named: Vec<_> = mine.iter().filter(|api| sent.get("name").is_none_or(|name| name == *api)).collect();
    if named.is_empty() {
        let text = "Api Discovery plugin was unable to find an api by that name or process any apis";
        return api_error(530, text);
    }
    let of = |name: &str| sent[name].parse::<usize>().unwrap();
    let (skip, take) = if pages { ((of("page") - 1) * of("pagesize"), of("pagesize")) } else { (0, 99) };
    let page: Vec<_> = named.iter().skip(skip).take(take).map(|name| api(name)).collect();
    Reply::json(200, json!({ "listapisresponse": { "count": named.len(), "api": page } }))
}

#[tokio::test]
async fn rights_are_asked_for_all_at_once() {
    let lacks = vec!["stopVirtualMachine", "createTags"];
    for (pages, page, calls) in [(false, 500, 1), (false, 2, 1), (true, 500, 1), (true, 2, 3)] {
        let cloud = cloud_with(|settings| settings.page = page, move |sent, _| discovery(sent, pages)).await;
        assert_eq!(cloud.lacks(&COMMANDS).await.unwrap(), Some(lacks.clone()), "{pages} {page}");
        assert_eq!(cloud.target.heard().len(), calls, "{pages} {page}");
        assert!(cloud.target.heard().iter().all(|heard| !form(heard).contains_key("name")));
    }
    let none = cloud(|_, _| api_error(432, "not available")).await;
    assert_eq!(none.lacks(&COMMANDS).await.unwrap(), None, "nobody tells");
    let other = cloud(|_, _| api_error(531, "no")).await;
    assert_eq!(other.lacks(&COMMANDS).await.unwrap_err().kind(), Kind::Operator);
}

/// What a root administrator may is megabytes, and may be more than is read.
#[tokio::test]
async fn rights_are_asked_for_one_by_one_where_all_of_them_are_too_many() {
    let large = |sent: &BTreeMap<String, String>, _| match sent.get("name") {
        Some(_) => discovery(sent, false),
        None => Reply::Flood(4 << 20),
    };
    let cloud = cloud_with(|settings| settings.max_answer = 1 << 20, large).await;
    assert_eq!(cloud.lacks(&COMMANDS).await.unwrap(), Some(vec!["stopVirtualMachine", "createTags"]));
    let asked: Vec<_> = cloud.target.heard().iter().filter_map(|heard| form(heard).remove("name")).collect();
    assert_eq!(asked, COMMANDS, "each once, also those that are not there");
}

fn shown(trouble: Trouble) -> String {
    format!("{trouble}\n{trouble:?}\n{}\n{:?}", trouble.text(), Failure::from(trouble.clone()))
}

#[tokio::test]
async fn no_secret_is_in_any_error() {
    let echo = format!("you are {KEY} with {SECRET}, and {}", sign::encode(SECRET));
    let quoted = Value::from(echo.as_str()).to_string();
    for reply in [
        api_error(401, &echo),
        api_error(431, &echo),
        Reply::Say(500, Vec::new(), format!("<html>{echo}</html>")),
        Reply::Say(200, Vec::new(), format!("<html>{echo}</html>")),
        Reply::Say(200, Vec::new(), format!("{{\"r\":{{\"jobid\":[{quoted}]}}}}")),
        Reply::Silence(Duration::ZERO),
        Reply::Raw(format!("HTTP/1.1 200 OK\r\nx: {KEY}\r\ncontent-length: 999\r\n\r\n{echo}").into_bytes()),
    ] {
        let cloud = cloud(move |_, _| reply.clone()).await;
        let all = shown(cloud.client.start_vm("v", None).await.unwrap_err());
        for canary in ["canary", SECRET, &sign::encode(SECRET)] {
            assert!(!all.contains(canary), "{all}");
        }
    }
    // What is read holds none either.
    let cloud = cloud(move |_, _| {
        Reply::json(200, json!({ "r": { "count": 1, "zone": [{ "id": "z", "name": format!("is {KEY}") }] } }))
    })
    .await;
    let zone = cloud.client.list_zones().await.unwrap().remove(0);
    assert_eq!(zone.name.as_deref(), Some("is [secret cloudstack-api-key]"));
    assert!(!format!("{:?} {:?}", cloud.client, cloud.client.settings()).contains("canary"));
}

#[tokio::test]
async fn a_secret_goes_nowhere_else_than_it_may() {
    let target = Target::new(|_, _| Reply::status(200)).await;
    let elsewhere = Target::new(|_, _| Reply::status(200)).await;
    let texts = [("cloudstack-api-key", KEY), ("cloudstack-secret-key", SECRET)];
    let (_dir, secrets) = secrets_for(&elsewhere, &texts);
    let settings = CloudStackSettings { url: target.origin(), ..CloudStackSettings::default() };
    let client = CloudStack::new(settings, secrets).unwrap();
    let trouble = client.start_vm("v", None).await.unwrap_err();
    assert_eq!((trouble.kind(), trouble.applied()), (Kind::Operator, Applied::No));
    assert!(trouble.to_string().contains("secrets.uses.cloudstack-api-key.origins"), "{trouble}");
    assert_eq!(target.heard().len(), 0);
}

#[test]
fn settings_say_what_is_wrong_with_them() {
    let read = |text: &str| serde_json::from_str::<CloudStackSettings>(text);
    let settings = read(r#"{"url": "https://cloud.example", "timeout": "20s"}"#).unwrap();
    assert_eq!((settings.timeout, settings.poll_first), (Span::secs(20), Span::secs(1)));
    assert!(read(r#"{"urls": "x"}"#).unwrap_err().to_string().contains("urls"));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let new = |settings| {
        CloudStack::new(settings, std::sync::Arc::new(backstay_activities::secrets::NoSecrets)).unwrap_err()
    };
    let wrong = new(CloudStackSettings::default());
    assert!(wrong.contains("not set"), "{wrong}");
    let wrong = new(CloudStackSettings { url: "https://me:pw@cloud.example".into(), ..settings.clone() });
    assert!(wrong.contains("user or a password") && !wrong.contains("pw"), "{wrong}");
    let wrong = new(CloudStackSettings { expires: Span::secs(3600), ..settings });
    assert!(wrong.contains("15 minutes"), "{wrong}");
}

#[test]
fn an_error_is_seen_under_any_key() {
    let read = |text: &str| envelope::read(text.as_bytes());
    let error = r#"{"errorresponse":{"uuidList":[],"errorcode":"432","cserrorcode":9999,"errortext":"The given command does not exist"}}"#;
    let Ok(envelope::Said::Error(error)) = read(error) else { panic!() };
    assert_eq!((error.code, error.cs_code), (432, Some(9999)));
    let quoted = read("{\"secret\": hunter2}").unwrap_err().to_string();
    assert!(!quoted.contains("hunter2"), "{quoted}");
}
