//! The activity `http`, and what an answer means.
//!
//! The idempotency key goes along with every call that changes something, so a target that knows it does the same thing
//! once. One that does not is asked by the probe, if the plan has one: before the call is made again, and before it is
//! undone without anybody knowing what it gave.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use backstay_engine::machine::Direction;
use backstay_engine::{Activity, Context, Effect, Failure, Filled, Probe};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};
use url::Url;

use super::client::{Answer, Call, Client};
use super::guard::Origin;
use super::input::{Form, HttpInput, HttpOutput, Look, Statuses, Verb};
use crate::meaning::Meaning;
use crate::reference::{Keys, Opener, Receiver, Text, wrong};
use crate::secrets::{Scrub, Secrets};

/// A call to a place that the configuration allows.
pub struct Http {
    client: Client,
    secrets: Arc<dyn Secrets>,
}

impl Http {
    /// Over the guarded client.
    pub fn new(client: Client, secrets: Arc<dyn Secrets>) -> Self {
        Self { client, secrets }
    }
}

#[async_trait]
impl Activity for Http {
    const NAME: &'static str = "http";
    type Input = HttpInput;
    type Output = HttpOutput;

    fn effect(&self) -> Effect {
        // Where the input has a probe: its schema says so.
        Effect { probed: true, ..Effect::default() }
    }

    async fn run(&self, context: &Context, input: HttpInput) -> Result<HttpOutput, Failure> {
        let undoing = context.direction() == Direction::Undo;
        let input = match self.with_what_is_found(context, input).await? {
            Found::Input(input) => *input,
            Found::Nothing(output) => return Ok(output),
        };
        let draft = Draft {
            url: input.url.as_deref(),
            path: ("/path", &input.path),
            query: ("/query", &input.query),
            headers: vec![("/headers", &input.headers)],
            body: input.body.as_ref(),
            text: &input.text,
            method: input.method,
            trace: context.traceparent(),
        };
        let most =
            if input.response.form == Form::Nothing { EXCERPT } else { input.response.most.max(EXCERPT) };
        let asked =
            self.ask(&draft, Keys::of(context), context.filled(), input.timeout.map(|span| span.0), most);
        let (origin, scrub, answer) = asked.await?;

        let gone_is_fine = undoing && input.method == Verb::Delete;
        let usual: &[Statuses] = if gone_is_fine { &[OK, GONE.0, GONE.1] } else { &[OK] };
        let expected = if input.expect.is_empty() { usual } else { &input.expect };
        if !expected.iter().any(|statuses| statuses.hold(answer.status)) {
            return Err(refused(&origin, &scrub, &answer, &input)?);
        }
        let body = match input.response.form {
            Form::Nothing => Kept::default(),
            form => keep(&answer, form, input.response.most, &scrub)
                .map_err(|why| Failure::permanent("http_answer", format!("the answer of {origin} {why}")))?,
        };
        Ok(output(&answer, body, &scrub))
    }

    async fn probe(&self, context: &Context, input: HttpInput) -> Result<Probe<HttpOutput>, Failure> {
        self.look(&input, Keys::of(context), context.filled(), context.traceparent()).await
    }
}

const OK: Statuses = Statuses::new(200, 299);
const GONE: (Statuses, Statuses) = (Statuses::new(404, 404), Statuses::new(410, 410));
/// As much of an answer is read for an error.
const EXCERPT: usize = 4 << 10;
/// The largest body that is kept, as JSON: beside it there are the headers, and the engine has a limit.
const KEPT: usize = 192 << 10;
/// How deep JSON may be.
const DEPTH: usize = 64;

/// A call as an input writes it, each part with its place in the input.
struct Draft<'a> {
    url: Option<&'a str>,
    path: (&'a str, &'a [Text]),
    query: (&'a str, &'a BTreeMap<String, Text>),
    /// Later ones take the place of earlier ones.
    headers: Vec<(&'a str, &'a BTreeMap<String, Text>)>,
    body: Option<&'a Value>,
    text: &'a Text,
    method: Verb,
    /// Where it stands in the trace of whoever submitted the run.
    trace: Option<&'a str>,
}

