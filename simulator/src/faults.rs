//! What goes wrong, call by call.
//!
//! The fault for call n of a command depends on the seed, the system, the command and n, and on nothing else: a storm can be
//! played again. Every rule counts how often it fired, so that a test can insist that its fault was there at all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// One thing that can go wrong. The first group is `answer.rs`'s and every system has it; the rest is for a system to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Fault {
    /// Nothing is done; the answer is this status in the system's own form.
    Refused {
        /// The status.
        status: u16,
    },
    /// It is done; the answer is this status all the same.
    DoneThenRefused {
        /// The status.
        status: u16,
    },
    /// Nothing is done, and the connection ends without an answer.
    Dropped,
    /// It is done, and the connection ends without an answer.
    DoneThenDropped,
    /// It is done, and the answer never comes.
    DoneThenSilent,
    /// It is done, and the connection breaks in the middle of the body.
    Reset,
    /// It is done after this time.
    Slow {
        /// How long.
        ms: u64,
    },
    /// It is done, and the answer comes byte by byte.
    Trickle {
        /// Between two bytes.
        ms: u64,
    },
    /// It is done, and the answer is followed by this many spaces.
    Huge {
        /// How many.
        bytes: u64,
    },
    /// Nothing is done: too many requests.
    TooMany {
        /// When to come again.
        ms: u64,
    },
    /// Nothing is done: a proxy's page of HTML.
    Html {
        /// The status: 502 or 503, or a 200 which is worse.
        status: u16,
    },
    /// Nothing is done: the body says what went wrong, the status says 200.
    ErrorWith200,
    /// It is done as if nothing were wrong, and said nothing about: an empty body.
    Empty,

    /// CloudStack: the job runs, and nobody knows it when asked. The VMA: it is started anew in the middle of the copy, and
    /// knows none any more; when it is asked about a copy: it does not know it this once.
    JobLost,
    /// CloudStack: the job fails as cancelled, and the hypervisor does it all the same, this much later.
    JobCancelledButDone {
        /// How much.
        ms: u64,
    },
    /// CloudStack: the job fails, and nothing was done. The VMA: the copy fails in the middle.
    JobFails {
        /// Its result code.
        code: u16,
    },
    /// CloudStack: the job succeeds, and what it was about shows a transitional state for this long. The daemon: the operation
    /// is begun this much later.
    Lagging {
        /// How long.
        ms: u64,
    },
    /// CloudStack: the job never ends, and what it is about stays in its transitional state. The VMA: the copy stops in the
    /// middle, and never ends.
    Stuck,
    /// A list tells what was so before, for this long.
    Stale {
        /// How long.
        ms: u64,
    },
    /// A name that is taken is accepted.
    DuplicateName,
    /// A deletion says that it is done; after this time the thing is there again. A stop of a VM: it runs again.
    Reappears {
        /// How long.
        ms: u64,
    },
    /// From this call on the credentials are no longer good.
    CredentialsExpire,
    /// The host is shown as down, its VMs run on.
    HostDown,
    /// A stop says that it is done; the guest runs and writes on.
    StopsOnlyInName,
    /// CloudStack: a machine is made, its disk is not; the job fails.
    Partial,
}

