"""Every constant of the published GaussianToken (Dong et al. 2025, arXiv 2501.15619): architectures and recipes, as presets by name.

Where the paper and the released code differ (learning rate, optimiser, number of epochs), the presets have what the code ran with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from tyro.conf import AvoidSubcommands


@dataclass(frozen=True)
class EmbedderArchitecture:
    """How a feature map becomes Gaussians (section 3.2 of the paper)."""

    num_gaussians: int
    """Gaussians per image; each one is a token."""
    embed_dim: int = 64
    """Channels of everything inside the embedder, and of the feature map it is fed. A multiple of 32."""
    num_blocks: int = 3
    """Blocks of attention, feed-forward layer and refinement; Gaussians get better from each to the next."""
    num_encoder_layers: int = 2
    """Layers in which the feature map looks at itself."""
    num_decoder_layers: int = 2
    """Layers in each block in which Gaussians look at each other and at the feature map."""
    num_heads: int = 4
    """Attention heads, everywhere."""
    num_points: int = 4
    """Points that a head of deformable attention reads, besides the fixed one."""
    dropout: float = 0.1
    """In all attention layers; the feed-forward layers of the blocks have none."""
    residual_mode: Literal["cat", "add"] = "cat"
    """Whether a block's attention output is put beside its input or added to it."""
    start: Literal["learned", "content"] = "learned"
    """Where Gaussians start: at learned anchors, the same for every image (as published), or in the part of the image that is theirs,
    where most happens in it, with the features of that place."""
    has_opacity: bool = False
    """Whether Gaussians have an opacity; without, it is 1."""
    smallest_scale: float = 0.1
    """Standard deviation, in cells of the feature map."""
    initial_largest_scale: float = 4.0
    """The largest standard deviation at the start of training, in cells; it shrinks while training goes on."""
    final_largest_scale: float = 3.0
    """Where it stops shrinking."""

    def __post_init__(self) -> None:
        if self.embed_dim % 32 or self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} must be a multiple of 32 and of num_heads {self.num_heads}")

    @property
    def anchor_dim(self) -> int:
        """Numbers of a Gaussian before activation: x, y, rotation, two scales, opacity if there is one, and its feature."""
        return 5 + self.has_opacity + self.embed_dim


@dataclass(frozen=True)
class GaussianTokenArchitecture:
    """What the network is made of."""

    map_size: tuple[int, int]
    """Height and width of the feature map, in cells."""
    multipliers: tuple[int, ...]
    """Channels of the CNN's levels over `channels`, finest first; each level but the last halves the map."""
    code_dim: int
    """Channels of a code, and of the feature map that is decoded."""
    embedder: AvoidSubcommands[EmbedderArchitecture | None]
    """None: the baseline without Gaussians (VQGAN), whose tokens are the cells of the map."""
    channels: int = 128
    """Channels of the CNN at full resolution. A multiple of 32."""
    num_residual_blocks: int = 4
    """Of every level, and between encoder levels and bottleneck."""
    codebook_size: int = 1024
    """Number of codes."""
    codebook_decay: float = 0.8
    """Share of a code's running averages that a training step keeps."""
    kmeans_iterations: int = 10
    """On the first batch, which the codebook starts from."""
    dead_code_threshold: float = 2.0
    """A code that is hit less often per step (running average) is replaced by a vector of the batch; 0: never."""
    dead_code_vectors: int = 6144
    """Vectors per step, over all processes, that the threshold holds for; with fewer it shrinks in proportion."""

    def __post_init__(self) -> None:
        if self.channels % 32:
            raise ValueError(f"channels {self.channels} is not a multiple of 32, the number of groups of its norms")

    @property
    def num_tokens(self) -> int:
        """Tokens per image."""
        return self.map_size[0] * self.map_size[1] if self.embedder is None else self.embedder.num_gaussians

    @property
    def encoder_channels(self) -> int:
        """Channels of the feature map that the CNN encoder gives."""
        return self.code_dim if self.embedder is None else self.embedder.embed_dim

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        factor: int = 2 ** (len(self.multipliers) - 1)
        return self.map_size[0] * factor, self.map_size[1] * factor


