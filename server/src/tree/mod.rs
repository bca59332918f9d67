//! A run on a terminal: folded from its journal, drawn as a tree, again and again.

mod draw;
mod screen;
mod view;

pub(crate) use draw::tree;
pub(crate) use screen::{Screen, wants_colour};
pub(crate) use view::{View, seconds};
