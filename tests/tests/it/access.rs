//! Who may speak to an installation, and the trail of what they did.

use backstay_engine::Store;
use backstay_engine::store::access::{AuditFilter, Change, Changed, Kept, NewToken, Resealed, SealedSecret};
use backstay_tests::Lab;
use chrono::{TimeDelta, Utc};
use serde_json::json;
use uuid::Uuid;

fn entry(n: usize) -> String {
    json!({ "who": "anna", "did": "thing", "about": format!("t-{n}") }).to_string()
}

fn change(n: usize) -> Change {
    Change { entry: entry(n), kept: None }
}

fn kept(key: &str) -> Option<Kept> {
    let (principal, key) = ("anna".into(), key.into());
    Some(Kept { principal, key, asked: vec![1], status: 201, answer: vec![2] })
}

fn token(principal: &str, hash: u8) -> NewToken {
    NewToken {
        id: Uuid::now_v7(),
        principal: principal.into(),
        hash: [hash; 32],
        label: "for a test".into(),
        rights: None,
        workflows: Some(vec!["failover".into()]),
        created_by: "anna".into(),
        expires_at: Utc::now() + TimeDelta::hours(1),
    }
}

async fn lines(store: &Store) -> i64 {
    store.audit_head().await.unwrap().nr
}

#[tokio::test]
async fn a_change_and_its_line_are_there_together_or_not_at_all() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let store = lab.engine.store().clone();
    let roles = ["operator".to_owned()];
    assert_eq!(store.add_principal("anna", &roles, &change(1)).await?, Changed::Done(1));
    // What changes nothing leaves no line.
    assert_eq!(store.add_principal("anna", &roles, &change(2)).await?, Changed::Missing);
    assert_eq!(store.revoke_token(Uuid::nil(), &change(3)).await?, Changed::Missing);
    assert_eq!(store.add_token(&token("nobody", 1), &change(4)).await?, Changed::Missing);
    assert_eq!(store.change_principal("anna", Some(7), None, Some(true), &change(5)).await?, Changed::Moved);
    assert_eq!(lines(&store).await, 1);
    // Nor does a change whose line cannot be written happen.
    let broken = Change { entry: "{".into(), kept: None };
    assert!(store.add_principal("ben", &roles, &broken).await.is_err());
    assert!(store.principal("ben").await?.is_none());

    // Under a key that was used nothing happens twice.
    let first = Change { entry: entry(6), kept: kept("k") };
    assert_eq!(store.add_token(&token("anna", 1), &first).await?, Changed::Done(1));
    assert_eq!(store.add_token(&token("anna", 2), &first).await?, Changed::Known);
    assert_eq!(store.answered("anna", "k").await?, kept("k"));
    assert_eq!(store.answered("ben", "k").await?, None);
    assert_eq!((store.tokens(None, None, 10).await?.len(), lines(&store).await), (1, 2));

    let (shown, who) = store.token(&[1; 32]).await?.unwrap();
    assert_eq!((who.name.as_str(), who.disabled_at, who.version), ("anna", None, 1));
    assert_eq!(shown.workflows, Some(vec!["failover".into()]));
    assert!(store.token(&[2; 32]).await?.is_none());
    assert_eq!(
        store.change_principal("anna", Some(1), None, Some(true), &change(7)).await?,
        Changed::Done(2)
    );
    assert_eq!(store.add_token(&token("anna", 3), &change(8)).await?, Changed::Missing);
    assert!(store.token(&[1; 32]).await?.unwrap().1.disabled_at.is_some());
    assert_eq!(store.revoke_token(shown.id, &change(9)).await?, Changed::Done(1));
    assert_eq!(store.revoke_token(shown.id, &change(10)).await?, Changed::Missing);

    let secret = |text: u8| SealedSecret {
        name: "vcenter".into(),
        key_id: "k1".into(),
        sealed_key: vec![text],
        sealed: vec![text],
        origins: vec![],
        programs: vec![],
    };
    assert_eq!(store.put_secret(&secret(1), 0, "anna", &change(11)).await?, Changed::Done(1));
    // Two who both believe that there is none: one is told that there is.
    assert_eq!(store.put_secret(&secret(2), 0, "ben", &change(12)).await?, Changed::Moved);
    let Changed::Done(second) = store.put_secret(&secret(3), 1, "ben", &change(13)).await? else {
        panic!("it was of the first version")
    };
    let now = store.secret("vcenter").await?.unwrap();
    assert_eq!((now.secret.sealed, now.version, now.changed_by.as_str()), (vec![3], second, "ben"));
    assert!(second > 1);

    // A key that is sealed anew takes the place of what it was, and of nothing that came since.
    let before = lines(&store).await;
    let again = |was: u8| {
        let (name, key_id) = ("vcenter".to_owned(), "k2".to_owned());
        [Resealed { name, was: vec![was], key_id, sealed_key: vec![9] }]
    };
    assert_eq!(store.reseal(&again(1), &change(14)).await?, Changed::Moved, "that was two versions ago");
    assert_eq!(lines(&store).await, before, "what changes nothing leaves no line");
    assert_eq!(store.secrets("", Some("k2"), 10).await?.len(), 1);
    // All of them or none: what is whole says so.
    let both = [again(3), again(1)].concat();
    assert_eq!(store.reseal(&both, &change(14)).await?, Changed::Moved);
    assert_eq!(lines(&store).await, before);
    assert_eq!(store.reseal(&again(3), &change(14)).await?, Changed::Done(1));
    assert_eq!((store.secrets_by_key().await?, lines(&store).await), (vec![("k2".into(), 1)], before + 1));
    let now = store.secret("vcenter").await?.unwrap();
    assert_eq!((now.secret.sealed_key, now.secret.sealed, now.version), (vec![9], vec![3], second));
    assert_eq!(store.secrets("", Some("k2"), 10).await?, []);

    assert_eq!(store.drop_secret("vcenter", Some(1), &change(15)).await?, Changed::Moved);
    assert_eq!(store.drop_secret("vcenter", Some(second), &change(15)).await?, Changed::Done(second));
    assert_eq!(store.drop_secret("vcenter", Some(second), &change(15)).await?, Changed::Missing);
    assert_eq!(store.put_secret(&secret(4), second, "ben", &change(16)).await?, Changed::Moved, "it is gone");
    // Another one of that name never has a version that the first one had.
    let Changed::Done(third) = store.put_secret(&secret(5), 0, "ben", &change(17)).await? else {
        panic!("there is none")
    };
    assert!(third > second, "{third} after {second}");
    assert_eq!(store.audit_verify(|_| {}).await?.1, None);
    Ok(())
}

