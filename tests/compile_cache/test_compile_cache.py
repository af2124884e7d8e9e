"""A packed compile cache travels, fits or is refused by name, and never leaves its folder."""

from __future__ import annotations

import io
import json
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

import sdopt
from sdopt.cli.app import main
from sdopt.compile_cache import archive, files, identity, packing, place
from sdopt.compile_cache.archive import Manifest
from sdopt.errors import BrokenFileError, ForeignCacheError, SdoptError

HERE = {"GPU": "H100", "torch": "2.11.0", "triton": "3.6.0", "kernels": "aaaa"}
KERNEL = "triton/ABC"
FOR_HOPPER = """
import importlib.util, sys
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
pointers = dict.fromkeys(("x", "weight", "bias", "out"), "*fp16")
types = pointers | {"rows": "i32", "epsilon": "fp32"}
constants = {"C": 320, "ROWS": 4, "WIDTH": 512}
names = [parameter.name for parameter in kernels.sdopt_layer_norm.params]
signature = {name: types.get(name, "constexpr") for name in names}
knobs.compilation.listener = lambda cache_hit, **rest: print("hit" if cache_hit else "compiled")
source = ASTSource(fn=kernels.sdopt_layer_norm, signature=signature, constexprs=constants)
compile(source, target=GPUTarget("cuda", 90, 32))
"""
"""Triton compiles for a GPU that is not there."""
A_GRAPH = """
import sys
import sdopt
import torch
from torch._dynamo.utils import counters

if len(sys.argv) > 1:
    sdopt.use_compile_cache(sys.argv[1])
torch.compile(lambda x: (x.sin() + 1).sum())(torch.ones(64))
print({name: n for name, n in counters["inductor"].items() if name.startswith("fxgraph")})
"""
VARIABLES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_STORE_BINARY_ONLY")
Build = Callable[..., Path]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """A machine to be on, a cache folder of its own, and the environment put back afterwards."""
    machine = dict(HERE)
    monkeypatch.setattr(place, "made_here", lambda: machine)
    monkeypatch.setattr(packing, "made_here", lambda: machine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in VARIABLES:
        monkeypatch.setenv(name, "before")
    return machine


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A folder as the two compilers leave it."""
    folder = tmp_path / "compiled"
    kernel = folder / KERNEL
    members = {f"k.{end}": str(kernel / f"k.{end}") for end in ("ptx", "cubin", "json")}
    write(kernel / "__grp__k.json", json.dumps({"child_paths": members}))
    for name in members:
        write(kernel / name, name)
    write(folder / "triton/DEF/cuda_utils.so", "binary")
    write(folder / "inductor/fxgraph/ab/entry", "graph" * 100)
    write(folder / "inductor/ab/code.py", "1")
    for passing in ("inductor/locks/x.lock", "triton/ABC/tmp.pid_1_2/k.cubin", "inductor/y.lock"):
        write(folder / passing, "")
    return folder


@pytest.fixture
def packed(compiled: Path, tmp_path: Path) -> Path:
    return pack(tmp_path / "cache.tar.xz", files.kept(compiled))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def unpack(file: Path, folder: Path) -> None:
    assert main(["cache", "unpack", str(file), str(folder)]) == 0


def pack(file: Path, contents: Mapping[str, bytes], **made_for: str) -> Path:
    archive.pack(file, contents, made_for=HERE | made_for, levels=("turbo",), source="sd15-random")
    return file


def repacked(file: Path, *changed: tuple[tarfile.TarInfo, bytes]) -> Path:
    """The file with members put in the place of those of the same name, or behind all."""
    with tarfile.open(file) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    new = {member.name: (member, content) for member, content in changed}
    kept = [new.pop(member.name, (member, content)) for member, content in members]
    with tarfile.open(file, "w:xz") as tar:
        for member, content in (*kept, *new.values()):
            tar.addfile(member, io.BytesIO(content))
    return file


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size, found.type, found.linkname = len(content), kind, "/etc/passwd"
    return found


def manifest_of(file: Path) -> Manifest:
    return archive.read(file)[0]


def manifest_member(**fields: object) -> tuple[tarfile.TarInfo, bytes]:
    content = json.dumps({"schema": archive.SCHEMA, **fields}).encode()
    return member(archive.MANIFEST, content), content


# What is packed.


def test_what_is_no_use_in_another_process_is_left_out(compiled: Path) -> None:
    assert sorted(files.kept(compiled)) == [
        "inductor/ab/code.py",
        "inductor/fxgraph/ab/entry",
        f"{KERNEL}/__grp__k.json",
        f"{KERNEL}/k.cubin",
        f"{KERNEL}/k.json",
        "triton/DEF/cuda_utils.so",
    ]


def test_a_link_in_a_compile_folder_is_not_followed(compiled: Path) -> None:
    (compiled / "triton" / "DEF" / "link").symlink_to("/etc/passwd")
    assert "triton/DEF/link" not in files.kept(compiled)


def test_a_group_is_packed_without_its_folder(compiled: Path) -> None:
    group = files.kept(compiled)[f"{KERNEL}/__grp__k.json"]
    assert json.loads(group)["child_paths"] == {"k.cubin": "k.cubin", "k.json": "k.json"}


def test_an_unpacked_group_names_the_files_beside_it(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    unpack(packed, folder)
    group = json.loads((folder / KERNEL / "__grp__k.json").read_text())["child_paths"]
    assert group == {name: str(folder / KERNEL / name) for name in ("k.cubin", "k.json")}
    assert all(Path(path).is_file() for path in group.values())


@pytest.mark.parametrize("content", [b"", b"[]", b'{"child_paths": 3}', b"\xff"])
def test_a_group_that_triton_could_not_read_is_packed_as_it_is(
    compiled: Path, content: bytes
) -> None:
    (compiled / KERNEL / "__grp__k.json").write_bytes(content)
    assert files.kept(compiled)[f"{KERNEL}/__grp__k.json"] == content


def test_the_same_contents_make_the_same_file(compiled: Path, tmp_path: Path) -> None:
    contents = files.kept(compiled)
    one, two = (pack(tmp_path / name, contents).read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_manifest_is_the_first_member_and_counts_all_others(
    packed: Path, compiled: Path
) -> None:
    with tarfile.open(packed) as tar:
        names = tar.getnames()
    manifest = manifest_of(packed)
    assert names == [archive.MANIFEST, *manifest.files]
    assert manifest.unpacked_bytes == sum(map(len, files.kept(compiled).values()))
    assert (manifest.levels, manifest.source) == (("turbo",), "sd15-random")


# What is refused.


@pytest.mark.parametrize(
    ("made_for", "reason"),
    [
        ({"triton": "3.5.0"}, "of triton 3.5.0, this is 3.6.0"),
        ({"torch": "2.10.0"}, "of torch 2.10.0, this is 2.11.0"),
        ({"GPU": "A100"}, "of GPU A100, this is H100"),
        ({"kernels": "bbbb"}, "of kernels bbbb, this is aaaa"),
        ({"CPU": "EPYC"}, "of CPU EPYC, this is none"),
        ({"torch": "1", "GPU": "A100"}, "of GPU A100, this is H100; of torch 1, this is 2.11.0"),
    ],
)
def test_a_foreign_or_stale_file_is_refused_by_name(
    packed: Path, compiled: Path, made_for: dict[str, str], reason: str
) -> None:
    pack(packed, files.kept(compiled), **made_for)
    with pytest.raises(ForeignCacheError, match=f"^compile cache {packed} is {reason}$"):
        place.placed(packed)
    assert not place.root().exists()


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def last_byte_gone(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def plain_text(file: Path) -> None:
    file.write_text("no archive")


def other_archive(file: Path) -> None:
    with tarfile.open(file, "w:xz") as tar:
        tar.addfile(member("readme", b"x"), io.BytesIO(b"x"))


def empty_archive(file: Path) -> None:
    tarfile.open(file, "w:xz").close()


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()


def removed(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "is truncated or no tar.xz file"),
        (last_byte_gone, "is truncated or no tar.xz file"),
        (flipped, "is truncated or no tar.xz file"),
        (emptied, "is truncated or no tar.xz file"),
        (plain_text, "is truncated or no tar.xz file"),
        (other_archive, "does not begin with manifest.json"),
        (empty_archive, "does not begin with manifest.json"),
        (folder_in_its_place, "cannot be read"),
        (removed, "does not exist"),
    ],
)
def test_a_damaged_file_is_refused_by_name_and_nothing_is_put_in_place(
    packed: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(packed)
    with pytest.raises(BrokenFileError, match=f"^compile cache {packed} {reason}"):
        place.placed(packed)
    assert not place.root().exists()


def test_every_cut_is_noticed(packed: Path) -> None:
    whole = packed.read_bytes()
    for end in range(0, len(whole), 7):
        packed.write_bytes(whole[:end])
        with pytest.raises(BrokenFileError):
            archive.read(packed)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("/etc/cron.d/x", tarfile.REGTYPE, "leads out of its folder"),
        ("../x", tarfile.REGTYPE, "leads out of its folder"),
        ("triton/../../x", tarfile.REGTYPE, "leads out of its folder"),
        ("triton\\..\\x", tarfile.REGTYPE, "leads out of its folder"),
        ("triton/x", tarfile.SYMTYPE, "is a link, a device or a folder"),
        ("triton/x", tarfile.LNKTYPE, "is a link, a device or a folder"),
        ("triton/x", tarfile.CHRTYPE, "is a link, a device or a folder"),
        ("triton/x", tarfile.FIFOTYPE, "is a link, a device or a folder"),
        ("triton/x", tarfile.DIRTYPE, "is a link, a device or a folder"),
        ("triton/x", tarfile.REGTYPE, "which its manifest does not name"),
        (archive.MANIFEST, tarfile.REGTYPE, "is the manifest's own name"),
    ],
)
def test_a_member_that_no_packed_file_has_is_refused(
    packed: Path, name: str, kind: bytes, reason: str
) -> None:
    with lzma.open(packed) as stream:
        content = stream.read()
    buffer = io.BytesIO(content)
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        tar.addfile(member(name, kind=kind), io.BytesIO())
    packed.write_bytes(lzma.compress(buffer.getvalue()))
    with pytest.raises(BrokenFileError, match=f"{packed} holds .*{reason}"):
        place.placed(packed)
    assert [path for path in place.root().glob("**/*") if path.is_file()] == []


MADE_UP = {"made_for": HERE, "levels": [], "source": "", "files": {}}


def a_file(tmp_path: Path, manifest: bytes, *contents: tuple[str, bytes], more: int = 0) -> Path:
    """A packed file of any manifest and members, with that many zeros behind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in ((archive.MANIFEST, manifest), *contents):
            tar.addfile(member(name, content), io.BytesIO(content))
    path = tmp_path / "made-up.tar.xz"
    with lzma.open(path, "wb", preset=0) as stream:
        stream.write(buffer.getvalue())
        for _ in range(more // 2**20):
            stream.write(bytes(2**20))
    return path


def naming(*names: str, **fields: object) -> bytes:
    entries = {name: archive.entry(b"x") for name in names}
    return json.dumps({"schema": archive.SCHEMA, **MADE_UP, "files": entries, **fields}).encode()


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a", "a/b"), "'a' as a file and as the folder of 'a/b'"),
        (("x" * 300,), "is longer than a file system takes"),
        (("ä" * 150,), "is longer than a file system takes"),
        (("/".join(["x" * 100] * 20),), "is longer than a file system takes"),
        (("./a",), "is no plain path"),
        (("a//b",), "is no plain path"),
        (("a/",), "is no plain path"),
        (("",), "is no plain path"),
        (("a\nb",), "is no plain path"),
        (("a\x1b[31m",), "is no plain path"),
        (("a\ud800",), "is no plain path"),
        ((archive.MANIFEST,), "is the manifest's own name"),
    ],
)
def test_check_refuses_what_unpack_could_not_do(
    names: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = a_file(tmp_path, naming(*names))
    for command in (["check", str(path)], ["unpack", str(path), str(tmp_path / "out")]):
        assert main(["cache", *command]) == 2
        told = capsys.readouterr().err
        assert says in told
        assert told.count("\n") == 1
        assert "\x1b" not in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 100_000,
        b"{" * 10,
        b'{"schema": 1}',
        naming(made_for={"GPU": 3}),
        naming(made_for={"GPU": "a\x1b[31m"}),
        naming(levels=["a\nb"]),
        naming(files={"a": ["00", -1]}),
        naming(files={"a": ["00", True]}),
        naming(files={"a": ["00", 2**40]}),
        naming(files={"a": [1, 2]}),
        naming(schema=[[["x" * 999]]]),
        b'{"schema": 1' + b"0" * 5000 + b"}",
    ],
)
def test_a_manifest_that_is_none_is_one_line(
    manifest: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "check", str(a_file(tmp_path, manifest))]) == 2
    told = capsys.readouterr().err
    assert "manifest" in told or "schema" in told
    assert told.count("\n") == 1
    assert len(told) < 700


