"""Canaries: each in or out by its own coin, the same for client and auditor. A deployed site has none: `test_site`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.datasets.records import Records
from client.planting import Kind, Planting, canary_records, to_json, with_canaries

CLIENTS = ("a", "b", "c")


def planting(kind: Kind, count: int = 60, secret: int = 1, clients: tuple[str, ...] = CLIENTS) -> Planting:
    return Planting(
        kind=kind,
        count=count,
        secret=bytes([secret] * 32).hex(),
        clients=clients,
        coordinates=tuple(range(0, 10 * count, 10)) if kind in ("gradients", "clients") else (),
        clipping_norm=0.5,
        classes=4,
    )


def records(n: int = 40) -> Records:
    return Records(x=torch.arange(n, dtype=torch.float32)[:, None], y=torch.arange(n) % 4)


def test_coins_are_fair_and_places_unlike() -> None:
    """2,000 coins: outside of 850 to 1,150 with probability below 1e-10."""
    many = Planting(
        kind="gradients",
        count=2000,
        secret="07" * 32,
        clients=CLIENTS,
        clipping_norm=1.0,
        classes=2,
        coordinates=tuple(range(7, 2007)),
    )
    assert 850 < many.coins().sum() < 1150
    assert len(set(many.places())) == 2000
    assert 850 < (many.signs() > 0).sum() < 1150
    assert np.array_equal(many.coins(), many.coins())
    again = Planting(**{**vars(many), "draw": 1})
    assert 850 < (again.coins() != many.coins()).sum() < 1150, "another throw"
    assert np.array_equal(again.places(), many.places()), "of the same canaries"
    other = Planting(**{**vars(many), "secret": "08" * 32})
    assert not np.array_equal(many.coins(), other.coins())
    # One run has plantings of several kinds: were their coins one another's, one coin would move two records.
    beside = Planting(**{**vars(many), "kind": "mislabelled"})
    assert 850 < (beside.coins() != many.coins()).sum() < 1150


def test_planted_gradients_are_those_whose_coins_say_so_each_at_one_client() -> None:
    found, text = planting("gradients"), to_json([planting("gradients")])
    seen: list[int] = []
    for number, client in enumerate(CLIENTS):
        mine = with_canaries(records(), text, client)
        assert len(mine) == 40
        assert mine.planted is not None
        seen += mine.planted.places.tolist()
        assert set(mine.planted.values.abs().tolist()) == {5.0}, "ten clipping norms: clipping has something to do"
        wanted = found.places()[(found.owners() == number) & found.coins()]
        assert mine.planted.places.tolist() == wanted.tolist()
    assert sorted(seen) == sorted(found.places()[found.coins()])
    assert with_canaries(records(), text, "stranger").planted is None


@pytest.mark.parametrize("kind", ["mislabelled", "records"])
def test_records_are_in_or_out_and_the_auditor_knows_which(kind: Kind) -> None:
    own, found = records(), planting(kind, count=30)
    for client in CLIENTS:
        mine = with_canaries(own, to_json([found]), client)
        canaries, coins = canary_records(own, found, client)
        assert len(canaries) == len(coins) == 10
        kept = {float(x): int(y) for x, y in zip(mine.x[:, 0], mine.y, strict=True)}
        for x, y, coin in zip(canaries.x[:, 0], canaries.y, coins, strict=True):
            assert (float(x) in kept) == bool(coin)
            if coin:
                assert kept[float(x)] == int(y)
            assert (int(y) != int(x) % 4) == (kind == "mislabelled")
        others = set(own.x[:, 0].tolist()) - set(canaries.x[:, 0].tolist())
        assert others <= set(kept), "what is no canary stays as it is"
        assert all(kept[x] == int(x) % 4 for x in others)


def test_where_each_place_has_a_label_each_is_wrong() -> None:
    own = Records(x=torch.zeros(40, 6), y=torch.arange(240).reshape(40, 6) % 4)
    found = planting("mislabelled", count=30)
    canaries, _ = canary_records(own, found, "b")
    true = own.y[torch.from_numpy(found.rows(1, 40))]
    assert canaries.y.shape == (10, 6)
    assert bool((canaries.y != true).all())
    assert set(canaries.y.flatten().tolist()) <= set(range(4))


def test_a_client_with_fewer_records_than_canaries_plants_those_it_has() -> None:
    own, found = records(4), planting("mislabelled", count=30)
    canaries, coins = canary_records(own, found, "a")
    assert len(canaries) == len(coins) == 4
    assert len(with_canaries(own, to_json([found]), "a")) == coins.sum()


def test_a_planted_client_has_nothing_but_its_canary() -> None:
    found = planting("clients", count=3)
    for number, client in enumerate(CLIENTS):
        mine = with_canaries(records(), to_json([found]), client)
        assert len(mine) == 0
        assert mine.planted is not None
        assert len(mine.planted) == int(found.coins()[number])


def test_two_plantings_stand_beside_each_other() -> None:
    text = to_json([planting("mislabelled", count=30), planting("gradients")])
    mine = with_canaries(records(), text, "b")
    assert len(mine) < 40
    assert mine.planted is not None
    assert len(mine.planted)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"count": 61}, "61 canaries of one coordinate each, and 60 to take"),
        ({"coordinates": (3,) * 60}, "60 canaries of one coordinate each, and 1 to take"),
        ({"count": 0}, "there must be canaries"),
        ({"clients": ()}, "there must be canaries"),
        ({"kind": "clients"}, "60 canaries, but 3 clients"),
    ],
)
def test_what_can_not_be_planted_is_refused(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Planting(**{**vars(planting("gradients")), **changes})  # type: ignore[arg-type]
