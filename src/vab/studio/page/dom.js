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

let left = null; // a button that was turned off while it had the focus

// Turn a button on or off; the focus that it had comes back to it.
export function enable(button, on) {
  if (!on && document.activeElement === button) left = button;
  button.disabled = !on;
  if (!on || left !== button) return;
  left = null;
  if (document.activeElement === document.body) button.focus();
}

// Why a number field cannot keep what was typed, in a sentence; "" if it can. `name`: what the user calls it.
export function fault({ valueAsNumber: value, min, max, step }, name) {
  if (Number.isNaN(value)) return `${name} must be a number.`;
  if (min && max && (value < min || value > max)) return `${name} must be from ${min} to ${max}.`;
  if (min && value < min) return `${name} must be ${min} or more.`;
  return step === "1" && !Number.isInteger(value) ? `${name} must be a whole number.` : "";
}

// Ask, in the dialog of the page, before something is deleted.
export function askToDelete(name, text, does) {
  const dialog = document.getElementById("delete");
  document.getElementById("delete-title").textContent = `Delete ${name}?`;
  document.getElementById("delete-text").textContent = text;
  document.getElementById("delete-now").onclick = () => {
    dialog.close();
    does();
  };
  const keep = document.getElementById("keep");
  keep.onclick = () => dialog.close();
  dialog.showModal();
  keep.focus();
}

export const plain = (name) => name.replaceAll("_", " ");

// A place on the timeline: 1:05.250.
export function clock(seconds, digits = 3) {
  const sign = seconds < 0 ? "-" : "";
  const units = Math.round(Math.abs(seconds) * 10 ** digits); // first rounded, or 59.9999 would read 0:60.000
  const whole = Math.floor(units / 10 ** digits);
  const rest = digits ? `.${String(units % 10 ** digits).padStart(digits, "0")}` : "";
  return `${sign}${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}${rest}`;
}

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
