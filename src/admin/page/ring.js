// The ring: nodes where their shares are, each with its lease, and in front of each the
// sessions that it owns. A session that moves is seen to move.
const RADIUS = 128;
const DRAWN_NODES = 64;
const DRAWN_SESSIONS = 200;
const DRAWN_CHORDS = 60;

const point = (turn, radius) => {
  const angle = (turn - 0.25) * 2 * Math.PI;
  return [Math.cos(angle) * radius, Math.sin(angle) * radius];
};
const fixed = (pair) => pair.map((n) => n.toFixed(2)).join(" ");
function arc(from, to, radius) {
  const wide = to - from > 0.5 ? 1 : 0;
  return `M${fixed(point(from, radius))}A${radius} ${radius} 0 ${wide} 1 ${fixed(point(to, radius))}`;
}

/** Longest lease that was seen of an incarnation: what a full one is. */
const fullest = new Map();
/** Marks of sessions by id, kept so that they move instead of being drawn anew. */
const marks = new Map();
let layers = null;

const describe = (member) =>
  `${member.node_id}: ${lower(member.state)}, ${words(member.load, "session", "sessions")}, ${percent(member.share)} of the ring, lease ${lease(member.lease_remaining_seconds)}`;
const facts = (member) => [member.zone, member.build].filter(Boolean).join(" · ");

/** Where each node stands: in the middle of its share, or where there is none, between. */
function places(members) {
  const placed = members.filter((member) => member.share > 0);
  const total = placed.reduce((sum, member) => sum + member.share, 0) || 1;
  const spots = new Map();
  let turn = 0;
  for (const member of placed) {
    const share = member.share / total;
    spots.set(member.incarnation, { member, turn: turn + share / 2, from: turn, share });
    turn += share;
  }
  // Those out of placement stand at the seams, so that they hide nobody.
  const seams = placed.map((member) => spots.get(member.incarnation).from);
  members.filter((member) => !(member.share > 0)).forEach((member, index, outside) => {
    const seam = seams.length ? seams[index % seams.length] : index / outside.length;
    const beside = Math.floor(index / Math.max(1, seams.length)) * 0.06;
    spots.set(member.incarnation, { member, turn: (seam + beside) % 1, from: 0, share: 0 });
  });
  return spots;
}

function drawRing({ ring, sessions }) {
  const root = at("ring");
  if (!layers) {
    layers = ["track", "chords", "dots", "nodes", "middle"].map((name) => shape("g", name, {}));
    root.replaceChildren(...layers);
  }
  const [track, chords, dots, nodes, middle] = layers;
  const members = ring.members.filter((member) => member.state !== "GONE").slice(0, DRAWN_NODES);
  const spots = places(members);
  const named = members.length <= 12;

  const arcs = [shape("circle", "rail", { r: RADIUS })];
  let index = 0;
  for (const { member, from, share } of spots.values()) {
    if (!(share > 0)) continue;
    const gap = spots.size > 1 ? Math.min(0.004, share / 4) : 0;
    // A full circle has no arc of its own: start and end would be one point.
    const piece = shape("path", `arc ${stateClass(member.state)} ${index++ % 2 ? "alt" : ""}`, {
      d: arc(from + gap, from + Math.min(share, 0.9999) - gap, RADIUS),
    });
    piece.append(shape("title", "", {}, describe(member)));
    arcs.push(piece);
  }
  track.replaceChildren(...arcs);

  const knobs = [];
  for (const { member, turn } of spots.values()) {
    const [x, y] = point(turn, RADIUS);
    const r = named ? 15 : 7;
    const left = Math.max(0, member.lease_remaining_seconds - since());
    const full = Math.max(fullest.get(member.incarnation) ?? 1, left);
    fullest.set(member.incarnation, full);
    const me = member.incarnation === ring.me ? "me" : "";
    const group = shape("g", `node ${stateClass(member.state)} ${me}`, { transform: `translate(${fixed([x, y])})` });
    group.dataset.node = member.node_id;
    group.append(shape("title", "", {}, describe(member)), shape("circle", "face", { r }));
    const part = member.state === "DEAD" ? 0 : left / full;
    if (named && part > 0.01) group.append(shape("path", "lease", { d: arc(0, Math.min(part, 0.9999), r) }));
    if (named) {
      group.append(shape("text", "tag", { y: 4.5 }, label(member.node_id)));
      const [ox, oy] = point(turn, 26);
      const side = ox > 8 ? "start" : ox < -8 ? "end" : "middle";
      const lift = oy > 8 ? 12 : oy < -8 ? -14 : -2;
      group.append(
        shape("text", `name ${side}`, { x: ox.toFixed(1), y: (oy + lift).toFixed(1) }, short(member.node_id, 18)),
        shape("text", `fact ${side}`, { x: ox.toFixed(1), y: (oy + lift + 13).toFixed(1) }, member.state === "ACTIVE" ? facts(member) : lower(member.state)));
    }
    knobs.push(group);
  }
  nodes.replaceChildren(...knobs);
  for (const incarnation of fullest.keys()) if (!spots.has(incarnation)) fullest.delete(incarnation);

  drawDots(dots, chords, spots, sessions ?? []);
  const total = ring.members.reduce((sum, member) => sum + member.load, 0);
  const shown = Math.max(total, sessions ? sessions.length : 0);
  middle.replaceChildren(
    shape("text", "big", { y: 4 }, number(shown)),
    shape("text", "sub", { y: 22 }, shown === 1 ? "session" : "sessions"));
}
/** What fits into a knob: the ordinal of a StatefulSet's pod, else the first letter. */
const label = (id) => (/-(\d{1,3})$/.exec(id) || [0, id.slice(0, 1)])[1];

