// The form: what to draw, with which model and which settings. It follows what the model can do.
import { bringIn, dropInput, pull, startAnew, submit } from "../actions.mjs";
import { readDetails } from "../live.mjs";
import { FORMATS, modelOf, SHAPES } from "../request.mjs";
import { merge, set, useStore } from "../store.mjs";
import { seconds, t } from "../text.mjs";
import { html, useEffect, useLayoutEffect, useRef } from "../vendor/preact.mjs";
import { abilities, About, Button, Icon, IconButton, Menu, ModelState } from "./parts.mjs";

const MOST_PICTURES = 8;
const FORM = "form";

const change = (fields) => merge(FORM, fields);
const typed = (field) => (event) => change({ [field]: event.currentTarget.value });

export function Composer() {
  const model = useStore(modelOf);
  const prompt = useStore((state) => state.form.prompt);
  const sending = useStore((state) => state.sending);
  const advanced = useStore((state) => state.advanced);
  const send = (event) => {
    event.preventDefault();
    submit();
  };
  return html`
    <form class="composer" aria-label=${t("composer")} onSubmit=${send}>
      <${Refusal} />
      <${Absent} model=${model} />
      <${InputPicture} model=${model} />
      <${Prompt} />
      ${advanced && html`<${Advanced} model=${model} />`}
      <div class="bar">
        <${FileButton} />
        <${ModelPicker} />
        <${ShapeMenu} />
        <${CountMenu} />
        <${IconButton}
          icon="adjust"
          label=${t("advanced")}
          class="chip"
          aria-expanded=${advanced}
          onClick=${() => set({ advanced: !advanced })}
        />
        <${IconButton}
          icon="code"
          label=${t("copy-as")}
          class="chip"
          onClick=${() => set({ dialog: { kind: "copy" } })}
        />
        <${PlanLine} />
        <button class="primary" disabled=${!prompt.trim() || sending} title=${t("generate-hint")}>
          <span>${t("generate")}</span><${Icon} name="send" />
        </button>
      </div>
    </form>
  `;
}

