"""The runs whose numbers stand in README.md and docs/, and what these pages say of them.

    python -m benchmarks.published_runs --make PNEUMONIAMNIST28.npz

makes the runs anew (a quarter of an hour on two cores), keeps them in results/runs/, and writes the
pages' tables, sentences and pictures from what is kept. `--only demo,figure3` makes some of them,
`--from demo=DIR` keeps a results folder that is there; without a flag the pages alone are written.
A kept run has its records and the predicted class of each test image: accuracies, and comparisons
of them, rest on nothing else.

A page's part between `<!-- run NAME -->` and `<!-- end -->` is written by the function of that name
in BLOCKS. Its comparative sentences come from `vipbench compare` on the run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from vipbench.results.compare.claims import Claim, compare
from vipbench.results.records.cells import Cells, cells_of
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record, dump
from vipbench.results.stats.pairing import select
from vipbench.results.store.store import Store
from vipbench.results.tables import render
from vipbench.results.tables.differences import and_
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.runspec.run import SUITE_NAME, RunSpec

REPO = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).resolve().parent / "results" / "runs"
BLOCK = re.compile(r"(<!-- run ([a-z0-9-]+) -->\n)(.*?)(<!-- end -->\n)", re.S)
PAGES = ("README.md", "docs/symptoms.md", "docs/all-methods.md")
# What `vipbench run` is given; PATH is the file of PneumoniaMNIST.
RUNS: Mapping[str, Sequence[str]] = {
    "demo": (),
    "pneumonia": (
        *("--datasets", "npz:PATH", "--backbones", "tiny-clip"),
        *("--methods", "zero-shot,linear-probe,coop,vip", "--shots", "1,4,16", "--seeds", "1,2,3"),
    ),
    "figure2": ("--suite", "benchmarks/vip-figure2.yaml"),
    "figure3": ("--suite", "benchmarks/vip-figure3.yaml"),
    "all-methods": ("--suite", "benchmarks/all-methods.yaml"),
}


@dataclass(frozen=True)
class Run:
    """A kept run. predicted: key -> the class of each test image, as text of digits. labels: the
    same of the true classes, by dataset."""

    cells: Cells
    predicted: Mapping[str, str]
    labels: Mapping[str, str]
    title: str | None

    def load(self, key: str) -> Predictions:
        """The predictions of a record; scores are 1 for the predicted class, 0 for the others."""
        record = self.cells.records[key]
        labels = np.array(list(self.labels[record.cell.dataset]), dtype=np.int64)
        predicted = np.array(list(self.predicted[key]), dtype=np.int64)
        scores = np.eye(len(record.data.class_names), dtype=np.float32)[predicted]
        return Predictions([str(i) for i in range(len(labels))], None, labels, scores)

    def table(self) -> str:
        """As `vipbench table DIR --format github --metric accuracy` prints it."""
        layout = Layout(metrics=("accuracy",), title=self.title)
        return render(lay_out(self.cells, layout), "github")

    def claims(self, a: str, *others: str, shots: Sequence[int] | None = None) -> Sequence[Claim]:
        """What `vipbench compare A OTHERS DIR` finds of accuracies."""
        return compare(select(self.cells, shots=shots), self.load, a, others).claims


def keep(folder: Path, name: str, into: Path = KEPT) -> None:
    """Keep the last run of a results folder. Test images must be without groups."""
    with Store(folder, readonly=True) as store:
        records = [record for record in store.records() if record.ok]
        plan = store.plan(latest=True)
        predicted, labels = {}, {}
        for record in records:
            found = store.predictions(record.key)
            assert found is not None
            assert found.groups is None
            predicted[record.key] = "".join(map(str, found.scores.argmax(1)))
            labels[record.cell.dataset] = "".join(map(str, found.labels))
    text = {
        "title": RunSpec.from_yaml(folder / SUITE_NAME).title,
        "records": [record.to_dict() | {"history": [], "timing": {}} for record in records],
        "plan": [cell.stored() for cell in plan],
        "predicted": predicted,
        "labels": labels,
    }
    into.mkdir(parents=True, exist_ok=True)
    # No time in the file: the same run gives the same bytes.
    (into / f"{name}.json.gz").write_bytes(gzip.compress(dump(text).encode(), mtime=0))


@cache
def kept(name: str, folder: Path = KEPT) -> Run:
    """The kept run of that name."""
    text = json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))
    records = [Record.of(value) for value in text["records"]]
    return Run(cells_of(records, text["plan"]), text["predicted"], text["labels"], text["title"])


# What is said of a comparison.


def holds(claim: Claim) -> bool:
    """Whether `vipbench compare` establishes the difference, after its family's correction."""
    return claim.p_corrected < 0.05


