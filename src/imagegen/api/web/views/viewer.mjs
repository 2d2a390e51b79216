// The dialogs about pictures: one large, two compared, one that was brought in, the question before a delete.
import { downloadBundle, remove, reuse, reuseReceipt, taskIdOf, useAsInput } from "../actions.mjs";
import { readTask } from "../live.mjs";
import { get, set, useStore } from "../store.mjs";
import { fromNow, t } from "../text.mjs";
import { html, useEffect, useState } from "../vendor/preact.mjs";
import { alternative, factsOf, fitting, PictureActions } from "./create.mjs";
import { askToDelete } from "./history.mjs";
import { Button, Dialog, Icon, IconButton, Picture } from "./parts.mjs";

/** The pictures that the arrows lead through: of the history, and in front of it those of this session. */
function neighbours({ history, mine, tasks, view }) {
  const ids = view === "history" ? history.ids : [...new Set([...mine, ...history.ids])];
  return ids.flatMap((id) => tasks[id]?.result_files ?? []);
}

export function ViewerDialog({ name }) {
  const task = useStore((state) => state.tasks[taskIdOf(name)]);
  const go = (step) => {
    const all = neighbours(get());
    const next = all[all.indexOf(name) + step];
    if (next) set({ dialog: { kind: "viewer", name: next } });
  };
  useEffect(() => {
    // Lists leave the receipt out.
    if (task && !task.receipt) readTask(task.task_id).catch(() => {});
  }, [name]);
  useEffect(() => {
    if (!task) set({ dialog: null });
  }, [task]);
  useEffect(() => {
    const onKeyDown = (event) => {
      if (event.target.matches("input, textarea, select")) return;
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") go(event.key === "ArrowLeft" ? -1 : 1);
      if (event.key === "Delete") askToDelete([taskIdOf(name)]);
    };
    addEventListener("keydown", onKeyDown);
    return () => removeEventListener("keydown", onKeyDown);
  }, [name]);
  if (!task) return null;
  const index = task.result_files.indexOf(name);
  return html`
    <${Dialog} label=${t("stage")} class="viewer">
      <div class="large">
        <div class="frame" style=${fitting(task.width, task.height, 8)}>
          <${Picture} name=${name} alt=${alternative(task, index)} />
        </div>
        <${IconButton} icon="left" label=${t("previous")} class="to-left" onClick=${() => go(-1)} />
        <${IconButton} icon="right" label=${t("next")} class="to-right" onClick=${() => go(1)} />
      </div>
      <aside>
        <p class="said">${task.prompt}</p>
        <p class="facts">${factsOf({ ...task, seed: task.images[index].seed })}</p>
        <div class="actions">
          <${PictureActions} task=${task} index=${index} />
          <${IconButton} icon="trash" label=${t("delete")} onClick=${() => askToDelete([task.task_id])} />
        </div>
        <div class="actions words">
          <${Button} icon="reuse" onClick=${() => reuse(task, task.images[index])}>${t("reuse")}<//>
          <${Button} icon="download" onClick=${() => downloadBundle(task.task_id)}>${t("download-task")}<//>
        </div>
        <${Facts} task=${task} image=${task.images[index]} />
      </aside>
    <//>
  `;
}

function Facts({ task, image }) {
  const made = task.receipt?.provenance;
  const facts = [
    ["negative", task.negative_prompt],
    ["strength", task.strength],
    ["guidance", task.guidance_scale],
    ["seed", image.seed],
    ["format", task.format],
    ["loras", task.loras?.map((lora) => `${lora.path} × ${lora.scale}`).join(", ")],
    ["made", task.completed_at && fromNow(task.completed_at)],
    ["kept-until", task.expires_at && fromNow(task.expires_at)],
    ["weights", made?.weights?.join(", ")],
    ["sampler", made?.sampler],
    ["device", made?.device],
    ["task", task.task_id],
  ];
  return html`
    <dl>
      ${facts
        .filter(([, value]) => value !== undefined && value !== null && value !== "")
        .map(([key, value]) => html`<div key=${key}><dt>${t(key)}</dt><dd>${value}</dd></div>`)}
    </dl>
    ${task.warnings?.map((warning) => html`<p class="warn">${warning}</p>`)}
  `;
}

/** Two pictures in one place: a slider moves the border between them. */
export function CompareDialog({ names }) {
  const tasks = useStore((state) => state.tasks);
  const [at, setAt] = useState(50);
  const [left, right] = names.map((name) => ({ name, task: tasks[taskIdOf(name)] }));
  if (!left.task || !right.task) return null;
  const words = ({ task, name }) => alternative(task, task.result_files.indexOf(name));
  return html`
    <${Dialog} label=${t("compare")} class="viewer compare">
      <div class="large">
        <div class="frame" style=${{ ...fitting(left.task.width, left.task.height, 8), "--at": `${at}%` }}>
          <${Picture} name=${left.name} alt=${words(left)} />
          <${Picture} name=${right.name} alt=${words(right)} class="upper" />
          <span class="border" />
          <input
            type="range"
            min="0"
            max="100"
            aria-label=${t("compare-slider")}
            value=${at}
            onInput=${(event) => setAt(Number(event.currentTarget.value))}
          />
        </div>
      </div>
      <aside class="both">
        ${[left, right].map(
          ({ task, name }) => html`<div key=${name}>
            <p class="said">${task.prompt}</p>
            <p class="facts">${factsOf({ ...task, seed: task.images[task.result_files.indexOf(name)].seed })}</p>
          </div>`,
        )}
      </aside>
    <//>
  `;
}

export function DeleteDialog({ ids }) {
  const tasks = useStore((state) => state.tasks);
  const pictures = ids.reduce((sum, id) => sum + (tasks[id]?.result_files?.length ?? 0), 0);
  const confirmed = () => {
    set({ dialog: null });
    remove(ids);
  };
  return html`
    <${Dialog} label=${t("delete")} class="small">
      <h2>${t("delete-ask", { n: ids.length })}</h2>
      <p>${t("delete-more", { n: pictures })}</p>
      <div class="actions">
        <button type="button" class="primary danger" onClick=${confirmed}>${t("delete")}</button>
        <${Button} onClick=${() => set({ dialog: null })}>${t("keep")}<//>
      </div>
    <//>
  `;
}

/** A picture was brought in that carries its receipt: use its settings, or start from it? */
export function ReceiptDialog({ file, receipt, url }) {
  useEffect(() => () => URL.revokeObjectURL(url), [url]);
  const { request, model } = receipt;
  return html`
    <${Dialog} label=${t("receipt")} class="small">
      <img class="dropped" src=${url} alt=${t("input-picture", { name: file.name })} />
      <h2>${t("receipt")}</h2>
      <p class="said">${request.prompt}</p>
      <p class="facts">${factsOf({ ...request, model })}</p>
      <div class="actions">
        <button type="button" class="primary" onClick=${() => reuseReceipt(receipt)}>
          <span>${t("reuse")}</span><${Icon} name="reuse" />
        </button>
        <${Button} icon="image" onClick=${() => useAsInput(file)}>${t("start-from-picture")}<//>
      </div>
    <//>
  `;
}
