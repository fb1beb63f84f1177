"""Theme, style sheet and keys of the page. Nothing is loaded from other hosts."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "sans-serif")
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
KEYS = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
HEAD = '<script src="/page.js" defer></script>'
BRAND = (
    '<div class="g-brand"><svg viewBox="0 0 28 28" fill="none" aria-hidden="true">'
    '<path d="M4 22c3.5.6 6-.4 6.6-3 .5-2-.9-3.6-2.7-3.6-3.2 0-1.6 4.2-3.9 6.6Z" fill="currentColor"/>'
    '<path d="M11.6 15.6 22.4 4.8a1.9 1.9 0 0 1 2.7 2.7L13.9 17.7" stroke="currentColor" stroke-width="2.2"'
    ' stroke-linecap="round" stroke-linejoin="round"/></svg><strong>gouache</strong></div>'
)

COLOURS = {
    "body_background_fill": "var(--g-paper)",
    "body_background_fill_dark": "var(--g-paper)",
    "body_text_color": "var(--g-ink)",
    "body_text_color_dark": "var(--g-ink)",
    "body_text_color_subdued": "var(--g-soft)",
    "body_text_color_subdued_dark": "var(--g-soft)",
    "background_fill_primary": "var(--g-card)",
    "background_fill_primary_dark": "var(--g-card)",
    "background_fill_secondary": "var(--g-paper)",
    "background_fill_secondary_dark": "var(--g-paper)",
    "border_color_primary": "var(--g-line)",
    "border_color_primary_dark": "var(--g-line)",
    "color_accent": "var(--g-accent)",
    "color_accent_soft": "var(--g-accent-soft)",
    "color_accent_soft_dark": "var(--g-accent-soft)",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_text_color": "var(--g-ink)",
    "block_label_text_color_dark": "var(--g-ink)",
    "block_title_text_color": "var(--g-ink)",
    "block_title_text_color_dark": "var(--g-ink)",
    "block_info_text_color": "var(--g-soft)",
    "block_info_text_color_dark": "var(--g-soft)",
    "block_title_text_weight": "600",
    "input_background_fill": "var(--g-card)",
    "input_background_fill_dark": "var(--g-card)",
    "input_border_color": "var(--g-line)",
    "input_border_color_dark": "var(--g-line)",
    "input_border_width": "1px",
    "input_border_color_focus": "var(--g-accent)",
    "input_border_color_focus_dark": "var(--g-accent)",
    "input_placeholder_color": "var(--g-soft)",
    "input_placeholder_color_dark": "var(--g-soft)",
    "input_shadow": "none",
    "slider_color": "var(--g-accent)",
    "slider_color_dark": "var(--g-accent)",
    "button_primary_background_fill": "var(--g-accent)",
    "button_primary_background_fill_dark": "var(--g-accent)",
    "button_primary_background_fill_hover": "var(--g-ink)",
    "button_primary_background_fill_hover_dark": "var(--g-ink)",
    "button_primary_text_color": "var(--g-on-accent)",
    "button_primary_text_color_dark": "var(--g-on-accent)",
    "button_primary_text_color_hover": "var(--g-card)",
    "button_primary_text_color_hover_dark": "var(--g-card)",
    "button_secondary_background_fill": "var(--g-card)",
    "button_secondary_background_fill_dark": "var(--g-card)",
    "button_secondary_background_fill_hover": "var(--g-paper)",
    "button_secondary_background_fill_hover_dark": "var(--g-paper)",
    "button_secondary_border_color": "var(--g-line)",
    "button_secondary_border_color_dark": "var(--g-line)",
    "button_secondary_text_color": "var(--g-ink)",
    "button_secondary_text_color_dark": "var(--g-ink)",
    "button_cancel_background_fill": "var(--g-card)",
    "button_cancel_background_fill_dark": "var(--g-card)",
    "button_cancel_background_fill_hover": "var(--g-bad-soft)",
    "button_cancel_background_fill_hover_dark": "var(--g-bad-soft)",
    "button_cancel_border_color": "var(--g-line)",
    "button_cancel_border_color_dark": "var(--g-line)",
    "button_cancel_text_color": "var(--g-bad)",
    "button_cancel_text_color_dark": "var(--g-bad)",
    "button_border_width": "1px",
    "checkbox_background_color_selected": "var(--g-accent)",
    "checkbox_background_color_selected_dark": "var(--g-accent)",
    "checkbox_border_color": "var(--g-field)",
    "checkbox_border_color_dark": "var(--g-field)",
    "checkbox_border_color_selected": "var(--g-accent)",
    "checkbox_border_color_selected_dark": "var(--g-accent)",
}
"""What differs from the theme; frames are the panels' business, see `page.css`."""


def theme() -> gr.themes.Base:
    """Warm paper, dark ink, one strong colour; frames are the panels' business, see `page.css`."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        font=list(SYSTEM),
        font_mono=["ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(**COLOURS)
