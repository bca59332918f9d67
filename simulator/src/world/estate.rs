//! What the data centre starts with: a believable estate of a few dozen source VMs, their replicas on the OMA, and the
//! zones, networks, templates and offerings that a failover needs, with a few of each that it must refuse.
//!
//! Names and ids are the same for every seed (an id is a v5 uuid of what it is the id of), so that a test can name things:
//! `estate::id("volume", "sql-01/2001")`. A seed changes sizes, hardware addresses and how far the disks have been written.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::State;
use super::things::{
    Account, Attachment, Content, DiskRef, Fixture, Host, Network, Nic, Pool, Power, Source, SourceDisk,
    SourceNic, Vm, VmState, Volume, VolumeState,
};

/// One GiB.
pub const GIB: u64 = 1 << 30;

/// The id of something: the same in every estate.
#[must_use]
pub fn id(kind: &str, name: &str) -> Uuid {
    let space = Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"simulator.backstay");
    Uuid::new_v5(&space, format!("{kind}/{name}").as_bytes())
}

/// The volume that a disk of a source is replicated to.
#[must_use]
pub fn replica(source: &str, key: u32) -> Uuid {
    id("volume", &format!("{source}/{key}"))
}

/// The instance id of a source.
#[must_use]
pub fn source(name: &str) -> String {
    id("source", name).to_string()
}

/// The whole estate.
#[must_use]
pub fn new(seed: u64) -> State {
    Builder::new(seed).with(ESTATE)
}

/// A few VMs, for tests: one disk, two with Windows and UEFI, three, and eight.
#[must_use]
pub fn small() -> State {
    let few = ["web-01", "sql-01", "db-01", "archive-01"];
    let guests: Vec<Guest> = ESTATE.iter().filter(|guest| few.contains(&guest.name)).copied().collect();
    Builder::new(1).with(&guests)
}

/// One with `count` Linux VMs and as many Windows VMs of `disks` disks each: `linux-001`, `windows-001`, …
#[must_use]
pub fn of(count: usize, disks: usize) -> State {
    let sizes: &'static [u64] = SIZES.get(..disks).unwrap_or(SIZES);
    let pair = |number: usize| {
        let linux = (format!("linux-{number:03}"), Guest { disks: sizes, ..LINUX });
        [linux, (format!("windows-{number:03}"), Guest { disks: sizes, ..WINDOWS })]
    };
    let mut state = Builder::new(1).with_named((1..=count).flat_map(pair).collect());
    // More than a VM can have: this one is for measuring, not for believing.
    state.settings.cloudstack.most_data_disks = state.volumes.len();
    // Room for all of them at once: three terabytes are 768 machines, and the next one waits for ever.
    state.hosts.iter_mut().for_each(|host| host.memory_mb = 1 << 30);
    state
}

/// One from a file, as [`write`] leaves it.
///
/// # Errors
/// The file cannot be read, is not an estate, or names things that it does not have.
pub fn read(path: &Path) -> Result<State> {
    let text =
        std::fs::read(path).with_context(|| format!("the estate {} cannot be read", path.display()))?;
    let estate: State =
        serde_json::from_slice(&text).with_context(|| format!("{} is not an estate", path.display()))?;
    check(&estate).with_context(|| format!("the estate {} does not hold together", path.display()))?;
    Ok(estate)
}

/// Leaves it in a file, to be changed by hand.
///
/// # Errors
/// The file cannot be written.
pub fn write(estate: &State, path: &Path) -> Result<()> {
    let text = serde_json::to_vec_pretty(estate)?;
    std::fs::write(path, text).with_context(|| format!("the estate cannot be written to {}", path.display()))
}

fn check(estate: &State) -> Result<()> {
    ensure!(estate.vms.contains_key(&estate.oma), "its OMA {} is none of its VMs", estate.oma);
    for source in estate.sources.values() {
        for disk in &source.disks {
            let wanted = DiskRef { source: source.id.clone(), key: disk.key };
            let replica = estate.volumes.get(&disk.replica);
            ensure!(
                replica.is_some_and(
                    |volume| volume.replica_of.as_ref() == Some(&wanted) && volume.size >= disk.size
                ),
                "disk {} of {} has no replica that names it and is as large",
                disk.key,
                source.name
            );
        }
    }
    for volume in estate.volumes.values() {
        ensure!(volume.plugged.len() <= 1, "volume {} is plugged into several VMs", volume.name);
        let attached = volume.attached.map(|at| at.vm);
        ensure!(
            attached == volume.plugged.first().copied(),
            "volume {} is not where CloudStack thinks",
            volume.name
        );
    }
    Ok(())
}

