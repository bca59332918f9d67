//! The activity `command`: runs a program that the configuration allows, and nothing else; without a shell.
//!
//! ```text
//!   group   the processes of one attempt: they end together
//!   lock    one attempt of a step at a time, also when the node that began it is gone
//! ```
//!
//! What becomes of a program when its node dies at once, by SIGKILL or a crash of the kernel's making: nobody is left to end
//! it, and it goes on. The next attempt, on the same machine, finds its lock held and waits for it; so two attempts of a
//! step never run beside each other there. On another machine nothing can know of it: a program that must not run twice
//! takes `BACKSTAY_KEY` to whatever it changes.

pub(crate) mod group;
pub(crate) mod lock;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backstay_engine::{Activity, Context, Failure, Span};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::meaning::Meaning;
use crate::reference::{Keys, Opener, Receiver, Text, wrong};
use crate::secrets::{Scrub, Secrets};
use group::Group;

/// What may be run. Nothing, unless the configuration says so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandSettings {
    /// The programs, by the names that plans use.
    pub programs: BTreeMap<String, Program>,
    /// The folder of the locks that keep a second attempt from running beside the first. Left out: nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locks: Option<PathBuf>,
}

/// A program that may be run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Where it is: an absolute path.
    pub path: PathBuf,
    /// The arguments that always come first.
    #[serde(default)]
    pub args: Vec<String>,
    /// What the arguments of a plan may look like; `*` stands for anything, but a `*` in the first place for nothing that
    /// begins with `-`. Left out: a plan gives none.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Its environment, beside `BACKSTAY_RUN`, `BACKSTAY_STEP`, `BACKSTAY_ATTEMPT`, `BACKSTAY_KEY` and, in a trace,
    /// `TRACEPARENT`. It gets no other.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The variables that a plan may set.
    #[serde(default)]
    pub allow_env: Vec<String>,
    /// The folder that it runs in. Left out: `/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// How long it may take, unless a plan says less.
    #[serde(default = "ten_minutes")]
    pub timeout: Span,
    /// How long it may take to end once it is asked to, before it is killed.
    #[serde(default = "five_seconds")]
    pub grace: Span,
    /// The user (number) that it runs as. Left out: that of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group (number) that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// What its exit codes mean, beside 0; 75 (EX_TEMPFAIL) means `retry` unless this says otherwise.
    #[serde(default)]
    pub codes: BTreeMap<String, Meaning>,
}

fn ten_minutes() -> Span {
    Span::secs(600)
}

fn five_seconds() -> Span {
    Span::secs(5)
}

/// Runs a program that the configuration allows.
pub struct Command {
    settings: CommandSettings,
    secrets: Arc<dyn Secrets>,
}

impl Command {
    /// With these programs. The error says what is wrong with them.
    pub fn new(settings: CommandSettings, secrets: Arc<dyn Secrets>) -> Result<Self, String> {
        for (name, program) in &settings.programs {
            if !program.path.is_absolute() {
                return Err(format!(
                    "command.programs.{name}.path is {}, which is no absolute path",
                    program.path.display()
                ));
            }
            if let Some(code) = program.codes.keys().find(|code| code.parse::<u8>().is_err()) {
                return Err(format!("command.programs.{name}.codes has \"{code}\", which is no exit code"));
            }
            if let Some(name) = program.env.keys().chain(&program.allow_env).find(|name| !is_variable(name)) {
                return Err(format!("command.programs names the variable \"{name}\", which nobody can set"));
            }
        }
        Ok(Self { settings, secrets })
    }
}

