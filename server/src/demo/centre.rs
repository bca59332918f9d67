//! The pretend data centre that the demo plays in, the configuration of a server beside it, and what is so in it at the end.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use backstay_activities::cloudstack::CloudStackSettings;
use backstay_activities::daemon::DaemonSettings;
use backstay_activities::linstor::LinstorSettings;
use backstay_activities::secrets::SecretUse;
use backstay_activities::site::{SiteSettings, TEST_NETWORK_TAG};
use backstay_activities::v2v::V2vSettings;
use backstay_activities::vma::VmaSettings;
use backstay_engine::{RunId, Span};
use backstay_simulator::faults::{Fault, Rule};
use backstay_simulator::world::things::Power;
use backstay_simulator::world::{State, estate};
use backstay_simulator::{Datacentre, Start};

use super::part::Part;
use crate::config::{Config, ListenSettings, NodeSettings, SecretSettings};
use crate::trouble::Trouble;

/// The name of the secret that is vCenter's password.
pub(super) const VCENTER: &str = "vcenter-password";
/// What stands before the arguments of virt-v2v-in-place, where this program stands in for it.
pub(crate) const PRETEND: &str = "pretend-virt-v2v";
/// CloudStack's code for what it does not support: nothing that a second try would change.
const UNSUPPORTED: u16 = 432;

/// The data centre, and the folder with all that it keeps.
pub(super) struct Centre {
    folder: PathBuf,
    centre: Datacentre,
}

/// What is so, for people; and what of it should be otherwise.
pub(super) struct Truth {
    pub lines: Vec<String>,
    pub wrong: Option<String>,
}

impl Centre {
    /// The one of this folder, as it was left; or a new one.
    pub(super) async fn open(folder: &Path, quick: bool) -> Result<Self, Trouble> {
        let mut state = estate::small();
        state.settings.device_dir = Some(folder.join("devices"));
        for network in state.networks.values_mut().filter(|network| network.name.starts_with("test-")) {
            network.tags.insert(TEST_NETWORK_TAG.into(), "true".into());
        }
        let file = folder.join("data-centre.json");
        let start = Start { file: Some(file.clone()), ..Start::with(state) };
        let centre = Datacentre::start(start).await.map_err(|error| {
            Trouble::failed(format!(
                "The pretend data centre of {} does not start: {error:#}.",
                file.display()
            ))
        })?;
        // What takes a minute there takes some seconds here.
        centre.truth().set(|settings| settings.pace = if quick { 0.002 } else { 0.04 });
        let centre = Self { folder: folder.to_owned(), centre };
        centre.write_secrets()?;
        centre.write_stand_in()?;
        Ok(centre)
    }

