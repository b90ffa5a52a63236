// The time axis that all lanes share: zoom, scroll, ruler, picture lane, the selection, named marks, snapping.

import { analysis, frameSeconds } from "./analysis.js";
import { act, onState, say, state } from "./api.js";
import { heard, player, RATE } from "./audio.js";
import { clock, fault, make } from "./dom.js";
import { paintFrames } from "./frames.js";

const MAX_SCALE = 24 * RATE; // pixels per second: one sample is 24 pixels wide
const NEAR = 8; // pixels within which something snaps
const SECOND = 4; // pixels that an onset of a sound counts as farther away than a cut
const LEAST = 0.01; // seconds, of a selection
const FLAG = 160; // pixels that the flag of a mark is wide at most
const STUB = 5; // and where there are too many for their names
const $ = (id) => document.getElementById(id);

// What is seen, in seconds and pixels per second. `fits`: the whole timeline stays in sight as it grows. `tall`:
// by how much waveforms are drawn taller than they are; 0: each as tall as its lane.
export const view = { left: 0, scale: 100, width: 1, fits: true, mel: false, tall: 1, snaps: true, snapped: null };
// What is chosen: a layer's id or null, and the span [from, to] in seconds or null.
export const selection = { layer: null, span: null };

const watchers = [];
// Call back whenever the selection changes.
export const onSelection = (callback) => watchers.push(callback);

export function select(change) {
  if (change.span) {
    const [a, b] = change.span.map((time) => Math.min(Math.max(0, time), player.end)).sort((x, y) => x - y);
    change.span = b - a >= LEAST ? [a, b] : null;
  }
  Object.assign(selection, change);
  for (const callback of watchers) callback(selection);
  redraw();
}

// ---- the axis ----

export const toX = (time) => (time - view.left) * view.scale;
export const toTime = (x) => view.left + x / view.scale;

function bounds() {
  const first = Math.min(0, ...player.layers.map((layer) => layer.offset));
  return [first, Math.max(player.end, 0.1)];
}

export function fit(span) {
  const [from, to] = span ?? bounds();
  const margin = (to - from) * 0.01;
  view.fits = !span;
  look(from - margin, view.width / (to - from + 2 * margin));
}

// Zoom about a place on the screen, which stays where it is: the playhead if it is in sight, else the middle.
export function zoom(factor, x = nowX()) {
  const time = toTime(x);
  const scale = clampScale(view.scale * factor);
  view.fits = false;
  look(time - x / scale, scale);
}

function nowX() {
  const x = toX(player.position);
  return x >= 0 && x <= view.width ? x : view.width / 2;
}

function clampScale(scale) {
  const [first, last] = bounds();
  return Math.min(MAX_SCALE, Math.max(view.width / ((last - first) * 1.02), scale));
}

export function scroll(seconds) {
  view.fits = false;
  look(view.left + seconds, view.scale);
}

function look(left, scale) {
  const [first, last] = bounds();
  const margin = (last - first) * 0.01;
  view.scale = clampScale(scale);
  const shown = view.width / view.scale;
  view.left = Math.max(first - margin, Math.min(left, last + margin - shown));
  redraw();
}

// ---- lanes and drawing ----

const lanes = new Map(); // by canvas: what draws it
let asked = 0;

// `paint(context, width, height)` draws a lane's own things over what all lanes have.
export function addLane(canvas, paint) {
  lanes.set(canvas, paint);
  resized.observe(canvas);
  canvas.addEventListener("wheel", wheel, { passive: false });
  redraw();
}

export function removeLane(canvas) {
  lanes.delete(canvas);
  resized.unobserve(canvas);
}

const resized = new ResizeObserver(() => {
  const width = $("ruler").clientWidth;
  if (width && width !== view.width) {
    view.width = width;
    if (view.fits) fit();
    else look(view.left, view.scale);
  }
  redraw();
});

export function redraw() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    for (const [canvas, paint] of lanes) paintLane(canvas, paint);
    showNow();
    showOverview();
  });
}

