//! Who may do what in the database: a whole life under the role that serves, and what Postgres refuses.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::served::{Served, waiting_plan};
use crate::support::{Place, ROLE_PASSWORD};

/// A database made by what the program prints, and its three roles.
pub struct Least {
    /// As whoever runs the Postgres server.
    pub dba: Place,
    pub owner: Place,
    pub server: Place,
    pub reader: Place,
    names: [String; 3],
}

impl Least {
    /// The database is there, and empty; the roles may do nothing yet.
    pub async fn made() -> Self {
        let somewhere = Place::with_url().await;
        let tag = uuid::Uuid::new_v4().simple().to_string();
        let names = ["owner", "server", "reader"].map(|part| format!("it_{part}_{tag}"));
        let database = format!("it_{tag}");
        let mut arguments = vec!["db", "roles", "--create", "--database", &database];
        arguments.extend(["--owner", &names[0], "--server", &names[1], "--reader", &names[2]]);
        let printed = somewhere.run(&arguments).await.exits(0).out;
        let mut sql = somewhere.sql().await;
        // One by one, as psql does: a database cannot be created in a transaction.
        for statement in printed.split_inclusive(";\n") {
            run(&mut sql, statement).await.unwrap();
        }
        for name in &names {
            run(&mut sql, &format!("alter role {name} password '{ROLE_PASSWORD}'")).await.unwrap();
        }
        let dba = somewhere.on_database(&database);
        let [owner, server, reader] = names.each_ref().map(|name| dba.as_role(name));
        Self { dba, owner, server, reader, names }
    }

    /// Migrated by its owner, and the roles told what they may do.
    pub async fn ready() -> Self {
        let least = Self::made().await;
        least.owner.run(&["db", "migrate"]).await.exits(0);
        least.apply().await.exits(0).says("may serve, and change nothing that was written down");
        least
    }

    async fn apply(&self) -> crate::support::Ran {
        self.apply_as(&self.owner).await
    }

    async fn apply_as(&self, place: &Place) -> crate::support::Ran {
        let [owner, server, reader] = &self.names;
        let arguments = ["db", "roles", "--apply", "--owner", owner, "--server", server, "--reader", reader];
        place.run(&arguments).await
    }
}

async fn run(sql: &mut PgConnection, statement: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(sql).await.map(drop)
}

/// What Postgres says of it, in SQLSTATE.
async fn said(sql: &mut PgConnection, statement: &str) -> String {
    match run(sql, statement).await {
        Ok(()) => "done".into(),
        Err(sqlx::Error::Database(error)) => error.code().unwrap_or_default().into_owned(),
        Err(other) => panic!("{other}"),
    }
}

const DENIED: &str = "42501";