/// A source VM in one line.
#[derive(Clone, Copy)]
struct Guest {
    name: &'static str,
    os: &'static str,
    firmware: &'static str,
    /// GiB of each disk.
    disks: &'static [u64],
    networks: &'static [&'static str],
    cpus: u32,
    memory_gib: u32,
    tools: &'static str,
    on: bool,
}

const SIZES: &[u64] = &[40, 100, 100, 50, 20, 20, 10, 10];
const LINUX: Guest = Guest {
    name: "",
    os: "ubuntu64Guest",
    firmware: "bios",
    disks: &[40],
    networks: &["LAN-VLAN10"],
    cpus: 2,
    memory_gib: 4,
    tools: "toolsOk",
    on: true,
};
const WINDOWS: Guest =
    Guest { os: "windows2019srv_64Guest", firmware: "efi", disks: &[80], cpus: 4, memory_gib: 8, ..LINUX };

/// The estate. Among the ordinary there is what surprises: a name with a space, one that is the beginning of another, a guest
/// without tools, one whose tools are old, one that is off already, and one with eight disks.
#[rustfmt::skip]
const ESTATE: &[Guest] = &[
    Guest { name: "web-01", ..LINUX },
    Guest { name: "web-02", ..LINUX },
    Guest { name: "web-03", os: "debian12_64Guest", firmware: "efi", ..LINUX },
    Guest { name: "web-011", disks: &[30], ..LINUX },
    Guest { name: "proxy-01", disks: &[20], networks: &["DMZ-VLAN20", "LAN-VLAN10"], ..LINUX },
    Guest { name: "app-01", disks: &[40, 60], cpus: 4, memory_gib: 8, ..LINUX },
    Guest { name: "app-02", disks: &[40, 60], cpus: 4, memory_gib: 8, ..LINUX },
    Guest { name: "app-03", cpus: 4, memory_gib: 8, firmware: "efi", ..LINUX },
    Guest { name: "app-04", cpus: 4, memory_gib: 8, tools: "toolsOld", ..LINUX },
    Guest { name: "db-01", os: "rhel8_64Guest", disks: &[40, 200, 100], networks: &["DB-VLAN30"], cpus: 8, memory_gib: 32, ..LINUX },
    Guest { name: "db-02", os: "rhel8_64Guest", disks: &[40, 200], networks: &["DB-VLAN30"], cpus: 8, memory_gib: 32, ..LINUX },
    Guest { name: "db-03", os: "rhel9_64Guest", firmware: "efi", disks: &[40, 300, 100], networks: &["DB-VLAN30"], cpus: 8, memory_gib: 64, ..LINUX },
    Guest { name: "cache-01", disks: &[20], memory_gib: 16, ..LINUX },
    Guest { name: "queue-01", disks: &[20, 40], ..LINUX },
    Guest { name: "mail-01", os: "debian12_64Guest", disks: &[40, 250], networks: &["DMZ-VLAN20"], ..LINUX },
    Guest { name: "archive-01", os: "debian12_64Guest", disks: &[40, 500, 500, 500, 500, 250, 250, 100], memory_gib: 16, ..LINUX },
    Guest { name: "build-01", disks: &[40, 200], cpus: 16, memory_gib: 32, ..LINUX },
    Guest { name: "monitor-01", tools: "toolsNotInstalled", ..LINUX },
    Guest { name: "dns-01", disks: &[10], cpus: 1, memory_gib: 1, ..LINUX },
    Guest { name: "retired-app-01", disks: &[40], on: false, tools: "toolsNotRunning", ..LINUX },
    Guest { name: "dc-01", ..WINDOWS },
    Guest { name: "sql-01", disks: &[80, 200], networks: &["DB-VLAN30"], cpus: 8, memory_gib: 64, ..WINDOWS },
    Guest { name: "sql-02", disks: &[80, 200, 200], networks: &["DB-VLAN30"], cpus: 8, memory_gib: 64, ..WINDOWS },
    Guest { name: "files-01", disks: &[80, 500], ..WINDOWS },
    Guest { name: "files-02", os: "windows9Server64Guest", firmware: "bios", disks: &[60, 300], ..WINDOWS },
    Guest { name: "exchange-01", disks: &[100, 200, 200, 200], networks: &["DMZ-VLAN20", "LAN-VLAN10"], cpus: 8, memory_gib: 48, ..WINDOWS },
    Guest { name: "terminal-01", os: "windows9Server64Guest", firmware: "bios", disks: &[120], cpus: 8, memory_gib: 32, ..WINDOWS },
    Guest { name: "print-01", os: "windows8Server64Guest", firmware: "bios", disks: &[60], tools: "toolsOld", ..WINDOWS },
    Guest { name: "Payroll Server 2016", os: "windows9Server64Guest", disks: &[80, 40], ..WINDOWS },
    Guest { name: "crm-01", os: "windows2022srvNext_64Guest", disks: &[80, 120], ..WINDOWS },
    Guest { name: "backup-proxy-01", disks: &[80, 20], tools: "toolsNotRunning", ..WINDOWS },
];

