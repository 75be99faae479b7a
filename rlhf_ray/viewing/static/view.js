// A page that follows its run: it asks whether anything has changed, and takes the parts that have from a fresh copy.
// Nothing that a run says is ever run here: fresh parts come from the server, where every text is escaped.
"use strict";

const EVERY_MS = 3000;
const SWITCH = "rlhf-view-live";
const live = document.getElementById("live");
let known = null;

async function fresh() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const next = page.getElementById(part.id);
    // Who reads or works in a part is left in peace; it is taken at the next change.
    const isUsed = part.contains(document.activeElement) || part.querySelector("details[open]:not([data-open])");
    if (next && !isUsed && next.innerHTML !== part.innerHTML) part.replaceChildren(...next.childNodes);
  }
}

async function look() {
  if (!live.checked || document.hidden) return;
  try {
    const answer = await fetch(document.body.dataset.stamp);
    if (!answer.ok) return;
    const now = await answer.text();
    if (known !== null && now !== known) {
      const notice = document.getElementById("fresh");
      if (notice && JSON.parse(now).steps !== JSON.parse(known).steps) notice.hidden = false;
      await fresh();
    }
    known = now;
  } catch { /* the server is away; the page stays as it is */ }
}

live.closest("label").hidden = false;
try { live.checked = localStorage.getItem(SWITCH) !== "off"; } catch { /* a browser without storage */ }
live.addEventListener("change", () => {
  try { localStorage.setItem(SWITCH, live.checked ? "on" : "off"); } catch { /* likewise */ }
  look();
});
setInterval(look, EVERY_MS);
look();

for (const select of document.querySelectorAll("[data-submits]")) {
  select.form.querySelector("button").hidden = true;
  select.addEventListener("change", () => select.form.requestSubmit());
}

const current = document.querySelector(".bar [aria-current]");
if (current) current.scrollIntoView({ block: "nearest", inline: "center" });

// On a phone what was asked for stands first, and the form behind its title.
if (matchMedia("(max-width: 700px)").matches) {
  for (const part of document.querySelectorAll("[data-narrow-closed]")) part.open = false;
}

// ---- reading curves, by pointer and by arrow keys ----
const SVG = "http://www.w3.org/2000/svg";
const places = new WeakMap();

function pointsOf(group) {
  return group.dataset.points.split(" ").filter(Boolean).map((point) => {
    const [x, y, step, value] = point.split(",");
    return [Number(x), Number(y), step, value];
  });
}

function read(svg, x) {
  const groups = [...svg.querySelectorAll("[data-points]")].filter((group) => group.dataset.points);
  const nearest = groups.map((group) =>
    pointsOf(group).reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best)));
  if (!nearest.length) return;
  const at = nearest.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  let mark = svg.querySelector(".cursor");
  if (!mark) {
    mark = svg.appendChild(document.createElementNS(SVG, "line"));
    mark.setAttribute("class", "cursor");
    mark.setAttribute("y1", "10");
    mark.setAttribute("y2", "184");
  }
  mark.setAttribute("x1", at[0]);
  mark.setAttribute("x2", at[0]);
  places.set(svg, at[0]);
  const said = svg.parentElement.querySelector(".reading");
  said.replaceChildren(document.createTextNode(`at ${at[2]}: `));
  nearest.forEach((point, index) => {
    const value = said.appendChild(document.createElement("span"));
    value.className = groups[index].getAttribute("class");
    value.append(document.createElement("i"), point[3]);
  });
}

function away(svg) {
  const mark = svg.querySelector(".cursor");
  if (mark) mark.remove();
  const said = svg.parentElement && svg.parentElement.querySelector(".reading");
  if (said) said.replaceChildren();
}

const curveOf = (event) => event.target instanceof Element && event.target.closest(".curve svg");

document.addEventListener("pointermove", (event) => {
  const svg = curveOf(event);
  if (!svg) return;
  const box = svg.getBoundingClientRect();
  read(svg, ((event.clientX - box.left) / box.width) * 380);
});
document.addEventListener("pointerout", (event) => {
  const svg = curveOf(event);
  if (svg && !svg.contains(event.relatedTarget) && document.activeElement !== svg) away(svg);
});
document.addEventListener("focusout", (event) => { const svg = curveOf(event); if (svg) away(svg); });
document.addEventListener("keydown", (event) => {
  const svg = curveOf(event);
  if (!svg || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  const steps = [...svg.querySelectorAll("[data-points]")].flatMap((group) => pointsOf(group).map((point) => point[0]));
  const all = [...new Set(steps)].sort((a, b) => a - b);
  const here = places.has(svg) ? all.indexOf(places.get(svg)) : all.length;
  const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: all.length - 1 }[event.key];
  if (all.length) read(svg, all[Math.min(all.length - 1, Math.max(0, next))]);
  event.preventDefault();
});
