// Drives a page as a reader would and leaves what it saw in the title (see test_pages.py).
addEventListener("load", () => setTimeout(() => {
  const $ = q => document.querySelector(q), all = q => [...document.querySelectorAll(q)], seen = {};
  seen.sides = all("[data-side]:not([hidden])").map(e => e.dataset.side);
  seen.width = document.documentElement.scrollWidth - innerWidth;

  const outside = (r, b) => r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1 || r.bottom > b.bottom + 1;
  seen.clipped = all(".chart svg").flatMap(svg => {
    const frame = svg.getBoundingClientRect();
    const texts = frame.width ? [...svg.querySelectorAll("text")] : [];
    const cut = texts.filter(t => { const r = t.getBoundingClientRect(); return r.width && outside(r, frame); });
    return cut.map(t => svg.getAttribute("aria-label") + ": " + t.textContent);
  });

  const dot = $("#f-volatility [data-tip]");
  if (dot) {
    const r = dot.getBoundingClientRect();
    dot.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: r.left, clientY: r.top }));
    seen.tip = $("#tip").hidden ? "" : $("#tip").textContent;
  }
  const mark = $(".twins svg a path");
  if (mark) {
    mark.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    seen.twins = all(".twins .twin").length;
  }
  const text = $(".tokens");
  if (text) {
    text.focus();
    text.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    seen.token = $("#tip").textContent;
    text.blur();
  }

  const paper = () => getComputedStyle(document.body).backgroundColor, before = paper();
  $("#theme").click(); seen.theme = before !== paper(); $("#theme").click();

  if ($("#vol-b")) {
    $("#vol-b").click();
    const display = q => getComputedStyle($(q)).display;
    seen.view = display(".view.b") !== "none" && display(".view.a") === "none";
  }
  if ($("#all")) {
    const rows = () => [...$("#all").tBodies[0].rows], heads = all("#all thead th");
    const i = heads.findIndex(h => ["first", "loss_nats"].includes(h.dataset.key));
    const column = () => rows().map(r => r.cells[i].dataset.v).filter(v => v !== "").map(Number);
    heads[i].click(); seen.down = column().every((v, k, a) => !k || a[k - 1] >= v);
    heads[i].click(); seen.up = column().every((v, k, a) => !k || a[k - 1] <= v);
    $("#find").value = "маяк"; $("#find").dispatchEvent(new Event("input"));
    seen.found = rows().filter(r => !r.hidden).length;
  }
  const chip = $("[data-legend] button");
  if (chip) { chip.click(); seen.dim = !!$("svg.dim .on"); }
  if ($(".river[data-top]")) {
    const shown = () => all(".river [data-v]:not(.off)").length, slide = v => {
      $("#threshold").value = v; $("#threshold").dispatchEvent(new Event("input")); return shown();
    };
    seen.edges = [slide(0), slide(40), slide(100)];
    all("details[data-lens]").forEach(d => { d.open = true; });
    seen.opened = all("details[data-lens][open]").length;
    seen.open_width = document.documentElement.scrollWidth - innerWidth;
    const frames = all(".river").map(svg => [svg, svg.getBoundingClientRect()]);
    seen.open_clipped = frames.flatMap(([svg, frame]) => [...svg.querySelectorAll("text")].filter(
      t => { const r = t.getBoundingClientRect(); return r.width && outside(r, frame); }).map(t => t.textContent));
    if ($("#sampler")) {
      const first = () => $("#sampled").textContent, before = first();
      $("#s-temperature").value = 2; $("#s-temperature").dispatchEvent(new Event("input"));
      seen.sampled = before !== first();
    }
  }
  if ($("#parts")) {
    const click = el => el.dispatchEvent(new MouseEvent("click", { bubbles: true })), hash = () => new URLSearchParams(location.hash.slice(1)).get("part");
    const name = () => $(".card") && $(".card h3 .addr").textContent, text = () => $(".card").textContent;
    const columns = () => all(".card .sidename").map(e => e.textContent);
    seen.parts = {};
    click($("#answer .river .edge[data-source]")); seen.parts.edge = [name(), hash(), text()];
    click($(".card [data-part*='attn.H']")); seen.parts.head = [name(), hash(), text()];
    seen.parts.reads = all(".card .lane2").length; seen.parts.inside = $("#answer").contains($(".card"));
    seen.parts.width = document.documentElement.scrollWidth - innerWidth;
    click($("#answer .river .stem")); seen.parts.stem = [name(), text()];
    const neuron = $(".card [data-part*='.N']"); if (neuron) { click(neuron); seen.parts.neuron = [name(), text()]; }
    click($("#ledger [data-part]")); seen.parts.row = [$("#ledger [data-part]").textContent, name(), !!$(".card").closest("tr.cardrow")];
    if ($("#side")) {
      const choose = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("change")); };
      const shown = () => all("[data-side]").filter(e => !e.hidden).sort((a, b) => a.style.order - b.style.order).map(e => e.dataset.side).join();
      const votes = () => [...$("#sidevotes tbody").rows].map(r => [...r.cells].map(c => c.textContent));
      seen.parts.columns = columns(); seen.parts.shown = [shown()]; seen.parts.votes = [votes()];
      choose("#side", "2"); seen.parts.other = columns(); seen.parts.shown.push(shown()); seen.parts.votes.push(votes());
      choose("#left", "3"); seen.parts.shown.push(shown()); seen.parts.votes.push(votes());
      seen.parts.side = location.hash; seen.parts.both = document.documentElement.scrollWidth - innerWidth;
    }
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true })); seen.parts.closed = !$(".card") && !hash();
  }
  seen.faults = window.faults; document.title = "SEEN" + JSON.stringify(seen);
}, 60));
