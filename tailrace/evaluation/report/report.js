"use strict";
// Texts of a run reach the page as text nodes and properties alone, never as markup.
// samples.py says what the lines in the page hold.

const PAGE = { list: 50, compare: 20 };
const run = JSON.parse(document.getElementById("run").textContent);
const arms = run.arms, items = [], asked = [], samples = [];
const byId = (id) => document.getElementById(id);
const form = byId("filters");

// ---------------------------------------------------------------------------------------------- small things

function el(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null) continue;
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "scope" || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.flat(9).filter((child) => child !== null && child !== undefined));
  return made;
}

const shown = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));
const number = (value) => value.toLocaleString("en-US");
const percent = (value) => (value === 1 || value === 0 ? `${100 * value}%` : `${(100 * value).toFixed(1)}%`);

function dollars(nano) {
  if (nano === null) return "?";
  const amount = nano / 1e9;
  if (amount === 0) return "$0";
  if (amount >= 0.995) return "$" + amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  const places = Math.min(12, Math.max(2, 2 - Math.floor(Math.log10(amount))));
  return "$" + amount.toFixed(places).replace(/(\.\d\d\d*?)0+$/, "$1");
}

function duration(ms) {
  if (ms === null) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 100000 ? `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s` : `${Math.round(ms / 1000)} s`;
}

function armName(place) {
  return el("span", { class: "arm" }, el("span", { class: `swatch ${arms[place].colour}`, "aria-hidden": "true" }), arms[place].label);
}

function chip(score, name, named) {
  const [verdict, value] = score;
  const graded = value !== null && value > 0 && value < 1 ? ` ${percent(value)}` : "";
  return el("span", { class: `chip ${verdict}`, title: name }, named ? el("small", null, name + " ") : null, verdict + graded);
}

// ----------------------------------------------------------------------------------------- tables of figures

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.classList.contains("nosort")) return;
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
    };
    const button = el("button", { type: "button" }, ...head.childNodes);
    button.addEventListener("click", () => {
      const numbers = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? "descending" : "ascending") : numbers ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      body.append(...sorted([...body.rows], key, order === "descending"));
    });
    head.replaceChildren(button);
  });
}

function sorted(rows, key, descending) {
  const keyed = rows.map((row, place) => [key(row), place, row]);
  const sign = descending ? -1 : 1;
  keyed.sort(([a, i], [b, j]) => (typeof a === "string" ? a.localeCompare(b) : a - b) * sign || i - j);
  return keyed.map(([, , row]) => row);
}

// ------------------------------------------------------------------------------------------------- unpacking

async function* unpacked() {
  const places = [...document.querySelectorAll("script.samples")];
  const packed = new ReadableStream({
    pull(controller) {
      const place = places.shift();
      if (!place) return controller.close();
      const text = atob(place.textContent), bytes = new Uint8Array(text.length);
      for (let n = 0; n < text.length; n++) bytes[n] = text.charCodeAt(n);
      place.remove();
      controller.enqueue(bytes);
    },
  });
  const reader = packed.pipeThrough(new DecompressionStream("gzip")).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function unpack() {
  let cut = false;
  for await (const [kind, ...fields] of unpacked()) {
    if (kind === "a") arms.push({ key: fields[0], label: fields[0], colour: `a${arms.length % 8}` });
    else if (kind === "i") items.push({ place: items.length, id: fields[0], category: fields[1], input: shown(fields[2]), targets: fields[3], metadata: fields[4], samples: [] });
    else if (kind === "m") asked.push(fields[0]);
    else if (kind === "cut") cut = true;
    else {
      const [arm, item, messages, n, outcome, text, reasoning, finish, error, id, record, scores] = fields;
      const [cache, cost, answerCost, input, output, thought, cached, attempts, queue, first, took] = record;
      const sample = { place: samples.length, arm, item: items[item], messages: asked[messages], n, outcome, text, reasoning, finish, error, id, scores, cache, cost, answerCost, input, output, thought, cached, attempts, queue, first, took };
      samples.push(sample);
      sample.item.samples.push(sample);
    }
  }
  return cut;
}

// ----------------------------------------------------------------------------------------------------- state
// What is shown is in the address, so that it can be sent to somebody: #view=compare&verdict=wrong…

const EMPTY = { view: "list", q: "", arm: "", category: "", outcome: "", scorer: "0", verdict: "", min: "", max: "", arms: "", differ: "", sort: "", page: "1", open: "" };
let state = { ...EMPTY };

function fromAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (![...given.keys()].some((name) => name in EMPTY)) return false;  // a part of the page
  state = { ...EMPTY };
  for (const name of Object.keys(EMPTY)) if (given.has(name)) state[name] = given.get(name);
  if (!run.scorers[state.scorer]) state.scorer = "0";
  return true;
}

