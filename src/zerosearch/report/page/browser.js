"use strict";
// Finds trajectories, and shows one beside those that it is compared with.

const T = DATA.trajectories.columns;
const { phases: PHASES, stops: STOPS, questions: QUESTIONS, count: COUNT } = DATA.trajectories;
const TRAIN = PHASES.indexOf("train");
const ORDER = { start: 0, val: 1, test: 2 };
const USEFUL = 1, NOISY = 2, UNKNOWN = 4;
const STOP_WORDS = {
  answer: "answered", eos: "ended without an answer", max_turns: "asked for one search too many",
  invalid: "empty query or answer", turn_budget: "turn too long", context: "context full",
  search_failed: "search failed", model_failed: "model failed", reward_failed: "reward failed",
};
const PHASE_WORDS = { start: "before training", test: "after training", val: "validation" };

const controls = {};
const groups = new Map(); // trajectories that are shown side by side, by key
let rows, looking = 0;

function engineOf(i) { return PHASES[T.phase[i]].split("/").slice(1).join("/"); }
function kindOf(i) { return PHASES[T.phase[i]].split("/")[0]; }
function stepOf(i) { return T.step[i] + (T.phase[i] === TRAIN ? 1 : 0); }

function keyOf(i) {
  const which = T.phase[i] === TRAIN ? `train ${T.step[i]} ${T.group[i]}` : `of ${engineOf(i)}`;
  return `${T.run[i]} ${which} ${T.question[i]}`;
}

function phaseWords(phase) {
  const [kind, ...engine] = phase.split("/");
  return kind === "train" ? "training" : `${PHASE_WORDS[kind] ?? kind}, ${engine.join("/")}`;
}

/** The answer to the same question before training, of one after it. */
function before(i) {
  return groups.get(keyOf(i)).find((each) => kindOf(each) === "start");
}

function change(i) {
  const first = before(i);
  return first === undefined ? null : T.f1[i] - T.f1[first];
}

// -- filters --------------------------------------------------------------------------------------

function select(name, label, options) {
  const made = element("select", { name }, ...options.map(([value, text]) => element("option", { value }, text)));
  controls[name] = made;
  return element("label", { id: `for-${name}` }, label, made);
}

function input(name, label, properties) {
  controls[name] = element("input", { name, autocomplete: "off", ...properties });
  return element("label", { className: name === "text" ? "long" : "" }, label, controls[name]);
}

function makeFilters(form) {
  const engines = [...new Set(PHASES.filter((phase) => phase.startsWith("test/")).map((phase) => phase.slice(5)))]
    .filter((engine) => PHASES.includes(`start/${engine}`));
  const number = { type: "number", step: "any" };
  if (DATA.runs.length > 1) form.append(select("run", "run", [["", "all runs"], ...DATA.runs.map((name, n) => [n, name])]));
  form.append(
    select("phase", "phase", [
      ...PHASES.map((phase, n) => [n, phaseWords(phase)]),
      ...engines.map((engine) => [`pair ${engine}`, `before and after training, ${engine}`]),
      ["", "all phases"],
    ]),
    select("change", "changed to", [["", "anything"], ["better", "better"], ["worse", "worse"], ["same", "same F1"]]),
    input("from", "from step", { ...number, step: 1 }), input("to", "to step", { ...number, step: 1 }),
    input("least", "reward at least", number), input("most", "reward at most", number),
    select("stop", "stop reason", [["", "any"], ...STOPS.map((stop, n) => [n, STOP_WORDS[stop] ?? stop])]),
    select("quality", "documents", [["", "any"], [USEFUL, "some useful"], [NOISY, "some noisy"], [UNKNOWN, "quality not known"], ["none", "no search"]]),
    ...(new Set(T.tokens).size > 1 ? [select("tokens", "values of tokens", [["", "any"], ["1", "recorded"]])] : []),
    input("text", "text in questions, answers, documents", { type: "search" }),
    select("order", "order", [["", "as sampled"], ["high", "highest reward first"], ["low", "lowest reward first"], ["advantage", "highest advantage first"], ["gain", "largest gain first"], ["loss", "largest loss first"]]),
    element("button", { type: "reset" }, "Clear filters"),
  );
  controls.phase.value = TRAIN < 0 ? "" : String(TRAIN);
  for (const option of controls.phase.options) option.defaultSelected = option.selected;
  let waiting;
  form.addEventListener("input", () => { busy(true); clearTimeout(waiting); waiting = setTimeout(find, 150); });
  form.addEventListener("reset", () => { busy(true); setTimeout(find); });
  form.addEventListener("submit", (event) => { event.preventDefault(); find(); });
}

function busy(yes) { document.getElementById("found").setAttribute("aria-busy", String(yes)); }

