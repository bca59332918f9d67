//! The steps of a failover, in the order in which they have to be.
//!
//! ```text
//!   validate ──> claim-context ─┬─> create-vm ──> drop-blank-root ───────────────────────┐
//!             ┌─────────────────┘                                                          │
//!             └─> [source-off ──> final-sync] ──> close-exports ──> release-disk-n ──>     │
//!                 snapshot ──> [lend-disk-n ──> inject-drivers ──> reclaim-disk-n] ────────┴─> attach-disk-0, 1, …
//!                                             ──> start-vm ──> check-boot ──> record-failed-over
//! ```
//!
//! Read backwards it is the cleanup: the copy stops, its disks are detached, go back to their snapshots and home to the
//! appliance, replication may write to them again, the copy is destroyed, the source is as it was, and the context is ready
//! again.
//!
//! What a context is follows what happened: it is failing over before anything is touched, failed over when its copy was
//! seen to run, and ready when all of that is undone. A run that ends otherwise leaves it as it is, and no other begins.
//!
//! Disks leave the appliance before their snapshots are taken, as CloudStack takes none of a disk that is in use unless it is
//! told to, and reverts none at all.

use std::time::Duration;

use backstay_machine::plan::{Commit, Ending, OnFailure, Output, PlanBuilder, Retry, Span};
use serde_json::{Value, json};

use super::input::{Failover, Snapshots};

/// The plan.
pub(super) fn plan(it: &Failover) -> PlanBuilder {
    let book = Book::of(it);
    let mut plan = PlanBuilder::new("failover");
    plan.titled(book.title())
        .retry(Retry { attempts: Some(8), ..Retry::default() })
        .undo_retry(Retry::of_undos())
        .timeout(Span::from(ATTEMPT))
        .settle_within(Span::secs(600))
        .commit(book.commit());

    let validate = plan
        .step("validate", "validate-move")
        .titled("Check everything that can be known before anything is touched")
        .input(book.validation())
        .nothing_to_undo("it only looks");
    let context = json!({ "context": it.context });
    let claimed = plan
        .step("claim-context", "claim-context")
        .titled("Take the context, if it is ready for a failover")
        .input(context.clone())
        .after([&validate])
        .undone_by("release-context", context)
        .done();

    let vm = plan
        .step("create-vm", "create-vm")
        .titled("Create the machine, switched off")
        .input(book.machine())
        .after([&claimed])
        .undone_by("destroy-vm", book.machine_unmade())
        .done();
    let empty_vm = plan
        .step("drop-blank-root", "drop-blank-root")
        .titled("Throw away the blank disk that it came with")
        .input(json!({ "vm": vm.output("/vm"), "protected": book.volumes }))
        .after([&vm])
        .undone_by("remove-blank-disk", json!({ "vm": vm.output("/vm"), "protected": book.volumes }))
        .done();

    let (source_off, copied) = match it.is_live() {
        true => book.take_over(&mut plan, &claimed),
        false => (None, None),
    };
    let closes = match &copied {
        Some(copied) => with(&book.exports(), json!({ "copied": copied.output("/job") })),
        None => book.exports(),
    };
    let quiet = copied.as_ref().or(source_off.as_ref()).unwrap_or(&claimed);
    let closed = plan
        .step("close-exports", "close-exports")
        .titled("Close the way by which replication writes")
        .input(closes)
        .after([quiet])
        .undone_by("open-exports", book.exports())
        .done();
    let free: Vec<_> = (0..book.volumes.len()).map(|n| book.release(&mut plan, n, &closed)).collect();
    let (ready, mut snapshot) = book.prepare_disks(&mut plan, free);

    let mut last = vec![empty_vm];
    last.extend(ready);
    for n in 0..book.volumes.len() {
        let attached = plan
            .step(format!("attach-disk-{n}"), "attach-volume")
            .titled(format!("Attach disk {n}{}", if n == 0 { ", which it starts from" } else { "" }))
            .input(json!({ "volume": book.volume(n), "vm": vm.output("/vm"), "root": n == 0 }))
            .after(&last)
            .undone_by("detach-volume", json!({ "volume": book.volume(n), "vm": vm.output("/vm") }))
            .done();
        // One after the other: the order in which disks come is the order in which the guest sees them.
        last = vec![attached];
    }
    if it.snapshots == Snapshots::Machine {
        let set = book.set(Some(vm.output("/vm")));
        let taken = plan
            .step("snapshot", "take-snapshots")
            .titled("Take a snapshot of the machine with its disks")
            .input(set.clone())
            .after(&last)
            .undone_by("revert-snapshots", set)
            .done();
        snapshot = Some(taken.clone());
        last = vec![taken];
    }

    let start =
        plan.step("start-vm", "start-vm").titled("Start the machine").input(book.start(&vm)).after(&last);
    let start = match &source_off {
        Some(off) => start.requires(off, "/state", json!("poweredOff")),
        None => start,
    };
    let started = start.undone_by("stop-vm", json!({ "vm": vm.output("/vm") })).done();
    let up = plan
        .step("check-boot", "check-boot")
        .titled("See that it comes up and stays up")
        .input(json!({ "vm": vm.output("/vm"), "steady": it.steady, "within": it.boot_within }))
        .after([&started])
        .timeout(Span::from(it.boot_within.0 + Duration::from_secs(60)))
        .retry(Retry::fixed(2, Duration::from_secs(5)))
        .nothing_to_undo("it only looks");
    // Its copy runs: if somebody else has the context now, that is nothing to be undone without being asked.
    plan.step("record-failed-over", "record-failed-over")
        .titled("Say that the machine is failed over")
        .input(book.failed_over())
        .after([&up])
        .on_failure(OnFailure::Hold)
        .undone_by("withdraw-failed-over", book.failed_over());

    if let Some(taken) = snapshot.filter(|_| it.is_live()) {
        plan.step("drop-snapshots", "drop-snapshots")
            .titled("Give up the way back")
            .input(json!({ "taken": taken.output("") }))
            .after([&taken])
            .finalize()
            .done();
    }
    plan
}

