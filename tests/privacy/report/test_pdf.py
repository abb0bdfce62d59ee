"""The report on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.report.pdf import MISSING, pdf
from security.errors import UsageError
from tests.privacy.report.test_render import page

try:
    import weasyprint
except (ImportError, OSError):
    weasyprint = None
needs_weasyprint = pytest.mark.skipif(weasyprint is None, reason=MISSING)


@needs_weasyprint
@pytest.mark.parametrize(("name", "language"), [("troubled", "en"), ("simulated", "zh")])
def test_a_report_prints_on_numbered_pages(name: str, language: str, tmp_path: Path) -> None:
    made = pdf(page(name, language))
    assert made.startswith(b"%PDF-")
    if shutil.which("pdftotext") is None:
        return
    (tmp_path / "report.pdf").write_bytes(made)
    found = subprocess.run(["pdftotext", "-layout", "report.pdf", "-"], cwd=tmp_path, capture_output=True, check=True)
    pages = found.stdout.decode().split("\f")[:-1]
    assert len(pages) > 3
    for number, text in enumerate(pages, start=1):
        assert re.search(rf"\b{number}\s*/\s*{len(pages)}\b", text)
    assert "ε" in pages[0]


@needs_weasyprint
def test_a_pdf_loads_nothing() -> None:
    assert pdf('<p>x<img src="file:///etc/hostname"><link rel=stylesheet href="http://localhost:1/x.css">').startswith(
        b"%PDF-"
    )


def test_without_weasyprint_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    with pytest.raises(UsageError, match=r"pip install 'veil-fl\[report\]'"):
        pdf("<p>x")
