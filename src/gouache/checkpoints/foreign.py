"""Names what gouache doesn't run: pipelines of other kinds in diffusers folders, and networks of other families.

Many of them hold the very parts of Stable Diffusion, trained for something else (Marigold, Zero123++, LDM3D), so that
shapes alone would let them paint nonsense. A folder is what its `model_index.json` says; a file is what marks among the
names of its tensors say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gouache.checkpoints.formats.header import TensorInfo
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
        "StableDiffusion3ControlNetInpaintingPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3Pipeline",
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
        "StableDiffusionImageVariationPipeline",
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
        "StableDiffusionUpscalePipeline",
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
        "low_res_scheduler",
        "safety_checker",
        "scheduler",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
        "transformer",
        "unet",
        "vae",
        "watermark",
        "watermarker",
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
        "ControlNetModel_Union",
        "ControlNetUnionModel",
        "ControlNetXSAdapter",
        "FlaxAutoencoderKL",
        "FlaxControlNetModel",
        "FlaxUNet2DConditionModel",
        "MultiControlNetModel",
        "SD3ControlNetModel",
        "SD3MultiControlNetModel",
        "SD3Transformer2DModel",
        "T2IAdapter",
        "T5EncoderModel",
        "T5ForConditionalGeneration",
        "UNet2DConditionModel",
    }
)
"""Classes of networks, as the `config.json` beside them names them, that gouache knows."""

# (what a class's name starts with, what it is): the longest start wins.
KINDS_OF_CLASSES = {
    "AceStep": "ACE-Step, which makes music",
    "Allegro": "Allegro, which makes films",
    "AltDiffusion": "AltDiffusion, whose text encoder is XLM-R",
    "Amused": "aMUSEd",
    "Anima": "Anima",
    "AnimateDiff": "AnimateDiff, which makes films",
    "AnyFlow": "AnyFlow, which makes films",
    "AudioDiffusion": "Audio Diffusion, which makes sound",
    "AudioLDM": "AudioLDM, which makes sound",
    "AuraFlow": "AuraFlow",
    "AutoencoderDC": "the autoencoder of Sana",
    "AutoencoderKLAllegro": "the autoencoder of Allegro",
    "AutoencoderKLCogVideoX": "the autoencoder of CogVideoX",
    "AutoencoderKLCosmos": "the autoencoder of Cosmos",
    "AutoencoderKLFlux2": "the autoencoder of FLUX.2",
    "AutoencoderKLHunyuan": "an autoencoder of Hunyuan's models",
    "AutoencoderKLKVAE": "the autoencoder of Kandinsky 5",
    "AutoencoderKLLTX": "an autoencoder of LTX Video",
    "AutoencoderKLMagvit": "the autoencoder of EasyAnimate",
    "AutoencoderKLMiniMax": "an autoencoder of MiniMax",
    "AutoencoderKLMochi": "the autoencoder of Mochi",
    "AutoencoderKLQwenImage": "the autoencoder of Qwen-Image",
    "AutoencoderKLTemporalDecoder": "the autoencoder of Stable Video Diffusion",
    "AutoencoderKLWan": "the autoencoder of Wan",
    "AutoencoderOobleck": "the autoencoder of Stable Audio",
    "AutoencoderRAE": "a representation autoencoder",
    "AutoencoderVidTok": "an autoencoder of films",
    "BertModel": "a BERT text encoder alone",
    "BlipDiffusion": "BLIP-Diffusion, which takes a picture of the subject",
    "Bria": "Bria's models",
    "CLIPSegForImageSegmentation": "CLIPSeg, which finds what words name",
    "CLIPVisionModel": "a CLIP vision tower",
    "ChatGLM": "ChatGLM, the language model that Kolors reads prompts with",
    "Chroma": "Chroma",
    "ChronoEdit": "ChronoEdit",
    "CogVideoX": "CogVideoX, which makes films",
    "CogView": "CogView",
    "ConsisID": "ConsisID, which makes films",
    "ConsistencyDecoder": "the consistency decoder, which is itself a diffusion model",
    "ConsistencyModel": "a consistency model without text",
    "Cosmos": "Cosmos, which makes films",
    "DDIM": "a diffusion model without text",
    "DDPM": "a diffusion model without text",
    "DanceDiffusion": "Dance Diffusion, which makes sound",
    "DiT": "DiT",
    "DiffusionGemma": "DiffusionGemma, a language model",
    "DreamLite": "DreamLite",
    "EasyAnimate": "EasyAnimate, which makes films",
    "Echo": "Echo",
    "ErnieImage": "ERNIE-Image of Baidu",
    "Flax": "an export for Flax",
    "Flux": "FLUX.1 of Black Forest Labs",
    "Flux2": "FLUX.2 of Black Forest Labs",
    "FluxControl": "FLUX.1 Canny or Depth of Black Forest Labs",
    "FluxControlNet": "a ControlNet of FLUX.1",
    "FluxFill": "FLUX.1 Fill of Black Forest Labs",
    "FluxKontext": "FLUX.1 Kontext of Black Forest Labs",
    "FluxPriorRedux": "FLUX.1 Redux of Black Forest Labs",
    "Gemma": "Gemma, a language model",
    "GeoWizard": "GeoWizard, which measures depth in a picture",
    "GlmImage": "GLM-Image",
    "Helios": "Helios, which makes films",
    "HiDream": "HiDream",
    "HunyuanDiT": "HunyuanDiT",
    "HunyuanImage": "Hunyuan Image",
    "HunyuanSkyreels": "SkyReels, which makes films",
    "HunyuanVideo": "Hunyuan Video",
    "I2VGenXL": "I2VGen-XL, which makes films",
    "IF": "DeepFloyd IF, which works on pixels",
    "Ideogram": "Ideogram 4",
    "JoyImage": "JoyImage",
    "Kandinsky": "Kandinsky",
    "KarrasVe": "a diffusion model without text",
    "Kolors": "Kolors, whose text encoder is a language model",
    "Krea2": "Krea 2",
    "LDMPipeline": "a diffusion model without text",
    "LDMSuperResolution": "a latent diffusion upscaler",
    "LDMTextToImage": "latent diffusion of before Stable Diffusion, with BERT as its text encoder",
    "LLaDA": "LLaDA, a language model",
    "LTX": "LTX Video",
    "Latte": "Latte, which makes films",
    "LlamaForCausalLM": "Llama, a language model",
    "LlamaModel": "Llama, a language model",
    "LongCatAudio": "LongCat, which makes sound",
    "LongCatImage": "LongCat-Image",
    "Lotus": "Lotus, which measures depth in a picture",
    "LucyEdit": "Lucy, which edits films",
    "Lumina": "Lumina",
    "MT5EncoderModel": "an mT5 text encoder alone",
    "MVDream": "MVDream, which paints several views at once",
    "Marigold": "Marigold, which measures depth and other things in a picture",
    "MiniMax": "MiniMax's models",
    "Mochi": "Mochi, which makes films",
    "Modular": "a modular pipeline",
    "MotifVideo": "Motif Video",
    "MotionAdapter": "a motion module of AnimateDiff",
    "MusicLDM": "MusicLDM, which makes music",
    "NucleusMoE": "Nucleus-Image",
    "OmniGen": "OmniGen",
    "Onnx": "an export for ONNX",
    "OvisImage": "Ovis-Image",
    "PIA": "PIA, which makes films",
    "PNDM": "a diffusion model without text",
    "PRX": "PRX of Photoroom",
    "PaintByExample": "Paint by Example, which takes a picture in place of text",
    "PixArt": "PixArt",
    "Prior": "an unCLIP prior",
    "Qwen": "Qwen, a language model",
    "QwenImage": "Qwen-Image",
    "RFD4": "a model of proteins",
    "RePaint": "a diffusion model without text",
    "SD3": "Stable Diffusion 3",
    "Sana": "Sana",
    "ScoreSde": "a diffusion model without text",
    "ShapE": "Shap-E, which makes solids",
    "SiglipVisionModel": "a SigLIP vision tower",
    "SkyReels": "SkyReels, which makes films",
    "SparseControlNet": "a ControlNet of AnimateDiff",
    "SpectrogramDiffusion": "Spectrogram Diffusion, which makes music",
    "StableAudio": "Stable Audio, which makes sound",
    "StableCascade": "Stable Cascade",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusionGLIGEN": "GLIGEN, which takes boxes with words",
    "StableDiffusionLDM3D": "LDM3D, which paints depth beside colour",
    "StableDiffusionLatentUpscale": "the latent upscaler",
    "StableDiffusionOnnx": "an export for ONNX",
    "StableDiffusionXLModular": "a modular pipeline",
    "StableUnCLIP": "Stable unCLIP, which takes a picture's embedding",
    "StableVideoDiffusion": "Stable Video Diffusion",
    "T5EncoderModel": "a T5 text encoder alone",
    "TextToVideoSD": "ModelScope's text to video",
    "Transformer2DModel": "a transformer alone",
    "TransformerTemporal": "a transformer of films",
    "UMT5": "a UMT5 text encoder alone",
    "UNet1D": "a U-Net for sound",
    "UNet2DModel": "a U-Net without text",
    "UNet3DCondition": "ModelScope's text to video",
    "UNetMotion": "AnimateDiff, which makes films",
    "UNetSpatioTemporal": "Stable Video Diffusion",
    "UVit2D": "aMUSEd",
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
    "AuraFlow": r"(^|\.)(double_layers|joint_transformer_blocks)\.\d+\.",
    "a ControlNet of FLUX.1": r"^controlnet_x_embedder\.|^pos_embed_input\.(weight|bias)$",
    "Versatile Diffusion": r"^model\.(diffusion_model\.)?unet_(image|text)\.",
    "the autoencoder of FLUX.2": r"(^|\.)bn\.(running_mean|num_batches_tracked)$",
    "a diffusion model whose autoencoder has a code book": r"^(first_stage_model\.)?quantize\.embedding\.",
    "a guided-diffusion network, which takes no text": r"^input_blocks\.\d+\.1\.qkv\.",
    "a U-Net without text (UNet2DModel)": r"^down_blocks\.\d+\.attentions\.\d+\.(to_q|query)\.",
}
# Networks with names of their own. Asked in this order: later ones share marks with earlier ones.
FLUX_1 = "FLUX.1 of Black Forest Labs"
STRANGERS = {
    "Hunyuan Video": r"(^|\.)(txt_in\.individual_token_refiner|context_embedder\.token_refiner)\.",
    "HiDream": r"(double|single)_stream_blocks\.\d+\.block\.",
    "Boogu-Image": r"(^|\.)double_stream_layers\.\d+\.",
    "SeFi-Image": r"(^|\.)dual_time_embed\.",
    "MiniT2I": r"(^|\.)img_embedder\.proj1\.",
    "PiD": r"(^|\.)lq_proj\.latent_proj\.",
    "LingBot Video": r"(^|\.)patch_embedder\.weight$",
    "Chroma": r"distilled_guidance_layer\.",
    "Lens": r"transformer_blocks\.0\.img_mlp\.w1\.",
    "Qwen-Image": r"transformer_blocks\.\d+\.img_(mlp|mod)\.|(^|\.)txt_in\.text_norm\.",
    "HiDream-O1": r"^model\.(diffusion_model\.)?(model\.)?x_embedder\.proj1\.",
    "FLUX.2 of Black Forest Labs": r"(^|\.)(double|single)_stream_modulation(_img|_txt)?\.lin"
    r"|(^|\.)single_transformer_blocks\.0\.attn\.to_qkv_mlp_proj\.",
    "FLUX.3 of Black Forest Labs": r"(^|\.)(early_stream_modulations|ref_time_in)\.",
    "Ovis-Image": r"(^|\.)double_blocks\.0\.img_mlp\.gate_proj\.",
    "Hunyuan Image": r"(^|\.)(double_blocks\.0\.img_attn_qkv|byt5_in)\.",
    "an IP-Adapter for FLUX.1": r"(^|\.)double_blocks\.0\.processor\.ip_adapter_",
    "FLUX.1 Redux of Black Forest Labs": r"^redux_(up|down)\.",
    FLUX_1: (
        r"(^|\.)(double_blocks\.\d+\.img_attn\.|single_blocks\.\d+\.linear1\.|single_transformer_blocks\.\d+\.proj_mlp\.)"
    ),
    "Ideogram 4": r"(^|\.)embed_image_indicator\.weight$",
    "Krea 2": r"(^|\.)(txtfusion|text_fusion)\.projector\.",
    "Anima": r"(^|\.)llm_adapter\.blocks\.0\.",
    "ERNIE-Image of Baidu": r"(^|\.)layers\.0\.adaLN_sa_ln\.",
    "MiniMax's models": r"(^|\.)(video_patch_proj|token_refiner\.blocks\.0\.attn\.qkv_proj)\.",
    "a ControlNet of Z-Image": r"(^|\.)(control_all_x_embedder|control_layers)\.",
    "Z-Image": r"(^|\.)layers\.0\.adaLN_modulation\.0\.|(^|\.)cap_pad_token$",
    "OmniGen": r"(^|\.)layers\.0\.self_attn\.qkv_proj\.",
    "HunyuanDiT": r"(^|\.)(mlp_t5|text_states_proj|pooler\.positional_embedding|text_embedding_padding)(\.|$)"
    r"|(^|\.)style_embedder\.|(^|\.)blocks\.0\.attn1\.Wqkv\.",
    "a language model under llama.cpp's names": r"^(model\.)?blk\.0\.(attn_q|attn_qkv|ffn_up|attn_norm)\.",
    "a vision tower under llama.cpp's names": r"^v\.(blk\.0|patch_embd)\.",
    "a hypernetwork": r"^(320|640|768|1024|1280)\.[01]\.linear\.\d+\.(weight|bias)$",
    "Lumina": r"(^|\.)(noise_refiner\.0|cap_embedder|time_caption_embed)\.",
    "Sana": r"(^|\.)attention_y_norm\.|(^|\.)blocks\.0\.mlp\.inverted_conv\."
    r"|(^|\.)caption_norm\.weight$|transformer_blocks\.0\.ff\.conv_inverted\.",
    "CogVideoX": r"(^|\.)patch_embed\.text_proj\.",
    "Cosmos": r"(^|\.)blocks\.block\d+\.|(^|\.)blocks\.\d+\.adaln_modulation|(^|\.)pos_embedder\.dim_spatial_range",
    "Mochi": r"(^|\.)(t5_yproj|time_embed\.pooler)\.|blocks\.\d+\.attn\.qkv_[xy]\.",
    "Wan": r"(^|\.)head\.modulation$|(^|\.)condition_embedder\.text_embedder\.|(^|\.)vace_blocks\."
    r"|(^|\.)motion_encoder\.dec\.|blocks\.\d+\.(self|cross)_attn\.norm_[qk]\.",
    "LTX Video": r"(^|\.)patchify_proj\.|(^|\.)av_ca_a2v_gate_adaln_single\."
    r"|(^|\.)per_channel_statistics\.mean-of-means$|(^|\.)decoder\.last_scale_shift_table$|\.res_blocks\.\d+\.conv\d\.conv\.",
    "PixArt": r"(^|\.)adaln_single\.|(^|\.)y_embedder\.y_embedding",
    "LTX Video's newer networks": r"^caption_projection\.linear_1\.|^audio_scale_shift_table$",
    "an unCLIP prior": r"(^|\.)prd_embedding$",
    "DiT": r"(^|\.)y_embedder\.embedding_table|transformer_blocks\.0\.norm1\.emb\.class_embedder\.",
    "Kandinsky 5": r"(^|\.)visual_transformer_blocks\.",
    "Wuerstchen or Stable Cascade": r"(^|\.)(blocks\.0\.(depthwise|channelwise)|clip_txt(_pooled)?_mapper)\."
    r"|(^|\.)down_blocks\.\d+\.\d+\.(depthwise|channelwise|kv_mapper)\.",
    "aMUSEd": r"(^|\.)mlm_layer\.",
    "Stable Audio": r"^(pretransform|model\.model\.transformer)\.",
    "a language model": r"(^|\.)layers\.0\.self_attn\.q_proj\.|(^|\.)h\.0\.attn\.c_attn\.|query_key_value\.weight$",
    "a BERT text encoder": r"(^|\.)encoder\.layer\.0\.attention\.self\.query\.",
    "the autoencoder of films": r"(^|\.)(de|en)coder\.middle\.\d+\.residual\."
    r"|\.time_conv\.weight$|(^|\.)encoder\.downsamples\.0\.|\.conv\.conv\.weight$"
    r"|^encoder\.conv_in\.conv\.weight$",
    "the autoencoder of Sana": r"^encoder\.(stages|down_blocks)\.\d+\.\d+\.|^decoder\.stages\.|^encoder\.project_in\.",
}
RUN_ELSEWHERE = "gouache runs no model of that kind; ComfyUI and diffusers run most. Take a Stable Diffusion."


def name_relative(names: Iterable[str]) -> str | None:
    """Which network that shares Stable Diffusion's names these are the tensors of; None for Stable Diffusion's own."""
    return _first(RELATIVES, list(names))


def name_stranger(names: Iterable[str]) -> str | None:
    """Which network of another family tensors of these names are, or None."""
    return _first(STRANGERS, list(names))


def with_model(kind: str, tensors: Mapping[str, TensorInfo]) -> str:
    """The same kind, of FLUX.1 with the model's name: they differ in what enters, and in whether guidance does."""
    if kind != FLUX_1:
        return kind
    stems = [info.shape for name, info in tensors.items() if name.endswith(("img_in.weight", "x_embedder.weight"))]
    entering = stems[0][-1] if stems and stems[0] else 0
    guided = any("guidance_in." in name or "guidance_embedder." in name for name in tensors)
    plain = "dev, Krea or Kontext" if guided else "schnell"
    model = {64: plain, 128: "Canny or Depth", 384: "Fill"}.get(entering, "")
    return kind.replace("FLUX.1", f"FLUX.1 {model}") if model else kind


def _first(marks: Mapping[str, str], names: list[str]) -> str | None:
    return next((kind for kind, mark in marks.items() if any(map(re.compile(mark).search, names))), None)


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
            expected="a pipeline of Stable Diffusion 1.x, 2.x, XL or 3 that paints from text",
            cure=RUN_ELSEWHERE
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
            expected="a network of Stable Diffusion: UNet2DConditionModel, SD3Transformer2DModel, AutoencoderKL or "
            "CLIPTextModel",
            cure=RUN_ELSEWHERE,
        )
