"""A search by Optuna as a sweeper of Hydra's: ``fedwsa --multirun hydra/sweeper=optuna ...``.

Each trial is a run, which answers by its accuracy on the validation split; a run that falls behind
the others is ended early. hydra-optuna-sweeper needs Optuna before 3.0, and prunes nothing.
"""

from __future__ import annotations

import csv
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from pydantic import NonNegativeInt, PositiveInt

from fedwsa.config.component import ConfigError, check_arguments
from fedwsa.data.cache import place
from fedwsa.runfolder.files import write_text

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

    from server.callbacks.choosing import Report

# optuna is imported where a search begins: it is an extra, and takes a second.

_INTERRUPTED, _TOLD = "interrupted", "told"  # attributes of a trial, of a study

_trial: Trial | None = None  # of the run that is being played


def report_of_trial() -> Report | None:
    """Tells the search how good the run is after so many evaluations, and whether it is to end.

    None where the run is no trial.
    """
    return None if _trial is None else partial(_report, _trial)


def _report(trial: Trial, evaluations: int, accuracy: float) -> bool:
    trial.report(accuracy, evaluations)
    return bool(trial.should_prune())


@contextmanager
def _playing(trial: Trial) -> Iterator[None]:
    global _trial
    _trial = trial
    try:
        yield
    finally:
        _trial = None


class OptunaSweeper(Sweeper):
    """Chooses the values of each run by what the runs before it were worth.

    Takes the keys of ``hydra.sweeper``, which :class:`Asked` describes.
    """

    def __init__(self, **keys: Any) -> None:
        self._keys = keys  # checked where Hydra adds no lines of its own

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra has composed."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Play the trials one after the other, and say which was the best.

        Raises
        ------
        ConfigError
            If there is nothing to search, or nothing to choose by.
        """
        asked = Asked(**check_arguments(Asked, self._keys, "hydra.sweeper"))
        if find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper=optuna: needs pip install 'fedwsa[optuna]'")
        assert self.hydra_context is not None  # set up before
        assert self.config is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
        fixed = [_word(o) for o in overrides if not o.is_sweep_override()]
        if not space:
            raise ConfigError(
                "hydra/sweeper=optuna: there is nothing to search; give a key a range or choices: "
                "'local.lr=tag(log,interval(0.001,0.3))' wsa=off,on"
            )
        some = {key: _a_value(kind) for key, kind in space.items()}
        composed = loader.load_sweep_config(self.config, [*fixed, *_words(some)])
        for key, kind in space.items():
            for choice in getattr(kind, "choices", ())[1:]:  # each option is there
                loader.load_sweep_config(self.config, [*fixed, *_words({**some, key: choice})])
        if not composed.evaluation.validation:
            raise ConfigError(
                "hydra/sweeper=optuna: a search chooses on images that are neither clients' nor of "
                "the test set; give evaluation.validation=0.1"
            )
        folder = Path(self.config.hydra.sweep.dir)
        study = _study(asked, space, _told(overrides))
        folder.mkdir(parents=True, exist_ok=True)
        while (number := len(_counted(study))) < asked.trials:
            if asked.sampler == "grid" and len(_begun(study)) == len(study.trials):
                break  # all of it
            trial = study.ask(dict(space))
            words = _words(trial.params)
            of = asked.trials if asked.sampler != "grid" else min(asked.trials, len(study.trials))
            print(f"search: trial {number + 1} of {of}: {shlex.join(words)}", flush=True)
            try:
                self._play(study, trial, [*fixed, *words])
            finally:
                write_trials(study, folder / "search.csv")
        _tell_the_best(study)

    def _play(self, study: Study, trial: Trial, words: list[str]) -> None:
        """Play a run, and tell the study what it was worth."""
        from optuna.trial import TrialState

        assert self.launcher is not None  # set up before
        try:
            with _playing(trial):
                [played] = self.launcher.launch([words], initial_job_idx=trial.number)
        except BaseException:
            trial.set_user_attr(_INTERRUPTED, True)
            study.tell(trial, state=TrialState.FAIL)
            raise
        accuracy = played.return_value  # raises what the run has raised
        if math.isnan(accuracy):
            study.tell(trial, state=TrialState.FAIL)
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, accuracy)


_PLUGINS = "hydra_plugins"


def register() -> None:
    """Let Hydra know, before it composes; once or more.

    Hydra takes plugins of a package of one name alone, and a wheel of ours has no name but fedwsa:
    so the module is made here.
    """
    Plugins.instance().register(OptunaSweeper)
    module = ModuleType(OptunaSweeper.__module__)
    module.OptunaSweeper = OptunaSweeper  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    if _PLUGINS not in sys.modules and find_spec(_PLUGINS) is None:
        sys.modules[_PLUGINS] = ModuleType(_PLUGINS)
    import_module(_PLUGINS).fedwsa = module  # type: ignore[attr-defined]


OptunaSweeper.__module__ = f"{_PLUGINS}.fedwsa"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a search is told: the keys of ``hydra.sweeper``.

    Attributes
    ----------
    trials : int
        Runs, those in the storage included.
    sampler : str
        ``tpe`` (Optuna's TPE), ``random``, or ``grid`` of choices and ranges.
    seed : int
        Of the sampler.
    pruning : bool
        Whether a run ends once its best validation accuracy is below the median of the others'
        after as many evaluations.
    pruning_after : int
        Runs that are played to their end before.
    storage : str or None
        A file that the search is kept in, and goes on from; None: nowhere.
    """

    trials: PositiveInt
    sampler: Literal["tpe", "random", "grid"]
    seed: NonNegativeInt
    pruning: bool
    pruning_after: NonNegativeInt
    storage: str | None