/** Whether a trajectory passes all filters but that of the text. */
function passes(i) {
  const value = (name) => controls[name].value;
  const pair = value("phase").startsWith("pair ");
  if (controls.run && value("run") !== "" && T.run[i] !== Number(value("run"))) return false;
  if (pair) {
    if (kindOf(i) !== "test" || engineOf(i) !== value("phase").slice(5)) return false;
    const by = change(i);
    if (value("change") && (by === null || value("change") !== (by > 0 ? "better" : by < 0 ? "worse" : "same"))) return false;
  } else if (value("phase") !== "" && T.phase[i] !== Number(value("phase"))) return false;
  if (value("from") !== "" && stepOf(i) < Number(value("from"))) return false;
  if (value("to") !== "" && stepOf(i) > Number(value("to"))) return false;
  if (value("least") !== "" && !(T.reward[i] !== null && T.reward[i] >= Number(value("least")))) return false;
  if (value("most") !== "" && !(T.reward[i] !== null && T.reward[i] <= Number(value("most")))) return false;
  if (value("stop") !== "" && T.stop[i] !== Number(value("stop"))) return false;
  if (controls.tokens && value("tokens") !== "" && !T.tokens[i]) return false;
  if (value("quality") === "none") return T.searches[i] === 0;
  return value("quality") === "" || (T.quality[i] & Number(value("quality"))) !== 0;
}

const ORDERS = {
  high: (i) => -(T.reward[i] ?? -Infinity), low: (i) => T.reward[i] ?? Infinity,
  advantage: (i) => -(T.advantage[i] ?? -Infinity),
  gain: (i) => -(change(i) ?? -Infinity), loss: (i) => change(i) ?? Infinity,
};

function wanted() { return controls.text.value.trim(); }

async function find() {
  const mine = ++looking;
  const pair = controls.phase.value.startsWith("pair ");
  document.getElementById("for-change").hidden = !pair;
  for (const option of controls.order.options) option.hidden = !pair && ["gain", "loss"].includes(option.value);
  let found = [];
  for (let i = 0; i < COUNT; i++) if (passes(i)) found.push(i);
  const said = document.getElementById("found");
  if (wanted()) {
    said.textContent = `Looking through ${found.length.toLocaleString("en")} trajectories ...`;
    found = await withText(found, wanted().toLowerCase(), () => mine !== looking);
    if (mine !== looking) return;
  }
  const by = ORDERS[controls.order.value];
  if (by) found.sort((a, b) => by(a) - by(b) || a - b);
  said.textContent = `${found.length.toLocaleString("en")} of ${COUNT.toLocaleString("en")} trajectories`;
  rows.set(found);
  busy(false);
}

/** Those with a text in what was asked, sampled or read. */
async function withText(candidates, text, isOver) {
  const found = [];
  for (const i of candidates) {
    const question = QUESTIONS[T.question[i]];
    const short = [question.text, ...question.golden, T.answer[i] ?? ""].join("\n");
    if (short.toLowerCase().includes(text)) { found.push(i); continue; }
    const { turns } = (await texts(T.chunk[i]))[T.row[i]];
    if (isOver()) return [];
    if (turns.some((turn) => `${turn.text}\n${turn.read ?? ""}`.toLowerCase().includes(text))) found.push(i);
  }
  return found;
}

// -- the list -------------------------------------------------------------------------------------

function rowOf(i) {
  const where = T.phase[i] === TRAIN ? `step ${stepOf(i)}, sibling ${T.sibling[i] + 1}` : `${phaseWords(PHASES[T.phase[i]])}, step ${stepOf(i)}`;
  const run = DATA.runs.length > 1 ? `${DATA.runs[T.run[i]]}: ` : "";
  const by = controls.phase.value.startsWith("pair ") ? before(i) : undefined;
  const reward = by === undefined ? `reward ${rounded(T.reward[i], 2)}` : `F1 ${rounded(T.f1[by], 2)} \u2192 ${rounded(T.f1[i], 2)}`;
  const advantage = T.advantage[i] === null ? "" : `, advantage ${signed(T.advantage[i])}`;
  const noisy = T.quality[i] & NOISY ? ", some noisy" : "";
  return [
    element("span", { className: "top" }, element("span", { className: "reward" }, reward), advantage, ` \u00b7 ${run}${where}`),
    element("span", { className: "question", dir: "auto" }, QUESTIONS[T.question[i]].text),
    element("span", { className: "end" }, `${STOP_WORDS[STOPS[T.stop[i]]] ?? STOPS[T.stop[i]]}${T.answer[i] ? `: ${T.answer[i]}` : ""} \u00b7 ${T.searches[i]} search${T.searches[i] === 1 ? "" : "es"}${noisy}`),
  ];
}

// -- the reader -----------------------------------------------------------------------------------

