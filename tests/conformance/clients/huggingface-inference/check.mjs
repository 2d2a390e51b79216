// @huggingface/inference against /hf/{model}.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { InferenceClient } from "@huggingface/inference";

const url = process.env.IMAGEGEN_URL;
const key = process.env.IMAGEGEN_KEY || undefined;
const client = new InferenceClient(key).endpoint(`${url}/hf/tiny`);
const save = async (name, blob) =>
  fs.writeFileSync(path.join(process.env.OUT, name), Buffer.from(await blob.arrayBuffer()));

// Generate.
const inputs = "a red circle on a blue background";
const image = await client.textToImage({
  inputs,
  parameters: { num_inference_steps: 8, width: 128, height: 96, seed: 7 },
});
assert.equal(image.type, "image/png");
await save("textToImage.png", image);
const text = await client.textToImage({ inputs }, { outputType: "dataUrl" });
assert.match(text, /^data:image\/jpeg;base64,iVBORw0KGgo/); // a PNG, whatever the client calls it

// Edit: with parameters as JSON, without as bytes.
const prompt = "a yellow star on a blue background";
await save("imageToImage.png", await client.imageToImage({ inputs: image, parameters: { prompt } }));
await save("imageToImage-bytes.png", await client.imageToImage({ inputs: image }));

// Errors.
const wrong = client.textToImage({ inputs, parameters: { scheduler: "ddim" } });
await assert.rejects(wrong, (error) => /scheduler/.test(error.message) && error.httpResponse.status === 422);
if (key) {
  const other = new InferenceClient("ig_wrong").endpoint(`${url}/hf/tiny`).textToImage({ inputs });
  await assert.rejects(other, (error) => error.httpResponse.status === 401);
}

// Cancel.
const controller = new AbortController();
const drawing = client.textToImage(
  { inputs, parameters: { num_inference_steps: 200, width: 1024, height: 1024 } },
  { signal: controller.signal },
);
setTimeout(() => controller.abort(), 2000);
await assert.rejects(drawing, { name: "AbortError" });
