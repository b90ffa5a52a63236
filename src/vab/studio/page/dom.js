// Elements made in a line, and how things are written.

// An HTML element with properties; names with a dash are attributes.
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

// An SVG element with attributes.
export function draw(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

// Set the text of an element that is read out, only if it is another one.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const plain = (name) => name.replaceAll("_", " ");

// 1:05, or 0:04.2 for what is short.
export function duration(seconds) {
  const tenths = Math.round(seconds * 10);
  const minutes = Math.floor(tenths / 600);
  const rest = (tenths % 600) / 10;
  return `${minutes}:${(seconds < 60 ? rest.toFixed(1) : Math.floor(rest).toFixed(0)).padStart(seconds < 60 ? 4 : 2, "0")}`;
}

export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  const n = Math.min(3, Math.floor(Math.log10(Math.max(1, count)) / 3));
  const value = count / 1000 ** n;
  return `${value.toFixed(n && value < 10 ? 1 : 0)} ${units[n]}`;
}

export function ago(date) {
  const minutes = Math.floor((Date.now() - date) / 60000);
  if (minutes < 1) return "just now";
  const words = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (minutes < 60) return words.format(-minutes, "minute");
  if (minutes < 24 * 60) return words.format(-Math.floor(minutes / 60), "hour");
  if (minutes < 7 * 24 * 60) return words.format(-Math.floor(minutes / 24 / 60), "day");
  return date.toLocaleDateString("en", { year: "numeric", month: "short", day: "numeric" });
}
