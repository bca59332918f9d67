//! Pages for people with a browser: the document, shown by Swagger UI, and what can go wrong.
//!
//! Swagger UI is in the program (`server/swagger-ui`, as its makers publish it), so the page works where no other server is
//! to be had; and the policy that it is sent with lets it reach no other one.

use std::io::Read;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use flate2::read::GzDecoder;

use super::no_such_path;
use super::problem::{CATALOGUE, INTERNAL, Problem};

const SCRIPT: &[u8] = include_bytes!("../../swagger-ui/swagger-ui-bundle.js.gz");
const STYLE: &[u8] = include_bytes!("../../swagger-ui/swagger-ui.css.gz");
/// Their licences have to be shown wherever they are.
const LICENCES: &str = concat!(
    include_str!("../../swagger-ui/NOTICE"),
    "\n",
    include_str!("../../swagger-ui/LICENSE"),
    "\n",
    include_str!("../../swagger-ui/swagger-ui-bundle.js.LICENSE.txt"),
);

const PAGE: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Backstay: the API</title>\n\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" href=\"data:,\">\n\
    <link rel=\"stylesheet\" href=\"swagger-ui.css\">\n<div id=\"page\">This page needs JavaScript. The document itself is \
    at <a href=\"../openapi.json\">openapi.json</a>.</div>\n<script src=\"swagger-ui.js\"></script>\n\
    <script src=\"start.js\"></script>\n</html>\n";
/// No validator on the web, no settings out of the page's address, and a token is forgotten with the page.
const START: &str = "SwaggerUIBundle({ url: \"../openapi.json\", dom_id: \"#page\", deepLinking: true, validatorUrl: null, \
    queryConfigEnabled: false, persistAuthorization: false, presets: [SwaggerUIBundle.presets.apis] });\n";
/// It runs what came with it, and speaks to this server alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// A new version of the program brings new files; until then nobody has to fetch half a megabyte twice.
const FOR_AN_HOUR: &str = "private, max-age=3600";

pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let script = |headers: HeaderMap| async move { packed(&headers, "text/javascript", SCRIPT) };
    let style = |headers: HeaderMap| async move { packed(&headers, "text/css", STYLE) };
    let licences = async || ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], LICENCES);
    Router::new()
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(async || ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))))
        .route("/docs/start.js", get(async || ([(header::CONTENT_TYPE, "text/javascript")], START)))
        .route("/docs/swagger-ui.js", get(script))
        .route("/docs/swagger-ui.css", get(style))
        .route("/docs/licences.txt", get(licences))
        .route("/problems/{slug}", get(problem))
}

/// As it is kept, for those who can unpack it.
fn packed(headers: &HeaderMap, kind: &'static str, bytes: &'static [u8]) -> Response {
    let always = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, FOR_AN_HOUR),
        (header::VARY, "accept-encoding"),
    ];
    if takes_gzip(headers) {
        return (always, [(header::CONTENT_ENCODING, "gzip")], Bytes::from_static(bytes)).into_response();
    }
    let mut plain = Vec::new();
    match GzDecoder::new(bytes).read_to_end(&mut plain) {
        Ok(_) => (always, plain).into_response(),
        Err(_) => Problem::new(&INTERNAL, "the page cannot be unpacked").into_response(),
    }
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    let all = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(',')).any(|one| {
        let (name, more) = one.split_once(';').unwrap_or((one, ""));
        let refused = more.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

async fn problem(Path(slug): Path<String>) -> Response {
    match CATALOGUE.iter().find(|kind| kind.slug == slug) {
        None => no_such_path().await.into_response(),
        Some(kind) => Html(format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1><p>Status \
             {status}, type <code>/problems/{slug}</code></p><p>{about}</p></html>",
            title = kind.title,
            status = kind.status,
            slug = kind.slug,
            about = kind.about.replace('<', "&lt;"),
        ))
        .into_response(),
    }
}
