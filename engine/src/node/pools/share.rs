//! What a life may have of a pool: from the pool, what the others hold, and what this one asks for. Nothing is done
//! here; the store asks it between the lock of the pool's row and the commit.
//!
//! ```text
//!   open --(so many calls in a row find the target down)--> outage --(a try succeeds)--> ramp: 1, 2, 4, ... --> open
//!                                                           |  ^
//!                                                           '--' a try in vain: the next one later
//! ```
//!
//! The sum of all shares never exceeds the limit: a life is given what the others do not hold, and never has less
//! than what it has under way, which is at most what it held before.

use std::time::Duration;

use backstay_machine::Time;
use chrono::TimeDelta;

use crate::store::{Outage, PoolRow, ShareRow};

/// When a target is taken for down, and how soon it is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Breaker {
    /// Calls in a row, on all nodes, that found it down, with none that succeeded between them.
    pub failures: u32,
    /// How long until the first try.
    pub first: Duration,
    /// Each try in vain doubles that, up to so much.
    pub ceiling: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { failures: 5, first: Duration::from_secs(2), ceiling: Duration::from_secs(60) }
    }
}

impl Breaker {
    fn next_try(&self, tries: i32, now: Time) -> Time {
        let doubled = self.first.saturating_mul(1 << tries.clamp(0, 20)).min(self.ceiling);
        now + TimeDelta::from_std(doubled).unwrap_or(TimeDelta::hours(1))
    }
}

/// What calls have told of their target since the last ask.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// One succeeded.
    pub up: bool,
    /// So many found it down, since the last that succeeded.
    pub downs: u32,
    /// What the last of them said.
    pub why: Option<String>,
}

/// What a life says of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ask {
    /// Calls under way; what it holds may not become less.
    pub busy: u32,
    /// Runs that wait for a place.
    pub waiting: u32,
    /// What it has heard.
    pub heard: Heard,
    /// The try that it was given has ended, or is not wanted any more.
    pub tried: bool,
}

impl Ask {
    fn wants(&self) -> u32 {
        self.busy.saturating_add(self.waiting)
    }
}

/// What it may do from now on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Grant {
    /// Calls under way, at most. Nothing: as many as it likes.
    pub slots: Option<u32>,
    /// Calls begun in a second, at most.
    pub rate: Option<f64>,
    /// It is down.
    pub outage: Option<Outage>,
    /// One call may be begun all the same, to see.
    pub try_it: bool,
    /// Somebody is owed more than he has, or the limit grows: ask again soon.
    pub soon: bool,
    /// The outage began with this, or ended: whoever is told this tells people.
    pub turned: bool,
}

/// How long it is one life's turn, where there are fewer places than lives.
const TURN: i64 = 2;

pub(crate) fn settle(
    pool: &mut PoolRow,
    (epoch, node): (i64, &str),
    others: &[ShareRow],
    ask: &Ask,
    breaker: &Breaker,
    now: Time,
) -> (ShareRow, Grant) {
    let turned = hear(pool, epoch, others, ask, breaker, now);
    let try_it = pool.outage.as_mut().is_some_and(|outage| {
        let time = outage.next_try.is_some_and(|at| at <= now);
        let due = time && outage.trier.is_none() && ask.waiting > 0;
        if due {
            outage.trier = Some(epoch);
        }
        outage.trier == Some(epoch)
    });
    let limit = limit(pool, now);
    let mut soon = pool.back_since.is_some() && ask.waiting > 0;
    let slots = limit.map(|limit| {
        let mut all: Vec<_> = others.iter().map(|share| (share.epoch, wants(share))).collect();
        all.push((epoch, ask.wants()));
        let fair = fair(limit, all, now.timestamp().div_euclid(TURN));
        let due = |of: i64| fair.iter().find(|(epoch, _)| *epoch == of).map_or(0, |(_, slots)| *slots);
        let free = limit.saturating_sub(others.iter().map(held).fold(0, u32::saturating_add));
        let slots = due(epoch).min(free.max(ask.busy));
        let owed = |epoch, wanted: u32, has: u32| wanted > has && due(epoch) > has;
        soon |= owed(epoch, ask.wants(), slots)
            || others.iter().any(|share| owed(share.epoch, wants(share), held(share)));
        slots
    });
    let rate = pool.per_second.map(|rate| {
        if ask.wants() == 0 {
            return 0.0;
        }
        let others_want = others.iter().filter(|share| wants(share) > 0).count();
        let taken: f64 = others.iter().filter_map(|share| share.rate).sum();
        let due = rate / (others_want + 1) as f64;
        soon |= due > rate - taken + 1e-9;
        due.min(rate - taken).max(0.0)
    });
    let (busy, waiting) = (as_i32(ask.busy), as_i32(ask.waiting));
    let holds = slots.map(|slots| as_i32(slots.max(ask.busy)));
    let own = ShareRow { epoch, node: node.to_owned(), slots: holds, rate, busy, waiting };
    (own, Grant { slots, rate, outage: pool.outage.clone(), try_it, soon, turned })
}