/// How long an attempt of most steps may take. What the site's settings let a call or a job take has to fit in.
pub const ATTEMPT: Duration = Duration::from_secs(1800);
/// How long an attempt to take the snapshots may take.
pub const SNAPSHOT: Duration = Duration::from_secs(6 * 3600);
/// How long an attempt to put the drivers in may take.
pub const CONVERSION: Duration = Duration::from_secs(3 * 3600);
/// How often the undo of a disk that is attached nowhere is tried.
pub const PATIENCE: u32 = 10;
/// How long one try of an undo waits for a copy that goes on. It is shorter than the plan's time for an attempt.
pub const A_TRY: Duration = Duration::from_secs(1500);

/// What the steps have in common.
struct Book<'a> {
    it: &'a Failover,
    volumes: Vec<&'a str>,
    host: Value,
}

impl<'a> Book<'a> {
    fn of(it: &'a Failover) -> Self {
        let volumes = it.source.disks.iter().map(|disk| disk.volume.as_str()).collect();
        // Each rehearsal is a machine of its own: an earlier one may not be quite gone.
        let host = json!({ "base": it.host_name(), "with_run": !it.is_live() });
        Self { it, volumes, host }
    }

    fn title(&self) -> String {
        let how = if self.it.is_live() { "Fail over" } else { "Rehearse the failover of" };
        format!("{how} {} to CloudStack", self.it.source.name)
    }

    fn commit(&self) -> Commit {
        if self.it.is_live() {
            let then = self.it.commit_within.map(|_| Ending::RollBack);
            Commit { within: self.it.commit_within, then, signal: None }
        } else {
            Commit { within: Some(self.it.test_for), then: Some(Ending::RollBack), signal: None }
        }
    }

    fn volume(&self, n: usize) -> &str {
        self.volumes.get(n).copied().unwrap_or_default()
    }

    fn validation(&self) -> Value {
        let (source, to) = (&self.it.source, &self.it.destination);
        json!({
            "source": source.id, "path": source.path, "vcenter": source.vcenter,
            "disks": source
                .disks
                .iter()
                .map(|disk| json!({ "key": disk.key, "volume": disk.volume, "size": disk.size }))
                .collect::<Vec<_>>(),
            "name": self.host, "zone": to.zone, "offering": to.offering, "template": to.template,
            "networks": self.networks(), "rehearsal": !self.it.is_live(), "windows": self.it.injects(),
            "snapshots": self.it.snapshots,
        })
    }

    fn networks(&self) -> Vec<&str> {
        self.it.destination.nics.iter().map(|nic| nic.network.as_str()).collect()
    }

    fn machine(&self) -> Value {
        let (source, to) = (&self.it.source, &self.it.destination);
        let what = if self.it.is_live() { "" } else { " (rehearsal)" };
        json!({
            "name": self.host, "display_name": format!("{}{what}", source.name),
            "zone": to.zone, "offering": to.offering, "template": to.template,
            "cpus": source.cpus, "memory_mb": source.memory_mb, "boot_type": source.boot_type,
            "nics": to.nics,
        })
    }

    fn machine_unmade(&self) -> Value {
        let made = backstay_machine::plan::output("/vm");
        json!({ "vm": made, "name": self.host, "protected": self.volumes })
    }

    /// Live: the source goes down, and its last changes are copied, if they are wanted.
    fn take_over(&self, plan: &mut PlanBuilder, claimed: &Output) -> (Option<Output>, Option<Output>) {
        let source = &self.it.source;
        let whom = json!({ "id": source.id, "vcenter": source.vcenter });
        // The guest has its time within one attempt, and the same again once it is switched off.
        let patience = self.it.force_after.unwrap_or_default().0;
        let attempt = patience.saturating_mul(2).saturating_add(Duration::from_secs(300)).max(ATTEMPT);
        let may_go_down = self.it.force_after.map(|_| Span(patience.min(A_TRY)));
        let off = plan
            .step("source-off", "power-off-source")
            .titled("Shut the source down")
            .input(with(&whom, json!({ "force_after": self.it.force_after })))
            .after([claimed])
            .timeout(Span(attempt))
            .undone_by(
                "power-on-source",
                with(&whom, json!({ "copy": self.host, "force_after": may_go_down })),
            )
            .done();
        if !self.it.final_sync {
            return (Some(off), None);
        }
        let disks: Vec<_> =
            source.disks.iter().map(|disk| json!({ "key": disk.key, "volume": disk.volume })).collect();
        let synced = plan
            .step("final-sync", "final-sync")
            .titled("Copy its last changes")
            .input(with(&whom, json!({ "path": source.path, "disks": disks, "within": self.it.sync_within })))
            .requires(&off, "/state", json!("poweredOff"))
            .after([&off])
            .timeout(Span::from(self.it.sync_within.0 + Duration::from_secs(300)))
            .undone_by("await-final-sync", json!({ "within": Span(self.it.sync_within.0.min(A_TRY)) }))
            .done();
        (Some(off), Some(synced))
    }

