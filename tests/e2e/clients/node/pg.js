'use strict';

// node-postgres as its documentation has it: one Pool, a client checked out for a transaction.
const { Pool } = require('pg');
const { POOL_SIZE, run, think } = require('./load');

const ADD = `INSERT INTO accounts (client, worker, balance) VALUES ($1, $2, 1)
  ON CONFLICT (client, worker) DO UPDATE SET balance = accounts.balance + 1`;
const BALANCE = 'SELECT balance FROM accounts WHERE client = $1 AND worker = $2';

function connect() {
  // No listener for the pool's errors: they count as the uncaught exceptions that they are to an app without one.
  const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: POOL_SIZE });

  async function transaction(name, worker) {
    const client = await pool.connect();
    try {
      await client.query('BEGIN');
      await client.query(ADD, [name, worker]);
      await think();
      const { rows } = await client.query(BALANCE, [name, worker]);
      await client.query('COMMIT');
      return rows[0].balance;
    } catch (error) {
      await client.query('ROLLBACK');
      throw error;
    } finally {
      client.release();
    }
  }

  async function prepared(name, worker) {
    const { rows } = await pool.query({ name: 'balance', text: BALANCE, values: [name, worker] });
    return rows[0].balance;
  }

  return { transaction, prepared, single: (worker) => pool.query('SELECT $1::int AS worker', [worker]) };
}

run(connect);
