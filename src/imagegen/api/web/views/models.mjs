// The third view: the models and what can be done with them, the queue, the device, the configuration.
import { cancel, cancelPull, clearQueue, load, pull, unload } from "../actions.mjs";
import { isOver, readDetails, readHealth, readTasks } from "../live.mjs";
import { set, useStore } from "../store.mjs";
import { bytes, fromNow, seconds, t } from "../text.mjs";
import { html, useEffect } from "../vendor/preact.mjs";
import { phaseOf, shareOf } from "./create.mjs";
import { abilities, About, Button, IconButton, ModelState, Progress } from "./parts.mjs";

/** Memory and last uses change without an event. */
const READ_AGAIN_MS = 10_000;

export function Models() {
  const models = useStore((state) => state.models) ?? [];
  useEffect(() => {
    readHealth();
    readTasks();
    const timer = setInterval(readHealth, READ_AGAIN_MS);
    return () => clearInterval(timer);
  }, []);
  return html`
    <div class="models-view">
      <section aria-label=${t("models")}>
        <ul class="cards">
          ${models.map((model) => html`<${Card} key=${model.id} model=${model} />`)}
        </ul>
      </section>
      <div class="aside">
        <${Queue} />
        <${Health} />
        <${Config} />
      </div>
    </div>
  `;
}

// -- models -----------------------------------------------------------------------------------------------------------

const IN_MEMORY = ["resident", "warm"];

function Card({ model }) {
  const admin = useStore((state) => state.who?.scopes.includes("admin"));
  const details = useStore((state) => state.details[model.id]);
  useEffect(() => {
    readDetails(model.id).catch(() => {});
  }, [model.state]);
  const facts = [
    ["device-bytes", model.device_bytes != null && bytes(model.device_bytes)],
    ["host-bytes", model.host_bytes != null && bytes(model.host_bytes)],
    ["last-used", model.last_used && fromNow(model.last_used)],
    ["unloads-at", model.unloads_at && fromNow(model.unloads_at)],
    ["load-took", model.load_seconds != null && seconds(model.load_seconds)],
    ["warm-took", model.warm_load_seconds != null && seconds(model.warm_load_seconds)],
  ].filter(([, value]) => value);
  return html`
    <li class="card">
      <div class="head">
        <h2>${model.name}</h2>
        <${ModelState} model=${model} />
      </div>
      <p>${model.description}</p>
      <p class="able">${abilities(model)}</p>
      ${
        model.error_message &&
        html`<p class="refusal">${model.error_message}${" "}
        <${About} code=${model.error_code} />
      </p>`
      }
      ${details?.pull?.error_message && html`<p class="refusal">${details.pull.error_message}</p>`}
      ${
        facts.length > 0 &&
        html`<dl>${facts.map(([key, value]) => html`<div key=${key}><dt>${t(key)}</dt><dd>${value}</dd></div>`)}</dl>`
      }
      ${admin && html`<${Buttons} model=${model} details=${details} />`}
    </li>
  `;
}

function Buttons({ model, details }) {
  const busy = useStore((state) => state.activity[model.id]);
  const { id, state } = model;
  if (busy?.kind === "pulling" || state === "downloading") {
    return html`<${Button} onClick=${() => cancelPull(id)}>${t("pull-cancel")}<//>`;
  }
  if (busy || state === "loading" || state === "unloading") return null;
  if (IN_MEMORY.includes(state)) {
    return html`<${Button} onClick=${() => unload(id)}>${t("unload")}<//>`;
  }
  if (details && !details.weights_here) {
    return html`<${Button} icon="download" onClick=${() => pull(id)}>${t("pull")}<//>`;
  }
  return html`<${Button} onClick=${() => load(id)}>${t("load")}<//>`;
}

// -- the queue --------------------------------------------------------------------------------------------------------

