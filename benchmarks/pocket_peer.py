"""The pocket model's U-Net built from diffusers' classes and trained by a plain script, measured by the same judge.

It learns from the latents and text states that a run of `gouache train` stored, paints through the same autoencoder by
DDIM with the same guidance, and its pictures are judged as in `gouache eval`: same prompts, same judge. It has no prior
and no draft. Whatever its table is compared with must have had the same training time. Minutes are the process's own
processor time, over all its threads, so that what else the machine does is not counted.

Run: python benchmarks/pocket_peer.py --store RUN/encoded-... --model MODEL --data STICKERS --judge JUDGE --minutes 60
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gouache.checkpoints.formats.header import read_header
from gouache.checkpoints.load import load_bundle
from gouache.data.stickers import Stickers
from gouache.models.bundle import ModelBundle
from gouache.pipeline.inputs.tensors import to_image
from gouache.pipeline.likelihood import encode_captions
from gouache.training.batches.store import SHARD, EncodedStore
from gouache.training.evaluation.judge import load_judge
from gouache.training.evaluation.prompts import Prompt, RetrievalCaptions, choose_prompts
from gouache.training.stage import batched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH, RATE, WARM_UP, DROPPED, EMA, GUIDANCE = 32, 5e-4, 300, 0.1, 0.999, 3.0


def build(bundle: ModelBundle) -> Any:
    """diffusers' U-Net of the model's widths, depths and heads; the pooled text is added to the time embedding."""
    from diffusers import UNet2DConditionModel

    config = bundle.unet.config
    deep = [depth > 0 for depth in config.transformer_layers]
    return UNet2DConditionModel(
        sample_size=bundle.defaults.width // bundle.vae.config.downscale,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_level,
        down_block_types=["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in deep],
        up_block_types=["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in reversed(deep)],
        attention_head_dim=list(config.heads),
        cross_attention_dim=config.context_width,
        norm_num_groups=config.norm_groups,
        use_linear_projection=config.linear_projection,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=config.pooled_width,
    ).to(memory_format=torch.channels_last)


def train(unet: Any, store: EncodedStore, minutes: float) -> tuple[Any, int]:
    """v-prediction on the cosine schedule with AdamW; gives the averaged network and the images seen."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
    average, dice = copy.deepcopy(unet).requires_grad_(False), torch.Generator().manual_seed(0)
    started, seen, steps, order = time.process_time(), 0, 0, torch.empty(0, dtype=torch.long)
    while time.process_time() - started < 60 * minutes:
        if len(order) < BATCH:
            order = torch.randperm(len(store), generator=dice)
        rows, order = order[:BATCH].tolist(), order[BATCH:]
        x0, context, mask, pooled = batch(store, rows, torch.rand(BATCH, generator=dice) < DROPPED)
        noise, t = torch.randn(x0.shape, generator=dice), torch.randint(1000, (BATCH,), generator=dice)
        with torch.autocast("cpu", torch.bfloat16):
            noisy = scheduler.add_noise(x0, noise, t).to(memory_format=torch.channels_last)
            predicted = unet(noisy, t, context, encoder_attention_mask=mask, class_labels=pooled).sample
        loss = torch.nn.functional.mse_loss(predicted.float(), scheduler.get_velocity(x0, noise, t))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ramp.step()
        seen, steps = seen + BATCH, steps + 1
        kept = min(EMA, (1 + steps) / (10 + steps))
        for mean, weight in zip(average.parameters(), unet.parameters(), strict=True):
            mean.lerp_(weight.detach(), 1 - kept)
        if steps % 100 == 0:
            sys.stderr.write(f"{seen:,} images, loss {loss.item():.3f}\n")
    return average, seen


