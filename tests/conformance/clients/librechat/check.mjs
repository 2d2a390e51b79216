// What LibreChat's Stable Diffusion tool sends and reads (api/app/clients/tools/structured/StableDiffusion.js), with
// its libraries. It has no setting for a key but the URL: SD_WEBUI_URL=http://user:KEY@host.
import assert from "node:assert/strict";
import path from "node:path";
import axios from "axios";
import sharp from "sharp";

const address = new URL(process.env.IMAGEGEN_URL);
if (process.env.IMAGEGEN_KEY) {
  address.username = "librechat";
  address.password = process.env.IMAGEGEN_KEY;
}
const url = address.href.replace(/\/$/, "");
const negative_prompt = "cartoon, drawing, blurry";

async function draw(more) {
  const payload = { prompt: "a red circle on a blue background", negative_prompt, cfg_scale: 4.5, steps: 22, ...more };
  return await axios.post(`${url}/sdapi/v1/txt2img`, { ...payload, width: 1024, height: 1024 });
}

const answer = await draw({});
const image = answer.data.images[0];
const info = JSON.parse(answer.data.info);
assert.deepEqual([info.width, info.height], [1024, 1024]);
assert.equal(typeof info.seed, "number");
assert.match(info.infotexts[0].split("\n").pop(), /^Steps: 22, Sampler: Euler, /);
assert.match(info.warnings[0], /negative_prompt/); // the embedded model takes none
const buffer = Buffer.from(image.split(",", 1)[0], "base64");
await sharp(buffer)
  .withMetadata({ iptcpng: { parameters: info.infotexts[0] } })
  .toFile(path.join(process.env.OUT, "txt2img.png"));

await assert.rejects(draw({ steps: 0 }), (error) => error.response.status === 422);
