// The page at / is without serious findings of axe-core: every view and dialog, wide and narrow, light and dark.
import { accessSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const { IMAGEGEN_URL: url, IMAGEGEN_KEY: key, OUT: out, PATH } = process.env;
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const here = (path) => {
  try {
    accessSync(path);
    return true;
  } catch {
    return false;
  }
};
const names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const executablePath = PATH.split(":").flatMap((folder) => names.map((name) => `${folder}/${name}`)).find(here);
if (!executablePath) throw new Error("there is no Chromium: apt install chromium");

const findings = [];

async function check(page, where) {
  // A picture fades in, and its colours are measured.
  await page.waitForFunction(() => document.getAnimations().every((it) => it.playState !== "running"));
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  for (const { id, impact, help, nodes } of violations) {
    findings.push({ where, id, impact, help, nodes: nodes.map((node) => `${node.html} ${node.failureSummary}`) });
  }
  await page.screenshot({ path: `${out}/${where.replaceAll(" ", "-")}.png` });
}

async function walk(page, where) {
  await page.goto(url);
  if (key) {
    await page.getByLabel("Key", { exact: true }).waitFor();
    await check(page, `${where} key`);
    await page.getByLabel("Key", { exact: true }).fill(key);
    await page.getByRole("button", { name: "Use this key" }).click();
  }
  await page.getByRole("button", { name: "a rocket in the night sky", exact: true }).waitFor();
  await check(page, `${where} welcome`);
  await page.getByRole("button", { name: "a rocket in the night sky", exact: true }).click();
  await page.keyboard.press("Enter");
  await page.locator(".stage .pictures img").waitFor();
  await page.getByLabel("More settings").click();
  await check(page, `${where} create`);
  await page.getByRole("button", { name: "Model: Tiny FLUX" }).click();
  await page.locator(".model-list").waitFor();
  await check(page, `${where} models menu`);
  await page.keyboard.press("Escape");
  await page.getByLabel("Use as input").click();
  await page.getByRole("button", { name: "Paint a mask" }).click();
  await check(page, `${where} mask`);
  await page.keyboard.press("Escape");
  await page.getByLabel("Copy as code").click();
  await check(page, `${where} code`);
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "History" }).click();
  await page.locator(".tile img").first().waitFor();
  await page.locator(".tile").first().focus();
  await page.keyboard.press("x");
  await check(page, `${where} history`);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").locator("dl").waitFor();
  await check(page, `${where} viewer`);
  await page.keyboard.press("Escape");
  await page.getByRole("link", { name: "Models", exact: true }).click();
  await page.getByRole("heading", { name: "Tiny FLUX" }).waitFor();
  await check(page, `${where} models`);
}

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
for (const colorScheme of ["light", "dark"]) {
  for (const width of [390, 1280]) {
    const context = await browser.newContext({
      colorScheme,
      viewport: { width, height: 900 },
      reducedMotion: "reduce",
      locale: "en",
      // axe is not of the page.
      bypassCSP: true,
    });
    await walk(await context.newPage(), `${colorScheme} ${width}`);
    await context.close();
  }
}
await browser.close();

for (const finding of findings) console.log(JSON.stringify(finding, null, 1));
const bad = findings.filter(({ impact }) => impact === "serious" || impact === "critical");
if (bad.length) throw new Error(`${bad.length} serious findings`);
