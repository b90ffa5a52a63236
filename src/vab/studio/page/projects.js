// The list of projects, and a new one from a clip.

import { ask, fileRequest, lost, ROOT, say } from "./api.js";
import { ago, askToDelete, duration, make, plain, write } from "./dom.js";

const AGAIN = 2000; // milliseconds until the list is asked for again when it could not be had
const FEW = 8; // projects, up to which nobody needs to search or sort
const $ = (id) => document.getElementById(id);
let about = null;
let projects = [];
let camera = null; // while it is on: its stream, and the recorder if it records
let reading = null; // an upload

// ---- the list ----

async function refresh() {
  try {
    about ??= await ask(`${ROOT}about`);
    projects = await ask(`${ROOT}projects`);
    if (lost()) say("");
    showAbout();
    show();
  } catch (error) {
    say(error.message);
    if (!projects.length) write($("blank"), "The list of projects cannot be read.");
    setTimeout(refresh, AGAIN);
  }
}

function showAbout() {
  write($("model"), `with ${about.model}`);
  const names = about.learned.slice(0, 40).map(plain);
  const more = about.learned.length > 40 ? " and more" : "";
  const learned = names.length && !projects.length ? ` The model learned these sounds: ${names.join(", ")}${more}.` : "";
  write($("limits"), `Up to ${about.limits.seconds} seconds and ${about.limits.bytes >> 20} MB. Nothing leaves the computer that serves this page.${learned}`);
}

function show() {
  const sought = $("filter").value.trim().toLowerCase();
  const found = projects.filter((entry) => entry.name.toLowerCase().includes(sought));
  const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
  const byChange = (a, b) => (b.changed ?? "").localeCompare(a.changed ?? "");
  const order = $("order").value === "name" ? byName : byChange;
  found.sort((a, b) => Boolean(a.problem) - Boolean(b.problem) || order(a, b)); // what cannot be opened comes last
  document.body.classList.toggle("none", !projects.length);
  write($("count"), projects.length ? `${found.length < projects.length ? `${found.length} of ` : ""}${projects.length}` : "");
  $("list-tools").hidden = projects.length <= FEW;
  $("list-title").parentElement.hidden = !projects.length;
  write($("blank"), projects.length ? "No project has such a name." : "");
  $("blank").hidden = found.length > 0 || !projects.length;
  const key = JSON.stringify(found);
  if ($("list").dataset.shown === key) return;
  $("list").dataset.shown = key;
  $("list").replaceChildren(...found.map(card));
}

function card(entry) {
  const { id, name, problem } = entry;
  const frame = make("div", { className: "frame", "aria-hidden": "true" }, entry.kind === "image" ? "Picture" : "Video");
  if (entry.poster) {
    const image = make("img", { loading: "lazy", alt: "", src: ROOT + entry.poster });
    image.onerror = () => image.remove();
    frame.append(image);
  }
  if (entry.seconds) frame.append(make("span", { className: "length", textContent: duration(entry.seconds) }));
  const title = make("h3", { title: name }, problem ? name : make("a", { href: `${ROOT}projects/${encodeURIComponent(id)}/`, textContent: name }));
  const words = make("div", { className: "words" }, title);
  if (problem) words.append(make("p", { className: "bad", textContent: problem }), make("p", { textContent: `Its folder: ${id}` }));
  else {
    const layers = entry.num_layers === 1 ? "1 layer" : `${entry.num_layers || "no"} layers`;
    const changed = new Date(entry.changed);
    words.append(make("p", {}, `${layers}, `, make("time", { dateTime: entry.changed, title: changed.toLocaleString("en"), textContent: ago(changed) })));
  }
  const tool = (word, does) => make("button", { type: "button", className: "link", textContent: word, "aria-label": `${word} ${name}`, onclick: () => does(entry) });
  const tools = make("div", { className: "tools" }, ...(problem ? [] : [tool("Rename", rename)]), tool("Delete", remove));
  if (!problem && projects.some((other) => other !== entry && other.name === name)) words.append(make("p", {}, `Its folder: ${id}`));
  return make("li", { className: "card" }, frame, words, tools);
}

async function act({ id }, path, options) {
  try {
    say("");
    await ask(`${ROOT}projects/${encodeURIComponent(id)}${path}`, options);
  } catch (error) {
    say(error.message);
  }
  await refresh();
}

$("filter").oninput = $("order").onchange = show;

// ---- rename, delete ----

