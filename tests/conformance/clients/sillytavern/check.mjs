// What SillyTavern's server sends to a Stable Diffusion web UI (src/endpoints/stable-diffusion.js), with its library.
import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import fetch from "node-fetch";

const key = process.env.IMAGEGEN_KEY;
const auth = key ? `sillytavern:${key}` : ""; // its setting "Authentication"
const headers = { Authorization: `Basic ${Buffer.from(auth).toString("base64")}` };

const urlOf = (pathname) => Object.assign(new URL(process.env.IMAGEGEN_URL), { pathname: `/sdapi/v1/${pathname}` });
const get = async (pathname) => {
  const result = await fetch(urlOf(pathname), { method: "GET", headers });
  assert.ok(result.ok, pathname);
  return await result.json();
};
const post = (pathname, body, more = {}) => {
  const json = { ...headers, "Content-Type": "application/json" };
  return fetch(urlOf(pathname), { method: "POST", headers: json, body: JSON.stringify(body), ...more });
};

// The lists of its settings.
assert.deepEqual((await get("samplers")).map((x) => x.name), ["Automatic"]);
assert.deepEqual((await get("schedulers")).map((x) => x.name), ["automatic"]);
assert.deepEqual((await get("upscalers")).map((x) => x.name), ["None"]);
assert.deepEqual((await get("latent-upscale-modes")).map((x) => x.name), []);
assert.deepEqual((await get("sd-vae")).map((x) => x.model_name), []);
assert.ok((await get("sd-models")).some((x) => x.title === "tiny"));

// A model is chosen, and loaded by the next picture.
assert.ok((await post("options", { sd_model_checkpoint: "tiny" })).ok);
assert.equal((await get("options")).sd_model_checkpoint, "tiny");
const state = await get("progress");
assert.deepEqual([state.progress, state.state.job_count], [0, 0]);
assert.ok(!("forge_preset" in (await get("options"))));

const payload = {
  url: process.env.IMAGEGEN_URL,
  auth,
  prompt: "a red circle on a blue background",
  negative_prompt: "blurry",
  sampler_name: "DDIM",
  scheduler: "Automatic",
  steps: 8,
  cfg_scale: 7,
  width: 128,
  height: 128,
  restore_faces: false,
  enable_hr: false,
  hr_upscaler: "Latent",
  hr_scale: 1,
  hr_additional_modules: [],
  denoising_strength: 0.7,
  hr_second_pass_steps: 0,
  override_settings: { CLIP_stop_at_last_layers: 1 },
  override_settings_restore_afterwards: true,
  clip_skip: 1,
  save_images: true,
  send_images: true,
  do_not_save_grid: false,
  do_not_save_samples: false,
};
const result = await post("txt2img", payload);
assert.ok(result.ok, await result.clone().text());
const data = await result.json();
fs.writeFileSync(path.join(process.env.OUT, "txt2img.png"), Buffer.from(data.images[0], "base64"));
assert.ok(!JSON.stringify(data.parameters).includes("auth"));

// ADetailer, which this service does not have.
const refused = await post("txt2img", { ...payload, alwayson_scripts: { ADetailer: { args: [true] } } });
assert.equal(refused.status, 422);
assert.match((await refused.json()).detail, /alwayson_scripts/);

// The user closes the page: it sends an interrupt, and gives up its own request.
const controller = new AbortController();
const drawing = post("txt2img", { ...payload, steps: 200, width: 512, height: 512 }, { signal: controller.signal });
const given_up = assert.rejects(drawing, { name: "AbortError" });
while (!(await get("progress")).progress) await new Promise((resolve) => setTimeout(resolve, 50));
await post("interrupt", {});
controller.abort();
await given_up;
while ((await get("progress")).state.job_count) await new Promise((resolve) => setTimeout(resolve, 50));
