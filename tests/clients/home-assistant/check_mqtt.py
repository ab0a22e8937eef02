"""The device over MQTT: entities, button, number, states that change at once, availability, restarts, deletion."""

import asyncio
import json
import signal
import subprocess
import time

import home_assistant as ha
import recorder

PREFIX = "bitnetd_cellar_"
# The entities of the device: sensors, binary sensors, the limit on threads and the button.
ENTITIES = 18
DESCRIPTION = "homeassistant/device/bitnetd_cellar/config"
ALARM = "/sys/class/hwmon/hwmon2/in0_lcrit_alarm"
# What Home Assistant itself writes about its own doings.
EXPECTED = "outside valid range|connection was lost|No device components to cleanup"


def described():
    return ha.log_of("bitnetd").count(f"described on {DESCRIPTION}")


def alarm(value):
    with open(ALARM, "w", encoding="utf-8") as file:
        file.write(value)


async def entities(home, running):
    began = time.time()
    await home.becomes("the entities come", f"number.{PREFIX}thread_limit", "2")
    await asyncio.sleep(max(0, 6 - (time.time() - began)))
    devices, of_device = await home.of_integration("mqtt")
    ha.check(f"one device with {ENTITIES} entities", len(devices) == 1 and len(of_device) == ENTITIES, len(of_device))
    energy = {"stat_consumption": f"sensor.{PREFIX}energy", "stat_rate": f"sensor.{PREFIX}power"}
    await home.ask("energy/save_prefs", device_consumption=[energy])
    found = await home.ask("energy/validate")
    kinds = {issue["type"] for issues in found["device_consumption"] for issue in issues}
    # The first statistics come after five minutes.
    ha.check("the energy dashboard takes it", kinds <= {"statistics_not_defined"}, kinds)
    return devices[0], of_device


async def controls(home):
    limit = f"number.{PREFIX}thread_limit"
    await home.call("number.set_value", {"value": 1}, limit)
    await home.becomes("the thread limit changes", limit, "1")
    try:
        await home.call("number.set_value", {"value": 3}, limit)
        ha.check("a limit above the threads is refused", False)
    except RuntimeError:
        ha.check("a limit above the threads is refused", True)
    await home.call("number.set_value", {"value": 2}, limit)
    await home.publish("bitnetd/cellar/prompt", '{"id":1732.0,"prompt":"turn on the kitchen lights"}')
    await home.becomes("tokens are counted", f"sensor.{PREFIX}generated_tokens", lambda state: state not in ("0", "unknown", None))


def keep_busy(number):
    """Publishes a prompt with a long answer."""
    form = {"type": "grammar", "grammar": "start: /[a-z ]{1800,2000}/"}
    request = {"id": f"{recorder.NOT_FROM_HOME_ASSISTANT}{number}", "prompt": f"tell {number} stories", "n": 8}
    payload = json.dumps({**request, "max_tokens": 400, "temperature": 2, "response_format": form})
    return subprocess.Popen(["mosquitto_pub", "-q", "1", "-t", "bitnetd/cellar/prompt", "-m", payload])


async def states(home, running):
    """With a report a minute: what changes sooner does not wait for it."""
    ha.stop(running["bitnetd"])
    running["bitnetd"] = ha.start_bitnetd(interval=60)
    await home.becomes("the device is back", f"binary_sensor.{PREFIX}answering", "off")
    await asyncio.sleep(4)
    # The built-in model is quick, so it gets work for a few seconds.
    work = [keep_busy(number) for number in range(3)]
    seconds = await home.becomes("answering is on", f"binary_sensor.{PREFIX}answering", "on", 10)
    ha.check("at once", seconds is not None and seconds < 1, seconds)
    began = time.time()
    answering = f"binary_sensor.{PREFIX}answering"
    # Each press ends one request, and several wait.
    while await home.state(answering) == "on" and time.time() - began < 60:
        await home.call("button.press", {}, f"button.{PREFIX}cancel_the_running_request")
        await asyncio.sleep(0.3)
    ha.check("the button ends it", await home.state(answering) == "off", round(time.time() - began, 2))
    [one.wait() for one in work]
    alarm("1")
    seconds = await home.becomes("a problem shows", f"binary_sensor.{PREFIX}problem", "on", 30)
    # Alerts wait until they have been true for a while.
    print("      names:", (await home.get(f"/api/states/binary_sensor.{PREFIX}problem"))["attributes"]["alerts"])
    alarm("0")


