"use strict";

// The service's answers as elements. Whatever it says is put in as text.

import { colourOf } from "./viewer.js";

/** An element with properties and children; strings become text. */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const rate = ({ value, low, high }) => `${percent(value)} (95 % interval ${percent(low)} to ${percent(high)})`;

/** Lines of `found.warnings`. */
export function showWarnings(place, found) {
  place.replaceChildren(...found.warnings.map((line) => element("p", { className: "warning" }, `Warning: ${line}`)));
}

/** Answers of heads, as `/classify` gives them. */
export function showFindings(place, title, classified) {
  const answers = Object.entries(classified.answers).map(([part, answer]) => finding(part, answer));
  const others = Object.entries(classified.not_answered).map(([part, why]) =>
    element("p", { className: "hint" }, `${part} gave no answer: ${why}`));
  place.replaceChildren(element("h3", {}, title), ...answers, ...others);
}

function finding(part, answer) {
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).map(([name, share]) =>
    element("tr", {}, element("th", { scope: "row" }, name),
      element("td", {}, element("meter", { value: share, ariaLabel: name })),
      element("td", { className: "number" }, percent(share))));
  const told = element("div", { className: "answer" }, element("h3", {}, `${part}: ${answer.answer}`),
    element("table", {}, element("caption", {}, "Calibrated probability"), element("tbody", {}, ...rows)));
  if (answer.operating_point) told.append(operatingPoint(answer.operating_point));
  told.append(element("p", { className: "hint" }, `Area under the ROC curve on test patients: ${auc(answer.auc)}.`));
  told.append(limits(answer.limits));
  return told;
}

const auc = ({ value, low, high }) => `${value.toFixed(3)} (95 % interval ${low.toFixed(3)} to ${high.toFixed(3)})`;

function operatingPoint(point) {
  const lines = [
    `Threshold ${percent(point.threshold)}, chosen for a specificity of ${percent(point.wanted_specificity)}.`,
    `On test patients: sensitivity ${rate(point.sensitivity)}, specificity ${rate(point.specificity)}.`,
  ];
  return element("p", { className: "hint" }, lines.join(" "));
}

function limits(lines) {
  return element("ul", { className: "hint" }, ...lines.map((line) => element("li", {}, line)));
}

const inMl = (volume) => volume.toFixed(1);
const inDice = (dice) => (dice === null ? "" : dice.toFixed(3));
const COLUMNS = [["ml", ({ volume_ml }) => inMl(volume_ml)], ["Dice on test scans", ({ dice }) => inDice(dice)]];

/** Of a case whose reference is known: columns of its structures. */
export const CASE_COLUMNS = [
  ["Reference ml", ({ reference_ml }) => inMl(reference_ml)], ["Prediction ml", ({ volume_ml }) => inMl(volume_ml)],
  ["Dice", ({ dice }) => inDice(dice)],
];

const isThere = ({ volume_ml, reference_ml = 0 }) => volume_ml > 0 || reference_ml > 0;

/** Structures, as `/segment` gives them: a legend with volumes. `changed` is told the values that are hidden;
 * `columns`: title, and the text of a structure. */
export function showStructures(place, segmented, changed, columns = COLUMNS) {
  const hidden = new Set(), boxes = [];
  const row = ([value, structure]) => {
    const box = element("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(Number(value));
      else hidden.add(Number(value));
      changed(hidden);
    });
    boxes.push(box);
    const swatch = element("span", { className: "swatch" });
    swatch.style.backgroundColor = `rgb(${colourOf(Number(value)).join(" ")})`;
    return element("tr", {}, element("td", {}, element("label", {}, box, swatch, structure.name)),
      ...columns.map(([, text]) => element("td", { className: "number" }, text(structure))));
  };
  const rows = Object.entries(segmented.structures).filter(([, structure]) => isThere(structure)).map(row);
  const titles = ["Structure", ...columns.map(([title]) => title)].map((title) => element("th", { scope: "col" }, title));
  const absent = Object.values(segmented.structures).filter((structure) => !isThere(structure)).map(({ name }) => name);
  place.replaceChildren(element("h3", {}, `Structures: ${segmented.part}`), ...switches(boxes),
    element("div", { className: "scroll" },
      element("table", {}, element("thead", {}, element("tr", {}, ...titles)), element("tbody", {}, ...rows))),
    ...(absent.length ? [element("p", { className: "hint" }, `Not found: ${absent.join(", ")}.`)] : []), limits(segmented.limits));
}

function switches(boxes) {
  const all = (checked) => () => boxes.filter((box) => box.checked !== checked).forEach((box) => box.click());
  const button = (text, checked) => {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", all(checked));
    return made;
  };
  return [element("div", { className: "tools" }, button("Show all", true), button("Hide all", false))];
}

/** Nearest cases, as `/retrieve` gives them. */
export function showNearest(place, { nearest }) {
  const rows = nearest.map(({ case: name, similarity, labels }) => element("tr", {}, element("td", {}, name),
    element("td", { className: "number" }, similarity.toFixed(3)),
    element("td", {}, Object.entries(labels ?? {}).map(([label, value]) => `${label}: ${value}`).join(", "))));
  const head = element("tr", {}, ...["Case", "Similarity", "Labels"].map((name) => element("th", { scope: "col" }, name)));
  place.replaceChildren(element("h3", {}, "Nearest cases"),
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

/** A button that saves what `get` gives, a Blob. */
export function downloadButton(text, name, get) {
  const made = element("button", { type: "button" }, text);
  made.addEventListener("click", async () => {
    const blob = await get();
    if (!blob) return;
    const url = URL.createObjectURL(blob);
    element("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000); // the browser may still be reading it
  });
  return made;
}