function headOf(i) {
  if (T.phase[i] === TRAIN) return `Sibling ${T.sibling[i] + 1}`;
  const [kind, engine] = [kindOf(i), engineOf(i)];
  return kind === "val" ? `Validation after step ${T.step[i]}, ${engine}` : phaseWords(PHASES[T.phase[i]]).replace(/^./, (letter) => letter.toUpperCase());
}

async function cardOf(i, chosen, marks) {
  const trajectory = (await texts(T.chunk[i]))[T.row[i]];
  const advantage = T.advantage[i] === null ? [] : [" \u00b7 advantage ", element("strong", {}, signed(T.advantage[i]))];
  return element("section", { className: `sibling${i === chosen ? " chosen" : ""}` },
    element("h4", {}, headOf(i)),
    element("p", { className: "numbers" }, "reward ", element("strong", {}, rounded(T.reward[i], 2)), ...advantage,
      ` \u00b7 ${STOP_WORDS[STOPS[T.stop[i]]] ?? STOPS[T.stop[i]]} \u00b7 ${trajectory.turns.reduce((sum, turn) => sum + turn.tokens[0], 0)} tokens sampled`),
    ...turnsOf(trajectory, marks));
}

/** Show a trajectory beside its counterparts; `follow` goes there on a narrow screen. */
async function read(i, follow = true) {
  rows.mark(i);
  const reader = document.getElementById("reader");
  const question = QUESTIONS[T.question[i]];
  const marks = marksOf(question.golden, wanted());
  const beside = groups.get(keyOf(i));
  const cards = await Promise.all(beside.map((each) => cardOf(each, i, marks)));
  const shown = await Promise.all(beside.map(async (each) => (await texts(T.chunk[each]))[T.row[each]]));
  if (rows.chosen !== i) return;
  const { noise } = (await texts(T.chunk[i]))[T.row[i]];
  const run = DATA.runs.length > 1 ? `${DATA.runs[T.run[i]]}; ` : "";
  const where = T.phase[i] === TRAIN
    ? `${run}policy step ${stepOf(i)} of training, ${beside.length} sibling${beside.length === 1 ? "" : "s"}`
    : `${run}the same question in ${beside.length} evaluation${beside.length === 1 ? "" : "s"} with ${engineOf(i)}`;
  const back = element("button", { type: "button", id: "back" }, "Back to the list");
  back.addEventListener("click", () => document.getElementById("filters").scrollIntoView());
  reader.replaceChildren(back,
    element("h3", { dir: "auto" }, question.text),
    element("p", { className: "note" }, "Golden answers: ", element("strong", { dir: "auto" }, question.golden.join(" | ") || "none"),
      ` \u00b7 ${where} \u00b7 noise probability ${rounded(noise, 2)}`),
    legend(), ...heatSwitch(shown, () => recolour(i)), element("div", { className: "siblings", tabIndex: 0, "aria-label": "Side by side" }, ...cards));
  const chosen = reader.querySelector(".chosen");
  chosen.parentElement.scrollLeft = chosen.offsetLeft - chosen.parentElement.offsetLeft;
  if (follow && matchMedia("(max-width: 52rem)").matches) reader.scrollIntoView();
}

/** The same again in other colours; the switch keeps the focus, and the siblings stay where they are. */
async function recolour(i) {
  const siblings = () => document.querySelector("#reader .siblings");
  const left = siblings().scrollLeft;
  await read(i, false);
  siblings().scrollLeft = left;
  document.querySelector("#reader [name=heat]:checked").focus();
}

function startBrowser() {
  for (let i = 0; i < COUNT; i++) {
    const key = keyOf(i);
    if (groups.has(key)) groups.get(key).push(i);
    else groups.set(key, [i]);
  }
  const place = (i) => (T.phase[i] === TRAIN ? T.sibling[i] : (ORDER[kindOf(i)] ?? 1) * 1e6 + T.step[i]);
  groups.forEach((members) => members.sort((a, b) => place(a) - place(b)));
  makeFilters(document.getElementById("filters"));
  rows = new Rows(document.getElementById("rows"), rowOf, (i) => read(i));
  find();
  read(anExample(), false);
}

/** The best of the last training step that searched, if possible with values of tokens, or whatever there is. */
function anExample() {
  let best = 0;
  const worth = (i) => [Number(T.phase[i] === TRAIN), T.step[i], T.tokens[i], T.reward[i] ?? -1, Number(T.searches[i] > 0)];
  for (let i = 1; i < COUNT; i++) {
    const [mine, others] = [worth(i), worth(best)];
    const differs = mine.findIndex((value, n) => value !== others[n]);
    if (differs >= 0 && mine[differs] > others[differs]) best = i;
  }
  return best;
}
