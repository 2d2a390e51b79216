// The key: asked for when the service wants one, kept until the tab closes, sent as a header.
import { call } from "../api.mjs";
import { get, set, useStore } from "../store.mjs";
import { explained, t } from "../text.mjs";
import { html, useState } from "../vendor/preact.mjs";
import { Button, Dialog } from "./parts.mjs";

export function KeyDialog({ refused }) {
  const who = useStore((state) => state.who);
  const key = useStore((state) => state.key);
  const [text, setText] = useState("");
  const [problem, setProblem] = useState(refused ? t("key-refused") : "");
  const enter = async (event) => {
    event.preventDefault();
    const before = get().key;
    set({ key: text.trim() });
    try {
      set({ who: await call("keys/me"), dialog: null, signed: {} });
    } catch (error) {
      set({ key: before, dialog: get().dialog ?? { kind: "key" } });
      setProblem(error.code === "unauthorized" ? t("key-refused") : explained(error).title);
    }
  };
  // All that the key has shown goes with it.
  const leave = () => {
    set({ key: "", mine: [] });
    location.reload();
  };
  return html`
    <${Dialog} label=${t("key")} class="small">
      <form onSubmit=${enter}>
        <h2>${t(who?.name ? "key-of" : "key-ask", { name: who?.name })}</h2>
        <p>${t("key-more")}</p>
        ${
          who?.name &&
          html`<dl>
          <div><dt>${t("scopes")}</dt><dd>${who.scopes.join(", ")}</dd></div>
          ${who.left.map(
            (left) =>
              html`<div key=${left.name}><dt>${t(`left.${left.name}`)}</dt><dd>${t("left-of", left)}</dd></div>`,
          )}
        </dl>`
        }
        <label class="field">
          <span>${t("key-label")}</span>
          <input
            type="password"
            autocomplete="off"
            autofocus
            required
            placeholder="ig_…"
            value=${text}
            onInput=${(event) => setText(event.currentTarget.value)}
          />
        </label>
        ${problem && html`<p class="refusal" role="alert">${problem}</p>`}
        <div class="actions">
          <button class="primary">${t("key-use")}</button>
          ${key && html`<${Button} onClick=${leave}>${t("key-forget")}<//>`}
        </div>
      </form>
    <//>
  `;
}
