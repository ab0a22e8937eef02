"""The automations of docs/home-assistant.md, as they stand there."""

import asyncio
import re
import time

import home_assistant as ha
import recorder


def automations():
    with open(f"{ha.CHECK}/home-assistant.md", encoding="utf-8") as file:
        return "".join(re.findall(r"```yaml\n(.*?)```", file.read(), re.S))


async def light(home, sentence, wanted):
    began = time.time()
    response = await home.say(sentence)
    seconds = round(time.time() - began, 2)
    state = (await home.until("light.kitchen_light", wanted, 3))[1]
    ha.check(sentence, state == wanted and ha.speech(response) == "Done.", state, ha.speech(response), f"{seconds} s")


async def main(running):
    running["listener"] = recorder.listen()
    async with ha.HomeAssistant() as home:
        await home.wait()
        await home.add_mqtt()
        await home.assign_areas()
        await asyncio.sleep(8)
        for _ in range(4):
            await light(home, "computer turn on the kitchen lights", "on")
            await light(home, "computer turn off the kitchen lights", "off")
        response = await home.say("computer who wrote hamlet")
        ha.check("what is no command is not understood", ha.speech(response) == "I did not understand.", ha.speech(response))
        for sentence in ("ask open the garage door", "ask open the garage door", "ask what is the time"):
            response = await home.say(sentence)
            ha.check(sentence, '"intent"' in (ha.speech(response) or ""), ha.speech(response))
        found = ha.warnings_of_home_assistant("automation|script|template.*rror")
        ha.check("Home Assistant logs no warning", not found, *found)
        ha.stop(running["listener"])
        ha.record("automations.jsonl", recorder.from_home_assistant())


ha.fresh(automations())
ha.run(
    main,
    ("mosquitto", ha.start_broker),
    ("bitnetd", lambda: ha.start_bitnetd("keep_last = true")),
    ("home-assistant", ha.start_home_assistant),
)
