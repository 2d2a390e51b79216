// A picture was brought in that carries its receipt: use its settings, or start from it?
import { reuseReceipt, useAsInput } from "../actions.mjs";
import { t } from "../text.mjs";
import { html, useEffect } from "../vendor/preact.mjs";
import { factsOf } from "./create.mjs";
import { Dialog, Icon } from "./parts.mjs";

export function ReceiptDialog({ file, receipt, url }) {
  useEffect(() => () => URL.revokeObjectURL(url), [url]);
  const { request, model } = receipt;
  return html`
    <${Dialog} label=${t("receipt")} class="small">
      <img class="dropped" src=${url} alt=${t("input-picture", { name: file.name })} />
      <h2>${t("receipt")}</h2>
      <p class="said">${request.prompt}</p>
      <p class="facts">${factsOf({ ...request, model })}</p>
      <div class="actions">
        <button type="button" class="primary" onClick=${() => reuseReceipt(receipt)}>
          <span>${t("reuse")}</span><${Icon} name="reuse" />
        </button>
        <button type="button" class="chip" onClick=${() => useAsInput(file)}>
          <${Icon} name="image" /> ${t("start-from-picture")}
        </button>
      </div>
    <//>
  `;
}
