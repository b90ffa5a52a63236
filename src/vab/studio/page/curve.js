// The timing curve: events that are tapped, clicked and dragged, and the level over time, drawn.

import { analysis, frameSeconds } from "./analysis.js";
import { about, act, onState, say, state } from "./api.js";
import { player } from "./audio.js";
import { clock, fault, make, write } from "./dom.js";
import { addLane, colour, drag, redraw, snap, timeOf, toX } from "./timeline.js";

const FLOOR = -45; // dB relative to the loudest part: the bottom of the lane
const PAD = 8; // pixels above the strongest and below the weakest
const REACH = 8; // pixels from a point to what grabs it
const PAUSE = 900; // milliseconds without another tap until they are one step of the history
const DENSE = 6; // pixels between the points of a line that is drawn
const $ = (id) => document.getElementById(id);
const EMPTY = { events: [], level: [] };

let draft = null; // the curve while it is being changed
let kind = "events"; // what the lane edits: "events" or "level"
let chosen = null; // the chosen point: one of the curve's own
let timer = 0;

let base = null; // the curve that the draft began with
let saving = Promise.resolve();

export const curve = () => draft ?? state.arrangement.curve ?? EMPTY;
const inOrder = (points) => points.toSorted((a, b) => a[0] - b[0]);
const canvas = $("curve");

function edit(next, wait = 0) {
  if (!draft) base = state.arrangement.curve;
  draft = next;
  show();
  clearTimeout(timer);
  timer = setTimeout(save, wait);
}

function save() {
  clearTimeout(timer);
  timer = 0;
  saving = saving.then(saveDraft); // one after another: each says what it replaces
  return saving;
}

async function saveDraft() {
  const own = draft;
  if (!own) return;
  const empty = !own.events.length && !own.level.length;
  const rounded = (points) => inOrder(points).map(([time, value]) => [Number(time.toFixed(4)), Number(value.toFixed(3))]);
  const next = empty ? null : { events: rounded(own.events), level: rounded(own.level) };
  const done = await act("set", { curve: next, was: { curve: base }, ...led(next) });
  if (done) base = state.arrangement.curve;
  if (!done || draft === own) draft = null; // else there is more to come
  show();
}

// A curve that begins leads the takes, in the same step of the history, and one that is gone does not any more.
function led(next) {
  const { timing } = state.arrangement.settings;
  if (!about.timing || Boolean(next) === Boolean(base)) return {};
  if (next) return timing === "curve" ? {} : { settings: { timing: "curve" } };
  return timing === "curve" ? { settings: { timing: about.defaults.timing } } : {};
}

// Before an undo: what is not yet a step becomes one.
export const settle = () => timer && save();
addEventListener("pagehide", settle);

// An event at what is heard at a moment (of performance.now()), in time with the hand.
export function tap(moment) {
  const time = player.heardAt(moment);
  chosen = [time, 1];
  edit({ ...curve(), events: [...curve().events, chosen] }, PAUSE);
  $("tap").classList.add("hit");
  setTimeout(() => $("tap").classList.remove("hit"), 120);
}

// ---- the lane ----

const tall = () => canvas.clientHeight - 2 * PAD;
const valueOf = (y) => {
  const share = Math.min(1, Math.max(0, 1 - (y - PAD) / tall()));
  return kind === "events" ? Math.max(0.05, share) : FLOOR * (1 - share);
};
const yOf = (value, of = kind) => PAD + (1 - (of === "events" ? value : 1 - value / FLOOR)) * tall();

function paint(context, width, height) {
  const { events, level } = curve();
  if (level.length) {
    const line = inOrder(level);
    const points = [[-4, yOf(line[0][1], "level")], ...line.map(([time, value]) => [toX(time), yOf(value, "level")]), [width + 4, yOf(line.at(-1)[1], "level")]];
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.strokeStyle = colour("level");
    context.lineWidth = 1.5;
    context.stroke();
    context.lineTo(width + 4, height);
    context.lineTo(-4, height);
    context.fillStyle = colour("level-fill");
    context.fill();
    if (kind === "level") for (const point of line) dot(context, toX(point[0]), yOf(point[1], "level"), "level", point);
  }
  for (const event of events) {
    const x = toX(event[0]);
    if (x < -10 || x > width + 10) continue;
    context.fillStyle = colour("event");
    context.fillRect(Math.round(x) - 1, yOf(event[1], "events"), 2, height - yOf(event[1], "events"));
    dot(context, x, yOf(event[1], "events"), "event", event);
  }
}

