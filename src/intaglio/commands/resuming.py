"""Going on with a training that was interrupted: is it the same one, and from which state?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from intaglio.errors import RecipeError

CALLED = {"recipe": "settings", "subject": "model"}  # keys of the manifest in other words

def check_same(job: Any, manifest: dict[str, Any]) -> None:
    """Refuse to go on with a run that was begun otherwise."""
    from intaglio.measure.budget import parse_bytes

    mine = job.manifest()
    probes = {p.name: p.as_dict() for p in job.probes.values()}
    manifest = manifest | {"memory": (manifest.get("memory") or {}).get("limit_bytes") or 0}  # 0: no limit
    for key, now in (
        ("recipe", mine["recipe"]), ("data", mine["data"]), ("subject", mine["subject"]), ("probes", probes),
        ("level", job.level), ("every", job.every), ("probe_every", job.probe_every),
        ("keep_tokens", job.keep_tokens), ("credit_parts", job.credit_parts),
        ("group_momentum", job.group_momentum), ("rescan", job.rescan),
        ("memory", parse_bytes(job.memory) or 0),
    ):  # fmt: skip
        then = manifest.get(key)
        if then is not None and then != now:
            named = sorted(k for k in {*now, *then} if then.get(k) != now.get(k)) if key in ("recipe", "probes") else []
            what = CALLED.get(key, key) + (f" ({', '.join(named)})" if named else "")
            raise RecipeError(
                f"the {'' if job.out.exists() else 'unfinished '}run at {job.out} was begun with other {what}",
                expected="the same command line with --resume, or --force to start anew",
            )


def go_back(job: Any, ledger: Any, optimizer: Any, folder: Path | None) -> int:
    """Go back to the newest kept state, or to the start; rows written after it are dropped."""
    from intaglio import checkpoint

    ledger.prime_probes()
    step = checkpoint.load(folder, job.model, optimizer) if folder else 0
    ledger.restore(step)
    return step


def in_order(buffers: dict[str, dict[int, Any]], layout: Any) -> dict[str, dict[int, Any]]:
    """Buffers in the order of the weights, in which their sums were taken before: sums of floats depend on it."""
    order = [id(w.param) for w in layout.weights]
    return {name: {key: found[key] for key in order if key in found} for name, found in buffers.items()}
