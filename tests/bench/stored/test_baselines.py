"""Baselines are written whole, numbered once, and refused by name when they are not usable."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pynvml
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdopt.bench.stored.baselines import (
    TEXT_KEY,
    image_path,
    limits_path,
    load_image,
    load_limits,
    load_work,
    read_image,
    request_fields,
    save_image,
    save_work,
    work_path,
)
from sdopt.errors import BrokenFileError
from sdopt.levels import FINAL, Level
from sdopt.pipelines.workload import Request
from sdopt.util.files import write_whole
from sdopt.util.hardware import Hardware, hardware_of

H100 = Hardware(name="NVIDIA H100 80GB HBM3", memory_gib=80, detail="700 W")
REQUEST = Request(name="cat", prompt="a cat", negative_prompt="blurry", seed=3)


def written(path: Path, content: bytes | str | dict[str, Any]) -> Path:
    """The path, holding bytes, text or JSON."""
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def stored_image(folder: Path, request: Request = REQUEST) -> Path:
    path = folder / f"{request.name}.png"
    settings = {"level_fields": FINAL.as_dict(), "guidance_scale": 7.5}
    save_image(path, image(), {**request_fields(request), **settings})
    return path


def load(path: Path, level: Level = FINAL, guidance_scale: float = 7.5) -> NDArray[np.uint8]:
    return load_image(path, REQUEST, level, guidance_scale)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


# Hardware


def test_a_hardware_key_is_a_folder_name() -> None:
    assert H100.key == "nvidia-h100-80gb-hbm3-80gib-700-w"
    assert str(H100) == "NVIDIA H100 80GB HBM3, 80 GiB, 700 W"


@pytest.mark.parametrize(
    "changes", [{"name": "NVIDIA A100"}, {"memory_gib": 40}, {"detail": "350 W"}]
)
def test_each_part_of_the_hardware_makes_another_key(changes: dict[str, Any]) -> None:
    assert Hardware(**{**vars(H100), **changes}).key != H100.key


def test_a_cpu_is_known_by_its_name_memory_and_cores() -> None:
    hardware = hardware_of(torch.device("cpu"))
    assert hardware.name.startswith("cpu ")
    assert hardware.memory_gib >= 1
    assert hardware.detail.endswith(" cores")


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [("processor : 0\nmodel name\t: Fast CPU @ 3GHz \n", "Fast CPU @ 3GHz"), ("", "riscv64")],
)
def test_a_cpu_without_a_name_is_its_architecture(
    cpuinfo: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert hardware_of(torch.device("cpu")).name == f"cpu {name}"


def test_a_cpu_is_known_without_procfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", failing)
    monkeypatch.setattr("platform.processor", lambda: "arm")
    assert hardware_of(torch.device("cpu")).name == "cpu arm"


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CUDA device that torch describes as an H100."""
    properties = SimpleNamespace(name=H100.name, total_memory=80 * 2**30, uuid="1a2b")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return torch.device("cuda", 0)


