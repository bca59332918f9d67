//! The command line.

use std::path::PathBuf;

use backstay_engine::store::RoleName;
use clap::{Args, ColorChoice, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::remote::args::{
    AuditCommand, PoolCommand, Prefixed, PrincipalCommand, REMOTE, RunCommand, SecretCommand, Shown,
    TokenCommand, Where,
};
use crate::trouble::EXIT_CODES;

/// Runs long, dangerous procedures step by step: journaled in Postgres, resumed after any crash, undone when they fail.
#[derive(Debug, Parser)]
#[command(name = "backstay", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub settings: Flags,
    #[command(subcommand)]
    pub command: Command,
}

/// The command line. Each command's help ends with the exit codes, and with how the server is found where it speaks to one.
pub(crate) fn command_line() -> clap::Command {
    // What clap decides by itself forgets what kind of terminal it is when `CI` is set.
    let colour = if crate::tree::wants_colour() { ColorChoice::Auto } else { ColorChoice::Never };
    documented(Cli::command().color(colour))
}

fn documented(command: clap::Command) -> clap::Command {
    let mut ends: Vec<_> = command.get_after_help().map(ToString::to_string).into_iter().collect();
    if command.get_arguments().any(|argument| argument.get_id() == "server") {
        ends.push(REMOTE.into());
    }
    ends.push(EXIT_CODES.into());
    command.after_help(ends.join("\n\n")).mut_subcommands(documented)
}

/// Settings that a flag can state; they win over the environment and the configuration file.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings (they win over the environment and the configuration file)")]
pub(crate) struct Flags {
    /// The configuration file [default: /etc/backstay/backstay.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "BACKSTAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where the embedded database and the demo are
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// A Postgres to use in place of the embedded one; better set DATABASE_URL, which nobody sees in a process list
    #[arg(long, global = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// What is logged to stderr, such as "info" or "backstay_engine=debug"
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// How it is logged [default: text on a terminal, else json]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Fails three machines over before your eyes, in a pretend data centre
    #[command(long_about = DEMO)]
    Demo(DemoArgs),
    /// Serves the API, and runs a node beside it, until SIGTERM or Ctrl-C
    #[command(long_about = SERVE)]
    Serve(NodeArgs),
    /// Runs a node: it claims runs and works on them until SIGTERM or Ctrl-C
    #[command(long_about = NODE)]
    Node(NodeArgs),
    /// Checks the journals of all runs, or of one, against the rules that every history obeys
    #[command(long_about = CHECK)]
    Check(CheckArgs),
    /// Says why a run does not move, since when, and what will unblock it
    Explain(RunArgs),
    /// Writes a run as a page (Markdown): what is done, what is left, how to undo it; to go on by hand
    #[command(long_about = EXPORT)]
    Export(ExportArgs),
    /// Workflows: check, list, show, plan, picture; in files, or those that a server has
    #[command(subcommand, long_about = WORKFLOW)]
    Workflow(WorkflowCommand),
    /// The database: its schema, its roles, its server's binaries
    #[command(subcommand)]
    Db(DbCommand),
    /// Runs, over the API of a server
    #[command(subcommand)]
    Run(RunCommand),
    /// Principals: people and programs that may speak to a server
    #[command(subcommand)]
    Principal(PrincipalCommand),
    /// Tokens of principals
    #[command(subcommand)]
    Token(TokenCommand),
    /// Secrets that activities name: set, listed, removed, and never shown
    #[command(subcommand)]
    Secret(SecretCommand),
    /// The audit trail: changes that no run's journal holds, and attempts that were refused
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Pools: how many calls targets bear, and which of them are down
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Facts: what runs have said for all to see, such as whether a machine can be failed over
    Facts(Prefixed),
    /// The nodes that work on a server's database
    Nodes(Shown),
    /// Looks for what is wrong here, and says what to do about it
    Doctor,
    /// Prints completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Writes manual pages into a folder
    Man {
        /// Where to
        folder: PathBuf,
    },
    /// Prints the description of the API (OpenAPI 3.1), or of what can go wrong in it (Markdown)
    Openapi {
        /// The problems that answers name, and what to do about each
        #[arg(long)]
        problems: bool,
    },
    /// The configuration
    #[command(subcommand, after_help = CONFIG)]
    Config(ConfigCommand),
}

const DEMO: &str = "\
Fails three machines over before your eyes, in a pretend data centre.

A rehearsal, which a timer ends; a failover that loses an answer, fails and is rolled back; and one that takes over, although \
the process that began it is killed. After each it says what is so in the data centre, whatever anybody was told. What you \
see is read back from the journal: what is shown is durable. Then it stays up, and prints what to try.

