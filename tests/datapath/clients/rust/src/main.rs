//! Runs one scenario with sqlx: a job in JSON on stdin, a report in JSON on stdout.

mod scenarios;
mod soak;

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Read;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default)]
struct Counts {
    statements: usize,
    wrong: usize,
    errors: BTreeMap<String, usize>,
}

/// Counts of a run, shared by its connections.
#[derive(Clone, Default)]
pub struct Report(Arc<Mutex<Counts>>);

impl Report {
    pub fn count(&self, statements: usize, wrong: usize) {
        let mut counts = self.0.lock().unwrap();
        counts.statements += statements;
        counts.wrong += wrong;
    }

    fn failed(&self, error: &Failure) {
        *self
            .0
            .lock()
            .unwrap()
            .errors
            .entry(error.to_string())
            .or_default() += 1;
    }

    pub fn json(&self, detail: Vec<Value>) -> Value {
        let counts = self.0.lock().unwrap();
        json!({
            "statements": counts.statements,
            "wrong": counts.wrong,
            "errors": counts.errors,
            "detail": detail,
        })
    }
}

/// Run the work for every URL at once, each on a connection of its own; its failures are counted.
pub async fn everywhere<W, F>(urls: Vec<String>, work: W) -> Value
where
    W: Fn(PgConnection, usize, Report) -> F,
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    let report = Report::default();
    let mut running = Vec::new();
    for (index, url) in urls.into_iter().enumerate() {
        match PgConnection::connect(&url).await {
            Ok(connection) => running.push(tokio::spawn(work(connection, index, report.clone()))),
            Err(error) => report.failed(&error.into()),
        }
    }
    let mut detail = Vec::new();
    for task in running {
        detail.push(match task.await.map_err(Failure::from).flatten() {
            Ok(seen) => seen,
            Err(error) => {
                report.failed(&error);
                Value::Null
            }
        });
    }
    report.json(detail)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let job: Value = serde_json::from_str(&text)?;
    let report = match job["scenario"].as_str() {
        Some("isolation") => scenarios::isolation(job).await,
        Some("copy") => scenarios::copy(job).await,
        Some("mixed") => scenarios::mixed(job).await,
        Some("timeouts") => scenarios::timeouts(job).await,
        Some("ddl") => scenarios::ddl(job).await,
        Some("soak") => soak::soak(job).await,
        _ => Err("no such scenario".into()),
    }?;
    println!("{report}");
    Ok(())
}
