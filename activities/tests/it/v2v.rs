//! The program virt-v2v-in-place: scripts stand in for it, so that it can hang, fork, and talk without end.

use std::future::pending;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_activities::remote::{Kind, Trouble};
use backstay_activities::v2v::{
    BlockDriver, Cause, Firmware, Format, Guest, GuestDisk, V2v, V2vSettings, Warning, features, verdict,
};
use backstay_engine::Span;
use backstay_engine::machine::Applied;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process};

use crate::support::{told, until};

/// What the one of Debian says of itself.
const FEATURES: &str = "virt-v2v-in-place\nvirt-v2v-in-place-2.0\nlibguestfs-rewrite\ncolours-option\nin-place\nio\n\
    mac-option\nmac-ip-option\ncustomize-ops\ninput:disk\ninput:libvirt\ninput:libvirtxml\nconvert:linux\nconvert:windows\n";

struct Bench {
    dir: tempfile::TempDir,
    v2v: V2v,
}

impl Bench {
    /// The script is what happens when it is asked to inject.
    fn new(script: &str) -> Self {
        Self::with(script, FEATURES, |_| {})
    }

    fn with(script: &str, features: &str, change: impl FnOnce(&mut V2vSettings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("virt-v2v-in-place");
        let text = format!(
            "#!/bin/sh\nif [ \"$1\" = --machine-readable ]; then printf '%s' '{features}'; exit 0; fi\n\
             if [ \"$1\" = --long-options ]; then printf '%s\\n' --root --block-driver; exit 0; fi\ncd {}\n{script}\n",
            dir.path().display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        for name in ["disk0", "disk1"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut settings = V2vSettings {
            program,
            dir: dir.path().join("v2v"),
            tmp: dir.path().to_owned(),
            deadline: Span::secs(20),
            grace: Span::millis(200),
            lock_wait: Span::millis(200),
            ..V2vSettings::default()
        };
        change(&mut settings);
        Self { v2v: V2v::new(settings).unwrap(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn guest(&self, disks: &[&str]) -> Guest {
        let disk = |name: &&str| GuestDisk { device: self.path(name), format: Format::Raw };
        Guest {
            name: "web <1> & 'co'".into(),
            disks: disks.iter().map(disk).collect(),
            memory_mib: 4096,
            vcpus: 2,
            firmware: Firmware::Uefi,
        }
    }

    /// Waits until nobody holds a disk. Other tests start processes as well, and theirs may have inherited its lock for the
    /// moment between fork and exec.
    async fn free(&self, disk: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.v2v.end_leftovers(&[self.path(disk)]).await != Ok(0) {
            assert!(Instant::now() < end, "somebody holds {disk}");
        }
    }

    async fn one(&self) -> Result<backstay_activities::v2v::Injected, Trouble> {
        self.v2v.inject(&self.guest(&["disk0"]), "run-1", pending()).await
    }
}

/// Whether a process whose number stands in a file is there.
fn lives(file: &Path) -> bool {
    let number = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    number.and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[tokio::test]
async fn one_disk_is_named_and_several_are_described() {
    let bench = Bench::new("printf '%s ' \"$@\" > args; env > env; echo '[ 0.0] done'");
    let done = bench.one().await.unwrap();
    assert_eq!(
        bench.read("args"),
        format!("--root single -i disk -if raw {} ", bench.path("disk0").display())
    );
    let env = bench.read("env");
    assert!(env.contains("LIBGUESTFS_BACKEND=direct") && env.contains("LC_ALL=C"), "{env}");
    assert!(!env.contains("CARGO"), "it gets nothing of ours: {env}");
    assert_eq!(
        (done.warnings.len(), std::fs::read_to_string(&done.log).unwrap()),
        (0, "[ 0.0] done\n".into())
    );

    let guest = bench.guest(&["disk0", "disk1"]);
    bench.v2v.inject(&guest, "run-2", pending()).await.unwrap();
    let described = bench.path("v2v/run-2.xml");
    assert_eq!(bench.read("args"), format!("--root single -i libvirtxml {} ", described.display()));
    let xml = std::fs::read_to_string(described).unwrap();
    for part in [
        "<name>web &lt;1&gt; &amp; &apos;co&apos;</name>",
        "<os firmware='efi'>",
        "dev='sda'",
        "dev='sdb'",
        "<driver name='qemu' type='raw'/>",
        &format!("<source file='{}'/>", bench.path("disk1").display()),
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    assert!(xml.find("disk0").unwrap() < xml.find("disk1").unwrap(), "it starts from the first");
}

#[tokio::test]
async fn a_driver_is_named_only_where_it_can_be() {
    let scsi = |settings: &mut V2vSettings| settings.block_driver = Some(BlockDriver::VirtioScsi);
    let script = "printf '%s ' \"$@\" > args";
    let listed = Bench::with(script, &format!("{FEATURES}block-driver-option\n"), scsi);
    listed.one().await.unwrap();
    assert!(listed.read("args").contains("--block-driver virtio-scsi"));
    let unlisted = Bench::with(script, FEATURES, scsi);
    unlisted.one().await.unwrap();
    assert!(unlisted.read("args").contains("--block-driver virtio-scsi"), "it is among the long options");
    let bench = Bench::with("", "virt-v2v-in-place\ninput:disk\n", |_| {});
    let trouble = bench.v2v.inject(&bench.guest(&["disk0", "disk1"]), "r", pending()).await.unwrap_err();
    assert_eq!((trouble.kind(), trouble.applied()), (Kind::Refused, Applied::No), "{trouble}");
    assert!(features(b"GNU bash, version 5").is_err());
}

#[tokio::test]
async fn one_that_hangs_is_killed_with_all_that_it_has_started() {
    let script = "trap '' TERM; sleep 600 & echo $! > child; echo $$ > leader; wait";
    for cancel in [false, true] {
        let bench = Bench::with(script, FEATURES, |settings| {
            settings.deadline = if cancel { Span::secs(600) } else { Span::secs(2) };
        });
        let (leader, child) = (bench.path("leader"), bench.path("child"));
        let started = bench.path("leader");
        let stop = async move {
            if !cancel {
                pending::<()>().await;
            }
            until("it runs", || lives(&started)).await;
        };
        let begun = Instant::now();
        let trouble = bench.v2v.inject(&bench.guest(&["disk0"]), "r", stop).await.unwrap_err();
        let wanted = if cancel { Kind::Cancelled } else { Kind::Late };
        assert_eq!((trouble.kind(), trouble.applied()), (wanted, Applied::Maybe), "{trouble}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(leader.exists() && child.exists());
        until("both are gone", || !lives(&leader) && !lives(&child)).await;
        // And the disk is free again.
        bench.free("disk0").await;
    }
}

#[tokio::test]
async fn one_that_nobody_waits_for_any_more_is_killed() {
    let bench = Bench::new("echo $$ > leader; sleep 600");
    let (leader, v2v, guest) = (bench.path("leader"), bench.v2v.clone(), bench.guest(&["disk0"]));
    let task = tokio::spawn(async move { v2v.inject(&guest, "r", pending()).await.map(|_| ()) });
    until("it runs", || lives(&leader)).await;
    task.abort();
    until("it is gone", || !lives(&leader)).await;
}

#[tokio::test]
async fn two_never_run_on_one_disk_whatever_it_is_called() {
    let bench = Bench::new("echo $$ >> leader; while [ ! -e go ]; do sleep 0.02; done");
    std::os::unix::fs::symlink(bench.path("disk0"), bench.path("by-id")).unwrap();
    let (v2v, guest) = (bench.v2v.clone(), bench.guest(&["disk1", "disk0"]));
    let first = tokio::spawn(async move { v2v.inject(&guest, "first", pending()).await });
    let leader = bench.path("leader");
    until("it runs", || lives(&leader)).await;
    let second = bench.v2v.inject(&bench.guest(&["by-id"]), "second", pending()).await.unwrap_err();
    assert_eq!((second.kind(), second.applied()), (Kind::Busy, Applied::No));
    assert_eq!(told(second.alone()), ("virt_v2v_in_place_running".into(), true, true));
    // A run of this very process is no leftover.
    let kept = bench.v2v.end_leftovers(&[bench.path("disk0")]).await.unwrap_err();
    assert!(kept.to_string().contains("this process itself runs it"), "{kept}");
    std::fs::write(bench.path("go"), "").unwrap();
    first.await.unwrap().unwrap();
    assert_eq!(bench.read("leader").lines().count(), 1);
    bench.one().await.unwrap();
    let twice = bench.v2v.inject(&bench.guest(&["disk0", "by-id"]), "r", pending()).await.unwrap_err();
    assert_eq!((twice.kind(), twice.applied()), (Kind::Refused, Applied::No), "one disk twice");
}

/// A predecessor that was killed at once leaves its program running, with the lock.
#[tokio::test]
async fn what_a_predecessor_has_left_running_is_found_and_ended() {
    let bench = Bench::new("exit 0");
    let disk = bench.path("disk0");
    bench.one().await.unwrap();
    let locks = bench.path("v2v/locks");
    std::fs::create_dir_all(&locks).unwrap();
    let name = uuid::Uuid::new_v5(
        &uuid::Uuid::NAMESPACE_URL,
        std::fs::canonicalize(&disk).unwrap().to_str().unwrap().as_bytes(),
    );
    let lock = locks.join(name.to_string());
    // A shell takes the lock as the program would have it, in a group of its own, and is nobody's child soon.
    let script = format!(
        "exec 9>{lock}; flock -n 9 || exit 1; trap '' TERM; echo $$ > {lock}; echo $$ > {dir}/left; sleep 600",
        lock = lock.display(),
        dir = bench.dir.path().display()
    );
    detached(&script);
    let left = bench.path("left");
    until("it runs", || lives(&left)).await;
    let trouble = bench.one().await.unwrap_err();
    assert_eq!((trouble.kind(), trouble.reason()), (Kind::Busy, Some("running")));
    // Another group than the one that holds the lock is not touched, whatever the note says.
    let number = std::fs::read_to_string(&lock).unwrap();
    let innocent = bench.path("innocent");
    detached(&format!("echo $$ > {}; exec sleep 600", innocent.display()));
    until("somebody else runs", || lives(&innocent)).await;
    std::fs::copy(&innocent, &lock).unwrap();
    let kept = bench.v2v.end_leftovers(std::slice::from_ref(&disk)).await.unwrap_err();
    assert!(kept.to_string().contains("it is not the group"), "{kept}");
    assert!(lives(&innocent), "it was ended");
    end(&std::fs::read_to_string(&innocent).unwrap());

    std::fs::write(&lock, &number).unwrap();
    assert_eq!(bench.v2v.end_leftovers(std::slice::from_ref(&disk)).await.unwrap(), 1);
    until("it is gone", || !lives(&left)).await;
    bench.one().await.unwrap();
}

/// Runs a script in a group of its own, and as nobody's child.
fn detached(script: &str) {
    let script = script.replace('\'', "'\\''");
    let started = std::process::Command::new("sh")
        .args(["-c", &format!("setsid sh -c '{script}' >/dev/null 2>&1 &")])
        .status()
        .unwrap();
    assert!(started.success());
}

/// Ends the group with this number.
fn end(number: &str) {
    let group = number.trim().parse().ok().and_then(Pid::from_raw).unwrap();
    let _ = kill_process_group(group, Signal::KILL);
}

#[tokio::test]
async fn a_log_without_end_is_kept_in_bounds_and_its_end_is_read() {
    let script = "i=0; while [ $i -lt 4000 ]; do echo \"line $i of many that say nothing at all, again and again\"; \
         i=$((i+1)); done >&2\necho 'virt-v2v-in-place: error: inspection could not detect the source guest (or' >&2\n\
         echo 'physical machine) operating system.' >&2; exit 1";
    let bench = Bench::with(script, FEATURES, |settings| settings.max_log = 10_000);
    let trouble = bench.one().await.unwrap_err();
    assert_eq!(
        (trouble.kind(), trouble.reason(), trouble.applied()),
        (Kind::Look, Some("no_system"), Applied::Maybe)
    );
    let log = bench.read("v2v/run-1.log");
    assert!(log.len() < 10_000 + (70 << 10), "{}", log.len());
    assert!(
        log.starts_with("line 0") && log.contains("[the log is full") && log.ends_with("operating system.\n")
    );
}

#[tokio::test]
async fn what_failed_has_left_the_disks_in_doubt_and_what_did_not_begin_has_not() {
    let bench = Bench::new("kill -9 $$");
    let killed = bench.one().await.unwrap_err();
    assert_eq!(
        (killed.kind(), killed.reason(), killed.applied()),
        (Kind::Internal, Some("killed"), Applied::Maybe)
    );
    let bench = Bench::new("echo oh >&2; exit 3");
    let failed = bench.one().await.unwrap_err();
    assert_eq!((failed.kind(), failed.code(), failed.applied()), (Kind::Look, Some(3), Applied::Maybe));
    assert_eq!(told(failed.alone()), ("virt_v2v_in_place_failed".into(), false, false));

    let gone = bench.v2v.inject(&bench.guest(&["nowhere"]), "r", pending()).await.unwrap_err();
    assert_eq!((gone.reason(), gone.applied()), (Some("no_device"), Applied::No));
    let label = bench.v2v.inject(&bench.guest(&["disk0"]), "../r", pending()).await.unwrap_err();
    assert_eq!((label.kind(), label.applied()), (Kind::Refused, Applied::No));
    let missing =
        V2vSettings { program: "/nowhere/virt-v2v-in-place".into(), ..bench.v2v.settings().clone() };
    let missing =
        V2v::new(missing).unwrap().inject(&bench.guest(&["disk0"]), "r", pending()).await.unwrap_err();
    assert_eq!((missing.kind(), missing.applied()), (Kind::Operator, Applied::No), "{missing}");
}

#[tokio::test]
async fn drivers_that_are_missing_are_told_of_a_success() {
    let bench = Bench::new(
        "echo 'virt-v2v-in-place: warning: there are no virtio drivers available for this version' >&2\n\
         echo 'of Windows (10.0 x86_64 Server win2k22).  virt-v2v looks for drivers in' >&2\n\
         echo '/usr/share/virtio-win/virtio-win.iso' >&2",
    );
    assert_eq!(bench.one().await.unwrap().warnings, [Warning::MissingDrivers]);
}

#[test]
fn its_last_words_are_understood_however_they_are_broken() {
    let says = |text: &str| verdict(text.as_bytes());
    for (text, cause) in [
        (
            "virt-v2v-in-place: error: inspection could not detect the source guest\n(or physical machine) operating \
             system.\n\nNo root device found in this operating system image.",
            Cause::NoSystem,
        ),
        (
            "virt-v2v-in-place: error: multi-boot operating systems are not supported \nby virt-v2v. Use the --root option",
            Cause::MultiBoot,
        ),
        (
            "virt-v2v-in-place: error: unable to mount the disk image for writing. This \nhas probably happened because \
             Windows Hibernation or Fast Restart is being used in this guest.",
            Cause::Hibernated,
        ),
        (
            "virt-v2v-in-place: error: filesystem was mounted read-only, even though we asked for it to be mounted \
             read-write.  This usually means that the filesystem was not cleanly unmounted.",
            Cause::Hibernated,
        ),
        (
            "/dev/sda2: TYPE=\"BitLocker\"\nvirt-v2v-in-place: error: inspection could not detect the source guest",
            Cause::Encrypted,
        ),
        (
            "virt-v2v-in-place: error: insufficient free space in the conversion server temporary directory /var/tmp (12M).",
            Cause::NoSpace,
        ),
        (
            "virt-v2v-in-place: error: not enough free space for conversion on filesystem '/'.  1.0 MB free < 100 MB",
            Cause::NoSpace,
        ),
        ("virt-v2v-in-place: error: libguestfs error: guestfs_launch failed.", Cause::Unknown),
        ("checking for hibernation\nvirt-v2v-in-place: error: something else", Cause::Unknown),
        ("", Cause::Unknown),
    ] {
        assert_eq!(says(text).cause, cause, "{text}");
    }
    let said = says("noise\nvirt-v2v-in-place: error: one\nvirt-v2v-in-place: error:  two\nlines\n");
    assert_eq!(said.text, "two lines");
    let policy = says("warning: this guest has Windows Group\nPolicy Objects (GPO) and a new driver");
    assert_eq!(policy.warnings, [Warning::GroupPolicy]);
}