impl Http {
    /// Makes a call, with all that it names filled in.
    async fn ask(
        &self,
        draft: &Draft<'_>,
        keys: Keys,
        filled: &[Filled],
        timeout: Option<Duration>,
        most: usize,
    ) -> Result<(Origin, Scrub, Answer), Failure> {
        let url = draft.url.ok_or_else(|| wrong("the \"url\" is null".into()))?;
        // The text is not repeated: somebody may have written a password into it.
        let mut url =
            Url::parse(url).map_err(|error| wrong(format!("the \"url\" cannot be read: {error}")))?;
        let origin = Origin::of(&url).map_err(|why| wrong(format!("the \"url\" is not called: {why}")))?;
        let allowed = self.client.allowed(&origin)?;
        let receiver = Receiver::Origin(origin.clone());
        let mut opener = Opener { secrets: &*self.secrets, keys, filled, receiver, scrub: Scrub::default() };

        extend(&mut url, &mut opener, draft.path).await?;
        for (name, text) in draft.query.1 {
            let at = format!("{}/{}", draft.query.0, escape(name));
            if let Some(text) = opener.text(&at, text).await? {
                url.query_pairs_mut().append_pair(name, &text);
            }
        }
        let mut headers = HeaderMap::new();
        let mut changes = BTreeMap::new();
        for (place, some) in &draft.headers {
            changes.extend(some.iter().map(|(name, text)| (name.to_ascii_lowercase(), (*place, name, text))));
        }
        for (place, name, text) in changes.into_values() {
            let at = format!("{place}/{}", escape(name));
            if let Some(text) = opener.text(&at, text).await? {
                let (name, value) = header(name, &text, &allowed.key_header)?;
                headers.insert(name, value);
            }
        }
        let body = body(draft, &mut opener, &mut headers).await?;
        if !draft.method.only_looks() && !allowed.key_header.is_empty() {
            let key = if allowed.key_quoted { format!("\"{}\"", keys.this) } else { keys.this.to_string() };
            let name = HeaderName::try_from(&allowed.key_header)
                .map_err(|_| wrong(format!("http.origins: \"{}\" is no header", allowed.key_header)))?;
            headers.insert(name, HeaderValue::try_from(key)?);
        }
        if let Some(trace) = draft.trace {
            headers.insert("traceparent", HeaderValue::try_from(trace)?);
        }
        let timeout = timeout.unwrap_or(self.client.settings().timeout.0);
        let method = draft.method.into();
        let answer = self.client.call(Call { method, url, headers, body, timeout, most }).await?;
        Ok((origin, opener.scrub, answer))
    }

    /// Makes the call that looks.
    async fn look(
        &self,
        input: &HttpInput,
        keys: Keys,
        filled: &[Filled],
        trace: Option<&str>,
    ) -> Result<Probe<HttpOutput>, Failure> {
        let Some(look) = &input.probe else {
            return Ok(Probe::Unknown("its input has no probe".into()));
        };
        let draft = Draft {
            url: look.url.as_deref().or(input.url.as_deref()),
            path: ("/probe/path", &look.path),
            query: ("/probe/query", &look.query),
            headers: vec![("/headers", &input.headers), ("/probe/headers", &look.headers)],
            body: None,
            text: &Text(Value::Null),
            method: Verb::Get,
            trace,
        };
        let (origin, scrub, answer) =
            self.ask(&draft, keys, filled, input.timeout.map(|span| span.0), input.response.most).await?;
        let means = |usual: &[Statuses], stated: &[Statuses]| {
            let statuses = if stated.is_empty() { usual } else { stated };
            statuses.iter().any(|statuses| statuses.hold(answer.status))
        };
        if means(&[GONE.0, GONE.1], &look.absent) {
            return Ok(Probe::Absent);
        }
        if !means(&[OK], &look.expect) {
            return Ok(Probe::Unknown(format!("{origin} answered {}", answer.status)));
        }
        let wants_json = look.at.is_some() || !look.has.is_empty();
        let form = if wants_json { Form::Json } else { input.response.form };
        let kept = match keep(&answer, form, input.response.most, &scrub) {
            Ok(kept) => kept,
            Err(why) => return Ok(Probe::Unknown(format!("the answer of {origin} {why}"))),
        };
        Ok(found(look, output(&answer, kept, &scrub)))
    }

