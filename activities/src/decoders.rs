//! What reads the answers of the real systems, fed with anything: by `fuzz/` for hours, by the ordinary tests for a moment.
//! Nothing may panic; and what says nothing of success is not taken for one.

use crate::{cloudstack, daemon, linstor, v2v, vma};

/// An answer of CloudStack.
pub fn cloudstack(bytes: &[u8]) {
    use cloudstack::envelope::{self, Said};
    let Ok(Said::Content(content)) = envelope::read(bytes) else { return };
    let _ = (
        envelope::started(content.clone()),
        envelope::success(&content),
        envelope::page::<cloudstack::Vm>(content.clone()),
        envelope::page::<cloudstack::Volume>(content.clone()),
        envelope::page::<cloudstack::Snapshot>(content.clone()),
        envelope::page::<cloudstack::VmSnapshot>(content.clone()),
        envelope::page::<cloudstack::Network>(content.clone()),
        envelope::page::<cloudstack::Template>(content.clone()),
        envelope::page::<cloudstack::ServiceOffering>(content.clone()),
        envelope::page::<cloudstack::PendingJob>(content.clone()),
        envelope::page::<cloudstack::Zone>(content.clone()),
        envelope::page::<cloudstack::DiskOffering>(content.clone()),
        envelope::page::<cloudstack::Account>(content.clone()),
        envelope::page::<cloudstack::Api>(content.clone()),
        envelope::page::<cloudstack::Tag>(content.clone()),
        envelope::page::<cloudstack::Configuration>(content.clone()),
        envelope::only::<cloudstack::Capabilities>(content.clone()),
    );
    if let Ok(cloudstack::Job::Succeeded(result)) = envelope::job(&content) {
        let fails = |map: &serde_json::Map<_, _>| map.contains_key("errorcode");
        assert!(!result.as_object().is_some_and(fails), "an error is no success");
    }
}

/// An answer of the Volume Daemon.
pub fn daemon(bytes: &[u8]) {
    if let Ok(operation) = daemon::operation(bytes) {
        let _ = (operation.volume(), operation.device_path());
        assert!(!operation.id.is_empty());
    }
    let _ = (
        daemon::operations(bytes),
        daemon::device(bytes),
        daemon::vm_volumes(bytes),
        daemon::export(bytes),
        daemon::exports(bytes),
        daemon::snapshots(bytes),
        daemon::health(bytes),
        daemon::error_text(bytes),
        daemon::message(bytes),
    );
    if let Ok(count) = daemon::forgotten(bytes) {
        assert!(count >= 0);
    }
}

/// An answer of the VMA.
pub fn vma(bytes: &[u8]) {
    if let Ok(progress) = vma::progress(bytes) {
        assert!(progress.percentage.is_finite());
    }
    if let Ok(state) = vma::power_state(bytes) {
        assert!(state.power_state == vma::Power::Off || state.power_state.may_run());
    }
    let _ = (
        vma::machines(bytes),
        vma::power_answer(bytes),
        vma::started(bytes),
        vma::job_status(bytes),
        vma::cbt_status(bytes),
        vma::spec_changes(bytes),
        vma::health(bytes),
    );
}

/// An answer of LINSTOR.
pub fn linstor(bytes: &[u8]) {
    if let Ok(entries) = linstor::entries(bytes) {
        assert!(!entries.is_empty());
        for entry in entries {
            let _ = (entry.ret_code.severity(), entry.ret_code.code());
        }
    }
    if let Ok(snapshots) = linstor::snapshots(bytes) {
        for one in snapshots {
            assert!(!one.is_whole() || one.snapshots.len() >= one.nodes.len().min(1));
        }
    }
    if let Ok(resources) = linstor::resources(bytes) {
        let _ = linstor::in_use(&resources);
    }
}

/// What virt-v2v-in-place writes.
pub fn v2v(bytes: &[u8]) {
    let verdict = v2v::verdict(bytes);
    assert!(verdict.text.chars().count() <= 600 && !verdict.text.contains('\n'));
    let _ = v2v::features(bytes);
}
