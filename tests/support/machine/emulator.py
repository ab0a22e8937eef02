"""The emulated machine: boots, runs commands over SSH, and loses its power."""

import os
import shutil
import socket
import subprocess
import time

from volatile_disk import VolatileDisk

PATIENCE_S = 600  # for a start on a busy host

# psi: the daemon reports how often others wait for the processor. panic: a panic ends the emulator, instead of standing still.
# On a busy host Debian's own services need more than the 90 seconds that systemd gives them. Nobody logs in at the console.
KERNEL = ("root=/dev/vda rw console=ttyAMA0 net.ifnames=0 psi=1 cgroup_enable=memory panic=-1 quiet "
          "systemd.default_timeout_start_sec=900 systemd.mask=serial-getty@ttyAMA0.service")


class MachineFailed(Exception):
    """It did not start, or a command in it failed."""


class Machine:
    """One board: a processor, a disk of its own in `folder`, and at most one emulator at a time."""

    def __init__(self, processor, image, folder):
        self.processor, self.image, self.folder = processor, image, folder
        self.disk_path = os.path.join(folder, "disk.ext4")
        subprocess.run(["cp", "--sparse=always", os.path.join(image, "disk.ext4"), self.disk_path], check=True)
        self.key = shutil.copy(os.path.join(image, "key"), os.path.join(folder, "key"))
        os.chmod(self.key, 0o600)
        self.emulator = self.disk = None
        self.boots = 0

    def start(self):
        """Returns the seconds until it takes commands."""
        began = time.monotonic()
        self.boots += 1
        address = os.path.join(self.folder, f"disk-{self.boots}.sock")
        self.port = free_port()
        self.disk = VolatileDisk(self.disk_path, address)
        console = open(os.path.join(self.folder, "console.log"), "ab")
        # A drive's cache is in memory, and flushed when the machine asks for it: QEMU's own name for it is writeback.
        self.emulator = subprocess.Popen([
            "qemu-system-aarch64", "-M", "virt", "-cpu", self.processor, "-smp", "2", "-m", "1024",
            "-accel", "tcg,thread=multi", "-nographic", "-monitor", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", os.path.join(self.image, "vmlinuz"), "-initrd", os.path.join(self.image, "initrd.img"),
            "-append", KERNEL,
            "-drive", f"if=none,id=disk,format=raw,cache=writeback,file.driver=nbd,"
                      f"file.server.type=unix,file.server.path={address}",
            "-device", "virtio-blk-pci,drive=disk",
            "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:22", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci",
        ], stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        console.close()
        while self.command("true", timeout=60).returncode:
            if self.emulator.poll() is not None or time.monotonic() - began > PATIENCE_S:
                raise MachineFailed(f"{self.processor} did not start; its console:\n{self.console()[-3000:]}")
            time.sleep(1)
        return time.monotonic() - began

    def command(self, text, stdin=None, timeout=PATIENCE_S):
        """Runs a shell command as root, whatever it returns."""
        # One connection for all commands of a start: under emulation, a new one takes a second of computing.
        call = [
            "ssh", "-q", "-i", self.key, "-p", str(self.port), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=15",
            "-o", "ServerAliveCountMax=8", "-o", "ControlMaster=auto", "-o", "ControlPersist=900",
            "-o", f"ControlPath={self.folder}/ssh-{self.boots}", "root@127.0.0.1", text,
        ]
        # Files and not pipes: the connection's own process keeps them open after the command.
        with open(os.path.join(self.folder, "output"), "w+b") as output:
            source = open(stdin, "rb") if stdin else subprocess.DEVNULL
            try:
                code = subprocess.run(call, stdin=source, stdout=output, stderr=output, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                code = 255
            finally:
                if stdin:
                    source.close()
            output.seek(0)
            return subprocess.CompletedProcess(call, code, output.read().decode(errors="replace"))

    def run(self, text, stdin=None):
        """Runs a shell command as root and returns what it printed; one that fails ends the test."""
        done = self.command(text, stdin)
        if done.returncode:
            raise MachineFailed(f"{text}: exit {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def copy(self, path, target):
        self.run(f"cat > {target}", stdin=path)

    def cut_power(self, chance):
        """Ends the emulator amid its writes. Returns how many blocks were not flushed, and how many of those are lost."""
        # Most of the time nothing is waiting for a flush, and a cut would find a disk at rest.
        self.disk.fail_after(chance.randint(1, 8), patience_s=10)
        self.emulator.kill()
        self.emulator.wait()
        self.emulator = None
        return self.disk.cut(chance)

    def stop(self):
        """Ends it, whatever state it is in."""
        if self.emulator:
            self.emulator.kill()
            self.emulator.wait()
            self.disk.close()
            self.emulator = None

    def console(self):
        with open(os.path.join(self.folder, "console.log"), "rb") as file:
            return file.read().decode(errors="replace")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
