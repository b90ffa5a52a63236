// Find: sounds of the library by words, by a label, or nearest to the picture, a layer or a sound of the user.

import { about, act, ask, fileRequest, follow, isActive, ROOT, say, state } from "./api.js";
import { player } from "./audio.js";
import { enable, make, plain, write } from "./dom.js";

export const panel = make("div");
panel.innerHTML = `
  <p id="no-library" class="blank" hidden>No library is open. Make one of your own recordings with <code>vab library add library sounds/</code>, then start the studio with <code>vab studio --library library</code>.</p>
  <div id="find-tools">
    <form id="find-by-words" class="row" role="search"><label class="grow">Words <input id="words" type="search" autocomplete="off" maxlength="200"></label>
      <button>Search</button></form>
    <div class="row">
      <label id="by-label">Label <select id="label"></select></label>
      <span class="pair"><label for="near">Nearest to</label> <select id="near"></select> <button id="find-near" type="button" class="plain">Search</button></span>
      <label class="button plain">A sound of yours<input id="find-file" type="file" accept="audio/*,video/*" aria-label="Find what is nearest to a sound of yours"></label>
    </div>
    <p id="hits-by" class="soft" role="status"></p>
    <ol id="hits" class="hits"></ol>
    <p id="no-hits" class="blank">The sounds of the library that come closest are listed here. Play them, and add one as a layer. You can also drop a sound on this panel.</p>
  </div>
  <audio id="listening"></audio>`;
const $ = (id) => panel.querySelector(`#${id}`);

let own = null; // what was found by a sound of the user: { name, hits }
let searching = null; // the request for it
let waiting = ""; // words that were entered while something else was looked for
let shown = "";
let labels = "";

// ---- what is asked ----

async function search(by) {
  own = null;
  waiting = "";
  if (!by.startsWith("label:")) $("label").value = "";
  if (!by.startsWith("text:")) $("words").value = "";
  if (await act("find", { by })) show();
}

$("find-by-words").onsubmit = (event) => {
  event.preventDefault();
  waiting = $("words").value.trim();
  searchWords();
};

const isBusy = () => isActive("find") || Boolean(searching);

function searchWords() {
  if (!waiting || isBusy()) return;
  search(`text:${waiting}`);
}

$("label").onchange = () => $("label").value && search(`label:${$("label").value}`);
$("find-near").onclick = () => search($("near").value);
$("find-file").onchange = () => {
  findBySound($("find-file").files[0]);
  $("find-file").value = ""; // the same one may be chosen again
};

export async function findBySound(file) {
  if (!file || about?.sounds == null) return;
  say("");
  searching?.abort();
  const request = (searching = new AbortController());
  write($("hits-by"), `Reading ${file.name}`);
  follow(true);
  try {
    const { hits } = await ask("find", fileRequest(file, request.signal));
    own = { name: file.name, hits };
  } catch (error) {
    if (!request.signal.aborted && error.message !== "Cancelled.") say(error.message);
  }
  if (searching === request) searching = null;
  show();
  follow(true);
}

// ---- what was found ----

const layerName = (id) => state.arrangement.layers.find((layer) => layer.id === id)?.name;

// What an answer speaks of: a layer may have been removed since.
export function subject(by) {
  if (!by || by === "picture") return "the picture";
  return layerName(by) ?? "a layer that is gone";
}

function heading(answer) {
  const { by, hits, more } = answer;
  return more ? `${searched(by)}: the first ${hits.length}` : searched(by);
}

function searched(by) {
  if (by.startsWith("text:")) return `For \u201c${by.slice(5)}\u201d`;
  if (by.startsWith("label:")) return `With the label ${plain(by.slice(6))}`;
  return `Nearest to ${subject(by)}`;
}

export function hit({ row, start, score, label, name }) {
  const hear = make("button", { type: "button", className: "plain hear", textContent: "Play", "aria-label": `Play ${name}`, onclick: () => listen(row, start) });
  hear.dataset.key = `${row} ${start}`;
  const put = make("button", { type: "button", className: "plain put", textContent: "Add layer", "aria-label": `Add ${name} as a layer`, onclick: () => act("place", { row, start }) });
  const more = [plain(label ?? ""), start ? `from ${start.toFixed(1)} s` : "", score == null ? "" : `similarity ${score.toFixed(2)}`];
  const words = make("span", { className: "what", title: name }, make("span", { textContent: name }), make("small", { textContent: more.filter(Boolean).join(", ") }));
  return make("li", {}, hear, words, put);
}

// The choices of a layer or the picture, as long as they are the same ones.
export function layerChoices(select, first) {
  const options = [first, ...state.arrangement.layers.map((layer, n) => [layer.id, `${n + 1}. ${layer.name}`])];
  const key = JSON.stringify(options);
  if (select.dataset.shown === key) return;
  const chosen = select.value;
  select.dataset.shown = key;
  select.replaceChildren(...options.map(([value, textContent]) => make("option", { value, textContent })));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

export function show() {
  if (!state.clip || !about) return;
  searchWords();
  const none = about.sounds === null;
  $("no-library").hidden = !none;
  $("find-tools").hidden = none;
  layerChoices($("near"), ["picture", "the picture"]);
  showLabels();
  // The words' own button stays: with it disabled, Enter in their field would do nothing.
  for (const control of panel.querySelectorAll("#find-near, #label, #find-file")) enable(control, !isBusy());
  const answer = state.answers.find;
  const hits = own?.hits ?? answer?.hits;
  if (!searching) write($("hits-by"), own ? `Nearest to ${own.name}` : answer ? heading(answer) : "");
  $("no-hits").hidden = Boolean(hits);
  const key = JSON.stringify(hits);
  if (key === shown) return;
  shown = key;
  $("hits").replaceChildren(...(hits ?? []).map(hit));
  if (hits && !hits.length) $("hits").append(make("li", { className: "soft", textContent: answer?.by.startsWith("text:") && !own ? "No sound has all of these words." : "Nothing was found." }));
  showPlaying();
}

function showLabels() {
  const key = JSON.stringify(about.labels ?? []);
  if (labels === key) return;
  labels = key;
  $("by-label").hidden = !about.labels?.length;
  const options = (about.labels ?? []).map(([name, count]) => make("option", { value: name, textContent: `${plain(name)} (${count})` }));
  $("label").replaceChildren(make("option", { value: "", textContent: "choose" }), ...options);
}

// ---- playing ----

const audio = $("listening");

function listen(row, start) {
  const key = `${row} ${start}`;
  if (audio.dataset.key === key && !audio.paused) return audio.pause();
  audio.dataset.key = key;
  audio.src = `${ROOT}library/${row}.wav?start=${start}`;
  audio.play().catch((error) => error.name !== "AbortError" && say("This sound cannot be played."));
}

function showPlaying() {
  for (const button of document.querySelectorAll(".hear")) {
    const on = button.dataset.key === audio.dataset.key && !audio.paused;
    button.textContent = on ? "Stop" : "Play";
    button.setAttribute("aria-label", `${on ? "Stop" : "Play"} ${button.parentElement.querySelector(".what").title}`);
    button.classList.toggle("on", on);
  }
}

audio.onplay = audio.onpause = audio.onended = showPlaying;
player.addEventListener("change", () => player.playing && audio.pause());
