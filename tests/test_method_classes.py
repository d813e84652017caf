"""Method classes of scripts and notebooks as plugin files: `vipbench.plugins.written`."""

from __future__ import annotations

import linecache
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import Cli
from vipbench.engine.method_classes import named_methods
from vipbench.errors import UsageError
from vipbench.plugins.closure import closure
from vipbench.plugins.files import allowed_code, load_file
from vipbench.plugins.written import write_class

HEAD = """
import torch
from dataclasses import dataclass
from vipbench.api import HParams, Method
"""
PROTO = """
class Proto(Method):
    name = "proto"
    kind = "AD"
    def forward(self, x):
        return {}
"""

Cell = Callable[[str], dict[str, Any]]


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Runs a cell as IPython does: its source in `linecache`, its names in `__main__`."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    number = 0

    def run(text: str) -> dict[str, Any]:
        nonlocal number
        number += 1
        name = f"<ipython-input-{number}-0123456789ab>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec", dont_inherit=True), vars(main))
        return vars(main)

    return run


@pytest.fixture
def same(tmp_path: Path) -> Callable[[type], str]:
    """Writes a class, imports the file, compares the two; gives the file's text."""
    number = 0

    def check(method: type) -> str:
        nonlocal number
        number += 1
        folder = tmp_path / f"plugins{number}"
        written = write_class(method)
        for place, code in written.files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(code)
        for name in [n for n in sys.modules if n.partition(".")[0] == written.folder]:
            del sys.modules[name]
        file = folder / written.file
        code = allowed_code([file], folder)
        try:
            found: list[Any] = []
            load_file(file, code[file.resolve()]).register_methods(found.append)
            assert closure(found[0]) == closure(method)
        finally:
            sys.path.remove(str(folder.resolve()))
        return file.read_text()

    return check


