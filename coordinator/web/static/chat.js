// The public chat: asks over POST /api/chat, reads the answer with EventSource, shows text as text.
"use strict";

const MODELS_INTERVAL_MS = 10_000;
const element = (id) => document.getElementById(id);
const conversation = element("conversation");
const form = element("form");
const question = element("question");
const modelSelect = element("model");
const sendButton = element("send");
const cancelButton = element("cancel");
const statusLine = element("status");
const promptBytesMax = Number(document.body.dataset.promptBytesMax);

/** The turns so far, as the API takes them: {role, content}. */
let turns = [];
/** The answer that is being written, or null. */
let running = null;

function say(text, isWrong = false) {
  // A screen reader says every change, also to the same words.
  if (statusLine.textContent !== text) statusLine.textContent = text;
  statusLine.classList.toggle("wrong", isWrong);
}

function bytesOf(text) {
  return new TextEncoder().encode(text).length;
}

/** The newest turns that fit, oldest dropped first, beginning with a question. */
function fittingTurns(all) {
  const kept = [];
  let bytes = 0;
  for (const turn of [...all].reverse()) {
    bytes += bytesOf(turn.content);
    if (bytes > promptBytesMax && kept.length) break;
    kept.unshift(turn);
  }
  while (kept.length > 1 && kept[0].role !== "user") kept.shift();
  return kept;
}

function addTurn(role, text) {
  const item = document.createElement("li");
  item.className = `turn ${role}`;
  const who = document.createElement("p");
  who.className = "who";
  who.textContent = role === "user" ? "You" : "Answer";
  const body = document.createElement("p");
  body.className = "text";
  body.textContent = text;
  item.append(who, body);
  conversation.append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function addLine(item, className, text) {
  const line = document.createElement("p");
  line.className = className;
  line.textContent = text;
  item.append(line);
  return line;
}

function setBusy(isBusy) {
  sendButton.hidden = isBusy;
  cancelButton.hidden = !isBusy;
  for (const example of document.querySelectorAll(".example")) example.disabled = isBusy;
}

/** Ask, and show what comes. */
async function ask(text) {
  element("welcome").hidden = true;
  addTurn("user", text);
  turns.push({ role: "user", content: text });
  const item = addTurn("assistant", "");
  item.classList.add("waiting");
  running = { item, body: item.querySelector(".text"), askedAt: performance.now(), jobId: null, source: null,
    firstAt: 0, lastAt: 0, provider: null, resumed: null, isCancelled: false };
  const mine = running;
  setBusy(true);
  say("Connecting…");
  let answer;
  try {
    answer = await fetch("/api/chat", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ messages: fittingTurns(turns), modelName: modelSelect.value || undefined }),
    });
  } catch {
    fail(mine, "The coordinator cannot be reached. Check your connection and try again.");
    return;
  }
  let fields = {};
  try {
    fields = await answer.json();
  } catch {
    // not JSON: a proxy answered; the status says enough
  }
  if (!answer.ok) {
    const hint = fields.hint ? ` ${sentence(fields.hint)}` : "";
    fail(mine, sentence(fields.error || `The coordinator answered with status ${answer.status}`) + hint);
    if (answer.status === 503) refreshModels();
    return;
  }
  mine.jobId = fields.jobId;
  mine.provider = fields.provider;
  if (mine.isCancelled) {
    tellCancel(mine);
  }
  read(mine, fields.streamUrl);
}

/** Words of the API as a sentence of the page: commands are quoted there, and capitals and stops left out. */
function sentence(text) {
  const trimmed = text.trim().replaceAll("`", "").replace(/\.$/, "");
  return `${trimmed.charAt(0).toUpperCase()}${trimmed.slice(1)}.`;
}

/** Read the stream of an answer. EventSource reconnects by itself and resumes at the last event it has seen. */
function read(mine, url) {
  const source = new EventSource(url);
  mine.source = source;
  source.addEventListener("open", () => {
    if (!mine.firstAt) say("Waiting for the first token…");
  });
  source.addEventListener("meta", (event) => {
    mine.provider = JSON.parse(event.data).provider;
  });
  source.addEventListener("queued", (event) => {
    const { position, wait_ms } = JSON.parse(event.data);
    const before = position === 0 ? "next in line" : `${position} before you`;
    say(`Every slot is taken: ${before}, about ${Math.max(1, Math.round(wait_ms / 1000))} s to wait…`);
  });
  source.addEventListener("resumed", (event) => {
    const { provider, lost, prompt_tokens } = JSON.parse(event.data);
    mine.provider = provider;
    mine.resumed = `${nameOf(lost)} went away; ${nameOf(provider)} goes on (it reads ${prompt_tokens} tokens again)`;
    say(`${mine.resumed}.`);
  });
  source.addEventListener("token", (event) => {
    const now = performance.now();
    if (!mine.firstAt) {
      mine.firstAt = now;
      mine.item.classList.remove("waiting");
    }
    mine.lastAt = now;
    const isAtEnd = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
    mine.body.append(document.createTextNode(JSON.parse(event.data).text));
    if (isAtEnd) window.scrollTo({ top: document.documentElement.scrollHeight });
    say("Streaming…");
  });
  source.addEventListener("done", (event) => {
    source.close();
    finish(mine, JSON.parse(event.data));
  });
  source.addEventListener("error", (event) => {
    if (event.data) {
      source.close();
      const { message, code } = JSON.parse(event.data);
      if (code === "cancelled") stopped(mine);
      else fail(mine, sentence(message));
    } else if (source.readyState === EventSource.CLOSED) {
      fail(mine, "The connection to the coordinator was lost and could not be resumed.");
    } else {
      say("Connection lost, resuming…", true);
    }
  });
}

