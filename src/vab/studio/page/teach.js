// Models of one's own: a folder of labelled sounds and pictures is sent, looked at, and learned.

import { ask, ROOT, say } from "./api.js";
import { askToDelete, bytes, make, plain, write } from "./dom.js";

const QUICK = 1000; // milliseconds until it is asked again while something is being made
const SLOW = 15000;
const $ = (id) => document.getElementById(id);
let shown = null; // what the server said last
let sending = null; // while this page sends a folder: how to stop that
let timer = 0;

// ---- what there is ----

async function refresh() {
  clearTimeout(timer);
  let wait = SLOW;
  try {
    const found = await ask(`${ROOT}models`);
    show(found);
    if (["arriving", "looking", "learning"].includes(found.making?.state)) wait = QUICK;
  } catch {
    wait = 2 * QUICK; // the list of projects says that the server is not there, or that nothing is made here
  }
  timer = setTimeout(refresh, wait);
}

function show(found) {
  const first = !shown;
  shown = found;
  const { making, models } = found;
  const state = sending ? "sending" : making?.state ?? "";
  $("teach").hidden = false;
  $("teach-choose").hidden = !["", "done"].includes(state);
  $("teach-found").hidden = !["found", "failed"].includes(state);
  $("teach-name").hidden = $("teach-table").hidden = state !== "found";
  $("teach-go").hidden = !["sending", "arriving", "looking", "learning"].includes(state);
  if (state === "found") showFound(making);
  if (state === "failed") write($("teach-missing"), `${making.name}: ${making.error} What is done until now is kept.`);
  write($("teach-start"), state === "failed" ? "Go on" : "Learn");
  if (state === "arriving") going("A folder is being sent from another page", `, ${making.files === 1 ? "1 file" : `${making.files} files`} until now`);
  if (state === "looking") going("Looking at the folder");
  if (state === "learning") showLearning(making);
  write($("teach-done"), state === "done" ? done(making) : "");
  $("teach-done").hidden = state !== "done";
  showModels(models);
  if (first && location.hash === "#teach") $("teach").scrollIntoView();
}

function showFound({ labels, left_out }) {
  const key = JSON.stringify(labels);
  if ($("teach-table").dataset.shown !== key) {
    $("teach-table").dataset.shown = key;
    const rows = labels.map(({ name, sounds, pictures, lacks }) => make("tr", {},
      make("th", { scope: "row", textContent: plain(name) }),
      make("td", { textContent: sounds }),
      make("td", { textContent: pictures }),
      make("td", { className: lacks.length ? "bad" : "", textContent: lacks.length ? `No, it needs ${lacks.join(" and ")}` : "Yes" })));
    $("teach-table").tBodies[0].replaceChildren(...rows);
  }
  const usable = labels.some(({ lacks }) => !lacks.length);
  $("teach-start").disabled = !usable;
  const why = usable ? "" : "No label has all that it needs. Add to the folder, and choose it again. ";
  write($("teach-missing"), why + (left_out.length ? `Files that cannot be used: ${left_out.join("; ")}.` : ""));
}

function showLearning({ name, step, steps, doing, share, left }) {
  const where = step ? `step ${step} of ${steps}, ${doing}` : doing;
  const rest = left === null ? "" : `, ${spell(left)} left of this step`;
  going(`Learning ${name}: ${where}`, `${share ? `, ${Math.floor(100 * share)} %` : ""}${rest}`, share);
  write($("teach-hint"), "Takes can be made meanwhile, but both are slower. This page may be closed. If the studio is stopped, it goes on with this when it is started again.");
}

// A line of what goes on, whose rest changes too often to be read out; with a bar if it is known how far it is.
function going(text, rest = "", share = 0) {
  write($("teach-doing"), text);
  write($("teach-rest"), rest);
  write($("teach-hint"), "");
  if (share) $("teach-bar").value = share;
  else $("teach-bar").removeAttribute("value");
}

