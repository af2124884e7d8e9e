"""An evaluation that is killed, loses a process or a disk goes on, and computes nothing twice."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stub_evaluation as stub
from forked import Forks, Process, forks_of
from jsonschema import Draft202012Validator

from sdopt.bench.evaluation import evaluate as module
from sdopt.bench.evaluation import parts
from sdopt.bench.evaluation.crew import Crew
from sdopt.bench.evaluation.judging import Limit, parse_limit
from sdopt.bench.evaluation.merging import merge
from sdopt.bench.evaluation.parts import read_rows, read_scores
from sdopt.bench.evaluation.places import Bucket, Folder, place_of
from sdopt.bench.evaluation.plan import evaluation_of
from sdopt.bench.judge.verdict import Outcome, exit_code
from sdopt.bench.measure.quality import to_uint8
from sdopt.bench.metrics.images import ssim
from sdopt.bench.stored import schema
from sdopt.errors import BrokenFileError, MissingToolError, OutOfMemoryError, SdoptError
from sdopt.levels import Level, get_level
from sdopt.pipelines.workload import Request

COUNT = 22
LEVELS = ("hoisted", "turbo")
Script = Callable[..., list[int]]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Each process would import for longer than it works."""
    with forks_of(stub.__name__) as server:
        yield server


@pytest.fixture
def script(forks: Forks, tmp_path: Path) -> Script:
    """Runs so many processes of a stub evaluation; the first one may kill itself."""

    def run(out: Path, log: Path, kill: int = 0, processes: int = 1) -> list[int]:
        given = (str(out), str(COUNT), str(log), str(kill))
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": str(processes)}
        if processes > 1:
            port["MASTER_PORT"] = str(free_port())
        told = [tmp_path / f"{out.name}-{log.name}-{kill}-{rank}.txt" for rank in range(processes)]
        codes = forks.run(
            [
                Process(
                    arguments=given,
                    told=file,
                    variables={**port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    if processes > 1
                    else {},
                )
                for rank, file in enumerate(told)
            ]
        )
        for code, file in zip(codes, told, strict=True):
            assert code <= 0 or "SdoptError" in file.read_text(), file.read_text()
        return codes

    return run


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def logged(log: Path) -> Counter[tuple[str, int]]:
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return Counter((level, int(seed)) for level, seed, _ in lines)


def stored(out: Path) -> set[tuple[str, int]]:
    place = Folder(out)
    return {
        (level, int(index))
        for level in LEVELS
        for name in place.files(f"parts/{level}")
        for index in read_scores(place, f"parts/{level}/{name}").indices
    }


def scores(out: Path) -> Any:
    levels = json.loads((out / "summary.json").read_text())["levels"]
    return {name: (told["scores"], told["worst"]) for name, told in levels.items()}


def test_killed_at_any_image_it_goes_on_and_computes_nothing_that_was_stored(
    tmp_path: Path, script: Script
) -> None:
    whole, log = tmp_path / "whole", tmp_path / "log"
    assert script(whole, log) == [0]
    assert set(logged(log).values()) == {1}
    out, log = tmp_path / "out", tmp_path / "killed"
    kept: set[tuple[str, int]] = set()
    for kill in (14, 12):
        before = logged(log)
        assert script(out, log, kill=kill) == [-9]
        assert not kept & set(logged(log) - before)
        kept = stored(out)
    assert kept
    before = logged(log)
    assert script(out, log) == [0]
    assert not kept & set(logged(log) - before)
    assert scores(out) == scores(whole)
    assert [*out.rglob("*.partial")] == []


def test_a_process_that_dies_takes_nothing_from_the_others(tmp_path: Path, script: Script) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    first, second = script(out, log, kill=3, processes=2)
    assert first == -9
    assert second == 0
    kept = stored(out)
    assert {level for level, _ in kept} == set(LEVELS)
    before = logged(log)
    assert script(out, log, processes=2) == [0, 0]
    assert not kept & set(logged(log) - before)
    assert script(tmp_path / "whole", tmp_path / "log2") == [0]
    assert scores(out) == scores(tmp_path / "whole")


def test_what_is_missing_when_nobody_works_any_more_is_told(tmp_path: Path) -> None:
    class Deserted(Crew):
        def share(self, work: Any) -> list[int]:
            return list(work)[1:]

    evaluation = stub.of(COUNT)
    crew, place = Deserted(), Folder(tmp_path)
    with pytest.raises(SdoptError, match="2 of 12 parts are missing, and none was added for 0 s"):
        module.evaluate(evaluation, place, crew, build=stub.images(), patience_s=0.0)


def test_a_seed_is_the_prompt_s_place_whatever_the_batch(tmp_path: Path) -> None:
    for batch, part in ((1, 4), (3, 4), (8, 8)):
        out = tmp_path / f"{batch}"
        summary, _ = stub.run(stub.of(COUNT, batch=batch, part=part), out)
        rows = [
            row
            for name in Folder(out).files("parts/turbo")
            for row in read_rows(Folder(out), f"parts/turbo/{name}")
        ]
        assert [row.index for row in rows] == list(range(COUNT))
        for row in rows:
            request = Request(name="", prompt="", seed=row.index)
            ours, other = (to_uint8(stub.image(get_level(n), request)) for n in reversed(LEVELS))
            assert row.scores["ssim_cost"] == ssim(ours, other).value
            assert row.prompt == f"prompt {row.index}"
        assert summary["levels"]["turbo"]["scores"]["ssim_cost"]["count"] == COUNT


def test_a_batch_that_does_not_fit_is_halved_and_filled_up(tmp_path: Path) -> None:
    said: list[str] = []
    sizes: list[int] = []

    class Hungry:
        def __init__(self, level: Level) -> None:
            self.level = level

        def __enter__(self) -> Any:
            return self.generate

        def __exit__(self, *_: Any) -> None:
            sizes.append(-1)

        def generate(self, requests: Any) -> Any:
            sizes.append(len(requests))
            if len(requests) > 3:
                raise OutOfMemoryError("it does not fit")
            return np.stack([stub.image(self.level, request) for request in requests])

    stub.run(stub.of(10, part=10, batch=8), tmp_path, Hungry, say=said.append)
    assert sizes[:9] == [8, -1, 4, -1, 2, 2, 2, 2, 2]
    assert [line for line in said if "loading" in line] == ["hoisted: loading", "turbo: loading"]
    assert "turbo: out of memory, going on in batches of 4" in said
    with pytest.raises(OutOfMemoryError):
        stub.run(
            stub.of(10, part=10, batch=8),
            tmp_path / "one",
            lambda level: Always(),
        )


class Always:
    def __enter__(self) -> Any:
        def generate(requests: Any) -> Any:
            raise OutOfMemoryError("it never fits")

        return generate

    def __exit__(self, *_: Any) -> None:
        """Nothing was held."""


def test_a_second_run_makes_nothing_and_another_level_only_its_own(tmp_path: Path) -> None:
    made: list[str] = []
    build = stub.images(lambda level, request: made.append(level.name))
    stub.run(stub.of(COUNT), tmp_path, build)
    made.clear()
    stub.run(stub.of(COUNT), tmp_path, build)
    assert made == []
    more = stub.of(COUNT)
    more = type(more)(**{**vars(more), "levels": (*more.levels, get_level("express"))})
    summary, _ = stub.run(more, tmp_path, build)
    assert set(made) == {"express"}
    assert set(summary["levels"]) == {*LEVELS, "express"}


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"guidance": 2.0}, "guidance_scale 1.0 -> 2.0"),
        ({"steps": 5}, "hoisted: steps 20 -> 5"),
        ({"part": 5}, "part 4 -> 5"),
    ],
)
def test_another_evaluation_in_the_same_place_is_refused(
    tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    stub.run(stub.of(5), tmp_path)
    with pytest.raises(SdoptError, match="holds another evaluation") as caught:
        stub.run(stub.of(5, **settings), tmp_path)
    assert word in str(caught.value)
    with pytest.raises(SdoptError, match="count 5 -> 6"):
        stub.run(stub.of(6), tmp_path)


def test_a_duplicate_part_is_named_with_both_files(tmp_path: Path) -> None:
    stub.run(stub.of(COUNT), tmp_path)
    folder = tmp_path / "parts" / "turbo"
    (folder / "copy.parquet").write_bytes((folder / "00000002.parquet").read_bytes())
    with pytest.raises(BrokenFileError) as caught:
        stub.run(stub.of(COUNT), tmp_path)
    assert "prompt 8 is there twice, in 00000002.parquet and in copy.parquet" in str(caught.value)
    (folder / "copy.parquet").unlink()
    (folder / "00000002.parquet").write_bytes((folder / "00000003.parquet").read_bytes())
    with pytest.raises(
        BrokenFileError, match=r"00000002\.parquet holds prompt 12, and by its name"
    ):
        stub.run(stub.of(COUNT), tmp_path)


def test_missing_and_foreign_indices_are_named(tmp_path: Path) -> None:
    stub.run(stub.of(COUNT), tmp_path)
    place, folder = Folder(tmp_path), tmp_path / "parts" / "turbo"
    for block in (1, 2, 5):
        (folder / f"0000000{block}.parquet").unlink()
    with pytest.raises(BrokenFileError, match="has no result of the prompts 4 to 11, 20 to 21;"):
        merge(place, "turbo", COUNT, "ssim_cost")
    with pytest.raises(BrokenFileError, match=r"00000004\.parquet holds prompt 18, and there are"):
        merge(place, "turbo", 18, "ssim_cost")
    assert stub.run(stub.of(COUNT), tmp_path) is not None


@pytest.mark.parametrize("content", [b"", b"PAR1 half of it"])
def test_a_broken_part_is_named_and_made_anew_once_it_is_gone(
    tmp_path: Path, content: bytes
) -> None:
    stub.run(stub.of(COUNT), tmp_path)
    part = tmp_path / "parts" / "turbo" / "00000001.parquet"
    part.write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"00000001\.parquet cannot be read.*delete it"):
        stub.run(stub.of(COUNT), tmp_path)
    part.unlink()
    stub.run(stub.of(COUNT), tmp_path)


