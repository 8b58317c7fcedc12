"""The flow that cleans up a store, run to its end on Prefect's test server."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from prefect.utilities import schema_tools

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StorePermissionError
from ckpt_lib.policies.retention import KeepNewest, RetentionPolicy
from prefect_checkpoints.flows import cleanup_store
from tests.orchestration.runs import artifacts, saved

pytestmark = pytest.mark.usefixtures("own_results")


def test_cleanup_store_plans_and_deletes(config: CheckpointConfig) -> None:
    """A dry run publishes reasons and deletes nothing; the real one deletes in every experiment."""
    ids = {name: saved(config, name) for name in ("one", "two")}
    planned = cleanup_store(config, KeepNewest(count=1), dry_run=True, return_state=True)
    assert "would delete" in artifacts(planned)["cleanup-one"]
    assert CheckpointManager(config, "one").checkpoint_ids() == ids["one"]
    published = artifacts(cleanup_store(config.model_copy(update={"max_backups": 0}), dry_run=True, return_state=True))
    assert "would delete" in published["cleanup-of-backups-one"]
    reports = cleanup_store(config, KeepNewest(count=1))
    for name, (first, best, latest) in ids.items():
        assert reports[name].deleted_ids == (first,)
        assert CheckpointManager(config, name).checkpoint_ids() == [best, latest]


def test_cleanup_store_takes_every_rule(config: CheckpointConfig) -> None:
    """What the form sends passes the server's check and the flow's, and the artifact shows what decided."""
    first, best, latest = saved(config, "run")
    rules: list[dict[str, Any]] = [
        {"kind": "newest", "count": 0},
        {"kind": "best", "count": 0},
        {"kind": "at_most", "count": 0},
        {"kind": "within", "budget_bytes": 0},
        {"kind": "tagged", "tags": ["none"]},
        {"kind": "pinned"},
        {"kind": "not", "policy": {"kind": "newer_than", "days": 1000}},
        {"kind": "all_of", "policies": [{"kind": "every", "epochs": 100}, {"kind": "periods", "daily": 1}]},
        {"kind": "every", "hours": 1_000_000},
    ]
    policy: Any = {"kind": "any_of", "policies": rules}
    kinds = {rule["kind"] for rule in (policy, *rules, *rules[-2]["policies"], rules[-3]["policy"])}
    known = {kind.model_fields["kind"].default for kind in get_args(get_args(RetentionPolicy)[0])}
    assert kinds == known
    parameters = {"config": config.model_dump(exclude_unset=True), "retention": policy, "dry_run": True}
    schema_tools.validate(parameters, cleanup_store.parameters.model_dump())
    planned = cleanup_store(config, policy, dry_run=True, return_state=True)
    table = artifacts(planned)["cleanup-run"]
    assert "first of its 1000000 hours" in table
    assert "newest valid" in table
    assert set(CheckpointManager(config, "run").checkpoint_ids()) == {first, best, latest}


def test_cleanup_store_serves_the_other_experiments(config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An experiment whose cleanup fails stops no other one and hides no report, and fails the run."""
    for name in ("one", "two"):
        saved(config, name)
    clean = CheckpointManager.cleanup_checkpoints

    def refused(self: CheckpointManager, **options: Any) -> Any:
        if self.experiment_name == "one":
            raise StorePermissionError("the folder is read-only")
        return clean(self, **options)

    monkeypatch.setattr(CheckpointManager, "cleanup_checkpoints", refused)
    state = cleanup_store(config, KeepNewest(count=1), return_state=True)
    assert state.is_failed()
    published = artifacts(state)
    assert "cleanup-two" in published
    assert "cleanup-one" not in published
    assert len(CheckpointManager(config, "two").checkpoint_ids()) == 2