    /// An undo whose step never came to an answer has null wherever it reads what the step gave. If the step can be
    /// probed, what is found takes that place.
    async fn with_what_is_found(&self, context: &Context, input: HttpInput) -> Result<Found, Failure> {
        let reads_own = context.filled().iter().any(|filled| filled.own);
        let Some(undone) = context.undone().filter(|undone| reads_own && undone.output.is_none()) else {
            return Ok(Found::Input(Box::new(input)));
        };
        let step: Option<HttpInput> =
            undone.input.as_ref().and_then(|input| serde_json::from_str(input.as_str()).ok());
        let Some(step) = step.filter(|step| step.probe.is_some()) else {
            return Ok(Found::Input(Box::new(input)));
        };
        let keys = Keys { this: undone.key, undone: None };
        let output = match self.look(&step, keys, &undone.filled, context.traceparent()).await? {
            Probe::Present(output) => output,
            Probe::Absent => {
                let nothing_to_do = Some("nothing of the step is there".into());
                return Ok(Found::Nothing(HttpOutput { nothing_to_do, ..HttpOutput::default() }));
            }
            Probe::Partial => {
                let why = "what the step made is there in part, and cannot be told from what is whole";
                return Err(Failure::retryable("http_partial", why).not_applied());
            }
            Probe::Unknown(why) => {
                let message = format!("whether there is something to undo cannot be found out: {why}");
                return Err(Failure::retryable("http_unknown", message).not_applied());
            }
        };
        let output = serde_json::to_value(output)?;
        let mut input = serde_json::to_value(input)?;
        for filled in context.filled().iter().filter(|filled| filled.own) {
            if let Some(place) = input.pointer_mut(&filled.at) {
                *place = output.pointer(&filled.path).cloned().unwrap_or_default();
            }
        }
        let input = serde_json::from_value(input).map_err(|error| wrong(error.to_string()))?;
        Ok(Found::Input(Box::new(input)))
    }
}

enum Found {
    Input(Box<HttpInput>),
    Nothing(HttpOutput),
}

/// What a probe's answer says.
fn found(look: &Look, mut output: HttpOutput) -> Probe<HttpOutput> {
    if let Some(at) = &look.at {
        match output.body.pointer(at) {
            None | Some(Value::Null) => return Probe::Absent,
            Some(body) => output.body = body.clone(),
        }
    }
    let fits = |(at, wanted): (&String, &Value)| output.body.pointer(at) == Some(wanted);
    if look.has.iter().all(fits) { Probe::Present(output) } else { Probe::Partial }
}

/// Segments are never joined to a path by hand: none of them can leave it, or become another one.
async fn extend(url: &mut Url, opener: &mut Opener<'_>, path: (&str, &[Text])) -> Result<(), Failure> {
    let (place, segments) = path;
    for (n, segment) in segments.iter().enumerate() {
        let at = format!("{place}/{n}");
        if segment.0.get("secret").is_some() {
            return Err(wrong(format!(
                "at \"{at}\" stands a secret; a path is logged by everybody on the way"
            )));
        }
        let Some(text) = opener.text(&at, segment).await? else {
            return Err(wrong(format!(
                "at \"{at}\" stands null. If the step that is undone never came to an answer, give it a \"probe\", or let it \
                 make its thing under a name that is known before, such as {{\"key_of\": \"this\"}}"
            )));
        };
        if text.is_empty() || text == "." || text == ".." || text.chars().any(char::is_control) {
            return Err(wrong(format!(
                "at \"{at}\" stands \"{}\", which is no segment",
                text.escape_debug()
            )));
        }
        url.path_segments_mut()
            .map_err(|()| wrong("the \"url\" has no path".into()))?
            .pop_if_empty()
            .push(&text);
    }
    Ok(())
}

