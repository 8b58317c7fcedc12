"""Random training scripts: whatever writes to the state, and whenever, a checkpoint holds the bytes of its call."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from ckpt_lib import CheckpointConfig, CheckpointManager
from ckpt_lib.errors import StateChangedError
from ckpt_lib.state import staging
from tests.torture.fingerprints import fingerprint
from tests.torture.optimizers import CLOSED, MAKERS, ScheduleFree, SharpnessAware
from tests.torture.processes import patched
from tests.torture.rows import Outcome, Row

COUNT = 300
AT_LEAST = 20
"""How often each feature occurs in a full run."""
WAYS = {"blocking": 0.2, "background": 0.4, "overlapped": 0.4}
HABITS = {
    "hooks": 0.3,
    "ties": 0.3,
    "max_norm": 0.3,
    "weight clipping": 0.3,
    "gradient clipping": 0.3,
    "averaging": 0.3,
    "loading": 0.2,
    "autocast": 0.25,
    "compile": 0.12,
    "accumulation": 0.4,
    "writes through .data": 0.45,
    "forked": 0.15,
    "interrupted": 0.3,
}
"""What a script does, and how likely that is."""
_ITERATIONS = 3
_WORDS, _WIDTH = 150, 144
"""Large enough for each matrix to be one that an overlapped save copies later."""
_PATIENCE_SECONDS = 60.0
_LONGEST_DELAY_SECONDS = 0.004


@dataclass(frozen=True)
class Plan:
    """What one script does."""

    number: int
    optimizer: str
    way: str
    habits: frozenset[str]

    @classmethod
    def draw(cls, number: int, choice: random.Random) -> Plan:
        (way,) = choice.choices(list(WAYS), list(WAYS.values()))
        habits = {habit for habit, likelihood in HABITS.items() if choice.random() < likelihood}
        if way == "overlapped":
            habits.discard("writes through .data")  # which nothing would notice
        if "interrupted" in habits:
            habits.discard("compile")  # an interrupted compiler is of no use afterwards
        return cls(number, list(MAKERS)[number % len(MAKERS)], way, frozenset(habits))

    @property
    def features(self) -> tuple[str, ...]:
        return (self.optimizer, self.way, *sorted(self.habits))

    def __str__(self) -> str:
        return f"script {self.number} ({', '.join(self.features)})"


class Network(nn.Module):
    """Words in, words out."""

    def __init__(self, habits: frozenset[str]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_WORDS, _WIDTH, max_norm=1.0 if "max_norm" in habits else None)
        self.first = nn.Linear(_WIDTH, _WIDTH)
        self.norm = nn.BatchNorm1d(_WIDTH)
        self.second = nn.Linear(_WIDTH, _WIDTH)
        self.out = nn.Linear(_WIDTH, _WORDS, bias=False)
        if "ties" in habits:
            self.out.weight = self.embedding.weight
        if "hooks" in habits:
            through_data = "writes through .data" in habits
            self.second.register_forward_pre_hook(_normalise_through_data if through_data else _normalise)

    def forward(self, words: torch.Tensor) -> Any:
        hidden = self.norm(torch.relu(self.first(self.embedding(words))))
        return self.out(torch.relu(self.second(hidden)))


@torch.no_grad()
def _normalise(layer: Any, _inputs: Any) -> None:
    layer.weight.div_(layer.weight.norm())


def _normalise_through_data(layer: Any, _inputs: Any) -> None:
    layer.weight.data.div_(layer.weight.data.norm())


class Script:
    """One training run. What it saves is compared with copies that were taken at the calls."""

    def __init__(self, plan: Plan, choice: random.Random, folder: Path) -> None:
        torch.manual_seed(choice.randrange(2**31))
        self.plan, self.choice, self.folder = plan, choice, folder
        self.model = Network(plan.habits)
        self.forward: Callable[[torch.Tensor], Any] = self.model
        if "compile" in plan.habits:
            self.forward = torch.compile(self.model, backend=choice.choice(["eager", "aot_eager"]))
        self._make_optimizer()
        self.average = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.manager = self._manager("run")
        self.epoch = 0
        self.expected: dict[int, str] = {}
        self.handles: dict[int, Any] = {}
        self.children: list[int] = []
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()

    def _make_optimizer(self) -> None:
        self.optimizer = MAKERS[self.plan.optimizer](self.model.parameters())
        is_scaled = "autocast" in self.plan.habits and self.plan.optimizer not in {*CLOSED, "lookahead", "plain"}
        self.scaler = torch.amp.GradScaler("cpu", enabled=is_scaled)

    def _manager(self, name: str) -> CheckpointManager:
        config = CheckpointConfig(
            checkpoint_dir=str(self.folder),
            backup_checkpoints=False,
            max_checkpoints=1000,
            overlap_copy=self.plan.way == "overlapped",
            max_pending_saves=self.choice.choice([1, 2]),
        )
        return CheckpointManager(config, name)

    def run(self) -> None:
        for _ in range(_ITERATIONS):
            with self._interrupted():
                for event in self._events():
                    event()
                self.step()
        self._finish()
        self._compare(self.manager, self.expected)

    def _events(self) -> list[Callable[[], None]]:
        """What happens before a step, in any order: saves, passes, and whatever writes to the state besides."""
        passes = self.choice.randint(2, 3) if "accumulation" in self.plan.habits else 1
        events = [self.backward] * passes + [self.save] * self.choice.randint(1, 2)
        writes = {
            "weight clipping": self.clip,
            "averaging": self.swap,
            "loading": self.load,
            "writes through .data": self.shrink,
            "forked": self.fork,
        }
        events += [write for habit, write in writes.items() if habit in self.plan.habits]
        if isinstance(self.optimizer, ScheduleFree):
            events += [self.optimizer.eval, self.optimizer.train]
        if isinstance(self.optimizer, SharpnessAware):
            events.append(self.optimizer.first_step)
        self.choice.shuffle(events)
        return events

    # --- training ---

    def backward(self) -> Any:
        words = torch.randint(_WORDS, (16,))
        with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in self.plan.habits):
            logits = self.forward(words)
        loss = nn.functional.cross_entropy(logits.float(), words)
        torch.autograd.backward(self.scaler.scale(loss))
        return loss

    def step(self) -> None:
        if isinstance(self.optimizer, ScheduleFree):
            self.optimizer.train()
        if "gradient clipping" in self.plan.habits:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if isinstance(self.optimizer, SharpnessAware):
            self.optimizer.second_step()
        elif self.plan.optimizer in CLOSED:
            self.optimizer.step(self._closure)
        elif self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.model.parameters()), 0.1)
        self.optimizer.zero_grad()

    def _closure(self) -> Any:
        self.optimizer.zero_grad()
        return self.backward()

    # --- what else writes to the state ---

    @torch.no_grad()
    def clip(self) -> None:
        for parameter in self.model.parameters():
            parameter.clamp_(-0.05, 0.05)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights for their average."""
        for parameter, average in zip(self.model.parameters(), self.average, strict=True):
            held = parameter.clone()
            parameter.copy_(average)
            average.copy_(held)

    def load(self) -> None:
        self.model.load_state_dict({name: value * 0.9 for name, value in self.model.state_dict().items()})

    def shrink(self) -> None:
        for parameter in self.model.parameters():
            parameter.data.mul_(0.99)

    # --- saving ---

    def state(self) -> dict[str, Any]:
        """The arguments of a save, but for the epoch."""
        return {"model": self.model, "optimizer": self.optimizer, "extra_state": {"average": self.average}}

    def save(self) -> None:
        self.epoch += 1
        self.expected[self.epoch] = _fingerprint(**self.state())
        if self.plan.way == "blocking":
            self.manager.save_checkpoint(**self.state(), epoch=self.epoch)
            return
        with self._refusal_allowed():
            self.handles[self.epoch] = self.manager.save_checkpoint_async(**self.state(), epoch=self.epoch)

    @contextmanager
    def _refusal_allowed(self) -> Iterator[None]:
        try:
            yield
        except StateChangedError:
            self.counts["refused saves"] += 1
            if self.plan.way != "overlapped":
                raise

    def fork(self) -> None:
        """Have a child save as well, while this process goes on."""
        child = os.fork()
        if child:
            self.children.append(child)
            return
        status = 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
            status = self._run_child(f"child-{len(self.children)}")
        except BaseException:
            (self.folder / f"error-{os.getpid()}").write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def _run_child(self, name: str) -> int:
        expected: dict[int, str] = {}
        manager = self._manager(name)
        for epoch in range(2):
            expected[epoch] = _fingerprint(**self.state())
            handle = manager.save_checkpoint_async(**self.state(), epoch=epoch)
            self.clip()
            with self._refusal_allowed():
                handle.result(_PATIENCE_SECONDS)
            if self.plan.way != "overlapped":
                self.shrink()
        self._compare(manager, expected)
        if self.violations:
            (self.folder / f"error-{os.getpid()}").write_text("; ".join(self.violations))
        return 1 if self.violations else 0

    @contextmanager
    def _interrupted(self) -> Iterator[None]:
        """Let Ctrl-C come at any moment of an iteration; the loop goes on with the next, and a new optimizer."""
        if "interrupted" in self.plan.habits:
            signal.setitimer(signal.ITIMER_REAL, self.choice.uniform(0.0005, 0.03))
        try:
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            self.counts["interruptions"] += 1
            torch.set_grad_enabled(True)  # it may have come on the way out of no_grad(), or of autocast
            torch.set_autocast_enabled("cpu", False)
            self.model.zero_grad()
            self._make_optimizer()  # whose state may be half of a step's

    # --- what came of it ---

    def _finish(self) -> None:
        for handle in self.handles.values():
            with self._refusal_allowed():
                if handle.result(_PATIENCE_SECONDS) not in self.manager.checkpoint_ids():
                    self.violations.append(f"{self.plan}: an acknowledged save is not there")
        for _ in range(len(self.expected)):  # an error of a save whose handle an interrupt has lost comes out here
            with self._refusal_allowed():
                self.manager.flush()
        for child in self.children:
            self._wait_for(child)

    def _wait_for(self, child: int) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
                break
            time.sleep(0.005)
        if ended[1] != 0:
            told = self.folder / f"error-{child}"
            reason = told.read_text() if told.exists() else f"status {ended[1]}"
            self.violations.append(f"{self.plan}: a forked child failed: {reason}")

    def _compare(self, manager: CheckpointManager, expected: dict[int, str]) -> None:
        for found in manager.list_checkpoints():
            payload = manager.load_checkpoint(found.checkpoint_id)
            stored = [payload[part] for part in ("model_state_dict", "optimizer_state_dict", "extra_state")]
            self.counts["saves"] += 1
            if fingerprint(stored) != expected[found.epoch]:
                self.violations.append(f"{self.plan}: {found.checkpoint_id} holds other bytes than at its call")


