// Reads one JSON text (a connection URL) per line and answers with what node-postgres' parser makes of it.
const readline = require("node:readline");
const { parse } = require("pg-connection-string");

readline.createInterface({ input: process.stdin }).on("line", (line) => {
  let answer;
  try {
    const { host, port, user, password, database } = parse(JSON.parse(line));
    answer = { host, port, user, password, database };
  } catch (error) {
    answer = { error: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
});