def test_parts_of_before_the_host_s_share_was_told_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "vars", _without_host, raising=False)
    stub.run(stub.of(COUNT), tmp_path)
    monkeypatch.undo()
    before = scores(tmp_path)
    stub.run(stub.of(COUNT), tmp_path)
    assert scores(tmp_path) == before
    rate = json.loads((tmp_path / "summary.json").read_text())["levels"]["turbo"]["rate"]
    assert rate["images_per_s"] > 0
    assert "host" not in rate


def _without_host(made: parts.Made) -> dict[str, Any]:
    return {name: value for name, value in vars(made).items() if name not in parts.HOST}


def test_a_full_disk_is_told_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, real = 0, os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == 6:  # the holder, the run, three parts
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SdoptError, match="cannot be written: No space left on device; make room"):
        stub.run(stub.of(COUNT), tmp_path)
    kept = stored(tmp_path)
    assert len(kept) == 3 * stub.PART
    assert [*tmp_path.rglob("*.partial")] == []
    made: list[tuple[str, int]] = []
    build = stub.images(lambda level, request: made.append((level.name, request.seed)))
    stub.run(stub.of(COUNT), tmp_path, build)
    assert not kept & set(made)


def test_object_storage_holds_the_same(tmp_path: Path) -> None:
    place = place_of("memory://evaluation/one")
    assert isinstance(place, Bucket)
    stub.run(stub.of(COUNT), place)
    stub.run(stub.of(COUNT), tmp_path)
    with place.open("summary.json") as file:
        told = json.loads(file.read())
    assert told["levels"]["turbo"]["scores"] == scores(tmp_path)["turbo"][0]
    assert place.files("parts/turbo") == Folder(tmp_path).files("parts/turbo")
    assert place.files("nothing") == []
    with pytest.raises(BrokenFileError, match="memory://evaluation/one/none cannot be read"):
        place.open("none")
    with pytest.raises(SdoptError, match="--out nope://x"):
        place_of("nope://x")
    with pytest.raises(MissingToolError, match="--out s3://bucket"):
        place_of("s3://bucket")


