"""Theme, style sheet and keys of the page. Nothing is loaded from other hosts."""

from __future__ import annotations

import gradio as gr

SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "sans-serif")
CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.gradio-container > main, .gradio-container .main { width: 100%; max-width: 100% !important; }
#title h1 { margin: .2rem 0; letter-spacing: .02em; }
#status { min-height: 3.2em; }
footer { display: none !important; }
@media (max-width: 640px) { .gradio-container { padding: .5rem !important; } }
"""
KEYS = """
document.addEventListener("keydown", (event) => {
  const visible = (id) => {
    const button = document.querySelector("#" + id);
    return button && button.offsetParent !== null && !button.disabled ? button : null;
  };
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    const button = visible("paint-button") || visible("edit-button");
    if (button) {
      event.preventDefault();
      // Gradio takes a field's text when the field changes; leaving it makes sure that it has.
      setTimeout(() => button.click(), 150);
    }
  }
  if (event.key === "Escape") {
    const button = visible("cancel-button") || visible("edit-cancel-button");
    if (button) button.click();
  }
});
"""
HEAD = '<script src="/page.js" defer></script>'


def theme() -> gr.themes.Base:
    """Warm paper, dark ink, one strong colour."""
    return gr.themes.Soft(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.amber,
        neutral_hue=gr.themes.colors.stone,
        font=list(SYSTEM),
        font_mono=["ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        # The theme's own teal on mint is too pale to read.
        block_title_text_color="*primary_800",
        block_label_text_color="*primary_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        input_border_color="*neutral_300",
        input_border_width="1px",
    )
