//! `backstay demo`: three failovers in a pretend data centre; and gone on with, wherever it was cut off.
//!
//! ```text
//!   stage       the folder that it plays in
//!   centre      the data centre, and what is so in it
//!   part        the three parts: what is moved, and how it has to end
//!   killed      the process that begins the last part
//!   resumed     what is told of a run that was cut off
//!   visit       what to try while it stays up
//! ```
//!
//! What plays is a server as `backstay serve` starts it, with a configuration that names the pretend systems.

mod centre;
mod killed;
mod part;
mod resumed;
mod stage;
mod visit;

use std::time::Duration;

use backstay_engine::machine::{CourseId, Event, Journaled, Row, StepEvent};
use backstay_engine::{
    Engine, EngineError, Registry, RunFilter, RunId, RunInfo, Status, Store, SubmitOptions,
};
use backstay_workflows::Workflow;
use backstay_workflows::failover::FailoverWorkflow;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::sync::mpsc;

use crate::cli::DemoArgs;
use crate::config::Config;
use crate::database::Database;
use crate::interrupt::Interrupt;
use crate::serve::Server;
use crate::tree::{Screen, View, seconds, tree};
use crate::trouble::Trouble;
use centre::Centre;
use part::{KillAfter, Part};
use resumed::Cut;
use stage::Stage;

/// Pictures are drawn so often.
const FRAME: Duration = Duration::from_millis(80);

/// What this program has to be if it was started in place of virt-v2v-in-place.
pub(crate) fn stand_in(mut arguments: std::env::Args) -> Option<std::process::ExitCode> {
    let pretends = arguments.nth(1).is_some_and(|first| first == centre::PRETEND);
    pretends.then(|| backstay_simulator::virt_v2v::run(arguments.collect()))
}

/// Plays the demo. The last part is begun by a process that is killed in its middle, and ended by this one.
pub(crate) async fn run(args: &DemoArgs, config: &Config, interrupt: &Interrupt) -> Result<(), Trouble> {
    let kill_after = args.kill_after.as_deref().map(KillAfter::parse).transpose()?;
    // What happens is shown from the journal. Logs only for those who ask.
    if config.log.filter != Config::defaults().log.filter {
        crate::log::begin(&config.log);
    }
    let figures = crate::figures::keep()?;
    let sitting = Sitting { args, config, interrupt, figures };
    let leaves_the_last = kill_after.is_none();
    if let Told::AllButTheLast = sitting.play(kill_after, leaves_the_last).await? {
        killed::over_the_last(interrupt).await?;
        sitting.play(None, false).await?;
    }
    Ok(())
}

/// What was told.
enum Told {
    All,
    AllButTheLast,
}

/// With the folder, the data centre and the database open.
struct Sitting<'a> {
    args: &'a DemoArgs,
    config: &'a Config,
    interrupt: &'a Interrupt,
    figures: PrometheusHandle,
}

impl Sitting<'_> {
    async fn play(&self, kill_after: Option<KillAfter>, leaves_the_last: bool) -> Result<Told, Trouble> {
        let Self { args, config, interrupt, figures } = self;
        let mut screen = Screen::new();
        let stage = Stage::take(&config.data_dir)?;
        let centre = Centre::open(stage.folder(), args.quick).await?;
        let own = centre.config(config);
        let database = Database::open(&own, interrupt, |text| eprintln!("{text}")).await?;
        screen.say(&format!("Database: {database}\nEverything else: {}", stage.folder().display()));
        if config.database.url.reveal().is_some() {
            screen.say(
                "The configured database is left alone: nothing real is to be moved in a pretend data centre.",
            );
        }
        let figures = figures.clone();
        let mut demo = Demo {
            args,
            kill_after,
            leaves_the_last,
            config: own,
            interrupt,
            figures,
            stage,
            centre,
            screen,
            spoilt: false,
        };
        let played = demo.play(&database).await;
        let Demo { stage, mut screen, spoilt, .. } = demo;
        let closed = database.close().await;
        match played {
            Ok(told) => {
                closed?;
                match told {
                    Told::All => stage.leave()?,
                    Told::AllButTheLast => stage.rest()?,
                }
                Ok(told)
            }
            Err(trouble) => {
                if trouble.text.is_empty() {
                    screen.say(
                        "Stopped. Everything so far is in the journal: \"backstay demo\" goes on from here.",
                    );
                }
                if spoilt && closed.is_ok() {
                    stage.leave()?;
                }
                Err(trouble)
            }
        }
    }
}

