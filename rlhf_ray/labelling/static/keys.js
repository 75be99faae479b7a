// Single keys, which people can turn off, and the list of them.
"use strict";

const SWITCH = "rlhf-label-single-keys";
const list = document.getElementById("keys");
const toggle = document.getElementById("single-keys");
const click = (id) => { const button = document.getElementById(id); if (button) button.click(); };

function undo() {
  const own = document.getElementById("undo");
  if (own) own.requestSubmit();
}

// On the task page only.
function onTask(event) {
  const name = event.key.toUpperCase();
  const count = cards.length;
  if (/^[1-9]$/.test(name) && Number(name) <= count) {
    const place = currentPlace();
    setRank(place, Number(name));
    const next = firstUnranked();
    if (next >= 0) goTo(next);
    else document.getElementById("submit").focus({ preventScroll: true });
  } else if (name.length === 1 && name >= "A" && name.charCodeAt(0) < 65 + count) {
    goTo(name.charCodeAt(0) - 65);
  } else if (name === "X") {
    click("all-bad");
  } else if (name === "S") {
    document.getElementById("cannot").open = true;
    document.getElementById("why").focus();
  } else if (name === "?") {
    list.showModal();
  } else {
    return;
  }
  event.preventDefault();
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && document.getElementById("submit")) {
    event.preventDefault();
    click("submit");
    return;
  }
  const writing = event.target.matches("textarea, select, input:not([type=radio])");
  if (writing || event.ctrlKey || event.metaKey || event.altKey || event.repeat || (list && list.open)) return;
  if (toggle && !toggle.checked) return;
  if (event.key.toUpperCase() === "U") undo();
  else if (list) onTask(event);
});

if (list) {
  try { toggle.checked = localStorage.getItem(SWITCH) !== "off"; } catch { /* a browser without storage */ }
  toggle.addEventListener("change", () => localStorage.setItem(SWITCH, toggle.checked ? "on" : "off"));
  document.getElementById("help").hidden = false;
  document.getElementById("help").addEventListener("click", () => list.showModal());
}