/// Fails for good after its first step, which is then undone.
fn failing_plan() -> Value {
    let say = json!({ "text": "a drill" });
    json!({ "workflow": "drill", "steps": [
        { "name": "say", "activity": "log", "input": say, "pool": "loud",
          "undo": { "activity": "log", "input": say } },
        { "name": "trip", "activity": "fail", "after": ["say"], "input": { "applied": "maybe" },
          "undo": { "activity": "log", "input": say } } ] })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_goes_well_under_the_role_that_serves() {
    let least = Least::ready().await;
    let Least { owner: _owner, dba, server, .. } = least;
    let settings = [
        ("BACKSTAY_DATABASE__MIGRATE", "false"),
        ("BACKSTAY_NODE__KEEP_FINISHED", "1ms"),
        ("BACKSTAY_NODE__LEASE", "2s"),
    ];
    let api = Served::with(server, "n1", &settings).await;

    // Runs: to the end, back from the middle, and steered.
    let body = json!({ "plan": failing_plan() });
    let failed = api.post_as("/api/v1/runs", body, &api.admin, Some("the-key")).await.is(202).json();
    let failed = failed["run"].as_str().unwrap().to_owned();
    api.until(&failed, "rolled_back").await;
    let run = api.waiting_run().await;
    api.until(&run, "waiting").await;
    api.post(&format!("/api/v1/runs/{run}/pause"), json!({})).await.is(200);
    api.post(&format!("/api/v1/runs/{run}/resume"), json!({})).await.is(200);
    api.post(&format!("/api/v1/runs/{run}/signals"), json!({ "name": "go" })).await.is(200);
    api.until(&run, "succeeded").await;
    api.post(&format!("/api/v1/runs/{run}/rollback"), json!({})).await.is(200);
    api.until(&run, "rolled_back").await;
    // Two for one key: the second stands in line, and comes to it.
    let queued = json!({ "plan": waiting_plan("line"), "exclusive": "vm-1", "queue": true });
    let first = api.post("/api/v1/runs", queued.clone()).await.is(202).json();
    let second = api.post("/api/v1/runs", queued).await.is(202).json();
    let (first, second) = (first["run"].as_str().unwrap(), second["run"].as_str().unwrap());
    api.until(second, "queued").await;
    api.post(&format!("/api/v1/runs/{first}/signals"), json!({ "name": "go" })).await.is(200);
    api.until(second, "waiting").await;

    // What is set beside the runs.
    let anna = api.person("anna", &["operator"]).await;
    let token =
        api.post("/api/v1/tokens", json!({ "principal": "anna", "label": "another" })).await.is(201).json();
    let id = token["id"].as_str().unwrap();
    let delete = reqwest::Method::DELETE;
    crate::served::said(api.request(delete.clone(), &format!("/api/v1/tokens/{id}"), &api.admin))
        .await
        .is(204);
    let patch = api
        .request(reqwest::Method::PATCH, "/api/v1/principals/anna", &api.admin)
        .header("if-match", "\"1\"");
    let patch = patch.header("content-type", "application/json").body(r#"{"disabled":true}"#);
    crate::served::said(patch).await.is(200);
    api.get_as("/api/v1/runs", &anna).await.is(401);
    let put = api.request(reqwest::Method::PUT, "/api/v1/pools/loud", &api.admin);
    crate::served::said(put.header("content-type", "application/json").body(r#"{"at_once":3}"#))
        .await
        .is(200);
    api.post("/api/v1/pools/loud/outage", json!({ "why": "a drill" })).await.is(200);
    crate::served::said(api.request(delete, "/api/v1/pools/loud/outage", &api.admin)).await.is(200);

    // A server that begins removes what is over; what was removed is known by its key.
    let second = second.to_owned();
    let again = Served::with(api.end().await, "n1", &settings).await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while again.get(&format!("/api/v1/runs/{failed}")).await.status != 404 {
        assert!(std::time::Instant::now() < deadline, "nothing is removed");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    again.until(&second, "waiting").await;
    let body = json!({ "plan": failing_plan() });
    let known = again.post_as("/api/v1/runs", body, &again.admin, Some("the-key")).await;
    assert!(known.text.contains(&failed), "{known:?}");

    // The commands work under it as well, and find nothing wrong.
    again.place.run(&["check"]).await.exits(0);
    again.place.run(&["db", "status"]).await.exits(0).says("up to date");
    again.place.run(&["audit", "verify"]).await.exits(0);
    again.end().await;
    let refused: i64 = sqlx::query_scalar("select count(*) from audit where entry ->> 'refused' is not null")
        .fetch_one(&mut dba.sql().await)
        .await
        .unwrap();
    assert!(refused > 0, "attempts that were refused are written down, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_serves_can_change_nothing_that_was_written_down() {
    let least = Least::ready().await;
    let mut sql = least.server.sql().await;
    for statement in [
        "update journal set body = '{}'",
        "update journal set seal = null",
        "delete from journal",
        "truncate journal",
        "update audit set entry = '{}'",
        "delete from audit",
        "insert into audit (nr, at, entry, hash) values (99, now(), '{}', sha256(''))",
        "update audit_head set nr = 0",
        "delete from audit_head",
        "delete from runs",
        "update runs set plan_hash = 'x'",
        "update runs set submitted_at = now()",
        "update runs set client_key = null",
        "insert into retired_keys values ('k', 'h', gen_random_uuid(), now())",
        "delete from retired_keys",
        "delete from facts",
        "update facts set name = 'x'",
        "update tokens set hash = sha256('')",
        "update tokens set expires_at = 'infinity'",
        "delete from tokens",
        "delete from principals",
        "update principals set name = 'mallory'",
        "update nodes set token = gen_random_uuid()",
        "delete from _sqlx_migrations",
        "insert into database_roles values ('a', 'b')",
        // Nothing of the schema.
        "create table mine ()",
        "create temporary table mine ()",
        "create function mine() returns int language sql as 'select 1'",
        "create schema mine",
        "alter table journal add column mine int",
        "create rule mine as on insert to journal do instead nothing",
        "create trigger mine before insert on journal execute function refuse_retired_key()",
        "drop table journal",
        "drop view steps",
        "alter function purge reset search_path",
        "comment on table journal is 'mine'",
        "set role pg_read_all_data",
    ] {
        let said = said(&mut sql, statement).await;
        assert_eq!(said, DENIED, "{statement}");
    }
    let mut reader = least.reader.sql().await;
    for statement in [
        "select from journal",
        "select from runs",
        "select from inbox",
        "select token from nodes",
        "select hash from tokens",
        "select from principals",
        "select from secrets",
        "select from answers",
        "select from audit",
        "select purge(0, 1, 1, 0)",
        "select audit_write(array['{}'])",
        "select tell('{}', '{}', '{}', '{}')",
        "create temporary table mine ()",
    ] {
        // Its sessions only read; but nobody has to rely on that.
        run(&mut reader, "set default_transaction_read_only = off").await.unwrap();
        assert_eq!(said(&mut reader, statement).await, DENIED, "{statement}");
    }
    for view in ["steps", "resources", "run_status", "silent_runs", "node_status", "pool_status", "facts"] {
        assert_eq!(said(&mut reader, &format!("select * from {view}")).await, "done", "{view}");
        assert_ne!(said(&mut reader, &format!("delete from {view}")).await, "done", "{view}");
    }
}

/// What a later migration adds has to be decided about: `grants.sql` names it, or nobody may touch it.
#[tokio::test(flavor = "multi_thread")]
async fn every_right_is_one_that_was_decided_on() {
    let least = Least::ready().await;
    let rights = "select c.relname::text, string_agg(a.privilege_type, ' ' order by a.privilege_type)
        from pg_class c, aclexplode(c.relacl) a
        where c.relnamespace = 'public'::regnamespace and a.grantee = $1::regrole
        group by 1 order by 1";
    let held = async |role: &str| {
        let rows = sqlx::query(rights).bind(role).fetch_all(&mut least.dba.sql().await).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<(String, String)>>()
    };
    let of = |list: &[(&str, &str)]| {
        list.iter().map(|(name, all)| ((*name).into(), (*all).into())).collect::<Vec<_>>()
    };
    let server = held(&least.names[1]).await;
    let looks = [
        "_sqlx_migrations",
        "audit",
        "audit_head",
        "database_roles",
        "events",
        "node_status",
        "pool_status",
        "resources",
        "retired_keys",
        "run_status",
        "silent_runs",
        "steps",
    ];
    let (looked, rest): (Vec<_>, Vec<_>) =
        server.into_iter().partition(|(name, _)| looks.contains(&name.as_str()));
    assert_eq!(looked, of(&looks.map(|name| (name, "SELECT"))));
    let expected = [
        ("answers", "DELETE INSERT SELECT"),
        ("facts", "INSERT SELECT"),
        ("inbox", "DELETE INSERT SELECT"),
        ("journal", "INSERT SELECT"),
        ("nodes", "DELETE INSERT SELECT"),
        ("pool_shares", "DELETE INSERT SELECT"),
        ("pools", "INSERT SELECT"),
        ("principals", "INSERT SELECT"),
        ("runs", "INSERT SELECT"),
        ("secret_versions", "USAGE"),
        ("secrets", "DELETE INSERT SELECT"),
        ("tokens", "INSERT SELECT"),
    ];
    assert_eq!(rest, of(&expected));
    let views = ["facts", "node_status", "pool_status", "resources", "run_status", "silent_runs", "steps"];
    assert_eq!(held(&least.names[2]).await, of(&views.map(|name| (name, "SELECT"))));
    let open: Vec<String> = sqlx::query_scalar(
        "select proname::text from pg_proc where pronamespace = 'public'::regnamespace and prosecdef
           and (has_function_privilege('public', oid, 'execute')
                or proconfig is null or not exists (select from unnest(proconfig) s where s like 'search_path=%pg_temp'))",
    )
    .fetch_all(&mut least.dba.sql().await)
    .await
    .unwrap();
    assert!(open.is_empty(), "these run as the owner, and are not closed: {open:?}");
}

/// It removes runs as the owner. Which runs are over, nobody tells it but the owner's own table.
#[tokio::test(flavor = "multi_thread")]
async fn the_function_that_removes_runs_is_not_fooled_by_a_table_of_ones_own() {
    let least = Least::ready().await;
    let api = Served::on(least.server.as_role(&least.names[1]), "n1").await;
    let run = api.waiting_run().await;
    api.until(&run, "waiting").await;
    let grant = format!("grant temporary on database {} to {}", database(&least.dba), least.names[1]);
    run_as_dba(&least, &grant).await;
    let mut sql = least.server.sql().await;
    for statement in [
        "create temporary table runs as select * from public.runs",
        "update pg_temp.runs set status = 'succeeded', finished_at = '2000-01-01', owner = null, due_at = null",
        "grant all on pg_temp.runs to public",
    ] {
        run_statement(&mut sql, statement).await;
    }
    let removed: i64 =
        sqlx::query_scalar("select removed from purge(0, 10, 1000, 0)").fetch_one(&mut sql).await.unwrap();
    assert_eq!(removed, 0, "a live run is never removed");
    api.until(&run, "waiting").await;
    api.get(&format!("/api/v1/runs/{run}/journal")).await.is(200);
    api.end().await;
}

fn database(place: &Place) -> String {
    url::Url::parse(place.url()).unwrap().path().trim_start_matches('/').to_owned()
}

async fn run_as_dba(least: &Least, statement: &str) {
    run_statement(&mut least.dba.sql().await, statement).await;
}

async fn run_statement(sql: &mut PgConnection, statement: &str) {
    run(sql, statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_is_told_who_may_and_what_to_do() {
    let least = Least::made().await;
    for command in [["serve"], ["node"]] {
        least
            .server
            .run(&command)
            .await
            .exits(6)
            .complains("The schema is behind, and this role may not change it.");
        let mut off = least.server.command(&command);
        let off = crate::support::ran(off.env("BACKSTAY_DATABASE__MIGRATE", "false")).await.exits(1);
        off.complains("and database.migrate is off. As the database's owner run \"backstay db migrate\"");
    }
    least.apply().await.exits(1).complains("run \"backstay db migrate\" first");
    least.owner.run(&["db", "migrate"]).await.exits(0);
    least.server.run(&["serve"]).await.exits(6).complains("run \"backstay db roles --apply\"");
    let nobody = least.owner.run(&["db", "roles", "--apply", "--server", "it_nobody"]).await.exits(3);
    nobody.complains("There is no role it_nobody yet, so nothing was changed.");
    least.owner.run(&["db", "roles", "--server", "x; drop"]).await.exits(2).complains("small letters");
    least
        .owner
        .run(&["db", "roles", "--server", "a", "--reader", "a"])
        .await
        .exits(2)
        .complains("three different");
    least.apply().await.exits(0);
    least.apply_as(&least.server).await.exits(6).complains("Only the owner");

    // What a migration brings, it tells the roles about.
    run_as_dba(&least, &format!("revoke all on journal from {}", least.names[1])).await;
    assert_eq!(said(&mut least.server.sql().await, "select from journal").await, DENIED);
    least.owner.run(&["db", "migrate"]).await.exits(0).says("was up to date");
    assert_eq!(said(&mut least.server.sql().await, "select from journal").await, "done");

    // A schema of another time.
    run_as_dba(
        &least,
        "insert into _sqlx_migrations select 9999, description, installed_on, success, checksum, \
        execution_time from _sqlx_migrations where version = 1",
    )
    .await;
    for migrate in ["true", "false"] {
        let mut newer = least.server.command(&["serve"]);
        let newer = crate::support::ran(newer.env("BACKSTAY_DATABASE__MIGRATE", migrate)).await;
        assert_ne!(newer.code, Some(0), "{newer:?}");
        newer.complains("newer Backstay");
    }
    run_as_dba(&least, "delete from _sqlx_migrations where version = 9999").await;
    run_as_dba(&least, "update _sqlx_migrations set checksum = '\\x00' where version = 3").await;
    least.server.run(&["db", "status"]).await.exits(1).complains("of another build");
}

/// A connection as the URL of the documentation has it.
#[tokio::test(flavor = "multi_thread")]
async fn the_password_may_stand_in_a_file() {
    let least = Least::made().await;
    let url = url::Url::parse(least.owner.url()).unwrap();
    let mut without = url.clone();
    without.set_password(None).unwrap();
    let host = url
        .query_pairs()
        .find(|(key, _)| key == "host")
        .map_or_else(|| url.host_str().unwrap().to_owned(), |(_, socket)| socket.into_owned());
    let file = least.owner.file("pgpass", &format!("{host}:*:*:{}:{ROLE_PASSWORD}\n", least.names[0]));
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // The server of a test may trust whoever comes; then this shows that the file is no hindrance.
    let mut migrate = least.owner.command(&["db", "migrate"]);
    migrate.env("DATABASE_URL", without.as_str()).env("PGPASSFILE", &file);
    crate::support::ran(&mut migrate).await.exits(0);
    let _ = PgConnection::connect(url.as_str()).await.unwrap();
}