function Prompt() {
  const prompt = useStore((state) => state.form.prompt);
  const input = useStore((state) => state.input);
  const area = useRef();
  useEffect(() => {
    // Ready to type, unless that would open the keyboard of a phone.
    if (matchMedia("(hover: hover)").matches) area.current.focus();
  }, []);
  // As high as its text; CSS alone can do this in some browsers only.
  useLayoutEffect(() => {
    area.current.style.height = "auto";
    area.current.style.height = `${area.current.scrollHeight}px`;
  }, [prompt]);
  const onKeyDown = (event) => {
    // Enter also ends the composition of a Chinese word; 229 is how Safari says so.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  };
  return html`
    <textarea
      id="prompt"
      ref=${area}
      class="prompt"
      rows="1"
      maxlength="8192"
      aria-label=${t("prompt")}
      placeholder=${t(input ? "prompt-edit" : "prompt-hint")}
      value=${prompt}
      onInput=${typed("prompt")}
      onKeyDown=${onKeyDown}
    />
  `;
}

/** What is wrong with the form, and what the picture would ignore of it. */
function Refusal() {
  const refusal = useStore((state) => state.refusal);
  const warnings = useStore((state) => state.plan?.warnings);
  if (!refusal) return warnings?.map((warning) => html`<p class="warn" role="status">${warning}</p>`);
  const { title, detail, code } = refusal;
  return html`
    <p class="refusal" role="alert">
      <strong>${title}</strong> ${detail !== title && detail}${" "}
      <${About} code=${code} />
    </p>
  `;
}

/** The model has no weights here: say so before a task fails for it. */
function Absent({ model }) {
  const admin = useStore((state) => state.who?.scopes.includes("admin"));
  const busy = useStore((state) => state.activity[model?.id]);
  if (!model || (model.state !== "absent" && !busy)) return null;
  return html`
    <div class="absent" role="status">
      ${busy ? html`<${ModelState} model=${model} />` : html`<span class="warn">${t("absent")}</span>`}
      ${admin && !busy && html`<${Button} icon="download" onClick=${() => pull(model.id)}>${t("pull")}<//>`}
    </div>
  `;
}

// -- the input picture ------------------------------------------------------------------------------------------------

function FileButton() {
  const file = useRef();
  const chosen = (event) => {
    const [picture] = event.currentTarget.files;
    event.currentTarget.value = "";
    if (picture) bringIn(picture);
  };
  return html`
    <input
      ref=${file}
      type="file"
      accept="image/*"
      hidden
      aria-label=${t("start-from-picture")}
      onChange=${chosen}
    />
    <${IconButton}
      icon="image"
      label=${t("start-from-picture")}
      class="chip"
      onClick=${() => file.current.click()}
    />
  `;
}

function InputPicture({ model }) {
  const input = useStore((state) => state.input);
  const painted = useStore((state) => state.strokes.length > 0);
  const strength = useStore((state) => state.form.strength);
  if (!input) return null;
  const percent = Math.round(strength * 100);
  return html`
    <div class="input-picture">
      <img src=${input.url} alt=${t("input-picture", { name: input.name })} />
      <div class="about">
        ${
          model &&
          !(model.supports_img2img || model.supports_inpaint) &&
          html`<p class="warn">${t("cannot-start-from")}</p>`
        }
        ${
          (painted || model?.supports_strength) &&
          html`<label>
          <span>${t("strength")} <output>${percent} %</output></span>
          <input
            type="range"
            min="0.05"
            max="1"
            step="0.05"
            value=${strength}
            onInput=${(event) => change({ strength: Number(event.currentTarget.value) })}
          />
          <small>${t("strength-hint")}</small>
        </label>`
        }
      </div>
      <div class="tools">
        ${
          (model?.supports_inpaint ?? true) &&
          html`<${Button} icon="brush" onClick=${() => set({ dialog: { kind: "mask" } })}>
            ${t(painted ? "mask-change" : "mask-paint")}
          <//>`
        }
        <${IconButton} icon="close" label=${t("input-remove")} onClick=${dropInput} />
      </div>
    </div>
  `;
}

// -- menus ------------------------------------------------------------------------------------------------------------

function ModelPicker() {
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
      icon=${html`<span class=${`dot is-${current?.state}`} />`}
      value=${current?.name ?? "…"}
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

const sides = (shape) => shape.split(":").map(Number);

function ShapeIcon({ shape }) {
  const [width, height] = shape.includes(":") ? sides(shape) : [1, 1];
  const scale = 14 / Math.max(width, height);
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true">
    <rect
      x=${12 - (width * scale) / 2}
      y=${12 - (height * scale) / 2}
      width=${width * scale}
      height=${height * scale}
      rx="1.5"
      stroke-dasharray=${shape.includes(":") ? undefined : "3 2"}
    />
  </svg>`;
}

function ShapeMenu() {
  const { shape, width, height } = useStore((state) => state.form);
  const input = useStore((state) => state.input);
  const shapes = input ? ["input", ...SHAPES] : SHAPES;
  const current = shape || shapes[0];
  const own = width && height;
  const name = (each) => (each === "input" ? t("shape-input") : each);
  return html`
    <${Menu}
      name="shape"
      label=${t("shape")}
      icon=${html`<${ShapeIcon} shape=${own ? `${width}:${height}` : current} />`}
      value=${own ? `${width} × ${height}` : name(current)}
    >
      ${(chosen) => html`
        <div class="choices shapes">
          ${shapes.map(
            (each) => html`<label key=${each}>
              <input
                type="radio"
                name="shape"
                checked=${!own && each === current}
                onChange=${() => change({ shape: each, width: "", height: "" })}
                onClick=${chosen}
              />
              <${ShapeIcon} shape=${each} /><span>${name(each)}</span>
            </label>`,
          )}
        </div>
        <fieldset class="pair">
          <legend>${t("size-own")}</legend>
          <${NumberInput} field="width" min="16" max="8192" label=${t("width")} placeholder=${t("width")} />
          <span>×</span>
          <${NumberInput} field="height" min="16" max="8192" label=${t("height")} placeholder=${t("height")} />
        </fieldset>
      `}
    <//>
  `;
}

function CountMenu() {
  const count = useStore((state) => state.form.count);
  const numbers = Array.from({ length: MOST_PICTURES }, (_, index) => index + 1);
  return html`
    <${Menu} name="count" label=${t("count")} value=${`×${count}`}>
      ${(chosen) => html`<div class="choices counts">
        ${numbers.map(
          (each) => html`<label key=${each}>
            <input
              type="radio"
              name="count"
              checked=${each === count}
              onChange=${() => change({ count: each })}
              onClick=${chosen}
            />
            <span>${each}</span>
          </label>`,
        )}
      </div>`}
    <//>
  `;
}

// -- the folded part --------------------------------------------------------------------------------------------------

function Advanced({ model }) {
  const form = useStore((state) => state.form);
  const config = useStore((state) => state.details[state.form.model]?.config);
  if (model && !config) readDetails(model.id).catch(() => {});
  return html`
    <div class="advanced" role="group" aria-label=${t("advanced")}>
      <${Field} label=${t("steps")}>
        <${NumberInput} field="steps" min="1" max="200" placeholder=${config?.steps} />
      <//>
      <${Field} label=${t("guidance")}>
        <${NumberInput} field="guidance" min="0" max="50" step="0.1" placeholder=${config?.guidance_scale} />
      <//>
      <${Field} label=${t("seed")}>
        <span class="with-button">
          <input inputmode="numeric" placeholder=${t("seed-random")} value=${form.seed} onInput=${typed("seed")} />
          <${IconButton} icon="dice" label=${t("seed-roll")} onClick=${() => change({ seed: rolled() })} />
        </span>
      <//>
      <${Field} label=${t("format")}>
        <select value=${form.format} onChange=${typed("format")}>
          ${FORMATS.map((format) => html`<option key=${format} value=${format}>${format.toUpperCase()}</option>`)}
        </select>
      <//>
      ${
        form.format !== "png" &&
        html`<${Field} label=${t("quality")}>
        <${NumberInput} field="quality" min="1" max="100" placeholder=${form.format === "avif" ? 75 : 90} />
      <//>`
      }
      ${
        model?.supports_negative_prompt &&
        html`<${Field} label=${t("negative")} class="wide">
        <textarea rows="2" maxlength="8192" value=${form.negative} onInput=${typed("negative")} />
      <//>`
      }
      ${model?.supports_lora && html`<${Loras} loras=${form.loras} />`}
      <button type="button" class="plain wide" onClick=${startAnew}>${t("start-anew")}</button>
    </div>
  `;
}

const Field = ({ label, class: also = "", children }) => html`
  <label class=${`field ${also}`}><span>${label}</span>${children}</label>
`;

/** A number of the form. Its text is empty where the model decides; the placeholder says what that is. */
function NumberInput({ field, label, ...rest }) {
  const value = useStore((state) => state.form[field]);
  return html`<input type="number" aria-label=${label} value=${value} onInput=${typed(field)} ...${rest} />`;
}

/** Below 2^32, as the service chooses them. */
const rolled = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

function Loras({ loras }) {
  const put = (index, fields) =>
    change({ loras: loras.map((lora, at) => (at === index ? { ...lora, ...fields } : lora)) });
  return html`
    <fieldset class="loras wide">
      <legend>${t("loras")}</legend>
      ${loras.map(
        (lora, index) => html`<div class="lora" key=${index}>
          <input
            aria-label=${t("lora-path")}
            placeholder="folder/file.safetensors"
            value=${lora.path}
            onInput=${(event) => put(index, { path: event.currentTarget.value })}
          />
          <input
            type="number"
            min="-4"
            max="4"
            step="0.05"
            aria-label=${t("lora-scale")}
            value=${lora.scale}
            onInput=${(event) => put(index, { scale: event.currentTarget.value })}
          />
          <${IconButton}
            icon="close"
            label=${t("lora-remove")}
            onClick=${() => change({ loras: loras.filter((_, at) => at !== index) })}
          />
        </div>`,
      )}
      <${Button} icon="plus" onClick=${() => change({ loras: [...loras, { path: "", scale: 1 }] })}>${t("lora-add")}<//>
    </fieldset>
  `;
}

// -- the plan ---------------------------------------------------------------------------------------------------------

/** What the service says would happen: the size, the time, and what would have to leave. */
function PlanLine() {
  const plan = useStore((state) => state.plan);
  if (!plan) return html`<span class="plan" />`;
  const finish = plan.estimated_finish_at && (new Date(plan.estimated_finish_at) - Date.now()) / 1000;
  const said = [
    `${plan.width} × ${plan.height}`,
    plan.position > 0 && t("phase-waiting", { n: plan.position }),
    finish > 0.5 && t("about", { time: seconds(finish) }),
    plan.evicts.length > 0 && t("plan-evicts", { models: plan.evicts.join(", ") }),
  ];
  return html`
    <span class="plan">${said.filter(Boolean).join(" · ")}</span>
  `;
}