@pytest.mark.parametrize("url", ["memory://of-one", "simplecache::memory://of-one"])
def test_memory_of_one_process_is_refused_for_several(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(Crew, "size", 2)
    monkeypatch.setattr(Crew, "broadcast", lambda self, told: None)
    made: list[int] = []
    build = stub.images(lambda level, request: made.append(request.seed))
    with pytest.raises(SdoptError, match=f"--out {url} is memory of one process, and there are 2"):
        stub.run(stub.of(4), place_of(url), build, patience_s=1800.0)
    assert made == []
    assert place_of(url).files("") == []


def test_the_summary_is_of_its_schema_and_tells_what_is_absent(tmp_path: Path) -> None:
    summary, verdicts = stub.run(stub.of(COUNT), tmp_path)
    data = json.loads((tmp_path / "summary.json").read_text())
    Draft202012Validator(schema.load("evaluation")).validate(data)
    assert data["levels"] == json.loads(json.dumps(summary["levels"]))
    assert all(told["rate"]["host"]["png_s"] > 0 for told in data["levels"].values())
    assert [verdict.outcome for verdict in verdicts] == [Outcome.RECORDED]
    text = (tmp_path / "summary.md").read_text()
    for name, why in data["absent"].items():
        assert f"- no `{name}`: {why}" in text
    assert verdicts[0].reason in text
    assert [path.name for path in (tmp_path / "worst").iterdir()] == ["turbo.png"]


def test_the_interval_s_bound_is_held_to_the_limit(tmp_path: Path) -> None:
    summary, _ = stub.run(stub.of(COUNT), tmp_path)
    cost = summary["levels"]["turbo"]["scores"]["ssim_cost"]
    for value, outcome, code in (
        (cost["low"], Outcome.PASS, 0),
        (cost["mean"], Outcome.REGRESSION, 1),  # the mean alone would pass
    ):
        limits = [Limit(score="ssim_cost", value=value)]
        _, verdicts = stub.run(stub.of(COUNT), tmp_path, limits=limits)
        assert [verdict.outcome for verdict in verdicts] == [outcome]
        assert int(exit_code(verdicts)) == code
        words = f"the cost of `turbo` over {COUNT} prompts is {cost['mean']:.4f} in ssim_cost"
        assert verdicts[0].reason.startswith(f"{words} (95 % interval {cost['low']:.4f} to")
        assert verdicts[0].reason.endswith(f", limit {value:g}")


def test_one_prompt_has_no_interval_and_no_limit(tmp_path: Path) -> None:
    summary, verdicts = stub.run(stub.of(1), tmp_path)
    cost = summary["levels"]["turbo"]["scores"]["ssim_cost"]["mean"]
    words = f"over 1 prompt is {cost:.4f} in ssim_cost (one prompt: no interval)"
    assert words in verdicts[0].reason
    assert f"| {cost:.4f} (one prompt: no interval) |" in (tmp_path / "summary.md").read_text()
    _, verdicts = stub.run(stub.of(1), tmp_path, limits=[Limit(score="ssim_cost", value=-1)])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.FAULT]
    assert verdicts[0].reason.endswith(f"{words}, and limit -1 is of an interval's bound")
    assert int(exit_code(verdicts)) == 2
    _, verdicts = stub.run(
        stub.of(2), tmp_path / "two", limits=[Limit(score="ssim_cost", value=-1)]
    )
    assert "95 % interval" in verdicts[0].reason
    assert verdicts[0].outcome is Outcome.PASS


