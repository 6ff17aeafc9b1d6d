'use strict';

// Steady transactions over whatever library a program brings, counted one by one and served as JSON.
//   POOL_SIZE                 connections of the program's pool (5)
//   TRANSACTIONS_PER_SECOND   of the whole program (50)
//   ANSWER_SECONDS            after which a transaction without an end has failed (30)
//   PORT                      GET / gives the counters, POST /reset sets them to zero (8080)
const http = require('node:http');

const POOL_SIZE = Number(process.env.POOL_SIZE ?? 5);
const PERIOD_MS = (1000 * POOL_SIZE) / Number(process.env.TRANSACTIONS_PER_SECOND ?? 50);
const ANSWER_MS = 1000 * Number(process.env.ANSWER_SECONDS ?? 30);
const THINK_MS = 10;
const RENEWAL_MS = 1000;
const SHOWN_CHARACTERS = 200;
const MOST_CLASSES = 10;

// What a row of the table is kept under: pods have names of their own, so programs don't meet in a row.
const CLIENT = process.env.HOSTNAME ?? 'local';

// Error texts are shown, and a library may quote its URL.
const { password } = process.env.DATABASE_URL ? new URL(process.env.DATABASE_URL) : {};
const PASSWORDS = password ? [password, decodeURIComponent(password)] : [];

const counters = { started: Date.now() / 1000 };
const running = new Map();

function reset() {
  Object.assign(counters, { committed: 0, failed: 0, uncaught: 0, longest_seconds: 0, errors: {} });
}

/** What an app does between two statements of a transaction. */
function think() {
  return new Promise((resolve) => setTimeout(resolve, THINK_MS));
}

function note(error) {
  // Libraries wrap what the driver said; the innermost error names the fault.
  let inner = error;
  while (inner?.cause instanceof Error) inner = inner.cause;
  const kind = [inner?.constructor?.name ?? typeof inner, inner?.code].filter(Boolean).join(' ');
  const known = counters.errors[kind];
  if (known) known.count += 1;
  else if (Object.keys(counters.errors).length < MOST_CLASSES) {
    counters.errors[kind] = { count: 1, first: shown(inner), at: new Date().toISOString() };
  }
}

function shown(error) {
  const text = String(error?.message ?? error).replace(/\s+/g, ' ').slice(0, SHOWN_CHARACTERS);
  return PASSWORDS.reduce((left, password) => left.replaceAll(password, '***'), text);
}

/** One of five is a query by itself, one a prepared statement, the others are transactions. */
async function one(operations, worker, number, known) {
  if (number % 5 === 3) return operations.single(worker);
  const kind = number % 5 === 4 ? operations.prepared : operations.transaction;
  const balance = Number(await kind(CLIENT, worker));
  if (kind === operations.transaction) {
    // Every committed transaction added one: whoever reads less than before has lost a commit.
    if (!(balance > known.balance)) throw new LostCommit(`balance ${balance} after ${known.balance}`);
    known.balance = balance;
  }
  return balance;
}

class LostCommit extends Error {}
class NoAnswer extends Error {}

/** A library may lose a connection and leave whoever waits for it waiting. */
async function answered(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new NoAnswer(`none within ${ANSWER_MS} ms`)), ANSWER_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

async function work(current, worker) {
  const known = { balance: 0 };
  let due = performance.now();
  for (let number = 0; ; number += 1) {
    const began = performance.now();
    running.set(worker, began);
    try {
      await answered(one(current.operations, worker, number, known));
      counters.committed += 1;
    } catch (error) {
      counters.failed += 1;
      note(error);
    }
    running.delete(worker);
    counters.longest_seconds = Math.max(counters.longest_seconds, (performance.now() - began) / 1000);
    // Workers stay in step, so that every connection of the pool is in use at once; a late one doesn't hurry.
    due = Math.max(due + PERIOD_MS, performance.now());
    await new Promise((resolve) => setTimeout(resolve, due - performance.now()));
  }
}

/** How long the oldest transaction that goes on has been going on, in seconds. */
function oldest() {
  return Math.max(0, ...[...running.values()].map((began) => (performance.now() - began) / 1000));
}

function serve() {
  const server = http.createServer((request, response) => {
    if (request.method === 'POST' && request.url === '/reset') reset();
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(`${JSON.stringify({ client: CLIENT, ...counters, oldest_seconds: oldest() })}\n`);
  });
  server.listen(Number(process.env.PORT ?? 8080));
}

/**
 * Run for ever. `connect()` makes a pool and returns what is done with it: `transaction(client, worker)` and
 * `prepared(client, worker)`, which resolve to the row's balance, and `single(worker)`.
 */
function run(connect) {
  reset();
  const current = { operations: connect(), since: performance.now() };
  // An app would have ended here. This one counts it and goes on with a new pool, as the app begun anew would: that
  // of the old process may have lost connections for good.
  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error) => {
      counters.uncaught += 1;
      note(error);
      if (performance.now() - current.since < RENEWAL_MS) return; // one fault, several connections
      Object.assign(current, { operations: connect(), since: performance.now() });
    });
  }
  process.on('SIGTERM', () => process.exit(0));
  serve();
  for (let worker = 0; worker < POOL_SIZE; worker += 1) work(current, worker);
}

module.exports = { POOL_SIZE, run, think };
