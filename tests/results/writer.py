"""A driver's writing half, run by test_store in a process of its own.

`writer.py OUT COUNT` adds the missing of COUNT records, each named on stdout once it is kept.
`writer.py OUT hold` opens the store, says so, and waits for its stdin to close.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.results.samples import unscored
from vipbench.results.store.store import Store

if __name__ == "__main__":
    out, what = sys.argv[1:]
    with Store(out) as store:
        if what == "hold":
            print("open", flush=True)
            sys.stdin.read()
        else:
            have = store.status()
            for i in range(int(what)):
                record, predictions = unscored(i)
                if record.key not in have:
                    store.add(record, predictions)
                    print(record.key, flush=True)