function toAddress() {
  const changed = Object.entries(state).filter(([name, value]) => value !== EMPTY[name]);
  const hash = changed.length ? "#" + new URLSearchParams(changed) : location.pathname + location.search;
  history.replaceState(null, "", hash);
}

function chosen() {
  const given = state.arms.split(",").filter((place) => place !== "" && arms[place]).map(Number);
  return given.length ? given : arms.map((_, place) => place).slice(0, 3);
}

function change(changes, keepPage) {
  state = { ...state, ...changes };
  if (!keepPage) state.page = "1";
  toAddress();
  draw();
}

// ------------------------------------------------------------------------------------------------- filtering

function matcher() {
  const sought = state.q.trim();
  const pattern = sought && new RegExp(sought.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "i");
  const inItem = new Map();
  const itemSays = (item) => {
    if (!inItem.has(item)) inItem.set(item, [item.id, item.input, ...item.targets].some((text) => pattern.test(text)));
    return inItem.get(item);
  };
  const says = (s) =>
    itemSays(s.item) || (s.text !== null && pattern.test(s.text)) || (s.id !== null && pattern.test(s.id)) ||
    (s.error !== null && s.error.some((text) => pattern.test(text))) ||
    s.scores.some((score) => score.slice(2).some((text) => text !== null && pattern.test(text)));
  const min = state.min === "" ? null : state.min / 100 - 1e-9, max = state.max === "" ? null : state.max / 100 + 1e-9;
  const listed = state.view === "list";
  return (s) => {
    if (listed && state.arm !== "" && s.arm !== Number(state.arm)) return false;
    if (state.category !== "" && "=" + (s.item.category ?? "") !== state.category) return false;
    if (state.outcome !== "" && s.outcome !== state.outcome) return false;
    const [verdict, value] = s.scores[state.scorer] || ["unscored", null];
    if (state.verdict !== "" && verdict !== state.verdict) return false;
    if ((min !== null || max !== null) && value === null) return false;
    if ((min !== null && value < min) || (max !== null && value > max)) return false;
    return !pattern || says(s);
  };
}

const value = (s) => (s.scores[state.scorer] ? s.scores[state.scorer][1] : null);
const KEYS = {
  item: (s) => s.item.place, arm: (s) => s.arm, sample: (s) => s.n, outcome: (s) => s.outcome,
  score: (s) => value(s) ?? -1, category: (s) => s.item.category ?? "", tokens: (s) => s.output,
  latency: (s) => s.took ?? -1, cost: (s) => s.answerCost ?? -1, answer: (s) => (s.text ?? "").length,
};

function found() {
  if (state.view === "list") {
    const rows = samples.filter(matcher());
    const [name, descending] = state.sort.startsWith("-") ? [state.sort.slice(1), true] : [state.sort, false];
    return KEYS[name] ? sorted(rows, KEYS[name], descending) : rows;
  }
  const matches = matcher(), own = new Set(chosen());
  return items
    .map((item) => ({ item, samples: item.samples.filter((s) => own.has(s.arm)) }))
    .filter((row) => row.samples.some(matches) && (!state.differ || spread(row) > 1e-9));
}

/** How far the arms' mean scores on an item are apart; failed ones count as 0. */
function spread(row) {
  const means = chosen().map((arm) => {
    const own = row.samples.filter((s) => s.arm === arm);
    return own.length ? own.reduce((sum, s) => sum + (value(s) ?? 0), 0) / own.length : null;
  }).filter((mean) => mean !== null);
  return means.length > 1 ? Math.max(...means) - Math.min(...means) : 0;
}

// --------------------------------------------------------------------------------------------------- drawing

let rows = [];

