"""Convert each curve.csv of the reference to a TensorBoard event file next to it.

python lightning_logs/reference/write_events.py
"""

import math
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from nanogpt.insight.reference import read_curve
from nanogpt.resources import REFERENCE_CURVES


def write(folder: Path) -> None:
    """Write the event file of a folder, with byte-identical results."""
    with (folder / "events.out.tfevents.0.reference").open("wb") as file:
        records = RecordWriter(file)
        records.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())
        for row in read_curve(folder.name):
            for split, loss in (("train", row.train), ("val", row.val)):
                scalars = {
                    "loss": loss,
                    "perplexity": math.exp(loss),
                    "bits_per_character": loss / math.log(2),
                }
                values = [
                    Summary.Value(tag=f"{name}/{split}", simple_value=value)
                    for name, value in scalars.items()
                ]
                event = Event(wall_time=row.step, step=row.step, summary=Summary(value=values))
                records.write(event.SerializeToString())


if __name__ == "__main__":
    for curve in REFERENCE_CURVES.glob("*/curve.csv"):
        write(curve.parent)