/// What calls have told: whether the target is down, or back.
fn hear(
    pool: &mut PoolRow,
    epoch: i64,
    others: &[ShareRow],
    ask: &Ask,
    breaker: &Breaker,
    now: Time,
) -> bool {
    let downs = as_i32(ask.heard.downs);
    let mut turned = false;
    if ask.heard.up {
        pool.failures = downs;
        // What a person has declared, a person ends.
        if pool.outage.take_if(|outage| outage.declarer.is_none()).is_some() {
            pool.back_since = Some(now);
            turned = true;
        }
    } else {
        pool.failures = pool.failures.saturating_add(downs);
    }
    if let Some(outage) = &mut pool.outage {
        if outage.declarer.is_some() {
            return turned;
        }
        if let Some(why) = &ask.heard.why {
            outage.why.clone_from(why);
        }
        match outage.trier {
            Some(trier) if trier == epoch && ask.tried => {
                outage.trier = None;
                outage.tries += i32::from(downs > 0);
                outage.next_try = Some(breaker.next_try(outage.tries, now));
            }
            // It died over it.
            Some(trier) if trier != epoch && others.iter().all(|share| share.epoch != trier) => {
                outage.trier = None;
            }
            _ => {}
        }
    } else if pool.failures >= as_i32(breaker.failures) && downs > 0 {
        let why = ask.heard.why.clone().unwrap_or_default();
        let next_try = Some(breaker.next_try(0, now));
        pool.outage = Some(Outage { since: now, why, declarer: None, tries: 0, next_try, trier: None });
        pool.back_since = None;
        turned = true;
    }
    turned
}

/// Calls at once at this time.
fn limit(pool: &mut PoolRow, now: Time) -> Option<u32> {
    /// Beyond this an unlimited target is taken for well again.
    const WELL: u32 = 1_024;
    let at_once = pool.at_once.map(|at_once| u32::try_from(at_once).unwrap_or(0));
    if pool.outage.is_some() {
        return Some(0);
    }
    let Some(back) = pool.back_since else { return at_once };
    let grown = 1u32 << (now - back).num_seconds().clamp(0, 30);
    if grown >= at_once.unwrap_or(WELL) {
        pool.back_since = None;
        return at_once;
    }
    Some(grown)
}

/// Divides a limit: everybody gets what he wants as long as that is no more than the others get. What nobody wants is
/// kept at hand by those who want something, but for a part that whoever comes next finds free.
fn fair(limit: u32, mut wants: Vec<(i64, u32)>, turn: i64) -> Vec<(i64, u32)> {
    wants.retain(|(_, wants)| *wants > 0);
    wants.sort_unstable();
    let count = wants.len();
    // Where there are too few, it is everybody's turn in time.
    if let Ok(by) = usize::try_from(turn.rem_euclid(count.max(1) as i64)) {
        wants.rotate_left(by);
    }
    wants.sort_by_key(|(_, wants)| (*wants).min(limit));
    let mut left = limit;
    let mut parts: Vec<_> = wants
        .into_iter()
        .enumerate()
        .map(|(nth, (epoch, wants))| {
            let part = wants.min(left / (count - nth) as u32);
            left -= part;
            (epoch, part)
        })
        .collect();
    let spare = left / (count as u32 + 1);
    for (_, part) in &mut parts {
        *part += spare;
    }
    parts
}

fn wants(share: &ShareRow) -> u32 {
    as_u32(share.busy).saturating_add(as_u32(share.waiting))
}

/// What has no limit yet counts as what it has under way.
fn held(share: &ShareRow) -> u32 {
    as_u32(share.slots.unwrap_or(share.busy))
}

