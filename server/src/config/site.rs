//! The systems between which machines are moved. They are there where `cloudstack.url` says so; without it there is neither
//! the workflow nor its activities.

use std::path::Path;
use std::sync::Arc;

use backstay_activities::cloudstack::CloudStack;
use backstay_activities::daemon::Daemon;
use backstay_activities::linstor::Linstor;
use backstay_activities::secrets::Secrets;
use backstay_activities::site::Site;
use backstay_activities::v2v::V2v;
use backstay_activities::vma::Vma;
use backstay_engine::Span;
use backstay_workflows::failover;

use super::Config;

/// A setting, and what is wrong with it.
pub(crate) type Wrong = (String, String);

impl Config {
    /// Whether there is a site.
    pub(crate) fn has_site(&self) -> bool {
        !self.cloudstack.url.is_empty()
    }

    /// The site, if there is one. Nothing is called.
    pub(crate) fn site(&self, secrets: &Arc<dyn Secrets>) -> Result<Option<Site>, Wrong> {
        if !self.has_site() {
            return Ok(None);
        }
        if self.site.oma.is_empty() {
            let what = "is empty: it is the id of the appliance's machine at CloudStack".to_owned();
            return Err(("site.oma".to_owned(), what));
        }
        self.fits_the_failover()?;
        let secrets = || Arc::clone(secrets);
        let Self { cloudstack, volume_daemon, vma, linstor, v2v, site, .. } = self;
        Ok(Some(Site {
            cloudstack: CloudStack::new(cloudstack.clone(), secrets())
                .map_err(of("cloudstack", cloudstack.ca.as_deref()))?,
            daemon: Daemon::new(volume_daemon.clone(), secrets())
                .map_err(of("volume_daemon", volume_daemon.ca.as_deref()))?,
            vma: Vma::new(vma.clone(), secrets()).map_err(of("vma", vma.ca.as_deref()))?,
            linstor: (!linstor.url.is_empty())
                .then(|| Linstor::new(linstor.clone(), secrets()))
                .transpose()
                .map_err(of("linstor", linstor.ca.as_deref()))?,
            v2v: (!v2v.program.as_os_str().is_empty())
                .then(|| V2v::new(v2v.clone()))
                .transpose()
                .map_err(of("v2v", None))?,
            settings: site.clone(),
        }))
    }
}

impl Config {
    /// What is given more time than the steps of a failover have would be cut off in the middle, each time anew.
    fn fits_the_failover(&self) -> Result<(), Wrong> {
        let Self { cloudstack, volume_daemon, vma, v2v, site, .. } = self;
        for (setting, span, most, of) in [
            ("cloudstack.job_deadline", cloudstack.job_deadline, failover::ATTEMPT, "a step"),
            (
                "cloudstack.snapshot_deadline",
                cloudstack.snapshot_deadline,
                failover::SNAPSHOT,
                "the snapshots",
            ),
            ("volume_daemon.attach_deadline", volume_daemon.attach_deadline, failover::ATTEMPT, "a step"),
            ("volume_daemon.detach_deadline", volume_daemon.detach_deadline, failover::ATTEMPT, "a step"),
            ("vma.power_off_wait", vma.power_off_wait, failover::ATTEMPT, "a step"),
            ("vma.power_on_wait", vma.power_on_wait, failover::ATTEMPT, "a step"),
            ("vma.progress_stall", vma.progress_stall, failover::A_TRY, "a copy"),
            ("v2v.deadline", v2v.deadline, failover::CONVERSION, "the conversion"),
            ("site.settle", site.settle, failover::ATTEMPT, "a step"),
            ("site.others_within", site.others_within, failover::ATTEMPT, "a step"),
        ] {
            if span.0 >= most {
                let what = format!("is {span}: an attempt at {of} of a failover has {} in all", Span(most));
                return Err((setting.to_owned(), what));
            }
        }
        if !(1..failover::PATIENCE).contains(&site.reverts) {
            let most = failover::PATIENCE - 1;
            let what = format!(
                "is {}: it is from 1 to {most}, as the undo of a disk is tried {} times in all",
                site.reverts,
                failover::PATIENCE
            );
            return Err(("site.reverts".to_owned(), what));
        }
        Ok(())
    }
}

/// What a client says of its settings, with the name of the setting in front.
fn of(section: &'static str, ca: Option<&Path>) -> impl FnOnce(String) -> Wrong {
    let ca = ca.map(|ca| ca.display().to_string());
    move |said| match said.split_once(' ') {
        Some((key, what)) if key.starts_with(&format!("{section}.")) => (key.to_owned(), what.to_owned()),
        _ if ca.is_some_and(|ca| said.contains(&ca)) => {
            (format!("{section}.ca"), format!("is wrong: {said}"))
        }
        _ => (format!("{section}.url"), format!("is wrong: {said}")),
    }
}
