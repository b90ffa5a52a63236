// The page follows the server: every answer is the whole state of this visitor's session, and is drawn as it is.
"use strict";

const QUICK = 300; // milliseconds until the state is asked for again while something is being made
const SLOW = 15000; // and else: a sign of life
const $ = (id) => document.getElementById(id);
const cards = new Map(); // by track: { root, video, wave, take }
let about = null;
let state = { clip: null, tracks: [], jobs: {}, answers: {} };
let timer = 0;
let camera = null; // while it is on: its stream, and the recorder if it records
let reading = null; // an upload
let deleted = ""; // the clip that its visitor wanted gone
let asked = 0; // requests for the state, numbered
let shown = 0; // the newest of them that was answered

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

function say(text) {
  $("notice-text").textContent = text;
  $("notice").hidden = !text;
}

const LOST = "The studio cannot be reached. Trying again.";
const GONE = "Your clip is not here any more: nobody was here for half an hour, or the studio was started anew. Choose it again.";

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error(LOST);
  }
  const answer = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(answer.error || "The studio could not do that.");
  return answer;
}

// Ask for something that is answered with the state, and show that.
async function get(path, options) {
  const number = ++asked;
  const found = await ask(path, options);
  if (number < shown) return follow(true); // one that was sent later was answered first: which one is newer?
  shown = number;
  if ($("notice-text").textContent === LOST) say("");
  show(found);
}

async function act(verb, values = {}) {
  try {
    say("");
    await get(`do/${verb}`, { method: "POST", body: JSON.stringify(values) });
  } catch (error) {
    say(error.message);
    follow(true);
  }
}

// Ask for the state again, soon if something is being made.
function follow(soon = false) {
  clearTimeout(timer);
  const busy = Object.values(state.jobs).some((job) => job.state === "waiting" || job.state === "working");
  timer = setTimeout(async () => {
    try {
      await get("state");
    } catch (error) {
      say(error.message);
      follow();
    }
  }, soon || busy ? QUICK : SLOW);
}

function show(found) {
  const before = state;
  state = found;
  if (before.clip && !found.clip && before.clip.id !== deleted) say(GONE);
  showClip(before.clip);
  showKnown();
  showTracks();
  showJob("make", "work");
  showJob("find", "find-work");
  showJob("understand", "understand-work");
  showHits();
  showClasses();
  enable();
  follow();
}

function enable() {
  const active = (kind) => ["waiting", "working"].includes(state.jobs[kind]?.state);
  const making = active("make");
  $("make").disabled = !state.clip || making;
  $("own").disabled = making;
  $("find").disabled = !state.clip || active("find");
  $("understand").disabled = !state.clip || active("understand");
  for (const button of document.querySelectorAll(".put")) button.disabled = making;
  for (const card of cards.values()) enableCard(card, making);
}

function enableCard(card, making) {
  const { root, wave, track } = card;
  root.querySelector(".redo").disabled = root.querySelector(".rest").disabled = making || !wave.mark;
  root.querySelector(".extend").disabled = making;
  root.querySelector(".undo").disabled = making || !track.undo;
  root.querySelector(".remove").disabled = making;
}

// ---- the clip ----

function showClip(before) {
  const clip = state.clip;
  $("empty").hidden = $("limits").hidden = Boolean(clip);
  $("clip").hidden = !clip || Boolean(camera);
  $("choose").textContent = clip ? "Choose another" : "Choose a file";
  $("own").hidden = !clip?.sound || Boolean(camera);
  if (clip?.id !== before?.id) {
    if (clip) $("clip").src = clip.url;
    else $("clip").removeAttribute("src");
  }
}

// Whether the model knows what the clip shows: it says so only where it seems not to.
function showKnown() {
  const known = state.answers.known;
  const text = !known || known.is_known ? "" : `${about.model} may not know what this shows: it comes nearest to ${plain(known.nearest[0][0])} (score ${known.score.toFixed(2)}, below ${known.threshold.toFixed(2)}), and its sounds may have nothing to do with the picture. It learned ${learned()}.`;
  if ($("known").textContent !== text) $("known").textContent = text; // which is read out
  $("known").hidden = !text;
}

const plain = (name) => name.replaceAll("_", " ");
const learned = () => about.learned.slice(0, 40).map(plain).join(", ") + (about.learned.length > 40 ? " and more" : "");

