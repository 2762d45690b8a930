"""Speaks the peer protocol to a node by grpcio: every call, right and wrong.

usage: grpc_peer.py ADDRESS ADMIN_URL DATABASE PROTO_DIR TOKEN

DATABASE is the ring's SQLite file. Prints a JSON summary; exits 1 if a check failed.
"""

import json
import os
import queue
import sqlite3
import sys
import tempfile
import time
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_tools import protoc

import checks

PROTO = "ringspan/peer/v1/peer.proto"
CODE = grpc.StatusCode
# Field 999, of a release to come.
UNKNOWN = b"\xba\x3e\x05later"
LIMIT = 10
# Of a ring of the tests, in milliseconds.
LEASE_TTL = 1500


def generate(proto_dir):
    out = tempfile.mkdtemp(prefix="grpc-peer-")
    args = ["protoc", f"-I{proto_dir}", f"--python_out={out}", f"--grpc_python_out={out}", PROTO]
    if protoc.main(args) != 0:
        sys.exit("the protocol does not compile")
    sys.path.insert(0, out)
    from ringspan.peer.v1 import peer_pb2, peer_pb2_grpc

    return peer_pb2, peer_pb2_grpc


class Node:
    """A node, and what a peer of it knows."""

    def __init__(self, address, admin, database, proto_dir, token):
        self.pb, self.stubs = generate(proto_dir)
        with urllib.request.urlopen(f"{admin}/api/v1/ring", timeout=LIMIT) as answer:
            self.incarnation = json.load(answer)["me"]
        rows = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        self.cluster = rows.execute("SELECT cluster_id FROM ring_meta").fetchone()[0]
        self.ttl = LEASE_TTL
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_send_message_length", -1)]
        )
        self.stub = self.stubs.PeerStub(self.channel)
        self.shown = [("authorization", f"Bearer {token}")]

    def call(self, name, request, metadata=None, timeout=LIMIT):
        metadata = self.shown if metadata is None else metadata
        return getattr(self.stub, name)(request, metadata=metadata, timeout=timeout)

    def hello(self, **changes):
        fields = dict(
            protocol_min=1, protocol_max=1, cluster_id=self.cluster, incarnation=10**9,
            node_id="python", target_incarnation=self.incarnation, build="0", initial_credit=65536,
        )
        return self.pb.Frame(hello=self.pb.Hello(**{**fields, **changes}))

    def attach(self, **changes):
        fields = dict(
            session=os.urandom(16), principal=bytes(16), route="/echo", hop=1, path_and_query="/echo",
            edge_node="python", client_kind="websocket",
        )
        return self.pb.Attach(**{**fields, **changes})

    def link(self, *frames, timeout=LIMIT, metadata=None):
        return Link(self, frames, timeout, self.shown if metadata is None else metadata)


class Link:
    """One stream: frames go in by `say`, and come out by `hear`."""

    def __init__(self, node, frames, timeout, metadata):
        self.out = queue.Queue()
        for frame in frames:
            self.say(frame)
        self.stream = node.stub.Link(iter(self.out.get, None), timeout=timeout, metadata=metadata)

    def say(self, frame):
        self.out.put(frame)

    def hear(self, kind):
        """The next frame of a kind, past credits."""
        for frame in self.stream:
            what = frame.WhichOneof("body")
            if what == kind:
                return frame
            assert what == "credit", f"{kind} was due, not {frame}"
        raise AssertionError(f"the stream ended before {kind}")

    def end(self):
        """The status at which it ends."""
        try:
            for _ in self.stream:
                pass
            return CODE.OK
        except grpc.RpcError as error:
            return error.code()
        finally:
            self.out.put(None)


def fails(code, act):
    try:
        answer = act()
    except grpc.RpcError as error:
        assert error.code() == code, f"{error.code()}: {error.details()}"
        return error.details()
    raise AssertionError(f"{code} was due, not {answer}")


def unary(node):
    pb, me = node.pb, node.incarnation
    return {
        "Describe": pb.DescribeRequest(target_incarnation=me),
        "Prepare": pb.PrepareRequest(target_incarnation=me),
        "Activate": pb.ActivateRequest(target_incarnation=me, session=bytes(16)),
        "Testify": pb.TestifyRequest(
            target_incarnation=me, cluster_id=node.cluster, incarnation=10**9,
            lease_ttl_millis=node.ttl,
        ),
    }


def health_answers_without_a_token(node):
    health = health_pb2_grpc.HealthStub(node.channel)
    asked = health_pb2.HealthCheckRequest(service="ringspan.peer.v1.Peer")
    assert health.Check(asked, timeout=LIMIT).status == health_pb2.HealthCheckResponse.SERVING


