// The OpenAPI document of the running service: two linters find no error, and openapi-typescript makes optional
// what a request may leave out.
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import assert from 'node:assert/strict';

const file = join(process.env.OUT, 'openapi.json');
const answer = await fetch(`${process.env.IMAGEGEN_URL}/openapi.json`);
writeFileSync(file, await answer.text());

const here = import.meta.dirname;

function run(name, ...args) {
  const environment = { ...process.env, REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' };
  execFileSync(join(here, 'node_modules', '.bin', name), args, { stdio: 'inherit', env: environment });
}

run('redocly', 'lint', '--config', join(here, 'redocly.yaml'), file);
run('spectral', 'lint', '--ruleset', join(here, 'spectral.yaml'), '--fail-severity', 'warn', file);

const types = join(process.env.OUT, 'types.ts');
run('openapi-typescript', file, '--output', types);
const body = /\n {8}Text2ImageBody: \{\n(.*?)\n {8}\};/s.exec(readFileSync(types, 'utf8'))[1];
const fields = [...body.matchAll(/^ {12}"?(\w+)"?(\??):/gm)].map(([, name, mark]) => [name, mark]);
assert.ok(fields.length > 20);
assert.deepEqual(fields.filter(([, mark]) => !mark), [['prompt', '']]);
