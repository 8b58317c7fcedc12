"""Advice about the checkpoints of an experiment. No payload is read, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ckpt_lib.advice.best import Seen, best_value
from ckpt_lib.advice.directions import Directions
from ckpt_lib.advice.results import (
    KINDS,
    POLICY_COUNTS,
    Action,
    Advice,
    BestValue,
    Certainty,
    Kind,
    PolicyOutcome,
    Suggestion,
    kept_of,
)
from ckpt_lib.advice.rules import WHOLE_COUNT, Candidate, dominated, duplicates
from ckpt_lib.advice.savings import Savings
from ckpt_lib.advice.unfinished import UnfinishedFinder
from ckpt_lib.core.manifest import Manifest
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import listed
from ckpt_lib.errors import CheckpointError
from ckpt_lib.experiment.locations import Locations
from ckpt_lib.experiment.view import View
from ckpt_lib.maintenance.cleaners import at_most
from ckpt_lib.maintenance.cleanup import in_use, record_of
from ckpt_lib.maintenance.importing.report import UNPROVEN_TAG
from ckpt_lib.policies.retention import KeepNewest, RetentionPolicy, plan_retention

Step = Callable[[int, int], object]
"""Is told how many of how many checkpoints were looked at."""

_CERTAINTIES: dict[Kind, Certainty] = {"duplicate": "certain", "damaged": "unsure"}


@dataclass
class StoredAdvisor:
    """Advises on one experiment, as it is in one listing of it."""

    locations: Locations
    resumed_from: Mapping[str, str]
    """What a run of this process goes on from, with the reason to keep it."""
    policy: RetentionPolicy | None = None
    progress: Step | None = None
    _suggestions: dict[str, Suggestion] = field(default_factory=dict)
    """Of the checkpoints that are there, by id: each has one at most."""

    def advise(self) -> Advice:
        config, experiment = self.locations.config, self.locations.home
        view = experiment.index.view()
        unfinished = UnfinishedFinder(experiment, view, config.trash_seconds)
        found = unfinished.find()
        backups, backup_bytes, remarks = self._backups()
        self._suggest_about_damage(view, unfinished, backups)
        reasons = self._protected(view)
        self._suggest_deletions(view, reasons)
        self._suggest_thinning(view, reasons)
        sizes = {item.checkpoint_id: unfinished.size_of(file.name for file in item.files) for item in view.manifests}
        kept = [*self._kept(view, sizes, reasons), *found.kept]
        suggestions = [*found.suggestions, *self._suggestions.values()]
        total_bytes = sum(size for _, size, _ in kept) + sum(item.freed_bytes for item in suggestions)
        return Advice(
            place=self.locations.name,
            total_bytes=total_bytes,
            backup_bytes=backup_bytes,
            suggestions=tuple(sorted(suggestions, key=lambda item: KINDS.index(item.kind))),
            kept=kept_of(kept, total_bytes),
            policies=tuple(self._policies(view)),
            best=self._best(view, backups),
            remarks=tuple(remarks),
        )

    def _kept(self, view: View, sizes: Mapping[str, int], reasons: Mapping[str, str]) -> Iterator[tuple[str, int, str]]:
        """Yield what stays, newest first: its id, what it costs then, and why it stays."""
        for item in reversed(view.manifests):
            advised = self._suggestions.get(item.checkpoint_id)
            if advised is None or advised.action != "delete":
                left_bytes = sizes[item.checkpoint_id] - (advised.freed_bytes if advised else 0)
                reason = reasons.get(item.checkpoint_id) or self._reason(item, advised)
                yield item.checkpoint_id, left_bytes, reason

    @staticmethod
    def _reason(manifest: Manifest, advised: Suggestion | None) -> str:
        if manifest.quarantined or (advised and advised.kind == "damaged"):
            return "damaged: waits for repair"
        return "no later one is better" if manifest.metrics else "it has no metrics"

    # --- what can go ---

    def _suggest_about_damage(self, view: View, unfinished: UnfinishedFinder, backups: Mapping[str, Manifest]) -> None:
        """A damaged checkpoint is repaired where a backup is, and goes where none is, unless it is all there is."""
        whole = {item.checkpoint_id for item in view.whole}
        for item in view.manifests:
            if item.checkpoint_id in whole:
                continue
            name, size_bytes = item.checkpoint_id, unfinished.size_of(file.name for file in item.files)
            found = "Validation found it damaged" if item.quarantined else "Files are missing or cut off"
            backup = backups.get(name)
            if item.is_in_place and item.quarantined:
                continue
            if item.is_in_place:
                why = f"{found}: {item.payload_name} belongs to the program that wrote it."
                self._suggest("damaged", name, why, 0, "quarantine")
            elif backup is not None and backup.uid == item.uid:
                self._suggest("damaged", name, f"{found}; its backup may repair it.", 0, "repair")
            elif whole and not _is_marked(item) and name not in self._in_use(view):
                self._suggest("damaged", name, f"{found}, and it has no backup.", size_bytes, "delete")
            elif not item.quarantined:
                self._suggest("damaged", name, f"{found}, and it has no backup.", 0, "quarantine")

    def _protected(self, view: View) -> dict[str, str]:
        """Return what stays whatever its metrics are, with the reason: what every cleanup keeps, and more."""
        protected = {item.checkpoint_id: f"tagged {listed(tags)}" for item in view.whole if (tags := _own_tags(item))}
        newest = {item.run_id: item.checkpoint_id for item in view.whole}
        protected |= dict.fromkeys(set(newest.values()) - protected.keys(), "newest of its run")
        records = [record_of(item, "unverified") for item in view.whole]
        plan = plan_retention(
            records,
            KeepNewest(count=0),
            now=datetime.now(UTC),
            monitors=self._monitors(view),
            protected={**protected, **self._in_use(view)},
        )
        return {item.checkpoint_id: item.reason for item in plan.decisions if item.keep}

    def _in_use(self, view: View) -> dict[str, str]:
        return {**in_use(view.manifests, datetime.now(UTC)), **self.resumed_from}

    def _monitors(self, view: View) -> list[Monitor]:
        own = view.monitor(self.locations.config.monitor)
        return list(dict.fromkeys([own, *(item.monitor for item in view.usable)]))

    def _suggest_deletions(self, view: View, protected: Mapping[str, str]) -> None:
        candidates = [_candidate(item) for item in view.whole]
        sizes = {item.checkpoint_id: item.removable_bytes for item in view.whole}
        same = duplicates(candidates, protected)
        for name, other in same.items():
            self._suggest("duplicate", name, f"{other} holds the same.", sizes[name], "delete")
        others = [item for item in candidates if item.name not in same]
        for name, (other, metrics) in dominated(others, protected, Directions(self._monitors(view))).items():
            why = f"{other} is not earlier, and is better in {listed(metrics)}."
            self._suggest("dominated", name, why, sizes[name], "delete")

    def _suggest_thinning(self, view: View, protected: Mapping[str, str]) -> None:
        whole = {item.checkpoint_id: item for item in view.whole if item.checkpoint_id not in self._suggestions}
        after = self.locations.config.thin_after
        plan = plan_retention(
            [record_of(item, "unverified") for item in whole.values()],
            KeepNewest(count=len(whole)),
            now=datetime.now(UTC),
            monitors=self._monitors(view),
            protected=protected,
            thin_after=WHOLE_COUNT if after is None else after,
        )
        savings = Savings(self.locations.home)
        for number, name in enumerate(plan.thinned_ids, start=1):
            if freed_bytes := savings.bytes_of(whole[name]):
                why = "Runs go on from newer ones; its weights stay."
                self._suggest("optimizer state", name, why, freed_bytes, "thin")
            if self.progress:
                self.progress(number, len(plan.thinned_ids))

    def _suggest(self, kind: Kind, name: str, why: str, freed_bytes: int, action: Action) -> None:
        self._suggestions[name] = Suggestion(
            kind=kind,
            name=name,
            why=why,
            freed_bytes=freed_bytes,
            certainty=_CERTAINTIES.get(kind, "likely"),
            action=action,
        )

    # --- what else there is to say ---

    def _backups(self) -> tuple[dict[str, Manifest], int, list[str]]:
        """Return the backups that are whole, and the bytes of all; none where they cannot be listed, which is said."""
        try:
            view = self.locations.backups.index.view()
        except CheckpointError as error:
            return {}, 0, [f"The backups cannot be listed: {error.message}"]
        size_bytes = sum(entry.size_bytes for entry in {**view.entries, **view.below}.values())
        return {item.checkpoint_id: item for item in view.whole}, size_bytes, []

    def _policies(self, view: View) -> list[PolicyOutcome]:
        config, monitor = self.locations.config, self._monitors(view)[0]
        counts = dict.fromkeys([config.max_checkpoints, *POLICY_COUNTS])
        asked = [
            (f"max_checkpoints={count}", at_most(count, monitor), f"ckpt cleanup --keep {count}") for count in counts
        ]
        outcomes = [self._outcome(view, *item) for item in asked]
        if self.policy is not None:
            return [self._outcome(view, str(self.policy), self.policy, None), *outcomes]
        return outcomes

    def _outcome(self, view: View, name: str, policy: RetentionPolicy, command: str | None) -> PolicyOutcome:
        whole = {item.checkpoint_id for item in view.whole}
        plan = plan_retention(
            [record_of(item, "unverified" if item.checkpoint_id in whole else "damaged") for item in view.usable],
            policy,
            now=datetime.now(UTC),
            monitors=self._monitors(view),
            protected=self._in_use(view),
        )
        return PolicyOutcome(
            policy=name,
            kept_count=len(plan.kept_ids),
            deleted_count=len(plan.deleted_ids),
            freed_bytes=plan.freed_bytes,
            command=command,
        )

    def _best(self, view: View, backups: Mapping[str, Manifest]) -> tuple[BestValue, ...]:
        whole = {item.checkpoint_id for item in view.whole}
        known = {item.uid for item in (*view.manifests, *view.deleted, *view.purging)}
        elsewhere = [
            *(_seen(item, f"which is in the trash: `ckpt undelete {item.checkpoint_id}`") for item in view.deleted),
            *(_seen(item, "which is damaged") for item in view.manifests if item.checkpoint_id not in whole),
            *(
                _seen(item, f"of which there is only a backup: `ckpt restore {item.checkpoint_id}`")
                for item in backups.values()
                if item.uid not in known
            ),
        ]
        saved = [_seen(item) for item in view.whole if item.healthy]
        found = best_value(self._monitors(view)[0], saved, elsewhere, has_log=False)
        return () if found is None else (found,)


def _seen(manifest: Manifest, remark: str = "") -> Seen:
    return Seen(manifest.metrics, manifest.epoch, manifest.step, manifest.checkpoint_id, remark)


def _candidate(manifest: Manifest) -> Candidate:
    return Candidate(
        name=manifest.checkpoint_id,
        order=manifest.sequence,
        epoch=manifest.epoch,
        step=manifest.step,
        metrics=manifest.metrics,
        content=manifest.saved_sha256,
        is_full=manifest.thinned is None,
        healthy=manifest.healthy,
    )


def _is_marked(manifest: Manifest) -> bool:
    """Tell whether a person has said that a checkpoint matters."""
    return manifest.pinned or bool(_own_tags(manifest))


def _own_tags(manifest: Manifest) -> list[str]:
    """Return the tags that a person has set: not the one of each import."""
    return [tag for tag in manifest.tags if tag != UNPROVEN_TAG]
