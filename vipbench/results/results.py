"""The results of a run, or of a whole folder, for scripts and notebooks. No torch is imported."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vipbench.errors import UsageError, unknown
from vipbench.results.compare.claims import Claim, Claims, compare
from vipbench.results.compare.sentences import sentence, write_claims
from vipbench.results.leaderboard.page import save_leaderboard
from vipbench.results.records.plan import PlannedCell
from vipbench.results.records.record import CellId, Record
from vipbench.results.selection import Selection, labels, opened, title_of
from vipbench.results.store.store import FILE, Store
from vipbench.results.tables import Table, render
from vipbench.results.tables.escape import plain
from vipbench.results.tables.layout import Layout, lay_out
from vipbench.results.tables.presets import PRESETS, preset
from vipbench.results.tables.table import SPREADS
from vipbench.runspec.run import RunSpec
from vipbench.text import plural

# pandas is imported where a frame is asked for: commands that print tables do not wait for it.
if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Names = str | Sequence[str]
Shots = int | str | Sequence[int | str]
Seeds = int | str | Sequence[int]


class TrainedModel(Protocol):
    """What `Results.model` returns: a `vipbench.Model`, which documents it."""

    name: str
    class_names: tuple[str, ...]

    def predict(self, images: Any) -> NDArray[np.str_]:
        """N images -> N class names."""

    def scores(self, images: Any) -> pd.DataFrame:
        """N images -> N rows, a column per class."""

    def explain(self, image: Any) -> pd.DataFrame:
        """One image -> a row per symptom."""


class Results:
    """Cells of a results folder.

    `Results(folder)` holds all cells that runs in the folder requested; `vipbench.run` returns
    the cells of that call. Raises UsageError where `folder` is no results folder, StoreError where
    it is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        cells: Iterable[PlannedCell] | None = None,
        suite: RunSpec | None = None,
    ) -> None:
        # Later calls must find it from any working directory.
        self.folder, self._given = Path(folder).absolute(), str(folder)
        self._cells = None if cells is None else tuple(cells)
        # A later run into the folder may be of other data and texts.
        self._suite = suite
        if not (self.folder / FILE).is_file():
            raise UsageError(
                f"'{folder}' is no results folder: it has no {FILE}; expected the `out` of a run"
            )
        with Store(self.folder, readonly=True):
            pass

    def __repr__(self) -> str:
        records = self._records()
        failed = sum(not record.ok for record in records)
        done = plural(len(records) - failed, "finished cell")
        return f"Results({self._given!r}): {done}" + (f", {failed} failed" if failed else "")

    def frame(self, superseded: bool = False, folds: bool = False) -> pd.DataFrame:
        """One row per record, as `vipbench.load_results` gives them; docs/results.md names the
        columns. Metrics are fractions. superseded: also superseded records of the folder, marked
        by a boolean column of that name. folds: one row per fold, not one for all."""
        from vipbench.results.sharing.frame import load_results

        return load_results(self.folder, superseded, folds, self._cells)

    @property
    def failed(self) -> list[FailedCell]:
        """The failed cells, each with its error message; empty where none failed."""
        return [FailedCell.of(record) for record in self._records() if not record.ok]

    def table(
        self,
        preset: str | None = None,
        *,
        metrics: Names | None = None,
        rows: Names | None = None,
        cols: Names | None = None,
        aggregate: str = "sd",
        highlight: str = "best",
        average: bool = False,
        decimals: int = 1,
        methods: Names | None = None,
        datasets: Names | None = None,
        backbones: Names | None = None,
        shots: Shots | None = None,
        seeds: Seeds | None = None,
    ) -> ResultTable:
        """The table that `vipbench table` prints; the arguments are its options. Raises
        UsageError, StoreError."""
        chosen = Selection.of(datasets, backbones, methods, shots, seeds)
        shape = {"rows": rows, "cols": cols, "metrics": metrics}
        looks: dict[str, Any] = {"aggregate": aggregate, "highlight": highlight, "average": average}
        looks |= {"decimals": decimals}
        with opened(self.folder) as store:
            return ResultTable(folder_table(store, preset, shape, looks, chosen, self._cells))

    def compare(
        self,
        a: str,
        b: Names = "all",
        *,
        metric: Names = "accuracy",
        datasets: Names | None = None,
        backbones: Names | None = None,
        shots: Shots | None = None,
        seeds: Seeds | None = None,
        population: str = "both",
        level: float = 0.95,
    ) -> Comparison:
        """Row `a` against row `b` (a label, several, or "all"), as `vipbench compare` does; its
        options are the arguments. Raises UsageError, StoreError."""
        others = () if b == "all" else labels(b)
        if b != "all" and not others:
            raise UsageError("expected the label of another method, or all")
        chosen = Selection.of(datasets, backbones, None, shots, seeds)
        with opened(self.folder) as store:
            found = compare(
                chosen.cells(store, planned=self._cells),
                store.predictions,
                a,
                others,
                metrics=labels(metric),
                population=population,
                level=level,
            )
        return Comparison(found, found.claims)

    def plot(
        self,
        kind: str = "fewshot",
        *,
        metric: str = "accuracy",
        aggregate: str | None = None,
        methods: Names | None = None,
        datasets: Names | None = None,
        backbones: Names | None = None,
        shots: Shots | None = None,
        seeds: Seeds | None = None,
    ) -> Figure:
        """The figure of `vipbench plot`, with its caption as the attribute `caption`; nothing is
        written (`figure.savefig(FILE)` does that). The arguments are the command's options. Raises
        UsageError, StoreError."""
        chosen = Selection.of(datasets, backbones, methods, shots, seeds)
        figure, caption = folder_figure(self.folder, kind, metric, aggregate, chosen, self._cells)
        # matplotlib has no place for a caption, and notebooks show figures of `pyplot` alone.
        vars(figure).update(caption=caption, _repr_png_=partial(_png, figure))
        return figure

    def leaderboard(self, path: str | os.PathLike[str], title: str = "Leaderboard") -> Path:
        """Write the folder's leaderboard to the file `path` (NAME.html), or to index.html in the
        folder `path`; returns the file. Raises UsageError, StoreError, OSError."""
        return save_leaderboard([self.folder], Path(path), title).path

    def model(
        self,
        method: str | None = None,
        dataset: str | None = None,
        backbone: str | None = None,
        shots: int | str | None = None,
        seed: int | None = None,
    ) -> TrainedModel:
        """The trained model of one finished cell, to classify other images with. Only what is not
        the same in all finished cells has to be given. Plugins of the run are imported into this
        process, and torch. Raises UsageError, which names the choices, where not exactly one cell
        fits, StoreError."""
        given: dict[str, Any] = {"method": method, "dataset": dataset, "backbone": backbone}
        given |= {"shots": shots, "seed": seed}
        record = _only(self._records(), given)
        # By name, since results are read without the engine and torch.
        module = import_module("vipbench.engine.explain.model")
        model: TrainedModel = module.open_model(self.folder, record, self._suite)
        return model

    def _records(self) -> list[Record]:
        with opened(self.folder) as store:
            records = store.records(history=False)
            gone = store.superseded() if self._cells is None else frozenset[str]()
        if self._cells is not None:
            keys = {cell.key for cell in self._cells}
            return [record for record in records if record.key in keys]
        return [record for record in records if record.key not in gone]


