// A head's attention on a reference text: unpacked once, drawn on a canvas in the theme's colours.
const Patterns = (() => {
  const kept = new Map(), root = document.documentElement;
  const unpack = (side, head, text) => {
    const packed = (side.patterns[head] || {})[text]; if (!packed) return null;
    if (!kept.has(packed)) {
      const size = (side.texts[text] || []).length, bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
      const known = size || 512, flat = inflate(bytes, known * (known + 1) / 2);
      kept.set(packed, { n: known, flat, at: (q, k) => flat[q * (q + 1) / 2 + k] / 255 });
    }
    return kept.get(packed);
  };
  const rgb = name => {
    const probe = document.createElement("i"); probe.style.cssText = "display:none;color:var(" + name + ")"; document.body.append(probe);
    const found = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number); probe.remove(); return found;
  };
  let ramp = null;
  const colours = () => {
    if (ramp) return ramp;
    const stops = [0, 1, 2, 3, 4, 5, 6, 7].map(i => rgb("--h" + i));
    return ramp = [...Array(256).keys()].map(v => { const x = Math.sqrt(v / 255) * 7, i = Math.min(6, Math.floor(x)), f = x - i; return stops[i].map((c, j) => c + (stops[i + 1][j] - c) * f); });
  };
  // one pixel per cell, above the diagonal left clear
  const pixels = pattern => {
    const small = document.createElement("canvas"), n = small.width = small.height = pattern.n, ctx = small.getContext("2d"), image = ctx.createImageData(n, n), ramp = colours();
    for (let q = 0; q < n; q++) for (let k = 0; k <= q; k++) { const c = ramp[pattern.flat[q * (q + 1) / 2 + k]], at = 4 * (q * n + k); image.data[at] = c[0]; image.data[at + 1] = c[1]; image.data[at + 2] = c[2]; image.data[at + 3] = 255; }
    ctx.putImageData(image, 0, 0); return small;
  };
  const thumb = (canvas, pattern, size) => {
    canvas.width = canvas.height = size; const ctx = canvas.getContext("2d"); ctx.imageSmoothingEnabled = pattern.n > size; ctx.drawImage(pixels(pattern), 0, 0, size, size);
  };
  // with tokens along both sides; returns where a point of the canvas lies in the pattern
  const draw = (canvas, pattern, tokens, mark) => {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth || 460, font = Math.max(7, Math.min(11, 0.78 * (width - 70) / pattern.n)), labelled = (width - 70) / pattern.n >= 7;
    const side = labelled ? Math.min(width < 420 ? 62 : 84, 6 + Math.max(...tokens.map(t => t.length), 1) * font * 0.62) : 4, cell = (width - side - 2) / pattern.n, height = Math.round(cell * pattern.n + side + 2);
    canvas.width = width * ratio; canvas.height = height * ratio; canvas.style.height = height + "px";
    const ctx = canvas.getContext("2d"); ctx.scale(ratio, ratio); ctx.imageSmoothingEnabled = false;
    ctx.drawImage(pixels(pattern), side, 0, cell * pattern.n, cell * pattern.n);
    const ink = rgb("--ink"), soft = rgb("--soft"), css = c => "rgb(" + c.map(Math.round) + ")"; ctx.font = font + "px monospace";
    const cut = t => t.length * font * 0.61 > side - 6 ? t.slice(0, Math.max(1, Math.floor((side - 6) / font / 0.61) - 1)) + "…" : t;
    if (labelled) for (let i = 0; i < pattern.n; i++) {
      ctx.fillStyle = css(mark && mark.q === i ? ink : soft); ctx.textAlign = "right"; ctx.textBaseline = "middle"; ctx.fillText(cut(tokens[i] || ""), side - 4, cell * (i + 0.5));
      ctx.save(); ctx.translate(side + cell * (i + 0.5), cell * pattern.n + 4); ctx.rotate(-Math.PI / 2); ctx.fillStyle = css(mark && mark.k === i ? ink : soft); ctx.fillText(cut(tokens[i] || ""), 0, 0); ctx.restore();
    }
    if (mark) { ctx.strokeStyle = css(ink); ctx.lineWidth = 1.2; ctx.strokeRect(side, cell * mark.q, cell * (mark.q + 1), cell); if (mark.k !== undefined) ctx.strokeRect(side + cell * mark.k, cell * mark.q, cell, cell); }
    return (x, y) => { const k = Math.floor((x - side) / cell), q = Math.floor(y / cell); return k >= 0 && q >= 0 && q < pattern.n && k <= q ? { q, k } : null; };
  };
  // where it looks hardest, the first token and the token itself left out if there is anything else
  const strongest = (pattern, most) => {
    const best = (q, from, to) => { let found = from; for (let k = from; k <= to; k++) if (pattern.at(q, k) > pattern.at(q, found)) found = k; return { q, k: found, v: pattern.at(q, found) }; };
    const rows = [...Array(Math.max(0, pattern.n - 2)).keys()].map(i => i + 2), away = rows.map(q => best(q, 1, q - 1)).filter(a => a.v >= 0.1);
    return (away.length ? away : rows.map(q => best(q, 0, q))).sort((a, b) => b.v - a.v).slice(0, most);
  };
  // the text on which a head rests least on the first token: there its own work shows
  const telling = (side, head) => {
    const all = Object.keys(side.patterns[head] || {}), varied = all.filter(t => new Set(side.texts[t]).size > side.texts[t].length / 4), texts = varied.length ? varied : all; if (texts.length < 2) return texts[0];
    const rests = text => { const p = unpack(side, head, text); let sum = 0; for (let q = 1; q < p.n; q++) sum += p.at(q, 0); return sum / (p.n - 1); };
    return texts.map(t => [rests(t), t]).sort((a, b) => a[0] - b[0])[0][1];
  };
  const redraws = new Set(), again = () => { ramp = null; [...redraws].forEach(f => { if (f() === false) redraws.delete(f); }); };
  new MutationObserver(again).observe(root, { attributes: true, attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  return { unpack, thumb, draw, strongest, telling, onTheme: f => redraws.add(f) };
})();
