import { pool } from '../../lib/db';

const ADD = `INSERT INTO accounts (client, worker, balance) VALUES ($1, $2, 1)
  ON CONFLICT (client, worker) DO UPDATE SET balance = accounts.balance + 1`;
const BALANCE = 'SELECT balance FROM accounts WHERE client = $1 AND worker = $2';

function account(request) {
  const { searchParams } = new URL(request.url);
  return [searchParams.get('client'), Number(searchParams.get('worker'))];
}

/** The balance of an account, 0 if there is none. */
export async function GET(request) {
  const { rows } = await pool.query({ name: 'balance', text: BALANCE, values: account(request) });
  return Response.json({ balance: rows[0]?.balance ?? 0 });
}

/** Adds one to it. */
export async function POST(request) {
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    await client.query(ADD, account(request));
    const { rows } = await client.query(BALANCE, account(request));
    await client.query('COMMIT');
    return Response.json({ balance: rows[0].balance });
  } catch (error) {
    await client.query('ROLLBACK');
    throw error;
  } finally {
    client.release();
  }
}
