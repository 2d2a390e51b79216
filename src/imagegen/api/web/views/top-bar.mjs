// What stands above every view: the views, the service's pulse, and how the page looks. And the notices.
import { dismiss, set, useStore } from "../store.mjs";
import { LOCALES, t } from "../text.mjs";
import { html } from "../vendor/preact.mjs";
import { IconButton } from "./parts.mjs";

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

/** Only where keys are used: a service without keys has nothing to enter. */
function KeyButton() {
  const shown = useStore((state) => Boolean(state.key || !state.who || state.who.name));
  return (
    shown && html`<${IconButton} icon="key" label=${t("key")} onClick=${() => set({ dialog: { kind: "key" } })} />`
  );
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
