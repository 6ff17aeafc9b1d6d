'use strict';

// Prisma 7 with its driver adapter for node-postgres.
const { PrismaPg } = require('@prisma/adapter-pg');
const { PrismaClient } = require('@prisma/client');
const { POOL_SIZE, run, think } = require('./load');

function connect() {
  const adapter = new PrismaPg({ connectionString: process.env.DATABASE_URL, max: POOL_SIZE });
  // Prisma gives up on a transaction that does not start within 2 s, less than a planned pause may last.
  const prisma = new PrismaClient({ adapter, transactionOptions: { maxWait: 20_000, timeout: 20_000 } });

  function transaction(client, worker) {
    const where = { client_worker: { client, worker } };
    return prisma.$transaction(async (tx) => {
      await tx.account.upsert({
        where,
        create: { client, worker, balance: 1 },
        update: { balance: { increment: 1 } },
      });
      await think();
      const account = await tx.account.findUniqueOrThrow({ where });
      return account.balance;
    });
  }

  async function prepared(client, worker) {
    const account = await prisma.account.findUniqueOrThrow({ where: { client_worker: { client, worker } } });
    return account.balance;
  }

  return { transaction, prepared, single: (worker) => prisma.$queryRaw`SELECT ${worker}::int AS worker` };
}

run(connect);
