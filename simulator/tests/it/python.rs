//! Clients that nobody here wrote, from their registry.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use backstay_simulator::world::estate;
use serde_json::json;

use crate::client::site;

/// A Python with the clients in it, made once. Without one the test fails, unless it is told that there is none.
pub fn python() -> Option<PathBuf> {
    static MADE: OnceLock<Option<PathBuf>> = OnceLock::new();
    MADE.get_or_init(|| match make() {
        Ok(python) => Some(python),
        Err(why) if std::env::var_os("BACKSTAY_WITHOUT_PYTHON").is_some() => {
            eprintln!("skipped: {why}");
            None
        }
        Err(why) => panic!(
            "{why}. The simulator is tested against Python clients from PyPI; where that is impossible, \
             BACKSTAY_WITHOUT_PYTHON=1 leaves these tests out"
        ),
    })
    .clone()
}

fn make() -> Result<PathBuf, String> {
    let wanted = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/requirements.txt");
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let place = tmp.join("simulator-clients");
    let is_made = || std::fs::read(place.join("requirements.txt")).ok() == std::fs::read(&wanted).ok();
    if is_made() {
        return Ok(place.join("bin/python"));
    }
    // Made beside it and put in its place whole: another test run may be at it too.
    let beside = tmp.join(format!("simulator-clients-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&beside);
    let run = |program: &Path, args: &[&str], wrong: &str| match Command::new(program).args(args).output() {
        Ok(ran) if ran.status.success() => Ok(()),
        Ok(ran) => {
            let said = [ran.stdout, ran.stderr].concat();
            Err(format!("{wrong}: {}", String::from_utf8_lossy(&said)))
        }
        Err(error) => Err(format!("{wrong}: {error}")),
    };
    let venv = ["-m", "venv", &beside.to_string_lossy()];
    run(Path::new("python3"), &venv, "python3 cannot make a venv (package python3-venv)")?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        "20",
    ];
    let listed = wanted.to_string_lossy();
    let args = [&pip[..], &["-r", &listed]].concat();
    run(&beside.join("bin/python"), &args, "the clients could not be installed")?;
    std::fs::copy(&wanted, beside.join("requirements.txt")).map_err(|error| error.to_string())?;
    if !is_made() {
        let _ = std::fs::remove_dir_all(&place);
    }
    if std::fs::rename(&beside, &place).is_err() {
        // Another one was faster.
        let _ = std::fs::remove_dir_all(&beside);
    }
    if is_made() {
        Ok(place.join("bin/python"))
    } else {
        Err(format!("{} could not be put in place", place.display()))
    }
}

/// Runs a script of `tests/python` with this as its argument.
pub async fn run(script: &'static str, argument: serde_json::Value) {
    let ran = tokio::task::spawn_blocking(move || {
        let python = python()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
        Some(Command::new(python).arg(script).arg(argument.to_string()).output().unwrap())
    })
    .await
    .unwrap();
    let Some(ran) = ran else { return };
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}\n{}", said(&ran.stdout), said(&ran.stderr));
    assert!(said(&ran.stdout).contains("all of it held"), "{}", said(&ran.stdout));
}

#[tokio::test]
async fn the_python_client_of_cloudstack_reads_and_changes_things() {
    let site = site(|_| ()).await;
    let volume = estate::replica("web-01", 2000);
    run(
        "cloudstack.py",
        json!({
            "endpoint": site.site.cloudstack_url(), "key": site.cloud.key, "secret": site.cloud.secret,
            "oma": site.oma(), "volume": volume, "zone": estate::id("zone", "zone-1"),
            "offering": estate::id("service-offering", "custom"), "template": estate::id("template", "tiny"),
            "network": estate::id("network", "test-lan"),
        }),
    )
    .await;
    if python().is_some() {
        assert_eq!(site.site.truth().holders(volume), [site.oma().parse().unwrap()].into());
        assert_eq!(site.site.truth().effect("deployVirtualMachine"), 1);
        assert_eq!(site.volume(volume).content.foreign, [""; 0], "the revert took back what its guest wrote");
    }
}
