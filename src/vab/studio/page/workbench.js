// The workbench: transport, one clock for picture and sound, keys, history.

import { frameAt, frameBeside, frameSeconds } from "./analysis.js";
import { act, onState, say, state } from "./api.js";
import { player } from "./audio.js";
import * as curve from "./curve.js";
import { clock } from "./dom.js";
import { readFrames } from "./frames.js";
import * as layers from "./layers.js";
import "./panels.js";
import { addMark, drag, fit, follow, neighbour, onSelection, redraw, scroll, select, selection, view, zoom } from "./timeline.js";

const DRIFT = 0.02; // seconds that the picture may be off before its speed is changed
const MOST_FPS = 30.5; // frames a second up to which all of them are shown
const JUMP = 0.2; // and before it is made to jump
const $ = (id) => document.getElementById(id);
const picture = $("picture");

// ---- transport ----

let loops = false; // the selection is to go round

const whole = () => [0, player.end];
const fail = () => say("This browser does not play sound here. Click the page and try again.");

function toggle() {
  if (player.playing) return player.pause();
  const span = loops ? (selection.span ?? whole()) : null;
  const from = player.position;
  if (span) {
    const inside = from >= span[0] && from < span[1] - 0.005;
    return player.play(span[0], span[1], true).then(() => inside && player.seek(from)).catch(fail);
  }
  return player.play(from >= player.end - 0.005 ? 0 : from).catch(fail);
}

function playSpan() {
  if (selection.span) player.play(...selection.span).catch(fail);
}

function setLoop(on) {
  loops = on;
  $("loop").setAttribute("aria-pressed", on);
  if (player.playing) player.circle(on ? (selection.span ?? whole()) : null);
}

$("play").onclick = toggle;
$("play-span").onclick = playSpan;
$("loop").onclick = () => setLoop(!loops);
$("start").onclick = () => player.seek(0);

// The mark that goes round can be changed while it does.
let circling = "";
onSelection(() => {
  const key = JSON.stringify(selection.span);
  if (key !== circling && loops && player.playing) player.circle(selection.span ?? whole());
  circling = key;
});

player.addEventListener("change", () => {
  $("play").textContent = player.playing ? "Pause" : "Play";
  const n = state.arrangement?.layers.findIndex((layer) => layer.id === player.only) ?? -1;
  const text = n < 0 ? "" : `Only ${state.arrangement.layers[n].name}`;
  if ($("hearing").textContent !== text) $("hearing").textContent = text; // which is read out
  if (!player.playing) picture.pause();
  step();
});

// Another sound of the page, one of the library, is not played over.
document.addEventListener("play", (event) => event.target !== picture && player.pause(), true);

// ---- the picture follows the sound ----

function showPicture() {
  const end = Math.max(0, (state.clip?.seconds ?? 0) - 0.001);
  const place = Math.min(player.position, end);
  if (!picture.duration || picture.seeking) return;
  if (!player.playing || place >= end) {
    picture.pause();
    const aim = place + Math.min(0.001, frameSeconds() / 4); // in the frame, not at its edge
    if (Math.abs(picture.currentTime - aim) > 0.0005) picture.currentTime = Math.min(aim, picture.duration);
    return;
  }
  if (picture.paused) picture.play().catch(() => {}); // the sound goes on without it
  const off = picture.currentTime - place;
  if (Math.abs(off) > JUMP) picture.currentTime = place;
  const rate = Math.abs(off) > DRIFT ? Math.min(1.25, Math.max(0.75, 1 - 2 * off)) : 1;
  if (picture.playbackRate !== rate) picture.playbackRate = rate;
}
picture.onseeked = picture.onloadeddata = () => showPicture();

let frame = 0;
const levels = new Float32Array(2048);

function step() {
  cancelAnimationFrame(frame);
  const place = player.position;
  $("seconds").textContent = clock(place);
  $("frame").textContent = `f ${frameAt(place)}`;
  showPicture();
  follow();
  showMeter();
  if (player.playing) frame = requestAnimationFrame(step);
}

