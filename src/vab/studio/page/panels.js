// The panels beside the picture: make, find, understand, export, history; what is being made, and that it is saved.

import { about, act, addFile, changing, isActive, onState, onStatus, problem, ROOT, said, say, start, state } from "./api.js";
import * as curve from "./curve.js";
import { bytes, clock, enable, fault, make, plain, write } from "./dom.js";
import * as find from "./find.js";
import * as layers from "./layers.js";
import { onSelection, select, selection } from "./timeline.js";

const MIME = { wav: "audio/wav", flac: "audio/flac", mp4: "video/mp4", mov: "video/quicktime", mkv: "video/x-matroska", webm: "video/webm", csv: "text/csv" };
const NAMES = ["make", "find", "understand", "export", "history"];
const $ = (id) => document.getElementById(id);
const title = (name) => name[0].toUpperCase() + name.slice(1);

const CONTENT = {
  make: `
    <p id="known" class="warning" role="status" hidden><span id="known-text"></span> <a href="../../#teach">Teach it sounds of your own.</a></p>
    <form id="settings">
      <div class="fields">
        <label>Takes <input name="count" type="number" min="1" step="1" required></label>
        <label>Seed <input name="seed" type="number" min="0" max="4294967295" step="1" required></label>
        <label>Steps <input name="steps" type="number" min="1" max="100" step="1" required></label>
        <label>Guidance <input name="guidance" type="number" min="0" max="20" step="any" required></label>
        <label>Temperature <input name="temperature" type="number" min="0" max="100" step="any" required></label>
        <label id="timing-field" class="wide">Timing <select name="timing"><option value="none">the model's own</option><option value="motion">follow the motion</option><option value="curve">follow the curve</option></select></label>
        <button id="make">Make takes</button>
      </div>
      <button id="defaults" type="button" class="link">Reset settings</button>
      <details><summary>What the settings do</summary><dl>
        <dt>Takes</dt><dd>How many sounds to make. They are alternatives: the first new one is heard, the others are muted.</dd>
        <dt>Seed</dt><dd>The same seed and settings give the same takes.</dd>
        <dt>Steps</dt><dd>More steps take longer; each decides on fewer parts of the sound at once.</dd>
        <dt>Guidance</dt><dd>How strongly the sound follows the picture. At 1 the model adds nothing to what it learned.</dd>
        <dt>Temperature</dt><dd>Higher values vary more, lower ones play it safe.</dd>
        <dt id="timing-term">Timing</dt><dd id="timing-text">What tells the model when something happens: nothing, the motion in the picture, or the timing curve below.</dd>
      </dl></details>
    </form>
    <section aria-labelledby="change-title">
      <div class="row"><h2 id="change-title">Change</h2> <select id="change-layer" aria-label="Layer to change"></select> <span id="part" class="soft"></span></div>
      <div class="row"><button id="remake-part" type="button" class="plain" aria-describedby="part">Remake part</button>
        <button id="remake-rest" type="button" class="plain" aria-describedby="part">Remake rest</button>
        <span class="pair"><button id="extend" type="button" class="plain">Extend</button> <label>by <input id="longer" type="number" min="0.1" max="60" step="0.1" value="2"></label> s</span></div>
      <p id="change-hint" class="soft"></p>
    </section>
    <section aria-labelledby="add-title">
      <div class="row"><h2 id="add-title">Add sound</h2> <button id="own" type="button" class="plain">The clip's own sound</button>
        <label class="button plain">Files of yours<input id="add-files" type="file" multiple accept="audio/*,video/*" aria-label="Add sound files of yours as layers"></label></div>
      <p class="soft">Or drop sound files anywhere on this page. Each becomes a layer.</p>
    </section>`,
  understand: `
    <div class="row"><span class="pair"><label for="understand-by">Name what is in</label> <select id="understand-by"></select></span>
      <button id="understand" type="button">Look and listen</button></div>
    <p id="no-classes" class="blank">What the picture shows and what the sound says, each with its probability, is listed here.</p>
    <p id="classes-by" class="soft"></p>
    <div id="classes"></div>
    <section id="closest-part" aria-labelledby="closest-title" hidden><h2 id="closest-title">Closest sounds of the library</h2><ol id="closest" class="hits"></ol></section>
    <section id="fit-part" aria-labelledby="fit-title" hidden><h2 id="fit-title">Fit of the layers</h2>
      <dl id="fits" class="figures"></dl>
      <p class="soft">Fit is how close the model itself finds a sound to the picture, from -1 to 1. It does not measure quality: the sound that a clip was recorded with often has a lower fit than a take, because the model judges its own work.</p></section>`,
  export: `
    <form id="export-form">
      <div id="export-top" class="row"><div class="choice" role="radiogroup" aria-label="What to export">
        <label><input type="radio" name="what" value="film" checked> Film</label><label><input type="radio" name="what" value="mix"> Mix</label><label><input type="radio" name="what" value="stems"> Stems</label><label><input type="radio" name="what" value="markers"> Markers</label></div>
        <button id="export">Export</button></div>
      <p id="about-what" class="soft"></p>
      <div class="fields">
        <label class="wide">Name <input name="name" maxlength="80" autocomplete="off"></label>
        <label>Format <select name="format"></select></label>
        <label>Channels <select name="channels"><option value="2">stereo</option><option value="1">mono</option></select></label>
        <label>Loudness <select name="loudness"><option value="">as it is</option><option value="-14">-14 LUFS, streaming</option><option value="-16">-16 LUFS, podcasts</option><option value="-23">-23 LUFS, broadcast</option></select></label>
        <label>After the end <select name="past_end"><option value="freeze">hold last frame</option><option value="cut">cut the sound</option></select></label>
      </div>
    </form>
    <ul id="export-notes" hidden></ul>
    <section aria-labelledby="files-title"><h2 id="files-title">Exported files</h2>
      <p id="no-files" class="soft">None yet.</p>
      <ul id="files"></ul>
      <p id="drag-hint" class="soft" hidden>Download a file, or drag it into another program or folder. The next export of the same kind takes its place.</p></section>`,
  history: `<p class="soft">Choose a step to go back to it, or forward again.</p><ol id="steps" reversed></ol>`,
};