/// Port groups have their counterparts: first for a live failover, then for a test.
struct Lan {
    name: &'static str,
    kind: &'static str,
    state: &'static str,
    domain: &'static str,
    prefix: Option<&'static str>,
    production: bool,
}

#[rustfmt::skip]
const LANS: &[Lan] = &[
    Lan { name: "prod-lan", kind: "Isolated", state: "Implemented", domain: "prod.example", prefix: Some("10.10.0."), production: true },
    Lan { name: "prod-dmz", kind: "Isolated", state: "Implemented", domain: "dmz.example", prefix: Some("10.20.0."), production: true },
    Lan { name: "prod-db", kind: "Shared", state: "Setup", domain: "db.example", prefix: Some("10.30.0."), production: true },
    Lan { name: "prod-trunk", kind: "L2", state: "Implemented", domain: "", prefix: None, production: true },
    Lan { name: "test-lan", kind: "Isolated", state: "Implemented", domain: "test.example", prefix: Some("10.110.0."), production: false },
    Lan { name: "test-dmz", kind: "Isolated", state: "Allocated", domain: "test-dmz.example", prefix: Some("10.120.0."), production: false },
    Lan { name: "test-db", kind: "Isolated", state: "Allocated", domain: "test-db.example", prefix: Some("10.130.0."), production: false },
    Lan { name: "test-l2", kind: "L2", state: "Setup", domain: "", prefix: None, production: false },
    Lan { name: "broken-lan", kind: "Isolated", state: "Shutdown", domain: "broken.example", prefix: Some("10.66.0."), production: false },
];

struct Builder {
    seed: u64,
    now: DateTime<Utc>,
    zone: Uuid,
}

const ACCOUNT: &str = "dr-operations";

impl Builder {
    fn new(seed: u64) -> Self {
        // A fixed birthday: an estate of one seed is the same on every day.
        let now = DateTime::from_timestamp(1_767_225_600, 0).unwrap_or_default();
        Self { seed, now, zone: id("zone", "zone-1") }
    }

    fn with(self, guests: &[Guest]) -> State {
        self.with_named(guests.iter().map(|guest| (guest.name.to_owned(), *guest)).collect())
    }

