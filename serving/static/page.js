"use strict";

// The page: a scan is chosen, drawn, and every route that the service has is asked about it, one after another.

import { downloadButton, element, showFindings, showNearest, showStructures, showWarnings } from "./answers.js";
import { viewerOn, windowChoice } from "./controls.js";
import { Refused, Service, droppedFiles, scanOf } from "./sending.js";

const at = (id) => document.getElementById(id);
const service = new Service();
// `turn` counts scans: what was begun for an earlier one says nothing any more. `segmented`: a head's answer and map.
const state = {
  model: null, routes: {}, scan: null, named: "", other: null, mm: null, window: null, turn: 0, running: 0,
  segmented: new Map(), shown: "",
};
const viewers = { first: null, second: null };

function say(text) {
  at("status").textContent = text;
}

function showError(error) {
  at("error").textContent = error instanceof Refused ? error.message : `the page failed: ${error.message}`;
  at("error").hidden = false;
  if (error.status === 401) at("access").hidden = false;
}

/** Do `work`, and say how it went; what goes wrong is shown in words. True where all went well. */
async function trying(work, done = "", otherwise = "") {
  const turn = state.turn;
  at("error").hidden = true;
  let wrong = null;
  try {
    await work();
  } catch (error) {
    wrong = error;
  }
  if (turn !== state.turn) return false;
  if (wrong) showError(wrong);
  const told = wrong ? otherwise : done;
  if (told) say(typeof told === "function" ? told() : told);
  return !wrong;
}

function sent(share) {
  at("progress").value = share;
  if (share === 1) say(`${state.doing}: sent, the service works on it.`);
}

/** Ask a route about the scan: a Blob. One in the PACS is named, and the body of its request is empty. */
async function ask(what, path, body = state.scan) {
  state.doing = what;
  state.running += 1;
  at("sending").hidden = false;
  at("progress").value = 0;
  say(`${what}: sending.`);
  const named = body === state.other ? "" : state.named;
  try {
    return await service.ask(named ? `${path}${path.includes("?") ? "&" : "?"}${named}` : path, body, sent);
  } finally {
    state.running -= 1;
    at("sending").hidden = state.running === 0;
  }
}

async function askJson(what, path, body) {
  return JSON.parse(await (await ask(what, path, body)).text());
}

async function learn() {
  const [model, documented] = await Promise.all(["model", "docs.json"].map((path) => service.askJson(path)));
  state.model = model;
  state.routes = documented.paths;
  at("name").textContent = state.model.name;
  document.title = state.model.name;
  at("access").hidden = !service.token;
  at("from-pacs").hidden = !state.model.pacs.reads;
  const segmenting = Object.keys(state.model.segments);
  at("segment-head").replaceChildren(...segmenting.map((part) => new Option(part, part)));
  at("segmenting").hidden = segmenting.length < 2;
}

const has = (path) => path in state.routes;
const heads = (sees) => Object.entries(state.model.heads).filter(([, what]) => what === sees).map(([part]) => part);

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
  const words = () => (state.scan && !at("seen").hidden ? told() : "No scan is open.");
  await trying(async () => {
    if (state.model === null) await learn();
    if (turn !== state.turn) return;
    close();
    say("Reading the files.");
    const read = await scan();
    if (turn !== state.turn) return; // packing takes a while; the scan must be that of the images
    state.scan = read;
    const preview = await ask("Images", "preview");
    if (turn !== state.turn) return;
    at("seen").hidden = false;
    viewers.first ??= await viewerOn(at("canvas"), at("place"), (mm) => { state.mm = mm; });
    await viewers.first.open(preview, state.window);
    at("canvas").focus({ preventScroll: true });
    await askAll(turn);
  }, words, words);
}

// Not by name: names of files hold patients and UIDs.
const opened = (files) => () => `Open: ${files.length} ${files.length === 1 ? "file" : "files"}, ${(state.scan.size / 1e6).toFixed(1)} MB.`;

function close() {
  state.scan = state.other = state.mm = null;
  state.named = state.shown = "";
  state.segmented = new Map();
  at("segment-head").disabled = false;
  for (const id of ["seen", "answers", "beside", "ask-point", "saliency", "locate", "opacity-of-labels"]) at(id).hidden = true;
  for (const id of ["warnings", "findings", "points", "structures", "structures-saved", "nearest", "downloads"]) at(id).replaceChildren();
  at("find-point").disabled = true;
}

/** Ask all that needs nothing but the scan. One refusal does not keep the others from being asked, the user does. */
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
    if (failures.at(-1)?.cancelled) break;
  }
  if (turn !== state.turn) return;
  offerMore();
  if (failures.length) throw failures[0];
}

