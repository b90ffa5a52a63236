// Talk with the server: every answer is the whole state of the project, and is shown as it is.

const QUICK = 300; // milliseconds until the state is asked for again while something is being made
const SLOW = 15000; // and else: another tab may have changed it
const AGAIN = 2000; // and while the server cannot be reached
const LOST = "The studio cannot be reached. Trying again. Your projects are on its disk.";
const DROPPED = "The studio is back. What was done while it could not be reached was not kept: the page shows what was.";
const KEPT = 60000; // bytes of a request that a browser sends even when the page is being closed
const $ = (id) => document.getElementById(id);
const watchers = [];
const observers = [];
let timer = 0;
let asked = 0; // requests for the state, numbered
let shown = 0; // the newest of them that was answered

// Where the pages come from, with a slash at its end: there may be a path before ours.
export const ROOT = new URL("..", import.meta.url).href;

export let about = null;
export let state = { clip: null, jobs: {}, answers: {} };
export let problem = ""; // why there is no state: a project that cannot be opened, or no server
export let changing = 0; // changes that the server has not kept yet
let dropped = false; // a change did not reach it

// Call back whenever a state has arrived.
export const onState = (callback) => watchers.push(callback);
// Call back whenever a change is sent or kept, or the server is lost or found.
export const onStatus = (callback) => observers.push(callback);

function tell() {
  for (const callback of observers) callback();
}

export function say(text) {
  $("notice-text").textContent = text;
  $("notice").hidden = !text;
}

export const said = () => $("notice-text").textContent;
export const lost = () => $("notice-text").textContent === LOST;

export async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    throw options?.signal?.aborted ? error : new Error(LOST);
  }
  const answer = await reply.json().catch(() => ({}));
  if (!reply.ok) throw new Error(answer.error || "The studio could not do that.");
  return answer;
}

// What a request that carries a file is made of.
export function fileRequest(file, signal) {
  const headers = { "Content-Type": "application/octet-stream", "File-Name": encodeURIComponent(file.name ?? "") };
  return { method: "POST", body: file, headers, signal };
}

async function get(path, options) {
  const number = ++asked;
  const found = await ask(path, options);
  if (number < shown) return follow(true); // one that was sent later was answered first: which one is newer?
  shown = number;
  if (dropped || lost()) say(dropped ? DROPPED : "");
  dropped = false;
  problem = "";
  state = found;
  for (const callback of watchers) callback(state);
  follow();
}

// Ask for a change, and show the state that it leads to; true if it was made.
async function change(path, options) {
  changing++;
  tell();
  try {
    say("");
    await get(path, options);
    return true;
  } catch (error) {
    if (error.message === LOST) {
      problem = LOST;
      dropped = true;
    }
    if (!options.signal?.aborted) say(error.message);
    follow(true);
    return false;
  } finally {
    changing--;
    tell();
  }
}

// Changes reach the server in the order in which they were made.
let last = Promise.resolve();

export function act(verb, values = {}) {
  const body = JSON.stringify(values);
  last = last.then(() => change(`do/${verb}`, { method: "POST", body, keepalive: body.length < KEPT }));
  return last;
}

export const addFile = (file, signal) => change("files", fileRequest(file, signal));

export const isActive = (kind) => ["waiting", "working"].includes(state.jobs[kind]?.state);

// Ask for the state again, soon if something is being made.
export function follow(soon = false) {
  clearTimeout(timer);
  const wait = soon || Object.keys(state.jobs).some(isActive) ? QUICK : problem ? AGAIN : SLOW;
  timer = setTimeout(refresh, wait);
}

async function refresh() {
  try {
    about ??= await ask(`${ROOT}about`);
    await get("state");
    tell();
  } catch (error) {
    problem = error.message;
    if (state.clip || problem === LOST) say(problem);
    tell();
    clearTimeout(timer);
    timer = setTimeout(refresh, AGAIN);
  }
}

// Begin to follow a project, once all parts of its page are there.
export function start() {
  document.addEventListener("visibilitychange", () => document.hidden || follow(true));
  addEventListener("focus", () => follow(true)); // another window may have changed it
  addEventListener("pageshow", (event) => event.persisted && follow(true));
  setTimeout(refresh);
}

$("notice-close").onclick = () => say("");
