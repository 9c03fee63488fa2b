"""The map from addresses to bytes, proved: zero exactly those bytes in a copy, and only that part changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from families import FAMILIES, family, ids
from intaglio.address import Address
from intaglio.errors import InputError
from intaglio.model.anatomy import anatomy_of
from intaglio.model.capture import Capture, capture, head_writes
from intaglio.model.parts import Parts
from intaglio.model.slices import byte_runs, head_places, places_of
from intaglio.model.tensors import open_checkpoint

LAYER, HEAD, NEURON = 1, 2, 5
JOINT_NORM = {"olmo2"}  # its q and k are normalised over all heads together
NO_NEURONS = {"gpt_oss"}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("families") / request.param
    family(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.fixture(scope="module")
def whole(saved) -> tuple[object, Capture]:
    return seen(saved[1])


def seen(folder: Path) -> tuple[object, Capture]:
    anatomy = anatomy_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    return anatomy, capture(anatomy, ids())


def zeroed(folder: Path, places: list[dict], into: Path) -> Path:
    """A copy of the folder with the bytes of these places zero, and no other byte changed."""
    shutil.copytree(folder, into)
    for row in places:
        with (into / row["file"]).open("r+b") as file:
            for start, stop in byte_runs(row):
                file.seek(start)
                file.write(bytes(stop - start))
    return into


def changed_heads(before: torch.Tensor, after: torch.Tensor) -> set[int]:
    return {h for h in range(before.shape[2]) if not torch.equal(before[:, :, h], after[:, :, h])}


def letter(row: dict) -> str:
    return row["role"].partition(".")[0]


@pytest.mark.parametrize("letters", ["q", "k", "v", "o", "qkvo"])
def test_a_heads_bytes_are_the_heads(saved, whole, letters, tmp_path):
    name, folder = saved
    checkpoint = open_checkpoint(folder)
    places = [r for r in places_of(checkpoint, f"L{LAYER}.attn.H{HEAD}") if letter(r) in letters]
    assert {letter(r) for r in places} == set(letters)
    sizes = Parts(checkpoint).heads(LAYER)
    group = set(range(HEAD // sizes.group * sizes.group, (HEAD // sizes.group + 1) * sizes.group))
    shared = {str(Address("attn", LAYER, head=h)) for h in group - {HEAD}}
    assert all(set(r["shared_with"]) == (shared if letter(r) in "kv" else set()) for r in places)
    anatomy, before = whole
    copy, after = seen(zeroed(folder, places, tmp_path / "zeroed"))
    assert torch.equal(before.layers[LAYER].resid_BTD, after.layers[LAYER].resid_BTD)  # what comes before it is as it was
    changed = changed_heads(before.layers[LAYER].z_BTHd, after.layers[LAYER].z_BTHd)
    if not (name in JOINT_NORM and letters in ("q", "k", "qkvo")):
        assert changed == {"q": {HEAD}, "k": group, "v": group, "o": set(), "qkvo": group}[letters]
    if letters == "v":
        assert not after.layers[LAYER].z_BTHd[:, :, sorted(group)].any()
    if "o" in letters:
        writes = head_writes(copy, after.layers[LAYER], LAYER)
        assert not writes[:, :, HEAD].any()
        if letters == "o":
            old = head_writes(anatomy, before.layers[LAYER], LAYER)
            assert {h for h in range(old.shape[2]) if not torch.equal(old[:, :, h], writes[:, :, h])} == {HEAD}


def test_a_neurons_bytes_are_the_neurons(saved, whole, tmp_path):
    name, folder = saved
    if name in NO_NEURONS:
        with pytest.raises(InputError, match="mixture"):
            places_of(open_checkpoint(folder), f"L{LAYER}.mlp.N{NEURON}")
        return
    places = places_of(open_checkpoint(folder), f"L{LAYER}.mlp.N{NEURON}")
    _, before = whole
    down = [r for r in places if r["role"] == "down"]
    _, without = seen(zeroed(folder, [r for r in places if r["role"] != "down"], tmp_path / "into"))
    old, new = before.layers[LAYER].neurons_BTN, without.layers[LAYER].neurons_BTN
    assert {n for n in range(old.shape[-1]) if not torch.equal(old[..., n], new[..., n])} == {NEURON}
    assert not new[..., NEURON].any()
    one, after = seen(zeroed(folder, down, tmp_path / "out"))
    assert torch.equal(old, after.layers[LAYER].neurons_BTN)
    assert not one.blocks[LAYER].down.weight.select(int("gpt2" != name), NEURON).any()
    torch.testing.assert_close(after.layers[LAYER].mlp_raw_BTD, without.layers[LAYER].mlp_raw_BTD)


def test_every_byte_of_a_model_has_an_address(saved):
    _, folder = saved
    checkpoint = open_checkpoint(folder)
    parts = Parts(checkpoint)
    assert not [n for n, p in parts.of.items() if str(p.address) == "other"]
    whole = {p.address for p in parts.of.values() if p.address.sub != "bias"}  # which its part contains
    rows = [row for address in sorted(whole) for row in places_of(checkpoint, address, parts=parts)]
    assert sum(r["stop"] - r["start"] for r in rows) == sum(e.bytes for e in checkpoint.entries.values())
    attention = [r for r in rows if r["address"] == f"L{LAYER}.attn" and r["role"] in ("q", "k", "v", "o", "qkv", "per_head")]
    heads = [r for r in head_places(checkpoint) if r["address"].startswith(f"L{LAYER}.") and not r["role"].endswith(".bias")]
    held = {span for r in heads for span in byte_runs(r) if r["role"] != "sink"}
    assert sum(stop - start for start, stop in held) == sum(r["stop"] - r["start"] for r in attention)  # they tile it


def test_a_tied_embedding_is_said_to_be_shared(tmp_path):
    model = family("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    (embed,), (unembed,) = places_of(checkpoint, "embed"), places_of(checkpoint, "unembed")
    assert (embed["tensor"], embed["start"]) == (unembed["tensor"], unembed["start"])
    assert (embed["shared_with"], unembed["shared_with"]) == (["unembed"], ["embed"])
