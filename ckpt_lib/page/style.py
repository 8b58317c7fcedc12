"""The look of the page, light and dark, down to the width of a phone."""

from __future__ import annotations

import gradio as gr


def theme() -> gr.themes.Base:
    """Return the theme: fonts of the machine, so that none is loaded."""
    return gr.themes.Default(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=["system-ui", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(  # Gradio's blue leaves too little contrast to the white text on it
        button_primary_background_fill="#1d4fc4",
        button_primary_background_fill_hover="#173f9e",
        button_primary_background_fill_dark="#1d4fc4",
        button_primary_background_fill_hover_dark="#2a5fd8",
        button_primary_text_color="#fff",
        button_primary_text_color_dark="#fff",
    )


HEAD = '<meta name="robots" content="noindex">'

CSS = """
:root { --ck-soft: #566173; --ck-line: #d5dae2; --ck-fill: #f5f7fa; --ck-link: #1d4fc4; --ck-bad: #b3273b; }
.dark { --ck-soft: #a9b4c4; --ck-line: #3b4657; --ck-fill: #1d2736; --ck-link: #8fb4ff; --ck-bad: #ff8a98; }
.gradio-container { max-width: 1320px !important; width: 100%; margin: 0 auto; }
.gradio-container > .main, .gradio-container .wrap { width: 100%; }
#ck-notice:not(:has(.ck-notice)), #ck-running:not(:has(.ck-running)) { display: none; }
footer { display: none !important; }
.ck-top { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem 1rem; }
.ck-top h1 { font-size: 1.35rem; font-weight: 700; margin: 0; }
.ck-store { overflow-wrap: anywhere; color: var(--ck-soft); background: none; padding: 0; }
.ck-space { flex: 1; }
.ck-chooser { display: flex; align-items: center; gap: .5rem; }
.ck-chooser select { max-width: 60vw; padding: .35rem 2rem .35rem .6rem; border: 1px solid var(--ck-line);
  border-radius: var(--radius-md); background-color: var(--input-background-fill); color: var(--body-text-color); }
.ck-button { display: inline-block; font: inherit; padding: .35rem .8rem; border-radius: var(--radius-md);
  cursor: pointer;
  border: 1px solid var(--ck-line); background: var(--ck-fill); color: var(--body-text-color); }
.ck-button:hover { border-color: var(--color-accent); }
.ck-button.ck-primary { background: #1d4fc4; border-color: #1d4fc4; color: #fff; }
.ck-button.ck-danger { border-color: var(--ck-bad); color: var(--ck-bad); background: none; }
a.ck-link { color: var(--ck-link); text-decoration: underline; overflow-wrap: anywhere; }
.ck-button.ck-link, .ck-button.ck-sort { border: 0; background: none; padding: 0; text-align: inherit;
  color: var(--ck-link); font-weight: 500; }
.ck-button.ck-sort { color: inherit; font-weight: 600; white-space: nowrap; }
.ck-button.ck-link:hover, .ck-button.ck-sort:hover { text-decoration: underline; }
.ck-button:focus-visible, .ck-chip:focus-visible, .ck-table input:focus-visible, .ck-chooser select:focus-visible,
.ck-code:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.ck-id { font-family: var(--font-mono); font-size: .9em; overflow-wrap: anywhere; }
.ck-break { overflow-wrap: anywhere; background: none; padding: 0; }
.ck-soft, .ck-none { color: var(--ck-soft); }
.ck-scroll { overflow-x: auto; }
.ck-table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.ck-table caption { text-align: left; padding: .25rem 0 .5rem; color: var(--ck-soft); }
.ck-list caption, .ck-small caption, .ck-compare caption { position: absolute; width: 1px; height: 1px;
  overflow: hidden;
  clip-path: inset(50%); }
.ck-table th, .ck-table td { padding: .45rem .75rem; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--ck-line); }
.ck-table thead th { font-weight: 600; border-bottom-width: 2px; }
.ck-table .ck-number { text-align: right; white-space: nowrap; }
.ck-table tbody tr:hover { background: var(--ck-fill); }
.ck-small { width: auto; min-width: min(100%, 32rem); }
.ck-compare .ck-number { text-align: left; white-space: normal; }
.ck-below { margin-top: .2rem; display: flex; flex-wrap: wrap; gap: .3rem; align-items: center;
  overflow-wrap: anywhere; }
.ck-badge, .ck-tag { display: inline-block; padding: .02rem .5rem; border-radius: 1rem; font-size: .8rem;
  white-space: nowrap;
  border: 1px solid var(--ck-line); }
.ck-button.ck-tag { border-radius: .3rem; padding: .02rem .5rem; font-size: .8rem; text-align: left; }
.ck-tag { border-radius: .3rem; background: var(--ck-fill); white-space: normal; overflow-wrap: anywhere; }
.ck-badge.ck-best { background: #fff3cf; border-color: #d69a00; color: #5b4200; }
.ck-badge.ck-latest { background: #d9f4f6; border-color: #128a94; color: #064b51; }
.ck-badge.ck-pinned { background: #e7e6fd; border-color: #6d63d6; color: #332a8a; }
.ck-badge.ck-bad, .ck-badge.ck-goes { background: #fde3e6; border-color: #d03a4b; color: #7d1020; }
.ck-bar { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .5rem 0; }
.ck-chip { font: inherit; padding: .15rem .7rem; border-radius: 1rem; border: 1px solid var(--ck-line);
  cursor: pointer; background: none; color: var(--body-text-color); }
.ck-chip[aria-pressed=true] { background: #1d4fc4; border-color: #1d4fc4; color: #fff; }
.ck-pager { display: flex; gap: .75rem; align-items: center; padding: .75rem 0; flex-wrap: wrap; }
.ck-facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .6rem 1.5rem;
  margin: .75rem 0; }
.ck-facts dt { color: var(--ck-soft); font-size: .85rem; }
.ck-facts dd { margin: 0; overflow-wrap: anywhere; }
.ck-facts > div:has(.ck-id, .ck-break) { grid-column: span 2; }
.ck-form .form, .ck-form { display: grid !important; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
  gap: .5rem; }
.ck-form .form { background: none !important; border: 0 !important; }
.ck-form > .form { grid-column: 1 / -1; }
.ck-form .block { min-width: 0 !important; overflow: visible; }
.ck-go { align-self: end; flex: none !important; min-width: 12rem !important; }
.ck-section { margin-top: 1.25rem; }
.ck-section h3 { font-size: 1rem; font-weight: 600; margin: 0 0 .4rem; }
.ck-head h2 { font-size: 1.1rem; font-weight: 600; margin: .5rem 0 .3rem; }
.ck-history, .ck-lineage { margin: 0; padding-left: 1.6rem; list-style: decimal; }
.ck-history { list-style: disc; }
.ck-history li { overflow-wrap: anywhere; }
.ck-empty p { margin: .3rem 0; }
.ck-history time { color: var(--ck-soft); margin-right: .5rem; }
.ck-notice { display: flex; justify-content: space-between; gap: 1rem; padding: .6rem .9rem;
  border-left: .3rem solid #2a9d6f;
  background: var(--ck-fill); border-radius: var(--radius-sm); }
.ck-notice.ck-error { border-left-color: #d03a4b; }
.ck-notice p { margin: 0; overflow-wrap: anywhere; }
.ck-button.ck-close { border: 0; background: none; font-size: 1.2rem; line-height: 1; padding: .2rem .5rem;
  align-self: start; }
.ck-warning { border-left: .25rem solid #d69a00; padding: .3rem .75rem; background: var(--ck-fill);
  overflow-wrap: anywhere; }
.ck-empty { text-align: center; padding: 2.5rem 1rem; color: var(--ck-soft); }
.ck-empty-title { font-size: 1.1rem; color: var(--body-text-color); }
.ck-code { overflow-x: auto; padding: .75rem 1rem; background: var(--ck-fill);
  border-radius: var(--radius-md); font-family: var(--font-mono); font-size: .85rem; }
.ck-code code { background: none; padding: 0; white-space: pre; }
.ck-confirm { border: 2px solid var(--ck-link); border-radius: var(--radius-md); padding: .75rem 1rem;
  margin: .5rem 0; }
.ck-confirm p { margin: .2rem 0; overflow-wrap: anywhere; }
.ck-confirm.ck-takes { border-color: var(--ck-bad); }
.ck-running { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; padding: .3rem 0;
  overflow-wrap: anywhere; }
progress { accent-color: #1d4fc4; width: 10rem; max-width: 100%; margin-right: .5rem; }
.ck-told { font-weight: 600; }
.ck-drop { border: 2px dashed var(--ck-line); border-radius: var(--radius-md); padding: .5rem 1rem; }
.ck-drop.ck-over { border-color: var(--color-accent); background: var(--ck-fill); }
.ck-drop [hidden] { display: none; }
.ck-drop [role=status] { overflow-wrap: anywhere; min-width: 0; }
.ck-held > summary { overflow-wrap: anywhere; }
.ck-held[open] { border-left: 3px solid var(--ck-line); padding-left: .75rem; margin-bottom: .75rem; }
details > summary { cursor: pointer; padding: .25rem 0; }
.ck-compare thead th { font-family: var(--font-mono); font-size: .8rem; font-weight: 500; overflow-wrap: anywhere; }
.ck-compare td { min-width: 9rem; }
@media (max-width: 1000px) {
  .ck-table th, .ck-table td { padding: .4rem; font-size: .93em; }
  .ck-list tbody th { min-width: 11.5rem; }
}
@media (max-width: 700px) {
  .ck-filters .form { flex-wrap: wrap; }
  .ck-filters .form > * { min-width: 100% !important; }
  .ck-facts { grid-template-columns: 1fr 1fr; }
  .ck-cards thead { display: block; }
  .ck-cards thead tr { display: flex; flex-wrap: wrap; gap: .25rem .9rem; padding: .25rem 0 .5rem; }
  .ck-cards thead th { border: 0; padding: 0; }
  .ck-cards thead th:not(.ck-sortable) { display: none; }
  .ck-cards tbody, .ck-cards tr, .ck-cards td, .ck-cards tbody th { display: block; border: 0; padding: 0; }
  .ck-cards tbody tr { border: 1px solid var(--ck-line); border-radius: var(--radius-md); padding: .6rem .75rem;
    margin-bottom: .6rem; }
  .ck-cards td, .ck-cards .ck-number { display: flex; justify-content: flex-end; gap: .4rem; text-align: right;
    white-space: normal; padding: .1rem 0; overflow-wrap: anywhere; }
  .ck-cards tbody th { padding-bottom: .3rem; }
  .ck-cards td[data-title]::before { content: attr(data-title); color: var(--ck-soft); text-align: left;
    flex: none;
    margin-right: auto; padding-right: .6rem; }
  .ck-cards td[data-title=""]::before { content: none; }
  .ck-cards td:empty { display: none; }
  .ck-file-forms > * { min-width: 100% !important; }
}
"""