    fn exports(&self) -> Value {
        let disks: Vec<_> = self
            .volumes
            .iter()
            .enumerate()
            .map(|(n, volume)| json!({ "volume": volume, "number": n }))
            .collect();
        json!({ "source": self.it.source.id, "name": self.it.source.name, "disks": disks })
    }

    fn release(&self, plan: &mut PlanBuilder, n: usize, closed: &Output) -> Output {
        let volume = json!({ "volume": self.volume(n) });
        plan.step(format!("release-disk-{n}"), "take-from-oma")
            .titled(format!("Detach disk {n} from the appliance"))
            .input(volume.clone())
            .after([closed])
            .undone_by("return-to-oma", volume)
            .undo_retry(patient())
            .done()
    }

    fn set(&self, vm: Option<Value>) -> Value {
        json!({ "provider": self.it.snapshots, "volumes": self.volumes, "vm": vm })
    }

    /// From disks that are attached nowhere to disks that the copy can start from, and what they can be put back to.
    fn prepare_disks(&self, plan: &mut PlanBuilder, free: Vec<Output>) -> (Vec<Output>, Option<Output>) {
        if matches!(self.it.snapshots, Snapshots::Machine | Snapshots::None) {
            return (free, None);
        }
        let taken = plan
            .step("snapshot", "take-snapshots")
            .titled("Take snapshots of all disks, or of none")
            .input(self.set(None))
            .after(&free)
            // CloudStack copies all of a disk to its secondary storage before a snapshot is one.
            .timeout(Span::from(SNAPSHOT))
            .undone_by("revert-snapshots", self.set(None))
            .undo_retry(patient())
            .done();
        if !self.it.injects() {
            return (vec![taken.clone()], Some(taken));
        }
        let count = self.volumes.len();
        let lent: Vec<_> = (0..count).map(|n| self.lend(plan, n, &taken)).collect();
        let source = &self.it.source;
        let injected = plan
            .step("inject-drivers", "inject-drivers")
            .titled("Put the VirtIO drivers into Windows")
            .input(json!({
                "name": source.name, "memory_mb": source.memory_mb, "cpus": source.cpus,
                "boot_type": source.boot_type, "volumes": self.volumes, "snapshots": taken.output(""),
            }))
            .after(&lent)
            .timeout(Span::from(CONVERSION))
            .retry(Retry::fixed(2, Duration::from_secs(10)))
            .nothing_to_undo("the snapshots hold the disks as they were before");
        let reclaimed = (0..count)
            .map(|n| {
                plan.step(format!("reclaim-disk-{n}"), "take-from-oma")
                    .titled(format!("Detach disk {n} from the appliance again"))
                    .input(json!({ "volume": self.volume(n), "lent": true }))
                    .after([&injected])
                    .nothing_to_undo("to take back the lending of a disk is to see that it is detached")
            })
            .collect();
        (reclaimed, Some(taken))
    }

    fn lend(&self, plan: &mut PlanBuilder, n: usize, taken: &Output) -> Output {
        let volume = json!({ "volume": self.volume(n), "lent": true });
        plan.step(format!("lend-disk-{n}"), "return-to-oma")
            .titled(format!("Attach disk {n} to the appliance for its drivers"))
            .input(volume.clone())
            .after([taken])
            .undone_by("take-from-oma", volume)
            .undo_retry(patient())
            .done()
    }

    fn failed_over(&self) -> Value {
        json!({ "context": self.it.context, "status": format!("failed_over_{}", self.it.mode.word()) })
    }

    fn start(&self, vm: &Output) -> Value {
        let source = &self.it.source;
        json!({
            "vm": vm.output("/vm"), "networks": self.networks(), "volumes": self.volumes,
            "rehearsal": !self.it.is_live(), "source": { "id": source.id, "vcenter": source.vcenter },
        })
    }
}

/// For a disk that is attached nowhere: often and soon, and then people are told. A target that is down takes no attempts.
fn patient() -> Retry {
    Retry { attempts: Some(PATIENCE), ceiling: Span::secs(15), ..Retry::of_undos() }
}

fn with(one: &Value, other: Value) -> Value {
    let mut both = one.clone();
    if let (Some(both), Value::Object(other)) = (both.as_object_mut(), other) {
        both.extend(other);
    }
    both
}
