//! A run as a small tree of text. States are told by symbol and word; colour only helps.

use backstay_engine::machine::{CourseAt, CourseId, Phase, StepIx, Time};

use super::view::{View, seconds};

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    pub colour: bool,
    pub unicode: bool,
    pub width: usize,
}

/// How a step looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Waits,
    Runs,
    Retries,
    InDoubt,
    Done,
    Failed,
    Held,
    Undoing,
    Undone,
    UndoFailed,
}

impl Look {
    /// Symbol, symbol in ASCII, word, colour.
    fn parts(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Look::Waits => ("·", ".", "not begun", "2"),
            Look::Runs => ("►", ">", "running", "36"),
            Look::Retries => ("↻", "~", "retries", "33"),
            Look::InDoubt => ("?", "?", "in doubt", "33"),
            Look::Done => ("✓", "+", "done", "32"),
            Look::Failed => ("✗", "x", "failed", "31"),
            Look::Held => ("‖", "=", "held", "33"),
            Look::Undoing => ("◄", "<", "undoing", "35"),
            Look::Undone => ("↶", "u", "undone", "35"),
            Look::UndoFailed => ("!", "!", "undo failed", "31"),
        }
    }
}

/// The run, and its steps, a line each.
pub(crate) fn tree(view: &View, now: Time, style: &Style) -> Vec<String> {
    let plan = view.plan();
    let levels = levels(view);
    let name_width = plan.steps().map(|(_, step)| step.name.chars().count()).max().unwrap_or(0);
    let state = &view.state;
    let status = state.status().as_str().replace('_', " ");
    let until = if state.status().is_end() { state.at().unwrap_or(now) } else { now };
    let head = format!("  {status}  {}  run {}", seconds(until - view.begun), state.run());
    let mut lines = vec![clipped(&head, style.width - 1, style.unicode)];
    if let Some(because) = &view.because {
        lines.push(clipped(&format!("  because {because}"), style.width - 1, style.unicode));
    }
    for level in &levels {
        for (n, ix) in level.iter().enumerate() {
            let branch = match (level.len(), n + 1 == level.len(), style.unicode) {
                (1, ..) => "  ",
                (_, false, true) => "├ ",
                (_, true, true) => "└ ",
                (_, false, false) => "| ",
                (_, true, false) => "` ",
            };
            lines.push(format!("  {branch}{}", line(view, *ix, now, style, name_width)));
        }
    }
    lines
}

/// Steps that may run side by side stand on one level.
fn levels(view: &View) -> Vec<Vec<StepIx>> {
    let plan = view.plan();
    let mut depth = vec![0usize; plan.len()];
    let mut levels: Vec<Vec<StepIx>> = Vec::new();
    for &ix in plan.order() {
        let above = plan.step(ix).after.iter().filter_map(|before| depth.get(before.index()));
        let mine = above.max().map_or(0, |deepest| deepest + 1);
        if let Some(place) = depth.get_mut(ix.index()) {
            *place = mine;
        }
        if levels.len() <= mine {
            levels.resize_with(mine + 1, Vec::new);
        }
        if let Some(level) = levels.get_mut(mine) {
            level.push(ix);
        }
    }
    // What is done at the commit comes after everything.
    let at_the_commit: Vec<_> = plan.order().iter().copied().filter(|ix| plan.step(*ix).finalize).collect();
    levels.iter_mut().for_each(|level| level.retain(|ix| !at_the_commit.contains(ix)));
    levels.push(at_the_commit);
    levels.retain(|level| !level.is_empty());
    for level in &mut levels {
        level.sort();
    }
    levels
}

