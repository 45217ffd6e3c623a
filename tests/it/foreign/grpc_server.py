"""A gRPC server of bytes: one method of each kind, one that fails with trailers, and one that is never in time."""

import sys
import time
from concurrent import futures

import grpc


def unary(request, context):
    context.send_initial_metadata((("x-early", "yes"),))
    context.set_trailing_metadata((("x-late", "unary"), ("x-late-bin", b"\x00\xff")))
    caller = dict(context.invocation_metadata())
    return b"%s for %s" % (request, caller["x-caller"].encode())


def server_stream(request, context):
    for number in range(int(request)):
        yield b"%d" % number
    context.set_trailing_metadata((("x-late", "server"),))


def client_stream(requests, context):
    total = sum(len(request) for request in requests)
    context.set_trailing_metadata((("x-late", "client"),))
    return b"%d" % total


def both(requests, context):
    for request in requests:
        yield request.upper()
    context.set_trailing_metadata((("x-late", "both"),))


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: ä %")


def remaining(request, context):
    left = context.time_remaining()
    return b"none" if left is None else b"%.3f" % left


def late(request, context):
    while context.is_active():
        time.sleep(0.01)
    return b""


handlers = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Both": grpc.stream_stream_rpc_method_handler(both),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Remaining": grpc.unary_unary_rpc_method_handler(remaining),
    "Late": grpc.unary_unary_rpc_method_handler(late),
}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.App", handlers),))
assert server.add_insecure_port(sys.argv[1]) != 0
server.start()
server.wait_for_termination()