function dot(context, x, y, name, point) {
  const own = isChosen(point);
  context.beginPath();
  context.arc(x, y, own ? 5 : 3.5, 0, 7);
  context.fillStyle = colour(name);
  context.fill();
  if (!own) return;
  context.strokeStyle = colour("ink");
  context.lineWidth = 2;
  context.stroke();
}

const isChosen = (point) => chosen && Math.abs(point[0] - chosen[0]) < 1e-3 && Math.abs(point[1] - chosen[1]) < 0.01; // rounded when saved

function pointAt(x, y) {
  const near = (point) => Math.hypot(toX(point[0]) - x, kind === "events" ? Math.max(0, yOf(point[1]) - y) : yOf(point[1]) - y); // a stem may be grabbed anywhere
  const found = curve()[kind].filter((point) => near(point) <= REACH);
  return found.toSorted((a, b) => near(a) - near(b))[0] ?? null;
}

const replaced = (points, old, point) => points.map((each) => (each === old ? point : each));

canvas.onpointerdown = (event) => {
  if (event.button) return;
  const known = pointAt(event.offsetX, event.offsetY);
  if (!known && kind === "level") return drawLevel(event);
  const others = curve();
  let now = known ?? [timeAt(event), valueOf(event.offsetY)];
  if (!known) draft = { ...others, events: [...others.events, now] };
  const was = now;
  chosen = now;
  show();
  drag(canvas, event, (move) => {
    const y = move.clientY - canvas.getBoundingClientRect().top;
    const next = [timeAt(move, was[0]), Math.abs(move.clientY - event.clientY) < 4 ? was[1] : valueOf(y)];
    draft = { ...curve(), [kind]: replaced(curve()[kind], now, next) };
    chosen = now = next;
    show();
  }, (far, last, cancelled) => {
    if (cancelled) draft = null;
    else if (far || !known) return edit(curve());
    show();
  });
};

function timeAt(event, without) {
  const time = Math.max(0, timeOf(event, canvas));
  return Math.max(0, time + snap([time], event, { without: [without] }));
}

// Where the pointer goes the line follows, in place of what was there.
function drawLevel(event) {
  const line = [];
  const before = curve().level;
  const put = (move) => {
    const y = move.clientY - canvas.getBoundingClientRect().top;
    const point = [Math.max(0, timeOf(move, canvas)), valueOf(y)];
    const last = line.at(-1);
    if (last && Math.abs(toX(last[0]) - toX(point[0])) < DENSE) return;
    line.push(point);
    const [a, b] = [Math.min(...line.map(([time]) => time)), Math.max(...line.map(([time]) => time))];
    draft = { ...curve(), level: [...before.filter(([time]) => time < a || time > b), ...line] };
    chosen = point;
    show();
  };
  put(event);
  drag(canvas, event, put, (far, last, cancelled) => {
    if (!cancelled) return edit(curve());
    draft = null;
    show();
  });
}

canvas.ondblclick = (event) => {
  const found = pointAt(event.offsetX, event.offsetY);
  if (found) remove(kind, found);
};

function remove(of, point) {
  edit({ ...curve(), [of]: curve()[of].filter((each) => each !== point) });
  chosen = null;
  show();
}

// Arrows move the chosen point, with Shift they choose another; Enter adds one where it is heard.
canvas.onkeydown = (event) => {
  if (event.ctrlKey || event.metaKey) return;
  const points = inOrder(curve()[kind]);
  const n = points.findIndex(isChosen);
  const point = points[n];
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: 1, ArrowDown: -1 };
  const way = steps[event.key];
  if (way && event.shiftKey) {
    chosen = points[n < 0 ? 0 : Math.min(points.length - 1, Math.max(0, n + way))] ?? null;
    if (chosen) player.seek(chosen[0]);
  } else if (way && point) {
    const across = event.key === "ArrowLeft" || event.key === "ArrowRight";
    const step = event.altKey ? 0.001 : frameSeconds();
    const next = across ? [Math.max(0, point[0] + way * step), point[1]] : [point[0], kind === "events" ? Math.min(1, Math.max(0.05, point[1] + way * 0.05)) : Math.min(0, Math.max(FLOOR, point[1] + way * 1.5))];
    chosen = next;
    edit({ ...curve(), [kind]: replaced(curve()[kind], point, next) }, PAUSE);
  } else if (event.key === "Enter") {
    chosen = [player.position, kind === "events" ? 1 : 0];
    edit({ ...curve(), [kind]: [...curve()[kind], chosen] });
  } else if ((event.key === "Delete" || event.key === "Backspace") && point) remove(kind, point);
  else return;
  event.preventDefault();
  event.stopPropagation();
  show();
};

