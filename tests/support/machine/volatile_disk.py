"""A disk with a write cache that a power cut empties: what the emulated machine wrote and did not flush is lost.

A file as the disk would not do: whatever an emulator wrote to one before it was killed is still in the page cache of the host.
This serves the file to the emulator over NBD instead, keeps in memory what is written, and moves it to the file at each flush.
After a cut, each block of 4 KiB that was not flushed is either on the disk or not, by chance, as real disks write in any order.

It knows as much of the NBD protocol as QEMU uses, and nothing of machines.
"""

import os
import random
import socket
import struct
import threading

BLOCK = 4096

OPTION, REPLY, REQUEST, ANSWER = 0x49484156454F5054, 0x3E889045565A9, 0x25609513, 0x67446698
ABORT, GO = 2, 7
ACKNOWLEDGED, INFORMATION, UNSUPPORTED = 1, 3, 0x80000001
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
FORCE_UNIT_ACCESS = 1
HAS_FLAGS, CAN_FLUSH, CAN_FORCE = 1, 4, 8


class VolatileDisk:
    """Serves the file at `path` on a Unix socket at `address`, to one client, until `cut` or `close`."""

    def __init__(self, path, address):
        self.file = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.unflushed = {}  # number of a block -> its bytes
        self.lock = threading.Lock()
        self.is_cut = False
        self.writes_left = None  # until the power fails
        self.failed = threading.Event()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(address)
        self.listener.listen(1)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        with client, client.makefile("rb") as source:
            try:
                self.negotiate(client, source)
                while self.answer(client, source):
                    pass
            except (OSError, EOFError):
                pass  # the emulator was killed

    def negotiate(self, client, source):
        client.sendall(b"NBDMAGIC" + struct.pack(">QH", OPTION, 3))
        take(source, 4)
        while True:
            _, option, length = struct.unpack(">QII", take(source, 16))
            take(source, length)
            if option == GO:
                export = struct.pack(">HQH", 0, self.size, HAS_FLAGS | CAN_FLUSH | CAN_FORCE)
                client.sendall(reply(option, INFORMATION, export) + reply(option, ACKNOWLEDGED, b""))
                return
            client.sendall(reply(option, ACKNOWLEDGED if option == ABORT else UNSUPPORTED, b""))
            if option == ABORT:
                raise EOFError

    def answer(self, client, source):
        _, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", take(source, 28))
        data = b""
        if kind == DISCONNECT:
            return False
        payload = take(source, length) if kind == WRITE else b""
        with self.lock:
            if self.is_cut:
                return False
            if kind == READ:
                data = self.read(offset, length)
            elif kind == WRITE:
                self.write(offset, payload)
                if self.power_fails():
                    return False
            if kind == FLUSH or flags & FORCE_UNIT_ACCESS:
                self.flush()
        client.sendall(struct.pack(">IIQ", ANSWER, 0, cookie) + data)
        return True

    def power_fails(self):
        if self.writes_left is None:
            return False
        self.writes_left -= 1
        self.is_cut = self.writes_left <= 0
        if self.is_cut:
            self.failed.set()
        return self.is_cut

    def fail_after(self, writes, patience_s):
        """Lets the power fail amid the work of the disk: nothing after so many more writes reaches it, a flush neither."""
        with self.lock:
            self.writes_left = writes
        self.failed.wait(patience_s)

    def read(self, offset, length):
        data = bytearray(os.pread(self.file, length, offset))
        for block in range(offset // BLOCK, (offset + length - 1) // BLOCK + 1):
            if (cached := self.unflushed.get(block)) is not None:
                begin, end = max(block * BLOCK, offset), min((block + 1) * BLOCK, offset + length)
                data[begin - offset : end - offset] = cached[begin - block * BLOCK : end - block * BLOCK]
        return data

    def write(self, offset, data):
        at = 0
        while at < len(data):
            block, begin = divmod(offset + at, BLOCK)
            length = min(BLOCK - begin, len(data) - at)
            if length == BLOCK:
                self.unflushed[block] = data[at : at + BLOCK]
            else:
                whole = self.read(block * BLOCK, BLOCK)
                whole[begin : begin + length] = data[at : at + length]
                self.unflushed[block] = bytes(whole)
            at += length

    def flush(self):
        for block, data in self.unflushed.items():
            os.pwrite(self.file, data, block * BLOCK)
        self.unflushed.clear()

    def cut(self, chance: random.Random):
        """The power fails. Returns how many blocks were not flushed, and how many of those are lost."""
        with self.lock:
            self.is_cut = True
            unflushed = len(self.unflushed)
            self.unflushed = {block: data for block, data in self.unflushed.items() if chance.random() < 0.5}
            lost = unflushed - len(self.unflushed)
            self.flush()
        self.close()
        return unflushed, lost

    def close(self):
        """The emulator has ended."""
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        self.thread.join(30)
        if self.file >= 0:
            with self.lock:
                if not self.is_cut:
                    self.flush()
                os.close(self.file)
                self.file = -1


def take(source, length):
    data = source.read(length)
    if len(data) < length:
        raise EOFError
    return data


def reply(option, kind, data):
    return struct.pack(">QIII", REPLY, option, kind, len(data)) + data
