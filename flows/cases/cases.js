"use strict";

// The page of an evaluation's cases: it is opened from a disk, and shows them with the viewer of the service's page.

import { CASE_COLUMNS, element, showFindings, showStructures } from "./answers.js";
import { choice, viewerOn, windowChoice } from "./controls.js";

const at = (id) => document.getElementById(id);
const cases = JSON.parse(at("cases").textContent);
const OVERLAYS = [["p", "Prediction", "prediction"], ["r", "Reference", "reference"], ["b", "Both", "prediction", "reference"], ["n", "None"]];
const OPACITY = 0.5;
const opacityOf = (layer) => (state.overlays.includes(layer) ? OPACITY : 0);
const state = { viewer: null, window: null, overlays: [], turn: 0, drawn: Promise.resolve() };
const awaited = new Map();

window.ctfoundryVolume = (name, text) => awaited.get(name)(text); // each file of a volume calls it

/** A volume's .nii.gz as a Blob; its file is a script. */
function volume(name) {
  return new Promise((done, failed) => {
    awaited.set(name, (text) => done(new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))])));
    const script = element("script", { src: `volumes/${name}.js` });
    script.onload = () => script.remove();
    script.onerror = () => failed(new Error(`volumes/${name}.js is not there; the folder must stay whole`));
    document.head.append(script);
  });
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const scoreOf = ({ kind, score }) => (kind === "segment" ? `mean Dice ${score.toFixed(3)}` : `${percent(score)} for its label`);

function overlay(...layers) {
  state.overlays = layers;
  for (const layer of ["reference", "prediction"]) state.viewer?.setOpacity(layer, opacityOf(layer));
}

async function draw(one, turn) {
  const names = Object.keys(one.masks);
  const [scan, ...masks] = await Promise.all([one.scan, ...names.map((name) => one.masks[name])].map(volume));
  if (turn !== state.turn) return;
  at("seen").hidden = at("answers").hidden = false;
  state.viewer ??= await viewerOn(at("canvas"), at("place"));
  await state.viewer.open(scan, state.window);
  const highest = Math.max(0, ...Object.keys(one.segmented?.structures ?? {}).map(Number));
  for (const [index, name] of names.entries()) await state.viewer.addLabels(name, masks[index], highest, opacityOf(name));
  at("overlays").hidden = names.length === 0;
  overlay(...state.overlays); // another may have been chosen meanwhile
  if (one.point_mm) state.viewer.moveTo(one.point_mm);
  tell(one, (hidden) => names.forEach((name) => state.viewer.showLabels(name, highest, hidden)));
}

function tell(one, hide) {
  const facts = { Task: one.part, Case: `${one.case}, ${one.rank}`, Patient: one.patient };
  if (one.kind === "segment") facts["Mean Dice"] = one.score.toFixed(3);
  else Object.assign(facts, { Label: one.label, "Calibrated probability of it": percent(one.score) });
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  at("findings").replaceChildren();
  at("structures").replaceChildren();
  if (one.segmented) showStructures(at("structures"), one.segmented, hide, CASE_COLUMNS);
  else showFindings(at("findings"), "The release's answer", one.classified);
}

/** One after another, and of several that were chosen meanwhile the last. */
function show(one, button) {
  const turn = (state.turn += 1);
  for (const other of document.querySelectorAll("#list button")) other.ariaPressed = String(other === button);
  at("status").textContent = "Reading the case.";
  at("error").hidden = true;
  state.drawn = state.drawn.then(async () => {
    if (turn !== state.turn) return;
    try {
      await draw(one, turn);
      if (turn === state.turn) at("status").textContent = `Shown: ${one.part}, ${one.rank}.`;
    } catch (error) {
      at("error").textContent = error.message;
      at("error").hidden = false;
      at("status").textContent = "The case is not shown.";
    }
  });
}

function list() {
  for (const part of new Set(cases.map((one) => one.part))) {
    const buttons = cases.filter((one) => one.part === part).map((one) => {
      const button = element("button", { type: "button" }, `${one.rank}: ${scoreOf(one)}`);
      button.addEventListener("click", () => show(one, button));
      return button;
    });
    at("list").append(element("div", { className: "tools" }, element("strong", {}, part), ...buttons));
  }
}

windowChoice(at("windows"), (window) => {
  state.window = window;
  state.viewer?.setWindow(window);
});
choice(at("overlays"), OVERLAYS, OVERLAYS[0], overlay);
list();
at("list").querySelector("button").click();
