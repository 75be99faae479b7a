// The task page: drag, drafts, submission that survives a server that is away. The form itself is the state: every
// control is a named field, the rows of letters mirror its radio buttons, and a draft is its fields.
"use strict";

const form = document.getElementById("task");
const cards = [...document.querySelectorAll(".response")];
const letters = cards.map((card, place) => String.fromCharCode(65 + place));
const field = (name) => form.elements.namedItem(name);
const key = ["rlhf-label", form.dataset.annotator, field("item").value, field("base").value].join("/");
const DRAFT_DELAY_MS = 300;
const IDLE_MS = 60_000; // nobody reads for longer without a touch: such time is not counted
const KEPT_MS = 30 * 24 * 3600 * 1000;
const UNSAVED = "Not saved on the server yet; kept on this device.";

const say = (text) => { document.getElementById("said").textContent = text; };

function complain(text, name) {
  document.getElementById("problem").textContent = text;
  const place = name ? document.getElementById(name) : null;
  if (!place) return;
  if (place.closest("details")) place.closest("details").open = true;
  const control = place.matches("fieldset") ? place.querySelector("input") : place;
  control.focus();
  place.scrollIntoView({ block: "nearest" });
}

// ------------------------------------------------------------------------------------------------------------- ranks
const rankOf = (place) => Number(field(`rank-${place}`).value) || 0;

function setRank(place, rank) {
  for (const radio of field(`rank-${place}`)) radio.checked = Number(radio.value) === rank;
  changed();
  const tied = letters.filter((_, other) => other !== place && rank && rankOf(other) === rank);
  const words = rank ? `rank ${rank} of ${cards.length}` : "not ranked";
  say(`Response ${letters[place]}: ${words}${tied.length ? `, tied with ${tied.join(" and ")}` : ""}.`);
}

const firstUnranked = () => cards.findIndex((_, place) => !rankOf(place));

// The response that a number key ranks: the one with the focus, else the first without a rank.
function currentPlace() {
  const own = document.activeElement && document.activeElement.closest("[data-place]");
  return own ? Number(own.dataset.place) : Math.max(firstUnranked(), 0);
}

function goTo(place) {
  const radios = [...field(`rank-${place}`)];
  (radios.find((radio) => radio.checked) || radios[0]).focus({ preventScroll: true });
  cards[place].scrollIntoView({ block: "nearest" });
}

function markCurrent() {
  const current = currentPlace();
  cards.forEach((card, place) => card.classList.toggle("current", place === current));
}

// ------------------------------------------------------------------------------------------------- the rows of letters
const tiers = document.getElementById("tiers");
const slots = [...tiers.querySelectorAll(".slots")];
const chips = letters.map((letter, place) => {
  const chip = document.createElement("div");
  chip.className = "chip";
  chip.textContent = letter;
  chip.tabIndex = 0;
  chip.dataset.place = place;
  chip.setAttribute("role", "button");
  chip.addEventListener("keydown", (event) => moveByKey(event, place));
  chip.addEventListener("click", () => cards[place].scrollIntoView({ block: "nearest" }));
  return chip;
});

function moveByKey(event, place) {
  const step = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const rank = rankOf(place) ? rankOf(place) + step : step > 0 ? 1 : cards.length;
  setRank(place, Math.min(Math.max(rank, 1), cards.length));
  chips[place].focus();
}

function drawTiers() {
  chips.forEach((chip, place) => {
    const rank = rankOf(place);
    const slot = slots.find((each) => Number(each.dataset.rank) === rank);
    if (chip.parentElement !== slot) slot.append(chip);
    chip.setAttribute("aria-label", `Response ${letters[place]}, ${rank ? `rank ${rank}` : "not ranked"}; arrows move it`);
  });
  const ranked = cards.length - cards.filter((_, place) => !rankOf(place)).length;
  document.getElementById("submit").textContent =
    ranked === cards.length ? "Submit ranking" : `Submit ranking (${ranked} of ${cards.length})`;
  markCurrent();
}

for (const slot of slots) {
  Sortable.create(slot, {
    group: "ranks",
    draggable: ".chip",
    animation: 120,
    forceFallback: true, // the same by mouse, pen and finger
    onEnd: (event) => setRank(Number(event.item.dataset.place), Number(event.to.dataset.rank)),
  });
}
tiers.hidden = false;

// ------------------------------------------------------------------------------------------------------------- drafts
let sendLater = 0;
let leaving = false;

function fieldsNow() {
  const fields = Object.fromEntries(new FormData(form));
  for (const own of ["secret", "item", "base", "revision"]) delete fields[own];
  return fields;
}

