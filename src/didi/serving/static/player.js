// Plays recorded sampling: lanes of tokens on one clock. It imports nothing, so it can be embedded in one HTML file.
//
// A lane is {role, sampler, nfe, tokens, moves}: `tokens` has the text of each position before the first move, null
// for positions to be sampled. A move is {milliseconds, passes, discriminator_passes, positions, texts}:
// `milliseconds` counts from the start of sampling, and a text is null for a position that becomes [MASK] again.

const SPEEDS = [10, 5, 2, 1, 1 / 2, 1 / 5, 1 / 10, 1 / 20, 1 / 50, 1 / 100];
const PLAY_MILLISECONDS = 6000; // the initial speed is the highest one at which playing takes at least this long
const HOLD_NEW = 220; // milliseconds for which a new token is highlighted
const END_OF_TEXT = "<|endoftext|>";
const PLAY = "M4 2l11 7-11 7z", PAUSE = "M3 2h4v14H3zm8 0h4v14h-4z", AGAIN = "M9 3a6 6 0 1 0 6 6h-2a4 4 0 1 1-4-4v3l5-4-5-4z";

/** An element with attributes and children; names that begin with "on" are event handlers. */
export function element(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) created.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) created.setAttribute(key, value === true ? "" : value);
  }
  created.append(...children);
  return created;
}

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 18 18");
  svg.setAttribute("aria-hidden", "true");
  svg.innerHTML = `<path d="${path}"/>`;
  return svg;
}

const number = (value, digits = 0) =>
  value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const duration = (ms) => (ms < 9950 ? `${number(ms, ms && ms < 9.95 ? 1 : 0)} ms` : `${number(ms / 1000, 1)} s`);
const speedName = (speed) => (speed === 1 ? "real time" : speed > 1 ? `${speed}× speed` : `1/${Math.round(1 / speed)} speed`);
const samplerName = (lane) => (lane.role === "autoregressive" ? "left to right" : lane.sampler.replaceAll("-", " "));
const settingsName = (lane) => [
  count(lane.nfe, "move"), samplerName(lane),
  ...(lane.guidance ? [`guidance ${lane.guidance.guidance_scale}`] : []),
  ...((lane.temperature ?? 1) === 1 ? [] : [`temperature ${lane.temperature}`]),
].join(", ");
const count = (n, singular, plural = `${singular}s`) => `${number(n)} ${n === 1 ? singular : plural}`;

/** One lane: its elements, and the state after each number of moves. */
class Lane {
  constructor(record) {
    Object.assign(this, record, { moves: [] });
    const title = this.role[0].toUpperCase() + this.role.slice(1);
    this.label = settingsName(this);
    this.text = element("div", { class: "text", lang: "en", role: "group", "aria-label": `Text of ${title}` });
    this.spans = this.tokens.map((_, position) => element("span", { class: "token", "data-position": position }));
    this.gaps = this.tokens.map(() => document.createTextNode(""));
    this.tokens.forEach((_, position) => this.text.append(this.gaps[position], this.spans[position]));
    this.values = ["passes", "time", "tokens a second"].map((name) => [name, element("dd")]);
    const figures = element("dl", { class: "figures" });
    for (const [name, value] of this.values) figures.append(element("div", {}, element("dt", {}, name), value));
    this.track = element("div", { class: "track" });
    this.root = element("section", { class: "lane", "aria-label": `${title}, ${this.label}` },
      element("h2", {}, title, element("small", {}, this.label)), this.text, figures);
    this.shown = [];
    for (const move of record.moves) this.add(move);
    this.isSettled = false;
  }

  get milliseconds() { return this.moves.at(-1)?.milliseconds ?? 0; }

  add(move) { this.moves.push(move); }

  /** Fixes the width of each position to that of its last text, so that no token shifts while the moves are played. */
  settle() {
    const last = [...this.tokens];
    for (const move of this.moves) move.positions.forEach((position, at) => { last[position] = move.texts[at] ?? last[position]; });
    this.last = last;
    this.shown = [];
    this.isSettled = true;
  }

  /** Number of moves that have ended at a time. */
  movesAt(time) {
    const next = this.moves.findIndex((move) => move.milliseconds > time);
    return next < 0 ? this.moves.length : next;
  }

  /** Text of each position after a number of moves, with the number of the move that set it; 0 for the prompt. */
  stateAfter(numMoves) {
    const state = this.tokens.map((text) => ({ text, move: 0 }));
    this.moves.slice(0, numMoves).forEach((move, index) => move.positions.forEach((position, at) => {
      state[position] = { text: move.texts[at], move: index + 1 };
    }));
    return state;
  }

