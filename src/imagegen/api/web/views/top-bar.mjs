// What stands above every view: the views, the service's pulse, how the page looks, the key. And the notices.
import { call } from "../api.mjs";
import { dismiss, get, set, useStore } from "../store.mjs";
import { explained, LOCALES, t } from "../text.mjs";
import { html, useState } from "../vendor/preact.mjs";
import { Button, Dialog, IconButton } from "./parts.mjs";

const VIEWS = ["create", "history", "models"];
const NEXT_THEME = { auto: "light", light: "dark", dark: "auto" };

export function TopBar() {
  const view = useStore((state) => state.view);
  return html`
    <header class="top">
      <a class="brand" href="#create" aria-label="imagegen">
        <img src="web/icon.svg" alt="" width="26" height="26" /><span>imagegen</span>
      </a>
      <nav aria-label=${t("views")}>
        ${VIEWS.map(
          (each) =>
            html`<a key=${each} href=${`#${each}`} aria-current=${each === view ? "page" : undefined}>${t(each)}</a>`,
        )}
      </nav>
      <${Pulse} />
      <div class="looks">
        <${Language} />
        <${Theme} />
        <${KeyButton} />
        <a class="plain" href="docs" title=${t("docs")}>API</a>
      </div>
    </header>
  `;
}

function Pulse() {
  const online = useStore((state) => state.online);
  const waiting = useStore((state) => state.health?.queue_size ?? 0);
  const draining = useStore((state) => state.health?.status === "draining");
  const words = !online ? t("offline") : draining ? t("draining") : waiting ? t("queue-of", { n: waiting }) : t("idle");
  return html`
    <a href="#models" class=${`pulse ${online && !draining ? "" : "off"}`}>
      <span class="dot" /><span aria-live="polite">${words}</span>
    </a>
  `;
}

function Language() {
  const words = useStore((state) => state.words);
  const others = Object.keys(LOCALES).filter((locale) => locale !== words.language);
  return others.map(
    (locale) => html`<button key=${locale} type="button" class="plain" lang=${locale} onClick=${() => set({ locale })}>
      ${LOCALES[locale]}
    </button>`,
  );
}

function Theme() {
  const theme = useStore((state) => state.theme);
  const next = NEXT_THEME[theme];
  return html`
    <${IconButton}
      icon=${theme === "auto" ? "half" : theme === "light" ? "sun" : "moon"}
      label=${t("theme", { now: t(`theme-${theme}`), next: t(`theme-${next}`) })}
      onClick=${() => set({ theme: next })}
    />
  `;
}

export function Notices() {
  const notices = useStore((state) => state.notices);
  return html`
    <div class="notices" aria-live="polite">
      ${notices.map(
        ({ id, text, kind }) => html`<p key=${id} class=${kind} role=${kind === "error" ? "alert" : undefined}>
          <span>${text}</span>
          <${IconButton} icon="close" label=${t("close")} onClick=${() => dismiss(id)} />
        </p>`,
      )}
    </div>
  `;
}

// -- the key: asked for when the service wants one, kept until the tab closes, sent as a header ----------------------

/** Only where keys are used: a service without keys has nothing to enter. */
function KeyButton() {
  const shown = useStore((state) => Boolean(state.key || !state.who || state.who.name));
  return (
    shown && html`<${IconButton} icon="key" label=${t("key")} onClick=${() => set({ dialog: { kind: "key" } })} />`
  );
}

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
