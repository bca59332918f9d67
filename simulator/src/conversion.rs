//! virt-v2v-in-place as the world sees it: who converts which volumes, and what comes of it.
//!
//! ```text
//!     the stand-in program                      here
//!     opens the device files  ── open  ──>  another one at work on them? recorded
//!     inspects, may give up   ── failed ─>
//!     begins to write         ── write ──>  converted already, or half? recorded; from now on half converted
//!     (hangs, is killed)                    stays half converted
//!     is through              ── done  ──>  `virtio …` is on the boot disk, the others were written too
//! ```
//!
//! Like the real one, nothing here refuses a second conversion or two at once: nbdkit takes no lock. It is recorded, as what must
//! never happen. Whether a run is still at work is asked of its process, not of it: killed is killed.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::http::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use crate::answer::Answer;
use crate::world::{Cause, State, World};

/// What is remembered of conversions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Rows {
    /// Every run that ever was.
    pub runs: Vec<Run>,
    /// What shall go wrong, in order; the first that fits and is left is the one.
    pub orders: Vec<Order>,
}

/// One run of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: Uuid,
    /// What it has open: the boot disk is among them.
    pub volumes: Vec<Uuid>,
    /// The process that writes.
    pub process: Process,
    /// How far it came: `open`, `writing`, `done`, `failed`, or `handed over` to a child that opens them anew.
    pub stage: String,
    /// What it was told to do.
    pub misfortune: Option<Misfortune>,
    /// When it opened them.
    pub begun: DateTime<Utc>,
}

/// A process, so that another one that got its number later is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it began, in ticks since the machine did.
    pub began: u64,
}

/// What goes wrong with a conversion. Named after what people find in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Misfortune {
    /// There is no operating system on it.
    NoOs,
    /// There are two: an error, unless `--root` chooses.
    MultiBoot,
    /// Windows sleeps, or was not shut down cleanly.
    Hibernated,
    /// It is encrypted, and there is no key.
    BitLocker,
    /// The guest's disk is full.
    NoSpace,
    /// The disk for temporary files is full.
    NoHostSpace,
    /// There are no drivers for this Windows: a warning, exit code 0, and a guest that does not start from virtio.
    NoDrivers,
    /// It hangs before it writes.
    HangsBefore,
    /// It hangs after it began to write.
    HangsAfter,
    /// It fails after it began to write.
    FailsAfter,
    /// It dies of a signal after it began to write.
    DiesAfter,
    /// It does all of its work in a child, which lives on when only the parent is killed.
    WorksInChild,
    /// It takes a hundred times as long.
    Slow,
}

/// An order that something goes wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// With this volume; left out: with any.
    #[serde(default)]
    pub volume: Option<Uuid>,
    /// What.
    pub misfortune: Misfortune,
    /// How often still.
    #[serde(default = "once")]
    pub times: u64,
}

fn once() -> u64 {
    1
}

/// What stands in the file that stands for a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The volume.
    pub volume: Uuid,
    /// Its size in bytes.
    pub size: u64,
    /// `host:port` of the control endpoint.
    pub control: String,
}

/// The program opens its devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The volumes.
    pub volumes: Vec<Uuid>,
    /// Who will write.
    pub process: Process,
}

/// What it finds there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// The run.
    pub id: Uuid,
    /// What goes wrong.
    pub misfortune: Option<Misfortune>,
    /// How long the whole of it takes.
    pub seconds: f64,
    /// The guest on the boot disk, if that is among them.
    pub guest: Option<Guest>,
}

/// A guest as the inspection sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    /// What it says that it is.
    pub product: String,
    /// Windows.
    pub windows: bool,
    /// Starts by UEFI.
    pub uefi: bool,
}

/// How long a conversion takes.
const REAL_SECONDS: f64 = 45.0;

/// What the control endpoint answers of conversions.
pub fn router(world: World) -> Router {
    Router::new()
        .route("/virt-v2v", get(list))
        .route("/virt-v2v/orders", post(order))
        .route("/virt-v2v/open", post(open_call))
        .route("/virt-v2v/{run}/{what}", post(step_call))
        .with_state(world)
}

/// The next `times` conversions of `volume`, or of any, end like this.
pub fn befall(world: &World, volume: Option<Uuid>, misfortune: Misfortune, times: u64) {
    let cause = Cause::new("control", "misfortune of virt-v2v", format!("{misfortune:?}"));
    world.change(cause, |state| state.conversion.orders.push(Order { volume, misfortune, times }));
}

