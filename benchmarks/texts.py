"""English and Chinese texts for `bcquant bench quality`, from Debian's handbook; never committed.

    python benchmarks/texts.py OUT

`apt-get download debian-handbook` fetches the package (GPL-2+ / CC-BY-SA-3.0) unless OUT holds it.
OUT then has, for en and zh, LANGUAGE-eval.txt (every fifth page) and LANGUAGE-calib.txt (the other
pages, without paragraphs that evaluation holds). Pages that are not translated are English in the
Chinese edition too: only paragraphs that are mostly Chinese are kept there.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

PACKAGE = "debian-handbook"
EDITIONS = {"en": "en-US", "zh": "zh-CN"}
EVALUATION_EVERY = 5
SHORTEST = {"en": 80, "zh": 30}  # characters of a paragraph; shorter ones are headings and labels
CHINESE_SHARE = 0.5
CHINESE = re.compile(r"[\u4e00-\u9fff]")


class Paragraphs(HTMLParser):
    """Texts of a page's <p> elements, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._depth = 0
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "p" or (tag == "div" and ("class", "para") in attrs):
            self._end()
            self._depth = 1

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "div"):
            self._end()

    def handle_data(self, data: str) -> None:
        if self._depth:
            self._parts.append(data)

    def _end(self) -> None:
        text = " ".join("".join(self._parts).split())
        if text:
            self.found.append(text)
        self._depth, self._parts = 0, []


def paragraphs(page: str, language: str) -> list[str]:
    """Paragraphs of a page that are long enough and in the language."""
    parser = Paragraphs()
    parser.feed(page)
    parser.close()
    kept = [p for p in parser.found if len(p) >= SHORTEST[language]]
    if language == "zh":
        kept = [p for p in kept if len(CHINESE.findall(p)) >= CHINESE_SHARE * len(p)]
    return kept


def split(pages: list[list[str]]) -> tuple[list[str], list[str]]:
    """Evaluation and calibration paragraphs; none is in both, and none is there twice."""
    held = [p for page in pages[EVALUATION_EVERY - 1 :: EVALUATION_EVERY] for p in page]
    held = list(dict.fromkeys(held))
    rest = [p for i, page in enumerate(pages) if (i + 1) % EVALUATION_EVERY for p in page]
    return held, [p for p in dict.fromkeys(rest) if p not in set(held)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder, outside the repository")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if Path(__file__).resolve().parents[1] in (out, *out.parents):
        raise SystemExit(f"{out}: inside the repository; choose a folder outside it")
    if not list(out.glob(f"{PACKAGE}*.deb")):
        subprocess.run(["apt-get", "download", PACKAGE], cwd=out, check=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = sorted(out.glob(f"{PACKAGE}*.deb"))[-1]
        subprocess.run(["dpkg-deb", "-x", str(archive), folder], check=True)
        for language, edition in EDITIONS.items():
            files = sorted(Path(folder).glob(f"usr/share/doc/{PACKAGE}/html/{edition}/*.html"))
            pages = [paragraphs(f.read_text(encoding="utf-8"), language) for f in files]
            for part, texts in zip(("eval", "calib"), split(pages), strict=True):
                path = out / f"{language}-{part}.txt"
                path.write_text("\n".join(texts) + "\n", encoding="utf-8")
                print(f"{path}: {len(texts)} paragraphs, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
