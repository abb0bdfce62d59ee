"""Virtual clients: every record with exactly one of them, the same in every process."""

import hashlib
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from client.datasets.partition import client_ids, client_parts, client_records, partition, slug
from client.datasets.records import Records
from client.datasets.registry import load
from client.datasets.split import split
from security.errors import UsageError
from shared_models.plan_data import (
    DataPlan,
    DirichletPartition,
    IidPartition,
    NaturalPartition,
    Partition,
    PathologicalPartition,
    SizeSkewedPartition,
)

KEY = b"k" * 32
N = 600
DRAWN: list[Partition] = [
    IidPartition(clients=7),
    DirichletPartition(clients=7, alpha=0.5),
    DirichletPartition(clients=7, alpha=0.05, min_size=0),
    PathologicalPartition(clients=12, classes_per_client=2),
    SizeSkewedPartition(clients=7, growth="linear"),
    SizeSkewedPartition(clients=7, growth="square"),
    SizeSkewedPartition(clients=5, growth="exponential"),
]


def pool(n: int = N, classes: int = 10, **groups: list[str]) -> Records:
    """Records that carry their own number, so that it shows where each one went."""
    return Records(
        x=torch.arange(float(n)).reshape(n, 1),
        y=torch.arange(n) % classes,
        groups={name: np.array(values, dtype=np.str_) for name, values in groups.items()},
    )


def numbers(clients: dict[str, Records]) -> dict[str, list[int]]:
    return {name: [int(value) for value in own.x[:, 0]] for name, own in clients.items()}


@pytest.mark.parametrize("plan", [*DRAWN, NaturalPartition(column="site")], ids=str)
def test_every_record_is_with_exactly_one_client(plan: Partition) -> None:
    clients = partition(pool(site=[f"s{n % 3}" for n in range(N)]), plan, seed=3)
    assert sorted(itertools.chain(*numbers(clients).values())) == list(range(N))
    assert list(clients) == sorted(clients)
    assert len(clients) == getattr(plan, "clients", 3)


