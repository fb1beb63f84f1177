"""What gouache doesn't run is named for what it is, and never painted with.

The kind: a folder or a file that other programs call a model and that is none for pictures from text, even where it
holds Stable Diffusion's own parts. The judge is diffusers: its list of pipelines, and the tensors of its own networks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch

from gouache.checkpoints import detect
from gouache.checkpoints.foreign import PIPELINES, named_kind
from gouache.checkpoints.formats.header import Header, TensorInfo
from gouache.checkpoints.load import identify, load_bundle
from gouache.errors import GouacheError, ModelNotFound, UnknownFamily

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
Published = Callable[[str], Path]
THEIRS = sorted(name for name in dir(diffusers) if name.endswith("Pipeline") and "Modular" not in name)
COMMUNITY = ["Zero123PlusPipeline", "MVDreamPipeline", "LotusGPipeline", "DepthGeoWizardPipeline", "MyOwnPipeline"]


@pytest.fixture
def folder(published: Published, tmp_path: Path) -> Path:
    """A folder of SD 1.x whose `model_index.json` may be changed."""
    shutil.copytree(published("sd1"), tmp_path / "model", copy_function=lambda a, b: Path(b).symlink_to(a))
    index = tmp_path / "model" / "model_index.json"
    text = index.read_text()
    index.unlink()
    index.write_text(text)
    return tmp_path / "model"


def call_it(folder: Path, name: object, **parts: object) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name} | parts))


def test_every_pipeline_of_diffusers_is_run_or_refused_by_name(folder: Path) -> None:
    """Those that are run are Stable Diffusion's own, by their names; all others hold the same parts here."""
    assert len(THEIRS) > 200
    for name in [*THEIRS, *COMMUNITY, "Onnx" + "StableDiffusionPipeline", "FlaxStableDiffusionPipeline"]:
        call_it(folder, name)
        if name in PIPELINES:
            assert identify(folder).kind == "model", name
            continue
        with pytest.raises(UnknownFamily) as caught:
            identify(folder)
        assert name in str(caught.value.given)
        assert caught.value.cure


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Zero123PlusPipeline", "views of a thing"),
        ("MarigoldDepthPipeline", "Marigold"),
        ("MarigoldNormalsPipeline", "Marigold"),
        ("StableDiffusionLDM3DPipeline", "depth beside colour"),
        ("StableDiffusionGLIGENPipeline", "GLIGEN"),
        ("StableUnCLIPPipeline", "embedding"),
        ("StableDiffusionLatentUpscalePipeline", "latent upscaler"),
        ("AltDiffusionPipeline", "XLM-R"),
        ("KolorsPipeline", "language model"),
        ("FluxKontextPipeline", r"FLUX\.1 Kontext"),
        ("PixArtSigmaPipeline", "PixArt"),
        ("KandinskyV22Pipeline", "Kandinsky"),
        ("WuerstchenDecoderPipeline", "Wuerstchen"),
        ("StableCascadeDecoderPipeline", "Stable Cascade"),
        ("AnimateDiffSDXLPipeline", "AnimateDiff"),
        ("StableVideoDiffusionPipeline", "Stable Video Diffusion"),
        ("IFPipeline", "DeepFloyd"),
        ("QwenImageEditPipeline", "Qwen-Image"),
        ("WanImageToVideoPipeline", "Wan"),
        ("PaintByExamplePipeline", "Paint by Example"),
    ],
)
def test_what_a_pipeline_is_is_said_in_words(folder: Path, name: str, told: str) -> None:
    call_it(folder, name)
    with pytest.raises(UnknownFamily, match=told):
        load_bundle(folder)


def test_a_pipeline_with_further_parts_says_what_it_leaves_out(folder: Path) -> None:
    call_it(folder, "StableDiffusionControlNetPipeline", controlnet=["diffusers", "ControlNetModel"])
    assert load_bundle(folder).loading_notes == ("left out of the folder: controlnet",)
    call_it(folder, "StableDiffusionPipeline", controlnet=[None, None])
    assert load_bundle(folder).loading_notes == ()


def test_a_pipeline_of_ones_own_is_refused_and_told_how_to_be_taken(folder: Path) -> None:
    call_it(folder, ["my_module", "MyOwnPipeline"])
    with pytest.raises(UnknownFamily, match=r"MyOwnPipeline.*give _class_name in model_index\.json"):
        identify(folder)


