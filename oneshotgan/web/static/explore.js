// Explore one run, or compare two: the same seeds, truncation and way between seeds for each pane.
"use strict";

const explorer = document.getElementById("explorer");
const byId = (id) => document.getElementById(id);
const STORE = "oneshotgan.favourites";
const panes = explorer ? JSON.parse(explorer.dataset.panes) : [];
const controls = { truncation: 1, first: 0, count: 16, from: 0, to: 1, at: 0.5 };

if (explorer) begin();

async function begin() {
  readAddress();
  listen();
  drawTiles();
  showKept();
  await Promise.all(panes.map((pane, index) => refresh(pane, index, true)));
  setInterval(() => {
    if (!document.hidden) panes.forEach((pane, index) => { if (pane.state?.live) refresh(pane, index, false); });
  }, 5000);
}

// --- what is known of the runs ---

async function refresh(pane, index, first) {
  let state = null;
  try {
    const answer = await fetch(`${pane.url}state`);
    if (answer.ok) state = await answer.json();
  } catch { /* the server is away */ }
  if (!state || !state.model) {
    byId(`step-said-${index}`).textContent = state ? "no model yet" : "the server is away";
    return;
  }
  const before = pane.state, slider = byId(`step-${index}`);
  const atEnd = first || Number(slider.value) === pane.steps.length - 1;
  pane.state = state;
  // Every snapshot but one that is the newest model itself, then that.
  pane.steps = [...state.snapshots.filter((step) => step !== state.model.step), null];
  slider.max = pane.steps.length - 1;
  slider.disabled = pane.steps.length < 2;
  if (first && controls.steps?.[index] != null) slider.value = Math.max(0, pane.steps.indexOf(controls.steps[index]));
  else if (atEnd) slider.value = slider.max;
  if (first || before?.model.checksum !== state.model.checksum) await chooseStep(pane, index);
}

async function chooseStep(pane, index) {
  const slider = byId(`step-${index}`), step = pane.steps[Number(slider.value)];
  const shown = (step ?? pane.state.model.step).toLocaleString("en");
  byId(`step-said-${index}`).textContent = step === null ? `newest, ${shown}` : shown;
  slider.setAttribute("aria-valuetext", step === null ? `newest, step ${shown}` : `step ${shown}`);
  const asked = (pane.asked = (pane.asked ?? 0) + 1);
  let model = pane.state.model;
  if (step !== null) {
    const answer = await fetch(`${pane.url}model?step=${step}`);
    if (!answer.ok) { byId(`step-said-${index}`).textContent = `${shown} is gone`; return; }
    model = await answer.json();
  }
  if (asked !== pane.asked) return;  // the slider has moved on
  Object.assign(pane, { step, model });
  draw(pane, index);
  writeAddress();
}

// --- controls ---

function listen() {
  for (const [name, digits] of [["truncation", 2], ["at", 2], ["first", 0], ["count", 0], ["from", 0], ["to", 0]]) {
    const input = byId(name);
    input.addEventListener("input", () => {
      const value = Number(input.value);
      if (input.value === "" || !input.checkValidity() || Number.isNaN(value)) return;
      controls[name] = value;
      const said = byId(`${name}-said`);
      if (said) said.textContent = value.toFixed(digits);
      if (name === "count" || name === "first") drawTiles();
      later(name === "at" || name === "from" || name === "to" ? drawBetween : drawAll);
    });
  }
  panes.forEach((pane, index) => {
    byId(`step-${index}`).addEventListener("input", () => later(() => chooseStep(pane, index), `step-${index}`));
  });
  const move = (by) => {
    const input = byId("first");
    input.value = Math.max(0, controls.first + by * controls.count);
    input.dispatchEvent(new Event("input"));
  };
  byId("back").addEventListener("click", () => move(-1));
  byId("on").addEventListener("click", () => move(1));
  byId("keep-between").addEventListener("click", () => {
    panes.forEach((pane) => { if (pane.model) keep(favourite(pane, controls.from, true), true); });
  });
  byId("download").addEventListener("click", download);
  byId("clear").addEventListener("click", () => { if (confirm("Remove all favourites?")) store([]); });
  addEventListener("storage", (event) => { if (event.key === STORE) showKept(); });
  byId("closer-keep").addEventListener("click", () => { keep(closer.favourite); closerStar(); });
  for (const name of ["from", "to"]) {
    byId(`closer-${name}`).addEventListener("click", () => {
      byId(name).value = closer.favourite.seed;
      byId(name).dispatchEvent(new Event("input"));
      byId("closer").close();
      byId("at").focus();
    });
  }
}

