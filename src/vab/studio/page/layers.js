// The layers: a lane for each, with its level, mute and solo; dragged, trimmed and faded by pointer or keyboard.

import { frameSeconds } from "./analysis.js";
import { act, onState, say, state } from "./api.js";
import { amplitude, player, RATE } from "./audio.js";
import { clock, fault, make } from "./dom.js";
import { addLane, bar, colour, drag, fit, font, grab, onSelection, onsetsOf, redraw, removeLane, select, selection, snap, timeOf, toTime, toX, view } from "./timeline.js";

const TITLE = 18; // pixels, the bar on top of a layer by which it is moved
const EDGE = 7; // pixels at its sides by which it is trimmed
const CORNER = 11; // pixels, the handles of its fades
const LEAST = 0.02; // seconds that a layer is long at least
const PAUSE = 600; // milliseconds without another key until a change by the keyboard is made
const FINE = 0.01; // seconds
const GAIN = { least: -60, most: 24 }; // dB
const PEAKS = 200; // bins of an outline a second; with more pixels than that samples are drawn
const TALLEST = 1000; // times that a waveform is drawn taller so that it fills its lane
const $ = (id) => document.getElementById(id);

// ---- changes that are on their way ----

const drafts = new Map(); // by layer: fields that are changed here and not yet in the state
const timers = new Map();

// The layers as they are to be: those of the state, with what is being changed.
export const layers = () => state.arrangement.layers.map((layer) => ({ ...layer, ...drafts.get(layer.id) }));
export const layerOf = (id) => layers().find((layer) => layer.id === id);

function draft(id, fields) {
  drafts.set(id, { ...drafts.get(id), ...fields });
  refresh();
}

// Make a change, one step of the history.
async function commit(id) {
  clearTimeout(timers.get(id));
  timers.delete(id);
  const fields = drafts.get(id);
  const was = state.arrangement.layers.find((layer) => layer.id === id);
  if (fields && was && Object.entries(fields).some(([name, value]) => was[name] !== value)) await act("layer", { layer: id, ...fields });
  if (drafts.get(id) === fields) drafts.delete(id); // else there is more to come
  refresh();
}

export function change(id, fields) {
  draft(id, fields);
  return commit(id);
}

// Make a change that may go on: several keys in a row are one step.
function later(id, fields) {
  draft(id, fields);
  clearTimeout(timers.get(id));
  timers.set(id, setTimeout(() => commit(id), PAUSE));
}

addEventListener("pagehide", () => [...timers.keys()].forEach(commit));

// Before an undo: what is not yet a step becomes one.
export const settle = () => Promise.all([...timers.keys()].map(commit));

const length = (layer) => layer.stop - layer.start;

// Fields of a layer as they can be: inside its sound, fades inside the layer.
function allowed(layer, fields) {
  const next = { ...layer, ...fields };
  const end = state.sounds[layer.sound]?.seconds ?? layer.stop;
  if ("start" in fields) next.start = Math.min(Math.max(0, next.start), next.stop - LEAST);
  if ("stop" in fields) next.stop = Math.max(Math.min(end, next.stop), next.start + LEAST);
  next.fade_in = Math.min(Math.max(0, next.fade_in), length(next));
  next.fade_out = Math.min(Math.max(0, next.fade_out), length(next));
  next.gain_db = Math.min(GAIN.most, Math.max(GAIN.least, next.gain_db));
  return Object.fromEntries(FIELDS.filter((name) => next[name] !== layer[name]).map((name) => [name, next[name]]));
}

// Move the start of the part and leave the sound where it is heard.
function trimStart(layer, seconds) {
  const start = Math.min(Math.max(0, layer.start + seconds), layer.stop - LEAST);
  return { start, offset: layer.offset + start - layer.start };
}

// ---- the lanes ----

const rows = new Map(); // by layer: { root, canvas, ... }

