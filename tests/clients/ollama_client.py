"""Ollama's Python client against a running daemon with the built-in model; tests/clients/ollama starts both.

The client's types take objects in which something is missing, so that what each answer must have is checked here too.
"""

import asyncio
import datetime
import json
import os
import socket
import sys
import time
import traceback

import httpx
import ollama

SOCKET = os.environ["BITNETD_SOCKET"]
ASKED = [{"role": "user", "content": "turn on the kitchen lights"}]
DETAILS = ["parent_model", "format", "family", "families", "parameter_size", "quantization_level"]
COUNTS = ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration"]
SCHEMA = {
    "type": "object",
    "properties": {"area": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
    "required": ["area", "on"],
}
# An answer of this form takes the model some time.
LONG = {
    "type": "object",
    "properties": {"text": {"type": "string", "pattern": "^[a-z ]{2000}$"}},
    "required": ["text"],
    "additionalProperties": False,
}


def set_light(area: str, on: bool) -> str:
    """Switches a light.

    Args:
      area: Where the light is.
      on: Whether it is to be on.
    """
    return f"{area} {on}"


def is_complete(answer):
    assert answer.done is True and answer.done_reason in ("stop", "length"), answer
    for key in COUNTS:
        assert isinstance(answer[key], int), (key, answer)
    parts = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
    assert abs(parts - answer.total_duration) <= answer.total_duration * 0.01 + 1000, answer
    datetime.datetime.fromisoformat(answer.created_at)


def models(client, model):
    (listed,) = client.list().models
    assert listed.model == model and model.endswith(":latest") and listed.size > 0 and len(listed.digest) == 64
    assert isinstance(listed.modified_at, datetime.datetime)
    for key in DETAILS:
        assert listed.details[key] is not None, key
    (running,) = client.ps().models
    assert running.name == model and running.context_length > 0 and running.size_vram == 0
    assert running.expires_at > datetime.datetime.now(datetime.timezone.utc)
    shown = client.show(model.removesuffix(":latest").upper())
    family = shown.details.family
    assert shown.modelinfo["general.architecture"] == family
    assert shown.modelinfo[f"{family}.context_length"] == running.context_length
    assert "completion" in shown.capabilities and shown.modelfile.startswith("FROM ")
    version = client._client.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4), version
    # The command line of Ollama looks at the root for a server.
    assert client._client.head("/").status_code == client._client.get("/").status_code == 200


def pull(client, model):
    assert client.pull(model).status == "success"
    steps = list(client.pull(model.removesuffix(":latest"), stream=True))
    assert steps[0].status == "pulling manifest" and steps[-1].status == "success"
    assert any(step.total and step.total == step.completed for step in steps)
    for stream in (False, True):
        refused(404, "not found", lambda: drained(client.pull("llama3.2", stream=stream)))


def chat(client, model):
    answer = client.chat(model, ASKED)
    is_complete(answer)
    assert answer.model == model and answer.message.role == "assistant" and not answer.message.tool_calls
    assert json.loads(answer.message.content)["intent"] == "HassTurnOn"
    short = client.chat(model, ASKED, options={"num_predict": 2.0})
    assert (short.eval_count, short.done_reason) == (2, "length")
    assistants = {"num_ctx": 8192.0, "num_gpu": 1, "seed": -1, "top_k": 40, "top_p": 0.9, "repeat_last_n": 64}
    options = ollama.Options(temperature=0, num_thread=2, num_predict=-1, stop=["\n\n"])
    for keys in [{"options": assistants}, {"options": options}, {"keep_alive": "-1.0s", "think": False}, {"format": ""}]:
        same = client.chat(model, ASKED, **keys)
        assert same.message.content == answer.message.content, keys
    tokens = client.chat(model, ASKED, logprobs=True, top_logprobs=2)
    assert "".join(token.token for token in tokens.logprobs) == answer.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens.logprobs)


def streams(client, model):
    whole = client.chat(model, ASKED).message.content
    # The first is in the daemon's cache; log-probabilities never are.
    for keys in [{}, {"options": {"stop": ["no such text"]}}, {"logprobs": True}]:
        parts = list(client.chat(model, ASKED, stream=True, **keys))
        assert "".join(part.message.content for part in parts) == whole
        assert all(part.done is False and part.message.role == "assistant" for part in parts[:-1])
        assert parts[-1].message.content == ""
        is_complete(parts[-1])
        if "logprobs" in keys:
            assert "".join(token.token for part in parts for token in part.logprobs or []) == whole
    parts = list(client.generate(model, ASKED[0]["content"], stream=True))
    assert "".join(part.response for part in parts) == whole
    is_complete(parts[-1])
    # Left out, `stream` means a stream.
    lines = client._client.post("/api/generate", json={"model": model, "prompt": ASKED[0]["content"]})
    assert lines.headers["content-type"].startswith("application/x-ndjson"), lines.headers
    assert json.loads(lines.text.splitlines()[-1])["done"]


def generate(client, model):
    answer = client.generate(model, ASKED[0]["content"])
    is_complete(answer)
    assert json.loads(answer.response)["intent"] == "HassTurnOn"
    assert client.generate(model, "close the garage door", system="You control a home.").response
    for keys, reason in [({}, "load"), ({"keep_alive": -1}, "load"), ({"keep_alive": 0}, "unload")]:
        for answer in [client.generate(model, **keys), client.chat(model, **keys)]:
            assert (answer.done, answer.done_reason) == (True, reason), answer
        (answer,) = client.generate(model, stream=True, **keys)
        assert answer.done_reason == reason


