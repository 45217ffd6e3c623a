"""Customers: so many requests a second at the shop's door, from outside the mesh. Says every ten seconds how it went."""

import argparse
import collections
import http.client
import itertools
import signal
import sys
import threading
import time
import urllib.parse


def customer(url, rate, number, customers, counts):
    at = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname, at.port or 80, timeout=20)
    begun = time.monotonic()
    for turn in itertools.count():
        # An open loop: a slow answer does not make the next request later than it was meant to be.
        due = begun + (turn * customers + number) / rate
        time.sleep(max(0, due - time.monotonic()))
        ident = f"{number}-{turn}"
        method, body = ("POST", "one, please") if turn % 4 == 0 else ("GET", None)
        try:
            connection.request(method, f"{at.path.rstrip('/')}/{ident}", body=body)
            answer = connection.getresponse()
            answer.read()
            counts[answer.status] += 1
        except (OSError, http.client.HTTPException) as error:
            counts[type(error).__name__] += 1
            connection.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--rate", type=float, default=20, help="requests a second")
    parser.add_argument("--customers", type=int, default=4)
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    counts = collections.Counter()
    for number in range(wanted.customers):
        arguments = (wanted.url, wanted.rate, number, wanted.customers, counts)
        threading.Thread(target=customer, args=arguments, daemon=True).start()
    while True:
        time.sleep(10)
        print(", ".join(f"{what}: {count}" for what, count in sorted(counts.items(), key=str)), flush=True)


if __name__ == "__main__":
    main()