function willing() {
  return !state.tracks.length || confirm("Another clip takes the place of this one and its takes. Go on?");
}

async function upload(file) {
  if (!file) return;
  if (file.size > about.limits.bytes) return say(`It is too large: ${about.limits.bytes >> 20} MB are the most here.`);
  say("");
  reading?.abort();
  const own = (reading = new AbortController());
  $("reading").hidden = false;
  try {
    await get("clip", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal: own.signal });
  } catch (error) {
    if (!own.signal.aborted) say(error.message);
  }
  if (reading !== own) return;
  reading = null;
  $("reading").hidden = true;
}

$("file").onchange = () => {
  if (willing()) upload($("file").files[0]);
  $("file").value = ""; // the same one may be chosen again
};
$("stop-reading").onclick = () => reading?.abort();
// anywhere on the page: a browser would open a file that is dropped beside the box
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length && willing()) closeCamera(event.dataTransfer.files[0]);
});
$("own").onclick = () => act("own");

// The camera is off (null), or shows its picture, or records it.
function showCamera() {
  const recording = Boolean(camera?.recorder);
  $("camera").hidden = $("file").parentElement.hidden = Boolean(camera);
  $("preview").hidden = $("close-camera").hidden = !camera;
  $("record").hidden = $("snap").hidden = !camera || recording;
  $("stop").hidden = !recording;
  $("preview").classList.toggle("recording", recording);
  showClip(state.clip);
}

// Off again; what was recorded, if anything, becomes the clip.
function closeCamera(file) {
  camera?.stream.getTracks().forEach((each) => each.stop());
  camera = $("preview").srcObject = null;
  showCamera();
  upload(file);
}

$("camera").onclick = async () => {
  if (!willing()) return;
  $("camera").disabled = true; // while the browser asks
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: true });
    camera = { stream };
    $("preview").srcObject = stream;
    showCamera();
    $("record").focus();
  } catch {
    say("There is no camera that this page may use.");
  } finally {
    $("camera").disabled = false;
  }
};
$("record").onclick = () => {
  const recorder = new MediaRecorder(camera.stream);
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => camera?.recorder === recorder && closeCamera(new Blob(parts));
  recorder.start();
  camera.recorder = recorder;
  setTimeout(() => recorder.state === "recording" && recorder.stop(), (about.limits.seconds - 1) * 1000);
  showCamera();
  $("stop").focus();
};
$("stop").onclick = () => camera.recorder.stop();
$("snap").onclick = () => {
  const seen = $("preview");
  if (!seen.videoWidth) return; // it has not shown anything yet
  const canvas = make("canvas", { width: seen.videoWidth, height: seen.videoHeight });
  canvas.getContext("2d").drawImage(seen, 0, 0);
  canvas.toBlob(closeCamera, "image/png");
};
$("close-camera").onclick = () => closeCamera(null);

// ---- settings ----

function settings() {
  const fields = [...$("settings").querySelectorAll("input")].filter((input) => !input.disabled);
  return Object.fromEntries(fields.map((input) => [input.name, input.valueAsNumber]));
}

function defaults() {
  for (const [name, value] of Object.entries(about.defaults)) $("settings").elements[name].value = value;
  $("settings").elements.steps.disabled = !about.defaults.steps; // made one frame after another: no steps
}

$("settings").onsubmit = (event) => { event.preventDefault(); act("make", settings()); };
$("defaults").onclick = defaults;

// ---- jobs ----

const DONE = "Done.";

function showJob(kind, place) {
  const job = state.jobs[kind];
  const active = job && (job.state === "waiting" || job.state === "working");
  const line = $(place);
  if (!active) {
    const seen = line.textContent === DONE || line.querySelector("progress"); // else the page is new
    const ended = { cancelled: "Cancelled.", failed: job?.error, done: seen ? DONE : "" }[job?.state] ?? "";
    if (line.textContent === ended) return;
    line.textContent = ended; // which is read out
    if (ended === DONE) setTimeout(() => line.textContent === DONE && line.replaceChildren(), 5000);
    return;
  }
  if (!line.querySelector("progress")) {
    const bar = make("progress", { max: 1 });
    bar.setAttribute("aria-label", "Progress");
    line.replaceChildren(make("span"), bar, make("button", { type: "button", className: "plain", textContent: "Cancel", onclick: () => act("cancel", { kind }) }));
  }
  const ahead = job.ahead === 1 ? "1 job comes first" : `${job.ahead} jobs come first`;
  const percent = job.stage && job.share ? `, ${10 * Math.round(10 * job.share)} %` : ""; // seldom enough to be read out
  const text = job.state === "waiting" && job.ahead ? `Waiting: ${ahead}` : `${job.stage || "starting"}${percent}`;
  if (line.querySelector("span").textContent !== text) line.querySelector("span").textContent = text;
  if (job.share) line.querySelector("progress").value = job.share;
  else line.querySelector("progress").removeAttribute("value");
}

