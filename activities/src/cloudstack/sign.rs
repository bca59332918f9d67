//! How a call is signed: HMAC-SHA1 over its parameters, sorted by name, encoded, and in lower case.
//!
//! The encoding is that of Java's `URLEncoder` with `%20` for a space: `*` stays as it is, and `~` does not. The server
//! builds the same text from what it received, so one character encoded in another way is "wrong credentials".

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;

/// What stays as it is, beside letters and digits.
const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'*');

/// The parameters of a call. Their names are in lower case, so that they are sorted alike on both sides.
pub type Params = BTreeMap<String, String>;

/// A value, as it is signed and sent.
pub fn encode(value: &str) -> String {
    utf8_percent_encode(value, KEPT).to_string()
}

/// What is signed. Names go in as they are: the brackets of `tags[0].key` are not encoded.
pub fn signed_text(params: &Params) -> String {
    let pairs: Vec<_> = params.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    pairs.join("&").to_ascii_lowercase()
}

/// The signature, in base64.
pub fn signature(params: &Params, secret: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    STANDARD.encode(hmac::sign(&key, signed_text(params).as_bytes()))
}

/// The body of the call. Here names are encoded too, as in any form.
pub fn form(params: &Params, secret: &str) -> String {
    let pairs = params.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    let signature = format!("signature={}", encode(&signature(params, secret)));
    pairs.chain([signature]).collect::<Vec<_>>().join("&")
}
