"""Names what gouache doesn't run: pipelines of other kinds in diffusers folders, and networks of other families.

Many of them hold the very parts of Stable Diffusion, trained for something else (Marigold, Zero123++, LDM3D), so that
shapes alone would let them paint nonsense. A folder is what its `model_index.json` says; a file is what marks among the
names of its tensors say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gouache.errors import UnknownFamily

Json = Mapping[str, object]

PIPELINES = frozenset(
    {
        "CycleDiffusionPipeline",
        "DiffusionPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "LatentConsistencyModelPipeline",
        "LEditsPPPipelineStableDiffusion",
        "LEditsPPPipelineStableDiffusionXL",
        "SemanticStableDiffusionPipeline",
        "StableDiffusionAdapterPipeline",
        "StableDiffusionAttendAndExcitePipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionControlNetPAGInpaintPipeline",
        "StableDiffusionControlNetPAGPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetXSPipeline",
        "StableDiffusionDepth2ImgPipeline",
        "StableDiffusionDiffEditPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionKDiffusionPipeline",
        "StableDiffusionLongPromptWeightingPipeline",
        "StableDiffusionModelEditingPipeline",
        "StableDiffusionPAGImg2ImgPipeline",
        "StableDiffusionPAGInpaintPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionPanoramaPipeline",
        "StableDiffusionParadigmsPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionPipelineSafe",
        "StableDiffusionPix2PixZeroPipeline",
        "StableDiffusionSAGPipeline",
        "StableDiffusionXLAdapterPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        "StableDiffusionXLControlNetPAGPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLControlNetXSPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
        "StableDiffusionXLKDiffusionPipeline",
        "StableDiffusionXLPAGImg2ImgPipeline",
        "StableDiffusionXLPAGInpaintPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPipeline",
        "StableUnCLIPImg2ImgPipeline",
        "SDXLLongPromptWeightingPipeline",
        "TextToVideoZeroPipeline",
        "TextToVideoZeroSDXLPipeline",
    }
)
"""Pipelines of diffusers and of its community whose networks are Stable Diffusion's own, for pictures from text."""
PARTS_OF_PIPELINES = frozenset(
    {
        "caption_generator",
        "caption_processor",
        "depth_estimator",
        "feature_extractor",
        "image_encoder",
        "image_noising_scheduler",
        "image_normalizer",
        "inverse_scheduler",
        "safety_checker",
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "vae",
        "watermark",
    }
)
"""Parts that belong to such pipelines, whether they are used here or not. Any other is named in a note."""
CLASSES = frozenset(
    {
        "AsymmetricAutoencoderKL",
        "CLIPVisionModelWithProjection",
        "AutoencoderKL",
        "AutoencoderTiny",
        "CLIPModel",
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "ControlNetModel",
        "ControlNetUnionModel",
        "ControlNetXSAdapter",
        "FlaxAutoencoderKL",
        "FlaxControlNetModel",
        "FlaxUNet2DConditionModel",
        "MultiControlNetModel",
        "T2IAdapter",
        "UNet2DConditionModel",
    }
)
"""Classes of networks, as the `config.json` beside them names them, that gouache knows."""