impl Fault {
    /// Whether it means anything for a call. What means nothing is not drawn, so that nobody believes that it happened.
    pub fn concerns(&self, system: &str, command: &str) -> bool {
        let operations = [
            "POST /volumes",
            "DELETE /volumes/{id}",
            "POST /volumes/{id}/attach",
            "POST /volumes/{id}/attach-root",
            "POST /volumes/{id}/detach",
            "POST /cleanup/test-failover",
        ];
        let operation = system == "daemon" && operations.contains(&command);
        let look = ["list", "query"].iter().any(|look| command.starts_with(look));
        let job = system == "cloudstack" && !look && command != "deleteVolume";
        let copy = system == "vma" && ["POST /replicate", "POST /sync/final"].contains(&command);
        let asked = match system {
            "daemon" => command == "GET /operations/{id}",
            "vma" => ["GET /progress/{job}", "GET /status/{job}"].contains(&command),
            _ => false,
        };
        let deploys = command == "deployVirtualMachine";
        match self {
            Fault::JobLost => job || copy || asked,
            Fault::JobCancelledButDone { .. } => job || operation,
            // What is gone shows no state, and a tag has none.
            Fault::Lagging { .. } => {
                let shows = !command.ends_with("Tags") && !command.starts_with("delete");
                job && shows || operation
            }
            Fault::JobFails { .. } | Fault::Stuck => job || operation || copy,
            Fault::Stale { .. } => system == "cloudstack" && command.starts_with("list"),
            Fault::DuplicateName => deploys || command == "createVMSnapshot",
            Fault::Reappears { .. } => {
                let deletes = command != "deleteTags"
                    && ["delete", "destroy", "expunge"].iter().any(|word| command.starts_with(word));
                system == "linstor" && command.starts_with("DELETE")
                    || job && (deletes || command == "stopVirtualMachine")
                    || command == "deleteVolume"
            }
            Fault::CredentialsExpire | Fault::HostDown => system == "cloudstack",
            Fault::StopsOnlyInName => {
                ["stopVirtualMachine", "destroyVirtualMachine", "POST /vm/{id}/power-off"].contains(&command)
            }
            Fault::Partial => deploys,
            Fault::Refused { .. }
            | Fault::DoneThenRefused { .. }
            | Fault::Dropped
            | Fault::DoneThenDropped
            | Fault::DoneThenSilent
            | Fault::Reset
            | Fault::Slow { .. }
            | Fault::Trickle { .. }
            | Fault::Huge { .. }
            | Fault::TooMany { .. }
            | Fault::Html { .. }
            | Fault::ErrorWith200
            | Fault::Empty => true,
        }
    }
}

/// When a rule fires, among the calls that it matches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Calls {
    /// For the n-th call of that command, from 1.
    Nth(u64),
    /// For each.
    Every,
    /// For this share of them.
    Chance(f64),
}

/// A rule: for calls like these, this fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// `cloudstack`, `daemon`, `vma`, `linstor`, or `*`.
    pub system: String,
    /// The command or `METHOD /path`, with `*` for any run of characters.
    pub command: String,
    /// Which of them.
    pub calls: Calls,
    /// How often at most.
    #[serde(default)]
    pub at_most: Option<u64>,
    /// What goes wrong.
    pub fault: Fault,
}

impl Rule {
    /// For each call of a command.
    pub fn every(system: &str, command: &str, fault: Fault) -> Rule {
        Rule {
            system: system.to_owned(),
            command: command.to_owned(),
            calls: Calls::Every,
            at_most: None,
            fault,
        }
    }

    /// For the next call of a command that is not yet counted: the first, if there was none.
    pub fn nth(system: &str, command: &str, n: u64, fault: Fault) -> Rule {
        Rule { calls: Calls::Nth(n), ..Rule::every(system, command, fault) }
    }

    /// For a share of the calls of a command.
    pub fn chance(system: &str, command: &str, share: f64, fault: Fault) -> Rule {
        Rule { calls: Calls::Chance(share), ..Rule::every(system, command, fault) }
    }

    /// Once, and then no more.
    pub fn once(self) -> Rule {
        Rule { at_most: Some(1), ..self }
    }
}

/// A rule, and how often it fired.
#[derive(Clone, Debug, Serialize)]
pub struct Fired {
    /// The rule.
    pub rule: Rule,
    /// How often.
    pub times: u64,
}

/// The plan of all that goes wrong. A clone is the same plan.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Default)]
struct Plan {
    seed: u64,
    rules: Vec<Fired>,
    calls: BTreeMap<(String, String), u64>,
}

impl Faults {
    /// A plan without rules.
    pub fn new(seed: u64) -> Faults {
        Faults(Arc::new(Mutex::new(Plan { seed, ..Plan::default() })))
    }

    /// Adds a rule; the first that fires for a call is the one.
    pub fn rule(&self, rule: Rule) -> &Faults {
        self.plan().rules.push(Fired { rule, times: 0 });
        self
    }

    /// Takes all rules away; what was counted stays counted.
    pub fn clear(&self) {
        self.plan().rules.clear();
    }

