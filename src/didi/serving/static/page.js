// The page at /: settings, runs one network after the other, and plays them on one clock.
import { Player, themeButton } from "./player.js";
import { idsWithout, selectable } from "./selection.js";
import { generation, networks, setToken } from "./server.js";
import { Settings, fromLink, toLink } from "./settings.js";

const at = (id) => document.getElementById(id);
const player = new Player(at("player"));
let settings, running = null;

function show(error) {
  at("error").textContent = error.message.replace(/\s+/g, " ");
  if (error.needsToken) {
    at("access").hidden = false;
    at("token").focus();
  }
}

function values() {
  const fields = { prompt: at("prompt").value, seed: at("seed").value, length: at("length").value };
  return { ...fields, lanes: settings.get() };
}

function fill({ prompt, seed, length, lanes }) {
  at("prompt").value = prompt;
  at("seed").value = seed;
  at("length").value = length;
  settings.set(lanes);
}

/** What is asked of the server for a lane; fields without a value are left out of JSON. */
function requestOf({ model, role, sampler, nfe, temperature, guidance_scale }, { prompt, seed, length }, token_ids) {
  const guidance = guidance_scale === undefined ? undefined : { guidance_scale };
  const isFree = role === "autoregressive";
  return { model, role, temperature, seed: Number(seed), length: length ? Number(length) : undefined,
    sampler: isFree ? undefined : sampler, nfe: isFree ? undefined : nfe, guidance,
    ...(token_ids ? { token_ids } : prompt ? { prompt } : {}) };
}

/** Samples one lane and shows each move when it arrives; `replaced` is the lane in whose place it stands. */
async function sample(asked, shared, signal, { token_ids, replaced } = {}) {
  const request = requestOf(asked, shared, token_ids);
  let lane;
  try {
    for await (const [name, data] of generation(request, signal)) {
      if (name === "start") {
        const { temperature, guidance } = request;
        lane = player.begin({ ...data, temperature, guidance, tokens: data.tokens.flat(), token_ids: data.token_ids.flat(), moves: [] }, replaced);
        if (lane.root.getBoundingClientRect().top > innerHeight / 2 && player.lanes[0] === lane) lane.root.scrollIntoView();
      } else if (name === "move") player.push(lane, data);
    }
  } catch (error) {
    error.message = `${asked.role}: ${error.message}`;
    throw error;
  }
  if (asked.role !== "autoregressive") selectable(lane, (positions) => again(lane, asked, shared, positions));
}

/** Runs `work` with a button that stops it; a failure is shown in one line. */
async function run(work) {
  running?.abort();
  const mine = running = new AbortController();
  at("error").textContent = "";
  at("run").textContent = "Stop";
  try {
    await work(mine.signal);
  } catch (error) {
    if (error.name !== "AbortError") show(error);
  }
  if (running !== mine) return; // another run has begun
  running = null;
  at("run").textContent = "Run";
  player.start();
}

function race() {
  const shared = values();
  history.replaceState(null, "", toLink(shared));
  player.load({ lanes: [] });
  at("player").hidden = false;
  return run(async (signal) => {
    for (const lane of shared.lanes) await sample(lane, shared, signal);
  });
}

function again(lane, asked, shared, positions) {
  const seed = Number(lane.seed) + 1; // other tokens than before
  const length = lane.length;
  return run((signal) => sample(asked, { ...shared, seed, length }, signal, { token_ids: idsWithout(lane, positions), replaced: lane }));
}

async function open() {
  const linked = fromLink(location.hash);
  fill(linked ?? { prompt: "", seed: "0", length: "", lanes: settings.race() });
  if (linked) await race();
}

async function start() {
  document.querySelector(".head nav").append(themeButton());
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) running.abort();
    else race();
  });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey) return;
    event.preventDefault();
    at("form").requestSubmit();
  });
  at("copy").addEventListener("click", async () => {
    history.replaceState(null, "", toLink(values()));
    await navigator.clipboard.writeText(location.href);
    at("copy").textContent = "Copied";
    setTimeout(() => { at("copy").textContent = "Copy link"; }, 1500);
  });
  at("add").addEventListener("click", () => settings.add());
  at("token").addEventListener("change", () => {
    setToken(at("token").value.trim());
    if (!settings) connect();
  });
  addEventListener("hashchange", () => settings && open());
  await connect();
}

/** Gets the networks of the server; the page can be used when they are known. */
async function connect() {
  at("error").textContent = "";
  try {
    settings = new Settings(at("settings"), await networks());
  } catch (error) {
    show(error);
    return;
  }
  at("ask").hidden = !settings.known.some((network) => network.takesText);
  at("run").disabled = at("add").disabled = false;
  await open();
}

start();