/** An answer's warnings come before the answer; it can be saved. */
function beginAnswers(answer, name, place = at("downloads")) {
  at("answers").hidden = false;
  showWarnings(at("warnings"), answer.found);
  const content = new Blob([JSON.stringify(answer, null, 1)], { type: "application/json" });
  place.append(downloadButton(`Save ${name}.json`, `${name}.json`, async () => content));
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

/** What the chosen head segments, asked for once a scan. */
async function segment(turn) {
  const head = at("segment-head").value, kept = state.segmented;
  at("segment-head").disabled = true;
  try {
    if (!kept.has(head)) kept.set(head, await segmentsOf(head));
    if (turn === state.turn) await showSegments(head, kept.get(head));
  } finally {
    if (turn === state.turn) at("segment-head").disabled = false;
  }
}

const segmentPath = (head) => `segment?head=${encodeURIComponent(head)}`;

async function segmentsOf(head) {
  const answer = await askJson("Structures", segmentPath(head));
  return { answer, labels: await ask("Structures on the images", `${segmentPath(head)}&form=nifti`) };
}

async function showSegments(head, { answer, labels }) {
  const place = at("structures-saved"), highest = Math.max(...Object.keys(answer.structures).map(Number));
  await viewers.first.addLabels("labels", labels, highest, Number(at("opacity").value));
  state.shown = head;
  showStructures(at("structures"), answer, (hidden) => viewers.first.showLabels("labels", highest, hidden));
  at("opacity-of-labels").hidden = false;
  place.replaceChildren();
  beginAnswers(answer, "structures", place);
  place.append(downloadButton("Save structures as NIfTI", "labels.nii.gz", async () => labels));
  if (answer.found.kind !== "dicom") return;
  place.append(segButton(segmentPath(head)));
  if (state.model.pacs.stores) place.append(storeButton(segmentPath(head)));
}

async function showHead() {
  const head = at("segment-head").value, turn = state.turn;
  const done = await trying(() => segment(turn), `The structures of ${head} are shown.`, "No other structures are shown.");
  if (!done && turn === state.turn && state.shown) at("segment-head").value = state.shown;
}

function segButton(query) {
  return downloadButton("Save structures as DICOM SEG", "labels.dcm", async () => {
    let blob = null;
    await trying(async () => { blob = await ask("DICOM SEG", `${query}&form=dicom`); }, "The DICOM SEG is made.", "No DICOM SEG.");
    return blob;
  });
}

function storeButton(query) {
  const made = element("button", { type: "button" }, "Store structures in the PACS");
  made.addEventListener("click", () => trying(
    () => ask("DICOM SEG", `${query}&form=dicom&store=true`), "The structures are stored in the scan's study.", "Not stored."));
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
  await trying(async () => {
    const answer = await askJson("Answer at a point", `classify?point_mm=${asked}`);
    const seen = Object.fromEntries(Object.entries(answer.answers).filter(([part]) => heads("point").includes(part)));
    at("answers").hidden = false;
    showWarnings(at("warnings"), answer.found);
    showFindings(at("points"), `At ${asked} mm`, { answers: seen, not_answered: {} });
  }, `Answered at ${asked} mm.`, "Not answered.");
}

async function showSaliency() {
  const head = at("saliency-head").value;
  const sees = heads("point").includes(head) ? `&point_mm=${point()}` : "";
  const where = sees ? " of the answer at the crosshair" : "";
  await trying(async () => {
    await viewers.first.addMap(await ask("Saliency", `saliency?head=${encodeURIComponent(head)}${sees}&form=nifti`));
  }, `Saliency${where} is shown: the upper half of its values, in viridis.`, "No saliency is shown.");
}

async function openOther(files) {
  const turn = state.turn;
  await trying(async () => {
    const other = await scanOf(files);
    if (turn !== state.turn) return;
    state.other = other;
    const preview = await ask("Second scan", "preview", other);
    at("beside").hidden = false;
    viewers.second ??= await viewerOn(at("other-canvas"), at("other-place"));
    await viewers.second.open(preview, state.window);
    at("find-point").disabled = false;
  }, "The second scan is open.", "The second scan is not open.");
}

async function findPoint() {
  const form = new FormData();
  if (!state.named) form.append("scan", state.scan, "scan");
  form.append("other", state.other, "other");
  await trying(async () => {
    const { places, limits } = await askJson("Place in the second scan", `locate?point_mm=${point()}`, form);
    if (places.length === 0) throw new Refused("the place was not found in the second scan");
    viewers.second.moveTo(places[0].point_mm);
    at("points").textContent = `In the second scan: ${places[0].point_mm.map((mm) => mm.toFixed(1)).join(", ")} mm, similarity ${places[0].similarity.toFixed(3)}. ${limits.join(" ")}`;
    at("answers").hidden = false;
  }, "The second scan's crosshair is at the place.", "Not found.");
}

/** Only the files of a drop: text or a link is none, and the scan that is open stays. */
async function dropped(transfer) {
  const files = await droppedFiles(transfer);
  if (files.length === 0) throw new Refused("no file was dropped; drop a zip, a NIfTI volume, DICOM files or their folder");
  openFiles(files);
}

function listen() {
  for (const kind of ["dragover", "drop", "dragleave"]) {
    document.addEventListener(kind, (event) => { // anywhere: a file dropped beside the zone must not replace the page
      event.preventDefault();
      at("drop").classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", (event) => trying(() => dropped(event.dataTransfer)));
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
  at("segment-head").addEventListener("change", showHead);
  at("ask-point").addEventListener("click", askPoint);
  at("show-saliency").addEventListener("click", showSaliency);
  at("find-point").addEventListener("click", findPoint);
}

windowChoice(at("windows"), (window) => {
  state.window = window;
  for (const viewer of Object.values(viewers)) viewer?.setWindow(window);
});
listen();
trying(learn);