    /// Counts a call, and says what goes wrong with it.
    pub fn draw(&self, system: &str, command: &str) -> Option<Fault> {
        let mut plan = self.plan();
        let n = match plan.calls.get_mut(&(system.to_owned(), command.to_owned())) {
            Some(n) => {
                *n += 1;
                *n
            }
            None => {
                plan.calls.insert((system.to_owned(), command.to_owned()), 1);
                1
            }
        };
        let seed = plan.seed;
        for (index, fired) in plan.rules.iter_mut().enumerate() {
            let rule = &fired.rule;
            let matches = like(&rule.system, system)
                && like(&rule.command, command)
                && rule.fault.concerns(system, command)
                && rule.at_most.is_none_or(|most| fired.times < most)
                && match rule.calls {
                    Calls::Nth(nth) => nth == n,
                    Calls::Every => true,
                    Calls::Chance(share) => dice(seed, system, command, n, index) < share,
                };
            if matches {
                fired.times += 1;
                return Some(rule.fault.clone());
            }
        }
        None
    }

    /// The rules, and how often each fired.
    pub fn fired(&self) -> Vec<Fired> {
        self.plan().rules.clone()
    }

    /// How many calls there were of each command.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.plan().calls.iter().map(|((system, command), n)| (format!("{system} {command}"), *n)).collect()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `text` is like `pattern`, in which `*` is any run of characters.
fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|tail| {
            rest.is_empty()
                || tail
                    .char_indices()
                    .map(|(i, _)| i)
                    .chain([tail.len()])
                    .any(|i| tail.get(i..).is_some_and(|tail| like(rest, tail)))
        }),
    }
}

/// A number from 0 to 1 that is the same for the same call.
fn dice(seed: u64, system: &str, command: &str, n: u64, rule: usize) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ seed;
    for byte in system
        .bytes()
        .chain([0])
        .chain(command.bytes())
        .chain([0])
        .chain(n.to_le_bytes())
        .chain(rule.to_le_bytes())
    {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // The last round of splitmix64: FNV alone leaves the high bits of short inputs alike.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_nothing_for_a_call_is_never_drawn() {
        let faults = Faults::new(0);
        for fault in [Fault::Stale { ms: 1 }, Fault::JobLost, Fault::CredentialsExpire, Fault::Reset] {
            faults.rule(Rule::every("*", "*", fault));
        }
        for (system, command, wanted) in [
            ("cloudstack", "listZones", Fault::Stale { ms: 1 }),
            ("cloudstack", "stopVirtualMachine", Fault::JobLost),
            ("cloudstack", "deleteVolume", Fault::CredentialsExpire),
            ("daemon", "GET /operations/{id}", Fault::JobLost),
            ("daemon", "GET /exports/{id}", Fault::Reset),
            ("vma", "GET /progress/{job}", Fault::JobLost),
            ("linstor", "GET /nodes", Fault::Reset),
        ] {
            assert_eq!(faults.draw(system, command), Some(wanted), "{system} {command}");
        }
    }

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, is) in [
            ("*", "listZones", true),
            ("list*", "listZones", true),
            ("list*s", "listZones", true),
            ("list*s", "listZone", false),
            ("POST /volumes/*/attach", "POST /volumes/7/attach", true),
            ("POST /volumes/*/attach", "POST /volumes/7/attach-root", false),
        ] {
            assert_eq!(like(pattern, text), is, "{pattern} {text}");
        }
    }

    #[test]
    fn a_storm_is_the_same_for_the_same_seed_and_another_for_another() {
        let play = |seed| -> Vec<bool> {
            let faults = Faults::new(seed);
            faults.rule(Rule::chance("*", "*", 0.5, Fault::Dropped));
            (0..200).map(|_| faults.draw("cloudstack", "listZones").is_some()).collect()
        };
        assert_eq!(play(1), play(1));
        assert_ne!(play(1), play(2));
        let share = play(1).iter().filter(|hit| **hit).count();
        assert!((70..130).contains(&share), "{share} of 200");
    }

    #[test]
    fn a_rule_fires_for_its_call_and_at_most_so_often_and_is_counted() {
        let faults = Faults::new(0);
        faults.rule(Rule::nth("a", "x", 2, Fault::Reset)).rule(Rule::every("a", "x", Fault::Dropped).once());
        let drawn: Vec<_> = (0..4).map(|_| faults.draw("a", "x")).collect();
        assert_eq!(drawn, [Some(Fault::Dropped), Some(Fault::Reset), None, None]);
        assert_eq!(faults.draw("b", "x"), None);
        assert_eq!(faults.fired().iter().map(|f| f.times).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(faults.calls()["a x"], 4);
    }
}
