// One session: where it is, and what became of it so far.
const STORY_MS = 2000;
let told = null;
let telling = 0;

function openStory(id) {
  told = id;
  at("story-title").textContent = `Session ${short(id, 13)}`;
  at("story-way").replaceChildren();
  at("story-facts").replaceChildren();
  at("story-events").replaceChildren(element("li", "muted", "Asking the nodes …"));
  if (!at("story").open) at("story").showModal();
  clearTimeout(telling);
  tell();
}

async function tell() {
  const id = told;
  try {
    const session = await json(`api/v1/sessions/${encodeURIComponent(id)}`);
    if (told === id) drawStory(session);
  } catch (error) {
    if (told === id) at("story-events").replaceChildren(element("li", "muted", error.message ?? "The node does not answer."));
  }
  if (told === id && at("story").open) telling = setTimeout(tell, STORY_MS);
}

function drawStory(session) {
  const { local } = session;
  at("story-title").textContent = session.key ? `Session ${short(session.key, 40)}` : `Session ${short(session.id, 13)}`;
  const stop = (kind, name, what) => element("div", `stop ${kind}`, element("b", "", name), element("span", "muted", what));
  const clients = local ? local.clients : [];
  const edges = [...new Set(clients.map((client) => client.edge_node))];
  const upstream = local ? local.upstream : "none";
  at("story-way").replaceChildren(
    stop(clients.length ? "on" : "", words(clients.length, "client", "clients"), clients.length ? [...new Set(clients.map((client) => client.kind))].join(", ") : "nobody is attached"),
    stop(edges.length ? "on" : "", edges.join(", ") || "–", "edge"),
    stop(session.owner_node ? "on" : "", session.owner_node ?? "nobody", `owner, epoch ${session.epoch}`),
    stop(upstream === "connected" ? "on" : "", upstream === "none" ? "–" : upstream, "upstream"));
  const facts = [
    ["State", lower(session.state)],
    ["Route", session.route],
    ["Age", age(session.age_seconds)],
    ["Turns", local ? turns(local) : "–"],
    ["Replay log", local ? `${number(local.replay_bytes)} bytes` : "–"],
    ["Principal", session.principal],
    ["Id", session.id],
  ];
  at("story-facts").replaceChildren(...facts.flatMap(([name, text]) => [element("dt", "", name), element("dd", name === "Id" ? "mono" : "", text)]));
  const events = [...(session.story ?? [])].sort((one, other) => one.ago_seconds - other.ago_seconds);
  const items = events.map((event) => element("li", `kind-${/^[a-z]+$/.test(event.kind) ? event.kind : "other"}`,
    element("span", "when", ago(event.ago_seconds)), element("b", "", event.kind), `${event.text} `, element("span", "muted", event.node)));
  at("story-events").replaceChildren(...(items.length ? items : [element("li", "muted", "No node remembers anything of it.")]));
}
at("story").addEventListener("close", () => {
  told = null;
  clearTimeout(telling);
});
// A click beside it closes it, as people expect.
at("story").addEventListener("click", (event) => {
  if (event.target === at("story")) at("story").close();
});
