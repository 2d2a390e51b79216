// The first view: the stage with the picture, the tasks of this session beside it, the form below.
import { cancel, download, downloadBundle, reuse, star, useResult } from "../actions.mjs";
import { isOver } from "../live.mjs";
import { merge, set, useStore } from "../store.mjs";
import { explained, seconds, t } from "../text.mjs";
import { html } from "../vendor/preact.mjs";
import { Composer } from "./composer.mjs";
import { About, Button, IconButton, Picture, Progress } from "./parts.mjs";

export function Create() {
  const id = useStore((state) => state.shown);
  const task = useStore((state) => state.tasks[state.shown]);
  return html`
    <div class="create">
      <section class="stage" aria-label=${t("stage")}>
        ${task ? html`<${Shown} key=${id} task=${task} />` : html`<${Welcome} />`}
      </section>
      <${Strip} />
      <${Composer} />
    </div>
  `;
}

// -- before the first picture -----------------------------------------------------------------------------------------

/** What the embedded model can draw. It reads English only. */
const TINY_IDEAS = [
  "a boat with red sails on the sea",
  "a rocket in the night sky",
  "a red mushroom on the grass at night",
  "a black cat on the grass",
  "snowy mountains on a sunny day",
  "a blue heart on a red and white striped background",
];

function Welcome() {
  const model = useStore((state) => state.details[state.form.model]);
  const ideas = model?.config.local_path === "builtin:tiny" ? TINY_IDEAS : model ? t("ideas").split("\n") : [];
  const take = (prompt) => {
    merge("form", { prompt });
    document.getElementById("prompt").focus();
  };
  return html`
    <div class="welcome">
      <div class="undeveloped" aria-hidden="true" />
      <h2>${t("welcome")}</h2>
      <p>${t("welcome-more")}</p>
      <ul class="ideas" aria-label=${t("ideas-label")}>
        ${ideas.map(
          (idea) => html`<li key=${idea}><button type="button" onClick=${() => take(idea)}>${idea}</button></li>`,
        )}
      </ul>
      <${Recent} />
    </div>
  `;
}

const MOST_RECENT = 8;

function Recent() {
  const ids = useStore((state) => state.history.ids);
  const tasks = useStore((state) => state.tasks);
  const made = ids.map((id) => tasks[id]).filter((task) => task?.result_files);
  if (!made.length) return null;
  return html`
    <div class="recent" role="group" aria-label=${t("recent")}>
      ${made.slice(0, MOST_RECENT).map((task) => html`<${StripItem} key=${task.task_id} task=${task} />`)}
    </div>
  `;
}

// -- one task ---------------------------------------------------------------------------------------------------------

function Shown({ task }) {
  return html`
    <div class="room">
      ${
        task.status === "completed"
          ? html`<${Pictures} task=${task} />`
          : isOver(task)
            ? html`<${Ended} task=${task} />`
            : html`<${Developing} task=${task} />`
      }
    </div>
    <${Caption} task=${task} />
  `;
}

/** As large as the room allows, and so many times its pixels at most: a small picture becomes blurred. */
export const fitting = (width, height, times = width < 512 ? 4 : 2) => ({
  aspectRatio: `${width} / ${height}`,
  width: `min(100cqw, calc(100cqh * ${width / height}), ${Math.round(width * times)}px)`,
});

function Pictures({ task }) {
  const { width, height } = task;
  const columns = Math.ceil(Math.sqrt((task.result_files.length * height) / width));
  const rows = Math.ceil(task.result_files.length / columns);
  return html`
    <div class="pictures" style=${{ ...fitting(width * columns, height * rows), "--columns": columns }}>
      ${task.result_files.map(
        (name, index) => html`<button
          key=${name}
          type="button"
          class="frame"
          aria-label=${t("enlarge")}
          onClick=${() => set({ dialog: { kind: "viewer", name } })}
        >
          <${Picture} name=${name} alt=${alternative(task, index)} />
        </button>`,
      )}
    </div>
  `;
}

export const alternative = (task, index) => t("picture-of", { prompt: task.prompt || task.model, n: index + 1, of: task.batch_size });

/** A task that has not ended: its preview, what is done, and how long it may take. */
function Developing({ task }) {
  const live = useStore((state) => state.live[task.task_id]) ?? {};
  return html`
    <div class="frame developing" style=${fitting(task.width, task.height)}>
      <div class="undeveloped" />
      ${live.preview && html`<img class="preview" src=${live.preview} alt=${t("preview")} />`}
      <div class="progress">
        <p class="phase" role="status">${phaseOf(task, live)}</p>
        <${Progress} label=${t("progress")} ...${shareOf(live)} />
        <${Button} icon="stop" onClick=${() => cancel(task.task_id)}>${t("cancel")}<//>
      </div>
    </div>
  `;
}

/** Done and total of what goes on; nothing if that is unknown. */
export function shareOf({ phase, step, steps, done, total }) {
  if (phase === "running" && steps) return { done: step, total: steps };
  if ((phase === "loading" || phase === "downloading") && total) return { done, total };
  return {};
}

