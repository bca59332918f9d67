//! Every figure that `/metrics` shows, and what it means.
//!
//! Counters are there from the start. One that appears only with its first event rises from nothing to one, which is
//! no rise for those who watch: the first lost lease would alarm nobody.

use metrics::Unit;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::trouble::Trouble;

enum Kind {
    Counter,
    /// One for each of these values of a label.
    Counters(&'static str, &'static [&'static str]),
    /// One for each of what comes, so there is none before it comes.
    Open,
    Gauge,
    Histogram,
}

use Kind::{Counter, Counters, Gauge, Histogram, Open};

const FIGURES: [(&str, Kind, &str); 29] = [
    ("backstay_runs", Gauge, "Live runs by status, of the whole installation."),
    (
        "backstay_silent_runs",
        Gauge,
        "Live runs that nothing will move, of the whole installation: there must be none.",
    ),
    ("backstay_runs_resident", Gauge, "Runs that this node has in memory."),
    ("backstay_calls_in_flight", Gauge, "Calls that this node has under way."),
    (
        "backstay_lease_age_seconds",
        Gauge,
        "Since when this node's lease was not renewed; it is over at node.lease.",
    ),
    ("backstay_lease_renewal_seconds", Gauge, "How long the last renewal of the lease took."),
    ("backstay_leases_lost_total", Counter, "Leases that this node has lost."),
    ("backstay_events_total", Counter, "Events that this node has written."),
    ("backstay_commit_seconds", Histogram, "How long a write to the journal takes."),
    ("backstay_batch_rows", Histogram, "Events in a write."),
    ("backstay_append_retries_total", Counter, "Writes to the journal that were tried again."),
    (
        "backstay_facts_moved_total",
        Counter,
        "Successes that changed a fact which was no longer as they had seen it.",
    ),
    (
        "backstay_attempts_total",
        Counters("outcome", &["succeeded", "failed"]),
        "Calls of activities that ended, by outcome.",
    ),
    ("backstay_attempt_seconds", Histogram, "How long calls of activities take."),
    (
        "backstay_actions_total",
        Counters("refused", &["yes", "no"]),
        "What was said to runs, by whether it was refused.",
    ),
    (
        "backstay_quarantined_total",
        Counter,
        "Runs that this node has left alone, because they cannot be read or killed nodes.",
    ),
    (
        "backstay_purged_runs_total",
        Counter,
        "Runs that this node has removed, because they were over for long.",
    ),
    ("backstay_pool_calls", Gauge, "Calls that this node has under way into a pool."),
    ("backstay_pool_waiting", Gauge, "Calls that wait on this node for a place in a pool."),
    ("backstay_pool_outage", Gauge, "1 while the target of a pool is down."),
    ("backstay_pool_outages_total", Open, "Outages of the target of a pool that this node has heard of."),
    ("backstay_http_requests_total", Open, "Requests that were answered, by method, path and status."),
    ("backstay_http_request_seconds", Histogram, "How long requests take."),
    (
        "backstay_requests_refused_total",
        Counter,
        "Requests that were refused: nobody knows who asks, or they may not.",
    ),
    ("backstay_connections", Gauge, "Open connections to the API."),
    (
        "backstay_connections_refused_total",
        Counters("why", &["full", "too many of one address"]),
        "Connections that found no room, by reason.",
    ),
    (
        "backstay_connections_cut_total",
        Counters("why", &["silent", "slow-head", "idle", "stalled", "gives-up"]),
        "Connections that were cut, by reason.",
    ),
    ("backstay_certificate_days_left", Gauge, "Days until the certificate is over."),
    ("backstay_certificate_refused_total", Counter, "New certificates that were not usable."),
];

/// Begins to keep them.
pub(crate) fn keep() -> Result<PrometheusHandle, Trouble> {
    let handle = PrometheusBuilder::new()
        .install_recorder()
        .map_err(|error| Trouble::failed(format!("The figures cannot be kept: {error}.")))?;
    for (name, kind, help) in FIGURES {
        let unit = if name.ends_with("_seconds") { Unit::Seconds } else { Unit::Count };
        match kind {
            Counter | Counters(..) | Open => metrics::describe_counter!(name, unit, help),
            Gauge => metrics::describe_gauge!(name, unit, help),
            Histogram => metrics::describe_histogram!(name, unit, help),
        }
        match kind {
            Counter => metrics::counter!(name).increment(0),
            Counters(label, values) => {
                for value in values {
                    metrics::counter!(name, label => *value).increment(0);
                }
            }
            Open | Gauge | Histogram => {}
        }
    }
    Ok(handle)
}
