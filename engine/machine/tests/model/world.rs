//! The world outside: when effects come about, and when they no longer can.

use crate::moves::Saga;
use crate::system::{Attempt, Life, Request, System};

impl Saga {
    pub fn longest_delay(&self, of: &Attempt) -> u8 {
        let delay = self.plan.step(of.course.step).effect.longest_delay;
        if of.is_forward() { delay.0.as_secs() as u8 } else { 0 }
    }

    /// The call of that request is over: from now on its effect can come about for its longest delay only.
    pub fn hang_up(&self, system: &mut System, over: impl Fn(&Request) -> bool) {
        let clock = system.clock;
        for request in &mut system.world.requests {
            if !over(request) {
                continue;
            }
            let until = clock + self.longest_delay(&request.of);
            request.until = Some(request.until.map_or(until, |before| before.min(until)));
        }
        system.world.requests.retain(|request| request.landed || request.until.is_none_or(|at| at > clock));
    }

    /// The process no longer follows its calls.
    pub fn drop_calls(&self, system: &mut System, life: Life) {
        self.hang_up(system, |request| request.from == life);
        system.world.requests.retain(|request| request.from != life || !request.landed);
    }

    pub fn land(&self, system: &mut System, index: usize) {
        let request = &mut system.world.requests[index];
        request.landed = true;
        let of = request.of;
        let step = of.course.step.index();
        let from = request.from;
        let heard = system
            .process(from)
            .is_some_and(|process| process.calls.iter().any(|call| call.of == of && call.answer.is_none()));
        let world = &mut system.world;
        if of.is_forward() {
            let keyed = self.plan.step(of.course.step).effect.refuses_duplicates;
            if !keyed || world.known.insert((step, of.generation)) {
                world.there[step] = true;
                if self.plan.step(of.course.step).effect.probed {
                    let (generation, times) = world.landings[step];
                    let times = if generation == of.generation { times } else { 0 };
                    world.landings[step] = (of.generation, (times + 1).min(2));
                }
            }
        } else {
            world.there[step] = false;
        }
        if !heard {
            world.requests.remove(index);
        }
    }
}

/// The node hung up on that call when its lease ran out: that it ends so is no fault of the world.
pub fn hung_up(system: &System, life: Life, of: &Attempt) -> bool {
    request_of(system, life, of).is_none_or(|request| request.until.is_some() && !request.landed)
}

pub fn request_of<'a>(system: &'a System, life: Life, of: &Attempt) -> Option<&'a Request> {
    system.world.requests.iter().find(|request| request.from == life && request.of == *of)
}
