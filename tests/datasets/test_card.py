from __future__ import annotations

import pytest

from vipbench.api import DataError
from vipbench.datasets.reading.card import find_card, read_card


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class_name: [a, b]", r"line 1 .*'class_names'"),
        ("\nlicense: x", r"line 2 .*'licence'"),
        ("- a", "`class_names: "),
        ("class_names: [a, A]", "differ"),
        ("class_names: [a, off]", "list"),
        ("class_names: {1: a}", "quotes"),
        ("class_names: []", "list"),
        (
            "templates: [no gap]",
            r"templates .*\['no gap'\]",
        ),
        ("templates: ['{} {}']", "{} "),
        ("templates: ['{0}']", "{} "),
        ("templates: ['{}']\nmodality: x", "modality"),
        ("sharing: all", "'local' or 'allowed'"),
        ("licence: 4", "licence .*4"),
        ("columns: [a]", "columns .*path, label"),
        ("columns: {paths: a}", "column .*'path'"),
        ("symptoms: [a]", "beside"),
        ("symptoms: ../x.json", r"symptoms: path '\.\./x\.json'"),
        ("symptoms: /etc/passwd", "'/etc/passwd'"),
        ("name: a->b", "name"),
        ("name: 'a [base]'", "name"),
        ("name: 3", "name"),
        ("a: [", "card"),
    ],
)
def test_bad_cards(tmp_path, text, message):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_card(path)
    assert "card.yaml" in str(caught.value)


def test_a_card_names_its_dataset(tmp_path):
    from vipbench.datasets.synthderm import SynthDerm

    (tmp_path / "card.yaml").write_text("name: Skin study 2.1\n")
    dataset = SynthDerm()
    read_card(tmp_path / "card.yaml").apply(dataset)
    assert dataset.name == "Skin study 2.1"


def test_two_cards(tmp_path):
    (tmp_path / "card.yaml").touch()
    (tmp_path / "card.yml").touch()
    with pytest.raises(DataError, match=r"card\.yaml.*card\.yml"):
        find_card(tmp_path / "card.yaml", tmp_path / "card.yml")
    assert find_card(tmp_path / "no.yaml") is None
