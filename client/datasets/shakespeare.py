"""Shakespeare's plays, character by character, by speaking role: the language task of federated learning (McMahan et
al. 2017, arXiv 1602.05629; LEAF, Caldas et al. 2018, arXiv 1812.01097), from Project Gutenberg's texts.

A role's lines are cut into pieces of `places` characters, one after the other; at each place what is predicted is the
next character. Roles (`play/role`) are natural clients and people: `data.person_column = "role"` bounds the pieces of
each before anything is trained.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.datasets.records import Parts, Records
from client.datasets.sources import refuse_path
from client.datasets.texts import owners
from shared_models.cards import DataCard
from shared_models.downloads.fetch import fetched
from shared_models.example_form import PADDING
from shared_models.plan_data import DataPlan
from shared_models.tokens import characters_of

LEAST: Final = 2000  # characters of a role; who says less is left out, as in LEAF's cut by size
_SPEAKER: Final = re.compile(r"(?P<name>[A-Z][A-Za-z&;'. -]{0,40}?)\.?(?:\s*\[[^]]*\])?\.?")
_HEADING: Final = re.compile(r"(ACT|SCENE|PERSONS|DRAMATIS)\b", re.IGNORECASE)
_DIRECTION: Final = re.compile(r"\[[^]]*\]")


def load(data: DataPlan, card: DataCard) -> Parts:
    """Pieces x (n, places) of all roles of at least 2000 characters, and the next characters y; no test part.

    Raises:
        UsageError: it isn't fetched yet, or damaged; or the plan names a column that isn't there.
    """
    del card
    refuse_path(data)
    places = data.texts.places
    x, y, roles = [], [], []
    for path in fetched("shakespeare").values():
        for role, text in speeches(path).items():
            if len(text) < LEAST:
                continue
            numbers = characters_of(text)
            pieces = -(-(len(numbers) - 1) // places)
            whole = np.full(pieces * places + 1, PADDING, dtype=np.int64)
            whole[: len(numbers)] = numbers
            x.append(whole[:-1].reshape(pieces, places))
            y.append(whole[1:].reshape(pieces, places))
            roles += [role] * pieces
    groups, people = owners({"role": np.array(roles, dtype=np.str_)}, data, source="shakespeare")
    return (
        Records(
            x=torch.from_numpy(np.concatenate(x).astype(np.float32)),
            y=torch.from_numpy(np.concatenate(y)),
            groups=groups,
            people=people,
        ),
        None,
    )


@cache
def speeches(path: Path) -> dict[str, str]:
    """What each role of a play says, by `play/role`.

    A speech is a paragraph whose first line is a name: in capitals, or shortened and with a period. Stage directions
    are left out.
    """
    play = path.name.removesuffix("_gut.txt").replace("_", "-")
    said: dict[str, list[str]] = defaultdict(list)
    text = path.read_text(encoding="latin-1").replace("\r", "")
    for paragraph in re.split(r"\n\s*\n", text):
        first, _, rest = paragraph.strip("\n").partition("\n")
        found = _SPEAKER.fullmatch(first.strip())
        if found is None or not rest or _HEADING.match(first.strip()):
            continue
        name = found["name"]
        if name.isupper() or first.rstrip().endswith((".", "]")):
            lines = (line.strip() for line in _DIRECTION.sub("", rest).splitlines())
            said[f"{play}/{name.upper().strip(' .')}"].append("\n".join(line for line in lines if line))
    return {role: "\n".join(speech for speech in spoken if speech) for role, spoken in said.items()}
