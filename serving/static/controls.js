"use strict";

// What stands round the images: choices by button and key, and the crosshair's place in words.

import { element } from "./answers.js";
import { Viewer, WINDOWS } from "./viewer.js";

/** A viewer on a canvas. The crosshair's place is told in `place`, and to `moved`, RAS mm. */
export async function viewerOn(canvas, place, moved = () => {}) {
  const viewer = new Viewer(canvas, ({ mm, hu }) => {
    const value = Number.isFinite(hu) ? `${Math.round(hu)} HU` : "outside";
    place.textContent = `R ${mm[0].toFixed(1)}  A ${mm[1].toFixed(1)}  S ${mm[2].toFixed(1)} mm: ${value}`;
    moved(mm);
  });
  await viewer.attach();
  return viewer;
}

/** Buttons of which one is pressed, each also by its key. `options`: key, name, and what `pick` is given.
 * `first` is picked now. */
export function choice(place, options, first, pick) {
  const choose = ([key, , ...rest]) => {
    for (const button of place.children) button.ariaPressed = String(button.dataset.key === key);
    pick(...rest);
  };
  for (const option of options) {
    const button = element("button", { type: "button" }, `${option[0]} ${option[1]}`);
    button.dataset.key = option[0];
    button.addEventListener("click", () => choose(option));
    place.append(button);
  }
  document.addEventListener("keydown", (event) => {
    const option = options.find(([key]) => key === event.key);
    const typing = event.target instanceof HTMLInputElement && ["password", "text"].includes(event.target.type);
    if (option && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) choose(option);
  });
  choose(first);
}

/** The windows of CT as such buttons; `pick` is given HU from black to white. */
export function windowChoice(place, pick) {
  choice(place, WINDOWS, WINDOWS[1], (low, high) => pick([low, high]));
  for (const [index, [, , low, high]] of WINDOWS.entries()) place.children[index].title = `${low} to ${high} HU`;
}
