"""Code in a model's folder: whether it may run, and a copy of the folder that holds what may."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vipbench import trust
from vipbench.errors import UsageError


@contextlib.contextmanager
def allowed_copy(folder: Path, where: str, asked: str) -> Iterator[tuple[Path, str]]:
    """A folder with the files of `folder`, whose Python files may run and are what was allowed, and
    the SHA-256 of these Python files.

    where: the model in words. asked: the backbone's source, see `vipbench.trust`. Only files
    directly in the folder are in the copy; other than *.py and *.json they are links. Raises
    UntrustedCodeError, and UsageError where a file asks for code of another repository.
    """
    read = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if _is_text(p)}
    code = {name: data for name, data in read.items() if name.endswith(".py")}
    for name, data in read.items():
        if name.endswith(".json"):
            _check(_json_of(data), f"{where}: {name}")
    if "adapter_config.json" in read:
        raise UsageError(
            f"{where} is an adapter of another model, whose code would run as well; merge the "
            "adapter into its model, and save that"
        )
    digests = [(str(folder / name), trust.sha256(data)) for name, data in code.items()]
    trust.require(f"the code of {where}", asked, digests)
    whole = trust.sha256("\n".join(f"{Path(p).name} {d}" for p, d in digests).encode())
    with tempfile.TemporaryDirectory(prefix="vipbench-model-") as temporary:
        # The library runs code from its own cache of modules, in a folder of this name.
        copy = Path(temporary) / f"vipbench_{whole}"
        copy.mkdir()
        for path in folder.iterdir():
            if path.name in read:
                (copy / path.name).write_bytes(read[path.name])
            elif path.is_file() and path.suffix != ".py":
                (copy / path.name).symlink_to(path.resolve())
        _clear(copy.name, code)
        yield copy, whole


def never_ask() -> None:
    """Keep the transformers library from asking on its own whether a model's code may run; it
    refuses, and names the code."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def _is_text(path: Path) -> bool:
    return path.suffix in (".py", ".json") and path.is_file()


def _json_of(data: bytes) -> Any:
    """The value, None where it is none; who needs the file says what is wrong with it."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _check(value: Any, where: str) -> None:
    """Raise UsageError where an `auto_map` leads out of the folder."""
    if isinstance(value, dict):
        for name in _strings(value.get("auto_map")):
            if not name.replace(".", "").replace("_", "").isalnum():
                raise UsageError(
                    f"{where} names code outside of its folder ('{name}'); put that code into the "
                    "folder, and name it as MODULE.CLASS"
                )
    for part in _parts(value):
        _check(part, where)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in _parts(value):
        yield from _strings(part)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _clear(name: str, code: dict[str, bytes]) -> None:
    """Take out of the library's cache of modules what is not the allowed code, compiled files too:
    it compares files by size and time alone."""
    from transformers.dynamic_module_utils import HF_MODULES_CACHE, TRANSFORMERS_DYNAMIC_MODULE_NAME

    kept = Path(HF_MODULES_CACHE) / TRANSFORMERS_DYNAMIC_MODULE_NAME / name
    for path in sorted(kept.rglob("*")):
        if path.name == "__pycache__":
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            expected = code.get(path.name, b"" if path.name == "__init__.py" else None)
            if path.read_bytes() != expected:
                path.unlink()
