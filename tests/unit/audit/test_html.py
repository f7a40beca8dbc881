import html.parser
import re
from pathlib import Path
from typing import Any

import pytest
from tests.audits import Finished, finished_run
from tests.keyworld import World
from tests.runs import Place, edit, many_stages

from cloister.audit import render_html, verify
from cloister.audit._graph import draw_graph
from cloister.manifest import Manifest, SignedManifest

__all__ = ["finished_run"]


class Page(html.parser.HTMLParser):
    """Every tag, with its attributes, and whether all were closed."""

    VOID = frozenset({"meta", "br", "col", "rect", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag


def page(finished: Finished, **how: Any) -> str:
    return render_html(finished.audit(**how), finished.world.manifest)


def test_page_is_well_formed_and_loads_nothing(finished_run: Finished) -> None:
    text = page(finished_run)
    parsed = Page(text)
    assert parsed.open == []
    assert text.startswith("<!doctype html>")
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "form", "a"}
    attributes = {name for _, each in parsed.tags for name in each}
    assert not {name for name in attributes if name.startswith("on")} | attributes & {"src", "href"}
    assert "default-src 'none'" in text
    assert not re.search(r"@import|(?<!#)url\((?!#)", text)


def test_page_says_in_words_what_colours_say(finished_run: Finished) -> None:
    text = page(finished_run)
    for words in ("Accepted", "✓ asserted", "? unknown", "SIMULATED.", "code: scripts", "hospital-a"):
        assert words in text
    assert "Why it is not accepted" not in text


def test_page_of_a_refused_run_begins_with_why(finished_run: Finished) -> None:
    bundle = edit(finished_run.bundle, "train", receipt=None)
    text = render_html(finished_run.audit(bundle), finished_run.world.manifest)
    assert "Refused" in text
    assert text.index("Why it is not accepted") < text.index("What ran")
    assert "CLOISTER-5364" in text


def test_page_of_a_run_with_something_required_unknown(finished_run: Finished) -> None:
    text = page(finished_run, pins=None)
    assert "Not accepted: something required is unknown" in text
    assert "Why it is not accepted" in text


def test_hostile_words_are_text(finished_run: Finished) -> None:
    manifest = finished_run.world.manifest.model_copy(update={"purpose": '<script>alert("x")</script>'})
    text = render_html(finished_run.audit(), manifest)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_manifest_that_breaks_its_rules_gets_a_page_without_a_graph(finished_run: Finished) -> None:
    manifest = finished_run.world.manifest
    train = manifest.stages["train"].model_copy(update={"inputs": ("model",)})
    broken = manifest.model_copy(update={"stages": {**manifest.stages, "train": train}})
    bundle = finished_run.bundle.model_copy(update={"signed": SignedManifest(manifest=broken)})
    text = render_html(finished_run.audit(bundle), broken)
    assert "<svg" not in text
    assert "Refused" in text


def test_tables_of_all_groups_align(finished_run: Finished) -> None:
    text = page(finished_run)
    assert text.count('<table class="checks">') == text.count('<col class="status"><col class="of"><col>')
    assert "table-layout: fixed" in text


# ---- the graph -------------------------------------------------------------------------------------------------


def boxes(svg: str) -> dict[str, tuple[int, int]]:
    found = re.findall(r"<g class=\"(\w+)\"><title>([^<]*)</title><rect x=\"(\d+)\" y=\"(\d+)\"", svg)
    return {f"{kind} {title}": (int(x), int(y)) for kind, title, x, y in found}


def test_code_stands_inside_its_stage_and_data_flows_left_to_right(finished_run: Finished) -> None:
    svg = draw_graph(finished_run.world.manifest)
    place = boxes(svg)
    assert not any("scripts" in name for name in place)
    assert svg.count("code: scripts") == 2
    assert place["image data-a"][0] < place["stage prepare"][0] < place["stage train"][0] < place["party hospital-a"][0]
    assert svg.count('class="edge"') == 5
    assert {"joined", "model", "metrics"} <= set(re.findall(r'class="label"[^>]*>([^<]*)<', svg))


def skipping(manifest: Manifest) -> Manifest:
    """``train`` reads ``data-a`` too: an edge that passes the column of ``prepare``."""
    train = manifest.stages["train"].model_copy(update={"inputs": ("joined", "data-a")})
    return manifest.model_copy(update={"stages": {**manifest.stages, "train": train}})


def test_no_edge_runs_behind_a_box(finished_run: Finished) -> None:
    svg = draw_graph(skipping(finished_run.world.manifest))
    passing = [tuple(map(int, each)) for each in re.findall(r" (\d+) (\d+)H(\d+)", svg)]
    assert len(passing) == 1
    for x, y in boxes(svg).values():
        assert not any(start < x + 150 and x < end and y <= level <= y + 50 for start, level, end in passing)


def test_boxes_never_overlap(finished_run: Finished) -> None:
    manifest = finished_run.world.manifest
    for each in (manifest, skipping(manifest), many_stages(manifest, 30)):
        places = list(boxes(draw_graph(each)).values())
        for i, (x, y) in enumerate(places):
            assert all(abs(x - u) >= 150 or abs(y - v) >= 50 for u, v in places[i + 1 :])


@pytest.mark.slow
def test_page_of_a_long_run(tmp_path: Path) -> None:
    world = World.make(tmp_path, change=lambda manifest: many_stages(manifest, 40))
    world.install()
    bundle = Place.start(world, tmp_path).run().bundle()
    text = render_html(verify(bundle, at=world.clock()), world.manifest)
    assert Page(text).open == []
    world.close()
