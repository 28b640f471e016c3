"use strict";
// Draws the curves with plotly.js, each when it comes into view.

// Colours that are told apart without seeing red and green alike (Okabe and Ito).
const LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3b8bc2", "#555555"];
const DARK = ["#56b4e9", "#ff9d5c", "#2fd0a0", "#e79ac4", "#f0e442", "#8fc7ff", "#cccccc"];
const DASHES = ["solid", "dash", "dashdot", "longdash"];

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Plotly reads some HTML in names; in these there is none. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

const SEVERAL = DATA.runs.length > 1;
const hiddenRuns = new Set();

/** Several runs differ in colour, and their curves in dashes; those of one run differ in colour. */
function lookOf(series) {
  const tints = isDark() ? DARK : LIGHT;
  const number = SEVERAL ? series.run : series.hue;
  const dash = series.right || series.test ? "dot" : DASHES[(SEVERAL ? series.hue : Math.floor(number / tints.length)) % DASHES.length];
  return { tint: tints[number % tints.length], dash };
}

function nameOf(series) { return SEVERAL ? `${DATA.runs[series.run]}, ${series.label}` : series.label; }

function trace(series, chart) {
  const { tint, dash } = lookOf(series);
  const made = {
    x: series.x, y: series.y, name: plain(nameOf(series)),
    mode: series.x.length > 60 ? "lines" : "lines+markers",
    marker: { size: 5, color: tint }, line: { color: tint, width: 2, dash },
    hovertemplate: "%{y:.4g}",
    visible: !series.hidden && !hiddenRuns.has(series.run),
  };
  if (series.right) made.yaxis = "y2";
  if (chart.stacked) Object.assign(made, { stackgroup: "all", mode: "lines", line: { color: tint, width: 1 } });
  if (series.test) made.marker = { size: 9, symbol: "diamond", color: tint };
  if (series.low && series.low.every((bound) => bound !== null)) {
    made.error_y = {
      type: "data", symmetric: false, color: tint, thickness: 1, width: 3,
      array: series.high.map((bound, i) => bound - series.y[i]),
      arrayminus: series.low.map((bound, i) => series.y[i] - bound),
    };
  }
  return made;
}

function layout(chart) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line"), linecolor: colour("--line"), automargin: true, exponentformat: "e", tickmode: "auto" };
  const right = chart.series.some((series) => series.right);
  const left = new Set(chart.series.filter((series) => !series.right).map((series) => series.label));
  const named = SEVERAL && left.size === 1 && !left.has(chart.unit); // no list of names says it
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 10, r: right ? 10 : 12, t: 8, b: 8 },
    xaxis: { ...axis, title: { text: "policy step", standoff: 4 } },
    yaxis: { ...axis, title: { text: plain(named ? `${[...left][0]}, ${chart.unit}` : chart.unit), standoff: 4 }, rangemode: "tozero" },
    ...(right ? { yaxis2: { ...axis, overlaying: "y", side: "right", title: { text: chart.beside, standoff: 4 }, rangemode: "tozero", showgrid: false } } : {}),
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("--paper"), font: { color: colour("--ink") }, namelength: 40 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
  };
}

async function draw(figure, chart) {
  const plot = figure.querySelector(".plot");
  plot.hidden = false;
  const traces = chart.series.map((series) => trace(series, chart));
  await Plotly.react(plot, traces, layout(chart), { displayModeBar: false, responsive: true });
  names(figure.querySelector(".names"), chart, () => draw(figure, chart));
  figure.dataset.drawn = "yes";
}

function swatch(tint, dash) {
  const line = element("i", { className: dash, "aria-hidden": "true" });
  line.style.setProperty("--hue", tint);
  return line;
}

