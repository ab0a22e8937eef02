#!/usr/bin/env python3
"""What the package and the service promise, tried on the emulated machine of tests/machine.

    claims.py IMAGE PACKAGE LOGS CUTS SEED PROCESSOR...
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from emulator import Machine, MachineFailed, free_port
from prompts import Broker, Client, Load

PATIENCE_S = 600
KITCHEN = '{"intent":"HassTurnOn","slots":{"domain":"light","area":"kitchen"}}'
CONFIG = "/etc/bitnetd/bitnetd.toml"
UNIT = "/etc/systemd/system/bitnetd.service.d"
GROUP = "/sys/fs/cgroup/system.slice/bitnetd.service"

# What a running Debian writes by itself: apt's and dpkg's own records, backups of the account files, the journal, and the
# state of systemd and of the machine.
NOT_OF_THE_PACKAGE = re.compile(
    r"/var/log/(journal/|apt|dpkg\.log|alternatives\.log|wtmp|btmp|lastlog)|/var/lib/apt/|/var/cache/(apt|ldconfig)/|"
    r"/var/lib/dpkg/(info/format|status-old|available|diversions-old|statoverride-old|triggers/|updates/|lock)|"
    r"/var/lib/systemd/(timers/|timesync|random-seed|catalog|credential\.secret|linger)|/etc/(group|gshadow|passwd|shadow|subuid|subgid)-$|"
    r"/etc/\.pwd\.lock$|/root/|/tmp/|/var/tmp/|/var/lib/private$|/var/cache/private$"
)


class DoesNotHold(Exception):
    """A claim that is wrong."""


class Trial:
    """All claims on one processor."""

    def __init__(self, processor, image, package, folder, cuts, chance):
        self.processor, self.package, self.cuts, self.chance = processor, package, cuts, chance
        self.folder = folder
        self.port = free_port()
        self.began = time.monotonic()
        self.broker = self.client = None
        self.machine = Machine(processor, image, folder)

    def claim(self, text, holds=True):
        seconds = time.monotonic() - self.began
        print(f"{self.processor} {seconds:5.0f} s  {'holds' if holds else 'DOES NOT HOLD'}: {text}", flush=True)
        if not holds:
            raise DoesNotHold(text)

    def until(self, what, look, patience=PATIENCE_S):
        deadline = time.monotonic() + patience
        while not (found := look()):
            if time.monotonic() > deadline:
                self.claim(what, False)
            time.sleep(0.2)
        return found

    def run(self):
        self.broker = Broker(self.folder, self.port)
        self.client = Client(self.port)
        self.starts()
        self.installs()
        self.answers()
        self.writes_fields()
        self.keeps_to_its_memory()
        self.survives_kills()
        self.survives_power_cuts()
        self.upgrades()
        self.leaves_nothing()

    def stop(self):
        self.machine.stop()
        if self.client:
            self.client.stop()
        if self.broker:
            self.broker.stop()

    def starts(self):
        seconds = self.machine.start()
        part = {"cortex-a72": "0xd08", "cortex-a76": "0xd0b"}.get(self.processor, "")
        kernel = self.machine.run("uname -r").strip()
        self.claim(f"Debian with Linux {kernel} takes commands {seconds:.0f} s after it was switched on",
                   part in self.machine.run("cat /proc/cpuinfo"))
        controllers = self.machine.run("cat /sys/fs/cgroup/cgroup.controllers")
        self.claim("the memory controller of cgroup v2 is on", "memory" in controllers.split())
        self.files_before, self.accounts_before = self.files(), self.accounts()

    def files(self):
        listed = self.machine.run("find / -xdev -print; find /run -name '*bitnetd*'; ls /run/systemd/dynamic-uid 2>/dev/null || true")
        return {path for path in listed.splitlines() if not NOT_OF_THE_PACKAGE.match(path)}

    def accounts(self):
        return self.machine.run("cat /etc/passwd /etc/group /etc/shadow /etc/gshadow")

    def installs(self):
        self.machine.copy(self.package, "/root/bitnetd.deb")
        text = self.machine.run(f"{APT} install /root/bitnetd.deb")
        self.claim("apt installs the package, which says what to do next in two lines",
                   len(re.findall(r"^bitnetd: ", text, re.M)) == 2)
        self.claim("it is enabled and runs", self.is_active() and "enabled" in self.machine.run("systemctl is-enabled bitnetd"))
        self.version = self.machine.run("dpkg-query -W -f='${Version}' bitnetd").strip()

    def is_active(self):
        return self.machine.command("systemctl is-active bitnetd").stdout.strip() == "active"

    def answers(self):
        inside = self.machine.run("bitnetd ask turn on the kitchen lights").strip()
        self.claim(f"over the socket, inside, version {self.version} answers: {inside}", inside == KITCHEN)
        self.machine.run(
            f"sed -i -e 's/^#host = .*/host = \"10.0.2.2\"/' -e 's/^#port = 1883/port = {self.port}/' "
            f"-e 's/^interval_s = .*/interval_s = 10/' {CONFIG} && bitnetd check-config && systemctl restart bitnetd"
        )
        self.until("it connects to the broker outside", self.client.is_online)
        prompt = self.client.ask_for("turn on the kitchen lights")
        self.until("an answer over MQTT", lambda: prompt in self.client.finals)
        event = json.loads(self.client.finals[prompt][0])
        self.claim(f"over MQTT, from outside, it answers the same after {event['timings']['total_ms']:.0f} ms",
                   event["event"] == "done" and event["text"] == KITCHEN)
        kernel = json.loads(self.client.retained["info"])["kernel"]
        wanted = {"cortex-a72": "neon", "cortex-a76": "neon-dotprod"}
        self.claim(f"it computes with the kernel {kernel}", kernel == wanted.get(self.processor, kernel))

    def writes_fields(self):
        wanted = {"CLIENT", "REQUEST_ID", "TOKENS_IN", "TOKENS_OUT", "TTFT_MS", "TOTAL_MS"}
        self.claim("the journal has the fields of an answer: " + ", ".join(sorted(wanted)), self.has_entry(wanted))
        wanted = {"MEMORY_BYTES", "COMPLETED", "REFUSED", "QUEUE", "UPTIME_S", "CPU_PERCENT"}
        self.until("a report in the journal", lambda: self.has_entry(wanted), 60)
        self.claim("the journal has the fields of a report: " + ", ".join(sorted(wanted)))

    def has_entry(self, fields):
        lines = self.machine.run("journalctl -q -u bitnetd -o json").splitlines()
        return any(fields <= set(json.loads(line)) for line in lines)

    def journal(self):
        return self.machine.command("journalctl -q -u bitnetd -b -o short-monotonic | tail -n 60").stdout

    def keeps_to_its_memory(self):
        self.machine.run(f"mkdir -p {UNIT} && printf '[Service]\\nMemoryMax=64M\\nMemorySwapMax=0\\nWatchdogSec=30\\n' > {UNIT}/test.conf "
                         "&& systemctl daemon-reload && systemctl restart bitnetd")
        self.until("it is back", lambda: self.client.is_online() and self.is_active())
        answered = self.client.answered()
        with Load(self.client):
            self.until("50 answers", lambda: self.client.answered() > answered + 50)
        budget = json.loads(self.client.retained["info"])["budget"]
        peak = int(self.machine.run(f"cat {GROUP}/memory.peak"))
        limit = int(self.machine.run(f"cat {GROUP}/memory.max"))
        events = dict(line.split() for line in self.machine.run(f"cat {GROUP}/memory.events").splitlines())
        self.claim(f"under MemoryMax=64M it gives itself {budget['memory_mb']} MiB, and 50 answers, 20 waiting, take "
                   f"{peak / 2**20:.1f} MiB at most, page cache included, with {events['oom_kill']} kills",
                   limit == 64 << 20 and budget["memory_limit_enforced"] and events["oom_kill"] == "0")

    def survives_kills(self):
        daemon = "$(systemctl show --value -p MainPID bitnetd)"
        with Load(self.client):
            for _ in range(3):
                self.replaced("killed with -9", f"kill -9 {daemon}", "Failed with result 'signal'")
            self.replaced("over its limit of memory", f"echo 2M > {GROUP}/memory.max", "Memory cgroup out of memory: Killed process")
            # The kernel's own choice, as when the memory of the whole machine runs out.
            self.replaced("the OOM killer of the whole machine asked for a victim", "echo f > /proc/sysrq-trigger",
                          "Out of memory: Killed process")
            self.replaced("standing still (SIGSTOP) under WatchdogSec=30", f"kill -STOP {daemon}", "Failed with result 'watchdog'")
        self.drained("after 3 kills with -9, 2 by the OOM killer and 1 by the watchdog")

    def replaced(self, what, how, witness):
        """Ends the process, and waits for another that answers. The journal has to name the cause in these words."""
        before, answered = self.machine.run("systemctl show --value -p MainPID bitnetd").strip(), self.client.answered()
        since = self.machine.run("date +%s").strip()
        # Five starts in five minutes are the limit of the unit.
        self.machine.run("systemctl reset-failed bitnetd")
        began = time.monotonic()
        self.machine.run(how)
        self.until(f"{what}: another process", lambda: self.machine.command(
            f"p=$(systemctl show --value -p MainPID bitnetd); [ $p != 0 ] && [ $p != {before} ] && systemctl -q is-active bitnetd"
        ).returncode == 0)
        seconds = time.monotonic() - began
        self.until(f"{what}: answers", lambda: self.client.answered() > answered + 3)
        words = self.machine.run(f"journalctl -q --since=@{since} -o cat").splitlines()
        named = [line for line in words if witness in line and ("bitnetd.service" in line or f"{before} (bitnetd)" in line)]
        self.claim(f"{what}: the journal has \"{witness}\", and another process is ready after {seconds:.1f} s", bool(named))

    def drained(self, when):
        """Every prompt that the broker acknowledged has its one answer."""
        self.until(f"{when}: every prompt is answered", lambda: not self.client.unanswered())
        tally = self.client.tally()
        figures = ", ".join(f"{count} {what}" for what, count in tally.items())
        self.claim(f"{when}: {figures}", not (tally["lost"] or tally["errors"] or tally["answered twice"]))

    def survives_power_cuts(self):
        self.machine.run("systemctl reset-failed bitnetd; systemctl restart bitnetd")  # a stop writes the history
        self.until("it is back", lambda: self.is_active() and self.client.is_online())
        before = self.report()["requests"]["completed"]
        boots = []
        with Load(self.client):
            for cut in range(1, self.cuts + 1):
                self.until("answers", self.client.is_online)
                time.sleep(self.chance.uniform(0, 10))
                waiting, answered = self.client.unanswered(), self.client.answered()
                unflushed, lost = self.machine.cut_power(self.chance)
                self.until("the broker notices", lambda: not self.client.is_online())
                boots.append(self.machine.start())
                self.until("answers after the cut", lambda: self.client.answered() > answered + 3)
                self.claim(f"power cut {cut}, with {waiting} prompts unanswered and {lost} of {unflushed} unflushed blocks lost: "
                           f"it takes commands again after {boots[-1]:.0f} s, and answers", waiting > 0)
        self.drained(f"after {self.cuts} power cuts")
        damage = self.machine.run("journalctl -q -k -o cat | grep -c 'EXT4-fs error' || true").strip()
        self.claim("the kernel reports no damage of the file system", damage == "0")
        self.machine.run("systemctl restart bitnetd")
        self.until("it is back", lambda: self.is_active() and self.client.is_online())
        report = self.report()
        self.claim(f"bitnetd report spans the cuts: of {before} answers before them and {self.client.answered()} in all it has "
                   f"{report['requests']['completed']}, and {report['restarts']} restarts",
                   report["requests"]["completed"] > before and report["restarts"] > 0)

    def report(self):
        return json.loads(self.machine.run("bitnetd report --json --hours 24"))["summary"]

    def upgrades(self):
        version, newer = self.newer_package()
        self.machine.copy(newer, "/root/newer.deb")
        edited = self.machine.run(f"sha256sum < {CONFIG}")
        self.client.unanswered_at_loss = None
        with Load(self.client, unanswered=100):
            self.until("100 prompts wait", lambda: self.client.unanswered() >= 90)
            self.machine.run(f"{APT} -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold install /root/newer.deb")
            self.until("it is back", lambda: self.is_active() and self.client.is_online())
        installed = self.machine.run("dpkg-query -W -f='${Version}' bitnetd").strip()
        waiting = self.client.unanswered_at_loss
        self.claim(f"apt upgrades it from {self.version} to {installed} and restarts it, with {waiting} prompts unanswered at the stop",
                   installed == version and waiting is not None and waiting > 8)
        self.drained("after the upgrade")
        self.claim("the upgrade keeps the edited configuration, though the new package has another",
                   self.machine.run(f"sha256sum < {CONFIG}") == edited)

    def newer_package(self):
        """The same package under the version after, with another configuration file, as a next release would be."""
        tree, path = os.path.join(self.folder, "tree"), os.path.join(self.folder, "newer.deb")
        version = self.version + "+next"
        subprocess.run(["dpkg-deb", "-R", self.package, tree], check=True)
        control = os.path.join(tree, "DEBIAN", "control")
        with open(control, encoding="utf-8") as file:
            text = file.read()
        with open(control, "w", encoding="utf-8") as file:
            file.write(re.sub(r"^Version: .*", f"Version: {version}", text, flags=re.M))
        with open(tree + CONFIG, "a", encoding="utf-8") as file:
            file.write("# A line of the next version.\n")
        subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", tree, path], check=True, stdout=subprocess.DEVNULL)
        return version, path

    def leaves_nothing(self):
        self.machine.run(f"rm -r {UNIT}; systemctl daemon-reload; {APT} remove bitnetd")
        gone = self.machine.command("command -v bitnetd; systemctl cat bitnetd; pidof bitnetd").stdout
        kept = self.machine.run(f"ls {CONFIG}; ls /var/lib/private/bitnetd")
        self.claim("apt remove ends the service and removes the program; configuration and state stay",
                   "/bin/bitnetd" not in gone and CONFIG in kept and len(kept.split()) > 1)
        self.machine.run(f"{APT} purge bitnetd")
        left = sorted(self.files() - self.files_before)
        self.claim("apt purge leaves no file" + "".join(f"\n    {path}" for path in left[:40]), not left)
        missing = sorted(self.files_before - self.files())
        self.claim("and none is missing" + "".join(f"\n    {path}" for path in missing[:40]), not missing)
        self.claim("and no account, group or failed unit", self.accounts() == self.accounts_before
                   and "bitnetd" not in self.machine.run("systemctl --all --plain --no-legend list-units '*bitnetd*'"))


APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y"


def interrupted(number, _frame):
    sys.exit(128 + number)


def tried(processor, image, package, logs, cuts, chance):
    # Sockets have paths of at most 107 bytes, so not below the repository.
    folder = tempfile.mkdtemp(prefix="bitnetd-machine-")
    trial = None
    try:
        trial = Trial(processor, image, package, folder, cuts, chance)
        trial.run()
        return True
    except (DoesNotHold, MachineFailed) as problem:
        print(f"{processor}: {problem}", file=sys.stderr)
        if trial.machine.emulator:
            print(trial.journal(), file=sys.stderr)
        return False
    finally:
        if trial:
            trial.stop()
            shutil.copy(os.path.join(folder, "console.log"), os.path.join(logs, f"console-{processor}.log"))
        shutil.rmtree(folder)


def main():
    image, package, logs, cuts, seed, *processors = sys.argv[1:]
    signal.signal(signal.SIGTERM, interrupted)
    results = [tried(processor, image, package, logs, int(cuts), random.Random(f"{seed} {processor}")) for processor in processors]
    sys.exit(0 if all(results) else 1)


main()