/// Opens volumes. An error is what a read of the device says.
///
/// # Errors
/// A volume is not there, or not plugged into the OMA.
pub fn open(world: &World, call: Open) -> Result<Opened, String> {
    let cause = Cause::new("virt-v2v", "open", names(&call.volumes));
    world.change(cause, |state| {
        for volume in &call.volumes {
            readable(state, *volume)?;
        }
        let others =
            state.conversion.runs.iter().filter(|run| shares(&run.volumes, &call.volumes) && run.at_work());
        let others: Vec<Process> = others.map(|run| run.process).collect();
        for other in others {
            state.broke(
                "virt-v2v at once",
                format!("process {} is still at work on the same volumes", other.pid),
            );
        }
        let misfortune = take_order(&mut state.conversion.orders, &call.volumes);
        let slow = if misfortune == Some(Misfortune::Slow) { 100.0 } else { 1.0 };
        let id = Uuid::new_v4();
        let Open { volumes, process } = call;
        let guest = guest(state, &volumes);
        let seconds = REAL_SECONDS * state.settings.pace * slow;
        let stage = "open".to_owned();
        state.conversion.runs.push(Run { id, volumes, process, stage, misfortune, begun: Utc::now() });
        Ok(Opened { id, misfortune, seconds, guest })
    })
}

/// A run begins to write (`write`), is through with it (`done`, or `plain` when there were no drivers), gave up (`failed`), or
/// leaves it to a child (`handed-over`).
///
/// # Errors
/// There is no such run or step, or the device is gone meanwhile.
pub fn step(world: &World, run: Uuid, what: &str) -> Result<(), String> {
    world.change(Cause::new("virt-v2v", what, run.to_string()), |state| {
        let Some(found) = state.conversion.runs.iter_mut().find(|known| known.id == run) else {
            return Err(format!("there is no run {run}"));
        };
        let stage = match what {
            "write" => "writing",
            "done" | "plain" => "done",
            "failed" => "failed",
            "handed-over" => "handed over",
            other => return Err(format!("a run has no step {other}")),
        };
        found.stage = stage.to_owned();
        let volumes = found.volumes.clone();
        if matches!(what, "failed" | "handed-over") {
            return Ok(());
        }
        for volume in volumes {
            readable(state, volume)?;
            if what == "write" {
                begin_writing(state, volume);
            } else {
                end_writing(state, volume, run, what == "done");
            }
        }
        Ok(())
    })
}

impl State {
    /// Whether the guest of a VM has a volume open, and does not let it go: of the OMA it is known. A conversion works on it, or
    /// a copy writes through its export.
    #[must_use]
    pub fn guest_uses(&self, volume: Uuid, vm: Uuid) -> bool {
        let converts =
            || self.conversion.runs.iter().any(|run| run.volumes.contains(&volume) && run.at_work());
        vm == self.oma && (converts() || crate::vma::writes_to(self, volume))
    }
}

fn begin_writing(state: &mut State, id: Uuid) {
    let Some(volume) = state.volumes.get(&id) else { return };
    let twice = match &volume.content {
        content if content.half_converted => Some("half converted"),
        content if content.foreign.iter().any(|write| write.starts_with("virtio")) => Some("converted"),
        _ => None,
    };
    if let Some(so) = twice {
        let what = format!("{} ({id}) is {so} already, and was not reverted since", volume.name);
        state.broke("virt-v2v twice", what);
    }
    if state.daemon.exports.iter().any(|export| export.volume_id == id.to_string()) {
        state.broke("I6", format!("virt-v2v writes to {id}, and its export is open to replication"));
    }
    state.before_foreign_write(id);
    if let Some(volume) = state.volumes.get_mut(&id) {
        volume.content.half_converted = true;
    }
    state.applied("convert", id);
}

/// The trimming at the end mounts every file system of every disk: those without a system are written too.
fn end_writing(state: &mut State, id: Uuid, run: Uuid, drivers: bool) {
    let boots = boots(state, id);
    let Some(volume) = state.volumes.get_mut(&id) else { return };
    volume.content.half_converted = false;
    let written = match (boots, drivers) {
        (true, true) => format!("virtio {run}"),
        (true, false) => format!("converted without drivers {run}"),
        (false, _) => format!("trimmed {run}"),
    };
    volume.content.foreign.push(written);
}

impl Run {
    /// Whether it can still write.
    #[must_use]
    pub fn at_work(&self) -> bool {
        matches!(self.stage.as_str(), "open" | "writing") && self.process.lives()
    }
}