@dataclass(frozen=True)
class TrainingRecipe:
    """The published optimisation, for generator and discriminator alike."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    lr: float = 2e-4
    """After warm-up; a cosine leads it to 0 over all epochs."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    """On every parameter, norms and biases too."""
    warmup_lr: float = 1e-6
    """Rate of the first step."""
    warmup_epochs: int = 1
    num_epochs: int = 30
    batch_size: int = 4
    """Images per process and step."""
    num_processes: int = 6
    """GPUs that it was published on."""
    gan_start_epoch: int = 5
    """The generator hears the discriminator from here on; the discriminator learns from the start."""
    averaging_decay: float = 0.999
    """Of the weights' running average, which is what is evaluated."""


@dataclass(frozen=True)
class GaussianTokenPreset:
    """One option set."""

    architecture: GaussianTokenArchitecture
    training: TrainingRecipe = field(default_factory=TrainingRecipe)


CIFAR = GaussianTokenPreset(
    GaussianTokenArchitecture(
        map_size=(16, 16),
        multipliers=(1, 2),
        code_dim=3,
        embedder=EmbedderArchitecture(num_gaussians=64),
        dead_code_vectors=6 * 64 * 64,
    ),
    TrainingRecipe(batch_size=64),
)
"""`cifar_gqgan`: 64 Gaussians for a 32x32 image."""

MINI_IMAGENET = GaussianTokenPreset(
    GaussianTokenArchitecture(
        map_size=(32, 32),
        multipliers=(1, 2, 2, 4),
        code_dim=8,
        embedder=EmbedderArchitecture(num_gaussians=256),
        dead_code_vectors=6 * 4 * 256,
    )
)
"""`mini_gqgan`: 256 Gaussians for a 256x256 image."""

IMAGENET = replace(MINI_IMAGENET, training=TrainingRecipe(optimizer="adam", betas=(0.5, 0.9), weight_decay=0.0))
"""`imagenet_gqgan`: the same network, another optimiser."""

VQGAN = GaussianTokenPreset(
    GaussianTokenArchitecture(map_size=(16, 16), multipliers=(1, 1, 2, 2, 4), code_dim=8, embedder=None, dead_code_vectors=6 * 4 * 256)
)
"""`mini_vqgan`: the baseline without Gaussians, 16x16 = 256 grid tokens for a 256x256 image."""

VQGAN_CIFAR = replace(CIFAR, architecture=replace(CIFAR.architecture, map_size=(8, 8), multipliers=(1, 1, 2), embedder=None))
"""A baseline for CIFAR that was not published: 8x8 = 64 grid tokens for a 32x32 image, with the number of tokens, the code
dimension, the codebook and the training of `CIFAR`. A level is put before the CNN's as `VQGAN` does with `MINI_IMAGENET`'s."""

TINY = GaussianTokenPreset(
    GaussianTokenArchitecture(
        map_size=(8, 8),
        multipliers=(1, 2, 2),
        code_dim=8,
        embedder=EmbedderArchitecture(num_gaussians=16, embed_dim=32, start="content"),
        channels=32,
        num_residual_blocks=1,
        codebook_size=64,
        dead_code_vectors=512,
    ),
    TrainingRecipe(batch_size=16, num_processes=1, lr=1e-3, averaging_decay=0.99),
)
"""Small enough to be trained on a CPU for tests and demonstrations: 16 Gaussians for a 32x32 image. Not published; start, code
dimension and learning rate were chosen by short trainings (docs/results/gaussiantoken.md)."""

PRESETS: dict[str, GaussianTokenPreset] = {
    "cifar": CIFAR,
    "mini-imagenet": MINI_IMAGENET,
    "imagenet": IMAGENET,
    "vqgan": VQGAN,
    "vqgan-cifar": VQGAN_CIFAR,
    "tiny": TINY,
}
"""By name."""
