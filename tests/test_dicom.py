"""DICOM files, made here by pydicom, against pydicom's own steps; and in every door of vipbench."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage

import vipbench
from tests.conftest import Cli
from vipbench.images import ImageError, PixelRange, examine_image, open_image

H, W = 12, 10
RNG = np.random.default_rng(0)
CT = {"RescaleSlope": 1, "RescaleIntercept": -1024}
LUNG = {"WindowCenter": [-600, 40], "WindowWidth": [1500, 400]}


def lut(count: int, first: int, bits: int, kind: str = "US") -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [count, first, bits]
    values = np.linspace((1 << bits) - 1, 0, count).astype(np.uint16)
    item.add_new(0x00283006, kind, values.tobytes() if kind == "OW" else values.tolist())
    return item


def dicom(
    path: Path,
    values: np.ndarray,
    photometric: str = "MONOCHROME2",
    bits: int | None = None,
    **elements: object,
) -> Path:
    """A file of `values` (H,W) or (H,W,3)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = elements.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    made = Dataset()
    made.file_meta = meta
    made.SOPClassUID, made.SOPInstanceUID = SecondaryCaptureImageStorage, pydicom.uid.generate_uid()
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel = 1 if values.ndim == 2 else 3
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = photometric
    made.BitsAllocated = 8 * values.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(made, name, value)
    made.PixelData = values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def noise(bits: int, signed: bool = False) -> np.ndarray:
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    low = -(1 << (bits - 1)) if signed else 0
    values = RNG.integers(low, low + (1 << bits), (H, W)).astype(kind)
    values.flat[:2] = low, low + (1 << bits) - 1
    return values


