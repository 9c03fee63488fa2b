"""Intaglio: how data is engraved into a language model, and how the engraved model chooses the next word.

    import intaglio
    with intaglio.Ledger(model, optimizer, out="runs/x"):   # any PyTorch loop, unchanged
        ...
    run = intaglio.open_run("runs/x")
    run.table("visits"); run.sql("select ...")

Nothing here imports torch until `Ledger` or `LedgerCallback` is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Atlas", "IntaglioError", "Ledger", "LedgerCallback", "Run", "Trace", "__version__", "heads", "open_atlas", "open_run", "why",
]  # fmt: skip

if TYPE_CHECKING:
    from intaglio.callback import LedgerCallback
    from intaglio.choice import why
    from intaglio.errors import IntaglioError
    from intaglio.measure.ledger import Ledger
    from intaglio.roles import heads
    from intaglio.store.run import Run, open_run
    from intaglio.views import Atlas, Trace, open_atlas

_HOMES = {
    "Atlas": "intaglio.views",
    "heads": "intaglio.roles",
    "open_atlas": "intaglio.views",
    "Ledger": "intaglio.measure.ledger",
    "LedgerCallback": "intaglio.callback",
    "IntaglioError": "intaglio.errors",
    "open_run": "intaglio.store.run",
    "Run": "intaglio.store.run",
    "Trace": "intaglio.views",
    "why": "intaglio.choice",
}


def __getattr__(name: str):
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'intaglio' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