function showMeter() {
  let peak = 0;
  if (player.playing) {
    player.meter.getFloatTimeDomainData(levels);
    for (const level of levels) peak = Math.max(peak, Math.abs(level));
  }
  const decibels = 20 * Math.log10(peak + 1e-6);
  $("meter").value = Math.max(decibels, player.playing ? $("meter").value - 1.5 : -60);
  $("meter").classList.toggle("over", peak > 1);
}

// ---- tools ----

$("zoom-in").onclick = () => zoom(2);
$("zoom-out").onclick = () => zoom(0.5);
$("fit").onclick = () => fit();
$("zoom-span").onclick = () => selection.span && fit(selection.span);
$("clear-span").onclick = () => select({ span: null });
$("add-mark").onclick = () => addMark();
$("snaps").onchange = () => { view.snaps = $("snaps").checked; };
$("mel").onchange = () => {
  view.mel = $("mel").checked;
  redraw();
};
$("tall").onchange = () => {
  view.tall = Number($("tall").value);
  if (!$("tall").matches(":focus-visible")) $("tall").blur(); // chosen by a click: the keys go back to the timeline
  redraw();
};

// The next choice of how tall waveforms are drawn.
function stretch(way) {
  const { options, selectedIndex } = $("tall");
  $("tall").selectedIndex = Math.min(options.length - 1, Math.max(0, selectedIndex + way));
  $("tall").onchange();
}

// The line between picture and timeline is dragged, or moved by arrow keys: how much of the window the timeline has.
const SPLIT = { least: 20, most: 85, step: 2, name: "vab timeline height" };

function split(share) {
  share = Math.min(SPLIT.most, Math.max(SPLIT.least, share));
  $("timeline").style.setProperty("--tall", `${share}vh`);
  $("timeline").style.height = `${share}vh`;
  $("split").setAttribute("aria-valuenow", Math.round(share));
  try {
    localStorage.setItem(SPLIT.name, share);
  } catch {
    // a browser that keeps nothing: it is as ever the next time
  }
}

$("split").onpointerdown = (event) => drag($("split"), event, (move) => split((100 * (innerHeight - move.clientY)) / innerHeight), () => {});
$("split").onkeydown = (event) => {
  const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!way) return;
  split((100 * $("timeline").clientHeight) / innerHeight + way * SPLIT.step);
  event.preventDefault();
  event.stopPropagation();
};
try {
  const kept = Number(localStorage.getItem(SPLIT.name));
  if (kept) split(kept);
} catch {
  // as above
}

// ---- keys ----

const TYPED = "input:not([type=checkbox], [type=radio], [type=range]), select, textarea";

function move(way, selects) {
  const from = player.position;
  const to = Math.min(player.end, Math.max(0, frameBeside(from, way)));
  if (selects) {
    const { span } = selection;
    const fixed = !span ? from : Math.abs(span[0] - from) < 1e-3 ? span[1] : span[0];
    select({ span: [fixed, to] });
  }
  player.seek(to);
}

function edge(side) {
  const span = selection.span ?? [0, player.end];
  const place = player.position;
  select({ span: side ? [Math.min(span[0], place), place] : [place, Math.max(span[1], place)] });
}

async function history(verb) {
  await layers.settle();
  await curve.settle();
  act(verb);
}

const KEYS = {
  " ": toggle,
  p: playSpan,
  l: () => setLoop(!loops),
  m: () => addMark(),
  t: (event) => curve.tap(event.timeStamp),
  i: () => edge(0),
  o: () => edge(1),
  f: () => fit(),
  z: () => selection.span && fit(selection.span),
  w: (event) => stretch(event.shiftKey ? -1 : 1),
  "+": () => zoom(2),
  "=": () => zoom(2),
  "-": () => zoom(0.5),
  "[": () => player.seek(neighbour(player.position, -1)),
  "]": () => player.seek(neighbour(player.position, 1)),
  0: () => player.hear(null),
  Home: () => player.seek(0),
  End: () => player.seek(player.end),
  ArrowLeft: (event) => move(-1, event.shiftKey),
  ArrowRight: (event) => move(1, event.shiftKey),
  PageUp: () => scroll((-0.8 * view.width) / view.scale),
  PageDown: () => scroll((0.8 * view.width) / view.scale),
  Escape: () => select({ span: null }),
};