def test_a_limit_on_what_was_not_measured_is_a_fault(tmp_path: Path) -> None:
    limits = [Limit(score="attributes_right", value=0.0, level="turbo")]
    _, verdicts = stub.run(stub.of(COUNT), tmp_path, limits=limits)
    assert [verdict.outcome for verdict in verdicts] == [Outcome.RECORDED, Outcome.FAULT]
    assert "was not measured: no prompt of this source has it" in verdicts[1].reason


def test_a_worthless_image_is_a_fault_that_names_its_prompt(tmp_path: Path) -> None:
    def build(level: Level) -> Any:
        class Broken(Always):
            def __enter__(self) -> Any:
                return lambda requests: np.stack([one(level, r) for r in requests])

        return Broken()

    def one(level: Level, request: Request) -> Any:
        image = stub.image(level, request)
        return image * np.nan if level.name == "turbo" and request.seed == 7 else image

    summary, verdicts = stub.run(stub.of(COUNT), tmp_path, build)
    assert summary["levels"]["turbo"]["faults"] == {"NaN or infinite pixels": [7]}
    assert verdicts[0].outcome is Outcome.FAULT
    assert "1 images are worthless: NaN or infinite pixels of the prompts 7" in verdicts[0].reason
    assert summary["levels"]["turbo"]["scores"]["ssim_cost"]["count"] == COUNT - 1


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("0.9", Limit(score="ssim_cost", value=0.9)),
        ("psnr_cost_db=30", Limit(score="psnr_cost_db", value=30.0)),
        (
            "turbo:attributes_right=-.01",
            Limit(score="attributes_right", value=-0.01, level="turbo"),
        ),
    ],
)
def test_a_limit_is_read(text: str, limit: Limit) -> None:
    assert parse_limit(text, ["turbo"]) == limit


@pytest.mark.parametrize("text", ["", "x", "ssim_cost=", "nan", "ssim=1", "final:ssim_cost=1"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SdoptError, match="--limit"):
        parse_limit(text, ["turbo"])


def test_a_level_is_named_once() -> None:
    evaluation, base = stub.of(1), get_level("hoisted")
    with pytest.raises(SdoptError, match="'hoisted' is named twice"):
        evaluation_of(evaluation.source, evaluation.prompts, base, [base])
    for batch in (0, 10**12):
        with pytest.raises(SdoptError, match=f"--batch is {batch}; give 1 to 256"):
            stub.of(1, batch=batch)
    with pytest.raises(SdoptError, match="--part is 10000000; give 1 to 100000"):
        stub.of(1, part=10**7)


def test_progress_tells_the_time_left_over_all_processes(tmp_path: Path) -> None:
    watch = module.Watch(evaluation=stub.of(COUNT), place=Folder(tmp_path), say=print)
    watch.began -= 60
    assert watch.line(3).startswith("3 of 12 parts of 4 prompts, 0.2 images / s, 3 min left")
    assert watch.line(0).endswith("0 images / s, ...")
