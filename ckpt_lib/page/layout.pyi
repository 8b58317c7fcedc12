"""``Layout``: the components of the page, and where they are."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.page.setup import FIELDS, field_of
from ckpt_lib.page.view import View

TABS = {
    "experiments": "Experiments",
    "checkpoints": "Checkpoints",
    "plots": "Plots",
    "compare": "Compare",
    "summary": "Summary",
    "cleanup": "Clean up",
    "trash": "Trash",
    "jobs": "Jobs",
    "setup": "Set up",
}
_SENDS = """
const send = node => trigger('act', {act: node.dataset.act, value: node.value && node.tagName === 'SELECT'
    ? node.value : node.dataset.value || ''});
element.addEventListener('click', event => {
    const node = event.target.closest('button[data-act]');
    if (node && !node.disabled) send(node);
});
element.addEventListener('change', event => {
    if (event.target.matches('input[data-act], select[data-act]')) send(event.target);
});
let focused = null;
element.addEventListener('focusin', event => { focused = event.target.dataset; });
element.addEventListener('focusout', event => { if (event.relatedTarget) focused = null; });
watch('value', () => {
    if (!focused || !focused.act || document.activeElement !== document.body) return;
    const same = node => node.dataset.act === focused.act && node.dataset.value === focused.value;
    const node = [...element.querySelectorAll('[data-act]')].find(same);
    if (node) node.focus({preventScroll: true});
});
"""
"""Sends what is clicked. When a screen is drawn anew, what had the keyboard's focus gets it back."""

class Screen(gr.HTML):
    """HTML whose buttons send what they stand for."""

    def __init__(self, **options: Any) -> None:
        super().__init__("", js_on_load=_SENDS, apply_default_css=False, **options)

    def get_block_name(self) -> str:
        """Return the name of the component in the browser."""
        return "html"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block

    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component

class Layout:
    """The components of the page."""

    def __init__(self, config: CheckpointConfig) -> None:
        self.view = gr.State(View())
        self.timer = gr.Timer(1.0, active=False)
        self.header = Screen(elem_id="ck-header")
        self.notice = Screen(elem_id="ck-notice")
        self.running = Screen(elem_id="ck-running")
        self.screens: dict[str, Screen] = {}
        self.tab_items: dict[str, gr.Tab] = {}
        with gr.Tabs(selected="experiments", elem_id="ck-tabs") as self.tabs:
            for name, title in TABS.items():
                with gr.Tab(title, id=name) as item:
                    self.tab_items[name] = item
                    getattr(self, f"_add_{name}", self._add_nothing)()
                    self.screens[name] = Screen(elem_id=f"ck-{name}")
                    getattr(self, f"_add_below_{name}", self._add_nothing)()
        self.setup_of(config)

    def setup_of(self, config: CheckpointConfig) -> None:
        """Fill the form with the store's own options."""
        self.setup_fields["checkpoint_dir"].value = config.checkpoint_dir

    def _add_nothing(self) -> None:
        """Most screens are a piece of HTML alone."""

    def _add_checkpoints(self) -> None:
        with gr.Row(elem_classes="ck-filters") as self.filters:
            self.search = gr.Textbox(
                label="Search", placeholder="id, tag or description", max_lines=1, max_length=200, scale=2
            )
            self.where = gr.Textbox(
                label="Conditions", placeholder="val_loss<0.3, epoch>=10", max_lines=1, max_length=500, scale=3
            )

    def _add_below_checkpoints(self) -> None:
        with gr.Accordion("Edit tags and description", open=False, visible=False) as self.edit:
            self.edit_tags = gr.Textbox(label="Tags", placeholder="good, keep", max_lines=1)
            self.edit_description = gr.Textbox(label="Description", lines=2)
            self.edit_save = gr.Button("Save changes", variant="primary")

    def _add_below_plots(self) -> None:
        self.metric_plot = gr.Plot(show_label=False, elem_id="ck-metric-plot")
        self.size_plot = gr.Plot(show_label=False, elem_id="ck-size-plot")

    def _add_compare(self) -> None:
        with gr.Row(elem_classes="ck-filters"):
            self.compared = gr.Textbox(
                label="Checkpoints", placeholder="best, latest~2, @tag", max_lines=1, max_length=1_000
            )

    def _add_cleanup(self) -> None:
        with gr.Row(elem_classes="ck-filters"):
            self.keep = gr.Number(label="Keep the best and the newest, at most", precision=0, minimum=0, value=10)
            self.preview = gr.Button("Show what would go", elem_classes="ck-go")

    def _add_setup(self) -> None:
        default = CheckpointConfig()
        with gr.Row(), gr.Column(min_width=280):
            self.setup_experiment = gr.Textbox(label="Experiment", value="my_experiment", max_lines=1)
        with gr.Row(elem_classes="ck-form"):
            self.setup_fields = {name: field_of(name, default) for name in FIELDS}

    def _add_below_setup(self) -> None:
        with gr.Row():
            self.setup_yaml = gr.Code(label="config.yaml", language="yaml", interactive=False)
            self.setup_python = gr.Code(label="Python", language="python", interactive=False)
