// The menu of models: the state of each, and what it can do.
import { modelOf } from "../actions.mjs";
import { readDetails } from "../live.mjs";
import { merge, set, useStore } from "../store.mjs";
import { bytes, t } from "../text.mjs";
import { html } from "../vendor/preact.mjs";
import { Menu, Progress } from "./parts.mjs";

/** The word of a model's state, with a dot in its colour, and how far its load or its pull is. */
export function ModelState({ model }) {
  const busy = useStore((state) => state.activity[model.id]);
  const state = busy ? (busy.kind === "loading" ? "loading" : "downloading") : model.state;
  const share = busy?.total ? `${Math.floor((100 * busy.done) / busy.total)} %` : "";
  return html`
    <span class=${`state is-${state}`}>${t(`state.${state}`)} ${share}</span>
    ${busy &&
    html`<${Progress} label=${t(`state.${state}`)} done=${busy.done} total=${busy.total} />
      <small class="bytes">${bytes(busy.done)}${busy.total ? ` / ${bytes(busy.total)}` : ""}</small>`}
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

export function ModelPicker() {
  const models = useStore((state) => state.models) ?? [];
  const current = useStore(modelOf);
  const input = useStore((state) => state.input);
  const allowed = useStore((state) => state.who?.models) ?? [];
  const usable = (model) =>
    (input ? model.supports_img2img || model.supports_inpaint : model.supports_text2img) &&
    (!allowed.length || allowed.includes(model.id));
  const choose = (id) => {
    merge("form", { model: id });
    set({ refusal: null });
    readDetails(id).catch(() => {});
  };
  return html`
    <${Menu}
      name="model"
      class="models"
      label=${t("model")}
      button=${html`<span class=${`dot is-${current?.state}`} /><span class="name">${current?.name ?? t("model")}</span>`}
    >
      ${(chosen) => html`<div class="choices model-list">
        ${models.map(
          (model) => html`<label key=${model.id} class=${usable(model) ? "" : "off"}>
            <input
              type="radio"
              name="model"
              checked=${model.id === current?.id}
              disabled=${!usable(model)}
              onChange=${() => choose(model.id)}
              onClick=${chosen}
            />
            <span class="name">${model.name}</span>
            <${ModelState} model=${model} />
            <small>${model.description}</small>
            <small class="able">${abilities(model)}</small>
          </label>`,
        )}
      </div>`}
    <//>
  `;
}