fn line(view: &View, ix: StepIx, now: Time, style: &Style, name_width: usize) -> String {
    let (look, course, mut detail) = look(view, ix, now);
    let trace = view.trace(course).filter(|_| look != Look::Waits);
    let took = trace.map_or(String::new(), |trace| seconds(trace.took(now)));
    let (symbol, ascii, word, colour) = look.parts();
    let symbol = if style.unicode { symbol } else { ascii };
    let name = &view.plan().step(ix).name;
    let head = format!("{symbol} {name:<name_width$}  {word:<9} {took:>8}");
    // Two for the margin, two for the branch, one so that no line is ever wrapped.
    let room = style.width.saturating_sub(5 + head.chars().count());
    if look == Look::Runs
        && let Some((percent, note)) = trace.and_then(|trace| trace.progress.as_ref())
    {
        let long = (room / 3).clamp(6, 24);
        let full = (percent / 100.0 * long as f64).round() as usize;
        let (on, off) = if style.unicode { ("█", "░") } else { ("#", "-") };
        let bar = format!("{}{}", on.repeat(full.min(long)), off.repeat(long - full.min(long)));
        let short = format!("{bar} {percent:>3.0} %");
        let more = [detail.as_str(), note].into_iter().filter(|text| !text.is_empty());
        let long = format!("{short}  {}", more.collect::<Vec<_>>().join(", "));
        detail = if long.chars().count() + 2 > room { short } else { long };
    }
    let detail = if detail.is_empty() { detail } else { format!("  {detail}") };
    let detail = clipped(detail.trim_end(), room, style.unicode);
    if style.colour {
        format!("\x1b[{colour}m{head}\x1b[0m{detail}")
    } else {
        format!("{head}{detail}").trim_end().into()
    }
}

fn look(view: &View, ix: StepIx, now: Time) -> (Look, CourseId, String) {
    let (forward, undo) = (CourseId::forward(ix), CourseId::undo(ix));
    let state = &view.state;
    let error = |course| view.trace(course).and_then(|trace| trace.error.clone()).unwrap_or_default();
    let attempts = |course| match state.course(course).attempts {
        0 | 1 => String::new(),
        n => format!("attempt {n}"),
    };
    let again = |course, until: Time| {
        let wait = seconds(until - now);
        format!("again in {wait}; attempt {} failed: {}", state.course(course).attempts, error(course))
    };
    match &state.course(undo).at {
        CourseAt::Untouched | CourseAt::Waiting(_) => {}
        CourseAt::Skipped { .. } => return (Look::Undone, undo, "by hand".into()),
        CourseAt::Running => return (Look::Undoing, undo, attempts(undo)),
        CourseAt::BackingOff { until } => return (Look::Undoing, undo, again(undo, *until)),
        CourseAt::InDoubt { .. } => return (Look::InDoubt, undo, "its undo is simply done again".into()),
        CourseAt::Succeeded { .. } => {
            let detail = match &state.course(forward).at {
                CourseAt::Failed { error } => format!("had failed: {}", error.message),
                CourseAt::Succeeded { .. } => String::new(),
                _ => "had not come to its end".into(),
            };
            return (Look::Undone, undo, detail);
        }
        CourseAt::Failed { error } => return (Look::UndoFailed, undo, error.message.clone()),
        CourseAt::Held { why } => return (Look::Held, undo, why.clone()),
    }
    let step = view.plan().step(ix);
    match &state.course(forward).at {
        CourseAt::Untouched => (Look::Waits, forward, String::new()),
        CourseAt::Running => (Look::Runs, forward, attempts(forward)),
        CourseAt::Waiting(_) => (Look::Waits, forward, state.waits_for().unwrap_or_default()),
        CourseAt::Skipped { .. } => (Look::Done, forward, "an operator says so".into()),
        CourseAt::BackingOff { until } => (Look::Retries, forward, again(forward, *until)),
        CourseAt::InDoubt { .. } => {
            (Look::InDoubt, forward, "it began, and nobody knows whether it had its effect".into())
        }
        CourseAt::Succeeded { .. } if step.undo.is_none() && state.phase() == Phase::RollingBack => {
            (Look::Done, forward, "nothing to undo".into())
        }
        CourseAt::Succeeded { .. } => (Look::Done, forward, attempts(forward)),
        CourseAt::Failed { error } => (Look::Failed, forward, error.message.clone()),
        CourseAt::Held { why } => (Look::Held, forward, why.clone()),
    }
}