function newRow(id) {
  const canvas = make("canvas", { className: "sound" });
  const alone = make("button", { type: "button", className: "alone", "aria-pressed": "false", onclick: () => hearAlone(id) });
  const name = make("button", { type: "button", className: "name", "aria-describedby": "layer-keys", onclick: () => select({ layer: id }) });
  const mute = make("button", { type: "button", className: "toggle mute", textContent: "M", onclick: () => change(id, { mute: !layerOf(id).mute }) });
  const solo = make("button", { type: "button", className: "toggle solo", textContent: "S", onclick: () => change(id, { solo: !layerOf(id).solo }) });
  const gain = make("input", { type: "range", min: GAIN.least, max: GAIN.most, step: 0.5, className: "gain" });
  const level = make("output", { className: "level" });
  gain.oninput = () => draft(id, { gain_db: gain.valueAsNumber });
  gain.onchange = () => later(id, {});
  gain.ondblclick = () => change(id, { gain_db: 0 });
  name.onkeydown = (event) => key(event, id);
  const head = make("div", { className: "head" }, make("div", { className: "title" }, alone, name), make("div", { className: "mixer" }, mute, solo, gain, level));
  const root = make("li", { className: "lane layer" }, head, canvas);
  canvas.onpointerdown = (event) => press(event, canvas, id);
  canvas.onpointermove = (event) => event.buttons || hover(event, canvas, id);
  addLane(canvas, (context, width, height) => paint(context, width, height, id));
  return { root, canvas, alone, name, mute, solo, gain, level };
}

function showRow(row, layer, n) {
  const { root, alone, name, mute, solo, gain, level } = row;
  const sound = state.sounds[layer.sound];
  const key = n < 9 ? `, key ${n + 1}` : "";
  root.setAttribute("aria-label", layer.name);
  root.classList.toggle("chosen", selection.layer === layer.id);
  root.classList.toggle("silent", !isHeard(layer));
  name.textContent = layer.name;
  name.title = [sound?.title, sound?.score != null ? `fit ${sound.score.toFixed(2)}` : ""].filter(Boolean).join(", ");
  name.setAttribute("aria-pressed", selection.layer === layer.id);
  alone.textContent = n + 1;
  alone.title = `Hear ${layer.name} alone${key}`;
  alone.setAttribute("aria-label", `Hear ${layer.name} alone`);
  alone.setAttribute("aria-pressed", player.only === layer.id);
  for (const [button, on, word] of [[mute, layer.mute, "Mute"], [solo, layer.solo, "Solo"]]) {
    button.setAttribute("aria-pressed", on);
    button.setAttribute("aria-label", `${word} ${layer.name}`);
    button.title = word;
  }
  gain.setAttribute("aria-label", `Volume of ${layer.name}, dB`);
  if (document.activeElement !== gain || !gain.matches(":active")) gain.value = layer.gain_db;
  level.textContent = `${layer.gain_db.toFixed(1)} dB`;
}

function isHeard(layer) {
  if (player.only) return layer.id === player.only;
  return !layer.mute && (layer.solo || !layers().some((each) => each.solo));
}

// Hear one layer alone at the same place, or the mix again.
export function hearAlone(id) {
  player.hear(player.only === id ? null : id);
  if (player.only) select({ layer: id });
}

let shown = [];

function refresh() {
  const list = layers();
  player.arrange(list, state.clip.seconds);
  for (const [id, row] of rows)
    if (!list.some((layer) => layer.id === id)) {
      removeLane(row.canvas);
      row.root.remove();
      rows.delete(id);
    }
  list.forEach((layer, n) => {
    if (!rows.has(layer.id)) rows.set(layer.id, newRow(layer.id));
    const row = rows.get(layer.id);
    if ($("layers").children[n] !== row.root) $("layers").insertBefore(row.root, $("layers").children[n] ?? null);
    showRow(row, layer, n);
  });
  $("no-layers").hidden = list.length > 0;
  showInspector();
  redraw();
}

// ---- what is drawn ----

const peaks = new Map(); // by sound: { bins: (least, most) of each, unit: of 1 } or null while it is fetched
const mels = new Map(); // by sound: the image