// ---- takes ----

function showTracks() {
  for (const [id, card] of cards)
    if (!state.tracks.some((track) => track.id === id)) {
      card.root.remove();
      cards.delete(id);
    }
  state.tracks.forEach((track, n) => {
    if (!cards.has(track.id)) cards.set(track.id, newCard(track));
    const card = cards.get(track.id);
    card.track = track;
    if (card.take !== track.take) fill(card);
    if ($("takes").children[n] !== card.root) $("takes").insertBefore(card.root, $("takes").children[n] || null);
    number(card, n + 1);
  });
  $("no-takes").hidden = state.tracks.length > 0;
  $("about-fit").hidden = !state.tracks.some((track) => track.score !== null);
  choices("find-by", "the picture");
  choices("understand-by", "the picture alone");
}

function choices(place, first) {
  const options = [["", first], ...state.tracks.map((track, n) => [track.id, `take ${n + 1}`])];
  const chosen = $(place).value;
  if ($(place).dataset.now === JSON.stringify(options)) return;
  $(place).dataset.now = JSON.stringify(options);
  $(place).replaceChildren(...options.map(([value, text]) => make("option", { value, textContent: text })));
  if (options.some(([value]) => value === chosen)) $(place).value = chosen;
}

function newCard(track) {
  const root = $("card").content.firstElementChild.cloneNode(true);
  const video = root.querySelector("video");
  const card = { root, video, track, take: "" };
  const change = (verb, more) => act(verb, { ...settings(), track: card.track.id, ...more });
  const redo = (rest) => change("redo", { from: card.wave.mark[0], to: card.wave.mark[1], rest });
  const find = (name) => root.querySelector(name);
  card.wave = new Wave(find(".wave"), video, find(".from"), find(".to"), () => card.wave && enable());
  video.onclick = find(".play").onclick = () => toggle(video);
  video.onplay = () => { quiet(video); find(".play").textContent = "Pause"; run(card); };
  video.onpause = video.onended = () => { find(".play").textContent = "Play"; run(card); };
  video.onseeked = video.onloadedmetadata = () => run(card);
  find(".redo").onclick = () => redo(false);
  find(".rest").onclick = () => redo(true);
  find(".extend").onclick = () => change("extend", { seconds: find(".more").valueAsNumber });
  find(".undo").onclick = () => change("undo");
  find(".remove").onclick = () => change("remove");
  return card;
}

// Its number: others may have been removed since.
function number(card, n) {
  const { root, track, video } = card;
  root.querySelector("h3").replaceChildren(`Take ${n}`, make("small", { textContent: track.title }));
  root.setAttribute("aria-label", `Take ${n}`);
  video.setAttribute("aria-label", `Take ${n}`);
  root.querySelector(".wave").setAttribute("aria-label", `Take ${n}: place in seconds. Arrow keys move, with Shift they mark a part.`);
  for (const ending of ["wav", "mp4"]) {
    const link = root.querySelector(`.${ending}`);
    link.download = `take_${n}.${ending}`;
    link.setAttribute("aria-label", `Download take ${n} as ${ending.toUpperCase()}`);
  }
}

const FIT = "How near the model itself finds sound and picture: the cosine of its two embeddings, -1 to 1. No measure of quality.";

function fill(card) {
  const { root, track, video } = card;
  card.take = track.take;
  video.pause(); // another source stops it without saying so
  root.querySelector(".play").textContent = "Play";
  video.src = `${track.url}.mp4`;
  card.wave.show(track.url, track.seconds, track.again);
  const fit = root.querySelector(".fit");
  fit.textContent = track.score === null ? "" : `fit ${track.score.toFixed(2)}`;
  fit.title = FIT;
  for (const ending of ["wav", "mp4"]) root.querySelector(`.${ending}`).href = `${track.url}.${ending}`;
  const rows = Object.entries(track.timings);
  const total = rows.reduce((sum, [, seconds]) => sum + seconds, 0);
  root.querySelector("summary").textContent = `${total.toFixed(1)} s to make`;
  root.querySelector("dl").replaceChildren(...rows.flatMap(([stage, seconds]) => [make("dt", { textContent: stage }), make("dd", { textContent: `${seconds.toFixed(2)} s` })]));
  run(card);
}

