"""Addresses: parse and print are inverse, order follows the data's flow, contains is a partial order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.address import Address, parse
from intaglio.errors import InputError

number = st.integers(0, 10**6)
WHOLE = ("embed", "embed.pos", "embed.norm", "norm", "unembed", "unembed.bias", "other")
addresses = st.one_of(
    st.builds(Address, st.sampled_from(WHOLE)),
    st.builds(Address, st.sampled_from(["attn", "mlp", "norm"]), number),
    st.builds(lambda l, h: Address("attn", l, head=h), number, number),
    st.builds(lambda l, n: Address("mlp", l, neuron=n), number, number),
    st.builds(lambda p, l, s: Address(p, l, sub=s), st.sampled_from(["attn", "mlp", "norm"]), number,
              st.sampled_from(["bias", "attn", "mlp", "q", "k", "attn_post", "mlp_post"])),
)  # fmt: skip


@given(addresses)
def test_parse_and_print_are_inverse(address):
    assert parse(str(address)) == address
    assert hash(parse(str(address))) == hash(address)


@given(addresses, addresses, addresses)
def test_order_is_total_and_agrees_with_equality(a, b, c):
    assert (a < b) + (b < a) + (a == b) == 1
    assert not (a < b and b < c) or a < c


@given(addresses, addresses, addresses)
def test_contains_is_a_partial_order(a, b, c):
    assert a.contains(a)
    assert not (a.contains(b) and b.contains(a)) or a == b
    assert not (a.contains(b) and b.contains(c)) or a.contains(c)


def test_order_is_that_of_the_data_and_numbers_count():
    ordered = ["embed", "embed.pos", "L0.norm.attn", "L0.attn", "L0.attn.H2", "L0.attn.H10", "L0.mlp", "L2.attn",
               "L10.attn", "norm", "unembed", "unembed.bias", "other"]  # fmt: skip
    assert [str(a) for a in sorted(map(parse, reversed(ordered)))] == ordered


@pytest.mark.parametrize("inside, outside", [
    ("L3.attn.H5", "L3.attn"), ("L3.attn.bias", "L3.attn"), ("L3.mlp.N120", "L3.mlp"), ("L3.norm.q", "L3.norm"),
])  # fmt: skip
def test_a_part_lies_within_its_whole_and_not_the_other_way(inside, outside):
    assert parse(outside).contains(parse(inside))
    assert not parse(inside).contains(parse(outside))
    assert not parse(outside.replace("3", "4")).contains(parse(inside))


@pytest.mark.parametrize("text", [
    "", "L3", "l3.attn", "L3.attn.", "L3.attn.H", "L3.attn.H-1", "L3.mlp.H1", "L3.attn.N1", "L3.ffn", "embed.H1",
    "L3.attn.H5.extra", " embed", "embed\n", "L3.norm.H1", "L٣.attn",
])  # fmt: skip
def test_what_names_no_part_is_refused_in_one_line(text):
    with pytest.raises(InputError) as caught:
        parse(text)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
