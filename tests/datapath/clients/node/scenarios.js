// The scenarios, for any library that open() stands for. Each answers with counts and what was seen, which a
// run straight to PostgreSQL must repeat.
'use strict';

const crypto = require('node:crypto');

const CACHED_PLAN = 'cached plan must not change result type';

class Report {
  statements = 0;
  wrong = 0;
  errors = {};
  detail = [];

  failed(error) {
    const text = describe(error);
    this.errors[text] = (this.errors[text] ?? 0) + 1;
  }
}

const describe = (error) => `${error.code ?? ''} ${error.message}`.trim();
const digest = (text) => crypto.createHash('sha256').update(text).digest('hex').slice(0, 16);

/** Run the work for every URL at once, each on a connection of its own; its failures are counted. */
async function everywhere(open, urls, report, work) {
  await Promise.all(
    urls.map(async (url, index) => {
      let connection;
      try {
        connection = await open(url);
        report.detail[index] = await work(connection, index);
      } catch (error) {
        report.failed(error);
      } finally {
        await connection?.close();
      }
    }),
  );
  return report;
}

function isolation(open, { urls, expect, rounds }) {
  const report = new Report();
  const text = 'select name from who';
  return everywhere(open, urls, report, async (connection, index) => {
    const ways = [
      () => connection.simple(text),
      () => connection.prepared('who', text, []),
      () => connection.unnamed(text, []),
    ];
    let wrong = 0;
    for (let round = 0; round < rounds; round++) {
      report.statements++;
      const [row] = await ways[round % ways.length]();
      if (row.name !== expect[index]) wrong++;
    }
    report.wrong += wrong;
    return wrong;
  });
}

function copy(open, { urls, table, rounds }) {
  const report = new Report();
  return everywhere(open, urls, report, async (connection, client) => {
    const lines = Array.from({ length: rounds }, (_, n) => `${client}\t${n}\tbody ${client} ${n}\n`);
    const seen = [];
    await connection.copyIn(`copy ${table} from stdin`, lines);
    report.statements++;
    if (connection.reportsRefusedCopy) {
      const refused = connection.copyIn(`copy ${table} from stdin`, [`${client}\t-1\trefused\n`]);
      seen.push(await outcome(report, refused));
    }
    const back = await connection.copyOut(`copy (select * from ${table} where client = ${client} order by n) to stdout`);
    report.statements++;
    if (back !== lines.join('')) report.wrong++;
    seen.push(digest(back), await connection.simple('select 1 as one'));
    report.statements++;
    return seen;
  });
}

/** The rows, or the error's code where the server refuses; what is no answer of the server is thrown. */
async function outcome(report, promise) {
  report.statements++;
  try {
    return await promise;
  } catch (error) {
    if (!/^[0-9A-Z]{5}$/.test(error.code ?? '')) throw error;
    return error.code;
  }
}

function mixed(open, { urls, table, rounds }) {
  const report = new Report();
  return everywhere(open, urls, report, async (connection, client) => {
    const seen = [];
    const step = async (promise) => seen.push(await outcome(report, promise));
    const insert = (n) =>
      connection.prepared('insert', `insert into ${table} values ($1, $2, $3) returning n`, [client, n, `row ${n}`]);
    const count = () => connection.prepared('count', `select count(*)::int from ${table} where client = $1`, [client]);

    const typed = 'select $1::int8 a, $2::text b, $3::bytea c, $4::timestamptz d, $5::jsonb e, $6::int4[] f, $7::text g';
    const values = [2 ** 40, `naïve ${client}`, Buffer.from([0, 255, client]), new Date(86400000), { client }, [1, client], null];
    for (let n = 0; n < 3; n++) await step(connection.prepared('typed', typed, values));
    await step(connection.unnamed(typed, values));

    // More statements than a server connection keeps, then the first ones again.
    for (let n = 0; n < rounds; n++) {
      const which = n % Math.ceil(rounds * 0.8);
      await step(connection.prepared(`many${which}`, `select ${which} + $1::int as sum`, [client]));
    }

    await step(connection.simple('begin'));
    await step(insert(1));
    await step(insert(1));
    await step(count());
    await step(connection.simple('commit'));
    await step(count());

    await step(connection.simple('begin'));
    for (let n = 1; n <= 5; n++) await step(insert(n));
    await step(connection.simple('rollback'));
    await step(count());

    const together = await connection.atOnce([
      [`insert into ${table} values ($1, $2, 'x') returning n`, [client, 10]],
      ['select 1 / $1::int as quotient', [0]],
      [`insert into ${table} values ($1, $2, 'x') returning n`, [client, 11]],
      ['select nonsense', []],
      [`select n from ${table} where client = $1 order by n`, [client]],
    ]);
    for (const { value, reason } of together) await step(reason ? Promise.reject(reason) : value);
    await step(count());

    const [{ big }] = await connection.prepared('big', 'select repeat($1, 3000000) as big', ['ab']);
    seen.push(big.length, digest(big));
    const [{ size, sum }] = await connection.unnamed('select length($1::text) as size, md5($1::text) as sum', [big]);
    seen.push(size, sum);
    const many = await connection.prepared('rows', 'select n, md5(n::text) as sum from generate_series(1, $1::int) n', [20000]);
    seen.push(many.length, digest(JSON.stringify(many)));
    report.statements += 3;

    await step(connection.cancelled('select pg_sleep(20)', 200));
    await step(count());
    await step(connection.simple("begin; set local work_mem = '77MB'; show work_mem; commit").then(() => 'done'));
    await step(connection.simple('show work_mem'));
    return seen;
  });
}

/** Half of the connections ask for a time limit in their URL, others by the library's own setting, the rest not. */
async function timeouts(open, { urls, plain, seconds }) {
  const report = new Report();
  const ways = [
    ...urls.map((url) => [url, {}]),
    ...plain.flatMap((url) => [
      [url, { statement_timeout: 500 }],
      [url, {}],
    ]),
  ];
  const openWay = ([url, settings]) => open(url, settings);
  return everywhere(openWay, ways, report, (connection) =>
    outcome(report, connection.simple(`select pg_sleep(${seconds})`).then(() => 'finished')),
  );
}

async function ddl(open, { urls, table, rounds, owner }) {
  const report = new Report();
  const altered = await open(owner);
  let waiting = urls.length;
  let release;
  const change = new Promise((done) => (release = done)).then(() =>
    altered.simple(`alter table ${table} add column extra text default 'new'`),
  );
  await everywhere(open, urls, report, async (connection) => {
    let stale = 0;
    const run = async () => {
      for (let round = 0; round < rounds; round++) {
        report.statements++;
        try {
          const [row] = await connection.prepared('row', `select * from ${table} where id = $1`, [1]);
          if (row.name !== 'one') report.wrong++;
        } catch (error) {
          if (!error.message.includes(CACHED_PLAN)) throw error;
          stale++;
        }
      }
    };
    await run();
    if (--waiting === 0) release();
    await change;
    await run();
    return stale;
  });
  await altered.close();
  return report;
}

module.exports = { isolation, copy, mixed, timeouts, ddl };
