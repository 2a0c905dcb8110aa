"use strict";
/* Polls /status and shows it. All text goes in as text, never as HTML: names come from a file, reasons from devices and
   brokers. What is on the page is changed in place, so that a selection or an open keyboard survives the next poll. */

const EVERY_MS = 2000;
const RESTS = 6; // at least so many times as long as a poll takes
const LOST_AFTER_MS = 7000;
const TRACE_LENGTH = 60;
const LONG = 8; // figures that need the room of the trace
const FILTER_FROM_DEVICES = 13;
const REJECTED_SHOWN = 3;
const REJECTED_S = 86400;
const WAITING = new Set(["gone", "waiting", "starting", "paused", "unconfirmed"]);
const SIGNS = { ok: "●", waiting: "○", starting: "○", gone: "○", paused: "❚❚" };
const TITLES = { pid: "process", size_bytes: "size", cpu: "CPU" };

let status = null;
let heardAt = 0; // of this browser's clock
let boxAhead = 0; // ms by which the box's clock is ahead of ours: ages are told by the box's clock
let failed = false; // the last poll
let filter = "";
const traces = new Map();
const fractions = new Set();

const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = tag === "svg" || tag === "polyline";
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== "" && child !== undefined));
  return element;
}

/* Make `old` look like `wanted` with as few changes as possible. */
function morph(old, wanted) {
  if (old.nodeType !== wanted.nodeType || old.nodeName !== wanted.nodeName) return void old.replaceWith(wanted);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== wanted.data) old.data = wanted.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!wanted.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of wanted.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const children = [...wanted.childNodes];
  children.forEach((child, n) => (n < old.childNodes.length ? morph(old.childNodes[n], child) : old.append(child)));
  while (old.childNodes.length > children.length) old.lastChild.remove();
}

function span(seconds) {
  const size = Math.abs(seconds);
  if (size < 1) return "now";
  if (size < 120) return `${Math.round(seconds)} s`;
  if (size < 7200) return `${Math.round(seconds / 60)} min`;
  if (size < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const secondsSince = (at) => (Date.now() + boxAhead - Date.parse(at)) / 1000;

function told(element) {
  const seconds = secondsSince(element.dateTime);
  if (element.dataset.ahead) return seconds <= -1 ? `in ${span(-seconds)}` : "now";
  return seconds < 1 ? "now" : `${span(seconds)} ago`;
}

/* A time that is told as an age and goes on ticking between polls. */
function since(at, ahead = false) {
  const element = make("time", { datetime: at, "data-ahead": ahead ? "1" : "", title: at });
  element.textContent = told(element);
  return element;
}

function number(value, fraction = false) {
  if (typeof value === "boolean") return value ? "on" : "off";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15 && !fraction) return grouped(String(value));
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e9)) return value.toExponential(3);
  return grouped(value.toFixed(size >= 1000 ? 1 : size >= 10 ? 2 : 3));
}

/* What stands behind the figure; a pure number has nothing there. */
const unit = (point) => (point.unit === "C62" ? "" : point.symbol || point.unit || "");

/* Narrow spaces from five digits on. */
function grouped(text) {
  const [whole, rest] = text.split(".");
  const spaced = whole.length > 4 ? whole.replace(/\B(?=(\d{3})+$)/g, "\u202f") : whole;
  return rest === undefined ? spaced : `${spaced}.${rest}`;
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 1000 || unit === "GB") return `${unit === "B" ? count : count.toFixed(1)} ${unit}`;
    count /= 1000;
  }
}

const rank = (state) => (state === "ok" ? "ok" : WAITING.has(state) ? "wait" : "bad");

function state(name) {
  return make("span", { class: `state ${rank(name)}` }, `${SIGNS[name] ?? "✕"} ${(name || "unknown").replaceAll("_", " ")}`);
}

function why(record) {
  if (!record.reason && !record.remedy) return null;
  const kind = rank(record.state) === "bad" ? "why" : "why wait";
  return make("p", { class: kind }, record.reason ? make("b", {}, words(record.reason)) : "", record.remedy || "");
}

/* The last minute or two of a point, as far as this page has seen it. */
function trace(key, point) {
  const seen = traces.get(key) ?? [];
  if (typeof point.value === "number" && seen.at(-1)?.at !== point.observed_at) {
    seen.push({ at: point.observed_at, value: point.value });
    if (seen.length > TRACE_LENGTH) seen.shift();
    traces.set(key, seen);
  }
  const cell = make("td", { class: "trace" });
  if (seen.length < 3) return cell;
  const values = seen.map((one) => one.value);
  const low = Math.min(...values);
  const reach = Math.max(...values) - low;
  const drawn = values.map((value, n) => {
    const x = ((100 * n) / (values.length - 1)).toFixed(1);
    const y = reach ? (22 - (20 * (value - low)) / reach).toFixed(1) : "12";
    return `${x},${y}`;
  });
  cell.append(make("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" },
    make("polyline", { points: drawn.join(" ") })));
  return cell;
}

