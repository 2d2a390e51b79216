// replicate (JavaScript) with baseUrl: run, predictions, files, stream, cancel, errors.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import Replicate from "replicate";

const auth = process.env.IMAGEGEN_KEY || undefined;
const replicate = new Replicate({ auth, baseUrl: `${process.env.IMAGEGEN_URL}/v1`, useFileOutput: false });
const save = async (name, url) => {
  const response = await fetch(url); // without the key
  assert.ok(response.ok);
  fs.writeFileSync(path.join(process.env.OUT, name), Buffer.from(await response.arrayBuffer()));
};

// Generate.
const input = { prompt: "a red circle on a blue background", num_inference_steps: 8, seed: 7 };
const seen = [];
const [url] = await replicate.run("imagegen/tiny", { input }, (prediction) => seen.push(prediction.status));
await save("run.png", url);
assert.equal(seen.at(-1), "succeeded");
const [polled] = await replicate.run("imagegen/tiny:tiny", { input, wait: { mode: "poll", interval: 100 } });
await save("polled.png", polled);

// Edit: a file.
const image = new Blob([fs.readFileSync(path.join(process.env.OUT, "run.png"))], { type: "image/png" });
const edit = { ...input, prompt: "a yellow star on a blue background", image, prompt_strength: 0.9 };
const [edited] = await replicate.run("imagegen/tiny", { input: edit });
await save("edited.png", edited);

// A prediction, and its cancellation.
const slow = { prompt: "x", num_inference_steps: 200, width: 1024, height: 1024 };
const made = await replicate.predictions.create({ model: "imagegen/tiny", input: slow });
assert.ok(["starting", "processing"].includes(made.status));
await replicate.predictions.cancel(made.id);
assert.equal((await replicate.wait(made, { interval: 100 })).status, "canceled");
assert.equal((await replicate.predictions.list()).results[0].id, made.id);

const controller = new AbortController();
setTimeout(() => controller.abort(), 1500);
const aborted = await replicate.run("imagegen/tiny", {
  input: slow,
  signal: controller.signal,
  wait: { mode: "poll", interval: 100 },
}).catch((error) => error);
assert.ok(aborted === null || aborted?.name === "AbortError", String(aborted));

// Stream.
const events = [];
for await (const event of replicate.stream("imagegen/tiny", { input })) events.push(event);
assert.deepEqual(events.map((event) => event.event).slice(-2), ["output", "done"]);
await save("streamed.png", events.at(-2).data);

// What it tells about a model.
assert.equal((await replicate.models.get("imagegen", "tiny")).latest_version.id, "tiny");

// Errors.
const wrong = replicate.run("imagegen/tiny", { input: { ...input, scheduler: "DDIM" } });
await assert.rejects(wrong, (error) => error.response.status === 422 && /scheduler/.test(error.message));
