"use strict";
// One trajectory as people read it: what the policy sampled, and what was inserted for it to read.

const TAG = /<(think|search|answer)>[\s\S]*?(?:<\/\1>|$)/g;
const SAMPLED = { think: "thinks", search: "searches", answer: "answers", other: "writes" };
const LEGEND = [
  ["think", "thinks"], ["search", "searches"], ["answer", "answers"], ["other", "other text of the policy"],
  ["useful", "useful documents, read", true], ["noisy", "noisy documents, read", true],
  ["unknown", "documents of an engine without a quality, read", true], ["golden", "golden answer"],
];

/** What a sampled text consists of, as [kind, text]. */
function parts(text) {
  const found = [];
  let place = 0;
  for (const match of text.matchAll(TAG)) {
    found.push(["other", text.slice(place, match.index)], [match[1], match[0]]);
    place = match.index + match[0].length;
  }
  found.push(["other", text.slice(place)]);
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

/** A text with its marks; tags of the grammar are pale. */
function words(text, marks) {
  const box = element("div", { className: "words", dir: "auto" });
  const put = (piece) => {
    for (const [n, bit] of piece.split(/(<\/?(?:think|search|answer|information)>)/).entries()) {
      if (bit) box.append(n % 2 ? element("span", { className: "tag" }, bit) : bit);
    }
  };
  let place = 0;
  for (const match of marks ? text.matchAll(marks) : []) {
    put(text.slice(place, match.index));
    const golden = match.groups.golden !== undefined;
    box.append(element("mark", { className: golden ? "golden" : "found", title: golden ? "golden answer" : "found" }, match[0]));
    place = match.index + match[0].length;
  }
  put(text.slice(place));
  return box;
}

function part(kind, label, text, marks, read = false) {
  return element("div", { className: `part k-${kind}${read ? " read" : ""}` },
    element("span", { className: "kind" }, label), words(text.trim(), marks));
}

/** What the policy read after a turn. */
function reading(turn, marks) {
  const searched = turn.found !== undefined;
  const kind = !searched ? "hint" : turn.noisy === null ? "unknown" : turn.noisy ? "noisy" : "useful";
  const what = { hint: "hint", unknown: "documents", noisy: "noisy documents", useful: "useful documents" }[kind];
  const counts = searched ? `: ${turn.found} of ${turn.asked}${turn.cached ? ", from the cache" : ""}` : "";
  return part(kind, `reads ${what}${counts}; masked, not trained on`, turn.read, marks, true);
}

function turnsOf(trajectory, marks) {
  const shown = [];
  for (const turn of trajectory.turns) {
    for (const [kind, text] of parts(turn.text)) shown.push(part(kind, SAMPLED[kind], text, marks));
    if (turn.read !== null) shown.push(reading(turn, marks));
  }
  if (trajectory.error) shown.push(part("noisy", "failed", trajectory.error, null, true));
  return shown;
}

function legend() {
  return element("ul", { className: "legend", "aria-label": "Colours" }, ...LEGEND.map(([kind, label, read]) =>
    element("li", { className: `k-${kind}${read ? " read" : ""}` }, label)));
}
