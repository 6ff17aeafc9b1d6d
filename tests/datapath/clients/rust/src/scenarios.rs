//! The scenarios. Each reports counts and what was seen, which a run straight to PostgreSQL must repeat.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::sync::Barrier;

use crate::{Failure, Report, everywhere};

const STALE: &str = "cached plan must not change result type";

type Outcome = Result<Value, Failure>;

fn strings(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten();
    texts
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or_default() as usize
}

fn name(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// What was found, or the server's code where it refuses; what is no answer of the server is an error.
fn outcome<T: Into<Value>>(report: &Report, found: Result<T, sqlx::Error>) -> Outcome {
    report.count(1, 0);
    match found {
        Ok(value) => Ok(value.into()),
        Err(sqlx::Error::Database(refused)) => match refused.code() {
            Some(code) if !code.starts_with("08") => Ok(json!(code)),
            _ => Err(refused.message().into()),
        },
        Err(error) => Err(error.into()),
    }
}

pub async fn isolation(job: Value) -> Outcome {
    let rounds = number(&job["rounds"]);
    let expect = strings(&job["expect"]);
    let report = everywhere(strings(&job["urls"]), |mut connection, index, report| {
        let expected = expect[index].clone();
        async move {
            let mut wrong = 0;
            for round in 0..rounds {
                let query = sqlx::query_scalar("select name from who").persistent(round % 2 == 0);
                let found: String = query.fetch_one(&mut connection).await?;
                wrong += usize::from(found != expected);
            }
            report.count(rounds, wrong);
            Ok(json!(wrong))
        }
    });
    Ok(report.await)
}

pub async fn copy(job: Value) -> Outcome {
    let rounds = number(&job["rounds"]);
    let table = name(&job["table"]);
    let report = everywhere(strings(&job["urls"]), |mut connection, client, report| {
        let into = format!("copy {table} from stdin");
        let from = format!("copy (select * from {table} where client = {client} order by n) to stdout");
        async move {
            let lines: String = (0..rounds)
                .map(|n| format!("{client}\t{n}\tbody {client} {n}\n"))
                .collect();
            let written = copy_in(&mut connection, &into, &lines).await?;
            let refused = copy_in(&mut connection, &into, &format!("{client}\t-1\trefused\n")).await;
            let refused = outcome(&report, refused)?;
            let mut back = Vec::new();
            {
                let mut stream = connection.copy_out_raw(&from).await?;
                while let Some(part) = stream.try_next().await? {
                    back.extend_from_slice(&part);
                }
            }
            report.count(2, usize::from(back != lines.as_bytes()));
            let one: i32 = sqlx::query_scalar("select 1").fetch_one(&mut connection).await?;
            Ok(json!([written, refused, back.len(), one]))
        }
    });
    Ok(report.await)
}

async fn copy_in(connection: &mut PgConnection, text: &str, lines: &str) -> Result<u64, sqlx::Error> {
    let mut copy = connection.copy_in_raw(text).await?;
    copy.send(lines.as_bytes()).await?;
    copy.finish().await
}

pub async fn mixed(job: Value) -> Outcome {
    let rounds = number(&job["rounds"]);
    let table = name(&job["table"]);
    let urls = strings(&job["urls"]);
    let other = name(&job["owner"]);
    let report = everywhere(urls, |connection, client, report| {
        steps(
            connection,
            client as i32,
            report,
            table.clone(),
            rounds,
            other.clone(),
        )
    });
    Ok(report.await)
}

async fn steps(
    mut connection: PgConnection,
    client: i32,
    report: Report,
    table: String,
    rounds: usize,
    other: String,
) -> Outcome {
    let mut seen = Vec::new();
    for persistent in [true, true, false] {
        let query = sqlx::query("select $1::int8, $2::text, $3::bytea, $4::int4[], $5::float8")
            .persistent(persistent)
            .bind(1_i64 << 40)
            .bind(format!("naïve {client}"))
            .bind(vec![0_u8, 255])
            .bind(vec![1, client])
            .bind(None::<f64>);
        let row = query.fetch_one(&mut connection).await?;
        let bytes: Vec<u8> = row.get(2);
        let list: Vec<i32> = row.get(3);
        let empty: Option<f64> = row.get(4);
        seen.push(json!([
            row.get::<i64, _>(0),
            row.get::<String, _>(1),
            bytes,
            list,
            empty
        ]));
    }

    // More statements than a server connection keeps, then the first ones again.
    for n in 0..rounds {
        let text = format!("select {} + $1::int", n % (rounds * 4 / 5));
        let found = sqlx::query_scalar::<_, i32>(AssertSqlSafe(text))
            .bind(client)
            .fetch_one(&mut connection)
            .await;
        seen.push(outcome(&report, found)?);
    }

    for commit in [false, true] {
        let mut transaction = connection.begin().await?;
        for n in [1, 2, 2, 3] {
            seen.push(outcome(
                &report,
                insert(&mut transaction, &table, client, n).await,
            )?);
        }
        seen.push(outcome(&report, count(&mut transaction, &table, client).await)?);
        if commit {
            transaction.commit().await?;
        } else {
            transaction.rollback().await?;
        }
        seen.push(outcome(&report, count(&mut connection, &table, client).await)?);
    }
    let mut transaction = connection.begin().await?;
    for n in 10..15 {
        seen.push(outcome(
            &report,
            insert(&mut transaction, &table, client, n).await,
        )?);
    }
    transaction.commit().await?;
    seen.push(outcome(&report, count(&mut connection, &table, client).await)?);

    let big: String = sqlx::query_scalar("select repeat($1, 3000000)")
        .bind("ab")
        .fetch_one(&mut connection)
        .await?;
    let sum: String = sqlx::query_scalar("select md5($1::text)")
        .bind(&big)
        .fetch_one(&mut connection)
        .await?;
    let many = sqlx::query_scalar::<_, i32>("select n from generate_series(1, $1::int) n").bind(20000);
    let many = many.fetch_all(&mut connection).await?;
    seen.push(json!([big.len(), sum, many.iter().sum::<i32>()]));
    report.count(3, 0);

    seen.push(outcome(&report, canceled(&mut connection, &other).await)?);
    seen.push(outcome(&report, count(&mut connection, &table, client).await)?);
    Ok(json!(seen))
}

async fn insert(connection: &mut PgConnection, table: &str, client: i32, n: i32) -> Result<i32, sqlx::Error> {
    let text = format!("insert into {table} values ($1, $2, 'row') returning n");
    sqlx::query_scalar(AssertSqlSafe(text))
        .bind(client)
        .bind(n)
        .fetch_one(connection)
        .await
}

async fn count(connection: &mut PgConnection, table: &str, client: i32) -> Result<i64, sqlx::Error> {
    let text = format!("select count(*) from {table} where client = $1");
    sqlx::query_scalar(AssertSqlSafe(text))
        .bind(client)
        .fetch_one(connection)
        .await
}

/// sqlx sends no cancel requests: a connection straight to PostgreSQL cancels by the process id, which a transaction keeps.
async fn canceled(connection: &mut PgConnection, other: &str) -> Result<String, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let process: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *transaction)
        .await?;
    let url = other.to_owned();
    let cancel = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut second = PgConnection::connect(&url).await?;
        sqlx::query("select pg_cancel_backend($1)")
            .bind(process)
            .execute(&mut second)
            .await
    });
    let found = transaction.execute("select pg_sleep(3)").await;
    transaction.rollback().await?;
    cancel.await.expect("the cancelling task ends")?;
    found.map(|_| "finished".to_owned())
}

