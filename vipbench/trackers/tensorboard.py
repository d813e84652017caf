"""TensorBoard: event files in OUT/tracking/tensorboard/CELL (extra `tensorboard`).

To view them: `tensorboard --logdir OUT/tracking/tensorboard`.
"""

from __future__ import annotations

import json

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

import vipbench
from vipbench.hookspecs import TrackedCell, TrackedRun


@vipbench.hookimpl
def on_cell_done(run: TrackedRun, cell: TrackedCell) -> None:
    """Write a cell's curves by epoch, its metrics, and its settings as text."""
    writer = EventFileWriter(str(cell.folder))
    try:
        for epoch, values in cell.epochs:
            _write(writer, {f"epoch/{name}": value for name, value in values.items()}, epoch, cell)
        _write(writer, {f"test/{name}": value for name, value in cell.metrics.items()}, 0, cell)
        shown = {"settings": cell.settings} | ({"error": cell.error} if cell.error else {})
        for name, value in shown.items():
            text = f"```json\n{json.dumps(value, indent=1)}\n```" if name == "settings" else value
            tensor = TensorProto(
                dtype=DT_STRING,
                string_val=[str(text).encode()],
                tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
            )
            data = SummaryMetadata.PluginData(plugin_name="text")
            entry = Summary.Value(
                tag=name, tensor=tensor, metadata=SummaryMetadata(plugin_data=data)
            )
            writer.add_event(Event(summary=Summary(value=[entry]), wall_time=cell.created))
    finally:
        writer.close()


def _write(writer: EventFileWriter, values: dict[str, float], step: int, cell: TrackedCell) -> None:
    entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
    if entries:
        event = Event(summary=Summary(value=entries), step=step, wall_time=cell.created)
        writer.add_event(event)
