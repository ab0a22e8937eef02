#!/usr/bin/env python3
"""Evaluates the output of the measurement of the home's names (tests/engine/home_names.rs): `evaluate.py OUTPUT`.

An answer is right in full where intent and all slots are. Text is compared without case; a slot of the test that lists
several values takes any. Where a device is named, and for HassLightSet, `domain` and `device_class` say nothing more and do
not count; where the test has an older convention for them the answer counts as wrong.
"""
import collections, json, sys


def options(value):
    values = value if isinstance(value, list) else [value]
    return {v.strip().lower() if isinstance(v, str) else float(v) if isinstance(v, (int, float)) else v for v in values}


def parsed(answer):
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError:
            return "broken", {}
    if answer is None or answer["intent"] in ("none", "HassNevermind"):
        return None
    slots = {key: options(value) for key, value in answer.get("slots", {}).items() if value != "all"}
    if "name" in slots or answer["intent"] == "HassLightSet":
        slots = {key: value for key, value in slots.items() if key not in ("domain", "device_class")}
    return answer["intent"], slots


def is_right(answer, right):
    answer, right = parsed(answer), parsed(right)
    if answer is None or right is None:
        return answer is None and right is None
    return answer[0] == right[0] and answer[1].keys() == right[1].keys() and all(
        answer[1][key] & right[1][key] for key in right[1])


def unknown_names(line, home):
    answer = json.loads(line["sent"])
    slots = answer.get("slots", {})
    is_timer = "Timer" in answer["intent"]
    names = {"name": {d["name"] for d in home["devices"]}, "area": set(home["areas"]) | {
        d["area"] for d in home["devices"] if "area" in d}, "floor": set(home["floors"])}
    return any(slots[key] not in known for key, known in names.items()
               if key in slots and not (key == "name" and is_timer))


def main(path):
    files = collections.defaultdict(list)
    for text in open(path):
        if text.startswith("{"):
            line = json.loads(text)
            files[line["file"]].append(line)
    for name, lines in files.items():
        home = json.load(open(name))["home"]
        before = sum(is_right(line["free"], line["right"]) for line in lines)
        after = sum(is_right(line["sent"], line["right"]) for line in lines)
        unknown = sum(unknown_names(line, home) for line in lines)
        acting = sum(parsed(line["sent"]) is not None for line in lines)
        print(f"{name}: {len(lines)} sentences; right in full {before} before, {after} after; "
              f"{acting} answers act; unknown names in {unknown}")
        for line in lines:
            if len(sys.argv) > 2 and not is_right(line["sent"], line["right"]):
                print("  ", round(line["score"] or -999, 1), line["prompt"], "|", json.dumps(line["right"]), "|",
                      line["held"], "|", line["sent"])


main(sys.argv[1])