class FailedCell(CellId):
    """A cell that failed. error: the message; traceback: where the record has one."""

    key: str
    error: str
    traceback: str | None = None

    @classmethod
    def of(cls, record: Record) -> FailedCell:
        """The failed cell of `record`."""
        error = record.error
        assert error is not None
        message = f"{error.type}: {error.message}"
        cell = record.cell.model_dump()
        return cls(**cell, key=record.key, error=message, traceback=error.traceback)


@dataclass(frozen=True, repr=False)
class ResultTable:
    """A table; `print` shows it as text, a notebook as HTML. table: its content."""

    table: Table

    def __repr__(self) -> str:
        return render(self.table, "text").rstrip("\n")

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_latex(self) -> str:
        """A LaTeX `table` environment; it needs the package booktabs."""
        return render(self.table, "latex")

    def to_markdown(self) -> str:
        """A GitHub-flavoured Markdown table."""
        return render(self.table, "github")

    def to_html(self) -> str:
        """An HTML `figure` element, without scripts and styles."""
        return render(self.table, "html")

    def to_frame(self) -> pd.DataFrame:
        """One row per entry, the columns of `vipbench table --format csv`. Metrics are fractions,
        not rounded; empty fields are NaN."""
        return _frame(render(self.table, "csv"))


@dataclass(frozen=True, repr=False)
class Comparison:
    """Comparisons of one method with others, corrected together; `print` shows them as sentences.

    Numbers are fractions. `difference`, `interval`, `p` and `n` are those of the only comparison;
    where there are several, iterate, or index by position.
    """

    family: Claims
    claims: tuple[Claim, ...]

    def __repr__(self) -> str:
        lines = [sentence(claim, self.family) for claim in self.claims]
        if len(self.claims) == len(self.family.claims):
            lines += [f"Note: {note}" for note in self.family.notes]
            lines += [f"Not compared: {reason}." for reason in self.family.refused]
        return "\n\n".join(map(plain, lines))

    def __len__(self) -> int:
        return len(self.claims)

    def __iter__(self) -> Iterator[Comparison]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> Comparison:
        return replace(self, claims=(self.claims[place],))

    @property
    def claim(self) -> Claim:
        """The only comparison. Raises UsageError where there are several."""
        if len(self.claims) != 1:
            names = "; ".join(
                f"{c.b} on {', '.join(c.datasets)}, {c.backbone}, shots {c.shots}, {c.metric}"
                for c in self.claims
            )
            raise UsageError(
                f"there are {len(self.claims)} comparisons: {names}; iterate over them, or choose "
                "one with b=, datasets=, backbones=, shots= and metric="
            )
        return self.claims[0]

    @property
    def difference(self) -> float:
        """The mean of a minus the mean of b."""
        return self.claim.interval.estimate

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval of the difference, not corrected for other comparisons."""
        return self.claim.interval.low, self.claim.interval.high

    @property
    def p(self) -> float:
        """The two-sided p value, Holm-corrected over all comparisons made together."""
        return self.claim.p_corrected

    @property
    def n(self) -> int:
        """The number of test images."""
        return self.claim.n_images

    @property
    def n_seeds(self) -> int:
        """The number of seeds that both methods share."""
        return self.claim.interval.n_seeds

    def to_latex(self) -> str:
        """The sentences in LaTeX."""
        return write_claims(self.family, "latex")

    def to_markdown(self) -> str:
        """The sentences in Markdown."""
        return write_claims(self.family, "github")

    def to_frame(self) -> pd.DataFrame:
        """One row per comparison, the columns of `vipbench compare --format csv`."""
        return _frame(write_claims(self.family, "csv"))


def _only(records: Sequence[Record], given: Mapping[str, Any]) -> Record:
    """The finished record that has the values `given`, where not None. Raises UsageError."""
    fitting = [record for record in records if record.ok]
    if not fitting:
        raise UsageError("no cell is finished, so there is no model")
    for name, value in given.items():
        if value is None:
            continue
        known = dict.fromkeys(str(getattr(record.cell, name)) for record in fitting)
        if str(value) not in known:
            raise unknown(name, str(value), known)
        fitting = [r for r in fitting if str(getattr(r.cell, name)) == str(value)]
    if len(fitting) == 1:
        return fitting[0]
    choices = {
        name: list(dict.fromkeys(getattr(record.cell, name) for record in fitting))
        for name in given
    }
    words = [
        f"{name} ({', '.join(map(repr, values))})"
        for name, values in choices.items()
        if len(values) > 1
    ]
    raise UsageError(f"{len(fitting)} models match; choose one value of {' and of '.join(words)}")


def _frame(text: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(io.StringIO(text))


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", bbox_inches="tight")
    return data.getvalue()


def folder_table(
    store: Store,
    preset_name: str | None,
    shape: Mapping[str, Names | None],
    looks: Mapping[str, Any],
    chosen: Selection,
    planned: Sequence[PlannedCell] | None = None,
) -> Table:
    """A table of a folder. shape: `rows`, `cols`, `metrics`, None where not given; looks: further
    fields of a Layout. Raises UsageError, StoreError, TableError."""
    if preset_name is not None and preset_name not in PRESETS:
        raise unknown("preset", preset_name, PRESETS)
    named: dict[str, Any] = {
        name: labels(value) for name, value in shape.items() if value is not None
    }
    rows, cols = named.get("rows"), named.get("cols")
    if rows is not None and cols is None and preset_name is None:
        named["cols"] = tuple(level for level in Layout().cols if level not in rows)
    if cols is not None and rows is None and preset_name is None:
        named["rows"] = tuple(level for level in ("method", *Layout().cols) if level not in cols)
    layout = Layout(**named, **looks, title=title_of(store.out_dir))
    cells = chosen.cells(store, planned=planned)
    if preset_name is not None:
        given = [*named, *(["average"] if looks["average"] else [])]
        cells, layout = preset(preset_name, cells, layout, given)
    return lay_out(cells, layout, store.predictions)


def folder_figure(
    folder: Path,
    kind: str,
    metric: str,
    aggregate: str | None,
    chosen: Selection,
    planned: Sequence[PlannedCell] | None = None,
) -> tuple[Figure, str]:
    """A figure of a folder and its caption. Raises UsageError, StoreError."""
    from vipbench.results.figures import KINDS, draw

    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if aggregate is not None and aggregate not in SPREADS:
        raise unknown("aggregate", aggregate, SPREADS)
    with opened(folder) as store:
        cells = chosen.cells(store, planned=planned)
        if kind == "training":
            # Tables are made of records without it.
            histories = {record.key: record.history for record in store.records()}
            done = {
                key: record.model_copy(update={"history": histories.get(key, [])})
                for key, record in cells.records.items()
            }
            cells = replace(cells, records=done)
        return draw(kind, cells, store.predictions, metric, aggregate, title_of(folder))
