'use strict';

// Requests to an app instead of statements to a database: TARGET is its URL. Any answer but 200 has failed.
const { run } = require('./load');

async function balance(client, worker, method) {
  const response = await fetch(`${process.env.TARGET}?client=${client}&worker=${worker}`, { method });
  const body = await response.text();
  if (response.status !== 200) throw new Error(`${response.status}: ${body}`);
  return JSON.parse(body).balance;
}

run(() => ({
  transaction: (client, worker) => balance(client, worker, 'POST'),
  prepared: (client, worker) => balance(client, worker, 'GET'),
  single: (worker) => balance('nobody', worker, 'GET'),
}));
