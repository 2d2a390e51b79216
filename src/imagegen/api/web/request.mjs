// From the form to the body of a request, and from a task or a receipt back to the form.
import { EMPTY_FORM } from "./store.mjs";

export const SHAPES = ["1:1", "4:3", "3:4", "16:9", "9:16", "21:9", "9:21"];
export const FORMATS = ["png", "jpeg", "webp", "avif"];

const number = (text) => (String(text).trim() === "" ? undefined : Number(text));

/** A seed as JSON: text where JavaScript's numbers are not exact. */
const seedOf = (text) => {
  const seed = String(text).trim();
  if (!/^\d+$/.test(seed)) return undefined;
  return Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
};

/** The fields of a body for what the form says, without pictures. What is left open is left out. `model`: its model. */
export function fieldsOf({ form, input, strokes }, model) {
  const can = (what) => model?.[`supports_${what}`] ?? true;
  const sized = number(form.width) && number(form.height);
  const fields = {
    prompt: form.prompt,
    negative_prompt: (can("negative_prompt") && form.negative) || undefined,
    model: form.model || undefined,
    aspect_ratio: sized ? undefined : form.shape || undefined,
    width: sized ? number(form.width) : undefined,
    height: sized ? number(form.height) : undefined,
    batch_size: form.count > 1 ? form.count : undefined,
    steps: number(form.steps),
    guidance_scale: number(form.guidance),
    seed: seedOf(form.seed),
    format: form.format === "png" ? undefined : form.format,
    quality: form.format === "png" ? undefined : number(form.quality),
    loras: can("lora") && form.loras.some((lora) => lora.path) ? lorasOf(form) : undefined,
    strength: input && (can("strength") || strokes.length) ? form.strength : undefined,
  };
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
}

const lorasOf = (form) =>
  form.loras.filter((lora) => lora.path).map((lora) => ({ path: lora.path, scale: number(lora.scale) ?? 1 }));

/** The settings of a task (GET /task/{id}) or of a receipt's request, as a form. `model`: its id. */
export const formOf = (model, settings) => ({
  ...EMPTY_FORM,
  prompt: settings.prompt,
  negative: settings.negative_prompt ?? "",
  model,
  width: settings.width,
  height: settings.height,
  steps: settings.steps,
  guidance: settings.guidance_scale,
  seed: String(settings.seed),
  format: settings.format ?? "png",
  strength: settings.strength ?? EMPTY_FORM.strength,
  loras: (settings.loras ?? []).filter((lora) => !lora.repo).map(({ path, scale }) => ({ path, scale })),
});
