// postgres.js behind the interface that the scenarios use: one connection each, statements pipelined.
'use strict';

const { pipeline } = require('node:stream/promises');
const { Readable } = require('node:stream');
const postgres = require('postgres');

async function open(url, settings = {}, onClose = () => {}) {
  const sql = postgres(url, {
    max: 1,
    onnotice: () => {},
    onclose: onClose,
    connection: settings,
    max_lifetime: null,
  });
  const rows = (result) => [...result];
  return {
    simple: async (text) => rows(await sql.unsafe(text).simple()),
    // postgres.js names and caches a statement by its text.
    prepared: async (_name, text, values) => rows(await sql.unsafe(text, values, { prepare: true })),
    unnamed: async (text, values) => rows(await sql.unsafe(text, values, { prepare: false })),
    atOnce: (statements) =>
      Promise.allSettled(
        statements.map(([text, values]) => sql.unsafe(text, values, { prepare: true }).then(rows)),
      ),
    reportsRefusedCopy: false, // its stream waits for ever, at PostgreSQL itself too
    copyIn: async (text, lines) => pipeline(Readable.from(lines), await sql.unsafe(text).writable()),
    copyOut: async (text) => {
      let found = '';
      for await (const chunk of await sql.unsafe(text).readable()) found += chunk;
      return found;
    },
    cancelled: async (text, milliseconds) => {
      const running = sql.unsafe(text);
      setTimeout(() => running.cancel(), milliseconds);
      return rows(await running);
    },
    close: () => sql.end({ timeout: 1 }),
  };
}

module.exports = { open };
