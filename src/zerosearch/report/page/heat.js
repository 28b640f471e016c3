"use strict";
// Colours the tokens that the policy sampled by what it thought of them.

// At `full`, in nats, a token has all of its colour: one chance in 150, or 20 equally likely choices.
const HEATS = {
  logprobs: { label: "log-prob", full: 5, sign: -1, low: "likely", high: "unlikely: log-prob -5 or less",
    say: (value) => `log-prob ${value.toFixed(2)}: chosen with a probability of ${chance(Math.exp(value))}` },
  entropies: { label: "entropy", full: 3, sign: 1, low: "sure", high: "undecided: entropy of 3 nats or more",
    say: (value) => `entropy ${value.toFixed(2)} nats: as undecided as among ${Math.exp(value).toFixed(1)} equally likely tokens` },
};
let heat = ""; // which of them; none by default

function chance(share) { return share >= 0.001 ? `${(100 * share).toFixed(1)}%` : share.toExponential(0); }

/** The tokens of a turn as [first unit, unit behind the last, value in nats]; null where none are shown. */
function heated(turn) {
  const values = turn.values?.[heat];
  if (!values) return null;
  let end = 0;
  return values.map((value, n) => [end, end += turn.values.units[n], value / 100]);
}

/** A piece of a text, from a place in it, as nodes in which each token has its colour. */
function hot(text, place, tokens) {
  if (!tokens) return [text];
  const made = [];
  let from = place;
  const put = (end, properties) => {
    if (end <= from) return;
    const bit = text.slice(from - place, end - place);
    made.push(properties ? element("span", properties) : bit);
    if (properties) made.at(-1).append(bit);
    from = end;
  };
  const last = place + text.length;
  for (let n = firstBehind(tokens, place); n < tokens.length && tokens[n][0] < last; n++) {
    const [start, end, value] = tokens[n];
    put(Math.max(start, from));
    const { full, sign, say } = HEATS[heat];
    const share = Math.min(1, Math.max(0, sign * value) / full);
    put(Math.min(end, last), { className: "token", title: say(value), style: `--share: ${share.toFixed(2)}` });
  }
  put(last);
  return made;
}

/** The first token that ends behind a place. */
function firstBehind(tokens, place) {
  let [low, high] = [0, tokens.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (tokens[middle][1] <= place) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The switch between the colours that some trajectory has; `change` is called where it moved. */
function heatSwitch(trajectories, change) {
  const turns = trajectories.flatMap((each) => each.turns);
  const there = Object.keys(HEATS).filter((name) => turns.some((turn) => turn.values?.[name]));
  if (!there.length) return [];
  const choice = (value, label) => {
    const input = element("input", { type: "radio", name: "heat", value, checked: value === heat });
    input.addEventListener("change", () => { heat = value; change(); });
    return element("label", {}, input, ` ${label}`);
  };
  const box = element("fieldset", { className: "heat" }, element("legend", {}, "Colour of tokens"),
    choice("", "none"), ...there.map((name) => choice(name, HEATS[name].label)));
  if (there.includes(heat)) {
    box.append(element("span", { className: "scale" }, HEATS[heat].low, element("i", { "aria-hidden": "true" }), HEATS[heat].high));
  } else if (heat) box.append(element("span", { className: "scale" }, `${HEATS[heat].label} was not recorded here`));
  return [box];
}
