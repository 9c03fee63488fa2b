// Any part opens in place: a layer, a head, an MLP, a neuron; beside it the same part of the other side, if one is chosen.
(() => {
  const holder = document.getElementById("parts"); if (!holder) return;
  const { words, sides, metric } = JSON.parse(holder.textContent), lang = document.documentElement.lang;
  const { state, keep } = Kept;
  const number = x => x.toLocaleString(lang, Math.abs(x) >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 }).replace("-", "−");
  const signed = x => x === null || x === undefined ? words.unmeasured : (x > 0 ? "+" : "") + number(x);
  const percent = x => (100 * x).toLocaleString(lang, { maximumSignificantDigits: 2 }) + (lang === "ru" ? "\u00a0%" : "%");
  const add = (to, tag, cls, ...inside) => { const made = document.createElement(tag); if (cls) made.className = cls; made.append(...inside); to.append(made); return made; };
  const token = (side, i) => { const made = document.createElement("span"); made.className = "tk"; made.textContent = side.tokens[i] || "‥"; return made; };
  const chip = address => { const made = document.createElement("code"); made.className = "addr"; made.textContent = address; return offer(made); };
  const parse = a => { const m = /^L(\d+)(?:\.(?:(attn)\.H(\d+)|(mlp)(?:\.N(\d+))?))?$/.exec(a); return m && { layer: +m[1], head: m[3], mlp: m[4], neuron: m[5] }; };
  const neuron = (side, p) => (side.neurons[p.layer] || []).find(n => n[0] === +p.neuron);
  const known = a => { const p = parse(a); if (!p) return false; return p.neuron ? sides.some(s => neuron(s, p)) : p.head || p.mlp ? sides.some(s => a in s.parts) : sides.some(s => Object.keys(s.parts).some(n => n.startsWith(a + "."))); };
  const offer = el => { if (known(el.textContent)) { el.classList.add("opens"); el.tabIndex = 0; el.setAttribute("role", "button"); el.dataset.part = el.textContent; } return el; };

  const table = (to, heads, rows) => {
    const made = add(add(to, "div", "scroll"), "table"), head = add(add(made, "thead"), "tr"), body = add(made, "tbody");
    heads.forEach(([text, right]) => add(head, "th", right ? "r" : "", text));
    rows.forEach(cells => { const row = add(body, "tr"); cells.forEach((c, i) => add(row, "td", heads[i][1] ? "r num" : "", ...(Array.isArray(c) ? c : [c]))); });
  };
  const facts = (to, pairs) => { const list = add(to, "dl", "facts"); pairs.forEach(([name, ...value]) => { const one = add(list, "div"); add(one, "dt", "", name); add(one, "dd", "", ...value); }); };
  const bars = (to, rows) => {
    const box = add(to, "div", "bars"), top = Math.max(...rows.map(r => Math.abs(r[1])), 1e-12);
    rows.forEach(([name, value, more]) => {
      const lane = add(box, "div", "lane2"), bar = document.createElement("i"); bar.className = value > 0 ? "strong" : "strong anti"; bar.style.width = 100 * Math.abs(value) / top + "%";
      lane.append(name); add(lane, "span", "track", bar); add(lane, "span", "", signed(value) + (more ? " · " + more : ""));
    });
  };
  const booked = (side, a, to) => (side.booked[a] || []).forEach(b => {
    add(to, "h4", "", words.booked.replace("{how}", words[b.how]).replace("{effect}", signed(b.effect)));
    facts(to, ["own", "others", "norm", "shape"].filter(n => n !== "shape" || b.shape).map(n => [words[n], signed(b[n])]));
    if (b.changed.length) { const line = add(to, "p", "note", words.changed + " "); b.changed.forEach(([part, change], i) => line.append(i ? ", " : "", chip(part), " " + signed(-change))); }
  });
  const weighed = (side, a, to) => {
    const [vote, effect, own] = side.parts[a];
    facts(to, [[words.vote, signed(vote)], [words.effect, signed(effect)], ...(metric && own !== null ? [[metric, signed(own)]] : [])]); return vote;
  };
  const show = {
    layer(side, a, p, to, source) {
      const heads = Object.keys(side.parts).filter(n => n.startsWith(a + ".attn.H")), of = h => source === undefined ? side.parts[h][0] : ((side.reads[h] || []).find(r => r[0] === source) || [0, 0])[1];
      const rows = heads.map(h => [h, of(h)]).sort((x, y) => Math.abs(y[1]) - Math.abs(x[1]));
      const head = source === undefined ? [words.vote] : [document.createTextNode(words.from_token + " "), token(side, source)];
      table(to, [[words.part], [words.vote, 1], [words.effect, 1], [words.read]], [...rows.map(([h, v]) => [chip(h), signed(side.parts[h][0]), signed(side.parts[h][1]),
        (side.reads[h] || []).slice(0, 3).flatMap(r => [token(side, r[0]), " " + signed(r[1]) + "  "])]),
        ...(a + ".mlp" in side.parts ? [[chip(a + ".mlp"), ...side.parts[a + ".mlp"].slice(0, 2).map(signed), ""]] : [])]);
      if (source !== undefined) { const note = add(to, "p", "note"); note.append(...head, ": ", ...rows.slice(0, 6).flatMap(([h, v], i) => [i ? ", " : "", chip(h), " " + signed(v)])); }
    },
    head(side, a, p, to) {
      const vote = weighed(side, a, to); if (side.page) { const link = add(add(to, "p", "note"), "a", "", words.atlas); link.href = side.page + "#head=" + p.layer + "." + p.head; }
      add(to, "h4", "", words.read);
      const reads = side.reads[a] || []; bars(to, reads.map(r => [token(side, r[0]), r[1], words.attention + " " + percent(r[2])]));
      const rest = vote - reads.reduce((sum, r) => sum + r[1], 0); if (side.tokens.length > reads.length) add(to, "p", "note", words.others_read + " " + signed(rest));
      booked(side, a, to);
      const up = side.upstream[a]; if (!up) { add(to, "p", "note", words.no_upstream); return; }
      const line = add(to, "h4"); line.append(words.looked + " ", token(side, up.key)); add(to, "p", "note", words.score.replace("{score}", signed(up.score)).replace("{share}", percent(up.attention)));
      const two = add(to, "div", "two"); ["query", "key"].forEach(name => { const one = add(two, "div"); add(one, "b", "", words[name]);
        up.by[name].forEach(([part, share, from]) => { const row = add(one, "div", "by"); row.append(part === "bias" ? words.bias : chip(part), " " + signed(share)); if (from !== null) row.append(" " + words.by + " ", token(side, from)); }); });
    },
    mlp(side, a, p, to) {
      weighed(side, a, to); booked(side, a, to);
      const own = side.neurons[p.layer] || []; if (!own.length) { add(to, "p", "note", words.no_neurons); return; }
      add(to, "h4", "", words.neurons); table(to, [[words.neuron], [words.activation, 1], [words.vote, 1]], own.map(n => [chip(a + ".N" + n[0]), number(n[1]), signed(n[2])]));
    },
    neuron(side, a, p, to) {
      const found = neuron(side, p), whole = side.parts["L" + p.layer + ".mlp"]; if (!found) { add(to, "p", "note", words.no_neurons); return; }
      facts(to, [[words.activation, number(found[1])], [words.vote, signed(found[2])], [words.of_mlp, signed(whole && whole[0])]]);
    },
  };
  const kind = p => p.neuron ? "neuron" : p.mlp ? "mlp" : p.head ? "head" : "layer";

  const chosen = () => sides.length > 1 ? ["left", "side"].map((name, i) => sides[Math.min(sides.length - 1, Number(state.get(name) || i))] || sides[i]) : sides;
  let card = null, wrap = null;
  const close = () => { if (wrap) wrap.remove(); wrap = card = null; state.delete("part"); keep(); document.querySelectorAll(".chosenpart").forEach(e => e.classList.remove("chosenpart")); };
  const open = (address, near, source) => {
    const p = parse(address); if (!p) return;
    if (!card || !card.contains(near)) {
      close(); card = document.createElement("aside"); card.className = "card"; card.setAttribute("role", "region"); card.setAttribute("aria-label", address);
      const row = near.closest("tr"), list = near.closest("li, dd");
      if (row) { wrap = document.createElement("tr"); wrap.className = "cardrow"; const cell = add(wrap, "td"); cell.colSpan = row.cells.length; cell.append(card); row.after(wrap); }
      else { wrap = card; if (list) list.append(card); else (near.closest(".chart, p") || near).after(card); }
    }
    card.replaceChildren(); const bar = add(card, "div", "cardbar"), name = add(bar, "h3");
    name.append(words[kind(p)] + " "); add(name, "code", "addr", address);
    if (kind(p) !== "layer") { const up = p.neuron ? "L" + p.layer + ".mlp" : "L" + p.layer, link = add(bar, "button", "", words.up.replace("{part}", up)); link.type = "button"; link.addEventListener("click", () => open(up, link)); }
    const shut = add(bar, "button", "", words.close); shut.type = "button"; shut.addEventListener("click", close);
    const shown = chosen(), body = add(card, "div", shown.length > 1 ? "two" : "");
    shown.forEach((side, i) => {
      const to = add(body, "div"); if (shown.length > 1) add(to, "div", "sidename " + (i ? "b" : "a"), side.name);
      const there = p.neuron || kind(p) === "layer" ? Object.keys(side.parts).some(n => n.startsWith("L" + p.layer + ".")) : address in side.parts;
      there ? show[kind(p)](side, address, p, to, i ? undefined : source) : add(to, "p", "note", words.absent);
    });
    state.set("part", address); keep();
    document.querySelectorAll(".chosenpart").forEach(e => e.classList.remove("chosenpart"));
    document.querySelectorAll('[data-part="' + address + '"]').forEach(e => e.classList.add("chosenpart"));
  };
  document.querySelectorAll(".addr").forEach(offer);
  const clicked = e => {
    const at = e.target.closest && e.target.closest("[data-part], .river [data-layer]"); if (!at) return false;
    const layer = "L" + at.dataset.layer;
    open(at.dataset.part || (at.matches(".stem") ? layer + ".mlp" : layer), at, at.dataset.source === undefined || at.closest("[data-side]") ? undefined : Number(at.dataset.source)); return true;
  };
  document.addEventListener("click", clicked);
  document.addEventListener("keydown", e => { if (e.key === "Escape" && card) close(); else if ((e.key === "Enter" || e.key === " ") && clicked(e)) e.preventDefault(); });

  const selects = [document.getElementById("left"), document.getElementById("side")];
  const votes = (a, b) => {
    const box = document.getElementById("sidevotes"), names = new Set([...Object.keys(a.parts), ...Object.keys(b.parts)]), of = (side, n) => n in side.parts ? side.parts[n][0] : null;
    const size = n => Math.max(Math.abs(of(a, n) || 0), Math.abs(of(b, n) || 0)), alike = a.sizes.join() === b.sizes.join();
    box.hidden = false; box.querySelectorAll(".scroll").forEach(e => e.remove());
    const rows = [...names].sort((x, y) => size(y) - size(x) || (x < y ? -1 : 1)).slice(0, 20);
    const short = name => name.length > 30 ? name.slice(0, 29) + "…" : name;
    table(box, [[words.part], [short(a.name), 1], [short(b.name), 1], [words.change, 1]], rows.map(n => [chip(n), signed(of(a, n)), signed(of(b, n)), alike && of(a, n) !== null && of(b, n) !== null ? signed(of(b, n) - of(a, n)) : words.unmeasured]));
  };
  const beside = () => {
    const two = chosen(), at = two.map(s => sides.indexOf(s));
    document.querySelectorAll("[data-side]").forEach(e => {
      const place = at.indexOf(Number(e.dataset.side)); e.hidden = place < 0; e.style.order = place;
      const name = e.querySelector(".sidename"); if (name) name.classList.toggle("b", place === 1);
    });
    selects.forEach((s, i) => { s.value = at[i]; }); votes(...two);
    if (card) open(state.get("part"), card);
  };
  if (selects[1]) {
    document.getElementById("sides").hidden = false;
    selects.forEach(s => s.addEventListener("change", () => { state.set(s.id, s.value); keep(); beside(); }));
    beside();
  }
  const river = document.querySelector(".river"); if (state.has("part") && river && known(state.get("part"))) open(state.get("part"), river);
})();
