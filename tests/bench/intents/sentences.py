#!/usr/bin/env python3
"""Makes the sentences for the measurement of the home's names: `sentences.py TESTS OUT`.

TESTS is the folder `tests/en` of Home Assistant's intents repository, whose sentences are not in the training set; OUT is
a folder. Three files are written, each with a home and sentences to it:
  intents.json    TESTS, with a home of 40 devices out of its fixtures
  cases.json      models/home-intents.cases.json, with a home of the names in its answers
  nothing.json    sentences that are no command, with the first home
Needs PyYAML.
"""
import collections, glob, json, os, re, sys
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..", "..")
NAMED = ("name", "area", "floor")
TIMERS = re.compile("Timer")


def plain(value):
    if isinstance(value, dict):
        value = value.get("value", value.get("text"))
    return value


def tests(folder):
    for path in sorted(glob.glob(os.path.join(folder, "*.yaml"))):
        if os.path.basename(path).startswith("_"):
            continue
        for test in yaml.safe_load(open(path)).get("tests", []):
            intent = test.get("intent")
            if not intent:
                continue
            slots = {key: plain(value) for key, value in (intent.get("slots") or {}).items()}
            implied = set((intent.get("context") or {}))
            for sentence in test["sentences"]:
                # An area that only the place of the microphone implies cannot be answered.
                said = {k: v for k, v in slots.items() if k not in implied or str(v).lower() in sentence.lower()}
                yield sentence, {"intent": intent["name"], "slots": said}


def fixtures(folder):
    return yaml.safe_load(open(os.path.join(folder, "_fixtures.yaml")))


def without_brackets(name):
    return re.sub(r"\[([^\]]*)\]", r"\1", name)


def home_of_intents(folder, wanted):
    known = fixtures(folder)
    named = collections.Counter()
    for _, answer in tests(folder):
        if not TIMERS.search(answer["intent"]):
            named[str(answer["slots"].get("name", "")).lower()] += 1
    areas = {area["id"]: area["name"] for area in known["areas"]}
    devices, seen = [], set()
    for entity in known["entities"]:
        domain, name = entity["id"].split(".")[0], without_brackets(entity["name"])
        if (domain, name.lower()) not in seen:
            seen.add((domain, name.lower()))
            devices.append({"name": name, "domain": domain, "area": areas.get(entity.get("area"))})
    devices.sort(key=lambda device: -named[device["name"].lower()])
    # As many of each domain in turn, so that no domain is left out.
    by_domain, chosen = collections.defaultdict(list), []
    for device in devices:
        by_domain[device["domain"]].append(device)
    while len(chosen) < wanted:
        for of_domain in by_domain.values():
            if of_domain and len(chosen) < wanted:
                chosen.append(of_domain.pop(0))
    chosen = [{k: v for k, v in device.items() if v} for device in chosen]
    return {
        "devices": chosen,
        "areas": [area["name"] for area in known["areas"]],
        "floors": [floor["name"] for floor in known["floors"]],
    }


DOMAINS = {
    "HassListCompleteItem": "todo", "HassListAddItem": "todo", "HassListRemoveItem": "todo", "HassGetWeather": "weather",
    "HassLawnMowerDock": "lawn_mower", "HassLawnMowerStartMowing": "lawn_mower", "HassVacuumReturnToBase": "vacuum",
    "HassVacuumStart": "vacuum", "HassVacuumCleanArea": "vacuum", "HassSetPosition": "cover", "HassFanSetSpeed": "fan",
    "HassLightSet": "light", "HassClimateSetTemperature": "climate", "HassClimateGetTemperature": "climate",
    "HassClimateSetFanMode": "climate",
}


def cases():
    known = json.load(open(os.path.join(ROOT, "models", "home-intents.cases.json")))
    devices, areas, floors, sentences = {}, {}, {}, []
    for case in known:
        answer = json.loads(case["answer"])
        intent, slots = answer["intent"], answer["slots"]
        domain = DOMAINS.get(intent, "media_player" if "Media" in intent or "Volume" in intent else "switch")
        if "name" in slots and not TIMERS.search(intent):
            devices[(slots["name"], domain)] = {"name": slots["name"].title(), "domain": domain}
        if "area" in slots:
            areas[slots["area"]] = slots["area"].title()
        if "floor" in slots:
            floors[slots["floor"]] = slots["floor"].title()
        sentences.append({"prompt": case["prompt"], "answer": None if intent == "none" else answer})
    home = {"devices": list(devices.values()), "areas": list(areas.values()), "floors": list(floors.values())}
    return {"home": home, "sentences": sentences}


def main(folder, out):
    home = home_of_intents(folder, 40)
    names = {device["name"].lower() for device in home["devices"]}
    sentences = []
    for prompt, answer in tests(folder):
        name = answer["slots"].get("name")
        if name is None or TIMERS.search(answer["intent"]) or str(name).lower() in names:
            sentences.append({"prompt": prompt, "answer": answer})
        # Nothing fits a device that is not in this home.
        elif not any(other in prompt.lower() for other in names):
            sentences.append({"prompt": prompt, "answer": None})
    lines = open(os.path.join(HERE, "nothing.txt")).read().splitlines()
    nothing = [{"prompt": line, "answer": None} for line in lines if line]
    os.makedirs(out, exist_ok=True)
    written = {"intents": {"home": home, "sentences": sentences}, "cases": cases(),
               "nothing": {"home": home, "sentences": nothing}}
    for name, data in written.items():
        with open(os.path.join(out, name + ".json"), "w") as file:
            json.dump(data, file, ensure_ascii=False, indent=1)
        print(name, len(data["sentences"]), "sentences,", len(data["home"]["devices"]), "devices")


main(*sys.argv[1:])
