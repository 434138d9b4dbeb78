"""The place in a document where a measured table stands."""

from pathlib import Path

BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def replace_measured_table(document: Path, table: str) -> None:
    """Replace what stands between the markers of a document.

    Raises:
        SystemExit: if the document lacks the markers.
    """
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document}: has no {BEGIN} and {END} around a table")
    document.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