@pytest.mark.parametrize(
    ("bits", "signed", "low", "high", "elements"),
    [
        (12, False, -1024, 3071, CT | LUNG),
        (12, True, -2048, 2047, {"WindowCenter": 40, "WindowWidth": 400}),
        (16, False, 0, 65535, {"WindowCenter": 9000, "WindowWidth": 14000}),
        (12, False, -1024, 3071, CT | LUNG | {"VOILUTFunction": "LINEAR_EXACT"}),
        (12, False, -1024, 3071, CT | LUNG | {"VOILUTFunction": "SIGMOID"}),
        # A negative slope: the largest stored value is the darkest.
        (12, False, 1000, -3095, {"RescaleSlope": -1, "RescaleIntercept": 1000} | LUNG),
        (12, False, 0, 4095, {"VOILUTSequence": Sequence([lut(4096, 0, 12)])}),
        (12, False, 0, 65535, {"VOILUTSequence": Sequence([lut(4096, 0, 16, "OW")])} | LUNG),
        (
            12, False, 0, 4095,
            {"RescaleSlope": 1.37, "RescaleIntercept": 3,
             "VOILUTSequence": Sequence([lut(2000, 9, 12)])},
        ),
        (
            12, False, 0, 1023,
            {"ModalityLUTSequence": Sequence([lut(4096, 0, 16)]),
             "VOILUTSequence": Sequence([lut(4096, 9, 10)])},
        ),
        (
            12, False, 0, 65535,
            {"ModalityLUTSequence": Sequence([lut(4096, 0, 16)]),
             "WindowCenter": 30000, "WindowWidth": 20000},
        ),
        (8, False, 0, 255, {}),
        (8, False, 0, 255, {"WindowCenter": 100, "WindowWidth": 90}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_greys_are_pydicoms_scaled_from_the_range_of_the_window(
    tmp_path: Path, bits: int, signed: bool, low: int, high: int, elements: dict, photometric: str
) -> None:
    path = dicom(tmp_path / "x.dcm", noise(bits, signed), photometric, bits, **elements)
    found = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of LUTs on values that are rescaled
        values = apply_voi_lut(apply_modality_lut(found.pixel_array, found), found)
    share = (values.astype(float) - low) / (high - low)
    share = 1 - share if photometric == "MONOCHROME1" else share
    shown = np.asarray(open_image(path))
    assert shown.shape == (H, W, 3)
    assert np.abs(shown[..., 0] - share * 255).max() <= 0.5 + 1e-6
    assert shown.min() < 128 < shown.max()


def test_a_lut_of_8_bits_holds_more_than_256_entries(tmp_path: Path) -> None:
    values = noise(12)
    item = lut(4096, 0, 8)
    path = dicom(tmp_path / "x.dcm", values, bits=12, VOILUTSequence=Sequence([item]))
    expected = np.asarray(item.LUTData)[values]
    assert (np.asarray(open_image(path))[..., 1] == expected).all()


def test_colours(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (H, W, 3)).astype(np.uint8)
    assert (np.asarray(open_image(dicom(tmp_path / "1.dcm", rgb, "RGB"))) == rgb).all()
    ybr = dicom(tmp_path / "2.dcm", rgb, "YBR_FULL")
    assert (np.asarray(open_image(ybr)) == pydicom.dcmread(ybr).pixel_array).all()
    assert (np.asarray(open_image(ybr)) != rgb).any()
    for bits, kind, white in ((8, np.uint8, 255), (16, np.uint16, 65535)):
        tables = {
            f"{colour}PaletteColorLookupTable{part}": value
            for n, colour in enumerate(("Red", "Green", "Blue"))
            for part, value in (
                ("Descriptor", [256, 0, bits]),
                ("Data", (np.arange(256) * (n + 3) % 256 * (white // 255)).astype(kind).tobytes()),
            )
        }
        path = dicom(tmp_path / f"p{bits}.dcm", noise(8), "PALETTE COLOR", **tables)
        found = pydicom.dcmread(path)
        expected = apply_color_lut(found.pixel_array, found) * 255.0 / white
        assert (np.asarray(open_image(path)) == expected).all()


def test_without_a_window_the_rule_of_deep_images_holds(tmp_path: Path) -> None:
    values = noise(12)
    plain = dicom(tmp_path / "x.dcm", values, bits=12)
    assert (np.asarray(open_image(plain))[..., 0] == np.floor(values * 255.0 / 4095 + 0.5)).all()
    facts = examine_image(plain, values=True)
    assert (facts.least, facts.most) == (0, 4095)
    assert facts.stored is not None
    assert (facts.stored.declared, facts.stored.declared_by) == (4095, "DICOM's Bits Stored")
    # Hounsfield units: the card's window goes before what the file says.
    window = PixelRange(-160, 240, "the card's window", clips_low=True, clips_high=True)
    for elements in (CT, CT | LUNG):
        path = dicom(tmp_path / "ct.dcm", values, bits=12, **elements)
        expected = np.floor((np.clip(values - 1024.0, -160, 240) + 160) * 255 / 400 + 0.5)
        assert (np.asarray(open_image(path, pixels=window))[..., 0] == expected).all()
    dark = dicom(tmp_path / "dark.dcm", (noise(12) // 2).astype(np.uint16))  # 16 bits are stored
    with pytest.raises(ImageError, match=r"2047.*bits: 11|bits: 11.*2047"):
        open_image(dark)


def test_what_is_no_single_image_is_refused_by_name(tmp_path: Path) -> None:
    frames = dicom(tmp_path / "frames.dcm", noise(8), NumberOfFrames=3)
    lost = dicom(tmp_path / "report.dcm", noise(8))
    found = pydicom.dcmread(lost)
    del found.PixelData
    found.save_as(lost)
    noise_file = tmp_path / "text.dcm"
    noise_file.write_bytes(b"no image at all")
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(dicom(tmp_path / "whole.dcm", noise(8)).read_bytes()[:-40])
    flat = dicom(tmp_path / "flat.dcm", noise(12), bits=12, WindowCenter=3, WindowWidth=0)
    large = dicom(tmp_path / "large.dcm", noise(8), Rows=60000, Columns=60000)
    volume = tmp_path / "brain.nii.gz"
    volume.write_bytes(b"\x1f\x8b anything")
    strange = dicom(tmp_path / "strange.dcm", noise(8), "YBR_PARTIAL_420")
    for path, *parts in (
        (frames, "3 frames"),
        (lost, "without pixels", "Secondary Capture"),
        (noise_file, "DICOM"),
        (cut, "damaged"),
        (flat, "Window Width"),
        (large, "60000x60000"),
        (volume, "NIfTI", "PNG"),
        (strange, "YBR_PARTIAL_420"),
    ):
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert all(part in str(caught.value) for part in (path.name, *parts)), caught.value


def test_compressed_pixels(tmp_path: Path) -> None:
    values = noise(12)
    path = dicom(tmp_path / "x.dcm", values, bits=12, **LUNG)
    expected = np.asarray(open_image(path))
    found = pydicom.dcmread(path)
    found.compress(RLELossless)
    found.save_as(path)
    assert (np.asarray(open_image(path)) == expected).all()
    if importlib.util.find_spec("openjpeg") is None:
        jpeg = dicom(tmp_path / "j.dcm", values)
        data = jpeg.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.90")
        length = data.index(b"1.2.840.10008.1.2.4.90") - 2
        jpeg.write_bytes(data[:length] + b"\x16\0" + data[length + 2 :])
        with pytest.raises(ImageError, match=r"JPEG 2000.*vipbench\[dicom-compressed\]"):
            open_image(jpeg)
    else:
        values = np.tile(values, (8, 8))  # its codec takes no smaller ones
        found = pydicom.dcmread(dicom(path, values, bits=12, **LUNG))
        expected = np.tile(expected, (8, 8, 1))
        found.compress(pydicom.uid.JPEG2000Lossless, encoding_plugin="pylibjpeg")
        found.save_as(path)
        assert (np.asarray(open_image(path)) == expected).all()


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of DICOM files, four patients each with three images; the classes differ."""
    folder = tmp_path_factory.mktemp("ward")
    for label, name in enumerate(("dark", "bright")):
        for n in range(12):
            values = RNG.integers(0, 1500, (32, 32)).astype(np.uint16) + 2500 * label
            dicom(
                folder / name / f"{n}.{('dcm', 'DCM', 'dicom')[n % 3]}",
                values,
                bits=12,
                PatientID=f"patient {label}-{n // 3}",
                WindowCenter=2048,
                WindowWidth=4096,
            )
    (folder / "card.yaml").write_text("group: dicom:PatientID\n")
    return folder


def test_a_run_on_a_folder_keeps_patients_together_and_predicts(ward: Path, tmp_path: Path) -> None:
    results = vipbench.run(
        "ncm", f"folder:{ward}", "tiny-clip", shots=1, seeds=1, out=tmp_path / "out", quiet=True
    )
    assert not results.failed
    model = results.model()
    assert set(model.predict(ward / "dark")) | set(model.predict(ward / "bright")) <= {
        "dark",
        "bright",
    }
    assert len(model.predict(ward)) == 24
    dataset = _dataset(ward)
    seen = [{*split.groups} for split in dataset.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 8
    assert all(group.startswith("patient ") for groups in seen for group in groups)


def test_tables_splits_and_python_know_them(cli: Cli, ward: Path, tmp_path: Path) -> None:
    rows = [f"{p.relative_to(ward)},{p.parent.name}" for p in sorted(ward.glob("*/*"))]
    table = tmp_path / "study.csv"
    lines = ["path,label,group", *(f"{row},same" for row in rows)]
    table.write_text("\n".join(lines) + "\n")
    done = cli(
        *("dataset", "split", f"csv:{table}", "--images", ward),
        *("--group", "dicom:PatientID", "--folds", "2"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 groups" in done.stdout
    assert "column 'group'" in done.stdout
    folds: dict[str, set[str]] = {}
    for line in (tmp_path / "study-folds.csv").read_text().splitlines()[1:]:
        _, _, fold, group, *_ = line.split(",")
        folds.setdefault(fold, set()).add(group)
    assert len(set.union(*folds.values())) == sum(map(len, folds.values())) == 8
    given = [(str(p), p.parent.name) for p in sorted(ward.glob("*/*"))]
    plan = vipbench.plan(
        "ncm",
        {"ward": vipbench.data(given, group="dicom:PatientID")},
        "tiny-clip",
        shots=1,
        seeds=1,
        out=tmp_path / "out",
    )
    assert list(plan["state"]) == ["to do"]


def test_what_cannot_be_grouped_is_refused(ward: Path, tmp_path: Path) -> None:
    for line, part in (
        ("group: PatientID", "dicom:PatientID"),
        ("group: dicom:Patient", "Patient"),
        ("group: dicom:PatientID\ncolumns: {group: x}", "columns.group"),
    ):
        folder = tmp_path / str(len(line))
        for name in ("a", "b"):
            dicom(folder / name / "1.dcm", noise(8))
        (folder / "card.yaml").write_text(line)
        with pytest.raises(ValueError, match=r"card|group") as caught:
            _dataset(folder)
        assert part in str(caught.value)


def _dataset(folder: Path):
    from vipbench.plugins.registry import load_registry

    dataset, _ = load_registry().dataset(f"folder:{folder}")
    return dataset.load(None)
