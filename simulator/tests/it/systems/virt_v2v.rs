//! The stand-in for virt-v2v-in-place, as the real process that it is.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use backstay_simulator::conversion::{self, Misfortune};
use backstay_simulator::world::Cause;
use backstay_simulator::world::estate::replica;
use uuid::Uuid;

use super::support::Site;

impl Site {
    /// Nothing is replicated while somebody converts.
    async fn unexported() -> Self {
        let site = Self::small().await;
        site.close_exports();
        site
    }

    /// The daemon opens them when it begins.
    fn close_exports(&self) {
        self.world().change(Cause::new("test", "close", ""), |state| state.daemon.exports.clear());
    }

    fn device(&self, volume: Uuid) -> PathBuf {
        self.devices.path().join(format!("virtio-{}", &volume.simple().to_string()[..20]))
    }

    /// A libvirt domain with these disks, in this order.
    fn domain(&self, volumes: &[Uuid]) -> PathBuf {
        let disk = |volume: &Uuid| {
            let path = self.device(*volume).display().to_string();
            format!(
                "<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='{path}'/><target dev='vda'/></disk>\n"
            )
        };
        let disks: String = volumes.iter().map(disk).collect();
        let text = format!(
            "<domain type='kvm'>\n<name>guest</name>\n<devices>\n<!-- <disk><source dev='/dev/none'/></disk> -->\n\
             <disk type='file' device='cdrom'><source file='/none.iso'/></disk>\n{disks}</devices>\n</domain>\n"
        );
        let path = self.devices.path().join("domain.xml");
        std::fs::write(&path, text).unwrap();
        path
    }

