// A head's card: everything known about it, one column for each side shown. Built by the script from the page's data, as text.
const Cards = (() => {
  const holder = document.getElementById("heads-data"); if (!holder) return null;
  const { words, roles, sides, choices } = JSON.parse(holder.textContent), lang = document.documentElement.lang;
  const SVG = "http://www.w3.org/2000/svg";
  const missing = "—", known = x => x !== null && x !== undefined;
  const small = x => { const [m, e] = x.toExponential(1).split("e"), power = "10" + String(Number(e)).replace(/[-\d]/g, c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]); return Number(m) === 1 ? power : Number(m).toLocaleString(lang) + "×" + power; };
  const number = (x, digits = 3) => !known(x) ? missing : (x !== 0 && Math.abs(x) < 1e-3 ? small(x) : x.toLocaleString(lang, Math.abs(x) >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: digits })).replace("-", "−");
  const whole = x => !known(x) ? missing : x.toLocaleString(lang);
  const signed = x => !known(x) ? missing : (x > 0 ? "+" : "") + number(x);
  const percent = x => !known(x) ? missing : (100 * x).toLocaleString(lang, { maximumFractionDigits: 0 }) + (lang === "ru" ? "\u00a0%" : "%");
  const add = (to, tag, cls, ...inside) => { const made = document.createElement(tag); if (cls) made.className = cls; made.append(...inside.filter(i => i !== null && i !== undefined)); to.append(made); return made; };
  const make = (tag, cls, ...inside) => add(document.createDocumentFragment(), tag, cls, ...inside);
  const fill = (text, values) => { const out = document.createDocumentFragment(); text.split(/\{(\w+)\}/).forEach((part, i) => { const v = i % 2 ? values[part] : part; out.append(...(Array.isArray(v) ? v : [v === undefined ? "" : v])); }); return out; };
  const token = text => { const made = make("span", "tk", text); if (text && text.length > 18) made.dataset.tip = text; return made; };
  const link = head => { const a = make("a", "head", head); a.href = "#head=" + head; a.dataset.head = head; return a; };
  const links = (heads, most = 12) => { const shown = heads.slice(0, most).flatMap((h, i) => i ? [", ", link(h)] : [link(h)]); if (heads.length > most) shown.push(" … +" + (heads.length - most)); return shown; };
  const name = role => role === "unresolved" ? words.unresolved : roles[role] ? roles[role].name : role;
  const paint = role => roles[role] && roles[role].colour !== null ? "c" + roles[role].colour : role === "unresolved" ? "none" : "c7";
  const chip = role => { const made = make("span", "role " + paint(role), name(role)); if (roles[role]) made.dataset.tip = roles[role].one; return made; };
  const full = (role, detail) => name(role) + (detail ? " (" + detail + ")" : "");
  const draw = (tag, attributes, parent) => { const made = document.createElementNS(SVG, tag); Object.entries(attributes).forEach(([k, v]) => made.setAttribute(k, v)); if (parent) parent.append(made); return made; };
  const title = (to, text, tip) => { const h = add(to, "h4", "", text); if (tip) h.dataset.tip = tip; return h; };
  const facts = (to, rows) => { const list = add(to, "dl", "facts"); rows.forEach(([what, value, small, tip]) => { const one = add(list, "div"); add(one, "dt", "", what); add(one, "dd", "", value, small ? make("small", "", small) : null); if (tip) one.dataset.tip = tip; }); };
  const table = (to, heads, rows) => {
    const made = add(add(to, "div", "scroll"), "table"), head = add(add(made, "thead"), "tr"), body = add(made, "tbody");
    heads.forEach(([text, right]) => add(head, "th", right ? "r" : "", text));
    rows.forEach(([cls, ...cells]) => { const row = add(body, "tr", cls); cells.forEach((c, i) => add(row, "td", heads[i][1] ? "r num" : "", ...(Array.isArray(c) ? c : [c]))); }); return made;
  };
  // score as a dot, its interval as a bar, the null as an upright stroke, on a common scale
  const strip = (score, low, high, nul, yes, range) => {
    const [from, to] = range, svg = draw("svg", { class: "strip", viewBox: "0 0 100 13", preserveAspectRatio: "none", "aria-hidden": "true" }), x = v => 2 + 96 * Math.max(0, Math.min(1, (v - from) / (to - from || 1)));
    draw("line", { x1: 2, x2: 98, y1: 6.5, y2: 6.5, "vector-effect": "non-scaling-stroke" }, svg);
    if (known(nul)) draw("line", { class: "null", x1: x(nul), x2: x(nul), y1: 1, y2: 12, "vector-effect": "non-scaling-stroke" }, svg);
    if (known(low) && known(high)) draw("line", { class: "span", x1: x(low), x2: x(high), y1: 6.5, y2: 6.5, "vector-effect": "non-scaling-stroke" }, svg);
    if (known(score)) draw("ellipse", { class: yes ? "dot yes" : "dot", cx: x(score), cy: 6.5, rx: 1.6, ry: 3.4 }, svg);
    return svg;
  };

  const parts = {
    role(side, head, to) {
      const h = side.heads[head]; if (!h) { add(to, "p", "note", words.absent); return; }
      const [role, all, score, low, high, nul, evidence] = h, own = (side.scores[head] || []).find(s => s[0] === role && s[8]);
      const line = add(to, "p"); line.append(chip(role)); if (all.length > 1) line.append("; ", words.also, " ", ...all.filter(r => r !== role).flatMap((r, i) => i ? [", ", chip(r)] : [chip(r)]));
      add(to, "p", "one", role === "unresolved" ? words.unresolved_means : roles[role] ? roles[role].one : "");
      const asked = sides[0].heads[head] ? sides[0].heads[head][0] : role; if (side !== sides[0] && asked !== role && asked !== "unresolved") { const here = (side.scores[head] || []).filter(s => s[0] === asked).sort((a, b) => b[2] - a[2])[0]; if (here) add(to, "p", "").append(fill(words.here, { role: full(here[0], here[1]), score: make("b", "", number(here[2])), null: number(here[5]) })); }
      if (role !== "unresolved") facts(to, [
        [words.score, number(score), known(low) ? fill(words.interval, { low: number(low), high: number(high) }) : null, words.score_tip], [words.null, number(nul), null, words.null_tip],
        [words.evidence, number(evidence), null, words.evidence_tip], ...(own && known(own[6]) ? [[words.p, own[6] < 1e-4 ? "< " + (0.0001).toLocaleString(lang, { maximumFractionDigits: 4 }) : number(own[6], 2), own[7] ? fill(words.samples, { n: whole(own[7]) }) : null, words.p_tip]] : []),
      ]);
    },
    check(side, head, to) {
      const h = side.heads[head], c = h && h[0] !== "unresolved" ? side.checks[h[0]] : null; if (!h || h[0] === "unresolved") return false;
      title(to, words.check, words.check_tip); if (!c || !known(c.ablated)) { add(to, "p", "note", words.unchecked); return true; }
      add(to, "p").append(fill(c.heads.includes(head) ? words.check_in : words.check_out, { n: whole(c.heads.length), task: c.task, loss: number(c.loss), ablated: make("b", "", number(c.ablated)) }),
        known(c.random) ? fill(words.check_random, { random: number(c.random), low: number(c.random_low), high: number(c.random_high), draws: whole(c.draws) }) : ".");
      add(to, "p", "check").append(!c.verdict ? words.no_random : c.holds === null ? c.verdict : make("b", c.holds ? "ok" : "bad", c.verdict), " ", words.group, " ", ...links(c.heads));
    },
    attention(side, head, to, twins) {
      const texts = Object.keys(side.patterns[head] || {}); if (!texts.length) return false;
      title(to, words.attention, words.attention_tip); let text = twins.length && side.patterns[head][twins[0].text()] ? twins[0].text() : Patterns.telling(side, head), mark = null, place = null;
      if (texts.length > 1) { const choose = add(to, "p"); choose.className = "texts"; texts.forEach(t => { const b = add(choose, "button", "", side.texts[t].slice(0, 8).join("").replace(/‥/g, "").replace(/·/g, " ").trim().slice(0, 22) + " …"); b.type = "button"; b.setAttribute("aria-pressed", t === text); b.dataset.text = t; b.addEventListener("click", () => twins.forEach(twin => twin.turn(t))); }); }
      const box = add(to, "div", "pat"), canvas = add(box, "canvas"), said = add(box, "output"), prose = add(to, "p", "reftext"); canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", words.attention_label.replace("{head}", head)); prose.tabIndex = 0;
      const tokens = () => side.texts[text] || [], pattern = () => Patterns.unpack(side, head, text);
      const say = () => {
        const p = pattern(); if (!mark) return; const k = mark.k === undefined ? p && [...Array(mark.q + 1).keys()].reduce((a, b) => p.at(mark.q, b) > p.at(mark.q, a) ? b : a, 0) : mark.k;
        said.replaceChildren(fill(words.looks, { from: [token(tokens()[mark.q]), " "], to: [token(tokens()[k]), " "], q: whole(mark.q), k: whole(k), share: percent(p.at(mark.q, k)) }));
        [...prose.children].forEach((w, i) => { const a = i <= mark.q ? p.at(mark.q, i) : 0; w.style.setProperty("--a", Math.round(100 * Math.sqrt(a)) + "%"); w.className = "w" + (i === mark.q ? " from" : i > mark.q ? " far" : "") + (a > 0.36 ? " strong" : ""); });
      };
      const paintIt = () => { if (!canvas.isConnected) return false; place = Patterns.draw(canvas, pattern(), tokens(), mark); say(); return true; };
      const start = () => {
        prose.replaceChildren(...tokens().map((t, i) => { const w = make("span", "w", t === "‥" ? "" : t.replace(/^·/, " ")); w.dataset.i = i; return w; })); const best = Patterns.strongest(pattern(), 1)[0]; if (twins[0].text() !== text || to === twins[0].box || !twins[0].mark()) mark = best ? { q: best.q } : null; else mark = { q: twins[0].mark().q }; paintIt();
      };
      // the same text and the same place in every column of the card
      twins.push({ box: to, text: () => text, mark: () => mark, turn(t) { if (!(side.patterns[head] || {})[t]) return; text = t; to.querySelectorAll("[data-text]").forEach(b => b.setAttribute("aria-pressed", b.dataset.text === t)); start(); }, go(m) { if (m.q < tokens().length) { mark = m; paintIt(); } } });
      const go = m => twins.forEach(twin => twin.go(m));
      const at = e => { const r = canvas.getBoundingClientRect(), found = place && place(e.clientX - r.left, e.clientY - r.top); if (found) go(found); };
      canvas.addEventListener("pointermove", at); canvas.addEventListener("click", at);
      const word = e => { const w = e.target.closest && e.target.closest(".w"); if (w) go({ q: Number(w.dataset.i) }); };
      prose.addEventListener("pointerover", word); prose.addEventListener("click", word);
      prose.addEventListener("keydown", e => { const move = { ArrowRight: 1, ArrowLeft: -1 }[e.key]; if (!move) return; e.preventDefault(); go({ q: Math.max(0, Math.min(tokens().length - 1, (mark ? mark.q : 0) + move)) }); });
      add(to, "p", "note", words.attention_reading); Patterns.onTheme(paintIt); queueMicrotask(start);
      const h = side.heads[head]; facts(to, [[words.entropy, number(h[8], 2), words.nats, words.entropy_tip], [words.distance, number(h[9], 2), words.tokens, words.distance_tip], [words.sink, percent(h[10]), null, words.sink_tip]]);
    },
    paths(side, head, to) {
      const h = side.heads[head]; if (!known(h[11]) && !known(h[12])) return false; title(to, words.paths, words.paths_tip);
      facts(to, [[words.template, percent(h[11])], [words.content, percent(h[12])]]); if (h[11] > 0.8 && h[0] !== "unresolved") add(to, "p", "note", words.false_path);
    },
    tested(side, head, to) {
      const rows = side.scores[head]; if (!rows || !rows.length) return false;
      const box = add(to, "details"), inside = box; add(box, "summary", "", fill(words.tested, { n: whole(side.tested[head]), named: whole(rows.filter(r => r[8]).length) }));
      const range = [Math.min(0, ...rows.flatMap(r => [r[2], r[3], r[5]].filter(known))), Math.max(1, ...rows.flatMap(r => [r[2], r[4], r[5]].filter(known)))];
      const sorted = [...rows].sort((a, b) => b[8] - a[8] || (b[2] - b[5]) - (a[2] - a[5]));
      table(inside, [[words.role], [number(range[0], 2) + " … " + number(range[1], 2)], [words.score, 1], [words.null, 1], [words.p, 1]], sorted.map(r => [r[8] ? "yes " + paint(r[0]) : "", full(r[0], r[1]), strip(r[2], r[3], r[4], r[5], r[8], range), number(r[2], 2), number(r[5], 2), known(r[6]) ? number(r[6], 2) : missing]));
      add(inside, "p", "note", words.strip_key);
    },
    reads(side, head, to) {
      const r = side.reads[head]; if (!r) return false; title(to, words.reads, words.reads_tip); const two = add(to, "div", "pairs2");
      [["qk", words.qk], ["ov", words.ov], ["ov_down", words.ov_down]].forEach(([circuit, text]) => { if (!(r[circuit] || []).length) return; const box = add(two, "div"); add(box, "b", "", text); const list = add(box, "ol"); r[circuit].forEach(([source, made, value]) => add(list, "li", "", token(source), "→", token(made), make("span", "v", signed(value)))); });
      add(to, "p", "note", words.reads_note);
    },
    partners(side, head, to) {
      const p = side.partners[head]; if (!p) return false; title(to, words.partners, words.partners_tip); const two = add(to, "div", "pairs2");
      [[p[0], words.listens], [p[1], words.feeds]].forEach(([rows, text]) => { if (!rows.length) return; const box = add(two, "div"); add(box, "b", "", text); const list = add(box, "ol"); rows.forEach(([other, by, score, nul, excess, apart]) => { const one = add(list, "li", "", link(other), (side.heads[other] || ["unresolved"])[0] === "unresolved" ? "" : name(side.heads[other][0]), make("span", "v", fill(words.partner, { side: words["side_" + by] || by, score: number(score, 2), excess: number(excess, 2) }))); one.dataset.tip = words.partner_tip.replace("{null}", number(nul, 2)) + (known(apart) ? " " + words.partner_apart.replace("{apart}", number(apart, 2)) : ""); }); });
    },
    weights(side, head, to) {
      const w = side.weights[head]; if (!w) return false; title(to, words.weights, words.weights_tip);
      facts(to, [[words.ov_copying, signed(w.ov_copying), known(w.ov_copying_null) ? "± " + number(w.ov_copying_null, 2) + " " + words.by_chance : null, words.ov_copying_tip], [words.qk_matching, signed(w.qk_matching), known(w.qk_matching_null) ? "± " + number(w.qk_matching_null, 2) + " " + words.by_chance : null, words.qk_matching_tip],
        [words.ov_rank, number(w.ov_rank), null, words.rank_tip], [words.qk_rank, number(w.qk_rank), null, words.rank_tip], [words.ov_l2, number(w.ov_l2), null, words.l2_tip], [words.qk_l2, number(w.qk_l2), null, words.l2_tip]]);
      if (w.profile.length > 1) { add(to, "p", "note", fill(words.profile, { offset: whole(w.offset) })); spark(to, [w.profile.map((v, i) => [i, v])], words.profile_x); }
    },
    when(side, head, to) {
      const events = side.events[head] || [], lines = side.history[head] || []; if (!events.length && !lines.length) return false; title(to, words.when, words.when_tip);
      events.forEach(([event, role, step, after, low, high, other, received]) => add(to, "p").append(fill(words["event_" + event + (received ? "_from" : "")] || event, { role: chip(role), step: whole(step), after: whole(after), low: whole(low), high: whole(high), other: other ? link(other) : "" })));
      lines.forEach(([role, detail, points]) => { add(to, "p", "note", fill(words.score_by_step, { role: full(role, detail) })); spark(to, [points.map(([s, v]) => [s, v])], words.steps, [0, 1]); });
    },
    teachers(side, head, to) {
      const rows = side.teachers[head]; if (!rows) return false; title(to, words.teachers, words.teachers_tip);
      table(to, [[words.credit, 1], [words.credit_null, 1], [words.movement, 1], [words.example]], rows.map(r => ["", signed(r.credit_nats), number(r.null_low, 2) + " … " + number(r.null_high, 2), number(r.movement), [r.preview, " ", make("small", "", r.group + " · " + r.example.slice(0, 10))]]));
      const told = rows.find(r => r.tokens.length); if (told) { const top = Math.max(...told.tokens.map(t => Math.abs(t[1]))) || 1, line = add(to, "p", "shaded"); told.tokens.forEach(([text, shift]) => { const level = Math.min(5, Math.round(5 * Math.abs(shift) / top)), one = add(line, "span", "tok " + (level ? (shift > 0 ? "p" : "m") + level : ""), text); one.dataset.tip = words.shift + " " + signed(shift); }); add(to, "p", "note", words.shaded); }
    },
    cluster(side, head, to) {
      const h = side.heads[head], c = known(h[7]) ? side.clusters[h[7]] : null; if (!known(h[7])) return false; title(to, words.cluster, words.cluster_tip);
      add(to, "p").append(c ? fill(words.cluster_is, { n: whole(h[7]), name: chip(c[0]), heads: whole(c[1]), stability: number(c[2], 2) }) : fill(words.cluster_bare, { n: whole(h[7]) }));
    },
    choices(side, head, to) {
      const took = side === sides[0] ? choices.filter(c => c.heads[head]) : []; if (!took.length) return false; title(to, words.choices, words.choices_tip); const list = add(to, "ul", "choices");
      took.forEach(c => { const [vote, effect, rank, source] = c.heads[head], one = add(list, "li", "", "«" + c.prompt + "» → ", token(c.target)); if (c.against) one.append(" ", words.rather, " ", token(c.against)); one.append(": ", fill(words.choice, { vote: make("b", "", signed(vote)), rank: whole(rank), parts: whole(c.parts) })); if (source) one.append(words.choice_read, " ", token(source)); if (known(effect)) one.append(fill(words.choice_effect, { effect: signed(effect) })); if (c.page) { const a = add(one, "a", "", words.choice_page); a.href = c.page + "#part=L" + head.replace(".", ".attn.H"); one.insertBefore(document.createTextNode(" "), a); } });
    },
    places(side, head, to) {
      const rows = side.places[head]; if (!rows) return false; const box = add(to, "details"); add(box, "summary", "", words.places);
      table(box, [[words.tensor], [words.slice], [words.bytes]], rows.map(([role, tensor, file, dtype, shape, rows_, columns, start, stop, run, runs, shared]) => ["", [make("b", "", role), " ", make("code", "", tensor), make("small", "", " " + file + " · " + dtype + " " + (shape || []).join("×"))], [rows_ && rows_.length ? words.rows + " " + rows_.join("–") : "", columns && columns.length ? " " + words.columns + " " + columns.join("–") : ""].filter(Boolean).join("") || words.all,
        [runs > 1 ? fill(words.strided, { start: whole(start), stop: whole(stop), runs: whole(runs), run: whole(run) }) : whole(start) + "–" + whole(stop), ...(shared && shared.length ? [make("small", "", " " + words.shared + " "), ...links(shared)] : [])]]));
      add(box, "p", "note", words.places_note);
    },
  };
  const spark = (to, lines, x_name, range) => {
    const W = 420, H = 64, all = lines.flat(), xs = all.map(p => p[0]), ys = all.map(p => p[1]), x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = range ? range[0] : Math.min(0, ...ys), y1 = range ? Math.max(range[1], ...ys) : Math.max(...ys), svg = draw("svg", { class: "spark", viewBox: "0 0 " + W + " " + H });
    const X = v => 30 + (W - 40) * (v - x0) / (x1 - x0 || 1), Y = v => 4 + (H - 22) * (y1 - v) / (y1 - y0 || 1);
    draw("line", { class: "zero", x1: 30, x2: W - 10, y1: Y(0), y2: Y(0) }, svg); lines.forEach((points, i) => draw("polyline", { class: i ? "b" : "", points: points.map(([x, y]) => X(x).toFixed(1) + "," + Y(y).toFixed(1)).join(" ") }, svg));
    [[2, Y(y1) + 8, number(y1, 2)], [2, Y(y0) + 2, number(y0, 2)], [30, H - 4, number(x0)]].forEach(([x, y, text]) => { draw("text", { x, y }, svg).textContent = text; }); const end = draw("text", { x: W - 10, y: H - 4, "text-anchor": "end" }, svg); end.textContent = x_name + " " + number(x1); to.append(svg);
  };
  const ORDER = ["role", "check", "attention", "paths", "tested", "reads", "partners", "weights", "cluster", "when", "teachers", "choices", "places"];

  // shown: indices of the sides; tools: buttons of the bar
  const build = (head, shown, tools) => {
    const card = make("article", "hcard"), first = sides[shown[0]].heads[head], bar = add(card, "div", "cardbar"); card.dataset.card = head; card.setAttribute("aria-label", words.head + " " + head);
    if (first && first[0] !== "unresolved") card.classList.add(paint(first[0]));
    add(bar, "h3", "", words.head + " " + head, make("code", "", "L" + head.replace(".", ".attn.H"))); tools.forEach(([text, act, pressed]) => { const b = add(bar, "button", "", text); b.type = "button"; if (pressed !== undefined) b.setAttribute("aria-pressed", pressed); b.addEventListener("click", act); });
    if (shown.length > 1) { const names = add(card, "div", "cols2"); shown.forEach((s, i) => add(names, "div", "sidename " + (i ? "b" : "a"), make("i", "run-" + (i ? "b" : "a"), i ? "B" : "A"), " " + sides[s].name)); }
    const twins = [];
    ORDER.forEach(part => {
      const row = shown.length > 1 ? make("div", "cols2") : card; let any = false;
      shown.forEach(s => { const side = sides[s], to = shown.length > 1 ? add(row, "div") : card; if (!side.heads[head]) { if (part === "role") { add(to, "p", "note", words.absent); any = true; } return; } if (parts[part](side, head, to, twins) !== false) any = true; });
      if (shown.length > 1 && any) card.append(row);
    });
    return card;
  };
  const peek = (to, side, head) => {
    to.replaceChildren(); const h = side.heads[head]; if (!h) return; add(to, "b", "", words.head + " " + head); const line = add(to, "p"); line.append(chip(h[0]));
    if (h[0] !== "unresolved") line.append(" ", number(h[2], 2), " · " + words.null + " " + number(h[5], 2));
    const text = Patterns.telling(side, head); if (text === undefined) return; const pattern = Patterns.unpack(side, head, text), canvas = add(to, "canvas"); Patterns.thumb(canvas, pattern, 240 * (devicePixelRatio || 1));
    Patterns.strongest(pattern, 3).forEach(a => add(to, "p", "", token(side.texts[text][a.q]), " → ", token(side.texts[text][a.k]), " " + percent(a.v))); add(to, "p", "note", words.peek);
  };
  return { build, peek, sides, words };
})();
