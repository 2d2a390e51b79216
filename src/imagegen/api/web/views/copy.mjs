// "Copy as": the request of the form as code that runs as it stands, in curl, Python, JavaScript and OpenAI's SDK.
import { copy, saveUrl } from "../actions.mjs";
import { maskOf } from "../files.mjs";
import { fieldsOf } from "../request.mjs";
import { get } from "../store.mjs";
import { t } from "../text.mjs";
import { html, useRef, useState } from "../vendor/preact.mjs";
import { Button, Dialog } from "./parts.mjs";

const address = () => new URL(".", location.href.split("#")[0]).href.replace(/\/$/, "");

export function CopyDialog() {
  const [language, setLanguage] = useState("curl");
  const state = get();
  const { input, plan, key } = state;
  const mask = input && maskOf(state);
  const image = input && `input.${input.type.split("/")[1] || "png"}`;
  const files = input ? { image, ...(mask && { mask: "mask.png" }) } : {};
  const body = { ...fieldsOf(state), prompt: state.form.prompt || t("prompt-example") };
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
  <${Button} icon="download" onClick=${() => saveUrl(url, name)}>${name}<//>
`;

// -- the code --------------------------------------------------------------------------------------------------------

/** What the snippets read of the page: {url, body, files: {image, mask}, size, withKey}. */
const SNIPPETS = { curl, Python: python, JavaScript: javascript, OpenAI: openai };

/** Seconds that the service waits for the end of the task before it answers. */
const WAIT_S = 600;

const pathOf = ({ files }) => (files.image ? "image2image" : "text2image");
const pretty = (body) => JSON.stringify(body, null, 2);

function curl({ url, body, files, withKey }) {
  const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
  const head = [
    `curl -sf ${quoted(`${url}/${pathOf({ files })}`)}`,
    `-H 'Content-Type: application/json'`,
    `-H 'Prefer: wait=${WAIT_S}'`,
    withKey && `-H "X-API-Key: $IMAGEGEN_KEY"`,
  ].filter(Boolean);
  const names = Object.entries(files);
  const send = names.length
    ? // In pieces, because a picture is longer than a command may be.
      `printf ${quoted(
        JSON.stringify({ ...body, ...Object.fromEntries(names.map(([field]) => [field, "@"])) })
          .replaceAll("\\", "\\\\")
          .replaceAll("%", "%%")
          .replace(/"(image|mask)":"@"/g, '"$1":"%s"'),
      )} ${names.map(([, file]) => `"$(base64 < ${file} | tr -d '\\n')"`).join(" ")} |\n  ${[...head, "-d @-"].join(" \\\n    ")}`
    : [...head, `-d ${quoted(JSON.stringify(body))}`].join(" \\\n  ");
  const key = withKey ? `-H "X-API-Key: $IMAGEGEN_KEY" ` : "";
  const here = `${new URL(url).pathname.replace(/\/$/, "")}/images/`;
  return `${send} |\n  grep -o '"${here}[^"]*"' | tr -d '"' | cut -d/ -f${here.split("/").length}- | while read -r file; do
    curl -sf ${key}${quoted(`${url}/images/`)}"$file" -o "\${file##*/}"
  done\n`;
}

function python({ url, body, files, withKey }) {
  const lines = Object.entries(files).map(
    ([field, file]) => `body[${pretty(field)}] = base64.b64encode(Path(${pretty(file)}).read_bytes()).decode()`,
  );
  return `${lines.length ? "import base64\n" : ""}${withKey ? "import os\n" : ""}from pathlib import Path

import requests

URL = ${pretty(url)}
HEADERS = {"Prefer": "wait=${WAIT_S}"${withKey ? `, "X-API-Key": os.environ["IMAGEGEN_KEY"]` : ""}}

body = ${pretty(body)}
${lines.map((line) => `${line}\n`).join("")}answer = requests.post(f"{URL}/${pathOf({ files })}", json=body, headers=HEADERS)
answer.raise_for_status()
for file in answer.json()["result_files"]:
    picture = requests.get(f"{URL}/images/{file}", headers=HEADERS)
    Path(Path(file).name).write_bytes(picture.content)
`;
}

function javascript({ url, body, files, withKey }) {
  const lines = Object.entries(files).map(
    ([field, file]) => `body.${field} = await readFile(${pretty(file)}, "base64");\n`,
  );
  return `import { ${lines.length ? "readFile, " : ""}writeFile } from "node:fs/promises";

const url = ${pretty(url)};
const headers = {
  "Content-Type": "application/json",
  Prefer: "wait=${WAIT_S}",${withKey ? `\n  "X-API-Key": process.env.IMAGEGEN_KEY,` : ""}
};

const body = ${pretty(body)};
${lines.join("")}
const answer = await fetch(\`\${url}/${pathOf({ files })}\`, { method: "POST", headers, body: JSON.stringify(body) });
if (!answer.ok) throw new Error(await answer.text());
for (const file of (await answer.json()).result_files) {
  const picture = await fetch(\`\${url}/images/\${file}\`, { headers });
  await writeFile(file.split("/")[1], Buffer.from(await picture.arrayBuffer()));
}
`;
}

/** Fields that OpenAI's API has under other names; all others go into `extra_body`. */
function openai({ url, body, files, size, withKey }) {
  const { prompt, model, batch_size, format, quality, aspect_ratio, width, height, ...extra } = body;
  const said = [
    ["model", model && pretty(model)],
    ["prompt", pretty(prompt)],
    ["image", files.image && `open(${pretty(files.image)}, "rb")`],
    ["mask", files.mask && `open(${pretty(files.mask)}, "rb")`],
    ["n", batch_size],
    ["size", size && pretty(size)],
    ["output_format", format && pretty(format)],
    ["output_compression", quality],
    ["response_format", `"b64_json"`],
    ["extra_body", Object.keys(extra).length && pretty(extra).replaceAll("\n", "\n    ")],
  ].filter(([, value]) => value);
  return `import base64
${withKey ? "import os\n" : ""}from pathlib import Path

from openai import OpenAI

client = OpenAI(base_url=${pretty(`${url}/v1`)}, api_key=${withKey ? `os.environ["IMAGEGEN_KEY"]` : `"none"`})
images = client.images.${files.image ? "edit" : "generate"}(
${said.map(([name, value]) => `    ${name}=${value},\n`).join("")})
for number, image in enumerate(images.data):
    Path(f"picture-{number}.${format ?? "png"}").write_bytes(base64.b64decode(image.b64_json))
`;
}