function rename(entry) {
  const dialog = $("rename");
  $("new-name").value = entry.name;
  dialog.querySelector("form").onsubmit = () => {
    const name = $("new-name").value.trim();
    if (name && name !== entry.name) act(entry, "/do/rename", { method: "POST", body: JSON.stringify({ name }) });
  };
  dialog.showModal();
  $("new-name").select();
}

function remove(entry) {
  const whole = "all sounds, the history and the exports of this project are deleted from the disk. This cannot be undone. The file that you made it from stays where it is.";
  const layers = entry.num_layers ? `, its ${entry.num_layers === 1 ? "layer" : `${entry.num_layers} layers`}` : "";
  const text = `${entry.problem ? "It cannot be opened now, but may be mended. If you delete it, the" : "The"} copy of the clip${layers}, ${whole}`;
  askToDelete(entry.name, text, () => act(entry, "", { method: "DELETE" }));
}

$("rename").querySelector(".plain").onclick = () => $("rename").close();

// ---- a new project ----

async function create(file) {
  if (!file) return;
  if (about && file.size > about.limits.bytes) return say(`${file.name} is too large: ${about.limits.bytes >> 20} MB are the most here.`);
  say("");
  reading?.abort();
  const own = (reading = new AbortController());
  $("reading-name").textContent = file.name;
  showSources();
  try {
    const state = await ask(`${ROOT}projects`, fileRequest(file, own.signal));
    if (!own.signal.aborted) location.assign(`${ROOT}projects/${state.project.id}/`);
  } catch (error) {
    if (!own.signal.aborted) say(error.message);
  }
  if (reading !== own) return;
  reading = null;
  showSources();
}

$("file").onchange = () => {
  create($("file").files[0]);
  $("file").value = ""; // the same one may be chosen again
};
$("stop-reading").onclick = () => {
  reading?.abort();
  reading = null;
  showSources();
  $("file").focus();
};
// anywhere on the page: a browser would open a file that is dropped beside the box
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget || $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const { files } = event.dataTransfer;
  if (files.length > 1) say("One clip makes one project: the first of them is read.");
  if (files.length) closeCamera(files[0]);
});

// ---- the camera ----

// It is off (null), or shows its picture, or records it.
function showSources() {
  const recording = Boolean(camera?.recorder);
  $("reading").hidden = !reading;
  $("sources").hidden = Boolean(reading);
  $("choose").hidden = $("camera").hidden = Boolean(camera);
  $("preview").hidden = $("close-camera").hidden = !camera;
  $("record").hidden = $("snap").hidden = !camera || recording;
  $("stop").hidden = !recording;
  $("preview").classList.toggle("recording", recording);
}

// Off again; what was recorded, if anything, becomes a project.
function closeCamera(file) {
  camera?.stream.getTracks().forEach((each) => each.stop());
  camera = $("preview").srcObject = null;
  showSources();
  create(file);
}

// A name for what the camera saw: when that was.
function named(blob, ending) {
  const now = new Date();
  const day = now.toLocaleDateString("en", { month: "short", day: "numeric" });
  const time = `${now.getHours()}.${String(now.getMinutes()).padStart(2, "0")}`;
  return new File([blob], `Camera, ${day}, ${time}.${ending}`);
}

$("camera").onclick = async () => {
  $("camera").disabled = true; // while the browser asks
  try {
    camera = { stream: await navigator.mediaDevices.getUserMedia({ video: true }) };
    $("preview").srcObject = camera.stream;
    showSources();
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
  recorder.onstop = () => camera?.recorder === recorder && closeCamera(named(new Blob(parts), "webm"));
  recorder.start();
  camera.recorder = recorder;
  setTimeout(() => recorder.state === "recording" && recorder.stop(), (about.limits.seconds - 1) * 1000);
  showSources();
  $("stop").focus();
};
$("stop").onclick = () => camera.recorder.stop();
$("snap").onclick = () => {
  const seen = $("preview");
  if (!seen.videoWidth) return; // it has not shown anything yet
  const canvas = make("canvas", { width: seen.videoWidth, height: seen.videoHeight });
  canvas.getContext("2d").drawImage(seen, 0, 0);
  canvas.toBlob((blob) => closeCamera(named(blob, "png")), "image/png");
};
$("close-camera").onclick = () => closeCamera(null);

// ---- the page ----

document.addEventListener("visibilitychange", () => document.hidden || refresh());
addEventListener("pageshow", (event) => event.persisted && refresh());
refresh();
