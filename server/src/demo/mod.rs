//! `backstay demo`: one procedure, played twice; and gone on with, wherever it was cut off.
//!
//! ```text
//!   stage       the folder that it plays in
//!   activities  what is done there, and undone; files helps
//!   saga        the plan
//!   resumed     what is told of a run that was cut off
//! ```

mod activities;
mod files;
mod resumed;
pub(crate) mod saga;
mod stage;

use std::time::Duration;

use backstay_engine::machine::{Event, Journaled, Row};
use backstay_engine::{
    Engine, EngineError, Node, NodeConfig, RunFilter, RunId, RunInfo, Status, SubmitOptions,
};
use serde_json::json;
use tokio::sync::mpsc;

pub(crate) use activities::activities;

use crate::cli::DemoArgs;
use crate::config::Config;
use crate::database::Database;
use crate::interrupt::Interrupt;
use crate::tree::{Screen, View, seconds, tree};
use crate::trouble::Trouble;
use resumed::Cut;
use saga::{KillAfter, Part};
use stage::Stage;

/// Pictures are drawn so often.
const FRAME: Duration = Duration::from_millis(80);
/// What is in flight at Ctrl-C may take so long to end; the rest is in doubt for the next demo.
const GRACE: Duration = Duration::from_millis(300);

/// Plays the demo.
pub(crate) async fn run(args: &DemoArgs, config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    let kill_after = args.kill_after.as_deref().map(KillAfter::parse).transpose()?;
    // What happens is shown from the journal. Logs only for those who ask.
    if config.log.filter != crate::config::Config::defaults().log.filter {
        crate::log::begin(&config.log);
    }
    let mut screen = Screen::new();
    let stage = Stage::take(&config.data_dir)?;
    let database = Database::open(config, interrupt, |text| eprintln!("{text}")).await?;
    screen.say(&format!("Database: {database}\nFiles: {}", stage.folder().display()));
    let mut demo = Demo { args, kill_after, config, interrupt, stage, screen };
    let played = demo.play(&database).await;
    let Demo { stage, mut screen, .. } = demo;
    let closed = database.close().await;
    match played {
        Ok(()) => {
            closed?;
            stage.leave()
        }
        Err(trouble) => {
            if trouble.text.is_empty() {
                screen.say(
                    "Stopped. Everything so far is in the journal: \"backstay demo\" goes on from here.",
                );
            }
            Err(trouble)
        }
    }
}

struct Demo<'a> {
    args: &'a DemoArgs,
    kill_after: Option<KillAfter>,
    config: &'a Config,
    interrupt: &'a Interrupt,
    stage: Stage,
    screen: Screen,
}

/// How an earlier demo left things.
struct Earlier {
    run: RunId,
    part: Part,
    /// Nobody has to drive it any more.
    over: bool,
    /// It was stopped in good order, not killed.
    handed_over: bool,
    cut: Cut,
}

