// Elements, figures as people read them, and requests to this server.

const MAX_SHOWN = 20000;

/** Make an element: attributes whose value is null, undefined or false are left out; functions listen. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);
const fill = (element, ...children) => element.replaceChildren(...children.flat(Infinity).filter(Boolean));

/** A table: `head` names columns, the first `numText` of them stand left; `rows` are lists of texts or elements. */
function table(head, rows, { label, numText = 1, rowAttributes } = {}) {
  const side = (index) => (index < numText ? "text" : null);
  return h("table", { "aria-label": label },
    h("thead", {}, h("tr", {}, head.map((name, i) => h("th", { class: side(i), scope: "col" }, name)))),
    h("tbody", {}, rows.map((row, number) => h("tr", rowAttributes ? rowAttributes(number) : {},
      row.map((cell, i) => h("td", { class: side(i), "data-name": i ? head[i] : null }, cell))))));
}

/** Facts under each other; those without a value are left out. */
function factTable(facts) {
  return h("table", { class: "facts" }, h("tbody", {}, facts.filter(([, value]) => value !== null && value !== undefined
    && value !== "").map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)))));
}

function bar(share, kind = "") {
  const inner = h("span");
  inner.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(1)}%`;
  return h("span", { class: `bar ${kind}`, "aria-hidden": "true" }, inner);
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits, thousands apart. */
function figure(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f");
  return value.toFixed(size >= 10 ? 1 : 2);
}

function bytes(size) {
  if (!isNumber(size)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let step = 0;
  for (; Math.abs(size) >= 1000 && step < units.length - 1; step++) size /= 1000;
  return `${step ? size.toFixed(size < 10 ? 2 : 1) : size} ${units[step]}`;
}

function duration(ms) {
  if (!isNumber(ms)) return "–";
  if (ms >= 10000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 1 ? `${Math.round(ms * 1000)} µs` : `${figure(ms)} ms`;
}

function since(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  const parts = units.slice(first, first + 2).map(([name, size]) => {
    const count = Math.floor(seconds / size);
    seconds -= count * size;
    return `${count} ${name}`;
  });
  return parts.join(" ");
}

const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(1)} %` : "–");
const clip = (text) => (text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}\n… ${text.length - MAX_SHOWN} more characters` : text);

// The key is in this variable alone: a page that is loaded again asks again.
let apiKey = "";

class Refusal extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

/** What an error answer says, in whichever protocol's form. */
function reasonOf(text, status) {
  try {
    const said = JSON.parse(text);
    const error = said.error ?? said.detail ?? said.message;
    const message = typeof error === "string" ? error : error?.message;
    if (message) return message;
  } catch { /* not JSON: shown as it is */ }
  return text.slice(0, 500) || `the server answered ${status}`;
}

/** Send a request; throws a Refusal with the server's own words for every answer that is not 2xx. */
async function send(path, { method = "GET", body, type, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (apiKey) all.authorization = `Bearer ${apiKey}`;
  if (type) all["content-type"] = type;
  const answer = await fetch(path, { method, body, headers: all, signal, cache: "no-store" });
  if (!answer.ok) {
    if (answer.status === 401) askForKey(apiKey ? "The server does not take this key." : "");
    throw new Refusal(reasonOf(await answer.text(), answer.status), answer.status);
  }
  return answer;
}

const sendJson = (path, value, options = {}) =>
  send(path, { method: "POST", body: JSON.stringify(value), type: "application/json", ...options });

function askForKey(wrong) {
  const isNew = byId("ask").hidden;
  byId("ask").hidden = false;
  byId("key-wrong").hidden = !wrong;
  byId("key-wrong").textContent = wrong;
  if (isNew) byId("key").focus();
}

/** Read server-sent events as they come: yields the data of each. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
