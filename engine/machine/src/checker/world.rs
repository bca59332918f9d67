//! The journal against what really happened outside (H10, H11, H17).

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::reading::Reading;
use super::standing::{Standing, before, later};
use super::{Findings, RuleId};
use crate::Time;
use crate::event::{Applied, ClaimReason, CourseId, Event, Outcome};
use crate::plan::{Kind, Span};

/// What the world knows of one run: a simulator's ground truth, or what was found on the spot.
#[derive(Clone, Debug, Default)]
pub struct WorldLog {
    /// Every change that was made under this run's mark. A call that the target refused is none.
    pub effects: Vec<Effect>,
    /// For each step whose effect the world can tell: whether it is there at the end. Others are not judged.
    pub present: BTreeMap<String, bool>,
    /// How far the world's clock and the journal's may be apart.
    pub skew: Span,
}

/// One change of the world.
#[derive(Clone, Debug)]
pub struct Effect {
    /// The idempotency key that came with the call.
    pub key: Uuid,
    /// The step.
    pub step: String,
    /// It was the step's undo.
    pub undo: bool,
    /// When the world began to change.
    pub begun_at: Time,
    /// When that was over; `None`: it still goes on.
    pub ended_at: Option<Time>,
}

impl Effect {
    fn end(&self) -> Time {
        self.ended_at.unwrap_or(Time::MAX_UTC)
    }

    fn name(&self) -> String {
        if self.undo { format!("the undo of {:?}", self.step) } else { format!("step {:?}", self.step) }
    }
}

/// Where in the journal an attempt announced itself.
struct Announced {
    course: CourseId,
    at: Time,
    claim: i32,
    generation: u32,
    ended_in_doubt: bool,
}

fn announced(reading: &Reading<'_>) -> HashMap<Uuid, Vec<Announced>> {
    let mut all: HashMap<Uuid, Vec<Announced>> = HashMap::new();
    for course in reading.courses() {
        for attempt in course.attempts() {
            let start = attempt.start;
            let Some(key) = start.key() else { continue };
            let ended_in_doubt =
                attempt.over.is_some_and(|m| matches!(m.failure(), Some((Applied::Maybe, _))));
            let (at, claim, generation) = (start.at, start.claim, start.generation);
            let entry = Announced { course: course.id, at, claim, generation, ended_in_doubt };
            all.entry(key).or_default().push(entry);
        }
    }
    all
}

fn course_of(reading: &Reading<'_>, effect: &Effect) -> Option<CourseId> {
    let step = reading.plan.find(&effect.step)?;
    Some(if effect.undo { CourseId::undo(step) } else { CourseId::forward(step) })
}

/// Attempts that the effect may be of: of its course and key, and journaled before it began.
fn causes<'j>(
    reading: &Reading<'_>,
    journal: &'j HashMap<Uuid, Vec<Announced>>,
    world: &WorldLog,
    effect: &Effect,
) -> impl Iterator<Item = &'j Announced> {
    let course = course_of(reading, effect);
    let latest = later(effect.begun_at, world.skew);
    let starts = journal.get(&effect.key).into_iter().flatten();
    starts.filter(move |start| Some(start.course) == course && !before(latest, start.at))
}

pub(super) fn orphans(reading: &Reading<'_>, world: &WorldLog, found: &mut Findings) {
    let journal = announced(reading);
    for effect in &world.effects {
        if causes(reading, &journal, world, effect).next().is_none() {
            let message = format!(
                "{} had an effect at {} under the key {} that no start before it announced: nobody would ever undo it",
                effect.name(),
                effect.begun_at,
                effect.key
            );
            found.add(RuleId::Orphan, None, message);
        }
    }
}

pub(super) fn overlaps(reading: &Reading<'_>, world: &WorldLog, found: &mut Findings) {
    let journal = announced(reading);
    let losses: Vec<i32> = reading
        .events
        .iter()
        .filter(|j| matches!(j.event, Event::Claimed { reason: ClaimReason::LostLease, .. }))
        .map(|j| j.claim)
        .collect();
    let lost_between = |one: i32, other: i32| losses.iter().any(|&claim| one < claim && claim <= other);

    let mut courses: BTreeMap<(&str, bool), Vec<&Effect>> = BTreeMap::new();
    for effect in &world.effects {
        courses.entry((&effect.step, effect.undo)).or_default().push(effect);
    }
    for effects in courses.values_mut() {
        effects.sort_by_key(|effect| (effect.begun_at, effect.end()));
        // Against the one that went on for longest: if it is over, all before it are.
        let mut longest: Option<&Effect> = None;
        for &effect in effects.iter() {
            if let Some(other) = longest.filter(|other| before(effect.begun_at, other.end())) {
                let excused = causes(reading, &journal, world, other).any(|one| {
                    causes(reading, &journal, world, effect).any(|two| {
                        lost_between(one.claim.min(two.claim), one.claim.max(two.claim))
                            // Somebody had it begin anew without waiting for the first.
                            || one.generation != two.generation
                            // An undo that may have been done is done again at once.
                            || (effect.undo && one.ended_in_doubt && one.at < two.at)
                    })
                });
                if !excused {
                    let message = format!(
                        "{} was at work twice at {}, and no lease was lost between two attempts: one call was repeated before it was over",
                        effect.name(),
                        effect.begun_at
                    );
                    found.add(RuleId::Overlap, None, message);
                }
            }
            if longest.is_none_or(|other| other.end() < effect.end()) {
                longest = Some(effect);
            }
        }
    }
}

pub(super) fn truth(reading: &Reading<'_>, world: &WorldLog, found: &mut Findings) {
    let Some((end, outcome)) = reading.ended else { return };
    for (ix, step, forward, undo) in reading.steps().filter(|(_, step, ..)| step.kind == Kind::Call) {
        let Some(&there) = world.present.get(&*step.name) else { continue };
        let may_be = forward.may_be_applied(end);
        // What people say was done by hand, or is to stay, is theirs to know.
        let by_hand = reading.left(ix)
            || [forward, undo].iter().any(|half| half.moves.iter().any(|m| m.after == Standing::Skipped));
        if by_hand {
            continue;
        }
        let wrong = match outcome {
            Outcome::Succeeded | Outcome::Committed
                if forward.standing(end) == Standing::Succeeded && !there =>
            {
                "succeeded, and so did the run, but its effect is not there"
            }
            Outcome::RolledBack if step.undo.is_some() && there => {
                "was undone with the whole run, but its effect is there"
            }
            _ if !may_be && there => "never had an effect by the journal, but it is there",
            _ => continue,
        };
        found.add(RuleId::World, None, format!("step {} {wrong}", step.name));
    }
}
