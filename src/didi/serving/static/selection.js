// Selection of tokens in a finished lane, by pointer, touch or keys, to sample them again.
import { element } from "./player.js";

/** Makes the tokens of `lane` selectable; `onAgain` is called with the positions of the selected tokens. */
export function selectable(lane, onAgain) {
  let first = null, last = null; // the first and the latest position that the user chose
  const words = element("span");
  const again = element("button", { class: "quiet", type: "button", onclick: () => onAgain(chosen()) }, "Sample again");
  const bar = element("div", { class: "again", hidden: true }, words, again,
    element("button", { class: "quiet", type: "button", onclick: () => choose(null, null) }, "Clear"));
  lane.text.after(bar);
  lane.text.tabIndex = 0;
  lane.text.dataset.keys = "";
  lane.text.setAttribute("aria-label", `${lane.text.getAttribute("aria-label")}. Arrow keys select a token, Shift and arrow keys select several tokens, Enter samples them again`);

  const chosen = () => first === null ? [] :
    [...lane.spans.keys()].slice(Math.min(first, last), Math.max(first, last) + 1);
  const choose = (from, to) => {
    [first, last] = [from, to];
    const positions = new Set(chosen());
    lane.spans.forEach((span, position) => {
      span.classList.toggle("chosen", positions.has(position));
      span.classList.toggle("cursor", position === last && lane.text.matches(":focus-visible"));
    });
    bar.hidden = !positions.size;
    words.textContent = `${positions.size} token${positions.size === 1 ? "" : "s"} selected`;
  };

  document.addEventListener("selectionchange", () => {
    const selection = document.getSelection();
    if (selection.isCollapsed || !lane.root.isConnected) return;
    const range = selection.getRangeAt(0);
    if (!range.intersectsNode(lane.text)) return;
    const within = lane.spans.map((span, position) => (touches(range, span) ? position : -1)).filter((position) => position >= 0);
    if (within.length) choose(within[0], within.at(-1));
  });

  lane.text.addEventListener("mousedown", (event) => { if (event.shiftKey) event.preventDefault(); }); // Shift and a click would select text
  lane.text.addEventListener("click", (event) => {
    const span = event.target.closest(".token");
    if (!span || !document.getSelection().isCollapsed) return;
    const position = Number(span.dataset.position);
    if (event.shiftKey && first !== null) choose(first, position);
    else choose(position, position);
  });

  lane.text.addEventListener("keydown", (event) => {
    const ends = { ArrowRight: (last ?? -1) + 1, ArrowLeft: (last ?? 0) - 1, Home: 0, End: lane.spans.length - 1 };
    if (event.key in ends) {
      const position = Math.min(Math.max(ends[event.key], 0), lane.spans.length - 1);
      choose(event.shiftKey && first !== null ? first : position, position);
    } else if (event.key === "Enter" && first !== null) onAgain(chosen());
    else if (event.key === "Escape") choose(null, null);
    else return;
    event.preventDefault();
  });
}

/** Whether a range covers at least one character of the text of an element. */
function touches(range, node) {
  const text = node.firstChild;
  if (!text || !range.intersectsNode(node)) return false;
  const contents = document.createRange();
  contents.selectNodeContents(node);
  return range.compareBoundaryPoints(Range.START_TO_END, contents) > 0 && range.compareBoundaryPoints(Range.END_TO_START, contents) < 0;
}

/** Token ids of a finished text, null at `positions`. */
export function idsWithout(lane, positions) {
  const ids = [...lane.token_ids];
  for (const move of lane.moves) move.positions.forEach((position, at) => { ids[position] = move.token_ids[at]; });
  for (const position of positions) ids[position] = null;
  return ids;
}
