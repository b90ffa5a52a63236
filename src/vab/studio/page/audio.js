// What is heard: the layers of a project, mixed by the same arithmetic as the server's mix.py, on one clock.

export const RATE = 48000; // Hz, of every sound and of the mix
const AHEAD = 0.5; // seconds that the passes of a loop are laid out before they are heard
const SOON = 0.03; // seconds from a decision until it is heard: enough to hand it to the audio thread
const SMOOTH = 0.004; // seconds, time constant of a change of level, so that it does not click

// ---- the arithmetic of the mix: pure functions ----

// Seconds as samples, to the nearest one, halves upwards.
export const samples = (seconds) => Math.floor(seconds * RATE + 0.5);
export const amplitude = (decibels) => 10 ** (decibels / 20);

// A WAV file of 16, 24 or 32 bit integers or 32 bit floats -> one Float32Array for each channel, not resampled.
export function parseWav(buffer) {
  const view = new DataView(buffer);
  const word = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  if (buffer.byteLength < 12 || word(0) !== "RIFF" || word(8) !== "WAVE") throw new Error("This sound is not a WAV file.");
  let format = null;
  for (let at = 12; at + 8 <= buffer.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    if (word(at) === "fmt ") format = { count: view.getUint16(at + 10, true), rate: view.getUint32(at + 12, true), bits: view.getUint16(at + 22, true), float: view.getUint16(at + 8, true) === 3 };
    if (word(at) === "data") return channelsOf(view, at + 8, Math.min(size, buffer.byteLength - at - 8), format);
    at += 8 + size + (size & 1);
  }
  throw new Error("This WAV file holds no sound.");
}

function channelsOf(view, start, size, { count, rate, bits, float }) {
  if (rate !== RATE) throw new Error(`This sound has ${rate} samples a second, not ${RATE}.`);
  const bytes = bits / 8;
  const readers = {
    16: (at) => view.getInt16(at, true) / 2 ** 15,
    24: (at) => ((view.getUint8(at) << 8) | (view.getUint16(at + 1, true) << 16)) / 2 ** 31, // exact in a float32
    32: (at) => (float ? view.getFloat32(at, true) : view.getInt32(at, true) / 2 ** 31),
  };
  const read = readers[bits];
  const length = Math.floor(size / (bytes * count));
  const channels = Array.from({ length: count }, () => new Float32Array(length));
  for (let n = 0, at = start; n < length; n++) for (const channel of channels) (channel[n] = read(at)), (at += bytes);
  return channels;
}

// The layers that are heard: the solo ones if there are any, and none that is muted.
export function heard(layers) {
  const solo = layers.some((layer) => layer.solo);
  return layers.filter((layer) => !layer.mute && (layer.solo || !solo));
}

// The part of a sound that a layer uses, faded, before its gain. Beyond the ends of the sound is silence.
export function part(channels, layer) {
  const start = samples(layer.start);
  const length = Math.max(0, samples(layer.stop - layer.start));
  const [fadeIn, fadeOut] = [samples(layer.fade_in), samples(layer.fade_out)];
  return channels.slice(0, 2).map((channel) => {
    const piece = new Float32Array(length);
    piece.set(channel.subarray(Math.max(0, start), Math.max(0, start + length)), Math.max(0, -start));
    for (let n = 0; n < Math.min(fadeIn, length); n++) piece[n] *= (n + 1) / (fadeIn + 1);
    for (let n = 0; n < Math.min(fadeOut, length); n++) piece[length - 1 - n] *= (n + 1) / (fadeOut + 1);
    return piece;
  });
}

// Samples of the mix: as long as the clip, or to the end of the last heard layer if that is later.
export function mixLength(layers, seconds) {
  return Math.max(samples(seconds), ...heard(layers).map((layer) => samples(layer.offset) + samples(layer.stop - layer.start)));
}

// The mix, [left, right]. `sounds`: by id, the channels of each.
export function mix(layers, sounds, seconds) {
  const sum = [0, 1].map(() => new Float32Array(mixLength(layers, seconds)));
  for (const layer of heard(layers)) {
    const piece = part(sounds.get(layer.sound), layer);
    const gain = Math.fround(amplitude(layer.gain_db));
    const at = samples(layer.offset);
    sum.forEach((side, c) => {
      const from = piece[Math.min(c, piece.length - 1)];
      for (let n = Math.max(0, -at); n < from.length; n++) side[at + n] += Math.fround(from[n] * gain);
    });
  }
  return sum;
}

function bufferOf(channels) {
  const buffer = new AudioBuffer({ length: Math.max(1, channels[0].length), numberOfChannels: channels.length, sampleRate: RATE });
  channels.forEach((channel, c) => buffer.copyToChannel(channel, c));
  return buffer;
}