def _fingerprint(*, model: nn.Module, optimizer: Any, extra_state: dict[str, Any]) -> str:
    return fingerprint([model.state_dict(), optimizer.state_dict(), extra_state])


def run_scripts(count: int, seed: str, folder: Path) -> Outcome:
    """Run so many scripts. In a full run, each feature must have occurred often enough to say something."""
    violations: list[str] = []
    features: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    with _own_process_state():
        for number in range(count):
            choice = random.Random(f"{seed} {number}")
            plan = Plan.draw(number, choice)
            features.update(plan.features)
            script = Script(plan, choice, folder / str(number))
            with _slow_copying(random.Random(number), plan):
                try:
                    script.run()
                except Exception as error:
                    violations.append(f"{plan}: {type(error).__name__}: {error}")
            violations += script.violations
            counts += script.counts
            torch.compiler.reset()
            shutil.rmtree(folder / str(number), ignore_errors=True)  # there is none if it was interrupted at once
    if count >= COUNT:
        violations += [f"only {features[name]} scripts with {name}" for name in _ALL if features[name] < AT_LEAST]
    told = ", ".join(f"{name} {number}" for name, number in sorted((features + counts).items()))
    return Outcome(count, violations, told)


_ALL = (*MAKERS, *WAYS, *HABITS)


