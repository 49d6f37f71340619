// The market at a glance: overview, models, providers, refreshed while somebody looks.
"use strict";

const INTERVAL_MS = 10_000;
const element = (id) => document.getElementById(id);

function row(texts) {
  const tr = document.createElement("tr");
  for (const text of texts) {
    const td = document.createElement("td");
    td.textContent = text ?? "–";
    tr.append(td);
  }
  return tr;
}

function empty(columns, text) {
  const tr = document.createElement("tr");
  const td = document.createElement("td");
  td.className = "empty";
  td.colSpan = columns;
  td.textContent = text;
  tr.append(td);
  return tr;
}

function card({ label, value, note }) {
  const div = document.createElement("div");
  div.className = "card";
  for (const [className, text] of [["small", label], ["value", value], ["small", note]]) {
    const p = document.createElement("p");
    p.className = className;
    p.textContent = text;
    div.append(p);
  }
  return div;
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function refresh() {
  try {
    const [overview, models, providers] = await Promise.all([
      get("/api/overview"),
      get("/api/models"),
      get("/api/providers?limit=50"),
    ]);
    element("cards").replaceChildren(...overview.cards.map(card));
    element("models").replaceChildren(
      ...(models.data.length
        ? models.data.map((m) => row([m.name, m.providers, m.context_length, m.chat ? "yes" : "no"]))
        : [empty(4, "No model is served right now.")]),
    );
    element("providers").replaceChildren(
      ...(providers.data.length
        ? providers.data.map((p) => row([p.name || p.node_id, p.status, p.gpu_summary, p.price_display,
          p.served_models.join(", ")]))
        : [empty(5, "No provider has registered yet.")]),
    );
    element("status").textContent = "";
  } catch {
    element("status").textContent = "The coordinator does not answer; trying again.";
  }
}

element("join").textContent = `infernet init --role provider --url ${location.origin}\ninfernet start`;
setInterval(() => {
  if (!document.hidden) refresh();
}, INTERVAL_MS);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
refresh();