def points(claim: Claim) -> str:
    """`+45.0 (38.0 to 51.7)`, in points."""
    i = claim.interval
    low, high = (f"{100 * value:.1f}".replace("-", "−") for value in (i.low, i.high))
    return f"{100 * i.estimate:+.1f}".replace("-", "−") + f" ({low} to {high})"


def p_value(claim: Claim) -> str:
    """The corrected p value."""
    return "< 0.001" if claim.p_corrected < 0.001 else f"{min(claim.p_corrected, 1.0):.3f}"


def against(claims: Sequence[Claim]) -> str:
    """A list item for each other method: at how many shots a difference holds."""
    lines = []
    for b in dict.fromkeys(claim.b for claim in claims):
        own = [claim for claim in claims if claim.b == b]
        parts = []
        for word, sign in (("higher", 1), ("lower", -1)):
            found = [c for c in own if holds(c) and sign * c.interval.estimate > 0]
            if found:
                sizes = sorted({f"{100 * abs(c.interval.estimate):.1f}" for c in found}, key=float)
                size = sizes[0] if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
                parts.append(f"{word} by {size} points at {_shots(found)}")
        open_ = [claim for claim in own if not holds(claim)]
        parts += [f"no difference established at {_shots(open_)}"] if open_ else []
        lines.append(f"- `{b}`: {'; '.join(parts)}")
    return "\n".join(lines) + "\n"


def at_each(claims: Sequence[Claim]) -> str:
    """A list item for each number of shots: from which methods a difference holds."""
    lines = []
    for shots in dict.fromkeys(claim.shots for claim in claims):
        own = [claim for claim in claims if claim.shots == shots]
        groups = (
            ("higher than", [c for c in own if holds(c) and c.interval.estimate > 0]),
            ("lower than", [c for c in own if holds(c) and c.interval.estimate < 0]),
        )
        parts = [
            f"{word} {and_([f'`{claim.b}`' for claim in found])}" for word, found in groups if found
        ]
        left = sum(not holds(claim) for claim in own)
        parts += [f"no difference established from the other {left}"] if left else []
        lines.append(f"- At {shots} shot{'s' * (shots != 1)}: {'; '.join(parts)}.")
    return "\n".join(lines) + "\n"


def _shots(claims: Sequence[Claim]) -> str:
    text = and_([str(claim.shots) for claim in claims])
    return f"{text} shot{'s' * (text != '1')}"


def _accuracy(run: Run, method: str) -> str:
    values = [r.metrics["accuracy"] for cell, r in run.cells.done() if cell.method == method]
    assert len(values) == 1
    return f"{100 * values[0]:.1f} %"


# The pages' parts.


def demo() -> str:
    """The demo's table in the README, and what it establishes."""
    run = kept("demo")
    [texts] = run.claims("symptoms-mean", "zero-shot")
    claims = run.claims("vip")
    established = "establishes" if holds(texts) else "does not establish"
    return (
        f"{run.table()}\n"
        "How to read it: `zero-shot` uses class names, which tiny-clip never saw in training, and\n"
        f"reaches {_accuracy(run, 'zero-shot')}; `symptoms-mean` uses symptoms, whose words it "
        f"saw, and reaches {_accuracy(run, 'symptoms-mean')} without further training.\n"
        f"`vipbench compare symptoms-mean zero-shot` {established} the difference: {points(texts)} "
        f"points, p {_p(texts)}.\n`vip` starts from the same symptoms. Its accuracy compared with "
        "that of every other row, by `vipbench compare vip all`\n"
        f"({len(claims)} comparisons, Holm-corrected, at 5 %):\n\n"
        f"{against(claims)}"
    )


def pneumonia() -> str:
    """The table of real images in the README, and what it establishes."""
    run = kept("pneumonia")
    claims = run.claims("linear-probe")
    return (
        f"{run.table()}\n"
        "The accuracy of `linear-probe`, which uses no text, compared with that of the others, by\n"
        f"`vipbench compare linear-probe all` ({len(claims)} comparisons, Holm-corrected, at 5 %):"
        "\n\n"
        f"{against(claims)}"
    )


KINDS = ("out-of-domain", "useless", "incorrect")


