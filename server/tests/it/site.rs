//! A server with a site, moving machines in a pretend data centre: the secrets of the site are in the calls, and nowhere else.

use std::time::{Duration, Instant};

use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::things::Source;
use backstay_simulator::world::{Cause, estate};
use backstay_simulator::{Datacentre, Start};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::canary::{Seen, dump};
use crate::served::{Served, client, said};
use crate::support::Place;
use crate::traces::Collector;

/// With what is escaped in URLs, forms and JSON.
const KEY: &str = "k3ycanary93b1f0a7_x-2";
const SECRET: &str = "s3cr3tcanary5e1d/7c0f44a1+~*&Q";
const PASSWORD: &str = "p4sswordcanary &8d1f0b52/\"+%<x>~end";

/// A data centre that lets in who has the canaries, and nobody else.
async fn centre() -> Datacentre {
    let mut state = estate::small();
    state.settings.pace = 0.002;
    for account in state.accounts.iter_mut().filter(|account| account.root_admin) {
        (account.key, account.secret) = (KEY.into(), SECRET.into());
    }
    state.vma.vcenter.password = PASSWORD.into();
    let network = state.networks.get_mut(&estate::id("network", "test-lan")).unwrap();
    network.tags.insert("backstay-test-network".into(), "true".into());
    Datacentre::start(Start::with(state)).await.unwrap()
}