async function fetchPeaks(id) {
  if (peaks.has(id)) return;
  peaks.set(id, null);
  const reply = await fetch(`${state.sounds[id].url}.peaks`).catch(() => null);
  if (!reply?.ok) return peaks.delete(id);
  const buffer = await reply.arrayBuffer();
  if (!peaks.get(id)) peaks.set(id, { bins: new Int8Array(buffer, 4), unit: 127 });
  redraw();
}

// The outline by the samples themselves, once they are here: the steps of the one that is fetched hide what is quiet.
function outline(channels) {
  const size = RATE / PEAKS;
  const range = extremesOf(channels);
  const bins = new Float32Array(2 * Math.ceil(channels[0].length / size));
  for (let n = 0; 2 * n < bins.length; n++) bins.set(range(n * size, (n + 1) * size), 2 * n);
  return { bins, unit: 1 };
}

player.addEventListener("sound", ({ detail: id }) => {
  peaks.set(id, outline(player.sounds.get(id)));
  redraw();
});

// By how much a layer's waveform is drawn taller than it is.
function tallness(layer) {
  const known = peaks.get(layer.sound);
  if (view.tall || !known) return view.tall || 1;
  known.peak ??= known.bins.reduce((most, level) => Math.max(most, Math.abs(level)), 0) / known.unit;
  return known.peak ? Math.min(TALLEST, 1 / (known.peak * amplitude(layer.gain_db))) : 1;
}

function mel(id) {
  if (!mels.has(id)) {
    const image = new Image();
    image.onload = redraw;
    image.src = `${state.sounds[id].url}.png`;
    mels.set(id, image);
  }
  return mels.get(id);
}

function box(layer, height) {
  return { left: toX(layer.offset), right: toX(layer.offset + length(layer)), top: 3, bottom: height - 3 };
}

function paint(context, width, height, id) {
  const layer = layerOf(id);
  if (!layer) return;
  const { left, right, top, bottom } = box(layer, height);
  const [a, b] = [Math.max(left, -4), Math.min(right, width + 4)];
  if (b <= a) return paintAway(context, width, height, layer, left);
  const own = isHeard(layer);
  const chosen = selection.layer === id;
  context.save();
  context.beginPath();
  context.roundRect(a, top, b - a, bottom - top, 4);
  context.clip();
  context.fillStyle = colour(own ? "layer" : "layer-off");
  context.fillRect(a, top, b - a, bottom - top);
  context.fillStyle = colour(own ? (chosen ? "title-chosen" : "title") : "title-off");
  context.fillRect(a, top, b - a, TITLE);
  const inner = { a, b, top: top + TITLE, bottom };
  if (view.mel) paintMel(context, layer, inner);
  else paintWave(context, layer, inner, colour(own ? "wave" : "wave-off"));
  paintFades(context, layer, inner);
  paintAgain(context, layer, inner);
  paintOnsets(context, layer, inner, colour(own ? "onset" : "wave-off"));
  context.fillStyle = colour(own ? "on-title" : "on-title-off");
  context.font = font();
  context.textBaseline = "middle";
  const middle = top + TITLE / 2 + 0.5;
  context.fillText(layer.name, Math.max(a, 0) + 7, middle);
  const tall = tallness(layer);
  if (!view.mel && Math.abs(tall - 1) > 0.05) paintTallness(context, tall, { a, b, top, middle, width, name: layer.name });
  context.restore();
  context.strokeStyle = colour(chosen ? "mark" : "outline");
  context.lineWidth = chosen ? 2 : 1;
  context.beginPath();
  context.roundRect(left, top, right - left, bottom - top, 4);
  context.stroke();
}

// That it is drawn taller than it is, on top of a name that reaches so far.
function paintTallness(context, tall, { a, b, top, middle, width, name }) {
  const text = `\u00d7 ${tall < 10 ? Number(tall.toFixed(1)) : Math.round(tall)}`;
  const x = Math.min(b, width) - context.measureText(text).width - 7;
  if (x > Math.max(a, 0) + context.measureText(name).width + 14) context.fillText(text, x, middle);
  else if (x > Math.max(a, 0)) context.fillText(text, x, middle + TITLE);
}