fn clipped(text: &str, room: usize, unicode: bool) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let end = if unicode { "…" } else { "..." };
    let keep = room.saturating_sub(end.chars().count());
    if keep < 6 {
        return String::new();
    }
    let kept: String = text.chars().take(keep).collect();
    format!("{}{end}", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backstay_activities::Log;
    use backstay_engine::machine::plan::Output;
    use backstay_engine::machine::{
        ActivityError, Applied, CourseId, Epoch, Event, Journaled, Json, StepEvent, Time, idempotency_key,
    };
    use backstay_engine::{Plan, PlanBuilder, Registry, RunId};
    use chrono::TimeDelta;
    use serde_json::json;

    use super::super::View;
    use super::{Style, tree};

    fn at(ms: i64) -> Time {
        Time::UNIX_EPOCH + TimeDelta::milliseconds(ms)
    }

    /// Two disks to be copied for a machine, one after a snapshot.
    fn plan() -> Arc<Plan> {
        let mut plan = PlanBuilder::new("move");
        let step = |plan: &mut PlanBuilder, name: &str, after: &[Output]| {
            plan.step(name, "log")
                .input(json!({ "text": name }))
                .after(after)
                .nothing_to_undo("it only says so")
        };
        let snapshot = step(&mut plan, "snapshot", &[]);
        let copies =
            ["copy-disk-0", "copy-disk-1"].map(|name| step(&mut plan, name, std::slice::from_ref(&snapshot)));
        let vm = step(&mut plan, "create-vm", &copies);
        let attached = step(&mut plan, "attach", &[vm]);
        step(&mut plan, "check", &[attached]);
        plan.check(&Registry::new().with(Log)).unwrap()
    }

    /// A run of it, half way: a step is done, one runs, one failed and waits.
    fn half_way() -> View {
        let plan = plan();
        let run: RunId = "01a1fc20-324d-77f1-9755-eac4a11cc462".parse().unwrap();
        let step = |name: &str, what| {
            let course = CourseId::forward(plan.find(name).unwrap());
            Event::Step { course, generation: 0, attempt: 1, what }
        };
        let started = |name: &str| {
            let key = idempotency_key(run, name, backstay_engine::machine::Direction::Forward, 0);
            step(name, StepEvent::Started { key, input: Some(Json::null()) })
        };
        let error = ActivityError {
            code: "busy".into(),
            message: "the disk on old-host is being read by somebody else".into(),
            retryable: true,
            retry_after: None,
            applied: Applied::No,
            details: None,
        };
        let events = [
            (0, Event::Submitted { by: None }),
            (0, started("snapshot")),
            (900, step("snapshot", StepEvent::Succeeded { output: Json::null() })),
            (900, started("copy-disk-0")),
            (900, started("copy-disk-1")),
            (
                1_500,
                step("copy-disk-0", StepEvent::Progressed { percent: 50.0, note: "1.0 of 2.0 MiB".into() }),
            ),
            (1_600, step("copy-disk-1", StepEvent::Failed { error, retry_at: Some(at(2_400)) })),
        ];
        let mut view = None;
        for (seq, (ms, event)) in (1..).zip(events) {
            let row = Journaled { seq, claim: 0, epoch: Epoch(1), at: at(ms), event }.to_row(&plan);
            let view: &mut View = view.get_or_insert_with(|| View::begin(run, &row).unwrap());
            view.take(&row).unwrap();
        }
        view.unwrap()
    }

    #[test]
    fn a_tree_says_by_symbol_and_word_how_each_step_is() {
        let style = Style { colour: false, unicode: true, width: 100 };
        let drawn = tree(&half_way(), at(2_000), &style).join("\n");
        let expected = "  running  2.0 s  run 01a1fc20-324d-77f1-9755-eac4a11cc462
    ✓ snapshot     done         0.9 s
  ├ ► copy-disk-0  running      1.1 s  ██████████░░░░░░░░░░  50 %  1.0 of 2.0 MiB
  └ ↻ copy-disk-1  retries      0.7 s  again in 0.4 s; attempt 1 failed: the disk on old-host is b…
    · create-vm    not begun
    · attach       not begun
    · check        not begun";
        assert_eq!(drawn, expected, "{drawn}");
    }

    #[test]
    fn a_tree_fits_into_any_terminal() {
        for (width, unicode, colour) in
            [(40, true, false), (60, false, false), (60, true, true), (250, true, true)]
        {
            let drawn = tree(&half_way(), at(2_000), &Style { colour, unicode, width });
            for line in drawn {
                let bare: String = line.replace("\x1b[0m", "");
                let colours = bare.matches('\x1b').count() * "\x1b[32m".len();
                assert!(bare.chars().count() - colours < width, "{width}: {line:?}");
                assert!(unicode || line.is_ascii(), "{line}");
                assert!(colour || !line.contains('\x1b'), "{line:?}");
            }
        }
    }
}
