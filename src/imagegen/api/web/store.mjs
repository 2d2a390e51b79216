// The one state of the page: what it is, how it changes, and what of it this browser keeps.
import { useLayoutEffect, useRef, useState } from "./vendor/preact.mjs";

/** A form that leaves everything to the model. Texts, because they are what the inputs hold. */
export const EMPTY_FORM = Object.freeze({
  prompt: "",
  negative: "",
  model: "",
  shape: "",
  width: "",
  height: "",
  count: 1,
  steps: "",
  guidance: "",
  seed: "",
  format: "png",
  quality: "",
  strength: 0.8,
  loras: [],
});

/** sessionStorage and localStorage may be forbidden: then nothing is kept. */
function read(storage, name, fallback) {
  try {
    return JSON.parse(window[storage].getItem(`imagegen.${name}`)) ?? fallback;
  } catch {
    return fallback;
  }
}

function write(storage, name, value) {
  try {
    window[storage].setItem(`imagegen.${name}`, JSON.stringify(value));
  } catch {
    // Full or forbidden.
  }
}

/** What is kept, where, and which fields of the state it is. */
const KEPT = [
  ["localStorage", "form"],
  ["localStorage", "stars"],
  ["localStorage", "theme"],
  ["localStorage", "locale"],
  ["sessionStorage", "key"],
  ["sessionStorage", "mine"],
];

let state = {
  // Of this browser.
  form: { ...EMPTY_FORM, ...read("localStorage", "form", {}) },
  stars: read("localStorage", "stars", []), // names of pictures, `folder/file`
  theme: read("localStorage", "theme", "auto"), // auto, light, dark
  locale: read("localStorage", "locale", ""), // empty: the browser's
  key: read("sessionStorage", "key", ""),
  mine: read("sessionStorage", "mine", []), // ids of the tasks submitted in this tab, newest first
  words: {},

  // Of the service.
  who: null, // GET /keys/me
  online: true,
  models: null, // GET /models
  details: {}, // GET /models/{id}, by id
  activity: {}, // loads and pulls under way, by model: {kind, done, total}
  health: null,
  config: null,
  tasks: {}, // GET /task/{id}, by id
  live: {}, // progress of the tasks that have not ended, by id
  signed: {}, // signed URLs, by name of the picture: {url, until}
  waiting: [], // ids of the tasks that have not ended, oldest first

  // Of the form.
  input: null, // the input picture: {name, type, url, data, width, height}
  strokes: [], // the mask: {size, erase, points}, in shares of the picture's width and height
  plan: null, // POST /plan
  refusal: null, // why the plan, or the task, was refused
  sending: false,

  // What is on the screen.
  view: "create",
  shown: "", // id of the task on the stage
  menu: "", // the open menu
  advanced: false,
  dialog: null, // {kind, ...} of the open dialog
  notices: [],
  dragging: false,
  history: { ids: [], cursor: null, more: true, loading: false, q: "", status: "", model: "", starred: false },
  picked: [], // names of the pictures that are picked in the history
};

const listeners = new Set();

export const get = () => state;

/** Change fields of the state: an object, or a function of the state that returns one. */
export function set(change) {
  const before = state;
  state = { ...state, ...(typeof change === "function" ? change(state) : change) };
  for (const [storage, name] of KEPT) {
    if (state[name] !== before[name]) write(storage, name, state[name]);
  }
  for (const listener of [...listeners]) listener();
}

export const merge = (name, fields) => set((now) => ({ [name]: { ...now[name], ...fields } }));

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** What `select` takes from the state. The component is drawn again when that is another value. */
export function useStore(select) {
  const [, redraw] = useState(0);
  const seen = useRef();
  const latest = useRef();
  latest.current = select;
  seen.current = select(state);
  useLayoutEffect(() => {
    const look = () => latest.current(state) !== seen.current && redraw((n) => n + 1);
    look(); // It may have changed since the component was drawn.
    return subscribe(look);
  }, []);
  return seen.current;
}

let notices = 0;

/** Show a sentence for some seconds. `kind`: `info` or `error`. */
export function notify(text, kind = "info", seconds = 6) {
  const notice = { id: ++notices, text, kind };
  set((now) => ({ notices: [...now.notices.slice(-2), notice] }));
  setTimeout(() => dismiss(notice.id), seconds * 1000);
}

export const dismiss = (id) => set((now) => ({ notices: now.notices.filter((notice) => notice.id !== id) }));
