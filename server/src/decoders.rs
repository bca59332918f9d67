//! What of the server reads what comes from outside, fed with anything: by `fuzz/` for hours, by the tests below for a
//! moment. Nothing may panic, and what is taken has to be what it says.

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use backstay_engine::trace;

use crate::api::gate::{TOKEN_PREFIX, bearer};
use crate::api::operation::{idempotency_key, if_match};
use crate::api::runs::{Which, labels};
use crate::api::watch::last_seen;
use crate::config;
use crate::http::inbound_id;
use crate::seal::{Keyring, Sealed};

/// A configuration file.
pub fn configuration(text: &str) {
    match config::of_text(text) {
        // What is taken can be shown, and an error says what it is about.
        Ok(loaded) => assert!(!config::show(&loaded, false).is_empty()),
        Err(trouble) => assert!(!trouble.text.is_empty()),
    }
}

/// The head of a request: lines of `name: value`.
pub fn head(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().and_then(|value| HeaderValue::from_bytes(value.trim_ascii()).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    if let Ok(Some(key)) = idempotency_key(&headers) {
        assert!((1..=150).contains(&key.len()), "{key}");
    }
    if let Ok(Some(version)) = if_match(&headers) {
        let said = headers.get("if-match").and_then(|value| value.to_str().ok());
        assert!(said.is_some_and(|text| text.contains(&version.to_string())), "{said:?}");
    }
    assert!(!matches!(last_seen(&headers), Ok(Some(seq)) if seq < 0));
    assert!(bearer(&headers).map_or(true, |token| token.starts_with(TOKEN_PREFIX)));
    assert!(inbound_id(&headers).is_none_or(|id| !id.contains(['\n', '"', ' '])));
    if let Some(text) = headers.get("traceparent").and_then(|value| value.to_str().ok()) {
        parent(text);
    }
}

/// A `traceparent`.
pub fn parent(text: &str) {
    if let Some(place) = trace::parse(text) {
        let written = trace::traceparent(&place);
        assert_eq!(written.as_deref().and_then(trace::parse), Some(place), "{text}");
    }
}

/// The query of a list of runs.
pub fn query(text: &str) {
    if let Ok(labels) = labels(Some(text)) {
        assert!(labels.values().all(serde_json::Value::is_string));
    }
    if let Ok(uri) = format!("/api/v1/runs?{text}").parse::<Uri>()
        && let Ok(Query(which)) = Query::<Which>::try_from_uri(&uri)
    {
        let _ = labels(which.labels.as_deref());
    }
}

/// An envelope, and a file of keys.
pub fn envelope(bytes: &[u8]) {
    if let Some(sealed) = Sealed::from_bytes(bytes) {
        assert_eq!(sealed.to_bytes(), bytes, "it is written as it was read");
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(ring) = Keyring::parse(text, "the text")
    {
        let sealed = ring.seal("about", b"text").map(|sealed| Sealed::from_bytes(&sealed.to_bytes()));
        if let Ok(sealed) = sealed {
            assert_eq!(
                sealed.and_then(|sealed| ring.open("about", &sealed).ok()).as_deref(),
                Some(&b"text"[..])
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    /// Pieces of what is right, and of what is not, in any order.
    fn pieces(of: &'static [&'static str]) -> impl Strategy<Value = String> {
        let piece = prop_oneof![8 => prop::sample::select(of).prop_map(str::to_owned), 1 => "\\PC{0,6}", 1 => any::<char>().prop_map(String::from)];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    const HEAD: &[&str] = &[
        "if-match",
        "idempotency-key",
        "last-event-id",
        "traceparent",
        "authorization",
        "x-request-id",
        ": ",
        ":",
        "\n",
        "\"",
        "*",
        "17",
        "-1",
        "9223372036854775808",
        "Bearer ",
        "bst_",
        "00-",
        "0af7651916cd43dd8448eb211c80319c",
        "-b7ad6b7169203331",
        "-01",
        "W/",
        ",",
        " ",
        "\t",
        "é",
        "\u{0}",
    ];
    const TOML: &[&str] = &[
        "[listen]\n",
        "[http]\n",
        "[[http.origins]]\n",
        "[command.programs.x]\n",
        "[secrets.uses.x]\n",
        "[traces]\n",
        "[node]\n",
        "[log]\n",
        "address",
        "origins",
        "origin",
        "endpoint",
        "path",
        "networks",
        "lease",
        "name",
        "filter",
        "connections",
        "codes",
        "plain",
        "dir",
        " = ",
        "\n",
        "\"",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        "\"127.0.0.1:0\"",
        "\"http://x\"",
        "\"10.0.0.0/8\"",
        "\"1s\"",
        "\"99999999999y\"",
        "-1",
        "1e400",
        "9223372036854775808",
        "true",
        "'",
        "\"\"\"",
        "#",
        "\\u0000",
        "\\",
        "é",
        "[[",
    ];
    const QUERY: &[&str] = &[
        "status",
        "labels",
        "workflow",
        "live",
        "since",
        "until",
        "limit",
        "cursor",
        "=",
        "&",
        ":",
        ",",
        "%00",
        "%",
        "%zz",
        "+",
        "held",
        "true",
        "2026-01-01T00:00:00Z",
        "018f-",
        "-1",
        "4294967296",
        "é",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn a_head_of_anything_is_answered(text in pieces(HEAD), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            super::head(text.as_bytes());
            super::head(&bytes);
            super::parent(&text);
        }

        #[test]
        fn a_query_of_anything_is_answered(text in pieces(QUERY)) {
            super::query(&text);
        }

        #[test]
        fn an_envelope_of_anything_is_answered(
            bytes in prop::collection::vec(any::<u8>(), 0..80), name in "\\PC{0,4}", hex in "[0-9a-fG]{62,66}",
        ) {
            super::envelope(&bytes);
            super::envelope(format!("{name}:{hex}\n").as_bytes());
            super::envelope([&[name.len() as u8], name.as_bytes(), &[bytes.len() as u8], &bytes, b"text"].concat().as_slice());
        }
    }

    proptest! {
        // Each makes clients and checks certificates.
        #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 500, ..ProptestConfig::default() })]

        #[test]
        fn a_configuration_of_anything_is_answered(text in pieces(TOML)) {
            super::configuration(&text);
        }
    }
}
