// Starts the page: language, colours, streams, keyboard, and the view that the address names.
import { bringIn } from "./actions.mjs";
import { followAll, followFocus, isOver } from "./live.mjs";
import { planWhenQuiet } from "./request.mjs";
import { get, set, subscribe, useStore } from "./store.mjs";
import { localeOf, t } from "./text.mjs";
import { html, render } from "./vendor/preact.mjs";
import { CopyDialog } from "./views/copy.mjs";
import { Create, shareOf } from "./views/create.mjs";
import { History } from "./views/history.mjs";
import { MaskDialog } from "./views/mask.mjs";
import { Models } from "./views/models.mjs";
import { KeyDialog, Notices, TopBar } from "./views/top-bar.mjs";
import { CompareDialog, DeleteDialog, ReceiptDialog, ViewerDialog } from "./views/viewer.mjs";

const VIEWS = { create: Create, history: History, models: Models };
const DIALOGS = {
  compare: CompareDialog,
  copy: CopyDialog,
  delete: DeleteDialog,
  key: KeyDialog,
  mask: MaskDialog,
  receipt: ReceiptDialog,
  viewer: ViewerDialog,
};

function App() {
  const view = useStore((state) => state.view);
  const words = useStore((state) => state.words);
  const dialog = useStore((state) => state.dialog);
  const dragging = useStore((state) => state.dragging);
  // Another language draws everything anew.
  return html`
    <div class="app" key=${words.language} lang=${words.language}>
      <button type="button" class="skip" onClick=${() => document.querySelector("main").focus()}>${t("skip")}</button>
      <${TopBar} />
      <main tabindex=${view === "models" ? 0 : -1}><h1>${t(view)}</h1><${VIEWS[view]} /></main>
      ${dialog && html`<${DIALOGS[dialog.kind]} key=${dialog.kind} ...${dialog} />`}
      ${dragging && html`<div class="drop" aria-hidden="true"><p>${t("drop-here")}</p></div>`}
      <${Notices} />
    </div>
  `;
}

// -- the address ------------------------------------------------------------------------------------------------------

/** `#history` -> the view; `#create` for any other. */
const viewOf = () => (location.hash.slice(1) in VIEWS ? location.hash.slice(1) : "create");

function keepAddress() {
  set({ view: viewOf() });
  addEventListener("hashchange", () => viewOf() !== get().view && set({ view: viewOf(), dialog: null, menu: "" }));
  let shown = get().view;
  subscribe(() => {
    const { view } = get();
    if (view === shown) return;
    shown = view;
    if (viewOf() !== view) location.hash = view;
    document.querySelector("main")?.scrollTo(0, 0);
  });
}

// -- what the document itself shows -----------------------------------------------------------------------------------

function keepDocument() {
  const { theme, live, shown, tasks, words } = get();
  const root = document.documentElement;
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  root.lang = words.language ?? root.lang;
  const { done, total } = shareOf(live[shown] ?? {});
  const busy = tasks[shown] && !isOver(tasks[shown]) && total;
  document.title = busy ? `${Math.floor((100 * done) / total)} % · imagegen` : "imagegen";
}

async function keepLanguage() {
  let asked = "";
  const read = async () => {
    const locale = localeOf(get());
    if (locale === asked) return;
    asked = locale;
    const { default: words } = await import(`./locales/${locale}.mjs`);
    if (asked === locale) set({ words: { ...words, language: locale } });
  };
  await read();
  subscribe(read);
}

// -- pictures from outside --------------------------------------------------------------------------------------------

const pictureIn = (data) => [...data.files].find((file) => file.type.startsWith("image/"));

function takePictures() {
  addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    if (!get().dragging) set({ dragging: true });
  });
  addEventListener("dragleave", (event) => !event.relatedTarget && set({ dragging: false }));
  addEventListener("drop", (event) => {
    set({ dragging: false });
    const [first] = event.dataTransfer.files;
    if (!first) return;
    // Else the browser would leave the page for the file.
    event.preventDefault();
    bringIn(pictureIn(event.dataTransfer) ?? first);
  });
  addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (file) bringIn(file);
  });
}

subscribe(keepDocument);
keepDocument(); // The colours first.
await keepLanguage();
keepAddress();
takePictures();
planWhenQuiet();
followAll();
followFocus();
render(html`<${App} />`, document.getElementById("page"));
