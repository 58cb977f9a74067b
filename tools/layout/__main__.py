"""Keeps layout 1 as it is: compares it with tests/layout_v1.json and writes docs/layout.md.

To freeze is to change what two ends of different releases may rely on. A minor version may only add, as "Versions" in
shm/layout.h says; freeze refuses what breaks an end of the frozen layout, unless no release has carried it yet.
"""

import argparse
import sys

from tools.layout.description import FROZEN, Description, Difference, describe, differences, read_frozen, text_of
from tools.layout.header import ROOT, HeaderError
from tools.layout.page import PAGE, page

BREAKS = """\
An end that was built for the frozen layout would misread this one. Take the change back, or make it another major
version (RWAY_LAYOUT_MAJOR), which has a file of its own. Only while no release has carried the frozen layout:
./run layout freeze --before-release"""
ADDS = """\
Additions, which a minor version may make: see "Versions" in shm/layout.h and docs/adr/0007-layout-1-is-frozen.md. Raise
RWAY_LAYOUT_MINOR if a release has carried the frozen layout. To take them up: ./run layout freeze"""


def show(found: list[Difference], title: str) -> None:
    if found:
        print(title)
        for difference in found:
            print(f"  {difference}")


def check() -> int:
    """Is everything as it is frozen and written? 0 or 1."""
    now = describe()
    found = differences(read_frozen(), now)
    broken = [difference for difference in found if difference.breaks]
    added = [difference for difference in found if not difference.breaks]
    show(broken, "frozen, and changed:")
    show(added, "not frozen yet:")
    if found:
        print(BREAKS if broken else ADDS)
    is_current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page(now)
    if not is_current:
        print(f"{PAGE.relative_to(ROOT)} is not what shm/layout.h says: ./run layout page")
    return 0 if is_current and not found else 1


def freeze(before_release: bool) -> int:
    """Take the layout as it is now for the frozen one, and write the page. 0, or 1 when that would break an end."""
    now = describe()
    found = differences(read_frozen(), now)
    broken = [difference for difference in found if difference.breaks]
    show(found, f"{FROZEN.relative_to(ROOT)}: this changes the layout that other ends rely on:")
    if broken and not before_release:
        print(f"refused: {len(broken)} of these {len(found)} break an end.\n{BREAKS}")
        return 1
    if not found:
        print(f"{FROZEN.relative_to(ROOT)}: as it was")
    FROZEN.write_text(text_of(now), encoding="utf-8")
    return write_page(now)


def write_page(now: Description) -> int:
    PAGE.write_text(page(now), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written")
    return 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="./run layout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="say what is not as it is frozen, and whether the page is current")
    commands.add_parser("page", help="write docs/layout.md")
    command = commands.add_parser("freeze", help="change the frozen layout to what it is now, and write docs/layout.md")
    command.add_argument("--before-release", action="store_true", help="also what breaks an end of the frozen layout")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "freeze":
            return freeze(chosen.before_release)
        return check() if chosen.command == "check" else write_page(describe())
    except HeaderError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
