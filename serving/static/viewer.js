"use strict";

// NiiVue, set up for CT: three planes, windows in HU, labels in colours that all can tell apart.

/** Key, name, and HU from black to white. */
export const WINDOWS = [
  ["1", "Lung", -1350, 150],
  ["2", "Mediastinum", -160, 240],
  ["3", "Bone", -450, 1050],
  ["4", "Brain", 0, 80],
  ["5", "Liver", -25, 125],
  ["6", "Full", -1000, 1500],
];

// Okabe and Ito, without black.
export const COLOURS = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];
const MOVES = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
};

const SHADES = [[0, 1], [255, 0.5], [0, 0.6]]; // as they are, then mixed with white, then with black

/** The colour of a label's value, from 1. */
export function colourOf(value) {
  const [ground, share] = SHADES[Math.floor((value - 1) / COLOURS.length) % SHADES.length];
  return COLOURS[(value - 1) % COLOURS.length].map((channel) => Math.round(share * channel + (1 - share) * ground));
}

/** A colour for every value up to the highest; the hidden ones are clear. */
function lookup(highest, hidden) {
  const values = Array.from({ length: highest + 1 }, (_, value) => value);
  const of = (channel) => values.map((value) => (value === 0 ? 0 : colourOf(value)[channel]));
  const A = values.map((value) => (value === 0 || hidden.has(value) ? 0 : 255));
  return { R: of(0), G: of(1), B: of(2), A, I: values, labels: values.map(() => "") };
}

export class Viewer {
  #canvas;
  #nv;
  #layers = new Map();

  /** `moved` is told the place of the crosshair, RAS mm, and the HU there. */
  constructor(canvas, moved) {
    this.#canvas = canvas;
    const { Niivue, SHOW_RENDER } = window.niivue;
    this.#nv = new Niivue({
      isRadiologicalConvention: true, isResizeCanvas: true, dragAndDropEnabled: false, logLevel: "error",
      multiplanarShowRender: SHOW_RENDER.NEVER, crosshairColor: [0.94, 0.89, 0.26, 0.8], crosshairWidth: 0.5, crosshairWidthUnit: "percent",
      backColor: [0, 0, 0, 1], loadingText: "", isColorbar: false, tileMargin: 2, showLegend: false,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    });
    this.#nv.onLocationChange = (at) => moved({ mm: [...at.mm].slice(0, 3), hu: at.values[0]?.value });
    canvas.addEventListener("keydown", (event) => this.#key(event), true);
  }

  async attach() {
    await this.#nv.attachToCanvas(this.#canvas);
  }

  /** Draw a scan, a .nii.gz Blob in HU, alone. */
  async open(blob, window) {
    this.#layers.clear();
    const [low, high] = window;
    await this.#loaded(blob, async (url) => this.#nv.loadVolumes(
      [{ url, name: "scan.nii.gz", colormap: "gray", cal_min: low, cal_max: high, trustCalMinMax: false }]));
    this.setWindow(window);
    this.#nv.createOnLocationChange();
  }

  /** HU from black to white. */
  setWindow([low, high]) {
    const scan = this.#nv.volumes[0];
    if (!scan || (scan.cal_min === low && scan.cal_max === high)) return; // each update draws anew, which may take seconds
    [scan.cal_min, scan.cal_max] = [low, high];
    this.#nv.updateGLVolume();
  }

  /** Draw a label map over the scan, as a layer of this name. */
  async addLabels(layer, blob, highest, opacity) {
    await this.#add(layer, blob, { opacity });
    this.showLabels(layer, highest, new Set());
  }

  showLabels(layer, highest, hidden) {
    this.#layers.get(layer).setColormapLabel(lookup(highest, hidden));
    this.#nv.updateGLVolume();
  }

  /** Draw a map of weights over the scan, its upper half only. */
  async addMap(blob) {
    await this.#add("map", blob, { opacity: 0.5, colormap: "viridis" });
    const map = this.#layers.get("map");
    map.cal_min = (map.global_min + map.global_max) / 2;
    map.cal_max = map.global_max;
    this.#nv.updateGLVolume();
  }

  setOpacity(layer, opacity) {
    const volume = this.#layers.get(layer);
    if (volume && volume.opacity !== opacity) this.#nv.setOpacity(this.#nv.volumes.indexOf(volume), opacity);
  }

  remove(layer) {
    const volume = this.#layers.get(layer);
    if (volume) this.#nv.removeVolume(volume);
    this.#layers.delete(layer);
  }

  /** Put the crosshair at RAS mm. */
  moveTo(mm) {
    this.#nv.scene.crosshairPos = this.#nv.mm2frac(mm);
    this.#nv.drawScene();
    this.#nv.createOnLocationChange();
  }

  async #add(layer, blob, options) {
    this.remove(layer);
    await this.#loaded(blob, async (url) => this.#nv.addVolumesFromUrl([{ url, name: `${layer}.nii.gz`, ...options }]));
    this.#layers.set(layer, this.#nv.volumes.at(-1));
  }

  async #loaded(blob, load) {
    const url = URL.createObjectURL(blob);
    try {
      await load(url);
    } finally {
      URL.revokeObjectURL(url);
    }
  }

  #key(event) {
    const move = MOVES[event.key];
    if (!move) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    this.#nv.moveCrosshairInVox(...move);
  }
}