function paintLane(canvas, paint) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const dots = devicePixelRatio;
  const [across, down] = [Math.round(width * dots), Math.round(height * dots)];
  if (!across || !down) return;
  if (canvas.width !== across) canvas.width = across;
  if (canvas.height !== down) canvas.height = down;
  const context = canvas.getContext("2d");
  context.setTransform(dots, 0, 0, dots, 0, 0);
  context.clearRect(0, 0, width, height);
  backdrop(context, width, height);
  paint(context, width, height);
  front(context, height, canvas === $("ruler"));
}

// Behind what a lane shows: the seconds, and what lies beyond the picture.
function backdrop(context, width, height) {
  const { seconds } = state.clip;
  context.fillStyle = colour("beyond");
  if (toX(0) > 0) context.fillRect(0, 0, toX(0), height);
  if (toX(seconds) < width) context.fillRect(toX(seconds), 0, width - toX(seconds), height);
  context.fillStyle = colour("grid");
  for (const time of ticks(tickStep(80))) bar(context, toX(time), 0, height);
}

// In front of it: the selection, cuts, named marks, and what something just snapped to. Cuts would cross the
// numbers of the ruler; of many, from afar, those are drawn that have room.
function front(context, height, isRuler) {
  if (selection.span) {
    const [a, b] = selection.span.map(toX);
    context.fillStyle = colour("span");
    context.fillRect(a, 0, b - a, height);
    context.fillStyle = colour("mark");
    bar(context, a, 0, height);
    bar(context, b, 0, height);
  }
  context.fillStyle = colour("cut");
  for (const x of isRuler ? [] : spaced(analysis.cuts, 6)) dashes(context, x, height);
  context.fillStyle = colour("flag");
  for (const x of isRuler ? [] : spaced(marks().map((mark) => mark.time), 3)) bar(context, x, 0, height);
  if (view.snapped === null) return;
  context.fillStyle = colour("snap");
  context.fillRect(Math.round(toX(view.snapped)) - 1, 0, 2, height);
}

// The places of times that are in sight, at least so many pixels apart.
export function spaced(times, pixels) {
  const places = [];
  for (const x of times.map(toX).sort((a, b) => a - b))
    if (x > -pixels && x < view.width + pixels && !(x - places.at(-1) < pixels)) places.push(x);
  return places;
}

// A line of one pixel.
export const bar = (context, x, y, height) => context.fillRect(Math.round(x), y, 1, height);

function dashes(context, x, height) {
  for (let y = 1; y < height; y += 6) bar(context, x, y, 3);
}

// The colours are those of the style sheet, for light and dark.
const colours = new Map();
export function colour(name) {
  if (!colours.has(name)) {
    $("probe").style.color = `var(--${name})`;
    colours.set(name, getComputedStyle($("probe")).color);
  }
  return colours.get(name);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  colours.clear();
  redraw();
});

// ---- the ruler ----

const STEPS = [1, 2, 5];

// The least step of seconds that is at least so many pixels wide.
function tickStep(pixels) {
  const least = pixels / view.scale;
  if (least > 10) return [15, 30, 60, 120, 300, 600].find((step) => step >= least) ?? 1200;
  const power = 10 ** Math.floor(Math.log10(least));
  return power * ([...STEPS, 10].find((step) => step * power >= least * 0.9999) ?? 10);
}

function ticks(step) {
  const first = Math.ceil(view.left / step);
  const count = Math.floor(toTime(view.width) / step) - first + 1;
  return Array.from({ length: Math.max(0, Math.min(count, 2000)) }, (_, n) => (first + n) * step);
}

function paintRuler(context, width, height) {
  const middle = height / 2;
  context.font = font();
  context.textBaseline = "middle";
  const step = tickStep(80);
  const digits = Math.min(6, Math.max(0, Math.ceil(-Math.log10(step) - 1e-9)));
  context.fillStyle = colour("soft");
  for (const time of ticks(step / 5)) bar(context, toX(time), middle - 3, 3);
  for (const time of ticks(step)) {
    context.fillStyle = colour("soft");
    bar(context, toX(time), 0, middle);
    context.fillStyle = colour("ink");
    context.fillText(clock(time, digits), toX(time) + 4, middle / 2);
  }
  // the frames below, by their numbers
  const frame = frameSeconds();
  const least = 64 / (view.scale * frame);
  const frames = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000].find((count) => count >= least) ?? 10000;
  context.fillStyle = colour("soft");
  if (analysis.frames) {
    for (const x of spaced(analysis.frames, 3)) bar(context, x, height - 3, 3);
  } else if (view.scale * frame > 6) for (const time of ticks(frame)) bar(context, toX(time), height - 3, 3);
  for (const [time, n] of numbered(frames)) {
    bar(context, toX(time), middle + 3, height);
    context.fillText(`f ${n}`, toX(time) + 4, middle * 1.5);
  }
  paintFlags(context, width, middle);
}

