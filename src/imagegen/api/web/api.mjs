// Calls of the service's public API. All URLs are relative, so that the page works below a prefix.
import { get, set } from "./store.mjs";

/** Why a call was refused: the service's problem (RFC 9457), or `unreachable`. */
export class Problem extends Error {
  constructor(status, body = {}, retryAfter = null) {
    super(body.detail ?? body.title ?? "");
    this.status = status;
    this.code = body.code ?? "unreachable";
    this.errors = body.errors ?? [];
    this.retryAfter = Number(retryAfter) || null;
  }
}

/** JSON in which a seed above 2^53 stays exact, as text. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) =>
    typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) && context
      ? context.source
      : value,
  );
}

/** The response of the service. Raises Problem. Asks for a key if it needs one. */
export async function fetchFrom(path, { json, headers = {}, ...options } = {}) {
  const key = get().key;
  if (key) headers = { ...headers, "X-API-Key": key };
  if (json !== undefined) {
    headers = { ...headers, "Content-Type": "application/json" };
    options = { method: "POST", body: JSON.stringify(json), ...options };
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0);
  }
  if (response.ok) return response;
  const text = await response.text();
  let body = {};
  try {
    body = parse(text);
  } catch {
    // Not from the service itself, but from a proxy.
    body = { code: "http_error", detail: `${response.status} ${response.statusText}` };
  }
  const problem = new Problem(response.status, body, response.headers.get("Retry-After"));
  if (problem.code === "unauthorized" && get().key === key) {
    set({ who: null, dialog: { kind: "key", refused: Boolean(key) } });
  }
  throw problem;
}

/** The JSON of a response; null if it has no body. */
export async function call(path, options = {}) {
  const response = await fetchFrom(path, options);
  return response.status === 204 ? null : parse(await response.text());
}

/** One page of the history, newest first: {tasks, total, filtered, cursor}; no cursor: it is the last page. */
export async function taskPage(query) {
  const asked = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value != null));
  const response = await fetchFrom(`tasks?${asked}`);
  const next = /<([^>]*)>; rel="next"/.exec(response.headers.get("Link") ?? "");
  const cursor = next ? new URLSearchParams(next[1].split("?")[1]).get("cursor") : null;
  return { ...parse(await response.text()), cursor };
}

/**
 * Follow a stream of server-sent events until it ends. EventSource could send no key. Calls `onOpen`, then `onEvent`
 * with {name, id, data}.
 */
export async function follow(path, { after = 0, signal, onOpen, onEvent }) {
  const headers = after ? { "Last-Event-ID": String(after) } : {};
  const response = await fetchFrom(path, { headers, signal });
  onOpen?.();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read().catch((error) => {
      throw signal.aborted ? error : new Problem(0);
    });
    if (done) return;
    const frames = (text + value).split("\n\n");
    text = frames.pop();
    for (const frame of frames) {
      const fields = Object.fromEntries(frame.split("\n").map((line) => line.split(/: ?(.*)/s, 2)));
      if (fields.data) onEvent({ name: fields.event, id: Number(fields.id) || 0, data: parse(fields.data) });
    }
  }
}

const MINUTES = 60;

/** The URL of a picture, `folder/file`. With a key it must be signed first, because an <img> sends no header. */
export const pictureUrl = (state, name) => (state.key ? state.signed[name]?.url : `images/${name}`);

/** Have the URL of a picture signed, unless it is. */
export async function sign(name) {
  const { key, signed } = get();
  if (!key || signed[name]?.until > Date.now()) return;
  // A place in the list at once, so that one picture is signed once.
  set((now) => ({ signed: { ...now.signed, [name]: { until: Date.now() + 30_000 } } }));
  const { url } = await call(`images/${name}/url?minutes=${MINUTES}`);
  const until = Date.now() + (MINUTES - 1) * 60_000;
  set((now) => ({ signed: { ...now.signed, [name]: { url: `images/${name}?${url.split("?")[1]}`, until } } }));
}

export async function pictureBlob(name) {
  return (await fetchFrom(`images/${name}`)).blob();
}
