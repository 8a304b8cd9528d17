"""Tensors of one network for another size of the same kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fedwsa.models.architecture import (
    Architecture,
    Axis,
    Outline,
    Pick,
    entries,
    repeated_units,
    selection,
    take,
)

DepthRule = Callable[[int, int], list[int]]
"""(blocks wanted L, blocks there A) → for each of the L blocks, which of the A it takes."""


def relative_depth(wanted: int, there: int) -> list[int]:
    """The block at the same relative depth: first takes first, last takes last."""
    if wanted == 1:
        return [0]
    return [round(i * (there - 1) / (wanted - 1)) for i in range(wanted)]


def first_blocks(wanted: int, there: int) -> list[int]:
    """The first blocks.

    Raises
    ------
    ValueError
        If there are not enough.
    """
    if wanted > there:
        raise ValueError(f"{wanted} blocks are wanted, and there are only {there}")
    return list(range(wanted))


def sources(
    wanted: Iterable[str], there: Iterable[str], architecture: Architecture, depth: DepthRule
) -> dict[str, str]:
    """Which tensor each wanted one is made from: of its name, or of another block.

    Raises
    ------
    ValueError
        If there is none for one.
    """
    wanted, there = list(wanted), set(there)
    rows, columns = block_numbers(wanted, architecture), block_numbers(there, architecture)
    found = {}
    for name in wanted:
        source, block = name, architecture.block(name)
        if block is not None and block[0] in columns:
            sequence, number, rest = block
            taken = depth(len(rows[sequence]), len(columns[sequence]))
            source_number = columns[sequence][taken[rows[sequence].index(number)]]
            source = f"{sequence}{source_number}{rest}"
        if source not in there:
            raise ValueError(f"nothing to make {name} from")
        found[name] = source
    return found


def block_numbers(names: Iterable[str], architecture: Architecture) -> dict[str, list[int]]:
    """Sequence → the numbers of its blocks, in order."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if (block := architecture.block(name)) is not None:
            found[block[0]].add(block[1])
    return {sequence: sorted(numbers) for sequence, numbers in found.items()}


def resized(
    tensors: Mapping[str, Tensor],
    source: Outline,
    target: Outline,
    architecture: Architecture,
    *,
    depth: DepthRule = relative_depth,
    pick: Pick = repeated_units,
    rescale: bool = True,
) -> dict[str, Tensor]:
    """Tensors for the target network from those of a source network.

    With ``rescale``, where a tensor gets other input units (its second dimension), it is
    multiplied by (units there)/(units wanted), so that sums over the units keep their size: a
    network that is widened by repeating its units computes the same function.

    Parameters
    ----------
    tensors
        By the names of the source; some of them may be missing, and are not made.
    target
        Names and shapes that are wanted. A classifier of other classes is not made.
    """
    names = [n for n in target.shapes if not _other_classes(n, source, target, architecture)]
    made = {}
    for name, origin in sources(names, source.shapes, architecture, depth).items():
        if origin not in tensors:
            continue
        tensor, shape = tensors[origin], target.shapes[name]
        chosen = selection(tensor.shape, shape, source.axes.get(origin, {}), pick)
        made[name] = take(tensor, chosen)
        if rescale and len(shape) >= 2 and tensor.shape[1] != shape[1]:
            made[name] *= tensor.shape[1] / shape[1]
    return made


def _other_classes(name: str, source: Outline, target: Outline, architecture: Architecture) -> bool:
    """Whether a tensor is of a classifier with other classes than the source's."""
    if not name.startswith(architecture.classifier) or name not in source.shapes:
        return False
    return source.shapes[name][0] != target.shapes[name][0]


def resized_scalers(
    scalers: Mapping[str, Tensor],
    source: Outline,
    target: Outline,
    templates: Mapping[str, Tensor],
    architecture: Architecture,
) -> dict[str, Tensor]:
    """Scalers for the target from those of a source network, with the same templates.

    As :func:`resized`, in whole blocks: a block of the weight is a number of each scaler.

    Parameters
    ----------
    scalers
        Layer of the source → ``(N, a, b)``.

    Returns
    -------
    dict
        Layer of the target → scalers.
    """
    wanted = [name for name in target.shapes if architecture.group(name)]
    there = [name for name in source.shapes if architecture.group(name)]
    made = {}
    for name, origin in sources(wanted, there, architecture, relative_depth).items():
        template = templates[str(architecture.group(name))].shape[1:]
        tensor, layer = scalers[origin.removesuffix(".weight")], name.removesuffix(".weight")
        for side in (0, 1):
            size = target.shapes[name][side] // template[side]
            parts = source.axes.get(origin, {}).get(side, Axis()).parts
            index = entries(Axis(parts), tensor.shape[1 + side], size, repeated_units)
            if index is not None:
                scale = tensor.shape[2] / size if side == 1 else 1.0
                tensor = tensor.index_select(1 + side, index) * scale
        made[layer] = tensor.clone()
    return made


def stage_of_each(depth: int, stages: int) -> list[int]:
    """SWS's rule: ⌊depth/stages⌋ blocks for each stage, one more for the earliest.

    The paper's map of 12 blocks to 5 stages is 0,0,0,1,1,1,2,2,3,3,4,4; the rule is ours.

    Raises
    ------
    ValueError
        If there are fewer blocks than stages.
    """
    if depth < stages:
        raise ValueError(f"{depth} blocks cannot have {stages} stages")
    each, more = divmod(depth, stages)
    return [s for s in range(stages) for _ in range(each + (s < more))]


def stages_as(lengths: Iterable[int]) -> list[int]:
    """The stage of each block, where stages have these lengths."""
    return [s for s, length in enumerate(lengths) for _ in range(length)]


@torch.no_grad()
def assign(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of a network's state that they name."""
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[name].copy_(tensor)