fn is_variable(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(fits) && !name.starts_with("BACKSTAY_") && name != "TRACEPARENT"
}

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandInput {
    /// The program's name in the configuration.
    pub program: String,
    /// Its arguments. There is no shell: they arrive as they are.
    #[serde(default)]
    pub args: Vec<Text>,
    /// What it reads from its standard input.
    #[serde(default)]
    pub stdin: Text,
    /// Variables, as far as the configuration allows them.
    #[serde(default)]
    pub env: BTreeMap<String, Text>,
    /// The exit codes that mean that it was done. Left out: 0.
    #[serde(default)]
    #[schemars(inner(range(min = 0, max = 255)))]
    pub expect: Vec<u8>,
    /// How long it may take, such as "30s"; never longer than the configuration says.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub timeout: Option<Span>,
    /// Its output is JSON, and becomes `result`.
    #[serde(default)]
    pub json: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct CommandOutput {
    /// Its exit code.
    pub code: u8,
    /// The end of what it wrote to its standard output.
    pub stdout: String,
    /// The end of what it wrote to its standard error.
    pub stderr: String,
    /// They were longer.
    pub truncated: bool,
    /// Its output as JSON, if that was asked for.
    pub result: Value,
}

#[async_trait]
impl Activity for Command {
    const NAME: &'static str = "command";
    type Input = CommandInput;
    type Output = CommandOutput;

    async fn run(&self, context: &Context, input: CommandInput) -> Result<CommandOutput, Failure> {
        let name = &input.program;
        let Some(program) = self.settings.programs.get(name) else {
            let message = format!(
                "\"{}\" is not run, as it is not in the configuration: add command.programs.NAME with its path",
                name.escape_debug()
            );
            return Err(Failure::permanent("command_refused", message).not_applied());
        };
        let mut opener = Opener {
            secrets: &*self.secrets,
            keys: Keys::of(context),
            filled: context.filled(),
            receiver: Receiver::Program(name.clone()),
            scrub: Scrub::default(),
        };
        let (mut command, stdin) = prepare(context, program, &input, &mut opener).await?;
        let scrub = opener.scrub;

        let timeout = input.timeout.map_or(program.timeout.0, |span| span.0.min(program.timeout.0));
        let end = tokio::time::Instant::now() + timeout;
        let lock = match &self.settings.locks {
            Some(folder) => Some(lock::take(folder, context, end).await?),
            None => None,
        };
        let mut group = Group::spawn(&mut command, lock.as_slice(), program.grace.0).map_err(|error| {
            let message = format!("\"{name}\" could not be started: {error}");
            use std::io::ErrorKind::{OutOfMemory, WouldBlock};
            match error.kind() {
                OutOfMemory | WouldBlock => Failure::retryable("command_unstarted", message).not_applied(),
                _ => Failure::permanent("command_unstarted", message).not_applied(),
            }
        })?;
        let (stdout, stderr) = (group.stdout(), group.stderr());
        let feeding = feed(group.stdin(), stdin);
        let both = async {
            let ended = async {
                let status = group.leader_ended().await;
                // What it has left running in its group would hold the pipes open, and go on without anybody.
                group.end().await;
                status
            };
            let out = tail(stdout, |line, cut| {
                let line = if cut { scrub.text_cut(line) } else { scrub.text(line) };
                tracing::info!(target: "backstay_activities::command", stdout = line);
                context.progress(0.0, line);
            });
            let err = tail(stderr, |line, cut| {
                let line = if cut { scrub.text_cut(line) } else { scrub.text(line) };
                tracing::info!(target: "backstay_activities::command", stderr = line);
            });
            let (status, out, err, ()) = tokio::join!(ended, out, err, feeding);
            (status, out, err)
        };
        // The future is dropped before the group is asked to end, so nothing waits for itself.
        let why = tokio::select! {
            (status, out, err) = both => {
                let status = status.map_err(|error| Failure::retryable("command_lost", error))?;
                if let Some(lock) = lock {
                    lock.free();
                }
                return judge(&input, program, status, out, err, &scrub);
            }
            () = tokio::time::sleep_until(end) => format!("took longer than {}", Span::from(timeout)),
            () = context.cancelled() => "was asked to stop".into(),
        };
        group.end().await;
        let code = if context.is_cancelled() { "cancelled" } else { "command_timeout" };
        Err(Failure::retryable(code, format!("\"{name}\" {why}, and was ended with all its processes")))
    }
}

/// The process as it will be started, and what it will read.
async fn prepare(
    context: &Context,
    program: &Program,
    input: &CommandInput,
    opener: &mut Opener<'_>,
) -> Result<(tokio::process::Command, Option<String>), Failure> {
    let mut command = tokio::process::Command::new(&program.path);
    command.args(&program.args);
    for (n, arg) in input.args.iter().enumerate() {
        let at = format!("/args/{n}");
        if arg.0.get("secret").is_some() {
            return Err(wrong(format!(
                "at \"{at}\" stands a secret, and arguments are seen by everybody on the machine; give it by \"env\" or \
                 \"stdin\""
            )));
        }
        let text = opener.text(&at, arg).await?.ok_or_else(|| wrong(format!("at \"{at}\" stands null")))?;
        if !program.allow.iter().any(|pattern| allows(pattern, &text)) {
            let text: String = text.chars().take(100).collect();
            let message = format!(
                "the program \"{}\" is not given \"{}\": nothing in command.programs.{}.allow allows it",
                input.program,
                text.escape_debug(),
                input.program
            );
            return Err(Failure::permanent("command_refused", message).not_applied());
        }
        if text.contains('\0') {
            return Err(wrong(format!("at \"{at}\" stands the character U+0000")));
        }
        command.arg(text);
    }
    command.env_clear().envs(&program.env);
    for (name, text) in &input.env {
        if !program.allow_env.contains(name) {
            let message = format!(
                "the variable \"{}\" is not set: command.programs.{}.allow_env does not have it",
                name.escape_debug(),
                input.program
            );
            return Err(Failure::permanent("command_refused", message).not_applied());
        }
        if let Some(text) = opener.text(&format!("/env/{name}"), text).await? {
            if text.contains('\0') {
                return Err(wrong(format!("the variable \"{name}\" has the character U+0000")));
            }
            command.env(name, text);
        }
    }
    command
        .env("BACKSTAY_RUN", context.run().to_string())
        .env("BACKSTAY_STEP", context.step())
        .env("BACKSTAY_ATTEMPT", context.attempt().to_string())
        .env("BACKSTAY_KEY", context.key().to_string())
        .current_dir(program.dir.as_deref().unwrap_or(std::path::Path::new("/")))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(undone) = opener.keys.undone {
        command.env("BACKSTAY_UNDONE_KEY", undone.to_string());
    }
    if let Some(trace) = context.traceparent() {
        command.env("TRACEPARENT", trace);
    }
    if let Some(uid) = program.uid {
        command.uid(uid);
    }
    if let Some(gid) = program.gid {
        command.gid(gid);
    }
    let stdin = opener.text("/stdin", &input.stdin).await?;
    command.stdin(if stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    Ok((command, stdin))
}

/// Whether a pattern allows an argument. It does not begin with `-` unless the pattern does, as it would be an option.
fn allows(pattern: &str, text: &str) -> bool {
    if text.starts_with('-') && !pattern.starts_with('-') {
        return false;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

async fn feed(stdin: Option<tokio::process::ChildStdin>, text: Option<String>) {
    if let (Some(mut stdin), Some(text)) = (stdin, text) {
        // A program that does not read to the end is not wrong.
        let _ = stdin.write_all(text.as_bytes()).await;
    }
}

/// How much of an output is kept.
const TAIL: usize = 32 << 10;
/// The longest line that is told while it runs.
const LINE: usize = 500;

/// The end of an output.
#[derive(Default)]
struct Tail {
    bytes: VecDeque<u8>,
    truncated: bool,
}

/// Reads to the end, keeps the end, and tells every line.
async fn tail(pipe: Option<impl AsyncRead + Unpin>, mut tell: impl FnMut(&str, bool)) -> Tail {
    let mut tail = Tail::default();
    let Some(mut pipe) = pipe else { return tail };
    let (mut buffer, mut line) = (vec![0; 8 << 10], Vec::new());
    let mut tell = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        if !text.trim().is_empty() {
            tell(text.trim_end(), line.len() >= LINE);
        }
        line.clear();
    };
    while let Ok(read) = pipe.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => tell(&mut line),
                _ if line.len() < LINE => line.push(*byte),
                _ => {}
            }
        }
        tail.bytes.extend(bytes);
        let over = tail.bytes.len().saturating_sub(TAIL);
        tail.truncated |= over > 0;
        tail.bytes.drain(..over);
    }
    tell(&mut line);
    tail
}

