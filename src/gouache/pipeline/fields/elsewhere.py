"""What fields are called by other tools, for whoever brings their habits along."""

from __future__ import annotations

from collections.abc import Mapping

_RENAMED = {
    "init_image": ("image", "init_images", "input_image", "image_url", "source_image"),
    "strength": ("denoising_strength", "denoise", "denoising", "image_strength"),
    "num_inference_steps": ("steps", "num_steps", "sampling_steps", "inference_steps"),
    "guidance_scale": ("cfg_scale", "cfg", "guidance", "scale", "unconditional_guidance_scale"),
    "guidance_rescale": ("cfg_rescale", "rescale_cfg"),
    "negative_prompt": ("negative", "uncond", "neg_prompt"),
    "count": ("num_images_per_prompt", "num_images", "n", "n_iter", "n_samples", "batch_size", "batch_count"),
    "sampler": ("sampler_name", "sampler_index", "sampling_method"),
    "model": ("checkpoint", "ckpt", "ckpt_name", "sd_model_checkpoint", "pretrained_model_name_or_path", "model_id"),
    "vae": ("sd_vae", "vae_name"),
    "subseed": ("variation_seed",),
    "subseed_strength": ("variation_strength", "variation_amount"),
    "clip_skip": ("clip_stop_at_last_layers",),
    "seamless": ("tiling",),
    "image_prompts": ("ip_adapter_image", "ip_adapter_image_embeds"),
    "control": ("control_image", "controlnet", "controlnet_conditioning_scale"),
    "token_merging": ("token_merging_ratio", "tome", "tome_ratio"),
    "mask.image": ("mask_image", "mask_url"),
    "mask.fill": ("inpainting_fill",),
    "mask.blur": ("mask_blur",),
    "hires": ("enable_hr", "hr_scale", "hr_upscaler", "hires_fix"),
    "refiner_switch_at": ("denoising_end", "denoising_start"),
    "size_condition": ("original_size", "target_size", "crops_coords_top_left"),
    "interpolation": ("morph", "frames"),
}
_SENTENCES = {
    "generator": "Give `seed`, a number: every image draws from its own generator, and the recipe keeps the seed.",
    "size": "Give `width` and `height`.",
    "resolution": "Give `width` and `height`.",
    "aspect_ratio": "Give `width` and `height`.",
    "scheduler": "Give `sampler`, and its noise levels by `schedule`; `gouache samplers` lists other tools' names too.",
    "timesteps": "Give `sigmas`, noise levels; or `schedule`, a rule for them.",
    "latents": "Give `seed`: the noise follows from it.",
    "prompt_embeds": "Give `prompt`: a request is text, so that its image can be replayed.",
    "negative_prompt_embeds": "Give `negative_prompt`: a request is text, so that its image can be replayed.",
    "output_type": "Leave it out: an image comes as a Pillow image, with its recipe.",
    "return_dict": "Leave it out: images come as a list.",
    "callback_on_step_end": "Leave it out: `Pipeline.run` yields the progress of every step.",
    "callback": "Leave it out: `Pipeline.run` yields the progress of every step.",
    "cross_attention_kwargs": "Write the LoRA into the prompt: <lora:name:0.8>.",
    "loras": "Write them into the prompt: <lora:name:0.8>.",
    "lora": "Write it into the prompt: <lora:name:0.8>.",
    "safety_checker": "Give `safety`.",
    "restore_faces": "Leave it out: faces are not restored here.",
}


def _here(field: str) -> str:
    group, _, part = field.partition(".")
    return f"It is `{field}` here: {group}={{'{part}': ...}}." if part else f"It is `{field}` here."


ELSEWHERE: Mapping[str, str] = _SENTENCES | {name: _here(field) for field, names in _RENAMED.items() for name in names}
"""Names of fields in diffusers, A1111, ComfyUI and OpenAI's interface, each with what says the same here."""
