// The settings of a run: controls for each network, and their encoding in a link.
import { element } from "./player.js";

const MOST_MOVES = 65536;
const label = ({ model, role }, isOnlyModel) => (isOnlyModel ? role : `${role} of ${model}`);
const key = ({ model, role }) => `${role},${model}`;

/** One row of controls for each lane. `known` is the list of networks of the server. */
export class Settings {
  constructor(root, known) {
    Object.assign(this, { root, known });
    this.isOnlyModel = new Set(known.map(({ model }) => model)).size === 1;
  }

  /** The lanes of a new page: all networks of the first model. */
  race() {
    const { model } = this.known[0];
    const networks = this.known.filter((network) => network.model === model);
    const order = ["student", "teacher", "autoregressive"];
    const student = networks.find(({ role }) => role === "student");
    return networks.sort((a, b) => order.indexOf(a.role) - order.indexOf(b.role)).map((network) => ({
      ...network, sampler: network.samplers[0], temperature: 1,
      nfe: network.role === "teacher" && student ? Math.min(8 * student.nfe, network.length) : network.nfe,
    }));
  }

  set(lanes) {
    this.root.replaceChildren(...lanes.map((lane) => this.row(lane)));
    this.update();
  }

  /** The values of the controls: a list of {model, role, sampler, nfe, temperature, guidance_scale}. */
  get() { return [...this.root.children].map((row) => row.read()); }

  add() {
    this.root.append(this.row(this.get().at(-1) ?? this.race()[0]));
    this.update();
  }

  update() {
    for (const row of this.root.children) row.querySelector(".remove").hidden = this.root.children.length === 1;
  }

  row(lane) {
    const numeric = (value, attributes) => element("input", { type: "number", value, ...attributes });
    const network = element("select", {}, ...this.known.map((each) => element("option", { value: key(each) }, label(each, this.isOnlyModel))));
    const sampler = element("select");
    const nfe = numeric(lane.nfe, { min: 1, max: MOST_MOVES, step: 1, required: true });
    const guidance = numeric(lane.guidance_scale, { min: 0, step: "any", placeholder: "default" });
    const temperature = numeric(lane.temperature ?? 1, { min: 0, step: "any", required: true });
    const labelled = (text, control) => element("label", {}, element("span", { class: "label" }, text), control);
    const row = element("div", { class: "setting" }, labelled("Network", network), labelled("Sampler", sampler),
      labelled("Moves", nfe), labelled("Temperature", temperature), labelled("Guidance", guidance),
      element("button", { class: "quiet remove", type: "button", "aria-label": "Remove this network",
        onclick: () => { row.remove(); this.update(); } }, "×"));
    const chosen = () => this.known.find((each) => key(each) === network.value);
    const update = (preferred) => {
      const { samplers, role, length } = chosen();
      const isLeftToRight = role === "autoregressive";
      sampler.replaceChildren(...samplers.map((name) => element("option", { value: name }, isLeftToRight ? "left to right" : name.replaceAll("-", " "))));
      if (samplers.includes(preferred)) sampler.value = preferred;
      sampler.disabled = nfe.disabled = isLeftToRight;
      if (isLeftToRight) nfe.value = length;
      guidance.disabled = sampler.value !== "guided";
      guidance.placeholder = guidance.disabled ? "–" : "default";
    };
    network.value = key(lane);
    if (!network.value) network.selectedIndex = 0;
    update(lane.sampler);
    network.onchange = () => { nfe.value = chosen().nfe; update(sampler.value); };
    sampler.onchange = () => update(sampler.value);
    row.read = () => ({
      model: chosen().model, role: chosen().role, sampler: sampler.value, nfe: nfe.valueAsNumber, temperature: temperature.valueAsNumber,
      guidance_scale: guidance.disabled || guidance.value === "" ? undefined : guidance.valueAsNumber,
    });
    return row;
  }
}

/** The settings {prompt, seed, length, lanes} as the fragment of a link. */
export function toLink({ prompt, seed, length, lanes }) {
  const fields = new URLSearchParams({ prompt, seed });
  if (length) fields.set("length", length);
  for (const lane of lanes) {
    const values = [lane.role, lane.sampler, lane.nfe, lane.temperature, lane.guidance_scale ?? ""];
    fields.append("lane", [...values, lane.model].join(","));
  }
  return `#${fields}`;
}

/** The settings in the fragment of a link; null if there are none. */
export function fromLink(hash) {
  const fields = new URLSearchParams(hash.slice(1));
  if (!fields.has("lane")) return null;
  const lanes = fields.getAll("lane").map((text) => {
    const [role, sampler, nfe, temperature, guidance, ...model] = text.split(",");
    return { role, sampler, nfe, temperature, guidance_scale: guidance === "" ? undefined : guidance, model: model.join(",") };
  });
  return { prompt: fields.get("prompt") ?? "", seed: fields.get("seed") ?? "0", length: fields.get("length") ?? "", lanes };
}