$("panels").innerHTML = `
  <ul id="problems" class="warning" role="status" hidden></ul>
  <div id="broken" hidden><h2>This project cannot be shown</h2><p id="broken-text"></p><p><a href="${ROOT}">All projects</a></p></div>
  <div id="tabs" role="tablist" aria-label="Panels">${NAMES.map((name) => `<button type="button" role="tab" id="tab-${name}" aria-controls="panel-${name}">${title(name)}</button>`).join("")}</div>
  ${NAMES.map((name) => `<div class="panel" role="tabpanel" id="panel-${name}" aria-labelledby="tab-${name}" tabindex="0">${CONTENT[name] ?? ""}</div>`).join("")}
  <div id="jobs"></div>
  <p id="foot"><span id="saved"></span><span id="model"></span></p>`;
$("panel-find").append(find.panel);

// ---- tabs ----

let open = "make";

function openTab(name, focus) {
  open = name;
  for (const each of NAMES) {
    $(`tab-${each}`).setAttribute("aria-selected", each === name);
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    $(`panel-${each}`).hidden = each !== name;
  }
  if (focus) $(`tab-${name}`).focus();
}

for (const name of NAMES) $(`tab-${name}`).onclick = () => openTab(name);
$("tabs").onkeydown = ({ key }) => {
  const n = NAMES.indexOf(open);
  const next = { ArrowRight: n + 1, ArrowLeft: n - 1 + NAMES.length, Home: 0, End: NAMES.length - 1 }[key];
  if (next !== undefined) openTab(NAMES[next % NAMES.length], true);
};
openTab(open);

// What is not yet a step of the history becomes one, before something else is done with it.
async function settled(verb, values) {
  await layers.settle();
  await curve.settle();
  return act(verb, values);
}

// ---- make ----

const form = $("settings");
const fields = [...form.querySelectorAll("input, select")];
let keeping = 0; // changes of the settings that are not kept yet
let typing = null; // the field that is being typed in, which is not to be filled meanwhile
let refused = false; // what was typed just now: no takes are made with what was there before

