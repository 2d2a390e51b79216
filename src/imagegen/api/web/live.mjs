// Keeps the state as the service has it: a stream of all events, one of the task in focus, a fresh look at each start.
import { call, follow, Problem, taskPage } from "./api.mjs";
import { get, merge, set, subscribe } from "./store.mjs";

const FINAL = new Set(["completed", "failed", "cancelled"]);
export const isOver = (task) => FINAL.has(task?.status);

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
/** So many of the newest tasks are read at once. */
const NEWEST = 48;
/** So many tasks of this session are read when the page begins. */
const STRIP = 12;
/** Tasks of others may come in hundreds a second: the lists are read this often at most. */
const LIST_MS = 800;

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

const visible = () =>
  new Promise((done) => {
    if (!document.hidden) return done();
    document.addEventListener("visibilitychange", () => done(), { once: true });
  });

/** Resolves when the key is another one. */
const keyChanged = () =>
  new Promise((done) => {
    const key = get().key;
    const stop = subscribe(() => get().key !== key && (stop(), done()));
  });

/** Run `work` when it is asked for, at most every `ms`, and never twice at once. */
function seldom(work, ms) {
  let asked = false;
  let busy = false;
  const run = async () => {
    asked = true;
    if (busy) return;
    busy = true;
    while (asked) {
      asked = false;
      const problem = await work().then(
        () => null,
        (error) => error,
      );
      if (problem) ignore(problem);
      await pause(1000 * (problem?.retryAfter ?? 0) || ms);
    }
    busy = false;
  };
  return run;
}

/** A look that failed is repeated by the next one. Other errors are bugs, and shown in the console. */
function ignore(error) {
  if (!(error instanceof Problem) && error.name !== "AbortError") console.error(error);
}

// -- reading ----------------------------------------------------------------------------------------------------------

export function learn(tasks) {
  set((now) => ({ tasks: { ...now.tasks, ...Object.fromEntries(tasks.map((task) => [task.task_id, task])) } }));
}

export async function readTask(id) {
  const task = await call(`task/${id}`);
  learn([task]);
  return task;
}

export const readModels = seldom(async () => {
  const { models } = await call("models");
  set({ models });
  const known = () => models.some((each) => each.id === get().form.model);
  if (!known()) {
    const model = await defaultModel(models);
    if (!known()) merge("form", { model });
  }
  await readDetails(get().form.model);
}, LIST_MS);

/** The model of a request that names none. */
async function defaultModel(models) {
  try {
    return (await call("plan", { json: { prompt: "a" } })).model;
  } catch (error) {
    ignore(error);
    return models[0]?.id ?? "";
  }
}

export async function readDetails(id) {
  if (!id) return;
  const details = await call(`models/${encodeURIComponent(id)}`);
  set((now) => ({ details: { ...now.details, [id]: details } }));
}

/** The newest tasks; where the queue is shown, all that have not ended, because some of them may be older. */
export const readTasks = seldom(async () => {
  const newest = await taskPage({ limit: NEWEST });
  const found = [...newest.tasks];
  if (get().view === "models") {
    for (const status of ["pending", "processing"]) found.push(...(await taskPage({ status, limit: 100 })).tasks);
  }
  learn(found);
  const first = ({ status, created_at }) => (status === "processing" ? "" : created_at);
  const open = Object.values(get().tasks).filter((task) => !isOver(task));
  set((now) => ({
    waiting: open.sort((one, other) => (first(one) < first(other) ? -1 : 1)).map((task) => task.task_id),
    history: withNewest(now.history, newest),
  }));
}, LIST_MS);

/** The history with new tasks in front, unless it is a search. */
function withNewest(history, { tasks, cursor }) {
  if (history.q || history.status || history.model || history.starred) return history;
  if (!history.ids.length) return { ...history, ids: tasks.map((task) => task.task_id), cursor, more: Boolean(cursor) };
  const known = new Set(history.ids);
  const found = tasks.map((task) => task.task_id).filter((id) => !known.has(id));
  return found.length ? { ...history, ids: [...found, ...history.ids] } : history;
}

export const readHealth = seldom(async () => {
  set({ health: await call("health") });
  if (get().view === "models" && get().who?.scopes.includes("admin")) set({ config: await call("config/status") });
}, LIST_MS);

async function readAll() {
  set({ who: await call("keys/me") });
  readModels();
  readTasks();
  readHealth();
  const { mine, tasks, waiting } = get();
  for (const id of new Set([...mine.slice(0, STRIP), ...waiting])) if (!isOver(tasks[id])) restore(id);
}

/** Read a task that was there, unless it was deleted. */
async function restore(id) {
  try {
    await readTask(id);
    set((now) => ({ shown: now.shown || now.mine[0] }));
  } catch (error) {
    if (error.code === "task_not_found") forget(id);
    ignore(error);
  }
}

// -- events -----------------------------------------------------------------------------------------------------------