function draw() {
  const list = state.view === "list";
  form.parentElement.className = list ? "listing" : "comparing";
  fillForm();
  rows = found();
  const size = PAGE[state.view], pages = Math.max(1, Math.ceil(rows.length / size));
  const page = Math.min(Math.max(1, Number(state.page) || 1), pages);
  state.page = String(page);
  const part = rows.slice((page - 1) * size, page * size);
  byId("count").textContent = list
    ? `${number(rows.length)} of ${number(samples.length)} samples`
    : `${number(rows.length)} of ${number(items.length)} items`;
  for (const end of ["", "2"]) {
    byId("page" + end).textContent = `Page ${number(page)} of ${number(pages)}`;
    byId("previous" + end).disabled = page === 1;
    byId("next" + end).disabled = page === pages;
  }
  byId("bar2").hidden = pages === 1;
  byId("table").className = `scroll ${state.view}`;
  byId("table").replaceChildren(part.length ? (list ? listTable(part) : compareTable(part)) : el("p", { class: "empty" }, "Nothing matches. ", el("button", { type: "button", onclick: () => form.reset() }, "Clear the filters")));
  drawDetail();
}

function header(name, title, cls) {
  const [by, descending] = [state.sort.replace(/^-/, ""), state.sort.startsWith("-")];
  const sort = by === name ? (descending ? "descending" : "ascending") : null;
  const next = sort === "ascending" ? "-" + name : sort === "descending" ? "" : name;
  return el("th", { scope: "col", class: cls, "aria-sort": sort }, el("button", { type: "button", onclick: () => change({ sort: next }), "data-sort": name }, title));
}

function listTable(part) {
  const plain = (title, cls) => el("th", { scope: "col", class: cls }, title);
  const head = [
    header("item", "Item", "c-item"), header("arm", "Arm", "c-arm"), header("sample", "#", "c-n n"), plain("Question"), plain("Target", "c-target"),
    header("answer", "Answer"), ...run.scorers.map((name, place) => (place === Number(state.scorer) ? header("score", name, "c-chip") : plain(name, "c-chip"))),
    header("latency", "Latency", "c-time n"), header("cost", "Cost", "c-cost n"),
  ];
  const body = part.map((s) =>
    el("tr", { class: "open-able", onclick: (event) => event.target.closest("button") || getSelection().toString() || open(s) },
      el("th", { scope: "row" }, el("button", { type: "button", class: "link", onclick: () => open(s) }, s.item.id), s.item.category !== null ? el("div", null, el("small", null, s.item.category)) : null),
      el("td", { class: "who" }, armName(s.arm)),
      el("td", { class: "n short", "data-name": "sample" }, String(s.n)),
      el("td", null, el("div", { class: "clip" }, excerpt(s.item.input))),
      el("td", { "data-name": "Target" }, el("div", { class: "clip" }, s.item.targets.join(" · "))),
      el("td", null, el("div", { class: "clip" }, taken(s), excerpt(answerOf(s)))),
      s.scores.map((score, place) => el("td", { class: "short" }, chip(score, run.scorers[place]))),
      el("td", { class: "n short", "data-name": "Latency" }, duration(s.took)),
      el("td", { class: "n short", "data-name": "Cost" }, dollars(s.answerCost))));
  const table = el("table", null, el("caption", { class: "hidden" }, "Samples"), el("thead", null, el("tr", null, head)), el("tbody", null, body));
  table.style.minWidth = `${740 + 112 * run.scorers.length}px`;
  return table;
}

function compareTable(part) {
  const places = chosen();
  const head = [el("th", { scope: "col" }, "Item"), ...places.map((place) => el("th", { scope: "col" }, armName(place)))];
  const body = part.map(({ item, samples: own }) =>
    el("tr", null,
      el("td", null, el("strong", null, item.id), item.category !== null ? el("div", null, el("small", null, item.category)) : null,
        el("div", { class: "clip question" }, excerpt(item.input)), el("p", { class: "target" }, "Target: " + item.targets.join(" · "))),
      places.map((place) => el("td", null, own.filter((s) => s.arm === place).map(side)))));
  return el("table", { class: "sides" }, el("caption", { class: "hidden" }, "Samples side by side"), el("thead", null, el("tr", null, head)), el("tbody", null, body));
}