/* A point's name as people say it: pm2_5 is PM 2.5 to nobody's harm, soil_temp is two words. */
const spoken = (name) => name.replace(/(\d)_(?=\d)/g, "$1.").replaceAll("_", " ");

/* A reason from the closed list as words; a sentence stays as it is. */
const words = (reason) => (/^[a-z_, ]+$/.test(reason) ? reason.replaceAll("_", " ") : reason);

function pointRow(device, name, point) {
  const label = make("th", { scope: "row" }, spoken(name));
  if (point.value === null || point.value === undefined)
    return make("tr", { class: point.reason ? "none" : "" }, label,
      make("td", { class: "value words", colspan: "2" }, point.reason ? words(point.reason) : "—"));
  if (typeof point.value !== "number")
    return make("tr", {}, label, make("td", { class: "value words", colspan: "2" }, number(point.value)));
  const key = `${device} ${name}`;
  if (!Number.isInteger(point.value)) fractions.add(key); // 20.9, 21.00, 21.1: the figures must not jump
  const shown = number(point.value, fractions.has(key));
  const long = shown.length > LONG;
  return make("tr", { class: point.quality === "good" ? "" : "doubt" }, label, long ? null : trace(key, point),
    make("td", { class: "value", colspan: long ? "2" : "" }, shown, make("span", { class: "unit" }, unit(point))));
}

function pointTable(device, points) {
  const rows = Object.entries(points ?? {}).map(([name, point]) => pointRow(device, name, point));
  const columns = make("colgroup", {}, make("col"), make("col", { class: "trace" }), make("col", { class: "value" }));
  return rows.length ? make("table", { class: "points" }, columns, make("tbody", {}, rows)) : null;
}

function deviceCard(name, device) {
  const heard = device.last_good_at ? ["good ", since(device.last_good_at)] : ["no value yet"];
  const undeclared = Object.keys(device.undeclared ?? {});
  return make("article", { class: `card ${rank(device.state)}`, id: `device-${name}` },
    make("header", {}, make("h3", {}, name), state(device.state)),
    make("p", { class: "meta" }, make("span", {}, device.template || ""), make("span", {}, heard),
      device.paused_until ? make("span", {}, "paused, ends ", since(device.paused_until, true)) : null),
    why(device),
    pointTable(name, device.points),
    undeclared.length ? make("p", { class: "quiet small" }, `Not in the template, dropped: ${undeclared.join(", ")}`) : null);
}

function linkPart(name, link) {
  const devices = Object.entries(link.devices ?? {}).filter(([device, its]) => matches(name, device, its));
  if (!devices.length && filter) return null;
  const size = devices.length > 2 ? "wide" : devices.length > 1 ? "two" : "one";
  return make("section", { class: `link ${size}`, id: `link-${name}` },
    make("header", {}, make("h2", {}, name), make("span", { class: "quiet" }, link.driver || ""), state(link.state)),
    why(link),
    rejectedList(link.rejected ?? []),
    make("div", { class: "cards" }, devices.map(([device, its]) => deviceCard(device, its))));
}

/* What came and could not be read, newest first. */
function rejectedList(rows) {
  const news = rows.filter((row) => secondsSince(row.last_at) < REJECTED_S).slice(0, REJECTED_SHOWN);
  if (!news.length) return null;
  return make("ul", { class: "rejected" }, news.map((row) => make("li", {},
    make("b", {}, `${number(row.count)}× rejected${row.device ? ` of ${row.device}` : ""}: ${row.reason}`),
    make("span", { class: "quiet" }, " ", since(row.last_at), row.remedy ? ` · ${row.remedy}` : ""))));
}

function matches(link, device, its) {
  return !filter || `${link} ${device} ${its.template ?? ""} ${its.state}`.toLowerCase().includes(filter);
}

function fact(title, value) {
  if (value === null || value === undefined || value === "") return [];
  return [make("dt", {}, title), make("dd", {}, value)];
}