def reflection_names_the_service(node):
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    # As grpcio's own client asks, and by the name of the version after it.
    plain = reflection_pb2_grpc.ServerReflectionStub(node.channel).ServerReflectionInfo
    newer = node.channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    for call in (plain, newer):
        answer = next(call(iter([request]), timeout=LIMIT))
        names = {service.name for service in answer.list_services_response.service}
        assert "ringspan.peer.v1.Peer" in names, names


def every_call_answers(node):
    for name, request in unary(node).items():
        node.call(name, request)


def no_call_goes_without_the_token(node):
    wrong = [
        [],
        [("authorization", "Bearer wrong")],
        [("authorization", node.shown[0][1] + "x")],
        [("authorization", node.shown[0][1][:-1])],
        [("authorization", node.shown[0][1].removeprefix("Bearer "))],
    ]
    for metadata in wrong:
        for name, request in unary(node).items():
            fails(CODE.UNAUTHENTICATED, lambda: node.call(name, request, metadata))
        assert node.link(node.hello(), metadata=metadata).end() == CODE.UNAUTHENTICATED


def a_call_for_another_incarnation_is_refused(node):
    for name, request in unary(node).items():
        request.target_incarnation += 1
        fails(CODE.NOT_FOUND, lambda: node.call(name, request))
    other = node.hello(target_incarnation=node.incarnation + 1)
    assert node.link(other).end() == CODE.NOT_FOUND


def unknown_fields_are_left_alone(node):
    for name, request in unary(node).items():
        node.call(name, type(request).FromString(request.SerializeToString() + UNKNOWN))
    hello = node.hello()
    hello.hello.MergeFromString(UNKNOWN)
    hello.MergeFromString(UNKNOWN)
    node.link(hello).hear("welcome")


def an_unknown_call_is_unimplemented(node):
    call = node.channel.unary_unary("/ringspan.peer.v1.Peer/Later")
    fails(CODE.UNIMPLEMENTED, lambda: call(b"", metadata=node.shown, timeout=LIMIT))


def bytes_that_are_no_message_end_the_call_only(node):
    call = node.channel.unary_unary("/ringspan.peer.v1.Peer/Describe")
    fails(CODE.INTERNAL, lambda: call(b"\xff\xff\xff", metadata=node.shown, timeout=LIMIT))
    every_call_answers(node)


def a_message_beyond_the_limit_is_refused(node):
    huge = node.pb.ActivateRequest(target_incarnation=node.incarnation, session=bytes(257 << 20))
    fails(CODE.OUT_OF_RANGE, lambda: node.call("Activate", huge, timeout=60))
    every_call_answers(node)


def a_deadline_holds(node):
    silent = node.link(node.hello(), timeout=1)
    silent.hear("welcome")
    assert silent.end() == CODE.DEADLINE_EXCEEDED
    every_call_answers(node)


def malformed_ids_are_refused_or_left_out(node):
    for size in (0, 15, 17):
        short = node.pb.ActivateRequest(target_incarnation=node.incarnation, session=bytes(size))
        fails(CODE.INVALID_ARGUMENT, lambda: node.call("Activate", short))
    sessions = [b"", bytes(15), bytes(16)]
    described = node.pb.DescribeRequest(target_incarnation=node.incarnation, sessions=sessions)
    assert len(node.call("Describe", described).sessions) == 0


def conversations_are_kept_or_refused_one_by_one(node):
    pb = node.pb

    def conversation(**changes):
        past = [pb.PastResponse(id="r1", items=b'{"role":"user"}')]
        fields = dict(session=os.urandom(16), principal=bytes(16), route="/v1/responses", past=past)
        return pb.Conversation(**{**fields, **changes})

    asked = [
        conversation(),
        conversation(route="/nowhere"),
        conversation(session=b"short"),
        conversation(append=True),
        conversation(shunned="an endpoint of another release"),
        conversation(shunned="x" * 1000),
    ]
    request = pb.PrepareRequest(target_incarnation=node.incarnation, conversations=asked)
    assert list(node.call("Prepare", request).kept) == [True, False, False, False, True, True]


def no_stranger_is_promised_anything(node):
    request = unary(node)["Testify"]
    request.outage = True
    answer = node.call("Testify", request)
    assert not answer.knows_you and not answer.promised, answer
    request.cluster_id = "another"
    fails(CODE.PERMISSION_DENIED, lambda: node.call("Testify", request))
    request = unary(node)["Testify"]
    request.lease_ttl_millis += 1
    fails(CODE.FAILED_PRECONDITION, lambda: node.call("Testify", request))


