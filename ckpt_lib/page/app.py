"""Puts the page together and mounts it at ``/ui``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

# Before Gradio is imported: it sends a request otherwise, and shares a folder with the other users of this machine.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_TEMP_DIR"] = str(user_cache_path("ckpt") / "gradio")

import gradio as gr
from markupsafe import Markup

from ckpt_lib.core.logs import logger
from ckpt_lib.errors import CheckpointError, CheckpointNotFoundError, UnknownMetricError
from ckpt_lib.page.actions import Actions
from ckpt_lib.page.conversions import Conversions
from ckpt_lib.page.desk import Desk
from ckpt_lib.page.layout import Layout
from ckpt_lib.page.markup import notice, sentence
from ckpt_lib.page.rendering import Renderer, Updates
from ckpt_lib.page.run_requests import RunRequests
from ckpt_lib.page.setup import FIELDS, config_texts
from ckpt_lib.page.style import CSS, HEAD, theme
from ckpt_lib.page.view import CurrentView, View
from ckpt_lib.web.gate import PAGE_PATH
from ckpt_lib.web.page_gate import PageGate
from ckpt_lib.web.sessions import Sessions
from ckpt_lib.web.settings import PREFIX, ServerSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

Handler = Callable[..., Updates]

_PAGES_KEPT = 256
_PATIENCE_SECONDS = 60.0
"""How long a click waits for the one before: a store that hangs must not take a thread for each click."""
_STILL_BUSY = notice("The page is still at work on the last click.", hint="Wait, or reload it.", is_error=True)
"""Gradio keeps 0.4 MB for each page that was ever loaded, by default for 10,000."""


def mount(app: FastAPI, settings: ServerSettings) -> FastAPI:
    """Mount the page of the app's store, behind its gate."""
    sessions = Sessions(app.state.access)
    requests = RunRequests(settings.config)
    conversions = Conversions(app.state.transfers)
    app.state.end_streams.append(conversions.close)
    desk = Desk(settings, app.state.managers, app.state.jobs, sessions, app.state.transfers, requests, conversions)
    app.add_middleware(PageGate, sessions=sessions, settings=settings, api_path=PREFIX)
    _in_event_loop(
        lambda: gr.mount_gradio_app(
            app,
            Page(desk).build(),
            PAGE_PATH,
            theme=theme(),
            css=CSS,
            head=HEAD,
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
        )
    )
    mounted: Any = next(route for route in app.routes if getattr(route, "path", None) == PAGE_PATH)
    app.state.end_streams.append(mounted.app.stop_event.set)  # each open page holds a stream
    return app


def _in_event_loop(build: Callable[[], FastAPI]) -> FastAPI:
    """Build the app where an event loop runs: elsewhere, Gradio makes loops of its own and leaves them open."""

    async def run() -> FastAPI:
        return build()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    return build()