# (what a class's name starts with, what it is): the longest start wins.
KINDS_OF_CLASSES = {
    "AltDiffusion": "AltDiffusion, whose text encoder is XLM-R",
    "Amused": "aMUSEd",
    "AnimateDiff": "AnimateDiff, which makes films",
    "AudioLDM": "AudioLDM, which makes sound",
    "AuraFlow": "AuraFlow",
    "AutoencoderDC": "the autoencoder of Sana",
    "BlipDiffusion": "BLIP-Diffusion, which takes a picture of the subject",
    "Chroma": "Chroma",
    "CogVideoX": "CogVideoX, which makes films",
    "CogView": "CogView",
    "ConsistencyDecoder": "the consistency decoder, which is itself a diffusion model",
    "Cosmos": "Cosmos, which makes films",
    "DiT": "DiT",
    "Flax": "an export for Flax",
    "Flux": "Flux",
    "GeoWizard": "GeoWizard, which measures depth in a picture",
    "HiDream": "HiDream",
    "HunyuanDiT": "HunyuanDiT",
    "HunyuanImage": "Hunyuan Image",
    "HunyuanVideo": "Hunyuan Video",
    "I2VGenXL": "I2VGen-XL, which makes films",
    "IF": "DeepFloyd IF, which works on pixels",
    "Kandinsky": "Kandinsky",
    "Kolors": "Kolors, whose text encoder is a language model",
    "LDMSuperResolution": "a latent diffusion upscaler",
    "LDMTextToImage": "latent diffusion of before Stable Diffusion, with BERT as its text encoder",
    "LTX": "LTX Video",
    "Latte": "Latte, which makes films",
    "Lotus": "Lotus, which measures depth in a picture",
    "Lumina": "Lumina",
    "MVDream": "MVDream, which paints several views at once",
    "Marigold": "Marigold, which measures depth and other things in a picture",
    "Mochi": "Mochi, which makes films",
    "MotionAdapter": "a motion module of AnimateDiff",
    "MusicLDM": "MusicLDM, which makes music",
    "OmniGen": "OmniGen",
    "Onnx": "an export for ONNX",
    "PIA": "PIA, which makes films",
    "PaintByExample": "Paint by Example, which takes a picture in place of text",
    "PixArt": "PixArt",
    "Prior": "an unCLIP prior",
    "QwenImage": "Qwen-Image",
    "SD3": "Stable Diffusion 3",
    "Sana": "Sana",
    "ShapE": "Shap-E, which makes solids",
    "StableAudio": "Stable Audio, which makes sound",
    "StableCascade": "Stable Cascade",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusionGLIGEN": "GLIGEN, which takes boxes with words",
    "StableDiffusionImageVariation": "Image Variations, which takes a picture in place of text",
    "StableDiffusionLDM3D": "LDM3D, which paints depth beside colour",
    "StableDiffusionLatentUpscale": "the latent upscaler",
    "StableDiffusionOnnx": "an export for ONNX",
    "StableDiffusionUpscale": "the upscaler of Stable Diffusion",
    "StableUnCLIP": "Stable unCLIP, which takes a picture's embedding",
    "StableVideoDiffusion": "Stable Video Diffusion",
    "TextToVideoSD": "ModelScope's text to video",
    "UNet2DModel": "a U-Net without text",
    "UNet3DCondition": "ModelScope's text to video",
    "UNetMotion": "AnimateDiff, which makes films",
    "UNetSpatioTemporal": "Stable Video Diffusion",
    "UnCLIP": "unCLIP",
    "UniDiffuser": "UniDiffuser",
    "VQDiffusion": "VQ-Diffusion",
    "VQModel": "an autoencoder with a code book",
    "VersatileDiffusion": "Versatile Diffusion",
    "VideoToVideoSD": "ModelScope's video to video",
    "VisualCloze": "VisualCloze",
    "Wan": "Wan, which makes films",
    "Wuerstchen": "Wuerstchen",
    "ZImage": "Z-Image",
    "Zero123": "Zero123++, which paints views of a thing from a picture",
    "Zero1to3": "Zero-1-to-3, which paints views of a thing from a picture",
}

