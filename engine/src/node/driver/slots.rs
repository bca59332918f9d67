//! Places in pools, between decisions and calls.

use backstay_machine::{CourseId, Direction, Plan, RunId};

use super::super::pools::Slot;
use super::Driver;

/// A call that is announced in the journal, and the place that it has.
pub(super) struct Start {
    pub run: RunId,
    pub course: CourseId,
    pub attempt: (u32, u32),
    pub slot: Option<Slot>,
}

/// The place that was taken for a call, out of those that the decision took.
pub(super) fn taken_for(taken: &mut Vec<Slot>, plan: &Plan, course: CourseId) -> Option<Slot> {
    let step = plan.step(course.step);
    let work = match (course.direction, &step.undo) {
        (Direction::Undo, Some(undo)) => undo,
        _ => &step.forward,
    };
    let pool = work.pool.as_deref()?;
    let at = taken.iter().position(|slot| slot.is_of(pool))?;
    Some(taken.swap_remove(at))
}

impl Driver {
    /// Runs that wait for a place go on, and what is due is asked of the database.
    pub(super) fn feed_pools(&mut self) {
        while self.calls < self.shared.config.max_calls {
            let Some(id) = self.pools.next() else { break };
            self.advance(id);
        }
        self.pools.ask();
    }
}
