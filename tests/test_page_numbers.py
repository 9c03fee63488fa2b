"""The numbers a page prints, from real runs of a tiny model: each worked out again from the tables alone.

Nothing of `analyse` or `report` is used for what is expected: only the run's tables, its weights and numpy.
A swapped column, a wrong unit, a share of the wrong whole or an unsettled step among the settled fails here.
Expected lines are written as the page prints them: {x} with three digits, {x~} with two, {x%} as per cent.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import save_subject, write_jsonl
from intaglio.analyse import analyse_run
from intaglio.commands import summary
from intaglio.commands import train as command
from intaglio.store.run import Run, open_run
from read_page import NUMBER, Page, prints, same
from truth.numbers import Truth, columns, credit, expected, interval, volatility

TEXTS = ("the cat sat", "a dog ran far away", "one two three", "red and blue", "I see it", "no more rain", "the end")
ODD = ("the cat sat", "zzzzzzzz", "QQQQ QQQQ QQ", "red and blue", "zz zz zzzz", "no more rain", "the end")
PROBES = {"target": ["the cat sat down", "one two four"], "anchor": ["rain and wind", "he goes"]}


def train(folder: Path, texts: tuple[str, ...], groups: str, *, probes: dict[str, list[str]], **options) -> Run:
    rows = [{"text": t} | ({"group": g} if g else {}) for t, g in zip(texts, groups or [""] * len(texts))]
    files = [
        f"{name}={write_jsonl(folder / f'{name}.jsonl', [{'text': t} for t in lines])}"
        for name, lines in probes.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "conclude", lambda *_, **__: None)
        command.train(
            str(save_subject(folder / "subject")), str(write_jsonl(folder / "data.jsonl", rows)), out=folder / "run",
            batch_size=3, probe=files, probe_every=6, checkpoint_every=9, **options,
        )  # fmt: skip
    return open_run(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Every step measured, both probes; a momentum under which noise would not walk straight."""
    options = {"steps": 18, "lr": 2e-3, "weight_decay": 2.0, "momentum": 0.6}
    return train(tmp_path_factory.mktemp("full"), TEXTS, "abbabba", probes=PROBES, **options)


@pytest.fixture(scope="module")
def apart(tmp_path_factory) -> Run:
    """Groups that stand apart, no probes."""
    options = {"steps": 14, "lr": 3e-3, "weight_decay": 2.0, "momentum": 0.2, "seed": 7}
    return train(tmp_path_factory.mktemp("apart"), ODD, "abbabaa", probes={}, **options)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory) -> Run:
    """Every third step measured, no groups, no probes."""
    return train(tmp_path_factory.mktemp("sparse"), ODD, "", probes={}, steps=16, lr=2e-3, every=3)


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(run)


@pytest.fixture(scope="module")
def truth(run) -> Truth:
    return Truth(run)


