"""``Restorer``: loads checkpoints into models and everything else that a training consists of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ckpt_lib.finder import Finder
from ckpt_lib.formats import Payload
from ckpt_lib.loading.loader import Loader, LoadTarget
from ckpt_lib.state.naming import Naming
from ckpt_lib.state.renames import KeyMap
from ckpt_lib.state.training_state import Named, TrainingState, training_state


class Restorer(Finder):
    """Loads and resumes.

    It is the part of :class:`ckpt_lib.manager.CheckpointManager` that reads payloads.
    """

    _loader: Loader
    """Whoever extends this class creates it."""

    def load_checkpoint(
        self,
        checkpoint_id: str = "latest",
        model: Named | TrainingState | None = None,
        optimizer: Named | None = None,
        scheduler: Named | None = None,
        *,
        state: TrainingState | None = None,
        keys: Collection[str] | None = None,
        map_location: Any = "cpu",
        trust_pickle: bool = False,
        keep: Mapping[str, Collection[str]] | None = None,
        require_exact: bool = False,
        key_map: KeyMap | None = None,
        strict: bool = True,
        only: str | None = None,
    ) -> Payload:
        """Verify a checkpoint, restore it into what was passed, and return its payload as a dict.

        One that is damaged in the store is repaired from its backup first. An id, or a name where the store has no
        checkpoint at all, is looked for among the backups as well, and brought back, unless it was deleted by name.

        The dict holds the payload's keys (docs/FORMAT.md) and ``checkpoint_id``. Nothing is handed out before its bytes
        have been verified, no stored code runs unless ``trust_pickle``, and an error leaves model, optimizer and
        scheduler as they were.

        Its tensors are views of the file's memory, read when they are used. They stay valid when the checkpoint is
        deleted, whose space is free once they are gone; writing to them changes neither the file nor what was restored.

        With ``keys``, payload keys or dotted names below them such as ``"model_state_dict.encoder"``, the dict holds
        only those, and only their bytes are read and verified: damage elsewhere does not matter. A name that stands for
        nothing raises :class:`~ckpt_lib.errors.ConfigError`, as does a part to restore that ``keys`` leaves out.

        A model takes what its own ``load_state_dict`` takes. An optimizer's state is matched by parameter names where
        both sides have them, else by position; another kind of optimizer or scheduler is refused. The dict's
        ``replaced`` lists settings, such as a learning rate or the length of a schedule, that the stored state has
        overwritten, as ``{part: {name: (yours, stored)}}``; ``keep={"optimizer": ["lr"]}`` keeps yours.
        ``changed_values`` names tensors whose stored values the model's types cannot hold. With ``require_exact``, any
        value of model or optimizer that would differ is refused, if only by rounding.

        What wrappers such as ``DistributedDataParallel`` and ``torch.compile`` add to names makes no difference.
        ``key_map`` maps other stored names, or prefixes of them up to a dot, to the model's. With ``strict=False``,
        what matches is restored, and the dict lists ``missing`` and ``unexpected`` names.
        ``only="model_state_dict.encoder"`` restores what is stored below that name into the model that is passed, for
        example a submodule, and reads what ``keys`` would.

        Raises :class:`~ckpt_lib.errors.CorruptCheckpointError`, :class:`~ckpt_lib.errors.UnsafePayloadError`,
        :class:`~ckpt_lib.errors.StateMismatchError`, :class:`~ckpt_lib.errors.CheckpointNotFoundError`.
        """
        objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler, rng=False)
        naming = Naming(key_map, strict, only)
        target = LoadTarget(state=objects, keep=keep, require_exact=require_exact, naming=naming)
        return self._loader.load(checkpoint_id, target, keys=keys, map_location=map_location, trust_pickle=trust_pickle)

    def resume(
        self,
        model: Named | TrainingState | None = None,
        optimizer: Named | None = None,
        scheduler: Named | None = None,
        *,
        state: TrainingState | None = None,
        map_location: Any = "cpu",
        keep: Mapping[str, Collection[str]] | None = None,
        require_exact: bool = False,
        allow_thinned: bool = False,
    ) -> Payload | None:
        """Restore from the newest healthy checkpoint that is valid in any location, and return what
        :meth:`load_checkpoint` returns.

        One that is damaged in the store is repaired from its backup first, and one that is in the backups alone is
        brought back, unless it was deleted by name. What a crash leaves of that, the next call completes.

        Those that are damaged, unhealthy, thinned, or cannot be loaded without running code are passed over, each with
        a warning in the log; the returned dict's ``passed_over`` lists them as ``{"checkpoint_id", "reason"}``. With
        ``allow_thinned``, one that holds only its weights will do; when it is the newest, asking for the state of an
        optimizer or scheduler raises :class:`~ckpt_lib.errors.StateMismatchError`. Returns ``None`` when the experiment
        has neither checkpoint nor backup. When it has some and *none* will do, raises
        :class:`~ckpt_lib.errors.NoValidCheckpointError`: beginning again from nothing is a decision for a person. When
        it has none and the backups do not answer, raises :class:`~ckpt_lib.errors.StoreError`. When
        the package of the newest one's format is not installed, raises
        :class:`~ckpt_lib.errors.UnsupportedFormatError`.

        The checkpoint is kept for an hour: a run that is killed again before its first save needs it once more.
        ``next_epoch`` is the epoch to train next: the one after the checkpoint's, or the same if it was saved in the
        middle of that. Its first batches are then seen again. ``keep`` and ``require_exact`` are those of
        :meth:`load_checkpoint`.
        """
        objects = training_state(state, model=model, optimizer=optimizer, scheduler=scheduler)
        target = LoadTarget(state=objects, keep=keep, require_exact=require_exact)
        return self._loader.resume(target, map_location=map_location, allow_thinned=allow_thinned)
