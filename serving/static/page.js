"use strict";

// The page: a scan is chosen, drawn, and every route that the service has is asked about it, one after another.

import { downloadButton, element, showFindings, showNearest, showStructures, showWarnings } from "./answers.js";
import { Refused, Service, droppedFiles, scanOf } from "./sending.js";
import { Viewer, WINDOWS } from "./viewer.js";

const at = (id) => document.getElementById(id);
const service = new Service();
const state = { model: null, routes: {}, scan: null, named: "", other: null, mm: null, window: WINDOWS[1], turn: 0 };
const viewers = { first: null, second: null };

function say(text) {
  at("status").textContent = text;
}

function showError(error) {
  at("error").textContent = error instanceof Refused ? error.message : `the page failed: ${error.message}`;
  at("error").hidden = false;
  if (error.status === 401) at("access").hidden = false;
}

/** Do `work`; what goes wrong is shown in words. True where all went well. */
async function trying(work) {
  at("error").hidden = true;
  try {
    await work();
    return true;
  } catch (error) {
    showError(error);
    return false;
  } finally {
    at("sending").hidden = true;
  }
}

function sent(share) {
  at("progress").value = share;
  if (share === 1) say(`${state.doing}: sent, the service works on it.`);
}

function begin(what) {
  state.doing = what;
  at("sending").hidden = false;
  at("progress").value = 0;
  say(`${what}: sending.`);
}

/** Ask a route about the scan: a Blob. One in the PACS is named, and the body of its request is empty. */
async function ask(what, path, body = state.scan) {
  begin(what);
  const named = body === state.other ? "" : state.named;
  return service.ask(named ? `${path}${path.includes("?") ? "&" : "?"}${named}` : path, body, sent);
}

async function askJson(what, path, body) {
  return JSON.parse(await (await ask(what, path, body)).text());
}

async function learn() {
  state.model = await service.askJson("model");
  state.routes = (await service.askJson("docs.json")).paths;
  at("name").textContent = state.model.name;
  document.title = state.model.name;
  at("access").hidden = !service.token;
  at("from-pacs").hidden = !state.model.pacs.reads;
}

const has = (path) => path in state.routes;
const heads = (sees) => Object.entries(state.model.heads).filter(([, what]) => what === sees).map(([part]) => part);

async function viewerOn(id, place, moved) {
  const viewer = new Viewer(at(id), ({ mm, hu }) => {
    const value = Number.isFinite(hu) ? `${Math.round(hu)} HU` : "outside";
    at(place).textContent = `R ${mm[0].toFixed(1)}  A ${mm[1].toFixed(1)}  S ${mm[2].toFixed(1)} mm: ${value}`;
    moved(mm);
  });
  await viewer.attach();
  return viewer;
}

const openFiles = (files) => open(() => scanOf(files, (done, of) => say(`Packing file ${done} of ${of}.`)), opened(files));

function openNamed() {
  const [study, series] = ["study", "series"].map((id) => at(id).value.trim());
  open(async () => {
    state.named = new URLSearchParams({ study, series }).toString();
    return new Blob([]);
  }, () => "Open: a series of the PACS.");
}

/** `scan` gives what is sent for it; `told`, in words, what is open. */
async function open(scan, told) {
  const turn = (state.turn += 1);
  service.cancel();
  await trying(async () => {
    if (state.model === null) await learn();
    close();
    say("Reading the files.");
    state.scan = await scan();
    const preview = await ask("Images", "preview");
    if (turn !== state.turn) return;
    at("seen").hidden = false;
    viewers.first ??= await viewerOn("canvas", "place", (mm) => { state.mm = mm; });
    await viewers.first.open(preview, state.window);
    at("canvas").focus({ preventScroll: true });
    await askAll(turn);
  });
  if (turn !== state.turn) return;
  say(state.scan && !at("seen").hidden ? told() : "No scan is open.");
}

// Not by name: names of files hold patients and UIDs.
const opened = (files) => () => `Open: ${files.length} ${files.length === 1 ? "file" : "files"}, ${(state.scan.size / 1e6).toFixed(1)} MB.`;