#[tokio::test]
async fn of_two_installations_that_begin_at_once_one_gets_the_first_principal() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let store = lab.engine.store().clone();
    let roles = ["admin".to_owned()];
    let begin = |n: u8| {
        let (store, roles) = (store.clone(), &roles);
        async move { store.first_principal(roles, &token("admin", n), &change(n.into())).await }
    };
    let all = tokio::join!(begin(1), begin(2), begin(3), begin(4));
    let won: usize = [all.0?, all.1?, all.2?, all.3?].into_iter().map(usize::from).sum();
    assert_eq!((won, lines(&store).await, store.tokens(None, None, 10).await?.len()), (1, 1, 1));
    assert!(!store.first_principal(&roles, &token("second", 9), &change(9)).await?);
    Ok(())
}

#[tokio::test]
async fn whoever_changes_removes_or_reorders_a_line_of_the_trail_is_found_out() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let store = lab.engine.store().clone();
    let write = |n: usize| {
        let store = store.clone();
        async move { store.audit(&[entry(n), entry(n + 100)]).await }
    };
    // Many at once: the chain has one order.
    let all: Vec<_> = (0..20).map(|n| tokio::spawn(write(n))).collect();
    for one in all {
        one.await??;
    }
    let (head, broken) = store.audit_verify(|_| {}).await?;
    assert_eq!((head.nr, broken), (40, None));
    let about = AuditFilter { about: Some("t-7".into()), ..AuditFilter::default() };
    assert_eq!(store.audit_rows(&about).await?.len(), 1);
    let page =
        store.audit_rows(&AuditFilter { before: Some(31), limit: 3, ..AuditFilter::default() }).await?;
    assert_eq!(page.iter().map(|row| row.nr).collect::<Vec<_>>(), [30, 29, 28]);

    let mut sql = lab.sql().await?;
    sqlx::raw_sql("create table trail as table audit; create table its_end as table audit_head")
        .execute(&mut sql)
        .await?;
    for (what, at) in [
        ("update audit set entry = '{}' where nr = 7", 7),
        ("update audit set at = at + interval '1 microsecond' where nr = 9", 9),
        ("delete from audit where nr = 11", 11),
        ("delete from audit where nr > 38", 39),
        (
            "update audit set nr = -1 where nr = 20; update audit set nr = 20 where nr = 21; update audit set nr = 21 where nr = -1",
            20,
        ),
        ("delete from audit where nr = 40; update audit_head set nr = 39", 39),
    ] {
        sqlx::raw_sql(what).execute(&mut sql).await?;
        let broken = store.audit_verify(|_| {}).await?.1;
        assert_eq!(broken.map(|broken| broken.nr), Some(at), "{what}");
        let back = "delete from audit; insert into audit table trail; delete from audit_head; insert into audit_head table its_end";
        sqlx::raw_sql(back).execute(&mut sql).await?;
        assert_eq!(store.audit_verify(|_| {}).await?.1, None);
    }
    Ok(())
}
