"""The lines that a run prints while it is in progress, on the command line and in Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vipbench import __version__
from vipbench.engine.progress import Reporter
from vipbench.engine.workers.driver import Observer, Plan, PlannedCell
from vipbench.errors import UsageError
from vipbench.results.records.record import Record
from vipbench.runspec.run import TEXT_FILES, RunSpec
from vipbench.runspec.text_sets import split_key
from vipbench.text import clean, listed, plural, ranges, shots_text

# Reasons to run cells again that are listed one by one.
MOST_REASONS = 6
# Lines with the texts that methods see, before a run.
MOST_TEXTS = 12
WORDS = {"todo": "to do", "done": "done", "impossible": "impossible"}


class Screen(Observer):
    """Shows a run in progress. settings: whether the settings are shown first. part: whether it is
    a part of a run, of which no cell need be possible."""

    def __init__(
        self, spec: RunSpec, shown: Reporter, settings: bool = True, part: bool = False
    ) -> None:
        self.spec = spec
        self.settings, self.part = settings, part
        self.shown = shown
        self.plan = Plan()
        self.done = self.failed = 0
        self._waiting: dict[str, set[str]] = {}  # group -> its cells that are not yet done
        self._shares: dict[str, tuple[str, float]] = {}  # group in work -> its row, how far it is

    def planned(self, plan: Plan) -> None:
        """The settings, what cannot be run and why, and the bar."""
        self.plan = plan
        self.done = self.failed = 0
        self._waiting.clear()
        todo, impossible = plan.of("todo"), plan.of("impossible")
        if not self.part:
            require_possible(plan)
        lines = settings_lines(self.spec, plan) if self.settings else [f"cells: {counts(plan)}"]
        lines += [*_grouped(impossible), *text_lines(plan, MOST_TEXTS), *notice_lines(plan)]
        lines += [*_rerun_lines(todo), *broken_lines(plan)]
        for line in lines:
            self.shown.line(line)
        for cell in todo:
            self._waiting.setdefault(cell.group, set()).add(cell.key)
        if todo:
            self.shown.start(len(todo))

    def cell_done(self, cell: PlannedCell, record: Record) -> None:
        """Count it; a failure gets a line."""
        waiting = self._waiting.get(cell.group, set())
        waiting.discard(cell.key)
        self._shares[cell.group] = (cell.method, 0.0)
        self.done += 1
        if record.error is not None:
            self.failed += 1
            self.shown.line(f"failed: {cell.words()}: {_error_words(record)}")
        self._show()
        if not waiting:
            del self._shares[cell.group]

    def progress(self, cell: PlannedCell, share: float) -> None:
        """Part of a group in work is done."""
        self._shares[cell.group] = (cell.method, share)
        self._show()

    def encoding(self, cell: PlannedCell, done: int, total: int) -> None:
        """Before cells of this backbone and dataset."""
        pair = cell.backbone, cell.dataset
        todo = {key for waiting in self._waiting.values() for key in waiting}
        then = sum(c.key in todo and (c.backbone, c.dataset) == pair for c in self.plan.cells)
        self.shown.encoding(done, total, then)

    def _show(self) -> None:
        begun = sum(
            share * len(self._waiting.get(group, ())) for group, (_, share) in self._shares.items()
        )
        now = listed(dict.fromkeys(clean(row) for row, _ in self._shares.values()))
        self.shown.update(self.done, begun, self.failed, now)

    def note(self, text: str) -> None:
        """A line."""
        self.shown.line(f"note: {clean(text)}")


def settings_lines(spec: RunSpec, plan: Plan) -> list[str]:
    """The settings, printed before the run starts."""
    methods = [
        f"{method.label} ({method.plain})" if method.own_label else method.label
        for method in spec.methods
    ]
    published = spec.profile == "published"
    rows = [
        ("methods", listed(methods)),
        ("datasets", listed(spec.datasets)),
        ("backbones", listed(spec.backbones)),
        *([("protocol", spec.protocol.as_text())] if spec.protocol.name != "few-shot" else []),
        ("shots", f"{listed(spec.shots)} ({_unit(spec)})"),
        ("seeds", ranges(spec.seeds)),
        ("profile", spec.profile),
        ("views", spec.views),
        ("sampler", spec.sampler),
        ("validation", "each paper's own" if published else spec.validation),
        ("selection", "each paper's own" if published else spec.selection),
        ("precision", spec.precision),
        *([("features", spec.feature_precision)] if spec.feature_precision != "fp32" else []),
        ("device", plan.info.get("device", spec.device)),
        ("workers", plan.info.get("workers", spec.workers)),
        ("output", spec.out),
    ]
    if spec.allow_group_overlap:
        rows.append(("groups", "may cross splits"))
    if spec.data_root is not None:
        rows.append(("data root", spec.data_root))
    files = ("images", *TEXT_FILES)
    rows += [(kind, _files(getattr(spec, kind))) for kind in files if getattr(spec, kind)]
    if spec.score_on != "test":
        rows.append(("scored on", f"{spec.score_on}, not the test split"))
    if spec.plugins_dir is not None:
        rows.append(("plugins", spec.plugins_dir))
    if spec.track:
        rows.append(("trackers", f"{listed(spec.track)}, in {spec.out / 'tracking'}"))
    rows.append(("cells", counts(plan)))
    head = [f"vipbench {__version__}", *([spec.title] if spec.title else [])]
    return [*head, *(f"  {name:<11} {clean(str(value))}" for name, value in rows)]


def _files(paths: Mapping[str, Path]) -> str:
    """Files by dataset, "*" for every one, and by label."""
    shown = []
    for key, file in paths.items():
        label, dataset = split_key(key)
        under = f"{label}: " if label else ""
        shown.append(f"{under}{file} for {'all datasets' if dataset == '*' else dataset}")
    return listed(shown)


def _unit(spec: RunSpec) -> str:
    if spec.protocol.name == "imbalanced":
        return "images per class on average"
    return f"{spec.shots_unit}s per class"


def counts(plan: Plan) -> str:
    """How many cells there are of each state."""
    numbers = {status: len(plan.of(status)) for status in WORDS}
    shown = listed(f"{numbers[s]:,} {WORDS[s]}" for s in WORDS if numbers[s] or s == "todo")
    return shown if len(plan.cells) == numbers["todo"] else f"{len(plan.cells):,}: {shown}"


def notice_lines(plan: Plan) -> list[str]:
    """What a reader must know of the data and weights."""
    return [f"note: {clean(notice)}" for notice in plan.notices]


def text_lines(plan: Plan, most: int | None = None) -> list[str]:
    """The texts of the first class of each dataset, with the methods that see them. most: lines."""
    methods: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for one in plan.texts:
        own = methods.setdefault((one.dataset, one.of, one.texts), [])
        if one.method not in own:
            own.append(one.method)
    lines = [
        clean(f"texts of '{of}' ({dataset}): {listed(own)}: " + "; ".join(texts))
        for (dataset, of, texts), own in methods.items()
    ]
    if most is not None and len(lines) > most:
        lines[most:] = [f"texts: {len(lines) - most} more lines, see --dry-run"]
    return lines


def broken_lines(plan: Plan) -> list[str]:
    """The plugins that cannot be planned with."""
    return [f"failed: {clean(sentence)}" for sentence in plan.broken]


def _rerun_lines(todo: Iterable[PlannedCell]) -> list[str]:
    """Why cells that have a result are run, one line for each reason."""
    groups: dict[str, list[PlannedCell]] = {}
    for cell in todo:
        if cell.reason:
            groups.setdefault(cell.reason, []).append(cell)
    lines = [
        f"again: {plural(len(members), 'cell')} of "
        f"{listed(dict.fromkeys(cell.method for cell in members))}: {clean(reason)}"
        for reason, members in groups.items()
    ]
    more = len(lines) - MOST_REASONS
    if more > 0:
        lines[MOST_REASONS:] = [f"again: {plural(more, 'more reason')}, see --dry-run"]
    return lines


def require_possible(plan: Plan) -> None:
    """Raise UsageError where there are cells and none can be run."""
    impossible = plan.of("impossible")
    if impossible and len(impossible) == len(plan.cells):
        raise UsageError(
            f"none of the {plural(len(plan.cells), 'cell')} can be run: "
            f"{listed(_grouped(impossible)[:3])}"
        )


def _grouped(cells: Iterable[PlannedCell]) -> list[str]:
    """Impossible cells, one line for those that share row, backbone and reason."""
    groups: dict[tuple[str, ...], list[PlannedCell]] = {}
    for cell in cells:
        key = (cell.method, cell.backbone, cell.reason or "")
        groups.setdefault(key, []).append(cell)
    lines = []
    for (method, backbone, reason), members in groups.items():
        dataset = listed(dict.fromkeys(cell.dataset for cell in members))
        shots = listed(dict.fromkeys(shots_text(cell.shots) for cell in members))
        lines.append(
            f"impossible: {method} on {dataset} with {backbone}, {shots} "
            f"({plural(len(members), 'cell')}): {clean(reason)}"
        )
    return lines


def _error_words(record: Record) -> str:
    error = record.error
    assert error is not None
    text = error.message
    if not text.startswith(("plugin ", error.type)):
        text = f"{error.type}: {text}"
    if error.plugin and f"'{error.plugin}'" not in text:
        text += f" (plugin '{error.plugin}'{f', {error.file}' if error.file else ''})"
    return clean(text)
