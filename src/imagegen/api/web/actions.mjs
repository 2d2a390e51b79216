// What a person does: submit, cancel, delete, download, star, bring in a picture.
import { call, fetchFrom, pictureBlob, taskPage } from "./api.mjs";
import { maskOf, receiptIn, zip } from "./files.mjs";
import { forget, isOver, learn, readModels, readTask, readTasks } from "./live.mjs";
import { fieldsOf, formOf } from "./request.mjs";
import { EMPTY_FORM, get, merge, notify, set } from "./store.mjs";
import { explained, t } from "./text.mjs";

/** Do something that the service may refuse, and say in words why. */
async function tried(work) {
  try {
    return await work();
  } catch (error) {
    if (!error.code) throw error;
    const { title, detail } = explained(error);
    notify(detail && detail !== title ? `${title} ${detail}` : title, "error", 12);
    return undefined;
  }
}

// -- tasks ------------------------------------------------------------------------------------------------------------

const PREVIEWS = 8;
/** Pictures of a form are kept in the session for a reload, so they are few. */
const MINE = 50;

export async function submit() {
  const state = get();
  if (!state.form.prompt.trim() || state.sending) return;
  set({ sending: true, refusal: null, menu: "" });
  try {
    const body = { ...fieldsOf(state), previews: PREVIEWS };
    if (state.input) Object.assign(body, { image: state.input.data, mask: maskOf(state) });
    const path = state.input ? "image2image" : "text2image";
    const { task_id: id } = await call(path, { json: body });
    const task = await readTask(id);
    set((now) => ({
      mine: [id, ...now.mine].slice(0, MINE),
      shown: id,
      view: "create",
      waiting: isOver(task) ? now.waiting : [...new Set([...now.waiting, id])],
    }));
    readTasks();
  } catch (error) {
    if (!error.code) throw error;
    set({ refusal: explained(error) });
  } finally {
    set({ sending: false });
  }
}

export const cancel = (id) => tried(async () => learn([await call(`task/${id}/cancel`, { method: "POST" })]));

export const clearQueue = () => tried(() => call("queue/clear", { method: "POST" }).then(readTasks));

export function remove(ids) {
  return tried(async () => {
    for (const id of ids) {
      await call(`task/${id}`, { method: "DELETE" });
      forget(id);
    }
  });
}

/** Put the settings of a task, or of one of its pictures, into the form. */
export function reuse(task, picture) {
  set({ form: formOf(task.model, { ...task, seed: picture?.seed ?? task.seed }), view: "create", dialog: null });
  fitModel();
}

export function reuseReceipt(receipt) {
  set({ form: formOf(receipt.model, receipt.request), view: "create", dialog: null });
  fitModel();
}

function fitModel() {
  const { models, form } = get();
  if (models && !models.some((model) => model.id === form.model)) {
    notify(t("model-gone", { model: form.model }));
    readModels();
  }
}

export const startAnew = () =>
  set((now) => ({ form: { ...EMPTY_FORM, model: now.form.model }, input: null, strokes: [] }));

// -- the history ------------------------------------------------------------------------------------------------------

const PAGE = 48;

export const taskIdOf = (name) => name.slice(name.indexOf("/") + 1).slice(0, 36);

/** Read the next page of the history; `fresh`: the first page of a new search. */
export async function readHistory(change = null) {
  if (change) merge("history", { ...change, ids: [], cursor: null, more: true, loading: false });
  const asked = get().history;
  if (asked.loading || !asked.more) return;
  merge("history", { loading: true });
  await tried(async () => {
    const { tasks, cursor } = asked.starred ? await starred() : await taskPage(queryOf(asked));
    if (!sameSearch(asked, get().history)) return;
    learn(tasks);
    set((now) => ({
      history: {
        ...now.history,
        ids: [...new Set([...now.history.ids, ...tasks.map((task) => task.task_id)])],
        cursor,
        more: Boolean(cursor),
      },
    }));
  });
  if (sameSearch(asked, get().history)) merge("history", { loading: false });
}

