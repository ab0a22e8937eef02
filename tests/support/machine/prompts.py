"""Prompts over MQTT from outside the machine, and what became of each of them."""

import json
import os
import subprocess
import threading
import time

import paho.mqtt.client as mqtt

SENTENCES = ["turn on the kitchen lights", "close the garage door", "turn off the light in the hall"]


class Broker:
    """mosquitto on a port of this host, which the emulated machine reaches as 10.0.2.2."""

    def __init__(self, folder, port):
        path = os.path.join(folder, "mosquitto.conf")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 0\n"
                       f"user root\npersistence true\npersistence_location {folder}/\nautosave_interval 5\n")
        with open(os.path.join(folder, "mosquitto.log"), "ab") as log:
            self.process = subprocess.Popen(["mosquitto", "-c", path], stdout=log, stderr=log)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Client:
    """Asks at QoS 1, and counts the final events of each prompt that the broker has acknowledged."""

    def __init__(self, port):
        self.lock = threading.Lock()
        self.sent = {}  # id of a prompt -> what knows whether the broker has acknowledged it
        self.finals = {}  # id -> payloads of its final events
        self.retained = {}  # last level of a topic -> payload
        self.unanswered_at_loss = None  # when the daemon's connection ended
        self.asked = 0
        self.link = mqtt.Client(client_id="outside", clean_session=False)
        self.link.on_message = self.received
        self.link.max_queued_messages_set(0)
        self.link.max_inflight_messages_set(1000)
        for attempt in range(100):
            try:
                self.link.connect("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                if attempt == 99:
                    raise
                time.sleep(0.1)
        self.link.subscribe([("bitnetd/cellar/reply/outside/+", 1), ("bitnetd/cellar/availability", 1),
                             ("bitnetd/cellar/info", 1)])
        self.link.loop_start()

    def received(self, _client, _data, message):
        level = message.topic.rsplit("/", 1)[1]
        with self.lock:
            if "/reply/" not in message.topic:
                self.retained[level] = message.payload.decode()
                if message.payload == b"offline" and not message.retain:
                    self.unanswered_at_loss = len(set(self.sent) - set(self.finals))
            elif json.loads(message.payload)["event"] in ("done", "error"):
                self.finals.setdefault(level, []).append(message.payload)

    def ask(self):
        """Publishes one prompt and returns its id. Every other one is sampled, so that computing it again would show."""
        # Some words and not a whole answer, which would go on for long at this temperature.
        sampled = {"temperature": 1.5, "max_tokens": 12} if self.asked % 2 else {}
        return self.ask_for(SENTENCES[self.asked % len(SENTENCES)], **sampled)

    def ask_for(self, sentence, **more):
        self.asked += 1
        prompt = {"id": f"p{self.asked}", "prompt": sentence, "cache": False, **more}
        # Not under the lock: the library has one of its own, and holds it while it calls `received`.
        sent = self.link.publish("bitnetd/cellar/prompt/outside", json.dumps(prompt), qos=1)
        with self.lock:
            self.sent[prompt["id"]] = sent
        return prompt["id"]

    def is_online(self):
        return self.retained.get("availability") == "online"

    def unanswered(self):
        with self.lock:
            return self.asked - len(self.finals)

    def answered(self):
        with self.lock:
            return len(self.finals)

    def tally(self):
        with self.lock:
            finals = [self.finals.get(prompt, []) for prompt, sent in self.sent.items() if sent.is_published()]
        return {
            "prompts": len(finals),
            "lost": sum(not events for events in finals),
            "errors": sum(json.loads(event)["event"] == "error" for events in finals for event in events),
            "answered twice": sum(len(set(events)) > 1 for events in finals),
            "copies": sum(len(events) - 1 for events in finals if events),
        }

    def stop(self):
        self.link.disconnect()
        self.link.loop_stop()


class Load:
    """Keeps so many prompts unanswered, while it lasts: more than 8 of them are in the daemon's inbox."""

    def __init__(self, client, unanswered=20):
        self.client, self.limit = client, unanswered
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.keep_asking, daemon=True)

    def keep_asking(self):
        while not self.is_over.wait(0.05):
            while self.client.unanswered() < self.limit:
                self.client.ask()

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()