// Move the line on the waveform, at every picture while it plays.
function run(card) {
  card.wave.tick();
  card.root.querySelector(".time").textContent = `${card.video.currentTime.toFixed(1)} of ${card.track.seconds.toFixed(1)} s`;
  cancelAnimationFrame(card.frame);
  if (!card.video.paused) card.frame = requestAnimationFrame(() => run(card));
}

function toggle(media) {
  if (media.paused) media.play().catch(complain);
  else media.pause();
}

function complain(error) {
  if (error.name !== "AbortError") say("This cannot be played; please try again."); // stopped before it began
}

// Only one plays at a time.
function quiet(except) {
  for (const media of document.querySelectorAll("video, audio")) if (media !== except && media.id !== "preview") media.pause();
}

// ---- find ----

let drawn = {}; // answers that are on the page
let playing = "";

function listen(row, start) {
  const url = `library/${row}.wav?start=${start}`;
  const stop = playing === url && !$("player").paused;
  $("player").pause();
  playing = stop ? "" : url;
  if (!stop) {
    $("player").src = url;
    $("player").play().catch(complain);
  }
}

$("player").onplay = $("player").onpause = $("player").onended = (event) => {
  if (event.type === "play") quiet($("player"));
  for (const button of document.querySelectorAll(".hear")) button.textContent = !$("player").paused && button.dataset.url === playing ? "Stop" : "Hear";
};

function hit(found) {
  const { row, start, name, label, score } = found;
  const hear = make("button", { type: "button", className: "hear plain", textContent: "Hear", onclick: () => listen(row, start) });
  hear.dataset.url = `library/${row}.wav?start=${start}`;
  hear.setAttribute("aria-label", `Hear ${name}`);
  const put = make("button", { type: "button", className: "put plain", textContent: "Put under", onclick: () => act("place", { row, start }) });
  put.setAttribute("aria-label", `Put ${name} under the picture`);
  const at = start ? `, from ${start.toFixed(1)} s` : "";
  return make("li", {}, hear, make("span", { className: "what", title: FIT }, name, make("small", { textContent: `${label.replaceAll("_", " ")}${at}, fit ${score.toFixed(2)}` })), put);
}

// What an answer speaks of: a take may have been changed or removed since.
function subject(answer) {
  const n = state.tracks.findIndex((track) => track.take === answer.by);
  return !answer.by ? "the picture" : n < 0 ? "an earlier take" : `take ${n + 1}`;
}

function showHits() {
  const answer = state.answers.find;
  $("no-hits").hidden = Boolean(answer);
  $("hits-by").textContent = answer ? `Nearest to ${subject(answer)}` : "";
  if (JSON.stringify(answer) === drawn.find) return;
  drawn.find = JSON.stringify(answer);
  $("hits").replaceChildren(...(answer?.hits ?? []).map(hit));
  if (answer && !answer.hits.length) $("hits").append(make("li", { textContent: "The library has no sound yet." }));
}

$("find").onclick = () => act("find", { track: $("find-by").value });

// ---- understand ----

const KINDS = { video: "The picture", audio: "The sound", both: "Both together" };

function showClasses() {
  const answer = state.answers.understand;
  const by = answer ? subject(answer) : "";
  $("no-classes").hidden = Boolean(answer);
  $("classes-by").textContent = by && `About ${by}`;
  const unknown = state.answers.known?.is_known === false;
  const now = JSON.stringify([by, answer, unknown]);
  if (now === drawn.understand) return;
  drawn.understand = now;
  const parts = Object.entries(answer?.classes ?? {}).map(([kind, rows]) => make("div", {}, make("h3", { textContent: KINDS[kind] }), typeof rows === "string" ? make("p", { textContent: rows }) : bars(rows), ...(kind === "video" && unknown ? [make("p", { className: "warning", textContent: "It may be none of these: the picture is unlike all that the model learned." })] : [])));
  $("classes").replaceChildren(...parts);
  $("closest").replaceChildren(...(answer?.hits ?? []).map(hit));
  $("closest-part").hidden = !answer?.hits.length;
  places(answer?.places ?? {}, by);
}