async fn body(
    draft: &Draft<'_>,
    opener: &mut Opener<'_>,
    headers: &mut HeaderMap,
) -> Result<Option<Vec<u8>>, Failure> {
    let (bytes, kind) = match (draft.body, opener.text("/text", draft.text).await?) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => {
            return Err(wrong("it has a \"body\" and a \"text\"; one of them is sent".into()));
        }
        (Some(body), None) => (serde_json::to_vec(&opener.value("/body", body).await?)?, "application/json"),
        (None, Some(text)) => (text.into_bytes(), "text/plain; charset=utf-8"),
    };
    if draft.method.only_looks() {
        return Err(wrong("it has a body, but its method takes none; did you mean POST?".into()));
    }
    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(kind));
    Ok(Some(bytes))
}

/// What decides how a message is framed, or by whom it is answered, is not the plan's.
fn header(name: &str, text: &str, key_header: &str) -> Result<(HeaderName, HeaderValue), Failure> {
    const OURS: [&str; 10] = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "traceparent",
    ];
    let named = HeaderName::try_from(name)
        .map_err(|_| wrong(format!("\"{}\" is no name of a header", name.escape_debug())))?;
    let ours = OURS.contains(&named.as_str()) || named.as_str().starts_with("proxy-");
    if ours || named.as_str().eq_ignore_ascii_case(key_header) {
        return Err(wrong(format!("the header \"{named}\" is set by Backstay itself")));
    }
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| wrong(format!("the header \"{named}\" has characters that no header can have")))?;
    value.set_sensitive(true);
    Ok((named, value))
}

/// What an answer means that was not expected.
fn refused(origin: &Origin, scrub: &Scrub, answer: &Answer, input: &HttpInput) -> Result<Failure, Failure> {
    let status = answer.status;
    let stated = input.on_status.iter().map(|(text, meaning)| Ok((Statuses::parse(text)?, *meaning)));
    let stated: Vec<_> =
        stated.collect::<Result<_, String>>().map_err(|why| Failure::permanent("input", why))?;
    let stated = stated.into_iter().find(|(statuses, _)| statuses.hold(status)).map(|(_, meaning)| meaning);
    let wait = retry_after(&answer.headers, SystemTime::now());
    let meaning = stated.unwrap_or_else(|| usual(status, input.method, wait.is_some()));

    let excerpt: String = scrubbed(scrub, &answer.body, answer.truncated).chars().take(500).collect();
    let hint = match status.as_u16() {
        300..=399 => "; redirects are not followed, as they lead elsewhere than the plan says",
        _ => "",
    };
    let said = if excerpt.trim().is_empty() { String::new() } else { format!(": {}", excerpt.trim()) };
    let message = format!("{origin} answered {status}{hint}{said}");
    let code = format!("http_{}", status.as_u16());
    let details = json!({ "status": status.as_u16(), "body": excerpt });
    let failure = meaning.failure(code, message).details(details);
    Ok(match wait {
        Some(wait) => failure.retry_after(wait),
        None => failure,
    })
}

/// The meaning of a status, where the plan does not say.
fn usual(status: StatusCode, method: Verb, has_retry_after: bool) -> Meaning {
    if method.only_looks() {
        // It changes nothing, so nothing can be there.
        let passing = matches!(status.as_u16(), 408 | 409 | 425 | 429 | 500 | 502..=504) || has_retry_after;
        return if passing { Meaning::RetryNotApplied } else { Meaning::FailNotApplied };
    }
    match status.as_u16() {
        425 | 429 => Meaning::RetryNotApplied,
        // An earlier attempt under this key may be at work, or what it made is in the way.
        408 | 409 => Meaning::Retry,
        400..=499 if has_retry_after => Meaning::Retry,
        501 | 505 => Meaning::FailNotApplied,
        400..=499 => Meaning::FailNotApplied,
        500..=599 => Meaning::Retry,
        // "See other" is what some say when it was done.
        _ => Meaning::Fail,
    }
}

/// How long the target wants to be left alone: at most a day.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(Duration::from_secs(86_400)))
}

