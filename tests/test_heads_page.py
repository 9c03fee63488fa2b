"""The page of the heads: whole with any tables, escaped, small enough, the same in both languages; driven in a browser."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from atlases import atlas
from intaglio.analyse.heads.choices import choice_of, paired
from intaglio.atlas import ROLES, UNRESOLVED, AtlasData
from intaglio.errors import InputError
from intaglio.report.heads import heads_catalogue, render_heads
from intaglio.report.heads.axes import round_values
from intaglio.report.heads.letters import letters
from intaglio.report.heads.words import FAMILY, HeadWords
from intaglio.tables import ATLAS_TABLES

ASSETS = Path(str(resources.files("intaglio.report"))) / "assets"
DRIVE = "<script>" + (Path(__file__).parent / "drive_heads.js").read_text(encoding="utf-8") + "</script>"
SUBSETS = [
    set(),
    {"heads"},
    {"heads", "scores"},
    {"scores"},
    {"history"},
    {"events"},
    {"losses"},
    {"weights", "scores"},
    {"composition"},
    {"clusters"},
    {"levels"},
    {"patterns"},
    {"places"},
    {"teachers"},
    {"teachers", "teacher_tokens"},
    {"checks"},
    {"reads"},
    {"history", "losses", "events", "teachers"},
    {"heads", "scores", "checks", "weights", "composition"},
]


class Read(HTMLParser):
    """Tags, their attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, str] = {}
        self.words: list[str] = []
        self._in = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = dict(attrs).get("id") or tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in:
            self.data[self._in] = self.data.get(self._in, "") + data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.mark.parametrize("tables", SUBSETS, ids=lambda s: "+".join(sorted(s)) or "none")
def test_any_subset_of_tables_makes_a_page(tables):
    found = atlas(3, 4, tables=tables)
    for lang in ("en", "ru"):
        read = Read(render_heads(found, lang=lang))
        sections = {a["id"] for tag, a in read.tags if tag == "section"}
        assert {"answer", "limits", "wall"} <= sections
        assert not re.search(r"(?<!_){\w+}|None|nan\b", read.text)  # nothing left unfilled
        for name in ("clusters", "levels", "teachers"):
            assert (name in sections) == (name in tables)


def test_nothing_at_all_is_said_in_words():
    text = Read(render_heads(AtlasData({}))).text
    assert "holds no tables" in text
    with pytest.raises(InputError, match="language"):
        render_heads(AtlasData({}), lang="de")


def test_a_page_of_30_by_9_heads_is_small_and_needs_no_network():
    for sides in (0, 1):
        page = render_heads(atlas(beside=sides), lang="ru")
        assert len(page.encode()) < (2_500_000 if sides == 0 else 5_000_000)
        read = Read(page)
        assert not [a for tag, a in read.tags for k in ("src", "href") if re.match(r"(https?:)?//", a.get(k) or "")]
        assert "url(" not in read.data["style"] and "@import" not in read.data["style"]


def test_everything_is_escaped():
    mean = "</script><img src=x onerror=alert(1)>\"'&"
    found = atlas(2, 3, beside=1)
    found.about |= {"subject": mean, "skipped": {"retrieval": mean}, "fingerprint": mean}
    found.about["choices"] = [
        {
            "prompt": mean,
            "target": mean,
            "against": mean,
            "parts": 3,
            "page": "a.html",
            "heads": {"0.0": [1.0, None, 1, mean]},
        }
    ]
    for rows in found.rows.values():
        for row in rows:
            for column, value in row.items():
                if isinstance(value, str) and column in (
                    "source",
                    "token",
                    "task",
                    "detail",
                    "preview",
                    "group",
                    "example",
                    "tensor",
                    "file",
                    "dtype",
                ):
                    row[column] = mean
    for row in found.rows["clusters"]:
        row |= {"name": mean, "features": json.dumps({mean: 1.0})}
    read = Read(render_heads(found))
    assert not [tag for tag, _ in read.tags if tag == "img"] and not [
        a for _, a in read.tags if any(k.startswith("on") for k in a)
    ]
    assert json.loads(read.data["heads-data"])["choices"][0]["target"] == mean.replace(
        " ", "·"
    )  # whole, but ends no script
    assert mean in read.text