function side(s) {
  return el("div", { class: "side" },
    s.scores.map((score, place) => chip(score, run.scorers[place], run.scorers.length > 1)),
    el("button", { type: "button", class: "link", onclick: () => open(s), "aria-label": `Open sample ${s.n} of ${s.item.id}, ${arms[s.arm].label}` }, "open"),
    el("div", { class: "clip" }, taken(s), excerpt(answerOf(s))));
}

/** What the scorer took for the answer, before the text that it is in. */
function taken(s) {
  const score = s.scores[state.scorer];
  return score && score[2] !== null ? el("strong", null, excerpt(score[2]) + " — ") : null;
}

const answerOf = (s) => (s.error ? `${s.error[0]}: ${s.error[1]}` : s.text ?? "");
const excerpt = (text) => (text.length > 600 ? text.slice(0, 600) + "…" : text);

// --------------------------------------------------------------------------------------------------- one sample

const dialog = byId("detail");

function open(s) {
  change({ open: [s.arm, s.n, s.item.id].join("/") }, true);
}

function opened() {
  if (state.open === "") return null;
  const [arm, n, ...id] = state.open.split("/");
  const item = items.find((one) => one.id === id.join("/"));
  return (item && item.samples.find((s) => s.arm === Number(arm) && s.n === Number(n))) || null;
}

function drawDetail() {
  const s = opened();
  if (!s) return dialog.open && dialog.close();
  const order = state.view === "list" ? rows : rows.flatMap((row) => row.samples);
  const at = order.indexOf(s);
  const go = (step, text) => el("button", { type: "button", id: `go${step}`, disabled: at < 0 || !order[at + step], onclick: () => open(order[at + step]) }, text);
  const fact = (name, text) => (text === null ? null : el("div", null, el("dt", null, name), el("dd", null, text)));
  const part = (title, ...content) => [el("h3", null, title), ...content];
  const hadFocus = document.activeElement && document.activeElement.id;
  dialog.replaceChildren(
    el("div", { class: "head" },
      el("div", null, el("h2", { id: "detail-h" }, s.item.id), el("div", null, armName(s.arm), el("small", null, ` sample ${s.n}${s.item.category !== null ? " · " + s.item.category : ""}`))),
      el("div", { class: "buttons" }, go(-1, "←"), go(1, "→"),
        el("button", { type: "button", id: "others", onclick: () => change({ ...EMPTY, scorer: state.scorer, arms: state.arms, view: "compare", q: s.item.id }) }, "Side by side"),
        el("button", { type: "button", id: "close", onclick: () => dialog.close() }, "Close"))),
    el("div", { class: "body" },
      part("Scores", scoreTable(s)),
      s.error ? part("Error", el("pre", null, `${s.error[0]}: ${s.error[1]}`)) : null,
      s.text !== null ? part(`Answer${s.outcome === "answered" ? "" : `, ${s.outcome}`}`, el("pre", { class: "answer" }, s.text)) : null,
      s.reasoning !== null ? part("Reasoning", el("pre", null, s.reasoning)) : null,
      s.item.targets.length ? part(s.item.targets.length > 1 ? "Targets, any of them" : "Target", s.item.targets.map((target) => el("pre", null, target))) : null,
      part("Prompt, as sent", s.messages.map((message) => [el("p", { class: "role" }, String(message.role ?? "")), el("pre", null, typeof message.content === "string" ? message.content : shown(message))])),
      part("In the books", el("dl", { class: "facts" },
        fact("Outcome", s.outcome), fact("Finish reason", s.finish), fact("Cost, whoever paid", dollars(s.answerCost)), fact("Paid by this run", dollars(s.cost)), fact("Cache", s.cache),
        fact("Input tokens", number(s.input)), fact("Output", number(s.output)), s.thought ? fact("Reasoning", number(s.thought)) : null, s.cached ? fact("Cached by the provider", number(s.cached)) : null,
        fact("Queued", duration(s.queue)), fact("First token", duration(s.first)), fact("Whole answer", duration(s.took)), fact("Attempts", String(s.attempts)),
        s.id !== null ? fact("Completion", el("code", null, s.id)) : null)),
      Object.keys(s.item.metadata).length ? part("Metadata of the item", el("pre", null, shown(s.item.metadata))) : null));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  const again = hadFocus && dialog.querySelector("#" + CSS.escape(hadFocus));
  (again && !again.disabled ? again : dialog.querySelector("#close")).focus();
}

