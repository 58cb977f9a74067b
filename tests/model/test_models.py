"""What the models claim holds in every state within their bounds, and no mutant of them passes. See docs/proved.md."""

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.spin import MODELS, replay, search

# A model with the switches that choose its variant and bound.
Variant = tuple[str, ...]

CLAIMS: list[Variant] = [
    ("ring",),
    ("ring", "WEAK"),
    ("bell", "LAST=6"),
    ("bell", "SLOTS=4", "LAST=6", "WEAK"),
    ("bell", "DUPLEX", "LAST=2"),
    ("bell", "RESTARTS", "LAST=4"),
    ("bell", "FORWARDER", "SLOTS=1", "LAST=2", "STORES=2"),
    ("bell", "JOBS", "SLOTS=1", "LAST=2", "STORES=2"),
    ("crash",),
    ("forwarder",),
    ("hostile", "BAD_IN"),
    ("hostile", "BAD_OUT"),
]

MUTANTS: dict[Variant, tuple[str, ...]] = {
    ("ring",): (
        "HEAD_BEFORE_DESCRIPTOR",
        "FRAME_IN_TWO_STEPS",
        "TAIL_NOT_LOOKED_AT",
        "TAIL_BEFORE_READING",
    ),
    ("ring", "WEAK"): (
        "HEAD_STORED_RELAXED",
        "HEAD_LOADED_RELAXED",
    ),
    ("bell",): (
        "SETTLE_WITHOUT_FENCE",
        "SLEEPER_WITHOUT_FENCE",
        "SLEEPER_LOOKS_NO_SECOND_TIME",
        "SLEEPS_UNSETTLED",
        "MORE_COUNTS_AS_LOOKED_AT",
        "WAKES_AT_THE_VALUE_ONLY",
        "BELL_OVERTAKES_THE_COUNTER",
    ),
    ("bell", "DUPLEX", "LAST=2"): (
        "SETTLE_WITHOUT_FENCE",
        "SLEEPER_WITHOUT_FENCE",
    ),
    ("bell", "RESTARTS", "LAST=4"): ("ATTACHES_IN_SILENCE",),
    ("bell", "FORWARDER", "SLOTS=1", "LAST=2", "STORES=2"): (
        "SETTLE_WITHOUT_FENCE",
        "SLEEPER_WITHOUT_FENCE",
        "SLEEPS_UNSETTLED",
    ),
    ("bell", "JOBS", "SLOTS=1", "LAST=2", "STORES=2"): (
        "ONE_JOB_IS_ARMED",
        "ONE_JOB_IS_LOOKED_AT_AGAIN",
        "SETTLE_WITHOUT_FENCE",
        "SLEEPER_WITHOUT_FENCE",
        "SLEEPS_UNSETTLED",
    ),
    ("crash",): (
        "COMMIT_IN_ONE_COPY",
        "COUNTER_BEFORE_COMMIT",
        "DROPS_BEFORE_COUNTER",
        "RESUMED_IN_THE_LIVE_COPY",
        "BEGUN_IS_NOT_STORED",
        "BEGUN_AFTER_HANDING_ON",
        "REFUSED_IS_NOT_THE_LAST",
    ),
    ("forwarder",): (
        "PUBLISHED_BEFORE_RELEASED",
        "LOST_IS_NOT_BOOKED",
        "WAITING_IS_RELEASED",
        "JOINED_BEFORE_LEAD",
        "REPLICATED_AFTER_THE_COUNTER",
        "COMMIT_IN_ONE_COPY",
        "COUNTER_BEFORE_COMMIT",
        "DROPS_BEFORE_COUNTER",
        "RESUMED_IN_THE_LIVE_COPY",
    ),
    ("hostile", "BAD_IN"): (
        "HEAD_IS_NOT_CHECKED",
        "HEAD_IS_LOADED_TWICE",
        "DESCRIPTOR_IS_LOADED_TWICE",
        "LENGTH_IS_NOT_CHECKED",
        "SLOTS_ARE_BELIEVED",
        "FRAMES_MAY_BE_INCOMPLETE",
        "BEGUN_IS_NOT_COMPARED_WITH_HEAD",
    ),
    ("hostile", "BAD_OUT"): (
        "ATTACHES_TO_ANY_COUNTERS",
        "TAIL_IS_NOT_CHECKED",
        "TAIL_IS_LOADED_TWICE",
        "BROKEN_OUTPUT_STOPS_THE_INPUT",
    ),
}

BOUNDS_AND_VARIANTS = {
    "WEAK",
    "DUPLEX",
    "RESTARTS",
    "FORWARDER",
    "JOBS",
    "PROCESSES",
    "BAD_IN",
    "BAD_OUT",
    "SLOTS",
    "STORES",
    "LAST",
    "KILLS",
}


def name(variant: Variant) -> str:
    return "-".join(variant)


def mutants() -> list[object]:
    return [
        pytest.param(variant, mutant, id=f"{name(variant)}-{mutant}")
        for variant, changed in MUTANTS.items()
        for mutant in changed
    ]


def need_spin() -> None:
    for tool in ("spin", "gcc", "prlimit"):
        require(shutil.which(tool) is not None, f"{tool} is not installed; ./run test --full installs it where it may")


@pytest.mark.full
@pytest.mark.timeout(580)
@pytest.mark.parametrize("variant", CLAIMS, ids=name)
def test_a_model_keeps_its_claims_in_every_state(variant: Variant, tmp_path: Path) -> None:
    need_spin()
    model, *switches = variant
    found = search(model, tuple(switches), tmp_path)
    assert found.errors == 0, f"{found.error}\n{replay(model, tuple(switches), tmp_path)}"
    assert found.is_complete, found.output
    assert found.unreached == [], "statements that are never executed show nothing"


@pytest.mark.full
@pytest.mark.timeout(580)
@pytest.mark.parametrize(("variant", "mutant"), mutants())
def test_a_mutant_breaks_a_claim(variant: Variant, mutant: str, tmp_path: Path) -> None:
    need_spin()
    model, *switches = variant
    found = search(model, (*switches, mutant), tmp_path)
    assert found.error, f"the model does not notice {mutant}: it is too weak\n{found.output}"


def test_every_mutant_that_is_written_down_in_a_model_is_tried_and_listed() -> None:
    page = (MODELS.parent.parent / "docs" / "proved.md").read_text()
    tried = {mutant for changed in MUTANTS.values() for mutant in changed}
    written = {
        switch
        for model in MODELS.glob("*.pml")
        for line in re.findall(r"^#(?:if|elif|ifdef|ifndef) .*$", model.read_text(), re.MULTILINE)
        for switch in re.findall(r"\b[A-Z][A-Z_]+\b", line)
    }
    assert written - BOUNDS_AND_VARIANTS == tried
    assert {mutant for mutant in tried if f"`{mutant}`" not in page} == set()