REACHED = {
    "function": ("def double(x): return 2 * x", "double(x)"),
    "constant": ("ALPHA = 0.25", "x * ALPHA"),
    "float without a literal": ("BIG, NO = float('inf'), float('-inf')", "x.clamp(NO, BIG)"),
    "nested constant": ("TABLE = {'a': [1, (2.5,)], 3: {4}, None: b'x'}", "x * TABLE['a'][0]"),
    "numpy": (
        "import numpy as np\nM, E = np.array([[.1, 2]]), np.float32(1e-3)",
        "x * M[0, 1] + E",
    ),
    "lambda": ("scale = lambda x: x * 3", "scale(x)"),
    "lambdas of one line": ("f, g = lambda x: x + 1, lambda x: x + 2", "f(x) + g(x)"),
    "lambda in a dict": ("ACTS = {'relu': torch.relu, 'id': lambda x: x}", "ACTS['relu'](x)"),
    "closure": (
        "def make(k):\n    def inner(x):\n        return x * k\n    return inner\ntwice = make(2)",
        "twice(x)",
    ),
    "recursive closure": (
        "def make():\n    def down(n):\n        return n and down(n - 1)\n    return down\n"
        "down = make()",
        "x * down(3)",
    ),
    "decorated": (
        "from functools import wraps\ndef deco(f):\n    @wraps(f)\n    def w(*a):\n"
        "        return f(*a)\n    return w\n@deco\ndef helper(x):\n    return x",
        "helper(x)",
    ),
    "decorated without wraps": (
        "def deco(f):\n    def w(*a):\n        return f(*a)\n    return w\n@deco\ndef helper(x):\n"
        "    return x",
        "helper(x)",
    ),
    "decorator with arguments": (
        "K = 2\ndef times(k):\n    def deco(f):\n        return lambda x: k * f(x)\n"
        "    return deco\n@times(K)\ndef helper(x):\n    return x",
        "helper(x)",
    ),
    "lru_cache": (
        "import functools\n@functools.lru_cache(maxsize=None)\ndef fib(n):\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        "x * fib(5)",
    ),
    "partial": (
        "from functools import partial\ndef add(x, y): return x + y\ninc = partial(add, y=1)",
        "inc(x)",
    ),
    "no_grad": ("@torch.no_grad()\ndef still(x): return x", "still(x)"),
    "mutual recursion": (
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n > 0 and even(n - 1)",
        "x * even(4)",
    ),
    "default argument": ("K = 3\ndef f(x, k=K): return x * k", "f(x)"),
    "f-string": ('NAME = "a"\ndef label(k): return f"{NAME}-{k!r:>4}"', "x * len(label(1))"),
    "multi-line string": ('def text():\n    return """a\n  b\n        c"""', "x * len(text())"),
    "enum": (
        "import enum\nclass Mode(enum.Enum):\n    A = 1\n    B = 2\nMODE = Mode.B",
        "x * MODE.value",
    ),
    "dataclass": (
        "@dataclass\nclass Config:\n    k: int = 1\nCONFIG = Config(k=4)",
        "x * CONFIG.k",
    ),
    "namedtuple": (
        "from collections import namedtuple\nfrom typing import NamedTuple\n"
        "class P(NamedTuple):\n    k: int\nQ = P(3)",
        "x * Q.k",
    ),
    "collections": (
        "from collections import OrderedDict, Counter, defaultdict\n"
        "C, D = Counter('aab'), defaultdict(list, {1: [2]})",
        "x * C['a'] + len(D)",
    ),
    "pattern, path, logger": (
        "import re, logging\nfrom pathlib import Path\nR, P = re.compile('a+', re.I), Path('a/b')\n"
        "log = logging.getLogger('proto')",
        "x * len(R.findall(P.name)) if log else x",
    ),
    "namedtuple by a call": (
        "import collections, operator, datetime\nP = collections.namedtuple('P', 'a b')\n"
        "Q, first, DAY = P(1, 2), operator.itemgetter(0), datetime.date(2020, 1, 2)",
        "first([x]) * Q.b * DAY.year",
    ),
    "arguments of a script": (
        "import argparse\nargs = argparse.ArgumentParser()\nargs.add_argument('--k', default=2)\n"
        "args = args.parse_args([])",
        "x * args.k",
    ),
    "types and devices": (
        "D, T = torch.device('cpu'), torch.float32",
        "x.to(D, T)",
    ),
    "submodule": ("import xml", "x * len(xml.__name__)"),
    "submodule of a package": (
        "import os.path, xml.etree.ElementTree",
        "x * len(xml.etree.ElementTree.Element('a').tag + os.path.join('a', 'b'))",
    ),
    "alias": ("import torch.nn.functional as F\nfrom torch import nn as layers", "F.relu(x)"),
    "star import": ("from math import *", "x * pi + sin(0)"),
    "unnamed builtins of torch": ("from torch import relu as act, special", "act(special.exp2(x))"),
    "class used as a function": (
        "class Head(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "    def forward(self, x):\n        return x",
        "Head()(x)",
    ),
    "base class": (
        "class Part:\n    K = 2\n    def go(self, x): return x * self.K",
        "Part().go(x)",
    ),
    "comprehension": ("NS = range(3)\ndef total(x): return sum(x * n for n in NS)", "total(x)"),
    "global statement": (
        "COUNT = 0\ndef bump():\n    global COUNT\n    COUNT += 1\n    return COUNT",
        "x * bump()",
    ),
    "walrus and nested def": (
        "K = 2\ndef f(x):\n    def g(y):\n        return y * K\n"
        "    return g(z) if (z := x) is x else x",
        "f(x)",
    ),
    "same name as a local": ("x = open", "x + 1"),
    "alias of a function": ("def one(x): return x\ntwo = one", "two(x) + one(x)"),
    "wrapped method": ("def f(x): return x\nf.cache = {1: 2}", "x * len(getattr(f, 'cache', ()))"),
}


@pytest.mark.parametrize("name", [n for n in REACHED if n != "wrapped method"])
def test_what_a_class_reaches_comes_along(
    cell: Cell, same: Callable[[type], str], name: str
) -> None:
    """Functions and classes by source, constants by value, installed packages as imports."""
    before, expression = REACHED[name]
    cell(HEAD + before)
    names = cell(PROTO.format(expression))
    text = same(names["Proto"])
    assert "pickle" not in text


