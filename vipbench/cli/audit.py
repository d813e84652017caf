"""`vipbench audit`: the options, and the report of leaks between a dataset's splits."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from vipbench.cli.exit_codes import FAILED, OK
from vipbench.cli.options import AllowCode, DataRoot, ImageRoots, PluginsDir, option

SHOWN = 20


def audit(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", show_default=False, help="NAME or NAME:ARG.")
    ],
    data_root: DataRoot = None,
    images: ImageRoots = None,
    plugins_dir: PluginsDir = None,
    allow_code: AllowCode = False,
    format: Annotated[str, option("--format", "text|json", "Output format.")] = "text",
) -> int:
    """Check a dataset for duplicate images, shared groups and leaked class names.

    It reports images in two splits (the same pixels, or re-encoded, resized or flipped copies),
    groups that cross splits, and symptoms that name a class. Later runs on the same data repeat
    the findings. Exit status 1 if there are findings.
    """
    from vipbench.engine.planning import leaks as auditing
    from vipbench.engine.planning.loading import load_dataset
    from vipbench.errors import UsageError
    from vipbench.plugins.registry import load_registry
    from vipbench.runspec.run import RunSpec
    from vipbench.text import clean, plural

    if format not in ("text", "json"):
        raise UsageError(f"--format takes text or json, not '{format}'")
    given = {"datasets": [dataset], "data_root": data_root, "allow_group_overlap": True}
    spec = RunSpec().merge({**given, "images": images})
    data = load_dataset(load_registry(plugins_dir), spec, dataset)
    names = data.dataset.class_names
    found = auditing.audit(data.dataset.name, data.fingerprint, data.parts(), names, data.symptoms)
    auditing.keep(found)
    if format == "json":
        print(json.dumps({**asdict(found), "clean": found.clean}, indent=2))
        return OK if found.clean else FAILED
    print(f"{found.dataset}: {plural(found.images, 'image')} compared across splits")
    for kind, pairs in (("same pixels", found.exact), ("nearly the same", found.near or [])):
        for pair in pairs[:SHOWN]:
            flip = f", flipped {pair.flip}" if pair.flip else ""
            how = kind if pair.similarity == 1 and not flip else f"{kind}, {pair.similarity:.2f}"
            print(
                clean(f"  {pair.split} '{pair.id}' = {pair.other_split} '{pair.other_id}'")
                + f" ({how}{flip})"
            )
        if len(pairs) > SHOWN:
            print(f"  and {len(pairs) - SHOWN} more (--format json lists all)")
    if found.near is None:
        print(f"  fewer than {auditing.FEWEST} images: only the same pixels were looked for")
    for line in [*([f"groups: {found.groups}"] if found.groups else []), *found.symptoms[:SHOWN]]:
        print(f"  {clean(line)}")
    print(f"found: {clean(found.summary())}" if not found.clean else "nothing found")
    return OK if found.clean else FAILED