// The frames that have a number on the ruler, as [time, number]: every `count`th, or those that have room.
function numbered(count) {
  const frame = frameSeconds();
  if (!analysis.frames) return ticks(count * frame).filter((time) => time > -1e-9).map((time) => [time, Math.round(time / frame)]);
  let last = -Infinity;
  return analysis.frames.map((time, n) => [time, n]).filter(([time]) => toX(time) >= -64 && toX(time) <= view.width && toX(time) - last >= 64 && ((last = toX(time)), true));
}

// The names of marks, cut off where the next one begins. If they would cover most of the seconds there are none.
function paintFlags(context, width, height) {
  const shown = marks().toSorted((a, b) => a.time - b.time).map((mark) => ({ x: Math.round(toX(mark.time)), label: mark.label })).filter(({ x }) => x > -FLAG && x < width);
  const flags = shown.map(({ x, label }, n) => {
    const room = (shown[n + 1]?.x ?? Infinity) - x - 1;
    return { x, label, wide: Math.min(context.measureText(label).width + 8, FLAG, room) };
  });
  const crowded = flags.reduce((sum, { wide }) => sum + wide, 0) > width / 2;
  for (const { x, label, wide } of flags) {
    context.save();
    context.beginPath();
    if (crowded) context.rect(x, height - STUB, Math.min(wide, STUB), STUB); // below the numbers
    else context.rect(x, 0, wide, height);
    context.clip();
    context.fillStyle = colour("flag");
    context.fillRect(x, 0, wide, height);
    context.fillStyle = colour("on-flag");
    if (!crowded && wide > 4 * STUB) context.fillText(label, x + 4, height / 2);
    context.restore();
  }
}

export const font = () => `11px ${getComputedStyle(document.body).fontFamily}`;

// The picture: where its shots begin, and where something in it starts to move.
function paintPicture(context, width, height) {
  const [a, b] = [Math.max(0, toX(0)), Math.min(width, toX(state.clip.seconds))];
  context.fillStyle = colour("shot");
  context.fillRect(a, 0, b - a, height);
  paintFrames(context, b, height, toX, toTime);
  context.fillStyle = colour("motion");
  context.strokeStyle = colour("lane");
  for (const place of spaced(analysis.motion, 10)) {
    const x = Math.round(place) + 0.5;
    context.beginPath();
    context.moveTo(x, height - 11);
    context.lineTo(x + 5, height - 1);
    context.lineTo(x - 5, height - 1);
    context.closePath();
    context.fill();
    context.stroke();
  }
}

// ---- the playhead ----

function showNow() {
  const x = toX(player.position);
  const line = $("now");
  line.hidden = x < -1 || x > view.width + 1;
  line.style.transform = `translateX(${Math.round($("ruler").offsetLeft + x)}px)`;
}

// Keep the playhead in sight while it plays.
export function follow() {
  const x = toX(player.position);
  if (player.playing && !held && (x > view.width || x < 0)) look(player.position - 0.05 * (view.width / view.scale), view.scale);
  showNow();
}

// ---- the overview: what part of the whole is in sight ----

function showOverview() {
  const [first, last] = bounds();
  const from = Math.max(0, (view.left - first) / (last - first));
  const to = Math.min(1, (toTime(view.width) - first) / (last - first));
  const thumb = $("thumb");
  thumb.style.left = `${100 * from}%`;
  thumb.style.width = `${100 * Math.max(0.002, to - from)}%`;
  $("overview").setAttribute("aria-valuenow", Math.round((100 * from) / Math.max(1e-9, 1 - (to - from))));
  $("overview").setAttribute("aria-valuetext", `${clock(view.left, 1)} to ${clock(toTime(view.width), 1)}`);
  $("overview").classList.toggle("whole", to - from > 0.995);
  const perPixel = RATE / view.scale;
  $("scale").textContent = perPixel >= 2 ? `${Math.round(perPixel)} samples a pixel` : `${(1 / perPixel).toFixed(1)} pixels a sample`;
}

