// What every page does: choices that submit themselves, buttons that post, the form that starts a training.
"use strict";

addEventListener("change", (event) => {
  const select = event.target.closest("select[data-submits]");
  if (select) select.form.requestSubmit();
});

// The end of the log is what matters.
addEventListener("toggle", (event) => {
  const log = event.target.querySelector?.("pre");
  if (log) log.scrollTop = log.scrollHeight;
}, true);

// A part that comes again keeps what was opened in it.
const opened = {};
document.addEventListener("htmx:beforeSwap", ({ detail: { target } }) => {
  opened[target.id] = [...target.querySelectorAll("details")].map((details) => details.open);
});
document.addEventListener("htmx:load", ({ detail: { elt } }) => {
  elt.querySelectorAll("details").forEach((details, place) => { if (opened[elt.id]?.[place]) details.open = true; });
});

async function post(address, body) {
  const answer = await fetch(address, { method: "POST", body, headers: { Accept: "application/json, text/html" , "HX-Request": "true" } });
  if (answer.ok) return answer;
  let said = `the server answered ${answer.status}`;
  try { said = (await answer.json()).error; } catch { /* not ours */ }
  throw new Error(said);
}

// --- stop and go on ---

async function act(element, body) {
  const actions = element.closest("#actions");
  for (const button of actions.querySelectorAll("button")) button.disabled = true;
  try {
    const answer = await post(element.dataset.post, body);
    actions.outerHTML = await answer.text();
    htmx.process(document.getElementById("actions"));
    document.dispatchEvent(new Event("training-changed"));
  } catch (error) {
    for (const button of actions.querySelectorAll("button")) button.disabled = false;
    actions.querySelector(".said").textContent = error.message;
  }
}

addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) act(button);
});

addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-post]");
  if (!form) return;
  event.preventDefault();
  act(form, JSON.stringify({ steps: form.elements.steps.valueAsNumber }));
});

// --- an upload ---

const upload = document.getElementById("upload");
upload?.addEventListener("submit", (event) => {
  event.preventDefault();
  const said = document.getElementById("upload-said"), sent = document.getElementById("sent");
  const button = upload.querySelector("button"), file = upload.elements.file.files[0];
  if (!file) { said.textContent = "Choose a photo or clip first."; upload.elements.file.focus(); return; }
  if (file.size > Number(upload.dataset.most)) { said.textContent = `The file is larger than ${upload.dataset.most >> 20} MB.`; return; }
  const settings = new URLSearchParams({ name: file.name });
  for (const name of ["method", "preset", "steps"]) {
    if (upload.elements[name].value) settings.set(name, upload.elements[name].value);
  }
  const request = new XMLHttpRequest();  // fetch does not tell how much was sent
  request.open("POST", `/trainings?${settings}`);
  request.responseType = "json";
  request.setRequestHeader("Accept", "application/json");
  request.upload.onprogress = (at) => { sent.value = at.loaded / at.total; };
  request.onloadend = () => {
    if (request.status === 201) { location.href = request.response.url; return; }
    button.disabled = false;
    sent.hidden = true;
    said.textContent = request.response?.error ?? "The upload was cut off: is the server still there?";
  };
  button.disabled = true;
  sent.hidden = false;
  said.textContent = "Sending and looking at it …";
  request.send(file);
});
