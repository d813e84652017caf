"""A run as flags and YAML suites describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vipbench.errors import UsageError
from vipbench.runspec.run import METHODS, MethodSpec, RunSpec
from vipbench.runspec.text_sets import key

names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
lines = st.text(
    st.characters(exclude_categories=("C", "Z")) | st.sampled_from(" ,[]='\"#:"), min_size=1
).filter(lambda text: text.strip() != "")
values = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | lines
    | st.text(alphabet="'\"[],=: #a", max_size=6)
    | st.sampled_from(["off", "2e-3", "~", "", " "])
)
hparams = st.dictionaries(
    st.from_regex(r"[A-Za-z_][a-z_]{0,5}", fullmatch=True).filter(
        lambda key: key not in ("name", "label", "hparams")
    ),
    values,
    max_size=3,
)
methods = st.lists(
    st.builds(
        lambda name, settings, label: MethodSpec(
            name=name, hparams=settings, **({"label": label} if label else {})
        ),
        names,
        hparams,
        st.none() | lines,
    ),
    min_size=1,
    max_size=4,
    unique_by=(lambda m: m.label, lambda m: m.name),
)
sources = st.builds(
    lambda name, arg: f"{name}:{arg}" if arg else name,
    names,
    st.none() | st.from_regex(r"[A-Za-z0-9/@+.,= -]{0,10}[A-Za-z0-9]", fullmatch=True),
)
paths = st.from_regex(r"[A-Za-z0-9_.# -]{0,8}[a-z](/[a-z]{1,5})?", fullmatch=True).map(Path)


@st.composite
def specs(draw: st.DrawFn) -> RunSpec:
    # "one" and "two" are labels of text sets, which a suite tells from its datasets by their names.
    named = sources.filter(lambda source: source not in ("one", "two"))
    datasets = tuple(draw(st.lists(named, min_size=1, max_size=3, unique=True)))
    validation = draw(st.sampled_from(["none", "k", "min(k,4)", "full"]))
    selection = st.just("last") if validation == "none" else st.sampled_from(["last", "best_val"])
    return RunSpec(
        methods=tuple(draw(methods)),
        datasets=datasets,
        backbones=tuple(draw(st.lists(sources, min_size=1, max_size=3, unique=True))),
        shots=tuple(
            draw(
                st.lists(st.integers(1, 99) | st.just("full"), min_size=1, max_size=4, unique=True)
            )
        ),
        seeds=tuple(draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, unique=True))),
        data_root=draw(st.none() | paths),
        symptoms=draw(st.dictionaries(st.sampled_from([*datasets, "*"]), paths)),
        templates=draw(
            st.dictionaries(
                st.sampled_from([key("one"), key("two"), key("two", datasets[0]), "*"]), paths
            )
        ),
        out=draw(paths),
        plugins_dir=draw(st.none() | paths),
        device=draw(st.sampled_from(["auto", "cpu", "cuda", "mps", "cuda:1", "cuda:0,cuda:2"])),
        workers=draw(st.none() | st.integers(1, 256)),
        precision=draw(st.sampled_from(["fp32", "bf16"])),
        feature_precision=draw(st.sampled_from(["fp32", "tf32", "bf16"])),
        views=draw(st.sampled_from(["per-epoch", "none"]) | st.integers(1, 99)),
        sampler=draw(st.sampled_from(["nested", "coop"])),
        validation=validation,
        selection=draw(selection),
        shots_unit=draw(st.sampled_from(["image", "group"])),
        allow_group_overlap=draw(st.booleans()),
        profile=draw(st.sampled_from(["matched", "published", "quick"])),
        cell_timeout=draw(st.floats(0.1, 1e6)),
        title=draw(st.none() | lines.map(lambda text: " ".join(text.split()))),
        track=tuple(draw(st.sampled_from([(), ("tensorboard",), ("mlflow", "own")]))),
    )


@given(specs())
def test_a_suite_reads_back(spec: RunSpec) -> None:
    assert RunSpec.from_yaml_text(spec.to_yaml()) == spec


@given(specs())
def test_a_spec_travels_as_json(spec: RunSpec) -> None:
    assert RunSpec.parse(json.loads(spec.model_dump_json())) == spec


@given(names, hparams)
def test_a_default_label_is_the_method_as_flag(name: str, settings: dict[str, Any]) -> None:
    spec = MethodSpec(name=name, hparams=settings)
    read = RunSpec.parse({"methods": spec.label}).methods
    assert read == (spec,)
    assert not read[0].own_label


@given(methods)
def test_several_methods_in_one_flag(given_methods: list[MethodSpec]) -> None:
    plain = [MethodSpec(name=m.name, hparams=m.hparams) for m in given_methods]
    assert RunSpec.parse({"methods": ",".join(m.label for m in plain)}).methods == tuple(plain)


@given(st.text())
def test_any_text_as_suite_is_a_suite_or_a_usage_error(text: str) -> None:
    message = ""
    try:
        RunSpec.from_yaml_text(text)
    except UsageError as error:
        message = str(error)
    assert "\n" not in message


@example("symptoms", {"0": "0"})
@example("descriptions", {"0": "0"})
@example("backbones", {})
@example("backbones", [{}])
@given(
    st.sampled_from(list(RunSpec.model_fields)),
    st.recursive(
        values, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
    ),
)
def test_any_value_of_a_key_is_taken_or_a_usage_error(key: str, value: object) -> None:
    spec, message = None, ""
    try:
        spec = RunSpec.parse({key: value})
    except UsageError as error:
        message = str(error)
    if spec is None:
        assert f"--{key.replace('_', '-')}" in message or message.startswith(
            (f"{key}: a file", f"{key}: a folder")
        )
    else:
        assert RunSpec.from_yaml_text(spec.to_yaml()) == spec


def test_defaults() -> None:
    spec = RunSpec()
    assert tuple(method.label for method in spec.methods) == METHODS
    assert spec.backbones == ("tiny-clip",)
    assert spec.shots == (1, 2, 4, 8, 16)
    assert spec.seeds == (1, 2, 3)
    assert RunSpec().merge({"datasets": "npz:x.npz"}).backbones == ("openclip:ViT-B-16/openai",)
    both = RunSpec().merge({"datasets": "npz:x.npz,synthderm"})
    assert both.datasets == ("npz:x.npz", "synthderm")
    assert both.backbones == ("openclip:ViT-B-16/openai",)
    assert both.merge({"datasets": "synthderm"}).backbones == ("tiny-clip",)


def test_a_suite(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_bytes(
        b"\xef\xbb\xbfmethods:\r\n- zero-shot\r\n"
        b"- {name: vip, label: w/o context, context: off}\r\n"
        b"- vip[context=off,merge=mean]\r\n"
        b"- {name: coop, lr: [2e-3, 1e-3], M: 16}\r\n"
        b"shots: 1,full\r\nseeds: [1, 4-6]\r\ndata_root: data\r\n"
        b"symptoms: {synthderm: ../s.json}\r\nplugins_dir: /abs\r\ntitle: >\r\n  two\r\n  lines\r\n"
    )
    spec = RunSpec.from_yaml(suite)
    assert [(m.name, m.hparams, m.label) for m in spec.methods] == [
        ("zero-shot", {}, "zero-shot"),
        ("vip", {"context": False}, "w/o context"),
        ("vip", {"context": False, "merge": "mean"}, "vip[context=off,merge=mean]"),
        ("coop", {"lr": 0.002, "M": 16}, "coop[lr=0.002,M=16]"),
        ("coop", {"lr": 0.001, "M": 16}, "coop[lr=0.001,M=16]"),
    ]
    assert spec.shots == (1, "full")
    assert spec.seeds == (1, 4, 5, 6)
    assert spec.data_root == tmp_path / "data"
    assert spec.symptoms == {"synthderm": tmp_path / "../s.json"}
    assert spec.plugins_dir == Path("/abs")
    assert spec.out == Path("vipbench-results"), "a default is relative to where the user is"
    assert spec.title == "two lines"


def test_flags_override_a_suite() -> None:
    suite = RunSpec.from_yaml_text(
        "methods: [coop, vip, {name: vip, label: w/o context, context: off}]\n"
        "datasets: [a, b]\nshots: [4]\nviews: 8\nsymptoms: {a: a.json, b: b.json}"
    )
    spec = suite.merge(
        {
            "datasets": "b,npz:c=d,npz:x/chest.npz",
            "shots": None,
            "seeds": "7",
            "symptoms": ["npz:c=d=e=f", "chest=c.json"],
        },
        ["vip.M=16", "coop.position=middle", "vip.lr=2e-3"],
    )
    assert spec.shots == (4,)
    assert spec.views == 8
    assert spec.seeds == (7,)
    assert spec.symptoms == {
        "b": Path("b.json"),
        "npz:c=d": Path("e=f"),
        "chest": Path("c.json"),
    }
    assert [(m.label, m.hparams) for m in spec.methods] == [
        ("coop[position=middle]", {"position": "middle"}),
        ("vip[M=16,lr=0.002]", {"M": 16, "lr": 0.002}),
        ("w/o context[M=16,lr=0.002]", {"context": False, "M": 16, "lr": 0.002}),
    ]
    assert suite.merge({}) == suite


def test_commas_and_quotes_in_flags() -> None:
    assert RunSpec.parse({"datasets": "folder:/home/o'neil/x, 'npz:a,b.npz'"}).datasets == (
        "folder:/home/o'neil/x",
        "npz:a,b.npz",
    )
    spec = RunSpec.parse({"methods": "coop[init='a photo, of [a]',csc=on],vip"})
    assert spec.methods[0].hparams == {"init": "a photo, of [a]", "csc": True}
    assert spec.methods[1].name == "vip"
    doubled = MethodSpec(name="coop", hparams={"init": "'[it''s, '", "csc": None})
    assert RunSpec.parse({"methods": f"{doubled.label},vip"}).methods[0] == doubled


def test_save_goes_on_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = RunSpec.parse({"out": "results/one", "data_root": "data", "symptoms": "s.json"})
    saved = spec.save()
    assert saved == Path("results/one/suite.yaml")
    text = saved.read_text()
    assert "out: .\n" in text
    monkeypatch.chdir("/")
    again = RunSpec.from_yaml(tmp_path / saved)
    assert again.out == tmp_path / "results/one"
    assert again.data_root == tmp_path / "data"
    assert again.symptoms == {"*": tmp_path / "s.json"}
    assert again.methods == spec.methods
    assert list(tmp_path.glob("results/one/*")) == [tmp_path / saved]


def test_saved_paths_hold_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data outside of the results folder by absolute paths, those inside by relative ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "results/data/own.csv", "root/b.csv", "weights.pt", "pathmnist"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    datasets = ["csv:a.csv", "csv:results/data/own.csv", "csv:b.csv", "medmnist:pathmnist"]
    spec = RunSpec.parse(
        {
            "datasets": datasets,
            "backbones": ["tiny-clip", "openclip:ViT-B-32+gelu@weights.pt", "timm:vit@none.pt"],
            "protocol": {"name": "domain-shift", "classes": {"csv:a.csv": {"x": "y"}}}
            | {"source": "csv:b.csv"},
            "symptoms": {"csv:a.csv": "s.json", "own": "results/data/t.json"},
            "data_root": "root",
            "out": "results",
        }
    )
    saved = spec.save().read_text()
    assert "csv:data/own.csv" in saved
    (tmp_path / "elsewhere" / "data").mkdir(parents=True)
    (tmp_path / "elsewhere" / "data" / "own.csv").touch()  # not the one that is meant
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "results").rename(tmp_path / "moved")
    again = RunSpec.from_yaml("../moved/suite.yaml")
    a, own, b = (f"csv:{tmp_path / name}" for name in ("a.csv", "moved/data/own.csv", "root/b.csv"))
    assert again.datasets == (a, again.datasets[1], b, "medmnist:pathmnist")
    assert Path(again.datasets[1].removeprefix("csv:")).samefile(own.removeprefix("csv:"))
    assert again.protocol.source == b
    assert [*again.protocol.classes] == [a]
    assert again.symptoms[a] == tmp_path / "s.json"
    assert again.symptoms["own"].resolve() == tmp_path / "moved/data/t.json"
    assert again.backbones[1] == f"openclip:ViT-B-32+gelu@{tmp_path / 'weights.pt'}"
    assert again.backbones[2] == "timm:vit@none.pt"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("methdos: vip", "'methods'"),
        ('"a\\nb": 1', r"'a\nb'"),
        ("\n\nshots: 0", "line 3: shots: 0"),
        ("shots: [4, -2]", "or full"),
        ("shots: []", "shots: expected "),
        ("shots: [1, 2, '1']", "shots: '1' "),
        ("shots: [1.5]", "got 1.5"),
        ("shots: [on]", "got on ("),
        ("shots: ''", "shots: expected"),
        ("shots: 1,,2", "shots: expected"),
        ("shots: 99999999999999999999", "many"),
        ("seeds: 8-1", "write 1-8"),
        ("seeds: 1-3,2", "seeds: '2' "),
        ("seeds: 1-99999999", "long"),
        ("seeds: -1", "from 0"),
        ("seeds: x", "got 'x'"),
        ("views: 0", "'none'"),
        ("views: off", "got off ("),
        ("sampler: neste", "'nested' or 'coop', got 'neste'"),
        ("precision: fp16", "expected 'fp32' or 'bf16'"),
        ("device: gpu", "'auto', 'cpu', 'cuda', 'mps' or 'xpu'"),
        ("device: [cuda:0, cpu]", "got ['cuda:0', 'cpu']"),
        ("device: [cuda:0, cuda:0]", "device: 'cuda:0' "),
        ("workers: 0", "from 1 to 256, got 0"),
        ("validation: 3", "'none', 'k', 'min(k,4)' or 'full', got 3"),
        ("selection: best_val\nvalidation: none", "'best_val' "),
        ("allow_group_overlap: 1", "allow_group_overlap: "),
        ("cell_timeout: 0", "above 0, got 0"),
        ("cell_timeout: .inf", "above 0"),
        ("methods: []", "methods: expected "),
        ("methods: [vip, vip]", "labelled 'vip'"),
        ("methods: [{name: vip, label: a}, {name: coop, label: a}]", "labelled 'a'"),
        ("methods: [{name: vip, label: a}, vip]", "'vip' "),
        (
            "methods: [{name: v, label: a, x: 1, y: 2}, {name: v, y: 2, x: 1}]",
            "'v[x=1,y=2]' ",
        ),
        (
            "methods:\n- vip\n- label: x\n",
            "line 3: methods: method 2: ",
        ),
        ("methods:\n- vip\n- {name: coop, lr: {a: 1}}", "line 3: methods: method 2: hparams: 'lr'"),
        ("methods: [{name: coop, lr: .nan}]", "'lr' "),
        ("methods: [{name: coop, lr: []}]", "empty"),
        ("methods: [{name: coop, l-r: 1}]", "got 'l-r'"),
        ("methods: vip[context", "bracket"),
        ("methods: vip[context]", "hparam=value"),
        ("methods: 'vip[context=off]]'", "quotes"),
        ("methods: vip[a=1,a=2]", "'a' "),
        ("methods: vip[name=x]", "got 'name'"),
        ("methods: a b", "'a b'"),
        ("methods: [[vip]]", "'name: vip'"),
        ("datasets: ['npz:']", "got 'npz:'"),
        ("datasets: [a, a]", "datasets: 'a' "),
        ('datasets: ["a\\0b"]', "datasets: expected "),
        ("symptoms: {synthdrem: x}", "'synthdrem'"),
        ("symptoms: [x]", "'DATASET: PATH'"),
        ("out:", "out: expected "),
        ("title: [x]", "title: expected "),
        ("- vip", "['vip']; "),
        ("vip", "holds 'vip'"),
        ("", "nothing"),
        ("on: 1", "key True"),
        ("shots: 0\nseeds: x", "(and 1 more "),
    ],
)
def test_wrong_suites(text: str, fact: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunSpec.from_yaml_text(text, "suite 'x.yaml'")
    message = str(caught.value)
    assert message.startswith("suite 'x.yaml'")
    assert fact in message
    assert "\n" not in message
    assert ("more" in fact) == ("(and " in message)


@pytest.mark.parametrize(
    ("flags", "settings", "fact"),
    [
        ({"shots": "0"}, [], "--shots: 0 "),
        ({"cell_timeout": -1.0}, [], "--cell-timeout: expected"),
        ({}, ["vp.lr=3"], "'vip'"),
        ({}, ["vip"], "got 'vip'"),
        ({}, ["vip.a=1", "vip.a=2"], "vip.a"),
        ({}, ["vip.a=[1]"], "vip.a: '[1]' "),
        (
            {"symptoms": ["synthdrem=x"]},
            [],
            "'synthderm'",
        ),
        ({"symptoms": ["x", "y"]}, [], "--symptoms "),
        ({"symptoms": ["synthderm="]}, [], "path"),
    ],
)
def test_wrong_flags(flags: dict[str, Any], settings: list[str], fact: str) -> None:
    with pytest.raises(UsageError) as caught:
        RunSpec().merge(flags, settings)
    assert fact in str(caught.value)


def test_backbones_take_labels() -> None:
    """`LABEL=NAME[:ARG]` on a flag, mappings in suites and Python; a `=` behind the colon is the
    argument's."""
    given = ["tiny-clip", "ours=openclip:ViT-B-16+gelu@a=b.pt", "timm:x@a=b"]
    spec = RunSpec.parse({"backbones": ",".join(given)})
    assert spec.backbones == tuple(given)
    mapping = {"ours": "openclip:ViT-B-16+gelu@a=b.pt"}
    assert RunSpec.parse({"backbones": mapping}).backbones == (given[1],)
    assert RunSpec.parse({"backbones": ["tiny-clip", mapping, given[2]]}).backbones == tuple(given)
    assert RunSpec.from_yaml_text(spec.to_yaml()).backbones == spec.backbones
    for bad in ("=tiny-clip", "ours=", "a=tiny-clip,a=timm:x", "a=timm:x,timm:x", {"a:b": "x"}):
        with pytest.raises(UsageError):
            RunSpec.parse({"backbones": bad})
