// OpenAI's SDK for Node against a running daemon with the built-in model; tests/clients/openai starts both.

import assert from "node:assert/strict";
import OpenAI from "openai";
import { Agent, fetch } from "undici";

const { BITNETD_SOCKET, BITNETD_TCP, BITNETD_TOKEN } = process.env;
const messages = [{ role: "user", content: "turn on the kitchen lights" }];
const parameters = {
  type: "object",
  properties: { area: { enum: ["kitchen", "hall"] }, on: { type: "boolean" } },
  required: ["area", "on"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "set_light", parameters, strict: true } };

async function chat(client) {
  const answer = await client.chat.completions.create({ model: "any", messages });
  const text = answer.choices[0].message.content;
  assert.equal(JSON.parse(text).intent, "HassTurnOn");
  const stream = await client.chat.completions.create({
    model: "any", messages, stream: true, stream_options: { include_usage: true },
  });
  let streamed = "";
  let usage;
  for await (const chunk of stream) {
    streamed += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(streamed, text);
  assert.ok(usage.total_tokens > 0);
}

async function tools(client) {
  const stream = client.chat.completions.stream({ model: "any", messages, tools: [tool], tool_choice: "required" });
  const message = await stream.finalMessage();
  assert.ok(parameters.properties.area.enum.includes(JSON.parse(message.tool_calls[0].function.arguments).area));
}

async function schema(client) {
  const response_format = { type: "json_schema", json_schema: { name: "switch", strict: true, schema: parameters } };
  const answer = await client.chat.completions.create({ model: "any", messages, response_format });
  assert.deepEqual(Object.keys(JSON.parse(answer.choices[0].message.content)).sort(), ["area", "on"]);
}

async function responses(client) {
  const kinds = [];
  for await (const event of await client.responses.create({ model: "any", input: messages, stream: true })) {
    kinds.push(event.type);
  }
  assert.equal(kinds[0], "response.created");
  assert.equal(kinds.at(-1), "response.completed");
  const answer = await client.responses.create({ model: "any", input: messages[0].content });
  assert.equal(JSON.parse(answer.output_text).intent, "HassTurnOn");
}

async function abort(client) {
  const response_format = { type: "regex", regex: "[a-z ]{2000}" };
  const stream = await client.chat.completions.create({ model: "any", messages, stream: true, response_format });
  for await (const chunk of stream) {
    if (chunk.choices[0].delta.content) stream.controller.abort();
  }
  const began = Date.now();
  await chat(client);
  assert.ok(Date.now() - began < 5000, "the aborted answer was computed to its end");
}

async function errors(client) {
  const refused = client.chat.completions.create({ model: "any", messages, temperature: -1 });
  await assert.rejects(refused, (error) => error instanceof OpenAI.BadRequestError && error.param === "temperature");
  await assert.rejects(client.models.retrieve("gpt-5"), (error) => error.code === "model_not_found");
}

async function manyAtOnce(client) {
  const one = () => client.chat.completions.create({ model: "any", messages, cache: false, max_tokens: 4 });
  const answers = await Promise.all(Array.from({ length: 32 }, one));
  assert.equal(new Set(answers.map((answer) => answer.choices[0].message.content)).size, 1);
}

const dispatcher = new Agent({ connect: { socketPath: BITNETD_SOCKET } });
const ways = {
  socket: new OpenAI({
    baseURL: "http://localhost/v1", apiKey: "none", fetch, fetchOptions: { dispatcher }, maxRetries: 20,
  }),
  tcp: new OpenAI({ baseURL: `${BITNETD_TCP}/v1`, apiKey: BITNETD_TOKEN, maxRetries: 20 }),
};
let failed = false;
for (const [way, client] of Object.entries(ways)) {
  for (const check of [chat, tools, schema, responses, abort, errors, manyAtOnce]) {
    const began = Date.now();
    try {
      await check(client);
      console.log(`  ok      ${check.name} (${way}) ${(Date.now() - began) / 1000} s`);
    } catch (error) {
      failed = true;
      console.log(`  failed  ${check.name} (${way})\n`, error);
    }
  }
}
process.exit(failed ? 1 : 0);
