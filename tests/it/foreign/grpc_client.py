"""Calls every method of grpc_server.py: `grpc_client.py DOOR NAME [ROOTS]`, with TLS where there are roots to trust.
Prints `good` when all is as it should be."""

import sys
import time

import grpc

door, name, *roots = sys.argv[1:]
options = (("grpc.default_authority", name), ("grpc.enable_http_proxy", 0))
if roots:
    with open(roots[0], "rb") as file:
        trust = grpc.ssl_channel_credentials(file.read())
    options += (("grpc.ssl_target_name_override", name),)
    channel = grpc.secure_channel(door, trust, options)
else:
    channel = grpc.insecure_channel(door, options)
LIMIT = 20


def late(call):
    return dict(call.trailing_metadata())["x-late"]


for _ in range(20):
    unary = channel.unary_unary("/test.App/Unary")
    answer, call = unary.with_call(b"tea", timeout=LIMIT, metadata=(("x-caller", "me"),))
    assert answer == b"tea for me", answer
    assert dict(call.initial_metadata())["x-early"] == "yes"
    assert late(call) == "unary"
    assert dict(call.trailing_metadata())["x-late-bin"] == b"\x00\xff"

stream = channel.unary_stream("/test.App/ServerStream")(b"1000", timeout=LIMIT)
assert [int(answer) for answer in stream] == list(range(1000))
assert stream.code() == grpc.StatusCode.OK and late(stream) == "server"

pieces = [b"x" * 100_000 for _ in range(30)]
answer, call = channel.stream_unary("/test.App/ClientStream").with_call(iter(pieces), timeout=LIMIT)
assert answer == b"3000000" and late(call) == "client", answer


def turns():
    """Each is sent when the answer to the last one is there."""
    for word in ["one", "two", "three"]:
        asked.append(word)
        yield word.encode()
        while len(answered) < len(asked):
            time.sleep(0.001)


asked, answered = [], []
stream = channel.stream_stream("/test.App/Both")(turns(), timeout=LIMIT)
for answer in stream:
    answered.append(answer)
assert answered == [b"ONE", b"TWO", b"THREE"], answered
assert late(stream) == "both"

try:
    channel.unary_unary("/test.App/Fail")(b"", timeout=LIMIT)
    raise AssertionError("it should have failed")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "not today: ä %", error.details()
    assert dict(error.trailing_metadata())["x-why"] == "because"

# The app is told how long it has; gRPC's library rounds up a little.
left = float(channel.unary_unary("/test.App/Remaining")(b"", timeout=5))
assert 3 < left < 5.1, left

begun = time.monotonic()
try:
    channel.unary_unary("/test.App/Late")(b"", timeout=0.5)
    raise AssertionError("it should have been too late")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert time.monotonic() - begun < 5

try:
    channel.unary_unary("/test.App/Unknown")(b"", timeout=LIMIT)
    raise AssertionError("there is no such method")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error

print("good")
