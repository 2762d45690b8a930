// What is read rather than seen: figures, drains, nodes, sessions.
const KEPT_SAMPLES = 60;
const history = { load: [], rate: [] };
/** Turns that had ended at a session's owner when it was last looked at. */
let counted = new Map();
let countedAt = 0;
/** Sessions that a node had when its drain was first seen. */
const peaks = new Map();
const drainSteps = [];

function tile(id, text, kind) {
  const node = at(id);
  node.textContent = text;
  node.className = `value ${kind || ""}`;
}

function drawHealth({ health, ring }) {
  const ready = health.joined && !health.draining && health.lease_remaining_seconds > 0;
  at("node").textContent = `${health.node_id} · ${health.build} · up ${age(health.uptime_seconds + since())}`;
  document.title = `${health.node_id} · ringspan`;
  tile("ready", ready ? "ready" : health.draining ? "draining" : "not ready", ready ? "good" : health.draining ? "warn" : "bad");
  at("version").textContent = `version ${number(ring.version)}, ${words(ring.members.length, "member", "members")}`;
  tile("load", number(ring.members.reduce((sum, member) => sum + member.load, 0)));
  tile("database", health.database === "ok" ? "ok" : "away", health.database === "ok" ? "good" : "bad");
  const left = health.lease_remaining_seconds - since();
  // Below a third of the fullest that was seen, heartbeats have failed for long.
  tile("lease", lease(health.lease_remaining_seconds), left < (fullest.get(ring.me) ?? left) / 3 ? "bad" : "");
}

/** Once for each snapshot: what running totals say about the time since the one before. */
function sample({ ring, sessions }) {
  const locals = (sessions ?? []).filter((session) => session.local);
  const running = locals.reduce((sum, session) => sum + session.local.turns_running, 0);
  const now = performance.now();
  let ended = 0;
  for (const session of locals) {
    const before = counted.get(`${session.id}/${session.epoch}`);
    if (before !== undefined) ended += Math.max(0, session.local.turns_done - before);
  }
  const seconds = (now - countedAt) / 1000;
  if (countedAt && seconds > 0.5) push(history.rate, ended / seconds);
  counted = new Map(locals.map((session) => [`${session.id}/${session.epoch}`, session.local.turns_done]));
  countedAt = now;
  push(history.load, ring.members.reduce((sum, member) => sum + member.load, 0));
  tile("running", number(running));
  const rate = history.rate.at(-1);
  tile("rate", rate === undefined ? "–" : rate >= 10 || rate === 0 ? rate.toFixed(0) : rate.toFixed(1));
  sparkline("load-line", history.load);
  sparkline("rate-line", history.rate);
}
function push(list, value) {
  list.push(value);
  if (list.length > KEPT_SAMPLES) list.shift();
}
function sparkline(id, values) {
  if (values.length < 2) return;
  const top = Math.max(...values, 1);
  const step = 100 / (values.length - 1);
  const points = values.map((value, n) => `${(n * step).toFixed(1)},${(20 - (value / top) * 18).toFixed(1)}`);
  at(id).replaceChildren(shape("polyline", "", { points: points.join(" ") }));
}