  /** Draws the state at a time. If the speed is not 0, tokens of the last move are highlighted for a while. */
  draw(time, speed) {
    const done = this.movesAt(time);
    const age = done ? time - this.moves[done - 1].milliseconds : Infinity;
    const isNew = age < speed * HOLD_NEW;
    const key = `${done} ${isNew} ${this.moves.length}`;
    if (this.key === key) return;
    this.key = key;
    const state = this.stateAfter(done);
    state.forEach(({ text, move }, position) => this.drawToken(position, text, move, isNew && move === done));
    [...this.track.children].forEach((tick, index) => tick.classList.toggle("past", index < done));
    this.drawFigures(done, state);
  }

  drawToken(position, text, move, isNew) {
    const value = text ?? this.last?.[position];
    const key = `${text === null} ${move} ${isNew} ${value}`;
    if (this.shown[position] === key) return;
    this.shown[position] = key;
    const span = this.spans[position], isEnd = value === END_OF_TEXT;
    const [, gap, body] = /^(\s*)([^]*)$/.exec(value ?? " .....");
    this.gaps[position].data = gap;
    span.textContent = isEnd ? " end of text " : body;
    span.className = `token${text === null ? " masked" : isNew ? " new" : ""}${isEnd ? " end" : ""}`;
    if (text === null) span.setAttribute("aria-hidden", "true"); // the text is only used for its width
    else span.removeAttribute("aria-hidden");
    if (text === null || !move) delete span.dataset.move;
    else span.dataset.move = move;
    span.style.setProperty("--at", this.at(move));
    span.title = text !== null && move ? `move ${move} of ${this.moves.length}` : "";
  }

  /** Place of a move on the colour scale, in [0, 1]. */
  at(move) {
    const numMoves = this.isSettled ? this.moves.length : Math.max(this.nfe, this.moves.length);
    return Math.max(0, (move - 1) / Math.max(1, numMoves - 1));
  }

  drawFigures(done, state) {
    const move = this.moves[done - 1];
    const written = state.filter(({ text }, position) => text !== null && this.tokens[position] === null).length;
    const discriminatorPasses = move?.discriminator_passes ? ` + ${number(move.discriminator_passes)} disc.` : "";
    const [passes, time, rate] = this.values.map(([, value]) => value);
    passes.replaceChildren(number(move?.passes ?? 0), element("small", {}, discriminatorPasses));
    time.replaceChildren(duration(move?.milliseconds ?? 0));
    rate.replaceChildren(move?.milliseconds ? number((1000 * written) / move.milliseconds) : "–");
    const total = this.tokens.filter((text) => text === null).length;
    this.summary = `${this.root.getAttribute("aria-label")}: ${written} of ${count(total, "token")} after ` +
      `${count(move?.passes ?? 0, "pass", "passes")} and ${duration(move?.milliseconds ?? 0)}`;
  }

  drawTrack(total) {
    this.track.replaceChildren(...this.moves.map((move, index) =>
      element("i", { style: `left:${(100 * move.milliseconds) / (total || 1)}%;--at:${this.at(index + 1)}` })));
  }
}

