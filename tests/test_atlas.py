"""The atlas's contract: every table can be read, empty or not, and a head is named in either form."""

import pytest

from intaglio.address import Address, parse_head
from intaglio.atlas import AtlasData
from intaglio.errors import InputError
from intaglio.tables import ATLAS_TABLES


def test_every_table_keeps_its_contract_when_it_is_empty():
    found = AtlasData({})
    for name, table in ATLAS_TABLES.items():
        assert found.rows_of(name).column_names == [c.name for c in table.columns]
        assert set(table.key) <= {c.name for c in table.columns}
        assert all(c.means for c in table.columns)


def test_rows_come_back_as_they_were_given():
    row = {"address": "L1.attn.H2", "layer": 1, "head": 2, "role": "induction", "roles": ["induction"]}
    found = AtlasData({}, {"heads": [row]})
    assert found.table.to_pylist()[0]["roles"] == ["induction"]
    assert found.table.to_pylist()[0]["score"] is None


def test_an_unknown_table_is_refused():
    with pytest.raises(InputError, match="no such table"):
        AtlasData({}).rows_of("visits")


@pytest.mark.parametrize("text", ["L18.attn.H6", "18.6"])
def test_a_head_has_two_names(text):
    assert parse_head(text) == Address("attn", 18, head=6)


@pytest.mark.parametrize("text", ["L18.attn", "embed", "18", "18.6.1", "", "L1.mlp.N3", "1.-2"])
def test_what_is_no_head_is_refused(text):
    with pytest.raises(InputError):
        parse_head(text)
