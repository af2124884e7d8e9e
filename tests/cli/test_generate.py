"""`sdopt generate` says how an image was made, makes it again, and refuses what it cannot do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from logging import Handler, LogRecord
from pathlib import Path
from typing import Any

import pytest
from command import QUICK, STAR, refusal
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdopt.cli import stamp
from sdopt.cli.app import main


@pytest.fixture(scope="module")
def star(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generate") / "star.png"
    assert main(["generate", STAR, *QUICK, "--seed", "3", "-o", str(out)]) == 0
    return out


@pytest.fixture
def stamped(star: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """The star with something else in it about how it was made."""

    def write(text: Any) -> Path:
        info = PngInfo()
        info.add_text("sdopt", text if isinstance(text, str) else json.dumps(text))
        path = tmp_path / "stamped.png"
        Image.open(star).save(path, pnginfo=info)
        return path

    return write


def text_in(path: Path) -> Any:
    with Image.open(path) as image:
        return json.loads(image.info["sdopt"])


def test_the_png_says_how_it_was_made(star: Path) -> None:
    text = text_in(star)
    (row,) = text["images"]
    assert row == {
        "level": "turbo",
        "source": "embedded",
        "prompt": STAR,
        "negative_prompt": "",
        "seed": 3,
        "width": 64,
        "height": 64,
        "steps": 2,
        "guidance_scale": 3.0,
        "lora": None,
        "dtype": None,
    }
    assert {"sdopt", "torch", "diffusers", "threads", "hardware"} <= set(text["versions"])


def test_the_same_image_again_has_the_same_bits(
    star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again.png"
    assert main(["generate", "--like", str(star), "-o", str(again)]) == 0
    assert f"the same bits as {star}" in capsys.readouterr().out
    assert Image.open(again).tobytes() == Image.open(star).tobytes()


def test_another_bit_and_another_version_are_told(
    stamped: Callable[[Any], Path], star: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_in(star)
    text["versions"]["torch"] = "1.0\x1b[31m"
    path = stamped(text)
    info = PngInfo()
    info.add_text("sdopt", json.dumps(text))
    image = Image.open(path).convert("RGB")
    red, green, blue = image.getpixel((0, 0))
    image.putpixel((0, 0), (red ^ 1, green, blue))
    image.save(path, pnginfo=info)
    assert main(["generate", "--like", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"not the bits of {path}: 1 values differ, by 1 of 255 at most" in told
    assert f"{path} was made with torch 1.0 [31m, here " in told
    assert path.with_name("stamped-again.png").is_file()
    assert main(["generate", "--like", str(path), "--force", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["same_bits"], answer["values_differing"]) == (False, 1)


def test_several_prompts_make_a_grid_whose_images_depend_on_nothing_else(
    star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "grid.png"
    file.write_text(f"\n{STAR}\na blue ring\n")
    arguments = ["generate", "a red star", "--file", str(file), *QUICK, "--seed", "3"]
    assert main([*arguments, "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["prompt"] for row in told["images"]] == ["a red star", STAR, "a blue ring"]
    assert all(row["ms"] > 0 for row in told["images"])
    assert told["peak_memory_mib"] > 0
    grid = Image.open(out)
    assert grid.size == (128, 128)
    assert grid.crop((64, 0, 128, 64)).tobytes() == Image.open(star).tobytes()


def test_prompts_with_seeds_of_their_own(tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.jsonl", tmp_path / "own.png"
    file.write_text('{"name": "a", "prompt": "a red star", "seed": 7}\n')
    assert main(["generate", "--file", str(file), *QUICK, "-o", str(out)]) == 0
    assert text_in(out)["images"][0]["seed"] == 7


def test_nothing_is_overwritten_unasked(
    star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = star.read_bytes()
    assert "is there already" in refusal(capsys, "generate", STAR, *QUICK, "-o", star)
    assert star.read_bytes() == before
    copy = tmp_path / "copy.png"
    copy.write_text("mine")
    assert main(["generate", "a red star", *QUICK, "-o", str(copy), "--force"]) == 0
    assert text_in(copy)["images"][0]["prompt"] == "a red star"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "there is no prompt"),
        (("--level", "trubo"), "unknown level 'trubo' (did you mean 'turbo'?)"),
        (("--source", "embeded"), "unknown source 'embeded'"),
        (("--source", "./none"), "there is no folder ./none"),
        (("--size", "0"), "--size is '0'"),
        (("--size", "100"), "multiples of 8"),
        (("--size", "8192"), "at most 4096"),
        (("--size", "64x"), "--size is '64x'"),
        (("--size", "٦٤"), "--size is"),
        (("--size", "72", "--source", "embedded"), "multiples of 64 px"),
        (("--steps", "0"), "--steps is 0"),
        (("--steps", "many"), "'--steps'"),
        (("--seed", "-1"), "--seed is -1"),
        (("--seed", str(2**63)), "--seed is 9223372036854775808"),
        (("--guidance", "nan"), "--guidance is nan"),
        (("--guidance", "-1"), "--guidance is -1"),
        (("--negative", "a dog", "--source", "embedded"), "unknown prompt word 'dog'"),
        (("--file", "none.txt"), "none.txt cannot be read as text"),
        (("--lora", "none.safetensors"), "--lora none.safetensors cannot be read"),
        (("-o", "star.jpg"), "name a .png file"),
        (("--nothing",), "No such option: --nothing"),
        (("--like", "none.png"), "--like makes the very image again"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    arguments: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = () if "-o" in arguments else ("-o", tmp_path / "out.png")
    prompt = ("a red star",) if arguments else ()
    assert reason in refusal(capsys, "generate", *prompt, *out, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file"),
        (b"", "cannot be read as a PNG image"),
        (b"hello", "cannot be read as a PNG image"),
        (1000, "cannot be read as a PNG image"),
    ],
)
def test_what_is_no_whole_png_is_named(
    content: bytes | int | None,
    reason: str,
    star: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(star.read_bytes()[:content] if isinstance(content, int) else content)
    assert f"{path} {reason}" in refusal(capsys, "generate", "--like", path)


def test_a_png_of_another_program_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.png"
    Image.new("RGB", (8, 8)).save(path)
    assert "does not say how it was made" in refusal(capsys, "generate", "--like", path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"level": "trubo"}, "unknown level 'trubo'"),
        ({"seed": True}, "seed is True"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"prompt": ["a"]}, "prompt is ['a']"),
        ({"lora": "x"}, "lora is no JSON object"),
        ({"lora": {"file": "x"}}, "lora is no file and sha256"),
        ({"extra": 1}, "an image has dtype, extra, "),
        ({"guidance_scale": 10**300}, "not a number from 0 to 1000"),
        ({"guidance_scale": 10**400}, "not a number from 0 to 1000"),
        ({"guidance_scale": float("nan")}, "not a number from 0 to 1000"),
        ({"lora": {"file": "a\0b", "sha256": "0"}}, "lora.file is 'a\\x00b', which can name no"),
        ({"lora": {"file": "\ud800", "sha256": "0"}}, "which can name no file"),
        ({"lora": {"file": "x" * 5000, "sha256": "0"}}, "which can name no file"),
        (
            {"lora": {"file": "/dev/zero", "sha256": "0"}},
            "/dev/zero cannot be read: it is no plain",
        ),
        ({"source": "x" * 5000}, "which can name no file; name a PNG that `sdopt generate` wrote"),
        ({"source": "a/" + "x" * 300}, "which can name no file"),
        ({"source": "a\0b"}, "which can name no file"),
        ({"prompt": "\ud800"}, "which holds half a character"),
        ({"negative_prompt": "\udfff"}, "which holds half a character"),
        ({"level": "\ud800"}, "which holds half a character"),
        ({"source": ""}, "source is empty"),
        ({"source": "somebody/something"}, "is not in the local cache; to download it, add"),
        ({"lora": {"file": "/none.safetensors", "sha256": "0"}}, "where the file lies now"),
    ],
)
def test_what_a_stranger_wrote_into_a_png_is_checked(
    change: dict[str, Any],
    reason: str,
    stamped: Callable[[Any], Path],
    star: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = text_in(star)
    text["images"][0].update(change)
    assert reason in refusal(capsys, "generate", "--like", stamped(text))


@pytest.mark.parametrize("what", ["fifo", "zero", "a folder"])
def test_only_a_plain_file_is_read(
    what: str,
    stamped: Callable[[Any], Path],
    star: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A pipe would be waited for, and a device has no end."""
    path = tmp_path / what
    if what == "fifo":
        os.mkfifo(path)
    elif what == "zero":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    text = text_in(star)
    text["images"][0]["lora"] = {"file": str(path), "sha256": "0"}
    png = stamped(text)
    for given in (
        ("--like", png),
        ("--like", path),
        ("--like", star, "--lora", path, "-o", tmp_path / "o.png"),
        ("a red star", "--lora", path, "-o", tmp_path / "o.png"),
        ("--file", path, "--source", "embedded"),
    ):
        if given[1] == star:
            continue  # made without adapters: refused before
        assert f"{path} cannot be read" in refusal(capsys, "generate", *given)