/* A broker or a device that is no longer in the config, and what is still owed to it, or of it. */
function goneCard(kind, name, its, remedy, command) {
  return make("article", { class: "card", id: `gone-${kind}-${name}` },
    make("header", {}, make("h3", {}, kind === "device" ? `${kind} ${name}` : name), state("gone")),
    make("dl", { class: "facts" },
      fact("owed", its.backlog === null ? "being counted" : `${number(its.backlog)} readings`),
      fact("owed to", Object.keys(its.brokers ?? {}).join(", ")),
      fact("oldest owed", its.oldest_unsent_at ? since(its.oldest_unsent_at) : ""),
      fact("held for later", its.later || ""),
      fact("refused for good", its.dead || "")),
    make("p", { class: "quiet small" }, `${remedy}, or `, make("code", {}, command)));
}

function brokerCard(name, broker) {
  return make("article", { class: `card ${rank(broker.state)}`, id: `broker-${name}` },
    make("header", {}, make("h3", {}, name), state(broker.state)),
    make("p", { class: "meta" }, make("span", {}, broker.url || ""), make("span", {}, broker.kind || "")),
    why(broker),
    make("dl", { class: "facts" },
      fact("last accepted", broker.last_accepted_at ? since(broker.last_accepted_at) : "nothing yet"),
      fact("owed", `${number(broker.backlog ?? 0)} readings`),
      fact("oldest owed", broker.oldest_unsent_at ? since(broker.oldest_unsent_at) : ""),
      fact("next try", broker.next_try_at ? since(broker.next_try_at, true) : ""),
      fact("held for later", broker.later || ""),
      fact("refused for good", broker.dead || ""),
      fact("given up", broker.given_up ? `${number(broker.given_up)} readings` : ""),
      fact("history", broker.history),
      fact("records by itself", broker.records),
      fact("accepted", number(broker.accepted ?? 0)),
      fact("sent", bytes(broker.sent_bytes ?? 0)),
      fact("this month", broker.month_bytes ? bytes(broker.month_bytes) : ""),
      fact("too late", broker.late || ""),
      fact("skipped", broker.skipped || ""),
      fact("never seen in its history", broker.unseen ? `${number(broker.unseen)} points` : "")),
    (broker.refusing ?? []).map((row) => make("div", { class: "refusing" },
      make("p", { class: "small" }, `refuses ${row.entity} of ${row.device}, since `, since(row.since)), why(row))),
    (broker.contexts ?? []).map((row) => make("div", { class: "refusing" },
      make("p", { class: "small" }, `cannot fetch ${row.context}, for which ${row.entities} of its entities wait, since `, since(row.since)), why(row))),
    Object.entries(broker.waiting ?? {}).map(([entity, missing]) =>
      make("p", { class: "quiet small" }, `${entity} is sent once ${missing.join(", ")} is known`)));
}

/* Log and clock bring what they have; a time is told as an age, a size as a size. */
function factCard(title, record) {
  const told = new Set(["state", "reason", "remedy", "max_size_bytes"]);
  const rows = Object.entries(record).flatMap(([key, value]) => {
    const name = TITLES[key] ?? key.replace(/_(at|bytes|s)$/, "").replaceAll("_", " ");
    if (told.has(key) || value === null || value === undefined || value === "" || typeof value === "object") return [];
    if (key === "size_bytes" && record.max_size_bytes) return fact(name, `${bytes(value)} of ${bytes(record.max_size_bytes)}`);
    if (key === "now") return fact("UTC", value.replace("T", " ").replace(/(\.\d+)?(Z|\+00:00)$/, ""));
    if (/_at$|^since$/.test(key)) return fact(name, since(value));
    if (/_bytes$/.test(key)) return fact(name, bytes(value));
    if (/_s$/.test(key)) return fact(name, `${number(value)} s`);
    return fact(name, typeof value === "boolean" ? (value ? "yes" : "no") : number(value));
  });
  if (!rows.length) return null;
  return make("article", { class: record.state && rank(record.state) === "bad" ? "card bad" : "card" },
    make("header", {}, make("h3", {}, title), record.state ? state(record.state) : null), why(record),
    make("dl", { class: "facts" }, rows));
}

/* What needs somebody, each with a way to its place. A link that is down explains its devices. */
function alarms() {
  const found = [];
  for (const [name, link] of Object.entries(status.links ?? {})) {
    const bad = Object.entries(link.devices ?? {}).filter(([, device]) => rank(device.state) === "bad");
    if (rank(link.state) === "bad") found.push([`link-${name}`, name, link]);
    else for (const [device, its] of bad) found.push([`device-${device}`, device, its]);
  }
  for (const [name, broker] of Object.entries(status.brokers ?? {}))
    if (rank(broker.state) === "bad") found.push([`broker-${name}`, name, broker]);
    else for (const row of broker.refusing ?? []) found.push([`broker-${name}`, row.device, { ...row, state: `refused by ${name}` }]);
  for (const reason of status.gateway?.ready ?? []) // what is said of links, devices and brokers stands above
    if (!/^(link|device|broker) /.test(reason)) found.push(["box", "box", { state: "", reason }]);
  return found;
}

