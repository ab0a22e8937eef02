"""A running Home Assistant, used through its own REST and WebSocket interfaces, and the programs beside it."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import aiohttp

URL = "http://127.0.0.1:8123"
CHECK = "/check"
CONFIGURATION = f"{CHECK}/home"
FAILED = []


def check(name, is_right, *details):
    print("ok    " if is_right else "FAILED", name, *details)
    if not is_right:
        FAILED.append(name)


def start(name, *arguments):
    log = open(f"{CHECK}/{name}.log", "ab")
    return subprocess.Popen(arguments, stdout=log, stderr=subprocess.STDOUT)


def stop(process, by=signal.SIGTERM, patience=30):
    process.send_signal(by)
    return process.wait(patience)


def log_of(name):
    with open(f"{CHECK}/{name}.log", encoding="utf-8", errors="replace") as file:
        return file.read()


def start_broker():
    with open(f"{CHECK}/mosquitto.conf", "w", encoding="utf-8") as file:
        file.write("listener 1883 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type all\n")
    return start("mosquitto", "mosquitto", "-c", f"{CHECK}/mosquitto.conf")


def start_bitnetd(mqtt="", more="", model="", interval=5):
    """The daemon, with these lines in [mqtt], behind all the others, and in [model]."""
    with open(f"{CHECK}/bitnetd.toml", "w", encoding="utf-8") as file:
        file.write(
            f'[device]\nid = "cellar"\nstate_dir = "{CHECK}/state"\n[model]\ncache_dir = ""\n{model}\n[budget]\nthreads = 2\n'
            f'[socket]\npath = "{CHECK}/bitnetd.sock"\n[mqtt]\nhost = "127.0.0.1"\n{mqtt}\n'
            f'[telemetry]\ninterval_s = {interval}\n[log]\nlevel = "debug"\n{more}\n'
        )
    return start("bitnetd", "bitnetd", "serve", "--config", f"{CHECK}/bitnetd.toml")


def start_home_assistant():
    return start("home-assistant", "/opt/ha/bin/hass", "-c", CONFIGURATION, "--skip-pip", "--log-no-color")


def fresh(automations="[]\n"):
    """A home that nobody has used."""
    for folder in (CONFIGURATION, f"{CHECK}/state"):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(f"{CHECK}/configuration", CONFIGURATION)
    with open(f"{CONFIGURATION}/automations.yaml", "w", encoding="utf-8") as file:
        file.write(automations)
    for name in ("home-assistant", "bitnetd", "mosquitto"):
        if os.path.exists(f"{CHECK}/{name}.log"):
            os.remove(f"{CHECK}/{name}.log")


class HomeAssistant:
    """The owner's session."""

    def __init__(self):
        self.token = None
        self.number = 0

    async def __aenter__(self):
        self.session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *error):
        await self.session.close()

    async def wait(self, patience=180):
        """Waits until it answers, and logs in."""
        began = time.time()
        while time.time() - began < patience:
            try:
                async with self.session.get(URL + "/api/onboarding") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.3)
        else:
            raise TimeoutError("Home Assistant does not start")
        if self.token is None:
            await self.onboard()
        await self.open()

    async def onboard(self):
        client = {"client_id": URL + "/"}
        owner = {**client, "name": "o", "username": "o", "password": "secretsecret", "language": "en"}
        code = (await self.post("/api/onboarding/users", owner))["auth_code"]
        grant = {**client, "grant_type": "authorization_code", "code": code}
        async with self.session.post(URL + "/auth/token", data=grant) as answer:
            self.token = (await answer.json())["access_token"]
        await self.open()
        self.token = await self.ask("auth/long_lived_access_token", client_name="check", lifespan=30)
        for step in ("core_config", "analytics"):
            await self.post(f"/api/onboarding/{step}", {})

    async def open(self):
        self.socket = await self.session.ws_connect(URL + "/api/websocket", max_msg_size=0)
        await self.socket.receive_json()
        await self.socket.send_json({"type": "auth", "access_token": self.token})
        assert (await self.socket.receive_json())["type"] == "auth_ok"

    async def ask(self, kind, **keys):
        self.number += 1
        number = self.number
        await self.socket.send_json({"id": number, "type": kind, **keys})
        while True:
            message = await asyncio.wait_for(self.socket.receive_json(), 60)
            if message.get("id") == number and message["type"] == "result":
                if not message["success"]:
                    raise RuntimeError(message["error"])
                return message["result"]

    def headers(self):
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    async def post(self, path, data):
        async with self.session.post(URL + path, json=data, headers=self.headers()) as answer:
            text = await answer.text()
            try:
                return json.loads(text)
            except ValueError:
                return {"status": answer.status, "text": text}

    async def get(self, path):
        async with self.session.get(URL + path, headers=self.headers()) as answer:
            return await answer.json() if answer.status == 200 else None

    async def add(self, integration, *steps, path="/api/config/config_entries/flow", **start_keys):
        """Goes through the form that adds an integration, or a part of one."""
        result = await self.post(path, {"handler": integration, "show_advanced_options": False, **start_keys})
        for step in steps:
            result = await self.post(f"{path}/{result['flow_id']}", step)
        return result

    async def add_mqtt(self):
        return await self.add("mqtt", {"broker": "127.0.0.1", "port": 1883})

    async def assign_areas(self):
        """Assigns each light its area, by which sentences name it."""
        areas = {area["name"]: area["area_id"] for area in await self.ask("config/area_registry/list")}
        for entity, area in (("light.kitchen_light", "Kitchen"), ("light.bedroom_lamp", "Bedroom")):
            await self.ask("config/entity_registry/update", entity_id=entity, area_id=areas[area])

    async def call(self, action, data=None, entity=None, response=False):
        domain, service = action.split(".")
        keys = {"target": {"entity_id": entity}} if entity else {}
        if response:
            keys["return_response"] = True
        return await self.ask("call_service", domain=domain, service=service, service_data=data or {}, **keys)

    async def publish(self, topic, payload):
        await self.call("mqtt.publish", {"topic": topic, "payload": payload, "qos": 1})

    async def say(self, text, agent=None):
        """A sentence of the owner to a conversation agent; returns the whole response."""
        data = {"text": text, **({"agent_id": agent} if agent else {})}
        return (await self.call("conversation.process", data, response=True))["response"]["response"]

    async def state(self, entity):
        state = await self.get("/api/states/" + entity)
        return state and state["state"]

    async def until(self, entity, wanted, patience=20):
        """Seconds until the entity has the wanted state, or none, and its last state."""
        began, state = time.time(), None
        while time.time() - began < patience:
            state = await self.state(entity)
            if wanted(state) if callable(wanted) else state == wanted:
                return round(time.time() - began, 2), state
            await asyncio.sleep(0.05)
        return None, state

    async def becomes(self, name, entity, wanted, patience=20):
        """Checks that the entity gets this state; returns after how long."""
        seconds, state = await self.until(entity, wanted, patience)
        check(name, seconds is not None, f"{state} after {seconds} s")
        return seconds

    async def of_integration(self, platform):
        """The devices and entities of an integration."""
        entities = await self.ask("config/entity_registry/list")
        devices = await self.ask("config/device_registry/list")
        return (
            [device for device in devices if any(pair[0] == platform for pair in device["identifiers"])],
            [entity for entity in entities if entity["platform"] == platform],
        )


def warnings_of_home_assistant(about, except_for="$^"):
    lines = [line for line in log_of("home-assistant").splitlines() if re.search(r" (WARNING|ERROR) ", line)]
    return [line for line in lines if re.search(about, line) and not re.search(except_for, line)]


def speech(response):
    return (response["speech"].get("plain") or {}).get("speech")


def record(name, lines):
    """Keeps what Home Assistant sent, as test data."""
    with open(f"{CHECK}/recorded/{name}", "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def run(main, *processes):
    """Runs a check with its processes, which `main` gets as a dictionary it may change."""
    running = {name: begin() for name, begin in processes}
    try:
        asyncio.run(main(running))
    finally:
        for process in reversed(running.values()):
            if process.poll() is None:
                try:
                    stop(process)
                except subprocess.TimeoutExpired:
                    process.kill()
    print("FAILED:" if FAILED else "all is right", *FAILED)
    sys.exit(bool(FAILED))
