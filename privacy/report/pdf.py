"""The page as a PDF, by WeasyPrint: extra `report`, and some of Debian's libraries.

The style sheet's print rules make it: light, with numbered pages, nothing left out but what only a screen can do.
"""

from __future__ import annotations

import logging

from security.errors import UsageError

MISSING = (
    "a PDF needs WeasyPrint: pip install 'veil-fl[report]', and on Debian apt-get install libpango-1.0-0 "
    "libpangoft2-1.0-0 libharfbuzz-subset0"
)


def pdf(html: str) -> bytes:
    """`html`, as `privacy.report.render` made it, for paper. Nothing is loaded from anywhere.

    Raises:
        UsageError: WeasyPrint or one of its libraries is not installed.
    """
    try:
        from weasyprint import HTML
        from weasyprint.urls import URLFetcher
    except (ImportError, OSError) as error:  # OSError: a library that it loads by name is missing
        raise UsageError(MISSING) from error
    # It warns of every rule of the style sheet that is for screens.
    logging.getLogger("weasyprint").setLevel(logging.ERROR)
    document: bytes = HTML(string=html, url_fetcher=URLFetcher(allowed_protocols=("data",))).write_pdf()
    return document