function close() {
  state.scan = state.other = state.mm = null;
  state.named = "";
  for (const id of ["seen", "answers", "beside", "ask-point", "saliency", "locate", "opacity-of-labels"]) at(id).hidden = true;
  for (const id of ["warnings", "findings", "points", "structures", "nearest", "downloads"]) at(id).replaceChildren();
  at("find-point").disabled = true;
}

/** Ask all that needs nothing but the scan. One refusal does not keep the others from being asked. */
async function askAll(turn) {
  const steps = [];
  if (heads("scan").length) steps.push(classify);
  if (Object.keys(state.model.segments).length) steps.push(segment);
  if (steps.length === 0) steps.push(embed);
  if (has("/retrieve") && state.model.index) steps.push(retrieve);
  const failures = [];
  for (const step of steps) {
    if (turn !== state.turn) return;
    await step(turn).catch((error) => failures.push(error));
  }
  if (turn !== state.turn) return;
  offerMore();
  if (failures.length) throw failures[0];
}

/** An answer's warnings come before the answer. */
function beginAnswers(answer, name) {
  at("answers").hidden = false;
  showWarnings(at("warnings"), answer.found);
  const content = new Blob([JSON.stringify(answer, null, 1)], { type: "application/json" });
  at("downloads").append(downloadButton(`Save ${name}.json`, `${name}.json`, async () => content));
}

async function embed(turn) {
  const answer = await askJson("Embedding", "embed");
  if (turn === state.turn) beginAnswers(answer, "embedding");
}

async function classify(turn) {
  const answer = await askJson("Findings", "classify");
  if (turn !== state.turn) return;
  beginAnswers(answer, "findings");
  showFindings(at("findings"), "Findings", answer);
}

async function segment(turn) {
  for (const head of Object.keys(state.model.segments).slice(0, 1)) {
    const query = `segment?head=${encodeURIComponent(head)}`;
    const answer = await askJson("Structures", query);
    if (turn !== state.turn) return;
    beginAnswers(answer, "structures");
    const highest = Math.max(...Object.keys(answer.structures).map(Number));
    const labels = await ask("Structures on the images", `${query}&form=nifti`);
    if (turn !== state.turn) return;
    await viewers.first.addLabels(labels, highest, Number(at("opacity").value));
    showStructures(at("structures"), answer, (hidden) => viewers.first.showLabels(highest, hidden));
    at("opacity-of-labels").hidden = false;
    at("downloads").append(downloadButton("Save structures as NIfTI", "labels.nii.gz", async () => labels));
    if (answer.found.kind !== "dicom") continue;
    at("downloads").append(segButton(query));
    if (state.model.pacs.stores) at("downloads").append(storeButton(query));
  }
}

function segButton(query) {
  return downloadButton("Save structures as DICOM SEG", "labels.dcm", async () => {
    let blob = null;
    await trying(async () => { blob = await ask("DICOM SEG", `${query}&form=dicom`); });
    say("");
    return blob;
  });
}

function storeButton(query) {
  const made = element("button", { type: "button" }, "Store structures in the PACS");
  made.addEventListener("click", async () => {
    const done = await trying(() => ask("DICOM SEG", `${query}&form=dicom&store=true`));
    say(done ? "The structures are stored in the scan's study." : "Not stored.");
  });
  return made;
}

async function retrieve(turn) {
  const answer = await askJson("Nearest cases", "retrieve");
  if (turn === state.turn) showNearest(at("nearest"), answer);
}

function offerMore() {
  at("ask-point").hidden = heads("point").length === 0;
  at("locate").hidden = !(has("/locate") && state.model.sees === "crop");
  const seen = has("/saliency") ? Object.keys(state.model.heads) : [];
  at("saliency").hidden = seen.length === 0;
  at("saliency-head").replaceChildren(...seen.map((part) => new Option(part, part)));
}

const point = () => state.mm.map((mm) => mm.toFixed(2)).join(",");