# Networks that share Stable Diffusion's names and have more: asked whether or not its U-Net was found.
RELATIVES = {
    "Zero-1-to-3": r"(^|\.)cc_projection\.",
    "MVDream": r"\.camera_embed\.",
    "Stable Video Diffusion": r"\.time_(stack|mixer|mix_blocks)\.|\.temporal_transformer_blocks\.|\.time_pos_embed\.",
    "AnimateDiff": r"\.motion_modules\.",
    "a text-to-video network (ModelScope, VideoCrafter)": (
        r"\.temopral_conv\.|\.temporal_conv\.|\.temp_(convs|attentions)\.|(^|\.)transformer_in\.|\.init_attn\."
    ),
    "GLIGEN": r"(^|\.)position_net\.|\.fuser\.",
    "DeepFloyd IF": r"(^|\.)(add_embedding\.pool|encoder_pooling)\.",
    "Kandinsky": r"(^|\.)encoder_hid_proj\.(image_embeds|image_proj|text_proj|projection_linear)\."
    r"|(^|\.)add_embedding\.(image_proj|text_proj|image_norm)\.|(^|\.)(ln_model_n|clip_to_seq)\.",
    "a U-Net with an IP-Adapter inside": r"\.to_k_ip\.|encoder_hid_proj\.image_projection_layers\.",
    "Kolors": r"(^|\.)encoder_hid_proj\.weight$",
    "latent diffusion with BERT as its text encoder": r"^cond_stage_model\.transformer\.(token_emb|attn_layers)\.",
    "AltDiffusion": r"^cond_stage_model\.(transformer\.|model\.)?(roberta|pre_LN|embeddings\.word_embeddings)",
    "Paint by Example": r"^cond_stage_model\.mapper\.",
    "AudioLDM 2": r"^down_blocks\.1\.attentions\.3\.",
    "AudioLDM": r"^(clap|cond_stage_model\.model\.(audio|text)_branch)\.",
    "StableSR": r"^structcond_stage_model\.",
    "Versatile Diffusion": r"^model\.(diffusion_model\.)?unet_(image|text)\.",
    "a diffusion model whose autoencoder has a code book": r"^(first_stage_model\.)?quantize\.embedding\.",
    "a guided-diffusion network, which takes no text": r"^input_blocks\.\d+\.1\.qkv\.",
    "a U-Net without text (UNet2DModel)": r"^down_blocks\.\d+\.attentions\.\d+\.(to_q|query)\.",
}
# Networks with names of their own. Asked in this order: later ones share marks with earlier ones.
STRANGERS = {
    "Hunyuan Video": r"(^|\.)(txt_in\.individual_token_refiner|context_embedder\.token_refiner)\.",
    "HiDream": r"double_stream_blocks\.0\.block\.",
    "Chroma": r"distilled_guidance_layer\.",
    "Qwen-Image": r"transformer_blocks\.0\.img_mlp\.",
    "Flux": r"(^|\.)(double_blocks\.0\.img_attn\.|single_blocks\.0\.linear1\.|single_transformer_blocks\.0\.proj_mlp\.)"
    r"|(^|\.)single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj\.",
    "AuraFlow": r"(^|\.)(double_layers|joint_transformer_blocks)\.0\.",
    "Lumina or Z-Image": r"(^|\.)(noise_refiner\.0|cap_embedder|time_caption_embed)\.",
    "Sana": r"(^|\.)caption_norm\.weight$|transformer_blocks\.0\.ff\.conv_inverted\.",
    "CogVideoX": r"(^|\.)patch_embed\.text_proj\.",
    "Cosmos": r"(^|\.)blocks\.block0\.|(^|\.)net\.blocks\.0\.adaln",
    "Mochi": r"(^|\.)(t5_yproj|time_embed\.pooler)\.|blocks\.0\.attn\.qkv_y\.",
    "Wan": r"(^|\.)head\.modulation$|(^|\.)condition_embedder\.text_embedder\.|blocks\.0\.self_attn\.norm_q\.",
    "LTX Video": r"(^|\.)patchify_proj\.",
    "PixArt": r"(^|\.)adaln_single\.|(^|\.)y_embedder\.y_embedding",
    "LTX Video's newer networks": r"^caption_projection\.linear_1\.|^audio_scale_shift_table$",
    "an unCLIP prior": r"(^|\.)prd_embedding$",
    "DiT": r"(^|\.)y_embedder\.embedding_table|transformer_blocks\.0\.norm1\.emb\.class_embedder\.",
    "Kandinsky 5": r"(^|\.)visual_transformer_blocks\.",
    "Stable Diffusion 3": r"(^|\.)joint_blocks\.0\.|(^|\.)pos_embed\.pos_embed$",
    "Wuerstchen or Stable Cascade": r"(^|\.)(blocks\.0\.(depthwise|channelwise)|clip_txt(_pooled)?_mapper)\."
    r"|(^|\.)down_blocks\.0\.0\.(depthwise|channelwise|kv_mapper)\.",
    "aMUSEd": r"(^|\.)mlm_layer\.",
    "Stable Audio": r"^(pretransform|model\.model\.transformer)\.",
    "a language model": r"(^|\.)layers\.0\.self_attn\.q_proj\.|(^|\.)h\.0\.attn\.c_attn\.|query_key_value\.weight$",
    "a BERT text encoder": r"(^|\.)encoder\.layer\.0\.attention\.self\.query\.",
    "the autoencoder of films": r"\.time_conv\.weight$|(^|\.)encoder\.downsamples\.0\.|\.conv\.conv\.weight$"
    r"|^encoder\.conv_in\.conv\.weight$",
    "the autoencoder of Sana": r"^encoder\.(stages|down_blocks)\.\d+\.\d+\.",
}
_RELATIVES = {name: re.compile(pattern) for name, pattern in RELATIVES.items()}
_STRANGERS = {name: re.compile(pattern) for name, pattern in STRANGERS.items()}