/** The names of a chart's curves, to hide and show them; of several runs, what their dashes mean. */
function names(box, chart, again) {
  if (!box) return;
  const first = new Map(chart.series.map((series) => [series.label, series]));
  box.replaceChildren(...(first.size < 2 ? [] : [...first.values()].map((series) => {
    const { tint, dash } = lookOf(series);
    const content = [swatch(SEVERAL ? colour("--ink") : tint, dash), series.label];
    if (SEVERAL) return element("span", {}, ...content);
    const button = element("button", { type: "button", "aria-pressed": String(!series.hidden) }, ...content);
    button.addEventListener("click", () => { series.hidden = !series.hidden; again(); });
    return button;
  })));
}

/** One button for each of several runs, for all charts together. */
function nameRuns() {
  if (!SEVERAL) return;
  document.getElementById("runs").replaceChildren(...DATA.runs.map((name, run) => {
    const button = element("button", { type: "button", "aria-pressed": String(!hiddenRuns.has(run)) }, swatch(lookOf({ run, hue: 0 }).tint, ""), name);
    button.addEventListener("click", () => {
      if (!hiddenRuns.delete(run)) hiddenRuns.add(run);
      drawAgain();
    });
    return button;
  }));
}

/** What a chart shows, in words, for those who do not see it. */
function inWords(chart) {
  return chart.title + ": " + chart.series.map((series) => {
    const last = series.x.length - 1;
    return `${nameOf(series)} ${rounded(series.y[0])} at step ${series.x[0]}, ${rounded(series.y[last])} at step ${series.x[last]}`;
  }).join("; ");
}

function fillNumbers(box, chart) {
  if (box.children.length) return;
  const steps = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  const head = element("tr", {}, element("th", { scope: "col" }, "policy step"));
  const byStep = chart.series.map((series) => new Map(series.x.map((x, i) => [x, series.y[i]])));
  for (const series of chart.series) head.append(element("th", { scope: "col" }, nameOf(series)));
  const rows = steps.map((step) => element("tr", {}, element("th", { scope: "row" }, String(step)),
    ...byStep.map((points) => element("td", {}, points.has(step) ? Number(points.get(step)).toPrecision(4) : ""))));
  box.append(element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function figureOf(chart) {
  const box = element("div", { className: "wide" });
  const numbers = element("details", {}, element("summary", {}, "Numbers"), box);
  numbers.addEventListener("toggle", () => fillNumbers(box, chart));
  return element("figure", { className: "chart" },
    element("h3", {}, chart.title),
    element("div", { className: "plot", role: "img", "aria-label": inWords(chart) }),
    element("div", { className: "names", role: "group", "aria-label": "Curves to show" }),
    element("figcaption", {}, chart.caption), numbers);
}

const visible = new Map(); // figures that were drawn, with their charts

async function startCharts() {
  const area = document.getElementById("charts");
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((each) => each.isIntersecting)) {
      watcher.unobserve(entry.target);
      const chart = charts.get(entry.target);
      visible.set(entry.target, chart);
      draw(entry.target, chart);
    }
  }, { rootMargin: "300px" });
  const charts = new Map(DATA.charts.map((chart) => [figureOf(chart), chart]));
  area.append(...charts.keys());
  const library = element("script", {}, await unpacked(document.getElementById("library").textContent));
  document.head.append(library);
  charts.forEach((_, figure) => watcher.observe(figure));
  nameRuns();
  startAnyMetric();
}

function startAnyMetric() {
  const names = Object.keys(DATA.metrics);
  const figure = document.getElementById("any");
  if (!names.length) return;
  const choice = document.getElementById("metric");
  choice.append(element("option", { value: "" }, `choose one of ${names.length}`), ...names.map((name) => element("option", { value: name }, name)));
  choice.addEventListener("change", () => {
    if (!choice.value) return;
    const series = DATA.metrics[choice.value].map((each) => ({ ...each, label: choice.value, hue: 0 }));
    const chart = { unit: choice.value, beside: "", stacked: false, series };
    visible.set(figure, chart);
    draw(figure, chart);
  });
  figure.hidden = false;
}

function drawAgain() {
  nameRuns();
  visible.forEach((chart, figure) => draw(figure, chart));
}
