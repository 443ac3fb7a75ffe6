"""Texts with a meaning in HTML, LaTeX or jinja2, in every kind of block."""

from html.parser import HTMLParser

from vggrepro.reporting.documents.blocks import Block, Bullets, Figure, Heading, Sheet, Text, to_html, to_latex

HOSTILE = r"""<script>"&amp;' 1 % $x$ a_b {c} \d [e] ~^ | {{ f }} {% g %} <<h>> <% i %>"""
IN_LATEX = (
    r"""\textless{}script\textgreater{}"\&amp;' 1 \% \$x\$ a\_b \{c\} \textbackslash{}d {[}e{]} """
    r"""\textasciitilde{}\textasciicircum{} | \{\{ f \}\} \{\% g \%\} """
    r"""\textless{}\textless{}h\textgreater{}\textgreater{} \textless{}\% i \%\textgreater{}"""
)
BLOCKS: list[Block] = [
    Heading(1, HOSTILE),
    Text(HOSTILE),
    Heading(3, HOSTILE),
    Bullets([HOSTILE, HOSTILE]),
    Sheet((HOSTILE, "n"), [(HOSTILE, "1"), ("-", "2")], strong=0, numbers=frozenset({1})),
    Figure(b"\x89PNG", HOSTILE),
]


class Page(HTMLParser):
    """The tags of a page, and its texts with those of `alt`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.replace("\N{NO-BREAK SPACE}", " "))


def test_html_shows_hostile_texts_as_they_are() -> None:
    page = Page(to_html(HOSTILE, BLOCKS))
    assert page.texts.count(HOSTILE) == 11  # also the title, a link to the section, the figure's heading and its alt
    assert "script" not in page.tags
    assert page.tags.count("td") == 4


def test_latex_shows_hostile_texts_as_they_are() -> None:
    text = to_latex(BLOCKS)
    assert rf"\subsection*{{{IN_LATEX}}}" in text
    assert f"\n\n{IN_LATEX}\n\n" in text
    assert rf"\paragraph{{{IN_LATEX}}}" in text
    assert text.count(f"\\item {IN_LATEX}\n") == 2
    assert rf"\caption{{{IN_LATEX}. {IN_LATEX}}}" in text
    assert r"\begin{tabular}{>{\raggedright\arraybackslash}p{65mm}r}" in text
    stacked = IN_LATEX.replace(" ", r"\\")
    assert rf"\shortstack[l]{{{stacked}}} & \shortstack[r]{{n}} \\" in text
    assert f"\\textbf{{{IN_LATEX}}} & 1 \\\\\n- & 2 \\\\\n" in text