const timers = {};
function later(act, name = act.name) {
  clearTimeout(timers[name]);
  timers[name] = setTimeout(() => { act(); writeAddress(); }, 60);
}

function readAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of ["truncation", "first", "count", "from", "to", "at"]) {
    const value = query.get(name), input = byId(name);
    if (value === null || value === "") continue;
    const before = input.value;
    input.value = value;
    if (input.value === "" || !input.checkValidity()) { input.value = before; continue; }
    controls[name] = Number(input.value);
    if (byId(`${name}-said`)) byId(`${name}-said`).textContent = controls[name].toFixed(2);
  }
  controls.steps = panes.map((pane, index) => { const step = query.get(`step${index}`); return step ? Number(step) : null; });
}

function writeAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of ["truncation", "first", "count", "from", "to", "at"]) query.set(name, controls[name]);
  panes.forEach((pane, index) => { if (pane.step != null) query.set(`step${index}`, pane.step); else query.delete(`step${index}`); });
  history.replaceState(null, "", `?${query}`);
}

// --- images ---

function sampleAddress(pane, seed, way) {
  const query = new URLSearchParams({ seed, truncation: controls.truncation.toFixed(2), model: pane.model.checksum });
  if (pane.step !== null) query.set("step", pane.step);
  if (way) { query.set("toward", controls.to); query.set("at", controls.at.toFixed(2)); }
  return `${pane.url}sample?${query}`;
}

// The model may have gone on while the page was open: look again, once.
function retried(image, pane, index) {
  image.addEventListener("error", () => {
    const now = Date.now();
    if (pane.looked && now - pane.looked < 3000) return;
    pane.looked = now;
    refresh(pane, index, false);
  });
}

function drawTiles() {
  panes.forEach((pane, index) => {
    const grid = byId(`grid-${index}`);
    while (grid.children.length > controls.count) grid.lastChild.remove();
    while (grid.children.length < controls.count) grid.append(tile(pane, index, grid));
    [...grid.children].forEach((figure, place) => {
      const seed = controls.first + place;
      figure.dataset.seed = seed;
      figure.querySelector("span").textContent = seed;
      figure.querySelector("img").alt = `sample of seed ${seed}`;
      figure.querySelector(".picture").setAttribute("aria-label", `Seed ${seed}: look closer`);
      figure.querySelector(".star").setAttribute("aria-label", `Keep seed ${seed}`);
    });
  });
}

function tile(pane, index, grid) {
  const figure = document.createElement("figure");
  figure.className = "tile";
  figure.innerHTML = '<button type="button" class="picture"><img></button><figcaption><span></span><button type="button" class="star" aria-pressed="false">☆</button></figcaption>';
  const image = figure.querySelector("img");
  image.width = grid.dataset.width;
  image.height = grid.dataset.height;
  retried(image, pane, index);
  figure.querySelector(".picture").addEventListener("click", () => { if (pane.model) lookCloser(pane, Number(figure.dataset.seed)); });
  figure.querySelector(".star").addEventListener("click", () => { if (pane.model) keep(favourite(pane, Number(figure.dataset.seed))); });
  return figure;
}

function drawAll() { panes.forEach((pane, index) => { if (pane.model) draw(pane, index); }); }
function drawBetween() { panes.forEach((pane, index) => { if (pane.model) drawWay(pane, index); }); }

function draw(pane, index) {
  for (const figure of byId(`grid-${index}`).children) setSource(figure.querySelector("img"), sampleAddress(pane, figure.dataset.seed));
  drawWay(pane, index);
  stars();
}

function drawWay(pane, index) {
  for (const [id, address] of [
    [`between-${index}`, sampleAddress(pane, controls.from, true)],
    [`from-${index}`, sampleAddress(pane, controls.from)],
    [`to-${index}`, sampleAddress(pane, controls.to)],
  ]) {
    const image = byId(id), grid = byId(`grid-${index}`);
    image.width = grid.dataset.width;
    image.height = grid.dataset.height;
    setSource(image, address);
  }
}

function setSource(image, address) {
  if (image.getAttribute("src") !== address) image.src = address;
}

// --- favourites ---

function favourite(pane, seed, way) {
  // The newest model goes on; a snapshot of the same step stays.
  const step = pane.step ?? (pane.state.snapshots.includes(pane.model.step) ? pane.model.step : null);
  const entry = { run: pane.id, url: pane.url, step, shown: pane.model.step, seed, truncation: controls.truncation, model: pane.model.checksum };
  return way ? { ...entry, toward: controls.to, at: controls.at } : entry;
}