impl Demo<'_> {
    async fn play(&mut self, database: &Database) -> Result<(), Trouble> {
        let interrupt = self.interrupt;
        let opened = async {
            let store = database.store().await?;
            store.migrate().await?;
            let engine = Engine::open(store, activities()).await?;
            // Before a node takes it up: this is how it was left.
            let earlier = self.earlier(&engine).await?;
            let node = engine.start_node(self.node_config()).await?;
            Ok((engine, earlier, node))
        };
        let (engine, earlier, node) = interrupt.or(opened).await?;
        let told = tokio::select! {
            biased;
            stopped = interrupt.asked() => Err(stopped),
            () = node.ended() => Err(lost()),
            told = self.tell(&engine, earlier) => told,
        };
        end(node, told.is_err()).await;
        engine.store().close().await;
        told
    }

    fn node_config(&self) -> NodeConfig {
        NodeConfig {
            // The next demo here succeeds this one at once; demos in other folders are other nodes.
            name: format!("demo-{}", self.stage.id()),
            progress_every: Duration::from_millis(100),
            // It is meant to be killed.
            max_crashes: i16::MAX,
            ..self.config.node.for_engine()
        }
    }

    /// The newest run in this folder, if a demo was cut off over it.
    async fn earlier(&self, engine: &Engine) -> Result<Option<Earlier>, Trouble> {
        let id = self.stage.id();
        let Some(info) = newest(engine, &id).await? else { return Ok(None) };
        let over = info.status.is_end();
        if over && !self.stage.was_left_at(info.run) {
            return Ok(None);
        }
        if info.status.settles() && !over {
            return Err(Trouble::conflict(format!(
                "Run {} of the last demo in this folder is {} and waits for an operator ({}). Name another folder with \
                 --data-dir.",
                info.run,
                info.status.as_str(),
                info.note.as_deref().unwrap_or("no note")
            )));
        }
        let label = |name: &str| info.labels.get(name).and_then(|value| value.as_str());
        let part = label("part").and_then(Part::of_number).unwrap_or(Part::First);
        let rows = engine.journal(info.run).await?;
        let (view, journal) = fold(info.run, &rows)?;
        let cut = Cut::here(&view.state, &journal);
        Ok(Some(Earlier { run: info.run, part, over, handed_over: info.owner.is_none(), cut }))
    }

    async fn tell(&mut self, engine: &Engine, earlier: Option<Earlier>) -> Result<(), Trouble> {
        let parts: &[Part] = match &earlier {
            None => {
                self.stage.set_up(&Part::ALL.map(Part::vm))?;
                &Part::ALL
            }
            Some(earlier) => {
                self.resume(engine, earlier).await?;
                earlier.part.later()
            }
        };
        for &part in parts {
            let run = self.submit(engine, part).await?;
            self.follow(engine, part, run, None).await?;
        }
        let folder = self.stage.folder().display().to_string();
        self.screen.say(&format!("\nEverything came out as promised. Look around in {folder}."));
        match self.kill_after.take() {
            Some(missed) => self.screen.say(&format!(
                "Nothing was killed: the last demo had come past {} already. The next one begins anew.",
                missed.name
            )),
            None => self.screen.say("Now kill it half way: backstay demo --kill-after copy-disk-0"),
        }
        Ok(())
    }

    /// Goes on with a run that was cut off.
    async fn resume(&mut self, engine: &Engine, earlier: &Earlier) -> Result<(), Trouble> {
        let Earlier { run, part, cut, .. } = earlier;
        let rows = engine.journal(*run).await?;
        let (view, journal) = fold(*run, &rows)?;
        let after = match cut.last {
            Some(course) => format!("after {}", view.name(course)),
            None => "before any step had ended".into(),
        };
        let how = if earlier.handed_over { "stopped" } else { "killed" };
        if !earlier.over {
            self.screen.say(&format!("\nThe last demo was {how} {after}: run {run} goes on."));
            self.stage.plays(*run)?;
            return self.follow(engine, *part, *run, Some(cut)).await;
        }
        self.screen.say(&format!(
            "\nThe last demo was cut off {after}: run {run} was over by then, and the demo goes on."
        ));
        self.headline(*part);
        let tree = tree(&view, view.now(), &self.screen.style());
        self.screen.lines(&tree);
        self.judge(*part, &view)?;
        self.report(cut, &view, &journal)
    }

    async fn submit(&mut self, engine: &Engine, part: Part) -> Result<RunId, Trouble> {
        let plan = saga::plan(part, self.stage.folder(), self.args.quick, engine.registry())?;
        let id = self.stage.id();
        let options = SubmitOptions {
            exclusive: Some(format!("demo {id}")),
            labels: json!({ "demo": id, "part": part.number() }),
            ..SubmitOptions::default()
        };
        if part == Part::Second {
            self.screen.say(&format!(
                "\nNow the same for {}. The plan says: should \"attach\" fail, these are undone: {}. It will fail, as \
                 new-host has one disk slot too few.",
                part.vm(),
                saga::preview(&plan)
            ));
        }
        let run = engine.submit(&plan, options).await?.run;
        self.stage.plays(run)?;
        Ok(run)
    }

    /// Shows a run from its journal until it is over.
    async fn follow(
        &mut self,
        engine: &Engine,
        part: Part,
        run: RunId,
        cut: Option<&Cut>,
    ) -> Result<(), Trouble> {
        self.headline(part);
        let mut rows = journal_of(engine, run);
        let mut frames = tokio::time::interval(FRAME);
        let seen = cut.map_or(0, |cut| cut.seen);
        let mut view: Option<View> = None;
        let mut journal = Vec::new();
        loop {
            tokio::select! {
                biased;
                row = rows.recv() => {
                    let Some(row) = row else { break };
                    let row = row?;
                    let view = match &mut view {
                        Some(view) => view,
                        None => view.insert(View::begin(run, &row)?),
                    };
                    let entry = self.take(view, &row, seen)?;
                    if row.seq > seen {
                        self.kill_if_asked(part, view, &entry);
                    }
                    journal.push(entry);
                    let status = view.state.status();
                    if status.settles() && !status.is_end() {
                        return Err(self.unexpected(view, status));
                    }
                }
                _ = frames.tick() => {
                    if let Some(view) = &view {
                        self.screen.draw(&tree(view, view.now(), &self.screen.style()));
                    }
                }
            }
        }
        let Some(view) = view else {
            return Err(Trouble::failed(format!("The journal of run {run} is empty.")));
        };
        let tree = tree(&view, view.now(), &self.screen.style());
        if self.screen.is_live() {
            self.screen.draw(&tree)
        } else {
            self.screen.lines(&tree)
        }
        self.judge(part, &view)?;
        match cut {
            Some(cut) => self.report(cut, &view, &journal),
            None => Ok(()),
        }
    }

    fn headline(&mut self, part: Part) {
        self.screen.title(&format!("Run {} of 2: {}", part.number(), part.title()));
    }

    /// Takes an event into the view, and says it where nothing is drawn.
    fn take(&mut self, view: &mut View, row: &Row, seen: i64) -> Result<Journaled, Trouble> {
        let before = |view: &View, entry: &Journaled| match &entry.event {
            Event::Step { course, .. } => {
                view.trace(*course).and_then(|trace| trace.progress.as_ref()).map(|(percent, _)| *percent)
            }
            _ => None,
        };
        let coming = Journaled::from_row(row, view.plan()).ok();
        let progress = coming.and_then(|entry| before(view, &entry));
        let entry = view.take(row)?;
        if !self.screen.is_live()
            && row.seq > seen
            && let Some(line) = view.line(&entry.event, progress)
        {
            let time = seconds(entry.at - view.begun);
            self.screen.lines(&[format!("  {time:>8}  {line}")]);
        }
        Ok(entry)
    }

    fn kill_if_asked(&mut self, part: Part, view: &View, entry: &Journaled) {
        let Event::Step { course, what, .. } = &entry.event else { return };
        let asked = self.kill_after.as_ref().is_some_and(|kill| kill.is(part, *course, view.plan()));
        if !asked || !resumed::is_result(what) {
            return;
        }
        self.screen.draw(&tree(view, view.now(), &self.screen.style()));
        self.screen.say(&format!(
            "The result of {} is in the journal, and this process kills itself now. \"backstay demo\" goes on from \
             there.",
            view.name(*course)
        ));
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }

    /// Whether it came out as promised: in the journal, and on the disk.
    fn judge(&mut self, part: Part, view: &View) -> Result<(), Trouble> {
        let status = view.state.status();
        let vm = part.vm();
        let (promised, found, kept) = match part {
            Part::First => (
                Status::Succeeded,
                self.stage.arrived(vm),
                format!("As promised: {vm} is on new-host, and its disks are those of the snapshot."),
            ),
            Part::Second => (
                Status::RolledBack,
                self.stage.never_left(vm),
                format!("As promised: nothing of {vm} is left on new-host, and old-host is as it was."),
            ),
        };
        if status != promised {
            return Err(self.unexpected(view, status));
        }
        found.map_err(|wrong| {
            let run = view.state.run();
            Trouble::failed(format!(
                "Run {run} is {}, but the files are not as promised: {wrong}.",
                status.as_str()
            ))
        })?;
        self.screen.say(&kept);
        Ok(())
    }

    fn unexpected(&self, view: &View, status: Status) -> Trouble {
        let because = view.because.as_deref().unwrap_or("its journal says more");
        Trouble::failed(format!(
            "Run {} is {}, which is not what was promised: {because}. The next \"backstay demo\" begins anew, unless \
             the run waits for an operator.",
            view.state.run(),
            status.as_str()
        ))
    }

    fn report(&mut self, cut: &Cut, view: &View, journal: &[Journaled]) -> Result<(), Trouble> {
        self.screen.say("What was resumed:");
        let told = cut.tell(view, journal).map_err(|broken| {
            Trouble::failed(format!("Run {} broke a promise: {broken}.", view.state.run()))
        })?;
        for sentence in told {
            self.screen.say(&format!("  {sentence}"));
        }
        Ok(())
    }
}

