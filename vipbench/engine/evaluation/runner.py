"""Running cells: build, train (stacked where it can be), score, and write down what happened."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from vipbench.api import Backbone, ImageError, Method, Recipe, Task, has_own_fit
from vipbench.engine.evaluation.class_texts import ClassTexts
from vipbench.engine.evaluation.foreign import Models
from vipbench.engine.evaluation.learned import versions
from vipbench.engine.evaluation.rebind import cannot_transfer, transferred
from vipbench.engine.evaluation.records import error_record
from vipbench.engine.evaluation.scoring import (
    Finished,
    Ready,
    ScoreError,
    Test,
    checked_scores,
    finished,
    trainings,
)
from vipbench.engine.evaluation.stack_size import most_stacked
from vipbench.engine.evaluation.support import (
    encode_views,
    image_batches,
    make_support,
    may_read_plain,
    reads,
    test_inputs,
    test_order,
    test_views,
)
from vipbench.engine.features.cache import Item
from vipbench.engine.features.features import Features
from vipbench.engine.features.images import Drawn
from vipbench.engine.features.side_by_side import SideBySide
from vipbench.engine.features.texts import text_shelf
from vipbench.engine.guard import FrozenTexts, Guard, SpoiltError, own_randomness
from vipbench.engine.machine import Share, free_memory, is_lost, threads, wait
from vipbench.engine.planning.cells import LoadedCell
from vipbench.engine.planning.loading import LoadedBackbone, LoadedDataset, users
from vipbench.engine.planning.protocols import home, test_rows
from vipbench.engine.precision import require_exact_products, use_exact_products
from vipbench.engine.seeding import cell_generator
from vipbench.engine.training.cuda_graphs import ReplayError, Replays
from vipbench.engine.training.stacking import TrainCell, partition
from vipbench.engine.training.trainer import train

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


class LostDeviceError(BaseException):
    """Nothing works on the device in this process any more. Not an Exception: the process is to
    end, and a new one runs its cells one by one."""


@dataclass
class Clock:
    """Seconds of a piece of work."""

    encode: float = 0.0
    other: float = 0.0


class GroupRunner:
    """Runs groups of cells of one backbone and dataset, sharing features and frozen texts."""

    def __init__(
        self,
        features: Features,
        note: Callable[[str], None],
        share: Share | None = None,
        replays: Replays | None = None,
    ) -> None:
        self.features = features
        self.note = note
        self.share = share or Share()
        self.replays = replays
        self.texts = FrozenTexts()
        self.guard = Guard(features.backbone, self.texts)
        self.shelf = text_shelf(features, self.guard)
        features.before_keeping = lambda: self.guard.check(self._running)
        # Of a dataset's name its features: what is trained here may be tested on others.
        self.features_of: Callable[[str], Features] = lambda name: self.features
        self.models = Models()
        self._beside: dict[tuple[str, str], Features] = {}
        # What the last method of `try_build` gave to the text tower.
        self.class_texts = ClassTexts(0)
        # Whether a method changed what other cells use: this process is then of no more use.
        self.spoilt = False
        # Whose cells are at work, for errors.
        self._running = "a plugin"
        # Of a cell's key what it took to fit it into the memory; its record tells.
        self._short: dict[str, str] = {}
        # Of a cell's key its share of the seconds in which images were encoded for several cells.
        self._encoded: dict[str, float] = {}
        # Of a row and the data it trains on: the training images of all its cells.
        self._together: dict[tuple[str, str], dict[int, None]] = {}

    def run(
        self, cells: Sequence[LoadedCell], ahead: Sequence[LoadedCell] = ()
    ) -> Iterator[list[Finished]]:
        """All cells of one group (same row, dataset and backbone), those together that were trained
        together; a failure is a record. ahead: cells that are run later; what both read is encoded
        first, in full batches."""
        left = {cell.key: cell for cell in cells}
        self.set_up(cells[0])
        self._running = _method_words(cells[0])
        try:
            self._encode([*cells, *ahead])
            every = trainings(cells)
            most = most_stacked()
            for start in range(0, len(every), most):
                for some in self._run_some(every[start : start + most]):
                    for done in some:
                        del left[done.record.key]
                    yield some
        except SpoiltError as error:
            self.spoilt = True
            yield [Finished(error_record(cell, error), None) for cell in left.values()]

    def run_alone(self, cell: LoadedCell) -> Finished:
        """One cell by itself; whatever it raises comes through."""
        self.set_up(cell)
        return self._execute([cell])[0]

    def encode(self, cells: Sequence[LoadedCell]) -> None:
        """Encode what these cells are sure to read, for whoever runs them later."""
        self.set_up(cells[0])
        self._running = _method_words(cells[0])
        with suppress(SpoiltError):  # reported where the cells are run
            self._encode(cells)

    def _encode(self, cells: Sequence[LoadedCell]) -> None:
        """Encode what the cells are sure to read. What fails here fails again, and is reported,
        where the cells are run."""
        started = time.perf_counter()
        wanted: dict[int, tuple[Features, dict[tuple[str, Drawn], dict[Item, None]]]] = {}
        for cell in cells:
            together = self._together.setdefault((cell.row.label, home(cell.data)), {})
            together.update(dict.fromkeys(may_read_plain(cell)))
            with suppress(Exception):  # of a plugin's recipe
                for dataset, split, items, views in reads(cell):
                    for tower in (None, *cell.further):
                        own = self.features_of(dataset)
                        own = own if tower is None else self.beside(tower, dataset)
                        _, kinds = wanted.setdefault(id(own), (own, {}))
                        kinds.setdefault((split, views), {}).update(dict.fromkeys(items))
        for features, kinds in wanted.values():
            try:
                features.fetch(kinds)
            except SpoiltError:
                raise
            except Exception:
                continue
        share = (time.perf_counter() - started) / len(cells)
        for cell in cells:
            self._encoded[cell.key] = self._encoded.get(cell.key, 0.0) + share

    def set_up(self, cell: LoadedCell) -> None:
        """Once, before cells like this one are trained."""
        backbone = self.features.backbone
        if cell.plugins:
            self.guard.arm()
        torch.set_num_threads(threads(backbone, self.share.workers))
        if isinstance(backbone, Backbone):
            backbone.memory_budget = free_memory(backbone.device) // (4 * self.share.on_device)
            if cell.protocol.precision == "bf16":
                backbone.training_precision = "bf16"

    def try_build(self, cell: LoadedCell) -> Method:
        """A cell's method for the classes that it tests, not to be run for numbers; raises what its
        constructor raises."""
        with nullcontext() if cell.row.plugin.builtin else self.guard.restored():
            data = cell.tested if cell.rebound else cell.data
            self.class_texts = ClassTexts(len(data.dataset.class_names))
            task = self._task(cell, data, trial=True)
            return self._make(cell, dataclasses.replace(task, _seen=self.class_texts))

    def try_transfer(self, cell: LoadedCell) -> str | None:
        """Why what the cell's method learns serves no other classes, or None."""
        with nullcontext() if cell.row.plugin.builtin else self.guard.restored():
            return cannot_transfer(
                cell.row.method,
                cell.hparams,
                cell.info,
                self._task(cell, cell.data, trial=True),
                lambda task: self._make(cell, task),
            )

    def _make(self, cell: LoadedCell, task: Task) -> Method:
        with self._randomness(cell, task.generator, draws=True):
            return self._construct(cell, task)

    def _construct(self, cell: LoadedCell, task: Task) -> Method:
        method = cell.row.method(task, cell.hparams).to(task.device)
        for name, shape in method.noise().items():
            # Before training, so that all stacked cells have the buffers.
            setattr(method, name, torch.zeros(shape, device=task.device))
        return method

    @contextmanager
    def _randomness(
        self,
        cell: LoadedCell,
        generator: Callable[[str], torch.Generator],
        draws: bool = False,
        training: bool = False,
    ) -> Iterator[None]:
        """Around each call of a method: its global generators, the models that it builds, and a
        look at what it must leave."""
        use_exact_products()
        seed = generator("global").initial_seed()
        builtin = cell.row.plugin.builtin
        watch: AbstractContextManager[None] = nullcontext()
        if not builtin:
            watch = self.models.watch(_method_words(cell), training)
        try:
            with (
                own_randomness(seed, _method_words(cell), self.features.backbone.device, draws),
                watch,
            ):
                yield
            require_exact_products(_method_words(cell))
        finally:
            self.guard.look(_method_words(cell))

    def _check_models(self, ready: Sequence[Ready], more: Sequence[Method] = ()) -> None:
        """Raises ForeignModelError where a plugin's method uses a model of its own."""
        cell = ready[0].cell
        if cell.row.plugin.builtin:
            return
        own = [self.features.backbone, *(tower.backbone for tower in cell.further)]
        self.models.check([*(item.method for item in ready), *more], own, ready[0].trained)

    def _run_some(self, every: Sequence[list[LoadedCell]]) -> Iterator[list[Finished]]:
        """every: trainings, as `trainings` gives them."""
        reason, label = "", every[0][0].row.label
        if len(every) > 1:
            try:
                yield self._execute([*chain(*every)])
                return
            except OUT_OF_MEMORY:
                half = len(every) // 2
                message = f"out of memory with {len(every)} cells at once; repeated with half"
                self._note_shortage(label, f"{message} of them", [*chain(*every)])
            except SpoiltError:
                raise
            except Exception as error:
                self._require_device(error)
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if not reason:
                yield from self._run_some(every[:half])
                yield from self._run_some(every[half:])
                return
        failed = False
        for cells in every:
            try:
                yield self._execute_alone(cells)
            except SpoiltError:
                raise
            except Exception as error:
                self._require_device(error)
                failed = True
                if len(cells) > 1:
                    # One of what it is tested on may be at fault; the others must not suffer.
                    yield from chain(*(self._run_some([[cell]]) for cell in cells))
                else:
                    yield [Finished(error_record(cells[0], error), None)]
        if reason and not failed:
            self.note(
                f"'{label}' could not train its cells together and trained one by one ({reason})"
            )

    def _require_device(self, error: Exception) -> None:
        """Raises LostDeviceError where the device was lost with `error`."""
        device = self.features.backbone.device
        if is_lost(device):
            raise LostDeviceError(f"{self._running}: {device} is lost: {error}") from error

    def _execute_alone(self, cells: Sequence[LoadedCell]) -> list[Finished]:
        try:
            return self._execute(cells)
        except OUT_OF_MEMORY:
            backbone = self.features.backbone
            if not isinstance(backbone, Backbone):
                raise
        # Same numbers: beyond its budget a pass only computes again what it did not keep.
        backbone.memory_budget //= 2
        message = "out of memory; repeated with half the memory budget"
        self._note_shortage(cells[0].row.label, message, cells)
        return self._execute(cells)

    def _note_shortage(self, label: str, message: str, cells: Sequence[LoadedCell]) -> None:
        self.note(f"'{label}': {message}")
        self._short.update((cell.key, message) for cell in cells)

    def _execute(self, cells: Sequence[LoadedCell]) -> list[Finished]:
        every = trainings(cells)
        with self.guard.watch(_method_words(cells[0])):
            with suppress(ReplayError):
                return self.score(every, self.trained([own[0] for own in every]))
            # Of this method no more steps are repeated.
            return self.score(every, self.trained([own[0] for own in every]))

    def trained(
        self, cells: Sequence[LoadedCell], recipe: Callable[[Recipe], Recipe] = lambda one: one
    ) -> list[Ready]:
        """Cells of one group, built and trained: as one where they can be. recipe: what becomes of
        the method's; whatever the cells' code raises comes through."""
        ready = self.prepared(cells, recipe)
        with self._clock() as clock:
            self.train(ready)
            self._finish(ready)
            self._check_models(ready)
        for item in ready:
            item.train = clock.other / len(ready)
            item.encode += clock.encode / len(ready)
        return ready

    def prepared(
        self, cells: Sequence[LoadedCell], recipe: Callable[[Recipe], Recipe] = lambda one: one
    ) -> list[Ready]:
        """`trained` before the training."""
        self._running, self.models = _method_words(cells[0]), Models()
        recipes: list[Recipe | None] = []
        with self._clock() as encoding:
            for cell in cells:
                own = cell.hparams.recipe(cell.info)
                recipes.append(None if own is None else recipe(own))
                encode_views(self._inputs(cell, cell.data), cell, recipes[-1])
        with self._clock() as clock:
            ready = [self._prepare(cell, own) for cell, own in zip(cells, recipes, strict=True)]
            self._check_models(ready)
        for item in ready:
            item.prepare = clock.other / len(ready)
            item.encode = (encoding.encode + clock.encode) / len(ready)
        return ready

    def score(
        self, every: Sequence[Sequence[LoadedCell]], ready: Sequence[Ready]
    ) -> list[Finished]:
        """The records of all cells. every: those that share each of the trainings `ready`."""
        tests: dict[str, list[Test]] = {}
        for item, own in zip(ready, every, strict=True):
            for cell in own:
                test = Test(cell, item, self._bound(cell, item))
                test.encode = self._encoded.get(cell.key, 0.0)
                tests.setdefault(cell.tested.dataset.name, []).append(test)
        for some in tests.values():
            try:
                self._test(some)
            except ImageError as error:
                error.tested = True
                raise
        self._check_models(ready, [test.method for some in tests.values() for test in some])
        # In the order of the trainings, whatever each was tested on.
        scored = {test.cell.key: test for some in tests.values() for test in some}
        short = self._short
        return [finished(scored[c.key], len(own), short.get(c.key)) for own in every for c in own]

    def scores(self, item: Ready, rows: Sequence[int]) -> Tensor:
        """Scores (n,C) of the test images `rows` of a trained cell, given to the method alone."""
        test = Test(item.cell, item, item.method)
        self._test([test], rows)
        return torch.cat(test.scores)

    def _test(self, tests: Sequence[Test], rows: Sequence[int] | None = None) -> None:
        """Score cells on the same images. rows: of the test split; None: what the run tests."""
        data, method = tests[0].cell.tested, tests[0].cell.row.method
        rows = test_rows(data) if rows is None else rows
        alike: dict[tuple[object, ...], list[Test]] = {}
        for test in tests:
            sources = tuple(tower.source for tower in test.cell.further)
            alike.setdefault((test_views(test.cell), sources), []).append(test)
        for some in alike.values():
            features, views = self._inputs(some[0].cell, data), test_views(some[0].cell)
            inputs = test_inputs(features, method, rows, views)
            while True:
                with self._clock() as clock:
                    x = next(inputs, None)
                for test in some:
                    test.encode += clock.encode / len(some)
                    test.seconds += clock.other / len(some)
                if x is None:
                    break
                for test in some:
                    begin = time.perf_counter()
                    test.scores.append(self._score(test, x))
                    test.seconds += time.perf_counter() - begin

    def _inputs(self, cell: LoadedCell, data: LoadedDataset) -> Features:
        """The features of `data` that the cell's method reads."""
        own = self.features_of(home(data))
        if not cell.further:
            return own
        return SideBySide([own, *(self.beside(tower, home(data)) for tower in cell.further)])

    def beside(self, tower: LoadedBackbone, name: str) -> Features:
        """Features of the dataset `name` under a further backbone."""
        own = self.features_of(name)
        if tower.backbone is own.backbone:
            return own
        if (tower.source, name) not in self._beside:
            self._beside[tower.source, name] = Features(
                tower.backbone,
                own.splits,
                own.dataset_key,
                own.progress,
                own.note,
                encoding=own.encoding,
                plugins=own.plugins | users(tower),
                folder=own.folder,
                precision=own.precision,
            )
        return self._beside[tower.source, name]

    @property
    def encoded_images(self) -> int:
        """How many images and views were not in the cache."""
        every = (self.features, *self._beside.values())
        return sum(features.encoded_images for features in every)

    @contextmanager
    def _clock(self) -> Iterator[Clock]:
        """Tells, after the block, the seconds that it took: for encoding, and for other work."""
        encoding = self.features.encoding
        clock, started, before = Clock(), time.perf_counter(), encoding.seconds
        yield clock
        wait(self.features.backbone.device)
        clock.encode = encoding.seconds - before
        clock.other = max(0.0, time.perf_counter() - started - clock.encode)

    def _task(self, cell: LoadedCell, data: LoadedDataset, trial: bool = False) -> Task:
        """trial: for a method whose changes are undone; what it makes of texts is not kept."""
        trial &= not cell.row.plugin.builtin
        checked = "" if trial or cell.row.plugin.builtin else _method_words(cell)
        names = data.dataset.class_names
        return Task(
            image_backbone=self.features.backbone,
            class_names=names,
            templates=data.dataset.templates,
            symptoms=data.symptoms,
            descriptions=data.descriptions,
            info=dataclasses.replace(cell.info, n_classes=len(names), dataset=home(data)),
            generator=cell_generator(cell.shots, cell.seed),
            _frozen={} if trial else self.texts,
            _encode=self.shelf and partial(self.shelf, remember=not trial, who=checked),
            dims=cell.dims,
        )

    def _bound(self, cell: LoadedCell, item: Ready) -> Method:
        """What was trained, for the classes that the cell tests."""
        if not cell.rebound:
            return item.method
        task = self._task(cell, cell.tested)
        return transferred(item.method, item.built, task, lambda task: self._make(cell, task))

    def _prepare(self, cell: LoadedCell, recipe: Recipe | None) -> Ready:
        task = self._task(cell, cell.data)
        with self._randomness(cell, task.generator, draws=True):
            method = self._construct(cell, task)
            built = versions(method)
            also = self._together.get((cell.row.label, home(cell.data)), ())
            support = make_support(self._inputs(cell, cell.data), cell, recipe, also)
            if support is not None:
                method.prepare(support)
        return Ready(cell, method, recipe, support, task.generator, [], built)

    def train(self, ready: Sequence[Ready]) -> None:
        """Train prepared cells, in place; or let their methods do it."""
        method = type(ready[0].method)
        train_cells = []
        for item in ready:
            if item.support is None:
                continue
            if has_own_fit(method):
                with self._randomness(item.cell, item.generator, training=True):
                    item.method.fit(item.support)
            elif item.trained:
                assert item.recipe is not None
                best_val = item.cell.protocol.selection == "best_val"
                train_cells.append(
                    TrainCell(
                        item.method,
                        item.recipe,
                        item.support,
                        item.generator,
                        best_val,
                        item.history,
                        take=image_batches(self.features, item.cell, item.recipe),
                    )
                )
        for part in partition(train_cells):
            first = next(item for item in ready if item.method is part[0].method)
            with self._randomness(first.cell, first.generator, training=True):
                train(part, self.features.progress, self.replays)
            for item in ready:
                if any(cell.method is item.method for cell in part):
                    item.stacked = len(part)

    def _finish(self, ready: Sequence[Ready]) -> None:
        for item in ready:
            item.method.eval()
            for name, shape in item.method.noise().items():
                value = torch.randn(*shape, generator=item.generator(f"noise-eval/{name}"))
                setattr(item.method, name, value.to(self.features.backbone.device))
            if item.support is not None:
                with self._randomness(item.cell, item.generator):
                    item.method.finish(item.support)

    @torch.no_grad()
    def _score(self, test: Test, x: Tensor) -> Tensor:
        method, order = test.method, None
        if "test_images" in method.needs:
            # What is scored one image after another must not depend on the order of files.
            order = torch.tensor(test_order(test.cell), device=x.device)
            x = x[order]
        elif not test.cell.row.plugin.builtin:
            # Through `.numpy()` or `.data` a plugin could change, unnoticed, what later cells read.
            x = x.clone()
        version = x._version
        with self._randomness(test.cell, test.item.generator):
            scores = method.predict(x)
        if x._version != version:
            message = (
                f"{_method_words(test.cell)} changed the test images or their features in place"
            )
            raise ScoreError("test images are untouched", message)
        scores = checked_scores(scores, method.name, (len(x), method.task.info.n_classes))
        return scores if order is None else scores[order.argsort().cpu()]


def _method_words(cell: LoadedCell) -> str:
    who = f"method '{cell.row.method.name}'"
    beside = sorted(plugin.name for plugin in cell.plugins)
    if cell.row.plugin.builtin and beside:
        who += f", run on what comes from plugin '{', '.join(beside)}',"
    return who