function alarmPart(found) {
  if (!found.length) return null;
  return make("section", { class: "alarms" },
    make("h2", {}, found.length === 1 ? "One thing needs somebody" : `${found.length} things need somebody`),
    make("ul", {}, found.slice(0, 20).map(([place, name, record]) =>
      make("li", {}, make("a", { href: `#${encodeURIComponent(place)}` }, name), `: ${[record.state.replaceAll("_", " "), words(record.reason || "")].filter(Boolean).join(", ")}`))));
}

function show() {
  const gateway = status.gateway ?? {};
  const found = alarms();
  const title = gateway.name || gateway.id || "citygate";
  document.title = found.length ? `(${found.length}) ${title}` : title;
  morph(byId("top"), make("header", { id: "top" },
    make("h1", {}, title),
    make("span", { class: "id" }, [gateway.name ? gateway.id : "", gateway.city].filter(Boolean).join(" · ")),
    make("span", { id: "overall", class: `state ${found.length ? "bad" : "ok"}` }, found.length ? "✕ needs somebody" : "● all is well")));
  const brokers = Object.entries(status.brokers ?? {});
  const box = [factCard("Log", status.log ?? {}), factCard("Clock", status.clock ?? {}), factCard("Gateway", boxFacts(gateway))];
  const links = Object.entries(status.links ?? {}).map(([name, link]) => linkPart(name, link));
  const parts = [alarmPart(found), make("div", { class: "links" }, links),
    part("Brokers", [
      ...brokers.length ? brokers.map(([name, broker]) => brokerCard(name, broker)) : [make("p", { class: "quiet" }, "None configured: entities are read from this box.")],
      ...Object.entries(status.log?.gone ?? {}).map(([name, its]) =>
        goneCard("broker", name, its, "put it back into the config", `citygate buffer forget ${name}`)),
      ...Object.entries(status.log?.gone_devices ?? {}).map(([name, its]) =>
        goneCard("device", name, its, "it is sent by its last mapping", `citygate buffer forget --device '${name}'`))]),
    part("This box", box, "box")];
  const wanted = make("main", { id: "main" }, filterBox(), parts);
  morph(byId("main"), wanted);
  byId("version").textContent = gateway.version ? `citygate ${gateway.version}` : "";
}

function part(title, cards, id = "") {
  return make("section", { class: "part", id }, make("header", {}, make("h2", {}, title)), make("div", { class: "cards" }, cards));
}

function boxFacts(gateway) {
  return { id: gateway.id, started_at: gateway.started_at, config: gateway.config, pid: gateway.pid ? String(gateway.pid) : "" };
}

function filterBox() {
  const count = Object.values(status.links ?? {}).reduce((sum, link) => sum + Object.keys(link.devices ?? {}).length, 0);
  if (count < FILTER_FROM_DEVICES && !filter) return null;
  return make("input", { id: "filter", type: "search", placeholder: `Find among ${count} devices`, "aria-label": "Find a device" });
}

function tick() {
  for (const element of document.getElementsByTagName("time")) {
    const text = told(element);
    if (element.textContent !== text) element.textContent = text;
  }
  const silent = Date.now() - heardAt;
  const lost = heardAt > 0 && failed && silent > LOST_AFTER_MS;
  byId("lost").hidden = !lost;
  document.body.classList.toggle("stale", lost);
  if (lost) byId("lost").textContent = `No answer from the box for ${span(silent / 1000)}. What you see is old.`;
}

async function poll() {
  try {
    const response = await fetch("/status", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    status = await response.json();
    heardAt = Date.now();
    failed = false;
    boxAhead = Date.parse(status.gateway?.now ?? "") - heardAt || 0;
    show();
  } catch (error) {
    failed = true;
    if (!heardAt) byId("main").textContent = `The box does not answer (${error.message}). Trying again …`;
  }
  tick();
}

async function run() {
  for (;;) {
    const begun = performance.now();
    if (!document.hidden) await poll();
    const rest = Math.max(EVERY_MS, RESTS * (performance.now() - begun)); // a slow phone and a large box: fewer polls
    await new Promise((resume) => {
      setTimeout(resume, rest);
      document.addEventListener("visibilitychange", () => document.hidden || resume(), { once: true });
    });
  }
}

document.addEventListener("input", (event) => {
  if (event.target.id !== "filter") return;
  filter = event.target.value.trim().toLowerCase();
  show();
});
setInterval(tick, 1000);
run();
