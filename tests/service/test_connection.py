"""What a client takes before its request is whole has limits: bytes, time, connections."""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import psutil
import pytest
from running import HERE, PATH, Running, fake, running

from sdopt.errors import SdoptError
from sdopt.service import connection

LINE = b"GET /healthz/live HTTP/1.1\r\nhost: localhost\r\n"
POST = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
MIB = 2**20


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    with running(fake({"ms": 1, "size_px": 512, "noise": True}, max_batch=2)) as one:
        yield one.ready()


@contextmanager
def connected(one: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", one.port), 20) as sock:
        yield sock


def everything(sock: socket.socket) -> bytes:
    """Until the service hangs up."""
    content = b""
    with suppress(ConnectionError):
        while part := sock.recv(65536):
            content += part
    return content


def sent(sock: socket.socket, parts: Iterable[bytes]) -> int:
    """Bytes until the service hung up."""
    count = 0
    with suppress(OSError):
        for part in parts:
            sock.sendall(part)
            count += len(part)
    return count


def is_well(one: Running) -> None:
    assert one.ask("GET", "/healthz/live")[0] == 200


# Bytes


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        pytest.param(LINE, b"x: " + b"a" * 100_000 + b"\r\n", id="headers"),
        pytest.param(LINE + b"x: ", b"a" * 100_000, id="one header"),
        pytest.param(LINE, b"a" * 100_000, id="the name of a header"),
        pytest.param(b"GET /", b"a" * 100_000, id="a URL"),
        pytest.param(b"", b"\r\n" * 50_000, id="empty lines"),
        pytest.param(LINE, b"".join(b"x%d:\r\n" % n for n in range(2000)), id="many headers"),
    ],
)
def test_a_head_has_a_limit(quick: Running, begin: bytes, part: bytes) -> None:
    with connected(quick) as sock:
        sent(sock, [begin, part])
        answer = everything(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "head_too_large"
    is_well(quick)


@pytest.mark.parametrize("before", [b"", b"2\r\n{}\r\n"], ids=["at once", "behind a body"])
def test_what_surrounds_a_body_has_a_limit(quick: Running, before: bytes) -> None:
    """Trailers are kept as headers are; the size of a chunk may have words."""
    for part in (b"0\r\nx: " + b"a" * 100_000, b"2;x=" + b"a" * 100_000):
        with connected(quick) as sock:
            sent(sock, [POST + b"transfer-encoding: chunked\r\n\r\n" + before, part])
            assert not everything(sock).startswith(b"HTTP/1.1 200")
        is_well(quick)


def test_a_head_below_the_limit_is_taken_in_any_pieces(quick: Running) -> None:
    body = b'{"prompt": "a"}' + b" " * 100_000
    head = POST + b"x: " + b"a" * 60_000 + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
    whole = head + body
    for size in (1000, 4096, 65_536, len(whole)):
        with connected(quick) as sock:
            for begin in range(0, len(whole), size):
                sock.sendall(whole[begin : begin + size])
            assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_body_in_chunks_of_one_byte_is_taken(quick: Running) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in b'{"prompt": "a"}' + b" " * 30_000)
    with connected(quick) as sock:
        sock.sendall(POST + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_requests_behind_each_other_are_answered_in_order(quick: Running) -> None:
    with connected(quick) as sock:
        sock.sendall((LINE + b"x: " + b"a" * 5000 + b"\r\n\r\n") * 8)
        sock.sendall(LINE + b"connection: close\r\n\r\n")
        assert everything(sock).count(b"HTTP/1.1 200") == 9


def test_endless_requests_behind_each_other_are_not_kept(quick: Running) -> None:
    with connected(quick) as sock:
        sent(sock, [(LINE + b"\r\n") * 5000])
        assert everything(sock).count(b"HTTP/1.1 200") < 5000
    is_well(quick)


def test_memory_stays_flat_under_heads_without_an_end(quick: Running) -> None:
    before = psutil.Process().memory_info().rss
    with ExitStack() as stack:
        for _ in range(8):
            sock = stack.enter_context(connected(quick))
            sent(sock, [LINE + b"x: ", *([b"a" * MIB] * 64)])
    assert psutil.Process().memory_info().rss - before < 48 * MIB


# Time


def hung_up_within(sock: socket.socket, seconds: float) -> bytes:
    begin = time.monotonic()
    answer = everything(sock)
    assert time.monotonic() - begin < seconds
    return answer


def test_a_slow_head_is_given_up(quick: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    with connected(quick) as sock:
        sock.sendall(LINE + b"x: ")
        assert hung_up_within(sock, 5).startswith(b"HTTP/1.1 408 Request Timeout")
    for begin in (b"", LINE + b"\r\n"):  # a new connection, and one that was answered
        with connected(quick) as sock:
            sock.sendall(begin)
            if begin:
                assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            count = sent(sock, trickle(LINE, 100, 0.05))
            assert count < 40
    is_well(quick)


def trickle(content: bytes, count: int, pause_s: float) -> Iterator[bytes]:
    for index in range(count):
        time.sleep(pause_s)
        yield content[index % len(content) :][:1]


def test_a_silent_connection_is_closed(quick: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    with connected(quick) as sock:
        assert hung_up_within(sock, 5) == b""


def test_a_body_that_trickles_behind_its_answer_is_given_up(
    quick: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    with connected(quick) as sock:
        sock.sendall(POST + b"content-length: 99999999\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")
        assert sent(sock, trickle(b" ", 100, 0.05)) < 40


def test_an_answer_before_the_body_s_end_keeps_the_connection_for_a_while(
    quick: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(quick) as sock:
        sock.sendall(POST.replace(b"json", b"xml") + b"content-length: 20\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 415")
        monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.5)
        sock.sendall(b" " * 20 + LINE + b"\r\n")
        assert hung_up_within(sock, 5).endswith(b'{"live":true}')


def test_half_a_request_behind_one_that_is_generated_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    with running(fake({"ms": 1000})) as one, connected(one.ready()) as sock:
        body = b'{"prompt": "a"}'
        sock.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body + LINE)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_client_that_reads_no_answer_is_given_up(
    quick: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREAD_S", 0.3)
    before = quick.metric('sdopt_errors_total{code="answer_unread"}')
    body = json.dumps({"prompt": "a", "n": 10}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", quick.port))
        sock.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        until = time.monotonic() + 20
        while quick.metric('sdopt_errors_total{code="answer_unread"}') == before:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_slow_reader_gets_its_whole_answer(
    quick: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "UNREAD_S", 1.0)
    body = json.dumps({"prompt": "a", "n": 6}).encode()
    with connected(quick) as sock:
        sock.sendall(POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        content = b""
        while part := sock.recv(2**16):
            content += part
            time.sleep(0.015)
    assert len(json.loads(content.partition(b"\r\n\r\n")[2])["data"]) == 6


# Connections


def test_too_many_connections_are_told_and_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_with(connections=5, monkeypatch=monkeypatch) as one, ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(one)).sendall(LINE)
        time.sleep(0.2)
        further = [stack.enter_context(connected(one)) for _ in range(40)]
        answers = [everything(sock) for sock in further]
        assert answers[0].startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"retry-after: 10" in answers[0]
        assert b"too_many_connections" in answers[0]
        stack.close()
        one.wait_for(lambda health: health["live"], "a place")
        assert one.metric('sdopt_errors_total{code="too_many_connections"}') == 40


@contextmanager
def running_with(connections: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", connections)
    with running(fake({})) as one:
        yield one.ready()


def test_a_refusal_is_logged_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int]] = []
    counted: list[str] = []
    monkeypatch.setattr(
        connection,
        "log",
        lambda event, severity, code, unlogged_before: told.append((code, unlogged_before)),
    )
    crowd = connection.Crowd(most=1, count=counted.append)
    for code in ("a", "a", "a", "b"):
        crowd.refused(code)
    monkeypatch.setattr(connection, "TOLD_EVERY_S", 0)
    crowd.refused("a")
    assert told == [("a", 0), ("b", 0), ("a", 2)]
    assert counted == ["a", "a", "a", "b", "a"]


def test_fewer_connections_are_taken_than_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def most(files: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
        return connection.most_connections(2)

    assert most(200) == 112
    assert most(100_000) == most(resource.RLIM_INFINITY) == connection.MOST_CONNECTIONS
    with pytest.raises(SdoptError, match="may open 60 files, too few to serve; ulimit -n"):
        most(60)


def test_half_requests_without_number_leave_the_service_reachable() -> None:
    """In a process of its own that may open 200 files."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "from fake_generator import MAKER; from sdopt.service import connection\n"
        "connection.HEAD_S = 2.0\n"
        "from sdopt.service.server import run; from sdopt.service.settings import Settings\n"
        "settings = Settings(source='{}', devices=('cpu',), port=0, maker=MAKER)\n"
        "run(settings, lambda url, end: print(url, flush=True))"
    )
    path = os.pathsep.join((str(HERE), os.environ["PYTHONPATH"]))
    with subprocess.Popen(
        (sys.executable, "-c", code),
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        one = Running()
        one.port = int(process.stdout.readline().rpartition(":")[2])
        one.ready()
        with ExitStack() as stack:
            for _ in range(260):
                sent(stack.enter_context(connected(one)), [LINE])
            until = time.monotonic() + 20
            while (status := live(one)) != 200:
                assert status in (0, 503)
                assert time.monotonic() < until
                time.sleep(0.1)
        process.terminate()
        _, log = process.communicate(timeout=30)
    codes = [line.get("code") for line in map(json.loads, log.splitlines())]
    assert codes.count("too_many_connections") == 1
    assert codes.count("head_too_slow") == 1


def live(one: Running) -> int:
    try:
        return one.ask("GET", "/healthz/live")[0]
    except (OSError, http.client.HTTPException):
        return 0