def knowledge() -> str:
    """The tables of docs/symptoms.md: what symptoms are worth, and other texts in their place."""
    run = kept("figure3")
    others = ["zero-shot", *(f"symptoms-mean ({kind} knowledge)" for kind in KINDS)]
    rows = [f"vip ({kind} knowledge)" for kind in KINDS]
    untrained = run.claims("symptoms-mean", *others)
    lines = [
        "```bash",
        "cd benchmarks/results/vip-figure3",
        f"vipbench compare symptoms-mean '{','.join(others)}' .",
        *(f"vipbench compare vip '{','.join(rows)}' . --shots {k}" for k in (4, 16)),
        "```",
        "",
        f"| nothing trained: symptoms ({_accuracy(run, 'symptoms-mean')}) against | "
        "| difference | p |",
        "|---|---:|---:|---:|",
    ]
    for claim, name in zip(untrained, ("class names", *map(_texts, KINDS)), strict=True):
        text = f"{100 * claim.mean_b:.1f} % | {points(claim)} | {p_value(claim)}"
        lines.append(f"| {name} | {text} |")
    few, many = (run.claims("vip", *rows, shots=[k]) for k in (4, 16))
    lines += [
        "",
        f"| ViP, 3 seeds: symptoms against | 4 shots ({100 * few[0].mean_a:.1f} %) | p "
        f"| 16 shots ({100 * many[0].mean_a:.1f} %) | p |",
        "|---|---:|---:|---:|---:|",
    ]
    for kind, at_4, at_16 in zip(KINDS, few, many, strict=True):
        text = f"{points(at_4)} | {p_value(at_4)} | {points(at_16)} | {p_value(at_16)}"
        lines.append(f"| {_texts(kind)} | {text} |")
    lines += [
        "",
        f"Nothing trained: {_which(untrained)}. ViP at 4 shots: {_which(few)}; at 16 shots: "
        f"{_which(many)}.",
        "",
    ]
    return "\n".join(lines)


def _texts(kind: str) -> str:
    return f"{kind} knowledge"


def _which(claims: Sequence[Claim]) -> str:
    """Of how many of the other kinds of text the difference holds."""
    better = sum(holds(c) and c.interval.estimate > 0 for c in claims)
    worse = sum(holds(c) and c.interval.estimate < 0 for c in claims)
    text = f"symptoms are more accurate than {better} of {len(claims)} other kinds of text"
    return text + (f", less accurate than {worse}" if worse else "")


def all_methods() -> str:
    """The table of docs/all-methods.md."""
    return f"{kept('all-methods').table()}\n"


def all_methods_compared() -> str:
    """What the table of docs/all-methods.md establishes of ViP."""
    run = kept("all-methods")
    claims = run.claims("vip")
    return (
        "Accuracy of `vip` against every other row, by\n"
        "`vipbench compare vip all all-methods-results` "
        f"({len(claims)} comparisons, Holm-corrected, at 5 %):\n\n{at_each(claims)}"
    )


def _p(claim: Claim) -> str:
    text = p_value(claim)
    return text if text.startswith("<") else f"= {text}"


# Name of the block -> the run that it is of, and what writes it.
BLOCKS: Mapping[str, tuple[str, Callable[[], str]]] = {
    "demo": ("demo", demo),
    "pneumonia": ("pneumonia", pneumonia),
    "knowledge": ("figure3", knowledge),
    "all-methods": ("all-methods", all_methods),
    "all-methods-compared": ("all-methods", all_methods_compared),
}


def is_kept(name: str) -> bool:
    """Whether there is a kept run of that name."""
    return (KEPT / f"{name}.json.gz").exists()


def written(page: str) -> str:
    """A page's text with the blocks of kept runs as these have it."""

    def block(found: re.Match[str]) -> str:
        name, write = BLOCKS[found[2]]
        return f"{found[1]}{write()}{found[4]}" if is_kept(name) else found[0]

    return BLOCK.sub(block, page)


def write_pages() -> None:
    """Write the pages' blocks and pictures."""
    from vipbench.results.figures import draw, save

    for name in PAGES:
        page = REPO / name
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    for file, name, kind in (
        ("demo-curves", "demo", "fewshot"),
        ("vip-figure2", "figure2", "bars"),
        ("vip-figure3", "figure3", "knowledge"),
    ):
        if not is_kept(name):
            continue
        run = kept(name)
        figure, _ = draw(kind, run.cells, run.load)
        save(figure, REPO / "docs" / "img" / f"{file}.png")


def make(name: str, path: Path | None) -> None:
    """Make a run anew and keep it. path: the file of PneumoniaMNIST."""
    words = [word.replace("PATH", str(path)) for word in RUNS[name]]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vipbench", "run", *words, "--out", folder]
        subprocess.run(command, cwd=REPO, check=True)
        keep(Path(folder), name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--make", type=Path, metavar="NPZ", help="make the runs anew")
    parser.add_argument("--only", default=",".join(RUNS), metavar="A,B", help="these runs alone")
    parser.add_argument("--from", dest="folders", action="append", default=[], metavar="NAME=DIR")
    args = parser.parse_args()
    for given in args.folders:
        name, _, folder = given.partition("=")
        keep(Path(folder), name)
    if args.make is not None:
        for name in args.only.split(","):
            make(name, args.make.resolve())
    write_pages()


if __name__ == "__main__":
    main()
