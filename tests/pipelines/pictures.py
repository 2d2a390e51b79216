"""Autoencoders and schedulers that several families share."""

from typing import Any

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


def autoencoder(channels: int, scale: int = 8) -> Any:
    """AutoencoderKL. `scale`: pixels a latent, in each direction."""
    from diffusers import AutoencoderKL

    levels = scale.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=channels,
        scaling_factor=1.5,
        shift_factor=0.06 if channels == 16 else None,
        use_quant_conv=channels == 4,
        use_post_quant_conv=channels == 4,
        sample_size=128,
    )


def flux2_autoencoder() -> Any:
    """The VAE of FLUX.2, whose latents are patched and normalised by a batch norm."""
    from diffusers import AutoencoderKLFlux2

    return AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=32, sample_size=128
    )


def qwen_autoencoder() -> Any:
    """The VAE of Qwen-Image, which is made for videos of one frame."""
    from diffusers import AutoencoderKLQwenImage

    vae = AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.decoder.conv_out.weight.data.mul_(8)  # else all pictures are nearly grey
    return vae


def flow(**settings: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**settings)


def flow_by_size() -> Any:
    return flow(shift=3.0, use_dynamic_shifting=True)