/// What its end means.
fn judge(
    input: &CommandInput,
    program: &Program,
    status: ExitStatus,
    out: Tail,
    err: Tail,
    scrub: &Scrub,
) -> Result<CommandOutput, Failure> {
    let truncated = out.truncated || err.truncated;
    let raw: Vec<u8> = out.bytes.into();
    let text = |bytes: &[u8], truncated: bool| {
        let text = String::from_utf8_lossy(bytes);
        if truncated { scrub.text_cut_before(&text) } else { scrub.text(&text) }
    };
    let (stdout, stderr) = (text(&raw, out.truncated), text(&Vec::from(err.bytes), err.truncated));
    let name = &input.program;
    let last = |text: &str| text.trim_end().lines().last().unwrap_or_default().chars().take(300).collect();
    let said: String = if stderr.trim().is_empty() { last(&stdout) } else { last(&stderr) };
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    let details = json!({ "stdout": stdout, "stderr": stderr });

    let Some(code) = status.code().and_then(|code| u8::try_from(code).ok()) else {
        let message = format!("\"{name}\" was ended from outside ({status}){said}");
        return Err(Failure::retryable("command_killed", message).details(details));
    };
    let expected = if input.expect.is_empty() { code == 0 } else { input.expect.contains(&code) };
    if !expected {
        const TEMPFAIL: u8 = 75;
        let usual = if code == TEMPFAIL { Meaning::Retry } else { Meaning::Fail };
        let meaning = program.codes.get(&code.to_string()).copied().unwrap_or(usual);
        let message = format!("\"{name}\" ended with the exit code {code}{said}");
        return Err(meaning.failure(format!("exit_{code}"), message).details(details));
    }
    let result = if input.json {
        if out.truncated {
            let message = format!("\"{name}\" wrote more than the {TAIL} bytes of JSON that are kept");
            return Err(Failure::permanent("command_output", message));
        }
        let read: Value = serde_json::from_slice(&raw).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Failure::permanent(
                "command_output",
                format!("\"{name}\" wrote no JSON: line {line}, column {column}"),
            )
        })?;
        scrub.value(read)
    } else {
        Value::Null
    };
    Ok(CommandOutput { code, stdout, stderr, truncated, result })
}

/// Only for the shortest of waits: nothing in here is tried again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::allows;

    #[test]
    fn a_pattern_allows_what_it_looks_like_and_no_option() {
        for (pattern, text) in [
            ("*", "x"),
            ("*", ""),
            ("a*c", "abc"),
            ("a*c", "ac"),
            ("--name=*", "--name=x y"),
            ("up", "up"),
            ("*.qcow2", "a.qcow2"),
            ("a*b*c", "aXbYc"),
        ] {
            assert!(allows(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("*", "-x"),
            ("*", "--config=/etc/passwd"),
            ("a*c", "ab"),
            ("up", "upp"),
            ("up", "u"),
            ("aa*aa", "aaa"),
            ("--name=*", "--nam"),
            ("", "x"),
            ("a*b*c", "acb"),
        ] {
            assert!(!allows(pattern, text), "{pattern} {text}");
        }
    }
}
