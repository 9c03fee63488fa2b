"""A page in headless Chromium: opened, driven by a script of the tests, and what the script saw."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def visit(page: str, folder: Path, width: int, *, watch: str, drive: str, place: str = "") -> dict:
    """Open a page, drive it, return what the script wrote into its title behind SEEN, as JSON.

    Args:
        watch: markup put before the page's own style; it runs first.
        drive: markup put at the end of the body; it runs last.
        place: what follows the file in the address.
    """
    path = folder / "page.html"
    path.write_text(page.replace("<style>", watch + "<style>", 1).replace("</body>", drive + "</body>"), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1200", "--virtual-time-budget=4000", "--dump-dom",
        path.as_uri() + place,
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>SEEN(.*?)</title>", dom, re.S)
    assert found, "the page's script did not finish"
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
