"""Looks at a page in headless Chromium."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

_HARNESS = """<!doctype html><meta charset="utf-8"><body>FRAMES<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument;
    const root = page.documentElement;
    for (const part of page.querySelectorAll("details")) part.open = true;
    return {
      width: frame.contentWindow.innerWidth,
      overflow: root.scrollWidth - root.clientWidth,
      images: [...page.images].map(image => image.naturalWidth),
      title: page.title,
      text: page.body.innerText,
      all: page.body.textContent,
      scripts: page.scripts.length,
      background: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script></body>"""


def chromium():
    """The browser's file. Without one the test is skipped; in CI it fails."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    assert os.environ.get("CI") != "true", "CI needs a browser: apt-get install chromium"
    return pytest.skip("there is no Chromium")


def looked_at(page, folder, *, widths, dark=False):
    """What Chromium finds in a page at some widths in pixels, and what its console says.

    The page is looked at in frames, since a window cannot be narrow, and so that the page itself is not changed.
    """
    browser = chromium()
    text = html.escape(page.read_text())
    frames = (f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{text}"></iframe>' for width in widths)
    harness = folder / "harness.html"
    harness.write_text(_HARNESS.replace("FRAMES", "".join(frames), 1))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={folder / 'profile'}", *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    command = [browser, *words, "--virtual-time-budget=10000", "--dump-dom", f"file://{harness}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search('<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