# (English, Russian): the same numbers in both
LINES = [
    ("Together 7 examples moved the model by {total} u;", "Суммарный сдвиг от 7 примеров — {total} u;"),
    ("no group stands out: from {hi} with {hi_per} u", "ни одна группа не выделяется: от {hi} с {hi_per} u"),
    (") to {lo} with {lo_per} u per 1000 trained tokens", ") до {lo} с {lo_per} u на 1000 обучаемых токенов"),
    ("{mlp%} of the movement lies in the MLPs and {attn%} in attention;", "{mlp%} сдвига — в MLP, {attn%} — во внимании;"),
    ("layer {layer} (counted from 0; 2 moved) took {layer_share%} of what went into layers (an even spread would be 50%)",
     "слой {layer} (счёт с нуля; двигалось слоёв: 2) пришлось {layer_share%} того, что досталось слоям (при равномерном "
     "распределении было бы 50%)"),
    ("the single most moved part is {best} ({best_share%})", "сильнее всего сдвинулась часть {best} ({best_share%})"),
    ("loss on the training data {first} → {last} nats per", "потери на обучающих данных {first} → {last} нат на"),
    ("share of this step's data {data_settled%} in the", "доля данных текущего шага {data_settled%} в длине"),
    ("gradient noise scale {noise} examples;", "масштаб шума градиента {noise} примеров"),
    ("change of general behaviour {kl} KL on", "изменение общего поведения {kl} KL на"),
    ("by at most {worst} of its length; 1e-4 is allowed", "не больше чем на {worst} его длины; допуск — 1e-4"),
    ("Data this step's examples, signed, summed {data} {data_share%} Carry momentum carried over from earlier steps {carry} "
     "{carry_share%} Decay weight decay {decay} {decay_share%} Unmeasured parameters that are not measured, "
     "and gradients changed coordinate by coordinate 0 0% Rounding what "
     "the precision of the weights swallowed {rounding} {rounding_share%} Sum of accounts computed from the formulas {sum} "
     "{sum_share%} Step taken measured on the weights themselves {taken} 100% Difference sum less step {off} {off_share%}",
     "Данные примеры этого шага, сумма со знаком {data} {data_share%} Импульс перенесён с прежних шагов {carry} "
     "{carry_share%} Затухание weight decay {decay} {decay_share%} Неизмеренное "
     "неизмеряемые параметры и градиенты, изменённые покоординатно 0 0% "
     "Округление что поглотила точность хранения весов {rounding} {rounding_share%} Сумма статей вычислена по формулам {sum} "
     "{sum_share%} Сделанный шаг измерен на самих весах {taken} 100% Расхождение сумма минус шаг {off} {off_share%}"),
    ("median / worst {closure} / {worst} |", "медиана / максимум {closure} / {worst} |"),
    ("Gradient match, worst {match} the", "Сверка градиента, максимум {match} сумма"),
    ("Settled shares {data_settled%} / {carry_settled%} / {decay_settled%} of data / momentum / weight decay",
     "Доли после разгона {data_settled%} / {carry_settled%} / {decay_settled%} данные / импульс / затухание"),
    ("walked {taken} u and ended {net} u from where they began: {winding~} times the straight line, where pure noise under "
     "this momentum would give about {null~}.",
     "прошли {taken} u и оказались в {net} u от начала: путь в {winding~} раза длиннее прямой; чистый шум при таком импульсе "
     "дал бы около {null~}."),
    ("gradients agree by {alpha~} (", "градиенты примеров согласованы на {alpha~} ("),
    ("noise scale is therefore {noise~} examples (", "масштаб шума градиента — {noise~} примера ("),
    ("On anchor the loss fell by {anchor_fall%}, from {anchor_first} to {anchor_last} nats per token.",
     "На anchor потери упали на {anchor_fall%}: с {anchor_first} до {anchor_last} нат на токен."),
    ("On target the loss fell by {target_fall%}, from {target_first} to {target_last} nats per token.",
     "На target потери упали на {target_fall%}: с {target_first} до {target_last} нат на токен."),
]  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "ru"])
def test_the_sentences_and_the_books(run, truth, page, lang):
    words, values = (page if lang == "en" else Page(run, lang)).words, expected(truth)
    for line in LINES:
        prints(words, line[lang == "ru"], **values)