function spell(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.round(seconds))} s`;
  return `about ${Math.round(seconds / 60)} min`;
}

function done({ name, labels, left_out }) {
  const not = left_out.length ? ` Left out: ${left_out.join("; ")}.` : "";
  return `${name} has learned ${labels.map(plain).join(", ")}.${not}`;
}

function showModels(models) {
  $("teach-models").hidden = !models.length;
  const key = JSON.stringify(models);
  if ($("models").dataset.shown === key) return;
  $("models").dataset.shown = key;
  $("models").replaceChildren(...models.map(({ name, command, labels, used }) => {
    const code = make("code", { textContent: command });
    const copy = make("button", { type: "button", className: "link", textContent: "Copy", "aria-label": `Copy the command for ${name}` });
    copy.onclick = async () => {
      getSelection().selectAllChildren(code);
      await navigator.clipboard?.writeText(command); // a page by plain HTTP has none: it is selected then
      copy.textContent = navigator.clipboard ? "Copied" : "Selected";
    };
    return make("li", {}, make("strong", { textContent: name }), ` ${labels.map(plain).join(", ")} `, make("span", { className: "row" }, code, copy, used ? make("span", { className: "soft", textContent: "in use" }) : remover(name)));
  }));
}

function remover(name) {
  const button = make("button", { type: "button", className: "link", textContent: "Delete", "aria-label": `Delete ${name}` });
  const text = "The model and all that it has learned are deleted from the disk. This cannot be undone. The sounds and pictures that it learned from stay where they are, and so do the takes that it made.";
  button.onclick = () => askToDelete(name, text, async () => {
    if (await act("delete", { name })) ($("models").querySelector("button") ?? $("folder")).focus();
  });
  return button;
}

// ---- a folder is chosen ----

// Its files by their place in it, without those that nothing can be learned from; or a sentence.
function chosen(list) {
  const { limits } = shown;
  const places = [...list].map((file) => [file.webkitRelativePath.split("/").slice(1), file]);
  const media = places.filter(([parts, file]) => !parts.some((part) => part.startsWith(".")) && limits.endings.some((ending) => file.name.toLowerCase().endsWith(ending)));
  const files = media.filter(([parts]) => parts.length > 1);
  if (!media.length) return "There are no sounds and pictures in this folder.";
  if (!files.length) return "This folder has no subfolders. Put the sounds and pictures of each label into a subfolder with the name of the label.";
  const large = files.find(([, file]) => file.size > limits.bytes);
  if (large) return `${large[1].name} is too large: ${bytes(limits.bytes)} are the most for a file.`;
  const all = files.reduce((sum, [, file]) => sum + file.size, 0);
  if (files.length > limits.files || all > limits.all) return `This folder is too large: ${limits.files} files and ${bytes(limits.all)} are the most.`;
  return files.map(([parts, file]) => [parts.join("/"), file]);
}

async function send(list) {
  say("");
  const files = chosen(list);
  if (typeof files === "string") return say(files);
  $("teach-name").querySelector("input").value = list[0].webkitRelativePath.split("/")[0].replace(/[^\p{L}\p{N}_ .-]/gu, "-").slice(0, 60);
  const own = (sending = new AbortController());
  show(shown);
  let number = "";
  try {
    ({ number } = await ask(`${ROOT}models/do/begin`, { method: "POST", signal: own.signal }));
    for (const [n, [name, file]] of files.entries()) {
      going("Sending the folder", `, file ${n + 1} of ${files.length}`, n / files.length);
      const headers = { "Content-Type": "application/octet-stream", "File-Name": encodeURIComponent(name), Folder: number };
      await ask(`${ROOT}models/files`, { method: "POST", body: file, headers, signal: own.signal }).catch((error) => {
        throw own.signal.aborted ? error : new Error(`${name}: ${error.message}`);
      });
    }
    going("Looking at the folder");
    const found = await act("look", { number });
    sending = null;
    if (found) show(found);
  } catch (error) {
    if (!own.signal.aborted) {
      sending = null;
      await act("cancel", { number }, error.message); // what another page sends goes on
    }
  }
  if (sending === own) sending = null;
  refresh();
}

// Ask for something, and show what comes of it.
async function act(verb, values = {}, note = "") {
  say(note);
  try {
    const found = await ask(`${ROOT}models/do/${verb}`, { method: "POST", body: JSON.stringify(values) });
    if (!sending) show(found);
    return found;
  } catch (error) {
    say(error.message);
    return null;
  }
}

$("folder").onchange = async () => {
  const list = [...$("folder").files];
  $("folder").value = ""; // the same one may be chosen again
  if (list.length) await send(list);
};
$("teach-found").onsubmit = async (event) => {
  event.preventDefault();
  await act("start", { name: $("teach-name").querySelector("input").value });
  refresh();
};
for (const id of ["teach-drop", "teach-cancel"]) {
  $(id).onclick = async () => {
    sending?.abort();
    sending = null;
    await act("cancel");
    refresh();
  };
}
document.addEventListener("visibilitychange", () => document.hidden || refresh());
addEventListener("hashchange", () => location.hash === "#teach" && $("teach").scrollIntoView());
refresh();