async def availability(home, running, of_device):
    ha.stop(running["bitnetd"], signal.SIGKILL)
    await home.becomes("killed, it is unavailable", f"sensor.{PREFIX}power", "unavailable")
    left = [one["entity_id"] for one in of_device if await home.state(one["entity_id"]) != "unavailable"]
    ha.check("with all its entities", not left, left)
    running["bitnetd"] = ha.start_bitnetd()
    await home.becomes("started, it is back", f"sensor.{PREFIX}power", "4.5")
    ha.stop(running["bitnetd"])
    await home.becomes("stopped, it is unavailable", f"sensor.{PREFIX}power", "unavailable")
    running["bitnetd"] = ha.start_bitnetd()
    await home.becomes("started, it is back", f"sensor.{PREFIX}power", "4.5")
    ha.stop(running["listener"])
    ha.stop(running["mosquitto"])
    await home.becomes("without a broker it is unavailable", f"sensor.{PREFIX}power", "unavailable")
    running["mosquitto"] = ha.start_broker()
    await home.becomes("with a broker that kept nothing it is back", f"sensor.{PREFIX}power", "4.5", 90)
    running["listener"] = recorder.listen()


async def restart(home, running):
    await home.ask("config/entity_registry/update", entity_id=f"sensor.{PREFIX}power", new_entity_id="sensor.pi_power")
    before = described()
    await home.socket.close()
    ha.stop(running["home-assistant"], patience=90)
    running["home-assistant"] = ha.start_home_assistant()
    await home.wait()
    await home.becomes("after a restart of Home Assistant names stay", "sensor.pi_power", "4.5", 60)
    began = time.time()
    while described() == before and time.time() - began < 30:
        await asyncio.sleep(0.2)
    ha.check("its birth brings the description", described() > before, round(time.time() - began, 1))
    devices, of_device = await home.of_integration("mqtt")
    ha.check("and no second device", len(devices) == 1 and len(of_device) == ENTITIES, len(of_device))


async def is_deleted(home, when):
    devices, of_device = await home.of_integration("mqtt")
    ha.check(f"the device is gone {when}", not devices and not of_device, len(devices), len(of_device))


async def deletion(home, running, entry):
    devices, _ = await home.of_integration("mqtt")
    await home.ask("config/device_registry/remove_config_entry", config_entry_id=entry, device_id=devices[0]["id"])
    await asyncio.sleep(3)
    await is_deleted(home, "after its deletion")
    ha.stop(running["bitnetd"])
    running["bitnetd"] = ha.start_bitnetd()
    await asyncio.sleep(5)
    await is_deleted(home, "after a restart of bitnetd")
    await home.socket.close()
    ha.stop(running["home-assistant"], patience=90)
    running["home-assistant"] = ha.start_home_assistant()
    await home.wait()
    await asyncio.sleep(12)
    await is_deleted(home, "after a restart of Home Assistant")
    ha.check("it was logged once", ha.log_of("bitnetd").count("was deleted in Home Assistant") == 1)
    ha.stop(running["bitnetd"])
    running["bitnetd"] = ha.start_bitnetd("discovery = false")
    await asyncio.sleep(4)
    await is_deleted(home, "with discovery = false")
    ha.stop(running["bitnetd"])
    running["bitnetd"] = ha.start_bitnetd()
    await home.becomes("switched on again it is back", f"number.{PREFIX}thread_limit", "2")
    ha.stop(running["bitnetd"])
    running["bitnetd"] = ha.start_bitnetd("discovery = false")
    await asyncio.sleep(4)
    await is_deleted(home, "with discovery = false, of which Home Assistant knew nothing before")


async def main(running):
    running["listener"] = recorder.listen()
    async with ha.HomeAssistant() as home:
        await home.wait()
        added = await home.add_mqtt()
        ha.check("the integration is added", added.get("type") == "create_entry", added.get("errors"))
        _, of_device = await entities(home, running)
        await controls(home)
        await states(home, running)
        await availability(home, running, of_device)
        await restart(home, running)
        await deletion(home, running, added["result"]["entry_id"])
        found = ha.warnings_of_home_assistant("mqtt|bitnetd", EXPECTED)
        ha.check("Home Assistant logs no warning", not found, *found)
        ha.stop(running["listener"])
        ha.record("mqtt.jsonl", recorder.from_home_assistant())


ha.fresh()
ha.run(main, ("mosquitto", ha.start_broker), ("bitnetd", ha.start_bitnetd), ("home-assistant", ha.start_home_assistant))
