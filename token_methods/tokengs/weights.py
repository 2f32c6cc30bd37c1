"""Published TokenGS weights and ours: the same names, compared strictly; and how a fine-tune grows tokens from fewer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from token_methods.core.weights import WeightsError, compare_keys, key_differences, require_finite
from token_methods.tokengs.config import PRESETS, TokenGSArchitecture
from token_methods.tokengs.network import TokenGSNetwork

IGNORED = "lpips_loss"
"""Published files may carry the frozen LPIPS network; it is not part of TokenGS."""
TOKENS = "gs_tokens"
LATENTS = "enc_dec_backbone.latents"
NOISE = 0.01
"""Spread of the noise that makes repeated tokens differ."""


@lru_cache(maxsize=8)
def published_tensors(architecture: TokenGSArchitecture) -> Mapping[str, Tensor]:
    """Keys and shapes of an architecture's published file, as tensors without memory."""
    with torch.device("meta"):
        return TokenGSNetwork(architecture).state_dict()


def fit_presets(weights: Mapping[str, Tensor]) -> list[str]:
    """The published presets whose architecture has exactly these keys and shapes.

    View count and image size are not in the weights, so several presets may fit.
    """
    weights = network_part(weights)
    architectures = {preset.architecture for preset in PRESETS.values()}
    fitting = {architecture for architecture in architectures if not key_differences(weights, published_tensors(architecture))}
    return [name for name, preset in PRESETS.items() if preset.architecture in fitting]


def network_part(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the LPIPS network that published files may carry."""
    return {key: value for key, value in weights.items() if IGNORED not in key}


def check_weights(weights: Mapping[str, Tensor], architecture: TokenGSArchitecture, source: str) -> dict[str, Tensor]:
    """Published weights that fit an architecture exactly and are finite.

    Raises:
        WeightsError: every key that is missing, unexpected or misshapen, and the presets that would fit.
    """
    weights = network_part(weights)
    fitting = fit_presets(weights) if key_differences(weights, published_tensors(architecture)) else []
    fix = f"they fit the published preset{'s' * (len(fitting) > 1)} {', '.join(fitting)}" if fitting else "no published preset fits either"
    compare_keys(weights, published_tensors(architecture), source, fix)
    require_finite(weights, source)
    return weights


def load_weights(network: TokenGSNetwork, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill a network, all of it or none.

    Raises:
        WeightsError: see `check_weights`.
    """
    network.load_state_dict(check_weights(weights, network.architecture, source))


def warm_start(
    network: TokenGSNetwork,
    weights: Mapping[str, Tensor],
    source: str,
    grow_tokens: bool = True,
    grow_latents: bool = True,
) -> list[str]:
    """Start a fine-tune from weights of a related architecture, by the published rules.

    Every tensor whose key and shape match is copied. Gaussian tokens and latents of another number are kept, repeated or thinned
    (`grow_rows`). All others keep their initialisation.

    Returns:
        One sentence for each kind of tensor that did not simply match; empty when everything did. Show them to the user.

    Raises:
        WeightsError: no tensor fits at all, or one holds NaN.
    """
    weights = network_part(weights)
    own = network.state_dict()
    fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    notes = []
    for key, wanted in ((TOKENS, grow_tokens), (LATENTS, grow_latents)):
        if wanted and key in own and key in weights and key not in fitting and weights[key].shape[1:] == own[key].shape[1:]:
            fitting[key] = grow_rows(weights[key], len(own[key]))
            notes.append(f"{key} made from {len(weights[key])} to {len(own[key])} rows")
    if not fitting:
        raise WeightsError(f"{source} shares no tensor with this network: {key_differences(weights, own)}. Nothing was loaded.")
    require_finite(fitting, source)
    network.load_state_dict(fitting, strict=False)
    differences = key_differences(weights | fitting, own)
    if differences:
        notes.append(f"not taken from {source}: {differences}")
    return notes


def grow_rows(rows: Float[Tensor, "old dim"], count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count dim"]:
    """Another number of tokens made from learned ones, by the published rule.

    Fewer: evenly spaced rows. More: all rows, then the same again in turn with noise of 0.01.
    """
    old = len(rows)
    if count <= old:
        return rows[torch.linspace(0, old - 1, count, dtype=torch.float32).long()]
    repeated = rows[torch.arange(count - old) % old]
    noise = torch.randn(repeated.shape, generator=generator, dtype=rows.dtype)
    return torch.cat([rows, repeated + NOISE * noise.to(rows.device)])