/** Lanes, a clock and its controls, in an element of the page. */
export class Player {
  constructor(root) {
    this.lanes = [];
    this.time = 0;
    this.isPlaying = false;
    this.grid = element("div", { class: "lanes" });
    this.button = element("button", { class: "play", type: "button", onclick: () => this.toggle() });
    this.tracks = element("div", { class: "tracks" });
    this.scrub = element("input", { class: "scrub", type: "range", min: 0, step: "any", "aria-label": "Time",
      oninput: () => { const time = this.scrub.valueAsNumber; this.pause(); this.seek(time); } });
    this.readout = element("div");
    this.select = element("select", { class: "speed", "aria-label": "Speed", onchange: () => { this.speed = Number(this.select.value); } },
      ...SPEEDS.map((speed) => element("option", { value: speed }, speedName(speed))));
    this.status = element("p", { class: "hidden", role: "status" });
    this.clock = element("div", { class: "clock", role: "group", "aria-label": "Player" }, this.button, this.tracks,
      element("div", { class: "time" }, this.readout, this.select),
      element("div", { class: "legend" }, "First move", element("span", { class: "ramp" }), "last move",
        element("span", { class: "keys" }, element("kbd", {}, "Space"), " plays, ", element("kbd", {}, "← →"), " step through the moves")));
    root.append(this.grid, this.clock, this.status);
    document.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shows a record {lanes}, and plays it unless the reader prefers reduced motion. */
  load({ lanes }) {
    this.pause();
    this.lanes = lanes.map((lane) => new Lane(lane));
    this.arrange();
    this.start();
  }

  /** Adds a lane that is being sampled, at the end or in the place of `replaced`; `push` adds its moves. */
  begin(record, replaced) {
    this.pause();
    const lane = new Lane(record);
    if (replaced) this.lanes.splice(this.lanes.indexOf(replaced), 1, lane);
    else this.lanes.push(lane);
    this.arrange();
    lane.draw(Infinity, 0);
    return lane;
  }

  push(lane, move) {
    lane.add(move);
    lane.draw(Infinity, 0);
  }

  arrange() {
    this.grid.style.setProperty("--columns", Math.min(this.lanes.length, 3));
    this.grid.replaceChildren(...this.lanes.map((lane) => lane.root));
    this.tracks.replaceChildren(...this.lanes.map((lane) => lane.track), this.scrub);
  }

  /** Plays all lanes from the start on one clock, once all moves have been added. */
  start() {
    this.total = Math.max(0, ...this.lanes.map((lane) => lane.milliseconds));
    this.scrub.max = this.total;
    this.speed = SPEEDS.find((speed) => this.total / speed >= PLAY_MILLISECONDS) ?? SPEEDS.at(-1);
    this.select.value = this.speed;
    for (const lane of this.lanes) { lane.settle(); lane.drawTrack(this.total); lane.key = null; }
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.seek(isStill ? this.total : 0);
    if (!isStill) this.play();
  }

  seek(time) {
    this.time = Math.min(Math.max(time, 0), this.total);
    this.draw();
    if (!this.isPlaying) this.status.textContent = this.lanes.map((lane) => lane.summary).join(". ");
  }

  draw() {
    for (const lane of this.lanes) lane.draw(this.time, this.isPlaying ? this.speed : 0);
    this.scrub.value = this.time;
    this.scrub.setAttribute("aria-valuetext", duration(this.time));
    this.readout.replaceChildren(element("b", {}, duration(this.time)), element("span", {}, ` of ${duration(this.total)}`));
    const isAtEnd = this.time >= this.total;
    const label = this.isPlaying ? "Pause" : isAtEnd ? "Play again" : "Play";
    if (label === this.button.getAttribute("aria-label")) return;  // a click can be lost if the icon is replaced between press and release
    this.button.replaceChildren(icon(this.isPlaying ? PAUSE : isAtEnd ? AGAIN : PLAY));
    this.button.setAttribute("aria-label", label);
  }

  toggle() { if (this.isPlaying) this.pause(); else this.play(); }

  play() {
    if (!this.total) return;
    if (this.time >= this.total) this.time = 0;
    this.isPlaying = true;
    let before = performance.now();
    const step = (now) => {
      if (!this.isPlaying) return;
      this.seek(this.time + Math.max(0, now - before) * this.speed);
      before = now;
      if (this.time >= this.total) this.pause();
      else this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  pause() {
    cancelAnimationFrame(this.frame);
    this.isPlaying = false;
    if (this.total !== undefined) this.seek(this.time);
  }

  /** Goes to the end of the next (1) or the previous (-1) move of any lane. */
  step(direction) {
    const times = this.lanes.flatMap((lane) => lane.moves.map((move) => move.milliseconds)).sort((a, b) => a - b);
    this.pause();
    this.seek((direction > 0 ? times.find((at) => at > this.time) : times.findLast((at) => at < this.time)) ?? (direction > 0 ? this.total : 0));
  }

  key(event) {
    const isTyping = event.target.closest("input:not(.scrub), textarea, select, [data-keys]");
    const isPress = event.key === " " && event.target.closest("button, a"); // the space key activates these
    if (isTyping || isPress || event.ctrlKey || event.metaKey || event.altKey || !this.lanes.length) return;
    const actions = { " ": () => this.toggle(), ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1),
      Home: () => { this.pause(); this.seek(0); }, End: () => { this.pause(); this.seek(this.total); } };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }
}

/** A button that switches between light and dark; before its first use the page follows the system. */
export function themeButton() {
  const isDark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const show = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  const button = element("button", { class: "quiet", type: "button", title: "Switch between light and dark", onclick: () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    show();
  } });
  show();
  return button;
}
