// The page at /: reads the settings, samples from one network after the other, and plays the moves on one clock.
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

/** The request for a lane; JSON leaves out fields that are undefined. */
function requestOf({ model, role, sampler, nfe, temperature, guidance_scale }, { prompt, seed, length }, token_ids) {
  const guidance = guidance_scale === undefined ? undefined : { guidance_scale };
  const isLeftToRight = role === "autoregressive";
  return { model, role, temperature, seed: Number(seed), length: length ? Number(length) : undefined,
    sampler: isLeftToRight ? undefined : sampler, nfe: isLeftToRight ? undefined : nfe, guidance,
    ...(token_ids ? { token_ids } : prompt ? { prompt } : {}) };
}

/** Samples one lane and shows each move when it arrives. The lane takes the place of the lane `replaced`, if any. */
async function sample(network, shared, signal, { token_ids, replaced } = {}) {
  const request = requestOf(network, shared, token_ids);
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
    error.message = `${network.role}: ${error.message}`;
    throw error;
  }
  if (network.role !== "autoregressive") selectable(lane, (positions) => again(lane, network, shared, positions));
}

/** Runs `work`; the button Run becomes Stop. An error is shown in one line. */
async function run(work) {
  running?.abort();
  const controller = running = new AbortController();
  at("error").textContent = "";
  at("run").textContent = "Stop";
  try {
    await work(controller.signal);
  } catch (error) {
    if (error.name !== "AbortError") show(error);
  }
  if (running !== controller) return; // another run has begun
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

function again(lane, network, shared, positions) {
  const seed = Number(lane.seed) + 1; // with the same seed, the tokens would be the same
  const length = lane.length;
  return run((signal) => sample(network, { ...shared, seed, length }, signal, { token_ids: idsWithout(lane, positions), replaced: lane }));
}

async function open() {
  const linked = fromLink(location.hash);
  if (!linked) return settings.set(settings.race()); // a prompt may have been typed while the networks were requested
  fill(linked);
  await race();
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

/** Requests the list of networks, then enables the page. */
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
