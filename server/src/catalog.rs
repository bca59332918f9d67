//! The activities that this program has.

use backstay_engine::Registry;

/// All of them.
pub(crate) fn activities() -> Registry {
    crate::demo::activities()
}
