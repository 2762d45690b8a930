#!/usr/bin/env node
// Conversations of the openai Node SDK, each on one WebSocket from beginning to end.
//
// usage: node openai_node_socket.mjs BASE_URL [TALKS [TURNS [PAUSE_MS [PROMPT]]]]
//
// `store: false`, and never more than the new text and `previous_response_id`: what the model
// knows of the turns before, it knows from the other end of the socket. Needs what
// openai_node.mjs needs. Prints one JSON summary; the exit status is 0 if no turn failed and
// the model saw every conversation whole.

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

// Packages are those of the working directory, wherever this file is.
const require = createRequire(join(process.cwd(), "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { default: OpenAI } = await load("openai");
const { ResponsesWS } = await load("openai/resources/responses/ws");
const { VERSION } = await load("openai/version");

const TERMINAL = ["response.completed", "response.failed", "response.incomplete"];
const TURN_MS = 60_000;

const [baseURL, talks = 4, turns = 10, pauseMs = 200, prompt = ""] = process.argv.slice(2);
if (!baseURL) {
  console.error("usage: node openai_node_socket.mjs BASE_URL [TALKS [TURNS [PAUSE_MS [PROMPT]]]]");
  process.exit(2);
}

/** What the sample says of a conversation of these user texts. */
const digest = (texts) =>
  createHash("sha256").update(texts.map((t) => `u\x1f${t}\x1e`).join("")).digest("hex").slice(0, 16);

/** One turn: the final response and the joined deltas. */
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
    socket.send({ type: "response.create", model: "gpt-5.5", store: false, ...create });
  });
}

const failures = [];
let answered = 0;

async function talk(name) {
  const apiKey = process.env.OPENAI_API_KEY ?? "sample-key";
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: TURN_MS });
  const socket = new ResponsesWS(client, { headers: { "session-id": name } });
  const texts = [];
  let previous;
  try {
    for (let n = 0; n < Number(turns); n++) {
      texts.push(`${name} turn ${n} ${prompt}`.trim());
      const content = [{ type: "input_text", text: texts.at(-1) }];
      const { response, said } = await turn(socket, {
        input: [{ type: "message", role: "user", content }],
        ...(previous && { previous_response_id: previous }),
      });
      const wanted = `turn ${texts.length} of conversation ${digest(texts)}`;
      assert.ok(said.includes(wanted), `no ${wanted} in ${said}`);
      previous = response.id;
      answered += 1;
      await sleep(Number(pauseMs));
    }
  } catch (error) {
    failures.push(`${name} turn ${texts.length}: ${String(error.stack ?? error)}`.slice(0, 500));
  } finally {
    socket.close();
  }
}

await Promise.all(Array.from({ length: Number(talks) }, (_, n) => talk(`node-${n}`)));
const summary = {
  client: `openai-node ${VERSION}`, conversations: Number(talks),
  turns: talks * turns, answered, failures,
};
console.log(JSON.stringify(summary, null, 2));
process.exit(failures.length === 0 ? 0 : 1);