@pytest.mark.parametrize("source", ["x" * 5000, "a/" + "b" * 300, "a\0b"])
def test_a_source_that_no_file_could_have_is_named_with_the_choices(
    source: str, star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.png"
    for given in ((STAR, "-o", out), ("--like", star, "-o", out)):
        told = refusal(capsys, "generate", *given, "--source", source)
        assert "unknown source" in told
        assert "embedded, sd15-random" in told
        assert len(told) < 400


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[" * 10_000, '{"schema": 2}', '{"schema": 1, "images": []}']
)
def test_what_says_nothing_sound_is_refused(
    text: str, stamped: Callable[[Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "but not soundly" in refusal(capsys, "generate", "--like", stamped(text))


class Harm:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["lora.bin", "lora.safetensors"])
def test_a_lora_that_is_a_pickle_is_refused_and_never_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, harm = tmp_path / name, tmp_path / "harm"
    file.write_bytes(pickle.dumps(Harm(harm)))
    told = refusal(capsys, "generate", "a red star", "--lora", file, "-o", tmp_path / "out.png")
    assert "is not a whole safetensors file" in told
    assert not harm.exists()


def test_a_folder_of_pickled_weights_is_refused(
    micro: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, harm = tmp_path / "pickled", tmp_path / "harm"
    shutil.copytree(micro, folder)
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.with_name("diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Harm(harm)))
    weights.unlink()
    out = tmp_path / "out.png"
    told = refusal(
        capsys, "generate", "a cat", "--level", "baseline", "--source", folder, "-o", out
    )
    assert "cannot be loaded" in told
    assert "no file named diffusion_pytorch_model.safetensors" in told
    assert caplog.records == []
    assert not harm.exists()


class Notices(Handler):
    """What diffusers says."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: LogRecord) -> None:
        self.said.append(record.getMessage())


def test_a_lora_changes_the_image_and_another_one_is_not_taken_for_it(
    star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers.utils import logging
    from lora import lora
    from safetensors.torch import save_file

    import sdopt

    file, out = tmp_path / "lora.safetensors", tmp_path / "out.png"
    notices = Notices()
    logging.add_handler(notices)
    adapters = lora(sdopt.load_pipeline("baseline", source="embedded"))
    save_file(adapters, file)
    arguments = ["generate", STAR, *QUICK, "--seed", "3", "--lora", str(file)]
    assert main([*arguments, "-o", str(out)]) == 0
    logging.remove_handler(notices)
    assert notices.said == []  # the text encoder has no adapters, and nobody needs to know
    assert Image.open(out).tobytes() != Image.open(star).tobytes()
    moved = file.rename(tmp_path / "moved.safetensors")
    assert "where the file lies now" in refusal(capsys, "generate", "--like", out)
    assert main(["generate", "--like", str(out), "--lora", str(moved)]) == 0
    save_file({name: 2 * one for name, one in adapters.items()}, moved)
    told = refusal(capsys, "generate", "--like", out, "--lora", moved, "--force")
    assert "its SHA-256 differs" in told


def test_a_lora_for_another_model_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"something.weight": torch.zeros(2)}, file)
    told = refusal(capsys, "generate", STAR, *QUICK, "--lora", file, "-o", tmp_path / "out.png")
    assert "source 'embedded'" in told


def test_a_repository_is_named_by_its_commit(tmp_path: Path) -> None:
    from dataclasses import replace

    from sdopt.cli.generating import lasting_name
    from sdopt.weights import hub
    from sdopt.weights.sources import resolve

    embedded = resolve("embedded")
    assert lasting_name("auto", embedded) == "embedded"
    found = replace(embedded, folder=tmp_path / "abcdef", tiny_vae=hub.TAESD)
    assert lasting_name("me/mine@main", found) == "me/mine@abcdef"
    assert lasting_name("auto", found) == f"{hub.STABLE_DIFFUSION_15.repo_id}@abcdef"
    assert lasting_name("./mine", replace(found, tiny_vae=None)) == "./mine"


def test_differences_name_what_is_gone_and_what_is_new() -> None:
    told = stamp.differences({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "3"})
    assert list(told) == ["b 1, here 2", "d unknown, here 3", "c 1, here none"]


def test_another_dtype_stands_in_the_png_and_is_taken_again(
    star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, again = tmp_path / "brain.png", tmp_path / "again.png"
    arguments = ["generate", STAR, *QUICK, "--seed", "3", "--dtype", "bfloat16"]
    assert main([*arguments, "-o", str(out)]) == 0
    assert text_in(out)["images"][0]["dtype"] == "bfloat16"
    assert Image.open(out).tobytes() != Image.open(star).tobytes()
    assert main(["generate", "--like", str(out), "-o", str(again)]) == 0
    # What the environment says now is not what the star was made in.
    monkeypatch.setenv("SDOPT_DTYPE", "bfloat16")
    assert main(["generate", "--like", str(star), "-o", str(again), "--force"]) == 0
    capsys.readouterr()
    told = refusal(capsys, "generate", "--like", star, "--dtype", "bfloat16", "-o", again)
    assert "drop the prompts" in told


def test_an_image_that_says_no_dtype_is_of_the_usual_one(
    star: Path, stamped: Callable[[Any], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    text = text_in(star)
    del text["images"][0]["dtype"]
    assert stamp.read_png(stamped(text))[1].recipes[0].dtype is None
    text["images"][0]["dtype"] = "float8"
    assert "dtype is 'float8', not of float16, float32, bfloat16" in refusal(
        capsys, "generate", "--like", stamped(text)
    )


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("bfloat61", "unknown --dtype 'bfloat61' (did you mean 'bfloat16'?)"),
        ("float16", "unknown dtype of a cpu device 'float16'"),
    ],
)
def test_a_dtype_that_is_not_offered_is_named_with_the_choices(
    dtype: str,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refusal(capsys, "generate", STAR, "--dtype", dtype, "-o", tmp_path / "no.png")
    assert says in told
    assert "bfloat16" in told.split("choose from: ")[1]