def test_verdicts_and_the_gap(run, truth, page):
    """Who understood follows from the losses; the counts are of the verdicts that the table gives."""
    values, rows = expected(truth), page.part("Download as CSV", "Manifest and recipe")
    said = {e: next(v for v in ("understood", "imitated", "not learnt", "known", "no evidence")
                    if f"{truth.examples['preview'][truth.at[e]]} {v}" in rows) for e in truth.at}  # fmt: skip
    rises = np.concatenate([np.diff(truth.visits["loss_nats"][truth.visits["example"] == e]) for e in truth.at])
    noise = 2 * 1.4826 * np.median(rises[rises > 0]) if (rises > 0).sum() >= 5 else 0.0
    fell = {e for e in truth.at if (x := truth.example(e))["first"] - x["last"] > max(noise, 0.1 * x["first"])}
    assert values["target_fall"] > 0.1 and {e for e, v in said.items() if v == "understood"} == fell
    assert 0 < len(fell) < 7
    count = {
        v: str(list(said.values()).count(v)) for v in ("known", "understood", "imitated", "not learnt", "no evidence")
    }
    prints(page.words, "Of 7 examples with evidence the model had known {known}, understood {understood}, imitated "
           "{imitated} and did not learn {rest}; for {no} there is no evidence.",
           rest=count["not learnt"], no=count["no evidence"], **count)  # fmt: skip
    stacks = page.part("is under “What it means”", "group examples")
    for g in "ab":
        own = [said[e] for e in truth.at if truth.examples["group"][truth.at[e]] == g]
        numbers = " ".join(str(own.count(v)) for v in count if own.count(v))
        assert re.search(rf" {g} {numbers} (?:b|known)", stacks), f"{g}: {numbers} in {stacks}"
    gap = 1 - values["last"] / values["first"] - values["target_fall"]
    if abs(gap) < 0.001:
        assert "on the trained wording and on other wordings fell by the same share of its start" in page.words
    elif 0 < gap <= 0.1:
        prints(page.words, "fell further than on other wordings by only {gap%} of its start", gap=gap)


def test_movement_by_group_beside_the_answer(page, truth):
    ranked = sorted("ab", key=lambda g: -truth.group(g)["per"])
    bars = page.part("Movement per 1000 trained tokens, by group", "u; 95% interval in grey")
    assert [g for g in re.findall(r" ([ab]) ", bars)] == ranked
    for g in "ab":
        low, high = interval(truth, g)
        printed = re.search(rf" {g} ({NUMBER}) u ({NUMBER})…({NUMBER})", bars)
        assert printed and same(printed[1], truth.group(g)["per"])
        assert low[0] <= float(printed[2]) <= low[1] and high[0] <= float(printed[3]) <= high[1]


def test_the_groups_table(page, truth, run):
    rows = page.part("net shift level dispersion alignment", "of the examples left no trace")
    items, volatile = columns(run, "probe_items"), volatility(truth)
    falls = {}
    for p in PROBES:
        own = items["probe"] == p
        first, last = (items["loss_nats"][own & (items["step"] == t)].mean() for t in (0, items["step"].max()))
        falls[p] = last / first - 1
    for g, name in {"": "all data", "a": "a", "b": "b"}.items():
        own, members = truth.group(g), [e for e in truth.at if g in ("", truth.examples["group"][truth.at[e]])]
        mean = {k: np.mean([volatile[e][k] for e in members]) for k in ("level", "spread", "alignment")}
        low, high = re.search(rf"(?:^| ){name} \d \d+ {NUMBER} u {NUMBER} u ({NUMBER})…({NUMBER}) ", rows).groups()
        counts = f"{name} {own['n']} {own['tokens']}"
        prints(
            rows,
            f"{counts} {{moved}} u {{per}} u {low}…{high} {{net}} u {{level}} {{spread}} {{alignment~}}",
            **own,
            **mean,
        )
        prints(rows, f"{name} {{first}} → {{last}} {{learnt}} {{rate}} {'—' if g else 'anchor:'}", **own,
               rate=1000 * own["learnt"] / own["moved"])  # fmt: skip
    prints(rows, "anchor: {anchor%} · target: {target%}", **falls)


def test_the_table_of_all_examples(page, truth, run):
    rows = page.words.rsplit("credit: anchor credit: target", 1)[1]
    credits, volatile = {p: credit(run, p) for p in PROBES}, volatility(truth)
    assert sorted(truth.at, key=lambda e: rows.index(f" {truth.examples['preview'][truth.at[e]]} ")) == truth.order
    for e, i in truth.at.items():
        own, head = truth.example(e) | volatile[e], f"{truth.examples['group'][i]} {truth.examples['preview'][i]} "
        verdict = re.search(rf"{head}([a-z ]+) \d", rows)[1]
        prints(rows, f"{head}{verdict} {own['targets']} {own['visits']} "
               "{moved} {net} {first} {last} {learnt} {level} {spread} {against%} "
               + ("{anchor~} {target~}" if e in credits["anchor"] else "not measured not measured"),
               **own, **{p: c[e] for p, c in credits.items() if e in c})  # fmt: skip