/// The newest run of the demo with this id.
async fn newest(engine: &Engine, id: &str) -> Result<Option<RunInfo>, Trouble> {
    let mut filter = RunFilter { workflow: Some(saga::WORKFLOW.into()), ..RunFilter::default() };
    loop {
        let page = engine.list(&filter).await?;
        let Some(last) = page.last() else { return Ok(None) };
        filter.before = Some(last.run);
        let mine = |info: &RunInfo| info.labels.get("demo").and_then(|demo| demo.as_str()) == Some(id);
        if let Some(info) = page.into_iter().find(mine) {
            return Ok(Some(info));
        }
    }
}

fn fold(run: RunId, rows: &[Row]) -> Result<(View, Vec<Journaled>), Trouble> {
    let Some(first) = rows.first() else {
        return Err(Trouble::failed(format!("The journal of run {run} is empty.")));
    };
    let mut view = View::begin(run, first)?;
    let journal = rows.iter().map(|row| view.take(row)).collect::<Result<_, _>>()?;
    Ok((view, journal))
}

/// A run's events as they become durable, from the first on. It ends with the run.
fn journal_of(engine: &Engine, run: RunId) -> mpsc::Receiver<Result<Row, EngineError>> {
    let (send, rows) = mpsc::channel(64);
    let mut watch = engine.watch(run);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = watch.next() => next,
                () = send.closed() => return,
            };
            let Some(row) = next.transpose() else { return };
            let failed = row.is_err();
            if send.send(row).await.is_err() || failed {
                return;
            }
        }
    });
    rows
}

/// Hands over what is left to do. A node that cannot reach its database any more is not waited for.
async fn end(node: Node, in_trouble: bool) {
    let patience = GRACE + Duration::from_secs(10);
    if tokio::time::timeout(patience, node.drain(GRACE)).await.is_err() && !in_trouble {
        tracing::warn!("the node did not hand over in time");
    }
}

fn lost() -> Trouble {
    Trouble::unreachable(
        "The demo lost its database, or stood still for longer than its lease. Nothing that was journaled is lost: \
         \"backstay demo\" goes on from there.",
    )
}
