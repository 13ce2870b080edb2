"""Networks as people write them, which are in no table of architectures."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from torch import nn

Shapes = dict[str, tuple[int, ...]]


def shapes_of(model: nn.Module) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def named(**parts: nn.Module) -> nn.Module:
    """Return a module with these children: what matters here is what they are called."""
    model = nn.Module()
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def lenet() -> nn.Module:
    return named(
        conv1=nn.Conv2d(1, 6, 5),
        conv2=nn.Conv2d(6, 16, 5),
        fc1=nn.Linear(400, 120),
        fc2=nn.Linear(120, 84),
        fc3=nn.Linear(84, 10),
    )


def tutorial_mnist() -> nn.Module:
    return named(
        conv1=nn.Conv2d(1, 32, 3),
        conv2=nn.Conv2d(32, 64, 3),
        fc1=nn.Linear(9216, 128),
        fc2=nn.Linear(128, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 10))


def one_layer() -> nn.Module:
    return nn.Linear(512, 1000)


def sequential_cnn() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return named(features=nn.Sequential(*layers), classifier=nn.Linear(128, 10))


def double_conv(before: int, after: int) -> nn.Module:
    parts = [nn.Conv2d(before, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    parts += [nn.Conv2d(after, after, 3, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return named(double_conv=nn.Sequential(*parts))


def unet() -> nn.Module:
    widths = [64, 128, 256, 512, 1024]
    parts = {"inc": double_conv(3, 64)}
    for at, (before, after) in enumerate(pairwise(widths), 1):
        parts[f"down{at}"] = named(
            maxpool_conv=nn.Sequential(nn.MaxPool2d(2), double_conv(before, after))
        )
    for at, (before, after) in enumerate(pairwise(widths[::-1]), 1):
        parts[f"up{at}"] = named(
            up=nn.ConvTranspose2d(before, after, 2), conv=double_conv(before, after)
        )
    return named(**parts, outc=nn.Conv2d(64, 2, 1))


def lstm() -> nn.Module:
    return named(
        embedding=nn.Embedding(10_000, 256),
        lstm=nn.LSTM(256, 512, num_layers=2),
        decoder=nn.Linear(512, 10_000),
    )


def seq2seq() -> nn.Module:
    return named(
        encoder=named(embedding=nn.Embedding(5_000, 256), rnn=nn.GRU(256, 512)),
        decoder=named(embedding=nn.Embedding(5_000, 256), rnn=nn.GRU(768, 512)),
    )


def transformer() -> nn.Module:
    return nn.Transformer(d_model=512, batch_first=True)


def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(768, 12, 3072, batch_first=True)
    return named(encoder=nn.TransformerEncoder(layer, 12), head=nn.Linear(768, 10))


def gpt() -> nn.Module:
    def block() -> nn.Module:
        attn = named(c_attn=nn.Linear(768, 2304), c_proj=nn.Linear(768, 768))
        mlp = named(c_fc=nn.Linear(768, 3072), c_proj=nn.Linear(3072, 768))
        return named(ln_1=nn.LayerNorm(768), attn=attn, ln_2=nn.LayerNorm(768), mlp=mlp)

    blocks = nn.ModuleList([block() for _ in range(12)])
    parts = named(wte=nn.Embedding(50_257, 768), wpe=nn.Embedding(1024, 768), h=blocks)
    return named(transformer=parts, lm_head=nn.Linear(768, 50_257, bias=False))


def bert() -> nn.Module:
    def layer() -> nn.Module:
        return named(
            attention=named(
                self=named(**{name: nn.Linear(768, 768) for name in ("query", "key", "value")}),
                output=named(dense=nn.Linear(768, 768), LayerNorm=nn.LayerNorm(768)),
            ),
            intermediate=named(dense=nn.Linear(768, 3072)),
            output=named(dense=nn.Linear(3072, 768), LayerNorm=nn.LayerNorm(768)),
        )

    layers = nn.ModuleList([layer() for _ in range(12)])
    embeddings = named(word_embeddings=nn.Embedding(30_522, 768), LayerNorm=nn.LayerNorm(768))
    return named(bert=named(embeddings=embeddings, encoder=named(layer=layers)))


def dcgan_generator() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((100, 512), (512, 256), (256, 128), (128, 64)):
        layers += [
            nn.ConvTranspose2d(before, after, 4, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return named(main=nn.Sequential(*layers, nn.ConvTranspose2d(64, 3, 4, bias=False)))


def dcgan_discriminator() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, bias=False), nn.LeakyReLU()]
    for before, after in ((64, 128), (128, 256), (256, 512)):
        layers += [nn.Conv2d(before, after, 4, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU()]
    return named(main=nn.Sequential(*layers, nn.Conv2d(512, 1, 4, bias=False)))


def vae() -> nn.Module:
    encoder = nn.Sequential(nn.Conv2d(3, 32, 4), nn.ReLU(), nn.Conv2d(32, 64, 4))
    decoder = nn.Sequential(nn.ConvTranspose2d(64, 32, 4), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4))
    return named(
        encoder=encoder, mu=nn.Linear(2304, 64), log_var=nn.Linear(2304, 64), decoder=decoder
    )


def dqn() -> nn.Module:
    convs = nn.Sequential(
        nn.Conv2d(4, 32, 8), nn.ReLU(), nn.Conv2d(32, 64, 4), nn.Conv2d(64, 64, 3)
    )
    extractor = named(cnn=convs, linear=nn.Sequential(nn.Linear(3136, 512)))
    return named(q_net=named(features_extractor=extractor, q_net=nn.Sequential(nn.Linear(512, 6))))


def pointnet() -> nn.Module:
    parts: dict[str, nn.Module] = {}
    for at, (before, after) in enumerate(((3, 64), (64, 128), (128, 1024)), 1):
        parts |= {f"conv{at}": nn.Conv1d(before, after, 1), f"bn{at}": nn.BatchNorm1d(after)}
    return named(feat=named(**parts), fc1=nn.Linear(1024, 512), fc3=nn.Linear(256, 16))


def residual_block(before: int, after: int, kernel: int, shortcut: str) -> nn.Module:
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(before, after, kernel, bias=False),
        "bn1": nn.BatchNorm2d(after),
        "conv2": nn.Conv2d(after, after, kernel, bias=False),
        "bn2": nn.BatchNorm2d(after),
    }
    if before != after:
        parts[shortcut] = nn.Sequential(
            nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after)
        )
    return named(**parts)


def resnet(
    widths: list[int],
    depths: list[int],
    *,
    kernel: int = 3,
    stem: int = 7,
    shortcut: str = "downsample",
    head: str = "fc",
) -> nn.Module:
    """Return a network of basic blocks with the names that everybody gives to them."""
    parts: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, widths[0], stem, bias=False),
        "bn1": nn.BatchNorm2d(widths[0]),
    }
    before = widths[0]
    for at, (width, depth) in enumerate(zip(widths, depths, strict=True), 1):
        blocks = []
        for _ in range(depth):
            blocks.append(residual_block(before, width, kernel, shortcut))
            before = width
        parts[f"layer{at}"] = nn.Sequential(*blocks)
    return named(**parts, **{head: nn.Linear(before, 10)})


def narrow_resnet() -> nn.Module:
    return resnet([48, 96, 192, 384], [2, 2, 2, 2])


def cifar_resnet20() -> nn.Module:
    return resnet([16, 32, 64], [3, 3, 3], stem=3, head="linear")


def resnet_with_large_kernels() -> nn.Module:
    """Every vector is as in resnet18, and no convolution of a block is."""
    return resnet([64, 128, 256, 512], [2, 2, 2, 2], kernel=5)


def wide_resnet28() -> nn.Module:
    return resnet([16, 160, 320], [4, 4, 4], stem=3)


def captioner() -> nn.Module:
    """A resnet18 in something that is larger: the whole is no resnet18."""
    return named(
        backbone=resnet([64, 128, 256, 512], [2, 2, 2, 2]),
        decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(512, 8), 6),
        embedding=nn.Embedding(10_000, 512),
    )


def siamese() -> nn.Module:
    """Two networks of the table beside each other."""
    widths, depths = [64, 128, 256, 512], [2, 2, 2, 2]
    return named(left=resnet(widths, depths), right=resnet(widths, depths))


OTHERS: tuple[Callable[[], nn.Module], ...] = (
    lenet,
    tutorial_mnist,
    mlp,
    one_layer,
    sequential_cnn,
    unet,
    lstm,
    seq2seq,
    transformer,
    transformer_encoder,
    gpt,
    bert,
    dcgan_generator,
    dcgan_discriminator,
    vae,
    dqn,
    pointnet,
    narrow_resnet,
    cifar_resnet20,
    resnet_with_large_kernels,
    wide_resnet28,
    captioner,
    siamese,
)
"""Networks that are in no table."""