def schemas(client, model):
    for answer in [client.chat(model, ASKED, format=SCHEMA).message.content,
                   client.generate(model, ASKED[0]["content"], format=SCHEMA).response]:
        read = json.loads(answer)
        assert read["area"] in ("kitchen", "hall") and isinstance(read["on"], bool)
    streamed = client.chat(model, ASKED, format=SCHEMA, stream=True)
    assert set(json.loads("".join(part.message.content for part in streamed))) == {"area", "on"}
    assert isinstance(json.loads(client.chat(model, ASKED, format="json").message.content), dict)


def tools(client, model):
    # The API cannot ask for a call, and the built-in model need not write one.
    for stream in (False, True):
        answer = client.chat(model, ASKED, tools=[set_light], stream=stream, options={"num_predict": 40})
        parts = list(answer) if stream else [answer]
        is_complete(parts[-1])
        calls = [call for part in parts for call in part.message.tool_calls or []]
        assert calls or "".join(part.message.content for part in parts)
        assert all(call.function.name == "set_light" and isinstance(call.function.arguments, dict) for call in calls)
    call = {"function": {"name": "set_light", "arguments": {"area": "kitchen", "on": True}}}
    again = [
        *ASKED,
        ollama.Message(role="assistant", tool_calls=[call]),
        ollama.Message(role="tool", content='{"data": {"success": true}}', tool_name="set_light"),
    ]
    is_complete(client.chat(model, again, tools=[set_light], options={"num_predict": 20}))
    is_complete(client.chat(model, again, options={"num_predict": 20}))


def drained(answer):
    return answer if isinstance(answer, ollama.ProgressResponse) else list(answer)


def refused(status, text, call):
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status and text in error.error, error
        return
    raise AssertionError(f"not refused: {text}")


def errors(client, model):
    refused(404, '"llama3.2" not found', lambda: client.chat("llama3.2", ASKED))
    refused(404, '"llama3.2" not found', lambda: list(client.chat("llama3.2", ASKED, stream=True)))
    refused(404, '"llama3.2" not found', lambda: client.show("llama3.2"))
    refused(400, "does not support thinking", lambda: client.chat(model, ASKED, think=True))
    refused(400, "options.temperature: ", lambda: client.chat(model, ASKED, options={"temperature": -1}))
    refused(400, "options.mirostat: ", lambda: client.chat(model, ASKED, options={"mirostat": 2}))
    image = [{"role": "user", "content": "what is it?", "images": [b"\x89PNG"]}]
    refused(400, "messages[0].images: ", lambda: client.chat(model, image))
    refused(400, "raw: ", lambda: client.generate(model, "a", raw=True))
    refused(400, "suffix: ", lambda: client.generate(model, "a", suffix="b"))
    bad = {"type": "object", "properties": {"a": {"type": "nothing"}}}
    for stream in (False, True):
        refused(400, "format: ", lambda: drained(client.chat(model, ASKED, format=bad, stream=stream)))
        long = [{"role": "user", "content": "light " * 5000}]
        refused(400, "context", lambda: drained(client.chat(model, long, stream=stream)))
    refused(413, "bytes", lambda: client.generate(model, "x" * (1 << 20)))
    refused(404, "", lambda: client.delete(model))
    refused(404, "", lambda: client.embed(model, "hello"))


def counts():
    """The daemon's own counts of requests, over the line protocol."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        connection.sendall(b'{"telemetry":true}\n')
        return json.loads(connection.makefile().readline())["requests"]


def abort(client, model):
    before = counts()["cancelled"]
    for _ in range(3):
        stream = client.chat(model, ASKED, stream=True, format=LONG)
        next(stream), next(stream)
        stream.close()
    began = time.monotonic()
    assert client.chat(model, ASKED).done_reason == "stop"
    assert time.monotonic() - began < 5, "the aborted answers were computed to their end"
    for _ in range(50):
        if counts()["cancelled"] == before + 3:
            return
        time.sleep(0.1)
    raise AssertionError(f"{counts()['cancelled'] - before} of 3 were cancelled")


def at_once(client, model):
    async def one(shared, index):
        options = {"num_predict": 5}
        prompt = f"turn on the kitchen lights {index}"
        for _ in range(100):
            try:
                if index % 2:
                    return (await shared.generate(model, prompt, options=options)).response
                stream = await shared.generate(model, prompt, options=options, stream=True)
                return "".join([part.response async for part in stream])
            except ollama.ResponseError as error:
                # Too many wait; the client does not ask again by itself.
                assert error.status_code == 429, error
                await asyncio.sleep(0.2)
        raise AssertionError("never taken")

    async def all_of_them():
        shared = ollama.AsyncClient()
        return await asyncio.gather(*(one(shared, index) for index in range(32)))

    answers = asyncio.run(all_of_them())
    assert len(answers) == 32 and all(answers), answers


def over_the_socket(_, model):
    client = ollama.Client(host="http://localhost", transport=httpx.HTTPTransport(uds=SOCKET))
    chat(client, model)
    models(client, model)


def main():
    client = ollama.Client()
    model = client.list().models[0].model
    failed = 0
    checks = [models, pull, chat, streams, generate, schemas, tools, errors, abort, at_once, over_the_socket]
    for check in checks:
        began = time.monotonic()
        try:
            check(client, model)
            print(f"  ok      {check.__name__} {time.monotonic() - began:.1f} s", flush=True)
        except Exception:
            failed += 1
            print(f"  failed  {check.__name__}\n{traceback.format_exc()}", flush=True)
    sys.exit(failed > 0)


main()
