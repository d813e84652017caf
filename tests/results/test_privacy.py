from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results.samples import make, record_dict, scored
from vipbench.results.records.predictions import Predictions
from vipbench.results.records.record import Record
from vipbench.results.sharing.privacy import (
    Pseudonyms,
    holds_patient_data,
    public_record,
    scrub,
    withheld,
)

PART = st.text("abcdefghijklmnopqrstuvwxyzABC0123456789_-.", min_size=1, max_size=8).filter(
    lambda t: t.strip(".")
)


@given(
    st.sampled_from(["/", "~/", "C:\\", "file:///", "\\\\server\\", "~anna/"]),
    st.lists(PART, min_size=1, max_size=4),
    st.sampled_from(["", "cannot read ", "see (", "file='", "a: "]),
)
def test_every_path_is_taken_out(root: str, parts: list[str], before: str) -> None:
    path = root + ("\\" if "\\" in root else "/").join(parts)
    assert scrub([{"note": f"{before}{path}"}]) == [{"note": f"{before}<path>"}]


@pytest.mark.parametrize(
    "text",
    [
        "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        "openclip:ViT-B-16/openai",
        "one and/or the other",
        "(derm.cs.sfu.ca); 3 / 4",
        "vip[context=off], 16/32",
    ],
)
def test_what_is_no_path_stays(text: str) -> None:
    assert scrub(text) == text


def test_a_public_record_names_no_file() -> None:
    changed = record_dict(error="DataError")
    changed["error"] = {
        "type": "DataError",
        "message": "image 'patient-17.png' of /home/anna/x is broken",
        "traceback": 'File "/home/anna/x.py"',
        "plugin": "toy",
        "file": "toy.py",
    }
    changed["provenance"]["method"]["file"] = "toy.py"
    changed["notes"] = ["symptoms of /home/anna/symptoms.json"]
    changed["hparams"]["bank"] = "/home/anna/bank.pt"
    record = Record.of(changed)
    text = public_record(record).to_json()
    for secret in ("anna", "patient-17", "toy.py", ".json", ".pt", "File"):
        assert secret not in text
    kept = json.loads(text)
    assert kept["error"]["type"] == "DataError"
    assert kept["error"]["plugin"] == "toy"
    assert kept["key"] == record.key
    # What makes the number stays to the letter.
    plain = scored(1)[0]
    assert public_record(plain) == plain


def test_pseudonyms_of_a_folder_agree_and_others_do_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, again = (Pseudonyms.of_folder(tmp_path / "a") for _ in range(2))
    other = Pseudonyms.of_folder(tmp_path / "b")
    one = first.of("image", "data", "patient-17.png")
    assert one == again.of("image", "data", "patient-17.png")
    assert one != other.of("image", "data", "patient-17.png")
    # The same person in two datasets cannot be linked.
    assert one != first.of("image", "other data", "patient-17.png")
    assert one.startswith("i-")
    assert first.of("group", "data", "patient-17.png")[2:] != one[2:]
    path = tmp_path / "a" / "pseudonyms.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("00")
    with pytest.raises(ValueError, match=r"pseudonyms\.key.*salt"):
        Pseudonyms.of_folder(tmp_path / "a")


def test_predictions_keep_their_groups_apart() -> None:
    record, predictions = scored(1)
    changed = Pseudonyms(b"0" * 32).predictions(record, predictions)
    assert predictions.groups is not None
    assert changed.groups is not None
    pairs = set(zip(predictions.groups, changed.groups, strict=True))
    assert len(pairs) == len(set(predictions.groups)) == len(set(changed.groups))
    assert len(set(changed.ids)) == len(changed.ids)
    assert not set(changed.ids) & set(predictions.ids)
    np.testing.assert_array_equal(changed.scores, predictions.scores)
    assert isinstance(changed, Predictions)


@pytest.mark.parametrize(
    ("tensors", "shots", "holds"),
    [
        ({"context": [4, 512]}, 4, False),
        ({"keys": [12, 512]}, 4, True),  # 12 images to learn from
        ({"values": [512, 6]}, 4, True),  # 6 to validate on
        ({"context": [4, 512]}, 1, True),  # a class's mean is an image
        ({}, 4, False),
        (None, 4, True),  # nothing told
    ],
)
def test_parameters_that_hold_images_are_seen(
    tensors: dict[str, list[int]] | None, shots: int, holds: bool
) -> None:
    changed = record_dict(shots=shots)
    changed["provenance"]["parameters"] = {"sha256": "ab", "tensors": tensors}
    assert holds_patient_data(Record.of(changed)) is holds
    assert not holds_patient_data(make(shots=shots))


def test_as_many_context_vectors_as_images_are_no_images() -> None:
    changed = record_dict(shots=4)
    changed["hparams"]["n_ctx"] = changed["data"]["n_support"] = 12
    for tensors, holds in (
        ({"context": [12, 512]}, False),
        ({"context": [12, 12, 512]}, True),
        ({"keys": [12, 512]}, True),
    ):
        changed["provenance"]["parameters"] = {"sha256": "ab", "tensors": tensors}
        assert holds_patient_data(Record.of(changed)) is holds


@pytest.mark.parametrize(
    ("dataset", "shareable", "stays"),
    [
        ("a", {"a"}, False),
        ("a", set(), True),
        ("a [base]", {"a"}, False),
        ("a->b", {"a", "b"}, False),
        ("a->b [shift]", {"a", "b"}, False),
        ("a->b", {"a"}, True),  # tested on what stays
        ("a->b", {"b"}, True),
    ],
)
def test_what_is_of_shareable_data_alone_leaves(
    dataset: str, shareable: set[str], stays: bool
) -> None:
    changed = record_dict(shots=4)
    changed["cell"]["dataset"] = dataset
    changed["provenance"]["parameters"] = {"sha256": "ab", "tensors": {"keys": [12, 512]}}
    assert withheld(Record.of(changed), shareable) is stays
    changed["provenance"]["parameters"]["tensors"] = {"context": [4, 512]}
    assert not withheld(Record.of(changed), shareable)
