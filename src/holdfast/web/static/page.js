"use strict";
// Texts come from VMs, disks and other hosts: they only ever become text nodes and attributes, never markup.

const PER_PAGE = 100;
const EVENTS_SHOWN = 60;
const SILENT_MS = 20000; // the server says something at least each 15 s
const LATENCY_MIN_MS = 1;
const BAD_KINDS = new Set(["refused", "lock-lost", "lease-lost", "lock-unknown", "owner-died", "owner-stopped",
  "owner-not-restarted", "lockspace-lost", "host-reset-awaited", "host-fenced"]);
const SVG = "http://www.w3.org/2000/svg";

const at = (id) => document.getElementById(id);
const rows = new Map();
let vms = [];
let events = [];
let state = null;
let heardAt = 0;
let stateAt = 0;
let page = 0;
let drawLater = 0;

function make(name, properties, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (key === "class") node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function drawn(name, properties, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(properties)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const seconds = (s) => (s >= 120 ? `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s` : `${Math.max(0, s).toFixed(0)} s`);
const clock = (epoch) => new Date(epoch * 1000).toLocaleString(undefined, { hour12: false });

// --- what is well, and whether the server and the daemon answer ---

function trouble(text) {
  const box = at("trouble");
  box.hidden = !text;
  if (box.textContent !== text) box.textContent = text;
  document.body.classList.toggle("stale", Boolean(text));
}

function drawHead() {
  const s = state.status;
  at("host").textContent = `on ${s.host}`;
  document.title = `Holdfast on ${s.host}`;
  at("daemon").textContent = `holdfastd ${s.version}, pid ${s.pid}, since ${clock(s.started)}: ${s.locks} locks of ${s.owners} ` +
    `owners, ${s.locks_lost} lost, ${s.locks_unknown} of unknown owners; journal ${s.journal}`;
  const problems = [...s.problems, ...s.storage_waiting.map((each) => `waiting for storage: ${each}`)];
  if (s.maintenance_since !== null && s.maintenance_since !== undefined) {
    problems.unshift(`in maintenance since ${clock(s.maintenance_since)}, by ${s.maintenance_by}` +
      `${s.maintenance_reason ? `: ${s.maintenance_reason}` : ""}; no VM begins here until 'holdfast maintenance off'`);
  }
  if (s.journal !== "ok") problems.unshift(`the journal can't be written, so no new lock is granted: ${s.journal}`);
  const list = at("problems");
  list.hidden = problems.length === 0;
  list.replaceChildren(...problems.map((text) => make("li", {}, text)));
}

// --- hosts and lockspaces ---

// Seconds that go on counting between two messages: down to a bound, or up since something happened.
const counted = (value, direction) => make("span", { class: "ticks", "data-seconds": value, "data-direction": direction });

function tick() {
  const since = (performance.now() - stateAt) / 1000;
  for (const node of document.querySelectorAll("[data-seconds]")) {
    node.textContent = seconds(Number(node.dataset.seconds) + since * Number(node.dataset.direction));
  }
  for (const node of document.querySelectorAll("meter[data-left]")) node.value = Math.max(0, Number(node.dataset.left) - since);
}

function hostRow(host, own) {
  const well = host.state === "LIVE" || host.state === "FREE";
  const left = make("td", { "data-label": "Its leases can be taken over in", class: "number" });
  left.append(host.dead_in_s === null ? "–" : counted(host.dead_in_s, -1));
  return make("tr", { "data-host": host.host_id },
    make("td", { "data-label": "Host ID", class: "number" }, `${host.host_id}${own ? " (this host)" : ""}`),
    make("td", { "data-label": "Host" }, host.node || host.name),
    make("td", { "data-label": "State", class: well ? "good" : "bad" }, host.state),
    make("td", { "data-label": "Unchanged for", class: "number" }, counted(host.unchanged_s, 1)),
    left,
    make("td", { "data-label": "Note" }, host.note || "–"));
}

function latencyPlot(measures) {
  const width = Math.max(280, at("spaces").clientWidth - 28), height = 140, left = 56, bottom = 118, top = 8;
  const ioMs = measures.io_timeout_s * 1000, lostMs = 8 * ioMs;
  const y = (ms) => bottom - (bottom - top) * Math.log(Math.max(ms, LATENCY_MIN_MS) / LATENCY_MIN_MS) / Math.log(lostMs / LATENCY_MIN_MS);
  const recent = measures.recent, oldest = Math.max(1, ...recent.map((each) => each.s_ago));
  const x = (ago) => width - 6 - (width - 12 - left) * (ago / oldest);
  const took = recent.map((each) => each.read_ms + each.write_ms);
  const failed = recent.reduce((sum, each) => sum + each.failed_since, 0);
  const text = took.length === 0 ? "no renewal yet"
    : `last renewal ${took[took.length - 1]} ms, worst of ${took.length}: ${Math.max(...took)} ms, ${failed} failed; ` +
      `budget: ${measures.io_timeout_s} s a request, lost after ${8 * measures.io_timeout_s} s without one`;
  const plot = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Latency of renewals: ${text}` });
  for (let ms = LATENCY_MIN_MS; ms <= lostMs; ms *= 10) {
    plot.append(drawn("line", { class: "grid", x1: left, x2: width, y1: y(ms), y2: y(ms) }));
    plot.append(drawn("text", { x: 2, y: y(ms) + 4 }, ms < 1000 ? `${ms} ms` : `${ms / 1000} s`));
  }
  plot.append(drawn("line", { class: "budget", x1: left, x2: width, y1: y(ioMs), y2: y(ioMs) }));
  plot.append(drawn("line", { class: "bound", x1: left, x2: width, y1: y(lostMs), y2: y(lostMs) }));
  plot.append(drawn("text", { x: left, y: height - 6 }, `${seconds(oldest)} ago`), drawn("text", { x: width - 30, y: height - 6 }, "now"));
  for (const [n, each] of recent.entries()) {
    plot.append(drawn("circle", { class: "took", cx: x(each.s_ago), cy: y(took[n]), r: 3 }));
    if (each.failed_since > 0) plot.append(drawn("rect", { class: "failed", x: x(each.s_ago), y: top, width: 4, height: bottom - top, opacity: 0.5 }));
  }
  return [make("p", { class: "quiet" }, `Latency of renewals: ${text}`), plot];
}

function spaceSection(space) {
  const joined = space.state === "joined";
  const box = make("div", { class: "space", "data-space": space.name }, make("h3", {}, `${space.name} `,
    make("span", { class: joined ? "good" : "bad" }, space.state)));
  box.append(make("p", { class: "quiet" }, space.path + (joined ? `, host ID ${space.host_id}, ${space.leases} leases held here` : "")));
  if (space.reason) box.append(make("p", { class: "bad" }, space.reason));
  if (space.seconds_left !== null) box.append(make("p", {}, counted(space.seconds_left, -1), " left"));
  if (joined && space.fails_in_s !== null) {
    const whole = space.renewed_s_ago + space.fails_in_s;
    const meter = make("meter", { min: 0, max: whole, low: whole / 2, optimum: whole, "data-left": space.fails_in_s, "aria-label": "until this lockspace is lost" });
    box.append(make("p", {}, meter, " renewed ", counted(space.renewed_s_ago, 1), " ago; lost, and its VMs stopped, in ", counted(space.fails_in_s, -1)));
  }
  if (joined && !space.fenced) box.append(make("p", { class: "warn" }, "No watchdog resets this host when it loses the lockspace."));
  if (space.misfits) box.append(make("p", { class: "bad" }, space.misfits));
  if (space.hosts.length > 0) {
    const order = (host) => (host.state === "LIVE" || host.state === "FREE" ? 1 : 0);
    const hosts = [...space.hosts].sort((a, b) => order(a) - order(b) || a.host_id - b.host_id);
    const head = ["Host ID", "Host", "State", "Unchanged for", "Leases free in", "Note"];
    box.append(make("table", {}, make("thead", {}, make("tr", {}, ...head.map((each) => make("th", { scope: "col" }, each)))),
      make("tbody", {}, ...hosts.map((host) => hostRow(host, host.host_id === space.host_id)))));
  }
  const measures = state.measures.find((each) => each.name === space.name);
  if (measures) box.append(...latencyPlot(measures));
  return box;
}

// --- virtual machines ---

const isBad = (lock) => !lock.held || lock.unknown !== "" || lock.protection === 0;
const badness = (lock) => (!lock.held ? 0 : lock.unknown ? 1 : 2 + lock.protection);

function gather() {
  const byOwner = new Map();
  for (const lock of rows.values()) {
    const key = `${lock.pid}/${lock.owner}`;
    if (!byOwner.has(key)) byOwner.set(key, { name: lock.owner, pid: lock.pid, locks: [], worst: 9, text: "" });
    byOwner.get(key).locks.push(lock);
  }
  vms = [...byOwner.values()];
  for (const vm of vms) {
    vm.locks.sort((a, b) => badness(a) - badness(b) || (a.resource < b.resource ? -1 : 1));
    vm.worst = badness(vm.locks[0]);
    vm.text = [vm.name, vm.pid, ...vm.locks.flatMap((each) => [each.resource, each.backend, each.mode, each.protection_word, stateOf(each)])].join(" ").toLowerCase();
  }
  vms.sort((a, b) => a.worst - b.worst || (a.name < b.name ? -1 : a.name > b.name ? 1 : a.pid - b.pid));
}

function stateOf(lock) {
  if (!lock.held) return `LOST: ${lock.lost_reason}`;
  return lock.unknown ? `UNKNOWN OWNER: ${lock.unknown}` : lock.until;
}

function vmRow(vm) {
  const worst = vm.locks[0];
  const level = !worst.held ? "LOST" : `${worst.protection} ${worst.protection_word}`;
  const disks = vm.locks.map((lock) => {
    const line = make("li", {}, lock.resource, make("span", { class: "quiet" }, ` ${lock.mode}, ${lock.protection} ${lock.protection_word}, ${lock.backend}`));
    if (lock.protection_note) line.append(make("span", { class: "warn" }, ` ${lock.protection_note}`));
    if (stateOf(lock)) line.append(make("span", { class: isBad(lock) ? "bad" : "warn" }, ` ${stateOf(lock)}`));
    return line;
  });
  return make("tr", {},
    make("td", { "data-label": "VM" }, vm.name, make("span", { class: "quiet" }, ` pid ${vm.pid}`)),
    make("td", { "data-label": "Protection", class: vm.locks.some(isBad) ? "bad" : worst.protection >= 2 ? "good" : "warn" }, level),
    make("td", { "data-label": "Disks" }, make("ul", {}, ...disks)));
}

function drawVms() {
  const words = at("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const shown = vms.filter((vm) => (!at("bad").checked || vm.locks.some(isBad)) && words.every((word) => vm.text.includes(word)));
  const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
  page = Math.min(Math.max(0, page), pages - 1);
  at("vms").tBodies[0].replaceChildren(...shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(vmRow));
  const count = `${shown.length} of ${vms.length} VMs`;
  if (at("count").textContent !== count) at("count").textContent = count;
  at("page").textContent = `page ${page + 1} of ${pages}`;
  at("previous").disabled = page === 0;
  at("next").disabled = page === pages - 1;
}

function turn(by) {
  page += by;
  drawVms();
}

// --- events ---

function eventLine(event) {
  const line = make("li", { "data-number": event.number }, make("time", {}, clock(event.time)),
    make("span", { class: BAD_KINDS.has(event.kind) ? "bad" : "" }, event.kind));
  for (const part of [event.owner, event.resource, event.detail]) if (part) line.append(make("span", {}, part));
  return line;
}

function drawEvents() {
  at("events").replaceChildren(...events.slice(-EVENTS_SHOWN).reverse().map(eventLine));
}

// --- messages of the server ---

function heard() {
  heardAt = performance.now();
}

function begin() {
  const source = new EventSource("/events");
  const on = (name, act) => source.addEventListener(name, (sent) => { heard(); act(JSON.parse(sent.data)); });
  source.addEventListener("open", heard);
  source.addEventListener("error", () => {
    trouble("holdfast-web does not answer; what is shown is old. Trying again …");
    // A refusal ends the source for good; a lost connection does not.
    if (source.readyState === EventSource.CLOSED) setTimeout(begin, 3000);
  });
  on("daemon", (answer) => trouble(`holdfastd does not answer: ${answer.why}. What is shown is old. Trying again …`));
  on("state", (now) => {
    state = now;
    stateAt = performance.now();
    trouble("");
    drawHead();
    const selecting = document.getSelection().type === "Range"; // somebody copies a name
    if (state.spaces.length > 0 && !selecting) at("spaces").replaceChildren(...state.spaces.map(spaceSection));
    tick();
  });
  on("locks", (sent) => {
    if (sent.all) rows.clear();
    for (const key of sent.gone) rows.delete(key);
    for (const [key, row] of Object.entries(sent.rows)) rows.set(key, row);
    gather();
    drawVms();
  });
  on("events", (sent) => {
    const known = new Set(events.map((each) => each.number));
    events = [...events, ...sent.filter((each) => !known.has(each.number))].slice(-2 * EVENTS_SHOWN);
    drawEvents();
  });
}

at("filter").addEventListener("input", () => {
  clearTimeout(drawLater);
  drawLater = setTimeout(() => turn(-page), 80);
});
at("bad").addEventListener("change", () => turn(-page));
at("previous").addEventListener("click", () => turn(-1));
at("next").addEventListener("click", () => turn(1));
document.addEventListener("keydown", (pressed) => {
  if (pressed.ctrlKey || pressed.altKey || pressed.metaKey) return;
  const typing = pressed.target === at("filter");
  if (pressed.key === "Escape" && typing) {
    at("filter").value = "";
    turn(-page);
    at("filter").blur();
  } else if (typing) {
    return;
  } else if (pressed.key === "/") {
    pressed.preventDefault();
    at("filter").focus();
  } else if (pressed.key === "n" && !at("next").disabled) {
    turn(1);
  } else if (pressed.key === "p" && !at("previous").disabled) {
    turn(-1);
  }
});
setInterval(() => {
  if (state) tick();
  if (heardAt && performance.now() - heardAt > SILENT_MS) trouble("holdfast-web is silent; what is shown is old.");
}, 250);
begin();
