//! What broke the system that this one takes the place of, and must never come again. The table of all of it is
//! `docs/breaks.md`; each test here is named there.

mod checks;
mod copies;
mod disks;
mod machines;
mod plans;
mod snapshots;
mod table;
