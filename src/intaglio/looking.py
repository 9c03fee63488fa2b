"""One look at all heads of one model: each stage adds its tables, the last gives names.  [torch]

    repeated random tokens -> tasks -> scores -> ordinary text -> groups -> heads -> removal -> weights -> places
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from intaglio.analyse.heads.choosing import strongest
from intaglio.analyse.heads.clusters import cluster_heads, cluster_rows
from intaglio.analyse.heads.naming import LEVEL, head_rows, least_of, score_rows
from intaglio.atlas import BASIC, Sampled
from intaglio.data.vocab import is_special
from intaglio.errors import IntaglioError
from intaglio.measure.choice.decision import context_of
from intaglio.measure.choice.effects import means_over
from intaglio.measure.heads.basic import measure_basic
from intaglio.measure.heads.causal import check_role, shortened
from intaglio.measure.heads.causal_loss import RoleLoss
from intaglio.measure.heads.circuits import measure_weights
from intaglio.measure.heads.clusters import cluster_features
from intaglio.measure.heads.levels import level_rows
from intaglio.measure.heads.losses import FEEDS, REST, basic_losses
from intaglio.measure.heads.reference import TOKENS, measure_reference
from intaglio.measure.heads.repeats import repeats
from intaglio.measure.heads.tasks import SHARES, TASKS, run_tasks
from intaglio.model.anatomy import Anatomy
from intaglio.model.slices import head_places
from intaglio.model.tensors import open_checkpoint

TEXTS = 16
LENGTH = 50  # tokens in a copy
DRAWS = 5
CHECK_TEXTS = 2  # of repeated random tokens, on which the removal of heads is measured
CHECK_TOKENS = 512  # of the texts on which a role's heads are removed
UNREAD = "the tokenizer has no words for these texts"
MOST_UNKNOWN = 0.2  # of a text's tokens, for it to be read
SHOWN_LENGTH = 16  # tokens in a copy of the repeated text that is shown

Tell = Callable[[str, int, int], None]


@dataclass(eq=False)
class Look:
    """What is found about the heads of one model while it is looked at.

    Attributes:
        roles: the roles that are scored.
        corpus: a file of dependency trees, for syntax.
        winogender: its table of sentences, for coreference.
        texts: independent texts of repeated random tokens.
        tell: told (what, done, total).
        rows: table name to its rows; the contract is `tables.ATLAS_TABLES`.
        features: columns of the table `heads` by address, as they are found.
        skipped: role or table to the reason why it is not there.
        seconds: stage to what it took.
    """

    anatomy: Anatomy
    tokenizer: Any
    roles: Sequence[str]
    corpus: str | Path | None
    winogender: str | Path | None
    texts: int
    seed: int
    tell: Tell
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sampled: list[Sampled] = field(default_factory=list)
    losses: list[RoleLoss] = field(default_factory=list)
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def all(self, *, other: Anatomy | None = None, folder: Path | None = None) -> None:
        """Every stage in its order.

        Args:
            other: a second checkpoint of the same shape, from which movement is measured.
            folder: where the model's tensors lie, for the bytes of every head.
        """
        self.ordinary = [i for i in range(min(self.anatomy.embed.weight.shape[0], len(self.tokenizer)))
                         if not is_special(self.tokenizer, i)]  # fmt: skip
        self.plain = plain_texts(self.tokenizer, min(TOKENS, context_of(self.anatomy.model)))
        for stage in (self.basic, self.tasks, self.scores, self.reference, self.groups, self.checks, self.weights):
            with self._timed(stage.__name__):
                stage()
        with self._timed("levels"):
            self.levels(other)
        if folder is not None:
            with self._timed("places"):
                self.places(folder)

    @property
    def about(self) -> dict[str, Any]:
        """What an atlas tells of the model and of how it was looked at."""
        sizes = ("n_layers", "n_heads", "n_key_heads", "head_dim", "width")
        return {
            **{name: getattr(self.anatomy, name) for name in sizes}, "seed": self.seed, **self.shown,
            "rules": {role: {"smallest": least_of(role), "level": LEVEL} for role in self.roles},
            "skipped": self.skipped, "stages": self.seconds,
        }  # fmt: skip

    # --- stages ----------------------------------------------------------------------------

    def basic(self) -> None:
        """The six roles on repeated random tokens."""
        if not set(self.roles) & set(BASIC):
            return
        found = measure_basic(self.anatomy, seed=self.seed, texts=self.texts, length=LENGTH, ordinary=self.ordinary,
                              progress=lambda done: self.tell("repeated random tokens", done, self.texts))  # fmt: skip
        given = repeats(self.anatomy, seed=self.seed + 1, texts=CHECK_TEXTS, length=LENGTH, ordinary=self.ordinary)
        self.sampled += [one for one in found if one.role in self.roles]
        known = set(self.roles) & {*FEEDS, *(REST if readable(self.tokenizer, self.plain) else ())}
        self.losses += [one for one in basic_losses(self.anatomy, given, self.plain) if one.role in known]

    def tasks(self) -> None:
        """Roles that show on texts made for them, and false attention paths."""
        wanted = [*(role for role in self.roles if role in TASKS), SHARES]
        if not readable(self.tokenizer, self.plain):
            self.skipped |= dict.fromkeys(wanted, UNREAD)
            return
        done: list[str] = []

        def tell(name: str) -> None:
            self.tell("texts made for roles", len(done), len(wanted))
            done.append(name)

        found = run_tasks(self.anatomy, self.tokenizer, seed=self.seed, roles=wanted, corpus=self.corpus,
                          winogender=self.winogender, progress=tell)  # fmt: skip
        self.tell("texts made for roles", len(wanted), len(wanted))
        self.sampled += found.sampled
        self.losses += found.losses
        self.skipped |= found.skipped
        self.shown["notes"] = found.notes
        for name, share_LH in found.shares.items():
            for (layer, head), value in zip(self._places(), share_LH.ravel().tolist()):
                self._feature(layer, head, **{name: value if value == value else None})

    def scores(self) -> None:
        """All roles judged together."""
        self.rows["scores"] = score_rows(self.sampled)

    def reference(self) -> None:
        """Patterns for the page, and what can be said of them in numbers."""
        shown = repeats(self.anatomy, seed=self.seed, texts=1, length=SHOWN_LENGTH, ordinary=self.ordinary)
        texts = [*self.plain, shown.ids_BT[0].tolist()]
        found = measure_reference(self.anatomy, self.tokenizer, texts, ordinary=len(self.plain))
        self.rows["patterns"] = found.patterns
        self.shown |= {"texts": found.texts, "text_ids": found.text_ids}
        for address, columns in found.features.items():
            self.features.setdefault(address, {}).update(columns)

    def groups(self) -> None:
        """Heads with alike patterns; with it the table of heads is whole."""
        addresses = [f"L{layer}.attn.H{head}" for layer, head in self._places()]
        grouping = None
        with self._skipping("clusters"):
            seen = cluster_features(self.anatomy, self.tokenizer)
            grouping = cluster_heads(seen.values_NLHF.reshape(len(seen.ids), len(addresses), -1), seen.names, seed=self.seed)
        for i, address in enumerate(addresses if grouping is not None else ()):
            self.features.setdefault(address, {})["cluster"] = int(grouping.labels_M[i])
        self.rows["heads"] = head_rows(self.rows["scores"], layers=self.anatomy.n_layers, heads=self.anatomy.n_heads,
                                       features=self.features)  # fmt: skip
        self.rows["clusters"] = [] if grouping is None else cluster_rows(grouping, addresses, self.rows["heads"])

    def checks(self) -> None:
        """Every role that some head has and some loss should show."""
        chosen = strongest(self.rows["scores"])
        some = [shortened(one, CHECK_TOKENS) for one in self.losses if one.role in chosen]
        means = [means_over(self.anatomy, torch.tensor([ids], device=self.anatomy.embed.weight.device)).z_LHd
                 for ids in (self.plain if some else ())]  # fmt: skip
        self.rows["checks"] = []
        for i, one in enumerate(some):
            first, rest = chosen[one.role]
            self.rows["checks"].append(
                check_role(self.anatomy, first, one, torch.stack(means).mean(0), draws=DRAWS, seed=self.seed, without=rest)
            )
            self.tell("removing the heads of each role", i + 1, len(some))

    def weights(self) -> None:
        """What each head reads and writes by its weights alone."""
        self.tell("weights of heads", 0, 1)
        with self._skipping("weights"):
            self.rows |= measure_weights(self.anatomy, self.tokenizer, seed=self.seed)
        self.tell("weights of heads", 1, 1)

    def levels(self, other: Anatomy | None) -> None:
        """How each level of the architecture writes knowledge into its weights."""
        self.tell("levels of the architecture", 0, 1)
        self.rows["levels"] = level_rows(self.anatomy, other)
        self.tell("levels of the architecture", 1, 1)

    def places(self, folder: Path) -> None:
        """The bytes of every head."""
        with self._skipping("places"):
            self.rows["places"] = head_places(open_checkpoint(folder))

    # --- helpers ---------------------------------------------------------------------------

    def _places(self) -> Iterator[tuple[int, int]]:
        return ((layer, head) for layer in range(self.anatomy.n_layers) for head in range(self.anatomy.n_heads))

    def _feature(self, layer: int, head: int, **columns: Any) -> None:
        self.features.setdefault(f"L{layer}.attn.H{head}", {}).update(columns)

    @contextmanager
    def _skipping(self, name: str) -> Iterator[None]:
        """A table that this model does not allow is left out, with the reason."""
        try:
            yield
        except IntaglioError as why:
            self.skipped[name] = str(why)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - start, 3)


def plain_texts(tokenizer: Any, tokens: int = TOKENS) -> list[list[int]]:
    """Token ids of two ordinary texts, English and Russian, as the tokenizer begins a text."""
    lines = (resources.files("intaglio.data.leaps") / "anchor.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    groups = (" ".join(r["text"] for r in rows if (r["group"] == "en") == english) for english in (True, False))
    return [[int(i) for i in tokenizer(text)["input_ids"][:tokens]] for text in groups]


def readable(tokenizer: Any, texts: Sequence[Sequence[int]]) -> bool:
    """Whether the tokenizer has words for ordinary texts, given as its ids."""
    ids = [i for text in texts for i in text]
    return bool(ids) and (tokenizer.unk_token_id is None or ids.count(tokenizer.unk_token_id) < MOST_UNKNOWN * len(ids))
