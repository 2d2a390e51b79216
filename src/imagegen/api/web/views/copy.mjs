// "Copy as": the request that the form makes, as code.
import { copy, fieldsNow, saveUrl } from "../actions.mjs";
import { maskOf } from "../mask.mjs";
import { SNIPPETS } from "../snippets.mjs";
import { get } from "../store.mjs";
import { t } from "../text.mjs";
import { html, useRef, useState } from "../vendor/preact.mjs";
import { Dialog, Icon } from "./parts.mjs";

/** The address of the service, as the page knows it. */
const address = () => new URL(".", location.href.split("#")[0]).href.replace(/\/$/, "");

export function CopyDialog() {
  const [language, setLanguage] = useState("curl");
  const state = get();
  const { input, plan, key } = state;
  const mask = input && maskOf(state);
  const image = input && `input.${input.type.split("/")[1] || "png"}`;
  const files = input ? { image, ...(mask && { mask: "mask.png" }) } : {};
  const body = { ...fieldsNow(state), prompt: state.form.prompt || t("prompt-example") };
  const code = SNIPPETS[language]({
    url: address(),
    body,
    files,
    size: plan && `${plan.width}x${plan.height}`,
    withKey: Boolean(key),
  });
  const tabs = useRef();
  const names = Object.keys(SNIPPETS);
  const onKeyDown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const next = (names.indexOf(language) + step + names.length) % names.length;
    setLanguage(names[next]);
    tabs.current.children[next].focus();
  };
  return html`
    <${Dialog} label=${t("copy-as")} class="copy">
      <h2>${t("copy-as")}</h2>
      <div class="tabs" role="tablist" ref=${tabs} onKeyDown=${onKeyDown} aria-label=${t("copy-as")}>
        ${names.map(
          (name) => html`<button
            key=${name}
            type="button"
            role="tab"
            id=${`tab-${name}`}
            aria-selected=${name === language}
            aria-controls="snippet"
            tabindex=${name === language ? 0 : -1}
            onClick=${() => setLanguage(name)}
          >
            ${name}
          </button>`,
        )}
      </div>
      <pre id="snippet" role="tabpanel" aria-labelledby=${`tab-${language}`} tabindex="0"><code>${code}</code></pre>
      <div class="actions">
        <button type="button" class="primary" onClick=${() => copy(code)}>${t("copy")}</button>
        ${input && html`<${Save} url=${input.url} name=${image} />`}
        ${mask && html`<${Save} url=${mask} name="mask.png" />`}
        ${key && html`<p class="hint">${t("copy-key")}</p>`}
      </div>
    <//>
  `;
}

const Save = ({ url, name }) => html`
  <button type="button" class="chip" onClick=${() => saveUrl(url, name)}><${Icon} name="download" /> ${name}</button>
`;