let before = ""; // what a field held when it was entered
addEventListener("focusin", ({ target }) => { before = target.value; });

// The space bar presses a button that the keyboard has come to; after a click on one it still plays.
let clicked = null;
addEventListener("pointerdown", (event) => { clicked = event.target.closest?.("button, a, summary, input") ?? null; }, true);
addEventListener("focusin", (event) => { if (event.target !== clicked) clicked = null; });
addEventListener("keyup", (event) => event.key === " " && event.target === clicked && event.preventDefault());

addEventListener("keydown", (event) => {
  const { target, key } = event;
  const typing = target.matches(TYPED);
  if (!state.clip || target.closest("dialog")) return;
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z" && !typing) {
    event.preventDefault();
    return history(event.shiftKey ? "redo" : "undo");
  }
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "y" && !typing) {
    event.preventDefault();
    return history("redo");
  }
  // a field of the timeline lets the keys go back to it: what was typed is kept, or not
  if (target.matches("#timeline input") && typing && (key === "Enter" || key === "Escape")) {
    if (key === "Escape") target.value = before;
    return target.blur();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (key === " " && target.matches("button, a, summary, input") && target !== clicked) return;
  if (target.matches("input") && key.startsWith("Arrow")) return; // a slider's or a choice's own
  if (target.closest("#panels") && target !== clicked && !" mtlp".includes(key) && !/^[0-9]$/.test(key)) return;
  const number = /^[1-9]$/.test(key) && state.arrangement.layers[Number(key) - 1];
  const action = number ? () => layers.hearAlone(number.id) : KEYS[key.length === 1 ? key.toLowerCase() : key];
  if (!action || (event.repeat && " ptlm0123456789".includes(key.toLowerCase()))) return;
  event.preventDefault();
  action(event);
});

// A slider or box that was clicked lets the keys go back to the timeline.
addEventListener("pointerup", (event) => event.target.matches?.("#timeline input[type=checkbox], #timeline input[type=radio], .gain") && setTimeout(() => event.target.blur()));

// ---- history and name ----

$("undo").onclick = () => history("undo");
$("redo").onclick = () => history("redo");
$("project-name").onchange = async () => {
  const name = $("project-name").value.trim();
  if (!name || !(await act("rename", { name }))) $("project-name").value = state.project.name;
};
$("inspector").onsubmit = (event) => event.preventDefault();

function showHistory() {
  const [other] = document.activeElement === $("undo") && !state.can_undo ? ["redo"] : document.activeElement === $("redo") && !state.can_redo ? ["undo"] : [];
  $("undo").disabled = !state.can_undo;
  $("redo").disabled = !state.can_redo;
  if (other) $(other).focus(); // not to nowhere
  $("undo").title = state.can_undo ? `Undo: ${state.can_undo} (Ctrl Z)` : "Nothing to undo";
  $("redo").title = state.can_redo ? `Redo: ${state.can_redo} (Ctrl Shift Z)` : "Nothing to redo";
}

let source = "";

onState(() => {
  if (!state.clip) return;
  showHistory();
  document.title = `${state.project.name} - vab studio`;
  if (document.activeElement !== $("project-name")) $("project-name").value = state.project.name;
  $("whole").textContent = `/ ${clock(player.end)}`;
  $("stage").inert = $("timeline").inert = false; // now there is something to work on
  if (source === state.clip.url) return;
  source = state.clip.url;
  picture.src = source;
  picture.poster = "poster.jpg";
  readFrames(source, state.clip.seconds, redraw);
  const { width, height, shown: [wide, high], fps } = state.clip;
  $("screen").style.aspectRatio = `${wide} / ${high}`;
  const isSmaller = wide < width || fps > MOST_FPS;
  $("shown").textContent = isSmaller ? `shown at ${wide} \u00d7 ${high}, exported as it came: ${width} \u00d7 ${height}, ${Number(fps.toFixed(2))} frames a second` : "";
  $("shown").title = $("shown").textContent;
  step();
});
