//! Who is let in, and the forms of what is told.

use backstay_simulator::world::estate;
use serde_json::{Value, json};

use crate::client::{http, site};

const STRANGER: &str = "unable to verify user credentials and/or request signature";

#[tokio::test]
async fn a_stranger_gets_one_answer_whatever_is_wrong() {
    let site = site(|_| ()).await;
    let good = site.cloud.clone();
    let no = |cloud: crate::client::Cloud| async move { cloud.call("listZones", &[]).await.unwrap_err() };
    let mut wrong_key = good.clone();
    wrong_key.key = "nobody".into();
    let mut wrong_secret = good.clone();
    wrong_secret.secret = "guessed".into();
    let mut late = good.clone();
    late.expires = Some(-1);
    for cloud in [wrong_key, wrong_secret, late] {
        assert_eq!(no(cloud).await, (401, STRANGER.into()));
    }
    let unsigned =
        http(&good.address, "GET", "/client/api?command=listZones&response=json", None).await.unwrap();
    assert_eq!(unsigned.status, 401);
    assert!(unsigned.body.contains(STRANGER), "{unsigned:?}");
    // A parameter that was changed after it was signed.
    let bent = good.signed("listZones", &[("name", "a")]).replace("name=a", "name=b");
    assert_eq!(http(&good.address, "POST", "/client/api", Some(bent)).await.unwrap().status, 401);
    assert_eq!(good.call("eraseEverything", &[]).await.unwrap_err().0, 401);
}

#[tokio::test]
async fn get_and_post_and_both_signature_versions_are_let_in_until_they_are_not() {
    let site = site(|_| ()).await;
    for (post, expires) in [(true, Some(600)), (true, None), (false, Some(600)), (false, None)] {
        let mut cloud = site.cloud.clone();
        (cloud.post, cloud.expires) = (post, expires);
        assert!(cloud.call("listZones", &[]).await.is_ok(), "{post} {expires:?}");
    }
    site.site.truth().set(|settings| settings.cloudstack.enforce_post_and_timestamps = true);
    let mut cloud = site.cloud.clone();
    let tag = [("resourceids", site.oma()), ("resourcetype", "UserVm".into()), ("tags[0].key", "k".into())];
    let tag: Vec<(&str, &str)> = tag.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert!(cloud.call("createTags", &tag).await.is_ok());
    cloud.post = false;
    assert!(cloud.call("listZones", &[]).await.is_ok(), "reading by GET is allowed");
    assert_eq!(cloud.call("createTags", &tag).await.unwrap_err().0, 401, "changing by GET is not");
    cloud.post = true;
    cloud.expires = Some(3600);
    assert_eq!(cloud.call("listZones", &[]).await.unwrap_err().0, 401, "an expiry too far ahead");
    cloud.expires = None;
    assert_eq!(cloud.call("listZones", &[]).await.unwrap_err().0, 401, "no expiry");
}

#[tokio::test]
async fn values_that_java_encodes_in_its_own_way_are_signed_right() {
    let site = site(|_| ()).await;
    for value in ["a b+c", "~*._-", "x/y:z,[0]", "é€😀", "100%", "", "a&b=c"] {
        let told = site.cloud.call("listVirtualMachines", &[("keyword", value), ("details[0].x", "1")]).await;
        assert!(told.is_ok(), "{value}: {told:?}");
    }
}

#[tokio::test]
async fn a_list_has_pages_and_an_empty_one_has_nothing() {
    let site = site(|_| ()).await;
    assert_eq!(site.cloud.ok("listVirtualMachines", &[("name", "no such")]).await, json!({}));
    let all = site.cloud.ok("listVolumes", &[]).await;
    let count = all["count"].as_u64().unwrap();
    assert_eq!(all["volume"].as_array().unwrap().len() as u64, count);
    let mut seen = Vec::new();
    for page in 1.. {
        let told = site.cloud.ok("listVolumes", &[("page", &page.to_string()), ("pagesize", "5")]).await;
        let Some(part) = told["volume"].as_array() else { break };
        assert_eq!(told["count"], count);
        if part.is_empty() {
            break;
        }
        seen.extend(part.iter().map(|volume| volume["id"].clone()));
    }
    assert_eq!(seen.len() as u64, count);
    assert_eq!(site.cloud.call("listVolumes", &[("page", "1")]).await.unwrap_err().0, 431);
    assert_eq!(
        site.cloud.call("listVolumes", &[("page", "1"), ("pagesize", "501")]).await.unwrap_err().0,
        431
    );
}