def batch(store: EncodedStore, rows: Sequence[int], dropped: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, context, mask and pooled text of some examples; some captions replaced by the empty one."""
    text, length = store.text(rows), store.empty.context.shape[1]
    text.context[dropped], text.mask[dropped], text.pooled[dropped] = 0.0, False, store.empty.pooled
    text.context[dropped, :length], text.mask[dropped, :length] = store.empty.context, True
    return store.latents(rows), text.context, text.mask, text.pooled


@torch.no_grad()
def paint(unet: Any, bundle: ModelBundle, prompts: Sequence[Prompt], steps: int) -> NDArray[np.uint8]:
    """DDIM with guidance; each picture starts from its own seed. uint8 [N,S,S,4]"""
    import numpy as np
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    side, empty, pictures = unet.config.sample_size, encode_captions(bundle, [""]), []
    for part in batched(len(prompts), BATCH):
        text = encode_captions(bundle, [prompts[i].text for i in part])
        shape = (unet.config.in_channels, side, side)
        seeds = [torch.Generator().manual_seed(prompts[i].seed) for i in part]
        x = torch.stack([torch.randn(shape, generator=seed) for seed in seeds])
        both = [
            torch.cat([a, b.expand(len(part), *b.shape[1:])])
            for a, b in ((text.context, empty.context), (text.mask, empty.mask), (text.pooled, empty.pooled))
            if a is not None and b is not None
        ]
        for t in scheduler.timesteps:
            out = unet(torch.cat([x, x]), t, both[0], encoder_attention_mask=both[1], class_labels=both[2]).sample
            with_text, without = out.chunk(2)
            x = scheduler.step(without + GUIDANCE * (with_text - without), t, x).prev_sample
        pictures += [np.array(to_image(one).convert("RGBA")) for one in bundle.vae.decode(x)]
    return np.stack(pictures)


def main() -> None:
    """Train, paint, judge, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("store", "model", "data", "judge"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--eval", type=Path, help="JSON of gouache eval, to print beside")
    parser.add_argument("--minutes", type=float, default=120.0, help="processor time; two cores for an hour: 120")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save", type=Path, help="keep the trained network in this folder")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    bundle = load_bundle(options.model, dtype=torch.float32)
    shards = sorted(options.store.glob("0*.safetensors"))
    stored = (len(shards) - 1) * SHARD + read_header(shards[-1]).tensors["latents"].shape[0]
    unet, seen = train(build(bundle), EncodedStore(options.store, stored), options.minutes)
    if options.save:
        unet.save_pretrained(options.save)
    stickers = Stickers.open(options.data)
    court = RetrievalCaptions(load_judge(options.judge), stickers, 100, 0)
    parameters = sum(weight.numel() for weight in unet.parameters())
    budget = f"{options.minutes:g} minutes of processor time"
    lines = [f"diffusers' classes: {parameters:,} parameters, {seen:,} images in {budget}"]
    theirs: dict[tuple[str, str], tuple[float, float, float]] = {}
    for group, split in (("seen", "train"), ("held_out", "held_out")):
        prompts = choose_prompts(stickers, "train" if split == "train" else "held_out", options.limit, 0)
        judged = court.judge_pictures(prompts, paint(unet, bundle, prompts, options.steps))
        for name, interval in judged.intervals(0).items():
            theirs[name, group] = (interval.value, interval.low, interval.high)
    ours = figures(options.eval, options.steps) if options.eval else {}
    lines.append(f"{'figure':16} {'on':9} {'plain diffusers':>24} {'gouache':>24}")
    for key, value in theirs.items():
        lines.append(f"{key[0]:16} {key[1]:9} {shown(value):>24} {shown(ours.get(key)):>24}")
    sys.stdout.write("\n".join(lines) + "\n")


def figures(path: Path, steps: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """What gouache eval measured with so many steps, with the prior if there is one."""
    found: dict[tuple[str, str], tuple[float, float, float]] = {}
    for figure in json.loads(path.read_text(encoding="utf-8"))["figures"]:
        if figure["steps"] == steps and figure["best_of"] == 1:
            found.setdefault((figure["name"], figure["group"]), (figure["value"], figure["low"], figure["high"]))
    return found


def shown(value: tuple[float, float, float] | None) -> str:
    """A share with its interval."""
    return "" if value is None else f"{100 * value[0]:.1f} % ({100 * value[1]:.0f} to {100 * value[2]:.0f})"


if __name__ == "__main__":
    main()