export function phaseOf(task, live) {
  const left = live.ends && (new Date(live.ends) - Date.now()) / 1000;
  const about = left > 1 ? ` · ${t("about", { time: seconds(left) })}` : "";
  switch (live.phase ?? task.status) {
    case "running":
      return t("phase-running", { step: live.step ?? 0, steps: live.steps ?? task.steps }) + paceOf(live);
    case "loading":
      return t("phase-loading", { model: task.model });
    case "downloading":
      return t("phase-downloading", { model: task.model });
    case "storing":
      return t("phase-storing");
    case "saving":
      return t("phase-saving");
    case "starting":
    case "processing":
      return t("phase-starting");
    default: {
      const position = live.position ?? task.position ?? 0;
      return (position ? t("phase-waiting", { n: position }) : t("phase-next")) + about;
    }
  }
}

/** The time that is left at the pace of the steps so far. */
function paceOf({ since, step, steps }) {
  if (!since || step <= since.step) return "";
  const left = (((Date.now() - since.at) / (step - since.step)) * (steps - step)) / 1000;
  return left > 1 ? ` · ${t("about", { time: seconds(left) })}` : "";
}

function Ended({ task }) {
  const { title, detail, code } = explained({ code: task.error_code, detail: task.error_message });
  const failed = task.status === "failed";
  return html`
    <div class="frame ended" role=${failed ? "alert" : undefined}>
      <h2>${failed ? title : t("cancelled")}</h2>
      ${failed && detail !== title && html`<p>${detail}</p>`}
      <div class="actions">
        <${Button} icon="reuse" onClick=${() => reuse(task)}>${t("reuse")}<//>
        ${failed && html`<${About} code=${code} class="chip" />`}
      </div>
    </div>
  `;
}

function Caption({ task }) {
  const [name] = task.result_files ?? [];
  const many = (task.result_files?.length ?? 0) > 1;
  return html`
    <div class="caption">
      <p class="said" title=${task.prompt}>${task.prompt}</p>
      <p class="facts">${factsOf(task)}</p>
      ${task.warnings?.map((warning) => html`<p class="warn">${warning}</p>`)}
      ${
        name &&
        html`<div class="actions">
        ${
          many
            ? html`<${IconButton}
                icon="download"
                label=${t("download-all")}
                onClick=${() => downloadBundle(task.task_id)}
              />`
            : html`<${PictureActions} task=${task} index=${0} />`
        }
        <${IconButton} icon="reuse" label=${t("reuse")} onClick=${() => reuse(task)} />
      </div>`
      }
    </div>
  `;
}

export function factsOf(task) {
  const took = task.started_at && task.completed_at && (new Date(task.completed_at) - new Date(task.started_at)) / 1000;
  return [
    task.model,
    `${task.width} × ${task.height}`,
    t("n-steps", { n: task.steps }),
    t("seed-is", { seed: task.seed }),
    took && seconds(took),
  ]
    .filter(Boolean)
    .join(" · ");
}

export function PictureActions({ task, index }) {
  const name = task.result_files[index];
  const starred = useStore((state) => state.stars.includes(name));
  return html`
    <${IconButton}
      icon="star"
      label=${t("star")}
      class=${starred ? "on" : ""}
      aria-pressed=${starred}
      onClick=${() => star(name)}
    />
    <${IconButton} icon="image" label=${t("use-as-input")} onClick=${() => useResult(name)} />
    <${IconButton} icon="download" label=${t("download")} onClick=${() => download(name)} />
  `;
}

// -- the tasks of this session ----------------------------------------------------------------------------------------

function Strip() {
  const mine = useStore((state) => state.mine);
  const tasks = useStore((state) => state.tasks);
  const here = mine.map((id) => tasks[id]).filter(Boolean);
  if (here.length < 2) return html`<div class="strip" />`;
  return html`
    <nav class="strip" aria-label=${t("session")}>
      ${here.map((task) => html`<${StripItem} key=${task.task_id} task=${task} />`)}
    </nav>
  `;
}

function StripItem({ task }) {
  const id = task.task_id;
  const shown = useStore((state) => state.shown === id);
  const live = useStore((state) => state.live[id]) ?? {};
  const [name] = task.result_files ?? [];
  const { done = 0, total = 1 } = shareOf(live);
  const open = !isOver(task);
  return html`
    <button
      type="button"
      class=${`thumb ${shown ? "shown" : ""}`}
      aria-current=${shown}
      aria-label=${`${task.prompt}, ${open ? phaseOf(task, live) : t(`status.${task.status}`)}`}
      title=${task.prompt}
      onClick=${() => set({ shown: id })}
    >
      ${
        name
          ? html`<${Picture} name=${name} alt="" />`
          : live.preview && open
            ? html`<img src=${live.preview} alt="" />`
            : html`<span class=${`blank is-${task.status}`} />`
      }
      ${open && html`<span class="ring" style=${{ "--share": done / total }} />`}
      ${task.status === "failed" && html`<span class="mark">!</span>`}
    </button>
  `;
}
