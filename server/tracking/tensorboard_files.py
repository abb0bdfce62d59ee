"""TensorBoard: a folder for each run, with a file of events.

The events are written here, in TensorBoard's own format: its writers put the machine's name and the process' number
into each file's name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.tracking.facts import Figures, RunFacts, Words


class TensorBoardFiles:
    """Writes below a folder that `tensorboard --logdir` is pointed at."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._open = RecordWriter
        self._folder = folder
        self._writer: Any = None
        self._last = 0

    def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
        """A new file; of a run that goes on it takes the place of those before."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        place = self._folder / facts.run
        place.mkdir(parents=True, exist_ok=True)
        before = sorted(place.glob("events.out.tfevents.*.veil"))
        self._writer = self._open((place / f"events.out.tfevents.{len(before):010d}.veil").open("xb"))
        self._event(Event(file_version="brain.Event:2"))
        if before:
            self._event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        words = {**plan, "plan_digest": facts.plan_digest, "setting": facts.setting}
        self._event(Event(summary=_text("plan", words)))
        self._writer.flush()

    def round(self, number: int, figures: Figures) -> None:
        """Its numbers, by round."""
        self._last = max(self._last, number)
        self._scalars(number, {f"round/{key}": value for key, value in figures.items()})

    def end(self, figures: Figures, words: Words) -> None:
        """The summary's numbers, at the last round."""
        from tensorboard.compat.proto.event_pb2 import Event

        if figures or words:
            self._scalars(self._last, {f"summary/{key}": value for key, value in figures.items()})
            self._event(Event(step=self._last, summary=_text("summary", words)))
        self._writer.close()

    def _scalars(self, step: int, figures: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in figures.items()]
        self._event(Event(step=step, summary=Summary(value=values)))
        self._writer.flush()

    def _event(self, event: Any) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())


def _text(tag: str, words: Mapping[str, float | str]) -> Any:
    """A table in Markdown, as TensorBoard's text page shows it."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    rows = "".join(f"| {key} | {value} |\n" for key, value in words.items())
    table = f"| key | value |\n|---|---|\n{rows}"
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[table.encode()])
    return Summary(value=[Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)])