@pytest.mark.parametrize("plan", DRAWN, ids=str)
def test_the_seed_decides(plan: Partition) -> None:
    first, again, other = (numbers(partition(pool(), plan, seed=seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_labels_and_columns_go_with_their_record() -> None:
    records = pool(site=[f"s{n}" for n in range(N)])
    for own in partition(records, IidPartition(clients=5), seed=1).values():
        assert own.y.tolist() == [int(value) % 10 for value in own.x[:, 0]]
        assert own.groups["site"].tolist() == [f"s{int(value)}" for value in own.x[:, 0]]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_iid_clients_are_those_that_flwr_datasets_would_draw(records: int, clients: int, seed: int) -> None:
    clients = min(clients, records)
    partitioner = IidPartitioner(clients)
    partitioner.dataset = Dataset.from_dict({"row": np.random.default_rng(seed).permutation(records)})
    expected = [sorted(partitioner.load_partition(client)["row"]) for client in range(clients)]
    assert list(numbers(partition(pool(records), IidPartition(clients=clients), seed=seed)).values()) == expected


def test_iid_clients_have_equal_parts_of_all_classes() -> None:
    clients = partition(pool(), IidPartition(clients=4), seed=1)
    assert {len(own) for own in clients.values()} == {N // 4}
    assert all(len(own.y.unique()) == 10 for own in clients.values())


def test_small_alpha_makes_clients_less_alike() -> None:
    def largest_share(alpha: float) -> float:
        clients = partition(pool(), DirichletPartition(clients=5, alpha=alpha, min_size=0), seed=1)
        return float(np.mean([own.y.bincount().max() / len(own) for own in clients.values() if len(own)]))

    assert largest_share(100.0) < 0.15  # ten classes, nearly a tenth each
    assert largest_share(0.05) > 0.35


def test_dirichlet_clients_have_the_smallest_size_asked() -> None:
    clients = partition(pool(), DirichletPartition(clients=6, alpha=1.0, min_size=30), seed=2)
    assert min(map(len, clients.values())) >= 30


def test_a_dirichlet_client_may_be_empty_if_the_plan_allows_it() -> None:
    clients = partition(pool(classes=2), DirichletPartition(clients=20, alpha=0.01, min_size=0), seed=1)
    assert min(map(len, clients.values())) == 0


def test_pathological_clients_hold_so_many_classes() -> None:
    clients = partition(pool(), PathologicalPartition(clients=15, classes_per_client=3), seed=1)
    assert {len(own.y.unique()) for own in clients.values()} == {3}


def test_sizes_grow_with_the_index() -> None:
    sizes = [len(own) for own in partition(pool(), SizeSkewedPartition(clients=4), seed=1).values()]
    assert sizes == [60, 120, 180, 240]
    square = partition(pool(), SizeSkewedPartition(clients=4, growth="square"), seed=1)
    assert [len(own) for own in square.values()] == [20, 80, 180, 320]


def test_ids_sort_as_numbers() -> None:
    ids = list(partition(pool(), IidPartition(clients=11), seed=1))
    assert ids[:3] == ["00", "01", "02"]
    assert ids[-1] == "10"
    assert list(partition(pool(), IidPartition(clients=10), seed=1)) == list("0123456789")


def test_natural_clients_are_the_groups_whatever_the_seed() -> None:
    records = pool(n=4, site=["VA Long Beach", "Zürich", "VA Long Beach", ""])
    first, other = (numbers(partition(records, NaturalPartition(column="site"), seed=seed)) for seed in (1, 2))
    assert first == other == {"missing": [3], "va-long-beach": [0, 2], "zurich": [1]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Cleveland", "cleveland"), ("  a_b/../C  ", "a-b-c"), ("3.5", "3-5"), ("Łódź 2", "odz-2")],
)
def test_slugs_are_plain_names(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_names_in_other_scripts_keep_apart() -> None:
    assert slug("北京") != slug("上海")
    assert slug("北京").startswith("group-")


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (IidPartition(clients=601), r"data\.partition\.clients = 601 is more than the 600 training records"),
        (DirichletPartition(clients=601, min_size=0), r"data\.partition\.clients = 601 is more than"),
        (DirichletPartition(clients=10, min_size=61), r"gave each of 10 clients min_size = 61 of 600 records"),
        (DirichletPartition(clients=50, alpha=0.01), r"no draw with alpha = 0\.01 .* raise alpha"),
        (
            PathologicalPartition(clients=5, classes_per_client=11),
            r"classes_per_client = 11 is more than the 10 classes",
        ),
        (PathologicalPartition(clients=4, classes_per_client=2), r"leave a class to nobody"),
        (PathologicalPartition(clients=590, classes_per_client=9), r"fewer records than clients"),
        (SizeSkewedPartition(clients=100, growth="exponential"), r"too few for 100 clients with exponential growth"),
        (SizeSkewedPartition(clients=590), r"too few for 590 clients with linear growth"),
        (NaturalPartition(column="sites"), r"no column 'sites' \(did you mean 'site'\?\); columns there: 'site'"),
        (NaturalPartition(column="ward"), r"2 values of 'ward' make the same client id 'ward-a'"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_the_plans_words(plan: Partition, says: str) -> None:
    records = pool(site=["s"] * N, ward=["ward A", "Ward-a", "b"] * (N // 3))
    with pytest.raises(UsageError, match=says) as error:
        partition(records, plan, seed=1)
    assert "\n" not in str(error.value)


def test_no_records_cannot_be_spread() -> None:
    with pytest.raises(UsageError, match="no training records"):
        partition(pool(0, site=[]), NaturalPartition(column="site"), seed=1)


def test_drawing_is_silent_and_needs_no_network(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for plan in (DirichletPartition(clients=30, alpha=0.1), NaturalPartition(column="site")):
        partition(pool(site=["s"] * N), plan, seed=1)
    assert capfd.readouterr() == ("", "")


def test_without_flwr_datasets_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'veil-fl\[simulation\]'"):
        partition(pool(), DirichletPartition(clients=3), seed=1)


def test_the_hospitals_are_four_clients() -> None:
    plan = DataPlan(name="heart-disease", partition=NaturalPartition(column="hospital"))
    clients = client_records(plan, seed=7, split_key=KEY)
    assert list(clients) == ["cleveland", "hungary", "switzerland", "va-long-beach"]
    assert sum(map(len, clients.values())) == len(load(plan, split_key=KEY).train)


def test_clients_are_loaded_once_per_process() -> None:
    plan = DataPlan()
    first = client_records(plan, seed=7, split_key=KEY)
    assert client_records(plan.model_copy(), seed=7, split_key=KEY) is first
    assert client_records(plan, seed=8, split_key=KEY) is not first


def test_ids_are_known_without_reading_data_unless_they_come_from_it() -> None:
    unread = DataPlan(name="csv", path="/nowhere.csv", partition=IidPartition(clients=3))
    assert client_ids(unread, seed=1, split_key=KEY) == ("0", "1", "2")
    heart = DataPlan(name="heart-disease", partition=NaturalPartition(column="hospital"))
    assert client_ids(heart, seed=1, split_key=KEY) == tuple(client_records(heart, seed=1, split_key=KEY))


def test_another_process_draws_the_same_clients() -> None:
    code = (
        "import hashlib\n"
        "from client.datasets.partition import client_records\n"
        "from shared_models.plan_data import DataPlan\n"
        "for name, own in client_records(DataPlan(), seed=7, split_key=b'k' * 32).items():\n"
        "    print(name, hashlib.sha256(own.x.numpy().tobytes()).hexdigest())\n"
    )
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True, env=environment
    )
    here = client_records(DataPlan(), seed=7, split_key=KEY)
    assert done.stdout.splitlines() == [
        f"{name} {hashlib.sha256(own.x.numpy().tobytes()).hexdigest()}" for name, own in here.items()
    ]


# --- what a client holds out of its own (rule 10) --------------------------------------------------------------------

CARD = {"classes": ["a", "b"], "target": "y", "columns": {"v": {"kind": "numeric", "low": 0.0, "high": 1000.0}}}
Row = tuple[int, str, str, str]  # feature, class, site, person


def table(path: Path, rows: list[Row], **changes: object) -> DataPlan:
    """A plan for a file of these rows."""
    lines = ["v,y,site,who", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    partition = {"kind": "natural", "column": "site"}
    return DataPlan.model_validate(
        {"name": "csv", "path": str(path), "card": CARD, "partition": partition, "test_fraction": 0.4, **changes}
    )


def rows_of(n: int, *, people: int = 40) -> list[Row]:
    return [(i, "ab"[i % 2], f"s{i % 3}", f"p{i % people}") for i in range(n)]


def held(plan: DataPlan, key: bytes = KEY) -> dict[int, tuple[str, str]]:
    """Whose each record is, and on which side, by its feature."""
    places: dict[int, tuple[str, str]] = {}
    for name, parts in client_parts(plan, seed=1, split_key=key).items():
        for side, part in zip(("train", "held out"), parts, strict=True):
            for value in part.x[:, 0]:
                number = round((float(value) + 1) * 500)  # columns are scaled to [-1, 1]
                assert number not in places
                places[number] = name, side
    return places


def test_rule_10_every_record_is_trained_on_or_held_out_by_one_client_and_never_both(tmp_path: Path) -> None:
    rows = rows_of(300)
    found = held(table(tmp_path / "t.csv", rows))
    assert {number: name for number, (name, _) in found.items()} == {row[0]: row[2] for row in rows}
    sides = [side for _, side in found.values()]
    assert 80 < sides.count("held out") < 160  # 120 expected
    assert held(table(tmp_path / "t.csv", rows), b"another key") != found


@pytest.mark.parametrize("place", [0, 17, 299])
def test_rule_10_a_record_more_or_less_moves_no_other(tmp_path: Path, place: int) -> None:
    rows = rows_of(300)
    before = held(table(tmp_path / "one.csv", rows))
    more = held(table(tmp_path / "two.csv", [*rows[:place], (777, "a", "s1", "p3"), *rows[place:]]))
    assert {number: at for number, at in more.items() if number != 777} == before
    less = held(table(tmp_path / "three.csv", rows[:place] + rows[place + 1 :]))
    assert less == {number: at for number, at in before.items() if number != rows[place][0]}


def test_rule_6_a_persons_records_are_all_trained_on_or_all_held_out_and_bounded_before(tmp_path: Path) -> None:
    rows = rows_of(300)
    plan = table(tmp_path / "t.csv", rows, person_column="who", max_rows_per_person=4)
    found = held(plan)
    side_of: dict[str, set[str]] = {}
    count: dict[str, int] = {}
    for number, (_, side) in found.items():
        who = rows[number][3]
        side_of.setdefault(who, set()).add(side)
        count[who] = count.get(who, 0) + 1
    assert len(side_of) == 40
    assert all(len(sides) == 1 for sides in side_of.values())
    assert set(count.values()) == {4}  # over all clients together
    assert {side for sides in side_of.values() for side in sides} == {"train", "held out"}


def test_what_clients_hold_out_is_what_the_server_would_have_kept() -> None:
    plan = DataPlan.model_validate({"name": "digits", "partition": {"kind": "iid", "clients": 5}})
    parts = client_parts(plan, seed=3, split_key=KEY)
    test = load(plan, split_key=KEY).test

    def contents(*found: Records) -> list[bytes]:
        return sorted(x.numpy().tobytes() for part in found for x in part.x)

    assert contents(*(held_out for _, held_out in parts.values())) == contents(test)


def test_a_set_with_a_test_part_of_its_own_keeps_it_out_of_the_clients_hands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.datasets import registry

    train, test = load(DataPlan(), split_key=KEY).train, load(DataPlan(), split_key=KEY).test
    monkeypatch.setitem(registry._LOADERS, "digits", lambda *_: (train, test))  # type: ignore[index]
    whole = load(DataPlan(), split_key=KEY, whole=True)
    assert (len(whole.train), len(whole.test)) == (len(train), len(test))


def test_a_whole_set_is_one_piece_and_nothing_is_left_for_a_server() -> None:
    whole, parts = load(DataPlan(), split_key=KEY, whole=True), load(DataPlan(), split_key=KEY)
    assert len(whole.train) == len(parts.train) + len(parts.test)
    assert len(whole.test) == 0
    assert whole.test.x.shape[1:] == whole.train.x.shape[1:]
    again = split(whole.train, key=KEY, test_fraction=DataPlan().test_fraction)
    assert torch.equal(again[0].x, parts.train.x)
    assert torch.equal(again[1].x, parts.test.x)


def test_a_client_may_hold_nothing_out(tmp_path: Path) -> None:
    parts = client_parts(table(tmp_path / "t.csv", rows_of(3)), seed=1, split_key=KEY)
    sizes = {name: (len(train), len(held_out)) for name, (train, held_out) in parts.items()}
    assert set(sizes.values()) <= {(1, 0), (0, 1)}
