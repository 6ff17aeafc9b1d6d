import { Pool } from 'pg';

// One for the process, made when the module is loaded.
export const pool = new Pool({ connectionString: process.env.DATABASE_URL });
