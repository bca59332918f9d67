//! The program `backstay`, as a library: for itself, and for those who feed its decoders with anything.
//!
//! ```text
//!   cli        the command line
//!   config     defaults < file < environment < flags
//!   catalog    the activities and workflows that this program has
//!   database   the one of DATABASE_URL, or one of our own
//!   vault      secrets: those in the database (seal, keys) and those in files
//!   demo, node, check, run, workflow, db, config   what the commands do
//!   written    what people write in files: YAML or JSON
//!   traces     what a collector of traces is sent
//!   trouble    how a command fails: a sentence and an exit code
//! ```

mod api;
mod catalog;
mod check;
mod cli;
mod config;
mod database;
mod db;
#[doc(hidden)]
pub mod decoders;
mod demo;
mod doctor;
mod figures;
mod health;
mod http;
mod interrupt;
mod keys;
mod log;
mod manual;
mod node;
mod remote;
mod run;
mod seal;
mod serve;
mod traces;
mod tree;
mod trouble;
mod vault;
mod workflow;
mod written;

use std::process::ExitCode;
use std::time::Duration;

use clap::FromArgMatches;

use cli::{Cli, Command, ConfigCommand, DbCommand};
use interrupt::Interrupt;
use trouble::Trouble;

/// Does what the command line says; the exit code says how it went.
pub fn main() -> ExitCode {
    if let Some(pretended) = demo::stand_in(std::env::args()) {
        return pretended;
    }
    let cli = match Cli::from_arg_matches(&cli::command_line().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    // One provider for everything that speaks TLS; a second caller would only find it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("backstay: the program could not start its threads: {error}.");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(command(&cli));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            if !trouble.text.is_empty() {
                eprintln!("backstay: {}", trouble.text);
            }
            ExitCode::from(trouble.code)
        }
    }
}

async fn command(cli: &Cli) -> Result<(), Trouble> {
    let flag_of_command = match &cli.command {
        Command::Node(node) | Command::Serve(node) => {
            node.name.clone().map(|name| ("--name", "node.name", name))
        }
        Command::Workflow(workflow) => {
            workflow.dir().map(|dir| ("--dir", "workflows.dir", dir.to_string_lossy().into_owned()))
        }
        _ => None,
    };
    let loaded = config::load(&cli.settings, flag_of_command.as_slice())?;
    let config = &loaded.config;
    let interrupt = Interrupt::listen()?;
    match &cli.command {
        Command::Demo(demo) => demo::run(demo, config, &interrupt).await,
        Command::Node(_) => node::run(config, &interrupt).await,
        Command::Serve(_) => serve::run(config, &interrupt).await,
        Command::Check(check) => check::run(config, &interrupt, check.run.as_deref(), check.json).await,
        Command::Explain(args) => run::explain(config, &interrupt, &args.run, args.json).await,
        Command::Export(args) => run::export(config, &interrupt, &args.run).await,
        Command::Workflow(command) => workflow::run(command, config).await,
        Command::Db(DbCommand::Migrate) => db::migrate(config, &interrupt).await,
        Command::Db(DbCommand::Status { json }) => db::status(config, &interrupt, *json).await,
        Command::Db(DbCommand::Roles(args)) => db::roles(args, config, &interrupt).await,
        Command::Db(DbCommand::Pause { who, why, dry_run }) => {
            db::pause(config, &interrupt, who, why, *dry_run).await
        }
        Command::Db(DbCommand::Install) => db::install(config, &interrupt).await,
        Command::Run(command) => remote::run::run(command, config, &interrupt).await,
        Command::Principal(command) => remote::people::principal(command, config).await,
        Command::Token(command) => remote::people::token(command, config).await,
        Command::Audit(command) => remote::people::audit(command, config, &interrupt).await,
        Command::Pool(command) => remote::people::pool(command, config).await,
        Command::Secret(command) => remote::secrets::run(command, config).await,
        Command::Nodes(shown) => remote::people::nodes(shown, config).await,
        Command::Doctor => doctor::run(&loaded, &interrupt).await,
        Command::Completions { shell } => manual::completions(*shell),
        Command::Man { folder } => manual::pages(folder),
        Command::Openapi { problems } => {
            db::print(&if *problems { api::document::problems() } else { api::document::text() });
            Ok(())
        }
        Command::Config(ConfigCommand::Show { json }) => {
            db::print(&config::show(&loaded, *json));
            Ok(())
        }
        Command::Config(ConfigCommand::Check) => {
            serve::tls(config)?;
            keys::check(config)?;
            db::print("The configuration is right.\n");
            Ok(())
        }
    }
}