impl Process {
    /// This process.
    #[must_use]
    pub fn this() -> Self {
        let pid = std::process::id();
        Self { pid, began: began(pid).map_or(0, |(_, began)| began) }
    }

    fn lives(self) -> bool {
        began(self.pid).is_some_and(|(state, began)| began == self.began && state != 'Z' && state != 'X')
    }
}

/// How a process is and when it began: fields 3 and 22 of its `stat`. The name before them may hold anything.
fn began(pid: u32) -> Option<(char, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after) = stat.rsplit_once(") ")?;
    let mut fields = after.split(' ');
    let state = fields.next()?.chars().next()?;
    let began = fields.nth(18)?.parse().ok()?;
    Some((state, began))
}

fn readable(state: &State, id: Uuid) -> Result<(), String> {
    let there = state
        .volumes
        .get(&id)
        .is_some_and(|volume| volume.removed.is_none() && volume.plugged.contains(&state.oma));
    if there { Ok(()) } else { Err(format!("the device of volume {id} is gone: Input/output error")) }
}

/// Whether a system starts from it: the first disk of its source.
fn boots(state: &State, id: Uuid) -> bool {
    let Some(of) = state.volumes.get(&id).and_then(|volume| volume.replica_of.as_ref()) else { return false };
    let Some(source) = state.sources.get(&of.source) else { return false };
    source.disks.iter().map(|disk| disk.key).min() == Some(of.key)
}

fn guest(state: &State, volumes: &[Uuid]) -> Option<Guest> {
    let boot = volumes.iter().find(|volume| boots(state, **volume))?;
    let of = state.volumes.get(boot)?.replica_of.as_ref()?;
    let source = state.sources.get(&of.source)?;
    let product = match source.guest_os.as_str() {
        "windows8Server64Guest" => "Windows Server 2012 R2 Standard",
        "windows9Server64Guest" => "Windows Server 2016 Standard",
        "windows2022srvNext_64Guest" => "Windows Server 2022 Standard",
        other if other.starts_with("windows") => "Windows Server 2019 Standard",
        other if other.starts_with("rhel8") => "Red Hat Enterprise Linux 8.10",
        other if other.starts_with("rhel") => "Red Hat Enterprise Linux 9.6",
        other if other.starts_with("debian") => "Debian GNU/Linux 12 (bookworm)",
        _ => "Ubuntu 22.04.5 LTS",
    };
    Some(Guest { product: product.to_owned(), windows: source.windows, uefi: source.firmware == "efi" })
}

fn take_order(orders: &mut [Order], volumes: &[Uuid]) -> Option<Misfortune> {
    let fits = |order: &Order| order.volume.is_none_or(|volume| volumes.contains(&volume));
    let order = orders.iter_mut().find(|order| order.times > 0 && fits(order))?;
    order.times -= 1;
    Some(order.misfortune)
}

fn shares(some: &[Uuid], others: &[Uuid]) -> bool {
    some.iter().any(|volume| others.contains(volume))
}

fn names(volumes: &[Uuid]) -> String {
    volumes.iter().map(Uuid::to_string).collect::<Vec<_>>().join(" ")
}

async fn list(Shared(world): Shared<World>) -> Response<Body> {
    let told = world.look(|state| {
        let runs = state.conversion.runs.iter().map(|run| json!({"run": run, "at_work": run.at_work()}));
        json!({"runs": runs.collect::<Vec<_>>(), "orders": state.conversion.orders})
    });
    Answer::json(200, &told).response()
}

async fn order(Shared(world): Shared<World>, body: Bytes) -> Response<Body> {
    match serde_json::from_slice::<Order>(&body) {
        Ok(order) => {
            befall(&world, order.volume, order.misfortune, order.times);
            Answer::json(200, &json!({"ordered": true})).response()
        }
        Err(why) => Answer::text(400, format!("this is no order: {why}")).response(),
    }
}

async fn open_call(Shared(world): Shared<World>, body: Bytes) -> Response<Body> {
    let opened =
        serde_json::from_slice(&body).map_err(|why| why.to_string()).and_then(|call| open(&world, call));
    opened.map_or_else(|why| Answer::text(410, why), |opened| Answer::json(200, &json!(opened))).response()
}

async fn step_call(Shared(world): Shared<World>, Path((run, what)): Path<(Uuid, String)>) -> Response<Body> {
    let stepped = step(&world, run, &what);
    stepped
        .map_or_else(|why| Answer::text(410, why), |()| Answer::json(200, &json!({"noted": what})))
        .response()
}