#[tokio::test]
async fn a_name_finds_every_vm_that_has_it_in_its_own() {
    let site = site(|_| ()).await;
    site.deploy("web-01", false).await;
    let told = site.cloud.ok("listVirtualMachines", &[("name", "WEB-01")]).await;
    let mut names: Vec<&str> =
        told["virtualmachine"].as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["web-01", "web-01-old"]);
}

#[tokio::test]
async fn an_error_has_the_envelope_and_the_header_and_numbers_can_be_strings() {
    let site = site(|_| ()).await;
    let told = site.cloud.raw("attachVolume", &[("id", "nonsense")]).await.unwrap();
    assert_eq!(told.status, 431);
    let body: Value = serde_json::from_str(&told.body).unwrap();
    let inner = &body["attachvolumeresponse"];
    assert_eq!(inner["errorcode"], 431);
    assert_eq!(inner["uuidList"], json!([]));
    assert!(inner["cserrorcode"].is_u64() && inner["errortext"].is_string(), "{body}");
    site.site.truth().set(|settings| settings.cloudstack.numbers_as_strings = true);
    let told = site.cloud.ok("listVolumes", &[("page", "1"), ("pagesize", "1")]).await;
    assert!(told["count"].is_string() && told["volume"][0]["size"].is_string(), "{told}");
    assert!(told["volume"][0]["isextractable"].is_string(), "{told}");
}

#[tokio::test]
async fn an_ordinary_account_sees_its_own_is_throttled_and_is_told_little() {
    let site = site(|state| {
        state.configurations.insert("api.throttling.enabled".into(), "true".into());
    })
    .await;
    let tenant = site.site.world().look(|state| state.accounts[1].clone());
    let tenant = crate::client::Cloud::of(&site.site.cloudstack_url(), tenant);
    assert_eq!(tenant.ok("listVolumes", &[("listall", "true")]).await, json!({}));
    assert_eq!(tenant.call("listHosts", &[]).await.unwrap_err().0, 401);
    let theirs = estate::replica("web-01", 2000).to_string();
    assert_eq!(tenant.call("detachVolume", &[("id", &theirs)]).await.unwrap_err().0, 531);
    let mut told = Vec::new();
    for _ in 0..100 {
        told.push(tenant.call("listZones", &[]).await);
    }
    let no =
        told.iter().filter_map(|told| told.as_ref().err()).next().expect("100 calls at once are too many");
    assert_eq!(no.0, 429);
    assert!(no.1.contains("retry after ["), "{no:?}");
    for _ in 0..40 {
        site.cloud.ok("listZones", &[]).await;
    }
}

#[tokio::test]
async fn the_fixtures_are_listed() {
    let site = site(|_| ()).await;
    for (command, name) in [
        ("listZones", "zone"),
        ("listDomains", "domain"),
        ("listAccounts", "account"),
        ("listServiceOfferings", "serviceoffering"),
        ("listDiskOfferings", "diskoffering"),
        ("listNetworks", "network"),
        ("listConfigurations", "configuration"),
        ("listHosts", "host"),
        ("listApis", "api"),
    ] {
        let told = site.cloud.ok(command, &[]).await;
        assert!(
            told["count"].as_u64().is_some_and(|n| n > 0) && !told[name][0]["name"].is_null(),
            "{command}: {told}"
        );
    }
    assert_eq!(site.cloud.call("listTemplates", &[]).await.unwrap_err().0, 431);
    assert!(
        site.cloud.ok("listTemplates", &[("templatefilter", "executable")]).await["template"][0]["isready"]
            .is_boolean()
    );
    assert!(site.cloud.ok("listCapabilities", &[]).await["capability"]["cloudstackversion"].is_string());
    let gate = site.cloud.ok("listConfigurations", &[("name", "kvm.snapshot.enabled")]).await;
    assert_eq!(gate["configuration"][0]["value"], "false");
    assert_eq!(site.cloud.ok("listAsyncJobs", &[]).await, json!({}));
}
