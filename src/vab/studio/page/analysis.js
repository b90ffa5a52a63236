// What the server found in the picture and the sounds: cuts, motion, onsets; and which frame is when.

import { onState, state } from "./api.js";

const STILL_FPS = 25; // of a photo, as in its film
const USUAL_FPS = 30; // of a step in a clip whose frames come at no fixed rate
const SHORT = 0.1; // frames by which a time may be short of the frame that it means: it was rounded

// In seconds; `frames`: when each is shown, null if one follows another evenly.
export let analysis = { cuts: [], motion: [], frames: null, onsets: {} };

let analysed = "";

async function analyse() {
  const key = JSON.stringify([state.project.id, Object.keys(state.sounds).sort()]);
  if (key === analysed) return;
  analysed = key;
  dispatchEvent(new Event("analysing"));
  const reply = await fetch("analysis").catch(() => null);
  const found = reply?.ok ? await reply.json() : null;
  if (analysed !== key) return; // a later one is on its way
  if (found) analysis = found;
  else analysed = ""; // asked for again with the next state
  dispatchEvent(new Event("analysed"));
}

onState(() => state.clip && analyse());

// ---- frames ----

export function frameSeconds() {
  if (analysis.frames) return 1 / USUAL_FPS;
  return 1 / (state.clip?.kind === "image" ? STILL_FPS : state.clip?.fps || STILL_FPS);
}

// The number of the frame that is seen at a time.
export function frameAt(time) {
  const short = SHORT * frameSeconds();
  if (!analysis.frames) return Math.floor((time + short) / frameSeconds());
  const next = analysis.frames.findIndex((start) => start > time + short);
  return Math.max(0, (next < 0 ? analysis.frames.length : next) - 1);
}

// The place one frame before or after another one: where that frame begins, if frames come unevenly.
export function frameBeside(time, way) {
  const { frames } = analysis;
  if (!frames) return time + way * frameSeconds();
  const n = frameAt(time);
  if (way < 0) return frames[frames[n] < time - SHORT * frameSeconds() ? n : Math.max(0, n - 1)];
  return frames[n + 1] ?? time + frameSeconds();
}
