// @ai-sdk/openai-compatible with ai's generateImage: generate, edit, errors, cancel.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage } from "ai";

const { IMAGEGEN_URL: url, IMAGEGEN_KEY: key, OUT: out } = process.env;
const imagegen = createOpenAICompatible({ name: "imagegen", baseURL: `${url}/v1`, apiKey: key || "none" });
const model = imagegen.imageModel("gpt-image-1");
const keep = (name, image) => writeFileSync(`${out}/${name}`, image.uint8Array);

async function ours(path) {
  const answer = await fetch(url + path, { headers: key ? { authorization: `Bearer ${key}` } : {} });
  return answer.json();
}

const { images, responses } = await generateImage({
  model,
  prompt: "a red circle on a blue background",
  size: "128x128",
  n: 2,
  providerOptions: { imagegen: { seed: 7 } },
});
assert.equal(images.length, 2);
images.forEach((image, index) => keep(`circle-${index}.png`, image));
assert.equal(responses[0].headers["x-imagegen-model"], "tiny");

const edited = await generateImage({
  model,
  prompt: { text: "a yellow star on a blue background", images: [images[0].uint8Array] },
});
keep("edited.png", edited.image);

await assert.rejects(
  generateImage({ model, prompt: "x", providerOptions: { imagegen: { background: "transparent" } } }),
  (error) => {
    assert.ok(APICallError.isInstance(error), String(error));
    assert.equal(error.statusCode, 400);
    assert.match(error.message, /background/);
    return true;
  },
);

const abort = new AbortController();
const asking = generateImage({
  model,
  prompt: "aborted by ai",
  size: "512x512",
  abortSignal: abort.signal,
  providerOptions: { imagegen: { steps: 200 } },
});
let tasks = [];
while (!tasks.length) ({ tasks } = await ours("/tasks?q=aborted%20by%20ai"));
abort.abort();
await assert.rejects(asking);
let task;
do {
  await new Promise((done) => setTimeout(done, 200));
  task = await ours(`/task/${tasks[0].task_id}`);
} while (!["cancelled", "completed", "failed"].includes(task.status));
assert.equal(task.status, "cancelled");
console.log("works");
