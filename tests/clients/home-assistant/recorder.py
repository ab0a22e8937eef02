"""A TCP proxy that notes what a client sends and what it is answered."""

import asyncio
import json


class Recorder:
    """Listens on `port` of the loopback interface and passes everything on to `to`."""

    def __init__(self, port, to):
        self.port, self.to = port, to
        self.lines = []
        self.connections = 0

    async def start(self):
        self.server = await asyncio.start_server(self.connected, "127.0.0.1", self.port)

    async def connected(self, reader, writer):
        self.connections += 1
        number = self.connections
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self.passes(number, "client", reader, to_writer), self.passes(number, "server", to_reader, writer)
        )

    async def passes(self, number, sender, reader, writer):
        try:
            while data := await reader.read(65536):
                text = data.decode("utf-8", "surrogateescape")
                self.lines.append(json.dumps({"connection": number, "from": sender, "text": text}))
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
