"""Reading checkpoints without running anything in them."""

from __future__ import annotations

import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from vipbench.errors import UsageError

# What OpenAI's archives carry beside the weights.
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")

# CLIP's training keeps its scale below 100; published SigLIPs, whose loss sets no limit, have about
# 115. ln 100 in bf16 is 0.02 above ln 100.
_CLIP_SCALE, _SIGMOID_SCALE, _ROUNDING = 100.0, 1000.0, 0.025

# Where programs keep the weights of a training checkpoint, and what they put before every name.
_WRAPPERS = tuple(
    "state_dict model_state_dict model state_dict_ema model_ema ema_state_dict".split()
)
_PREFIXES = ("module.", "model.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file, or in one that `torch.save` wrote.

    A training checkpoint gives what it holds under `state_dict`, `model_state_dict` or `model`; the
    prefixes of wrapped and compiled modules are taken off.
    Raises UsageError for a file that is missing, damaged, a TorchScript archive, or holds
    anything that would have to be run.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"the checkpoint {path} {what}; give a .safetensors or .pt file")
    if path.stat().st_size == 0:
        raise UsageError(f"the checkpoint {path} is damaged: the file is empty")
    if path.suffix == ".safetensors":
        try:
            loaded: Any = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UsageError(f"the checkpoint {path} is damaged: {error}") from error
    else:
        loaded = _read_torch(path)
    loaded = _unwrapped(loaded, path)
    if not isinstance(loaded, Mapping) or not loaded:
        raise UsageError(
            f"the checkpoint {path} holds a {type(loaded).__name__}, not named weights; save it "
            "with torch.save(model.state_dict(), …) or as safetensors"
        )
    for name, value in loaded.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"the checkpoint {path} holds a {type(value).__name__} under '{name}', where "
                "weights belong; save it with torch.save(model.state_dict(), …)"
            )
    weights = _without_wrappers(loaded)
    for name in _NOT_WEIGHTS:
        weights.pop(name, None)
    return weights


def _unwrapped(loaded: Any, path: Path) -> Any:
    """The weights of a training checkpoint. Raises UsageError where it holds several."""
    if not isinstance(loaded, Mapping):
        return loaded
    held = [name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)]
    if len(held) > 1:
        raise UsageError(
            f"the checkpoint {path} holds weights under {' and '.join(map(repr, held))}, and only "
            f"one can be used; save it alone, such as torch.save(torch.load("
            f"'{path.name}', weights_only=True)['{held[0]}'], 'weights.pt')"
        )
    return _unwrapped(loaded[held[0]], path) if held else loaded


def _without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as the model itself has them. torch.compile puts `_orig_mod.` before every part that
    it compiled; what wraps the whole model puts its prefix before all names."""
    found = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    if len(found) != len(weights):
        return dict(weights)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in found):
            return _without_wrappers({n.removeprefix(prefix): v for n, v in found.items()})
    return found


def safetensors_metadata(path: Path) -> dict[str, str]:
    """The free-text header of a .safetensors file; empty for other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return {}  # reading the weights will say what is wrong


def _read_torch(path: Path) -> Any:
    if _is_torchscript(path):
        target = path.with_name(f"{path.stem}-weights.pt")
        script = (
            f"import torch; torch.save(torch.jit.load({str(path)!r}, map_location='cpu')"
            f".state_dict(), {str(target)!r})"
        )
        raise UsageError(
            f"{path} is a TorchScript archive (OpenAI's form): loading it would run the code "
            "inside, so it is refused. If you trust the file, convert it once with\n"
            f'  python -c "{script}"\n'
            f"and give {target} instead, with +quickgelu if it is one of OpenAI's"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other kinds: they fail below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's message goes on to advise loading without protection; only its cause is shown.
        raise UsageError(
            f"the checkpoint {path} is not a plain file of weights: it is damaged, or holds "
            f"objects that run code when loaded, which is refused ({_cause(error)}). Save the "
            "weights alone, with torch.save(model.state_dict(), …) or as safetensors"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        first = str(error).strip().split(". ")[0] or type(error).__name__
        raise UsageError(f"the checkpoint {path} is damaged: {first}") from error


def _cause(error: Exception) -> str:
    """The part of PyTorch's message that names what is forbidden."""
    for line in str(error).splitlines():
        if "Unsupported" in line or "GLOBAL" in line:
            found = line.strip().removeprefix("WeightsUnpickler error: ")
            return found.split(". Please")[0].split(" was not")[0]
    return type(error).__name__


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False
    return any(name.endswith("/constants.pkl") for name in names)


def load_into(model: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Put `weights` into an open_clip `model`; every one must be there and fit.

    source: what an error message calls them.
    Raises UsageError naming a few of the missing, unexpected, misshapen or non-finite weights.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    weights = dict(convert_state_dict(model, weights))
    own = model.state_dict()
    if "positional_embedding" not in own:
        weights = dict(convert_to_custom_text_state_dict(weights))
    # Some checkpoints keep these as one number, others as a vector of one.
    for name in ("logit_scale", "logit_bias"):
        if name in weights and name in own and weights[name].numel() == own[name].numel() == 1:
            weights[name] = weights[name].reshape(own[name].shape)
    # Older versions of the transformers library kept the numbers of the positions, too.
    weights = {k: v for k, v in weights.items() if k in own or not k.endswith(".position_ids")}
    if "logit_bias" in own and "logit_bias" not in weights:
        weights["logit_bias"] = torch.zeros_like(own["logit_bias"])
    wrong = []
    if missing := [name for name in own if name not in weights]:
        wrong.append(f"{len(missing)} weights are missing ({_few(missing)})")
    if unexpected := [name for name in weights if name not in own]:
        wrong.append(f"{len(unexpected)} are not in the architecture ({_few(unexpected)})")
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if shapes:
        wrong.append(f"{len(shapes)} have another shape ({_few(shapes)})")
    if wrong:
        raise UsageError(
            f"the weights of {source} do not fit the architecture: {'; '.join(wrong)}. Name the "
            "architecture that they were trained with"
        )
    bad = [
        name
        for name, value in weights.items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise UsageError(f"the weights of {source} hold NaN or infinity ({_few(bad)})")
    model.load_state_dict(weights)


def check_scale(scale: Tensor, sigmoid: bool, source: str) -> tuple[str, ...]:
    """What a user must know of a model's `logit_scale`, which is a logarithm.

    sigmoid: whether it was trained with a sigmoid loss, where the scale has no limit.
    Raises UsageError for one whose exponential is infinite in fp32.
    """
    value = float(scale.detach().float().reshape(-1)[0])
    if not math.isfinite(float(scale.detach().float().exp().reshape(-1)[0])):
        raise UsageError(
            f"the logit_scale of {source} is {value:g}, and exp({value:g}) is infinite in fp32; it "
            f"is stored as a logarithm: save log({value:g}) = {math.log(value):.4f} where "
            f"{value:g} is the scale itself"
        )
    limit = _SIGMOID_SCALE if sigmoid else _CLIP_SCALE
    if value <= math.log(limit) + _ROUNDING:
        return ()
    return (
        f"its logit_scale is {value:g}, a scale of exp({value:g}) = "
        f"{math.exp(value):,.0f}; trained models keep it under {limit:g}. It is used as it is; if "
        f"{value:g} is the scale itself, save its logarithm, {math.log(value):.4f}",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UsageError naming the file."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} holds a {type(loaded).__name__}; expected a JSON object")
    return loaded


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