def test_both_languages_say_the_same_things_and_every_role_is_explained():
    catalogue = heads_catalogue()
    plural = re.compile(r"(\.count\.\w+)\.\w+$")
    keys = {lang: {plural.sub(r"\1", k) for k in texts} for lang, texts in catalogue.items()}
    assert keys["en"] == keys["ru"]
    names = lambda text: set(re.findall(r"{(\w+)}", text))  # noqa: E731
    for key, text in catalogue["en"].items():
        if not plural.search(key):
            assert names(text) == names(catalogue["ru"][key]), key
    for lang, texts in catalogue.items():
        codes = [texts[f"roles.{role}.code"] for role in ROLES]
        assert len(set(codes)) == len(ROLES) and max(map(len, codes)) <= 5, lang
        for role in (*ROLES, UNRESOLVED):
            for what in ("name", "one", "formula", "null", "limits", "source"):
                assert texts[f"roles.{role}.{what}"], (lang, role, what)
        russian = re.compile("[а-яё]", re.I)
        for key, text in texts.items():
            if key.startswith(("page.", "card.")) and not key.startswith("page.said."):
                assert bool(russian.search(text)) == (lang == "ru") or len(re.sub(r"{\w+}", "", text)) < 24, key
    assert set(FAMILY) == set(ROLES)


def test_no_word_is_missing_or_unused():
    script = "".join((ASSETS / "heads" / f"{name}.js").read_text(encoding="utf-8") for name in ("card", "wall"))
    used = set(re.findall(r"words\.(\w+)", script)) | {
        "side_q",
        "side_k",
        "side_v",
        "event_birth",
        "event_death",
        "event_handover",
        "event_handover_from",
    }
    told = {k.removeprefix("card.") for k in heads_catalogue()["en"] if k.startswith("card.")}
    assert used == told
    folder = ASSETS.parent / "heads"
    source = (ASSETS / "heads.html.jinja").read_text(encoding="utf-8") + "".join(
        p.read_text(encoding="utf-8") for p in folder.glob("*.py")
    )
    built = (
        "page.said.",
        "page.part.",
        "page.count.",
        "page.sizes.",
        "page.nav.",
        "page.answer.",
        "page.limits.",
        "page.feature.",
        "page.history.task_",
        "page.history.",
        "page.levels.",
        "page.weights.side_",
        "page.roles.",
    )
    for key in (k for k in heads_catalogue()["en"] if k.startswith("page.")):
        assert f'"{key}"' in source or f"'{key}'" in source or key.startswith(built), key
    for key in re.findall(r"""\bt\(["'](page\.[\w.]+)["'][,)]""", source):
        assert key in heads_catalogue()["en"], key


def test_the_answer_counts_what_the_table_says():
    found = atlas()
    named = [r for r in found.rows["heads"] if r["role"] != UNRESOLVED]
    text = Read(render_heads(found)).text
    resting = sum(r["role"] == "first_token" for r in named)
    counts = f"{len(named) - resting} of 270 heads have a role of their own beyond its null; {resting} more only rest"
    assert counts in text and re.search(rf"token; {270 - len(named)} \(\d+%\) stay unresolved", text)
    held_by = [r for r in found.rows["scores"] if r["role"] == "induction" and r["named"]]
    best = max(held_by, key=lambda r: (r["score"] - r["null"]) / (1 - r["null"]))
    short = best["address"].removeprefix("L").replace(".attn.H", ".")
    n = sum(r["role"] == "induction" and r["named"] for r in found.rows["scores"])
    assert f"induction {n} : {short} ({best['score']:.2g})" in text
    held = [r for r in found.rows["checks"] if r["holds"]]
    assert f"Of {len(found.rows['checks'])} such checks, {len(held)} hold" in text


