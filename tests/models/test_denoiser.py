"""The denoiser against the definitions of each parameterization, the text stack, and the bundle that holds them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gouache.errors import ConfigError, InvalidInput, ShapeMismatch
from gouache.models.bundle import ModelBundle
from gouache.models.configs import DenoiserConfig, NoiseScheduleConfig, TextEncoderConfig, UNetConfig, VAEConfig
from gouache.models.denoiser import Condition, Denoiser, stack
from gouache.models.text.clip import TextEncoder
from gouache.models.text.stack import TextStack
from gouache.models.text.tokenizers import END_ID, START_ID
from gouache.models.unet import UNet
from gouache.models.vae import AutoencoderKL

UNET: dict[str, Any] = {
    "channels": (16, 16),
    "transformer_layers": (1, 1),
    "heads": (2, 2),
    "context_width": 24,
    "norm_groups": 8,
}


def unet(**changes: Any) -> UNet:
    return UNet(UNetConfig.from_dict(UNET | changes)).eval().requires_grad_(False)


def text_encoder(**changes: Any) -> TextEncoder:
    sizes: dict[str, Any] = {"width": 24, "inner_width": 32, "layers": 2, "heads": 2}
    return TextEncoder(TextEncoderConfig.from_dict(sizes | changes)).eval().requires_grad_(False)


def bundle(network: UNet, *encoders: TextEncoder, **vae: Any) -> ModelBundle:
    autoencoder = AutoencoderKL(VAEConfig.from_dict({"channels": (16,), "norm_groups": 8} | vae))
    return ModelBundle(family="sd1", unet=network, vae=autoencoder, text=TextStack.of_clip(encoders)).eval()


def condition(rows: int = 1) -> Condition:
    return Condition(torch.randn(rows, 7, 24))


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0", "flow"])
def test_denoised_solves_the_equation_of_its_parameterization(parameterization: str) -> None:
    """The network's output m must be the target that belongs to (denoised, eps), with x_t = alpha x0 + std eps."""
    schedule = {"name": "flow"} if parameterization == "flow" else {"name": "scaled_linear"}
    config = DenoiserConfig.from_dict({"parameterization": parameterization, "schedule": schedule})
    network = unet()
    denoiser = Denoiser.from_config(network, config)
    sigma, given = torch.tensor(1.7, dtype=torch.float64), condition(2)
    x0, eps = torch.randn(2, 2, 4, 8, 8)
    x = x0 + 1.7 * eps
    denoised = denoiser(x, sigma, given)
    alpha = 1 / 2.7 if parameterization == "flow" else (1 + 1.7**2) ** -0.5
    std = 1.7 * alpha
    timestep = torch.full((2,), float(denoiser.schedule.sigma_to_t(1.7)))
    output = network(alpha * x, timestep, given.context)
    noise = (x - denoised) / 1.7
    targets = {"eps": noise, "v": alpha * noise - std * denoised, "x0": denoised, "flow": noise - denoised}
    torch.testing.assert_close(output, targets[parameterization], rtol=1e-4, atol=1e-5)


def test_the_network_is_told_the_timestep_of_its_own_schedule() -> None:
    network, told = unet(), []
    network.register_forward_pre_hook(lambda _module, inputs: told.append(inputs[1]))
    denoiser = Denoiser.from_config(network, DenoiserConfig())
    table = denoiser.schedule.sigmas
    for index in (0, 500, 999):
        denoiser(torch.zeros(1, 4, 8, 8), table[index], condition())
    assert [float(timestep) for timestep in told] == [0.0, 500.0, 999.0]


def test_one_condition_serves_every_row_and_rows_may_have_their_own_sigma() -> None:
    denoiser = Denoiser.from_config(unet(), DenoiserConfig())
    given, x = condition(), torch.randn(3, 4, 8, 8)
    sigmas = torch.tensor([0.1, 2.0, 14.0])
    together = denoiser(x, sigmas, given)
    for row in range(3):
        alone = denoiser(x[row : row + 1], sigmas[row], given)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(denoiser.bind(given)(x, sigmas), together)


def test_the_learned_variance_is_split_off() -> None:
    network = unet(out_channels=8)
    denoiser = Denoiser.from_config(network, DenoiserConfig(learned_variance=True))
    x, sigma, given = torch.randn(1, 4, 8, 8), torch.tensor(0.5), condition()
    prediction = denoiser.predict(x, sigma, given)
    raw = network(x * 1.25**-0.5, denoiser.schedule.sigma_to_t(sigma), given.context)
    torch.testing.assert_close(prediction.x0, x - 0.5 * raw[:, :4], rtol=1e-4, atol=1e-5)
    assert prediction.interpolation is not None
    torch.testing.assert_close(prediction.interpolation, raw[:, 4:])
    assert Denoiser.from_config(unet(), DenoiserConfig()).predict(x, sigma, given).interpolation is None


def test_another_precision_of_the_network_keeps_the_samplers() -> None:
    denoiser = Denoiser.from_config(unet().to(dtype=torch.bfloat16), DenoiserConfig())
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    assert denoiser(x, torch.tensor(1.0), condition()).dtype == torch.float64


@pytest.mark.parametrize(("out_channels", "learned"), [(8, False), (4, True)])
def test_channels_that_do_not_fit_are_refused(out_channels: int, learned: bool) -> None:
    with pytest.raises(ConfigError, match="learned_variance"):
        Denoiser.from_config(unet(out_channels=out_channels), DenoiserConfig(learned_variance=learned))