fn as_u32(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

fn as_i32(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: &str = "n";

    fn pool(at_once: i32) -> PoolRow {
        PoolRow { at_once: Some(at_once), per_second: None, failures: 0, outage: None, back_since: None }
    }

    fn at(millis: i64) -> Time {
        Time::UNIX_EPOCH + TimeDelta::milliseconds(millis)
    }

    fn ask(busy: u32, waiting: u32) -> Ask {
        Ask { busy, waiting, ..Ask::default() }
    }

    /// Lives that ask in turn, with what each has under way and what each believes that it may.
    #[derive(Default)]
    struct Cluster {
        shares: Vec<ShareRow>,
        busy: Vec<u32>,
        may: Vec<u32>,
        dice: u64,
    }

    impl Cluster {
        fn new(lives: usize, seed: u64) -> Self {
            Self { shares: Vec::new(), busy: vec![0; lives], may: vec![0; lives], dice: seed }
        }

        fn pick(&mut self, of: u64) -> u64 {
            self.dice =
                self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.dice >> 33) % of
        }

        /// Asks; the answer may be lost, and then it holds on to what it has under way.
        fn asks(&mut self, pool: &mut PoolRow, life: usize, waiting: u32, lost: bool, now: Time) -> Grant {
            let ask = ask(self.busy[life], waiting);
            self.may[life] = self.may[life].min(ask.busy);
            let epoch = life as i64;
            let others: Vec<_> = self.shares.iter().filter(|share| share.epoch != epoch).cloned().collect();
            let (own, grant) = settle(pool, (epoch, WHO), &others, &ask, &Breaker::default(), now);
            self.shares = others;
            self.shares.push(own);
            if !lost {
                self.may[life] = grant.slots.unwrap_or(u32::MAX);
            }
            grant
        }

        fn dies(&mut self, life: usize) {
            self.shares.retain(|share| share.epoch != life as i64);
            (self.busy[life], self.may[life]) = (0, 0);
        }
    }

    #[test]
    fn the_shares_of_all_lives_never_exceed_the_limit_whatever_is_lost() {
        for seed in 0..300 {
            let limit = 1 + (seed % 7) as u32;
            let mut pool = pool(limit as i32);
            let mut cluster = Cluster::new(4, seed);
            for round in 0..300 {
                let life = cluster.pick(4) as usize;
                match cluster.pick(10) {
                    0..4 => {
                        let (waiting, lost) = (cluster.pick(9) as u32, cluster.pick(5) == 0);
                        cluster.asks(&mut pool, life, waiting, lost, at(round * 300));
                    }
                    4..8 if cluster.busy[life] < cluster.may[life] => cluster.busy[life] += 1,
                    8 => cluster.busy[life] = cluster.busy[life].saturating_sub(1),
                    9 if cluster.pick(5) == 0 => cluster.dies(life),
                    _ => {}
                }
                let busy: u32 = cluster.busy.iter().sum();
                let held: u32 = cluster.shares.iter().map(held).sum();
                assert!(
                    busy <= limit && held <= limit,
                    "seed {seed}: {busy} under way, {held} held of {limit}"
                );
            }
        }
    }

    #[test]
    fn who_wants_more_gets_his_part_and_nobody_starves() {
        let mut pool = pool(5);
        let mut cluster = Cluster::new(3, 1);
        let mut ever = [false; 3];
        for round in 0..200 {
            let life = round % 3;
            cluster.asks(&mut pool, life, 100, false, at(round as i64 * 200));
            cluster.busy[life] = cluster.may[life];
            // A call of each ends.
            cluster.busy[(life + 1) % 3] = cluster.busy[(life + 1) % 3].saturating_sub(1);
            ever[life] |= cluster.busy[life] > 0;
        }
        assert_eq!(ever, [true; 3]);
        let mut held: Vec<_> = cluster.shares.iter().map(held).collect();
        held.sort_unstable();
        assert!(held == [1, 2, 2] || held == [1, 1, 2] || held == [1, 1, 3], "{held:?}");

        assert_eq!(fair(50, vec![(1, 1)], 0), [(1, 25)], "a part stays free for whoever comes next");
        assert_eq!(fair(10, vec![(1, 2), (2, 90), (3, 0)], 0), [(1, 2), (2, 8)]);
        let turns: Vec<_> = (0..3).map(|turn| fair(1, vec![(1, 9), (2, 7), (3, 8)], turn)).collect();
        for life in 1..=3 {
            let got: u32 = turns.iter().flatten().filter(|(epoch, _)| *epoch == life).map(|(_, n)| n).sum();
            assert_eq!(got, 1, "{turns:?}");
        }
    }

    #[test]
    fn an_outage_begins_after_enough_failures_is_tried_and_ends_on_a_ramp() {
        let mut pool = pool(20);
        let breaker = Breaker { failures: 3, first: Duration::from_secs(1), ceiling: Duration::from_secs(3) };
        let said = |up, downs| Ask {
            heard: Heard { up, downs, why: (downs > 0).then(|| "refused".into()) },
            ..ask(0, 9)
        };
        let mut other =
            ShareRow { epoch: 2, node: WHO.into(), slots: Some(0), rate: None, busy: 0, waiting: 9 };
        let mut settle = |epoch, ask: &Ask, now| {
            settle(
                &mut pool,
                (epoch, WHO),
                &[ShareRow { epoch: 3 - epoch, ..other.clone() }],
                ask,
                &breaker,
                now,
            )
            .1
        };
        assert_eq!(settle(1, &said(false, 2), at(0)).outage, None);
        assert_eq!(settle(2, &said(true, 0), at(0)).outage, None, "one that succeeded is enough");
        assert_eq!(settle(1, &said(false, 2), at(0)).outage, None);
        let down = settle(2, &said(false, 1), at(0));
        assert!(down.turned && down.slots == Some(0) && !down.try_it, "{down:?}");
        assert!(!settle(1, &ask(0, 9), at(999)).try_it, "not yet");
        let first = settle(1, &ask(0, 9), at(1_000));
        assert!(first.try_it && first.slots == Some(0) && !first.turned);
        assert!(!settle(2, &ask(0, 9), at(1_000)).try_it, "one tries for all");
        let failed = Ask { tried: true, ..said(false, 1) };
        assert!(!settle(1, &failed, at(1_500)).try_it);
        assert!(!settle(2, &ask(0, 9), at(3_499)).try_it, "the next try comes later");
        assert!(!settle(2, &ask(0, 0), at(3_500)).try_it, "nobody waits there");
        assert!(settle(2, &ask(0, 9), at(3_500)).try_it);
        let back = settle(2, &Ask { tried: true, ..said(true, 0) }, at(4_000));
        assert!(back.turned && back.outage.is_none());
        assert_eq!(back.slots, Some(0).max(back.slots), "it grows from one");
        let mut whole =
            |now| settle(1, &ask(0, 99), now).slots.unwrap() + settle(2, &ask(0, 99), now).slots.unwrap();
        assert_eq!([4_000, 5_000, 6_000, 7_000].map(|now| whole(at(now))), [1, 2, 4, 8]);
        other.waiting = 0;
    }

    #[test]
    fn a_try_whose_life_ends_is_tried_by_another() {
        let mut pool = pool(5);
        let breaker = Breaker::default();
        pool.outage = Some(Outage {
            since: at(0),
            why: "down".into(),
            declarer: None,
            tries: 0,
            next_try: Some(at(0)),
            trier: Some(7),
        });
        let (_, grant) = settle(&mut pool, (1, WHO), &[], &ask(0, 1), &breaker, at(1));
        assert!(grant.try_it);
    }

    #[test]
    fn the_rates_of_all_lives_never_exceed_the_limit() {
        let mut pool = PoolRow { per_second: Some(10.0), at_once: None, ..pool(1) };
        let breaker = Breaker::default();
        let (one, first) = settle(&mut pool, (1, WHO), &[], &ask(0, 9), &breaker, at(0));
        assert_eq!(first.rate, Some(10.0));
        let (two, second) = settle(&mut pool, (2, WHO), &[one], &ask(0, 9), &breaker, at(0));
        assert_eq!((second.rate, second.soon), (Some(0.0), true));
        let (one, first) = settle(&mut pool, (1, WHO), &[two], &ask(0, 9), &breaker, at(0));
        assert_eq!(first.rate, Some(5.0));
        let (_, second) = settle(&mut pool, (2, WHO), &[one], &ask(0, 9), &breaker, at(0));
        assert_eq!(second.rate, Some(5.0));
    }
}
