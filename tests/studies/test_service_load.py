"""The load test loses nothing on the embedded model, and its verdicts are those of its figures."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdopt.bench.report.results import marks
from sdopt.errors import SdoptError
from studies import service_clients, service_load
from studies.service_clients import LOOP, Load, Memory, Served, load_of
from studies.service_engine import batch_of, devices_of

ROOT = Path(service_load.__file__).parents[1]


def test_the_event_loop_is_the_first_thread_of_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    def thread(number: int, user: float, system: float) -> SimpleNamespace:
        return SimpleNamespace(id=number, user_time=user, system_time=system)

    threads = {7: [thread(7, 1.0, 0.5), thread(8, 4.0, 2.0)], 9: [thread(9, 3.0, 1.0)]}

    def process(pid: int) -> SimpleNamespace:
        times = SimpleNamespace(
            user=sum(one.user_time for one in threads[pid]),
            system=sum(one.system_time for one in threads[pid]),
        )
        return SimpleNamespace(cpu_times=lambda: times, threads=lambda: threads[pid])

    def health(self: object, path: str) -> tuple[int, str]:
        rows = [{"pid": 9, "worker": "0"}, {"pid": None, "worker": "1"}]
        return 200, json.dumps({"workers": rows})

    monkeypatch.setattr(service_clients.psutil, "Process", process)
    monkeypatch.setattr(Served, "get", health)
    front: Any = SimpleNamespace(pid=7)
    spent = Served(host="", port=0, process=front).cpu_s()
    assert (spent["front"], spent[LOOP], spent["workers"]) == (7.5, 1.5, 4.0)


def test_a_short_load_of_the_embedded_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "load.json"
    options = ("--source", "embedded", "--size", "64x64", "--steps", "1", "--devices", "2")
    arguments = [
        *options,
        "--clients",
        "1,8",
        "--images",
        "40",
        "--target",
        "0",
        "--json",
        str(file),
    ]
    assert service_load.main(arguments) == 0
    found = json.loads(file.read_text())
    assert [(row["clients"], row["answered"], row["lost"]) for row in found["rows"]] == [
        (1, 40, 0),
        (8, 64, 0),
    ]
    assert found["rows"][0]["images_a_batch"] == 1
    assert found["rows"][1]["images_a_batch"] > 1
    assert found["rows"][0]["share"] > 0
    assert found["made_on"]["source"] == "embedded"
    assert {one["name"] for one in found["memory"]} == {"front", "worker 0", "worker 1"}
    assert found["options"]["devices"] == "cpu,cpu"
    names = {"front", LOOP, "workers", "clients"}
    assert all({*row["cpu_s_per_image"]} == names for row in found["rows"])
    assert all(min(row["cpu_s_per_image"].values()) > 0 for row in found["rows"])
    assert [*tmp_path.iterdir()] == [file]
    assert found["alike"]["alone again"] == "the same bits"
    assert found["alike"]["other batch-mates, another place"] == "the same bits"
    assert "| 8 | 64 | 0 |" in capsys.readouterr().out
    begin, end = marks("service-load")
    page = tmp_path / "page.md"
    page.write_text(f"{begin}\n{end}\n")
    assert service_load.main(["--show", "--json", str(file), "--page", str(page)]) == 0
    assert "| 8 | 64 | 0 |" in page.read_text()


@pytest.mark.parametrize(("name", "mark"), [("cpu", "service-load"), ("h200", "service-load-h200")])
def test_the_tables_of_the_page_are_those_of_the_stored_files(name: str, mark: str) -> None:
    found = json.loads((ROOT / f"docs/samples/service-load-{name}.json").read_text())
    page = (ROOT / "docs/how-to/serve.md").read_text(encoding="utf-8")
    begin, end = marks(mark)
    assert page.partition(begin)[2].partition(end)[0].strip() == "\n".join(service_load.told(found))


def test_the_rate_leaves_out_the_beginning_and_the_end() -> None:
    finished = [(10.0, 3.0), *((10.0 + index, 1.0) for index in range(1, 10)), (30.0, 1.0)]
    load = load_of(finished, [1] * 11, clients=2, images=12, errors=["500: oh"])
    assert (load.answered, load.lost, load.errors) == (11, 1, ("500: oh",))
    assert load.images_per_s == 1.0
    assert load.p50_ms == 1000.0


def test_the_engine_counts_for_each_device_that_has_a_client() -> None:
    options = argparse.Namespace(devices="cuda:0,cuda:1,cuda:2,cuda:3", max_batch=4)
    assert [batch_of(clients, options) for clients in (1, 4, 16, 64)] == [1, 1, 4, 4]
    options.devices = "auto"
    assert [batch_of(clients, options) for clients in (1, 2, 8)] == [1, 2, 4]
    load = load_of([(1.0 * end, 1.0) for end in range(9)], [1] * 9, 2, 9, [])
    assert service_load.row_of(load, 0.25, 4)["share"] == 2.0
    assert service_load.row_of(load, None, 4)["share"] is None


def test_a_number_of_devices_is_so_many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert [devices_of(text) for text in ("2", "auto", "cuda:1", "0")] == [
        *("cpu,cpu", "auto", "cuda:1", "0")
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices_of("2") == "cuda:0,cuda:1"


def test_what_there_is_already_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(service: Any, body: Any, clients: int, *_: Any) -> dict[str, Any]:
        if clients > 1:
            raise SdoptError("it takes too long")
        return {"clients": clients}

    monkeypatch.setattr(service_load, "served", lambda *_: nullcontext())
    monkeypatch.setattr(service_load, "generated_alike", lambda *_: {})
    monkeypatch.setattr(service_load, "_loaded", loaded)
    file = tmp_path / "load.json"
    file.write_text("an older one")
    assert service_load.main(["--no-engine", "--json", str(file)]) == 2
    assert json.loads(service_load.so_far(file).read_text())["rows"] == [{"clients": 1}]
    assert file.read_text() == "an older one"


def test_nothing_answered_is_an_error() -> None:
    with pytest.raises(SdoptError, match="0 images were answered"):
        load_of([], [], 1, 5, ["500: oh"])


def test_faults() -> None:
    load = Load(
        clients=4,
        answered=9,
        lost=1,
        errors=("500",),
        images_per_s=9.0,
        p50_ms=1.0,
        p95_ms=1.0,
        images_a_batch=4.0,
    )
    rows = [service_load.row_of(load, 10.0), service_load.row_of(load, None)]
    grown = Memory(name="worker 0", samples_mib=[100.0] * 50 + [200.0] * 50)
    flat = Memory(name="front", samples_mib=[90.0, *[100.0] * 99])
    for one in (grown, flat):
        one.summarize()
    told = service_load.faults(rows, [grown, flat], 0.95)
    assert len(told) == 4
    assert told[0] == "4 clients: 1 requests were lost"
    assert "90.0 % of the engine, target 95 %" in told[2]
    assert told[3] == "worker 0: memory grew by 100.0 MiB, at most 24"
    assert len(service_load.faults(rows, [flat], 0.0)) == 2


def test_a_service_that_does_not_start_is_told_with_its_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert service_load.main(["--no-engine", "--level", "turboo"]) == 2
    assert "did you mean 'turbo'?" in capsys.readouterr().err


def test_the_load_is_told_when_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_clients._Clients, "ask", lambda self: time.sleep(3))
    with pytest.raises(SdoptError, match=r"0 of 5 images came in 0\.1 s"):
        service_clients.under_load(_Silent(), {}, 1, 5, 0.1)  # type: ignore[arg-type]


class _Silent:
    def __init__(self) -> None:
        self.memory: dict[int, Memory] = {}

    def sample(self) -> None:
        """Nothing runs."""
