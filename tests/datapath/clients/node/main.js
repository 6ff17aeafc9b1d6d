// Runs one scenario with node-postgres or postgres.js: a job in JSON on stdin, a report in JSON on stdout.
'use strict';

const scenarios = { ...require('./scenarios.js'), ...require('./soak.js') };

async function read(stream) {
  let text = '';
  for await (const chunk of stream) text += chunk;
  return JSON.parse(text);
}

async function main() {
  const { open } = require(`./${process.argv[2]}.js`);
  const job = await read(process.stdin);
  const report = await scenarios[job.scenario](open, job);
  process.stdout.write(JSON.stringify(report));
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