function scoreTable(s) {
  const titles = ["Scorer", "Verdict", "Score", "Taken from the answer", "Explanation"];
  return el("table", null,
    el("thead", null, el("tr", null, titles.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", null, s.scores.map((score, place) => el("tr", null,
      el("th", { scope: "row" }, run.scorers[place]), el("td", null, chip(score, run.scorers[place])),
      el("td", null, score[1] === null ? "–" : percent(score[1])), el("td", { class: "pre" }, score[2] ?? "–"),
      el("td", { class: "pre" }, score[4] !== null ? `failed: ${score[4]}` : score[3] ?? "")))));
}

// ------------------------------------------------------------------------------------------------------ form

function fillForm() {
  for (const name of ["q", "arm", "category", "outcome", "scorer", "verdict", "min", "max"]) {
    const field = form.elements[name];
    if (field.value !== state[name]) field.value = state[name];
  }
  form.elements.view.value = state.view;
  form.elements.differ.checked = state.differ !== "";
  const places = new Set(chosen());
  for (const box of byId("choose").querySelectorAll("input")) box.checked = places.has(Number(box.value));
}

function options(name, pairs) {
  form.elements[name].replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
}

function setUpForm() {
  const counted = (key) => [...samples.reduce((counts, s) => counts.set(key(s), (counts.get(key(s)) || 0) + 1), new Map())];
  options("arm", [["", "all"], ...arms.map((arm, place) => [String(place), arm.label])]);
  options("category", [["", "all"], ...counted((s) => s.item.category ?? "").map(([name, n]) => ["=" + name, `${name || "(none)"} (${number(n)})`])]);
  options("outcome", [["", "all"], ...counted((s) => s.outcome).map(([name, n]) => [name, `${name} (${number(n)})`])]);
  options("scorer", run.scorers.map((name, place) => [String(place), name]));
  options("verdict", [["", "all"], ...run.verdicts.map((name) => [name, name])]);
  byId("choose").replaceChildren(...arms.map((_, place) => el("label", null, el("input", { type: "checkbox", value: String(place), name: "side" }), armName(place))));

  let typing;
  form.addEventListener("input", ({ target: { name, type, value } }) => {
    if (type !== "search" && type !== "number") return;
    clearTimeout(typing);
    typing = setTimeout(() => change({ [name]: value }), 150);
  });
  form.addEventListener("change", ({ target: { name, type, value, checked } }) => {
    if (name === "side") change({ arms: [...byId("choose").querySelectorAll("input:checked")].map((box) => box.value).join(",") });
    else if (type === "checkbox") change({ [name]: checked ? "1" : "" });
    else if (type !== "search" && type !== "number") change({ [name]: value });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    clearTimeout(typing);
    change({ ...EMPTY, view: state.view, scorer: state.scorer, arms: state.arms });
  });
  for (const end of ["", "2"]) {
    byId("previous" + end).addEventListener("click", () => turn(-1, end));
    byId("next" + end).addEventListener("click", () => turn(1, end));
  }
  dialog.addEventListener("close", () => state.open !== "" && change({ open: "" }, true));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && !event.altKey && !event.ctrlKey && !event.metaKey) byId(`go${step}`).click();
  });
  addEventListener("hashchange", () => fromAddress() && draw());
}

function turn(step, end) {
  change({ page: String(Number(state.page) + step) }, true);
  if (end) byId("bar").scrollIntoView();
}

// ----------------------------------------------------------------------------------------------------- start

async function start() {
  document.querySelectorAll("table.sortable").forEach(sortable);
  const loading = byId("loading");
  loading.hidden = false;
  if (typeof DecompressionStream === "undefined") {
    loading.textContent = "This browser is too old to unpack the samples; samples.jsonl has them.";
    return;
  }
  const cut = await unpack();
  loading.hidden = !cut;
  if (cut) loading.textContent = `The first ${number(samples.length)} of ${number(run.samples)} samples are here; samples.jsonl has all of them.`;
  setUpForm();
  for (const id of ["filters", "bar", "table"]) byId(id).hidden = false;
  const given = fromAddress();
  draw();
  if (given) byId("samples").scrollIntoView();
  document.documentElement.dataset.ready = "yes";
}

start().catch((error) => {
  byId("loading").hidden = false;
  byId("loading").textContent = `The samples can't be shown: ${error.message}`;
  throw error;
});