CLASSES = {
    "super and __class__": """
class Base(Method):
    kind = "AD"
    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.own = __class__.__name__
    def forward(self, x): return x
class Proto(Base):
    name = "proto"
    def __init__(self, *a):
        super().__init__(*a)
""",
    "hparams outside": """
from vipbench.api import Positive
from typing import Annotated, Literal, Optional
Rate = Annotated[float, "rate"]
@dataclass(frozen=True)
class Settings(HParams):
    lr: Rate = 0.1
    alpha: Positive = 1.0
    mode: Literal["a", "b"] = "a"
    k: Optional[int] = None
class Proto(Method):
    name, kind, HParams = "proto", "AD", Settings
    def forward(self, x): return x
""",
    "factory": """
def make(alpha, act=torch.relu):
    class Proto(Method):
        name = "proto"
        kind = "AD"
        def forward(self, x):
            return act(x * alpha) if isinstance(self, Proto) else super().forward(x)
    return Proto
Proto = make(0.5)
""",
    "body that reads globals": """
K = 3
names = ["a", "b"]
class Proto(Method):
    K = K
    name = "proto"
    kind = "AD"
    table = {n: K for n in names}
    def forward(self, x): return x * self.K
""",
    "decorated class": """
seen = []
def register(cls):
    cls.extra = 1
    return cls
@register
class Proto(Method):
    name = "proto"
    kind = "AD"
    def forward(self, x): return x
""",
    "members": """
from functools import cached_property
class Proto(Method):
    name = "proto"
    kind = "AD"
    @staticmethod
    def a(x): return x
    @classmethod
    def b(cls): return cls
    @property
    def c(self): return 1
    @cached_property
    def d(self): return 2
    go = lambda self, x: x
    @torch.no_grad()
    def finish(self, support): return None
    def forward(self, x): return self.go(x)
""",
    "in a block": """
if True:
    for _ in range(1):
        class Proto(Method):
            '''Text
          of two lines.'''
            name = "proto"
            kind = "AD"
            def forward(self, x):
                return x * len('''a
b''')
""",
    "types only": """
from __future__ import annotations
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Nothing
class Proto(Method):
    name = "proto"
    kind = "AD"
    @dataclass(frozen=True)
    class HParams(HParams):
        alpha: float = 1.0
    def forward(self, x: Nothing) -> "Nothing": return x
""",
    "private names": """
def _Proto__f(x): return x
class Proto(Method):
    name = "proto"
    kind = "AD"
    def __g(self, x): return x
    def forward(self, x): return __f(self.__g(x))
""",
    "itself": """
class Proto(Method):
    name = "proto"
    kind = "AD"
    def forward(self, x): return x * len(Proto.name) * len(Sub.name)
class Sub(Proto):
    name = "sub"
""",
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_all_forms_come_along(
    cell: Cell, same: Callable[[type], str], name: str
) -> None:
    """What the written file registers is the class, down to its bytecode."""
    text = CLASSES[name]
    if "__future__" in text:
        text = text.replace("from __future__ import annotations\n", "")
        names = cell("from __future__ import annotations\n" + HEAD + text)
    else:
        names = cell(HEAD + text)
    same(names["Proto"])


def test_a_class_defined_again_is_the_later_one(cell: Cell, same: Callable[[type], str]) -> None:
    """Cells run in any order and again: names mean what they mean now."""
    cell(HEAD + "def helper(x): return x\n" + PROTO.format("helper(x)"))
    first = same(cell("")["Proto"])
    cell("def helper(x): return 2 * x")
    second = same(cell("")["Proto"])
    assert "2 * x" in second
    assert first != second
    names = cell(
        "Old = Proto\nclass Proto(Old):\n    def forward(self, x): return Old.forward(self, x)"
    )
    assert "_make_Old" in same(names["Proto"])
    names = cell("class Proto(Proto):\n    def finish(self, s): return super().finish(s)")
    same(names["Proto"])


REFUSED = {
    "tensor": ("WEIGHTS = torch.zeros(3)", "WEIGHTS"),
    "model": ("MODEL = torch.nn.Linear(2, 2)", "MODEL"),
    "stream": ("import io\nLOG = io.StringIO()", "LOG"),
    "module in a list": ("PARTS = [1, torch.nn.Linear(2, 2)]", "PARTS"),
    "generator": ("RNG = torch.Generator()", "RNG"),
    "instance": ("class Tool:\n    def __init__(self): self.x = 1\nTOOL = Tool()", "TOOL"),
    "thread lock": ("import threading\nLOCK = threading.Lock()", "LOCK"),
    "built class": ("Part = type('Part', (), {'k': 1})", "Part"),
    "code without a source": (
        "exec(compile('def ghost(x): return x', '<nowhere>', 'exec'))",
        "ghost",
    ),
    "large constant": ("TABLE = list(range(100000))", "TABLE"),
    "in a closure": (
        "def make(m):\n    def run(x): return m(x)\n    return run\n"
        "run = make(torch.nn.Linear(2, 2))",
        "run",
    ),
    "own file": ("__file__ = 'a.py'", "__file__"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_by_name(cell: Cell, name: str) -> None:
    """The message names the class, the way and the thing."""
    before, reached = REFUSED[name]
    cell(HEAD + before + f"\ndef helper(x): return {reached}")
    names = cell(PROTO.format("helper(x)"))
    with pytest.raises(UsageError) as raised:
        write_class(names["Proto"])
    assert "'Proto'" in str(raised.value)
    assert "'helper'" in str(raised.value)
    assert f"'{reached}'" in str(raised.value)


SCRIPT = """
import sys
from dataclasses import dataclass
import open_clip
import torch
import helpers
import vipbench
from vipbench.api import HParams as Base, Method
SCALE = 2.0
def unit(x):
    return x / x.norm(dim=-1, keepdim=True)
class Proto(Method):
    '''Nearest class mean.'''
    name, kind, needs = "proto", "AD", frozenset()
    @dataclass(frozen=True)
    class HParams(Base):
        alpha: float = 1.0
    def prepare(self, support):
        x = unit(support.plain)
        self.means = helpers.means(x, support.labels, self.task.n_classes)
    def forward(self, x):
        return unit(x) @ unit(self.means).T * SCALE * self.hparams.alpha
torch.manual_seed(0)
model = open_clip.CLIP(
    16, {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1},
    {"width": 16, "heads": 2, "layers": 1},
)
cfg = open_clip.transform.PreprocessCfg(size=32)
preprocess = open_clip.transform.image_transform_v2(cfg, is_train=False)
own = {"mine": (model, preprocess, open_clip.tokenizer.SimpleTokenizer())}
grid = dict(datasets="synthderm", backbones=own, shots=[1], seeds=[1], out="OUT")
method = {"name": Proto, "label": "ours", "alpha": 0.9}
plan = vipbench.plan(methods=[Proto, method], **grid)
results = vipbench.run(methods=[Proto, method], quiet=True, **grid)
assert sorted(plan.key) == sorted(results.frame().key), plan
assert list(plan.state) == ["to do"] * 2
assert not list(results.failed)
class Proto(Proto):
    def forward(self, x):
        return -super().forward(x)
again = vipbench.plan(methods=Proto, **grid)
assert set(again.state) == {"to do"}, again
"""


def test_a_script_runs_its_class_and_the_folder_runs_on(
    cli: Cli, environment: dict[str, str], tmp_path: Path
) -> None:
    """A real script, then its results folder, moved, from the command line elsewhere: trusted by
    its digests, run again, exported without paths."""
    place = tmp_path / "work"
    place.mkdir()
    (place / "helpers.py").write_text(
        "import other\ndef means(x, y, n):\n    return other.torch.stack([x[y == c].mean(0) "
        "for c in range(n)])\n"
    )
    (place / "other.py").write_text("import torch\n")
    (place / "script.py").write_text(SCRIPT)
    env = {**environment, "VIPBENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=place, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not list(place.glob("vipbench*"))
    folder = (place / "OUT").rename(tmp_path / "moved")
    code = {p.relative_to(folder / "plugins").as_posix() for p in folder.rglob("*.py")}
    assert code == {
        "proto.py",
        *(f"proto_files/{name}.py" for name in ("__init__", "helpers", "other")),
    }
    suite = (folder / "suite.yaml").read_text()
    assert f"mine=openclip:local-dir:{tmp_path}" in suite
    assert str(place) not in suite
    assert "mine" in (folder / "table.md").read_text()
    shutil.rmtree(place)
    rerun = cli("verify", folder, "--rerun", "1", env={"VIPBENCH_CACHE": str(tmp_path / "cache")})
    assert rerun.returncode == 0, rerun.stdout + rerun.stderr
    bundle = tmp_path / "bundle.zip"
    export = cli("export", folder, "--bundle", "-o", bundle)
    assert export.returncode == 0, export.stderr
    with zipfile.ZipFile(bundle) as held:
        assert {f"plugins/{name}" for name in code} <= {
            n[n.index("plugins/") :] for n in held.namelist() if "plugins/" in n
        }
        assert all(str(tmp_path).encode() not in held.read(n) for n in held.namelist())


def test_classes_that_no_statement_defines(cell: Cell) -> None:
    """Refused with what is missing: a name, a legal name, a class statement, a value."""
    names = cell(HEAD + PROTO.format("x"))
    forward = names["Proto"].forward
    made = type("Made", (names["Method"],), {"name": "made", "kind": "AD", "forward": forward})
    nameless = cell("class Bare(Method):\n    kind = 'AD'\n    def forward(self, x): return x\n")
    path = cell("class Up(Bare):\n    name = '../up'\n")
    gone = cell("K = 1\nclass Gone(Bare):\n    name, k = 'gone', K + 1\ndel K\n")
    for cls, fact in (
        (made, "'Made'"),
        (nameless["Bare"], "name"),
        (path["Up"], "'../up'"),
        (gone["Gone"], "'K'"),
    ):
        with pytest.raises(UsageError, match=cls.__name__) as raised:
            write_class(cls)
        assert fact in str(raised.value)


def test_classes_of_loops_and_factories_keep_their_values(
    cell: Cell, same: Callable[[type], str]
) -> None:
    """What a body computed from names that mean something else by now is written as it is."""
    names = cell(
        HEAD
        + "found = []\nfor a in (1, 2):\n"
        + "    class Proto(Method):\n        name, kind = 'proto', 'AD'\n        k = a * 2\n"
        + "        def forward(self, x): return x * self.k\n    found.append(Proto)\n"
        + "def make(b):\n    class Proto(Method):\n        kind = 'AD'\n"
        + "        name = f'proto{b}'\n"
        + "        def forward(self, x): return x * b\n    return Proto\n"
    )
    assert "k = 2\n" in same(names["found"][0])
    assert "name = 'proto5'" in same(names["make"](5))


def test_what_changed_since_it_was_defined_shows(cell: Cell, tmp_path: Path) -> None:
    """A patched attribute and functions registered elsewhere are no part of the source: the
    comparison with the written file finds them."""
    names = cell(
        HEAD
        + "from functools import singledispatch\n@singledispatch\ndef kind_of(x): return x\n"
        + "@kind_of.register\ndef _(x: int): return 2\n"
        + PROTO.format("kind_of(x)")
    )
    for patch in ("", "Proto.alpha = 3", "Proto.forward.__defaults__ = (1,)"):
        cell(patch)
        proto = names["Proto"]
        file = tmp_path / write_class(proto).file
        file.write_bytes(write_class(proto).files[file.name])
        found: list[Any] = []
        load_file(file, file.read_bytes()).register_methods(found.append)
        assert closure(found[0]) != closure(proto)


def test_arguments_that_are_no_method_classes(cell: Cell, tmp_path: Path) -> None:
    """Refused by name before anything is written; vipbench's own classes are their names."""
    names = cell(HEAD + PROTO.format("x") + "class Other(Proto):\n    pass\n")
    for given, fact in (
        ([names["Proto"], names["Other"]], "'proto'"),
        (names["torch"].nn.Linear, "'Linear'"),
        ({"name": names["HParams"], "label": "ours"}, "'HParams'"),
    ):
        with pytest.raises(UsageError, match=fact):
            named_methods(given, tmp_path / "plugins", None)
    from vipbench.methods.ncm import NCM

    given = ["vip", {"name": NCM, "label": "ours"}]
    found, folder = named_methods(given, tmp_path / "plugins", None)
    assert found == ["vip", {"name": "ncm", "label": "ours"}]
    assert folder is None
    assert not list(tmp_path.iterdir())