// Where its sound sets in; from afar not all of them have room.
function paintOnsets(context, layer, { a, b, top }, ink) {
  context.fillStyle = ink;
  let last = -Infinity;
  for (const time of onsetsOf(layer)) {
    const x = Math.round(toX(time));
    if (x < a || x > b || x - last < 4) continue;
    context.fillRect(x, top, 1, 5);
    last = x;
  }
}

// It is out of sight: where?
function paintAway(context, width, height, layer, left) {
  context.fillStyle = colour("soft");
  context.font = font();
  context.textBaseline = "middle";
  const text = left > 0 ? `${layer.name} \u2192` : `\u2190 ${layer.name}`;
  context.fillText(text, left > 0 ? width - context.measureText(text).width - 6 : 6, height / 2);
}

function paintMel(context, layer, { a, b, top, bottom }) {
  const image = mel(layer.sound);
  const { seconds } = state.sounds[layer.sound];
  if (!image.complete || !image.naturalWidth) return;
  const [from, to] = [a, b].map((x) => ((toTime(x) - layer.offset + layer.start) / seconds) * image.naturalWidth);
  context.drawImage(image, from, 0, Math.max(0.01, to - from), image.naturalHeight, a, top, b - a, bottom - top);
}

// Peaks while a pixel is more than a bin of them; samples when it is less; lines and dots from one to the next
// when a sample is wider than a pixel.
function paintWave(context, layer, { a, b, top, bottom }, ink) {
  const channels = player.sounds.get(layer.sound);
  const middle = (top + bottom) / 2;
  const tall = (bottom - top) / 2 - 2;
  const gain = amplitude(layer.gain_db) * tallness(layer);
  const soundTime = (x) => toTime(x) - layer.offset + layer.start;
  context.fillStyle = ink;
  context.fillRect(a, Math.round(middle), b - a, 1);
  if (channels && view.scale > RATE / 2) return paintSamples(context, channels, layer, { a, b, middle, tall, gain, ink });
  const known = peaks.get(layer.sound);
  if (!known) return fetchPeaks(layer.sound);
  const [rate, range] = channels && view.scale > PEAKS ? [RATE, extremesOf(channels)] : [PEAKS, binsOf(known)];
  const dot = 1 / devicePixelRatio;
  const last = state.sounds[layer.sound].seconds * rate;
  const first = Math.floor(Math.max(0, a) / dot);
  for (let n = first; n * dot < b; n++) {
    const from = Math.floor(soundTime(n * dot) * rate);
    const to = Math.max(from + 1, Math.floor(soundTime((n + 1) * dot) * rate));
    if (from >= last || to <= 0) continue;
    const [low, high] = range(Math.max(0, from), to);
    const fade = fadeAt(layer, soundTime(n * dot)) * gain;
    const [up, down] = [Math.min(1, high * fade) * tall, Math.max(-1, low * fade) * tall];
    context.fillRect(n * dot, middle - up, dot, Math.max(dot, up - down));
  }
}

const binsOf = ({ bins, unit }) => (from, to) => {
  let [low, high] = [unit, -unit];
  for (let n = from; n < to && 2 * n + 1 < bins.length; n++) {
    if (bins[2 * n] < low) low = bins[2 * n];
    if (bins[2 * n + 1] > high) high = bins[2 * n + 1];
  }
  return high < low ? [0, 0] : [low / unit, high / unit];
};

const extremesOf = (channels) => (from, to) => {
  let [low, high] = [1, -1];
  for (const channel of channels)
    for (let n = from; n < Math.min(to, channel.length); n++) {
      if (channel[n] < low) low = channel[n];
      if (channel[n] > high) high = channel[n];
    }
  return high < low ? [0, 0] : [low, high];
};

