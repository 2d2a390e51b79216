// The brush: paint on the input picture what is to be made anew.
import { draw } from "../files.mjs";
import { get, set, useStore } from "../store.mjs";
import { t } from "../text.mjs";
import { html, useEffect, useRef, useState } from "../vendor/preact.mjs";
import { fitting } from "./create.mjs";
import { Dialog, Icon, IconButton } from "./parts.mjs";

/** Pixels of the canvas' longer side: enough for the eye. */
const LONGEST = 1024;
const COLOUR = "#f0386b";
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const within = (share) => Math.min(1, Math.max(0, share));

export function MaskDialog() {
  const input = useStore((state) => state.input);
  const strokes = useStore((state) => state.strokes);
  const [size, setSize] = useState(0.08);
  const [erase, setErase] = useState(false);
  // The place of the brush, for those who paint with the arrow keys.
  const [cursor, setCursor] = useState([0.5, 0.5]);
  const canvas = useRef();

  useEffect(() => {
    const context = canvas.current.getContext("2d");
    context.clearRect(0, 0, canvas.current.width, canvas.current.height);
    draw(context, strokes, COLOUR);
  }, [strokes]);

  const begin = (points) => set((now) => ({ strokes: [...now.strokes, { size, erase, points }] }));
  const extend = (points) =>
    set((now) => {
      const last = now.strokes.at(-1);
      return { strokes: [...now.strokes.slice(0, -1), { ...last, points: [...last.points, ...points] }] };
    });

  const pointOf = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  const onPointerDown = (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.current.focus();
    canvas.current.setPointerCapture(event.pointerId);
    begin([pointOf(event)]);
  };
  const onPointerMove = (event) => {
    if (canvas.current.hasPointerCapture(event.pointerId)) {
      extend((event.getCoalescedEvents?.() ?? [event]).map(pointOf));
    }
  };
  const onKeyDown = (event) => {
    const step = event.shiftKey ? size : size / 3;
    if (event.key in MOVES) {
      const next = MOVES[event.key].map((move, axis) => within(cursor[axis] + move * step));
      setCursor(next);
    } else if (event.key === " " || event.key === "Enter") begin([cursor]);
    else if (event.key === "z" || event.key === "Backspace") undo();
    else return;
    event.preventDefault();
  };

  const scale = Math.min(1, LONGEST / Math.max(input.width, input.height));
  return html`
    <${Dialog} label=${t("mask-paint")} class="viewer mask">
      <div class="large">
        <div class="frame" style=${fitting(input.width, input.height, 16)}>
          <img src=${input.url} alt=${t("input-picture", { name: input.name })} draggable=${false} />
          <canvas
            ref=${canvas}
            width=${Math.max(1, Math.round(input.width * scale))}
            height=${Math.max(1, Math.round(input.height * scale))}
            tabindex="0"
            role="img"
            aria-label=${t("mask-more")}
            onPointerDown=${onPointerDown}
            onPointerMove=${onPointerMove}
            onKeyDown=${onKeyDown}
          />
          <span
            class="brush"
            style=${{ left: `${cursor[0] * 100}%`, top: `${cursor[1] * 100}%`, "--size": size * longSide(input) }}
          />
        </div>
      </div>
      <aside>
        <h2>${t("mask-title")}</h2>
        <p>${t("mask-more")}</p>
        <label>
          <span>${t("brush-size")}</span>
          <input
            type="range"
            min="0.01"
            max="0.3"
            step="0.01"
            value=${size}
            onInput=${(event) => setSize(Number(event.currentTarget.value))}
          />
        </label>
        <div class="actions">
          <${IconButton} icon="brush" label=${t("brush")} aria-pressed=${!erase} onClick=${() => setErase(false)} />
          <${IconButton} icon="erase" label=${t("eraser")} aria-pressed=${erase} onClick=${() => setErase(true)} />
          <${IconButton} icon="undo" label=${t("undo")} disabled=${!strokes.length} onClick=${undo} />
          <${IconButton}
            icon="trash"
            label=${t("mask-clear")}
            disabled=${!strokes.length}
            onClick=${() => set({ strokes: [] })}
          />
        </div>
        <button type="button" class="primary" onClick=${() => set({ dialog: null })}>
          <span>${t("done")}</span><${Icon} name="check" />
        </button>
      </aside>
    <//>
  `;
}

const undo = () => set({ strokes: get().strokes.slice(0, -1) });

/** The longer side as a share of the width, which is what CSS knows here. */
const longSide = ({ width, height }) => Math.max(1, height / width);