def test_conditions_stack_and_split() -> None:
    first, second = (Condition(torch.randn(1, 7, 24), pooled=torch.randn(1, 5)) for _ in range(2))
    both = stack([first, second])
    assert both.context.shape == (2, 7, 24)
    assert torch.equal(both.rows(1, 2).context, second.context)
    with pytest.raises(ShapeMismatch, match="pooled"):
        stack([first, condition()])


@pytest.mark.parametrize("name", ["pooled", "draft", "context"])
def test_the_network_refuses_inputs_that_are_missing_or_not_wanted(name: str) -> None:
    x, timestep = torch.zeros(1, 4, 8, 8), torch.zeros(1)
    wrong: dict[str, Tensor] = {"pooled": torch.zeros(1, 5), "draft": torch.zeros(1, 2, 8, 8)}
    context = torch.zeros(1, 7, 23 if name == "context" else 24)
    extra = {name: wrong[name]} if name in wrong else {}
    with pytest.raises(ShapeMismatch, match=name):
        unet()(x, timestep, context, **extra)


def test_a_pooled_vector_spread_over_the_grid_moves_the_output() -> None:
    network = unet(pooled_width=5, pooled_grid_channels=3, draft_channels=2)
    assert network.conv_in.in_channels == 4 + 2 + 3
    x, context, draft = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 24), torch.randn(1, 2, 8, 8)
    first, second = (
        network(x, torch.zeros(1), context, pooled=torch.full((1, 5), value), draft=draft) for value in (0.0, 1.0)
    )
    assert (first - second).abs().max() > 1e-4


def test_a_network_for_training_starts_as_zero() -> None:
    network = unet()
    network.zero_residual_ends()
    assert (network(torch.randn(1, 4, 8, 8), torch.zeros(1), torch.randn(1, 7, 24)) == 0).all()


def test_the_text_stack_frames_each_chunk_as_its_encoder_pads() -> None:
    seen: list[Tensor] = []
    encoders = [text_encoder(), text_encoder(pad_id=0, projection_width=6, final_norm=False, skip_layers=1)]
    for encoder in encoders:
        encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    text = TextStack.of_clip(encoders)
    ids = text.tokenize("a red fox")
    encoding = text.encode([ids, []])
    assert encoding.context.shape == (2, 77, 48)
    assert text.context_width == 48
    assert text.pooled_width == 6
    assert encoding.pooled is not None
    assert encoding.pooled.shape == (2, 6)
    assert encoding.mask is None
    for given, pad in zip(seen, (END_ID, 0), strict=True):
        assert given[0].tolist() == [START_ID, *ids, END_ID, *[pad] * (75 - len(ids))]
        assert given[1].tolist() == [START_ID, END_ID, *[pad] * 75]
    assert text.decode_tokens(ids) == "a red fox"


def test_the_text_stack_refuses_what_it_can_not_encode() -> None:
    text = TextStack.of_clip([text_encoder()])
    with pytest.raises(InvalidInput, match="at least one"):
        text.encode([])
    with pytest.raises(InvalidInput, match="at most 75"):
        text.encode([list(range(76))])
    with pytest.raises(InvalidInput, match="text stack"):
        TextStack.of_clip([])


def test_the_bundle_builds_the_vector_that_sdxl_adds_to_its_time_embedding() -> None:
    sdxl = bundle(unet(pooled_width=6 + 6 * 256), text_encoder(projection_width=6))
    assert sdxl.size_numbers == 6
    pooled, numbers = torch.randn(2, 6), torch.tensor([[1024.0, 768, 0, 0, 1024, 768]] * 2)
    vector = sdxl.pooled_vector(pooled, numbers)
    assert vector is not None
    assert vector.shape == (2, 6 + 6 * 256)
    assert torch.equal(vector[:, :6], pooled)
    torch.testing.assert_close(vector[:, 6], torch.tensor(1024.0).cos().expand(2))
    with pytest.raises(ShapeMismatch, match="6 numbers"):
        sdxl.pooled_vector(pooled, numbers[:, :5])
    with pytest.raises(ShapeMismatch, match="no pooled text"):
        sdxl.pooled_vector(None, numbers)
    assert bundle(unet(), text_encoder()).pooled_vector(pooled) is None


def test_a_bundle_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="context width"):
        bundle(unet(context_width=32), text_encoder())
    with pytest.raises(ConfigError, match="latent channels"):
        bundle(unet(), text_encoder(), latent_channels=8)
    with pytest.raises(ConfigError, match="pooled width"):
        bundle(unet(pooled_width=100), text_encoder(projection_width=6))


def test_a_bundle_moves_and_freezes_all_its_networks() -> None:
    model = bundle(unet(), text_encoder()).to("cpu", torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert set(model.networks()) == {"unet", "vae", "text"}
    for network in model.networks().values():
        assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in network.parameters())
        assert not network.training
    assert model.schedule.num_timesteps == NoiseScheduleConfig().num_timesteps == 1000


def test_every_network_builds_without_memory() -> None:
    with torch.device("meta"):
        model = bundle(unet(), text_encoder())
    tensors = [tensor for network in model.networks().values() for tensor in network.state_dict().values()]
    assert all(tensor.is_meta for tensor in tensors)
    assert not [name for network in model.networks().values() for name, _ in network.named_buffers()]
