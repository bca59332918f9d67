//! Every command there is, and how it is done.

use std::time::Duration;

use serde_json::{Value, json};

use super::jobs::{self, Begun, Job, Run};
use super::request::{Asked, Params};
use super::{deploy, lists, nics, snapshots, tags, vms, volumes};
use crate::faults::Fault;
use crate::world::moves::Refusal;
use crate::world::{Cause, State, World};

/// A command.
pub struct Command {
    /// Its name.
    pub name: &'static str,
    how: How,
}

enum How {
    /// It tells what is so, or what was so while lists are stale.
    Tells(fn(&State, &Asked) -> Result<Value, Refusal>),
    /// It changes something, and answers when that is done.
    Changes(fn(&World, &Asked) -> Result<Value, Refusal>),
    /// It is a job. `shows` is the state of what it is about while it runs.
    Job {
        makes: bool,
        shows: &'static str,
        begin: fn(&mut State, &Asked) -> Result<Begun, Refusal>,
        run: fn(Job) -> Run,
    },
}

macro_rules! job {
    ($name:literal, makes $shows:literal, $begin:path, $run:path) => {
        Command {
            name: $name,
            how: How::Job { makes: true, shows: $shows, begin: $begin, run: |job| Box::pin($run(job)) },
        }
    };
    ($name:literal, $shows:literal, $begin:path, $run:path) => {
        Command {
            name: $name,
            how: How::Job { makes: false, shows: $shows, begin: $begin, run: |job| Box::pin($run(job)) },
        }
    };
}

macro_rules! tells {
    ($name:literal, $tell:path) => {
        Command { name: $name, how: How::Tells($tell) }
    };
}

#[rustfmt::skip]
static COMMANDS: &[Command] = &[
    job!("deployVirtualMachine", makes "Starting", deploy::begin, deploy::run),
    job!("startVirtualMachine", "Starting", vms::begin_start, vms::start),
    job!("stopVirtualMachine", "Stopping", vms::begin, vms::stop),
    job!("destroyVirtualMachine", "Stopping", vms::begin_destroy, vms::destroy),
    job!("expungeVirtualMachine", "Expunging", vms::begin_expunge, vms::expunge),
    job!("createVolume", makes "Creating", volumes::begin_create, volumes::create),
    job!("attachVolume", "Attaching", volumes::begin_attach, volumes::attach),
    job!("detachVolume", "Attaching", volumes::begin_detach, volumes::detach),
    job!("destroyVolume", "Destroying", volumes::begin_destroy, volumes::destroy),
    Command { name: "deleteVolume", how: How::Changes(volumes::delete) },
    job!("createSnapshot", makes "BackingUp", snapshots::begin_create, snapshots::create),
    job!("revertSnapshot", "BackingUp", snapshots::begin_revert, snapshots::revert),
    job!("deleteSnapshot", "Destroying", snapshots::begin_delete, snapshots::delete),
    job!("createVMSnapshot", makes "Creating", snapshots::begin_create_of_vm, snapshots::create_of_vm),
    job!("revertToVMSnapshot", "Reverting", snapshots::begin_revert_vm, snapshots::revert_vm),
    job!("deleteVMSnapshot", "Expunging", snapshots::begin_delete_of_vm, snapshots::delete_of_vm),
    job!("addNicToVirtualMachine", "Running", nics::begin, nics::add),
    job!("removeNicFromVirtualMachine", "Running", nics::begin, nics::remove),
    job!("updateDefaultNicForVirtualMachine", "Running", nics::begin, nics::make_default),
    job!("createTags", "", tags::begin, tags::create),
    job!("deleteTags", "", tags::begin, tags::delete),
    tells!("listVirtualMachines", lists::vms),
    tells!("listVolumes", lists::volumes),
    tells!("listSnapshots", lists::snapshots),
    tells!("listVMSnapshot", lists::vm_snapshots),
    tells!("listNetworks", lists::networks),
    tells!("listTags", lists::tags),
    tells!("listZones", lists::zones),
    tells!("listDomains", lists::domains),
    tells!("listAccounts", lists::accounts),
    tells!("listTemplates", lists::templates),
    tells!("listServiceOfferings", lists::service_offerings),
    tells!("listDiskOfferings", lists::disk_offerings),
    tells!("listHosts", lists::hosts),
    tells!("listConfigurations", lists::configurations),
    tells!("listCapabilities", lists::capabilities),
    tells!("listApis", lists::apis),
    tells!("listAsyncJobs", lists::jobs),
    Command { name: "queryAsyncJobResult", how: How::Changes(jobs::query) },
];

