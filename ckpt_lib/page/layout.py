"""``Layout``: the components of the page, and where they are."""

from __future__ import annotations

import gradio as gr

from ckpt_lib.config import CheckpointConfig
from ckpt_lib.page.chooser import chooser
from ckpt_lib.page.setup import FIELDS, config_texts, field_of
from ckpt_lib.page.view import CurrentView

TABS = {
    "experiments": "Experiments",
    "checkpoints": "Checkpoints",
    "plots": "Plots",
    "compare": "Compare",
    "summary": "Summary",
    "cleanup": "Clean up",
    "trash": "Trash",
    "files": "Files",
    "jobs": "Jobs",
    "runs": "Live runs",
    "setup": "Set up",
}
EXPORT_FORMATS = [
    ("As it is, with its manifest", ""),
    ("torch.save", "torch"),
    ("safetensors (weights)", "safetensors"),
    ("Hugging Face model (weights)", "hf-folder"),
    ("Hugging Face Trainer", "hf-trainer"),
    ("Lightning", "lightning"),
    ("Accelerate", "accelerate"),
]
EXPORT_DTYPES = [("as they are", ""), ("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32")]
_SENDS = """
const send = node => trigger('act', {act: node.dataset.act, value: node.value && node.tagName === 'SELECT'
    ? node.value : node.dataset.value || '', about: node.closest('[data-about]')?.dataset.about});
const leading = ['experiment', 'open', 'found', 'open-imported', 'next', 'previous', 'find-next', 'find-previous'];
element.addEventListener('click', event => {
    const node = event.target.closest('button[data-act]');
    if (!node || node.disabled) return;
    send(node);
    if (leading.includes(node.dataset.act)) window.scrollTo({top: 0});
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
    const node = [...element.querySelectorAll('[data-act]')].find(same)
        || element.querySelector('[role=alertdialog] [data-act=keep]');
    if (node) node.focus({preventScroll: true});
});
"""
"""Sends what is clicked, and which experiment it was shown of, and shows from its top what that leads to.

When a screen is drawn anew, what had the keyboard's focus gets it back. Where a question has taken the place of the
button that asked for it, that is the button which leaves all as it is.
"""


def screen(elem_id: str) -> gr.HTML:
    """Return HTML whose buttons send what they stand for.

    A subclass of a component would not do: Gradio writes a stub file beside the module of each.
    """
    return gr.HTML("", js_on_load=_SENDS, apply_default_css=False, elem_id=elem_id)


class Layout:
    """The components of the page."""

    def __init__(self, config: CheckpointConfig) -> None:
        self._config = config
        self.current = gr.State(CurrentView())
        self.timer = gr.Timer(1.0, active=False)
        self.header = screen("ck-header")
        self.notice = screen("ck-notice")
        self.running = screen("ck-running")
        self.screens: dict[str, gr.HTML] = {}
        self.tab_items: dict[str, gr.Tab] = {}
        with gr.Tabs(selected="experiments", elem_id="ck-tabs") as self.tabs:
            for name, title in TABS.items():
                with gr.Tab(title, id=name) as item:
                    self.tab_items[name] = item
                    getattr(self, f"_add_{name}", self._add_nothing)()
                    self.screens[name] = screen(f"ck-{name}")
                    getattr(self, f"_add_below_{name}", self._add_nothing)()

    def _add_nothing(self) -> None:
        """Most screens are a piece of HTML alone."""

    def _add_experiments(self) -> None:
        with gr.Row(elem_classes="ck-filters", visible=False) as self.finders:
            self.find_text = gr.Textbox(
                label="Find in all experiments",
                placeholder="id, tag or description",
                max_lines=1,
                max_length=200,
                scale=2,
            )
            self.find_where = gr.Textbox(
                label="Conditions", placeholder="val_loss<0.3, epoch>=10", max_lines=1, max_length=500, scale=3
            )

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

        with gr.Accordion("Add a metric", open=False, visible=False) as self.measure:
            with gr.Row():
                self.measure_name = gr.Textbox(label="Name", placeholder="bleu", max_lines=1, max_length=200)
                self.measure_value = gr.Textbox(label="Value", placeholder="31.5", max_lines=1, max_length=40)
                self.measure_source = gr.Textbox(
                    label="Measured by", placeholder="eval/newstest", max_lines=1, max_length=200
                )
            self.measure_replace = gr.Checkbox(label="Replace what was recorded before")
            self.measure_save = gr.Button("Add the metric", variant="primary")

        with gr.Accordion("Export", open=False, visible=False) as self.export:
            with gr.Row():
                self.export_format = gr.Dropdown(EXPORT_FORMATS, value="", label="Format", filterable=False)
                self.export_dtype = gr.Dropdown(EXPORT_DTYPES, value="", label="Type of the weights", filterable=False)
            self.export_weights = gr.Checkbox(label="The weights alone")
            self.export_start = gr.Button("Make the files", variant="primary")

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
            most = self._config.max_checkpoints
            self.keep = gr.Number(label="Keep the best and the newest, at most", precision=0, minimum=0, value=most)
            self.preview = gr.Button("Show what would go", elem_classes="ck-go")

    def _add_files(self) -> None:
        self.chooser = chooser()

    def _add_below_files(self) -> None:
        with gr.Row(elem_classes="ck-file-forms"):
            with gr.Group(visible=False) as self.importing:
                self.import_experiment = gr.Textbox(
                    label="Into the experiment", placeholder="its name, new or not", max_lines=1, max_length=200
                )
                self.import_compressed = gr.Checkbox(label="Store compressed")
                self.import_start = gr.Button("Import", variant="primary")
            with gr.Group(visible=False) as self.converting:
                self.convert_format = gr.Dropdown(
                    EXPORT_FORMATS[1:], value="safetensors", label="Convert to", filterable=False
                )
                self.convert_dtype = gr.Dropdown(EXPORT_DTYPES, value="", label="Weights", filterable=False)
                self.convert_weights = gr.Checkbox(True, label="Only the weights")
                self.convert_start = gr.Button("Convert", variant="primary")
        self.file_results = screen("ck-file-results")

    def _add_setup(self) -> None:
        default = CheckpointConfig(checkpoint_dir=self._config.checkpoint_dir)
        with gr.Row(elem_classes="ck-form"):
            self.setup_experiment = gr.Textbox(label="Experiment", value="my_experiment", max_lines=1)
            self.setup_fields = {name: field_of(name, default) for name in FIELDS}

    def _add_below_setup(self) -> None:
        yaml_text, python_text = config_texts({"checkpoint_dir": self._config.checkpoint_dir}, "my_experiment")
        with gr.Row():
            self.setup_yaml = gr.Code(yaml_text, label="config.yaml", language="yaml", interactive=False, min_width=300)
            self.setup_python = gr.Code(
                python_text, label="Python", language="python", interactive=False, min_width=300
            )
