"""`publish`: two full runs, whether they agree, and the pages that are made of them; no hand between the steps."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.agreement import agree
from bench.errors import BenchError
from bench.plans import INTERVALS, Settings, run_plan, unfinished
from bench.results import AGAIN, Result, load_results, newest

__all__ = ["own_faults", "publish", "second_run", "store"]

_OWN = ("oinetd", "group", "floor")
_STORED = Path("bench") / "results"
_PAGES = (Path("README.md"), Path("docs") / "performance.md", Path("docs") / "several-machines.md")


def publish(steps: Sequence[str], settings: Settings, repository: Path, page: Path, console: Console) -> int:
    """Run `steps`, those of them that state intervals once more, and write the pages in `repository`.

    A trial writes copies of the pages into `settings.out`. The status is 0 if every step has a complete result in both
    runs, no sample of oinetd is invalid, and the runs agree.
    """
    first, second = settings.out / "first", settings.out / "second"
    again = second_run(steps)
    missing: list[str] = []
    for number, (folder, chosen) in enumerate(((first, list(steps)), (second, again)), start=1):
        console.rule(f"run {number} of 2", align="left")
        folder.mkdir(parents=True, exist_ok=True)
        run_plan(chosen, replace(settings, out=folder), page if number == 1 else settings.out / "second.html", console)
        left = unfinished(chosen, folder)
        if left:
            console.print(
                f"run {number} lacks {', '.join(step.split()[0] for step in left)}: --resume goes on", style="bold red"
            )
        # Without lab or capture there are figures to publish, without what states intervals there are not.
        if any(number == 2 or step in INTERVALS for step in left):
            console.print("nothing is published", style="bold red")
            return 1
        missing += left
    runs = [newest(load_results([folder])) for folder in (first, second)]
    console.rule("whether both agree", align="left")
    apart = agree(runs[0], runs[1], console)
    root = repository
    if settings.trial:
        root = settings.out / "pages"
        for name in _PAGES:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repository / name, root / name)
    store(runs[0].values(), root / _STORED)
    store(runs[1].values(), root / _STORED / AGAIN)
    for path in _write(root):
        console.print(f"{path.relative_to(root)}: rewritten", highlight=False)
    faults = own_faults(runs[0].values()) + own_faults(runs[1].values())
    for text in faults:
        console.print(text, style="bold red", highlight=False)
    if not settings.trial:
        console.print("to keep it: git add -A README.md docs bench/results && git commit", highlight=False)
    return int(bool(apart or faults or missing))


def second_run(steps: Sequence[str]) -> list[str]:
    """Those of `steps` that state intervals, without what states none."""
    return [step.replace(" --softirq", "") for step in steps if step in INTERVALS]


def store(results: Iterable[Result], folder: Path) -> None:
    """Keep `results` in `folder`, in place of those that it has of the same experiments."""
    chosen = {result.experiment: result for result in results}
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        try:
            known = Result.load(path)
        except BenchError:
            continue
        if known.experiment in chosen:
            path.unlink()
    for result in chosen.values():
        result.save(folder)


def own_faults(results: Iterable[Result]) -> list[str]:
    """Samples of oinetd, and of what has no forwarder, that are not what they say or could not be taken."""
    found = []
    for result in results:
        own = {subject.name for subject in result.subjects if subject.family in _OWN}
        for sample in result.samples:
            if sample.subject in own and (texts := [*sample.invalid, *filter(None, [sample.error])]):
                found.append(f"{result.experiment}, {sample.subject}, {sample.case}: {'; '.join(texts)}")
    return list(dict.fromkeys(found))


def _write(root: Path) -> list[Path]:
    from bench.report import write_pages

    stored = root / _STORED
    return write_pages(newest(load_results([stored])), root, again=newest(load_results([stored / AGAIN])))