// Start what of a track lies in a pass: `buffer` begins at sample `at` of the timeline, and the clock's sample
// `pass.frame` is the timeline's `pass.from`. Nothing before the clock's sample `earliest`.
function schedule(context, track, pass, earliest) {
  const now = pass.from + Math.max(0, earliest - pass.frame);
  const start = Math.max(now, track.at);
  const stop = Math.min(pass.to, track.at + track.buffer.length);
  if (stop <= start) return;
  const source = new AudioBufferSourceNode(context, { buffer: track.buffer });
  source.connect(track.gain);
  source.start((pass.frame + start - pass.from) / RATE, (start - track.at) / RATE, (stop - start) / RATE);
  track.sources.add(source);
  const { sources } = track;
  source.onended = () => sources.delete(source);
}

// The mix as the browser's own audio engine gives it, through the nodes that also play it: [left, right].
export async function render(layers, sounds, seconds) {
  const length = mixLength(layers, seconds);
  const context = new OfflineAudioContext(2, length, RATE);
  for (const layer of heard(layers)) {
    const gain = new GainNode(context, { gain: amplitude(layer.gain_db) });
    gain.connect(context.destination);
    const track = { at: samples(layer.offset), buffer: bufferOf(part(sounds.get(layer.sound), layer)), gain, sources: new Set() };
    schedule(context, track, { frame: 0, from: 0, to: length }, 0);
  }
  const rendered = await context.startRendering();
  return [0, 1].map((c) => rendered.getChannelData(c));
}

// ---- the player ----

// Events: "change" when it starts, stops or jumps; "sound" when a sound has arrived.
export class Player extends EventTarget {
  sounds = new Map(); // by id: the channels
  only = null; // the layer that is heard alone
  loop = null; // [from, to] in seconds, while it goes round there
  layers = [];
  #tracks = new Map(); // by layer: what plays it
  #passes = []; // { frame, from, to }: the clock's sample at which the timeline is played from there to there
  #rest = 0; // where it stands while it does not play
  #seconds = 0;
  #loading = new Map();
  #timer = 0;

  get playing() {
    return this.#passes.length > 0;
  }

  // The end of the timeline, in seconds: muted layers count, they may be heard alone.
  get end() {
    return Math.max(this.#seconds, ...this.layers.map((layer) => layer.offset + layer.stop - layer.start));
  }

  // What is heard at a moment (of performance.now()), as a place on the timeline in seconds.
  heardAt(moment = performance.now()) {
    if (!this.playing) return this.#rest;
    const frame = this.#clock(moment) * RATE;
    const pass = this.#passes.findLast((each) => each.frame <= frame) ?? this.#passes[0];
    const place = pass.from + Math.max(0, frame - pass.frame);
    return Math.min(place, pass.to) / RATE;
  }

  get position() {
    return this.heardAt();
  }

  // The audio clock of what leaves the loudspeaker at a moment, in seconds.
  #clock(moment) {
    const { contextTime, performanceTime } = this.context.getOutputTimestamp?.() ?? {};
    const age = performance.now() - performanceTime;
    if (performanceTime > 0 && age < 500 && Math.abs(this.context.currentTime - contextTime) < 1) return contextTime + (moment - performanceTime) / 1000;
    const latency = this.context.outputLatency || this.context.baseLatency || 0;
    return this.context.currentTime - latency - (performance.now() - moment) / 1000;
  }

  // Fetch a sound once; it is heard as soon as it is here.
  load(id, url) {
    if (!this.#loading.has(id)) this.#loading.set(id, this.#fetch(id, url));
    return this.#loading.get(id);
  }

  async #fetch(id, url) {
    try {
      const reply = await fetch(url);
      if (!reply.ok) throw new Error("A sound of this project cannot be read.");
      this.sounds.set(id, parseWav(await reply.arrayBuffer()));
    } catch (error) {
      this.#loading.delete(id); // it may be asked for again
      throw error;
    }
    this.#follow();
    this.dispatchEvent(new CustomEvent("sound", { detail: id }));
  }