    pub(super) fn look<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        self.centre.world().look(ask)
    }

    /// Where it tells the truth over HTTP.
    pub(super) fn control_url(&self) -> String {
        self.centre.control_url()
    }

    /// What goes wrong in this part, and nothing else.
    pub(super) fn begins(&self, part: Option<Part>) {
        let faults = self.centre.faults();
        faults.clear();
        if part == Some(Part::Failing) {
            faults.rule(Rule::every("daemon", "POST /volumes/*/attach", Fault::DoneThenDropped).once());
            faults.rule(Rule::every(
                "cloudstack",
                "startVirtualMachine",
                Fault::JobFails { code: UNSUPPORTED },
            ));
        }
    }

    /// That of a server beside it. Nothing in it comes from what is configured on this machine but how the node works and how
    /// it logs: a real site's runs, places and secrets have no business here, and the demo has none there.
    pub(super) fn config(&self, of_machine: &Config) -> Config {
        let ms = Span::millis;
        let local = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let cloudstack = CloudStackSettings {
            url: self.centre.cloudstack_url(),
            poll_first: ms(20),
            poll_ceiling: ms(200),
            job_deadline: Span::secs(20),
            ..CloudStackSettings::default()
        };
        let secret = |url: String| SecretUse { origins: vec![origin(&url)], ..SecretUse::default() };
        let uses = [
            (cloudstack.api_key.secret.clone(), secret(self.centre.cloudstack_url())),
            (cloudstack.secret_key.secret.clone(), secret(self.centre.cloudstack_url())),
            (VCENTER.to_owned(), secret(self.centre.vma_url())),
        ];
        Config {
            data_dir: self.folder.clone(),
            log: of_machine.log.clone(),
            node: NodeSettings {
                // The next demo here succeeds this one at once.
                name: "demo".into(),
                progress_every: ms(100),
                // It is meant to be killed.
                max_crashes: i16::MAX,
                // What is in flight at its end may take so long; the rest is in doubt for the next demo.
                grace: ms(300),
                ..of_machine.node.clone()
            },
            listen: ListenSettings { address: local, health: local, ..ListenSettings::default() },
            secrets: SecretSettings {
                dir: self.folder.join("secrets"),
                uses: uses.into(),
                ..SecretSettings::default()
            },
            cloudstack,
            volume_daemon: DaemonSettings {
                url: format!("{}/api/v1", self.centre.daemon_url()),
                poll: ms(20),
                // What was under way when it was killed never ends: so it is with the real one.
                attach_deadline: Span::secs(5),
                detach_deadline: Span::secs(5),
                ..DaemonSettings::default()
            },
            vma: VmaSettings {
                url: format!("{}/api/v1", self.centre.vma_url()),
                power_poll: ms(50),
                power_off_wait: Span::secs(10),
                power_on_wait: Span::secs(10),
                progress_poll: ms(50),
                progress_grace: Span::secs(1),
                ..VmaSettings::default()
            },
            linstor: LinstorSettings { url: self.centre.linstor_url(), ..LinstorSettings::default() },
            v2v: V2vSettings {
                program: self.stand_in(),
                dir: self.folder.join("v2v"),
                devices: self.folder.join("devices"),
                tmp: self.folder.clone(),
                ..V2vSettings::default()
            },
            site: SiteSettings {
                oma: self.look(|state| state.oma).to_string(),
                settle: Span::secs(1),
                longest_delay: ms(200),
                look_twice: ms(50),
                root_admin: true,
                ..SiteSettings::default()
            },
            ..Config::defaults()
        }
    }

    /// Its keys open nothing else. They are files, as they would be at a real site.
    fn write_secrets(&self) -> Result<(), Trouble> {
        let folder = self.folder.join("secrets");
        fs::create_dir_all(&folder).map_err(Trouble::file("Making", &folder))?;
        let account = self.look(|state| state.accounts.iter().find(|one| one.root_admin).cloned());
        let account = account.ok_or_else(|| {
            Trouble::failed("The pretend data centre has no administrator: remove its file.")
        })?;
        let names = CloudStackSettings::default();
        for (name, text) in [
            (names.api_key.secret.as_str(), account.key.as_str()),
            (names.secret_key.secret.as_str(), account.secret.as_str()),
            (VCENTER, "pretend-vcenter-password"),
        ] {
            let path = folder.join(name);
            let mut options = fs::OpenOptions::new();
            let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
            opened
                .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
                .map_err(Trouble::file("Writing", &path))?;
        }
        Ok(())
    }

    fn stand_in(&self) -> PathBuf {
        self.folder.join("virt-v2v-in-place")
    }

    /// A program that is this one.
    fn write_stand_in(&self) -> Result<(), Trouble> {
        let path = self.stand_in();
        let this = std::env::current_exe()
            .map_err(|error| Trouble::failed(format!("Where this program is is not known: {error}.")))?;
        let this = this.to_string_lossy().replace('\'', r"'\''");
        fs::write(&path, format!("#!/bin/sh\nexec '{this}' {PRETEND} \"$@\"\n"))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))
            .map_err(Trouble::file("Writing", &path))
    }

    /// What is so after a part, whatever anybody was told.
    pub(super) fn truth(&self, part: Part, run: RunId) -> Truth {
        let came_home = part.promised() == backstay_engine::Status::RolledBack;
        let vm = part.vm();
        let mut wrong = Vec::new();
        let mut lines = self.look(|state| {
            let Some(source) = state.sources.get(&estate::source(vm)) else { return Vec::new() };
            let mut disks = Vec::new();
            for disk in &source.disks {
                let Some(volume) = state.volumes.get(&disk.replica) else { continue };
                let at = volume.plugged.iter().filter_map(|at| state.vms.get(at));
                let at: Vec<_> = at.map(|vm| vm.name.as_str()).collect();
                let at = if at.is_empty() { "nothing".to_owned() } else { at.join(", ") };
                let clean = volume.content.foreign.is_empty() && !volume.content.mixed;
                let holds = match (clean, came_home) {
                    (true, _) => "holds what replication brought".to_owned(),
                    (false, false) if volume.content.replicated == disk.version => {
                        "holds all that the source had written, and what its copy has since".to_owned()
                    }
                    (false, _) => format!("was written to: {}", volume.content.foreign.join(", ")),
                };
                if came_home && !(clean && volume.plugged.iter().eq([&state.oma])) {
                    wrong.push(format!("the disk {} did not come home as it was", volume.name));
                }
                if !came_home && volume.content.replicated != disk.version {
                    wrong.push(format!("a write to {} is lost", volume.name));
                }
                disks.push(format!("disk    {} is attached to {at}; it {holds}", volume.name));
            }
            let on = source.power == Power::On;
            if on != came_home {
                wrong.push(format!("{vm} is {} at VMware", if on { "on" } else { "off" }));
            }
            let mut lines = vec![format!("source  {vm} is {} at VMware", if on { "on" } else { "off" })];
            lines.extend(disks);
            let copies: Vec<_> = state
                .vms
                .values()
                .filter(|one| one.removed.is_none() && one.tags.get("backstay-run") == Some(&run.to_string()))
                .map(|one| {
                    let power = if one.power == Power::On { "runs" } else { "is off" };
                    let networks = one.nics.iter().filter_map(|nic| state.networks.get(&nic.network));
                    let networks: Vec<_> = networks.map(|network| network.name.as_str()).collect();
                    format!("{} {power} at CloudStack, in {}", one.name, networks.join(", "))
                })
                .collect();
            if copies.len() != usize::from(!came_home) {
                wrong.push(format!("there are {} copies of {vm}", copies.len()));
            }
            lines.push(match copies.is_empty() {
                true => "copy    there is none any more".to_owned(),
                false => format!("copy    {}", copies.join("; ")),
            });
            lines
        });
        for fired in self.centre.truth().fired() {
            let what = match &fired.rule.fault {
                Fault::DoneThenDropped => "was done, and its answer was lost",
                _ => "failed",
            };
            let Rule { system, command, .. } = &fired.rule;
            let times = if fired.times == 1 { "once".to_owned() } else { format!("{} times", fired.times) };
            lines.push(format!("fault   {command} ({system}) {what}, {times}"));
        }
        let violations = self.centre.truth().violations();
        lines.push(match violations.first() {
            None => "rules   I1 to I16 held at every change".to_owned(),
            Some(one) => {
                format!("rules   {} are broken, first {}: {}", violations.len(), one.invariant, one.what)
            }
        });
        wrong.extend(violations.into_iter().map(|one| format!("{} is broken: {}", one.invariant, one.what)));
        Truth { lines, wrong: wrong.into_iter().next() }
    }
}

/// The origin of an address.
fn origin(url: &str) -> String {
    url::Url::parse(url).map(|url| url.origin().ascii_serialization()).unwrap_or_default()
}