function settings() {
  const used = fields.filter((field) => !field.disabled && field.value !== "");
  return Object.fromEntries(used.map((field) => [field.name, field.type === "number" ? field.valueAsNumber : field.value]));
}

function fill(values) {
  for (const field of fields) {
    const value = String(values[field.name] ?? "");
    if (field !== typing && field.value !== value) field.value = value;
  }
}

function showSettings() {
  const { limits, defaults, timing, motion } = about;
  form.elements.count.max = limits.takes;
  form.elements.steps.disabled = !defaults.steps; // made one frame after another: no steps
  form.elements.steps.parentElement.hidden = !defaults.steps;
  $("timing-field").hidden = $("timing-term").hidden = $("timing-text").hidden = form.elements.timing.disabled = !timing;
  form.elements.timing.options[1].disabled = form.elements.timing.options[1].hidden = !motion;
  if (!keeping) fill(state.arrangement.settings);
}

// Keep what was changed; what cannot be is as it was, with the reason.
async function keep() {
  typing = null;
  const now = state.arrangement.settings;
  const numbers = fields.filter((field) => field.type === "number" && !field.disabled);
  const faults = numbers.map((field) => [field, fault(field, field.labels[0].textContent.trim())]).filter(([, why]) => why);
  for (const [field] of faults) field.value = now[field.name];
  refused = faults.length > 0;
  if (refused) return say(faults.map(([, why]) => why).join(" "));
  keeping++;
  const changed = Object.entries(settings()).filter(([name, value]) => value !== now[name]); // another tab may have changed others
  if (changed.length) await act("set", { settings: Object.fromEntries(changed) });
  keeping--;
  if (state.clip) showSettings();
}

form.oninput = (event) => { typing = event.target; };
form.addEventListener("focusout", () => { typing = null; });
form.onchange = keep;
form.onsubmit = (event) => {
  event.preventDefault();
  if (!refused) settled("make", settings());
};
for (const name of ["pointerdown", "keydown"]) addEventListener(name, () => { refused = false; }, true);
$("defaults").onclick = () => {
  typing = null;
  fill(about.defaults);
  keep();
};

// Whether the model knows what the clip shows: it says so only where it seems not to.
function showKnown() {
  const { known } = state.answers;
  const names = about.learned.slice(0, 40).map(plain).join(", ") + (about.learned.length > 40 ? " and more" : "");
  const text = !known || known.is_known ? "" : `${about.model} may not know what this shows. It comes closest to ${plain(known.nearest[0][0])} (score ${known.score.toFixed(2)}, below ${known.threshold.toFixed(2)}), so its sounds may have nothing to do with the picture. It learned ${names}.`;
  write($("known-text"), text);
  $("known").hidden = !text;
}

// ---- change a layer ----

const layer = () => state.arrangement.layers.find((each) => each.id === selection.layer) ?? state.arrangement.layers.find((each) => each.id === $("change-layer").value);

// The selection in the time of the layer's sound, as far as it lies in it; null if it does not.
function part() {
  const own = layer();
  if (!own || !selection.span) return null;
  const shift = own.offset - own.start;
  const [from, to] = [Math.max(own.start, selection.span[0] - shift), Math.min(own.stop, selection.span[1] - shift)];
  return to > from ? [from, to] : null;
}

function showChange() {
  if (!state.clip) return;
  find.layerChoices($("change-layer"), ["", "a layer"]);
  if (layer()) $("change-layer").value = layer().id;
  const own = layer();
  const editable = Boolean(own && state.sounds[own.sound]?.editable);
  const busy = isActive("make");
  const span = part();
  write($("part"), span ? `${clock(selection.span[0])} to ${clock(selection.span[1])}` : "no part selected");
  for (const id of ["remake-part", "remake-rest"]) enable($(id), !busy && editable && span);
  for (const id of ["extend", "longer"]) enable($(id), !busy && editable);
  const hint = !state.arrangement.layers.length ? "Make takes first." : !own ? "Choose a layer here or on the timeline." : !editable ? "The model cannot go on from this sound: it is longer than a clip may be." : span ? "Remake part makes the selected part of this layer again; Remake rest makes all but that part again." : selection.span ? "The selection lies outside this layer." : "Drag over a lane, or type From and to, to select a part.";
  write($("change-hint"), hint);
}

