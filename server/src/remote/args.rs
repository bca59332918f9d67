//! What the commands take that speak to a server.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::Drawing;

/// For the end of their help.
pub(crate) const REMOTE: &str = "\
The server is the one of --server or BACKSTAY_SERVER, else the one of listen.address on this machine.
The token is that of BACKSTAY_TOKEN, or of the file --token-file or BACKSTAY_TOKEN_FILE, else the first admin's in the \
data folder.";

/// Which server, and who asks.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct Where {
    /// Where the server is, as in https://backstay.example:7433
    #[arg(long, value_name = "URL", env = "BACKSTAY_SERVER")]
    pub server: Option<String>,
    /// A file that holds the token
    #[arg(long, value_name = "FILE", env = "BACKSTAY_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// A file with the certificate of the authority that signed the server's (PEM)
    #[arg(long, value_name = "FILE", env = "BACKSTAY_CA_FILE")]
    pub ca_file: Option<PathBuf>,
}

/// The same, and how the answer is shown.
#[derive(Clone, Debug, Args)]
pub(crate) struct Remote {
    #[command(flatten)]
    pub at: Where,
    /// How the answer is shown
    #[arg(long, short, value_name = "FORM", default_value = "table")]
    pub output: Form,
}

/// How an answer is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// For programs, as the API gives it
    Json,
    /// Only ids or names, a line each
    Name,
}

/// Only how to show it.
#[derive(Clone, Debug, Args)]
pub(crate) struct Shown {
    #[command(flatten)]
    pub remote: Remote,
}

/// One run.
#[derive(Clone, Debug, Args)]
pub(crate) struct OfRun {
    /// The run's id
    pub run: String,
    #[command(flatten)]
    pub remote: Remote,
}

