// Talk with the server: every answer is the whole state of the project, and is shown as it is.

const QUICK = 300; // milliseconds until the state is asked for again while something is being made
const SLOW = 15000; // and else: a sign of life
const LOST = "The studio cannot be reached. Trying again.";
const $ = (id) => document.getElementById(id);
const watchers = [];
let timer = 0;
let asked = 0; // requests for the state, numbered
let shown = 0; // the newest of them that was answered

export let about = null;
export let state = { clip: null, jobs: {}, answers: {} };

// Call back whenever a state has arrived.
export const onState = (callback) => watchers.push(callback);

export function say(text) {
  $("notice-text").textContent = text;
  $("notice").hidden = !text;
}

export async function ask(path, options) {
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

async function get(path, options) {
  const number = ++asked;
  const found = await ask(path, options);
  if (number < shown) return follow(true);
  shown = number;
  if ($("notice-text").textContent === LOST) say("");
  state = found;
  for (const callback of watchers) callback(state);
  follow();
}

export async function act(verb, values = {}) {
  try {
    say("");
    await get(`do/${verb}`, { method: "POST", body: JSON.stringify(values) });
  } catch (error) {
    say(error.message);
    follow(true);
  }
}

export function follow(soon = false) {
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

$("notice-close").onclick = () => say("");
document.addEventListener("visibilitychange", () => document.hidden || follow(true));

setTimeout(() => get("state").catch((error) => say(error.message)));
