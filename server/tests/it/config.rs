//! Defaults < file < environment < flags, and nothing unknown.

use serde_json::Value;

use crate::support::{Place, Ran, ran};

fn setting(shown: &Ran, key: &str) -> (Value, String) {
    let list: Vec<Value> = serde_json::from_str(&shown.out).unwrap();
    let found = list.iter().find(|setting| setting["key"] == key).unwrap();
    (found["value"].clone(), found["origin"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_layer_wins_over_the_one_before_and_its_name_is_shown() {
    let place = Place::embedded();
    let file =
        place.file("a.toml", "[node]\nname = \"file\"\nlease = \"20s\"\npoll = \"1s\"\nmax_calls = 7\n");
    let mut command = place.command(&["config", "show", "--json", "--data-dir", "/flag"]);
    command
        .env("BACKSTAY_CONFIG", &file)
        .env("BACKSTAY_NODE__NAME", "1234")
        .env("BACKSTAY_NODE__MAX_RUNS", "9")
        .env("BACKSTAY_NODE__KEEP_FINISHED", "12h")
        .env("BACKSTAY_DATA_DIR", "/environment")
        .env("DATABASE_URL", "postgres://me:hunter2@db/x");
    let shown = ran(&mut command).await.exits(0);
    let is = |key, value: Value, origin: &str| {
        assert_eq!(setting(&shown, key), (value, origin.to_owned()), "{key}")
    };
    is("node.lease", "20s".into(), &format!("file: {}", file.display()));
    is("node.max_calls", 7.into(), &format!("file: {}", file.display()));
    is("node.name", "1234".into(), "environment: BACKSTAY_NODE__NAME");
    is("node.max_runs", 9.into(), "environment: BACKSTAY_NODE__MAX_RUNS");
    is("data_dir", "/flag".into(), "flag: --data-dir");
    is("node.trial", "5s".into(), "default");
    is("node.keep_finished", "12h".into(), "environment: BACKSTAY_NODE__KEEP_FINISHED");
    is("database.url", "postgres://me:REDACTED@db/x".into(), "environment: DATABASE_URL");
    assert!(!shown.out.contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_can_be_given_back_as_a_file() {
    let place = Place::embedded();
    let shown = place.run(&["config", "show"]).await.exits(0).says("[node]\n").says("# default");
    let file = place.file("shown.toml", &shown.out);
    let again = place.run(&["config", "check", "--config", file.to_str().unwrap()]).await;
    again.exits(0).says("The configuration is right.");
}

/// What activities may do: places, programs, secrets.
const ALLOWED: &str = r#"
[http]
timeout = "1m"
[[http.origins]]
origin = "https://cloud.example:8443"
private = true
networks = ["10.1.0.0/16"]
[command.programs.virt-v2v]
path = "/usr/bin/virt-v2v"
allow = ["--name=*", "*"]
codes = { 75 = "retry" }
env = { PATH = "/usr/bin" }
[secrets]
dir = "/run/credentials/backstay"
[secrets.uses.cloud-token]
origins = ["https://cloud.example:8443"]
programs = ["virt-v2v"]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_activities_may_do_is_shown_and_can_be_given_back() {
    let place = Place::embedded();
    let file = place.file("allowed.toml", ALLOWED);
    let show = async |file: &std::path::Path| {
        place.run(&["config", "show", "--config", file.to_str().unwrap()]).await.exits(0).out
    };
    let shown = show(&file).await;
    assert!(shown.contains("programs.virt-v2v.path = \"/usr/bin/virt-v2v\""), "{shown}");
    let values = |shown: &str| {
        let line = |line: &str| line.split("  #").next().unwrap_or_default().trim().to_owned();
        shown.lines().map(line).collect::<Vec<_>>()
    };
    let again = show(&place.file("again.toml", &shown)).await;
    assert_eq!(values(&again), values(&shown));
    // A node that runs a program, which runs this one: what it was told is no setting.
    let mut command = place.command(&["config", "check"]);
    for name in ["RUN", "STEP", "ATTEMPT", "KEY", "UNDONE_KEY"] {
        command.env(format!("BACKSTAY_{name}"), "1");
    }
    ran(&mut command).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_activities_may_do_is_checked_before_anything_starts() {
    let place = Place::embedded();
    for (wrong, says) in [
        ("[http]\nproxy = \"x\"\n", "no setting \"http.proxy\""),
        ("[[http.origins]]\norigin = \"https://a\"\nredirects = true\n", "redirects"),
        (
            "[[http.origins]]\norigin = \"https://a/b\"\n",
            "http.origins is wrong: \"https://a/b\" is more than an origin",
        ),
        ("[[http.origins]]\norigin = \"https://a\"\nca = \"/nowhere.pem\"\n", "/nowhere.pem"),
        ("[[http.origins]]\norigin = \"https://a\"\nnetworks = [\"10\"]\n", "networks"),
        ("[command.programs.sh]\npath = \"sh\"\n", "no absolute path"),
        ("[command.programs.sh]\npath = \"/bin/sh\"\nshell = true\n", "shell"),
        ("[secrets]\nfile = \"x\"\n", "no setting \"secrets.file\""),
        (
            "[secrets]\ndir = \"/d\"\n[secrets.uses.a]\norigins = [\"a\"]\n",
            "secrets.uses is wrong: the secret \"a\"",
        ),
    ] {
        let file = place.file("wrong.toml", wrong);
        let checked = place.run(&["config", "check", "--config", file.to_str().unwrap()]).await;
        checked.exits(2).complains(says);
    }
}

/// A site, and nothing else.
const SITE: &str = "[cloudstack]\nurl = \"https://cloud.example\"\n[site]\noma = \"oma\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_site_is_there_once_it_says_where_machines_go_and_brings_its_workflow() {
    let place = Place::embedded();
    let file = place.file("site.toml", SITE);
    let file = file.to_str().unwrap();
    place.run(&["config", "check", "--config", file]).await.exits(0);
    place.run(&["workflow", "list", "--config", file]).await.exits(0).says("failover  ");
    let shown = place.run(&["workflow", "show", "failover", "--config", file]).await.exits(0);
    shown.says("test_for").says("destination");
    place.run(&["workflow", "list"]).await.exits(2).complains("There is no directory of workflows");
    // Without a place it does not count.
    let none = place.file("none.toml", "[vma]\nurl = \"nowhere\"\n");
    place.run(&["config", "check", "--config", none.to_str().unwrap()]).await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_site_is_told_by_its_setting() {
    let place = Place::embedded();
    for (wrong, says) in [
        ("[cloudstack]\nurl = \"https://cloud.example\"\n", "site.oma is empty"),
        (&SITE.replace("https:", "ftp:"), "cloudstack.url is wrong: "),
        (&SITE.replace("[site]", "expires = \"1h\"\n[site]"), "cloudstack.expires is at most 15 minutes"),
        (&SITE.replace("[site]", "ca = \"/nowhere.pem\"\n[site]"), "cloudstack.ca is wrong: "),
        (&format!("{SITE}[volume_daemon]\nurl = \"\"\n"), "volume_daemon.url is wrong: "),
        (&format!("{SITE}[vma]\nurl = \"127.0.0.1:9081\"\n"), "vma.url is wrong: "),
        (&format!("{SITE}[linstor]\nurl = \"https://l/?a=b\"\n"), "linstor.url is wrong: "),
        (
            &format!("{SITE}[v2v]\nprogram = \"virt-v2v\"\n"),
            "v2v.program is virt-v2v, which is no absolute path",
        ),
        (&format!("{SITE}reverts = 10\n"), "site.reverts is 10: it is from 1 to 9"),
        (&format!("{SITE}others_within = \"1h\"\n"), "site.others_within is 1h: an attempt at a step"),
        (&format!("{SITE}[v2v]\ndeadline = \"3h\"\n"), "v2v.deadline is 3h: an attempt at the conversion"),
        (&format!("{SITE}omo = 1\n"), "no setting \"site.omo\""),
        (&SITE.replace("[site]", "api_key = \"in plain\"\n[site]"), "cloudstack.api_key"),
    ] {
        let file = place.file("wrong.toml", wrong);
        let checked = place.run(&["config", "check", "--config", file.to_str().unwrap()]).await;
        checked.exits(2).complains(says);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_in_the_documents_are_settings() {
    let place = Place::embedded();
    let read = |page: &str| {
        std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page))
            .unwrap()
    };
    let pages = [read("activities.md"), read("failover.md")].join("\n");
    let blocks: Vec<_> =
        pages.split("```toml\n").skip(1).filter_map(|rest| Some(rest.split_once("\n```")?.0)).collect();
    assert!(blocks.len() >= 4);
    for block in blocks {
        let file = place.file("shown.toml", block);
        place.run(&["config", "check", "--config", file.to_str().unwrap()]).await.exits(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_or_wrong_is_an_error_that_names_the_place() {
    let place = Place::embedded();
    let check = async |file: &str, variables: &[(&str, &str)]| {
        let mut command = place.command(&["config", "check"]);
        command.env("BACKSTAY_CONFIG", place.file("b.toml", file)).envs(variables.iter().copied());
        ran(&mut command).await.exits(2)
    };
    check("[node]\nleese = \"1s\"\n", &[]).await.complains("no setting \"node.leese\"").complains("b.toml");
    check("nodes = 1\n", &[])
        .await
        .complains("no setting \"nodes\"; there are data_dir, database, node, listen");
    check("[node]\nlease = \"soon\"\n", &[])
        .await
        .complains("node.lease: ")
        .complains("not a length of time");
    check("[node\n", &[]).await.complains("b.toml");
    let wrong = check("", &[("BACKSTAY_NODE__LEESE", "1s")]).await;
    wrong.complains("no setting \"node.leese\"").complains("BACKSTAY_NODE__LEESE");
    check("", &[("BACKSTAY_NODE__LEASE", "10ms")])
        .await
        .complains("node.lease is 10ms, and has to be at least 1s");
    check("", &[("BACKSTAY_NODE__MAX_CALLS", "0")]).await.complains("node.max_calls is 0");
    check("", &[("DATABASE_URL", "mysql://db")]).await.complains("database.url begins with \"mysql\"");
    let missing = place.run(&["config", "check", "--config", "/nowhere.toml"]).await.exits(2);
    missing.complains("There is no configuration file /nowhere.toml.");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_help_tells_the_exit_codes() {
    let place = Place::embedded();
    place.run(&["--help"]).await.exits(0).says("5    the database, or the server, cannot be reached");
    place.run(&["--version"]).await.exits(0).says("backstay 0.1.0");
    place.run(&["sail"]).await.exits(2);
}
