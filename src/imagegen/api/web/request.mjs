// From the form to the body of a request and its plan, and from a task or a receipt back to the form.
import { call } from "./api.mjs";
import { EMPTY_FORM, get, set, subscribe } from "./store.mjs";
import { explained } from "./text.mjs";

export const SHAPES = ["1:1", "4:3", "3:4", "16:9", "9:16", "21:9", "9:21"];
export const FORMATS = ["png", "jpeg", "webp", "avif"];

const number = (text) => (String(text).trim() === "" ? undefined : Number(text));

/** A seed as JSON: text where JavaScript's numbers are not exact, and where it is none, for the service to refuse. */
const seedOf = (text) => {
  const seed = String(text).trim();
  if (!seed) return undefined;
  return /^\d+$/.test(seed) && Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
};

/** GET /models of the form's model. */
export const modelOf = ({ models, form }) => models?.find((model) => model.id === form.model);

/** The fields of a body for what the form says, without pictures. What is left open is left out. */
export function fieldsOf(state) {
  const { form, input, strokes } = state;
  const model = modelOf(state);
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
  seed: String(settings.seed ?? ""),
  format: settings.format ?? "png",
  strength: settings.strength ?? EMPTY_FORM.strength,
  loras: (settings.loras ?? []).filter((lora) => !lora.repo).map(({ path, scale }) => ({ path, scale })),
});

// -- the plan --------------------------------------------------------------------------------------------------------

const QUIET_MS = 450;

const asked = ({ form, input, strokes, key, models, waiting }) => [form, input, strokes, key, !models, waiting.length];
const same = (one, other) => one.every((value, index) => value === other[index]);

/** Ask the service what would happen to the form (POST /plan), a moment after it has changed. */
export function planWhenQuiet() {
  let last = asked(get());
  let timer = 0;
  subscribe(() => {
    const now = asked(get());
    if (same(now, last)) return;
    last = now;
    clearTimeout(timer);
    timer = setTimeout(plan, QUIET_MS, now);
  });
}

async function plan(when) {
  const state = get();
  if (!state.form.prompt.trim() || !state.models) return set({ plan: null, refusal: null });
  const json = fieldsOf(state);
  // A plan takes no pictures, so it knows no mask.
  if (state.input && !state.strokes.length) json.task_type = "image2image";
  try {
    const plan = await call("plan", { json });
    if (same(when, asked(get()))) set({ plan, refusal: null });
  } catch (error) {
    // A service that is away, or a key that has used up its rate, says nothing about the form.
    const about = error.status === 404 || error.status === 422;
    if (same(when, asked(get()))) set({ plan: null, refusal: about ? explained(error) : null });
  }
}
