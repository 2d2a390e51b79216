// Small parts that several views use.
import { pictureUrl, sign } from "../api.mjs";
import { set, useStore } from "../store.mjs";
import { html, useEffect, useRef } from "../vendor/preact.mjs";
import { bytes, t } from "../text.mjs";

/** Lines on a grid of 24 x 24. */
const ICONS = {
  adjust: "M4 7h9m4 0h3M4 17h3m4 0h9M15 5v4M9 15v4",
  brush: "M14 4l6 6-9 9H5v-6l9-9zM5 21h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5",
  compare: "M12 3v18M4 6h5v12H4zM15 6h5v12h-5z",
  dice: "M5 4h14a1 1 0 011 1v14a1 1 0 01-1 1H5a1 1 0 01-1-1V5a1 1 0 011-1zM9 9h.1M15 15h.1M15 9h.1M9 15h.1M12 12h.1",
  download: "M12 4v11m-5-5l5 5 5-5M5 20h14",
  erase: "M9 19l-5-5 9-9 7 7-7 7H9zm-1-9l7 7M9 19h11",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
  key: "M8 16a4 4 0 100-8 4 4 0 000 8zM12 12h9v3M17 12v2",
  left: "M15 5l-7 7 7 7",
  half: "M12 3a9 9 0 000 18zM12 3a9 9 0 010 18",
  moon: "M20 14.5A8 8 0 019.5 4 8 8 0 1020 14.5z",
  plus: "M12 5v14M5 12h14",
  reuse: "M4 12a8 8 0 0113.7-5.6L20 9M20 4v5h-5M20 12a8 8 0 01-13.7 5.6L4 15M4 20v-5h5",
  right: "M9 5l7 7-7 7",
  search: "M11 18a7 7 0 100-14 7 7 0 000 14zM16 16l5 5",
  send: "M5 12h14m-6-6l6 6-6 6",
  star: "M12 4l2.5 5.2 5.7.8-4.1 4 1 5.7-5.1-2.7-5.1 2.7 1-5.7-4.1-4 5.7-.8z",
  stop: "M7 7h10v10H7z",
  sun: "M12 16a4 4 0 100-8 4 4 0 000 8zM12 2v2m0 16v2M2 12h2m16 0h2M5 5l1 1m12 12l1 1M5 19l1-1M18 6l1-1",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  undo: "M9 7L4 12l5 5M4 12h10a6 6 0 010 12",
};

export const Icon = ({ name }) => html`
  <svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name]} /></svg>
`;

/** A button with words, and an icon before them. */
export const Button = ({ icon, class: look = "chip", children, ...rest }) => html`
  <button type="button" class=${look} ...${rest}>${icon && html`<${Icon} name=${icon} />`}${children}</button>
`;

/** A button that is an icon; its label is its title as well. */
export const IconButton = ({ icon, label, class: also = "", ...rest }) => html`
  <button type="button" class=${`icon-button ${also}`} aria-label=${label} title=${label} ...${rest}>
    <${Icon} name=${icon} />
  </button>
`;

/** The service's page about the code of an error. */
export const About = ({ code, ...rest }) => html`
  <a href=${`docs/errors/${code}`} target="_blank" rel="noopener" ...${rest}>${t("more-about-error")}</a>
`;

/** A picture of the service, by its name `folder/file`. */
export function Picture({ name, alt, ...rest }) {
  const url = useStore((state) => pictureUrl(state, name));
  useEffect(() => {
    sign(name).catch(() => {});
  }, [name]);
  return url ? html`<img src=${url} alt=${alt} draggable=${false} ...${rest} />` : html`<span class="blank" />`;
}

/** A button with a panel that opens above it. `name`: in the state's `menu`. `value`: what is chosen, in words. */
export function Menu({ name, label, icon, value, class: also = "", children }) {
  const open = useStore((state) => state.menu === name);
  const root = useRef();
  // A click with the mouse closes; the arrow keys, which click as well, do not. Later: the change comes after it.
  const chosen = (event) => event.detail && setTimeout(close);
  const close = () => set((now) => (now.menu === name ? { menu: "" } : {}));
  useEffect(() => {
    if (!open) return undefined;
    const outside = (event) => !root.current.contains(event.target) && close();
    document.addEventListener("pointerdown", outside);
    root.current.querySelector("input:checked, .panel button, .panel input")?.focus();
    return () => document.removeEventListener("pointerdown", outside);
  }, [open]);
  const onKeyDown = (event) => {
    if (event.key !== "Escape" || !open) return;
    event.stopPropagation();
    close();
    root.current.querySelector("button").focus();
  };
  const onFocusOut = (event) => event.relatedTarget && !root.current.contains(event.relatedTarget) && close();
  return html`
    <div class=${`menu ${also}`} ref=${root} onKeyDown=${onKeyDown} onFocusOut=${onFocusOut}>
      <button
        type="button"
        class="chip"
        aria-label=${`${label}: ${value}`}
        title=${label}
        aria-haspopup="true"
        aria-expanded=${open}
        onClick=${() => set({ menu: open ? "" : name })}
      >
        ${icon}<span class="name">${value}</span>
      </button>
      ${open && html`<div class="panel" role="group" tabindex="-1" aria-label=${label}>${children(chosen)}</div>`}
    </div>
  `;
}

/** A dialog over the page. The browser keeps the focus in it, and closes it with Escape. */
export function Dialog({ label, class: also = "", onClose, children }) {
  const dialog = useRef();
  const close = onClose ?? (() => set({ dialog: null }));
  useEffect(() => {
    dialog.current.showModal();
    const back = document.activeElement;
    return () => back?.isConnected && back.focus?.();
  }, []);
  // A click beside the dialog is one on the dialog itself.
  const beside = (event) => event.target === dialog.current && close();
  return html`
    <dialog ref=${dialog} class=${also} aria-label=${label} onClose=${close} onCancel=${close} onPointerDown=${beside}>
      <div class="inside">
        ${children}
        <${IconButton} icon="close" label=${t("close")} class="corner" onClick=${close} />
      </div>
    </dialog>
  `;
}

/** How far something is; without a total it moves without an end. */
export const Progress = ({ label, done, total }) => html`
  <progress aria-label=${label} max=${total || 1} value=${total ? Math.min(done, total) : undefined} />
`;

/** The word of a model's state, with a dot in its colour, and how far its load or its pull is. */
export function ModelState({ model }) {
  const busy = useStore((state) => state.activity[model.id]);
  const state = busy ? (busy.kind === "loading" ? "loading" : "downloading") : model.state;
  const share = busy?.total ? `${Math.floor((100 * busy.done) / busy.total)} %` : "";
  return html`
    <span class=${`state is-${state}`}>${t(`state.${state}`)} ${share}</span>
    ${
      busy &&
      html`<${Progress} label=${t(`state.${state}`)} done=${busy.done} total=${busy.total} />
      <small class="bytes">${bytes(busy.done)}${busy.total ? ` / ${bytes(busy.total)}` : ""}</small>`
    }
  `;
}

const ABLE = [
  ["text2img", "can-text"],
  ["img2img", "can-image"],
  ["inpaint", "can-mask"],
];

export const abilities = (model) =>
  ABLE.filter(([what]) => model[`supports_${what}`])
    .map(([, key]) => t(key))
    .join(" · ");
