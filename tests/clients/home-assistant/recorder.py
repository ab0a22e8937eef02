"""What Home Assistant sends: over MQTT, and over TCP through a proxy."""

import asyncio
import json
import os
import subprocess
import time

import home_assistant as ha

MESSAGES = f"{ha.CHECK}/mqtt-all.jsonl"
DESCRIPTION = "homeassistant/device/bitnetd_cellar/config"
# The ids of prompts that the checks publish past Home Assistant begin with it.
NOT_FROM_HOME_ASSISTANT = "check-"


def listen():
    """Notes everything that goes over the broker."""
    form = '{"topic":"%t","qos":%q,"retain":%r,"payload":"%X"}'
    topics = ["-t", "homeassistant/#", "-t", "bitnetd/#"]
    time.sleep(0.5)
    with open(MESSAGES, "a", encoding="utf-8") as file:
        command = ["mosquitto_sub", "-V", "5", "-q", "2", "--retain-as-published", *topics, "-F", form]
        return subprocess.Popen(command, stdout=file)


def from_home_assistant():
    """Of what was noted, what Home Assistant published."""
    own = ("bitnetd/cellar/cancel", "bitnetd/cellar/threads/set", "homeassistant/status")
    kept = []
    with open(MESSAGES, encoding="utf-8") as file:
        for line in file:
            message = json.loads(line)
            topic, payload = message["topic"], bytes.fromhex(message["payload"]).decode()
            is_prompt = topic.startswith("bitnetd/cellar/prompt") and '{"self_check"' not in payload
            is_deletion = topic == DESCRIPTION and payload == "" and message["retain"]
            if (topic in own or is_prompt or is_deletion) and NOT_FROM_HOME_ASSISTANT not in payload:
                kept.append(json.dumps({**message, "retain": bool(message["retain"]), "payload": payload}))
    os.remove(MESSAGES)
    return kept


class Recorder:
    """Listens on `port` of the loopback interface and passes everything on to `to`."""

    def __init__(self, port, to):
        self.port, self.to = port, to
        # What the client of each connection sent.
        self.sent = []

    async def start(self):
        self.server = await asyncio.start_server(self.connected, "127.0.0.1", self.port)

    async def connected(self, reader, writer):
        number = len(self.sent)
        self.sent.append(b"")
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self.passes(number, reader, to_writer), self.passes(None, to_reader, writer)
        )

    async def passes(self, number, reader, writer):
        try:
            while data := await reader.read(65536):
                if number is not None:
                    self.sent[number] += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def connections(self):
        """A line of JSON for what was sent on each connection."""
        return [json.dumps({"sent": sent.decode()}) for sent in self.sent if sent]

    def calls(self):
        """The same as calls of HTTP, each once."""
        calls = []
        for sent in self.sent:
            while sent:
                head, _, rest = sent.partition(b"\r\n\r\n")
                method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                length = int(lengths[0].split(b":")[1]) if lengths else 0
                body, sent = rest[:length].decode(), rest[length:]
                call = json.dumps({"method": method, "path": path, "body": body})
                if call not in calls:
                    calls.append(call)
        return calls