/// Something that is done to a run.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoneToRun {
    /// The run's id
    pub run: String,
    /// Why; it is kept with what is done
    #[arg(long, default_value = "")]
    pub why: String,
    /// Do not ask whether it is meant
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Something that is done to a step.
#[derive(Clone, Debug, Args)]
pub(crate) struct DoneToStep {
    /// The run's id
    pub run: String,
    /// The step's name
    pub step: String,
    /// Its undo
    #[arg(long)]
    pub undo: bool,
    /// Why; it is kept with what is done
    #[arg(long, default_value = "")]
    pub why: String,
    /// Do not ask whether it is meant
    #[arg(long, short)]
    pub yes: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// What became of something that a run made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Became {
    /// It is not there any more
    Gone,
    /// It is there, and stays
    Kept,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// Submits a run: of a workflow that the server has, or of a plan of one's own
    Start {
        /// The workflow's name
        #[arg(required_unless_present = "plan", conflicts_with = "plan")]
        workflow: Option<String>,
        /// The workflow's input in YAML or JSON; "-" reads it from stdin
        #[arg(long, value_name = "FILE", requires = "workflow")]
        input: Option<PathBuf>,
        /// A plan in YAML or JSON; "-" reads it from stdin
        #[arg(long, value_name = "FILE")]
        plan: Option<PathBuf>,
        /// Wait for its end; the exit code says which
        #[arg(long)]
        wait: bool,
        /// At most one live run holds this key
        #[arg(long, value_name = "KEY")]
        exclusive: Option<String>,
        /// For finding it again
        #[arg(long, value_name = "NAME=VALUE")]
        label: Vec<String>,
        /// Asking again under the same key is the same asking
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// Why; it is kept with the run
        #[arg(long, default_value = "")]
        why: String,
        /// Only check it, and show what each failure would undo
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lists runs, the newest first
    List {
        /// Only in this status
        #[arg(long)]
        status: Option<String>,
        /// Only of this workflow
        #[arg(long)]
        workflow: Option<String>,
        /// Only with this label
        #[arg(long, value_name = "NAME=VALUE")]
        label: Vec<String>,
        /// Only the one that holds this exclusive key
        #[arg(long, value_name = "KEY")]
        exclusive: Option<String>,
        /// Only those in which this step has failed or is held
        #[arg(long, value_name = "STEP")]
        failing: Option<String>,
        /// Only those submitted at this time or later, as in 2026-11-21T14:00:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// Only those submitted before this time
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Only those that are not over
        #[arg(long)]
        live: bool,
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows one run
    Get(OfRun),
    /// Watches a run: a live tree on a terminal, else a line for each event
    Watch(OfRun),
    /// Lists the steps of a run
    Steps(OfRun),
    /// Lists what exists outside because of a run
    Resources(OfRun),
    /// Says why a run does not move, since when, and what will unblock it
    Explain(OfRun),
    /// Writes a run as a page (Markdown) from which a person can finish it by hand
    Export(OfRun),
    /// Draws the plan of a run
    Picture {
        #[command(flatten)]
        at: OfRun,
        /// In which language
        #[arg(long = "as", value_name = "LANGUAGE", default_value = "svg")]
        form: Drawing,
    },
    /// Tries a step, or its undo, again
    Retry(DoneToStep),
    /// Tries a step again with another input
    Edit {
        #[command(flatten)]
        at: DoneToStep,
        /// The input in YAML or JSON; "-" reads it from stdin
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
    },
    /// Goes on as if a step had come to this output
    Skip {
        #[command(flatten)]
        at: DoneToStep,
        /// The output in JSON
        #[arg(long, value_name = "JSON", default_value = "null")]
        result: String,
    },
    /// Undoes one step of a run that goes forward
    UndoStep {
        #[command(flatten)]
        at: DoneToStep,
        /// And the steps that come after it
        #[arg(long)]
        cascade: bool,
    },
    /// Lets a step start without the proof that it requires
    Override(DoneToStep),
    /// Says yes to a step that waits for it
    Approve {
        #[command(flatten)]
        at: DoneToStep,
        /// The right that the plan asks for
        #[arg(long)]
        right: String,
    },
    /// Says no to a step that waits for a yes
    Reject {
        #[command(flatten)]
        at: DoneToStep,
        /// The right that the plan asks for
        #[arg(long)]
        right: String,
    },
    /// Says what became of something that a step made, where nothing else says it; --why is the evidence
    Account {
        #[command(flatten)]
        at: DoneToStep,
        /// Which kind of thing, as "run resources" has it
        #[arg(long)]
        kind: String,
        /// Which one
        #[arg(long)]
        name: String,
        /// It is not there any more, or it is and stays
        #[arg(long)]
        became: Became,
    },
    /// Starts nothing more in a run
    Pause(DoneToRun),
    /// Lets a run go on
    Resume(DoneToRun),
    /// Undoes what a run has started: while it runs (cancel), or after it has succeeded
    #[command(visible_alias = "cancel")]
    Rollback {
        #[command(flatten)]
        at: DoneToRun,
        /// Leave the undo of this step out
        #[arg(long, value_name = "STEP")]
        leave: Vec<String>,
        /// Go on past undos that fail, and list what is left
        #[arg(long)]
        past_failures: bool,
        /// Although the run is past its point of no return
        #[arg(long)]
        past_no_return: bool,
    },
    /// Makes a run final
    Commit(DoneToRun),
    /// Closes a run that is stuck, with a list of what is left
    Close {
        #[command(flatten)]
        at: DoneToRun,
        /// What is left, and who sees to it: JSON
        #[arg(long, value_name = "JSON")]
        manifest: String,
    },
    /// Tells a run something that one of its steps waits for, or will
    Signal {
        #[command(flatten)]
        at: DoneToRun,
        /// The signal's name
        name: String,
        /// What it brings: JSON
        #[arg(long, value_name = "JSON", default_value = "null")]
        payload: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PrincipalCommand {
    /// Lists principals
    List(Shown),
    /// Adds a principal
    Add {
        /// Letters, digits, and . _ @ + -
        name: String,
        /// viewer, operator, approver, overrider, admin
        #[arg(long, required = true)]
        role: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Gives a principal other roles
    Roles {
        /// Its name
        name: String,
        /// In place of those they have
        #[arg(long, required = true)]
        role: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Locks a principal out
    Disable {
        /// Its name
        name: String,
        /// Do not ask whether it is meant
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lets a principal in again
    Enable {
        /// Its name
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Lists pools
    List(Shown),
    /// Limits the calls to a target, over all nodes; what is left out is not limited
    Set {
        /// Its name
        name: String,
        /// Calls at once
        #[arg(long)]
        at_once: Option<u32>,
        /// Calls that begin in a second
        #[arg(long)]
        per_second: Option<f64>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Takes a target for down: no call to it is begun until somebody ends that
    Down {
        /// Its name
        name: String,
        /// Why
        #[arg(long)]
        why: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Takes a target for back: its steps go on, a few at first
    Up {
        /// Its name
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretCommand {
    /// Sets a secret, or replaces it; its text comes from stdin, never from the command line
    #[command(long_about = SECRET_SET)]
    Set {
        /// Its name, as plans have it: letters, digits, and . _ -
        name: String,
        /// A file that holds the text, in place of stdin
        #[arg(long, value_name = "FILE")]
        from_file: Option<PathBuf>,
        /// An origin that it may be sent to, as in https://cloud.example:8443
        #[arg(long, value_name = "ORIGIN")]
        origin: Vec<String>,
        /// A program of the configuration that may be given it
        #[arg(long, value_name = "PROGRAM")]
        program: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lists secrets, where they may go, and whether they can be opened
    List(Shown),
    /// Removes a secret; calls that name it fail from then on
    Remove {
        /// Its name
        name: String,
        /// Do not ask whether it is meant
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Lists the keys that seal secrets, and how many secrets each seals
    Keys(Shown),
    /// Seals every secret by the current key; broken off, it goes on where it was when it is called again
    Rewrap(Shown),
}

const SECRET_SET: &str = "\
Sets a secret, or replaces it, text and all; what it may be sent to stays as it was unless it is said anew.

The text comes from stdin or from a file, so that it is in no process list and no history of a shell. A line break at its \
end is left out.

  backstay secret set cloud-token --origin https://cloud.example:8443 < token.txt
  pass show cloud | backstay secret set cloud-token";

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Lists tokens
    List {
        /// Only of this principal
        #[arg(long)]
        principal: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Makes a token, and prints it: it is shown this once
    Create {
        /// Whose
        principal: String,
        /// What for
        #[arg(long)]
        label: String,
        /// At most this right
        #[arg(long)]
        right: Vec<String>,
        /// Only about runs of this workflow
        #[arg(long)]
        workflow: Vec<String>,
        /// For so many days
        #[arg(long, default_value_t = 90)]
        days: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Revokes a token; every node refuses it within five seconds
    Revoke {
        /// The token's id
        id: String,
        /// Do not ask whether it is meant
        #[arg(long, short)]
        yes: bool,
        #[command(flatten)]
        remote: Remote,
    },
    /// Says who the token belongs to, and what it may do
    Whoami(Shown),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Lists changes and refused attempts, the newest first
    List {
        /// Only of this principal
        #[arg(long)]
        who: Option<String>,
        /// Only about this
        #[arg(long)]
        about: Option<String>,
        /// Only refused attempts
        #[arg(long)]
        refused: bool,
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        #[command(flatten)]
        remote: Remote,
    },
    /// Prints the end of the chain; keep it somewhere else, as proof of all before it
    Head(Shown),
    /// Reads the whole trail out of the database: whether each line follows on the one before
    Verify,
}