function remake(rest) {
  const span = part();
  if (span) settled("remake", { layer: layer().id, from: span[0], to: span[1], rest });
}

$("change-layer").onchange = () => select({ layer: $("change-layer").value || null });
$("remake-part").onclick = () => remake(false);
$("remake-rest").onclick = () => remake(true);
$("extend").onclick = () => $("longer").reportValidity() && settled("extend", { layer: layer().id, seconds: $("longer").valueAsNumber });
onSelection(showChange);

// ---- add sound ----

const waiting = []; // files that are still to be added
let reading = null; // the one that is: { name, abort }

$("own").onclick = () => act("own");
$("add-files").onchange = () => {
  addFiles([...$("add-files").files]);
  $("add-files").value = ""; // the same ones may be chosen again
};

async function addFiles(files) {
  waiting.push(...files);
  if (reading) return;
  const refused = []; // the others are added all the same
  while (waiting.length) {
    const file = waiting.shift();
    if (file.size > about.limits.bytes) {
      refused.push(`${file.name} is too large: ${about.limits.bytes >> 20} MB are the most here.`);
      continue;
    }
    const stop = new AbortController();
    reading = { name: file.name, stop };
    showJobs();
    const done = await addFile(file, stop.signal);
    if (!done && !stop.signal.aborted) refused.push(`${file.name}: ${said()}`);
    while (waiting.length && isActive("make")) await new Promise((go) => setTimeout(go, 200)); // one after another
  }
  reading = null;
  showJobs();
  if (refused.length) say(refused.join(" "));
}

// anywhere on the page: a browser would open a file that is dropped beside the panels
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const finds = open === "find" && event.target.closest("#panels");
  $("panels").dataset.drop = finds ? "Drop a sound to find what is like it" : "Drop sounds to add them as layers";
  $("panels").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("panels").classList.remove("over"));
addEventListener("drop", (event) => {
  $("panels").classList.remove("over");
  const { files } = event.dataTransfer;
  if (!files.length) return;
  event.preventDefault();
  if (!state.clip) return;
  if (open === "find" && event.target.closest("#panels")) find.findBySound(files[0]);
  else addFiles([...files]);
});

// ---- understand ----

const KINDS = { video: "The picture", audio: "The sound", both: "Both together" };
let understood = "";

function bars(rows) {
  return make("dl", { className: "figures" }, ...rows.map(([name, share]) => make("div", {}, make("dt", { textContent: plain(name) }), make("dd", {}, make("meter", { min: 0, max: 1, value: share, "aria-label": plain(name) }), make("span", { textContent: share.toFixed(2) })))));
}

function showUnderstood() {
  find.layerChoices($("understand-by"), ["", "the picture"]);
  enable($("understand"), !isActive("understand"));
  const answer = state.answers.understand;
  const unknown = state.answers.known?.is_known === false;
  const by = answer ? `About ${find.subject(answer.by)}` : "";
  const scored = state.arrangement.layers.map((each) => [each.name, state.sounds[each.sound]?.score]).filter(([, score]) => score != null);
  const now = JSON.stringify([by, answer, unknown, scored]);
  if (now === understood) return;
  understood = now;
  $("no-classes").hidden = Boolean(answer);
  $("classes-by").textContent = by;
  $("classes").replaceChildren(...Object.entries(answer?.classes ?? {}).map(([kind, rows]) => {
    const doubt = kind === "video" && unknown && typeof rows !== "string";
    return make("section", {}, make("h2", { textContent: KINDS[kind] }), typeof rows === "string" ? make("p", { textContent: rows }) : bars(rows), ...(doubt ? [make("p", { className: "warning", textContent: "It may be none of these: the picture is unlike anything the model learned." })] : []));
  }));
  $("closest").replaceChildren(...(answer?.hits ?? []).map(find.hit));
  $("closest-part").hidden = !answer?.hits.length;
  $("fit-part").hidden = !scored.length;
  $("fits").replaceChildren(...scored.map(([name, score]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: score.toFixed(2) }))));
}

