//! A trip: flight and hotel side by side, then a car. If one of them cannot be had, the others are given back.
//!
//! Read from the top: two activities and their undos, a plan, a run that goes well, and one that does not.
//!
//!     cargo run -p backstay-engine --example trip

use std::sync::{Arc, Mutex};

use backstay_engine::{
    Activity, Context, Engine, Failure, NodeConfig, Plan, PlanBuilder, Registry, Retry, Status,
    SubmitOptions, async_trait, output,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The world outside: who has booked what. It knows nothing of sagas.
#[derive(Clone, Default)]
struct Agency(Arc<Mutex<Vec<String>>>);

// --- Activities: idempotent effects, each with the activity that undoes it -----------------------------------------

#[derive(Deserialize, JsonSchema)]
struct Wish {
    what: String,
    /// What was booked before; a car is only given to people with a flight.
    with: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Booking {
    booking: String,
}

struct Book(Agency);

#[async_trait]
impl Activity for Book {
    const NAME: &'static str = "book";
    type Input = Wish;
    type Output = Booking;

    async fn run(&self, context: &Context, wish: Wish) -> Result<Booking, Failure> {
        if wish.what == "car on a Sunday" {
            return Err(Failure::permanent("closed", "no cars on Sundays").not_applied());
        }
        // The key is the same for every attempt: a second call finds the booking of the first.
        let booking = format!("{}:{}", wish.what, context.key());
        let mut booked = self.0.0.lock().map_err(|_| Failure::retryable("agency", "it is upset"))?;
        if !booked.contains(&booking) {
            booked.push(booking.clone());
        }
        let _ = wish.with;
        Ok(Booking { booking })
    }
}

#[derive(Deserialize, JsonSchema)]
struct Regret {
    /// Null if booking never came to an answer; then there may be one all the same.
    booking: Option<String>,
}

struct Cancel(Agency);

#[async_trait]
impl Activity for Cancel {
    const NAME: &'static str = "cancel";
    type Input = Regret;
    type Output = ();

    async fn run(&self, context: &Context, regret: Regret) -> Result<(), Failure> {
        // An undo is told the key of the step that it undoes: enough to find what no answer ever named.
        let key = context.undone().map(|undone| undone.key.to_string()).unwrap_or_default();
        let mut booked = self.0.0.lock().map_err(|_| Failure::retryable("agency", "it is upset"))?;
        booked.retain(|booking| Some(booking) != regret.booking.as_ref() && !booking.ends_with(&key));
        Ok(())
    }
}

// --- A plan: plain data, checked before anything runs --------------------------------------------------------------

fn trip(engine: &Engine, car: &str) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("trip");
    plan.retry(Retry::never());
    let cancel = json!({ "booking": output("/booking") });
    let flight = plan
        .step("flight", "book")
        .input(json!({ "what": "flight" }))
        .undone_by("cancel", cancel.clone())
        .done();
    let hotel = plan
        .step("hotel", "book")
        .input(json!({ "what": "hotel" }))
        .undone_by("cancel", cancel.clone())
        .done();
    plan.step("car", "book")
        .input(json!({ "what": car, "with": flight.output("/booking") }))
        .after([&flight, &hotel])
        .undone_by("cancel", cancel);
    Ok(plan.check(engine.registry())?)
}

// --- Two runs ------------------------------------------------------------------------------------------------------

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (url, _own) = database().await?;
    let agency = Agency::default();
    let registry = Registry::new().with(Book(agency.clone())).with(Cancel(agency.clone()));
    let engine = Engine::connect(&url, registry).await?;
    let node = engine.start_node(NodeConfig::default()).await?;
    let booked = || agency.0.lock().map(|booked| booked.len()).unwrap_or_default();

    let run = engine.submit(&trip(&engine, "small car")?, SubmitOptions::default()).await?;
    let status = run.ended().await?;
    say(format!("a trip: {}, {} bookings", status.as_str(), booked()));
    anyhow::ensure!(status == Status::Succeeded && booked() == 3);

    let run = engine.submit(&trip(&engine, "car on a Sunday")?, SubmitOptions::default()).await?;
    let id = run.run;
    let status = run.ended().await?;
    say(format!("a trip on Sunday: {}, still {} bookings", status.as_str(), booked()));
    for row in engine.journal(id).await? {
        say(format!(
            "  {:>2} {}{} {}",
            row.seq,
            if row.undo { "undo " } else { "" },
            row.kind,
            row.step.unwrap_or_default()
        ));
    }
    anyhow::ensure!(status == Status::RolledBack && booked() == 3);

    node.drain(std::time::Duration::from_secs(5)).await;
    Ok(())
}

/// The database at DATABASE_URL, or a private one for as long as the example runs.
async fn database() -> anyhow::Result<(String, Option<backstay_postgres::Postgres>)> {
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return Ok((url, None));
    }
    let own = backstay_postgres::Postgres::start(backstay_postgres::Settings::throwaway()?).await?;
    Ok((own.url("postgres"), Some(own)))
}

#[allow(clippy::print_stdout, reason = "an example talks to its reader")]
fn say(line: String) {
    println!("{line}");
}
