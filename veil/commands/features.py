"""`veil features`: the public feature maps a plan can name, and their matrices."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Public feature maps: list them, derive their matrices.",
    no_args_is_help=True,
    suggest_commands=False,  # click suggests already
)

Size = Annotated[str, typer.Option(help="Height and width of the images.", metavar="HxW")]


@app.command("list")
def list_maps(size: Size = "28x28") -> None:
    """List the feature maps, with the features they make of an image."""
    from rich.console import Console
    from rich.table import Table

    from shared_models.features.encoders import ENCODERS
    from shared_models.features.maps import feature_map, names

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("map", "features", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    for name in names():
        found = feature_map(name)
        table.add_row(name, str(found.size(_shape(size))), found.summary)
    for name, encoder in ENCODERS.items():
        size_of = f"{encoder.values} a place" if encoder.keeps_places else str(encoder.values)
        table.add_row(name, size_of, encoder.summary)
    Console().print(table)


@app.command("derive")
def derive(
    name: Annotated[str, typer.Argument(help="Feature map.", metavar="[NAME]")] = "scattering-patches",
    size: Size = "28x28",
) -> None:
    """Derive the matrices of a feature map from public images and keep them; nothing is done if they are there."""
    from security.errors import RunError
    from shared_models.features.maps import feature_map
    from shared_models.features.store import matrices, matrices_file

    chosen, shape = feature_map(name), _shape(size)
    source, path = chosen.source(shape), matrices_file(chosen, shape)
    matrices(name, shape)
    if not path.is_file():
        raise RunError(f"{path}: could not be written; give VEIL_CACHE a folder with room")
    print(f"{name}: {chosen.size(shape)} features of images of {size}\nsource {source}\n{path}")


def _shape(size: str) -> tuple[int, int, int]:
    from security.errors import UsageError

    height, _, width = size.partition("x")
    if not (height.isascii() and height.isdigit() and width.isascii() and width.isdigit()) or len(size) > 20:
        raise UsageError(f"--size {size!r}: give height and width, as 28x28")
    return 1, int(height), int(width)
