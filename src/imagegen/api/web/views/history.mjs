// The second view: all tasks of the service, as a grid that the keyboard moves in.
import { download, downloadAll, pick, readHistory, star, taskIdOf } from "../actions.mjs";
import { isOver } from "../live.mjs";
import { get, set, useStore } from "../store.mjs";
import { t } from "../text.mjs";
import { html, useEffect, useRef } from "../vendor/preact.mjs";
import { alternative, phaseOf } from "./create.mjs";
import { Button, Icon, IconButton, Picture } from "./parts.mjs";

const STATUSES = ["completed", "failed", "cancelled", "processing", "pending"];
const TYPING_MS = 300;

/** What the grid shows: each picture, and each task that has none. */
function itemsOf(ids, tasks, starred, stars) {
  const items = ids
    .map((id) => tasks[id])
    .filter(Boolean)
    .flatMap((task) =>
      task.result_files
        ? task.result_files.map((name, index) => ({ task, name, index }))
        : [{ task, name: "", index: 0 }],
    );
  return starred ? items.filter(({ name }) => stars.includes(name)) : items;
}

export function History() {
  const { ids, starred, loading, more } = useStore((state) => state.history);
  const tasks = useStore((state) => state.tasks);
  const stars = useStore((state) => state.stars);
  const items = itemsOf(ids, tasks, starred, stars);
  useEffect(() => {
    if (!get().history.ids.length) readHistory();
  }, []);
  return html`
    <div class="history">
      <${Tools} />
      ${
        items.length
          ? html`<${Grid} items=${items} />`
          : !loading && html`<p class="empty">${t(more ? "history-loading" : "history-empty")}</p>`
      }
      ${more && html`<${More} key=${ids.length} />`}
      <${Picked} />
    </div>
  `;
}

function Tools() {
  const { q, status, model, starred } = useStore((state) => state.history);
  const models = useStore((state) => state.models) ?? [];
  const timer = useRef();
  const only = (field) => (event) => readHistory({ [field]: event.currentTarget.value });
  const search = (event) => {
    const { value } = event.currentTarget;
    clearTimeout(timer.current);
    timer.current = setTimeout(() => readHistory({ q: value, starred: false }), TYPING_MS);
  };
  return html`
    <form class="tools" role="search" onSubmit=${(event) => event.preventDefault()}>
      <label class="search">
        <${Icon} name="search" />
        <input
          type="search"
          aria-label=${t("search")}
          placeholder=${t("search")}
          maxlength="200"
          value=${q}
          onInput=${search}
        />
      </label>
      <select aria-label=${t("status")} value=${status} onChange=${only("status")}>
        <option value="">${t("status-any")}</option>
        ${STATUSES.map((each) => html`<option key=${each} value=${each}>${t(`status.${each}`)}</option>`)}
      </select>
      <select aria-label=${t("model")} value=${model} onChange=${only("model")}>
        <option value="">${t("model-any")}</option>
        ${models.map((each) => html`<option key=${each.id} value=${each.id}>${each.name}</option>`)}
      </select>
      <${Button} icon="star" aria-pressed=${starred} onClick=${() => readHistory({ starred: !starred })}>
        ${t("starred")}
      <//>
      <p class="hint">${t("history-keys")}</p>
    </form>
  `;
}

// -- the grid ---------------------------------------------------------------------------------------------------------

const STEPS = { ArrowLeft: -1, ArrowRight: 1 };

