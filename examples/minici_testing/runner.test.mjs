// A test for Node that drives a GitLab CI in another process: node --test runner.test.mjs
// PYTHON names the interpreter that has minici installed.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { after, before, beforeEach, test } from 'node:test';

let server;
let ci;

before(async () => {
  server = spawn(process.env.PYTHON ?? 'python3', ['-m', 'minici_testing'], { stdio: ['pipe', 'pipe', 'inherit'] });
  for await (const line of createInterface({ input: server.stdout })) {
    ci = JSON.parse(line);
    break;
  }
});

after(() => server.stdin.end());

beforeEach(() => post('/-/test/reset', {}));

async function post(path, body, headers = {}) {
  const answer = await fetch(ci.url + path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
  const text = await answer.text();
  return { status: answer.status, json: text ? JSON.parse(text) : null };
}

test('a runner gets the job that a client started', async () => {
  const client = { 'PRIVATE-TOKEN': ci.private_token };
  await post('/api/v4/projects', { path: 'demo' }, client);
  const content = { unit: { script: ['make test'] } };
  const sha = '1'.repeat(40);
  const made = await post('/api/v4/projects/demo/pipeline', { ref: 'main', sha, content }, client);
  assert.equal(made.status, 201);

  const runner = await post('/api/v4/runners', { token: ci.registration_token });
  await post('/-/test/faults', { method: 'POST', path: '/api/v4/jobs/request', status: 503 });
  assert.equal((await post('/api/v4/jobs/request', { token: runner.json.token })).status, 503);
  const claimed = await post('/api/v4/jobs/request', { token: runner.json.token });
  assert.equal(claimed.json.job_info.name, 'unit');

  const tape = await (await fetch(`${ci.url}/-/test/tape?path=/api/v4/jobs/request`)).json();
  assert.deepEqual(tape.map((exchange) => exchange.status), [503, 201]);
  assert.ok(!JSON.stringify(tape).includes(claimed.json.token));
});

test('the clock moves on demand', async () => {
  const before = await (await fetch(`${ci.url}/-/test/clock`)).json();
  const moved = await post('/-/test/clock', { advance: 3600 });
  assert.equal(moved.json.now - before.now, 3600);
});
