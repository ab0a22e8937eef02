"""bitnetd as a conversation agent through Home Assistant's Wyoming integration."""

import asyncio

import home_assistant as ha
from recorder import Recorder

PORT, PROXY = 10400, 10500
NAMES = f'[home]\nenabled = true\nfile = "{ha.CHECK}/names.toml"'


async def main(running):
    recorder = Recorder(PROXY, PORT)
    await recorder.start()
    async with ha.HomeAssistant() as home:
        await home.wait()
        await home.assign_areas()
        added = await home.add("wyoming", {"host": "127.0.0.1", "port": PROXY})
        ha.check("the integration is added", added.get("type") == "create_entry", added.get("errors"), added.get("reason"))
        await asyncio.sleep(1)
        _, entities = await home.of_integration("wyoming")
        agents = [one["entity_id"] for one in entities if one["entity_id"].startswith("conversation.")]
        ha.check("there is one agent", len(agents) == 1, agents)
        agent = agents[0]

        async def off():
            for helper in ("kitchen", "bedroom"):
                await home.call("input_boolean.turn_off", {}, f"input_boolean.{helper}")
            await asyncio.sleep(0.2)

        for sentence, entity in (
            ("turn on the kitchen lights", "light.kitchen_light"),
            ("turn on the lights in the kitchen", "light.kitchen_light"),
            ("turn on the bedroom lamp", "light.bedroom_lamp"),
        ):
            await off()
            response = await home.say(sentence, agent)
            state = (await home.until(entity, "on", 3))[1]
            ha.check(sentence, state == "on", state, response["response_type"], ha.speech(response))
        # With the names of the home nothing is sent that Home Assistant does not know.
        ha.stop(running["bitnetd"])
        running["bitnetd"] = start_bitnetd(NAMES)
        await asyncio.sleep(3)
        for sentence in ("who wrote hamlet", "asdf qwer", "turn on the lights in the attic"):
            await off()
            response = await home.say(sentence, agent)
            text = ha.speech(response) or ""
            # Home Assistant shows the owner a Python value where an intent does not fit, and is silent after some questions.
            ha.check(sentence, text and "<" not in text, response["response_type"], text or "(nothing is spoken)")
        await off()
        response = await home.say("turn on the kitchen lights", agent)
        state = (await home.until("light.kitchen_light", "on", 3))[1]
        ha.check("turn on the kitchen lights, with names", state == "on", state, ha.speech(response))
        pipeline = {name: None for name in ("stt_engine", "stt_language", "tts_engine", "tts_language", "tts_voice", "wake_word_entity", "wake_word_id")}
        made = await home.ask(
            "assist_pipeline/pipeline/create",
            name="bitnetd",
            language="en",
            conversation_engine=agent,
            conversation_language="en",
            prefer_local_intents=False,
            **pipeline,
        )
        ha.check("a voice assistant can use it", made["conversation_engine"] == agent)
        ha.stop(running["bitnetd"])
        response = await home.say("turn on the kitchen lights", agent)
        ha.check("without the daemon it is an error", response["response_type"] == "error", ha.speech(response))
        found = ha.warnings_of_home_assistant("wyoming", "onnect")
        ha.check("Home Assistant logs no warning", not found, *found)
    ha.record("wyoming.jsonl", recorder.connections())


def start_bitnetd(more=""):
    return ha.start_bitnetd(more=f'[wyoming]\nlisten = "127.0.0.1:{PORT}"\n{more}', mqtt="port = 1")


with open(f"{ha.CHECK}/names.toml", "w", encoding="utf-8") as file:
    for area, device in (("Kitchen", "Kitchen Light"), ("Bedroom", "Bedroom Lamp")):
        file.write(f'[[areas]]\nname = "{area}"\n[[devices]]\nname = "{device}"\ndomain = "light"\narea = "{area}"\n')
ha.fresh()
ha.run(
    main,
    ("bitnetd", start_bitnetd),
    ("home-assistant", ha.start_home_assistant),
)
