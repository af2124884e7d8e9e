"""The plot is drawn from recorded pairs, the same bytes each time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from measured import recorded

from studies.power import plot


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    samples = tmp_path / "samples.json"
    samples.write_text(json.dumps({"run": {"pairs": recorded(8).pairs}}))
    return ["--samples", str(samples), "--trials", "5", "--out", str(tmp_path / "plot.svg")]


def test_methods_and_unchanged_pairs_are_drawn(arguments: list[str]) -> None:
    pytest.importorskip("matplotlib")
    out = Path(arguments[-1])
    assert plot.main(arguments) == 0
    first = out.read_text()
    assert plot.main(arguments) == 0
    assert out.read_text() == first
    for words in ("sdopt, up to 8 pairs", "8 unchanged pairs", "final on a GPU", "fixed 10 %"):
        assert words in first


def test_without_matplotlib_it_says_what_to_install(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert plot.main(arguments) == 2
    assert "pip install -c constraints.txt -e '.[docs]'" in capsys.readouterr().err
    assert not Path(arguments[-1]).exists()
