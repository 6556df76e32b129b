"""A real browser opens the page without a network: it draws it, on a desk, on a telephone and on paper."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import isoloss
from isoloss.report.page import write_report
from tests.conftest import ROOT

NAMES = ("chromium", "chromium-browser", "google-chrome", "/usr/bin/chromium")
SECONDS = 90


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    fit = isoloss.fit("hoffmann", str(ROOT / "examples" / "stdlib_ladder.csv"), draws=60, starts=8)
    return write_report(fit, folder / "a page <with> 'a' name.html")


@pytest.fixture
def browser(tmp_path):
    """``browser(page, *words)``: what a headless browser prints; skips where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")

    def show(page: Path, *words: str) -> str:
        command = [
            found, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}", *words, page.as_uri(),
        ]  # fmt: skip
        home = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True, env=home)
        assert "Failed to load resource" not in done.stderr
        return done.stdout

    return show


def measured(page: Path, folder: Path) -> Path:
    """A copy of the page that writes into its title how wide it is, and what it asked the network for."""
    probe = """<script>addEventListener("load", () => { document.title = [
    document.documentElement.scrollWidth, innerWidth, performance.getEntriesByType("resource").filter(
    entry => !entry.name.startsWith("data:")).length, document.querySelectorAll("svg.picture").length,
    [...document.querySelectorAll("svg.picture")].filter(one => one.getBoundingClientRect().height < 50).length,
    ].join(" ") })</script></body>"""
    copy = folder / "measured.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    return copy


@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_the_window_and_asks_for_nothing(browser, page, width, tmp_path):
    seen = browser(measured(page, tmp_path), f"--window-size={width},900", "--dump-dom")
    title = re.search(r"<title>([\d ]+)</title>", seen)
    assert title, seen[:300]
    wide, window, asked, pictures, flat = map(int, title[1].split())
    assert wide <= window <= max(width, 500)  # some builds open no window below 500
    assert (asked, pictures, flat) == (0, 13, 0)
    assert "How this was made" in seen


@pytest.mark.parametrize("width", [1280, 390])
def test_the_picture_of_it_is_not_blank(browser, page, width, tmp_path):
    browser(page, f"--window-size={width},1600", f"--screenshot={tmp_path / 'page.png'}")
    shown = imread(tmp_path / "page.png")[..., :3]
    assert shown.shape[:2] == (1600, width)
    ink = np.mean(np.any(shown < 0.8, axis=2))
    assert 0.005 < ink < 0.5
    assert np.any(shown[1200:] < 0.5)  # the first picture is drawn too


def test_it_prints_on_a_sane_number_of_pages(browser, page, tmp_path):
    browser(page, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    raw = (tmp_path / "page.pdf").read_bytes()
    assert raw.startswith(b"%PDF-")
    assert 5 <= pages_of(raw) <= 20


def pages_of(raw: bytes) -> int:
    """Pages of a PDF, whose page objects may lie in compressed streams."""
    parts = [raw]
    for match in re.finditer(rb"stream\r?\n", raw):
        try:
            parts.append(zlib.decompressobj().decompress(raw[match.end() :]))
        except zlib.error:
            continue
    return sum(len(re.findall(rb"/Type\s*/Page\b(?!s)", part)) for part in parts)