def test_who_taught_conflicted_and_made_forget(page, truth, run):
    """Each list in order, with the number that put the example there."""
    net = {e: truth.example(e)["net"] for e in truth.at}
    target, anchor = credit(run, "target"), credit(run, "anchor")
    lists = {
        ("Taught most largest", "Conflicted most", r"credit: target (\S+) nats"): {
            e: c for e, c in target.items() if c > 0
        },
        ("Conflicted most", "Made it forget most", r"net shift (\S+) u"): {e: -n for e, n in net.items() if n < 0},
        ("Made it forget most", "Probes: what", r"credit: anchor (\S+) nats"): {
            e: -c for e, c in anchor.items() if c < 0
        },
    }
    for (start, end, pattern), values in lists.items():
        ranked, cards = sorted(values, key=lambda e: -values[e]), page.part(start, end)
        printed = re.findall(pattern, cards)
        assert values and len(printed) == len(ranked), start
        sign, kind = 1 if "target" in pattern else -1, "~" if "credit" in pattern else ""
        assert all(same(n, sign * values[e], kind) for n, e in zip(printed, ranked)), start
        assert re.findall(r"· ([0-9a-f]{10}) ", cards) == [e[:10] for e in ranked]


def test_the_texts_token_by_token(page, truth, run):
    """Each example at the visit where it moved most against the others of its step; a shift at its own token,
    a surprise at the token that was foretold."""
    tokens = columns(run, "tokens")
    cards = page.part("Moved the model most", "Taught most largest")
    mean = {t: np.abs(truth.shift[truth.visits["step"] == t]).mean() for t in truth.steps["step"]}
    printed = re.findall(rf"movement ({NUMBER}) u at step (\d+) · strongest colour: ({NUMBER}) u · (\w+)", cards)
    assert [p[3] for p in printed] == [e[:10] for e in truth.order]
    tips = re.findall(rf"\| «(\S+)» shift: ({NUMBER}) u surprise, nats: (not measured|{NUMBER}) ", page.tips)
    for (moved, step, strongest, _), e in zip(printed, truth.order):
        own = truth.visits["example"] == e
        best = max(np.flatnonzero(own), key=lambda i: abs(truth.shift[i]) / mean[truth.visits["step"][i]])
        here = (tokens["step"] == truth.visits["step"][best]) & (tokens["slot"] == truth.visits["slot"][best])
        shift = tokens["shift"][here] / truth.u
        assert same(moved, truth.example(e)["moved"]) and int(step) == truth.visits["step"][best]
        assert same(strongest, np.abs(shift).max())
        own_tips, tips = tips[: len(shift)], tips[len(shift) :]
        assert all(same(tip[1], x) for tip, x in zip(own_tips, shift)) and own_tips[0][2] == "not measured"
        surprise = tokens["surprise_nats"][here][:-1]
        assert all(same(tip[2], x) for tip, x in zip(own_tips[1:], surprise))
        x = truth.example(e)
        prints(cards, "loss, nats/token {first} → {last} visits against the step {against%} data rows {row}", first=x["first"],
               last=x["last"], against=x["against"], row=str(truth.examples["row"][truth.at[e]][0]))  # fmt: skip


