"""Federated WAVE: clients of all sizes train the same templates, each size its own scalers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from fedwsa.algorithms.averaging import Sampling
from fedwsa.algorithms.run_facts import RunFacts
from fedwsa.algorithms.sizes.layout import Shapes
from fedwsa.algorithms.sizes.server import SizedFedAvg
from fedwsa.algorithms.traits import Traits
from fedwsa.learngene import kronecker, wave
from fedwsa.models.architecture import Architecture, Axes, Outline
from fedwsa.wire import messages


class FedWave(SizedFedAvg):
    """Average templates over all clients, and everything else among the clients of a size.

    A client is sent the templates and, of its size, scalers and shell; it trains all of them,
    its weights made from them in every step (:mod:`fedwsa.learngene.wave`). So sizes of any
    width and depth learn from each other without being parts of one another.

    It begins with the templates of a learngene (:meth:`take_templates`), by which networks that
    were made of it are met exactly; or with those that come closest to the initial weights of all
    sizes, of each group the N principal blocks, the variance of each layer kept.

    Source: the rule is WAVE's, arXiv 2406.17503; its federation is ours.

    Parameters
    ----------
    shapes
        As for :class:`fedwsa.algorithms.sizes.server.SizedFedAvg`: of the networks themselves.
    architecture
        Names the weight groups.
    axes
        Of the largest size.
    count
        N, templates of a group; fewer where there are fewer blocks.
    size_of, sampling
        As for ``SizedFedAvg``.

    Raises
    ------
    ValueError
        If no templates make the weights of all sizes.
    """

    traits: ClassVar[Traits] = replace(SizedFedAvg.traits, wants=("shapes", "axes", "architecture"))
    most_alike = "all sizes need the same weight groups"

    def __init__(
        self,
        shapes: Shapes,
        *,
        architecture: Architecture,
        axes: Axes | None = None,
        count: int = 16,
        size_of: Callable[[int], str] | None = None,
        **sampling: Unpack[Sampling],
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1; got {count}")
        self._known, self._whole = architecture, shapes
        outlines = {
            size: Outline({k: torch.Size(v) for k, v in of.items()}, axes or {})
            for size, of in shapes.items()
        }
        blocks = wave.template_shapes(list(outlines.values()), architecture)
        there = dict.fromkeys(blocks, 0)
        for of in shapes.values():
            for name, shape in of.items():
                if (group := architecture.group(name)) is not None:
                    there[group] += kronecker.scaler_count(shape, blocks[group], 1)
        self._templates = {
            group: (min(count, there[group], torch.Size(block).numel()), *block)
            for group, block in blocks.items()
        }
        self._given: dict[str, Tensor] | None = None
        super().__init__(
            {size: self._sent(of) for size, of in shapes.items()},
            size_of=size_of,
            own=rf"(?!{wave.TEMPLATES})",
            **sampling,
        )

    def require(self, run: RunFacts) -> None:
        """Refuse, beside what any sizes do, to transform kernels, which no client trains."""
        super().require(run)
        if run.transforms_weights:
            raise ValueError(
                "local.weight_augmentation: FedWave's clients train the templates that their "
                "kernels are made from; take it with another strategy"
            )

    def learn_from(self, learned: Mapping[str, Tensor]) -> None:
        """Begin with the templates of a learngene, if it has any."""
        if templates := wave.templates_in(learned):
            self.take_templates(templates)

    def take_templates(self, templates: Mapping[str, Tensor]) -> None:
        """Take these templates, whatever their size and number, instead of finding some.

        Parameters
        ----------
        templates
            Weight group → T, as a learngene has them.

        Raises
        ------
        ValueError
            If they do not make the weights of all sizes; nothing is changed then.
        """
        before = self._templates
        if missing := before.keys() - templates.keys():
            raise ValueError(f"there are no templates for {min(missing)}")
        self._templates = {group: tuple(templates[group].shape) for group in before}
        try:
            self._lay_out({size: self._sent(of) for size, of in self._whole.items()})
        except ValueError:
            self._templates = before
            raise
        self._given = {group: templates[group] for group in before}

    def _sent(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what a client is sent, from those of its network."""
        groups = {self._known.group(name) for name in shapes}  # a shallow network lacks some
        sent: dict[str, tuple[int, ...]] = {
            wave.TEMPLATES + group: shape
            for group, shape in self._templates.items()
            if group in groups
        }
        for name, shape in shapes.items():
            group = self._known.group(name)
            if group is None:
                sent[name] = shape
            else:
                count, *block = self._templates[group]
                layer = name.removesuffix(".weight")
                sent[wave.SCALERS + layer] = (count, *kronecker.grid(shape, block))
        return sent

    def join(self, states: Mapping[str, Mapping[str, Tensor]]) -> ArrayRecord:
        """Templates, scalers and shells of the networks' states."""
        templates = self._principal(states) if self._given is None else self._given
        made: dict[str, dict[str, Tensor]] = {}
        for size, state in states.items():
            made[size] = {wave.TEMPLATES + group: t for group, t in templates.items()}
            for name in self._whole[size]:
                group = self._known.group(name)
                if group is None:
                    made[size][name] = state[name]
                    continue
                scalers = kronecker.fit_scalers(state[name], templates[group])
                layer = name.removesuffix(".weight")
                made[size][wave.SCALERS + layer] = _as_loud(scalers, templates[group], state[name])
        return super().join(made)

    def _principal(self, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The templates whose span comes closest to all weights, as large as those are."""
        found = {}
        for group, (count, *block) in self._templates.items():
            blocks = torch.cat(
                [
                    kronecker.blocks_of(state[name], block)
                    for size, state in states.items()
                    for name in self._whole[size]
                    if self._known.group(name) == group
                ]
            )
            spanned = torch.linalg.svd(blocks.double(), full_matrices=False).Vh[:count]
            scale = blocks.double().square().mean().sqrt() * blocks.shape[1] ** 0.5
            found[group] = (scale * spanned).to(blocks.dtype).view(count, *block)
        return found

    def plain(self, arrays: ArrayRecord, size: str, server_round: int) -> ArrayRecord:
        """The state of a size's network, its weights made from the templates."""
        tensors = messages.to_tensors(self.split(arrays, size, server_round))
        state = {}
        for name in self._whole[size]:
            group = self._known.group(name)
            if group is None:
                state[name] = tensors[name]
            else:
                scalers = tensors[wave.SCALERS + name.removesuffix(".weight")]
                state[name] = kronecker.kronecker(scalers, tensors[wave.TEMPLATES + group])
        return messages.to_arrays(state)

    def aligned(self, arrays: ArrayRecord, server_round: int) -> ArrayRecord:
        """Templates and shell: a scope of scalers would say nothing."""
        sent = messages.to_tensors(self.split(arrays, self.largest, server_round))
        kept = {k: t for k, t in sent.items() if not k.startswith(wave.SCALERS)}
        return messages.to_arrays(kept)


def _as_loud(scalers: Tensor, templates: Tensor, weight: Tensor) -> Tensor:
    """The scalers times a factor that gives their weight the variance of another one."""
    variance = kronecker.kronecker(scalers, templates).var(correction=0)
    return scalers * (weight.var(correction=0) / variance).sqrt() if variance > 0 else scalers