function paintSamples(context, channels, layer, { a, b, middle, tall, gain, ink }) {
  const begin = layer.offset - layer.start; // where the sound's first sample is
  const [first, last] = [a, b].map((x) => Math.round((toTime(x) - begin) * RATE));
  channels.forEach((channel, c) => {
    context.globalAlpha = c ? 0.5 : 1;
    context.strokeStyle = context.fillStyle = ink;
    context.lineWidth = 1;
    context.beginPath();
    const points = [];
    for (let n = Math.max(0, first - 1); n <= Math.min(channel.length - 1, last + 1); n++) {
      const level = channel[n] * gain * fadeAt(layer, n / RATE);
      points.push([toX(begin + n / RATE), middle - Math.max(-1, Math.min(1, level)) * tall]);
    }
    for (const [x, y] of points) context.lineTo(x, y);
    context.stroke();
    if (view.scale > 5 * RATE) for (const [x, y] of points) context.fillRect(x - 2, y - 2, 4, 4);
  });
  context.globalAlpha = 1;
}

function fadeAt(layer, time) {
  const from = layer.fade_in ? Math.min(1, Math.max(0, (time - layer.start) / layer.fade_in)) : 1;
  const to = layer.fade_out ? Math.min(1, Math.max(0, (layer.stop - time) / layer.fade_out)) : 1;
  return from * to;
}

function paintFades(context, layer, { top, bottom }) {
  const [left, right] = [toX(layer.offset), toX(layer.offset + length(layer))];
  const [inX, outX] = [left + layer.fade_in * view.scale, right - layer.fade_out * view.scale];
  context.strokeStyle = colour("fade");
  context.fillStyle = colour("shade");
  context.lineWidth = 1.5;
  for (const [edge, x, fade] of [[left, inX, layer.fade_in], [right, outX, layer.fade_out]]) {
    if (!fade) continue;
    context.beginPath();
    context.moveTo(edge, bottom);
    context.lineTo(x, top);
    context.lineTo(edge, top);
    context.fill();
    context.beginPath();
    context.moveTo(edge, bottom);
    context.lineTo(x, top);
    context.stroke();
  }
  if (right - left < 4 * CORNER) return;
  context.fillStyle = colour("handle");
  for (const x of [inX + 1, outX - CORNER + 4]) context.fillRect(Math.min(Math.max(x, left), right - 8), top, CORNER - 4, CORNER - 4);
}

// The part that is new since the sound it was made from.
function paintAgain(context, layer, { bottom }) {
  const again = state.sounds[layer.sound]?.again;
  if (!again) return;
  const [a, b] = again.map((time) => toX(layer.offset + time - layer.start));
  context.fillStyle = colour("new");
  context.fillRect(a, bottom - 3, b - a, 3);
}

// ---- the pointer ----

// What of a layer is under the pointer.
function part(event, canvas, layer) {
  const { left, right, top, bottom } = box(layer, canvas.clientHeight);
  const [x, y] = [event.offsetX, event.offsetY];
  const reach = event.pointerType === "touch" ? 2 : 1;
  if (x < left - EDGE || x > right + EDGE || y < top || y > bottom) return "";
  const wide = right - left;
  const [inX, outX] = [left + layer.fade_in * view.scale, right - layer.fade_out * view.scale];
  const inCorners = y >= top + TITLE && y <= top + TITLE + CORNER * reach;
  if (wide > 4 * CORNER && inCorners && x >= left && Math.abs(x - inX - CORNER / 2) <= CORNER * reach) return "fade_in";
  if (wide > 4 * CORNER && inCorners && x <= right && Math.abs(x - outX + CORNER / 2) <= CORNER * reach) return "fade_out";
  const edge = Math.min(EDGE * reach, wide / 4);
  if (x <= left + edge) return "start";
  if (x >= right - edge) return "stop";
  return y <= top + TITLE ? "move" : "body";
}

const CURSORS = { fade_in: "nesw-resize", fade_out: "nwse-resize", start: "ew-resize", stop: "ew-resize", move: "grab", body: "text", "": "default" };
const HINTS = { fade_in: "Drag to fade in", fade_out: "Drag to fade out", start: "Drag to trim the start", stop: "Drag to trim the end", move: "Drag to move", body: "", "": "" };

