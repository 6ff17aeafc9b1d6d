// The soak: varied work until the time is over, each answer checked against what the client itself knows. A detail
// per connection has what failed and what was wrong, with its time; who asks judges what of it is explained.
'use strict';

const crypto = require('node:crypto');

const MOST = 500;
const MANY = 300;
/** What a changed table may lead to: a stale plan, and another number of columns. The connection goes on. */
const STALE = new Set(['0A000', '08P01']);
const now = () => Date.now() / 1000;
const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const describe = (error) => `${error.code ?? ''} ${error.message}`.trim();

class Client {
  failed = [];
  wrong = [];

  constructor(open, job, index, report) {
    Object.assign(this, { open, job, index, report, name: `${job.client}-${index}`, expected: job.expect[index] });
  }

  /** A loss counts while the connection is in use: postgres.js may say that it has ended one before its socket has. */
  async connect() {
    let connection;
    const lost = () => {
      if (!connection || connection !== this.connection) return;
      this.fails(new Error(`the connection was lost after ${(now() - this.opened).toFixed(1)} s`));
    };
    connection = await this.open(this.job.urls[this.index], {}, lost);
    this.opened = now();
    this.connection = connection;
  }

  async close() {
    const { connection } = this;
    this.connection = undefined;
    await connection?.close().catch(() => {});
  }

  fails(error) {
    if (this.failed.length < MOST) this.failed.push([now(), describe(error)]);
  }

  check(what, found, expected) {
    this.report.statements++;
    if (JSON.stringify(found) === JSON.stringify(expected)) return;
    this.report.wrong++;
    const text = `${what}: ${JSON.stringify(found)}, not ${JSON.stringify(expected)}`;
    if (this.wrong.length < MOST) this.wrong.push([now(), text.slice(0, 300)]);
  }

  async run() {
    const end = now() + this.job.seconds;
    const lifetime = this.job.lifetimes[this.index];
    for (let round = this.index; now() < end; round++) {
      try {
        if (!this.connection) await this.connect();
        await STEPS[round % STEPS.length](this, this.connection, round);
      } catch (error) {
        this.fails(error);
        if (!STALE.has(error.code)) await this.close();
      }
      if (lifetime && this.connection && now() - this.opened > lifetime) await this.close();
      await sleep(this.job.pause * (0.5 + Math.random()));
    }
    await this.close();
    return { failed: this.failed, wrong: this.wrong };
  }
}

const token = () => crypto.randomBytes(8).toString('hex');

async function own(client, connection, round) {
  const mine = token();
  const text = 'select name, $1::text as token from who';
  const ways = [
    () => connection.simple(text.replace('$1', `'${mine}'`)),
    () => connection.prepared('own', text, [mine]),
    () => connection.unnamed(text, [mine]),
  ];
  for (const way of ways) client.check('own schema', await way(), [{ name: client.expected, token: mine }]);
}

async function typed(client, connection) {
  const [mine, number] = [token(), Math.floor(Math.random() * 2 ** 31)];
  const text = 'select $1::int4 a, $2::text b, $3::bytea c, $4::jsonb d, $5::int4[] e, $6::text f';
  const values = [number, `naïve ${mine}`, Buffer.from(mine), { mine }, [1, number], null];
  const [row] = await connection.prepared('typed', text, values);
  client.check('typed', { ...row, c: row.c.toString() }, {
    a: number, b: values[1], c: mine, d: { mine }, e: [1, number], f: null,
  });
}

async function transaction(client, connection) {
  await connection.simple('begin');
  for (let n = 0; n < 3; n++) {
    const text = 'insert into work values ($1, $2, $3) returning n';
    client.check('insert', await connection.prepared('insert', text, [client.name, n, token()]), [{ n }]);
  }
  const count = 'select count(*)::int as count, max(tableoid::regclass::text) as place from work where client = $1';
  client.check('count', await connection.unnamed(count, [client.name]), [{ count: 3, place: 'work' }]);
  await connection.simple('rollback');
  client.report.statements += 2;
}

async function copies(client, connection) {
  const lines = Array.from({ length: 60 }, (_, n) => `${client.name}\t${n}\t${token()}\n`);
  await connection.simple('begin');
  await connection.copyIn('copy work from stdin', lines);
  const back = `copy (select * from work where client = '${client.name}' order by n) to stdout`;
  client.check('copy', await connection.copyOut(back), lines.join(''));
  await connection.simple('rollback');
  client.report.statements += 3;
}

async function big(client, connection) {
  const mine = token();
  const [{ text }] = await connection.prepared('big', 'select repeat($1::text, 10000) as text', [mine]);
  client.check('big row', text === mine.repeat(10000), true);
  const md5 = crypto.createHash('md5').update(text).digest('hex');
  client.check('big parameter', await connection.unnamed('select md5($1::text) as sum', [text]), [{ sum: md5 }]);
}

async function together(client, connection) {
  const numbers = Array.from({ length: 6 }, () => Math.floor(Math.random() * 2 ** 31));
  const answers = await connection.atOnce(numbers.map((number) => ['select $1::int4 as number', [number]]));
  answers.forEach(({ value, reason }, index) => {
    if (reason) throw reason;
    client.check('pipeline', value, [{ number: numbers[index] }]);
  });
}

async function refused(client, connection) {
  const code = async (promise) => promise.then(() => 'no error', (error) => {
    if (error.code !== '22012') throw error;
    return error.code;
  });
  client.check('error', await code(connection.prepared('refused', 'select 1 / $1::int4', [0])), '22012');
  client.check('after the error', await connection.simple('select 1 as one'), [{ one: 1 }]);
}

async function changing(client, connection) {
  const text = 'select * from public.changing where id = $1';
  const [row] = await connection.prepared('changing', text, [1]);
  client.check('changed table', row?.name, 'one');
}

async function many(client, connection) {
  for (let n = 0; n < 3; n++) {
    const which = Math.floor(Math.random() * MANY);
    const text = `select ${which} + $1::int4 as sum`;
    client.check('many statements', await connection.prepared(`many${which}`, text, [client.index]), [
      { sum: which + client.index },
    ]);
  }
}

/** A request to cancel may come too late; the statement then ends by itself. */
async function cancelled(client, connection, round) {
  if (round % 3) return;
  try {
    await connection.cancelled('select pg_sleep(1.5)', 100);
  } catch (error) {
    if (error.code !== '57014') throw error;
  }
  client.check('after the cancel', await connection.unnamed('select $1::int4 as one', [1]), [{ one: 1 }]);
  client.report.statements++;
}

const STEPS = [own, typed, transaction, copies, changing, big, together, refused, many, own, cancelled];

async function soak(open, job) {
  const report = { statements: 0, wrong: 0, errors: {}, detail: [] };
  const clients = job.urls.map((_, index) => new Client(open, job, index, report));
  report.detail = await Promise.all(clients.map((client) => client.run()));
  return report;
}

module.exports = { soak };