/// The command of a name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// All of them, for `listApis`.
pub fn all() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter()
}

impl Command {
    /// It changes nothing.
    pub fn only_reads(&self) -> bool {
        self.name.starts_with("list") || self.name.starts_with("query")
    }

    /// It is a job.
    pub fn is_job(&self) -> bool {
        matches!(self.how, How::Job { .. })
    }
}

/// Answers a call that was let in.
pub fn answer(world: &World, mut asked: Asked) -> Result<Value, Refusal> {
    let Some(command) = find(&asked.command) else {
        return Err(Refusal::code(401, format!("The given command:{} does not exist", asked.command)));
    };
    if world.look(|state| state.settings.cloudstack.denied.contains(command.name)) {
        let name = command.name;
        let text = format!(
            "The given command '{name}' either does not exist, is not available for user, or not available from ip address"
        );
        return Err(Refusal::code(432, text));
    }
    if asked.fault == Some(Fault::HostDown) {
        world.change(asked.cause(), |state| vms::host_goes_down(state, &asked));
    }
    let account = asked.clone();
    let told = match &command.how {
        How::Tells(tell) => {
            if let Some(Fault::Stale { ms }) = asked.fault.take() {
                lists::freeze(world, ms);
            }
            lists::look(world, |state| tell(state, &asked))
        }
        How::Changes(change) => change(world, &asked),
        How::Job { makes, shows, begin, run } => jobs::submit(world, asked, *makes, shows, begin, run),
    };
    told.map_err(|refusal| account.tellable(refusal))
}

impl Asked {
    /// Only a root admin is told what went wrong inside.
    pub fn tellable(&self, refusal: Refusal) -> Refusal {
        if self.account.root_admin || !matches!(refusal.code, 530 | 533 | 534) {
            return refusal;
        }
        Refusal {
            text: "Internal error executing command, please contact your system administrator".to_owned(),
            ..refusal
        }
    }
}

/// See [`super::perform`].
pub async fn perform(
    world: &World,
    by: &str,
    command: &str,
    params: &[(&str, &str)],
) -> Result<Value, Refusal> {
    let fault = world.faults().draw("cloudstack", command);
    match &fault {
        Some(Fault::Slow { ms }) => tokio::time::sleep(Duration::from_millis(*ms)).await,
        Some(Fault::CredentialsExpire) => {
            world.change(Cause::new("cloudstack", "credentials expire", by), |state| {
                state.accounts.iter_mut().take(1).for_each(|account| account.expired = true);
            });
        }
        _ => {}
    }
    let account = world.look(|state| state.accounts.first().cloned());
    let account = account
        .filter(|account| !account.expired)
        .ok_or_else(|| Refusal::code(401, "unable to verify user credentials and/or request signature"))?;
    let (before, after) = (
        matches!(
            fault,
            Some(
                Fault::Refused { .. }
                    | Fault::Dropped
                    | Fault::TooMany { .. }
                    | Fault::Html { .. }
                    | Fault::ErrorWith200
            )
        ),
        matches!(
            fault,
            Some(
                Fault::DoneThenRefused { .. }
                    | Fault::DoneThenDropped
                    | Fault::DoneThenSilent
                    | Fault::Reset
                    | Fault::Empty
            )
        ),
    );
    if before {
        return Err(Refusal::internal("CloudStack did not answer, and did nothing"));
    }
    let asked =
        Asked { command: command.to_owned(), params: Params::of(params), account, by: by.to_owned(), fault };
    let told = answer(world, asked)?;
    if after {
        return Err(Refusal::internal("CloudStack did it, and its answer was lost"));
    }
    let Some(job) = told.get("jobid").and_then(|id| id.as_str()?.parse().ok()) else { return Ok(told) };
    world.until_job(job, |state| !state.cloudstack.is_pending(job)).await;
    world.look(|state| match state.cloudstack.jobs.get(&job).filter(|row| !row.lost) {
        Some(row) if row.status == 1 => Ok(row.result.clone().unwrap_or(json!({}))),
        Some(row) => {
            let text = match &row.result {
                Some(Value::String(text)) => text.clone(),
                Some(result) => {
                    result.get("errortext").and_then(Value::as_str).unwrap_or_default().to_owned()
                }
                None => String::new(),
            };
            Err(Refusal::code(row.code, text))
        }
        None => Err(Refusal::code(431, "the job is not known any more")),
    })
}
