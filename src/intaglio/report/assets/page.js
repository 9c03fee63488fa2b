// Hover text, theme, sorting, search, CSV. The page is complete without any of it.
(() => {
  const $ = (q, root = document) => root.querySelector(q), $$ = (q, root = document) => [...root.querySelectorAll(q)];
  const tip = $("#tip");

  // Hover text: any element with data-tip, by pointer or by focus.
  const place = (x, y) => {
    const w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - w - 8)) + "px";
    tip.style.top = (y + h + 26 > innerHeight ? Math.max(4, y - h - 12) : y + 18) + "px";
  };
  const show = (el, x, y) => {
    if (!el) { tip.hidden = true; return; }
    tip.textContent = el.dataset.tip; tip.hidden = false; place(x, y);
  };
  document.addEventListener("pointermove", e => show(e.target.closest && e.target.closest("[data-tip]"), e.clientX, e.clientY));
  const showAt = el => { const r = el.getBoundingClientRect(); show(el, r.left, r.bottom - 12); };
  document.addEventListener("focusin", e => { const el = e.target.closest("[data-tip]"); if (el) showAt(el); });
  document.addEventListener("focusout", () => { tip.hidden = true; });
  document.addEventListener("keydown", e => { if (e.key === "Escape") tip.hidden = true; });

  // A text takes focus once; the arrow keys walk through its tokens.
  for (const text of $$(".tokens")) {
    const tokens = $$(".tok", text); let at = -1;
    const go = i => {
      if (at >= 0) tokens[at].classList.remove("at");
      at = Math.max(0, Math.min(tokens.length - 1, i));
      tokens[at].classList.add("at"); showAt(tokens[at]);
    };
    text.addEventListener("keydown", e => {
      const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10 }[e.key];
      if (move && tokens.length) { e.preventDefault(); go(at + move); }
    });
    text.addEventListener("blur", () => { if (at >= 0) tokens[at].classList.remove("at"); at = -1; });
  }

  // Theme: follows the system until chosen.
  const button = $("#theme"), root = document.documentElement;
  const keep = (k, v) => { try { return v === undefined ? localStorage.getItem(k) : localStorage.setItem(k, v); } catch { return null; } };
  const asked = new URLSearchParams(location.search).get("theme") || keep("intaglio-theme");
  if (asked) root.dataset.theme = asked;
  if (button) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      root.dataset.theme = dark ? "light" : "dark"; keep("intaglio-theme", root.dataset.theme);
    });
  }

  // A group in the legend brings its marks forward.
  for (const legend of $$("[data-legend]")) {
    legend.addEventListener("click", e => {
      const chip = e.target.closest("button"); if (!chip) return;
      const on = chip.getAttribute("aria-pressed") !== "true";
      $$("button", legend).forEach(b => b.setAttribute("aria-pressed", b === chip && on));
      for (const svg of $$("svg", legend.parentElement)) {
        svg.classList.toggle("dim", on);
        $$(".mark-symbol path", svg).forEach(p => p.classList.toggle("on", on && p.classList.contains("f-g" + chip.dataset.colour)));
      }
    });
  }

  // The same example in the other run: its marks light up together.
  for (const box of $$(".twins")) {
    let lit = [];
    box.addEventListener("pointerover", e => {
      const link = e.target.closest && e.target.closest("svg a"), to = link && link.getAttribute("href");
      lit.forEach(a => a.classList.remove("twin"));
      lit = to ? $$("svg a", box).filter(a => a.getAttribute("href") === to) : [];
      lit.forEach(a => a.classList.add("twin"));
    });
  }

  // Where am I: the table of contents marks the section in view.
  const links = new Map($$(".toc a").map(a => [a.getAttribute("href").slice(1), a]));
  if (window.IntersectionObserver) {
    const seen = new IntersectionObserver(entries => entries.forEach(e => {
      if (e.isIntersecting) { links.forEach(a => a.classList.remove("here")); const a = links.get(e.target.id); if (a) a.classList.add("here"); }
    }), { rootMargin: "-20% 0px -70% 0px" });
    $$("main > section[id]").forEach(s => seen.observe(s));
  }

  // The table of all examples.
  const table = $("#all");
  if (table) {
    const body = table.tBodies[0], heads = $$("th", table.tHead), found = $("#found");
    $(".tools").hidden = false;
    const value = (row, i) => { const c = row.cells[i]; return c.dataset.v !== undefined ? (c.dataset.v === "" ? null : +c.dataset.v) : c.textContent.trim(); };
    const sort = i => {
      const down = heads[i].getAttribute("aria-sort") !== "descending";
      heads.forEach(h => h.removeAttribute("aria-sort")); heads[i].setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a, i), y = value(b, i);
        if (x === null || y === null) return (x === null) - (y === null);  // what was not measured stays last
        const d = typeof x === "number" ? x - y : y.localeCompare(x);
        return down ? -d : d;
      });
      body.append(...rows);
    };
    heads.forEach((h, i) => {
      h.tabIndex = 0; h.addEventListener("click", () => sort(i));
      h.addEventListener("keydown", e => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); sort(i); } });
    });
    const filter = () => {
      const want = $("#find").value.toLocaleLowerCase(); let n = 0;
      for (const row of body.rows) { const hit = row.textContent.toLocaleLowerCase().includes(want); row.hidden = !hit; n += hit; }
      found.textContent = `${found.dataset.label}: ${n} / ${body.rows.length}`;
    };
    $("#find").addEventListener("input", filter); filter();
    const quote = s => `"${String(s).replaceAll('"', '""')}"`;
    $("#csv").addEventListener("click", e => {
      const lines = [["example", ...heads.map(h => h.dataset.key)]].concat([...body.rows].filter(r => !r.hidden).map(r =>
        [r.id.slice(2), ...[...r.cells].map(c => c.dataset.v !== undefined ? c.dataset.v : c.textContent.trim())]));
      const url = URL.createObjectURL(new Blob(["\ufeff" + lines.map(l => l.map(quote).join(",")).join("\r\n")], { type: "text/csv" }));
      const a = document.createElement("a"); a.href = url; a.download = e.target.dataset.name + ".csv"; a.click(); URL.revokeObjectURL(url);
    });
  }
  addEventListener("beforeprint", () => $$("details").forEach(d => { d.open = true; }));
})();
