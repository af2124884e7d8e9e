"""A service over real sockets with workers that generate nothing: queues, ends, deaths, limits."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import HERE, PATH, Running, fake, running

from sdopt.errors import SdoptError
from sdopt.service import app, service
from sdopt.service.server import bound, run

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    """One that answers at once; tests that change nothing share it."""
    with running(fake({"ms": 1}, api_keys=())) as one:
        yield one.ready()


def pixels_of(image: dict[str, Any]) -> Any:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))))


def batches_of(log: Path) -> list[int]:
    return [json.loads(line)["images"] for line in log.read_text().splitlines()]


# Answers


def test_images_come_in_order_with_their_seeds(quick: Running) -> None:
    status, told, headers = quick.generate(n=5, seed=7, size="16x8")
    assert status == 200
    assert [one["seed"] for one in told["data"]] == [7, 8, 9, 10, 11]
    for one in told["data"]:
        image = pixels_of(one)
        assert image.shape == (8, 16, 3)
        assert (image == one["seed"]).all()
    assert abs(told["created"] - time.time()) < 60
    assert headers["content-type"] == "application/json"


def test_a_request_has_an_id_and_may_bring_its_own(quick: Running) -> None:
    first, second = (quick.generate()[2]["x-request-id"] for _ in range(2))
    assert first != second
    own = quick.ask("POST", PATH, {"prompt": "a"}, {"x-request-id": "mine-1"})
    assert own[2]["x-request-id"] == "mine-1"
    bad = quick.ask("GET", "/healthz", headers={"x-request-id": 'x" "y'})
    assert bad[2]["x-request-id"] != 'x" "y'


def test_models(quick: Running) -> None:
    status, told, _ = quick.ask("GET", "/v1/models")
    assert (status, told["object"], [one["id"] for one in told["data"]]) == (200, "list", ["turbo"])
    assert quick.ask("GET", "/v1/models/turbo")[1]["object"] == "model"
    status, told, _ = quick.ask("GET", "/v1/models/a/b")
    assert (status, told["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", PATH, 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("POST", "/v1/images/edits", 404, "not_found"),
    ],
)
def test_other_routes_are_refused_in_openai_s_form(
    quick: Running, method: str, path: str, status: int, code: str
) -> None:
    got, told, _ = quick.ask(method, path)
    assert (got, told["error"]["code"]) == (status, code)


def test_a_body_of_another_type_is_refused(quick: Running) -> None:
    """A foreign page may send text/plain without asking."""
    status, told, _ = quick.ask("POST", PATH, {"prompt": "a"}, {"content-type": "text/plain"})
    assert (status, told["error"]["code"]) == (415, "unsupported_media_type")


def test_another_host_name_is_refused(quick: Running) -> None:
    """A foreign page whose name was pointed at loopback."""
    status, told, _ = quick.ask("POST", PATH, {"prompt": "a"}, {"host": "evil.example:80"})
    assert (status, told["error"]["code"]) == (421, "wrong_host")
    for name in (f"localhost:{quick.port}", "127.0.0.1", "[::1]:80"):
        assert quick.ask("POST", PATH, {"prompt": "a"}, {"host": name})[0] == 200


def test_a_body_that_says_that_it_is_huge_is_not_read(quick: Running) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 10) as sock:
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}content-length: 99999999999\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_huge_body_in_chunks_is_not_kept(quick: Running) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 10) as sock:
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        sock.sendall((b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 5)
        assert sock.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_slow_body_is_given_up(quick: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_S", 0.1)
    with socket.create_connection(("127.0.0.1", quick.port), 10) as sock:
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        sock.sendall(f"{head}content-length: 20\r\n\r\n{{".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("content", [b"not HTTP\r\n\r\n", b"\0" * 100, b"GET / HTTP/9.9\r\n\r\n"])
def test_garbage_ends_its_connection_alone(quick: Running, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), 10) as sock:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1000)
    assert quick.generate()[0] == 200


def test_an_unsound_image_is_an_error_and_its_batch_mates_are_not(quick: Running) -> None:
    status, told, _ = quick.generate("nan")
    assert (status, told["error"]["code"]) == (500, "unsound_image")
    assert quick.generate()[0] == 200


def test_what_the_level_refuses_is_told(quick: Running) -> None:
    status, told, _ = quick.generate("refused")
    assert (status, told["error"]["code"]) == (500, "generation_failed")
    assert "this cannot be generated" in told["error"]["message"]
    assert quick.generate()[0] == 200


def test_an_error_of_the_service_keeps_its_traceback_in_the_log(
    quick: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise ZeroDivisionError("a secret path")

    monkeypatch.setattr(app, "_body", broken)
    status, told, _ = quick.generate()
    assert (status, told["error"]["code"]) == (500, "internal_error")
    assert "secret" not in told["error"]["message"]


def test_metrics_count(quick: Running) -> None:
    before = quick.metric("sdopt_images_total")
    quick.generate(n=2)
    quick.generate("", n=2)
    assert quick.metric("sdopt_images_total") == before + 2
    assert quick.metric('sdopt_requests_total{status="400"}') >= 1
    assert quick.metric('sdopt_errors_total{code="invalid_value"}') >= 1
    assert quick.metric('sdopt_worker_ready{device="cpu",worker="0"}') == 1
    assert quick.metric("sdopt_batch_images_count") >= 1
    assert quick.metric('sdopt_generate_seconds_count{device="cpu"}') >= 1
    assert quick.metric('sdopt_worker_resident_bytes{device="cpu",worker="0"}') > 1e6
    assert quick.metric("sdopt_queue_images") == 0


# Queues


def test_requests_that_come_meanwhile_are_one_batch(tmp_path: Path) -> None:
    log, queued = tmp_path / "log", tmp_path / "queued"
    with running(fake({"until": str(queued), "log": str(log)})) as one:
        first = one.ready().later()
        one.wait_for(lambda health: health["workers"][0]["batches"] == 1, "the first batch")
        others = [one.later(seed=seed) for seed in range(3)]
        one.wait_for(lambda health: health["queued"] == 3, "the others")
        queued.touch()
        assert first.answer()[1]["data"][0]["batch"] == 1
        for seed, other in enumerate(others):
            [image] = other.answer()[1]["data"]
            assert (image["seed"], image["batch"]) == (seed, 3)
            assert (pixels_of(image) == seed).all()
    assert batches_of(log) == [1, 3]


def test_other_steps_are_another_batch(tmp_path: Path) -> None:
    log, queued = tmp_path / "log", tmp_path / "queued"
    with running(fake({"until": str(queued), "log": str(log)})) as one:
        first = one.ready().later()
        one.wait_for(lambda health: health["workers"][0]["batches"] == 1, "the first batch")
        others = [one.later(num_inference_steps=steps) for steps in (5, 6, 5)]
        one.wait_for(lambda health: health["queued"] == 3, "the others")
        queued.touch()
        assert all(other.answer()[0] == 200 for other in [first, *others])
    assert sorted(batches_of(log)) == [1, 1, 2]


def test_a_full_queue_answers_429_with_the_time_from_the_measured_rate() -> None:
    with running(fake({"ms": 1000}, max_queue=3, max_batch=1)) as one:
        busy = one.ready().later()
        one.wait_for(lambda health: health["workers"][0]["batches"] == 1, "the first batch")
        second = one.later()  # at hand, in the worker
        one.wait_for(lambda health: health["workers"][0]["batches"] == 2, "the second batch")
        waiting = one.later(n=3)
        one.wait_for(lambda health: health["queued"] == 3, "a full queue")
        status, told, headers = one.generate(n=2)
        assert (status, told["error"]["code"]) == (429, "queue_full")
        assert told["error"]["type"] == "rate_limit_error"
        assert headers["retry-after"] == "2"  # two images at one a second
        assert [other.answer()[0] for other in (busy, second, waiting)] == [200] * 3


def test_a_client_that_goes_leaves_the_queue(tmp_path: Path) -> None:
    log, gone = tmp_path / "log", tmp_path / "gone"
    with running(fake({"until": str(gone), "log": str(log)}, max_batch=1)) as one:
        others = [one.ready().later(), one.later()]
        one.wait_for(lambda health: health["workers"][0]["batches"] == 2, "a busy worker")
        connection = http.client.HTTPConnection("127.0.0.1", one.port)
        connection.request("POST", PATH, json.dumps({"prompt": "gone"}), JSON)
        one.wait_for(lambda health: health["queued"] == 1, "a queued request")
        connection.close()
        one.wait_for(lambda health: health["queued"] == 0, "its leaving")
        gone.touch()
        assert [other.answer()[0] for other in others] == [200] * 2
        assert one.metric('sdopt_errors_total{code="client_gone"}') == 1
        assert one.metric("sdopt_dropped_images_total") == 1
    assert batches_of(log) == [1, 1]


def test_two_workers_share(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with running(fake({"until": str(shared)}, devices=("cpu", "cpu"), max_batch=2)) as one:
        one.wait_for(
            lambda health: [w["state"] for w in health["workers"]] == ["ready", "ready"], "both"
        )
        others = [one.later() for _ in range(4)]
        one.wait_for(
            lambda health: all(w["batches"] for w in health["workers"]), "a batch in each worker"
        )
        shared.touch()
        assert all(other.answer()[0] == 200 for other in others)
        assert one.metric("sdopt_batch_images_sum") == 4


# Deaths


def test_a_worker_that_dies_is_restarted_and_its_request_is_told() -> None:
    with running(fake({"ms": 1})) as one:
        before = one.ready().health()["workers"][0]["pid"]
        status, told, _ = one.generate("die")
        assert (status, told["error"]["code"]) == (500, "worker_died")
        health = one.wait_for(lambda health: health["ready"], "another worker")
        assert health["workers"][0]["pid"] != before
        assert health["workers"][0]["restarts"] == 1
        assert one.generate()[0] == 200
        assert one.metric("sdopt_worker_restarts_total") == 1


def test_what_is_queued_outlives_a_worker(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    with running(fake({"until": str(killed)}, max_batch=1)) as one:
        first = one.ready().later("nan")
        one.wait_for(lambda health: health["workers"][0]["batches"] == 1, "the first batch")
        second = one.later()
        one.wait_for(lambda health: health["workers"][0]["batches"] == 2, "the second batch")
        queued = one.later(seed=3)
        health = one.wait_for(lambda health: health["queued"] == 1, "a queued request")
        os.kill(health["workers"][0]["pid"], signal.SIGKILL)
        killed.touch()
        assert [first.answer()[1]["error"]["code"], second.answer()[1]["error"]["code"]] == [
            "worker_died"
        ] * 2
        assert queued.answer()[1]["data"][0]["seed"] == 3


def test_a_broken_device_ends_its_worker() -> None:
    """After an illegal access no call of that process would succeed."""
    with running(fake({"ms": 1})) as one:
        status, told, _ = one.ready().generate("break")
        assert status == 500
        assert told["error"]["code"] in ("generation_failed", "worker_died")
        one.wait_for(lambda h: h["ready"] and h["workers"][0]["restarts"] == 1, "another worker")
        assert one.generate()[0] == 200


def test_a_worker_that_hangs_is_ended() -> None:
    with running(fake({"ms": 1}, stuck_s=0.3)) as one:
        status, told, _ = one.ready().generate("hang")
        assert (status, told["error"]["code"]) == (500, "worker_died")
        one.wait_for(lambda health: health["ready"], "another worker")
        assert one.generate()[0] == 200


@pytest.mark.parametrize("fields", [{"size": "8x8"}, {"num_inference_steps": 3}])
def test_what_compiles_nothing_is_given_no_longer(fields: dict[str, Any]) -> None:
    with running(fake({"ms": 1}, stuck_s=0.3)) as one:
        one.ready()
        begin = time.monotonic()
        status, told, _ = one.generate("hang", guidance_scale=1, **fields)
        assert (status, told["error"]["code"]) == (500, "worker_died")
        assert time.monotonic() - begin < 0.3 * service.COLD_TIMES


def test_what_has_to_be_compiled_first_is_given_longer() -> None:
    with running(fake({"ms": 600, "compiles": True}, stuck_s=0.3, cold=True)) as one:
        assert one.ready().generate(size="8x8")[0] == 200
        assert one.generate()[0] == 500


def test_more_images_than_can_be_queued_are_refused_by_name() -> None:
    with running(fake({"ms": 1}, max_queue=2)) as one:
        status, told, _ = one.ready().generate(n=3)
        assert (status, told["error"]["param"]) == (400, "n")
        assert one.generate(n=2)[0] == 200


def test_a_worker_that_can_never_be_had_ends_the_service() -> None:
    with running(fake({"fail": "named"})) as one:
        one.thread.join(30)
        assert isinstance(one.error, SdoptError)
        assert "there are no such weights" in str(one.error)


def test_a_worker_that_always_dies_at_its_start_ends_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "FIRST_PAUSE_S", 0.01)
    with running(fake({"fail": "exit"})) as one:
        one.thread.join(60)
        assert "ended 3 times before it was ready" in str(one.error)


def test_sizes_that_the_level_cannot_make_end_the_service() -> None:
    with running(fake({}, sizes=((12, 16),))) as one:
        one.thread.join(30)
        assert "multiples of 8" in str(one.error)


def test_an_error_of_a_keeper_ends_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing would ever answer: that happened."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(service.Service, "_heard", broken)
    with running(fake({})) as one:
        one.thread.join(30)
        assert "ZeroDivisionError" in str(one.error)


# Beginnings and ends


def test_before_a_worker_is_ready_requests_are_told_to_come_again(tmp_path: Path) -> None:
    with running(fake({})) as one:
        status, told, headers = one.generate()
        assert (status, told["error"]["code"]) == (503, "not_ready")
        assert headers["retry-after"] == "5"
        assert one.ask("GET", "/healthz/live")[0] == 200
        one.ready()
        assert one.ask("GET", "/healthz/ready")[0] == 200


def test_an_end_finishes_what_is_queued_and_takes_nothing_more() -> None:
    with running(fake({"ms": 300}, max_batch=1)) as one:
        others = [one.ready().later() for _ in range(4)]
        one.wait_for(lambda h: h["queued"] + h["workers"][0]["batches"] == 4, "four requests")
        one.tell_to_end()
        assert [other.answer()[0] for other in others] == [200] * 4
        one.thread.join(30)
        assert one.code == 0
        with pytest.raises(OSError, match="refused"):
            one.generate()


def test_an_end_waits_no_longer_than_it_was_given() -> None:
    with running(fake({"ms": 1000}, max_batch=1, grace_s=0.5)) as one:
        others = [one.ready().later() for _ in range(4)]
        one.wait_for(lambda h: h["queued"] + h["workers"][0]["batches"] == 4, "four requests")
        begin = time.monotonic()
        one.tell_to_end()
        codes = [other.answer()[1]["error"]["code"] for other in others]
        assert codes == ["shutting_down"] * 4
        one.thread.join(30)
        assert one.code == 0
        assert time.monotonic() - begin < 8


def test_sigterm_ends_the_process_with_zero() -> None:
    code = (
        "import sys; from fake_generator import MAKER\n"
        "from sdopt.service.server import run; from sdopt.service.settings import Settings\n"
        "settings = Settings(source='{\"ms\": 300}', devices=('cpu',), port=0, maker=MAKER)\n"
        "sys.exit(run(settings, lambda url, end: print(url, flush=True)))"
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
        other = one.ready().later()
        health = one.wait_for(lambda health: health["workers"][0]["batches"] == 1, "a batch")
        process.send_signal(signal.SIGTERM)
        assert other.answer()[0] == 200
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(health["workers"][0]["pid"], 0)
    lines = [json.loads(line) for line in log.splitlines()]
    [request] = [line for line in lines if line["event"] == "request"]
    assert request["status"] == 200
    assert request["batches"] == [1]
    assert [line["event"] for line in lines][-2:] == ["request", "ended"]
    assert "a cat" not in log  # prompts are nobody's but the client's


def test_workers_do_not_outlive_a_front_that_was_killed() -> None:
    code = (
        "from fake_generator import MAKER\n"
        "from sdopt.service.server import run; from sdopt.service.settings import Settings\n"
        "settings = Settings(source='{}', devices=('cpu',), port=0, maker=MAKER)\n"
        "run(settings, lambda url, end: print(url, flush=True))"
    )
    path = os.pathsep.join((str(HERE), os.environ["PYTHONPATH"]))
    with subprocess.Popen(
        (sys.executable, "-c", code),
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        one = Running()
        one.port = int(process.stdout.readline().rpartition(":")[2])
        pid = one.ready().health()["workers"][0]["pid"]
        process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and Path(f"/proc/{pid}").exists():
        state = Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
        if state == "Z":  # ended; whoever adopts it has not asked yet
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_a_port_in_use_is_named() -> None:
    with bound("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(SdoptError, match=f"cannot listen on 127.0.0.1, port {port}"):
            run(fake({}, port=port), lambda url, end: None)


@pytest.mark.parametrize("host", ["300.1.1.1", "x" * 3000, "\xe9..\xfc", "::zz"])
def test_an_address_that_is_none_is_named(host: str) -> None:
    with pytest.raises(SdoptError, match="cannot listen on") as raised:
        bound(host, 0)
    assert len(str(raised.value)) < 300


# Keys, and who may connect


def test_a_key_is_asked_for_where_there_are_keys() -> None:
    with running(fake({}, api_keys=("first-key", "second-key"))) as one:
        one.ready()
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "first"}):
            status, told, _ = one.ask("POST", PATH, {"prompt": "a"}, headers)
            assert (status, told["error"]["code"]) == (401, "invalid_api_key")
            assert told["error"]["type"] == "authentication_error"
        good = {"authorization": "Bearer second-key"}
        assert one.ask("POST", PATH, {"prompt": "a"}, good)[0] == 200
        assert one.ask("GET", "/v1/models", headers=good)[0] == 200
        assert one.ask("GET", "/v1/models")[0] == 401
        assert one.ask("GET", "/v1/models/turbo")[0] == 401
        assert one.ask("GET", "/healthz")[0] == 200


def test_keys_are_not_shown() -> None:
    assert "first-key" not in repr(fake({}, api_keys=("first-key",)))


@pytest.mark.parametrize("keys", [(), ("a-key",)])
def test_an_address_beyond_loopback_warns_of_missing_authentication(
    keys: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    from sdopt.service.logs import to_stderr

    to_stderr()
    with running(fake({}, host="0.0.0.0", api_keys=keys)) as one:
        one.ready()
        # Its names are not known there, so any is taken.
        assert one.ask("GET", "/healthz", headers={"host": "gpu.example"})[0] == 200
    log = capfd.readouterr().err
    assert ("without authentication" in log) is not keys