function Grid({ items }) {
  const grid = useRef();
  const tiles = () => [...grid.current.querySelectorAll(".tile")];
  /** The tile one row up or down: the columns are those that the browser has made. */
  const beside = (index, key) => {
    const all = tiles();
    const columns = all.findIndex((tile) => tile.offsetTop > all[0].offsetTop);
    return index + (key === "ArrowUp" ? -1 : 1) * (columns < 1 ? all.length : columns);
  };
  const onKeyDown = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const index = tiles().indexOf(document.activeElement);
    const item = items[index];
    if (!item) return;
    const { key } = event;
    if (key in STEPS || key === "ArrowUp" || key === "ArrowDown") {
      tiles()[key in STEPS ? index + STEPS[key] : beside(index, key)]?.focus();
    } else if (key === "Home" || key === "End")
      tiles()
        .at(key === "Home" ? 0 : -1)
        .focus();
    else if (key === "Delete" || key === "Backspace") askToDelete([item.task.task_id]);
    else if (key === "s" && item.name) star(item.name);
    else if (key === "x" && item.name) pick(item.name);
    else if (key === "d" && item.name) download(item.name);
    else return;
    event.preventDefault();
  };
  return html`
    <ul class="grid" ref=${grid} onKeyDown=${onKeyDown} aria-label=${t("history")}>
      ${items.map(
        (item, index) => html`<${Tile} key=${item.name || item.task.task_id} ...${item} first=${index === 0} />`,
      )}
    </ul>
  `;
}

export const askToDelete = (ids) => set({ dialog: { kind: "delete", ids: [...new Set(ids)] } });

function Tile({ task, name, index, first }) {
  const live = useStore((state) => state.live[task.task_id]) ?? {};
  const starred = useStore((state) => state.stars.includes(name));
  const picked = useStore((state) => state.picked.includes(name));
  const shown = name
    ? html`<${Picture} name=${name} alt=${alternative(task, index)} loading="lazy" />`
    : live.preview && !isOver(task)
      ? html`<img src=${live.preview} alt=${t("preview")} />`
      : html`<span class=${`blank is-${task.status}`}>
          ${isOver(task) ? t(`status.${task.status}`) : phaseOf(task, live)}
        </span>`;
  const open = () => (name ? set({ dialog: { kind: "viewer", name } }) : set({ shown: task.task_id, view: "create" }));
  return html`
    <li class=${picked ? "picked" : ""}>
      <button
        type="button"
        class="tile"
        title=${task.prompt || task.model}
        tabindex=${first ? 0 : -1}
        onFocus=${roving}
        onClick=${open}
      >
        ${shown}
        ${!name && html`<span class="over">${task.prompt}</span>`}
      </button>
      ${
        name &&
        html`<${IconButton}
          icon="star"
          label=${t("star")}
          class=${`corner-star ${starred ? "on" : ""}`}
          tabindex="-1"
          aria-pressed=${starred}
          onClick=${() => star(name)}
        />
        <${IconButton}
          icon="check"
          label=${t("pick")}
          class=${`corner-pick ${picked ? "on" : ""}`}
          tabindex="-1"
          aria-pressed=${picked}
          onClick=${() => pick(name)}
        />`
      }
    </li>
  `;
}

/** Tab leads to one tile, the last that had the focus; the arrows lead to the others. */
function roving(event) {
  const tile = event.currentTarget;
  for (const other of tile.closest(".grid").querySelectorAll(".tile")) other.tabIndex = other === tile ? 0 : -1;
}

/** Reads the next page when it comes into sight, and has a button for those who come by keyboard. */
function More() {
  const end = useRef();
  useEffect(() => {
    const watch = new IntersectionObserver(([seen]) => seen.isIntersecting && readHistory(), { rootMargin: "600px" });
    watch.observe(end.current);
    return () => watch.disconnect();
  }, []);
  return html`<p class="more" ref=${end}>
    <${Button} onClick=${() => readHistory()}>${t("history-more")}<//>
  </p>`;
}

// -- what is picked ---------------------------------------------------------------------------------------------------

function Picked() {
  const picked = useStore((state) => state.picked);
  if (!picked.length) return null;
  return html`
    <div class="picked-bar" role="toolbar" aria-label=${t("picked", { n: picked.length })}>
      <span>${t("picked", { n: picked.length })}</span>
      <${Button}
        icon="compare"
        disabled=${picked.length !== 2}
        onClick=${() => set({ dialog: { kind: "compare", names: picked } })}
      >
        ${t("compare")}
      <//>
      <${Button} icon="download" onClick=${() => downloadAll(picked)}>${t("download")}<//>
      <${Button} icon="trash" onClick=${() => askToDelete(picked.map(taskIdOf))}>${t("delete")}<//>
      <${IconButton} icon="close" label=${t("pick-none")} onClick=${() => set({ picked: [] })} />
    </div>
  `;
}
