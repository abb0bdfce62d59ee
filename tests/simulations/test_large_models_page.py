"""The figures of docs/large-models.md that it says are computed, computed from its own plan and shape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared_models.plan_file import plan_from
from shared_models.toml_errors import parse
from veil.main import app

PAGE = (Path(__file__).parents[2] / "docs" / "large-models.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_page_says_what_the_command_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text(block("json"))
    (tmp_path / "seven-billion.toml").write_text(block("toml"))
    monkeypatch.chdir(tmp_path)
    first, second = (line[2:].partition("  #")[0] for line in block("console").splitlines() if line.startswith("$ "))
    app(args=first.split()[1:], standalone_mode=False)
    for line in capsys.readouterr().out.splitlines():
        assert line in PAGE
    app(args=second.replace("'", "").split()[1:], standalone_mode=False)
    assert capsys.readouterr().out.splitlines()[-1].endswith(block("console").splitlines()[-1].removeprefix("... "))


def test_without_checkpointing_it_keeps_what_the_page_says(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from shared_models import own
    from simulations.estimate import estimate

    (tmp_path / "config.json").write_text(block("json"))
    own.bind({"llama": f"hugging-face:{tmp_path}"})
    plan = plan_from(parse(block("toml"), "page"), where="page", overrides=["training.gradient_checkpointing=false"])
    found = estimate(plan, probe=False)
    assert found.step is not None
    assert f"{found.step.kept / 1e9:.3g} GB; 428 MB with" in PAGE
    assert f"{(found.step.forward + found.step.backward) / 1e12:.3g} trillion operations; 19.2 with" in PAGE