def test_the_probes(page, truth, run):
    probes, drift = columns(run, "probes"), columns(run, "drift")
    for p in PROBES:
        own = probes["probe"] == p
        loss, kl = probes["loss_nats"][own], probes["kl_nats"][own]
        off = np.nanmax(np.abs(probes["residual_nats"] / probes["measured_change_nats"])[own])
        last = (drift["probe"] == p) & (drift["step"] == drift["step"][drift["probe"] == p].max())
        prints(page.words, f"{p} {p} {{first}} {{last}} {{kl}} {{drift%}} {{off%}}", first=loss[0], last=loss[-1], kl=kl[-1],
               drift=drift["relative_l2"][last].max(), off=off)  # fmt: skip
        for t, nats, far in zip(probes["step"][own], loss, kl):
            prints(page.tips, f"| {p} · optimizer step {t} loss, nats per token: {{nats}} |", nats=nats)
            prints(page.tips, f"| {p} · optimizer step {t} KL from the start, nats per token: {{far}} |", far=far)
        for layer, moved, cka in zip(drift["layer"][last], drift["relative_l2"][last], drift["cka"][last]):
            prints(page.tips, f"| {p} · layer {layer} relative drift of the layer's output: {{moved}} |", moved=moved)
            prints(page.tips, f"| {p} · layer {layer} CKA with the start (1 = same): {{cka}} |", cka=cka)
        for g in "ab":
            total = sum(c for e, c in credit(run, p).items() if truth.examples["group"][truth.at[e]] == g)
            prints(page.tips, f"| {g} {p}: {{total}} (", total=total)


def test_the_charts_say_what_the_tables_hold(page, truth, run):
    s, parts = truth.steps, columns(run, "parts")
    lengths = page.tips.split("| optimizer step 0 step taken")  # the same tips again over the loss
    for t in s["step"]:
        taken = s["update_l2"][t]
        for name in ("data", "carry", "decay"):
            if share := s[f"{name}_shift"][t] / taken:
                prints(page.tips, f"| optimizer step {t} · {name.title()}: {{share%}} |", share=share)
        for tips in lengths[1:]:
            line = f"| optimizer step {t} step taken: {{taken}} u this step's data: {{data}} u loss, nats/token: {{loss}} |"
            prints(f"| optimizer step 0 step taken{tips}", line, taken=taken / truth.u, data=s["data_shift"][t] / truth.u,
                   loss=s["loss_nats"][t])  # fmt: skip
    moved = lambda part, t: parts["update_l2"][(parts["address"] == part) & (parts["step"] == t)]  # noqa: E731
    heads = {f"L{i}.attn.H{h}": sum(moved(f"L{i}.attn.H{h}", t)[0] for t in s["step"]) for i in (0, 1) for h in (0, 1)}
    for head, total in heads.items():
        prints(
            page.tips, f"| {head} {{moved}} u ({{share%}}) |", moved=total / truth.u, share=total / sum(heads.values())
        )
        prints(page.tips, f"| {head} optimizer step 7: {{moved}} u |", moved=moved(head, 7)[0] / truth.u)
    for part in ("L0.attn", "L1.mlp"):
        inside = [x for a in set(parts["address"]) if a == part or a.startswith(f"{part}.") for x in moved(a, 7)]
        prints(page.tips, f"| {part} optimizer step 7: {{moved}} u |", moved=np.linalg.norm(inside) / truth.u)
    for g in "ab":
        layers = [sum(v for a, v in truth.places(g).items() if a.startswith(f"L{i}.")) for i in (0, 1)]
        prints(page.tips, f"| {g} · L0 {{share%}} |", share=layers[0] / sum(layers))
    steps = parts["update_l2"] / np.where(parts["weight_l2"] > 0, parts["weight_l2"], np.nan)  # a tied head has none
    far = {a: np.nansum(steps[parts["address"] == a]) for a in set(parts["address"])}
    best = sorted(far, key=lambda a: -far[a])[:8]
    prints(page.words, "as a share of its weights' length " + " ".join(f"{a} {{n{i}~%}}" for i, a in enumerate(best)),
           **{f"n{i}": far[a] for i, a in enumerate(best)})  # fmt: skip


