//! The graph of a plan: order, cycles, who comes after whom.

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
    match toposort(&graph, None) {
        Ok(mut order) => {
            // Depth from the start, then the written order: stable and readable.
            let mut depth = vec![0usize; after.len()];
            for node in &order {
                let deepest = after
                    .get(node.index())
                    .into_iter()
                    .flatten()
                    .map(|ix| depth.get(ix.index()).copied().unwrap_or(0) + 1)
                    .max();
                if let Some(place) = depth.get_mut(node.index()) {
                    *place = deepest.unwrap_or(0);
                }
            }
            order.sort_by_key(|node| (depth.get(node.index()).copied().unwrap_or(0), node.index()));
            Ok(order.into_iter().map(|node| StepIx(node.index() as u32)).collect())
        }
        Err(stuck) => Err(cycle_through(after, StepIx(stuck.node_id().index() as u32))),
    }
}

/// Walks back along dependencies from a step that is on or behind a cycle until a step comes again.
fn cycle_through(after: &[Vec<StepIx>], start: StepIx) -> Vec<StepIx> {
    // Only steps that cannot be ordered can be on a cycle: from each of them some dependency leads on.
    let mut settled = vec![false; after.len()];
    loop {
        let mut changed = false;
        for (n, dependencies) in after.iter().enumerate() {
            let free = dependencies.iter().all(|ix| settled.get(ix.index()).copied().unwrap_or(true));
            if let Some(place) = settled.get_mut(n)
                && free
                && !*place
            {
                *place = true;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let mut at = start;
    let mut path: Vec<StepIx> = Vec::new();
    let mut seen = vec![None; after.len()];
    loop {
        if let Some(&Some(first)) = seen.get(at.index()) {
            let mut cycle: Vec<_> = path.into_iter().skip(first).collect();
            cycle.push(at);
            cycle.reverse();
            return cycle;
        }
        if let Some(place) = seen.get_mut(at.index()) {
            *place = Some(path.len());
        }
        path.push(at);
        let next = after
            .get(at.index())
            .into_iter()
            .flatten()
            .find(|ix| !settled.get(ix.index()).copied().unwrap_or(true));
        match next {
            Some(&next) => at = next,
            None => return path,
        }
    }
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
            for dependency in after.get(ix.index()).into_iter().flatten() {
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
