"""Every word on the page, in English and Chinese."""

from __future__ import annotations

import gradio as gr

# key: (English, Chinese)
WORDS: dict[str, tuple[str, str]] = {
    "paint": ("Paint", "绘画"),
    "edit": ("Edit", "编辑"),
    "gallery": ("Gallery", "图库"),
    "models": ("Models", "模型"),
    "train": ("Train", "训练"),
    "prompt": ("Prompt", "提示词"),
    "prompt_hint": ("What to paint. Ctrl+Enter paints, Esc cancels.", "要画什么。Ctrl+Enter 开始，Esc 取消。"),
    "negative": ("Keep away from", "反向提示词"),
    "cancel": ("Cancel", "取消"),
    "settings": ("Settings", "设置"),
    "style": ("Style", "风格"),
    "model": ("Model", "模型"),
    "sampler": ("Sampler", "采样器"),
    "schedule": ("Schedule", "噪声调度"),
    "automatic": ("As the model likes it", "由模型决定"),
    "steps": ("Steps (0 = the model's own)", "步数（0 = 模型默认）"),
    "guidance": ("Guidance (0 = the model's own)", "引导强度（0 = 模型默认）"),
    "width": ("Width (0 = the model's own)", "宽度（0 = 模型默认）"),
    "height": ("Height (0 = the model's own)", "高度（0 = 模型默认）"),
    "count": ("Pictures", "张数"),
    "seed": ("Seed (-1 = random)", "种子（-1 = 随机）"),
    "reuse_seed": ("Use the last seed", "沿用上次的种子"),
    "random_seed": ("Random seed", "随机种子"),
    "preview": ("Preview", "预览"),
    "results": ("Pictures", "图片"),
    "canvas": ("Picture", "图片"),
    "canvas_hint": (
        "Load a picture, then brush over the part to paint anew. Without a brush stroke all of it is painted over.",
        "载入图片，用画笔涂抹要重画的部分；不涂抹则整幅重画。",
    ),
    "strength": ("Strength: 0 keeps the picture, 1 ignores it", "强度：0 保留原图，1 忽略原图"),
    "outpaint": ("Grow the picture by pixels", "向外扩展（像素）"),
    "left": ("Left", "左"),
    "right": ("Right", "右"),
    "top": ("Top", "上"),
    "bottom": ("Bottom", "下"),
    "search": ("Words in the prompt", "在提示词中搜索"),
    "tag": ("Tag", "标签"),
    "starred_only": ("Starred only", "只看加星"),
    "refresh": ("Refresh", "刷新"),
    "star": ("Star", "加星"),
    "delete": ("Delete", "删除"),
    "undo": ("Undo delete", "撤销删除"),
    "use_settings": ("Use its settings", "使用其设置"),
    "tags": ("Tags, separated by commas", "标签，用逗号分隔"),
    "board": ("Board", "画板"),
    "save": ("Save", "保存"),
    "drop": ("Drop a picture: its settings come back", "拖入图片以恢复其设置"),
    "older": ("Older", "更早"),
    "newest": ("Newest", "最新"),
    "known_models": ("Models that a request may name", "可用模型"),
    "train_text": (
        "Training runs on the command line: `gouache train --help`. Runs below the data folder are listed here.",
        "训练在命令行中进行：`gouache train --help`。数据文件夹中的训练记录列在这里。",
    ),
    "runs": ("Runs", "训练记录"),
}


# What the server writes itself; the browser's language decides.
SAID: dict[str, tuple[str, str]] = {
    "nothing": ("**Nothing painted yet.**", "**还没有图片。**"),
    "waiting": ("**Waiting** — {} before it", "**排队中** — 前面还有 {} 个任务"),
    "painting": ("**Painting**", "**正在绘画**"),
    "stopping": ("**Stopping**", "**正在停止**"),
    "left": (" — {:.0f} s left", " — 还需 {:.0f} 秒"),
    "failed": ("**Failed:** `{}`", "**失败：** `{}`"),
    "cancelled": ("**Cancelled.**", "**已取消。**"),
    "done": ("**Done** in {:.1f} s.", "**完成**，用时 {:.1f} 秒。"),
    "load_first": ("Load a picture first.", "请先载入图片。"),
    "choose_first": ("Choose a picture first.", "请先选择图片。"),
    "no_undo": ("Nothing was deleted here.", "没有可撤销的删除。"),
    "no_settings": ("No settings in this file.", "文件中没有设置。"),
}


def said(key: str, request: gr.Request, *values: object) -> str:
    """One of the server's own sentences, in the language of the browser."""
    english, chinese = SAID[key]
    text = chinese if str(request.headers.get("accept-language", "")).startswith("zh") else english
    return text.format(*values)


def translations() -> gr.I18n:
    """The words for the browser, which picks its language."""
    chinese = {key: texts[1] for key, texts in WORDS.items()}
    return gr.I18n(
        en={key: texts[0] for key, texts in WORDS.items()}, zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese}
    )
