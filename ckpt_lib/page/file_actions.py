"""``FileActions``: what a browser does with the files that it has sent. The code of a pickle never runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
from markupsafe import Markup

from ckpt_lib.core.wording import count_of
from ckpt_lib.errors import ConfigError
from ckpt_lib.experiment.listing import list_experiments
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.files import held_uploads
from ckpt_lib.page.holdings import look_at
from ckpt_lib.page.markup import notice
from ckpt_lib.page.view import Files, View
from ckpt_lib.store import open_store
from ckpt_lib.web.operations import Import

Outcome = tuple[View, Markup | None]
_ID = re.compile("[0-9a-f]{32}")
_OF_WEIGHTS = ("safetensors", "hf-folder")
"""Formats that have no place for anything else."""
_OF_TRAININGS = ("hf-trainer", "accelerate")
"""Formats that are never for the weights alone."""


class FileActions:
    """The actions, by the names that buttons send, and those of the forms. Each needs the scope of an upload."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.acts: dict[str, Callable[[gr.Request, View, str], Outcome]] = {
            "files": self._take,
            "forget-files": self._forget,
            "cancel-conversion": self._cancel,
            "open-imported": self._open,
        }

    def _take(self, request: gr.Request, view: View, value: str) -> Outcome:
        """Look at what has arrived, in the place of what was there before."""
        who = self._desk.check(request, "write")
        ids = [part for part in value.split() if _ID.fullmatch(part)]
        if not ids:
            raise ConfigError("no file has arrived", hint="Choose the files once more.")
        names = [upload.name for upload in self._desk.transfers.uploads.require_complete(ids, who)]
        self._remove(view)
        told, is_one = look_at(self._desk.transfers.uploads, ids)
        files = Files(uploads=tuple(ids), name=os.path.commonpath(names), told=str(told), is_one=is_one)
        return view.with_(files=files), None

    def _remove(self, view: View) -> None:
        """Remove what the browser has sent and no import takes, and end its conversion."""
        self._desk.conversions.cancel(view.files.conversion)
        for upload_id in held_uploads(self._desk, view):
            self._desk.transfers.uploads.remove(upload_id)

    def _forget(self, request: gr.Request, view: View, _: str) -> Outcome:
        self._desk.check(request, "write")
        self._remove(view)
        return view.with_(files=Files()), None

    def _cancel(self, request: gr.Request, view: View, _: str) -> Outcome:
        self._desk.check(request, "write")
        self._desk.conversions.cancel(view.files.conversion)
        return view, notice("Cancelling: the conversion ends at its next step.")

    def _open(self, request: gr.Request, view: View, value: str) -> Outcome:
        """Show a checkpoint that was imported, whose experiment stands before it."""
        self._desk.check(request, "read")
        experiment, _, checkpoint_id = value.rpartition("/")
        return view.of_experiment(experiment).with_(tab="checkpoints", opened=checkpoint_id, asked=""), None

    def start_import(
        self, request: gr.Request, view: View, experiment: str | None, is_compressed: bool | None
    ) -> Outcome:
        """Start the import of what was sent into an experiment, which may be new."""
        who, name = self._desk.check(request, "write"), (experiment or "").strip()
        if not name:
            raise ConfigError(
                "the experiment has no name", expected="the name of the one that is to take the files in, new or not"
            )
        uploads = held_uploads(self._desk, view)
        self._desk.transfers.uploads.require_complete(uploads, who)
        is_new = name not in list_experiments(open_store(self._desk.managers.config.checkpoint_dir), missing_ok=True)
        work = Import(
            uploads=list(uploads),
            tree=len(uploads) > 1,
            compression=True if is_compressed else None,
            new_experiment=True,
        )
        job = self._desk.start(request, name, work)
        into = "the new experiment" if is_new else "the experiment"
        told = notice(f"Importing {count_of(len(uploads), 'file')} into {into} {name}.")
        return view.with_(files=replace(view.files, uploads=uploads, job=job.job_id, conversion="")), told

    def convert(
        self,
        request: gr.Request,
        view: View,
        form: str | None,
        dtype: str | None,
        *,
        weights_only: bool | None,
    ) -> Outcome:
        """Start the conversion of what was sent."""
        who, uploads = self._desk.check(request, "write"), held_uploads(self._desk, view)
        self._desk.transfers.uploads.require_complete(uploads, who)
        if not view.files.is_one:
            raise ConfigError("these files are not one checkpoint", hint="Choose the files of a single one.")
        options: dict[str, Any] = {"format": form or "safetensors"}
        if dtype:
            options["dtype"] = dtype
        if form in _OF_WEIGHTS or (weights_only and form not in _OF_TRAININGS):
            options["only"] = "model"
        self._desk.conversions.cancel(view.files.conversion)
        conversion = self._desk.conversions.start(uploads, options, who)
        self._desk.note(who, "convert", "")
        return view.with_(files=replace(view.files, conversion=conversion, job="")), None