/** A sunflower of marks in front of each owner; lines to the nodes that clients came to. */
function drawDots(dots, chords, spots, sessions) {
  const byName = new Map([...spots.values()].map((spot) => [spot.member.node_id, spot]));
  const shown = sessions.slice(0, DRAWN_SESSIONS);
  const size = shown.length > 80 ? 3 : shown.length > 24 ? 4 : 5;
  const count = new Map();
  const lines = [];
  const seen = new Set();
  for (const session of shown) {
    const spot = spots.get(session.owner_incarnation);
    if (!spot) continue;
    const n = count.get(spot) ?? 0;
    count.set(spot, n + 1);
    const [cx, cy] = point(spot.turn, spot.share > 0 ? 82 : 78);
    const spread = size * 1.75 * Math.sqrt(n);
    const [x, y] = [cx + Math.cos(n * 2.39996) * spread, cy + Math.sin(n * 2.39996) * spread];
    let mark = marks.get(session.id);
    if (!mark) {
      mark = shape("circle", "", {});
      mark.append(shape("title", "", {}));
      mark.addEventListener("click", () => openStory(mark.dataset.id));
      mark.dataset.id = session.id;
      marks.set(session.id, mark);
      dots.append(mark);
    }
    mark.setAttribute("r", size);
    const busy = session.local && session.local.busy;
    mark.setAttribute("class", `mark ${stateClass(session.state)} ${busy ? "busy" : ""}`);
    mark.style.transform = `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px)`;
    mark.firstChild.textContent = `${session.key ?? short(session.id, 13)}, owned by ${session.owner_node}`;
    seen.add(session.id);
    for (const edge of new Set((session.local ? session.local.clients : []).map((client) => client.edge_node))) {
      const from = byName.get(edge);
      if (from && from !== spot && lines.length < DRAWN_CHORDS) {
        const [ex, ey] = point(from.turn, RADIUS - 16);
        lines.push(shape("path", busy ? "chord busy" : "chord", { d: `M${fixed([ex, ey])}Q${fixed([(ex + x) * 0.3, (ey + y) * 0.3])} ${fixed([x, y])}` }));
      }
    }
  }
  chords.replaceChildren(...lines);
  for (const [id, mark] of marks) {
    if (seen.has(id)) continue;
    mark.remove();
    marks.delete(id);
  }
}