function Queue() {
  const waiting = useStore((state) => state.waiting);
  const tasks = useStore((state) => state.tasks);
  const admin = useStore((state) => state.who?.scopes.includes("admin"));
  const open = waiting.map((id) => tasks[id]).filter((task) => task && !isOver(task));
  return html`
    <section class="card" aria-labelledby="queue-title">
      <div class="head">
        <h2 id="queue-title">${t("queue")}</h2>
        ${
          admin &&
          open.some((task) => task.status === "pending") &&
          html`<${Button} class="plain" onClick=${clearQueue}>${t("queue-clear")}<//>`
        }
      </div>
      ${open.length === 0 && html`<p class="hint">${t("queue-empty")}</p>`}
      <ol class="queue">
        ${open.map((task) => html`<${Waiting} key=${task.task_id} task=${task} />`)}
      </ol>
    </section>
  `;
}

function Waiting({ task }) {
  const live = useStore((state) => state.live[task.task_id]) ?? {};
  return html`
    <li>
      <button type="button" class="plain said" onClick=${() => set({ shown: task.task_id, view: "create" })}>
        ${task.prompt}
      </button>
      <small>${task.model} · ${phaseOf(task, live)}</small>
      ${task.status === "processing" && html`<${Progress} label=${t("progress")} ...${shareOf(live)} />`}
      <${IconButton} icon="close" label=${t("cancel")} onClick=${() => cancel(task.task_id)} />
    </li>
  `;
}

// -- device and configuration -----------------------------------------------------------------------------------------

const GIB = 2 ** 30;

function Health() {
  const health = useStore((state) => state.health);
  if (!health) return null;
  const gpu = health.gpu_info;
  const used = gpu.gpu_memory_total - gpu.gpu_memory_free;
  const card = health.gpus?.[0];
  const problems = new Set([...health.problems.map(({ detail }) => detail), gpu.cuda_problem ?? ""]);
  problems.delete("");
  const facts = [
    ["host-memory", bytes(gpu.host_memory * GIB)],
    ["disk-free", bytes(health.disk_free * GIB)],
    ["store", t(`store.${health.store}`)],
    ["tasks-kept", health.total_tasks],
    ["version", health.version],
  ];
  return html`
    <section class="card" aria-labelledby="health-title">
      <div class="head">
        <h2 id="health-title">${t("device")}</h2>
        <span class=${`state is-${health.status}`}>${t(`health.${health.status}`)}</span>
      </div>
      <p>${gpu.gpu_name ?? t("no-gpu")}${card && ` · ${card.utilization ?? "?"} % · ${card.temperature ?? "?"} °C`}</p>
      ${[...problems].map((detail) => html`<p class="refusal" key=${detail}>${detail}</p>`)}
      ${
        gpu.gpu_memory_total > 0 &&
        html`<label class="memory">
        <span>${t("device-memory", { used: bytes(used * GIB), total: bytes(gpu.gpu_memory_total * GIB) })}</span>
        <meter min="0" max=${gpu.gpu_memory_total} value=${used} />
      </label>`
      }
      <dl>${facts.map(([key, value]) => html`<div key=${key}><dt>${t(key)}</dt><dd>${value}</dd></div>`)}</dl>
    </section>
  `;
}

function Config() {
  const config = useStore((state) => state.config);
  if (!config) return null;
  return html`
    <section class="card" aria-labelledby="config-title">
      <div class="head">
        <h2 id="config-title">${config.file}</h2>
        <span class=${`state is-${config.ok ? "healthy" : "error"}`}>
          ${t(config.ok ? "config-ok" : "config-broken")}
        </span>
      </div>
      ${config.errors.map((error) => html`<pre class="refusal" key=${error}>${error}</pre>`)}
      ${config.waiting && html`<p class="hint">${t("config-waiting")}</p>`}
      ${config.read_only && html`<p class="hint">${config.read_only}</p>`}
      <p class="hint">${t("config-since", { time: fromNow(config.loaded_at) })}</p>
    </section>
  `;
}