It brings up a database of its own in the folder \"demo\" of the data folder, and a server beside the data centre, which \
speaks HTTP in this process. It takes nothing from the configuration but data_dir, node and log.

Kill it at any time, in any way. The next demo finds the run that was cut off, goes on with it, and says what was \
not repeated and what had been in doubt. --kill-after does that for you at a chosen place:

  backstay demo --kill-after first:snapshot
  backstay demo";

const SERVE: &str = "\
Serves the API, and runs a node beside it, until SIGTERM or Ctrl-C.

The first start on a database that nobody may speak to yet makes an admin, and writes the admin's token to the file \
\"admin-token\" of the data folder. Every request needs a token. The API's description is at /openapi.json.";

const NODE: &str = "\
Runs a node: it claims runs and works on them until SIGTERM or Ctrl-C.

Then it starts nothing new, gives what is in flight the time of node.grace to end, hands its runs over and ends. A \
second signal ends it at once; what was in flight is then in doubt, and whoever goes on finds out. In a systemd unit \
set KillMode=mixed.";

const CHECK: &str = "\
Checks the journals of all runs, or of one, against the rules that every history obeys.

It reads and changes nothing, and may run while nodes work. It is a second reading of the journal, written apart from \
the engine. Exit code 1 if a rule is broken.";

const EXPORT: &str = "\
Writes a run as a page (Markdown), so that a person could finish it by hand, or undo it, if nothing else were left.

What may have happened and nobody knows comes first; then what the run made, what is done with its inputs and outputs, \
what is left to do in order, and how to undo it in order, with the values as they are now.

  backstay export 01a1fc20-324d-77f1-9755-eac4a11cc462 > runbook.md";

const WORKFLOW: &str = "\
Workflows: check, list, show, plan, picture. None of these needs a database.

Which workflows: those in the files of --dir, if it is given; else those of the server of --server or BACKSTAY_SERVER, if \
one is named, as \"backstay run start\" runs them; else those that this machine's configuration has (workflows.dir, and \
failover if there is a site). Which it was is said on stderr.";

const WORKFLOW_CHECK: &str = "\
Checks workflows that are files, as they are checked when they are loaded.

