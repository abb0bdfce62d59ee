"""UCI heart disease: 920 patients of four hospitals, the natural clients of a federation.

Janosi, Steinbrunn, Pfisterer, Detrano (1989), CC BY 4.0; `data/heart_disease_uci.LICENCE.md` says where the
file is from. It is kept unchanged and mended here:
- record 304 is Hungary's: the copy counts it to Cleveland, which has 303 records at the source, and Hungary
  294;
- a cholesterol or blood pressure of 0 is a missing one (nobody alive has it; so are all Swiss cholesterols);
- `ca`, `thal` and `slope` are hardly filled in outside Cleveland and are left out;
- the target is whether there is disease (`num` > 0), not how much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.datasets.records import Parts
from client.datasets.sources import refuse_path
from client.datasets.tabular import read_table, table_records
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan

if TYPE_CHECKING:
    import pandas as pd

FILE: Final = Path(__file__).parent / "data" / "heart_disease_uci.csv"
SHA256: Final = "574f2fa2b43012fa25fca4fcdb36bd7c6bccdd0af4242f6c0e4c8633c5a072ae"
HOSPITALS: Final = {
    "Cleveland": "cleveland",
    "Hungary": "hungary",
    "Switzerland": "switzerland",
    "VA Long Beach": "va-long-beach",
}


def load(data: DataPlan, card: DataCard, *, columns: Sequence[str] = ()) -> Parts:
    """All 920 patients; `hospital` and every other column may name natural clients. There is no test part.

    Raises:
        UsageError: the file that came with Veil is not the one it came with.
    """
    refuse_path(data)
    return table_records(mended(card), data, card, source="heart-disease", columns=columns), None


def mended(card: DataCard) -> pd.DataFrame:
    """The table as text, mended as said above.

    Raises:
        UsageError: as `load`.
    """
    if not FILE.is_file() or hashlib.sha256(FILE.read_bytes()).hexdigest() != SHA256:
        raise UsageError(f"{FILE}: is missing or was changed; install Veil again")
    table = read_table(FILE)
    healthy, disease = card.classes
    hospital = table["dataset"].where(table["id"] != "304", "Hungary").map(HOSPITALS)
    measured = table[["chol", "trestbps"]].replace("0", "")
    target = (table["num"] != "0").map({False: healthy, True: disease})
    left_out = ["dataset", "ca", "thal", "slope"]
    return table.assign(**measured, num=target, hospital=hospital).drop(columns=left_out)
