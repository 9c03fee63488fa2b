"""The page in a real browser: it runs without errors, its controls work, nothing sticks out at any width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_findings import sample

from intaglio.report import render, render_compare

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.page, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]

# Runs in the page before its own script, then drives it and leaves what it saw in the title.
WATCH = "<script>window.faults=[];addEventListener('error',e=>faults.push(String(e.message)))</script>"
DRIVE = """<script>addEventListener('load',()=>setTimeout(()=>{
  const $=q=>document.querySelector(q), seen={};
  const all=q=>[...document.querySelectorAll(q)];
  seen.width=document.documentElement.scrollWidth-innerWidth;
  seen.clipped=all('.chart svg').flatMap(s=>{const b=s.getBoundingClientRect();return b.width?[...s.querySelectorAll('text')].filter(
    t=>{const r=t.getBoundingClientRect();return r.width&&(r.left<b.left-1||r.right>b.right+1||r.top<b.top-1||r.bottom>b.bottom+1)})
    .map(t=>s.getAttribute('aria-label')+': '+t.textContent):[]});
  const point=(el,type)=>{const r=el.getBoundingClientRect();el.dispatchEvent(new PointerEvent(type,{bubbles:true,clientX:r.left,clientY:r.top}))};
  const dot=$('#f-volatility [data-tip]'); if(dot){point(dot,'pointermove'); seen.tip=$('#tip').hidden?'':$('#tip').textContent}
  const text=$('.tokens'); if(text){text.focus();text.dispatchEvent(new KeyboardEvent('keydown',{key:'ArrowRight',bubbles:true}));
    seen.token=$('#tip').textContent; text.blur()}
  const paper=()=>getComputedStyle(document.body).backgroundColor; const before=paper(); $('#theme').click(); seen.theme=before!==paper(); $('#theme').click();
  if($('#vol-b')){$('#vol-b').click(); seen.view=getComputedStyle($('.view.b')).display!=='none'&&getComputedStyle($('.view.a')).display==='none'}
  if($('#mode-surprise')) $('#mode-surprise').click();
  if($('#all')){const col=i=>[...$('#all').tBodies[0].rows].map(r=>r.cells[i].dataset.v).filter(v=>v!=='').map(Number);
    const heads=all('#all thead th'), i=heads.findIndex(h=>h.dataset.key==='first');
    heads[i].click(); seen.down=col(i).every((v,k,a)=>!k||a[k-1]>=v); heads[i].click(); seen.up=col(i).every((v,k,a)=>!k||a[k-1]<=v);
    $('#find').value='маяк'; $('#find').dispatchEvent(new Event('input')); seen.found=[...$('#all').tBodies[0].rows].filter(r=>!r.hidden).length}
  const chip=$('[data-legend] button'); if(chip){chip.click(); seen.dim=!!$('svg.dim .on')}
  seen.faults=window.faults; document.title='SEEN'+JSON.stringify(seen);
},60))</script>"""


@pytest.fixture(scope="module")
def findings():
    return sample()


@pytest.fixture(scope="module")
def pages(findings) -> dict[str, str]:
    other = sample(seed=1)
    pages = {f"page-{lang}": render(findings, lang=lang) for lang in ("en", "ru")}
    return pages | {f"compare-{lang}": render_compare(findings, other, lang=lang) for lang in ("en", "ru")}


def visit(page: str, folder: Path, width: int) -> dict:
    """Open a page in headless Chromium, drive it, return what it saw."""
    path = folder / "page.html"
    path.write_text(page.replace("<style>", WATCH + "<style>", 1).replace("</body>", DRIVE + "</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
               f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1200", "--virtual-time-budget=4000", "--dump-dom",
               path.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>SEEN(.*?)</title>", dom, re.S)
    assert found, "the page's script did not finish"
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("width", [1440, 900, 500])
@pytest.mark.parametrize("name", ["page-en", "page-ru", "compare-en", "compare-ru"])
def test_nothing_sticks_out(pages, name, width, tmp_path):
    seen = visit(pages[name], tmp_path, width)
    assert seen["faults"] == []
    assert seen["width"] <= 0
    assert seen["clipped"] == []
    assert seen["theme"]


def test_controls_work(pages, tmp_path):
    seen = visit(pages["page-en"], tmp_path, 1440)
    assert seen["tip"] and "movement" in seen["tip"]
    assert "shift" in seen["token"]
    assert seen["view"] and seen["down"] and seen["up"] and seen["dim"]
    assert 0 < seen["found"] < 60