$("overview").onpointerdown = (event) => {
  const box = $("overview").getBoundingClientRect();
  const [first, last] = bounds();
  const time = (x) => first + ((x - box.left) / box.width) * (last - first);
  const shown = view.width / view.scale;
  const at = time(event.clientX);
  const grip = at >= view.left && at <= view.left + shown ? at - view.left : shown / 2;
  drag($("overview"), event, (move) => {
    view.fits = false;
    look(time(move.clientX) - grip, view.scale);
  }, () => {}, 0);
  view.fits = false;
  look(at - grip, view.scale);
};
$("overview").onkeydown = (event) => {
  const shown = view.width / view.scale;
  const steps = { ArrowLeft: -0.1, ArrowRight: 0.1, PageUp: -0.9, PageDown: 0.9, Home: -1e9, End: 1e9 };
  if (!(event.key in steps)) return;
  scroll(steps[event.key] * shown);
  event.preventDefault();
  event.stopPropagation();
};

// ---- snapping ----

export const marks = () => dragged ?? state.arrangement.marks;
let dragged = null; // the marks while one of them is dragged

// The onsets of a layer's sound where they are heard, in seconds of the timeline.
export function onsetsOf(layer) {
  const onsets = analysis.onsets[layer.sound] ?? [];
  return onsets.filter((time) => time >= layer.start && time < layer.stop).map((time) => layer.offset + time - layer.start);
}

// What there is to snap to, as [time, pixels it counts as farther away]; `except`: the layer that moves.
function targets(except) {
  const others = player.layers.filter((layer) => layer.id !== except);
  const sharp = [0, state.clip.seconds, player.position, ...analysis.cuts, ...analysis.motion, ...marks().map((mark) => mark.time), ...(selection.span ?? []), ...others.flatMap((layer) => [layer.offset, layer.offset + layer.stop - layer.start])];
  const onsets = heard(others).flatMap(onsetsOf); // there are many: they must not hide a cut
  return [...sharp.map((time) => [time, 0]), ...onsets.map((time) => [time, SECOND])];
}

// The seconds by which `times`, moved together, must be shifted so that one of them lies on a target; else 0.
// `softer`: times that give way to those. Alt turns it off while it is held down.
export function snap(times, event, { except = null, without = [], softer = [] } = {}) {
  view.snapped = null;
  if (view.snaps === Boolean(event?.altKey)) return 0;
  let best = NEAR;
  let shift = 0;
  const moved = [...times.map((time) => [time, 0]), ...softer.map((time) => [time, SECOND / 2])];
  for (const [target, farther] of targets(except))
    for (const [time, more] of moved) {
      const away = Math.abs(target - time) * view.scale + farther + more;
      if (away >= best || without.includes(target)) continue;
      best = away;
      shift = target - time;
      view.snapped = target;
    }
  return shift;
}

export function unsnap() {
  view.snapped = null;
  redraw();
}

// The next place to snap to, before or after a time: the keys [ and ] go there.
export function neighbour(time, direction) {
  const found = targets(null).map(([target]) => target).filter((target) => (target - time) * direction > 1e-4 && target !== player.position);
  return found.length ? found.reduce((best, target) => (Math.abs(target - time) < Math.abs(best - time) ? target : best)) : time;
}

// ---- the pointer ----

let held = false; // something is dragged

export const timeOf = (event, canvas) => toTime(event.clientX - canvas.getBoundingClientRect().left);