    fn with_named(self, guests: Vec<(String, Guest)>) -> State {
        let mut luck = Luck(self.seed);
        let oma = self.vm("oma", "OMA (replication appliance)", "prod-lan", "medium", &mut luck);
        let mut volumes = vec![self.root_of(&oma, 100)];
        let mut sources = BTreeMap::new();
        // Device 3 is the CD's.
        let mut slots = (1..).filter(|slot| *slot != 3);
        for (name, guest) in &guests {
            let source = self.source(name, guest, &mut luck);
            for disk in &source.disks {
                volumes.push(self.replica(
                    &source,
                    disk,
                    oma.id,
                    slots.next().unwrap_or_default(),
                    &mut luck,
                ));
            }
            sources.insert(source.id.clone(), source);
        }
        // Somebody else's: one whose name a search for `web-01` finds too, and one that nobody may touch.
        let mut vms = BTreeMap::from([(oma.id, oma.clone())]);
        for (name, display) in
            [("web-01-old", "web-01 as it was before the move"), ("jump-host", "The operators' jump host")]
        {
            let vm = self.vm(name, display, "prod-lan", "small", &mut luck);
            volumes.push(self.root_of(&vm, 20));
            vms.insert(vm.id, vm);
        }
        State {
            oma: oma.id,
            zones: vec![self.zone_of("zone-1", "Enabled"), self.zone_of("zone-2", "Disabled")],
            domains: vec![fixture("domain", "ROOT", &json!({"level": 0, "path": "ROOT", "haschild": false}))],
            accounts: accounts(),
            hosts: hosts(),
            pools: pools(),
            templates: self.templates(),
            service_offerings: service_offerings(),
            disk_offerings: disk_offerings(),
            configurations: configurations(),
            networks: LANS.iter().map(|lan| (id("network", lan.name), self.network(lan))).collect(),
            vms: vms.into(),
            volumes: volumes.into_iter().map(|volume| (volume.id, volume)).collect(),
            sources: sources.into(),
            ..State::default()
        }
    }

    fn source(&self, name: &str, guest: &Guest, luck: &mut Luck) -> Source {
        let path = format!("/DatabanxDC/vm/{name}");
        let disks = guest.disks.iter().zip(0_u32..).map(|(size, at)| SourceDisk {
            key: 2000 + at,
            label: format!("Hard disk {}", at + 1),
            size: size * GIB,
            version: 20 + luck.below(400),
            tracking: id("tracking", &format!("{name}/{at}")),
            replica: replica(name, 2000 + at),
        });
        let disks = disks.collect();
        let nics = guest.networks.iter().zip(1..).map(|(network, at)| SourceNic {
            label: format!("Network adapter {at}"),
            network: (*network).to_owned(),
            mac: luck.mac("00:50:56"),
        });
        Source {
            id: source(name),
            name: name.to_owned(),
            path,
            guest_os: guest.os.to_owned(),
            windows: guest.os.starts_with("windows"),
            firmware: guest.firmware.to_owned(),
            power: if guest.on { Power::On } else { Power::Off },
            going_down: None,
            tools: guest.tools.to_owned(),
            cpus: guest.cpus,
            memory_mb: guest.memory_gib * 1024,
            disks,
            nics: nics.collect(),
            snapshots: Vec::new(),
        }
    }

    /// Replication ran a while ago: what the guest wrote since is not here yet.
    fn replica(&self, source: &Source, disk: &SourceDisk, oma: Uuid, slot: u32, luck: &mut Luck) -> Volume {
        let behind = if source.power == Power::On { luck.below(10) } else { 0 };
        Volume {
            content: Content { replicated: disk.version - behind, ..Content::default() },
            replica_of: Some(DiskRef { source: source.id.clone(), key: disk.key }),
            ..self.volume(
                disk.replica,
                format!("{}-disk-{}", source.name, disk.key - 2000),
                disk.size,
                oma,
                slot,
            )
        }
    }

    fn root_of(&self, vm: &Vm, gib: u64) -> Volume {
        let name = format!("ROOT-{}", vm.name);
        Volume { root: true, ..self.volume(id("volume", &name), name, gib * GIB, vm.id, 0) }
    }

    fn volume(&self, volume: Uuid, name: String, size: u64, vm: Uuid, device: u32) -> Volume {
        Volume {
            id: volume,
            name,
            path: volume.to_string(),
            state: VolumeState::Ready,
            root: false,
            pool: Some(id("pool", "linstor-primary")),
            attached: Some(Attachment { vm, device }),
            plugged: [vm].into(),
            size,
            zone: self.zone,
            account: ACCOUNT.to_owned(),
            content: Content::default(),
            replica_of: None,
            tags: BTreeMap::new(),
            created: self.now,
            removed: None,
            adrift_since: None,
        }
    }

