"use strict";
// All that comes from records is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function link(text, href) {
  const made = element("a", text);
  made.href = href;
  return made;
}

// Pairs of a name and a text, an element or a list of them; empty ones are left out.
function list(pairs) {
  const made = element("dl");
  for (const [name, value] of pairs) {
    const parts = (Array.isArray(value) ? value : [value]).filter((one) => one || one === 0);
    if (!parts.length) continue;
    const shown = element("dd");
    parts.forEach((part, i) => shown.append(i ? element("br") : "", part));
    made.append(element("dt", name), shown);
  }
  return made;
}

const code = (text) => text && element("code", text);
const number = (value) => String(Number(Number(value).toPrecision(6)));
const numbers = (named) =>
  Object.entries(named || {}).map(([name, value]) => `${name} ${number(value)}`).join(", ");

// What is behind one record; `metric` is what the cell shows of it.
function record(key, metric) {
  const one = data.records[key];
  if (!one) return element("p", `${key}: no record`);
  const at = data.root + key + "/";
  const values = { ...one.metrics, ...one.cost };
  return list([
    ["value", metric in values ? number(values[metric]) : ""],
    ["record", [link(key, at + "record.json"), one.log ? link("log", at + "events.jsonl") : ""]],
    ["all metrics", numbers(one.metrics)],
    ["cost", numbers(one.cost)],
    ["chosen", numbers(one.chosen)],
    ["paper's rule", numbers(one.paper_rule)],
    ["paper's rule minus ours", numbers(one.gap)],
    ["warnings", one.warnings],
    ["images", one.data],
    ["checkpoint", code(one.checkpoint)],
    ["rests on", (one.upstream || []).map((up) => link(up, data.root + up + "/record.json"))],
    ["computed on", one.machine],
    ["took", `${number(one.seconds)} s, finished ${one.finished}`],
    ["commit", code(one.commit)],
    ["command", code(one.command)],
  ]);
}

function provenance(id) {
  const cell = data.cells[id];
  const box = document.querySelector("dialog > div");
  const close = element("button", "×");
  close.className = "close";
  close.setAttribute("aria-label", "close");
  close.onclick = () => box.parentElement.close();
  box.replaceChildren(
    close,
    element("h2", cell.title),
    list([
      ["published", cell.published],
      ["measured", cell.measured],
      ["difference", cell.difference],
      ["verdict", cell.verdict],
      ["measured by", cell.setting],
      ["measured on", cell.where],
      ["not comparable", cell.incomparable],
      ["mind", cell.caveats],
      ["what is missing", cell.reasons],
      ["elsewhere", cell.elsewhere],
      ["fill with", (cell.commands || []).map(code)],
      ["in the terminal", code(`lewel-bench explain ${id}${data.options}`)],
    ]),
  );
  for (const [key, seed, trial, baseline] of cell.runs) {
    const named = `seed ${seed}${trial ? `, trial ${trial}` : ""} · ${key}`;
    const one = element("details", null, element("summary", named));
    // only when it is opened: a cell may have hundreds
    const behind = () => [
      record(key, cell.metric),
      ...(baseline ? [element("h3", `over ${baseline}`), record(baseline, cell.metric)] : []),
    ];
    one.addEventListener("toggle", () => one.append(...behind()), { once: true });
    one.open = cell.runs.length === 1;
    box.append(one);
  }
  box.parentElement.showModal();
  box.scrollTop = 0;
}

// Measured values first, then those that are only published; rows without either stay last.
function sort(header) {
  const table = header.closest("table");
  const body = table.tBodies[0];
  const before = header.getAttribute("aria-sort");
  const order = before === null ? "descending" : before === "descending" ? "ascending" : null;
  all("th[aria-sort]", table).forEach((one) => one.removeAttribute("aria-sort"));
  if (order) header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => {
    const { value, paper } = row.cells[header.cellIndex].dataset;
    if (value) return [0, "text" in header.dataset ? value : Number(value)];
    return paper ? [1, Number(paper)] : [2, 0];
  };
  const rows = all("tr", body).map((row) => ({ row, key: key(row), place: row.dataset.place }));
  rows.sort((a, b) => {
    if (!order) return a.place - b.place;
    const [x, y] = [a.key[1], b.key[1]];
    return a.key[0] - b.key[0] || sign * (x < y ? -1 : x > y ? 1 : 0) || a.place - b.place;
  });
  body.append(...rows.map(({ row }) => row));
}

function filter() {
  const form = document.forms.filter;
  const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const verdict = form.verdict.value;
  for (const row of all("tr[data-words]")) {
    const fits = words.every((word) => row.dataset.words.includes(word));
    const cells = all(".cell", row);
    const judged = cells.filter((cell) => !verdict || cell.dataset.verdict === verdict);
    row.classList.toggle("off", !fits || !judged.length);
  }
  for (const section of all("section.table")) {
    const rows = all("tr[data-words]", section);
    section.classList.toggle("off", rows.every((row) => row.classList.contains("off")));
  }
}

for (const header of all("th[data-sort]")) {
  header.querySelector("button").onclick = () => sort(header);
}
for (const cell of all(".cell[data-id]")) {
  cell.querySelector("button").onclick = () => provenance(cell.dataset.id);
}
document.forms.filter.oninput = filter;
document.forms.filter.onsubmit = (event) => event.preventDefault();
const dialog = document.querySelector("dialog");
dialog.onclick = (event) => {
  if (event.target === dialog) dialog.close();
};