@contextmanager
def _slow_copying(choice: random.Random, plan: Plan) -> Iterator[None]:
    """Hold up other threads than the caller's before each part that they copy, as a busy machine does."""
    move = staging._move

    def slow_move(*arguments: Any) -> None:
        if plan.way == "overlapped" and threading.current_thread() is not threading.main_thread():
            time.sleep(choice.uniform(0, _LONGEST_DELAY_SECONDS))
        move(*arguments)

    with patched(staging, "_move", slow_move):
        yield


@contextmanager
def _own_process_state() -> Iterator[None]:
    """One thread for torch, whose others do not survive a fork; Ctrl-C by a timer; and no word of either."""

    def interrupt(_number: int, frame: FrameType | None) -> None:
        if _is_logging(frame):  # whose own lock an interrupt may leave locked, in Python before 3.13
            signal.setitimer(signal.ITIMER_REAL, 0.001)
        else:
            raise KeyboardInterrupt

    threads, handler = torch.get_num_threads(), signal.signal(signal.SIGALRM, interrupt)
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGALRM, handler)
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(patched(sys, "unraisablehook", lambda _: None))  # an interrupt may come in a destructor
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        yield


def _is_logging(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != logging.__file__:
        frame = frame.f_back
    return frame is not None


ROWS = [
    Row(
        number=40,
        fault="training scripts that write to the state whenever they like",
        must_hold="each checkpoint holds the bytes of its call; an overlapped save may be refused instead",
        unit="scripts",
        count=COUNT,
        sample=40,
        run=run_scripts,
    )
]
