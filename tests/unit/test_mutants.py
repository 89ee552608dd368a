"""The catalogue of deliberate mistakes fits the code as it is; ``python -m tests.mutants`` shows each one killed."""

from __future__ import annotations

import ast

import pytest

from tests.mutants.__main__ import ROOT, Mutant, read_catalogue

CATALOGUE = read_catalogue()


@pytest.mark.parametrize("mutant", CATALOGUE, ids=[mutant.name for mutant in CATALOGUE])
def test_a_mutant_applies_to_the_code_as_it_is(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text()
    mutated = mutant.applied(source)
    assert mutated != source
    if mutant.file.endswith(".py"):
        ast.parse(mutated)
    assert all((ROOT / test.partition("::")[0]).is_file() for test in mutant.tests)
    assert mutant.promise
