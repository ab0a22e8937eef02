"""bitnetd as a conversation agent with tools through Home Assistant's Ollama integration."""

import asyncio
import os

import home_assistant as ha
from recorder import Recorder

PORT, PROXY = 11435, 11434
MODEL = f"{ha.CHECK}/model.gguf"
SUBENTRY = "/api/config/config_entries/subentries/flow"


async def sentences(home, agent):
    """Sentences that only the built-in model has to get right."""
    if os.path.exists(MODEL):
        return

    async def said(sentence):
        response = await home.say(sentence, agent)
        return response["response_type"], ha.speech(response)

    answer = await said("turn off the kitchen lights")
    state = (await home.until("light.kitchen_light", "off", 3))[1]
    ha.check("the light is switched off", state == "off" and answer == ("action_done", "Done."), state, *answer)
    answer = await said("turn on the bedroom lamp")
    state = (await home.until("light.bedroom_lamp", "on", 3))[1]
    ha.check("a light is found by its name", state == "on", state, *answer)
    answer = await said("add milk to the shopping list")
    count = (await home.until("todo.shopping_list", "1", 3))[1]
    ha.check("an item is added to the list", count == "1", count, *answer)
    answer = await said("turn on the lights in the attic")
    ha.check("a sentence says what fails", (answer[1] or "").endswith(".") and "<" not in answer[1], *answer)
    await home.call("input_boolean.turn_off", {}, "input_boolean.bedroom")
    for sentence in ("hello", "who wrote hamlet", "what is the capital of france"):
        answer = await said(sentence)
        states = [await home.state(light) for light in ("light.kitchen_light", "light.bedroom_lamp")]
        is_sentence = (answer[1] or "").endswith(".") and "<" not in answer[1]
        ha.check(sentence, states == ["off", "off"] and is_sentence, *states, *answer)


async def main(running):
    recorder = Recorder(PROXY, PORT)
    await recorder.start()
    async with ha.HomeAssistant() as home:
        await home.wait()
        await home.assign_areas()
        added = await home.add("ollama", {"url": f"http://127.0.0.1:{PROXY}"})
        ha.check("the integration is added", added.get("type") == "create_entry", added.get("errors"), added.get("reason"))
        entry = added["result"]["entry_id"]
        form = await home.post(SUBENTRY, {"handler": [entry, "conversation"]})
        model = next(field for field in form["data_schema"] if field["name"] == "model")
        options = (model.get("selector") or {}).get("select", {}).get("options", [])
        names = [one["value"] if isinstance(one, dict) else one for one in options]
        print("      models:", names[:1], "and those that Home Assistant knows")
        name = next((one for one in names if "home-intents" in one), "home-intents:latest")
        settings = {"model": name, "prompt": "", "max_history": 20, "num_ctx": 8192, "keep_alive": -1, "think": False}
        for label, extra in (("with tools", {"llm_hass_api": ["assist"]}), ("without", {})):
            form = await home.post(SUBENTRY, {"handler": [entry, "conversation"]})
            made = await home.post(f"{SUBENTRY}/{form['flow_id']}", {"name": label, **settings, **extra})
            ha.check(f"an agent {label} is made", made.get("type") == "create_entry", made.get("errors"))
            await asyncio.sleep(2)
        _, entities = await home.of_integration("ollama")
        agents = [one["entity_id"] for one in entities if one["entity_id"].startswith("conversation.")]
        ha.check("there are two agents", len(agents) == 2, agents)
        for agent in agents:
            await home.call("input_boolean.turn_off", {}, "input_boolean.kitchen")
            await asyncio.sleep(0.2)
            try:
                response = await home.say("turn on the kitchen lights", agent)
            except RuntimeError as error:
                ha.check(f"{agent} answers", False, error)
                continue
            state = (await home.until("light.kitchen_light", "on", 3))[1]
            details = (state, response["response_type"], ha.speech(response))
            if "without" in agent:
                ha.check(f"{agent} answers", response["response_type"] == "action_done", *details)
            else:
                ha.check(f"{agent} switches the light", state == "on", *details)
                await sentences(home, agent)
        found = ha.warnings_of_home_assistant("ollama")
        ha.check("Home Assistant logs no warning", not found, *found)
    ha.record("ollama.jsonl", recorder.calls())


def start_bitnetd():
    model = f'path = "{MODEL}"\ncontext = 4096' if os.path.exists(MODEL) else ""
    return ha.start_bitnetd(more=f'[http]\nlisten = "127.0.0.1:{PORT}"', mqtt="port = 1", model=model)


ha.fresh()
ha.run(
    main,
    ("bitnetd", start_bitnetd),
    ("home-assistant", ha.start_home_assistant),
)
