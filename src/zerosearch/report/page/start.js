"use strict";
// Begins what the page has.

document.getElementById("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  drawAgain();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);

if ("DecompressionStream" in window) {
  if (DATA.trajectories.count) startBrowser();
  startCharts().then(() => { document.body.dataset.ready = "yes"; });
} else {
  document.getElementById("charts").textContent = "This browser cannot unpack curves and trajectories; use one of 2023 or later.";
}
