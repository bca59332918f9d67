//! Rates, by a clock that the test sets.

use super::*;

fn pool(rate: f64, now: Instant) -> Pool {
    Pool {
        grant: Some(Grant { rate: Some(rate), ..Grant::default() }),
        tokens: 0.0,
        refilled: now,
        ..Pool::new()
    }
}

fn after(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_rate_gives_one_call_after_the_other_and_saves_up_nearly_nothing() {
    let now = Instant::now();
    let mut pool = pool(10.0, now);
    assert!(!pool.may_begin(now + after(99)));
    assert!(pool.may_begin(now + after(101)));
    assert!(pool.may_begin(now + after(60_000)));
    drop(pool.take("p"));
    assert!(!pool.may_begin(now + after(60_000)), "a minute without a call is worth one call");
}

/// Another life may have been given the rate already.
#[test]
fn while_an_ask_is_under_way_its_rate_is_not_drawn_on() {
    let now = Instant::now();
    let mut pool = pool(10.0, now);
    pool.queue.insert((Turn::Step, Reverse(1), 1), RunId::fresh());
    assert!(pool.next_token(now + after(50)).is_some());
    pool.frozen = Some(0);
    assert!(!pool.may_begin(now + after(60_000)));
    assert_eq!(pool.next_token(now + after(60_000)), None, "it is not waited for either");
}

#[test]
fn of_a_rate_of_nothing_there_is_no_call() {
    let now = Instant::now();
    let mut pool = pool(0.0, now);
    pool.tokens = 1.0;
    assert!(!pool.may_begin(now + after(1_000)));
}

/// Whatever the answer will be, and even if it is lost.
#[test]
fn while_an_ask_is_under_way_no_more_is_begun_than_it_said() {
    let mut pool = Pool { grant: Some(Grant { slots: Some(5), ..Grant::default() }), ..Pool::new() };
    let slots = [pool.take("p"), pool.take("p")];
    assert!(pool.has_place());
    pool.ask();
    assert!(!pool.has_place());
    drop(slots);
    assert!(pool.has_place(), "what has ended makes room");
}