function hover(event, canvas, id) {
  const layer = layerOf(id);
  const found = part(event, canvas, layer);
  canvas.style.cursor = CURSORS[found];
  if (canvas.title !== HINTS[found]) canvas.title = HINTS[found];
}

function press(event, canvas, id) {
  if (event.button) return;
  const was = layerOf(id);
  const found = part(event, canvas, was);
  select({ layer: id });
  if (!found || found === "body") return grab(canvas, event);
  if (found === "move") canvas.style.cursor = "grabbing";
  const begin = timeOf(event, canvas);
  const edges = { offset: was.offset, end: was.offset + length(was) };
  const onsets = onsetsOf(was);
  const changes = {
    move: (by, move) => ({ offset: was.offset + by + snap([edges.offset + by, edges.end + by], move, { except: id, softer: onsets.map((time) => time + by) }) }),
    start: (by, move) => trimStart(was, by + snap([edges.offset + by], move, { except: id })),
    stop: (by, move) => ({ stop: was.stop + by + snap([edges.end + by], move, { except: id }) }),
    fade_in: (by, move) => ({ fade_in: was.fade_in + by + snap([edges.offset + was.fade_in + by], move, { except: id }) }),
    fade_out: (by, move) => ({ fade_out: was.fade_out - by - snap([edges.end - was.fade_out + by], move, { except: id }) }),
  };
  drag(canvas, event, (move) => {
    const fields = allowed(was, changes[found](timeOf(move, canvas) - begin, move));
    drafts.set(id, fields);
    refresh();
  }, (far, last) => {
    hover(last, canvas, id);
    if (far) return commit(id);
    drafts.delete(id);
    refresh();
  });
}

// ---- the keyboard ----