function keepHere() {
  try {
    const draft = { revision: Number(field("revision").value), fields: fieldsNow(), at: Date.now() };
    localStorage.setItem(key, JSON.stringify(draft));
  } catch { /* a browser without storage: the server's copy stands alone */ }
}

function changed() {
  field("revision").value = Number(field("revision").value) + 1;
  keepHere();
  drawTiers();
  showSaved("");
  clearTimeout(sendLater);
  sendLater = setTimeout(sendDraft, DRAFT_DELAY_MS);
}

function showSaved(text) {
  const saved = document.getElementById("saved");
  saved.hidden = false;
  saved.textContent = text || "\u00a0";
}

const bodyNow = () => new URLSearchParams(new FormData(form));

async function sendDraft() {
  if (leaving) return;
  sendLater = 0;
  const revision = field("revision").value;
  try {
    const answer = await fetch("/draft", { method: "POST", body: bodyNow(), headers: { Accept: "application/json" } });
    if (!answer.ok) throw new Error(answer.statusText);
    if (revision === field("revision").value) showSaved("Draft saved.");
  } catch {
    if (leaving) return;
    showSaved(UNSAVED);
    clearTimeout(sendLater);
    sendLater = setTimeout(sendDraft, 5000);
  }
}

function takeUpLocalDraft() {
  let local = null;
  try { local = JSON.parse(localStorage.getItem(key)); } catch { return; }
  if (!local || local.revision <= Number(field("revision").value)) return;
  for (const radio of form.querySelectorAll("input[type=radio]")) radio.checked = local.fields[radio.name] === radio.value;
  for (const name of ["why", "comment", "seconds"]) field(name).value = local.fields[name] || "";
  field("revision").value = local.revision;
  sendLater = setTimeout(sendDraft, DRAFT_DELAY_MS);
}

function forgetOldDrafts() {
  for (const name of Object.keys(localStorage).filter((each) => each.startsWith("rlhf-label/"))) {
    try {
      if (Date.now() - JSON.parse(localStorage.getItem(name)).at > KEPT_MS) localStorage.removeItem(name);
    } catch { localStorage.removeItem(name); }
  }
}

// -------------------------------------------------------------------------------------------------------------- time
let lastTouch = Date.now();
for (const event of ["pointermove", "pointerdown", "keydown", "scroll"]) {
  document.addEventListener(event, () => { lastTouch = Date.now(); }, { passive: true, capture: true });
}
setInterval(() => {
  if (document.visibilityState !== "visible" || Date.now() - lastTouch > IDLE_MS || leaving) return;
  field("seconds").value = (Number(field("seconds").value) || 0) + 1;
}, 1000);

// -------------------------------------------------------------------------------------------------------- submission
const buttons = [...form.querySelectorAll("button[type=submit]")];
const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

function setBusy(busy) {
  leaving = busy;
  for (const button of buttons) button.disabled = busy;
  form.setAttribute("aria-busy", String(busy));
}

// Sending again is safe: the server keeps an answer to this state of the item once.
async function sendUntilAnswered(body) {
  for (let wait = 1; ; wait = Math.min(wait * 2, 15)) {
    try {
      const answer = await fetch("/submit", { method: "POST", body, headers: { Accept: "application/json" } });
      if (answer.status < 500 && answer.status !== 429) return answer;
    } catch { /* the server is away */ }
    complain(`The server does not answer. Your answer is kept on this device; trying again in ${wait} s.`);
    await pause(wait * 1000);
  }
}

async function submit(verdict) {
  complain("");
  clearTimeout(sendLater);
  keepHere();
  const body = bodyNow();
  body.set("verdict", verdict);
  setBusy(true);
  const answer = await sendUntilAnswered(body);
  const said = await answer.json().catch(() => ({ message: "The server said something else than expected.", field: "" }));
  if (answer.ok) {
    localStorage.removeItem(key);
    location.assign("/");
    return;
  }
  setBusy(false);
  complain(said.message, said.field);
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  submit(event.submitter ? event.submitter.value : "ranked");
});
form.addEventListener("input", (event) => {
  const rank = /^rank-(\d+)$/.exec(event.target.name);
  if (rank) setRank(Number(rank[1]), Number(event.target.value));
  else changed();
});
document.addEventListener("focusin", markCurrent);
// What the last fraction of a second brought is on this device; the server gets it on the way out.
window.addEventListener("pagehide", () => {
  if (!leaving && sendLater) navigator.sendBeacon("/draft", bodyNow());
});

try { forgetOldDrafts(); } catch { /* a browser without storage */ }
takeUpLocalDraft();
drawTiers();
if (matchMedia("(max-width: 1099px)").matches) document.getElementById("guide").open = false;
document.getElementById("start").focus({ preventScroll: true });