def _study(asked: Asked, space: Mapping[str, BaseDistribution], told: list[str]) -> Study:
    """The search, as far as its storage has it; of a grid all trials wait in it.

    Raises
    ------
    ConfigError
        If the storage is none, or holds a search that was told something else.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if asked.pruning:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=asked.pruning_after)
    try:
        storage = None
        if asked.storage is not None:
            storage = JournalStorage(JournalFileBackend(str(place(asked.storage))))
        study = optuna.create_study(
            study_name="fedwsa",
            direction="maximize",
            pruner=pruner,
            storage=storage,
            load_if_exists=True,
        )
    except Exception as error:  # a file that holds something else makes it raise anything
        raise ConfigError(f"hydra.sweeper.storage: {asked.storage} holds no search") from error
    if unlike := sorted(set(study.user_attrs.get(_TOLD, told)) ^ set(told)):
        raise ConfigError(
            f"hydra.sweeper.storage: {asked.storage} holds another search: {', '.join(unlike)}"
        )
    study.set_user_attr(_TOLD, told)
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:  # whoever played it was killed
            study.tell(trial.number, state=TrialState.FAIL)
    seed = asked.seed + len(_begun(study))  # who goes on does not draw the same again
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    if asked.sampler == "tpe":
        study.sampler = optuna.samplers.TPESampler(seed=seed)
    if asked.sampler == "grid":
        for values in product(*_grid(space).values()):
            study.enqueue_trial(dict(zip(space, values, strict=True)), skip_if_exists=True)
    return study


def _told(overrides: Sequence[Override]) -> list[str]:
    """What makes a search another one: all that stands on its line, but the search's own keys."""
    return sorted(str(override.input_line) for override in overrides)


def _counted(study: Study) -> list[FrozenTrial]:
    """The trials that were played, to their end or to their own failure."""
    return [trial for trial in _begun(study) if not trial.user_attrs.get(_INTERRUPTED)]


def _begun(study: Study) -> list[FrozenTrial]:
    """The trials that do not wait."""
    from optuna.trial import TrialState

    return [trial for trial in study.trials if trial.state != TrialState.WAITING]


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _word(override: Override) -> str:
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def distribution(override: Override) -> BaseDistribution:
    """What Optuna draws a key's values from.

    Raises
    ------
    ConfigError
        If there is nothing in the range.
    """
    from optuna import distributions

    sweep, key = override.value(), override.get_key_element()
    try:
        if isinstance(sweep, IntervalSweep):
            low, high, log = sweep.start, sweep.end, "log" in sweep.tags
            assert low is not None
            assert high is not None
            if isinstance(low, int) and isinstance(high, int):
                return distributions.IntDistribution(low, high, log=log)
            return distributions.FloatDistribution(float(low), float(high), log=log)
        if isinstance(sweep, RangeSweep) and isinstance(sweep.range(), range):
            steps = sorted(sweep.range())
            if not steps:
                raise ValueError("there is nothing in the range")
            return distributions.IntDistribution(steps[0], steps[-1], step=abs(int(sweep.step)))
        return distributions.CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def _a_value(kind: BaseDistribution) -> Any:
    from optuna import distributions

    if isinstance(kind, distributions.CategoricalDistribution):
        return kind.choices[0]
    assert isinstance(kind, distributions.IntDistribution | distributions.FloatDistribution)
    return kind.low


def _grid(space: Mapping[str, BaseDistribution]) -> dict[str, list[Any]]:
    """All values of each key."""
    from optuna import distributions

    found: dict[str, list[Any]] = {}
    for key, kind in space.items():
        if isinstance(kind, distributions.CategoricalDistribution):
            found[key] = list(kind.choices)
        elif isinstance(kind, distributions.IntDistribution):
            found[key] = list(range(kind.low, kind.high + 1, kind.step))
        else:
            raise ConfigError(f"hydra.sweeper.sampler=grid: {key} has a range without steps")
    return found


def write_trials(study: Study, file: Path) -> None:
    """A row for each trial: its number, state, validation accuracy, evaluations and values."""
    keys = sorted({key for trial in _begun(study) for key in trial.params})
    table = StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", "state", "validation_accuracy", "evaluations", *keys])
    for trial in _begun(study):
        values = [trial.params.get(key, "") for key in keys]
        seen, state = len(trial.intermediate_values), trial.state.name.lower()
        writer.writerow([trial.number, state, trial.value, seen, *values])
    write_text(file, table.getvalue())


def _tell_the_best(study: Study) -> None:
    from optuna.trial import TrialState

    if not study.get_trials(states=[TrialState.COMPLETE]):
        return  # what failed was said
    pruned = len(study.get_trials(states=[TrialState.PRUNED]))
    best = study.best_trial
    words = shlex.join(_words(best.params))
    print(
        f"search: {len(_begun(study))} trials, {pruned} ended early; the best is {best.number}, "
        f"with a validation accuracy of {best.value:.4f}:\n  {words}"
    )