BOUNDED = """
import resource, sys
from sdopt.cli.app import main
import sdopt.compile_cache.packing
most = 2**20 * 256
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
code = main(["cache", "check", sys.argv[1]])
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < before + most
sys.exit(code)
"""


@pytest.mark.parametrize("what", ["zeros", "behind", "a member", "a header", "a manifest"])
def test_no_more_is_unpacked_than_the_manifest_says(what: str, tmp_path: Path) -> None:
    """A file of a few kB may hold gigabytes; here half a one."""
    much = 2**29
    if what == "behind":
        path = a_file(tmp_path, naming("a"), ("a", b"x"), more=much)
    else:
        path, head = tmp_path / "made-up.tar.xz", tarfile.TarInfo("a")
        head.size = much
        if what == "a header":
            head.type = tarfile.XHDTYPE
        buffer = io.BytesIO()
        if what in ("a member", "a header"):
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                manifest = naming("a")
                tar.addfile(member(archive.MANIFEST, manifest), io.BytesIO(manifest))
            kept = buffer.getvalue()[: 512 * (1 + -(-len(manifest) // 512))]
        if what == "a manifest":
            head.name = archive.MANIFEST
        begin = {"zeros": b"", "a manifest": head.tobuf()}.get(what)
        with lzma.open(path, "wb", preset=0) as stream:
            stream.write(kept + head.tobuf() if begin is None else begin)
            for _ in range(much // 2**20):
                stream.write(bytes(2**20))
    done = subprocess.run(
        (sys.executable, "-c", BOUNDED, str(path)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: compile cache ")


@pytest.mark.parametrize("command", ["check", "unpack"])
def test_what_is_no_plain_file_is_not_read(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        more = [str(tmp_path / "out")] if command == "unpack" else []
        assert main(["cache", command, str(path), *more]) == 2
        assert f"{path} cannot be read" in capsys.readouterr().err


def test_what_cannot_be_unpacked_leaves_nothing(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, written = Path.write_bytes, []

    def write_bytes(self: Path, content: bytes) -> int:
        written.append(self)
        if len(written) % 3 == 0:
            raise OSError(28, "No space left on device", str(self))
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty"):
        assert main(["cache", "unpack", str(packed), str(folder)]) == 2
        assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert [*(tmp_path / "empty").iterdir()] == []


@pytest.mark.parametrize("name", ["../x", "/x"])
def test_a_manifest_that_names_such_a_path_does_not_help(
    packed: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = manifest_of(packed).files | {name: archive.entry(b"x")}
    manifest = manifest_member(made_for=HERE, levels=[], source="", files=entries)
    repacked(packed, manifest, (member(name, b"x"), b"x"))
    assert main(["cache", "unpack", str(packed), str(tmp_path / "a" / "b")]) == 2
    assert "leads out of its folder" in capsys.readouterr().err
    assert not (tmp_path / "a" / "x").exists()


@pytest.mark.parametrize("content", [b"kOcubin", b"longer than before", b""])
def test_other_content_than_the_manifest_says_is_refused(packed: Path, content: bytes) -> None:
    name = f"{KERNEL}/k.cubin"
    repacked(packed, (member(name, content), content))
    with pytest.raises(BrokenFileError, match=r"holds another 'triton/ABC/k\.cubin' than"):
        place.placed(packed)


def test_a_member_that_is_missing_is_named(packed: Path) -> None:
    entries = manifest_of(packed).files | {"triton/GHI/k.cubin": ("00", 1)}
    repacked(packed, manifest_member(made_for=HERE, levels=[], source="", files=entries))
    with pytest.raises(BrokenFileError, match=r"lacks 1 of its files, triton/GHI/k\.cubin"):
        place.placed(packed)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "has a broken manifest"),
        (b"[]", "has a broken manifest"),
        (b"{}", "has a broken manifest"),
        (b'{"schema": 1, "files": {}}', "has a broken manifest"),
        (b'{"schema": 2}', "is of schema 2, this is 1"),
    ],
)
def test_a_broken_manifest_is_refused(packed: Path, content: bytes, reason: str) -> None:
    repacked(packed, (member(archive.MANIFEST, content), content))
    with pytest.raises(BrokenFileError, match=reason):
        place.placed(packed)


# Where it is put.


def test_the_private_folder_is_the_users_alone_and_named_after_the_contents(packed: Path) -> None:
    found = place.placed(packed)
    assert found.folder == place.root() / manifest_of(packed).digest
    modes = {stat.S_IMODE(folder.stat().st_mode) for folder in (found.folder, place.root())}
    assert modes == {0o700}
    assert (found.folder / KERNEL / "k.cubin").read_text() == "k.cubin"
    assert os.listdir(place.root()) == [found.folder.name]


def test_an_intact_folder_is_used_again_as_it_is(packed: Path) -> None:
    folder = place.placed(packed).folder
    write(folder / "triton/NEW/k.cubin", "compiled meanwhile")
    before = (folder / KERNEL / "k.cubin").stat().st_ino
    assert place.placed(packed).folder == folder
    assert (folder / KERNEL / "k.cubin").stat().st_ino == before
    assert (folder / "triton/NEW/k.cubin").exists()


@pytest.mark.parametrize("name", [f"{KERNEL}/k.cubin", f"{KERNEL}/__grp__k.json"])
@pytest.mark.parametrize("content", ["other", None])
def test_a_damaged_folder_is_unpacked_anew(packed: Path, name: str, content: str | None) -> None:
    path = place.placed(packed).folder / name
    before = path.read_text()
    path.write_text(content) if content else path.unlink()
    folder = place.placed(packed).folder
    assert (folder / name).read_text() == before
    assert os.listdir(place.root()) == [folder.name]


def test_a_full_disk_is_told_as_such_and_leaves_nothing(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SdoptError, match=r"cannot be unpacked: .*No space left on device"):
        place.placed(packed)
    assert os.listdir(place.root()) == []


def test_a_cache_folder_that_cannot_be_written_is_named(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "xdg").write_text("a file")
    with pytest.raises(SdoptError, match=r"nothing can be put into .*XDG_CACHE_HOME name"):
        sdopt.use_compile_cache(packed)


def test_several_at_once_get_the_same_whole_folder(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = []
    unpack = place._unpack
    monkeypatch.setattr(place, "_unpack", lambda *given: unpacked.append(given) or unpack(*given))
    with ThreadPoolExecutor(8) as pool:
        folders = {found.folder for found in pool.map(place.placed, [packed] * 16)}
    (folder,) = folders
    assert files.kept(folder) == archive.read(packed)[1]
    assert os.listdir(place.root()) == [folder.name]
    assert len(unpacked) == 1


def test_a_folder_that_nobody_asked_for_is_removed(packed: Path) -> None:
    old, young = place.make_folder(), place.make_folder()
    then = time.time() - (place.UNUSED_DAYS + 1) * 86_400
    os.utime(old, (then, then))
    place.placed(packed)
    assert (old.exists(), young.exists()) == (False, True)


def test_the_package_offers_it_and_both_compilers_are_told(packed: Path) -> None:
    folder = sdopt.use_compile_cache(packed)
    assert os.environ["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "inductor")


def test_what_does_not_fit_raises_with_the_next_step_and_changes_nothing(
    packed: Path, here: dict[str, str]
) -> None:
    here["triton"] = "3.7.1"
    message = (
        f"compile cache {packed} is of triton 3.6.0, this is 3.7.1; "
        f"next: sdopt cache pack {packed} --force --levels LEVEL,..."
    )
    with pytest.raises(SdoptError) as raised:
        sdopt.use_compile_cache(str(packed))
    assert str(raised.value) == message
    assert {os.environ[name] for name in VARIABLES} == {"before"}


# What it is of.


def test_each_kernel_source_changes_the_digest(tmp_path: Path) -> None:
    digests = {identity.kernels_digest(tmp_path)}
    for name in identity.KERNEL_FILES:
        write(tmp_path / name, "changed")
        digests.add(identity.kernels_digest(tmp_path))
    assert len(digests) == 1 + len(identity.KERNEL_FILES)


def test_the_kernels_are_those_of_the_engine() -> None:
    folder = Path(sdopt.__file__).parent / "engine"
    assert all((folder / name).is_file() for name in identity.KERNEL_FILES)
    assert identity.kernels_digest() == identity.kernels_digest(folder)


def test_code_for_a_cpu_is_of_its_model_and_instructions(micro: Path) -> None:
    made = identity.made_here()
    assert {"CPU", "vector instructions", "CPU flags", "torch folder"} < set(made)
    assert identity.misfit(made, identity.made_here()) is None


def test_code_for_a_gpu_is_of_its_model_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    made = identity.made_here()
    assert (made["GPU"], made["compute capability"]) == ("NVIDIA H100 80GB HBM3", "9.0")
    assert "CPU" not in made


# The command.


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch, compiled: Path) -> None:
    """Instead of compiling: the folder as a compiler leaves it."""

    def generate(folder: Path, source: str, levels: object) -> None:
        for name, content in files.kept(compiled).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.local(content, path))

    monkeypatch.setattr(packing, "_fill", generate)


def test_pack_check_and_unpack(
    generated: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "new" / "cache.tar.xz", tmp_path / "unpacked"
    assert main(["cache", "pack", str(file), "--levels", "final", "--source", "embedded"]) == 0
    assert f"{file}: 0.00 MB, 6 files of 0.0 MB" in capsys.readouterr().out
    assert main(["cache", "check", str(file)]) == 0
    assert "it fits this machine" in capsys.readouterr().out
    assert main(["cache", "unpack", str(file), str(folder)]) == 0
    assert f"export TRITON_CACHE_DIR={folder / 'triton'}\n" in capsys.readouterr().out
    assert files.kept(folder) == archive.read(file)[1]


def test_what_is_packed_is_told_to_programs_as_well(
    generated: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "cache.tar.xz", tmp_path / "unpacked"
    pack = ["cache", "pack", str(file), "--levels", "final", "--source", "embedded"]
    told = []
    for command in (
        pack,
        ["cache", "check", str(file)],
        ["cache", "unpack", str(file), str(folder)],
    ):
        assert main([*command, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    packed, checked, unpacked = told
    assert packed == checked
    assert (packed["levels"], packed["source"], packed["files"]) == (["final"], "embedded", 6)
    assert unpacked["environment"]["TRITON_CACHE_DIR"] == str(folder / "triton")
    assert {**unpacked, "environment": None} == {**packed, "environment": None}


def test_check_and_unpack_of_what_does_not_fit_exit_with_2(
    packed: Path, here: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here["GPU"] = "H200"
    assert main(["cache", "check", str(packed)]) == 2
    assert f"error: compile cache {packed} is of GPU H100, this is H200" in capsys.readouterr().err
    assert main(["cache", "unpack", str(packed), str(tmp_path / "unpacked")]) == 2
    assert not any((tmp_path / "unpacked").glob("**/*.cubin"))


def test_unpack_does_not_mix_with_what_is_there(
    packed: Path, compiled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "unpack", str(packed), str(compiled)]) == 2
    assert "is there and no empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--levels", "trubo"), "unknown level 'trubo' (did you mean 'turbo'?)"),
        (("--source", "embeded"), "embeded"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert main(["cache", "pack", str(tmp_path / "f"), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in the way").write_text("a file")
    file = tmp_path / "in the way" / "cache.tar.xz"
    assert main(["cache", "pack", str(file), "--source", "embedded"]) == 2
    assert f"{file} cannot be written" in capsys.readouterr().err


def test_a_level_that_compiles_nothing_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is known to leave nothing on a CPU is not even loaded."""
    filled = []
    monkeypatch.setattr(packing, "_fill", lambda *arguments: filled.append(arguments))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "cache.tar.xz"
    for levels in ("turbo", "baseline,express"):
        given = ["cache", "pack", str(file), "--source", "embedded", "--levels", levels]
        assert main(given) == 2
        assert "nothing here, so there is nothing to pack" in capsys.readouterr().err
        assert not file.exists()
    assert filled == []
    assert main(["cache", "pack", str(file), "--source", "embedded", "--levels", "final"]) == 2
    assert "final compiles nothing here" in capsys.readouterr().err
    assert len(filled) == 1


def test_a_child_that_fails_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "FILLING", "sdopt.there_is_no_such_module")
    given = ("--source", "embedded", "--levels", "final")
    assert main(["cache", "pack", str(tmp_path / "f"), *given]) == 2
    assert "ended with status 1" in capsys.readouterr().err


def test_the_child_generates_an_image_in_a_fresh_folder(
    micro: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packing._fill(tmp_path, str(micro), ["baseline"])
    assert "baseline: first image" in capfd.readouterr().out


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        (sys.executable, "-m", "sdopt.cli", "cache", "check", str(tmp_path / "no such file")),
        capture_output=True,
        text=True,
        cwd=Path(sdopt.__file__).parents[1],
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "no such file does not exist; next: sdopt cache pack" in done.stderr


def test_what_is_no_packed_file_is_never_packed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    for file, says in ((notes, "is no compile cache"), (tmp_path, "is a folder")):
        assert main(["cache", "pack", str(file), "--levels", "compiled"]) == 2
        assert says in capsys.readouterr().err
    assert notes.read_text() == "hello"
    assert not archive.is_packed(notes)


def test_a_bad_file_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "to"
    assert main(["cache", "unpack", str(tmp_path / "missing"), str(folder)]) == 2
    assert not folder.exists()


# The compilers themselves.


def compiled_for_hopper(folder: Path, kernels: Path) -> str:
    environment = {**os.environ, **place.variables(folder)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        (sys.executable, "-c", FOR_HOPPER, str(kernels)),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_triton_finds_its_kernels_in_another_folder_and_no_others(tmp_path: Path) -> None:
    if find_spec("triton") is None:
        pytest.skip("needs triton: run where it is installed")
    first, moved, unpacked = (tmp_path / name for name in ("first", "moved", "unpacked"))
    kernels = tmp_path / "another clone" / "kernels.py"
    text = (Path(sdopt.__file__).parent / "engine" / "kernels.py").read_text()
    write(kernels, text)
    assert (
        compiled_for_hopper(first, Path(sdopt.__file__).parent / "engine/kernels.py") == "compiled"
    )
    unpack(pack(tmp_path / "cache", files.kept(first)), unpacked)
    first.rename(moved)
    assert compiled_for_hopper(unpacked, kernels) == "hit"
    assert compiled_for_hopper(moved, kernels) == "compiled", "packing would be a mere copy"
    write(kernels, text.replace("Normalize each row of C entries.", "Changed."))
    assert compiled_for_hopper(unpacked, kernels) == "compiled"


KEYS = """
import importlib, inspect
from triton.runtime.jit import JITFunction
for name in ("kernels", "specialized", "specialized_attention", "stationary"):
    module = importlib.import_module("sdopt.engine." + name)
    for kernel, function in inspect.getmembers(module, lambda one: isinstance(one, JITFunction)):
        if kernel.startswith("sdopt_"):
            print(kernel, function.cache_key)
"""


def test_triton_finds_each_kernel_in_another_process() -> None:
    """A global's text with an address in it would be in the key of every kernel that reads it."""
    if find_spec("triton") is None:
        pytest.skip("needs triton: run where it is installed")
    environment = {**os.environ}
    environment.pop("TRITON_INTERPRET", None)
    first, second = (
        subprocess.run(
            (sys.executable, "-c", KEYS),
            env={**environment, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert {"sdopt_product", "sdopt_layer_norm"} < {line.split()[0] for line in first.splitlines()}
    assert first == second


def graph_compiled(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        (sys.executable, "-c", A_GRAPH, *arguments),
        cwd=Path(sdopt.__file__).parents[1],
        env={**os.environ, **place.variables(folder), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_inductor_finds_its_graphs_in_another_folder(micro: Path, tmp_path: Path) -> None:
    """`micro` hides the GPU here, as the variable does there."""
    first, file = tmp_path / "first", tmp_path / "cache.tar.xz"
    assert graph_compiled(first) == "{'fxgraph_cache_miss': 1}"
    made_for, contents = identity.made_here(), files.kept(first)
    archive.pack(file, contents, made_for=made_for, levels=(), source="micro")
    first.rename(tmp_path / "moved")
    assert graph_compiled(tmp_path / "unused", str(file)) == "{'fxgraph_cache_hit': 1}"
    assert files.kept(tmp_path / "unused") == {}
    libraries = [name for name in contents if name.endswith(".so")]
    assert libraries, "it would compile C++ again"
    (folder,) = place.root().iterdir()
    assert set(files.kept(folder)) == set(contents), "the second process compiled something"