def who_has_no_business_here_is_told_so_before_any_work(node):
    for hello, code in [
        (node.pb.Frame(goodbye=node.pb.Goodbye()), CODE.INVALID_ARGUMENT),
        (node.hello(cluster_id="another"), CODE.PERMISSION_DENIED),
        (node.hello(protocol_min=2, protocol_max=9), CODE.FAILED_PRECONDITION),
        (node.hello(protocol_min=0, protocol_max=0), CODE.FAILED_PRECONDITION),
    ]:
        assert node.link(hello).end() == code, code
    # The node's own patience: the client would wait longer than that, under the same code.
    began = time.monotonic()
    assert node.link(timeout=60).end() == CODE.DEADLINE_EXCEEDED
    assert time.monotonic() - began < LIMIT


def the_highest_protocol_that_both_know_is_spoken(node):
    welcome = node.link(node.hello(protocol_max=7)).hear("welcome").welcome
    assert welcome.protocol == 1 and welcome.incarnation == node.incarnation, welcome


def a_session_is_reached_over_a_stream(node):
    pb = node.pb
    attach = node.attach()
    link = node.link(node.hello(), pb.Frame(channel=1, attach=attach))
    link.hear("welcome")
    attached = link.hear("attached").attached
    assert attached.epoch > 0 and attached.resume == pb.RESUME_NEW, attached
    text = b"\x81\x05hello"
    link.say(pb.Frame(channel=1, messages=pb.Messages(frames=text[:3], more=True)))
    link.say(pb.Frame(channel=1, messages=pb.Messages(frames=text[3:])))
    assert link.hear("messages").messages.frames == text
    request = pb.DescribeRequest(target_incarnation=node.incarnation, sessions=[attach.session])
    report = node.call("Describe", request).sessions[0]
    assert report.clients[0].edge_node == "python" and report.head_seq == 1, report
    # The next client goes on where this one was.
    again = node.attach(session=attach.session, last_seq=0, last_epoch=attached.epoch)
    link.say(pb.Frame(channel=2, attach=again))
    assert link.hear("attached").attached.resume == pb.RESUME_OK
    assert link.hear("messages").messages.first_seq == 1


def wrong_attaches_fail_alone(node):
    pb = node.pb
    link = node.link(node.hello())
    link.hear("welcome")
    for at, attach in enumerate(
        [node.attach(route="/nowhere"), node.attach(session=b"short"), node.attach(hop=3)], 1
    ):
        link.say(pb.Frame(channel=at, attach=attach))
        frame = link.hear("fault")
        assert frame.channel == at and frame.fault.code, frame
    owned = node.attach()
    link.say(pb.Frame(channel=8, attach=owned))
    link.hear("attached")
    # Another principal's session is nobody else's, also for a peer.
    link.say(pb.Frame(channel=9, attach=node.attach(session=owned.session, principal=bytes([1]) * 16)))
    assert link.hear("fault").fault.code


def who_breaks_the_protocol_loses_the_stream(node):
    pb = node.pb
    for broken in [
        pb.Frame(channel=1, messages=pb.Messages(frames=b"\x89\x00")),
        pb.Frame(channel=1, messages=pb.Messages(frames=b"\x81\x7e\x00\x01x")),
        pb.Frame(channel=1, hello=pb.Hello()),
    ]:
        link = node.link(node.hello(), pb.Frame(channel=1, attach=node.attach()))
        link.hear("welcome")
        link.hear("attached")
        link.say(broken)
        assert link.end() != CODE.DEADLINE_EXCEEDED, broken
    every_call_answers(node)


CHECKS = [
    health_answers_without_a_token,
    reflection_names_the_service,
    every_call_answers,
    no_call_goes_without_the_token,
    a_call_for_another_incarnation_is_refused,
    unknown_fields_are_left_alone,
    an_unknown_call_is_unimplemented,
    bytes_that_are_no_message_end_the_call_only,
    a_message_beyond_the_limit_is_refused,
    a_deadline_holds,
    malformed_ids_are_refused_or_left_out,
    conversations_are_kept_or_refused_one_by_one,
    no_stranger_is_promised_anything,
    who_has_no_business_here_is_told_so_before_any_work,
    the_highest_protocol_that_both_know_is_spoken,
    a_session_is_reached_over_a_stream,
    wrong_attaches_fail_alone,
    who_breaks_the_protocol_loses_the_stream,
]


def main():
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    node = Node(*sys.argv[1:])
    held = checks.run(f"grpcio {grpc.__version__}", CHECKS, node)
    # Streams that are still open must not keep the process.
    os._exit(0 if held else 1)


if __name__ == "__main__":
    main()