  // Forget the sounds that are not among `ids`.
  keep(ids) {
    for (const id of this.#loading.keys()) if (!ids.has(id)) this.#loading.delete(id), this.sounds.delete(id);
  }

  // The layers of the arrangement, under a clip of so many seconds. What plays follows at once.
  arrange(layers, seconds) {
    this.layers = layers;
    this.#seconds = seconds;
    if (!layers.some((layer) => layer.id === this.only)) this.only = null;
    this.#follow();
  }

  // Hear one layer alone, or the mix (null), at the same place.
  hear(layer) {
    this.only = layer;
    this.#levels();
    this.dispatchEvent(new Event("change"));
  }

  // Play from one place to another, once or round and round.
  async play(from = this.position, to = this.end, loop = false) {
    if (!this.context) {
      this.context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
      this.meter = new AnalyserNode(this.context, { fftSize: 2048 });
      this.meter.connect(this.context.destination);
    }
    await this.context.resume();
    if (from >= to) from = 0;
    this.loop = loop ? [from, to] : null;
    this.#start(from, to);
  }

  pause(place = this.position) {
    if (this.playing) this.#silence(this.#soon());
    this.#passes = [];
    this.#rest = place;
    clearInterval(this.#timer);
    this.dispatchEvent(new Event("change"));
  }

  // Stand at a place; while it plays, go on from there.
  seek(place) {
    place = Math.min(Math.max(0, place), this.end);
    if (!this.playing) return this.pause(place);
    if (this.loop && (place < this.loop[0] || place >= this.loop[1])) this.loop = null;
    this.#start(place, this.loop ? this.loop[1] : this.end);
  }

  // Go round between two places, or no longer (null), from where it is now.
  circle(span) {
    this.loop = span;
    if (!this.playing) return;
    const place = this.position;
    const inside = span && place >= span[0] && place < span[1];
    this.#start(span && !inside ? span[0] : place, span ? span[1] : this.end);
  }

  #start(from, to) {
    const frame = this.#soon();
    this.#silence(frame);
    this.#passes = [{ frame, from: samples(from), to: Math.max(samples(to), samples(from) + 1) }];
    this.#follow();
    for (const track of this.#tracks.values()) if (!track.sources.size) schedule(this.context, track, this.#passes[0], frame);
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#tick(), 50);
    this.#tick();
    this.dispatchEvent(new Event("change"));
  }

  // Lay out the passes that come next; stop at the end.
  #tick() {
    const last = () => this.#passes.at(-1);
    const over = (pass) => pass.frame + pass.to - pass.from;
    const now = this.context.currentTime * RATE;
    while (this.loop && over(last()) < now + AHEAD * RATE) {
      const pass = { frame: over(last()), from: samples(this.loop[0]), to: Math.max(samples(this.loop[1]), samples(this.loop[0]) + samples(0.01)) };
      this.#passes.push(pass);
      for (const track of this.#tracks.values()) schedule(this.context, track, pass, 0);
    }
    while (this.#passes.length > 1 && over(this.#passes[0]) < now - RATE) this.#passes.shift();
    if (!this.loop && this.position * RATE >= last().to) this.pause(last().to / RATE);
  }

  // The clock's first sample at which something new can be heard.
  #soon() {
    return Math.ceil((this.context.currentTime + SOON) * RATE);
  }

  #silence(frame) {
    for (const track of this.#tracks.values()) quiet(track, frame);
  }

  // Bring what plays to what the layers say; a layer that is as it was plays on untouched.
  #follow() {
    if (!this.playing) return this.#levels();
    const frame = this.#soon();
    for (const [id, track] of this.#tracks)
      if (!this.layers.some((layer) => layer.id === id)) quiet(track, frame), this.#tracks.delete(id);
    for (const layer of this.layers) {
      const channels = this.sounds.get(layer.sound);
      if (!channels) continue;
      const at = samples(layer.offset);
      const look = JSON.stringify([layer.sound, layer.start, layer.stop, layer.fade_in, layer.fade_out]);
      let track = this.#tracks.get(layer.id);
      if (track && track.at === at && track.look === look) continue;
      if (!track) {
        const level = this.#level(layer);
        track = { level, gain: new GainNode(this.context, { gain: level }), sources: new Set() };
        track.gain.connect(this.meter);
        this.#tracks.set(layer.id, track);
      }
      if (track.look !== look) track.buffer = bufferOf(part(channels, layer));
      Object.assign(track, { at, look });
      quiet(track, frame);
      for (const pass of this.#passes) if (pass.frame + pass.to - pass.from > frame) schedule(this.context, track, pass, frame);
    }
    this.#levels();
  }

  #level(layer) {
    const sounds = this.only ? layer.id === this.only : heard(this.layers).includes(layer);
    return sounds ? amplitude(layer.gain_db) : 0;
  }

  #levels() {
    for (const layer of this.layers) {
      const track = this.#tracks.get(layer.id);
      const level = this.#level(layer);
      if (!track || track.level === level) continue;
      track.level = level;
      track.gain.gain.cancelScheduledValues(0).setTargetAtTime(level, this.context.currentTime, SMOOTH);
    }
  }
}

// Stop a track at a sample of the clock.
function quiet(track, frame) {
  for (const source of track.sources) source.stop(frame / RATE);
  track.sources = new Set();
}

export const player = new Player();