function key(event, id) {
  const layer = layerOf(id);
  const list = layers();
  const n = list.findIndex((each) => each.id === id);
  const { key, shiftKey, altKey, ctrlKey, metaKey } = event;
  const way = { ArrowLeft: -1, ArrowRight: 1, ",": -1, ".": 1, "<": -1, ">": 1 }[key];
  const control = ctrlKey || metaKey;
  if (way) {
    const by = way * (key.startsWith("Arrow") ? frameSeconds() : FINE);
    if (control && shiftKey) later(id, allowed(layer, { fade_out: layer.fade_out - by }));
    else if (control) later(id, allowed(layer, { fade_in: layer.fade_in + by }));
    else if (shiftKey) later(id, allowed(layer, { stop: layer.stop + by }));
    else if (altKey) later(id, allowed(layer, trimStart(layer, by)));
    else later(id, { offset: layer.offset + by });
  } else if ((key === "ArrowUp" || key === "ArrowDown") && altKey) moveRow(n, key === "ArrowUp" ? -1 : 1);
  else if (key === "ArrowUp" || key === "ArrowDown") {
    const next = list[n + (key === "ArrowUp" ? -1 : 1)];
    if (next) choose(next.id);
  } else if ((key === "Delete" || key === "Backspace") && !control) removeRow(id);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function choose(id) {
  select({ layer: id });
  rows.get(id).name.focus();
}

// Remove a layer; the focus goes to the next one's name.
async function removeRow(id) {
  const n = layers().findIndex((layer) => layer.id === id);
  if (!(await act("remove", { layer: id }))) return;
  const next = layers()[Math.min(n, layers().length - 1)];
  if (next) choose(next.id);
  else $("make").focus();
}

async function moveRow(n, by) {
  const ids = layers().map((layer) => layer.id);
  if (n + by < 0 || n + by >= ids.length) return;
  const [id] = ids.splice(n, 1);
  ids.splice(n + by, 0, id);
  await act("order", { layers: ids });
  rows.get(id)?.name.focus();
}

// ---- the inspector: the chosen layer in numbers ----

const WORDS = { offset: "Offset", start: "Trim from", stop: "Trim to", fade_in: "Fade in", fade_out: "Fade out", gain_db: "Volume" };
const FIELDS = Object.keys(WORDS);
let typing = null; // the field that is being typed in; the others, and those that are left, show what holds

$("inspector").oninput = (event) => { typing = event.target; };
$("inspector").addEventListener("focusout", () => {
  typing = null;
  showInspector();
});
for (const name of FIELDS)
  $(`layer-${name}`).onchange = ({ target: field }) => {
    typing = null;
    const layer = layerOf(selection.layer);
    const why = fault(field, WORDS[name]);
    if (!layer || why) {
      say(why);
      return showInspector();
    }
    const value = field.valueAsNumber;
    later(layer.id, name === "offset" ? { offset: value } : allowed(layer, name === "start" ? trimStart(layer, value - layer.start) : { [name]: value }));
  };
$("layer-name").onchange = (event) => {
  typing = null;
  const name = event.target.value.trim();
  if (name) change(selection.layer, { name });
  else showInspector();
};
$("layer-up").onclick = () => moveRow(layers().findIndex((layer) => layer.id === selection.layer), -1);
$("layer-down").onclick = () => moveRow(layers().findIndex((layer) => layer.id === selection.layer), 1);
$("layer-remove").onclick = () => removeRow(selection.layer);
$("layer-double").onclick = () => {
  const { sound, offset, start, stop, fade_in, fade_out, gain_db, name } = layerOf(selection.layer);
  act("add", { sound, offset, start, stop, fade_in, fade_out, gain_db, name: `${name} copy` });
};
$("layer-span").onclick = () => {
  const layer = layerOf(selection.layer);
  select({ span: [layer.offset, layer.offset + length(layer)] });
};

function showInspector() {
  const layer = selection.layer && layerOf(selection.layer);
  $("inspector").hidden = !layer;
  if (!layer) return;
  const list = layers();
  const n = list.findIndex((each) => each.id === layer.id);
  for (const name of FIELDS) {
    const field = $(`layer-${name}`);
    if (typing !== field) field.value = layer[name].toFixed(name === "gain_db" ? 1 : 3);
  }
  $("layer-start").max = (layer.stop - LEAST).toFixed(3);
  $("layer-stop").min = (layer.start + LEAST).toFixed(3);
  $("layer-stop").max = state.sounds[layer.sound].seconds.toFixed(3);
  $("layer-fade_in").max = $("layer-fade_out").max = length(layer).toFixed(3);
  if (typing !== $("layer-name") && $("layer-name").value !== layer.name) $("layer-name").value = layer.name;
  $("layer-up").disabled = n === 0;
  $("layer-down").disabled = n === list.length - 1;
  $("layer-span").title = `${clock(layer.offset)} to ${clock(layer.offset + length(layer))}`;
}

// ---- from the state ----

onSelection(() => state.clip && refresh());
player.addEventListener("change", () => {
  if (!state.clip) return;
  layers().forEach((layer, n) => rows.has(layer.id) && showRow(rows.get(layer.id), layer, n));
  redraw();
});
onState(() => {
  if (!state.clip) return;
  const ids = new Set(Object.keys(state.sounds));
  player.keep(ids);
  const used = new Set(layers().map((layer) => layer.sound));
  for (const id of used) player.load(id, `${state.sounds[id].url}.wav`).catch((error) => console.warn(error.message));
  for (const id of [...peaks.keys(), ...mels.keys()]) if (!ids.has(id)) peaks.delete(id), mels.delete(id);
  // a new layer that is heard is the chosen one; of several takes that is the first, at the start one that is heard
  const now = state.arrangement.layers;
  const fresh = shown.length ? now.find((layer) => !layer.mute && !shown.includes(layer.id)) : null;
  const there = now.some((layer) => layer.id === selection.layer);
  if (fresh || !there) selection.layer = (fresh ?? now.find((layer) => !layer.mute) ?? now[0])?.id ?? null;
  shown = now.map((layer) => layer.id);
  refresh();
  if (fresh) rows.get(fresh.id)?.root.scrollIntoView({ block: "nearest" });
  if (view.fits) fit();
});
