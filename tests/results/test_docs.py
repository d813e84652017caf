"""docs/results.md says of every field, metric, column and format what it is."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

from tests.results.samples import scored
from vipbench.results.records.csv import RECORD_COLUMNS
from vipbench.results.records.metrics import ECE_BINS, METRICS
from vipbench.results.records.record import CellId, Data, Failure, Protocol, Record
from vipbench.results.store.store import Store
from vipbench.results.tables import FORMATS, comparison, render
from vipbench.results.tables.presets import PRESETS
from vipbench.results.tables.table import SPREADS


def section(repo: Path, title: str) -> str:
    text = (repo / "docs" / "results.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, title
    return found[1]


def test_every_field_is_documented(repo: Path) -> None:
    documented = set(re.findall(r"`(\w+)`", section(repo, "Records")))
    fields = {field.alias or name for name, field in Record.model_fields.items()}
    assert fields <= documented
    for part in (CellId, Protocol, Data, Failure):
        assert set(part.model_fields) <= documented


def test_every_metric_is_documented_as_it_is(repo: Path) -> None:
    documented = section(repo, "Metrics")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", documented, re.M))
    assert rows.keys() == METRICS.keys()
    for name in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert rows[name] == METRICS[name].definition
    assert f"over {ECE_BINS} bins" in rows["ece"]
    assert "`left_out`" in documented


def test_every_column_and_format_is_documented(repo: Path) -> None:
    documented = set(re.findall(r"`(\w+)`", section(repo, "CSV")))
    assert set(RECORD_COLUMNS) - METRICS.keys() <= documented
    tables = section(repo, "Tables")
    rows = set(re.findall(r"^\| `([\w-]+)` ", tables, re.M))
    assert rows == {*FORMATS, *PRESETS, *SPREADS}
    header = render(comparison([scored(1)[0]]), "csv").splitlines()[0]
    assert set(header.split(",")) <= set(re.findall(r"`(\w+)`", tables))


def test_every_sql_table_is_documented(repo: Path, tmp_path: Path) -> None:
    Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / "results.sqlite")
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    db.close()
    assert names <= set(re.findall(r"`(\w+)`", section(repo, "The store")))


def test_the_example_runs(repo: Path, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add(*scored(1))
    text = (repo / "docs" / "results.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, object] = {}
    exec(code.replace('"vipbench-results"', repr(str(tmp_path))), names)
    assert names["first"] is not None
