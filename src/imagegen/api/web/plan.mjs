// Asks the service what would happen to the form as it stands (POST /plan), a moment after it has changed.
import { fieldsNow } from "./actions.mjs";
import { call } from "./api.mjs";
import { get, set, subscribe } from "./store.mjs";
import { explained } from "./text.mjs";

const QUIET_MS = 450;

const asked = ({ form, input, strokes, key, models, waiting }) => [form, input, strokes, key, models, waiting.length];
const same = (one, other) => one.every((value, index) => value === other[index]);

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
  const json = fieldsNow(state);
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
