//! The soak: varied work until the time is over, each answer checked. What failed and what was wrong is kept with
//! its time; who asks judges what of it is explained.

use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::TryStreamExt;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::{Failure, Report};

const MOST: usize = 500;
const MANY: u64 = 300;
const STEPS: usize = 9;

struct Soaker {
    url: String,
    expected: String,
    name: String,
    index: i32,
    seconds: f64,
    lifetime: f64,
    pause: f64,
    report: Report,
    failed: Vec<Value>,
    wrong: Vec<Value>,
    state: u64,
}

pub async fn soak(job: Value) -> Result<Value, Failure> {
    let report = Report::default();
    let urls = job["urls"].as_array().cloned().unwrap_or_default();
    let mut running = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        let client = Soaker {
            url: url.as_str().unwrap_or_default().to_owned(),
            expected: job["expect"][index].as_str().unwrap_or_default().to_owned(),
            name: format!("{}-{index}", job["client"].as_str().unwrap_or_default()),
            index: index as i32,
            seconds: job["seconds"].as_f64().unwrap_or_default(),
            lifetime: job["lifetimes"][index].as_f64().unwrap_or_default(),
            pause: job["pause"].as_f64().unwrap_or_default(),
            report: report.clone(),
            failed: Vec::new(),
            wrong: Vec::new(),
            state: (now() * 1e6) as u64 + index as u64,
        };
        running.push(tokio::spawn(client.run()));
    }
    let mut detail = Vec::new();
    for task in running {
        detail.push(task.await?);
    }
    Ok(report.json(detail))
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

fn code(error: &sqlx::Error) -> String {
    let refused = error.as_database_error();
    refused
        .and_then(|one| one.code())
        .unwrap_or_default()
        .into_owned()
}

impl Soaker {
    async fn run(mut self) -> Value {
        let end = Instant::now() + Duration::from_secs_f64(self.seconds);
        let mut opened = Instant::now();
        let mut connection: Option<PgConnection> = None;
        let mut round = self.index as usize;
        while Instant::now() < end {
            if connection.is_none() {
                match PgConnection::connect(&self.url).await {
                    Ok(made) => connection = Some(made),
                    Err(error) => self.fails(&error),
                }
                opened = Instant::now();
            }
            if let Some(open) = connection.as_mut()
                && let Err(error) = self.step(open, round % STEPS).await
            {
                self.fails(&error);
                // A connection goes on after a stale plan, as it would with PostgreSQL itself.
                if code(&error) != "0A000" {
                    connection = None;
                }
            }
            if self.lifetime > 0.0
                && opened.elapsed().as_secs_f64() > self.lifetime
                && let Some(old) = connection.take()
            {
                let _ = old.close().await;
            }
            let factor = 0.5 + (self.random() % 1000) as f64 / 1000.0;
            tokio::time::sleep(Duration::from_secs_f64(self.pause * factor)).await;
            round += 1;
        }
        if let Some(old) = connection.take() {
            let _ = old.close().await;
        }
        json!({"failed": self.failed, "wrong": self.wrong})
    }

    async fn step(&mut self, connection: &mut PgConnection, which: usize) -> Result<(), sqlx::Error> {
        match which {
            0 | 5 => self.own(connection).await,
            1 => self.typed(connection).await,
            2 => self.transaction(connection).await,
            3 => self.copies(connection).await,
            4 => self.changing(connection).await,
            6 => self.big(connection).await,
            7 => self.refused(connection).await,
            _ => self.many(connection).await,
        }
    }

    fn fails(&mut self, error: &sqlx::Error) {
        if self.failed.len() < MOST {
            self.failed.push(json!([now(), error.to_string()]));
        }
    }

    fn check<T: PartialEq + Debug>(&mut self, what: &str, found: T, expected: T) {
        let right = found == expected;
        self.report.count(1, usize::from(!right));
        if !right && self.wrong.len() < MOST {
            let mut text = format!("{what}: {found:?}, not {expected:?}");
            text.truncate(300);
            self.wrong.push(json!([now(), text]));
        }
    }

    /// xorshift64
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    fn token(&mut self) -> String {
        format!("{:016x}", self.random())
    }

