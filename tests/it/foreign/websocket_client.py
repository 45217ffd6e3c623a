"""Talks to websocket_server.py: `websocket_client.py DOOR HOST`. Prints `good` when all is as it should be."""

import socket
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

door, host = sys.argv[1:]
address, port = door.rsplit(":", 1)


def open_one(**more):
    connection = socket.create_connection((address, int(port)), 20)
    return connect(f"ws://{host}/chat", sock=connection, subprotocols=["chat"], max_size=None, **more)


for more in [{}, {"compression": None}]:
    with open_one(**more) as peer:
        assert peer.subprotocol == "chat", peer.subprotocol
        compressed = "permessage-deflate" in peer.response.headers.get("Sec-WebSocket-Extensions", "")
        assert compressed == (not more), peer.response.headers
        for message in ["", "ä", "text " * 100_000, b"", bytes(range(256)) * 8_000]:
            peer.send(message)
            assert peer.recv(20) == message
        # In pieces.
        peer.send(piece for piece in ["one ", "message ", "in four ", "frames"])
        assert peer.recv(20) == "one message in four frames"
        assert peer.ping().wait(20), "no pong"

        def pinging():
            """Each piece but the first waits for a pong in the middle of the message."""
            yield "one"
            for piece in [" two", " three"]:
                assert peer.ping().wait(20), "no pong between fragments"
                yield piece

        peer.send(pinging())
        assert peer.recv(20) == "one two three"
        peer.send("bye")
        try:
            peer.recv(20)
            raise AssertionError("it should have closed")
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4321, "as you wish"), closed

print("good")