struct Demo<'a> {
    args: &'a DemoArgs,
    kill_after: Option<KillAfter>,
    /// Another process begins the last part.
    leaves_the_last: bool,
    config: Config,
    interrupt: &'a Interrupt,
    figures: PrometheusHandle,
    stage: Stage,
    centre: Centre,
    screen: Screen,
    /// It did not come out as promised, and will not: the next demo begins anew.
    spoilt: bool,
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
    async fn play(&mut self, database: &Database) -> Result<Told, Trouble> {
        let interrupt = self.interrupt;
        let store = interrupt.or(database.store()).await?;
        let played = self.play_on(&store).await;
        store.close().await;
        played
    }

    async fn play_on(&mut self, store: &Store) -> Result<Told, Trouble> {
        let interrupt = self.interrupt;
        let opened = async {
            store.migrate().await?;
            // Before a node takes it up: this is how it was left.
            let earlier = self.earlier(&Engine::open(store.clone(), Registry::new()).await?).await?;
            self.centre.begins(earlier.as_ref().map(|earlier| earlier.part));
            let server = Server::start(&self.config, interrupt, store, self.figures.clone()).await?;
            Ok((earlier, server))
        };
        let (earlier, server) = interrupt.or(opened).await?;
        let told = tokio::select! {
            biased;
            stopped = interrupt.asked() => Err(stopped),
            () = server.node.ended() => Err(lost()),
            told = self.tell(&server.engine, earlier) => told,
        };
        let told = match told {
            Ok(Told::All) if !self.args.quick => self.stay(&server).await.map(|()| Told::All),
            told => told,
        };
        // A node that cannot reach its database any more is not waited for.
        let grace = self.config.node.grace.0;
        let _ = tokio::time::timeout(grace + Duration::from_secs(10), server.end(grace)).await;
        told
    }

    /// Until somebody has seen enough.
    async fn stay(&mut self, server: &Server) -> Result<(), Trouble> {
        let kept = self.stage.folder().to_owned();
        let text = visit::invitation(server, &self.centre, &kept).await?;
        self.screen.lines(&text);
        tokio::select! {
            _ = self.interrupt.asked() => Ok(()),
            () = server.node.ended() => Err(lost()),
        }
    }

    /// The newest run of the story, if a demo was cut off over it.
    async fn earlier(&self, engine: &Engine) -> Result<Option<Earlier>, Trouble> {
        let Some((info, part)) = newest(engine).await? else { return Ok(None) };
        let over = part.is_over(info.status);
        if over && !self.stage.was_left_at(info.run) {
            return Ok(None);
        }
        let rows = engine.journal(info.run).await?;
        let (view, journal) = fold(info.run, &rows)?;
        let cut = Cut::here(&view.state, &journal);
        Ok(Some(Earlier { run: info.run, part, over, handed_over: info.owner.is_none(), cut }))
    }

    async fn tell(&mut self, engine: &Engine, earlier: Option<Earlier>) -> Result<Told, Trouble> {
        let parts: &[Part] = match &earlier {
            None => self.kill_after.as_ref().map_or(&Part::ALL, |kill| kill.part.and_later()),
            Some(earlier) => {
                self.resume(engine, earlier).await?;
                earlier.part.later()
            }
        };
        for &part in parts {
            if part == Part::Lasting && self.leaves_the_last {
                return Ok(Told::AllButTheLast);
            }
            let run = self.submit(engine, part).await?;
            self.follow(engine, part, run, None).await?;
        }
        self.centre.begins(None);
        self.screen.say("\nEverything came out as promised.");
        match self.kill_after.take() {
            Some(missed) => self.screen.say(&format!(
                "Nothing was killed: the last demo had come past {} already. The next one begins anew.",
                missed.name
            )),
            None => self.screen.say("Now kill it where you like: backstay demo --kill-after first:snapshot"),
        }
        Ok(Told::All)
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
        self.judge(*part, &view, &journal)?;
        self.report(cut, &view, &journal)
    }

    async fn submit(&mut self, engine: &Engine, part: Part) -> Result<RunId, Trouble> {
        let wrong = |problems| Trouble::failed(format!("The demo's plan is wrong: {problems:?}"));
        let input = self.centre.look(|estate| part.input(estate, self.args.quick))?;
        let prepared = FailoverWorkflow.prepare(&input).map_err(wrong)?;
        let plan = FailoverWorkflow.checked(&input, engine.registry()).map_err(wrong)?;
        let mut labels = json!(prepared.labels);
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(PART.into(), part.number().into());
        }
        if part == Part::Failing {
            let undone = plan.find(part::FAILING).map(|step| plan.if_fails(step)).unwrap_or_default();
            let undone: Vec<_> = undone.into_iter().map(|undoing| undoing.step).collect();
            self.screen.say(&format!(
                "\nNow for real. The plan says: should \"{}\" fail for good, these are undone: {}.",
                part::FAILING,
                undone.join(", ")
            ));
        }
        self.centre.begins(Some(part));
        let options = SubmitOptions { exclusive: prepared.exclusive, labels, ..SubmitOptions::default() };
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
        let mut rows = journal_of(engine, part, run);
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
        self.judge(part, &view, &journal)?;
        match cut {
            Some(cut) => self.report(cut, &view, &journal),
            None => Ok(()),
        }
    }

    fn headline(&mut self, part: Part) {
        self.screen.title(&format!("Run {} of 3: {}", part.number(), part.title()));
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

    /// Whether it came out as promised: in the journal, and in the data centre.
    fn judge(&mut self, part: Part, view: &View, journal: &[Journaled]) -> Result<(), Trouble> {
        let status = view.state.status();
        if status != part.promised() {
            return Err(self.unexpected(view, status));
        }
        let undone: Vec<_> = journal.iter().filter_map(|entry| undone(view, &entry.event)).collect();
        let truth = self.centre.truth(part, view.state.run());
        self.screen.say("What is so in the data centre, whatever anybody was told:");
        let mut lines = truth.lines;
        if !undone.is_empty() {
            lines.push(format!("undone  {}", undone.join(", ")));
        }
        self.screen.lines(&lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>());
        match truth.wrong {
            None => Ok(()),
            Some(wrong) => {
                self.spoilt = true;
                let (run, status) = (view.state.run(), status.as_str());
                Err(Trouble::failed(format!("Run {run} is {status}, but it is not as promised: {wrong}.")))
            }
        }
    }

    fn unexpected(&mut self, view: &View, status: Status) -> Trouble {
        self.spoilt = true;
        let because = view.because.as_deref().unwrap_or("its journal says more");
        Trouble::failed(format!(
            "Run {} is {}, which is not what was promised: {because}. The next \"backstay demo\" begins anew.",
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

/// The label of the runs of the story.
const PART: &str = "part";

/// The newest run of the story, and its part. Others may have been submitted beside it.
async fn newest(engine: &Engine) -> Result<Option<(RunInfo, Part)>, Trouble> {
    let mut filter = RunFilter::default();
    loop {
        let page = engine.list(&filter).await?;
        let Some(last) = page.last() else { return Ok(None) };
        filter.before = Some(last.run);
        for info in page {
            let part = info.labels.get(PART).and_then(|part| part.as_str()).and_then(Part::of_number);
            if let Some(part) = part {
                return Ok(Some((info, part)));
            }
        }
    }
}

/// The step whose undo has come to its end with this.
fn undone(view: &View, event: &Event) -> Option<String> {
    match event {
        Event::Step { course, what: StepEvent::Succeeded { .. }, .. } => {
            let is_undo = *course == CourseId::undo(course.step);
            is_undo.then(|| view.plan().step(course.step).name.to_string())
        }
        _ => None,
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

/// A run's events as they become durable, from the first on. It ends with the part.
fn journal_of(engine: &Engine, part: Part, run: RunId) -> mpsc::Receiver<Result<Row, EngineError>> {
    let (send, rows) = mpsc::channel(64);
    let engine = engine.clone();
    tokio::spawn(async move {
        let mut seen = 0;
        loop {
            // Before the journal: a run that is over now has all its events there.
            let over = match engine.get(run).await {
                Ok(info) => part.is_over(info.status),
                Err(error) => return drop(send.send(Err(error)).await),
            };
            let mut watch = engine.watch_after(run, seen);
            loop {
                let next = tokio::select! {
                    next = watch.next() => next,
                    () = send.closed() => return,
                };
                let Some(row) = next.transpose() else { break };
                seen = row.as_ref().map_or(seen, |row| row.seq);
                let failed = row.is_err();
                if send.send(row).await.is_err() || failed {
                    return;
                }
            }
            if over {
                return;
            }
            // It has succeeded, and its timer runs.
            tokio::time::sleep(FRAME).await;
        }
    });
    rows
}

fn lost() -> Trouble {
    Trouble::unreachable(
        "The demo lost its database, or stood still for longer than its lease. Nothing that was journaled is lost: \
         \"backstay demo\" goes on from there.",
    )
}
