"""What the whole models of PyTorch, torchvision and timm are made of, by name.

A model is rebuilt from what stands here without asking: the modules of three libraries, the plain
objects and functions that these modules hold, and a few of Python's own containers. The lists are
explicit since a file chooses from them: nothing on them reads, writes, fetches or runs anything,
whatever it is given.
"""

from __future__ import annotations

from torchkeep.contents import ITEM_SIZE, Global

MODULES = (
    "torch.nn.modules",
    "torch.nn.utils.parametrizations",
    "torch.nn.utils.parametrize",
    "torch.ao.nn.quantized.modules.functional_modules",
    "torch.ao.quantization.stubs",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
    "timm.layers",
    "timm.models",
)
"""Where classes of modules may be from, and enumerations: these and all below them."""

CLASSES = frozenset(
    {
        *("argparse.Namespace", "types.SimpleNamespace"),
        "timm.models._features.FeatureInfo",
        *("torch.nn.modules.module._WrappedHook", "torch.nn.utils.weight_norm.WeightNorm"),
        *(
            f"torch.nn.utils.spectral_norm.{name}"
            for name in (
                "SpectralNorm SpectralNormStateDictHook SpectralNormLoadStateDictPreHook".split()
            )
        ),
        *(
            f"torch.nn.utils.prune.{name}"
            for name in (
                "CustomFromMask Identity L1Unstructured LnStructured PruningContainer "
                "RandomStructured RandomUnstructured".split()
            )
        ),
        *(
            f"torchvision.models.detection._utils.{name}"
            for name in (
                "BalancedPositiveNegativeSampler BoxCoder BoxLinearCoder Matcher SSDMatcher".split()
            )
        ),
        "torchvision.ops.poolers.LevelMapper",
    }
)
"""Classes of plain objects: they are made without their constructor, and get their attributes."""

CALLS = frozenset(
    {
        *("functools.partial", "builtins.getattr"),
        *("torch.device", "torch.Size", "collections.deque", "collections.defaultdict"),
        *("builtins.slice", "builtins.range"),
    }
)
"""What may be called, each with arguments that are looked at."""

_FUNCTIONAL = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d batch_norm binary_cross_entropy "
    "binary_cross_entropy_with_logits celu celu_ conv1d conv2d conv3d cosine_embedding_loss "
    "cosine_similarity cross_entropy dropout dropout1d dropout2d dropout3d elu elu_ embedding "
    "gaussian_nll_loss gelu glu group_norm gumbel_softmax hardshrink hardsigmoid hardswish "
    "hardtanh hardtanh_ huber_loss instance_norm interpolate kl_div l1_loss layer_norm leaky_relu "
    "leaky_relu_ linear log_sigmoid log_softmax logsigmoid max_pool1d max_pool2d max_pool3d mish "
    "mse_loss nll_loss normalize one_hot pad pixel_shuffle pixel_unshuffle prelu relu relu6 relu_ "
    "rms_norm rrelu scaled_dot_product_attention selu selu_ sigmoid silu smooth_l1_loss "
    "soft_margin_loss softmax softmin softplus softshrink softsign tanh tanhshrink threshold "
    "triplet_margin_loss unfold upsample"
).split()
_ELEMENTWISE = (
    "abs acos add amax amin argmax argmin asin atan bmm cat ceil celu clamp concat conv1d conv2d "
    "conv3d cos cosh cosine_similarity div dropout einsum erf exp expm1 flatten floor hardshrink "
    "layer_norm log log10 log1p log2 log_softmax logsumexp matmul max maximum mean min minimum mm "
    "mul neg norm pixel_shuffle pow prelu prod reciprocal relu relu_ round rrelu rsqrt selu "
    "sigmoid sign sin sinh softmax sqrt square stack std sub sum tan tanh threshold transpose var"
).split()
_ACTIVATIONS = (
    "gelu gelu_tanh hard_mish hard_sigmoid hard_swish mish prelu quick_gelu sigmoid swish tanh"
).split()

FUNCTIONS = frozenset(
    {
        *(f"torch.nn.functional.{name}" for name in _FUNCTIONAL),
        *(f"torch._C._nn.{name}" for name in _FUNCTIONAL),
        *(f"torch.{name}" for name in _ELEMENTWISE),
        *(f"torch._C._VariableFunctionsClass.{name}" for name in _ELEMENTWISE),
        *(f"torch._VF.{name}" for name in _ELEMENTWISE),
        *(f"timm.layers.activations.{name}" for name in _ACTIVATIONS),
        *(f"torchvision.ops.boxes.{name}" for name in "box_iou generalized_box_iou nms".split()),
        "torchvision.models.optical_flow.raft._pass_through_h",
        *(f"builtins.{name}" for name in "Ellipsis bool dict float int list set str tuple".split()),
    }
)
"""Functions and plain types that a module may hold, and call on its tensors."""

_LAYOUTS = (
    "preserve_format contiguous_format channels_last channels_last_3d strided sparse_coo"
).split()


def is_known(name: Global, *, is_module: bool) -> bool:
    """Whether a name may be used without asking.

    Args:
        name: the name.
        is_module: whether it is a class of modules, or an enumeration.

    >>> is_known(Global("torch.nn.modules.linear", "Linear"), is_module=True)
    True
    >>> is_known(Global("timm.models", "load_checkpoint"), is_module=False)
    False
    """
    if is_module and is_among_modules(name.module):
        return True
    path = str(name)
    return path in CLASSES or path in CALLS or path in FUNCTIONS or is_torch_value(name)


def is_among_modules(module: str) -> bool:
    """Whether a Python module is one where the classes of known modules are."""
    return any(module == top or module.startswith(f"{top}.") for top in MODULES)


def is_torch_value(name: Global) -> bool:
    """Whether a name is one of PyTorch's dtypes, layouts or memory formats."""
    is_one = name.name in ITEM_SIZE or name.name in _LAYOUTS
    return name.module == "torch" and is_one
