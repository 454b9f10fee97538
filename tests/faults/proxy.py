"""A TCP proxy that spoils what a real server answers: late, in drops, or cut off in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial


@dataclass
class Proxy:
    """What is done to the bytes that the server sends; may be changed at any time."""

    port: int = 0
    delay: float = 0.0
    """Seconds before each piece."""
    piece: int = 65_536
    """Bytes of a piece."""
    reset_after: int | None = None
    """Bytes of an answer after which the connection is reset."""
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@contextlib.contextmanager
def proxied(port: int, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    """Listen on a free port and pass everything on to ``port``; with ``tls``, clients have to speak it."""
    proxy, loop = Proxy(), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(partial(_serve, proxy, port), "127.0.0.1", 0, ssl=tls))
    proxy.port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _serve(proxy: Proxy, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    proxy.connections += 1
    task = asyncio.current_task()
    assert task is not None
    proxy.tasks.add(task)
    try:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(_pass_on(reader, to_server), _spoil(proxy, from_server, writer))
        finally:
            to_server.transport.abort()
    except (OSError, asyncio.CancelledError):
        pass  # either side is gone, as the test wants it, or the test is over
    finally:
        writer.transport.abort()
        proxy.tasks.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    raise ConnectionError("the client is gone")


async def _spoil(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        cut = proxy.reset_after
        for first in range(0, len(data), proxy.piece):
            if proxy.delay:
                await asyncio.sleep(proxy.delay)
            piece = data[first : first + proxy.piece]
            writer.write(piece if cut is None else piece[:cut])
            await writer.drain()
            if cut is not None:
                raise ConnectionError("reset in the middle of an answer")
    raise ConnectionError("the server is gone")


async def _close(server: asyncio.Server) -> None:
    """End all that goes on in this loop: a connection that was accepted just now has a task of asyncio's own."""
    await asyncio.sleep(0.05)  # asyncio would lose the socket of a connection that it is accepting
    server.close()
    while pending := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending)
    await asyncio.sleep(0.05)  # transports that were aborted are closed in the loop's next turns
