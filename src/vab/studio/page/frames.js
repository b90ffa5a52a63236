// Small pictures of the film, for the lane of the picture.

import { player } from "./audio.js";

const MOST = 60; // pictures of a film
const HEIGHT = 96; // pixels of each
const PATIENCE = 300; // milliseconds between two looks whether the film still plays
let frames = []; // { time, image }, in order
let apart = 0; // seconds from one to the next
let wanted = ""; // the film they are of

// Look through a film, one picture after another, while none plays. `found` is called after each.
export async function readFrames(url, seconds, found) {
  wanted = url;
  frames = [];
  const film = Object.assign(document.createElement("video"), { muted: true, preload: "auto", src: url });
  const count = Math.min(MOST, Math.ceil(seconds * 2));
  apart = seconds / count;
  try {
    await happens(film, "loadeddata");
    for (let n = 0; n < count && wanted === url; n++) {
      while (player.playing) await new Promise((done) => setTimeout(done, PATIENCE));
      const time = (n + 0.5) * apart;
      film.currentTime = Math.min(time, film.duration - 0.001);
      await happens(film, "seeked");
      frames.push({ time, image: await createImageBitmap(film, { resizeHeight: HEIGHT, resizeWidth: Math.max(1, Math.round((HEIGHT * film.videoWidth) / film.videoHeight)), resizeQuality: "medium" }) });
      found();
    }
  } catch {
    // without pictures the lane still shows cuts and motion
  } finally {
    film.removeAttribute("src");
    film.load();
  }
}

const happens = (film, name) => new Promise((done, fail) => {
  film.addEventListener(name, done, { once: true });
  film.addEventListener("error", fail, { once: true });
});

// Side by side from the film's beginning up to `end`; each place shows the nearest picture there is.
export function paintFrames(context, end, height, toX, toTime) {
  if (!frames.length) return;
  const { width, height: tall } = frames[0].image;
  const wide = (width * height) / tall;
  const begin = toX(0);
  const first = Math.max(0, Math.floor(-begin / wide));
  context.save();
  context.beginPath();
  context.rect(Math.max(0, begin), 0, end - Math.max(0, begin), height);
  context.clip();
  for (let x = begin + first * wide; x < end; x += wide) {
    const time = toTime(x + wide / 2);
    const near = frames.reduce((best, frame) => (Math.abs(frame.time - time) < Math.abs(best.time - time) ? frame : best));
    if (Math.abs(near.time - time) <= apart) context.drawImage(near.image, x, 0, wide - 1, height); // else it is to come
  }
  context.restore();
}
