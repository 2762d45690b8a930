#!/usr/bin/env node
// Runs the openai Node SDK against a Responses endpoint.
//
// usage: node openai_node.mjs BASE_URL      (for example http://127.0.0.1:8080/v1)
//
// Needs `npm install openai@6 ws` in the working directory or above this file (openai@7 wants
// node 22); OPENAI_API_KEY is used if it is set. Prints one JSON summary; the exit status is
// 0 if every check held.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

// Packages are those of the working directory, wherever this file is.
const require = createRequire(join(process.cwd(), "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { default: OpenAI } = await load("openai");
const { ResponsesWS } = await load("openai/resources/responses/ws");
const { VERSION } = await load("openai/version");

const MODEL = "gpt-5.5";
const TERMINAL = ["response.completed", "response.failed", "response.incomplete"];
const TURN_MS = 30_000;

/** What the sample says of a conversation of these user texts. */
const digest = (...texts) =>
  createHash("sha256").update(texts.map((t) => `u\x1f${t}\x1e`).join("")).digest("hex").slice(0, 16);

const user = (text) => ({ type: "message", role: "user", content: [{ type: "input_text", text }] });

/** Runs `body` with a connected socket, and closes it. */
async function connected(client, body) {
  const socket = new ResponsesWS(client);
  try {
    return await body(socket);
  } finally {
    socket.close();
  }
}

/** One turn over a WebSocket: the final response and the joined deltas. */
function turn(socket, create) {
  return new Promise((resolve, reject) => {
    let said = "";
    const timer = setTimeout(() => finish(reject, new Error("no terminal event")), TURN_MS);
    const onEvent = (event) => {
      if (event.type === "response.output_text.delta") said += event.delta;
      else if (TERMINAL.includes(event.type)) finish(resolve, { response: event.response, said });
    };
    const onError = (error) => finish(reject, error);
    const onClose = (code) => finish(reject, new Error(`closed with ${code}`));
    function finish(settle, value) {
      clearTimeout(timer);
      socket.off("event", onEvent);
      socket.off("error", onError);
      socket.off("close", onClose);
      settle(value);
    }
    socket.on("event", onEvent);
    socket.on("error", onError);
    socket.on("close", onClose);
    socket.send({ type: "response.create", model: MODEL, store: false, ...create });
  });
}

const checks = {
  websocket_chains_two_turns: (client) =>
    connected(client, async (socket) => {
      const first = await turn(socket, { input: [user("one")] });
      assert.ok(first.said.includes(`turn 1 of conversation ${digest("one")}`), first.said);
      const second = await turn(socket, {
        input: [user("two [deltas=20]")],
        previous_response_id: first.response.id,
      });
      const wanted = `turn 2 of conversation ${digest("one", "two [deltas=20]")}`;
      assert.ok(second.said.includes(wanted), second.said);
    }),

  websocket_unknown_id_is_refused: (client) =>
    connected(client, async (socket) => {
      await assert.rejects(
        turn(socket, { input: "x", previous_response_id: "resp_unknown" }),
        (error) => JSON.stringify(error.error ?? error.message).includes("previous_response_not_found"),
      );
      const again = await turn(socket, { input: [user("one")] });
      assert.ok(again.said.includes("turn 1"), again.said);
    }),

  http_chains_two_stored_turns: async (client) => {
    const first = await client.responses.create({ model: MODEL, input: "one", store: true });
    assert.ok(first.output_text.includes(digest("one")), first.output_text);
    const second = await client.responses.create({
      model: MODEL,
      input: "two",
      store: true,
      previous_response_id: first.id,
    });
    assert.ok(second.output_text.includes(digest("one", "two")), second.output_text);
  },

  http_resends_history_without_store: async (client) => {
    const history = [user("one")];
    const first = await client.responses.create({ model: MODEL, input: history, store: false });
    history.push(...first.output, user("two"));
    const second = await client.responses.create({ model: MODEL, input: history, store: false });
    assert.ok(second.output_text.includes(digest("one", "two")), second.output_text);
  },

  http_streams: async (client) => {
    const stream = await client.responses.create({
      model: MODEL,
      input: "one [deltas=20]",
      store: false,
      stream: true,
    });
    const events = [];
    for await (const event of stream) events.push(event);
    const numbers = events.map((event) => event.sequence_number);
    assert.deepEqual(numbers, [...numbers.keys()]);
    assert.equal(events[0].type, "response.created");
    assert.equal(events.at(-1).type, "response.completed");
    const deltas = events.filter((event) => event.type === "response.output_text.delta");
    assert.equal(deltas.length, 20);
  },

  http_stream_helper_works: async (client) => {
    const stream = client.responses.stream({ model: MODEL, input: "one", store: false });
    const response = await stream.finalResponse();
    assert.ok(response.output_text.includes("turn 1"), response.output_text);
  },
};

const baseURL = process.argv[2];
if (!baseURL) {
  console.error("usage: node openai_node.mjs BASE_URL");
  process.exit(2);
}
const apiKey = process.env.OPENAI_API_KEY ?? "sample-key";
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: TURN_MS });
const failures = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check(client);
  } catch (error) {
    failures[name] = String(error.stack ?? error).slice(0, 500);
  }
}
const total = Object.keys(checks).length;
const passed = total - Object.keys(failures).length;
console.log(JSON.stringify({ client: `openai-node ${VERSION}`, checks: total, passed, failures }, null, 2));
process.exit(passed === total ? 0 : 1);
