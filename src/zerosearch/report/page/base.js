"use strict";
// What all parts of the page share. Text of models becomes text nodes, and never anything else.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with properties and children; a child that is no element is a text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The text behind base64 of gzip. */
async function unpacked(packed) {
  const bytes = Uint8Array.from(atob(packed.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const packs = [...document.querySelectorAll("script.chunk")];
const opened = new Map();

/** The texts of one packed file of transcripts, by row. */
function texts(chunk) {
  if (!opened.has(chunk)) opened.set(chunk, unpacked(packs[chunk].textContent).then(JSON.parse));
  return opened.get(chunk);
}

function rounded(value, digits = 3) {
  return value === null || value === undefined ? "-" : Number(value).toFixed(digits);
}

function signed(value) {
  return value === null || value === undefined ? "-" : (value < 0 ? "" : "+") + value.toFixed(2);
}

/** The value of a custom property of the style sheet, in the present theme. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