function bar(part, kind) {
  const width = Math.max(0, Math.min(100, part * 100)).toFixed(1);
  const svg = shape("svg", `bar ${kind || ""}`, { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(shape("rect", "back", { width: 100, height: 4 }), shape("rect", "front", { width, height: 4 }));
  return svg;
}

/** One card for each node that leaves: how many of its sessions have gone. */
function drawDrains({ ring, sessions, truncated }) {
  const leaving = ring.members.filter((member) => member.state === "DRAINING");
  for (const incarnation of peaks.keys()) {
    if (!leaving.some((member) => member.incarnation === incarnation)) peaks.delete(incarnation);
  }
  at("drains").hidden = leaving.length === 0;
  const cards = leaving.map((member) => {
    // Rows are newer than what the node said at its last heartbeat.
    const rows = (sessions ?? []).filter((session) => session.owner_incarnation === member.incarnation).length;
    const left = sessions && !truncated ? rows : member.load;
    const peak = Math.max(peaks.get(member.incarnation) ?? 0, left, member.load);
    peaks.set(member.incarnation, peak);
    const gone = peak - left;
    const title = element("h2", "", dot("DRAINING"), `${member.node_id} is draining`);
    const text = peak === 0 ? "It owns no session." : `${number(gone)} of ${words(peak, "session", "sessions")} moved, ${number(left)} left`;
    const card = element("div", "card drain", title, element("p", "", text), bar(peak ? gone / peak : 1, "warn"));
    card.dataset.node = member.node_id;
    if (member.incarnation === ring.me && drainSteps.length) {
      card.append(element("ol", "steps", ...drainSteps.map((step) => element("li", "", step))));
    }
    return card;
  });
  at("drains").replaceChildren(...cards);
}

function drawMembers({ ring }) {
  const rows = ring.members.map((member) => {
    const name = element("td", "clip", member.node_id);
    if (member.incarnation === ring.me) name.append(" ", element("span", "here", "this node"));
    const load = element("td", "load", bar(member.capacity ? member.load / member.capacity : 0));
    load.title = `${number(member.load)} of ${number(member.capacity)}`;
    const row = element("tr", stateClass(member.state), name,
      element("td", "", dot(member.state), lower(member.state)),
      element("td", "n", number(member.load)),
      load,
      element("td", "n", percent(member.share)),
      element("td", "n", lease(member.lease_remaining_seconds)),
      element("td", "", member.zone ?? "–"),
      element("td", "", member.build),
      element("td", "mono", member.peer_addr),
      element("td", "n", member.incarnation));
    row.dataset.node = member.node_id;
    return row;
  });
  at("member-rows").replaceChildren(...rows);
}

function drawSessions({ sessions, truncated, error, ring }) {
  const total = ring.members.reduce((sum, member) => sum + member.load, 0);
  if (!sessions) {
    at("shown").textContent = "";
    return fill("session-rows", error ? error.message : "unknown");
  }
  const wanted = at("filter").value.trim().toLowerCase();
  const matches = (session) => [session.id, session.key, session.route, session.owner_node]
    .some((text) => text && text.toLowerCase().includes(wanted));
  const shown = wanted ? sessions.filter(matches) : sessions;
  at("shown").textContent = truncated ? `the first ${sessions.length} of about ${number(total)}` : number(shown.length);
  if (!shown.length) {
    return fill("session-rows", wanted ? "None of those shown matches." : "No session yet. One begins with the first client.");
  }
  const rows = shown.map((session) => {
    const { local } = session;
    const edges = local ? [...new Set(local.clients.map((client) => client.edge_node))].join(", ") || "none" : "–";
    const open = element("button", "link mono", short(session.id, 13));
    open.title = session.id;
    open.addEventListener("click", () => openStory(session.id));
    const key = element("td", "clip", session.key ?? "–");
    key.title = session.key ?? "";
    const busy = local && local.busy ? ", busy" : "";
    return element("tr", "", element("td", "", open), key,
      element("td", "clip", session.route),
      element("td", "clip", session.owner_node ?? "–"),
      element("td", "n", session.epoch),
      element("td", "", dot(session.state), lower(session.state) + busy),
      element("td", "n", age(session.age_seconds)),
      element("td", "clip", edges),
      element("td", "", local ? local.upstream : "–"),
      element("td", "n", local ? turns(local) : "–"));
  });
  at("session-rows").replaceChildren(...rows);
}
function turns(local) {
  const now = [local.turns_running && `${local.turns_running} running`, local.turns_queued && `${local.turns_queued} waiting`];
  return [...now.filter(Boolean), `${number(local.turns_done)} done`].join(", ");
}
function fill(id, text) {
  const cell = element("td", "", text);
  cell.colSpan = 10;
  at(id).replaceChildren(element("tr", "", cell));
}
