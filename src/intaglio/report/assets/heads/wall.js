// The wall and its cards: hover, keys, filters, pins, two sides. What is open lives in the address.
(() => {
  if (!Cards || !document.querySelector(".wall")) return;
  const $ = q => document.querySelector(q), all = q => [...document.querySelectorAll(q)], { sides, words, build, peek } = Cards;
  const hash = () => new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : ""), LETTERS = "abcdefghijklmnopqrstuvwxyz";
  const real = head => sides.some(s => s.heads[head]), state = { head: null, pin: [], role: "", layer: "", side: 1 };
  const read = () => {
    const given = hash(); state.head = real(given.get("head")) ? given.get("head") : null;
    state.pin = [...new Set((given.get("pin") || "").split(",").filter(real))]; state.role = given.get("role") || ""; state.layer = given.get("layer") || "";
    const at = given.has("side") ? LETTERS.indexOf(given.get("side")) : 1; state.side = sides.length > 1 && given.get("side") && at >= 0 && at < sides.length ? at : Math.min(1, sides.length - 1);
  };
  const write = () => {
    const made = []; if (state.head) made.push("head=" + state.head); if (state.pin.length) made.push("pin=" + state.pin.join(",")); if (state.role) made.push("role=" + encodeURIComponent(state.role)); if (state.layer) made.push("layer=" + encodeURIComponent(state.layer)); if (sides.length > 1) made.push("side=" + LETTERS[state.side]);
    try { history.replaceState(null, "", made.length && (made.length > 1 || sides.length < 2 || state.side !== 1) ? "#" + made.join("&") : location.pathname + location.search); } catch { /* a page opened from disk may not */ }
  };
  const shown = () => state.side ? [0, state.side] : [0];
  const study = $(".study"), opened = $("#open"), hint = opened.firstElementChild, pinned = $("#pinned"), glimpse = $("#peek");

  const cards = () => {
    opened.replaceChildren(state.head ? build(state.head, shown(), [
      [state.pin.includes(state.head) ? words.unpin : words.pin, () => pin(state.head), state.pin.includes(state.head)], [words.close, () => open(null)]]) : hint);
    pinned.replaceChildren(...state.pin.filter(h => h !== state.head).map(h => build(h, shown(), [[words.unpin, () => pin(h)]])));
  };
  const marks = () => {
    study.classList.toggle("two-walls", state.side > 0);
    all(".side").forEach(s => { const at = Number(s.dataset.side); s.hidden = at !== 0 && at !== state.side; });
    all(".wall .cell").forEach(c => {
      const head = c.dataset.head, side = sides[Number(c.closest(".side").dataset.side)], own = side.heads[head], has = !state.role || c.dataset.role === state.role || own && own[1].includes(state.role);
      c.classList.toggle("on", head === state.head); c.classList.toggle("pin", state.pin.includes(head)); c.classList.toggle("off", !has || state.layer !== "" && head.split(".")[0] !== state.layer);
      c.setAttribute("aria-selected", head === state.head);
    });
    all("#legend button").forEach(b => b.setAttribute("aria-pressed", b.dataset.role === state.role));
    all("a.head, .scatter a, .graph a").forEach(a => a.classList.toggle("at", a.dataset.head === state.head));
    all(".graph .edge").forEach(e => e.classList.toggle("at", Boolean(state.head) && e.dataset.ends.split(" ").includes(state.head)));
    if ($("#layer")) $("#layer").value = state.layer; if ($("#side")) $("#side").value = LETTERS[state.side];
    all(".wall").forEach(w => { const cells = [...w.querySelectorAll(".cell")]; cells.forEach(c => { c.tabIndex = -1; }); (cells.find(c => c.dataset.head === state.head) || cells[0] || {}).tabIndex = 0; });
  };
  const show = () => { cards(); marks(); };
  const open = head => { state.head = head; write(); show(); };
  const pin = head => { state.pin = state.pin.includes(head) ? state.pin.filter(h => h !== head) : [...state.pin, head]; write(); show(); };

  const near = (cell, side) => {
    const made = cell.dataset.head, r = cell.getBoundingClientRect(); peek(glimpse, side, made); glimpse.hidden = false;
    const w = glimpse.offsetWidth, h = glimpse.offsetHeight, wall = cell.closest(".wall").getBoundingClientRect(), edge = wall.right + 12 + w < innerWidth ? wall.right : r.right;  // beside the wall, so that it stays in sight
    glimpse.style.left = Math.max(4, edge + 12 + w < innerWidth ? edge + 12 : r.left - w - 10) + "px"; glimpse.style.top = Math.max(4, Math.min(r.top - 40, innerHeight - h - 6)) + "px";
  };
  const over = e => { const cell = e.target.closest && e.target.closest(".wall .cell"); if (cell) near(cell, sides[Number(cell.closest(".side").dataset.side)]); else glimpse.hidden = true; };
  document.addEventListener("pointerover", over); document.addEventListener("focusin", over); document.addEventListener("scroll", () => { glimpse.hidden = true; }, { passive: true });

  document.addEventListener("click", e => {
    const at = e.target.closest && e.target.closest("[data-head]"); if (!at || e.ctrlKey || e.metaKey) return; e.preventDefault();
    if (!real(at.dataset.head)) return; if (e.shiftKey) { pin(at.dataset.head); return; }
    glimpse.hidden = true; open(at.dataset.head);
    const r = opened.getBoundingClientRect(); if (!at.closest(".wall") || r.top > innerHeight - 160 || r.bottom < 80) opened.scrollIntoView({ block: "start" }); else if (r.top < 0) opened.scrollIntoView({ block: "start" });
  });
  document.addEventListener("keydown", e => {
    if (e.key === "Escape") { glimpse.hidden = true; if (state.head) open(null); return; }
    const cell = e.target.closest && e.target.closest(".wall .cell"); if (!cell) return;
    if (e.key === " ") { e.preventDefault(); pin(cell.dataset.head); return; }
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -999], End: [0, 999] }[e.key]; if (!move) return; e.preventDefault();
    const [layer, head] = cell.dataset.head.split(".").map(Number), width = sides[Number(cell.closest(".side").dataset.side)].perLayer, to = [layer + move[0], Math.max(0, Math.min(width - 1, head + move[1]))].join("."), next = [...cell.closest(".wall").querySelectorAll(".cell")].find(c => c.dataset.head === to);
    if (next) { cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });

  all("#legend button").forEach(b => b.addEventListener("click", () => { state.role = state.role === b.dataset.role ? "" : b.dataset.role; write(); marks(); }));
  if ($("#layer")) $("#layer").addEventListener("change", e => { state.layer = e.target.value; write(); marks(); });
  if ($("#side")) $("#side").addEventListener("change", e => { state.side = Math.max(0, LETTERS.indexOf(e.target.value)); write(); show(); thumbs(); });
  if ($("#go")) $("#go").addEventListener("change", e => { const found = /(\d+)\D+(\d+)/.exec(e.target.value); if (found && real(+found[1] + "." + +found[2])) open(+found[1] + "." + +found[2]); });
  const button = $("#thumbs"); let pictured = false;
  const thumbs = () => all(".wall").forEach(w => {
    w.classList.toggle("thumbed", pictured); const side = sides[Number(w.closest(".side").dataset.side)];
    w.querySelectorAll(".cell").forEach(c => { const old = c.querySelector("canvas"); if (old) old.remove(); if (!pictured || w.closest(".side").hidden) return; const text = Patterns.telling(side, c.dataset.head), pattern = text !== undefined && Patterns.unpack(side, c.dataset.head, text); if (pattern) { const canvas = document.createElement("canvas"); c.append(canvas); Patterns.thumb(canvas, pattern, 64); } });
  });
  if (button) { button.hidden = !sides.some(s => Object.keys(s.patterns).length); button.addEventListener("click", () => { pictured = !pictured; button.setAttribute("aria-pressed", pictured); thumbs(); }); }
  Patterns.onTheme(() => { if (pictured) thumbs(); return true; });
  addEventListener("hashchange", () => { if (hash().size || location.hash === "") { read(); show(); } });
  all(".walltools").forEach(b => { b.hidden = false; });
  read(); show(); if (state.head) opened.scrollIntoView({ block: "start", behavior: "instant" });
})();
