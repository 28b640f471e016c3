"use strict";
// One trajectory as people read it: what the policy sampled, and what was inserted for it to read.

const TAG = /<(think|search|answer)>[\s\S]*?(?:<\/\1>|$)/g;
const SAMPLED = { think: "thinks", search: "searches", answer: "answers", other: "writes" };
const LEGEND = [
  ["think", "thinks"], ["search", "searches"], ["answer", "answers"], ["other", "other text of the policy"],
  ["useful", "useful documents, read", true], ["noisy", "noisy documents, read", true],
  ["unknown", "documents of an engine without a quality, read", true], ["golden", "golden answer"],
];

/** What a sampled text consists of, as [kind, text, where it begins]. */
function parts(text) {
  const found = [];
  let place = 0;
  for (const match of text.matchAll(TAG)) {
    found.push(["other", text.slice(place, match.index), place], [match[1], match[0], match.index]);
    place = match.index + match[0].length;
  }
  found.push(["other", text.slice(place), place]);
  return found.filter(([, words]) => words.trim());
}

function escaped(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/** A pattern of golden answers, as whole words, and of the text that is looked for. */
function marksOf(golden, wanted) {
  const kinds = [];
  const words = golden.filter((each) => each.trim()).map(escaped);
  if (words.length) kinds.push(`(?<golden>(?<![\\p{L}\\p{N}])(?:${words.join("|")})(?![\\p{L}\\p{N}]))`);
  if (wanted) kinds.push(`(?<found>${escaped(wanted)})`);
  return kinds.length ? new RegExp(kinds.join("|"), "giu") : null;
}

/** A text with its marks; tags of the grammar are pale. `tokens` colour it from `first` on. */
function words(text, marks, tokens = null, first = 0) {
  const box = element("div", { className: `words${tokens ? " heated" : ""}`, dir: "auto" });
  const put = (piece, at) => {
    for (const [n, bit] of piece.split(/(<\/?(?:think|search|answer|information)>)/).entries()) {
      const nodes = bit ? hot(bit, first + at, tokens) : [];
      box.append(...(n % 2 ? [element("span", { className: "tag" }, ...nodes)] : nodes));
      at += bit.length;
    }
  };
  let place = 0;
  for (const match of marks ? text.matchAll(marks) : []) {
    put(text.slice(place, match.index), place);
    const golden = match.groups.golden !== undefined;
    box.append(element("mark", { className: golden ? "golden" : "found", title: golden ? "golden answer" : "found" }, ...hot(match[0], first + match.index, tokens)));
    place = match.index + match[0].length;
  }
  put(text.slice(place), place);
  return box;
}

function part(kind, label, text, marks, { read = false, tokens = null, first = 0 } = {}) {
  const start = text.length - text.trimStart().length;
  return element("div", { className: `part k-${kind}${read ? " read" : ""}` },
    element("span", { className: "kind" }, label), words(text.trim(), marks, tokens, first + start));
}

/** What the policy read after a turn. */
function reading(turn, marks) {
  const searched = turn.found !== undefined;
  const kind = !searched ? "hint" : turn.noisy === null ? "unknown" : turn.noisy ? "noisy" : "useful";
  const what = { hint: "hint", unknown: "documents", noisy: "noisy documents", useful: "useful documents" }[kind];
  const counts = searched ? `: ${turn.found} of ${turn.asked}${turn.cached ? ", from the cache" : ""}` : "";
  return part(kind, `reads ${what}${counts}; masked, not trained on`, turn.read, marks, { read: true });
}

function turnsOf(trajectory, marks) {
  const shown = [];
  for (const turn of trajectory.turns) {
    const tokens = heated(turn);
    for (const [kind, text, first] of parts(turn.text)) shown.push(part(kind, SAMPLED[kind], text, marks, { tokens, first }));
    if (turn.read !== null) shown.push(reading(turn, marks));
  }
  if (trajectory.error) shown.push(part("noisy", "failed", trajectory.error, null, { read: true }));
  return shown;
}

function legend() {
  return element("ul", { className: "legend", "aria-label": "Colours" }, ...LEGEND.map(([kind, label, read]) =>
    element("li", { className: `k-${kind}${read ? " read" : ""}` }, label)));
}