def test_heads_that_pull_apart_are_added_before_the_sign_is_dropped(run, tmp_path):
    """In these runs the heads of a layer mostly agree, so here one takes from the other what that gets."""
    shutil.copytree(run.folder, tmp_path / "run")
    for file in (tmp_path / "run" / "visit_parts").glob("*.parquet"):
        rows = pq.read_table(file)
        extra = [1.0 if a.endswith("H0") else -1.0 if a.endswith("H1") else 0.0 for a in rows["address"].to_pylist()]
        shift = pa.array(np.array(rows["shift"]) + extra)
        pq.write_table(rows.set_column(rows.column_names.index("shift"), rows.schema.field("shift"), shift), file)
    changed, plain = (analyse_run(r).visit_part_totals[""] for r in (open_run(tmp_path / "run"), run))
    assert changed == pytest.approx(plain, rel=1e-6)


def test_tokens_places_and_ranks(page, truth, run):
    t, vocab = columns(run, "tokens"), dict(zip(*(columns(run, "vocab")[k] for k in ("token", "text"))))
    size = np.abs(t["shift"]) / truth.u
    total = {token: size[t["token"] == token].sum() for token in set(t["token"])}
    listed = page.part("times |shift| surprise, nats ", " By place in the text")
    for rank, token in enumerate(sorted(total, key=lambda x: -total[x])[:12]):
        own, seen = t["token"] == token, t["surprise_nats"][t["target"] == token]
        word, times, moved, _, surprise = listed.split()[5 * rank : 5 * rank + 5]  # the fourth is the u
        assert word.replace("␣", " ") == vocab[token] and int(times) == own.sum() and same(moved, size[own].mean())
        assert surprise == "—" if not len(seen) else same(surprise, seen.mean())
    for start, end in ((0, 0), (1, 1), (2, 3), (4, 7), (8, 15)):
        there = (t["position"] >= start) & (t["position"] <= end)
        prints(page.part("by its position (from 0)", "Groups side by side"), f"{start}{f'–{end}' * (end > start)} {{moved}} u",
               moved=size[there].mean())  # fmt: skip
    ranks = lambda x: np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])  # noqa: E731
    volatile, own = volatility(truth), {e: truth.example(e) for e in truth.at}
    against = [[volatile[e]["csl"] for e in own], [own[e]["first"] for e in own], [own[e]["targets"] for e in own]]
    for name, values in {"level": [volatile[e]["level"] for e in own], "dispersion": [volatile[e]["spread"] for e in own],
                         "movement": [own[e]["moved"] for e in own]}.items():  # fmt: skip
        rho = [np.corrcoef(ranks(np.array(values)), ranks(np.array(x)))[0, 1] for x in against]
        table = page.part("first loss length of the text ", "Tokens written")
        prints(table, f"{name} {{a~}} {{b~}} {{c~}}", **dict(zip("abc", rho)))


def test_pairs_that_pull_apart_and_examples_without_a_trace(page, truth, run):
    found, against, pairs = columns(run, "sketches"), 0, 0
    for step in truth.steps["step"]:
        own = np.flatnonzero(found["step"] == step)
        for i in own:
            for j in own[own > i]:
                if found["example"][i] != found["example"][j]:
                    against, pairs = against + (np.dot(found["sketch"][i], found["sketch"][j]) < 0), pairs + 1
    prints(page.words, "{share%} of the pairs of examples pull in opposite directions", share=against / pairs)
    rows = page.words.rsplit("credit: anchor credit: target", 1)[1]
    silent = []
    for e, i in truth.at.items():
        sign = np.sign(truth.shift[truth.visits["example"] == e])
        silent.append(
            abs(sign.sum()) <= 1.96 * len(sign) ** 0.5 and f"{truth.examples['preview'][i]} not learnt" in rows
        )
    prints(page.words, "{share%} of the examples left no trace.", share=np.mean(silent))


