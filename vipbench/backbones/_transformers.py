"""From the text behind `transformers:` to a backbone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vipbench.api import Backbone, UnsupportedError
from vipbench.backbones import _hub
from vipbench.backbones._clip import digest_weights
from vipbench.backbones._pairs import PAIRS, build_pair
from vipbench.backbones._preprocess import read_preprocess
from vipbench.backbones._tokenizers import framed_wordpieces
from vipbench.backbones._weights import read_json
from vipbench.errors import UsageError
from vipbench.fetching import HubFile, HubModules, Needed

_REMOTE = "+remote-code"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PREPROCESSING = ("preprocessor_config.json", "processor_config.json")


def load_transformers(argument: str) -> Backbone:
    """The backbone `transformers:argument`.

    Raises UsageError for a folder or name without a model, for kinds that are not known, and for
    a model that needs its own code where `+remote-code` does not allow it.
    """
    source = argument.removesuffix(_REMOTE)
    remote = argument.endswith(_REMOTE)
    where = f"transformers:{source}"
    local = Path(source).expanduser()
    folder = local if local.is_dir() else _from_hub(argument)
    config = read_json(folder / "config.json")
    kind = str(config.get("model_type", ""))
    if kind not in PAIRS and not remote:
        raise UsageError(_refusal(where, kind, config))
    _check_weights(folder, where)
    model = _load(folder, where, remote and kind not in PAIRS)
    licence = "unknown" if folder is local else f"see huggingface.co/{source}"
    name = where
    if folder is local:
        # Tables tell local checkpoints apart by content, and never show a path.
        name = f"transformers:{kind or type(model).__name__}@{digest_weights(model)[:8]}"
    try:
        return build_pair(
            model,
            kind,
            wordpieces=framed_wordpieces(_tokenizer(folder, where, remote)),
            tokens=_most_tokens(folder),
            preprocess=read_preprocess(folder, kind, model, where),
            name=name,
            licence=licence,
        )
    except UnsupportedError as error:
        raise UsageError(f"{where} cannot be used: {error}") from error


def _refusal(where: str, kind: str, config: dict[str, Any]) -> str:
    if "auto_map" in config:
        return (
            f"{where} is built by code of its own ('{kind}'), which would have to be run: if you "
            f"trust its author, write {where}{_REMOTE}"
        )
    return (
        f"{where} is a model of type '{kind}'; known are {', '.join(PAIRS)}. Models with other "
        "towers come as a plugin (docs/plugins.md)"
    )


def transformers_files(argument: str) -> Iterator[Needed]:
    """The files that `load_transformers` needs and that are not the user's own, one after another:
    a later one may only be known once the earlier is there. Raises UsageError."""
    repo = argument.removesuffix(_REMOTE)
    if Path(repo).expanduser().is_dir():
        return
    org, slash, name = repo.partition("/")
    if not (org and slash and name) or "/" in name:
        raise UsageError(
            f"transformers:{repo}: no such folder, and not of the form ORG/NAME either"
        )
    hint = _hub.bring(
        f"transformers:{argument}", repo, "or give the folder itself: transformers:FOLDER"
    )
    licence = f"see huggingface.co/{repo}"
    yield HubFile(repo, ("config.json",), _PREPROCESSING, licence, hint)
    only = f"Only safetensors are read, since pickles can run code. {hint}"
    weights = HubFile(repo, _WEIGHTS, (), licence, only)
    yield weights
    path = weights.find()
    if path is not None and path.name == _WEIGHTS[1]:
        yield from _hub.shards(path, repo, licence, only)
    yield _hub.tokenizer_files(repo, hint)
    if argument.endswith(_REMOTE):
        yield HubModules(repo, licence, hint)


def _from_hub(argument: str) -> Path:
    """The folder in the Hub's cache that holds all of it."""
    folder = Path()
    for _ in range(2):
        # Twice, should the repository have changed since some of it was fetched.
        folders = [(one.find() or one.fetch()).parent for one in transformers_files(argument)]
        folder = folders[-1]
        if set(folders) == {folder}:
            break
    return folder


def _check_weights(folder: Path, where: str) -> None:
    if any((folder / name).is_file() for name in _WEIGHTS):
        return
    pickles = sorted(p.name for p in folder.glob("*.bin"))
    held = f"; it holds {', '.join(pickles)}, which are pickles and can run code" if pickles else ""
    raise UsageError(
        f"{where} has no model.safetensors{held}. Save it with "
        "model.save_pretrained(FOLDER, safe_serialization=True)"
    )


def _load(folder: Path, where: str, remote: bool) -> nn.Module:
    """The model, fp32, every weight from the file."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with torch.random.fork_rng(devices=[]):
            model, info = transformers.AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=remote,
                local_files_only=True,
                dtype=torch.float32,
                output_loading_info=True,
                # The library once renamed every "gamma" to "weight", also those of layer scales.
                key_mapping={r"\.ls([12])\.weight$": r".ls\1.gamma"} if remote else None,
            )
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{where} cannot be loaded: {reason[0]}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(info["missing_keys"])
    misfit = sorted(str(key) for key in info["mismatched_keys"])
    if missing or misfit:
        several = [*missing, *misfit]
        raise UsageError(
            f"the weights of {where} do not fit its config.json: {len(several)} are missing or of "
            f"another shape ({', '.join(several[:3])}{', …' if len(several) > 3 else ''})"
        )
    bad = [n for n, v in model.state_dict().items() if not bool(torch.isfinite(v.float()).all())]
    if bad:
        raise UsageError(f"the weights of {where} hold NaN or infinity ({', '.join(bad[:3])})")
    loaded: nn.Module = model
    return loaded


def _tokenizer(folder: Path, where: str, remote: bool) -> Any:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote
        )
    except Exception as error:  # transformers raises many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"the tokenizer of {where} cannot be loaded: {reason[0]}") from error


def _most_tokens(folder: Path) -> int | None:
    """The length that the tokenizer cuts texts at, where it says one."""
    path = folder / "tokenizer_config.json"
    most = read_json(path).get("model_max_length") if path.is_file() else None
    return int(most) if most is not None and most < 1_000_000 else None
