//! Pictures of a plan, as text that other programs draw.

use std::fmt::Write;

use super::Plan;

impl Plan {
    /// For Graphviz.
    pub fn to_dot(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "digraph {} {{\n  rankdir=LR;\n  node [shape=box, style=rounded];",
            quoted(self.workflow())
        );
        for (ix, step) in self.steps() {
            let _ = writeln!(out, "  s{} [label={}];", ix.index(), quoted(&self.label(ix)));
            for dependency in &step.after {
                let _ = writeln!(out, "  s{} -> s{};", dependency.index(), ix.index());
            }
        }
        out.push_str("}\n");
        out
    }

    /// For Mermaid.
    pub fn to_mermaid(&self) -> String {
        let mut out = String::from("flowchart LR\n");
        for (ix, step) in self.steps() {
            let label: Vec<_> = self.label(ix).lines().map(harmless).collect();
            let _ = writeln!(out, "  s{}[\"{}\"]", ix.index(), label.join("<br/>"));
            for dependency in &step.after {
                let _ = writeln!(out, "  s{} --> s{}", dependency.index(), ix.index());
            }
        }
        out
    }

    fn label(&self, ix: crate::StepIx) -> String {
        let step = self.step(ix);
        let title = step.title.as_deref().unwrap_or(&step.name);
        match &step.undo {
            Some(undo) => format!("{title}\n{} / {}", step.forward.activity, undo.activity),
            None => format!("{title}\n{}", step.forward.activity),
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Mermaid reads HTML, Markdown, entities and whole directives in a label: what is not plain goes in by number.
fn harmless(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c.is_alphanumeric() || matches!(c, ' ' | '-' | '_' | '.' | ',' | ':' | '/' | '(' | ')' | '+') {
            out.push(c);
        } else {
            let _ = write!(out, "#{};", c as u32);
        }
    }
    out
}
