// Words and numbers in the reader's language. All texts are in locales/, one file a language.
import { get } from "./store.mjs";

export const LOCALES = { en: "English", zh: "中文" };

/** The language to show: the chosen one, else the browser's if it is here, else English. */
export function localeOf(state) {
  const wanted = [state.locale, ...navigator.languages.map((language) => language.split("-")[0])];
  return wanted.find((locale) => locale in LOCALES) ?? "en";
}

/** A text of the locale; {name} in it is replaced by the value of that name. */
export function t(key, values = {}) {
  const text = get().words[key];
  if (typeof text === "function") return text(values);
  return (text ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

export const has = (key) => key in get().words;

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** 12_345_678 -> `12 MB`. */
export function bytes(count) {
  if (count == null) return "";
  const power = Math.min(Math.floor(Math.log10(Math.max(count, 1)) / 3), UNITS.length - 1);
  const value = count / 1000 ** power;
  return `${value.toFixed(value < 10 && power ? 1 : 0)} ${UNITS[power]}`;
}

/** Seconds as people say them: `0.4 s`, `12 s`, `3 min`. */
export function seconds(count) {
  if (count < 10) return t("seconds", { n: count.toFixed(1) });
  if (count < 90) return t("seconds", { n: Math.round(count) });
  return t("minutes", { n: Math.round(count / 60) });
}

/** How far a time is from now: `2 minutes ago`, `in 3 hours`. */
export function fromNow(time) {
  const words = new Intl.RelativeTimeFormat(localeOf(get()), { numeric: "auto" });
  let count = (new Date(time) - Date.now()) / 1000;
  for (const [unit, size] of [
    ["second", 60],
    ["minute", 60],
    ["hour", 24],
    ["day", Infinity],
  ]) {
    if (Math.abs(count) < size) return words.format(Math.round(count), unit);
    count /= size;
  }
  return "";
}

/** The words of a problem: what is wrong, in the reader's language where it has words for the code. */
export function explained(problem) {
  const code = problem.code ?? "unreachable";
  const detail = (problem.message || problem.detail || "").replace(/\bbody\./g, "");
  return { title: has(`code.${code}`) ? t(`code.${code}`) : detail || code, detail, code };
}
