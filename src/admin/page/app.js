// Keeps the page up to date: by events, or by asking where events do not get through.
const KEPT_EVENTS = 100;
const POLL_MS = 3000;

let seen = 0;
function addEvent(event) {
  if (!seen++) at("events").replaceChildren();
  if (event.kind === "drain") {
    drainSteps.push(event.text);
    if (drainSteps.length > 8) drainSteps.shift();
  }
  const when = element("span", "when");
  when.dataset.at = event.at_seconds;
  const item = element("li", "fresh", when, element("b", "", event.kind), event.text);
  if (event.session) {
    const open = element("button", "link mono", short(event.session, 13));
    open.addEventListener("click", () => openStory(event.session));
    item.append(" ", open);
  }
  at("events").prepend(item);
  tellAges();
  while (at("events").childElementCount > KEPT_EVENTS) at("events").lastElementChild.remove();
}

/** Events carry the node's own monotonic time; what is shown is how long ago that was. */
function tellAges() {
  if (!last) return;
  const now = last.health.uptime_seconds + since();
  for (const when of at("events").querySelectorAll(".when")) when.textContent = ago(now - Number(when.dataset.at));
}

function draw(snapshot) {
  last = snapshot;
  came = performance.now();
  sample(last);
  drawHealth(last);
  drawDrains(last);
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
    drawRing(last);
    drawMembers(last);
    tellAges();
  }
}, 1000);
at("filter").addEventListener("input", () => last && drawSessions(last));
watch();
