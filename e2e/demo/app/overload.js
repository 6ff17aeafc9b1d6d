'use strict';

// An app that was scaled out: PROCESSES copies of it, each with node-postgres' usual pool of 10, each as busy as its
// pool allows. Prints one line of JSON a second, and one at the end, each with the milliseconds since the load began.
const { fork } = require('node:child_process');
const { Pool } = require('pg');

const PROCESSES = Number(process.env.PROCESSES ?? 40);
const SECONDS = Number(process.env.SECONDS ?? 20);
const POOL = 10;
const WORK = 'SELECT pg_sleep(0.02)';
const PAUSE_MS = 500;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function copyOfTheApp() {
  const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: POOL });
  pool.on('error', () => {});
  const counts = { answered: 0, failed: 0, errors: {} };

  async function request() {
    try {
      await pool.query(WORK);
      counts.answered += 1;
    } catch (error) {
      counts.failed += 1;
      counts.errors[error.message] = (counts.errors[error.message] ?? 0) + 1;
    }
  }

  async function user(end) {
    await sleep(Math.random() * PAUSE_MS);
    while (Date.now() < end) {
      await request();
      await sleep(PAUSE_MS);
    }
  }

  process.on('message', async () => {
    const end = Date.now() + SECONDS * 1000;
    const report = setInterval(() => process.send({ counts }), 500);
    await Promise.all(Array.from({ length: POOL }, () => user(end)));
    clearInterval(report);
    process.send({ counts, done: true });
    await pool.end();
    process.exit();
  });
  process.send({ ready: true });
}

function everyCopy() {
  const copies = Array.from({ length: PROCESSES }, () => fork(__filename, ['copy']));
  const latest = new Map();
  let began;
  let ready = 0;
  let done = 0;

  function total(state) {
    const sum = { state, ms: Date.now() - began, answered: 0, failed: 0, errors: {} };
    for (const counts of latest.values()) {
      sum.answered += counts.answered;
      sum.failed += counts.failed;
      for (const [text, times] of Object.entries(counts.errors)) sum.errors[text] = (sum.errors[text] ?? 0) + times;
    }
    console.log(JSON.stringify(sum));
  }

  for (const copy of copies) {
    copy.on('message', (message) => {
      if (message.counts) latest.set(copy, message.counts);
      if (message.ready && (ready += 1) === PROCESSES) {
        began = Date.now();
        console.log(JSON.stringify({ state: 'started', at: began }));
        for (const each of copies) each.send('go');
      }
      if (message.done && (done += 1) === PROCESSES) {
        clearInterval(report);
        total('done');
      }
    });
    copy.on('exit', (code) => {
      if (code !== 0) {
        console.error(`a copy of the app ended with ${code}`);
        process.exit(1);
      }
    });
  }
  const report = setInterval(() => began && total('running'), 1000);
}

if (process.argv[2] === 'copy') copyOfTheApp();
else everyCopy();