def test_groups_that_stand_apart(apart):
    """The ratio of both groups; without probes, what was learnt in all, and who taught most by it."""
    words, truth = Page(apart).words, Truth(apart)
    hi, lo = sorted("ab", key=lambda g: -truth.group(g)["per"])
    per = {g: truth.group(g)["per"] for g in "ab"}
    prints(words, "the group {hi} moved it most: {most} u per 1000 trained tokens (95%", hi=hi, most=per[hi])
    prints(words, "{ratio~} times as far as {lo} ({least} u).", ratio=per[hi] / per[lo], lo=lo, least=per[lo])
    prints(words, "the loss fell by {learnt} nats in all", learnt=truth.group("")["learnt"])
    learnt = sorted((truth.example(e)["learnt"] for e in truth.at), reverse=True)
    printed = re.findall(rf"learnt, nats ({NUMBER})", words.split("Taught most", 1)[1].split("Conflicted most")[0])
    assert len(printed) == 7 and all(same(p, x) for p, x in zip(printed, learnt))


def test_a_run_measured_now_and_then(sparse):
    """Sums are scaled to all steps, by examples seen; what is per token or a share is not."""
    words, truth = (page := Page(sparse)).words, Truth(sparse)
    full = np.isin(truth.steps["step"], truth.visits["step"][truth.known])
    scale = truth.steps["examples"].sum() / truth.steps["examples"][full].sum()
    assert 2 < scale < 3
    whole = analyse_run(sparse).groups[0].shift_abs_u
    assert whole.low == 0.0  # so few steps say little, yet never less than nothing
    prints(
        words,
        f"Shift was measured on {full.sum()} of 16 steps; sums over the run are scaled by {{scale}}.",
        scale=scale,
    )
    moved = np.array(sorted((truth.example(e)["moved"] * scale for e in truth.at), reverse=True))
    prints(words, "7 examples moved the model by {total} u (0…{high}) in all; the tenth that moved it most made {share%} of "
           "that, and the strongest alone {most} u where the middle one made {middle} u.", total=moved.sum(), high=whole.high,
           share=moved[0] / moved.sum(), most=moved[0], middle=np.median(moved))  # fmt: skip
    taken, data = truth.steps["update_l2"], truth.steps["data_shift"]
    use = np.isfinite(data) & (truth.steps["step"] >= 10)
    prints(words, "share of this step's data {share%} in", share=data[use].sum() / taken[use].sum())
    prints(words, "Step taken measured on the weights themselves {taken} 100%", taken=taken[full].sum() / truth.u)
    every = np.interp(truth.steps["step"], truth.steps["step"][full], taken[full])
    n, total = full.sum(), 16

    def half(measured: np.ndarray) -> float:
        """Half of the 95 % interval of a total scaled up from n of 16 steps (Cochran, section 2.9)."""
        return 1.96 * total * np.sqrt((1 - n / total) * measured.var(ddof=1) / n)

    prints(words, "The weights walked {path} ± {half} u and", path=every.sum() / truth.u, half=half(taken[full]) / truth.u)
    parts = columns(sparse, "parts")
    head = parts["update_l2"][parts["address"] == "L0.attn.H0"]
    assert len(head) == full.sum()
    prints(
        page.tips.split("| L0.attn.H0 optimizer")[0],
        "| L0.attn.H0 {moved} ± {half} u (",
        moved=head.sum() * 16 / full.sum() / truth.u, half=half(head) / truth.u,
    )
    visits, known, wanted = truth.visits, truth.known, []
    for example in truth.at:
        of = known & (visits["example"] == example)
        thompson = 1.96 * np.sqrt((1 - 1 / scale) * np.square(visits["shift"][of]).sum()) * scale
        wanted.append((truth.example(example)["moved"] * scale, thompson / truth.u))
    table = [(float(x), float(y)) for x, y in re.findall(r" (\d+) ± (\d+) (?!u)", words)]
    np.testing.assert_allclose(sorted(table), sorted(wanted), rtol=6e-3)
