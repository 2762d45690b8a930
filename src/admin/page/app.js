"use strict";
// Everything that comes from the node is put into the page as text, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const RADIUS = 128;
  const KEPT_EVENTS = 100;
  const DRAWN_MEMBERS = 64;
  const POLL_MS = 3000;
  const at = (id) => document.getElementById(id);
  const words = (n, one, many) => `${number(n)} ${n === 1 ? one : many}`;
  const number = (n) => n.toLocaleString("en");

  /** Latest snapshot, and when it came: leases and ages are counted on from there. */
  let last = null;
  let came = 0;
  const since = () => (performance.now() - came) / 1000;

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
  const lower = (state) => state.toLowerCase();

  function age(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    const two = (n) => String(n).padStart(2, "0");
    if (s < 60) return `${s}s`;
    if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
    if (s < 86400) return `${Math.floor(s / 3600)}h ${two(Math.floor(s / 60) % 60)}m`;
    return `${Math.floor(s / 86400)}d ${two(Math.floor(s / 3600) % 24)}h`;
  }
  const lease = (seconds) => `${Math.max(0, seconds - since()).toFixed(0)}\u00a0s`;
  const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

  function tile(id, text, kind) {
    const node = at(id);
    node.textContent = text;
    node.className = `value ${kind || ""}`;
  }

  function drawHealth({ health, ring }) {
    const ready = health.joined && !health.draining && health.lease_remaining_seconds > 0;
    at("node").textContent = `${health.node_id} · ${health.build} · up ${age(health.uptime_seconds + since())}`;
    document.title = `${health.node_id} · ringspan`;
    tile("ready", ready ? "yes" : health.draining ? "draining" : "no", ready ? "good" : health.draining ? "warn" : "bad");
    tile("version", number(ring.version));
    tile("members", number(health.members));
    tile("load", number(ring.members.reduce((sum, member) => sum + member.load, 0)));
    tile("database", health.database === "ok" ? "ok" : "away", health.database === "ok" ? "good" : "bad");
    tile("lease", lease(health.lease_remaining_seconds), health.lease_remaining_seconds - since() < 5 ? "bad" : "");
  }

  const point = (turn, radius) => {
    const angle = (turn - 0.25) * 2 * Math.PI;
    return [(Math.cos(angle) * radius).toFixed(2), (Math.sin(angle) * radius).toFixed(2)];
  };
  function arc(from, to) {
    const [x, y] = point(from, RADIUS);
    const [u, v] = point(to, RADIUS);
    return `M${x} ${y}A${RADIUS} ${RADIUS} 0 ${to - from > 0.5 ? 1 : 0} 1 ${u} ${v}`;
  }

  /** Members of the placement as arcs by their share; the others as knobs on the track. */
  function drawRing({ ring }) {
    const parts = [shape("circle", "track", { r: RADIUS })];
    const drawn = ring.members.filter((member) => member.state !== "GONE").slice(0, DRAWN_MEMBERS);
    const placed = drawn.filter((member) => member.share > 0);
    const total = placed.reduce((sum, member) => sum + member.share, 0) || 1;
    const gap = placed.length > 1 ? Math.min(0.006, 0.15 / placed.length) : 0;
    const named = drawn.length <= 12;
    const knobs = [];
    let turn = 0;
    placed.forEach((member, index) => {
      const share = member.share / total;
      // A full circle has no arc of its own: start and end would be one point.
      const end = turn + Math.min(share, 0.9999) - gap;
      const alt = index % 2 === 1 ? "alt" : "";
      const piece = shape("path", `arc ${stateClass(member.state)} ${alt}`, { d: arc(turn + gap, Math.max(end, turn + gap + 0.001)) });
      piece.append(shape("title", "", {}, describe(member)));
      parts.push(piece);
      knobs.push([member, turn + share / 2, RADIUS, named ? 10 + 9 * Math.sqrt(share) : 6]);
      turn += share;
    });
    // Those out of placement stand where no share begins: evenly, inside the ring.
    const outside = drawn.filter((member) => !(member.share > 0));
    outside.forEach((member, index) => {
      knobs.push([member, (index + 0.5) / outside.length, 88, named ? 12 : 5]);
    });
    for (const [member, middle, radius, r] of knobs) {
      const [cx, cy] = point(middle, radius);
      const me = member.incarnation === ring.me ? "me" : "";
      const knob = shape("circle", `node ${stateClass(member.state)} ${me}`, { cx, cy, r: r.toFixed(1) });
      knob.append(shape("title", "", {}, describe(member)));
      parts.push(knob);
      if (named) parts.push(shape("text", "", { x: cx, y: Number(cy) + 4 }, label(member.node_id)));
    }
    parts.push(shape("text", "big", { y: 6 }, `v${ring.version}`));
    parts.push(shape("text", "sub", { y: 26 }, words(ring.members.length, "member", "members")));
    at("ring").replaceChildren(...parts);
  }
  /** What fits into a knob: the ordinal of a StatefulSet's pod, else the first letter. */
  const label = (id) => (/-(\d{1,3})$/.exec(id) || [0, id.slice(0, 1)])[1];
  const percent = (share) => `${(share * 100).toFixed(1)}%`;
  const describe = (member) =>
    `${member.node_id}: ${lower(member.state)}, ${words(member.load, "session", "sessions")}, ${percent(member.share)} of the ring, lease ${lease(member.lease_remaining_seconds)}`;

  function bar(part) {
    const width = Math.max(0, Math.min(100, part * 100)).toFixed(1);
    const svg = shape("svg", "bar", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
    svg.append(shape("rect", "back", { width: 100, height: 4 }), shape("rect", "front", { width, height: 4 }));
    return svg;
  }

  function drawMembers({ ring }) {
    const items = ring.members.slice(0, DRAWN_MEMBERS).map((member) => {
      const name = element("div", "name", dot(member.state), member.node_id);
      if (member.incarnation === ring.me) name.append(element("span", "here", "this node"));
      const left = element("span", "left", lease(member.lease_remaining_seconds));
      left.title = "left of its lease";
      name.append(left);
      const facts = `${lower(member.state)} · ${words(member.load, "session", "sessions")} · ${percent(member.share)}`;
      return element("li", "", name, element("div", "facts", facts), bar(member.capacity ? member.load / member.capacity : 0));
    });
    at("legend").replaceChildren(...items);
    const rows = ring.members.map((member) => {
      const name = element("td", "clip", member.node_id);
      if (member.incarnation === ring.me) name.append(" ", element("span", "here", "this node"));
      return element("tr", "", name,
        element("td", "", dot(member.state), lower(member.state)),
        element("td", "n", `${number(member.load)} / ${number(member.capacity)}`),
        element("td", "n", percent(member.share)),
        element("td", "n", lease(member.lease_remaining_seconds)),
        element("td", "", member.zone ?? "–"),
        element("td", "", member.build),
        element("td", "mono", member.peer_addr),
        element("td", "n", member.incarnation));
    });
    at("member-rows").replaceChildren(...rows);
  }

  function drawSessions({ sessions, truncated, error, ring }) {
    const total = ring.members.reduce((sum, member) => sum + member.load, 0);
    if (!sessions) {
      at("shown").textContent = "";
      return fill("session-rows", error ? error.message : "unknown");
    }
    at("shown").textContent = truncated ? `the first ${sessions.length} of about ${number(total)}` : number(sessions.length);
    if (!sessions.length) return fill("session-rows", "No session yet. One begins with the first client.");
    const rows = sessions.map((session) => {
      const { local } = session;
      const edges = local ? [...new Set(local.clients.map((client) => client.edge_node))].join(", ") || "none" : "–";
      const id = element("td", "mono", short(session.id, 13));
      id.title = session.id;
      const key = element("td", "clip", session.key ?? "–");
      key.title = session.key ?? "";
      const busy = local && local.busy ? ", busy" : "";
      return element("tr", "", id, key,
        element("td", "clip", session.route),
        element("td", "clip", session.owner_node ?? "–"),
        element("td", "n", session.epoch),
        element("td", "", dot(session.state), lower(session.state) + busy),
        element("td", "n", age(session.age_seconds)),
        element("td", "clip", edges),
        element("td", "", local ? local.upstream : "–"),
        element("td", "n", local ? `${local.turns_running} + ${local.turns_queued} / ${number(local.turns_done)}` : "–"));
    });
    at("session-rows").replaceChildren(...rows);
  }
  function fill(id, text) {
    const cell = element("td", "", text);
    cell.colSpan = 10;
    at(id).replaceChildren(element("tr", "", cell));
  }

  let seen = 0;
  function addEvent(event) {
    if (!seen++) at("events").replaceChildren();
    const when = element("span", "when");
    when.dataset.at = event.at_seconds;
    const item = element("li", "fresh", when, element("b", "", event.kind), event.text);
    if (event.session) item.append(" ", element("code", "muted", short(event.session, 13)));
    at("events").prepend(item);
    tellAges();
    while (at("events").childElementCount > KEPT_EVENTS) at("events").lastElementChild.remove();
  }

  /** Events carry the node's own monotonic time; what is shown is how long ago that was. */
  function tellAges() {
    if (!last) return;
    const now = last.health.uptime_seconds + since();
    for (const when of at("events").querySelectorAll(".when")) {
      const ago = now - Number(when.dataset.at);
      when.textContent = ago < 2 ? "now" : `${age(ago)} ago`;
    }
  }

  function draw(snapshot) {
    last = snapshot;
    came = performance.now();
    drawHealth(last);
    drawRing(last);
    drawMembers(last);
    drawSessions(last);
  }
  function link(state, text) {
    at("link").dataset.state = state;
    at("link").textContent = text;
  }

  async function json(path) {
    const answer = await fetch(path, { signal: AbortSignal.timeout(POLL_MS) });
    const body = await answer.json();
    // A node that is not ready answers with 503 and its health.
    if (!answer.ok && body.error) throw body.error;
    return body;
  }
  let polling = 0;
  async function poll() {
    polling = setTimeout(poll, POLL_MS);
    try {
      const [health, ring, page] = await Promise.all([
        json("health/ready"),
        json("api/v1/ring"),
        json("api/v1/sessions?limit=200").catch((error) => ({ sessions: null, error })),
      ]);
      if (!polling) return;
      draw({ health, ring, sessions: page.sessions, truncated: Boolean(page.next), error: page.error });
      link("poll", "polling");
    } catch {
      link("lost", "node is away");
    }
  }
  function stopPolling() {
    clearTimeout(polling);
    polling = 0;
  }

  let retry = 1000;
  function watch() {
    const source = new EventSource("api/v1/events");
    source.addEventListener("snapshot", (message) => {
      stopPolling();
      retry = 1000;
      link("live", "live");
      draw(JSON.parse(message.data));
    });
    source.addEventListener("node", (message) => addEvent(JSON.parse(message.data)));
    source.addEventListener("resync", (message) => {
      const { missed } = JSON.parse(message.data);
      addEvent({ kind: "resync", text: `${words(missed, "event", "events")} came faster than they could be shown.`, at_seconds: last ? last.health.uptime_seconds + since() : 0 });
    });
    source.onerror = () => {
      source.close();
      link("lost", "reconnecting");
      if (!polling) polling = setTimeout(poll, 500);
      setTimeout(watch, retry);
      retry = Math.min(retry * 2, 15000);
    };
  }
  // Leases run out between snapshots too.
  setInterval(() => {
    if (last && !document.hidden) {
      drawHealth(last);
      drawMembers(last);
      tellAges();
    }
  }, 1000);
  watch();
})();