// Follow the pointer until it is let go. `moved` is called once it has gone `slack` pixels, and at the end
// `done(dragged, event, cancelled)`: a second finger makes it a pinch, and nothing of it is kept.
export function drag(element, event, moved, done, slack = 3) {
  if (event.button || (event.pointerType === "touch" && fingers.size > 1)) return;
  let far = false;
  let pinched = false;
  held = true;
  element.setPointerCapture(event.pointerId);
  const move = (next) => {
    if (next.pointerId !== event.pointerId) return;
    far ||= Math.abs(next.clientX - event.clientX) >= slack || Math.abs(next.clientY - event.clientY) >= slack;
    pinched ||= fingers.size > 1;
    if (far && !pinched) moved(next);
  };
  const end = (last) => {
    if (last.pointerId !== event.pointerId) return;
    held = false;
    element.removeEventListener("pointermove", move);
    element.removeEventListener("pointerup", end);
    element.removeEventListener("pointercancel", end);
    const cancelled = pinched || last.type === "pointercancel";
    done(far && !cancelled, last, cancelled);
    unsnap();
  };
  element.addEventListener("pointermove", move);
  element.addEventListener("pointerup", end);
  element.addEventListener("pointercancel", end);
}

// A click goes to a place, a drag selects: in every lane where nothing else is grabbed.
export function grab(canvas, event) {
  const start = timeOf(event, canvas);
  const a = start + snap([start], event);
  drag(canvas, event, (move) => {
    const time = timeOf(move, canvas);
    select({ span: [a, time + snap([time], move, { without: selection.span ?? [] })] });
  }, (far, last, cancelled) => {
    if (far || cancelled) return;
    select({ span: null });
    player.seek(a);
  });
}

// A wheel zooms about the pointer; sideways or with Shift it scrolls.
function wheel(event) {
  const unit = event.deltaMode === 1 ? 16 : 1;
  const sideways = event.shiftKey ? event.deltaY || event.deltaX : event.deltaX;
  event.preventDefault();
  if (!event.ctrlKey && Math.abs(sideways) > Math.abs(event.shiftKey ? 0 : event.deltaY)) return scroll((sideways * unit) / view.scale);
  const speed = event.ctrlKey ? 0.01 : 0.002; // pinches on a touchpad come in smaller steps
  zoom(Math.exp(-event.deltaY * unit * speed), event.offsetX);
}

// Two fingers zoom and scroll.
const fingers = new Map();
let pinch = null;

function pinching() {
  const [a, b] = [...fingers.values()];
  const left = $("ruler").getBoundingClientRect().left;
  return { middle: (a + b) / 2 - left, apart: Math.max(20, Math.abs(a - b)) };
}

const lanesRoot = $("lanes");
lanesRoot.addEventListener("pointerdown", (event) => {
  if (event.pointerType !== "touch" || !(event.target instanceof HTMLCanvasElement)) return;
  fingers.set(event.pointerId, event.clientX);
  pinch = fingers.size === 2 ? { ...pinching(), scale: view.scale, time: toTime(pinching().middle) } : null;
}, true);
lanesRoot.addEventListener("pointermove", (event) => {
  if (!fingers.has(event.pointerId)) return;
  fingers.set(event.pointerId, event.clientX);
  if (!pinch) return;
  const now = pinching();
  const scale = clampScale((pinch.scale * now.apart) / pinch.apart);
  view.fits = false;
  look(pinch.time - now.middle / scale, scale);
}, true);
for (const name of ["pointerup", "pointercancel"])
  addEventListener(name, (event) => {
    fingers.delete(event.pointerId);
    pinch = null;
  }, true);

// ---- named marks ----

