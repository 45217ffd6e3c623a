"""A WebSocket server that sends everything back, and closes in its own words when asked to."""

import sys

from websockets.sync.server import serve


def echo(socket):
    for message in socket:
        if message == "bye":
            socket.close(4321, "as you wish")
            return
        socket.send(message)


host, port = sys.argv[1].rsplit(":", 1)
with serve(echo, host, int(port), subprotocols=["chat"], max_size=None) as server:
    server.serve_forever()
