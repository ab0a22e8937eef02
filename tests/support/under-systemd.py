#!/usr/bin/env python3
"""What the service promises its users under systemd, tried inside the container of tests/under-systemd."""

import collections
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

SOCKET = "/run/bitnetd/bitnetd.sock"
CONFIG = "/etc/bitnetd/bitnetd.toml"
PATIENCE = 60  # seconds for anything


def systemctl(*words):
    return subprocess.run(["systemctl", *words], check=True, capture_output=True, text=True).stdout


def shown(key):
    return systemctl("show", "--value", "-p", key, "bitnetd").strip()


def journal():
    return subprocess.run(["journalctl", "-u", "bitnetd", "-o", "cat"], capture_output=True, text=True).stdout


def until(what, look):
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > deadline:
            sys.exit(f"not in time: {what}\n{systemctl('status', 'bitnetd')}\n{journal()[-4000:]}")
        time.sleep(0.05)
    return found


def claim(text, holds=True):
    print(("holds: " if holds else "DOES NOT HOLD: ") + text, flush=True)
    if not holds:
        sys.exit(journal()[-4000:])


class Load:
    """Clients that connect, ask three things, hear the answers and leave, again and again."""

    def __init__(self, clients=4):
        self.tally = collections.Counter()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.come_and_go) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def come_and_go(self):
        while not self.stop.is_set():
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE)
                try:
                    client.connect(SOCKET)
                except OSError:
                    self.tally["refused"] += 1
                    continue
                self.tally["connected"] += 1
                self.visit(client)

    def visit(self, client):
        owed = 0
        for _ in range(3):
            request = {"prompt": "turn on the light in the hall", "cache": False}
            try:
                client.sendall(json.dumps(request).encode() + b"\n")
                owed += 1
            except OSError:
                self.tally["unsent"] += 1
        lines = client.makefile("rb")
        for _ in range(owed):
            try:
                self.tally[outcome(lines.readline())] += 1
            except OSError:
                self.tally["lost"] += 1

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()
        return self.tally


def outcome(line):
    if not line:
        return "lost"
    event = json.loads(line)
    return "answered" if event["event"] == "done" else event["code"]


def ask():
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(SOCKET)
        client.sendall(b'{"prompt": "turn on the light in the hall"}\n')
        return outcome(client.makefile("rb").readline()) == "answered"


def started():
    systemctl("start", "bitnetd.socket")
    claim("a connection starts the daemon", ask())
    claim("systemctl says what it does: " + shown("StatusText"), "answering with home-intents" in shown("StatusText"))


def restarted(times):
    load, began = Load(), time.monotonic()
    for _ in range(times):
        before = load.tally["answered"]
        until("answers", lambda: load.tally["answered"] > before + 5)
        systemctl("reset-failed", "bitnetd")  # restarts by hand count against StartLimitBurst= too
        systemctl("restart", "bitnetd")
    tally = load.end()
    figures = ", ".join(f"{count} {what}" for what, count in sorted(tally.items()))
    known = {"connected", "answered", "shutting_down", "unsent"}
    claim(f"{times} restarts under load in {time.monotonic() - began:.0f} s, no connect failed and no request "
          f"was lost: {figures}", set(tally) <= known)


def reloaded():
    pid = shown("MainPID")
    write('[queue]\ntimeout_ms = 5000\n[budget]\nthreads = 1\n')
    systemctl("reload", "bitnetd")
    claim("a reload changes what it can and names the rest",
          "changed: queue.timeout_ms; needs a restart: budget.threads" in until_said("configuration read again"))
    write('[queue]\ntimeout_ms = "soon"\n')
    systemctl("reload", "bitnetd")
    claim("a broken file is named with its line", f"{CONFIG}:2: queue.timeout_ms" in until_said("not reloaded"))
    claim("the same process goes on answering", shown("MainPID") == pid and ask())
    os.remove(CONFIG)


def write(text):
    with open(CONFIG, "w", encoding="utf-8") as file:
        file.write(text)


def until_said(words):
    return until(words, lambda: next((line for line in journal().splitlines() if words in line), None))


def replaced(text, stick):
    pid = int(shown("MainPID"))
    systemctl("reset-failed", "bitnetd")
    began = time.monotonic()
    stick(pid)
    until("another process", lambda: shown("MainPID") not in ("0", str(pid)) and shown("ActiveState") == "active")
    claim(f"{text}, and another daemon answers after {time.monotonic() - began:.1f} s", ask())


def kill(number):
    return lambda pid: os.kill(pid, number)


def stop_worker(pid):
    """Stops the computing thread alone, as a debugger does, while it has something to do."""
    seize, interrupt, wall = 0x4206, 0x4207, 0x40000000
    threads = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    worker = next(t for t in threads if open(f"/proc/{pid}/task/{t}/comm").read().strip() == "compute-0")
    libc = ctypes.CDLL(None, use_errno=True)

    def hold():
        for request in (seize, interrupt):
            if libc.ptrace(request, worker, 0, 0):
                raise OSError(ctypes.get_errno(), "ptrace")
        os.waitpid(worker, wall)
        held.set()
        os.waitpid(worker, wall)  # its end: until then the process cannot go

    held = threading.Event()
    threading.Thread(target=hold, daemon=True).start()
    held.wait(PATIENCE)
    threading.Thread(target=ask, daemon=True).start()
    until("it is named", lambda: "the worker has not moved for 2s" in journal())


def main():
    write("")
    started()
    restarted(int(sys.argv[1]))
    reloaded()
    replaced("a process that stands still is ended by the watchdog", kill(signal.SIGSTOP))
    replaced("a worker that stands still is ended by the watchdog", stop_worker)
    replaced("a killed process is started anew", kill(signal.SIGKILL))
    systemctl("stop", "bitnetd.socket", "bitnetd.service")
    claim("a stop ends well", shown("Result") == "success" and shown("ActiveState") == "inactive")


main()
