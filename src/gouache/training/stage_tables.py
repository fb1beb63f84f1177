"""The stages' tables of a training's config: what each stage learns, and how it weighs it."""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from gouache.config import Config
from gouache.errors import ConfigError
from gouache.models.configs import (
    DenoiserConfig,
    NoiseScheduleConfig,
    SentenceEncoderConfig,
    UpscalerConfig,
    VAEConfig,
)
from gouache.models.network_configs import NetworkConfig, NetworkTable
from gouache.models.prior import PriorConfig
from gouache.models.quantizer import QuantizerConfig
from gouache.training.loop_config import StageConfig, filled, tuned

LORA_TUNING: dict[str, dict[str, Any]] = {
    "optimizer": {"warmup_images": 50, "weight_decay": 0.0},
    "ema": {"lengths": (0.1,), "use": 0.1},
    "loop": {"batch_size": 4, "images": 20_000, "precision": "auto"},
}
"""What stage `lora` takes where its table says nothing; its rate is the third one of `RATES`."""


INVERSION_TUNING: dict[str, dict[str, Any]] = {
    "optimizer": {"learning_rate": 5e-3, "warmup_images": 0, "weight_decay": 0.0},
    "ema": {"lengths": (0.1,), "use": 0.1},
    "loop": {"batch_size": 4, "images": 12_000, "precision": "auto"},
}
"""What stage `inversion` takes where its table says nothing: a few rows of numbers bear the highest rate."""


def _check_origin(stage: str, network: Config | None, start: Path | None) -> None:
    if (network is None) == (start is None):
        raise ConfigError(
            stage, given="both or neither of network and start", expected="sizes of a network, or a model"
        )


class VaeStage(StageConfig):
    """Stage 1: the KL autoencoder (Rombach et al. 2022, section 3.1)."""

    network: VAEConfig | None = None
    """Sizes of an autoencoder with random weights; none if `start` names one."""
    start: Path | None = None
    """An autoencoder to continue from: the file that this stage left in another run, or a model by path or name. Later
    stages take it as it is where this one has not been trained."""
    freeze: tuple[str, ...] = ()
    """Names of parameters (prefixes) that are not trained. With "encoder" all of encoding stays as it is, scale and
    shift too: latents made before stay valid, and the decoder can be refined under a finished denoiser."""
    l1: float = 1.0
    """Weight of the absolute difference of the pixels."""
    l2: float = 1.0
    """Weight of the squared difference of the pixels."""
    edges: float = 1.0
    """Weight of the absolute difference of the pictures' gradients, at three scales."""
    kl: float = Field(default=1e-4, ge=0)
    """Weight of the Kullback-Leibler term, a mean over the latents."""
    adversarial: float = Field(default=0.0, ge=0)
    """Weight of the patch discriminator; 0 leaves it out."""
    adversarial_start: int = 0
    """Images seen before the discriminator counts."""
    painted: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures whose latents the run's denoiser has painted, from their own draft and partly noised: the
    decoder learns to finish pictures as they come out of the whole model. Needs `freeze = ["encoder"]` and the results
    of stages `tokens` and `denoiser` in the run's folder."""
    painted_from: tuple[float, float] = (0.3, 8.0)
    """Lowest and highest noise level, as sigma, that such latents are painted from; drawn evenly in its logarithm."""

    _suits_its_start = model_validator(mode="before")(tuned)

    @model_validator(mode="after")
    def _one_origin(self) -> VaeStage:
        _check_origin("vae", self.network, self.start)
        if self.painted and "encoder" not in self.freeze:
            raise ConfigError("vae.painted", given=self.painted, expected='0, or freeze = ["encoder"] beside it')
        if not 0 < self.painted_from[0] <= self.painted_from[1]:
            raise ConfigError("vae.painted_from", given=list(self.painted_from), expected="two levels above 0, rising")
        return self

    @property
    def sizes(self) -> VAEConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("vae.network", given="none", expected="sizes, taken from the model to start from")
        return self.network