def test_the_wall_shows_each_head_once_with_its_role_and_unresolved_heads_empty():
    found = atlas(5, 4, seed=2)
    cells = {
        a["data-head"]: a
        for tag, a in Read(render_heads(found)).tags
        if "cell" in (a.get("class") or "").split() and "data-head" in a
    }
    assert len(cells) == 20
    for row in found.rows["heads"]:
        cell = cells[f"{row['layer']}.{row['head']}"]
        assert cell["data-role"] == row["role"] and (("none" in cell["class"].split()) == (row["role"] == UNRESOLVED))


def test_heads_are_known_from_scores_or_history_where_their_table_is_missing():
    whole = atlas(4, 4)
    for tables in ({"scores"}, {"heads", "scores"}):
        some = atlas(4, 4, tables=tables)
        data = json.loads(Read(render_heads(some)).data["heads-data"])["sides"][0]["heads"]
        assert {h: v[0] for h, v in data.items()} == {
            f"{r['layer']}.{r['head']}": r["role"] for r in whole.rows["heads"]
        }
    last = max(r["step"] for r in whole.rows["history"])
    now = {r["address"] for r in whole.rows["history"] if r["step"] == last and r["named"]}
    data = json.loads(Read(render_heads(atlas(4, 4, tables={"history"}))).data["heads-data"])["sides"][0]["heads"]
    assert {f"L{h.replace('.', '.attn.H')}" for h, v in data.items() if v[0] != UNRESOLVED} == now


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 0.03), (-0.2, 8.4), (0, 12345), (-3.0, -1.0)])
def test_an_axis_has_a_few_round_ticks_within(low, high):
    ticks = round_values(low, high)
    assert 3 <= len(ticks) <= 8 and low - 1e-9 <= ticks[0] and ticks[-1] <= high + 1e-9
    step = ticks[1] - ticks[0]
    assert all(b - a == pytest.approx(step) for a, b in itertools.pairwise(ticks)) and f"{step:.0e}"[0] in "125"


# --- decisions ---------------------------------------------------------------------------------------------------------


def trace(**changes) -> dict:
    votes = [
        {
            "address": "L1.attn.H2",
            "source": 0,
            "token": "a",
            "vote_logits": 0.5,
            "part_logits": 2.0,
            "effect_logits": 1.0,
        },
        {
            "address": "L1.attn.H2",
            "source": 1,
            "token": "b",
            "vote_logits": 1.5,
            "part_logits": 2.0,
            "effect_logits": 1.0,
        },
        {
            "address": "L0.mlp",
            "source": None,
            "token": None,
            "vote_logits": -3.0,
            "part_logits": -3.0,
            "effect_logits": None,
        },
    ]
    return {
        "prompt": "x" * 200,
        "target": {"text": " y"},
        "against": None,
        "layers": 2,
        "heads": 3,
        "difference_logits": -1.0,
        "tables": {"votes": votes},
        "lenses": {},
    } | changes


def test_a_decision_tells_each_heads_vote_place_and_source():
    found = choice_of(trace(), layers=2, heads=3, page="why.html")
    assert found["heads"] == {"1.2": [2.0, 1.0, 2, "b"]} and found["parts"] == 2 and found["page"] == "why.html"
    assert found["target"] == " y" and found["against"] is None and len(found["prompt"]) == 161
    page = render_heads(AtlasData({"choices": [found], "n_layers": 2, "n_heads": 3}))
    assert json.loads(Read(page).data["heads-data"])["choices"][0]["heads"]["1.2"] == [2.0, 1.0, 2, "b"]


@pytest.mark.parametrize(
    "given", [[], {}, {"tables": []}, trace(layers=3), trace(heads=9), trace(tables={}), trace(target=None)]
)
def test_what_is_no_decision_of_this_model_is_refused(given):
    with pytest.raises(InputError, match="why"):
        choice_of(given, layers=2, heads=3, name="why.json")