/// A server that knows it, and was told the secrets by hand.
async fn served(centre: &Datacentre, collector: &Collector) -> Served {
    let cloudstack = centre.cloudstack_url().trim_end_matches("/client/api").to_owned();
    let settings = format!(
        "[cloudstack]\nurl = {cloudstack:?}\npoll_first = \"10ms\"\npoll_ceiling = \"50ms\"\n\
         [site]\noma = \"{}\"\nroot_admin = true\nsettle = \"1s\"\nlongest_delay = \"100ms\"\nlook_twice = \"20ms\"\n\
         [volume_daemon]\nurl = \"{}/api/v1\"\npoll = \"10ms\"\n\
         [vma]\nurl = \"{}/api/v1\"\npower_poll = \"10ms\"\nprogress_poll = \"10ms\"\nprogress_grace = \"200ms\"\n",
        centre.world().look(|state| state.oma),
        centre.daemon_url(),
        centre.vma_url(),
    );
    let place = Place::with_url().await;
    let settings = place.file("site.toml", &settings);
    let settings = [
        ("BACKSTAY_CONFIG", settings.to_str().unwrap()),
        ("BACKSTAY_LOG__FILTER", "trace"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let api = Served::with(place, "n1", &settings).await;
    for (name, text, origin) in [
        ("cloudstack-api-key", KEY, cloudstack.clone()),
        ("cloudstack-secret-key", SECRET, cloudstack.clone()),
        ("vcenter-password", PASSWORD, centre.vma_url()),
    ] {
        let body = json!({ "text": text, "origins": [origin] });
        api.put(&format!("/api/v1/secrets/{name}"), &body, &[]).await.is(200);
    }
    api
}

fn input(source: &Source, mode: &str) -> Value {
    let of = |kind: &str, name: &str| estate::id(kind, name).to_string();
    let disks: Vec<_> = source
        .disks
        .iter()
        .map(|disk| json!({ "key": disk.key, "volume": disk.replica.to_string(), "size": disk.size }))
        .collect();
    json!({
        "context": source.name, "mode": mode,
        "source": {
            "id": source.id, "name": source.name, "path": source.path, "windows": source.windows, "boot_type": "BIOS",
            "cpus": source.cpus, "memory_mb": source.memory_mb, "disks": disks,
            "vcenter": { "host": "vcenter.example", "datacenter": "DatabanxDC", "username": "administrator@vsphere.local",
                "password": { "secret": "vcenter-password" } },
        },
        "destination": { "zone": of("zone", "zone-1"), "offering": of("service-offering", "custom"),
            "template": of("template", "tiny"),
            "nics": [{ "network": of("network", if mode == "test" { "test-lan" } else { "prod-lan" }) }] },
        "force_after": "1s", "sync_within": "10s", "steady": "50ms", "boot_within": "5s",
    })
}

/// Waits for one of these.
async fn comes_to(api: &Served, run: &str, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = api.status(run).await;
        if status == wanted {
            return;
        }
        let told = async || api.get(&format!("/api/v1/runs/{run}/explanation")).await;
        assert!(!["stuck", "closed"].contains(&status.as_str()), "{status}: {:?}", told().await);
        assert!(Instant::now() < deadline, "it is {status}, and not {wanted}: {:?}", told().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_a_site_are_seen_by_it_and_by_nobody_else() {
    let (centre, collector) = (centre().await, Collector::start().await);
    let api = served(&centre, &collector).await;
    let mut seen = Seen::default();
    let source = |name: &str| centre.world().look(|state| state.sources[&estate::source(name)].clone());
    let anna = api.person("anna", &["author", "operator"]).await;
    let submit = async |name: &str, mode: &str| {
        let body = json!({ "workflow": "failover", "input": input(&source(name), mode) });
        let said = api.post_as("/api/v1/runs", body, &anna, None).await.is(202);
        (said.json()["run"].as_str().unwrap().to_owned(), format!("{said:?}"))
    };

    // Answers that are lost, broken, of a proxy, and that the credentials are not known.
    let rules = [
        Rule::nth("vma", "GET /vm/{id}/power-state", 2, Fault::Html { status: 502 }),
        Rule::nth("vma", "POST /vm/{id}/power-off", 1, Fault::DoneThenRefused { status: 500 }),
        Rule::nth("vma", "POST /replicate", 1, Fault::DoneThenDropped),
        Rule::nth("cloudstack", "deployVirtualMachine", 1, Fault::Reset),
        Rule::nth("cloudstack", "createSnapshot", 1, Fault::Refused { status: 401 }),
        Rule::nth("cloudstack", "createSnapshot", 2, Fault::Refused { status: 401 }),
        Rule::nth("cloudstack", "startVirtualMachine", 1, Fault::JobFails { code: 530 }),
        Rule::nth("daemon", "POST /volumes/{id}/attach-root", 1, Fault::Html { status: 200 }),
    ];
    let many = rules.len();
    for rule in rules {
        centre.faults().rule(rule);
    }
    let (run, said_of_it) = submit("db-01", "live").await;
    seen.add("answer", &said_of_it);
    comes_to(&api, &run, "held").await;
    let why = json!({ "why": "the keys are known again" });
    let retried =
        api.post_as(&format!("/api/v1/runs/{run}/steps/snapshot/retry"), why.clone(), &anna, None).await;
    seen.add("answer", &format!("{:?}", retried.is(200)));
    comes_to(&api, &run, "succeeded").await;
    let fired = centre.faults().fired().iter().filter(|rule| rule.times > 0).count();
    assert_eq!(fired, many, "{:?}", centre.faults().fired());
    let back = api.post_as(&format!("/api/v1/runs/{run}/rollback"), why.clone(), &anna, None).await;
    seen.add("answer", &format!("{:?}", back.is(200)));
    comes_to(&api, &run, "rolled_back").await;

    // A password that vCenter does not know any more.
    centre.world().change(Cause::new("people", "test", ""), |state| {
        state.vma.vcenter.password = "another".into();
    });
    let (refused, said_of_it) = submit("web-01", "test").await;
    seen.add("answer", &said_of_it);
    comes_to(&api, &refused, "held").await;

    // It was the secrets that were sent, so this test is about something.
    let violations = centre.truth().violations();
    assert!(violations.is_empty(), "{violations:#?}");
    assert_eq!(centre.truth().effect("deployVirtualMachine"), 1);

    let document = api.get_as("/openapi.json", "").await.is(200).json();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_none() || path.ends_with("/events") {
            continue;
        }
        for run in [&run, &refused] {
            let of_run = path
                .replace("{run}", run)
                .replace("{step}", "final-sync")
                .replace("{name}", "vcenter-password");
            if of_run.contains('{') {
                continue;
            }
            let query = if of_run.ends_with("/picture") { "?as=svg" } else { "" };
            let answer = api.get(&format!("{of_run}{query}")).await;
            asked += usize::from(answer.status == 200);
            seen.add(format!("GET {path}"), &format!("{answer:?}"));
        }
    }
    assert!(asked >= 30, "{asked}");
    for of in [&run, &refused] {
        let mut events =
            api.request(Method::GET, &format!("/api/v1/runs/{of}/events"), &api.admin).send().await.unwrap();
        while let Ok(Ok(Some(piece))) = tokio::time::timeout(Duration::from_millis(500), events.chunk()).await
        {
            seen.add("events", &String::from_utf8_lossy(&piece));
        }
        for command in ["get", "steps", "resources", "explain", "export"] {
            let ran = api.cli(&["run", command, of.as_str()]).await;
            seen.add(format!("backstay run {command}"), &format!("{ran:?}"));
        }
    }
    for command in [&["secret", "list"][..], &["config", "show"], &["doctor"], &["check", &run]] {
        seen.add(format!("backstay {}", command.join(" ")), &format!("{:?}", api.cli(command).await));
    }
    let figures = client().get(format!("{}/metrics", api.health));
    seen.add("figures", &said(figures).await.is(200).text);
    seen.add("database", &dump(&api.place).await);
    api.signal(Signal::TERM);
    let (place, out) = api.ended_with().await;
    seen.add("stdout", &out);
    seen.add("log", &std::fs::read_to_string(place.log()).unwrap());
    let raw = String::from_utf8_lossy(&collector.raw.lock().unwrap()).into_owned();
    seen.add("traces", &raw);

    let found: Vec<_> = [KEY, SECRET, PASSWORD].iter().flat_map(|canary| seen.found(canary)).collect();
    assert!(found.is_empty(), "{found:#?}");
    // What was searched is what is meant.
    for (at, has) in [
        ("database", "needs_operator"),
        ("database", "Cannot complete login"),
        ("database", "vcenter-password"),
        ("log", run.as_str()),
        ("traces", run.as_str()),
        ("traces", "final-sync"),
        ("events", "needs_operator"),
        ("figures", "backstay_"),
        ("backstay run export", run.as_str()),
        ("backstay run explain", "an operator"),
        ("GET /api/v1/runs/{run}/journal", "Cannot complete login"),
    ] {
        let text = seen.0.get(at).map(String::as_str).unwrap_or_default();
        assert!(text.contains(has), "{at} has no {has}: {}", text.chars().take(1500).collect::<String>());
    }
    drop(place);
}
