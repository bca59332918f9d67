//! The OMA's devices.

use backstay_simulator::cloudstack;
use backstay_simulator::conversion::Device;
use backstay_simulator::world::Cause;
use backstay_simulator::world::estate::{self, GIB, replica};
use backstay_simulator::{Datacentre, Start};

use super::support::Site;

fn there(site: &Site) -> usize {
    std::fs::read_dir(site.devices.path()).unwrap().count()
}

#[tokio::test]
async fn a_device_is_there_exactly_while_its_volume_is_plugged() {
    let site = Site::small().await;
    let volume = replica("sql-01", 2001);
    let file = site.devices.path().join(format!("virtio-{}", &volume.simple().to_string()[..20]));
    let device: Device = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((device.volume, device.size), (volume, 200 * GIB));
    assert_eq!(format!("http://{}", device.control), site.centre.control_url());
    // The fourteen replicas and the OMA's own root.
    assert_eq!(there(&site), 15);

    cloudstack::perform(site.world(), "test", "detachVolume", &[("id", &volume.to_string())]).await.unwrap();
    assert!(!file.exists());
    assert_eq!(there(&site), 14);
    let params = [("id", volume.to_string()), ("virtualmachineid", site.oma().to_string())];
    let params: Vec<(&str, &str)> = params.iter().map(|(name, value)| (*name, value.as_str())).collect();
    cloudstack::perform(site.world(), "test", "attachVolume", &params).await.unwrap();
    assert!(file.exists());
}

/// The truth counts, not CloudStack's row.
#[tokio::test]
async fn a_device_follows_the_plug_and_not_the_row() {
    let site = Site::small().await;
    let volume = replica("web-01", 2000);
    let file = site.devices.path().join(format!("virtio-{}", &volume.simple().to_string()[..20]));
    let oma = site.oma();
    site.world().change(Cause::new("test", "unplug", ""), |state| state.unplug(volume, oma));
    assert!(!file.exists());
}

#[tokio::test]
async fn what_a_killed_data_centre_left_behind_is_swept_away_and_a_stopped_one_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let stale = directory.path().join("virtio-00000000000000000000");
    std::fs::write(&stale, "{}").unwrap();
    let mut state = estate::small();
    state.settings.device_dir = Some(directory.path().to_owned());
    let centre = Datacentre::start(Start::with(state)).await.unwrap();
    assert!(!stale.exists());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 15);
    drop(centre);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