Every mistake is a line, with file, line, column and place, so that an editor can jump to it. A file is tried with its \
examples and with inputs made up from its schema: what no input can reach is a mistake too. Exit code 1 if anything is \
wrong.

  backstay workflow check workflows/*.yaml
  backstay workflow check --json | jq '.problems[].message'";

const WORKFLOW_PICTURE: &str = "\
Draws the plan that a workflow makes of an input: as a picture, or for Graphviz or Mermaid. Nothing is run.

  backstay workflow picture rolling-restart --dir workflows --input hosts.yaml > plan.svg
  backstay workflow picture rolling-restart --dir workflows --input hosts.yaml --as dot | dot -Tpng > plan.png";

const WORKFLOW_PLAN: &str = "\
Makes the plan of a workflow for an input, checks it, and prints its steps, and what is undone if one of them fails for \
good. Nothing is run.

What is printed is what would run: a run that is approved is approved by the hash of its plan.

  echo '{\"hosts\": [\"web-1\"]}' | backstay workflow plan rolling-restart --dir workflows --input -";

const CONFIG: &str = "\
Each setting comes from the last of these that states it:
  1. the default
  2. the configuration file (TOML; --config, BACKSTAY_CONFIG or /etc/backstay/backstay.toml)
  3. the environment: DATABASE_URL, and BACKSTAY_ with __ between the parts, as in BACKSTAY_NODE__LEASE=30s
  4. flags
A setting that does not exist is an error, so a typing mistake cannot go unseen.";

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// In a data centre that takes no time; and end instead of staying up
    #[arg(long)]
    pub quick: bool,
    /// Kill this process (SIGKILL) once the result of STEP is in the journal, as "attach-disk-0" in the third run, and begin
    /// with that run; in the first: "first:snapshot"; in the second: "second:source-off"; while it is rolled back:
    /// "undo:source-off"
    #[arg(long, value_name = "STEP")]
    pub kill_after: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// The node's name, unique in the database [default: the name of this machine]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The run's id
    #[arg(value_name = "RUN")]
    pub run: String,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The run's id
    #[arg(value_name = "RUN")]
    pub run: String,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The id of one run [default: all of them]
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkflowCommand {
    /// Says everything that is wrong with workflows
    #[command(long_about = WORKFLOW_CHECK)]
    Check {
        /// Files and directories [default: workflows.dir]
        #[arg(value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Lists the workflows there are
    List {
        #[command(flatten)]
        from: WorkflowFrom,
    },
    /// Says what a workflow does and what it takes
    Show {
        /// The workflow
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        from: WorkflowFrom,
    },
    /// Makes the plan for an input and prints its steps; nothing is run
    #[command(long_about = WORKFLOW_PLAN)]
    Plan {
        /// The workflow
        #[arg(value_name = "NAME")]
        name: String,
        /// The input, JSON or YAML; - for stdin [default: an empty one]
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Show what is undone only if this step fails [default: for every step]
        #[arg(long, value_name = "STEP")]
        failing: Option<String>,
        #[command(flatten)]
        from: WorkflowFrom,
    },
    /// Draws the plan for an input; nothing is run
    #[command(long_about = WORKFLOW_PICTURE)]
    Picture {
        /// The workflow
        #[arg(value_name = "NAME")]
        name: String,
        /// The input, JSON or YAML; - for stdin [default: an empty one]
        #[arg(long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// In which language
        #[arg(long = "as", value_name = "LANGUAGE", default_value = "svg")]
        form: Drawing,
        #[command(flatten)]
        source: WorkflowSource,
    },
}

/// How a plan is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Drawing {
    /// For Graphviz
    Dot,
    /// For Mermaid
    Mermaid,
    /// A picture
    Svg,
}

impl WorkflowCommand {
    /// The directory that the command line names.
    pub(crate) fn dir(&self) -> Option<&PathBuf> {
        match self {
            Self::Check { .. } => None,
            Self::List { from } | Self::Show { from, .. } | Self::Plan { from, .. } => {
                from.source.dir.as_ref()
            }
            Self::Picture { source, .. } => source.dir.as_ref(),
        }
    }
}

/// Which workflows.
#[derive(Debug, Args)]
pub(crate) struct WorkflowSource {
    /// Those in the files of this directory, whatever server is named
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub(crate) struct WorkflowFrom {
    #[command(flatten)]
    pub source: WorkflowSource,
    /// For programs
    #[arg(long)]
    pub json: bool,
}

const DB_ROLES: &str = "\
Prints who may do what in the database, as SQL for its owner; with --apply, does it.

Three roles: an owner, who brings the schema up to date; one that serves, and can neither change nor remove what was \
written down; one that reads views. \"backstay db migrate\" tells them of what is new later.

  backstay db roles --create | psql postgres      # once, by whoever runs the Postgres server
  backstay db migrate                             # as the owner
  backstay db roles --apply                       # as the owner";

const DB_PAUSE: &str = "\
Tells every live run to pause, by the database alone: after a restore, before any node is started.

Whoever claims a run hears this before anything else, so no step begins, and no timer fires, until somebody has looked \
at the run and resumed it. It is journaled with who and why, as every operator's action.";

#[derive(Debug, Args)]
pub(crate) struct RolesArgs {
    /// The role that owns the database
    #[arg(long, value_name = "ROLE", default_value = "backstay_owner")]
    pub owner: RoleName,
    /// The role that serves
    #[arg(long, value_name = "ROLE", default_value = "backstay_server")]
    pub server: RoleName,
    /// The role that reads
    #[arg(long, value_name = "ROLE", default_value = "backstay_reader")]
    pub reader: RoleName,
    /// The database; for --create
    #[arg(long, value_name = "NAME", default_value = "backstay")]
    pub database: RoleName,
    /// Print what creates the roles and the database, for whoever runs the Postgres server
    #[arg(long, conflicts_with = "apply")]
    pub create: bool,
    /// Do it, in the configured database
    #[arg(long)]
    pub apply: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Brings the schema up to date; safe to call at any time and from many machines at once
    Migrate,
    /// Prints who may do what in the database, or sees to it
    #[command(long_about = DB_ROLES)]
    Roles(RolesArgs),
    /// Fetches the server binaries of the embedded database, once, where the machine has none
    Install,
    /// Tells every live run to pause, by the database alone: after a restore, before any node is started
    #[command(long_about = DB_PAUSE)]
    Pause {
        /// Who asks
        #[arg(long, value_name = "NAME")]
        who: String,
        /// Why
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// Only say which runs it would be
        #[arg(long)]
        dry_run: bool,
    },
    /// Says where the database is, whether its schema is up to date, and how many runs it has
    Status {
        /// For programs
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Prints every setting, and where it comes from
    #[command(after_help = CONFIG)]
    Show {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Says whether the configuration is right
    #[command(after_help = CONFIG)]
    Check,
}