def name_relative(names: Iterable[str]) -> str | None:
    """Which network that shares Stable Diffusion's names these are the tensors of; None for Stable Diffusion's own."""
    return _first(_RELATIVES, list(names))


def name_stranger(names: Iterable[str]) -> str | None:
    """Which network of another family these are the tensors of, or None."""
    return _first(_STRANGERS, list(names))


def _first(marks: Mapping[str, re.Pattern[str]], names: list[str]) -> str | None:
    return next((kind for kind, mark in marks.items() if any(map(mark.search, names))), None)


def named_kind(class_name: str) -> str:
    """What a class of diffusers or transformers is, in words, with its name."""
    start = max((start for start in KINDS_OF_CLASSES if class_name.startswith(start)), key=len, default="")
    return f"{KINDS_OF_CLASSES[start]} ({class_name})" if start else class_name


def check_pipeline(index: Json, where: str) -> tuple[str, ...]:
    """See that a folder's pipeline is one for pictures from text.

    Args:
        index: its `model_index.json`; empty if there is none.
        where: the folder, for errors.

    Returns:
        Notes on parts that are left out, such as a ControlNet.

    Raises:
        UnknownFamily: it is a pipeline of another kind.
    """
    name = index.get("_class_name")
    if isinstance(name, list):  # a pipeline of the user's own: [module, class]
        name = name[-1] if name else None
    if isinstance(name, str) and name not in PIPELINES:
        raise UnknownFamily(
            where,
            given=named_kind(name[:100]),
            expected="a pipeline of Stable Diffusion 1.x, 2.x or XL that paints from text",
            cure="gouache runs no model of that kind."
            if named_kind(name[:100]) != name[:100]
            else "If its parts are Stable Diffusion's own, give _class_name in model_index.json as "
            "StableDiffusionPipeline or StableDiffusionXLPipeline.",
        )
    others = [
        str(part)
        for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)
        if part not in PARTS_OF_PIPELINES and not str(part).startswith("_")
    ]
    return (f"left out of the folder: {', '.join(sorted(others))}",) if others else ()


def check_class(values: Json, where: str) -> None:
    """See that a network's `config.json` is of a class that gouache knows; one that names none passes.

    Raises:
        UnknownFamily: it is a network of another kind.
    """
    named = values.get("_class_name")
    if named is None:
        architectures = values.get("architectures")
        named = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if isinstance(named, str) and named not in CLASSES:
        raise UnknownFamily(
            where,
            given=named_kind(named[:100]),
            expected="a network of Stable Diffusion: UNet2DConditionModel, AutoencoderKL or CLIPTextModel",
            cure="gouache runs no network of that kind.",
        )