def test_a_gpu_is_known_by_its_name_memory_and_power_limit(
    h100: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    limits = {"GPU-1a2b": 700_000}  # milliwatts
    monkeypatch.setattr(pynvml, "nvmlDeviceGetEnforcedPowerLimit", limits.__getitem__)
    assert hardware_of(h100) == H100


@pytest.mark.parametrize(
    ("call", "status"),
    [
        ("nvmlInit", pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
        ("nvmlDeviceGetEnforcedPowerLimit", pynvml.NVML_ERROR_NOT_SUPPORTED),
    ],
)
def test_a_gpu_without_a_power_limit_is_refused(
    call: str, status: int, h100: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise pynvml.NVMLError(status)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, call, refuse)
    with pytest.raises(BrokenFileError) as caught:
        hardware_of(h100)
    assert "power limit of GPU 1a2b" in str(caught.value)
    assert "nvidia-smi --query --display=POWER" in str(caught.value)


# Writing


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_whole(path, b"content")
    assert path.read_bytes() == b"content"
    assert names_in(path.parent) == ["file"]


def test_a_file_is_readable_by_others(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.chmod", "pathlib.Path.replace"])
@pytest.mark.parametrize("before", [None, b"before"])
def test_an_error_while_writing_leaves_everything_as_it_was(
    broken: str, before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(broken, failing)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"content")
    assert names_in(tmp_path) == (["file"] if before else [])
    assert not before or path.read_bytes() == before


def test_an_interruption_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"content")
    assert names_in(tmp_path) == []


# Images


def test_an_image_is_filed_by_baseline_set_level_and_prompt(tmp_path: Path) -> None:
    path = image_path(tmp_path, "embedded--mine", "final", "cat")
    assert path == tmp_path / "images" / "embedded--mine" / "final" / "cat.png"


def test_a_stored_image_comes_back_as_it_was(tmp_path: Path) -> None:
    path = stored_image(tmp_path / "new")
    np.testing.assert_array_equal(load(path), image())
    assert names_in(path.parent) == ["cat.png"]


def test_a_stored_image_says_how_it_was_made(tmp_path: Path) -> None:
    save_image(tmp_path / "cat.png", image(), {"seed": 3, "level": "final"})
    assert read_image(tmp_path / "cat.png")[1] == {"seed": 3, "level": "final"}


def test_an_error_while_storing_an_image_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored_image(tmp_path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        save_image(path, image(), {})
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["cat.png"]


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    with pytest.raises(BrokenFileError) as caught:
        load(path)
    assert str(caught.value) == f"no baseline image {path}"


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_named_and_left_as_it_is(fraction: float, tmp_path: Path) -> None:
    path = stored_image(tmp_path)
    whole = path.read_bytes()
    part = whole[: int(fraction * len(whole))]
    path.write_bytes(part)
    with pytest.raises(BrokenFileError, match=r"cannot be decoded.*left as it is") as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == part


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    path = stored_image(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BrokenFileError, match="cannot be decoded") as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        ("PNG", "says nothing about how it was made"),
        ("JPEG", "is no PNG file, whatever its name says"),
        ("GIF", "is no PNG file, whatever its name says"),
        ("TIFF", "is no PNG file, whatever its name says"),
    ],
)
def test_an_image_that_somebody_else_made_is_refused(
    form: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "cat.png"
    Image.fromarray(image()).save(path, format=form)
    refused(path, complaint)


def refused(path: Path, complaint: str) -> None:
    """It is left as it is, and the error names it, the complaint and the next step."""
    before = path.read_bytes()
    with pytest.raises(BrokenFileError) as caught:
        load(path)
    assert f"{path} {complaint}" in str(caught.value)
    assert "it was left as it is; remove it, or put a sound one there" in str(caught.value)
    assert caught.value.path == path
    assert path.read_bytes() == before


def png(width: int, height: int, bits: int, color: int, data: bytes, text: str = "{}") -> bytes:
    """A PNG file of these rows, each with its filter byte; Pillow writes none of 16-bit RGB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        ends = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + ends

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"tEXt", b"sdopt\0" + text.encode()),
            chunk(b"IDAT", zlib.compress(data)),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(
    ("bits", "color", "values", "complaint"),
    [
        (16, 0, 2, "holds 16-bit grey; images are stored as 8-bit RGB"),
        (16, 2, 6, "holds 16-bit RGB; images are stored as 8-bit RGB"),
        (8, 0, 1, "holds 8-bit grey; images are stored as 8-bit RGB"),
        (8, 6, 4, "holds 8-bit RGB with alpha; images are stored as 8-bit RGB"),
        (8, 3, 1, "holds 8-bit palette; images are stored as 8-bit RGB"),
    ],
)
def test_an_image_of_other_values_is_refused(
    bits: int, color: int, values: int, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(png(2, 2, bits, color, (b"\0" + b"\7" * 2 * values) * 2))
    refused(path, complaint)


def test_an_image_too_large_to_decode_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(png(16000, 16000, 8, 2, b""))
    refused(path, "is 16000 x 16000 pixels large")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("null", "says 'null' about how it was made"),
        ("[]", "says '[]' about how it was made"),
        ("{", "says in no JSON how it was made"),
        ('{"level_fields": null}', "is not sound: level_fields is None, not settings by name"),
        ('{"level_fields": {"steps": null}}', "is not sound: steps is None"),
        ('{"guidance_scale": null}', "is not sound: guidance_scale is None"),
        ('{"guidance_scale": NaN}', "is not sound: guidance_scale is nan"),
        ('{"prompt": null}', "is not sound: prompt is None"),
    ],
)
def test_an_image_with_a_broken_text_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(png(1, 1, 8, 2, b"\0\1\2\3", text))
    refused(path, complaint)


def test_a_text_too_large_to_unpack_is_refused(tmp_path: Path) -> None:
    path = stored_image(tmp_path)
    with Image.open(path) as image:
        image.load()
        text = PngInfo()
        text.add_text("sdopt", "x" * 2**21, zip=True)
        image.save(path, pnginfo=text)
    refused(path, "cannot be decoded")


def test_an_image_of_several_frames_is_refused(tmp_path: Path) -> None:
    path = stored_image(tmp_path)
    frames = [Image.fromarray(image()), Image.fromarray(255 - image())]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    refused(path, "holds 2 images")


@pytest.mark.parametrize(
    "changes", [{"prompt": "a dog"}, {"negative_prompt": ""}, {"seed": 4}], ids=str
)
def test_an_image_of_another_request_is_named_with_both(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = stored_image(tmp_path, Request(**{**vars(REQUEST), **changes}))
    with pytest.raises(BrokenFileError, match="made for another request") as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert repr(*changes.values()) in message
    assert str(request_fields(REQUEST)) in message


@pytest.mark.parametrize(
    ("level", "guidance_scale", "change"),
    [
        (replace(FINAL, steps=15), 7.5, f"steps {FINAL.steps} -> 15"),
        (replace(FINAL, cfg_cutoff=None), 7.5, f"cfg_cutoff {FINAL.cfg_cutoff} -> None"),
        (FINAL, 7.0, "guidance_scale 7.5 -> 7.0"),
    ],
    ids=str,
)
def test_an_image_of_other_settings_is_named_with_both(
    level: Level, guidance_scale: float, change: str, tmp_path: Path
) -> None:
    path = stored_image(tmp_path)
    with pytest.raises(BrokenFileError, match="made with other settings") as caught:
        load(path, level, guidance_scale)
    assert str(caught.value) == f"{path} was made with other settings: {change}"


def test_an_image_of_a_level_that_was_only_renamed_or_explained_is_used(tmp_path: Path) -> None:
    path = stored_image(tmp_path)
    np.testing.assert_array_equal(load(path, replace(FINAL, name="last", why="so")), image())


@pytest.mark.parametrize("made_by", ["[]", "3"])
def test_an_image_with_a_foreign_note_is_refused(made_by: str, tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text(TEXT_KEY, made_by)
    path = tmp_path / "cat.png"
    Image.fromarray(image()).save(path, pnginfo=text)
    with pytest.raises(BrokenFileError, match="how it was made") as caught:
        load(path)
    assert str(path) in str(caught.value)


# Limits


def test_limits_are_filed_by_source(tmp_path: Path) -> None:
    assert limits_path(tmp_path, "embedded") == tmp_path / "images" / "embedded" / "limits.json"


def test_limits_are_read_by_level_and_kind(tmp_path: Path) -> None:
    rows = {"drift": {"measured": 0.9999, "limit": 0.999}, "ground_truth": {"limit": 0.7}}
    path = written(tmp_path / "limits.json", {"levels": {"final": rows}})
    assert load_limits(path) == {"final": {"drift": 0.999, "ground_truth": 0.7}}


def test_a_source_without_limits_has_none(tmp_path: Path) -> None:
    assert load_limits(tmp_path / "limits.json") == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["cannot be read"]),
        ('{"levels": {"final": ', ["cannot be read"]),
        ("[]", ["holds no JSON object"]),
        ({}, ["incomplete", "levels"]),
        ({"levels": ["final"]}, ["incomplete"]),
        ("[" * 100_000, ["cannot be read"]),
        ({"levels": {"final": 0.99}}, ["'final'", "drift"]),
        ({"levels": {"final": {"drift": 0.99}}}, ["'final': drift is 0.99", "no limit"]),
        *(
            ({"levels": {"final": {"drift": {"limit": value}}}}, [f"drift.limit is {value!r}"])
            for value in (None, "high", "0.5", True, -1, 0, 1e9, 10**400, float("nan"), [0.9])
        ),
        *(
            (
                {"levels": {"final": {"drift": {"limit": 0.9}, kind: {"limit": value}}}},
                [f"'final': {kind}.limit is {value!r}"],
            )
            for kind, value in (("ground_truth", -1), ("cost", 2), ("latents", 0), ("float64", 1e9))
        ),
        (
            {"levels": {"final": {"drift": {"limit": 0.9, "measured": "0.9"}}}},
            ["'final': drift.measured is '0.9'"],
        ),
        ({"levels": {"final": {}}}, ["'final'", "drift"]),
        (
            {"schema": "1", "levels": {}},
            ["is of schema '1', which another sdopt wrote: this one reads 1"],
        ),
        ({"levels": {"final": {"cost": {"limit": 0.9}}}}, ["'final'", "['cost']"]),
        (
            {"levels": {"final": {"drift": {"limit": 0.9}, "drfit": {"limit": 0.9}}}},
            ["'final'", "'drfit'", "drift and maybe cost, ground_truth, latents, float64"],
        ),
    ],
)
def test_broken_limits_are_named_and_left_as_they_are(
    content: str | dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path / "limits.json", content)
    before = path.read_bytes()
    with pytest.raises(BrokenFileError, match="left as it is") as caught:
        load_limits(path)
    message = str(caught.value)
    assert [word for word in [str(path), *words] if word not in message] == []
    assert path.read_bytes() == before


# Work


COUNTS = {
    "unet_evaluations": 29,
    "tflop": 0.1 + 0.2,
    "calls": {"unet": 20},
    "tflop_by_module": {"unet.mid_block": 1e-9},
}


def test_counts_of_work_are_filed_by_baseline_set_for_all_hardware(tmp_path: Path) -> None:
    assert work_path(tmp_path, "embedded--mine") == tmp_path / "work" / "embedded--mine.json"


def test_stored_counts_come_back_to_the_last_digit(tmp_path: Path) -> None:
    path = work_path(tmp_path / "new", "embedded")
    save_work(path, "final", COUNTS)
    assert load_work(path) == {"final": COUNTS}
    assert names_in(path.parent) == ["embedded.json"]


def test_a_levels_counts_replace_its_own_alone(tmp_path: Path) -> None:
    path = tmp_path / "embedded.json"
    save_work(path, "final", COUNTS)
    save_work(path, "baseline", {**COUNTS, "unet_evaluations": 60})
    save_work(path, "final", {**COUNTS, "unet_evaluations": 28})
    stored = load_work(path)
    assert list(stored) == ["final", "baseline"]
    assert [row["unet_evaluations"] for row in stored.values()] == [28, 60]


def test_counts_that_differ_by_the_order_of_their_sums_stay_as_they_are(tmp_path: Path) -> None:
    path = work_path(tmp_path, "embedded")
    counts = {"tflop": 31.827112763391998, "tflop_by_module": {"unet.fused": 5.9750298419200005}}
    save_work(path, "final", counts)
    before = path.read_bytes()
    save_work(
        path, "final", {"tflop": 31.827112763392, "tflop_by_module": {"unet.fused": 5.97502984192}}
    )
    assert path.read_bytes() == before
    changed = {"tflop": 31.827112763392, "tflop_by_module": {"unet.fused": 5.975029842}}
    save_work(path, "final", changed)
    assert load_work(path) == {"final": changed}


def test_without_stored_counts_there_are_none(tmp_path: Path) -> None:
    assert load_work(tmp_path / "embedded.json") == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_counts_that_json_cannot_hold_are_not_stored(value: float, tmp_path: Path) -> None:
    path = tmp_path / "embedded.json"
    save_work(path, "final", COUNTS)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_work(path, "final", {**COUNTS, "tflop": value})
    assert load_work(path) == {"final": COUNTS}


def test_an_error_while_storing_counts_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "embedded.json"
    save_work(path, "final", COUNTS)
    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match="No space left"):
        save_work(path, "baseline", COUNTS)
    assert load_work(path) == {"final": COUNTS}
    assert names_in(tmp_path) == ["embedded.json"]


BROKEN_WORK: list[tuple[str | dict[str, Any], str]] = [
    ("", "cannot be read"),
    ('{"levels": {"final": ', "cannot be read"),
    ("[]", "holds no JSON object"),
    ({}, "holds no counts by level"),
    (
        {"schema": 2, "levels": {"final": {}}},
        "is of schema 2, which another sdopt wrote: this one reads 1",
    ),
    ({"levels": ["final"]}, "holds no counts by level"),
    ({"levels": {"final": 29}}, "holds no counts by level"),
]


@pytest.mark.parametrize(("content", "complaint"), BROKEN_WORK)
def test_broken_counts_are_named_and_left_as_they_are(
    content: str | dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "embedded.json", content)
    before = path.read_bytes()
    for use in (load_work, lambda path: save_work(path, "final", COUNTS)):
        with pytest.raises(BrokenFileError, match=f"{complaint}.*left as it is") as caught:
            use(path)
        assert str(path) in str(caught.value)
    assert path.read_bytes() == before
