// A take's waveform and mel picture on one time axis: shows where it plays, and what part is marked.
"use strict";

const STEP = 0.1; // seconds that an arrow key moves

class Wave {
  // `root`: the element; `media`: what plays; `from`, `to`: number fields that say the same as the mark.
  constructor(root, media, from, to, changed) {
    Object.assign(this, { root, media, from, to, changed, seconds: 1, mark: null });
    root.onpointerdown = (event) => this.grab(event);
    root.onkeydown = (event) => this.key(event);
    from.onchange = to.onchange = () => this.typed();
  }

  show(url, seconds, again) {
    this.seconds = seconds;
    this.root.setAttribute("aria-valuemax", seconds.toFixed(2));
    this.from.max = this.to.max = seconds.toFixed(2);
    this.place(".new", again);
    this.set(null);
    this.root.querySelector("img").src = `${url}.png`;
    fetch(`${url}.outline`).then((reply) => (reply.ok ? reply.text() : "")).then((path) => this.root.querySelector("path").setAttribute("d", path));
  }

  // The part that is marked, [from, to] in seconds, or null.
  set(mark) {
    if (mark) {
      const [a, b] = mark.map((time) => Math.min(this.seconds, Math.max(0, time))).sort((x, y) => x - y);
      mark = b - a >= 0.01 ? [a, b] : null;
    }
    this.mark = mark;
    this.place(".span", mark);
    this.from.value = mark ? mark[0].toFixed(2) : "";
    this.to.value = mark ? mark[1].toFixed(2) : "";
    this.tick();
    this.changed();
  }

  place(name, span) {
    const element = this.root.querySelector(name);
    element.hidden = !span;
    if (!span) return;
    element.style.left = `${(100 * span[0]) / this.seconds}%`;
    element.style.width = `${(100 * (span[1] - span[0])) / this.seconds}%`;
  }

  tick() {
    const now = Math.min(this.media.currentTime, this.seconds);
    this.root.querySelector(".now").style.left = `${(100 * now) / this.seconds}%`;
    this.root.setAttribute("aria-valuenow", now.toFixed(2));
    const marked = this.mark ? `, marked from ${this.mark[0].toFixed(2)} to ${this.mark[1].toFixed(2)} s` : "";
    this.root.setAttribute("aria-valuetext", `${now.toFixed(1)} s${marked}`);
  }

  time(event) {
    const box = this.root.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * this.seconds;
  }

  // A click goes there, a drag marks a part.
  grab(event) {
    if (event.button) return;
    const start = this.time(event);
    let dragged = false;
    this.root.setPointerCapture(event.pointerId);
    this.root.onpointermove = (move) => {
      dragged = dragged || Math.abs(move.clientX - event.clientX) > 4;
      if (dragged) this.set([start, this.time(move)]);
    };
    this.root.onpointerup = this.root.onpointercancel = (end) => {
      this.root.onpointermove = this.root.onpointerup = this.root.onpointercancel = null;
      if (dragged || end.type === "pointercancel") return;
      this.set(null);
      this.media.currentTime = start;
    };
  }

  // Arrows move, with Shift they mark from where they started; Escape takes the mark away.
  key(event) {
    const moves = { ArrowLeft: -STEP, ArrowRight: STEP, Home: -Infinity, End: Infinity };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in moves) {
      const now = this.media.currentTime;
      const then = Math.min(this.seconds, Math.max(0, now + moves[event.key]));
      if (event.shiftKey) {
        const fixed = !this.mark ? now : Math.abs(this.mark[0] - now) < 0.02 ? this.mark[1] : this.mark[0];
        this.set([fixed, then]);
      }
      this.media.currentTime = then;
    } else if (event.key === "Escape") this.set(null);
    else if (event.key === " ") this.media.paused ? this.media.play() : this.media.pause();
    else return;
    event.preventDefault();
    this.tick();
  }

  typed() {
    const [a, b] = [this.from, this.to].map((field) => field.valueAsNumber);
    if (!Number.isNaN(a) && !Number.isNaN(b)) this.set([a, b]);
  }
}
