from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from report.made import EVIL
from torchkeep.report.markup import LONGEST_TEXT, Markup, escaped, joined, name_of, tag


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.met: list[object] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.met.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.met.append(data)


@given(st.text(st.characters(), min_size=1))
def test_a_text_stays_a_text_wherever_it_stands(text: str):
    tooltip, shown = Reader(tag("p", text, title=text)).met[0], escaped(text)
    assert tooltip == ("p", {"title": Reader(shown).met[0]})
    assert len(Reader(joined(text)).met) == 1
    assert not set(shown) & set("<>\"'")
    shown.encode("utf-8")


def test_markup_stays_and_text_beside_it_is_escaped():
    assert tag("p", tag("b", "x"), " & ", [1, None, "<"]) == "<p><b>x</b> &amp; 1&lt;</p>"
    assert escaped(EVIL).endswith("&amp;amp;\\u202egnp.exe")


def test_attributes_are_named_as_in_html():
    found = tag("td", class_="a b", data_x=1, aria_label='"', open="", title=None)
    assert found == '<td class="a b" data-x="1" aria-label="&quot;" open></td>'
    assert tag("meta", name="x") == '<meta name="x">'


def test_a_text_without_end_is_cut():
    assert escaped("x" * (LONGEST_TEXT + 1)) == "x" * LONGEST_TEXT + "..."
    assert isinstance(escaped("x"), Markup)
    assert name_of("abcdef", 4) == '<bdi title="abcdef">abc…</bdi>'
    assert name_of("") == "<bdi>(no name)</bdi>"