const sameKey = (entry) => JSON.stringify([entry.run, entry.model, entry.seed, entry.truncation, entry.toward ?? null, entry.at ?? null]);

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch { return []; }
}

function store(entries) {
  localStorage.setItem(STORE, JSON.stringify(entries));
  showKept();
}

function keep(entry, only) {
  const entries = kept(), without = entries.filter((other) => sameKey(other) !== sameKey(entry));
  if (without.length === entries.length) store([...entries, entry]);
  else if (!only) store(without);
}

function isKept(entry, entries) { return entries.some((other) => sameKey(other) === sameKey(entry)); }

function stars() {
  const entries = kept();
  panes.forEach((pane, index) => {
    if (!pane.model) return;
    for (const figure of byId(`grid-${index}`).children) {
      const star = figure.querySelector(".star"), seed = Number(figure.dataset.seed), on = isKept(favourite(pane, seed), entries);
      star.textContent = on ? "★" : "☆";
      star.setAttribute("aria-pressed", on);
    }
  });
}

function showKept() {
  const entries = kept();
  byId("kept").replaceChildren(...entries.map((entry) => {
    const item = document.createElement("li"), image = new Image(), remove = document.createElement("button");
    const query = new URLSearchParams({ seed: entry.seed, truncation: entry.truncation.toFixed(2), model: entry.model });
    if (entry.step !== null) query.set("step", entry.step);
    if (entry.toward !== undefined) { query.set("toward", entry.toward); query.set("at", entry.at.toFixed(2)); }
    const name = entry.toward === undefined ? `seed ${entry.seed}` : `${entry.seed} → ${entry.toward} at ${entry.at.toFixed(2)}`;
    image.alt = `${name} of ${entry.run}`;
    image.addEventListener("error", () => item.classList.add("gone"));
    image.src = `${entry.url}sample?${query}`;
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${name} of ${entry.run}`);
    remove.addEventListener("click", () => keep(entry));
    item.append(image, `${entry.run}, ${name}, step ${entry.shown}${entry.truncation < 1 ? `, truncation ${entry.truncation}` : ""}`, remove);
    return item;
  }));
  byId("kept-count").textContent = entries.length ? `(${entries.length})` : "";
  byId("kept-help").hidden = entries.length > 0;
  byId("download").disabled = byId("clear").disabled = entries.length === 0;
  stars();
}

async function download() {
  const said = byId("kept-said"), button = byId("download");
  button.disabled = true;
  said.textContent = "Drawing and packing …";
  try {
    const answer = await post("/favourites.zip", JSON.stringify({ favourites: kept() }));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await answer.blob());
    link.download = "favourites.zip";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    said.textContent = "favourites.zip: the images, and a manifest to draw each again.";
  } catch (error) {
    said.textContent = error.message;
  }
  button.disabled = false;
}

// --- one sample, larger, beside its nearest training image ---

const closer = { favourite: null };

function closerStar() {
  byId("closer-keep").textContent = isKept(closer.favourite, kept()) ? "★ Kept" : "☆ Keep";
}

async function lookCloser(pane, seed) {
  const entry = (closer.favourite = favourite(pane, seed));
  const said = byId("closer-said"), nearest = byId("closer-nearest"), sample = byId("closer-sample");
  byId("closer-name").textContent = `${pane.name}, seed ${seed}`;
  sample.alt = `sample of seed ${seed}`;
  sample.src = sampleAddress(pane, seed);
  nearest.hidden = true;
  said.textContent = "looking for the nearest training image …";
  closerStar();
  byId("closer").showModal();
  const query = new URLSearchParams({ seeds: seed, truncation: controls.truncation.toFixed(2) });
  if (pane.step !== null) query.set("step", pane.step);
  let found = null;
  try { found = await (await fetch(`${pane.url}nearest?${query}`)).json(); } catch { /* told below */ }
  if (closer.favourite !== entry) return;
  const one = found?.nearest?.[0];
  if (!one) { said.textContent = `nearest training image not known: ${found?.reason ?? found?.error ?? "the server is away"}`; return; }
  nearest.src = `${pane.url}copy?frame=${one.frame}&copy=${one.copy}`;
  nearest.hidden = false;
  said.textContent = `nearest training image (${["as it is", "mirrored"][one.copy] ?? "augmented"}), LPIPS distance ${one.distance.toFixed(3)}`;
}
