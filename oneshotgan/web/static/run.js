// The page of a run: contact sheets over time, and each sample beside its nearest training image.
"use strict";

const root = document.getElementById("run");
const COMPARED = 12;  // samples
let state = null, comparedWith = null;

if (root && root.dataset.begun === "yes") begin(); else if (root) wait();

// A training that is starting becomes a run in a few seconds.
function wait() {
  setInterval(async () => {
    const now = await look();
    if (now && now.steps) location.reload();
  }, 1000);
}

async function look() {
  try {
    const answer = await fetch(`${root.dataset.url}state`);
    return answer.ok ? await answer.json() : null;
  } catch { return null; }  // the server is away; the next look may find it
}

async function begin() {
  const slider = document.getElementById("sheet-step");
  slider.addEventListener("input", showSheet);
  await refresh();
  setInterval(() => { if (!document.hidden && (state === null || state.live)) refresh(); }, 3000);
  document.addEventListener("training-changed", refresh);
}

async function refresh() {
  const before = state, now = await look();
  if (now === null || now.sheets === undefined) return;
  state = now;
  const slider = document.getElementById("sheet-step");
  const last = Math.max(0, now.sheets.length - 1), atEnd = before === null || Number(slider.value) === before.sheets.length - 1;
  slider.max = last;
  slider.disabled = now.sheets.length < 2;
  if (atEnd) slider.value = last;
  showSheet();
  if (now.model && now.model.checksum !== comparedWith && (!now.live || comparedWith === null)) compare(now.model);
}

function showSheet() {
  const slider = document.getElementById("sheet-step"), step = state.sheets[Number(slider.value)];
  if (step === undefined) return;
  const address = `${root.dataset.url}sheet/${step}`, sheet = document.getElementById("sheet");
  const shown = step.toLocaleString("en");
  document.getElementById("sheet-said").textContent = `${shown} of ${state.steps.toLocaleString("en")}`;
  slider.setAttribute("aria-valuetext", `step ${shown}`);
  sheet.alt = `contact sheet of seeds 0 to 15 at step ${shown}`;
  if (sheet.getAttribute("src") !== address) sheet.src = address;
}

async function compare(model) {
  comparedWith = model.checksum;
  const said = document.getElementById("nearest-said"), pairs = document.getElementById("pairs");
  const seeds = [...Array(COMPARED).keys()], [height, width] = state.size;
  const figures = seeds.map((seed) => {
    const figure = document.createElement("figure"), images = document.createElement("div");
    const caption = document.createElement("figcaption");
    const sample = new Image(width, height), nearest = new Image(width, height);
    sample.alt = `sample of seed ${seed}`;
    nearest.alt = "";
    sample.src = `${root.dataset.url}sample?seed=${seed}&model=${model.checksum}`;
    images.append(sample, nearest);
    caption.innerHTML = "<span></span><span></span>";
    caption.firstChild.textContent = `seed ${seed}`;
    figure.append(images, caption);
    return { figure, nearest, caption };
  });
  pairs.replaceChildren(...figures.map((entry) => entry.figure));
  said.textContent = "Looking for the nearest training images …";
  let found = null;
  try {
    const answer = await fetch(`${root.dataset.url}nearest?seeds=${seeds.join(",")}`);
    found = await answer.json();
  } catch { /* told below */ }
  if (comparedWith !== model.checksum) return;
  if (!found || !found.nearest || found.nearest.length === 0) {
    said.textContent = `The nearest training images are not known: ${found?.reason ?? found?.error ?? "the server is away"}`;
    for (const { nearest } of figures) nearest.remove();
    return;
  }
  said.textContent = `LPIPS distance to the nearest of ${found.frames === 1 ? "the training image" : `${found.frames} training images`} and copies of it, mirrored and augmented. Near 0 means learned by heart.`;
  found.nearest.forEach((entry, index) => {
    const { nearest, caption } = figures[index];
    const kind = ["as it is", "mirrored"][entry.copy] ?? "augmented";
    nearest.alt = `nearest training image, ${kind}`;
    nearest.src = `${root.dataset.url}copy?frame=${entry.frame}&copy=${entry.copy}`;
    caption.lastChild.textContent = `${entry.distance.toFixed(3)} · ${kind}`;
  });
}
