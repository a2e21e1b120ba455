"""A reader of HTML pages for the tests of reports."""

from collections import defaultdict
from html.parser import HTMLParser


class Page(HTMLParser):
    """What the tests ask of a page: tags with attributes, tables as lists of cell texts, captions, text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.tables, self.figures, self.text, self.open = [], [], [], "", defaultdict(int)
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open[tag] += 1
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "figure":
            self.figures.append("")

    def handle_endtag(self, tag):
        self.open[tag] -= 1

    def handle_data(self, data):
        self.text += data
        if self.open["td"] + self.open["th"] > 0:
            self.tables[-1][-1][-1] += data
        if self.open["figcaption"]:
            self.figures[-1] += data

    def table(self, corner):
        """The first table whose first heading reads so, as {first cell: {heading: cell}}."""
        return self.all_tables(corner)[0]

    def all_tables(self, corner, second=None):
        found = [t for t in self.tables if t[0][0] == corner and second in (None, t[0][1])]
        return [{row[0]: dict(zip(t[0], row, strict=False)) for row in t[1:]} for t in found]