// ---- its buttons and its list ----

for (const field of document.querySelectorAll("input[name=curve-kind]"))
  field.onchange = () => {
    kind = field.value;
    chosen = null;
    show();
  };
$("tap").onclick = (event) => tap(event.timeStamp);
$("from-motion").onclick = () => edit({ ...curve(), events: analysis.motion.map((time) => [time, 1]) });
$("clear-curve").onclick = () => {
  chosen = null;
  edit(EMPTY);
};

const UNITS = { events: { word: "Event", unit: "strength", least: 0.05, most: 1, step: 0.05 }, level: { word: "Level", unit: "dB", least: FLOOR, most: 0, step: 0.5 } };
const HINTS = {
  empty: "Tap T while it plays, click here, or take the picture's motion. Takes follow this curve if Timing says so.",
  deaf: "This model cannot be told when to sound: its takes do not follow a curve. Those of vab-tiny can.",
};
let listed = "";

function listItem(of, point, n) {
  const { word, unit, least, most, step } = UNITS[of];
  const change = (field, name, next) => {
    const why = fault(field, name);
    if (!why) return edit({ ...curve(), [of]: replaced(curve()[of], point, next) });
    say(why);
    listed = "";
    show();
  };
  const time = make("input", { type: "number", min: 0, step: 0.001, value: point[0].toFixed(3), "aria-label": `${word} ${n + 1}, seconds` });
  const value = make("input", { type: "number", min: least, max: most, step, value: Number(point[1].toFixed(2)), "aria-label": `${word} ${n + 1}, ${unit}` });
  time.onchange = () => change(time, "Time", [time.valueAsNumber, point[1]]);
  value.onchange = () => change(value, of === "events" ? "Strength" : "Level", [point[0], value.valueAsNumber]);
  const go = make("button", { type: "button", className: "plain", textContent: "Go", "aria-label": `Go to ${word.toLowerCase()} ${n + 1}`, onclick: () => player.seek(point[0]) });
  const away = make("button", { type: "button", className: "plain", textContent: "Remove", "aria-label": `Remove ${word.toLowerCase()} ${n + 1}`, onclick: () => remove(of, point) });
  return make("li", {}, make("span", { className: "soft", textContent: `${word} ${n + 1}` }), make("span", { className: "field" }, time, " s"), make("span", { className: "field" }, value, ` ${unit}`), go, away);
}

function show() {
  const now = curve();
  const { events, level } = now;
  $("num-events").textContent = events.length || level.length ? `${events.length} event${events.length === 1 ? "" : "s"}, ${level.length} of level` : "";
  $("clear-curve").disabled = !events.length && !level.length;
  $("from-motion").disabled = !analysis.motion.length;
  write($("curve-hint"), about.timing ? HINTS.empty : HINTS.deaf);
  $("curve-hint").hidden = about.timing && Boolean(events.length || level.length);
  canvas.setAttribute("aria-label", `Timing curve, ${kind === "events" ? "events" : "level"}. ${chosen ? `Chosen: ${clock(chosen[0])}` : "Nothing chosen"}. Enter adds one, Shift and arrows choose, arrows move, Delete removes.`);
  redraw();
  const key = JSON.stringify(now);
  if (!$("curve-details").open || key === listed) return;
  listed = key;
  $("curve-list").replaceChildren(...["events", "level"].flatMap((of) => inOrder(now[of]).map((point, n) => listItem(of, point, n))));
}

$("curve-details").ontoggle = () => {
  listed = "";
  show();
};

addEventListener("analysed", () => state.clip && show());

let ready = false;
onState(() => {
  if (!state.clip) return;
  if (!ready) addLane(canvas, paint);
  ready = true;
  show();
});