class Page:
    """The page of one store: its components, and what happens when they are used."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._actions = Actions(desk)

    def build(self) -> gr.Blocks:
        """Return the page."""
        blocks: gr.Blocks = gr.Blocks(title="Checkpoints", analytics_enabled=False)
        blocks.state_session_capacity = _PAGES_KEPT
        with blocks:
            self._layout = Layout(self._desk.managers.config)
            self._renderer = Renderer(self._desk, self._layout)
            self._outputs = self._all_components()
            self._on(blocks.load, self._open)
            for screen in (
                *self._layout.screens.values(),
                self._layout.header,
                self._layout.notice,
                self._layout.running,
                self._layout.chooser,
                self._layout.file_results,
            ):
                self._on(screen.act, self._act)
            for name, item in self._layout.tab_items.items():
                self._on(item.select, self._tab_shown(name))
            self._on_fields()
        return blocks

    def _all_components(self) -> list[Any]:
        layout = self._layout
        return [
            *(layout.timer, layout.header, layout.notice, layout.running, layout.tabs),
            *layout.screens.values(),
            *(layout.finders, layout.find_text, layout.find_where),
            *(layout.filters, layout.search, layout.where),
            *(layout.edit, layout.edit_tags, layout.edit_description, layout.export),
            *(layout.measure, layout.measure_name, layout.measure_value, layout.measure_replace),
            *(layout.metric_plot, layout.size_plot, layout.compared, layout.keep),
            *(layout.chooser, layout.importing, layout.converting, layout.file_results),
        ]

    def _on_fields(self) -> None:
        layout = self._layout
        for field in (layout.search, layout.where):
            self._on(field.change, self._filter, [layout.search, layout.where], trigger_mode="always_last")
        for field in (layout.find_text, layout.find_where):
            self._on(field.change, self._find, [layout.find_text, layout.find_where], trigger_mode="always_last")
        self._on(layout.edit_save.click, self._edit, [layout.edit_tags, layout.edit_description])
        self._on(
            layout.measure_save.click,
            self._measure,
            [layout.measure_name, layout.measure_value, layout.measure_source, layout.measure_replace],
        )
        self._on(
            layout.export_start.click,
            self._export,
            [layout.export_format, layout.export_dtype, layout.export_weights],
            trigger_mode="once",  # a double click starts one
        )
        self._on(
            layout.import_start.click,
            self._import,
            [layout.import_experiment, layout.import_compressed],
            trigger_mode="once",
        )
        self._on(
            layout.convert_start.click,
            self._convert,
            [layout.convert_format, layout.convert_dtype, layout.convert_weights],
            trigger_mode="once",
        )
        self._on(layout.compared.submit, self._compare, [layout.compared])
        self._on(layout.preview.click, self._preview, [layout.keep])
        self._on(layout.timer.tick, self._tick, is_tick=True)
        options = [layout.setup_experiment, *layout.setup_fields.values()]
        for option in options:
            self._on(
                option.change,
                self._set_up,
                options,
                more_outputs=[layout.setup_yaml, layout.setup_python],
                trigger_mode="always_last",
            )

    def _on(
        self,
        event: Any,
        handler: Handler,
        inputs: list[Any] | None = None,
        *,
        more_outputs: list[Any] | None = None,
        trigger_mode: str = "multiple",
        is_tick: bool = False,
    ) -> None:
        """Call a handler with the view and the values of ``inputs``; what it raises becomes a notice.

        An event of the clock keeps the notice, and does not wait for one of a person. So does one that changes nothing:
        Gradio tells of fields that the page itself has filled.
        """

        def handle(request: gr.Request, data: gr.EventData, current: CurrentView, *values: Any) -> Updates:
            if not current.lock.acquire(timeout=0 if is_tick else _PATIENCE_SECONDS):
                return self._nothing() if is_tick else {self._layout.notice: str(_STILL_BUSY)}
            try:
                # Of two quick clicks, the second begins where the first has led.
                updates = self._answered(request, lambda: handler(request, data, current.view, *values))
                if not updates:
                    return self._nothing()
                before: Updates = {} if is_tick else {self._layout.notice: ""}
                return {**before, **self._take_view(current, updates)}
            finally:
                current.lock.release()

        event(
            handle,
            [self._layout.current, *(inputs or [])],
            [*self._outputs, *(more_outputs or [])],
            queue=False,
            show_progress="hidden",
            trigger_mode=trigger_mode,
            api_visibility="private",
        )

    def _answered(self, request: gr.Request, answer: Callable[[], Updates]) -> Updates:
        """Return what a handler answers to who may look at the page; its errors become notices."""
        try:
            self._desk.check(request, "read")
            return answer()
        except (CheckpointError, PermissionError) as error:
            return {self._layout.notice: str(_notice_of(error))}
        except Exception as error:
            logger.exception("the page failed with an unexpected error")
            told = notice(f"The page failed: {type(error).__name__}.", hint="The server's log says why.", is_error=True)
            return {self._layout.notice: str(told)}

    def _nothing(self) -> Updates:
        """Return what changes nothing: Gradio fails at an answer without any component."""
        return {self._layout.timer: gr.skip()}

    def _take_view(self, current: CurrentView, updates: Updates) -> Updates:
        """Keep the view that ``updates`` hold, and return the rest."""
        view = updates.pop(self._layout.current, current.view)
        if view.selected != current.view.selected:
            updates[self._layout.compared] = ", ".join(view.selected)
        current.view = view
        return updates

    def _shown(self, request: gr.Request, view: View, told: Markup | None = None, *, is_typed: bool = False) -> Updates:
        """Draw a view. What it goes by may have gone meanwhile, unless the condition was just typed."""
        said: Updates = {self._layout.notice: str(told)} if told else {}
        try:
            return {**self._renderer.render(request, view), **said}
        except CheckpointNotFoundError:
            if not view.opened and not view.cursors:
                raise
            # What was looked at has gone meanwhile: the beginning of the list is there.
            return self._shown(request, view.with_(opened="", cursors=()), told)
        except UnknownMetricError as error:
            if is_typed or not view.goes_by_metrics:
                raise
            # The last one that had recorded it has gone: no click would lead on from a list that cannot be drawn.
            emptied: Updates = {self._layout.where: "", self._layout.find_where: ""}
            return {**self._shown(request, view.without_metrics(), told or _notice_of(error)), **emptied}

    def _open(self, request: gr.Request, _: gr.EventData, view: View) -> Updates:
        asked = request.query_params
        if name := asked.get("experiment", ""):
            view = View(tab="checkpoints", experiment=name, opened=asked.get("checkpoint", ""))
        else:
            view = View(tab="experiments")
        return {self._layout.tabs: gr.Tabs(selected=view.tab), **self._shown(request, view)}

    def _act(self, request: gr.Request, data: gr.EventData, view: View) -> Updates:
        sent = data._data if isinstance(data._data, dict) else {}
        act, value = str(sent.get("act", "")), str(sent.get("value", ""))
        self._actions.require_about(view, act, sent.get("about"))
        changed, told = self._actions.do(request, view, act, value)
        updates = self._shown(request, changed, told)
        if changed.tab != view.tab:
            updates[self._layout.tabs] = gr.Tabs(selected=changed.tab)
        if act in ("unfilter", "experiment", "found"):
            updates |= {self._layout.search: changed.search, self._layout.where: changed.where}
        if act == "unfind":
            updates |= {self._layout.find_text: "", self._layout.find_where: ""}
        return updates

    def _tab_shown(self, name: str) -> Handler:
        def show(request: gr.Request, _: gr.EventData, view: View) -> Updates:
            return {} if view.tab in (name, "") else self._shown(request, view.with_(tab=name, asked=""))

        return show

    def _filter(
        self, request: gr.Request, _: gr.EventData, view: View, search: str | None, where: str | None
    ) -> Updates:
        search, where = search or "", where or ""  # a field that was never shown has no value
        if (search, where) == (view.search, view.where):
            return {}  # the page itself has changed the fields
        return self._shown(request, view.with_(search=search, where=where), is_typed=True)

    def _find(self, request: gr.Request, _: gr.EventData, view: View, text: str | None, where: str | None) -> Updates:
        text, where = text or "", where or ""
        if (text, where) == (view.everywhere.text, view.everywhere.where):
            return {}
        wanted = view.everywhere.with_(text=text, where=where)
        return self._shown(request, view.with_(everywhere=wanted), is_typed=True)

    def _edit(self, request: gr.Request, _: gr.EventData, view: View, tags: str, description: str) -> Updates:
        return self._shown(request, *self._actions.edit(request, view, tags, description))

    def _measure(self, request: gr.Request, _: gr.EventData, view: View, *values: Any) -> Updates:
        name, value, source, replace = values
        outcome = self._actions.add_metric(request, view, name, value, source, replace=replace)
        layout = self._layout
        emptied = {layout.measure_name: "", layout.measure_value: "", layout.measure_replace: False}
        return {**self._shown(request, *outcome), **emptied}

    def _export(
        self, request: gr.Request, _: gr.EventData, view: View, form: str, dtype: str, weights: bool
    ) -> Updates:
        return self._shown(request, *self._actions.export(request, view, form, dtype, weights_only=weights))

    def _import(
        self, request: gr.Request, _: gr.EventData, view: View, experiment: str, is_compressed: bool
    ) -> Updates:
        return self._shown(request, *self._actions.files.start_import(request, view, experiment, is_compressed))

    def _convert(
        self, request: gr.Request, _: gr.EventData, view: View, form: str, dtype: str, weights: bool
    ) -> Updates:
        return self._shown(request, *self._actions.files.convert(request, view, form, dtype, weights_only=weights))

    def _compare(self, request: gr.Request, _: gr.EventData, view: View, text: str) -> Updates:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        return self._shown(request, view.with_(selected=names))

    def _preview(self, request: gr.Request, _: gr.EventData, view: View, most: float | None) -> Updates:
        return self._shown(request, view.with_(planned=int(most or 0), asked=""))

    def _tick(self, request: gr.Request, _: gr.EventData, view: View) -> Updates:
        if self._desk.has_work(view):
            return self._renderer.jobs(request, view)
        updates = self._shown(request, view)  # a job has ended: what is shown may be out of date
        typed = (self._layout.edit_tags, self._layout.edit_description)
        return {component: update for component, update in updates.items() if component not in typed}

    def _set_up(self, _: gr.Request, __: gr.EventData, _view: View, experiment: str, *values: Any) -> Updates:
        yaml_text, python_text = config_texts(dict(zip(FIELDS, values, strict=True)), experiment)
        return {self._layout.setup_yaml: yaml_text, self._layout.setup_python: python_text}


def _notice_of(error: CheckpointError | PermissionError) -> Markup:
    if not isinstance(error, CheckpointError):
        return notice(f"{sentence(str(error))}.", is_error=True)
    details = [f"Expected: {error.expected}." if error.expected is not None else "", error.hint or ""]
    got = f": {error.got}" if error.got is not None else ""
    hint = " ".join(part for part in details if part)
    return notice(f"{sentence(error.message)}{got}", hint=hint, is_error=True)