function finish(mine, done) {
  mine.item.classList.remove("waiting");
  // The whole text again: whatever was missed on the way is right now.
  mine.body.textContent = done.text;
  turns.push({ role: "assistant", content: done.text });
  if (mine.resumed) addLine(mine.item, "badge", `${mine.resumed}.`);
  addLine(mine.item, "badge", badge(mine, done));
  end(mine, done.reason === "length" ? "Done; the answer reached its length limit." : "Done.");
}

function nameOf(provider) {
  return provider.name || provider.nodeId || "a provider";
}

function badge(mine, done) {
  const parts = [];
  if (mine.provider) {
    const gpu = mine.provider.gpuModel ? ` on ${mine.provider.gpuModel}` : "";
    const names = done.served.map((part) => nameOf(part.provider));
    const servers = names.length > 1 ? names.join(", then ") : `${nameOf(mine.provider)}${gpu}`;
    parts.push(`Served by ${servers}`, mine.provider.model);
  }
  const tokens = done.usage.completion_tokens;
  parts.push(`${tokens} tokens`);
  if (mine.firstAt) {
    parts.push(`first token after ${((mine.firstAt - mine.askedAt) / 1000).toFixed(2)} s`);
    const streamedS = (mine.lastAt - mine.firstAt) / 1000;
    if (tokens > 1 && streamedS > 0) parts.push(`${((tokens - 1) / streamedS).toFixed(1)} tokens/s`);
  }
  return parts.filter(Boolean).join(" · ");
}

function stopped(mine) {
  keepPart(mine);
  addLine(mine.item, "badge", "Stopped.");
  end(mine, "Stopped.");
}

/** An answer that was cut short stays in the conversation as far as it came; a question without any does not. */
function keepPart(mine) {
  mine.item.classList.remove("waiting");
  const text = mine.body.textContent;
  if (text) turns.push({ role: "assistant", content: text });
  else turns.pop();
}

function fail(mine, text) {
  const asked = turns.length ? turns[turns.length - 1].content : "";
  keepPart(mine);
  const line = addLine(mine.item, "wrong", text);
  line.setAttribute("role", "alert");
  const again = document.createElement("button");
  again.type = "button";
  again.className = "quiet";
  again.textContent = "Ask again";
  again.addEventListener("click", () => {
    if (running) return;
    again.remove();
    ask(asked);
  });
  line.append(again);
  end(mine, "Failed.", true);
}

function end(mine, text, isWrong = false) {
  if (mine.source) mine.source.close();
  if (running === mine) running = null;
  setBusy(false);
  say(text, isWrong);
  mine.item.scrollIntoView({ block: "end" });
  question.focus();
}

function tellCancel(mine) {
  fetch(`/api/chat/${mine.jobId}/cancel`, { method: "POST" }).catch(() => {
    fail(mine, "The coordinator cannot be reached, so the answer could not be stopped.");
  });
}

function cancel() {
  if (!running || running.isCancelled) return;
  running.isCancelled = true;
  say("Stopping…");
  if (running.jobId) tellCancel(running);
}

// ---------------------------------------------------------------- who is there

async function refreshModels() {
  let models;
  try {
    const answer = await fetch("/api/models?limit=100");
    models = (await answer.json()).data.filter((model) => model.chat);
  } catch {
    return; // the next look, or the next question, tells
  }
  const notice = element("offline");
  if (notice.hidden !== models.length > 0) {
    notice.hidden = models.length > 0;
    // It stands above the conversation, whose end must not leave the window because of it.
    conversation.lastElementChild?.scrollIntoView({ block: "end" });
  }
  const chosen = modelSelect.value;
  const options = models.map((model) => {
    const option = document.createElement("option");
    option.value = model.name;
    option.textContent = model.name;
    return option;
  });
  const any = document.createElement("option");
  any.value = "";
  any.textContent = "(any available)";
  modelSelect.replaceChildren(any, ...options);
  modelSelect.value = models.some((model) => model.name === chosen) ? chosen : "";
}

// ---------------------------------------------------------------- the page

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = question.value.trim();
  if (!text || running) return;
  if (bytesOf(text) > promptBytesMax) {
    say(`This question is longer than the ${promptBytesMax} bytes that this coordinator takes.`, true);
    return;
  }
  question.value = "";
  ask(text);
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") cancel();
});

cancelButton.addEventListener("click", cancel);

element("new").addEventListener("click", () => {
  cancel();
  turns = [];
  running = null;
  conversation.replaceChildren();
  element("welcome").hidden = false;
  setBusy(false);
  say("");
  question.focus();
});

for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    if (!running) ask(example.textContent);
  });
}

element("join").textContent = `infernet init --role provider --url ${location.origin}\ninfernet start`;
setInterval(() => {
  if (!document.hidden) refreshModels();
}, MODELS_INTERVAL_MS);
refreshModels();
question.focus();
