//! The VMware appliance: what there is, and its power.

use std::time::Duration;

use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::State;
use backstay_simulator::world::estate::source;
use backstay_simulator::world::things::Power;
use serde_json::{Value, json};

use super::support::{Site, Told, keys};

/// The credentials, and more.
pub fn with(more: Value) -> Value {
    let mut body = json!({"vcenter": "vcenter.example", "username": "administrator@vsphere.local",
        "password": "pretend-vcenter-password"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const QUERY: &str =
    "vcenter=vcenter.example&username=administrator%40vsphere.local&password=pretend-vcenter-password";

impl Site {
    async fn power(&self, name: &str, what: &str, more: Value) -> Value {
        let id = source(name);
        let body = with(json!({"vm_id": id, "timeout": 300, "wait_for_shutdown": true}));
        let mut body = body;
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.vma(&format!("POST /vm/{id}/power-{what}"), Some(body)).await.is(200)
    }

    async fn power_state(&self, name: &str) -> Value {
        self.vma(&format!("GET /vm/{}/power-state?{QUERY}", source(name)), None).await.is(200)
    }

    pub fn is_on(&self, name: &str) -> bool {
        self.world().look(|state| is_on(state, name))
    }
}

fn is_on(state: &State, name: &str) -> bool {
    state.sources[&source(name)].power == Power::On
}

#[tokio::test]
async fn discovery_tells_every_vm_with_its_disks_and_networks() {
    let site = Site::small().await;
    let body = with(json!({"datacenter": "DatabanxDC", "filter": "sql"}));
    let found = site.vma("POST /discover", Some(body)).await.is(200);
    assert_eq!(found["vcenter"], json!({"host": "vcenter.example", "datacenter": "DatabanxDC"}));
    let vm = &found["vms"][0];
    assert_eq!(found["vms"].as_array().unwrap().len(), 1);
    for key in
        ["id", "name", "path", "datacenter", "power_state", "guest_os", "memory_mb", "num_cpu", "vmx_version"]
    {
        assert!(!vm[key].is_null(), "{key}");
    }
    assert_eq!((&vm["id"], &vm["power_state"]), (&json!(source("sql-01")), &json!("poweredOn")));
    assert_eq!(vm["disks"].as_array().unwrap().len(), 2);
    assert_eq!(
        keys(&vm["disks"][1]),
        [
            "capacity_bytes",
            "datastore",
            "id",
            "label",
            "path",
            "provisioning_type",
            "size_gb",
            "unit_number",
            "vmdk_path"
        ]
    );
    assert_eq!(vm["disks"][1]["id"], "disk-2001");
    assert_eq!(
        keys(&vm["networks"][0]),
        ["adapter_type", "connected", "label", "mac_address", "network_name", "type"]
    );
    let elsewhere = site.vma("POST /discover", Some(with(json!({"datacenter": "Nowhere"})))).await;
    assert_eq!(elsewhere.status, 500);
    assert!(elsewhere.text.starts_with("Discovery failed: "), "{}", elsewhere.text);
}

#[tokio::test]
async fn credentials_are_checked_and_errors_are_plain_text() {
    let site = Site::small().await;
    let id = source("web-01");
    let plain = |told: &Told, status: u16, text: &str| {
        assert_eq!(told.status, status, "{}", told.text);
        assert!(told.kind.starts_with("text/plain"), "{}", told.kind);
        assert!(told.text.contains(text), "{}", told.text);
    };
    let without = site.vma(&format!("POST /vm/{id}/power-off"), Some(json!({"vm_id": id}))).await;
    plain(&without, 400, "Missing required fields");
    let wrong = with(json!({"password": "guessed"}));
    for call in [format!("POST /vm/{id}/power-off"), format!("POST /vm/{id}/power-on")] {
        plain(&site.vma(&call, Some(wrong.clone())).await, 500, "incorrect user name or password");
    }
    let query = QUERY.replace("pretend-vcenter-password", "guessed");
    plain(&site.vma(&format!("GET /vm/{id}/power-state?{query}"), None).await, 500, "incorrect user name");
    plain(&site.vma("POST /discover", Some(wrong.clone())).await, 500, "Discovery failed");
    let path = "%2FDatabanxDC%2Fvm%2Fweb-01";
    plain(&site.vma(&format!("GET /vms/{path}/cbt-status?{query}"), None).await, 500, "incorrect user name");
    let stranger = site.vma(&format!("GET /vm/nobody/power-state?{QUERY}"), None).await;
    plain(&stranger, 404, "VM not found");
    assert!(site.is_on("web-01"));
    // New credentials hold from the next call on.
    let cause = backstay_simulator::world::Cause::new("test", "rotate", "");
    site.world().change(cause, |state| state.vma.vcenter.password = "rotated".to_owned());
    plain(&site.vma(&format!("GET /vm/{id}/power-state?{QUERY}"), None).await, 500, "incorrect user name");
}

#[tokio::test]
async fn a_graceful_power_off_says_success_while_the_guest_is_still_on() {
    let site = Site::with(|state| state.settings.vma.shutdown_ms = 1_500_000).await;
    let before: Vec<u64> = site.world().look(|state| versions(state, "sql-01"));
    let told = site.power("sql-01", "off", json!({"force": false})).await;
    assert_eq!(
        keys(&told),
        [
            "duration_seconds",
            "message",
            "new_state",
            "operation",
            "previous_state",
            "shutdown_method",
            "success",
            "timestamp",
            "tools_status",
            "vm_id"
        ]
    );
    assert_eq!((&told["success"], &told["shutdown_method"]), (&json!(true), &json!("graceful")));
    assert_eq!((&told["previous_state"], &told["new_state"]), (&json!("poweredOn"), &json!("poweredOn")));
    assert!(site.is_on("sql-01"));
    assert_eq!(site.power_state("sql-01").await["power_state"], "poweredOn");
    site.until("the guest is down", |state| !is_on(state, "sql-01")).await;
    let state = site.power_state("sql-01").await;
    assert_eq!(keys(&state), ["power_state", "timestamp", "tools_status", "vm_id"]);
    assert_eq!(
        (&state["power_state"], &state["tools_status"]),
        (&json!("poweredOff"), &json!("toolsNotRunning"))
    );
    let after = site.world().look(|state| versions(state, "sql-01"));
    assert!(
        before.iter().zip(&after).all(|(before, after)| after > before),
        "the guest wrote as it went down"
    );
    let again = site.power("sql-01", "off", json!({})).await;
    assert_eq!((&again["success"], &again["shutdown_method"]), (&json!(true), &json!("already-off")));
}

fn versions(state: &State, name: &str) -> Vec<u64> {
    state.sources[&source(name)].disks.iter().map(|disk| disk.version).collect()
}

#[tokio::test]
async fn a_guest_at_a_prompt_never_goes_down_by_itself_and_goes_down_by_force() {
    let site = Site::with(|state| _ = state.settings.vma.hangs_at_prompt.insert("web-01".to_owned())).await;
    let told = site.power("web-01", "off", json!({})).await;
    assert_eq!((&told["success"], &told["new_state"]), (&json!(true), &json!("poweredOn")));
    // Another one that was asked later is down: this one would be, too.
    site.power("db-01", "off", json!({})).await;
    site.until("the other one is down", |state| !is_on(state, "db-01")).await;
    assert!(site.is_on("web-01"));
    let told = site.power("web-01", "off", json!({"force": true})).await;
    assert_eq!((&told["shutdown_method"], &told["new_state"]), (&json!("forced"), &json!("poweredOff")));
}

#[tokio::test]
async fn without_tools_a_power_off_is_a_hard_one_at_once() {
    for (tools, method) in [
        ("toolsNotInstalled", "forced"),
        ("toolsNotRunning", "forced"),
        ("toolsOld", "graceful"),
        ("toolsOk", "graceful"),
    ] {
        let site = Site::with(|state| {
            state.settings.vma.shutdown_ms = 3_000_000;
            state.sources.get_mut(&source("web-01")).unwrap().tools = tools.to_owned();
        })
        .await;
        let told = site.power("web-01", "off", json!({})).await;
        assert_eq!(told["shutdown_method"], method, "{tools}");
        assert_eq!(site.is_on("web-01"), method == "graceful", "{tools}");
    }
}

#[tokio::test]
async fn a_vm_can_come_back_on_by_itself() {
    let site =
        Site::with(|state| _ = state.settings.vma.comes_back_after_ms.insert("web-01".to_owned(), 50_000))
            .await;
    let told = site.power("web-01", "off", json!({"force": true})).await;
    assert_eq!(told["new_state"], "poweredOff");
    site.until("it is back", |state| is_on(state, "web-01")).await;
    site.power("web-01", "off", json!({"force": true})).await;
    assert!(!site.is_on("web-01"), "once");
}

#[tokio::test]
async fn a_power_off_can_be_one_in_name_only_and_a_lost_answer_is_an_effect_all_the_same() {
    let site = Site::small().await;
    site.centre.faults().rule(Rule::nth("vma", "POST /vm/{id}/power-off", 1, Fault::StopsOnlyInName));
    let told = site.power("web-01", "off", json!({})).await;
    assert_eq!(told["success"], true);
    site.power("db-01", "off", json!({})).await;
    site.until("the other one is down", |state| !is_on(state, "db-01")).await;
    assert!(site.is_on("web-01"));

    site.centre.faults().rule(Rule::nth(
        "vma",
        "POST /vm/{id}/power-off",
        3,
        Fault::DoneThenRefused { status: 500 },
    ));
    let id = source("web-01");
    let lost = site.vma(&format!("POST /vm/{id}/power-off"), Some(with(json!({"force": true})))).await;
    assert_eq!((lost.status, lost.kind.starts_with("text/plain")), (500, true));
    assert!(!site.is_on("web-01"));
}

/// A client that does not wait is no reason to leave it undone.
#[tokio::test]
async fn a_client_that_goes_away_does_not_end_what_it_asked_for() {
    let site = Site::with(|state| state.settings.vma.power_ms = 200_000).await;
    let id = source("web-01");
    let off = format!("POST /vm/{id}/power-off");
    let call = site.vma(&off, Some(with(json!({"force": true}))));
    assert!(tokio::time::timeout(Duration::from_millis(60), call).await.is_err());
    site.until("it is off", |state| !is_on(state, "web-01")).await;
}

#[tokio::test]
async fn a_source_goes_on_again() {
    let site = Site::small().await;
    site.power("web-01", "off", json!({"force": true})).await;
    let told = site.power("web-01", "on", json!({"wait_for_tools": true})).await;
    assert_eq!((&told["operation"], &told["new_state"]), (&json!("power-on"), &json!("poweredOn")));
    assert_eq!((&told["previous_state"], &told["tools_status"]), (&json!("poweredOff"), &json!("toolsOk")));
    assert_eq!(site.power("web-01", "on", json!({})).await["success"], true);
    assert_eq!(site.truth().effects()["source on"][&source("web-01")], 1);
}

#[tokio::test]
async fn change_tracking_what_changed_health_and_what_is_not_served() {
    let site = Site::small().await;
    let cbt =
        site.vma(&format!("GET /vms/%2FDatabanxDC%2Fvm%2Fweb-01/cbt-status?{QUERY}"), None).await.is(200);
    assert_eq!(keys(&cbt), ["enabled", "power_state", "vm_name", "vm_path"]);
    assert_eq!((&cbt["enabled"], &cbt["vm_name"]), (&json!(true), &json!("web-01")));

    let discovered =
        site.vma("POST /discover", Some(with(json!({"datacenter": "DatabanxDC", "filter": "web-01"})))).await;
    let stored = discovered.is(200)["vms"][0].clone();
    let ask = |stored: &Value| {
        with(
            json!({"datacenter": "DatabanxDC", "vm_path": "/DatabanxDC/vm/web-01", "stored_vm_info": stored}),
        )
    };
    let same = site.vma("POST /vm-spec-changes", Some(ask(&stored))).await.is(200);
    assert_eq!((&same["has_changes"], &same["status"]), (&json!(false), &json!("success")));
    let mut older = stored.clone();
    older["memory_mb"] = json!(1);
    let changed = site.vma("POST /vm-spec-changes", Some(ask(&older))).await.is(200);
    assert_eq!(keys(&changed), ["changes_json", "changes_summary", "check_time", "has_changes", "status"]);
    assert!(changed["changes_summary"].as_str().unwrap().contains("memory_mb"));
    let wrong = with(json!({"password": "guessed", "vm_path": "x", "stored_vm_info": {}}));
    let error = site.vma("POST /vm-spec-changes", Some(wrong)).await.is(200);
    assert_eq!(error["status"], "error");

    assert_eq!(site.vma("GET /health", None).await.is(200)["status"], "healthy");
    for not_there in ["GET /vm/x/info", "POST /authenticate", "GET /job/x/status", "POST /sync/final"] {
        assert_eq!(site.vma(not_there, None).await.status, 404, "{not_there}");
    }
}

#[tokio::test]
async fn a_suspended_vm_is_resumed_by_a_power_on_and_loses_its_memory_by_a_power_off() {
    let suspended =
        || Site::with(|state| state.sources.get_mut(&source("web-01")).unwrap().power = Power::Suspended);
    let site = suspended().await;
    let told = site.power_state("web-01").await;
    assert_eq!(
        (&told["power_state"], &told["tools_status"]),
        (&json!("suspended"), &json!("toolsNotRunning"))
    );
    let told = site.power("web-01", "on", json!({})).await;
    assert_eq!((&told["previous_state"], &told["new_state"]), (&json!("suspended"), &json!("poweredOn")));
    assert!(site.broken().is_empty());

    let site = suspended().await;
    let told = site.power("web-01", "off", json!({ "force": false })).await;
    assert_eq!((&told["shutdown_method"], &told["new_state"]), (&json!("forced"), &json!("poweredOff")));
    assert!(site.truth().violations().iter().any(|violation| violation.invariant == "memory"));
}

#[tokio::test]
async fn a_power_state_may_be_unknown() {
    let site = Site::with(|state| _ = state.settings.vma.power_unknown.insert("web-01".to_owned())).await;
    assert_eq!(site.power_state("web-01").await["power_state"], "unknown");
    assert_eq!(site.power_state("db-01").await["power_state"], "poweredOn");
}
