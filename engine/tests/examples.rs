//! The examples are run, not only compiled.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::process::Command;

/// Examples lie beside the folder of the test programs.
fn example(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().unwrap().parent().unwrap().join("examples").join(name)
}

#[test]
fn the_trip_is_booked_and_given_back() {
    let run = Command::new(example("trip")).env_remove("DATABASE_URL").output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("a trip: succeeded, 3 bookings"), "{said}");
    assert!(said.contains("a trip on Sunday: rolled_back, still 3 bookings"), "{said}");
}