class ClipStage(StageConfig):
    """Stage 2: text tower and image tower, aligned by a contrastive loss (Radford et al. 2021)."""

    text: SentenceEncoderConfig | None = None
    """Sizes of a text tower with random weights that reads characters; none starts from the table [text]."""
    train_text: Literal["none", "added", "all"] = "added"
    """What of the text tower is trained: nothing, the rows added to its vocabulary, or all of it."""
    chinese: bool = True
    """Add the Chinese characters of the data to the vocabulary, and pull Chinese captions to the English ones."""
    translation: float = Field(default=1.0, ge=0)
    """Weight of the loss between a Chinese text's pooled vector and the English one's."""
    translation_tokens: float = Field(default=1.0, ge=0)
    """Weight of the loss between the two texts' sets of token vectors, which cross-attention reads."""
    translation_every: int = Field(default=4, ge=1)
    """One picture in so many brings a phrase in both languages along; texts cost more than pictures."""
    keep_english: float = Field(default=1.0, ge=0)
    """With `train_text = "all"`: weight of the loss that holds English states to where they started."""
    embedding_dim: int = Field(default=256, gt=0)
    """Width of the vectors that texts and pictures are compared by."""
    image_channels: tuple[int, ...] = Field(default=(48, 96, 192, 256), min_length=1)
    """Width of each level of the image tower; the first works at a quarter of the picture's side."""
    image_blocks: int = Field(default=1, ge=1)
    """Residual blocks of a level."""
    split: Literal["train", "all"] = "train"
    """Pictures to learn from. "all" is for a judge, which is an instrument and may know the held-out pictures."""
    augment: bool = True
    """Shift, scale, blur and stain the pictures a little."""


TOKENS_STAY = ("encoder", "to_code", "from_code")
"""Parameters of a quantizer that decide which tokens pictures have."""


