// openai (npm): generate, edit, vary, stream, errors, retries, cancel.
import assert from "node:assert/strict";
import { createReadStream, writeFileSync } from "node:fs";
import OpenAI, { toFile } from "openai";

const { IMAGEGEN_URL: url, IMAGEGEN_KEY: key, OUT: out } = process.env;
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key || "none" });
const circle = "a red circle on a blue background";
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function keep(name, data) {
  writeFileSync(`${out}/${name}`, data);
  return data;
}

const decoded = (text) => Buffer.from(text, "base64");

async function ours(path) {
  const answer = await fetch(url + path, { headers: key ? { authorization: `Bearer ${key}` } : {} });
  assert.equal(answer.status, 200);
  return answer.json();
}

const tasks = async (prompt) => (await ours(`/tasks?q=${encodeURIComponent(prompt)}`)).tasks;

async function refused(kind, param, call) {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof kind, String(error));
    assert.equal(error.param, param);
    assert.ok(error.requestID);
    return true;
  });
}

// -- models --
const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes("tiny"));

// -- generate --
const { data: both, response } = await client.images
  .generate({ model: "dall-e-3", prompt: circle, size: "128x128", seed: 7 })
  .withResponse();
assert.equal(response.headers.get("x-imagegen-model"), "tiny");
const picture = keep("circle.png", decoded(both.data[0].b64_json));
assert.deepEqual(Buffer.from(await (await fetch(both.data[0].url)).arrayBuffer()), picture);
assert.ok(both.usage.input_tokens > 0);
const two = await client.images.generate({ prompt: "a yellow star", n: 2, output_format: "jpeg", quality: "low" });
two.data.forEach((it, index) => keep(`star-${index}.jpg`, decoded(it.b64_json)));
assert.equal(two.data.length, 2);

// -- edit and vary --
const edited = await client.images.edit({
  image: createReadStream(`${out}/circle.png`),
  prompt: "a yellow star on a blue background",
});
keep("edited.png", decoded(edited.data[0].b64_json));
const file = () => toFile(picture, "circle.png", { type: "image/png" });
const listed = await client.images.edit({ image: [await file()], prompt: "a green square", input_fidelity: "high" });
keep("edited-list.png", decoded(listed.data[0].b64_json));
const varied = await client.images.createVariation({ image: await file() });
keep("variation.png", decoded(varied.data[0].b64_json));

// -- streams --
async function streamed(name, stream) {
  const kinds = [];
  for await (const event of stream) {
    kinds.push(event.type);
    keep(`${name}-${kinds.length}.png`, decoded(event.b64_json));
  }
  return kinds;
}
assert.deepEqual(
  await streamed("stream", await client.images.generate({ prompt: circle, stream: true, partial_images: 2 })),
  ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"],
);
const editing = { image: await file(), prompt: "a yellow star", stream: true, partial_images: 1, steps: 16 };
assert.deepEqual(await streamed("edit-stream", await client.images.edit(editing)), [
  "image_edit.partial_image",
  "image_edit.completed",
]);

// -- errors --
await refused(OpenAI.BadRequestError, "background", () =>
  client.images.generate({ prompt: "x", background: "transparent" }),
);
await refused(OpenAI.BadRequestError, "image", async () =>
  client.images.edit({ image: [await file(), await file()], prompt: "x" }),
);
if (key) {
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "ig_wrong" });
  await refused(OpenAI.AuthenticationError, null, () => stranger.images.generate({ prompt: "x" }));
}

// -- a time-out, after which the SDK tries again: one task --
const slow = "a house that takes a while in node";
const late = await client.images.generate({ prompt: slow, size: "256x256", steps: 60 }, { timeout: 1000, maxRetries: 100 });
keep("retried.png", decoded(late.data[0].b64_json));
assert.equal((await tasks(slow)).length, 1);

// -- cancel: leave the stream, or abort the request --
const forEver = { size: "512x512", steps: 200 };
const stream = await client.images.generate({ prompt: "left stream", stream: true, partial_images: 1, ...forEver });
stream.controller.abort();
const abort = new AbortController();
const asking = client.images.generate({ prompt: "aborted request", ...forEver }, { signal: abort.signal });
while (!(await tasks("aborted request")).length) await sleep(100);
abort.abort();
await assert.rejects(asking, OpenAI.APIUserAbortError);
for (const prompt of ["left stream", "aborted request"]) {
  const [{ task_id: id }] = await tasks(prompt);
  let task;
  do {
    await sleep(200);
    task = await ours(`/task/${id}`);
  } while (!["cancelled", "completed", "failed"].includes(task.status));
  assert.equal(task.status, "cancelled");
}
console.log("works");