pub async fn timeouts(job: Value) -> Outcome {
    let urls = [strings(&job["urls"]), strings(&job["plain"])].concat();
    let text = format!("select pg_sleep({})", job["seconds"]);
    let report = everywhere(urls, |mut connection, _, report| {
        let text = text.clone();
        async move {
            let found = connection.execute(AssertSqlSafe(text)).await;
            outcome(&report, found.map(|_| "finished"))
        }
    });
    Ok(report.await)
}

pub async fn ddl(job: Value) -> Outcome {
    let rounds = number(&job["rounds"]);
    let table = name(&job["table"]);
    let urls = strings(&job["urls"]);
    let mut owner = PgConnection::connect(&name(&job["owner"])).await?;
    let ready = Arc::new(Barrier::new(urls.len() + 1));
    let changed = Arc::new(Barrier::new(urls.len() + 1));
    let change = {
        let (ready, changed) = (ready.clone(), changed.clone());
        let text = format!("alter table {table} add column extra text default 'new'");
        tokio::spawn(async move {
            ready.wait().await;
            let done = owner.execute(AssertSqlSafe(text)).await;
            changed.wait().await;
            done
        })
    };
    let report = everywhere(urls, |mut connection, _, report| {
        let text = format!("select * from {table} where id = $1");
        let (ready, changed) = (ready.clone(), changed.clone());
        async move {
            let mut stale = 0;
            for round in 0..2 * rounds {
                if round == rounds {
                    ready.wait().await;
                    changed.wait().await;
                }
                report.count(1, 0);
                let query = sqlx::query(AssertSqlSafe(text.clone())).bind(1);
                match query.fetch_one(&mut connection).await {
                    Ok(row) => report.count(0, usize::from(row.get::<String, _>("name") != "one")),
                    Err(error) if error.to_string().contains(STALE) => stale += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(json!(stale))
        }
    })
    .await;
    change.await??;
    Ok(report)
}
