"""The study of poisoning: its runs, and what its tables call held."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from security.errors import UsageError
from simulations.attacks.poisoning.attack import KINDS
from simulations.studies import poisoning as study
from simulations.studies.poisoning import DEFENCES, Cell, cells, main, play, played
from simulations.studies.poisoning_pictures import drawings
from simulations.studies.poisoning_tables import SHARES, Result, held, report, scores_of_results

SMALL = ("data.partition.clients=20", "federation.rounds=1", "training.steps=1")


def result(**changes: object) -> Result:
    base = Result(
        attack="scaled",
        defence="fedavg",
        share=0.1,
        seed=1,
        digest="d",
        stopped=None,
        accuracy=0.9,
        backdoor=0.0,
        dropped=0,
        seconds=1.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def row(attack: str, accuracies: list[float], backdoors: list[float] | None = None, **changes: object) -> list[Result]:
    """Results of a defence without attackers and with each share of them."""
    shares = (0.0, *SHARES)
    return [
        result(attack=attack if share else KINDS[0], share=share, accuracy=accuracy, backdoor=backdoor, **changes)
        for share, accuracy, backdoor in zip(shares, accuracies, backdoors or [0.0] * 5, strict=False)
    ]


@pytest.mark.parametrize(
    ("attack", "accuracies", "backdoors", "expected"),
    [
        ("scaled", [0.90, 0.90, 0.86, 0.851, 0.85], None, 0.4),
        ("scaled", [0.90, 0.90, 0.86, 0.84, 0.90], None, 0.2),  # a larger share that is borne by chance doesn't count
        ("scaled", [0.90, 0.84, 0.90, 0.90, 0.90], None, 0.0),
        ("scaled", [0.90] * 5, [0, 0, 0, 0.9, 0.9], 0.4),  # it is after accuracy alone
        ("replacement", [0.90] * 5, [0, 0.1, 0.19, 0.2, 0.1], 0.2),
        ("replacement", [0.90, 0.90], None, None),
        ("scaled", [0.90, 0.80], None, 0.0),  # what wasn't played can't mend it
    ],
)
def test_a_share_is_held_where_all_smaller_ones_are(
    attack: str, accuracies: list[float], backdoors: list[float] | None, expected: float | None
) -> None:
    scores = scores_of_results(row(attack, accuracies, backdoors))
    assert held(scores, attack, "fedavg") == expected


def test_a_run_that_could_not_go_on_is_not_held() -> None:
    results = row("scaled", [0.9] * 5)
    results[3] = replace(results[3], stopped="failed")
    assert held(scores_of_results(results), "scaled", "fedavg") == 0.2
    assert held({}, "scaled", "fedavg") is None


def test_scores_are_means_over_seeds() -> None:
    found = scores_of_results([result(seed=1, accuracy=0.5, backdoor=0.2), result(seed=2, accuracy=0.7)])
    score = found["scaled", "fedavg", 0.1]
    assert (score.accuracy, score.backdoor, score.seeds) == (pytest.approx(0.6), pytest.approx(0.1), 2)


def test_the_report_says_what_was_not_played() -> None:
    results = [*row("scaled", [0.9, 0.9, 0.9, 0.5, 0.5]), *row("replacement", [0.9, 0.9], [0, 0.5])]
    text = report(list(dict.fromkeys(results)))
    summary = next(line for line in text.splitlines() if line.startswith("fedavg"))
    assert summary.split()[1:] == ["20", "-"]
    assert text.splitlines()[-1].split("  ")[-1].strip() == "?"
    assert "90.0 / 50" in text


def test_drawings_are_xml_and_name_every_defence_and_attack() -> None:
    results = [*row("scaled", [0.9] * 5), *row("replacement", [0.9] * 5, [0, 0, 0.1, 0.5, 1], defence="krum")]
    found = drawings(results)
    assert set(found) == {"", "_backdoor"}
    for drawing in found.values():
        words = {element.text for element in ElementTree.fromstring(drawing).iter() if element.text}
        assert {"fedavg", "krum", "replacement"} <= words
    assert set(drawings(row("scaled", [0.9] * 5))) == {""}


def test_each_defence_meets_each_attack_with_each_share_and_once_nobody() -> None:
    found = cells([1, 2])
    assert len(found) == len(set(found)) == 2 * len(DEFENCES) * (1 + len(KINDS) * len(SHARES))
    assert {(cell.attack, cell.share) for cell in found if not cell.share} == {(KINDS[0], 0.0)}
    for defence in DEFENCES:  # each plan can be played
        Cell(attack="scaled", defence=defence, share=0.1, seed=1).plan()


def test_runs_are_played_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "_BASE", (*study._BASE, *SMALL))
    wanted = cells([1], attacks=["nan"], defences=["fedavg"], shares=[0.1])
    assert played(wanted, tmp_path) == []
    said: list[str] = []
    found = play(wanted, tmp_path, say=said.append)
    assert [one.share for one in found] == [0.0, 0.1]
    assert [one.dropped for one in found] == [0, 2]
    assert len(said) == 2
    monkeypatch.setattr(study, "_run", lambda *_: pytest.fail("it was played already"))
    assert play(wanted, tmp_path) == found == played(wanted, tmp_path)
    out = tmp_path / "out.txt"
    arguments = ["--attacks", "nan", "--defences", "fedavg", "--folder", str(tmp_path), "--out", str(out)]
    main([*arguments, "--only-report"])
    assert out.read_text() == report(found)
    assert out.with_suffix(".svg").is_file()
    with pytest.raises(UsageError, match="nothing was played"):
        main(["--folder", str(tmp_path / "empty"), "--only-report"])
