//! A picture of a plan: steps in columns, each as far to the right as the longest chain before it.

use std::fmt::Write;

use super::Plan;
use crate::names::StepIx;

const WIDE: usize = 200;
const HIGH: usize = 46;
const GAP_X: usize = 60;
const GAP_Y: usize = 18;
const MARGIN: usize = 20;
/// Characters that fit into a box.
const FITS: usize = 26;

impl Plan {
    /// As SVG. It holds no script and no link, whatever the names in it.
    pub fn to_svg(&self) -> String {
        let columns = self.columns();
        let tallest = columns.iter().map(Vec::len).max().unwrap_or(0);
        let width = 2 * MARGIN + columns.len() * (WIDE + GAP_X) - GAP_X.min(columns.len() * GAP_X);
        let height = 2 * MARGIN + tallest * (HIGH + GAP_Y);
        let mut places = vec![(0, 0); self.len()];
        for (x, column) in columns.iter().enumerate() {
            // In the middle of the picture's height.
            let top = MARGIN + (tallest - column.len()) * (HIGH + GAP_Y) / 2;
            for (y, ix) in column.iter().enumerate() {
                if let Some(place) = places.get_mut(ix.index()) {
                    *place = (MARGIN + x * (WIDE + GAP_X), top + y * (HIGH + GAP_Y));
                }
            }
        }
        let place = |ix: StepIx| places.get(ix.index()).copied().unwrap_or_default();
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"13\" role=\"img\">\n<title>{}</title>\n",
            text(self.workflow(), 200)
        );
        for (ix, step) in self.steps() {
            let (x, y) = place(ix);
            for before in &step.after {
                let (bx, by) = place(*before);
                let (x1, y1, x2, y2) = (bx + WIDE, by + HIGH / 2, x, y + HIGH / 2);
                let bend = (x1 + x2) / 2;
                let _ = writeln!(
                    out,
                    "<path d=\"M{x1} {y1} C{bend} {y1} {bend} {y2} {x2} {y2}\" fill=\"none\" stroke=\"#888\"/>"
                );
            }
        }
        for (ix, step) in self.steps() {
            let (x, y) = place(ix);
            // What cannot be undone has sharp corners and a broken line.
            let (round, dashes) =
                if step.undo.is_some() { (8, "") } else { (0, " stroke-dasharray=\"4 3\"") };
            let below = match &step.undo {
                Some(undo) => format!("{} / {}", step.forward.activity, undo.activity),
                None => step.forward.activity.clone(),
            };
            let _ = writeln!(
                out,
                "<g id=\"s{n}\"><title>{name}</title><rect x=\"{x}\" y=\"{y}\" width=\"{WIDE}\" height=\"{HIGH}\" rx=\"{round}\" \
                 fill=\"#fff\" stroke=\"#444\"{dashes}/><text x=\"{tx}\" y=\"{t1}\">{title}</text>\
                 <text x=\"{tx}\" y=\"{t2}\" fill=\"#666\" font-size=\"11\">{below}</text></g>",
                n = ix.index(),
                name = text(&step.name, 200),
                tx = x + 10,
                t1 = y + 20,
                t2 = y + 36,
                title = text(step.title.as_deref().unwrap_or(&step.name), FITS),
                below = text(&below, FITS + 4),
            );
        }
        out.push_str("</svg>\n");
        out
    }

    /// The steps by column; within one, near those that they come after.
    fn columns(&self) -> Vec<Vec<StepIx>> {
        let mut depth = vec![0_usize; self.len()];
        let mut columns: Vec<Vec<StepIx>> = Vec::new();
        for &ix in self.order() {
            let of = |ix: &StepIx| depth.get(ix.index()).copied().unwrap_or(0);
            let own = self.step(ix).after.iter().map(|before| of(before) + 1).max().unwrap_or(0);
            if let Some(depth) = depth.get_mut(ix.index()) {
                *depth = own;
            }
            if columns.len() <= own {
                columns.resize(own + 1, Vec::new());
            }
            if let Some(column) = columns.get_mut(own) {
                column.push(ix);
            }
        }
        let mut rows = vec![0_usize; depth.len()];
        for column in &mut columns {
            column.sort_by_key(|ix| {
                let after = &self.step(*ix).after;
                let sum: usize = after.iter().filter_map(|before| rows.get(before.index())).sum();
                (sum * 1_000 / after.len().max(1), ix.index())
            });
            for (row, ix) in column.iter().enumerate() {
                if let Some(place) = rows.get_mut(ix.index()) {
                    *place = row;
                }
            }
        }
        columns
    }
}

/// Text that is only text, and not longer than this.
fn text(raw: &str, most: usize) -> String {
    let mut out = String::new();
    for (n, c) in raw.chars().enumerate() {
        if n == most {
            out.push('…');
            break;
        }
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}
