//! The graph of a plan: order, cycles, who comes after whom.

use std::collections::VecDeque;

use petgraph::algo::toposort;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::names::StepIx;

/// The steps so that each comes after those it depends on; or a cycle, its first step again at its end.
/// Among equals the order is the one in which the plan was written, so pictures stay as their author saw them.
pub(super) fn order(after: &[Vec<StepIx>]) -> Result<Vec<StepIx>, Vec<StepIx>> {
    let mut graph = DiGraph::<(), (), u32>::with_capacity(after.len(), after.len());
    for _ in after {
        graph.add_node(());
    }
    for (n, dependencies) in after.iter().enumerate() {
        for dependency in dependencies {
            graph.add_edge(NodeIndex::new(dependency.index()), NodeIndex::new(n), ());
        }
    }
    let Ok(mut order) = toposort(&graph, None) else { return Err(cycle(after)) };
    // Depth from the start, then the written order: stable and readable.
    let mut depth = vec![0usize; after.len()];
    for node in &order {
        let deepest = list(after, node.index()).iter().map(|ix| value(&depth, ix.index()) + 1).max();
        if let Some(place) = depth.get_mut(node.index()) {
            *place = deepest.unwrap_or(0);
        }
    }
    order.sort_by_key(|node| (value(&depth, node.index()), node.index()));
    Ok(order.into_iter().map(|node| StepIx(node.index() as u32)).collect())
}

/// A cycle, each step followed by one that waits for it. It is the shortest through the first step that is found
/// on one, and starts with the step that was written first.
fn cycle(after: &[Vec<StepIx>]) -> Vec<StepIx> {
    // Take away what can be ordered: from every step that stays, some dependency leads on for ever.
    let before = turned(after);
    let mut missing: Vec<usize> = after.iter().map(Vec::len).collect();
    let mut free: Vec<usize> = (0..after.len()).filter(|n| value(&missing, *n) == 0).collect();
    while let Some(n) = free.pop() {
        for next in list(&before, n) {
            if let Some(count) = missing.get_mut(next.index()) {
                *count -= 1;
                if *count == 0 {
                    free.push(next.index());
                }
            }
        }
    }
    let stays = |n: usize| value(&missing, n) > 0;
    let Some(mut on_cycle) = (0..after.len()).find(|n| stays(*n)) else { return Vec::new() };
    let mut seen = vec![false; after.len()];
    while seen.get_mut(on_cycle).is_some_and(|seen| !std::mem::replace(seen, true)) {
        let Some(next) = list(after, on_cycle).iter().find(|ix| stays(ix.index())) else { break };
        on_cycle = next.index();
    }

    // From it along "comes before" until it comes again.
    let mut came_from = vec![None; after.len()];
    let mut todo = VecDeque::from([on_cycle]);
    'search: while let Some(n) = todo.pop_front() {
        for next in list(&before, n).iter().map(|ix| ix.index()).filter(|n| stays(*n)) {
            if let Some(place) = came_from.get_mut(next)
                && place.is_none()
            {
                *place = Some(n);
                if next == on_cycle {
                    break 'search;
                }
                todo.push_back(next);
            }
        }
    }
    let mut cycle = vec![on_cycle];
    let mut at = on_cycle;
    while let Some(Some(from)) = came_from.get(at)
        && *from != on_cycle
    {
        at = *from;
        cycle.push(at);
    }
    cycle.reverse();
    let first = cycle.iter().enumerate().min_by_key(|(_, n)| **n).map_or(0, |(place, _)| place);
    cycle.rotate_left(first);
    cycle.extend(cycle.first().copied());
    cycle.into_iter().map(|n| StepIx(n as u32)).collect()
}

fn list(edges: &[Vec<StepIx>], n: usize) -> &[StepIx] {
    edges.get(n).map_or(&[], Vec::as_slice)
}

fn value(numbers: &[usize], n: usize) -> usize {
    numbers.get(n).copied().unwrap_or(0)
}

/// The edges the other way round.
pub(super) fn turned(after: &[Vec<StepIx>]) -> Vec<Vec<StepIx>> {
    let mut before = vec![Vec::new(); after.len()];
    for (n, dependencies) in after.iter().enumerate() {
        for dependency in dependencies {
            if let Some(list) = before.get_mut(dependency.index()) {
                list.push(StepIx(n as u32));
            }
        }
    }
    before
}

/// Who comes after whom, over any number of steps between: one bit for each pair.
pub(super) struct Reach {
    ancestors: Vec<Vec<u64>>,
}

impl Reach {
    pub(super) fn new(after: &[Vec<StepIx>], order: &[StepIx]) -> Self {
        let words = after.len().div_ceil(64);
        let mut ancestors: Vec<Vec<u64>> = vec![Vec::new(); after.len()];
        for ix in order {
            let mut bits = vec![0u64; words];
            for dependency in list(after, ix.index()) {
                if let Some(inherited) = ancestors.get(dependency.index()) {
                    for (bit, more) in bits.iter_mut().zip(inherited) {
                        *bit |= more;
                    }
                }
                if let Some(word) = bits.get_mut(dependency.index() / 64) {
                    *word |= 1 << (dependency.index() % 64);
                }
            }
            if let Some(place) = ancestors.get_mut(ix.index()) {
                *place = bits;
            }
        }
        Self { ancestors }
    }

    pub(super) fn comes_after(&self, step: StepIx, other: StepIx) -> bool {
        let word = self.ancestors.get(step.index()).and_then(|bits| bits.get(other.index() / 64));
        word.is_some_and(|word| word >> (other.index() % 64) & 1 == 1)
    }
}
