"use strict";
// Everything that comes from a node is put into the page as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");
const words = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;
const lower = (state) => state.toLowerCase();
const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const percent = (share) => `${(share * 100).toFixed(1)}%`;

function element(tag, classes, ...children) {
  const node = document.createElement(tag);
  if (classes) node.className = classes;
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}
function shape(tag, classes, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  if (classes) node.setAttribute("class", classes);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const STATES = new Set(["JOINING", "ACTIVE", "DRAINING", "DEAD", "GONE", "LIVE", "QUIESCING", "CLOSED"]);
const stateClass = (state) => (STATES.has(state) ? state : "");
const dot = (state) => element("span", `dot-state ${stateClass(state)}`);

function age(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${two(Math.floor(s / 60) % 60)}m`;
  return `${Math.floor(s / 86400)}d ${two(Math.floor(s / 3600) % 24)}h`;
}
const ago = (seconds) => (seconds < 2 ? "now" : `${age(seconds)} ago`);

/** Latest snapshot, and when it came: leases and ages are counted on from there. */
let last = null;
let came = 0;
const since = () => (performance.now() - came) / 1000;
const lease = (seconds) => `${Math.max(0, seconds - since()).toFixed(0)}\u00a0s`;