@pytest.mark.parametrize(
    ("folder_of_part", "class_name", "told"),
    [
        ("transformer", "FluxTransformer2DModel", "FLUX.1"),
        ("transformer", "PixArtTransformer2DModel", "PixArt"),
        ("transformer", "QwenImageTransformer2DModel", "Qwen-Image"),
        ("transformer", "HunyuanDiT2DModel", "HunyuanDiT"),
        ("prior", "PriorTransformer", "unCLIP prior"),
        ("decoder", "StableCascadeUNet", "Stable Cascade"),
        ("unet", "UNetSpatioTemporalConditionModel", "Stable Video Diffusion"),
        ("unet", "UNet3DConditionModel", "text to video"),
        ("unet", "UNetMotionModel", "AnimateDiff"),
        ("unet", "Kandinsky3UNet", "Kandinsky"),
        ("unet", "UNet2DModel", "without text"),
    ],
)
def test_folders_without_an_index_are_named_by_their_parts(
    tmp_path: Path, folder_of_part: str, class_name: str, told: str
) -> None:
    part = tmp_path / folder_of_part
    part.mkdir()
    (part / "config.json").write_text(json.dumps({"_class_name": class_name}))
    for place in (tmp_path, part):
        with pytest.raises(GouacheError) as caught:
            identify(place)
        if not isinstance(caught.value, ModelNotFound):  # a U-Net's weights are looked for first
            assert told in str(caught.value)


NETWORKS = {
    "AuraFlowTransformer2DModel": "AuraFlow",
    "AutoencoderDC": "Sana",
    "AutoencoderKLTemporalDecoder": "Stable Video Diffusion",
    "ChromaTransformer2DModel": "Chroma",
    "DiTTransformer2DModel": "DiT",
    "FluxTransformer2DModel": r"FLUX\.1",
    "Kandinsky3UNet": "Kandinsky",
    "Lumina2Transformer2DModel": "Lumina",
    "MotionAdapter": "AnimateDiff",
    "PixArtTransformer2DModel": "PixArt",
    "PriorTransformer": "unCLIP prior",
    "QwenImageTransformer2DModel": "Qwen-Image",
    "SanaTransformer2DModel": "Sana",
    "StableCascadeUNet": "Stable Cascade",
    "UNet2DModel": "without text",
    "UNet3DConditionModel": "text-to-video",
    "UNetMotionModel": "AnimateDiff",
    "UNetSpatioTemporalConditionModel": "Stable Video Diffusion",
    "VQModel": "code book",
    "WanTransformer3DModel": "Wan",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_other_families_are_named_by_their_tensors(name: str) -> None:
    with torch.device("meta"):
        network = getattr(diffusers, name)()
    tensors = {key: TensorInfo("F32", tuple(value.shape)) for key, value in network.state_dict().items()}
    with pytest.raises(UnknownFamily, match=NETWORKS[name]):
        detect.identify(Header(Path("model.safetensors"), tensors))


def test_a_single_file_of_a_relative_is_not_taken_for_stable_diffusion() -> None:
    """Networks that share Stable Diffusion's names in CompVis's layout, told by what they have beside them."""
    own = {"model.diffusion_model.input_blocks.0.0.weight": TensorInfo("F32", (320, 8, 3, 3))}
    marks = {
        "cc_projection.weight": "Zero-1-to-3",
        "model.diffusion_model.input_blocks.1.1.time_stack.0.attn1.to_q.weight": "Stable Video Diffusion",
        "model.diffusion_model.position_net.linears.0.weight": "GLIGEN",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.attn.to_q.weight": "GLIGEN",
        "model.diffusion_model.camera_embed.0.weight": "MVDream",
        "model.diffusion_model.init_attn.0.norm.weight": "text-to-video",
        "model.diffusion_model.input_blocks.1.0.temopral_conv.conv1.0.weight": "text-to-video",
        "cond_stage_model.transformer.token_emb.weight": "BERT",
        "cond_stage_model.transformer.roberta.embeddings.word_embeddings.weight": "AltDiffusion",
        "cond_stage_model.mapper.resblocks.0.ln_1.weight": "Paint by Example",
        "cond_stage_model.model.audio_branch.bn0.weight": "AudioLDM",
        "structcond_stage_model.input_blocks.0.0.weight": "StableSR",
        "first_stage_model.quantize.embedding.weight": "code book",
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k_ip.weight": "IP-Adapter",
    }
    for mark, told in marks.items():
        with pytest.raises(UnknownFamily, match=told):
            detect.identify(Header(Path("model.ckpt"), own | {mark: TensorInfo("F32", (4, 4))}))


def test_a_hypernetwork_is_named(tmp_path: Path) -> None:
    """A1111's: for each width the networks of keys and of values."""
    layers = [{"linear.0.weight": torch.zeros(64, 32), "linear.0.bias": torch.zeros(64)} for _ in range(2)]
    torch.save({768: layers, "step": 7, "name": "x", "layer_structure": [1, 2, 1]}, tmp_path / "x.pt")
    with pytest.raises(UnknownFamily, match="given a hypernetwork"):
        identify(tmp_path / "x.pt")


def test_every_refused_class_has_words() -> None:
    assert named_kind("StableDiffusion3ControlNetPipeline") == "Stable Diffusion 3 (StableDiffusion3ControlNetPipeline)"
    assert named_kind("NothingPipeline") == "NothingPipeline"