    async fn own(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        for persistent in [true, false] {
            let mine = self.token();
            let query = sqlx::query("select name, $1::text from who").persistent(persistent);
            let row = query.bind(&mine).fetch_one(&mut *connection).await?;
            let expected = (self.expected.clone(), mine);
            self.check("own schema", (row.get(0), row.get(1)), expected);
        }
        Ok(())
    }

    async fn typed(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let (number, mine) = (self.random() as i64, format!("naïve {}", self.token()));
        let row = sqlx::query("select $1::int8, $2::text, $3::bytea, $4::int8[], $5::float8")
            .bind(number)
            .bind(&mine)
            .bind(mine.as_bytes())
            .bind(vec![1, number])
            .bind(None::<f64>)
            .fetch_one(connection)
            .await?;
        let found: (i64, String, Vec<u8>, Vec<i64>, Option<f64>) =
            (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4));
        let bytes = mine.clone().into_bytes();
        self.check("typed", found, (number, mine, bytes, vec![1, number], None));
        Ok(())
    }

    async fn transaction(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        for n in 0..3 {
            let body = self.token();
            let query = sqlx::query_scalar("insert into work values ($1, $2, $3) returning n");
            let query = query.bind(&self.name).bind(n).bind(body);
            let found: i32 = query.fetch_one(&mut *transaction).await?;
            self.check("insert", found, n);
        }
        let query = sqlx::query_scalar("select count(*) from work where client = $1");
        let count: i64 = query
            .bind(&self.name)
            .fetch_one(&mut *transaction)
            .await?;
        self.check("count", count, 3);
        self.report.count(2, 0);
        transaction.rollback().await
    }

    async fn copies(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut lines = String::new();
        for n in 0..60 {
            let body = self.token();
            lines += &format!("{}\t{n}\t{body}\n", self.name);
        }
        let mut transaction = connection.begin().await?;
        let mut copy = transaction.copy_in_raw("copy work from stdin").await?;
        copy.send(lines.as_bytes()).await?;
        self.check("copy in", copy.finish().await?, 60);
        let name = &self.name;
        let text = format!("copy (select * from work where client = '{name}' order by n) to stdout");
        let mut back = Vec::new();
        {
            let mut stream = transaction.copy_out_raw(&text).await?;
            while let Some(part) = stream.try_next().await? {
                back.extend_from_slice(&part);
            }
        }
        self.check("copy", String::from_utf8_lossy(&back).into_owned(), lines);
        self.report.count(2, 0);
        transaction.rollback().await
    }

    async fn changing(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let query = sqlx::query("select * from public.changing where id = $1").bind(1);
        let row = query.fetch_one(connection).await?;
        self.check("changed table", row.get::<String, _>("name"), "one".to_owned());
        Ok(())
    }

    async fn big(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mine = self.token();
        let query = sqlx::query_scalar("select repeat($1::text, 10000)").bind(&mine);
        let text: String = query.fetch_one(&mut *connection).await?;
        self.check("big row", text == mine.repeat(10000), true);
        let query = sqlx::query_scalar("select md5($1::text) = md5(repeat($2, 10000))");
        let same: bool = query.bind(&text).bind(&mine).fetch_one(connection).await?;
        self.check("big parameter", same, true);
        Ok(())
    }

    async fn refused(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let query = sqlx::query_scalar::<_, i32>("select 1 / $1::int4").bind(0);
        let found = match query.fetch_one(&mut *connection).await {
            Ok(_) => "no error".to_owned(),
            Err(error) if code(&error) == "22012" => code(&error),
            Err(error) => return Err(error),
        };
        self.check("error", found, "22012".to_owned());
        let one: i32 = sqlx::query_scalar("select 1").fetch_one(connection).await?;
        self.check("after the error", one, 1);
        Ok(())
    }

    async fn many(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        for _ in 0..3 {
            let which = (self.random() % MANY) as i32;
            let query = sqlx::query_scalar(AssertSqlSafe(format!("select {which} + $1::int4")));
            let sum: i32 = query.bind(self.index).fetch_one(&mut *connection).await?;
            self.check("many statements", sum, which + self.index);
        }
        Ok(())
    }
}
