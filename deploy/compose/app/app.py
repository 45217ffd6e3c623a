"""A small service. It answers every request with its name and the replica that it is, and inside that with what the next
service said, which it calls by its name over plain HTTP. It has never heard of Weft."""

import argparse
import json
import os
import signal
import socket
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATIENCE = 10  # seconds, for the next service


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--calls", metavar="URL", help="the next service; the id is added")
    parser.add_argument("--host", default="", help="the address to listen at; every one where this is not given")
    parser.add_argument("--port", type=int, default=8080)
    return parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # A head and a body are two writes.
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, {"service": self.server.name})
        taken = self.rfile.read(int(self.headers.get("content-length", 0)))
        ident = self.path.rstrip("/").rsplit("/", 1)[-1]
        page = {"service": self.server.name, "replica": socket.gethostname(), "id": ident, "took": len(taken)}
        # Who called, if somebody beside us knows.
        caller = self.headers.get("x-forwarded-client-cert")
        if caller:
            page["called_by"] = caller.rsplit("URI=", 1)[-1]
        status = 200
        if self.server.calls:
            status, page["next"] = call(f"{self.server.calls}/{ident}", taken if self.command == "POST" else None)
        self.answer(200 if status < 400 else 502, page)

    do_POST = do_GET

    def answer(self, status, page):
        body = (json.dumps(page) + "\n").encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def call(url, body):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, {"status": refused.code, "said": refused.read(2000).decode(errors="replace")}
    except OSError as error:
        return 502, {"error": str(error)}


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    # Threads that hold an idle connection do not keep the process.
    daemon_threads = True


def main():
    wanted = arguments()
    server = Server((wanted.host, wanted.port), Handler)
    server.name, server.calls = wanted.name, wanted.calls
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    print(f"{wanted.name} on port {wanted.port}, process {os.getpid()}", flush=True)
    stop.wait()
    server.shutdown()


if __name__ == "__main__":
    main()