const named = () => `m${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;

export function addMark(time = player.position) {
  const label = `Mark ${state.arrangement.marks.length + 1}`;
  return saveMarks([...state.arrangement.marks, { id: named(), time, label }]);
}

const saveMarks = (list) => act("set", { marks: list.toSorted((a, b) => a.time - b.time), was: { marks: state.arrangement.marks } });
const changeMark = (id, fields) => saveMarks(state.arrangement.marks.map((mark) => (mark.id === id ? { ...mark, ...fields } : mark)));

// Remove a mark; the focus goes to what removes the next one.
async function removeMark(id) {
  const n = state.arrangement.marks.findIndex((mark) => mark.id === id);
  await saveMarks(state.arrangement.marks.filter((mark) => mark.id !== id));
  const items = $("mark-list").children;
  (items[Math.min(n, items.length - 1)]?.lastChild ?? $("marks-details").firstChild).focus();
}

let listed = "";

function showMarks() {
  const list = state.arrangement.marks;
  $("no-marks").hidden = list.length > 0;
  $("num-marks").textContent = list.length || "";
  if (JSON.stringify(list) === listed) return;
  listed = JSON.stringify(list);
  const { key } = document.activeElement.dataset; // of the field that is changed
  $("mark-list").replaceChildren(...list.map((mark) => {
    const label = make("input", { value: mark.label, maxLength: 60, "aria-label": `Name of mark at ${clock(mark.time)}` });
    const time = make("input", { type: "number", step: 0.001, min: 0, value: mark.time.toFixed(3), "aria-label": `Time of ${mark.label}, seconds` });
    label.onchange = async () => {
      const name = label.value.trim();
      if (!name || !(await changeMark(mark.id, { label: name }))) label.value = mark.label;
    };
    time.onchange = async () => {
      const why = fault(time, "Time");
      if (why) say(why);
      if (why || !(await changeMark(mark.id, { time: time.valueAsNumber }))) time.value = mark.time.toFixed(3);
    };
    const go = make("button", { type: "button", className: "plain", textContent: "Go", "aria-label": `Go to ${mark.label}`, onclick: () => player.seek(mark.time) });
    const remove = make("button", { type: "button", className: "plain", textContent: "Remove", "aria-label": `Remove ${mark.label}`, onclick: () => removeMark(mark.id) });
    [label, time, go].forEach((each, k) => (each.dataset.key = `${mark.id} ${k}`));
    return make("li", {}, label, make("span", { className: "field" }, time, " s"), go, remove);
  }));
  if (key) [...$("mark-list").querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus();
}

// The ruler: a click or a drag goes there; a mark's flag is dragged.
$("ruler").onpointerdown = (event) => {
  const canvas = $("ruler");
  const x = event.offsetX;
  const mark = event.offsetY < canvas.clientHeight / 2 && marks().findLast((each) => x >= toX(each.time) - 3 && x <= toX(each.time) + 60);
  if (!mark) {
    const go = (move) => {
      const time = timeOf(move, canvas);
      player.seek(time + snap([time], move, { without: [player.position] }));
    };
    drag(canvas, event, go, () => {}, 0);
    return go(event);
  }
  const grip = timeOf(event, canvas) - mark.time;
  drag(canvas, event, (move) => {
    const time = Math.max(0, timeOf(move, canvas) - grip);
    const moved = { ...mark, time: time + snap([time], move, { without: [mark.time, marks().find((each) => each.id === mark.id).time] }) };
    dragged = state.arrangement.marks.map((each) => (each.id === mark.id ? moved : each));
    redraw();
  }, async (far, last, cancelled) => {
    if (cancelled) dragged = null;
    else if (far) await changeMark(mark.id, { time: dragged.find((each) => each.id === mark.id).time });
    else player.seek(mark.time);
    dragged = null;
    redraw();
  });
};

// ---- the fields of the selection ----

function showSpan() {
  const { span } = selection;
  $("from").value = span ? span[0].toFixed(3) : "";
  $("to").value = span ? span[1].toFixed(3) : "";
  $("length").textContent = span ? `${(span[1] - span[0]).toFixed(3)} s` : "";
  for (const id of ["play-span", "zoom-span", "clear-span"]) $(id).disabled = !span;
}

$("from").onchange = $("to").onchange = () => {
  const [a, b] = [$("from"), $("to")].map((field) => field.valueAsNumber);
  if (Number.isNaN(a) || Number.isNaN(b)) return;
  select({ span: [a, b] });
  if (!selection.span) say(`A selection is at least ${LEAST} s long, and ends at ${clock(player.end)}.`);
};
onSelection(showSpan);

// ---- from the state ----

addEventListener("analysed", redraw);
onState(() => {
  if (!state.clip) return;
  if (!lanes.size) {
    addLane($("ruler"), paintRuler);
    addLane($("shots"), paintPicture);
    $("shots").onpointerdown = (event) => grab($("shots"), event);
  }
  showMarks();
  if (view.fits) fit();
  redraw();
});