class TokensStage(StageConfig):
    """Stage 3: the quantizer over a coarse grid of the latent."""

    network: QuantizerConfig | None = None
    """Sizes of a quantizer with random weights; none if `start` names one."""
    start: Path | None = None
    """A model whose quantizer is trained further, by the latents of its own autoencoder; or the file that this stage
    left in another run. With a start `freeze` is what keeps the tokens, unless it says otherwise."""
    scale_dropout: float = Field(default=0.25, ge=0, lt=1)
    """Share of pictures whose finest scales are left out, so that a coarse draft is a picture too."""
    freeze: tuple[str, ...] = ()
    """Names of parameters (prefixes) that are not trained. With "encoder", "to_code" and "from_code" pictures keep
    their tokens: a prior trained on them stays valid while the drafts that it leads to get better."""

    @model_validator(mode="before")
    @classmethod
    def _suits_its_start(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("start") is None:
            return values
        return {"freeze": TOKENS_STAY, **tuned(values)}

    @model_validator(mode="after")
    def _one_origin(self) -> TokensStage:
        _check_origin("tokens", self.network, self.start)
        return self

    @property
    def sizes(self) -> QuantizerConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("tokens.network", given="none", expected="sizes, taken from the quantizer to start from")
        return self.network


class PriorStage(StageConfig):
    """Stage 4: the autoregressive transformer over the tokens, given text."""

    network: PriorConfig | None = None
    """Sizes of a prior with random weights; none if `start` names a model."""
    start: Path | None = None
    """A model whose prior is trained further. Its other parts are used as they are, and what its prior remembers
    stays; the pictures to train on are remembered beside it."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of pictures that are shown without their caption, so that there can be guidance."""
    token_noise: float = Field(default=0.1, ge=0, lt=1)
    """Largest share of input tokens replaced by random ones."""
    group_weights: tuple[float, ...] = ()
    """Weight of a token of each group in the loss, coarsest first; scaled to a mean of 1. Empty weighs all equally. The
    text decides the few coarse tokens, which the many fine ones drown out otherwise."""
    hidden_recall: float = Field(default=0.5, ge=0, le=1)
    """Share of images from which the nearest remembered picture, often they themselves, is hidden
    (`network.neighbours`)."""

    _suits_its_start = model_validator(mode="before")(tuned)

    @model_validator(mode="after")
    def _one_origin(self) -> PriorStage:
        _check_origin("prior", self.network, self.start)
        return self

    @property
    def sizes(self) -> PriorConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("prior.network", given="none", expected="sizes, taken from the model to start from")
        return self.network

    @model_validator(mode="after")
    def _a_weight_for_every_group(self) -> PriorStage:
        if self.network is None:
            return self
        groups, given = len(self.network.groups), self.group_weights
        if given and (len(given) != groups or min(given) <= 0):
            raise ConfigError("prior.group_weights", given=list(given), expected=f"{groups} numbers above 0, or none")
        return self


class DenoisingTable(StageConfig):
    """What a stage with the loss of latent diffusion may say of it."""

    weight: Literal["uniform", "min_snr", "edm", "truncated_snr", "p2", "debiased"] = "uniform"
    """Of a noise level; `diffusion/loss_weights.py` has the formulas."""
    weight_gamma: float | None = Field(default=None, gt=0)
    """Of `min_snr` and `p2`; none takes their papers' own."""
    loss: Literal["l2", "huber", "smooth_l1"] = "l2"
    """How an error counts: its square, or only its length where it is large, so that odd pictures pull less. Validation
    is by squares, so that its figures stay comparable."""
    huber_c: float = Field(default=0.1, gt=0)
    """Of `huber` and `smooth_l1`: errors above it are large. Latents and noise have a deviation of about 1."""
    zero_terminal_snr: bool = False
    """Rescale the start's noise schedule so that its last level holds no picture (Lin et al. 2024), as whole black or
    white pictures need; the model is used with that schedule from then on. Not for one that predicts the noise."""
    hybrid_lambda: float = 0.001
    """Share of L_vlb in L_hybrid (Nichol & Dhariwal 2021, equation 16)."""
    timesteps: Literal["uniform", "logit_normal"] = "uniform"
    """How noise levels are drawn in training, as places from 0 (clean) to 1 (noise) in the schedule's index: uniformly,
    or sigmoid(N(timestep_mean, timestep_std)), which favours the middle (Esser et al. 2024, section 3.1). Validation
    draws them uniformly, so that its figures stay comparable."""
    timestep_mean: float = 0.0
    """Of `logit_normal`: below 0 draws less noise more often, above 0 more of it. -2 to 2 is sensible."""
    timestep_std: float = Field(default=1.0, gt=0)
    """Of `logit_normal`: above 0; about 0.5 to 1.5 is sensible."""
    gradient_checkpointing: bool = False
    """Compute what the backward pass needs again instead of keeping it: less memory, a third more time."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of pictures that are shown without their caption, so that there can be guidance."""
    draft_dropout: float = Field(default=0.5, ge=0, le=1)
    """Share of pictures trained without the prior's draft."""
    draft_noise: float = Field(default=0.2, ge=0, lt=1)
    """Largest share of the draft's tokens replaced by random ones."""
    residual_dropout: float = Field(default=0.5, ge=0, le=1)
    """Share of the drafts that lack their residual codes, in models that have such; tokens that the prior draws itself
    lead to such drafts."""
    draft_start: float = Field(default=0.0, ge=0)
    """Noise level (sigma) at which painting begins on the draft, the model's `prior_start_sigma`: most pictures with a
    draft are then trained on the way from it to the true latents. 0 trains as if painting began on noise alone."""
    noise_offset: float = Field(default=0.0, ge=0)
    """Deviation of a constant added to each channel's noise, so that the mean of a picture is learned too (Guttenberg
    2023); 0.03 to 0.1 is usual."""
    pyramid_levels: int = Field(default=0, ge=0)
    """Coarser grids of noise that are added to the fine one, each two to four times coarser than the last, for the same
    purpose; 6 to 10 is usual, 0 adds none. Not in validation."""
    pyramid_discount: float = Field(default=0.3, gt=0, lt=1)
    """Deviation of a grid's noise as a share of the next finer one's."""
    prompts: tuple[str, ...] = ()
    """Prompts to paint at every validation, each with a seed of its own that stays: RUN/STAGE/prompts shows what the
    trained weights make of them, in the model that `start` names."""
    input_perturbation: float = Field(default=0.0, ge=0)
    """Deviation of noise that the network is shown and not asked for (Ning et al. 2023, arXiv:2301.11706); 0.1 is
    usual."""
    prior_loss_weight: float = Field(default=1.0, ge=0)
    """Of regularisation pictures in the loss (Ruiz et al. 2023, equation 2); pictures to learn have 1."""
    class_prompt: str = ""
    """What pictures of the class show, for example "a photo of a dog": they are painted with the start model before
    training, and keep it from forgetting the class (Ruiz et al. 2023, section 3.2)."""
    class_pictures: int = Field(default=100, ge=1)
    """How many of them; those that are painted already are kept."""


class TuningTable(DenoisingTable):
    """What a stage may say that teaches a finished model something beside its weights, or from them on."""

    start: Path
    """The model, of any family and layout that gouache loads."""


class DenoiserStage(DenoisingTable):
    """Stage 5: the latent diffusion U-Net, from nothing or from a published model."""

    network: NetworkTable | None = None
    """Sizes of a U-Net, or of Stable Diffusion 3's transformer, with random weights; none if `start` names a model."""
    start: Path | None = None
    """A model to fine-tune, of any family and layout that gouache loads. Its autoencoder, text encoders and denoiser
    settings are used as they are; the stages before are not needed."""
    denoiser: DenoiserConfig = DenoiserConfig(parameterization="v", schedule=NoiseScheduleConfig(name="cosine"))
    """Parameterization, noise schedule, and whether the variance is learned (then the loss is L_hybrid)."""
    freeze: tuple[str, ...] = ()
    """Names of parameters (prefixes) that are not trained."""

    _suits_its_start = model_validator(mode="before")(tuned)

    @model_validator(mode="after")
    def _one_origin(self) -> DenoiserStage:
        _check_origin("denoiser", self.network, self.start)
        if self.prompts and self.start is None:
            raise ConfigError(
                "denoiser.prompts",
                given=f"{len(self.prompts)} without a start",
                expected="a model to paint them with; a network from nothing shows samples of held-out captions",
            )
        if self.zero_terminal_snr and self.start is None:
            raise ConfigError(
                "denoiser.zero_terminal_snr",
                given="true without a start",
                expected="the same key in [denoiser.denoiser.schedule], which is the network's own",
            )
        return self

    @property
    def sizes(self) -> NetworkConfig:
        """The network's sizes, once they are known."""
        if self.network is None:
            raise ConfigError("denoiser.network", given="none", expected="sizes, taken from the model to start from")
        return self.network


class LoraStage(TuningTable):
    """Low-rank changes of a finished model (Hu et al. 2021, arXiv:2106.09685), which stays as it is.

    Of a model with a prior, both networks are changed: the prior learns what a thing looks like in the large, the
    denoiser how it is painted.
    """

    rank: int = Field(default=16, ge=1, le=1024)
    """Of the changes of linear layers and 1x1 convolutions; at most what a layer has."""
    alpha: float | None = Field(default=None, gt=0)
    """Changes are scaled by alpha / rank; none takes the rank, so the factor is 1."""
    conv_rank: int = Field(default=0, ge=0, le=1024)
    """Of the changes of larger convolutions (LoCon); 0 leaves them."""
    dora: bool = False
    """Train the length of every output's weights beside their direction (Liu et al. 2024, arXiv:2402.09353)."""
    layers: tuple[str, ...] = ()
    """Patterns with * of the layers to change, by the names in the file; none takes all that kohya's trainer does."""
    ranks: dict[str, int] = Field(default_factory=dict)
    """Ranks of some layers, by patterns with * as in `layers`; the first that fits counts, 0 leaves a layer as it is.
    alpha / rank stays the same."""
    text: bool = False
    """Whether the text encoders are changed too: all but T5, for whose layers no program has names."""
    text_learning_rate: float | None = Field(default=None, gt=0)
    """Of the text encoders' changes; none takes that of the others."""
    prior_learning_rate: float | None = Field(default=None, gt=0)
    """Of the changes of the prior, where the model has one; none takes that of the others. The prior learns few
    pictures by heart much sooner than the denoiser does."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of a layer's inputs that its change doesn't see."""
    token_noise: float = Field(default=0.1, ge=0, lt=1)
    """Of models with a prior: largest share of its input tokens replaced by random ones."""
    hidden_recall: float = Field(default=0.5, ge=0, le=1)
    """Of models with a prior: share of images from which the nearest remembered picture is hidden."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Of the numbers in the file."""
    name: str = ""
    """What the file calls itself in other programs; none takes the model's name with "-lora" behind it."""

    @model_validator(mode="before")
    @classmethod
    def _suits_its_start(cls, values: Any) -> Any:
        return filled(values, LORA_TUNING, 2)

    @model_validator(mode="after")
    def _ranks_are_ranks(self) -> LoraStage:
        if wrong := {pattern: rank for pattern, rank in self.ranks.items() if not 0 <= rank <= 1024}:
            raise ConfigError("lora.ranks", given=wrong, expected="whole numbers from 0 to 1024")
        if self.text_learning_rate is not None and not self.text:
            raise ConfigError(
                "lora.text_learning_rate", given=self.text_learning_rate, expected="text = true beside it"
            )
        return self

    def rank_of(self, name: str, shape: tuple[int, ...]) -> int:
        """The rank of a layer's change, from its name in the file and the shape of its weight; 0 for none."""
        usual = self.conv_rank if set(shape[2:]) - {1} else self.rank
        wanted = next((rank for pattern, rank in self.ranks.items() if fnmatchcase(name, pattern)), usual)
        return min(wanted, shape[0], prod(shape[1:]))


def _check_schedule_stays(stage: str, table: DenoisingTable) -> None:
    """Refuse another noise schedule for what is added to a model and used with the schedule that this has."""
    if table.zero_terminal_snr:
        cure = "Train the denoiser with it first, and name the result as start."
        raise ConfigError(f"{stage}.zero_terminal_snr", given="true", expected="the model's own schedule", cure=cure)


class InversionStage(TuningTable):
    """A new word for a finished model, which stays as it is (textual inversion, Gal et al. 2022, arXiv:2208.01618)."""

    start: Path
    """The model, of any family with CLIP text encoders and of any layout that gouache loads."""
    word: str
    """The new word, such as "<my-cat>": one that the model has no vector for."""
    vectors: int = Field(default=4, ge=1, le=75)
    """How many tokens of a prompt the word takes; more of them can say more, and leave less room for others."""
    init: str = ""
    """What the word means at first, in words that the model knows, such as "cat"; empty: the mean of all tokens."""
    texts: Literal["object", "style", "captions"] = "object"
    """What is said of a picture: it shows the word, is painted in its style, or its caption, with the word in it."""
    templates: tuple[str, ...] = ()
    """Sentences with {} where the word goes, in place of those of `texts`."""
    keep_length: bool = False
    """Hold the vectors' lengths within those of the model's tokens, so that the word can't outshout the others."""
    caption_dropout: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures that are shown without words, of which the new word learns nothing."""

    @model_validator(mode="before")
    @classmethod
    def _suits_its_start(cls, values: Any) -> Any:
        return filled(values, INVERSION_TUNING, 2)

    @model_validator(mode="after")
    def _a_word_and_its_place(self) -> InversionStage:
        _check_schedule_stays("inversion", self)
        if not self.word or self.word.split() != [self.word]:
            raise ConfigError("inversion.word", given=repr(self.word), expected="one word without spaces")
        if lacking := [template for template in self.templates if "{}" not in template]:
            raise ConfigError("inversion.templates", given=repr(lacking[0]), expected="{} where the word goes")
        if self.templates and self.texts == "captions":
            raise ConfigError("inversion.templates", given='sentences and texts = "captions"', expected="one of both")
        return self


CONTROLNET_TUNING: dict[str, dict[str, Any]] = {
    "optimizer": {"learning_rate": 1e-5, "warmup_images": 500},
    "ema": {"lengths": (0.1,), "use": 0.1},
    "loop": {"batch_size": 4, "images": 100_000, "precision": "auto"},
}
"""What stage `controlnet` takes where its table says nothing: it is a whole network, which begins as a copy."""


class ControlNetStage(TuningTable):
    """A ControlNet for a finished model, which stays as it is (Zhang et al. 2023, arXiv:2302.05543)."""

    condition: Literal["set", "canny", "depth", "segmentation"] = "set"
    """What it is shown: the set's conditions (conditioning/NAME.png), or what a preprocessor makes of each picture."""
    canny_low: int = Field(default=100, ge=0, le=2040)
    """Of `canny`: strength from which a pixel goes on with an edge."""
    canny_high: int = Field(default=200, ge=0, le=2040)
    """Of `canny`: strength from which a pixel begins an edge."""
    layers: int = Field(default=12, ge=1)
    """Of Stable Diffusion 3: blocks that the ControlNet copies, the first ones; at most all but one."""

    @model_validator(mode="before")
    @classmethod
    def _suits_its_start(cls, values: Any) -> Any:
        return filled(values, CONTROLNET_TUNING, 1)

    @model_validator(mode="after")
    def _keeps_the_schedule(self) -> ControlNetStage:
        _check_schedule_stays("controlnet", self)
        return self


class InstructStage(TuningTable):
    """A model that changes pictures as it is told (Brooks et al. 2022, arXiv:2211.09800), from one that paints."""

    start: Path
    """The model, of Stable Diffusion 1, 2 or XL, in any layout that gouache loads."""
    caption_dropout: float = Field(default=0.05, ge=0, le=1)
    """Share of pairs without the instruction."""
    picture_dropout: float = Field(default=0.05, ge=0, le=1)
    """Share of pairs without the picture before."""
    both_dropout: float = Field(default=0.05, ge=0, le=1)
    """Share of pairs without either."""

    @model_validator(mode="before")
    @classmethod
    def _suits_its_start(cls, values: Any) -> Any:
        rate = {"learning_rate": 5e-5, "warmup_images": 500}
        return filled(values, {**CONTROLNET_TUNING, "optimizer": rate}, 1)

    @model_validator(mode="after")
    def _some_pairs_are_whole(self) -> InstructStage:
        _check_schedule_stays("instruct", self)
        if (total := self.caption_dropout + self.picture_dropout + self.both_dropout) >= 1:
            raise ConfigError("instruct: the three dropouts", given=f"{total:g} together", expected="less than 1")
        return self


class UpscalerStage(StageConfig):
    """Independent of the others: the up-sampling decoder. It learns from vector sources, or from large pictures."""

    network: UpscalerConfig = UpscalerConfig()
    crop: int = Field(default=48, ge=8)
    """Side of a training crop, in pixels of the small picture."""
    crops: int = Field(default=4, ge=1)
    """Crops of each large picture."""
    l1: float = 1.0
    """Weight of the absolute difference of the pixels."""
    edges: float = 1.0
    """Weight of the absolute difference of the pictures' gradients, at three scales."""
    decoded: float = Field(default=0.7, ge=0, le=1)
    """Share of crops that went through the autoencoder; half of the others did in part, half did not."""
    latent_noise: float = Field(default=0.1, ge=0)
    """Largest deviation of the noise on the autoencoder's latents."""
    degraded: float = Field(default=0.3, ge=0, le=1)
    """Share of crops with a little blur and noise."""
    blur: float = Field(default=0.5, ge=0, le=1)
    """Largest weight of the mean of 3 x 3 pixels."""
    grain: float = Field(default=0.03, ge=0)
    """Largest deviation of the noise; pixels are in [-1, 1]."""
