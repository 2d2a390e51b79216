// Our own TypeScript SDK: run, events, upload, cancel, errors, webhooks, and generated operations.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { writeFileSync } from 'node:fs';
import { connect, createServer as createTcpServer } from 'node:net';
import { join } from 'node:path';

import {
  Imagegen,
  ImagegenError,
  InvalidSignature,
  TaskEnded,
  getBundle,
  getImage,
  getModel,
  listModels,
  verifyWebhook,
} from 'imagegen-client';

const { IMAGEGEN_URL: url, IMAGEGEN_KEY: key, OUT, WEBHOOK_PORT, WEBHOOK_SECRET } = process.env;
const imagegen = new Imagegen({ url, key: key || undefined });
const PROMPT = 'a red circle on a blue background';

/** Width and height of a PNG. */
function size(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  assert.equal(view.getUint32(0), 0x89504e47);
  return [view.getUint32(16), view.getUint32(20)];
}

async function refuses(call, status, code) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof ImagegenError, error);
    assert.deepEqual([error.status, error.code], [status, code]);
    return true;
  });
}

const checks = {
  async 'makes pictures'() {
    const picture = await imagegen.run(PROMPT, { seed: 7, width: 64, height: 64 });
    writeFileSync(join(OUT, 'run.png'), picture);
    assert.deepEqual(size(picture), [64, 64]);
    assert.deepEqual(await imagegen.run(PROMPT, { seed: 7, width: 64, height: 64 }), picture);
    const batch = await imagegen.runAll(PROMPT, { batch_size: 2, format: 'webp' });
    assert.deepEqual(batch.map((it) => new TextDecoder().decode(it.slice(8, 12))), ['WEBP', 'WEBP']);
  },

  async uploads() {
    const start = await imagegen.run('a blue square', { width: 64, height: 64 });
    for (const image of [start, new Blob([start]), start.buffer.slice(start.byteOffset)]) {
      const edited = await imagegen.run('a yellow star', { image, strength: 0.9, seed: 1 });
      assert.deepEqual(size(edited), [128, 128]);
      writeFileSync(join(OUT, 'edited.png'), edited);
    }
  },

  async follows() {
    const { task_id } = await imagegen.submit(PROMPT, { steps: 8, previews: 2 });
    const events = await Array.fromAsync?.(imagegen.events(task_id)) ?? (await all(imagegen.events(task_id)));
    const steps = events.filter((it) => it.type === 'step').map((it) => it.step);
    assert.deepEqual(steps, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert.ok(events.some((it) => it.type === 'preview'));
    const last = events.at(-1);
    assert.equal(last.type, 'completed');
    assert.equal(last.images[0].url, (await imagegen.task(task_id)).images[0].url);
    // From the middle of the stream, as after a broken connection.
    assert.deepEqual((await all(imagegen.events(task_id, 1))).at(-1), last);
  },

  async 'survives broken connections'() {
    const { task_id } = await imagegen.submit(PROMPT, { steps: 50 });
    const shaky = new Imagegen({ url: await cutting(3), key: key || undefined });
    const events = await all(shaky.events(task_id));
    const steps = events.filter((it) => it.type === 'step').map((it) => it.step);
    assert.deepEqual(steps, Array.from({ length: 50 }, (_, index) => index + 1));
  },

  async cancels() {
    const { task_id } = await imagegen.submit(PROMPT, { steps: 200, batch_size: 8 });
    assert.ok(['processing', 'cancelled'].includes((await imagegen.cancel(task_id)).status));
    await assert.rejects(imagegen.wait(task_id), (error) => error instanceof TaskEnded && error.code === 'cancelled');
  },

  async 'tells errors'() {
    await refuses(imagegen.submit(PROMPT, { model: 'nope' }), 404, 'model_not_found');
    await refuses(imagegen.submit(PROMPT, { steps: 5000 }), 422, 'invalid_request');
    await refuses(imagegen.submit(PROMPT, { step: 4 }), 422, 'invalid_request');
    await refuses(imagegen.task('nope'), 404, 'task_not_found');
    await refuses(all(imagegen.events('nope')), 404, 'task_not_found');
  },

  async 'repeats safely'() {
    const once = randomBytes(8).toString('hex');
    const [first, second] = [await imagegen.submit(PROMPT, {}, once), await imagegen.submit(PROMPT, {}, once)];
    assert.equal(first.task_id, second.task_id);
  },

  async 'has all operations'() {
    const client = imagegen.api;
    assert.equal((await listModels({ client })).data.models[0].id, 'tiny');
    const { data } = await getModel({ client, path: { model_id: 'tiny' } });
    assert.deepEqual([data.config.type, data.config.pipeline_class, data.config.steps], ['flux', 'FluxPipeline', 8]);
    const task = await imagegen.wait((await imagegen.submit(PROMPT, { seed: 7, width: 64, height: 64 })).task_id);
    const [folder, file] = task.result_files[0].split('/');
    const image = await getImage({ client, path: { folder, file } });
    assert.ok(image.data instanceof Blob);
    assert.deepEqual(size(new Uint8Array(await image.data.arrayBuffer())), [64, 64]);
    const bundle = await getBundle({ client, path: { task_id: task.task_id }, parseAs: 'blob' });
    assert.equal(await bundle.data.slice(0, 2).text(), 'PK');
    const refusal = await getModel({ client, path: { model_id: 'nope' } });
    assert.equal(refusal.error.code, 'model_not_found');
  },

  async 'verifies webhooks'() {
    const arrived = new Promise((resolve) => {
      const server = createServer(async (request, response) => {
        const body = Buffer.concat(await all(request));
        response.writeHead(204).end();
        server.close();
        resolve([body, request.headers]);
      }).listen(WEBHOOK_PORT, '127.0.0.1');
    });
    const { task_id } = await imagegen.submit(PROMPT, { webhook_url: `http://127.0.0.1:${WEBHOOK_PORT}/` });
    const [body, headers] = await arrived;
    const payload = verifyWebhook(body, headers, [`whsec_${'A'.repeat(32)}`, WEBHOOK_SECRET]);
    assert.deepEqual([payload.type, payload.data.task_id], ['task.completed', task_id]);
    const changed = body.toString().replace('completed', 'cancelled');
    assert.throws(() => verifyWebhook(changed, headers, WEBHOOK_SECRET), InvalidSignature);
  },

  async 'needs the key'() {
    const stranger = new Imagegen({ url, key: 'ig_wrong' });
    if (key) await refuses(stranger.run(PROMPT), 401, 'unauthorized');
  },
};

/** The address of a proxy that breaks each of the first connections after some bytes of its answers. */
async function cutting(breaks) {
  const { hostname, port } = new URL(url);
  let left = breaks;
  const proxy = createTcpServer((near) => {
    const far = connect(Number(port), hostname);
    const most = left > 0 ? 4000 : Infinity;
    left -= 1;
    let sent = 0;
    far.on('data', (data) => {
      near.write(data);
      sent += data.length;
      if (sent >= most) near.destroy();
    });
    near.pipe(far);
    for (const [end, other] of [[near, far], [far, near]]) {
      end.on('close', () => other.destroy()).on('error', () => other.destroy());
    }
  });
  await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${proxy.address().port}`;
}

async function all(source) {
  const found = [];
  for await (const it of source) found.push(it);
  return found;
}

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(name, 'passed');
}
process.exit(0);
