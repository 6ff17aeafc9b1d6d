// node-postgres behind the interface that the scenarios use.
'use strict';

const net = require('node:net');
const { pipeline } = require('node:stream/promises');
const { Readable } = require('node:stream');
const { Client } = require('pg');
const copy = require('pg-copy-streams');

const CANCEL_REQUEST = 80877102;

async function open(url, settings = {}, onClose = () => {}) {
  const client = new Client({ connectionString: url, ...settings });
  client.on('error', () => {}); // a lost connection shows in the statement that meets it
  client.on('end', onClose);
  await client.connect();
  return {
    simple: async (text) => (await client.query(text)).rows,
    prepared: async (name, text, values) => (await client.query({ name, text, values })).rows,
    unnamed: async (text, values) => (await client.query(text, values)).rows,
    // node-postgres queues statements of one connection; none of them waits for the caller.
    atOnce: (statements) =>
      Promise.allSettled(statements.map(([text, values]) => client.query(text, values).then(({ rows }) => rows))),
    reportsRefusedCopy: true,
    copyIn: (text, lines) => pipeline(Readable.from(lines), client.query(copy.from(text))),
    copyOut: async (text) => {
      let found = '';
      for await (const chunk of client.query(copy.to(text))) found += chunk;
      return found;
    },
    cancelled: async (text, milliseconds) => {
      const running = client.query(text);
      running.catch(() => {});
      await new Promise((done) => setTimeout(done, milliseconds));
      await requestCancel(client);
      return running;
    },
    close: () => client.end(),
  };
}

function requestCancel({ host, port, processID, secretKey }) {
  const packet = Buffer.alloc(16);
  [16, CANCEL_REQUEST, processID, secretKey].forEach((word, index) => packet.writeInt32BE(word, 4 * index));
  return new Promise((done, failed) => {
    const socket = net.connect(port, host, () => socket.end(packet));
    socket.on('close', done).on('error', failed).resume();
  });
}

module.exports = { open };
