"""The trial's rows as CSV, as tables, as a plot, and as sentences."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.capture.trial import Row

__all__ = ["print_rows", "read_csv", "verdicts", "write_csv", "write_plot"]

TINY = "tiny ring"

Sequences = Mapping[str, Mapping[str, Sequence[tuple[int, int]]]]
"""By leg: what was sent of one stream, and what each capture has of it."""


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> list[Row]:
    texts = {"load", "mode", "tool", "leg"}
    with path.open(newline="") as file:
        return [
            Row(**{
                name: text if name in texts else None if not text else _number(text) for name, text in line.items()
            })  # type: ignore[arg-type]
            for line in csv.DictReader(file)
        ]  # fmt: skip


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """One line for each load, mode and capture: both legs, all rounds."""
    table = Table(title="sent, captured, missed: both legs", title_justify="left", header_style="bold")
    table.add_column("load")
    table.add_column("watched by")
    table.add_column("capture")
    for title in (
        "Gbit/s", "sent\nMB", "captured\nMB", "missed\nB", "missed\nranges", "missed by\nboth, B", "packets", "dropped",
        "CPU\nns/packet", "CPU\ns/GB",
    ):  # fmt: skip
        table.add_column(title, justify="right")
    for (load, mode, tool), group in _groups(rows).items():
        table.add_row(load, mode, tool or "–", *_cells(group))
    console.print(table)


def _groups(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.load, row.mode, row.tool), []).append(row)
    return groups


def _cells(rows: Sequence[Row]) -> list[str]:
    speed = statistics.median(row.gbit_s for row in rows if row.leg == "client")
    sent = sum(row.sent_bytes for row in rows)
    cells = [f"{speed:.2f}", f"{sent / 1e6:,.1f}"]
    if rows[0].tool == "":
        return cells + ["–"] * 8
    both = "–" if rows[0].missed_by_both_bytes is None else f"{total(rows, 'missed_by_both_bytes'):,}"
    # What is the capture's, and not a leg's, stands in the rows of both legs.
    once = [row for row in rows if row.leg == "client"]
    packets, cpu_s = total(once, "packets"), sum(row.cpu_s or 0.0 for row in once)
    return [
        *cells, f"{total(rows, 'captured_bytes') / 1e6:,.1f}", f"{total(rows, 'missed_bytes'):,}",
        f"{total(rows, 'gaps'):,}", both, f"{packets:,}", f"{total(once, 'drops'):,}",
        f"{cpu_s * 1e9 / packets:,.0f}" if packets else "n/a", f"{cpu_s * 1e9 / sent:.3f}" if sent else "n/a",
    ]  # fmt: skip


def total(rows: Iterable[Row], name: str) -> int:
    return sum(getattr(row, name) or 0 for row in rows)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """What the figures say, in sentences."""
    lines = []
    for mode, where in (("together", "on the same traffic"), ("alone", "each alone")):
        chosen = [row for row in rows if row.mode != TINY and (row.mode == "together") == (mode == "together")]
        ring = [row for row in chosen if row.tool == "ring"]
        other = [row for row in chosen if row.tool == "tcpdump"]
        if ring and other:
            lines.append(
                f"{where}: the ring missed {_share(ring)}, tcpdump {_share(other)} of what was sent; "
                f"they used {_per_packet(ring)} and {_per_packet(other)} of processor time for each packet "
                "(of up to 64 KiB where segmentation is offloaded)"
            )
    tiny = [row for row in rows if row.mode == TINY]
    if tiny:
        drops = total([row for row in tiny if row.leg == "client"], "drops")
        missed, ranges = total(tiny, "missed_bytes"), total(tiny, "gaps")
        lines.append(
            f"with a ring of {tiny[0].ring_bytes:,} bytes the kernel dropped {drops:,} packets, and the sequence "
            f"numbers show {missed:,} bytes missed in {ranges:,} ranges: "
            + ("loss is seen" if drops and missed else "NO LOSS WAS PROVOKED, so nothing is proved")
        )
    return lines


def _share(rows: Sequence[Row]) -> str:
    sent = total(rows, "sent_bytes")
    return f"{100 * total(rows, 'missed_bytes') / sent:.4f} %" if sent else "n/a"


def _per_packet(rows: Sequence[Row]) -> str:
    once = [row for row in rows if row.leg == "client"]
    packets = total(once, "packets")
    return f"{sum(row.cpu_s or 0.0 for row in once) * 1e9 / packets:.0f} ns" if packets else "n/a"


def write_plot(rows: Sequence[Row], sequences: Sequences, path: Path) -> None:
    """An SVG: what each capture missed, what it cost, and the sequence ranges of the run with the tiny ring."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    loads = list(dict.fromkeys(row.load for row in rows if row.mode != TINY))
    figure, (missed, cost, ranges) = pyplot.subplots(3, 1, figsize=(9, 10), height_ratios=(1, 1, 0.9))
    kinds = [("ring", "ring", "#1f77b4"), ("together", "ring", "#8ab8dd"), ("tcpdump", "tcpdump", "#d62728"),
             ("together", "tcpdump", "#eb9a9a")]  # fmt: skip
    for at, (mode, tool, colour) in enumerate(kinds):
        label = f"{tool}, {'together' if mode == 'together' else 'alone'}"
        chosen = [[row for row in rows if (row.load, row.mode, row.tool) == (load, mode, tool)] for load in loads]
        places = [index + (at - 1.5) * 0.2 for index in range(len(loads))]
        shares = [100 * total(group, "captured_bytes") / max(1, total(group, "sent_bytes")) for group in chosen]
        missed.bar(places, shares, 0.18, label=label, color=colour)
        missed.bar(places, [100 - share if share else 0 for share in shares], 0.18, bottom=shares, color="black")
        for place, share, group in zip(places, shares, chosen, strict=True):
            if share:
                text = f"{total(group, 'missed_bytes'):,} B missed"
                missed.text(place, 50, text, rotation=90, ha="center", va="center", fontsize=7, color="white")
        once = [[row for row in group if row.leg == "client"] for group in chosen]
        spent = [sum(row.cpu_s or 0 for row in group) * 1e9 / max(1, total(group, "packets")) for group in once]
        cost.bar(places, spent, 0.18, label=label, color=colour)
    titles = (
        (missed, "captured, % of what was sent; black: missed"),
        (cost, "processor time of the capture, ns for each packet (with offloads one of up to 64 KiB)"),
    )
    for axes, title in titles:
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xticks(range(len(loads)), loads)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    _draw_ranges(ranges, sequences)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


RANGES_MAX = 4000
"""The maximum that is drawn: more could not be distinguished."""


def _draw_ranges(axes: object, sequences: Sequences) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    names: list[str] = []
    for leg, figures in sequences.items():
        for name, found in figures.items():
            bars = [(start / 1e6, (end - start) / 1e6) for start, end in found[:RANGES_MAX]]
            colour = "#2ca02c" if name == "sent" else "#1f77b4"
            axes.broken_barh(bars, (len(names) - 0.35, 0.7), facecolors=colour, linewidth=0)
            names.append(f"{leg} leg, {name if name == 'sent' else 'captured'}")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("tiny ring: one stream, MB after its beginning; what is blank was missed", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
