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

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return bytes;
}

/** The text behind base64 of gzip. */
async function unpacked(packed) {
  const stream = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

// Packed texts stand behind the scripts, so that list and curves are there before all is read.
const allPacks = new Promise((done) => {
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", done);
  else done();
}).then(() => [...document.querySelectorAll("script.chunk")]);
const opened = new Map();

/** The texts of one packed file of transcripts, by row. */
function texts(chunk) {
  if (!opened.has(chunk)) {
    opened.set(chunk, allPacks.then((packs) => unpacked(packs[chunk].textContent)).then(JSON.parse));
  }
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