const queryOf = ({ q, status, model, cursor }) => ({ q: q.trim(), status, model, cursor, limit: PAGE });
const sameSearch = (one, other) => ["q", "status", "model", "starred"].every((field) => one[field] === other[field]);

/** The tasks of the pictures that have a star. Stars of deleted pictures are dropped. */
async function starred() {
  const ids = [...new Set(get().stars.map(taskIdOf))];
  const found = await Promise.all(ids.map((id) => call(`task/${id}`).catch((error) => error)));
  const gone = ids.filter((_, index) => found[index].code === "task_not_found");
  if (gone.length) set((now) => ({ stars: now.stars.filter((name) => !gone.includes(taskIdOf(name))) }));
  return { tasks: found.filter((task) => task.task_id), cursor: null };
}

const toggled = (list, item) => (list.includes(item) ? list.filter((each) => each !== item) : [...list, item]);

export const star = (name) => set((now) => ({ stars: toggled(now.stars, name) }));
export const pick = (name) => set((now) => ({ picked: toggled(now.picked, name) }));

// -- files ------------------------------------------------------------------------------------------------------------

export const saveUrl = (href, name) => Object.assign(document.createElement("a"), { href, download: name }).click();

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  saveUrl(url, name);
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

const fileOf = (name) => name.split("/").at(-1);

export const download = (name) => tried(async () => save(await pictureBlob(name), fileOf(name)));

export const downloadBundle = (id) =>
  tried(async () => save(await (await fetchFrom(`task/${id}/bundle`)).blob(), `${id}.zip`));

export function downloadAll(names) {
  return tried(async () => {
    const files = [];
    for (const name of names) {
      files.push({ name: fileOf(name), data: new Uint8Array(await (await pictureBlob(name)).arrayBuffer()) });
    }
    save(zip(files), "imagegen.zip");
  });
}

const dataUrl = (blob) =>
  new Promise((done, failed) => {
    const reader = Object.assign(new FileReader(), { onload: () => done(reader.result), onerror: failed });
    reader.readAsDataURL(blob);
  });

export async function useAsInput(file, name = file.name) {
  const url = URL.createObjectURL(file);
  const picture = Object.assign(new Image(), { src: url });
  const shown = await picture.decode().then(
    () => true,
    () => false,
  );
  if (!shown) {
    URL.revokeObjectURL(url);
    return notify(t("not-a-picture", { name }), "error");
  }
  const { naturalWidth: width, naturalHeight: height } = picture;
  const before = get().input;
  if (before) URL.revokeObjectURL(before.url);
  const input = { name, type: file.type, url, data: await dataUrl(file), width, height };
  set({ input, strokes: [], view: "create", dialog: null });
  merge("form", { shape: "", width: "", height: "" });
  return undefined;
}

export const dropInput = () => {
  URL.revokeObjectURL(get().input?.url);
  set({ input: null, strokes: [] });
};

export const useResult = (name) => tried(async () => useAsInput(await pictureBlob(name), fileOf(name)));

/** A picture that was dropped, pasted or chosen: if it carries a receipt, ask what to do with it. */
export async function bringIn(file) {
  const receipt = receiptIn(new Uint8Array(await file.arrayBuffer()));
  if (!receipt?.request?.prompt) return useAsInput(file);
  return set({ dialog: { kind: "receipt", file, receipt, url: URL.createObjectURL(file) } });
}

// -- models -----------------------------------------------------------------------------------------------------------

const model = (id, path, method = "POST") =>
  tried(async () => {
    try {
      return await call(`models/${encodeURIComponent(id)}${path}`, { method });
    } finally {
      readModels();
    }
  });

export const load = (id) => model(id, "/load");
export const unload = (id) => model(id, "/unload");
export const pull = (id) => model(id, "/pull");
export const cancelPull = (id) => model(id, "/pull", "DELETE");

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    notify(t("copied"));
  } catch {
    // Only secure origins have a clipboard, and a service on the local network is none.
    notify(t("copy-by-hand"), "error");
  }
}
