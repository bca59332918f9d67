//! What each row is found by. A tie that is left out here is not found; a debug build compares the invariants with a look at
//! everything, so a tie that they need shows in any test.

use std::collections::BTreeMap;

use super::table::{Row, Tie};
use super::things::{Network, Power, Snapshot, Source, Vm, VmSnapshot, VmState, Volume};
use crate::cloudstack::JobRow;
use crate::daemon::{Export, Mapping, Operation};

fn tagged(tags: &BTreeMap<String, String>) -> impl Iterator<Item = Tie> {
    tags.iter().map(|(key, value)| Tie::Tag(key.clone(), value.clone()))
}

impl Row for Vm {
    fn ties(&self) -> Vec<Tie> {
        let unlike = matches!(
            (self.state, self.power),
            (VmState::Stopped, Power::On) | (VmState::Running, Power::Off)
        );
        let host = self.host.filter(|_| self.power == Power::On);
        tagged(&self.tags)
            .chain(self.nics.iter().map(|nic| Tie::Network(nic.network)))
            .chain(host.map(Tie::RunsOn))
            .chain(unlike.then_some(Tie::Unlike))
            .chain([Tie::Name(self.name.to_ascii_lowercase())])
            .collect()
    }
}

impl Row for Volume {
    fn ties(&self) -> Vec<Tie> {
        tagged(&self.tags)
            .chain(self.attached.map(|at| Tie::Attached(at.vm)))
            .chain(self.plugged.iter().copied().map(Tie::Plugged))
            .chain(self.replica_of.as_ref().map(|disk| Tie::Source(disk.source.clone())))
            .chain(self.adrift_since.filter(|_| self.removed.is_none()).map(|_| Tie::Adrift))
            .chain([Tie::Resource(crate::linstor::resource(self))])
            .collect()
    }
}

impl Row for Snapshot {
    fn ties(&self) -> Vec<Tie> {
        tagged(&self.tags).chain([Tie::Volume(self.volume)]).collect()
    }
}

impl Row for VmSnapshot {
    fn ties(&self) -> Vec<Tie> {
        let volumes = self.contents.keys().copied().map(Tie::Volume);
        tagged(&self.tags).chain(volumes).chain([Tie::Vm(self.vm)]).collect()
    }
}

impl Row for Network {
    fn ties(&self) -> Vec<Tie> {
        Vec::new()
    }
}

impl Row for Source {
    fn ties(&self) -> Vec<Tie> {
        vec![Tie::Path(self.path.clone())]
    }
}

impl Row for JobRow {
    fn ties(&self) -> Vec<Tie> {
        let pending = (self.status == 0).then_some(Tie::Pending);
        pending.into_iter().chain(self.completed.map(Tie::Over)).collect()
    }
}

impl Row for Operation {
    fn ties(&self) -> Vec<Tie> {
        vec![Tie::Operation(self.id), Tie::VolumeName(self.volume_id.clone())]
    }
}

impl Row for Mapping {
    fn ties(&self) -> Vec<Tie> {
        let volume = Tie::VolumeName(self.volume_uuid.clone());
        vec![volume, Tie::VmName(self.vm_id.clone()), Tie::Device(self.device_path.clone())]
    }
}

impl Row for Export {
    fn ties(&self) -> Vec<Tie> {
        vec![Tie::VolumeName(self.volume_id.clone()), Tie::Export(self.export_name.clone())]
    }
}