async function askPoint() {
  const asked = point();
  const done = await trying(async () => {
    const answer = await askJson("Answer at a point", `classify?point_mm=${asked}`);
    const seen = Object.fromEntries(Object.entries(answer.answers).filter(([part]) => heads("point").includes(part)));
    at("answers").hidden = false;
    showWarnings(at("warnings"), answer.found);
    showFindings(at("points"), `At ${asked} mm`, { answers: seen, not_answered: {} });
  });
  say(done ? `Answered at ${asked} mm.` : "Not answered.");
}

async function showSaliency() {
  const head = at("saliency-head").value;
  const sees = heads("point").includes(head) ? `&point_mm=${point()}` : "";
  const done = await trying(async () => {
    await viewers.first.addMap(await ask("Saliency", `saliency?head=${encodeURIComponent(head)}${sees}&form=nifti`));
  });
  const where = sees ? " of the answer at the crosshair" : "";
  say(done ? `Saliency${where} is shown: the upper half of its values, in viridis.` : "No saliency is shown.");
}

async function openOther(files) {
  const done = await trying(async () => {
    state.other = await scanOf(files);
    const preview = await ask("Second scan", "preview", state.other);
    at("beside").hidden = false;
    viewers.second ??= await viewerOn("other-canvas", "other-place", () => {});
    await viewers.second.open(preview, state.window);
    at("find-point").disabled = false;
  });
  say(done ? "The second scan is open." : "The second scan is not open.");
}

async function findPoint() {
  const form = new FormData();
  if (!state.named) form.append("scan", state.scan, "scan");
  form.append("other", state.other, "other");
  const done = await trying(async () => {
    const { places, limits } = await askJson("Place in the second scan", `locate?point_mm=${point()}`, form);
    if (places.length === 0) throw new Refused("the place was not found in the second scan");
    viewers.second.moveTo(places[0].point_mm);
    at("points").textContent = `In the second scan: ${places[0].point_mm.map((mm) => mm.toFixed(1)).join(", ")} mm, similarity ${places[0].similarity.toFixed(3)}. ${limits.join(" ")}`;
    at("answers").hidden = false;
  });
  say(done ? "The second scan's crosshair is at the place." : "Not found.");
}

function choose(window) {
  state.window = window;
  for (const button of at("windows").children) button.ariaPressed = String(button.dataset.key === window[0]);
  for (const viewer of Object.values(viewers)) viewer?.setWindow(window);
}

function makeWindows() {
  for (const window of WINDOWS) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: `${window[0]} ${window[1]}`, title: `${window[2]} to ${window[3]} HU` });
    button.dataset.key = window[0];
    button.addEventListener("click", () => choose(window));
    at("windows").append(button);
  }
  choose(state.window);
}

function listen() {
  document.addEventListener("keydown", (event) => {
    const window = WINDOWS.find(([key]) => key === event.key);
    const typing = event.target instanceof HTMLInputElement && ["password", "text"].includes(event.target.type);
    if (window && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) choose(window);
  });
  for (const kind of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(kind, (event) => { // anywhere: a file dropped beside the zone must not replace the page
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", async (event) => {
    await trying(async () => openFiles(await droppedFiles(event.dataTransfer)));
  });
  for (const [id, work] of [["files", openFiles], ["folder", openFiles], ["other", openOther]]) {
    at(id).addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // so that the same one can be chosen again
      if (files.length) work(files);
    });
  }
  at("enter").addEventListener("click", () => {
    service.token = at("token").value.trim();
    trying(learn);
  });
  at("token").addEventListener("keydown", (event) => event.key === "Enter" && at("enter").click());
  at("fetch").addEventListener("click", openNamed);
  for (const id of ["study", "series"]) at(id).addEventListener("keydown", (event) => event.key === "Enter" && openNamed());
  at("cancel").addEventListener("click", () => service.cancel());
  at("opacity").addEventListener("input", (event) => viewers.first.setOpacity("labels", Number(event.target.value)));
  at("ask-point").addEventListener("click", askPoint);
  at("show-saliency").addEventListener("click", showSaliency);
  at("find-point").addEventListener("click", findPoint);
}

makeWindows();
listen();
trying(learn);
