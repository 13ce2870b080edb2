"""Which networks make the round trips: a few in every run, and on demand all of these."""

from __future__ import annotations

import os

FEW = """
torchvision/resnet18 torchvision/mobilenet_v3_small torchvision/squeezenet1_1
torchvision/shufflenet_v2_x0_5 torchvision/lraspp_mobilenet_v3_large torchvision/raft_small
timm/test_vit timm/test_convnext timm/test_nfnet timm/levit_128s timm/mobilevit_xxs
""".split()

TIMM = """
beit_base_patch16_224 halonet_h1 haloregnetz_b test_byobnet mobileone_s4 cait_xxs24_224
coat_lite_tiny convit_tiny convmixer_768_32 test_convnext convnext_femto_ols cpubone_nano
crossvit_tiny_240 csatv2 cs3darknet_focus_s sedarknet21 cspnext_tiny davit_tiny
deepseek_vit_412m deit_tiny_patch16_224 deit_small_distilled_patch16_224 densenet121 dla46x_c
dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 test_efficientnet_gn
efficientnet_es_pruned efficientvim_m1 efficientvit_b0 efficientvit_m0
vit_tiny_patch16_dinov3_qkvb vit_base_patch16_dinov3 fasternet_t0 fastvit_t8 focalnet_tiny_srf
gcvit_xxtiny gemma4_vit_167m_enc ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224
sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3
inception_v4 lcnetv2_small levit_128s levit_256 lowformer_b0 test_mambaout test_coatnet
maxvit_rmlp_tiny_rw_256 poolformerv2_s12 poolformerv2_s36 gmlp_ti16_224 gmlp_s16_224
mobilenetv3_small_050 lcnet_100 mobilenetv5_base mobilevit_xxs mvitv2_tiny
naflexvit_base_patch16_parfac_gap naflexvit_base_patch16_map nasnetalarge nest_tiny
nextvit_small test_nfnet nf_regnet_b4 pit_ti_224 pnasnet5large pvt_v2_b0 qwen3_vit_88m
rdnet_tiny regnetx_002 regnety_016 repghostnet_050 repvit_m1 res2next50 resnest14d test_resnet
resnet50t resnetv2_18 resnetv2_50d_evos rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s
shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window16_256 swinv2_cr_tiny_224 swinv2_cr_small_ns_224 tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit
vit_base_patch14_reg1_tipsv2 vit_tiny_r_s16_p8_224 vit_small_resnet50d_s16_224 test_vit_relpos
vit_relpos_medium_patch16_rpn_224 samvit_base_patch16_224 vitamin_small_224 vitamin_large2_256
volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
xcit_tiny_24_p8_384
""".split()
"""The smallest network of each of timm's families, and of the large ones a second."""


def chosen() -> list[str]:
    """Return the names: the few, or all if TORCHKEEP_MODELS is `all` (`make test-models`)."""
    if os.environ.get("TORCHKEEP_MODELS") != "all":
        return FEW
    from torchvision.models import list_models

    ours = [f"torchvision/{name}" for name in list_models() if not name.startswith("quantized_")]
    return [*ours, *(f"timm/{name}" for name in TIMM)]