function bars(rows) {
  return make("dl", {}, ...rows.map(([name, share]) => {
    const bar = make("meter", { min: 0, max: 1, value: share });
    bar.setAttribute("aria-label", name);
    return make("div", {}, make("dt", {}, make("span", { textContent: name.replaceAll("_", " ") }), make("span", { textContent: share.toFixed(2) })), bar);
  }));
}

$("understand").onclick = () => act("understand", { track: $("understand-by").value });

// ---- the map ----

let points = [];
let chosen = -1;
const HEIGHT = 0.55; // of the map for a width of 1

async function loadMap() {
  points = (await ask("map")).points;
  $("map-part").hidden = !points.length;
  const labels = [...new Set(points.map((point) => point.label))].sort();
  $("map").replaceChildren(...points.map((point) => {
    const hue = Math.round((360 * labels.indexOf(point.label)) / labels.length);
    return draw("circle", { cx: point.x, cy: -point.y * HEIGHT, r: 0.014, fill: `hsl(${hue} 65% 55%)` });
  }));
  for (const label of labels) { // its name stands beside the middle of its points
    const own = points.filter((point) => point.label === label);
    const middle = own[Math.floor(own.length / 2)];
    $("map").append(draw("text", { x: middle.x + 0.02, y: -middle.y * HEIGHT + 0.015 }, label.replaceAll("_", " ")));
  }
}

function choose(n, play) {
  chosen = n;
  const point = points[n];
  [...$("map").querySelectorAll("circle:not(.place)")].forEach((circle, k) => circle.classList.toggle("chosen", k === n));
  $("point").textContent = `${point.name} (${point.label})`;
  if (play) listen(point.row, 0);
}

function places(found, by) {
  for (const old of $("map").querySelectorAll(".place")) old.remove();
  for (const [kind, [x, y]] of Object.entries(found)) {
    $("map").append(draw("circle", { class: "place", cx: x, cy: -y * HEIGHT, r: 0.03 }));
    $("map").append(draw("text", { class: "place", x: x + 0.04, y: -y * HEIGHT - 0.02 }, kind === "take" ? by : "the picture"));
  }
}

$("map").onclick = (event) => {
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform($("map").getScreenCTM().inverse());
  const far = (point) => Math.hypot(point.x - at.x, -point.y * HEIGHT - at.y);
  const nearest = points.reduce((best, point, n) => (far(point) < far(points[best]) ? n : best), 0);
  choose(nearest, true);
};
$("map").onkeydown = (event) => {
  const order = points.map((point, n) => n).sort((a, b) => points[a].x - points[b].x);
  const at = order.indexOf(chosen);
  if (event.key === "ArrowRight" || event.key === "ArrowDown") choose(order[(at + 1) % order.length], false);
  else if (event.key === "ArrowLeft" || event.key === "ArrowUp") choose(order[(at - 1 + order.length) % order.length], false);
  else if (event.key === "Enter" && chosen >= 0) listen(points[chosen].row, 0);
  else return;
  event.preventDefault();
};

// ---- the page ----

addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  const track = state.tracks[Number(event.key) - 1];
  if (track) toggle(cards.get(track.id).video);
});
addEventListener("pagehide", () => navigator.sendBeacon("leave"));
addEventListener("pageshow", (event) => event.persisted && follow(true));
document.addEventListener("visibilitychange", () => document.hidden || follow(true));
$("notice-close").onclick = () => say("");
$("clear").onclick = () => {
  deleted = state.clip?.id ?? "";
  act("clear");
};

async function start() {
  try {
    about = await ask("about");
    $("model").textContent = `with ${about.model}`;
    $("limits").textContent = `Up to ${about.limits.seconds} seconds and ${about.limits.bytes >> 20} MB. Nothing leaves the computer that this page comes from.${about.learned.length ? ` ${about.model} learned ${learned()}.` : ""}`;
    $("settings").elements.count.max = about.limits.takes;
    $("find-tools").hidden = about.sounds === null;
    $("no-library").hidden = about.sounds !== null;
    defaults();
    await loadMap();
    await get("state");
  } catch (error) {
    say(error.message);
    setTimeout(start, 2000);
  }
}

start();
