//! Logs go to stderr; what a command is asked for goes to stdout.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;
use crate::config::LogSettings;

/// From here on everything that is logged is seen.
pub(crate) fn begin(settings: &LogSettings) {
    let filter = EnvFilter::builder().parse_lossy(&settings.filter);
    let to_people = match settings.format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber is refused; there is only this one.
    let _ = if to_people {
        log.with_ansi(std::io::stderr().is_terminal() && crate::tree::wants_colour()).try_init()
    } else {
        log.json().flatten_event(true).try_init()
    };
}