$("understand").onclick = () => settled("understand", { layer: $("understand-by").value || null });

// ---- export ----

const WHAT = {
  film: ["The clip with the mix as its sound. The picture is copied as it is where the format can hold it.", [["auto", "as the clip"], ["mp4", "MP4"], ["mov", "MOV"], ["mkv", "MKV"], ["webm", "WebM"]]],
  mix: ["All that is heard, in one file.", [["wav", "WAV, 24 bit"], ["flac", "FLAC"]]],
  stems: ["One file for each layer that is heard. All begin at 0:00 and add up to the mix.", [["wav", "WAV, 24 bit"], ["flac", "FLAC"]]],
  markers: ["The marks of the timeline, for an editing program.", [["edl", "EDL"], ["csv", "CSV table"]]],
};
const exporting = $("export-form");
let listed = "";

function showWhat() {
  const what = exporting.elements.what.value;
  write($("about-what"), WHAT[what][0]);
  const { format, channels, loudness, past_end } = exporting.elements;
  if (format.dataset.what !== what) format.replaceChildren(...WHAT[what][1].map(([value, textContent]) => make("option", { value, textContent })));
  format.dataset.what = what;
  channels.parentElement.hidden = past_end.parentElement.hidden = what === "markers";
  loudness.parentElement.hidden = what === "markers" || what === "stems";
  past_end.options[0].textContent = what === "film" ? "hold last frame" : "keep the sound";
}

exporting.onchange = showWhat;
exporting.onsubmit = (event) => {
  event.preventDefault();
  const { what, format, channels, loudness, past_end, name } = exporting.elements;
  const values = { what: what.value, format: format.value, name: name.value.trim() || null };
  if (what.value !== "markers") Object.assign(values, { channels: Number(channels.value), past_end: past_end.value });
  if (loudness.value && !loudness.parentElement.hidden) values.loudness = Number(loudness.value);
  settled("export", values);
};

function exported({ name, bytes: size, url }) {
  const link = make("a", { href: url, download: name, textContent: name, draggable: true, title: name });
  const mime = MIME[name.split(".").at(-1)] ?? "application/octet-stream";
  link.ondragstart = (event) => event.dataTransfer.setData("DownloadURL", `${mime}:${name}:${link.href}`);
  return make("li", {}, link, make("span", { className: "soft", textContent: bytes(size) }), make("a", { className: "button plain", href: url, download: name, textContent: "Download", "aria-label": `Download ${name}` }));
}

function showExports() {
  enable($("export"), !isActive("export"));
  exporting.elements.name.placeholder = state.clip.name.replace(/\.[^.]*$/, "") || state.project.name;
  showWhat();
  const notes = isActive("export") ? [] : state.answers.export?.notes ?? [];
  const now = JSON.stringify([state.exports, notes]);
  if (now === listed) return;
  listed = now;
  $("export-notes").hidden = !notes.length;
  $("export-notes").replaceChildren(...notes.map((textContent) => make("li", { textContent })));
  $("no-files").hidden = state.exports.length > 0;
  $("drag-hint").hidden = !state.exports.length;
  $("files").replaceChildren(...state.exports.map(exported));
}

// ---- history ----

let past = "";

function showSteps() {
  const now = JSON.stringify([state.history, state.at]);
  if (now === past) return;
  past = now;
  const within = $("steps").contains(document.activeElement);
  $("steps").replaceChildren(...state.history.map((did, at) => {
    const button = make("button", { type: "button", className: "step", textContent: did, onclick: () => settled("go", { at }) });
    if (at === state.at) button.setAttribute("aria-current", "step");
    if (at > state.at) button.classList.add("undone");
    return make("li", {}, button);
  }).toReversed());
  if (within) $("steps").querySelector("[aria-current]")?.focus();
}

// ---- jobs ----

const JOBS = { look: "Looking at the clip", make: "Making sound", find: "Searching", understand: "Looking and listening", export: "Exporting" };
const STOPPED = "The studio was started again while it was working. What was not finished is lost; everything else is here.";
let before = {}; // the jobs of the last state

