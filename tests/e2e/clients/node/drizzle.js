'use strict';

// Drizzle over node-postgres, with a prepared query beside the ones that are built anew.
const { and, eq, sql } = require('drizzle-orm');
const { drizzle } = require('drizzle-orm/node-postgres');
const { bigint, integer, pgTable, primaryKey, text } = require('drizzle-orm/pg-core');
const { POOL_SIZE, run, think } = require('./load');

const accounts = pgTable(
  'accounts',
  {
    client: text().notNull(),
    worker: integer().notNull(),
    balance: bigint({ mode: 'number' }).notNull(),
  },
  (table) => [primaryKey({ columns: [table.client, table.worker] })],
);

function connect() {
  const db = drizzle({ connection: { connectionString: process.env.DATABASE_URL, max: POOL_SIZE } });

  const balanceOf = db
    .select({ balance: accounts.balance })
    .from(accounts)
    .where(and(eq(accounts.client, sql.placeholder('client')), eq(accounts.worker, sql.placeholder('worker'))))
    .prepare('balance_of');

  function transaction(client, worker) {
    return db.transaction(async (tx) => {
      await tx
        .insert(accounts)
        .values({ client, worker, balance: 1 })
        .onConflictDoUpdate({
          target: [accounts.client, accounts.worker],
          set: { balance: sql`${accounts.balance} + 1` },
        });
      await think();
      const [row] = await tx
        .select()
        .from(accounts)
        .where(and(eq(accounts.client, client), eq(accounts.worker, worker)));
      return row.balance;
    });
  }

  async function prepared(client, worker) {
    const [row] = await balanceOf.execute({ client, worker });
    return row.balance;
  }

  return { transaction, prepared, single: (worker) => db.execute(sql`SELECT ${worker}::int AS worker`) };
}

run(connect);