    fn vm(&self, name: &str, display_name: &str, network: &str, offering: &str, luck: &mut Luck) -> Vm {
        let address = format!("10.10.0.{}", 10 + luck.below(200));
        Vm {
            id: id("vm", name),
            name: name.to_owned(),
            display_name: display_name.to_owned(),
            group: None,
            state: VmState::Running,
            power: Power::On,
            host: Some(id("host", "kvm-01")),
            hypervisor: "KVM".to_owned(),
            backup_offering: None,
            zone: self.zone,
            account: ACCOUNT.to_owned(),
            template: Some(id("template", "tiny")),
            offering: id("service-offering", offering),
            cpus: 2,
            memory_mb: 4096,
            boot_type: "BIOS".to_owned(),
            nics: vec![Nic {
                id: id("nic", name),
                network: id("network", network),
                mac: luck.mac("1e:00:aa"),
                ip: Some(address),
                default: true,
            }],
            details: BTreeMap::new(),
            tags: BTreeMap::new(),
            created: self.now - TimeDelta::days(200),
            removed: None,
            boots: 1,
        }
    }

    fn network(&self, lan: &Lan) -> Network {
        Network {
            id: id("network", lan.name),
            name: lan.name.to_owned(),
            kind: lan.kind.to_owned(),
            state: lan.state.to_owned(),
            domain: lan.domain.to_owned(),
            prefix: lan.prefix.map(str::to_owned),
            production: lan.production,
            zone: self.zone,
            tags: BTreeMap::new(),
        }
    }

    fn zone_of(&self, name: &str, allocation: &str) -> Fixture {
        let more = json!({"networktype": "Advanced", "allocationstate": allocation, "localstorageenabled": false,
            "securitygroupsenabled": false, "dhcpprovider": "VirtualRouter"});
        fixture("zone", name, &more)
    }

    fn templates(&self) -> Vec<Fixture> {
        // The root of a new VM is a blank that is dropped at once: the smaller the better. The size is its least size.
        [("tiny", GIB, true, "Linux"), ("windows-base", 100 * GIB, true, "Windows"), ("still-downloading", GIB, false, "Linux")]
            .map(|(name, size, ready, os)| {
                let status = if ready { "Download Complete" } else { "42% Downloaded" };
                let more = json!({"displaytext": name, "isready": ready, "size": size, "physicalsize": size / 2,
                    "hypervisor": "KVM", "format": "QCOW2", "templatetype": "USER", "ostypename": os, "status": status,
                    "ostypeid": id("os", os), "isfeatured": true, "ispublic": true, "isextractable": false,
                    "passwordenabled": false, "zoneid": self.zone, "zonename": "zone-1", "account": ACCOUNT,
                    "domain": "ROOT", "domainid": id("domain", "ROOT")});
                fixture("template", name, &more)
            })
            .into()
    }
}

/// The first signs for the OMA and is a root admin; the second is anybody's.
fn accounts() -> Vec<Account> {
    [(ACCOUNT, true), ("tenant-a", false)]
        .map(|(name, root_admin)| Account {
            id: id("account", name),
            name: name.to_owned(),
            user: id("user", name),
            domain: id("domain", "ROOT"),
            root_admin,
            key: format!("pretend-key-of-{name}"),
            secret: format!("pretend-secret-of-{name}"),
            expired: false,
            limits: BTreeMap::new(),
        })
        .into()
}

fn hosts() -> Vec<Host> {
    ["kvm-01", "kvm-02", "kvm-03"]
        .map(|name| Host {
            id: id("host", name),
            name: name.to_owned(),
            state: "Up".to_owned(),
            memory_mb: 1 << 20,
        })
        .into()
}

/// All replicas lie on the first; the others are what must not be met.
fn pools() -> Vec<Pool> {
    let pool = |name: &str, cluster: Option<&str>| Pool {
        id: id("pool", name),
        name: name.to_owned(),
        cluster: cluster.map(|name| id("cluster", name)),
        local: false,
        managed: false,
        hypervisor: "KVM".to_owned(),
    };
    vec![
        pool("linstor-primary", None),
        pool("nfs-east", Some("east")),
        pool("nfs-west", Some("west")),
        Pool { local: true, ..pool("kvm-01-disks", None) },
        Pool { managed: true, ..pool("array", None) },
        Pool { hypervisor: "XenServer".to_owned(), ..pool("xen-shared", None) },
    ]
}