/// What is kept of a body.
#[derive(Default)]
struct Kept {
    body: Value,
    truncated: bool,
}

/// Reads a body as what is wanted; or says what is wrong with it.
fn keep(answer: &Answer, form: Form, most: usize, scrub: &Scrub) -> Result<Kept, String> {
    let text = |bytes: &[u8], truncated: bool| {
        let mut text = scrubbed(scrub, bytes, truncated);
        let mut truncated = truncated;
        // What has to be escaped is longer as JSON.
        while Value::from(text.as_str()).to_string().len() > KEPT {
            text = text.chars().take(text.chars().count() / 2).collect();
            truncated = true;
        }
        Kept { body: text.into(), truncated }
    };
    let bytes = answer.body.get(..most).unwrap_or(&answer.body);
    let truncated = answer.truncated || answer.body.len() > most;
    if bytes.is_empty() && !truncated {
        return Ok(Kept::default());
    }
    let says_json = || {
        let kind = answer.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    };
    match form {
        Form::Nothing => Ok(Kept::default()),
        Form::Text => Ok(text(bytes, truncated)),
        Form::Auto if !says_json() => Ok(text(bytes, truncated)),
        Form::Auto | Form::Json => {
            if truncated {
                return Err(format!("is larger than the {} bytes that are kept", bytes.len()));
            }
            if deeper_than(bytes, DEPTH) {
                return Err(format!("is JSON of more than {DEPTH} levels"));
            }
            let body: Value = serde_json::from_slice(bytes).map_err(|error| {
                // Only where, as the text of such an error may hold some of the answer.
                format!("is no JSON: line {}, column {}", error.line(), error.column())
            })?;
            let body = scrub.value(body);
            let long = body.to_string().len() > KEPT;
            if long { Err("is too large to be kept".into()) } else { Ok(Kept { body, truncated: false }) }
        }
    }
}

fn scrubbed(scrub: &Scrub, bytes: &[u8], truncated: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    if truncated { scrub.text_cut(&text) } else { scrub.text(&text) }
}

/// Whether JSON is nested deeper, without reading it.
fn deeper_than(bytes: &[u8], most: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match (in_text, *byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > most {
            return true;
        }
    }
    false
}

fn output(answer: &Answer, kept: Kept, scrub: &Scrub) -> HttpOutput {
    const KEPT_HEADERS: [&str; 6] =
        ["content-type", "etag", "last-modified", "location", "retry-after", "x-request-id"];
    let header = |name: &str| {
        let text = answer.headers.get(name)?.to_str().ok()?;
        Some((name.to_owned(), scrub.text(text).chars().take(1_000).collect()))
    };
    HttpOutput {
        status: answer.status.as_u16(),
        headers: KEPT_HEADERS.into_iter().filter_map(header).collect(),
        body: kept.body,
        truncated: kept.truncated,
        nothing_to_do: None,
    }
}

fn escape(segment: &str) -> String {
    segment.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_says_how_long_it_wants_to_be_left_alone() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            retry_after(&headers, now).map(|wait| wait.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(after("99999999"), Some(86_400));
        assert_eq!((after("soon"), after("-1")), (None, None));
    }

    #[test]
    fn depth_is_counted_outside_of_texts() {
        assert!(!deeper_than(br#"{"a": ["[[[[", "\"[[[["]}"#, 2));
        assert!(deeper_than(b"[[[", 2) && !deeper_than(b"[][][]", 1));
    }

    #[test]
    fn what_a_status_means() {
        use Meaning::*;
        let post = |status, after| usual(StatusCode::from_u16(status).unwrap(), Verb::Post, after);
        for (status, meaning) in [
            (302, Fail),
            (400, FailNotApplied),
            (404, FailNotApplied),
            (408, Retry),
            (409, Retry),
            (422, FailNotApplied),
            (425, RetryNotApplied),
            (429, RetryNotApplied),
            (500, Retry),
            (501, FailNotApplied),
            (503, Retry),
        ] {
            assert_eq!(post(status, false), meaning, "{status}");
        }
        assert_eq!(post(423, true), Retry);
    }
}
