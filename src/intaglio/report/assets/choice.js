// The choice page: threshold of the picture, sampling sliders, what is open. State lives in the address.
const Kept = (() => {
  const state = new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : "");
  const keep = () => { try { history.replaceState(null, "", state.toString() ? "#" + state : location.pathname + location.search); } catch { /* a page opened from disk may not */ } };
  return { state, keep };
})();
(() => {
  const $ = q => document.querySelector(q), all = q => [...document.querySelectorAll(q)], { state, keep } = Kept;

  const river = $(".river"), slider = $("#threshold");
  if (river && slider) {
    $("#river-tools").hidden = false;
    const top = Math.max(...all(".river[data-top]").map(r => Number(r.dataset.top))), marks = all(".river [data-v]");
    const apply = () => {
      const least = top * (slider.value / 100) ** 2;
      marks.forEach(m => m.classList.toggle("off", Number(m.dataset.v) < least));
      $("#threshold-out").textContent = "≥ " + least.toLocaleString(document.documentElement.lang, { minimumFractionDigits: 2, maximumFractionDigits: 2 }) + " · " + all("#answer .river [data-v]:not(.off)").length;
    };
    if (state.has("least")) slider.value = state.get("least");
    slider.addEventListener("input", () => { state.set("least", slider.value); keep(); apply(); });
    apply();
  }

  for (const box of all("details[data-lens]")) {
    if ((state.get("open") || "").split(",").includes(box.dataset.lens) || location.hash === "#" + box.dataset.lens) box.open = true;
    box.addEventListener("toggle", () => {
      const open = all("details[data-lens][open]").map(b => b.dataset.lens).join(",");
      open ? state.set("open", open) : state.delete("open"); keep();
    });
  }
  document.addEventListener("click", e => {
    const link = e.target.closest && e.target.closest('.toc a[href^="#"]'); if (!link) return;
    const box = $(link.getAttribute("href") + " details[data-lens]"); if (box) box.open = true;
  });
  addEventListener("beforeprint", () => all("details").forEach(d => { d.open = true; }));

  const box = $("#sampler");
  if (box) {
    // Exact: beside the stored logits stands the weight of all other tokens at every temperature of the slider.
    const data = JSON.parse($("#data").textContent), list = $("#sampled"), said = $("#sampled-out");
    const rests = JSON.parse(box.dataset.rest), from = Number(box.dataset.from), step = Number(box.dataset.step), all_tokens = Number(box.dataset.vocabulary);
    const names = ["temperature", "top_k", "top_p", "min_p"], read = name => Number($("#s-" + name).value);
    const words = (x, digits) => x.toLocaleString(document.documentElement.lang, {maximumFractionDigits: digits, minimumFractionDigits: digits});
    const percent = x => words(100 * x, 1) + (document.documentElement.lang === "ru" ? "\u00a0%" : "%");
    const draw = () => {
      const T = read("temperature"), k = read("top_k"), cut = read("top_p"), least = read("min_p");
      const rest = rests[Math.round((T - from) / step)], top = data.logits[0];
      const raw = data.logits.map(l => Math.exp((l - top) / T)), stored = raw.reduce((a, b) => a + b, 0);
      const total = stored + (rest === null ? 0 : Math.exp(rest)), last = raw[raw.length - 1];
      const pool = k ? raw.reduce((a, x) => a + (x >= raw[Math.min(k, raw.length) - 1] ? x : 0), 0) : total;
      let running = 0;
      const kept = raw.map(x => { const ok = (!k || x >= raw[Math.min(k, raw.length) - 1]) && (cut >= 1 || running < cut * pool) && x >= least; running += x; return ok; });
      const mass = raw.reduce((a, x, i) => a + (kept[i] ? x : 0), 0);
      const more = raw.length < all_tokens, beyond = more && !k && (cut >= 1 || stored < cut * total) && last >= least, everything = beyond && cut >= 1 && least === 0;
      const most = everything ? total : beyond ? Math.min(total, cut >= 1 ? total : cut * total + last) : mass;
      const low = everything ? total : beyond && least === 0 ? cut * total : mass;
      list.replaceChildren(...raw.slice(0, 14).map((x, i) => {
        const row = document.createElement("div"); row.className = "cand" + (kept[i] ? "" : " cut");
        const name = document.createElement("span"), bar = document.createElement("i"), value = document.createElement("span");
        const share = kept[i] ? x / most : 0;
        name.textContent = data.tokens[i]; name.className = "tk"; bar.style.width = 100 * share + "%"; value.textContent = percent(share);
        const track = document.createElement("span"); track.append(bar); row.append(name, track, value); return row;
      }));
      for (const name of names) $("#o-" + name).textContent = name === "top_k" ? (k || said.dataset.off) : words(read(name), 2);
      const range = percent(low / total) === percent(most / total) ? percent(most / total) : percent(low / total) + "–" + percent(most / total);
      const fill = text => text.replace("{kept}", words(everything ? all_tokens : kept.filter(Boolean).length, 0)).replace("{all}", words(all_tokens, 0)).replace("{mass}", percent(most / total)).replace("{cut}", percent(Math.max(0, 1 - most / total))).replace("{range}", range).replace("{stored}", words(raw.length, 0));
      said.textContent = fill(beyond && !everything ? said.dataset.beyond : said.dataset.text);
    };
    for (const name of names) {
      const input = $("#s-" + name); if (state.has(name)) input.value = state.get(name);
      input.addEventListener("input", () => { state.set(name, input.value); keep(); draw(); });
    }
    box.hidden = false; draw();
  }
})();
