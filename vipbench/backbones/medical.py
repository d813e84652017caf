"""Medical CLIP-like models by name: where each is, under which licence, and how to get it.

The names stand for `openclip:` and `transformers:` sources; nothing is downloaded or imported
before one is asked for. docs/backbones.md is the page to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from vipbench.errors import UsageError
from vipbench.fetching import HubFile
from vipbench.hookspecs import RegisterBackbone, hookimpl
from vipbench.trust import REMOTE

if TYPE_CHECKING:
    from vipbench.api import Backbone, Needed

CARD = "see the model card"


@dataclass(frozen=True)
class Entry:
    """One model. field: what its images are. repo: ORG/NAME on the Hugging Face Hub. library: what
    reads it; None where vipbench cannot, and `hint` says what to do instead. gated: whether terms
    must be accepted on the Hub first. reference: the paper."""

    name: str
    field: str
    repo: str
    library: Literal["openclip", "transformers"] | None
    licence: str
    reference: str
    gated: bool = False
    hint: str = ""


ENTRIES = (
    Entry(
        name="biomedclip",
        field="figures of biomedical papers",
        repo="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        library="openclip",
        licence="MIT",
        reference="arXiv 2303.00915",
    ),
    Entry(
        name="pubmedclip",
        field="radiology",
        repo="flaviagiammarino/pubmed-clip-vit-base-patch32",
        library="transformers",
        licence="MIT",
        reference="arXiv 2112.13906",
    ),
    Entry(
        name="dermlip",
        field="dermatology",
        repo="redlessone/DermLIP_ViT-B-16",
        library="openclip",
        licence=CARD,
        reference="arXiv 2503.14911",
    ),
    Entry(
        name="whylesionclip",
        field="dermatology",
        repo="yyupenn/whylesionclip",
        library="openclip",
        licence="MIT",
        reference="arXiv 2405.14839",
    ),
    Entry(
        name="monet",
        field="dermatology",
        repo="chanwkim/monet",
        library="transformers",
        licence=CARD,
        reference="doi 10.1038/s41591-024-02887-x",
    ),
    Entry(
        name="medsiglip",
        field="radiology, dermatology, pathology, ophthalmology",
        repo="google/medsiglip-448",
        library="transformers",
        licence="Health AI Developer Foundations terms of use",
        reference="arXiv 2507.05201",
        gated=True,
        hint="Its tokenizer needs `pip install 'vipbench[siglip]'`.",
    ),
    Entry(
        name="keep",
        field="pathology",
        repo="Astaxanthin/KEEP",
        library="transformers",
        licence="MIT",
        reference="arXiv 2412.13126",
        hint="It needs code from its repository: keep:+remote-code lets it run.",
    ),
    Entry(
        name="unimedclip",
        field="six imaging modalities",
        repo="UzairK/unimed-clip-vit-b16",
        library=None,
        licence="CC BY-NC 4.0",
        reference="arXiv 2412.10372",
        hint=(
            "Its checkpoint is a pickle for a changed copy of open_clip: load it in its own "
            "environment, and wrap it in a plugin (docs/plugins.md)."
        ),
    ),
    Entry(
        name="conch",
        field="pathology",
        repo="MahmoodLab/CONCH",
        library=None,
        licence="CC BY-NC-ND 4.0",
        reference="doi 10.1038/s41591-024-02856-4",
        gated=True,
        hint=(
            "Its authors' package conch (github.com/mahmoodlab/CONCH) loads it: wrap the model in "
            "a plugin (docs/plugins.md)."
        ),
    ),
)


@hookimpl
def register_backbones(register: RegisterBackbone) -> None:
    """All entries, by name."""
    for entry in ENTRIES:
        gate = "; terms to accept on the Hub" if entry.gated else ""
        where = f"{entry.repo}, licence: {entry.licence}{gate}"
        what = "" if entry.library else "; not readable by vipbench itself"
        register(
            entry.name,
            partial(load, entry),
            help=f"{entry.field}: {where}{what}",
            files=partial(files, entry),
            known=[entry.name] if entry.library else [],
        )


def load(entry: Entry, argument: str | None) -> Backbone:
    """The model of `entry`; `argument` is a folder that holds its files, with +remote-code behind
    it, or instead of it, where its own code may run.

    Raises UsageError with what to do where it cannot be had.
    """
    _check_readable(entry)
    folder = (argument or "").removesuffix(REMOTE)
    remote = REMOTE if (argument or "").endswith(REMOTE) else ""
    try:
        backbone = _from_library(entry, folder, remote)
    except UsageError as error:
        terms = ""
        if entry.gated and not folder:
            terms = (
                f" Its terms must be accepted first, at huggingface.co/{entry.repo}; `hf auth "
                "login` then logs you in."
            )
        hint = f" {entry.hint}" if entry.hint else ""
        raise UsageError(
            f"'{entry.name}' ({entry.repo}; licence: {entry.licence}): {error}.{terms}{hint}"
        ) from error
    digest = backbone.fingerprint[:8]
    backbone.name = f"{entry.name}@{digest}" if folder else entry.name
    backbone.licence, backbone.citation = entry.licence, entry.reference
    return backbone


def files(entry: Entry, argument: str | None) -> Iterator[Needed]:
    """What `load` needs on the disk, under the entry's licence. Raises UsageError."""
    _check_readable(entry)
    folder = (argument or "").removesuffix(REMOTE)
    if entry.library == "openclip":
        from vipbench.backbones.loading.openclip import openclip_files

        found = openclip_files(f"local-dir:{folder}" if folder else f"hf-hub:{entry.repo}")
    else:
        from vipbench.backbones.loading.transformers import transformers_files

        remote = REMOTE if (argument or "").endswith(REMOTE) else ""
        found = transformers_files(f"{folder or entry.repo}{remote}")
    for needed in found:
        if isinstance(needed, HubFile) and needed.repo == entry.repo:
            needed = replace(needed, licence=entry.licence)
        yield needed


def _check_readable(entry: Entry) -> None:
    if entry.library is None:
        terms = ", where terms must be accepted first" if entry.gated else ""
        raise UsageError(
            f"'{entry.name}' ({entry.repo}; licence: {entry.licence}) cannot be read by vipbench "
            f"itself. {entry.hint} Its files are at huggingface.co/{entry.repo}{terms}."
        )


def _from_library(entry: Entry, folder: str, remote: str) -> Backbone:
    if entry.library == "openclip":
        from vipbench.backbones.loading.openclip import load_openclip

        if remote:
            raise UsageError("it runs no code of its own; leave +remote-code out")
        return load_openclip(f"local-dir:{folder}" if folder else f"hf-hub:{entry.repo}")
    from vipbench.backbones.loading.transformers import load_transformers

    source = f"{folder or entry.repo}{remote}"
    return load_transformers(source, f"{entry.name}:{folder}{remote}")