    async fn converts(&self, arguments: &[&str]) -> Output {
        let mut command = program();
        command.args(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn converts_disk(&self, volume: Uuid) -> Output {
        self.converts(&["-i", "disk", "-if", "raw", "--root", "first", self.device(volume).to_str().unwrap()])
            .await
    }

    fn befalls(&self, misfortune: Misfortune) {
        conversion::befall(self.world(), None, misfortune, 1);
    }

    /// What was written to it by anybody but replication, by its first word.
    fn written(&self, volume: Uuid) -> Vec<String> {
        let foreign = self.content(volume).foreign;
        foreign.iter().map(|write| write.split(' ').next().unwrap().to_owned()).collect()
    }

    async fn is_writing(&self) {
        self.until("it writes", |state| state.conversion.runs.iter().any(|run| run.stage == "writing")).await;
    }

    fn reverts(&self, volume: Uuid) {
        self.world().change(Cause::new("test", "revert", ""), |state| {
            let content = &mut state.volumes.get_mut(&volume).unwrap().content;
            content.foreign.clear();
            content.half_converted = false;
        });
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_virt-v2v-in-place"));
    command.stdin(Stdio::null());
    command
}

/// In a group of its own, as whoever wants to kill it begins it.
fn begun(arguments: &[&str]) -> Child {
    program().args(arguments).process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn said(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[tokio::test]
async fn a_guest_of_several_disks_is_converted() {
    let site = Site::unexported().await;
    let (boot, data) = (replica("sql-01", 2000), replica("sql-01", 2001));
    let domain = site.domain(&[boot, data]);
    let report = site.devices.path().join("report.xml");
    let arguments = [
        "-v",
        "-x",
        "-i",
        "libvirtxml",
        domain.to_str().unwrap(),
        "--root",
        "first",
        "--block-driver",
        "virtio-scsi",
        "-O",
    ];
    let ran = site.converts(&[&arguments[..], &[report.to_str().unwrap()]].concat()).await;
    let out = said(&ran.stdout);
    assert!(ran.status.success(), "{out}\n{}", said(&ran.stderr));
    for line in [
        "Setting up the source: -i libvirtxml",
        "Inspecting the source",
        "Windows Server 2019",
        "has virtio drivers",
        "Finishing off",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    assert_eq!(site.written(boot), ["virtio"]);
    assert_eq!(site.written(data), ["trimmed"], "it was written too");
    assert!(!site.content(boot).half_converted && !site.content(data).half_converted);
    let report = std::fs::read_to_string(report).unwrap();
    assert!(report.contains("<firmware type='uefi'/>") && report.contains("virtio-scsi"), "{report}");
    assert!(site.broken().is_empty(), "{:?}", site.truth().violations());
}

#[tokio::test]
async fn a_conversion_beside_an_open_export_is_caught() {
    let site = Site::small().await;
    assert!(
        site.converts_disk(replica("web-01", 2000)).await.status.success(),
        "the real one does not see it"
    );
    assert_eq!(site.broken(), ["I6"]);
}

#[tokio::test]
async fn a_single_disk_is_converted_and_only_once_without_a_revert() {
    let site = Site::unexported().await;
    let volume = replica("web-01", 2000);
    assert!(site.converts_disk(volume).await.status.success());
    assert!(site.broken().is_empty());
    let again = site.converts_disk(volume).await;
    assert!(again.status.success(), "the real one does not see it either");
    assert_eq!(site.broken(), ["virt-v2v twice"]);
    site.reverts(volume);
    assert!(site.converts_disk(volume).await.status.success());
    assert_eq!(site.broken(), ["virt-v2v twice"], "after a revert it is the first time");
}

#[tokio::test]
async fn what_it_finds_before_it_writes_leaves_the_disk_clean() {
    let site = Site::unexported().await;
    let volume = replica("sql-01", 2000);
    for (misfortune, words) in [
        (Misfortune::NoOs, "No root device found"),
        (Misfortune::Hibernated, "Windows Hibernation or Fast Restart"),
        (Misfortune::BitLocker, "BitLocker"),
        (Misfortune::NoSpace, "not enough free space for conversion"),
        (Misfortune::NoHostSpace, "insufficient free space"),
    ] {
        site.befalls(misfortune);
        let ran = site.converts_disk(volume).await;
        let complaint = said(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{complaint}");
        assert!(
            complaint.starts_with("virt-v2v-in-place: error: ") && complaint.contains(words),
            "{complaint}"
        );
        assert!(complaint.contains("If reporting bugs"), "{complaint}");
        assert!(site.written(volume).is_empty() && !site.content(volume).half_converted, "{misfortune:?}");
    }
    // A disk without a system is one: the data disk of a guest.
    let ran = site.converts_disk(replica("sql-01", 2001)).await;
    assert!(said(&ran.stderr).contains("No root device found"));
    assert!(site.broken().is_empty());
}

#[tokio::test]
async fn of_two_systems_the_root_option_chooses() {
    let site = Site::unexported().await;
    let volume = replica("sql-01", 2000);
    let device = site.device(volume);
    let device = device.to_str().unwrap();
    conversion::befall(site.world(), Some(volume), Misfortune::MultiBoot, 4);
    let single = site.converts(&["-i", "disk", device, "--root", "single"]).await;
    assert!(said(&single.stderr).contains("multi-boot operating systems are not supported"));
    let elsewhere = site.converts(&["-i", "disk", device, "--root=/dev/sdz9"]).await;
    assert!(said(&elsewhere.stderr).contains("root device /dev/sdz9 not found"));
    let asked = site.converts(&["-i", "disk", device]).await;
    assert!(said(&asked.stdout).contains("Dual- or multi-boot") && !asked.status.success());
    assert!(site.written(volume).is_empty());
    let first = site.converts(&["-i", "disk", device, "--root", "first"]).await;
    assert!(first.status.success(), "{}", said(&first.stderr));
}

#[tokio::test]
async fn missing_drivers_are_a_warning_and_the_exit_code_is_0() {
    let site = Site::unexported().await;
    let volume = replica("sql-01", 2000);
    site.befalls(Misfortune::NoDrivers);
    let ran = site.converts_disk(volume).await;
    assert!(ran.status.success());
    assert!(said(&ran.stderr).contains("virt-v2v-in-place: warning: there are no virtio drivers available"));
    assert_eq!(site.written(volume), ["converted"], "and no virtio");
}

#[tokio::test]
async fn one_that_hangs_and_is_killed_leaves_half_a_conversion_and_a_second_run_on_it_is_caught() {
    let site = Site::unexported().await;
    let volume = replica("web-01", 2000);
    site.befalls(Misfortune::HangsAfter);
    let device = site.device(volume);
    let mut hanging = begun(&["-i", "disk", device.to_str().unwrap()]);
    site.is_writing().await;
    assert!(hanging.try_wait().unwrap().is_none(), "it hangs");
    assert!(site.content(volume).half_converted);
    assert!(site.world().look(|state| state.conversion.runs[0].at_work()));
    hanging.kill().unwrap();
    hanging.wait().unwrap();
    assert!(site.content(volume).half_converted, "nobody mended it");
    assert!(!site.world().look(|state| state.conversion.runs[0].at_work()));
    assert!(site.converts_disk(volume).await.status.success());
    assert_eq!(site.broken(), ["virt-v2v twice"]);
}

#[tokio::test]
async fn one_that_hangs_before_it_writes_leaves_the_disk_clean() {
    let site = Site::unexported().await;
    let volume = replica("web-01", 2000);
    site.befalls(Misfortune::HangsBefore);
    let device = site.device(volume);
    let mut hanging = begun(&["-i", "disk", device.to_str().unwrap()]);
    site.until("it has it open", |state| !state.conversion.runs.is_empty()).await;
    hanging.kill().unwrap();
    hanging.wait().unwrap();
    assert!(!site.content(volume).half_converted);
    assert!(site.converts_disk(volume).await.status.success());
    assert!(site.broken().is_empty(), "the first one is dead: {:?}", site.truth().violations());
}

#[tokio::test]
async fn two_at_once_are_caught() {
    let site = Site::unexported().await;
    let (boot, data) = (replica("sql-01", 2000), replica("sql-01", 2001));
    site.befalls(Misfortune::HangsBefore);
    let domain = site.domain(&[boot, data]);
    let mut hanging = begun(&["-i", "libvirtxml", domain.to_str().unwrap()]);
    site.until("it has them open", |state| !state.conversion.runs.is_empty()).await;
    site.converts_disk(boot).await;
    assert_eq!(site.broken(), ["virt-v2v at once"]);
    let other = site.converts_disk(replica("web-01", 2000)).await;
    assert!(other.status.success());
    assert_eq!(site.broken(), ["virt-v2v at once"], "other volumes are another matter");
    hanging.kill().unwrap();
    hanging.wait().unwrap();
}

#[tokio::test]
async fn one_that_fails_or_dies_after_it_wrote_leaves_half_a_conversion() {
    for (misfortune, code) in [(Misfortune::FailsAfter, Some(1)), (Misfortune::DiesAfter, None)] {
        let site = Site::unexported().await;
        let volume = replica("web-01", 2000);
        site.befalls(misfortune);
        let ran = site.converts_disk(volume).await;
        assert_eq!(ran.status.code(), code, "{misfortune:?}");
        assert!(site.content(volume).half_converted);
        assert!(site.written(volume).is_empty());
        assert!(!site.world().look(|state| state.conversion.runs[0].at_work()));
    }
}

/// Only the group's end is its end.
#[tokio::test]
async fn a_child_goes_on_when_only_its_parent_is_killed() {
    let site = Site::with(|state| state.settings.pace = 0.01).await;
    let volume = replica("web-01", 2000);
    site.befalls(Misfortune::WorksInChild);
    let device = site.device(volume);
    let mut parent = begun(&["-i", "disk", device.to_str().unwrap()]);
    site.until("the child has it open", |state| state.conversion.runs.len() == 2).await;
    parent.kill().unwrap();
    parent.wait().unwrap();
    assert!(site.world().look(|state| state.conversion.runs[1].at_work()));
    site.until("the child is through", |state| state.conversion.runs[1].stage == "done").await;
    assert_eq!(site.written(volume), ["virtio"]);

    site.reverts(volume);
    site.befalls(Misfortune::WorksInChild);
    site.befalls(Misfortune::HangsAfter);
    let mut parent = begun(&["-i", "disk", device.to_str().unwrap()]);
    site.until("the child writes", |state| {
        state.conversion.runs.len() == 4 && state.conversion.runs[3].stage == "writing"
    })
    .await;
    let child = site.world().look(|state| state.conversion.runs[3].clone());
    assert_ne!(child.process.pid, parent.id());
    let group = rustix::process::Pid::from_child(&parent);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    parent.wait().unwrap();
    // Who adopted the child has to notice, but it writes no more: killed is killed.
    site.until("the child is gone", |_| !child.at_work()).await;
}

#[tokio::test]
async fn a_device_that_is_not_there_or_goes_away_is_an_error() {
    let site = Site::unexported().await;
    let volume = replica("web-01", 2000);
    let nothing = site.converts(&["-i", "disk", "/dev/none"]).await;
    assert!(said(&nothing.stderr).contains("No such file or directory"));
    assert_eq!(nothing.status.code(), Some(1));

    let device = site.device(volume);
    let held = std::fs::read(&device).unwrap();
    let oma = site.oma();
    site.world().change(Cause::new("test", "unplug", ""), |state| state.unplug(volume, oma));
    std::fs::write(&device, held).unwrap();
    let gone = site.converts_disk(volume).await;
    assert!(said(&gone.stderr).contains("Input/output error"), "{}", said(&gone.stderr));
    assert_eq!(gone.status.code(), Some(1));
    assert!(site.written(volume).is_empty());
    std::fs::write(&device, "no disk").unwrap();
    assert!(said(&site.converts_disk(volume).await.stderr).contains("not a disk image"));
    // A data centre that is away.
    let away = serde_json::json!({"volume": volume, "size": 1, "control": "127.0.0.1:1"});
    std::fs::write(&device, away.to_string()).unwrap();
    assert!(said(&site.converts_disk(volume).await.stderr).contains("Input/output error"));
}

#[tokio::test]
async fn a_device_that_goes_away_in_the_middle_leaves_half_a_conversion() {
    let site = Site::unexported().await;
    let (volume, oma) = (replica("web-01", 2000), site.oma());
    // Slow: four and a half seconds in all, of which nearly two are spent writing.
    site.befalls(Misfortune::Slow);
    let device = site.device(volume);
    let mut converting = begun(&["-i", "disk", device.to_str().unwrap()]);
    site.is_writing().await;
    site.world().change(Cause::new("test", "unplug", ""), |state| state.unplug(volume, oma));
    let ended = tokio::task::spawn_blocking(move || converting.wait().unwrap()).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    assert!(site.content(volume).half_converted && site.written(volume).is_empty());
}

#[tokio::test]
async fn an_older_one_does_not_know_every_option() {
    let ran = |version: &str, arguments: &[&str]| {
        program().env("PRETEND_VIRT_V2V_VERSION", version).args(arguments).output().unwrap()
    };
    let facts = said(&ran("2.8.1", &["--machine-readable"]).stdout);
    for fact in
        ["virt-v2v-in-place", "libguestfs-rewrite", "input:disk", "input:libvirtxml", "convert:windows"]
    {
        assert!(facts.lines().any(|line| line == fact), "{fact}\n{facts}");
    }
    assert_eq!(said(&ran("2.2.0", &["--version"]).stdout), "virt-v2v-in-place 2.2.0\n");
    for (version, option, known) in [
        ("2.2.0", "--block-driver", false),
        ("2.3.4", "--block-driver", true),
        ("2.6.0", "-O", false),
        ("2.8.1", "-O", true),
    ] {
        let told = ran(version, &["-i", "disk", "/dev/none", option, "virtio-blk"]);
        let complaint = said(&told.stderr);
        assert_eq!(told.status.code(), Some(1));
        assert_eq!(complaint.contains("unrecognized option"), !known, "{version} {option}: {complaint}");
        assert_eq!(said(&ran(version, &["--help"]).stdout).contains(option), known, "{version} {option}");
    }
    for (wrong, words) in [
        (&["--no-such-option"][..], "unrecognized option"),
        (&["-i", "tape", "x"], "unknown -i option: tape"),
        (&["-i", "disk"], "expecting a disk image"),
        (&["-i", "disk", "x", "y"], "expecting a disk image"),
        (&["-i", "disk", "x", "--block-driver", "scsi"], "unknown block driver"),
        (&["-i", "disk", "x", "--root", "second"], "unknown --root option"),
        (&["-i", "disk", "x", "--root"], "requires an argument"),
        (&["guest"], "could not connect to libvirt"),
    ] {
        let told = ran("2.8.1", wrong);
        assert_eq!(told.status.code(), Some(1), "{wrong:?}");
        assert!(said(&told.stderr).contains(words), "{wrong:?}: {}", said(&told.stderr));
    }
}

#[tokio::test]
async fn misfortunes_are_ordered_over_http_too() {
    let site = Site::unexported().await;
    let (volume, other) = (replica("web-01", 2000), replica("db-01", 2000));
    let control = site.centre.control_url();
    let order = serde_json::json!({"volume": volume, "misfortune": "no_space"});
    assert_eq!(site.call(&control, "POST /virt-v2v/orders", Some(order)).await.status, 200);
    assert!(site.converts_disk(other).await.status.success(), "it is another's");
    assert!(!site.converts_disk(volume).await.status.success());
    assert!(site.converts_disk(volume).await.status.success(), "once");
    let told = site.call(&control, "GET /virt-v2v", None).await.is(200);
    assert_eq!(told["runs"].as_array().unwrap().len(), 3);
    assert_eq!((&told["runs"][0]["at_work"], &told["orders"][0]["times"]), (&false.into(), &0.into()));
}
