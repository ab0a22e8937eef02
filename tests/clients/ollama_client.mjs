// Ollama's client for Node against a running daemon with the built-in model; tests/clients/ollama starts both.

import assert from "node:assert/strict";
import { Ollama } from "ollama";

const client = new Ollama({ host: process.env.OLLAMA_HOST });
const { models } = await client.list();
const model = models[0].model;
const messages = [{ role: "user", content: "turn on the kitchen lights" }];
const schema = { type: "object", properties: { on: { type: "boolean" } }, required: ["on"] };

async function lists() {
  assert.equal((await client.ps()).models[0].model, model);
  assert.ok((await client.show({ model })).capabilities.includes("completion"));
  assert.equal((await client.pull({ model })).status, "success");
  assert.match((await client.version()).version, /^\d+\.\d+\.\d+$/);
}

async function chat() {
  const answer = await client.chat({ model, messages });
  assert.equal(JSON.parse(answer.message.content).intent, "HassTurnOn");
  let streamed = "";
  let last;
  for await (last of await client.chat({ model, messages, stream: true })) streamed += last.message.content;
  assert.equal(streamed, answer.message.content);
  assert.ok(last.done && last.eval_count > 0 && last.total_duration > 0);
  const generated = await client.generate({ model, prompt: messages[0].content });
  assert.equal(generated.response, streamed);
}

async function schemas() {
  const answer = await client.chat({ model, messages, format: schema });
  assert.equal(typeof JSON.parse(answer.message.content).on, "boolean");
}

async function abort() {
  const long = { type: "object", properties: { text: { type: "string", pattern: "^[a-z ]{2000}$" } }, required: ["text"] };
  const stream = await client.chat({ model, messages, stream: true, format: long });
  await assert.rejects(
    async () => {
      for await (const part of stream) if (part.message.content) stream.abort();
    },
    { name: "AbortError" },
  );
  const began = Date.now();
  await chat();
  assert.ok(Date.now() - began < 5000, "the aborted answer was computed to its end");
}

async function errors() {
  await assert.rejects(client.chat({ model: "llama3.2", messages }), /not found/);
  await assert.rejects(client.chat({ model, messages, options: { temperature: -1 } }), /options\.temperature/);
}

let failed = false;
for (const check of [lists, chat, schemas, abort, errors]) {
  const began = Date.now();
  try {
    await check();
    console.log(`  ok      ${check.name} ${(Date.now() - began) / 1000} s`);
  } catch (error) {
    failed = true;
    console.log(`  failed  ${check.name}\n`, error);
  }
}
process.exit(failed ? 1 : 0);
