"""Advice about a folder of checkpoints of any program, which no store keeps. Nothing is changed, and no code is run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ckpt_lib.advice.described import Described, describe
from ckpt_lib.advice.results import KINDS, POLICY_COUNTS, Advice, Kind, PolicyOutcome, Suggestion, kept_of
from ckpt_lib.advice.rules import WHOLE_COUNT, Candidate, dominated, duplicates
from ckpt_lib.advice.runs import Run, runs_of, series_of
from ckpt_lib.advice.same_files import SameFiles
from ckpt_lib.advice.trees import Tree, checkpoints_in
from ckpt_lib.core.monitor import Monitor
from ckpt_lib.core.wording import count_of, duration, listed
from ckpt_lib.policies.retention import (
    KeepAtMost,
    KeepNewest,
    RetentionPlan,
    RetentionPolicy,
    RetentionRecord,
    plan_retention,
)
from ckpt_lib.stream import Progress

_SETTLED_SECONDS = 86_400.0
"""A checkpoint that was changed more recently may still be being written."""
_LAST_SECONDS = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass
class FolderAdvisor:
    """Advises on one folder; :func:`ckpt_lib.advise` says how."""

    tree: Tree
    progress: Progress | None
    _suggestions: dict[str, Suggestion] = field(default_factory=dict)
    _reasons: dict[str, str] = field(default_factory=dict)
    """Why a checkpoint stays, by path."""
    _uncompared: dict[str, str] = field(default_factory=dict)
    """Why a checkpoint was not compared with others, by path."""
    _copies: dict[str, list[str]] = field(default_factory=dict)
    """The copies that can go, by the path of the one that stays."""
    _frees: dict[str, int] = field(default_factory=dict)
    """The bytes that the removal of a checkpoint frees: those of files without a further name."""
    _sizes: dict[str, int] = field(default_factory=dict)
    """The bytes of a checkpoint, those that several share for the first of them only."""

    def advise(self, place: str) -> Advice:
        items = sorted((describe(self.tree, item) for item in checkpoints_in(self.tree)), key=lambda item: item.path)
        self._measure(items)
        sound = [item for item in items if not self._suggest_about_damage(item)]
        runs = runs_of(self.tree, sound)
        for run in runs:
            self._mark(run)
        self._suggest_duplicates(runs)
        for run in runs:
            self._protect(run)
        self._inherit()
        for run in runs:
            self._suggest_dominated(run)
            for group in run.groups().values():
                self._suggest_optimizers(group)
        return self._advice(place, items, runs)

    def _advice(self, place: str, items: Sequence[Described], runs: Sequence[Run]) -> Advice:
        suggestions = sorted(self._suggestions.values(), key=lambda item: KINDS.index(item.kind))
        total_bytes = sum(self._sizes.values())
        kept = []
        for item in sorted(items, key=lambda item: item.found.modified_seconds, reverse=True):
            advised = self._suggestions.get(item.path)
            left_bytes = self._sizes[item.path] - (advised.freed_bytes if advised else 0)
            is_gone = advised is not None and advised.kind != "optimizer state"
            if left_bytes or not is_gone:
                reason = "its files have other names, too" if is_gone else self._reason(item)
                kept.append((item.path or ".", left_bytes, reason))
        return Advice(
            place=place,
            total_bytes=total_bytes,
            suggestions=tuple(suggestions),
            kept=kept_of(kept, total_bytes),
            policies=tuple(self._policies(runs)),
            best=tuple(found for run in runs for found in run.best_values()),
            remarks=tuple(self._remarks(items)),
        )

    def _reason(self, item: Described) -> str:
        if item.path in self._reasons:
            return self._reasons[item.path]
        reason = self._uncompared.get(item.path, "no later one is better")
        return f"{item.title}; {reason}" if item.title else "nothing is known of it"

    def _measure(self, items: Iterable[Described]) -> None:
        counted: set[tuple[int, int]] = set()
        for item in items:
            size_bytes = freed_bytes = 0
            for file in item.found.files.values():
                size_bytes += 0 if file.inode in counted else file.size_bytes
                freed_bytes += file.size_bytes if file.link_count == 1 else 0
                counted.add(file.inode)
            self._sizes[item.path], self._frees[item.path] = size_bytes, freed_bytes

    # --- what can go ---

    def _suggest_about_damage(self, item: Described) -> bool:
        """Suggest what cannot be read at all; return whether a checkpoint is out of the question."""
        idle_seconds = time.time() - item.found.modified_seconds
        is_settled = idle_seconds > _SETTLED_SECONDS
        if item.found.is_unfinished:
            if is_settled:
                self._suggest("leftover", item, "Its name is that of a file that was not finished.", certainty="likely")
            else:
                self._reasons[item.path] = "being written, as its name says"
            return True
        if item.damage is not None:
            if self.tree.is_linked(item.path):
                self._reasons[item.path] = f"damaged, and a link leads to it. {item.damage}"
            elif not is_settled:
                changed = f"It was changed {duration(idle_seconds)} ago: it may be being written."
                self._reasons[item.path] = f"{item.damage} {changed}"
            else:
                self._suggest("damaged", item, item.damage, certainty="likely")
            return True
        if item.is_unknown:
            self._reasons[item.path] = "no program is known that writes such checkpoints"
        return item.is_unknown

    def _mark(self, run: Run) -> None:
        """Note what a link, a name or the trainer says to be of use."""
        for item in run.items:
            if reason := "a link leads to it" if self.tree.is_linked(item.path) else run.said_of(item):
                self._reasons[item.path] = reason

    def _protect(self, run: Run) -> None:
        """Note what stays whatever its metrics are: the newest and the best of those that are named alike."""
        for group in run.groups().values():
            newest = max(group, key=lambda item: item.found.modified_seconds)
            reason = "the last that was written" if len(group) > 1 else "the only one of its series"
            self._reasons.setdefault(newest.path, reason)
            plan = self._plan(run, group, KeepNewest(count=0))
            for item in plan.decisions:
                if item.keep:
                    self._reasons.setdefault(item.checkpoint_id, item.reason.replace(" unverified", ""))

    def _plan(self, run: Run, items: Sequence[Described], policy: RetentionPolicy) -> RetentionPlan:
        records = [self._record(run, item, number) for number, item in enumerate(items, start=1)]
        return plan_retention(records, policy, now=datetime.now(UTC), monitors=run.monitors)

    def _record(self, run: Run, item: Described, number: int) -> RetentionRecord:
        return RetentionRecord(
            checkpoint_id=item.path,
            sequence=number,
            epoch=item.epoch or 0,
            step=item.step or 0,
            timestamp=datetime.fromtimestamp(min(max(0.0, item.found.modified_seconds), _LAST_SECONDS), UTC),
            size_bytes=self._frees[item.path],
            metrics=run.metrics[item.path],
        )

    def _suggest_duplicates(self, runs: Sequence[Run]) -> None:
        """Suggest copies, also of the newest and the best: for what is said of these, their copies stand."""
        items = {item.path: item for run in runs for item in run.items}
        contents = SameFiles(self.tree, self.progress).contents(
            item.found for item in items.values() if self._frees[item.path]
        )
        ordered = sorted(items.values(), key=_age)
        # The metrics that a log tells of a copy are not lost with it.
        alike = [
            Candidate(item.path, number, item.epoch or 0, item.step or 0, content=contents.get(item.path))
            for number, item in enumerate(ordered)
        ]
        for path, other in duplicates(alike, self._reasons).items():
            self._suggest("duplicate", items[path], f"{other} is the same, byte for byte.", certainty="certain")
            self._copies.setdefault(other, []).append(path)

    def _inherit(self) -> None:
        """Let what stays of several copies stay for the reasons for which any of them would."""
        for kept, copies in self._copies.items():
            for reason in filter(None, map(self._reasons.get, copies)):
                self._reasons.setdefault(kept, reason)

    def _suggest_dominated(self, run: Run) -> None:
        items = {item.path: item for item in run.items if item.path not in self._suggestions}
        candidates = []
        for path, item in items.items():
            series, metrics = series_of(item), run.compared_metrics(item)
            if series is None:
                self._uncompared[path] = "it says neither its epoch nor its step"
            elif not metrics:
                self._uncompared[path] = "its metrics do not tell which is better"
            else:
                position = item.said_epoch or 0, item.said_step or 0
                candidates.append(Candidate(path, 0, *position, metrics=metrics, group=series))
        for path, (other, names) in dominated(candidates, self._reasons, run.directions).items():
            why = f"{other} is not earlier, and is better in {listed(names)}."
            self._suggest("dominated", items[path], why, certainty="likely")

    def _suggest_optimizers(self, group: Sequence[Described]) -> None:
        left = [item for item in group if item.path not in self._suggestions and item.resume_bytes]
        for item in left[:-WHOLE_COUNT]:
            if item.path in self._reasons or any(file.link_count > 1 for file in item.found.files.values()):
                continue
            how = "" if item.resume_files else " It has to be written anew without that."
            self._suggestions[item.path] = Suggestion(
                kind="optimizer state",
                name=item.path or ".",
                why=f"Runs go on from newer ones; its weights stay.{how}",
                freed_bytes=item.resume_bytes,
                certainty="likely",
                paths=tuple(self.tree.full(path) for path in item.resume_files),
            )

    def _suggest(self, kind: Kind, item: Described, why: str, *, certainty: str) -> None:
        freed_bytes = self._frees[item.path]
        if not freed_bytes and item.found.size_bytes:  # each of its files has another name
            return
        facts = {"kind": kind, "name": item.path or ".", "why": why, "freed_bytes": freed_bytes, "certainty": certainty}
        paths = tuple(map(self.tree.full, item.found.removable))
        self._suggestions[item.path] = Suggestion.model_validate({**facts, "paths": paths})

    # --- what else there is to say ---

    def _policies(self, runs: Sequence[Run]) -> list[PolicyOutcome]:
        """Return what would stay of each series; those of two folds cannot be ranked by their metrics."""
        groups = [(run, group) for run in runs for group in run.groups().values()]
        of_no_series = sum(len(run.items) for run in runs) - sum(len(group) for _, group in groups)
        outcomes = []
        for count in POLICY_COUNTS:
            plans = [self._plan(run, group, self._at_most(run, count)) for run, group in groups]
            outcomes.append(
                PolicyOutcome(
                    policy=f"max_checkpoints={count} of each series",
                    kept_count=of_no_series + sum(len(plan.kept_ids) for plan in plans),
                    deleted_count=sum(len(plan.deleted_ids) for plan in plans),
                    freed_bytes=sum(plan.freed_bytes for plan in plans),
                )
            )
        return outcomes

    @staticmethod
    def _at_most(run: Run, count: int) -> KeepAtMost:
        monitor = run.monitors[0] if run.monitors else Monitor()
        return KeepAtMost(count=count, metric=monitor.metric, mode=monitor.mode)

    def _remarks(self, items: Sequence[Described]) -> Iterable[str]:
        for path in self.tree.stores:
            yield f"{path or '.'} is part of a store, which has advice of its own: `ckpt advise {self.tree.full(path)}`"
        if self.tree.unreadable:
            yield f"{count_of(len(self.tree.unreadable), 'folder')} could not be read: {listed(self.tree.unreadable)}"
        if not items:
            yield "No checkpoints were found."


def _age(item: Described) -> float:
    return item.found.modified_seconds