def test_pages_stand_behind_their_traces():
    assert paired(["a.json", "a.html", "b.json"]) == [("a.json", "a.html"), ("b.json", None)]
    for wrong in (["a.html"], ["a.json", "a.html", "b.html"]):
        with pytest.raises(InputError, match="behind no trace"):
            paired(wrong)


def test_every_table_of_the_contract_reaches_the_page():
    """A table that is emptied changes the page."""
    whole = render_heads(atlas(4, 4))
    for name in ATLAS_TABLES:
        less = atlas(4, 4)
        assert less.rows.pop(name), name
        assert render_heads(less) != whole, name


@pytest.mark.parametrize(
    ("tokens", "read"),
    [
        (["<D0>", "<97>им", "а"], ["З", "им", "а"]),
        (["<D0><97>", "а"], ["З", "а"]),
        ([" <E2>", "<82>", "<AC>", "!"], [" €", "‥", "‥", "!"]),
        (["<C2>", "otti"], ["<C2>", "otti"]),
        (["<D0>", "<D0>", "<B0>"], ["<D0>", "а", "‥"]),
        (["<E0>", "<80>", "<80>"], ["<E0>", "<80>", "<80>"]),
        (["<|im_start|>", "<s>", "<B0>", "<F5>"], ["<|im_start|>", "<s>", "<B0>", "<F5>"]),
        ([], []),
    ],
)
def test_bytes_of_a_letter_are_put_together_where_it_begins(tokens, read):
    assert letters(tokens) == read


def test_what_measuring_said_is_told_in_the_pages_language():
    english, russian = HeadWords("en"), HeadWords("ru")
    said = "no head above the first layer moves names by 0.1 or more, so none can be turned away"
    assert str(english.said(said)) == said and "0,1" in russian.said(said) and "names" not in russian.said(said)
    assert english.said("<b> 3") == russian.said("<b> 3") == "&lt;b&gt; 3"


def test_of_many_relations_a_card_tells_the_named_and_the_best_of_the_rest():
    def row(role: str, detail: str, score: float, named: bool = False) -> dict:
        return {"address": "L0.attn.H0", "role": role, "detail": detail, "score": score, "null": 0.1, "named": named}

    rows = [row("syntax", "a", 0.3, True), row("syntax", "b", 0.5, True), row("syntax", "c", 0.9)]
    rows += [row("temporal", "en", 0.2), row("temporal", "ru", 0.4)]
    side = json.loads(Read(render_heads(AtlasData({}, {"scores": rows}))).data["heads-data"])["sides"][0]
    assert [s[:3] for s in side["scores"]["0.0"]] == [
        ["syntax", "a", 0.3],
        ["syntax", "b", 0.5],
        ["temporal", "ru", 0.4],
    ]
    assert side["tested"] == {"0.0": 5}


def test_patterns_without_their_text_are_left_out():
    found = atlas(2, 2)
    found.about["texts"] = []
    side = json.loads(Read(render_heads(found)).data["heads-data"])["sides"][0]
    assert set(map(str, side["patterns"].values())) == {"{}"}


def test_a_check_on_ordinary_text_is_no_evidence_against_a_role():
    plain = "ordinary text (no loss is known that this role alone should carry)"
    losses = {"loss_nats": 3.0, "ablated_nats": 3.0, "random_nats": 3.1, "random_low": 3.0, "random_high": 3.2}
    check = {"role": "self", "heads": ["L0.attn.H0"], "task": plain, "draws": 5, "holds": False, **losses}
    other = check | {"role": "induction", "task": "second copy"}
    found = AtlasData({"n_layers": 1, "n_heads": 2}, {"checks": [check, other]})
    text = Read(render_heads(found)).text
    assert text.count("no evidence against the role") == 1 and text.count("The check does not hold") == 1
    assert "Of 1 such check, 0 hold" in text