/// Those that a failover has to know, with the values that CloudStack ships.
fn configurations() -> BTreeMap<String, String> {
    [
        ("kvm.snapshot.enabled", "false"),
        ("kvm.vmstoragesnapshot.enabled", "false"),
        ("vmsnapshot.max", "10"),
        ("expunge.delay", "86400"),
        ("expunge.interval", "86400"),
        ("job.expire.minutes", "1440"),
        ("job.cancel.threshold.minutes", "60"),
        ("default.page.size", "500"),
        ("api.throttling.enabled", "false"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn service_offerings() -> Vec<Fixture> {
    let fixed = |name: &str, cpus: u32, gib: u32| {
        let more = json!({"displaytext": name, "iscustomized": false, "cpunumber": cpus, "cpuspeed": 2000, "memory": gib * 1024,
            "issystem": false, "storagetype": "shared", "provisioningtype": "thin", "state": "Active"});
        fixture("service-offering", name, &more)
    };
    let custom = json!({"displaytext": "custom", "iscustomized": true, "issystem": false, "storagetype": "shared",
        "provisioningtype": "thin", "state": "Active"});
    vec![
        fixture("service-offering", "custom", &custom),
        fixed("small", 1, 2),
        fixed("medium", 2, 4),
        fixed("large", 8, 32),
    ]
}

fn disk_offerings() -> Vec<Fixture> {
    let of = |name: &str, custom: bool, gib: u64| {
        let more = json!({"displaytext": name, "iscustomized": custom, "disksize": gib, "storagetype": "shared",
            "provisioningtype": "thin", "state": "Active"});
        fixture("disk-offering", name, &more)
    };
    vec![of("custom", true, 0), of("100 GB", false, 100)]
}

fn fixture(kind: &str, name: &str, more: &Value) -> Fixture {
    let more = more.as_object().cloned().unwrap_or_else(Map::new);
    Fixture { id: id(kind, name), name: name.to_owned(), more }
}

/// A little luck that is the same for a seed (splitmix64): nothing here needs more.
struct Luck(u64);

impl Luck {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn mac(&mut self, vendor: &str) -> String {
        let [a, b, c, ..] = self.next().to_le_bytes();
        format!("{vendor}:{a:02x}:{b:02x}:{c:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estate_holds_together_and_is_the_same_for_a_seed() {
        let estate = new(7);
        check(&estate).unwrap();
        assert_eq!(serde_json::to_string(&estate).unwrap(), serde_json::to_string(&new(7)).unwrap());
        assert_ne!(serde_json::to_string(&estate).unwrap(), serde_json::to_string(&new(8)).unwrap());
        assert!(estate.sources.len() >= 24, "{} VMs are no estate", estate.sources.len());
        let disks = || estate.sources.values().map(|source| source.disks.len());
        assert_eq!((disks().min(), disks().max()), (Some(1), Some(8)));
        for firmware in ["bios", "efi"] {
            for windows in [true, false] {
                assert!(
                    estate
                        .sources
                        .values()
                        .any(|source| source.windows == windows && source.firmware == firmware)
                );
            }
        }
    }

    #[test]
    fn only_the_root_of_the_oma_is_at_its_device_0_and_none_is_at_3() {
        let estate = new(7);
        let at = |device| {
            let here = Some(Attachment { vm: estate.oma, device });
            estate.volumes.values().filter(|volume| volume.attached == here).collect::<Vec<_>>()
        };
        assert!(matches!(at(0).as_slice(), [root] if root.root && root.replica_of.is_none()));
        assert!(at(3).is_empty());
        // With fewer than KVM's most, each can come off and go back on.
        let held = estate.volumes.values().filter(|volume| !volume.root).count();
        assert!(held < estate.settings.cloudstack.most_data_disks, "the OMA holds {held}");
        let disks = estate.sources.values().flat_map(|source| &source.disks).count();
        let replicas = estate.volumes.values().filter(|volume| volume.replica_of.is_some()).count();
        assert_eq!(disks, replicas);
    }

    #[test]
    fn an_estate_that_names_what_it_does_not_have_is_refused() {
        let file = std::env::temp_dir().join(format!("estate-{}.json", Uuid::new_v4()));
        let mut estate = small();
        write(&estate, &file).unwrap();
        let again = read(&file).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&estate).unwrap());
        estate.volumes.remove(&replica("sql-01", 2001));
        write(&estate, &file).unwrap();
        let refusal = format!("{:#}", read(&file).unwrap_err());
        std::fs::remove_file(&file).unwrap();
        assert!(refusal.contains("disk 2001 of sql-01 has no replica"), "{refusal}");
    }
}
