'use strict';

// An ordinary 12-factor app: its database is whatever DATABASE_URL says.
const http = require('node:http');
const { Pool } = require('pg');

const pool = new Pool({ connectionString: process.env.DATABASE_URL });

// Without a listener, an idle connection that the server closes would end the process.
pool.on('error', (error) => console.error(`idle connection lost: ${error.message}`));

const QUERY = `SELECT now() AS now, pg_backend_pid() AS pid, current_user AS "user",
  current_setting('application_name') AS application_name`;

async function answer(request, response) {
  if (request.url === '/healthz') {
    response.writeHead(200).end('ok\n');
    return;
  }
  try {
    const { rows } = await pool.query(QUERY);
    response.writeHead(200, { 'content-type': 'application/json' }).end(`${JSON.stringify(rows[0])}\n`);
  } catch (error) {
    console.error(error.message);
    response.writeHead(503, { 'content-type': 'application/json' });
    response.end(`${JSON.stringify({ error: error.message })}\n`);
  }
}

const server = http.createServer(answer);
server.listen(Number(process.env.PORT ?? 8080));

process.on('SIGTERM', () => server.close(() => pool.end()));
