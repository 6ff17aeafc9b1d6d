'use strict';

// postgres.js with its defaults, under which every statement is a prepared one.
const postgres = require('postgres');
const { POOL_SIZE, run, think } = require('./load');

function connect() {
  const sql = postgres(process.env.DATABASE_URL, { max: POOL_SIZE });

  function transaction(client, worker) {
    return sql.begin(async (tx) => {
      await tx`INSERT INTO accounts ${tx({ client, worker, balance: 1 })}
        ON CONFLICT (client, worker) DO UPDATE SET balance = accounts.balance + 1`;
      await think();
      const [row] = await tx`SELECT balance FROM accounts WHERE client = ${client} AND worker = ${worker}`;
      return row.balance;
    });
  }

  async function prepared(client, worker) {
    const [row] = await sql`SELECT balance FROM accounts WHERE client = ${client} AND worker = ${worker}`;
    return row.balance;
  }

  return { transaction, prepared, single: (worker) => sql.unsafe(`SELECT ${worker} AS worker`) };
}

run(connect);
