"use strict";
// Fed by the API alone. Text of the API is only ever put in as text: names from elsewhere are inert.

const HISTORY = 120;
const SESSIONS = 100;
const NS = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const history = new Map();
let token = sessionStorage.getItem("token") || "";

class Refused extends Error {
  constructor(status, detail) { super(detail); this.status = status; }
}

async function get(path) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { headers, cache: "no-store" });
  const value = await answer.json();
  if (!answer.ok && answer.status !== 503) throw new Refused(answer.status, value.detail || String(answer.status));
  return value;
}

const inert = (text) => String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
  (char) => "\\u" + char.codePointAt(0).toString(16).padStart(4, "0"));

function size(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) { count /= 1000; unit += 1; }
  return `${count.toFixed(unit && count < 99.95 ? 1 : 0)} ${units[unit]}`;
}

function short(count) {
  for (const [bound, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= bound * 0.9995) return (count / bound).toFixed(count / bound < 99.95 ? 1 : 0) + unit;
  }
  return Number.isInteger(count) || count >= 9.95 ? count.toFixed(0) : count.toFixed(1);
}

function age(seconds) {
  if (seconds < 60) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)}s`;
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  if (whole >= 86400) return `${Math.floor(whole / 86400)}d${two(Math.floor(whole % 86400 / 3600))}h`;
  if (whole >= 3600) return `${Math.floor(whole / 3600)}h${two(Math.floor(whole % 3600 / 60))}m`;
  return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
}

const place = (host, port) => host.includes(":") && !host.startsWith("unix:") ? `[${host}]:${port}` : port ? `${host}:${port}` : host;

function remember(key, value) {
  const values = history.get(key) || [];
  values.push(value);
  if (values.length > HISTORY) values.shift();
  history.set(key, values);
  return values;
}

function plot(svg, values, least = 1) {
  const top = Math.max(...values, least), step = 100 / (HISTORY - 1), from = 100 - step * (values.length - 1);
  const points = values.map((value, at) => `${(from + at * step).toFixed(2)},${(30 - 29 * value / top).toFixed(2)}`);
  svg.setAttribute("viewBox", "0 0 100 30");
  svg.setAttribute("preserveAspectRatio", "none");
  const line = document.createElementNS(NS, "path"), area = document.createElementNS(NS, "path");
  line.setAttribute("d", `M${points.join("L")}`);
  area.setAttribute("d", `M${from},30L${points.join("L")}L100,30Z`);
  area.setAttribute("class", "area");
  svg.replaceChildren(area, line);
}

function fill(table, rows, none) {
  const labels = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const body = document.createElement("tbody");
  for (const cells of rows) {
    const row = body.insertRow();
    cells.forEach((cell, at) => {
      const made = row.insertCell();
      made.dataset.label = labels[at];
      if (table.tHead.rows[0].cells[at].classList.contains("n")) made.className = "n";
      if (cell instanceof Node) made.append(cell);
      else if (cell && typeof cell === "object") {
        made.classList.add(...cell.kind.split(" ").filter(Boolean));
        made.textContent = inert(cell.text);
      } else made.textContent = inert(cell);
    });
  }
  if (!rows.length) {
    const cell = body.insertRow().insertCell();
    cell.colSpan = labels.length;
    cell.className = "empty";
    cell.textContent = none;
  }
  table.replaceChild(body, table.tBodies[0]);
}

function showStatus(health, status) {
  document.title = `${status.name} – oinetd`;
  byId("name").textContent = inert(status.name);
  const badge = byId("state");
  badge.textContent = status.full ? "full" : health.status;
  badge.className = `badge ${status.full ? "bad" : { ready: "good", degraded: "bad" }[health.status] || "warn"}`;
  const { open, limit } = status.descriptors;
  byId("facts").textContent = inert([
    `oinetd ${status.version}`, `pid ${status.pid}`, `up ${age(status.uptime_s)}`,
    limit ? `${short(open)} of ${short(limit)} descriptors` : `${open} descriptors`,
  ].join(" · "));
  const troubles = [...health.problems];
  if (status.reloads.last_error) troubles.push(`The last reload failed: ${status.reloads.last_error}`);
  trouble(troubles.join("\n"));
  byId("live").textContent = short(status.live);
  plot(byId("plot-live"), remember("live", status.live));
  const load = status.reactors.reduce((sum, each) => sum + (each.load || 0), 0);
  byId("load").textContent = `${(100 * load).toFixed(0)} %`;
  plot(byId("plot-load"), remember("load", load), 0.1);
}

function showRules(rules) {
  let fresh = 0, bytes = 0;
  const rows = rules.filter((rule) => rule.in_force).map((rule) => {
    const rate = rule.rate || { accepted: 0, bytes_up: 0, bytes_down: 0 };
    const moved = rate.bytes_up + rate.bytes_down;
    fresh += rate.accepted;
    bytes += moved;
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("class", "plot");
    plot(svg, remember(`rule ${rule.name}`, moved));
    return [rule.name, { text: rule.connect, kind: "wide" }, rule.full ? { text: "full", kind: "bad" } : rule.lane,
      short(rule.live), short(rate.accepted), size(moved), svg, short(rule.accepted),
      rule.refused ? { text: short(rule.refused), kind: "n warn" } : "0",
      rule.failed ? { text: short(rule.failed), kind: "n bad" } : "0"];
  });
  fill(byId("rules"), rows, "no rules");
  byId("new").textContent = short(fresh);
  byId("bytes").textContent = size(bytes);
  plot(byId("plot-new"), remember("new", fresh));
  plot(byId("plot-bytes"), remember("bytes", bytes));
  const select = byId("filter-rule"), known = [...select.options].map((option) => option.value).join("\n");
  const names = rules.filter((rule) => rule.in_force).map((rule) => rule.name);
  if (known !== ["", ...names].join("\n")) {
    const chosen = select.value;
    select.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(inert(name), name)));
    select.value = names.includes(chosen) ? chosen : "";
  }
}

function showSessions(found) {
  byId("session-count").textContent = found.total > found.sessions.length
    ? `(the first ${found.sessions.length} of ${found.total})` : `(${found.total})`;
  fill(byId("sessions"), found.sessions.map((each) => [
    place(each.client, each.client_port), each.rule,
    each.upstream ? place(each.upstream, each.upstream_port) : { text: "connecting", kind: "warn" },
    age(each.duration_s), age(each.idle_s), size(each.bytes_up), size(each.bytes_down),
  ]), "nobody is connected");
}

function showServers(groups) {
  byId("servers-section").hidden = !groups.length;
  const now = Date.now() / 1000;
  fill(byId("servers"), groups.flatMap((group) => group.servers.map((each) => [
    `${group.name}/${each.name}`, { text: each.state, kind: { up: "good", down: "bad", ejected: "bad" }[each.state] || "warn" },
    each.since ? age(Math.max(0, now - each.since)) : "", String(each.live), String(each.weight),
    { text: each.why, kind: "wide" },
  ])), "no servers");
}

function trouble(text) {
  byId("trouble").hidden = !text;
  byId("trouble").textContent = inert(text).replaceAll("\\u000a", "\n");
}

async function turn() {
  try {
    const query = new URLSearchParams({ sort: byId("sort").value, limit: SESSIONS });
    if (byId("filter-rule").value) query.set("rule", byId("filter-rule").value);
    if (byId("filter-client").value) query.set("client", byId("filter-client").value);
    const [health, status, rules, servers] =
      await Promise.all(["v1/health", "v1/status", "v1/rules", "v1/servers"].map(get));
    showStatus(health, status);
    showRules(rules.rules);
    showServers(servers.groups);
    try {
      showSessions(await get(`v1/sessions?${query}`));
    } catch (error) {
      if (error.status !== 400) throw error;
      trouble(error.message);
    }
    byId("login").hidden = true;
    document.body.dataset.turns = Number(document.body.dataset.turns || 0) + 1;
  } catch (error) {
    byId("login").hidden = error.status !== 401;
    byId("state").textContent = error.status === 401 ? "token needed" : "no answer";
    byId("state").className = "badge bad";
    trouble(error.status === 401 ? "" : error.message);
  }
  setTimeout(turn, document.hidden ? 5000 : 1000);
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value;
  sessionStorage.setItem("token", token);
});
turn();