/** What each event tells of a task that has not ended. */
const TELLS = {
  queued: ({ position }) => ({ phase: "waiting", position }),
  position: ({ position, estimated_start_at, estimated_finish_at }) => ({
    phase: "waiting",
    position,
    starts: estimated_start_at,
    ends: estimated_finish_at,
  }),
  started: () => ({ phase: "starting", step: 0, preview: "" }),
  downloading: ({ bytes_done, bytes_total }) => ({ phase: "downloading", done: bytes_done, total: bytes_total }),
  loading: ({ bytes_done, bytes_total }) => ({ phase: "loading", done: bytes_done, total: bytes_total }),
  loaded: () => ({ phase: "running", done: 0, total: 0 }),
  step: ({ step, total }, live) => ({
    phase: "running",
    step,
    steps: total,
    since: live.since ?? { at: Date.now(), step },
  }),
  preview: ({ media_type, image }) => ({ preview: `data:${media_type};base64,${image}` }),
  storing: () => ({ phase: "storing" }),
  saved: () => ({ phase: "saving" }),
};

function onTaskEvent(event) {
  const { name, data } = event;
  const id = data.task_id;
  const tells = TELLS[name];
  if (tells && !isOver(get().tasks[id])) {
    set((now) => ({ live: { ...now.live, [id]: { ...now.live[id], ...tells(data, now.live[id] ?? {}) } } }));
  }
  if (FINAL.has(name)) finish(event);
}

/** A task has ended. What only its record tells, as times and warnings, is read for the tasks of this session. */
function finish({ name, data: { task_id: id, result_files, images, failure } }) {
  const { tasks, mine, shown } = get();
  if (!tasks[id] || isOver(tasks[id])) return;
  const told = { error_code: failure?.code, error_message: failure?.message, result_files, images };
  learn([{ ...tasks[id], ...told, status: name }]);
  set((now) => ({
    live: Object.fromEntries(Object.entries(now.live).filter(([each]) => each !== id)),
    waiting: now.waiting.filter((each) => each !== id),
  }));
  if (id === shown || mine.includes(id)) readTask(id).catch(ignore);
}

export function forget(id) {
  const without = (ids) => ids.filter((each) => each !== id);
  set((now) => ({
    tasks: Object.fromEntries(Object.entries(now.tasks).filter(([each]) => each !== id)),
    mine: without(now.mine),
    waiting: without(now.waiting),
    history: { ...now.history, ids: without(now.history.ids) },
    picked: now.picked.filter((name) => !name.includes(id)),
    shown: now.shown === id ? "" : now.shown,
  }));
}

function onModelEvent({ name, data }) {
  const { model, bytes_done: done, bytes_total: total } = data;
  const busy =
    name === "model_loading" ? "loading" : name === "model_pulling" && data.state === "downloading" ? "pulling" : "";
  const { [model]: before, ...others } = get().activity;
  set({ activity: busy ? { ...others, [model]: { kind: busy, done, total } } : others });
  if (!busy || before?.kind !== busy) readModels();
  if (!busy) readHealth();
}

function onEvent(event) {
  if (event.name === "gap") return readAll().catch(ignore);
  if (event.name.startsWith("config_")) return (readModels(), readHealth());
  if (event.name.startsWith("model_")) return onModelEvent(event);
  if (event.name === "queued" || event.name === "started" || FINAL.has(event.name)) (readTasks(), readHealth());
  if (event.data.task_id) onTaskEvent(event);
}

// -- streams ----------------------------------------------------------------------------------------------------------

/** Follow all events for as long as the page is open. A hidden page follows nothing: a browser has few connections. */
export async function followAll() {
  let after = 0;
  for (let wait = FIRST_PAUSE_MS; ; wait = Math.min(2 * wait, LONGEST_PAUSE_MS)) {
    await visible();
    const { key } = get();
    const stop = new AbortController();
    const hide = () => document.hidden && stop.abort();
    document.addEventListener("visibilitychange", hide);
    const leave = subscribe(() => get().key !== key && stop.abort());
    try {
      await follow("events", {
        after,
        signal: stop.signal,
        onOpen: () => {
          wait = FIRST_PAUSE_MS;
          set({ online: true });
          readAll().catch(ignore);
        },
        onEvent: (event) => {
          after = event.id || after;
          onEvent(event);
        },
      });
    } catch (error) {
      if (error.code === "unauthorized" || error.code === "forbidden") await keyChanged();
      else if (error.name !== "AbortError") set({ online: false });
    }
    document.removeEventListener("visibilitychange", hide);
    leave();
    await pause(wait);
  }
}

/** Follow the task on the stage, else the one that runs: only a task's own stream has its place and its previews. */
export async function followFocus() {
  for (let id = ""; ; id = await nextFocus(id)) {
    if (!id) continue;
    await visible();
    const stop = new AbortController();
    const leave = subscribe(() => (focus(get()) !== id || document.hidden) && stop.abort());
    try {
      await follow(`task/${id}/events`, { signal: stop.signal, onEvent: onTaskEvent });
    } catch (error) {
      ignore(error);
      if (error.code === "task_not_found") forget(id);
      if (error.code === "unauthorized") await keyChanged();
    }
    leave();
  }
}

function focus({ shown, tasks, live, waiting }) {
  if (tasks[shown] && !isOver(tasks[shown])) return shown;
  return waiting.find((id) => tasks[id]?.status === "processing" || live[id]?.step) ?? "";
}

/** The task in focus; waits until there is one. The same one again only after a pause: its stream has broken. */
async function nextFocus(last) {
  if (focus(get()) === last) await pause(FIRST_PAUSE_MS);
  for (;;) {
    const id = focus(get());
    if (id) return id;
    await new Promise((done) => {
      const stop = subscribe(() => focus(get()) && (stop(), done()));
    });
  }
}