// One line for each kind of job; what it says is read out, so it changes seldom.
function line(kind, text, share, stop) {
  let own = $(`job-${kind}`);
  if (!own) {
    own = make("div", { id: `job-${kind}`, className: "job" }, make("span", { role: "status" }), make("progress", { max: 1, "aria-label": JOBS[kind] ?? "Reading" }), make("button", { type: "button", className: "plain", textContent: "Cancel", "aria-label": `Cancel: ${(JOBS[kind] ?? "Reading").toLowerCase()}` }));
    $("jobs").append(own);
  }
  const [words, bar, cancel] = own.children;
  write(words, text);
  words.classList.remove("bad");
  bar.hidden = false;
  cancel.hidden = !stop;
  cancel.onclick = stop;
  if (share) bar.value = share;
  else bar.removeAttribute("value");
}

function end(kind, text, bad) {
  const own = $(`job-${kind}`);
  if (!text) return own?.remove();
  line(kind, text);
  const [words, bar] = $(`job-${kind}`).children;
  bar.hidden = true;
  words.classList.toggle("bad", Boolean(bad));
  if (!bad) setTimeout(() => words.textContent === text && words.parentElement.remove(), 4000);
}

function showJob(kind) {
  const job = state.jobs[kind];
  const was = before[kind]?.state;
  if (isActive(kind)) {
    const ahead = job.ahead === 1 ? "1 job comes first" : `${job.ahead} jobs come first`;
    const percent = job.stage && job.share ? `, ${10 * Math.round(10 * job.share)} %` : "";
    const text = job.state === "waiting" && job.ahead ? `waiting, ${ahead}` : `${job.stage || "starting"}${percent}`;
    return line(kind, kind === "look" ? JOBS.look : `${JOBS[kind]}: ${text}`, job.share, kind === "look" ? null : () => act("cancel", { kind }));
  }
  if (job?.state === "failed") return end(kind, job.error, true);
  const ended = was === "working" || was === "waiting";
  if (!job && ended && kind !== "look") say([said(), STOPPED].filter(Boolean).join(" "));
  if (ended || $(`job-${kind}`)?.querySelector(".bad")) end(kind, ended && kind !== "look" ? { done: "Done.", cancelled: "Cancelled." }[job?.state] : "");
}

function showJobs() {
  for (const kind of Object.keys(JOBS)) showJob(kind);
  before = state.jobs;
  if (reading) line("reading", `Reading ${reading.name}`, 0, () => reading?.stop.abort());
  else end("reading", "");
  const making = isActive("make");
  $("own").hidden = !state.clip?.has_sound;
  for (const button of [$("make"), $("own"), ...document.querySelectorAll(".put")]) enable(button, !making);
}

// Cuts, motion and onsets of a long film take a while.
let slow = 0;
addEventListener("analysing", () => {
  clearTimeout(slow);
  slow = setTimeout(() => line("analysis", "Reading what moves in the picture and when sounds set in", 0, null), 600);
});
addEventListener("analysed", () => {
  clearTimeout(slow);
  end("analysis", "");
});

// ---- saved ----

addEventListener("beforeunload", (event) => reading && event.preventDefault());

function showSaved() {
  const broken = Boolean(problem) && !state.clip;
  $("broken").hidden = !broken;
  write($("broken-text"), broken ? problem : "");
  $("panels").classList.toggle("dead", !state.clip);
  const at = state.clip && new Date(state.project.changed);
  write($("saved"), !state.clip ? "" : problem ? "Not connected" : changing ? "Saving" : `Saved ${at.toLocaleTimeString("en-GB")}`);
  $("saved").title = at ? `Last change: ${at.toLocaleString("en")}` : "";
  $("saved").classList.toggle("bad", Boolean(problem));
}

// ---- the page ----

onStatus(showSaved);
onState(() => {
  if (!state.clip) return;
  write($("model"), `with ${about.model}`);
  $("problems").hidden = !state.problems.length;
  if ($("problems").textContent !== state.problems.join("")) $("problems").replaceChildren(...state.problems.map((textContent) => make("li", { textContent })));
  showSettings();
  showKnown();
  showChange();
  find.show();
  showUnderstood();
  showExports();
  showSteps();
  showJobs();
  showSaved();
});
start();
