// Drives the page of the heads as a reader would and leaves what it saw in the title (see test_heads_page.py).
addEventListener("load", () => setTimeout(async () => {
  const $ = q => document.querySelector(q), all = q => [...document.querySelectorAll(q)], seen = {}, wide = () => document.documentElement.scrollWidth - innerWidth;
  const fire = (el, name, more = {}) => el.dispatchEvent(new (name.startsWith("key") ? KeyboardEvent : name.startsWith("pointer") ? PointerEvent : MouseEvent)(name, { bubbles: true, cancelable: true, ...more }));
  const cards = () => all(".hcard").map(c => c.dataset.card), hash = () => decodeURIComponent(location.hash), shown = () => all(".side:not([hidden])").map(s => s.dataset.side).join();
  const cell = head => $(`.side:not([hidden]) .cell[data-head="${head}"]`), inked = canvas => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data; return new Set(d.filter((v, i) => i % 4 === 2)).size; };
  seen.start = { cards: cards(), shown: shown(), off: all(".wall .cell.off").length, hash: hash() };
  seen.width = wide();
  const outside = (r, b) => r.left < b.left - 1 || r.right > b.right + 1 || r.top < b.top - 1 || r.bottom > b.bottom + 1;
  seen.clipped = all(".chart svg").flatMap(svg => { const frame = svg.getBoundingClientRect(); return [...svg.querySelectorAll("text")].filter(t => { const r = t.getBoundingClientRect(); return r.width && outside(r, frame); }).map(t => t.textContent); });
  seen.spilt = all(".wall .cell").filter(c => getComputedStyle(c).fontSize !== "0px" && c.scrollWidth > c.clientWidth + 1).length;
  const paper = () => getComputedStyle(document.body).backgroundColor, before = paper(); $("#theme").click(); seen.theme = before !== paper(); $("#theme").click();
  if ($(".wall")) {
    const heads = all(".side:not([hidden]) .cell").map(c => c.dataset.head), [one, two] = [window.wanted || heads[0], heads[heads.length - 1]];
    fire(cell(one), "pointerover"); seen.peek = $("#peek").hidden ? "" : $("#peek").textContent; seen.thumb = $("#peek canvas") ? inked($("#peek canvas")) : 0;
    fire(document.body, "pointerover"); seen.gone = $("#peek").hidden;
    fire(cell(one), "click"); await 0; seen.open = [cards(), hash()]; seen.text = $(".hcard") ? $(".hcard").textContent : ""; seen.big = $(".hcard canvas") ? inked($(".hcard canvas")) : 0; seen.card_width = wide();
    fire(cell(two), "click", { shiftKey: true }); await 0; seen.pinned = [cards(), hash()]; seen.pin_width = wide();
    const word = $(".reftext .w:last-child"); if (word) { fire(word, "click"); seen.looks = $(".pat output").textContent; seen.both = [...$(".hcard").querySelectorAll(".pat output")].map(o => o.querySelector(".tk").textContent); }
    cell(one).focus(); fire(cell(one), "keydown", { key: "ArrowRight" }); seen.walked = document.activeElement.dataset.head; seen.focus_peek = !$("#peek").hidden;
    fire(document.activeElement, "keydown", { key: " " }); seen.spaced = hash(); fire(document.activeElement, "keydown", { key: " " });
    const role = $("#legend button[data-role]"); if (role) { role.click(); seen.role = [role.dataset.role, all(".side:not([hidden]) .cell:not(.off)").map(c => c.dataset.role), hash()]; role.click(); }
    const layer = $("#layer"); layer.value = "1"; layer.dispatchEvent(new Event("change")); seen.layer = [all(".side:not([hidden]) .cell:not(.off)").map(c => c.dataset.head), hash()]; layer.value = ""; layer.dispatchEvent(new Event("change"));
    if (!$("#thumbs").hidden) { $("#thumbs").click(); seen.thumbs = all(".side:not([hidden]) .cell canvas").length; seen.thumbs_width = wide(); $("#thumbs").click(); }
    if ($("#side")) { seen.columns = all(".hcard .sidename").map(e => e.textContent); $("#side").value = "a"; $("#side").dispatchEvent(new Event("change")); seen.alone = [shown(), all(".hcard .sidename").length, hash()]; }
    fire(document.body, "keydown", { key: "Escape" }); seen.closed = [cards(), hash()];
    const link = $("#roles a.head, .graph a, .history a"); if (link) { fire(link, "click"); seen.linked = [link.dataset.head, cards()]; }
  }
  seen.faults = window.faults; document.title = "SEEN" + JSON.stringify(seen);
}, 60));
