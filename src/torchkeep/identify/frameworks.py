"""Which training framework wrote a file, by the keys, names and classes that it alone uses.

The tables are plain data. Keys are those of the frameworks' own saving code; where a framework is
told from another only by a nested key, the key is given with its path, as in
`meta.mmengine_version`.

Source: the saving code of each framework, such as lightning's
trainer/connectors/checkpoint_connector.py, timm/utils/checkpoint_saver.py,
ultralytics/engine/trainer.py, mmengine/runner/runner.py, mmcv/runner/checkpoint.py,
deepspeed/runtime/engine.py, fairseq/checkpoint_utils.py, detectron2/checkpoint,
transformers/trainer.py, accelerate/checkpointing.py, fastai/learner.py,
stable_baselines3/common/save_util.py, composer/core/state.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torchkeep.contents import Contents, Global, Object, Value
from torchkeep.formats.containers import CONTAINERS
from torchkeep.formats.own.metadata import TRAINING_STATE

_KEYS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (name, frozenset(keys.split()))
    for name, keys in (
        ("Lightning", "pytorch-lightning_version"),
        ("Lightning", "optimizer_states lr_schedulers state_dict global_step"),  # before 0.8
        ("YOLOv6", "model ema updates optimizer scheduler results"),
        ("YOLOX", "start_epoch model optimizer best_ap"),
        ("Ultralytics", "model ema updates optimizer"),
        ("Ultralytics", "model train_args"),
        ("Ultralytics", "model optimizer best_fitness"),  # YOLOv5
        ("mmengine", "message_hub state_dict"),
        ("mmengine", "state_dict meta.mmengine_version"),
        ("mmcv", "state_dict meta.mmcv_version"),
        ("mmcv", "state_dict meta.mmdet_version"),
        ("mmcv", "state_dict meta.CLASSES"),
        ("mmcv", "meta state_dict optimizer"),
        ("mmcv", "meta state_dict"),
        ("DeepSpeed", "module ds_config"),
        ("DeepSpeed", "module ds_version"),
        ("DeepSpeed", "module buffer_names param_shapes"),
        ("DeepSpeed", "module csr_tensor_module_names"),
        ("DeepSpeed", "optimizer_state_dict ds_config"),
        ("DeepSpeed", "optimizer_state_dict ds_version"),
        ("DeepSpeed", "optimizer_state_dict.zero_stage"),
        ("fairseq", "model optimizer_history"),
        ("fairseq", "model last_optimizer_state"),
        ("fairseq", "model cfg.task cfg.criterion"),
        ("fairseq", "model args.task args.criterion args.arch"),
        ("timm", "arch state_dict version epoch metric"),
        ("timm", "arch state_dict args version"),
        ("timm", "arch state_dict version epoch optimizer"),
        ("detectron2", "model iteration optimizer scheduler"),
        ("detectron2", "model iteration trainer"),
        ("detectron2", "model __author__"),
        ("detectron2", "model matching_heuristics"),
        ("stable-baselines3", "state_dict data.observation_space data.action_space"),
        ("FastAI", "model opt.hypers"),
        ("FastAI", "opt_func loss_func true_wd"),  # version 1: learner.export
        ("Accelerate", "random_state numpy_random_seed torch_manual_seed"),
        ("Ignite", "trainer.epoch_length trainer.max_epochs"),
        ("Composer", "state.timestamp state.model"),
        ("Catalyst", "model_state_dict criterion_state_dict epoch_metrics"),
        ("Catalyst", "model_state_dict criterion_state_dict loader_metrics"),
        ("Megatron-LM", "checkpoint_version model"),
        ("Megatron-LM", "checkpoint_version model0"),
        ("BasicSR", "params params_ema"),
        ("BasicSR", "iter optimizers schedulers epoch"),
        ("OpenNMT", "model generator vocab opt"),
        ("ESPnet", "model reporter optimizers"),
        ("SlowFast", "model_state optimizer_state cfg"),
        ("VISSL", "classy_state_dict phase_idx"),
        ("ParlAI", "model number_training_updates"),
        ("SuperGradients", "net acc packages"),
        ("rl_games", "model env_state last_mean_rewards"),
        ("RSL-RL", "model_state_dict optimizer_state_dict iter infos"),
        ("torchtune", "epochs_run total_epochs seed"),
        ("Flair", "state_dict flair_version"),
        ("Flair", "state_dict embeddings tag_dictionary"),
        ("Whisper", "dims model_state_dict"),
        ("torchkeep", "torchkeep"),
    )
)
"""Framework and the keys that its checkpoints have at the root; the first match counts."""

_EXACT_KEYS: tuple[tuple[str, frozenset[str]], ...] = (
    ("HF Trainer", frozenset({"python", "numpy", "cpu"})),
    ("HF Trainer", frozenset({"python", "numpy", "cpu", "cuda"})),
)
"""The same for files that have no other keys: the Trainer's random states."""

_PACKAGES: dict[str, str] = {
    "catalyst": "Catalyst",
    "composer": "Composer",
    "darts": "Darts",
    "deepspeed": "DeepSpeed",
    "detectron2": "detectron2",
    "diffusers": "Diffusers",
    "espnet": "ESPnet",
    "espnet2": "ESPnet",
    "fairseq": "fairseq",
    "fastai": "FastAI",
    "flair": "Flair",
    "ignite": "Ignite",
    "lightgbm": "LightGBM",
    "lightning": "Lightning",
    "mmcls": "mmcv",
    "mmcv": "mmcv",
    "mmdet": "mmcv",
    "mmengine": "mmengine",
    "mmseg": "mmcv",
    "monai": "MONAI",
    "nemo": "NeMo",
    "onmt": "OpenNMT",
    "open_clip": "OpenCLIP",
    "peft": "PEFT",
    "pytorch_lightning": "Lightning",
    "pytorch_tabnet": "TabNet",
    "ray": "Ray",
    "sb3_contrib": "stable-baselines3",
    "segmentation_models_pytorch": "segmentation-models-pytorch",
    "sentence_transformers": "Sentence Transformers",
    "sklearn": "scikit-learn",
    "skorch": "skorch",
    "speechbrain": "SpeechBrain",
    "stable_baselines3": "stable-baselines3",
    "super_gradients": "SuperGradients",
    "tensordict": "TensorDict",
    "tianshou": "Tianshou",
    "timm": "timm",
    "torch_geometric": "PyTorch Geometric",
    "torchrl": "TorchRL",
    "transformers": "Transformers",
    "ultralytics": "Ultralytics",
    "xgboost": "XGBoost",
    "yolov6": "YOLOv6",
    "yolox": "YOLOX",
}
"""Framework by the package of the file's own object, or of one that stands at its first level."""

_CLASSES: dict[str, str] = {
    "transformers.training_args.TrainingArguments": "HF Trainer",
    "transformers.training_args_seq2seq.Seq2SeqTrainingArguments": "HF Trainer",
    "trl.": "HF Trainer",
    "sentence_transformers.training_args.": "HF Trainer",
    "models.yolo.": "Ultralytics",  # YOLOv5, whose package is its own folder
}
"""The same by the start of a class path, which goes before the package."""

_MODULE_MARKS: tuple[tuple[str, frozenset[str]], ...] = (
    ("Lightning", frozenset({"prepare_data_per_node", "_automatic_optimization"})),
    ("Lightning", frozenset({"_hparams_name", "_dtype", "_device"})),
    ("Lightning", frozenset({"prepare_data_per_node", "_current_fx_name"})),
)
"""Attributes that a framework's base class gives to a pickled module of the user's own class."""

_MEMBERS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (name, frozenset(names.split()))
    for name, names in (
        ("stable-baselines3", "data policy.pth pytorch_variables.pth"),
        ("stable-baselines3", "data policy.pth policy.optimizer.pth"),
        ("HF Trainer", "trainer_state.json"),
        ("HF Trainer", "training_args.bin"),
        ("Accelerate", "random_states_0.pkl"),
        ("PEFT", "adapter_config.json"),
        ("Diffusers", "model_index.json"),
        ("NeMo", "model_weights.ckpt"),
        ("Keras", "model.weights.h5"),
    )
)
"""Framework by the names in an archive or a folder."""

_TENSOR_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("PEFT", ("base_model.model.", ".lora_")),
    ("PEFT", ("base_model.model.", ".ia3_")),
    ("PEFT", ("base_model.model.", ".modules_to_save.")),
    ("PEFT", ("prompt_embeddings",)),
    ("Diffusers", ("unet.", ".lora")),
    ("Diffusers", ("transformer.", ".lora_")),
    ("TabNet", ("tabnet.initial_bn.",)),
    ("kohya-ss", ("lora_unet_", ".lora_")),
    ("kohya-ss", ("lora_te", ".lora_")),
)
"""Framework by what the first name in a state dict starts with and holds: adapters, mostly."""

_METADATA: tuple[tuple[str, str], ...] = (
    ("kohya-ss", "ss_network_module"),
    ("kohya-ss", "ss_base_model_version"),
    ("Keras", "keras_version"),
)
"""Framework by a key of what the container says about itself."""

_FEW = 16
"""Items of a list or a dictionary at the root whose classes are looked at."""


def is_training_state(contents: Contents) -> bool:
    """Whether a file is the `state.safetensors` of a torchkeep checkpoint."""
    is_ours = TRAINING_STATE.items() <= contents.metadata.items()
    return is_ours and contents.container == "safetensors"


def framework(contents: Contents) -> str | None:
    """Return the framework's name, or None if nothing gives it away."""
    if is_training_state(contents):
        return "torchkeep"
    root = contents.root
    return (
        CONTAINERS[contents.container].framework
        or _by_members(contents)
        or _by_keys(root)
        or next((name for name, key in _METADATA if key in contents.metadata), None)
        or _by_tensor_names(root)
        or _by_classes(root)
    )


def _by_members(contents: Contents) -> str | None:
    if not contents.members:
        return None
    names = {Path(member.path).name for member in contents.members}
    if isinstance(contents.root, dict):  # a folder's JSON files stand there
        names |= {key for key in contents.root if isinstance(key, str)}
    named = next((name for name, needed in _MEMBERS if needed <= names), None)
    if named is not None:
        return named
    theirs = {framework(member) for member in contents.members} - {None}
    return theirs.pop() if len(theirs) == 1 else None


def _by_keys(root: Value) -> str | None:
    if not isinstance(root, dict):
        return None
    for name, keys in _EXACT_KEYS:
        if keys == root.keys():
            return name
    return next((name for name, keys in _KEYS if all(_has(root, key) for key in keys)), None)


def _has(root: dict[Value, Value], path: str) -> bool:
    """Whether a dictionary has a key, or a key of an item of it, given as `item.key`."""
    if path in root:
        return True
    outer, _, inner = path.partition(".")
    item = root.get(outer)
    table = item.attributes if isinstance(item, Object) else item
    return bool(inner) and isinstance(table, dict) and inner in table


def _by_tensor_names(root: Value) -> str | None:
    first = next(iter(root), None) if isinstance(root, dict) else None
    if not isinstance(first, str):
        return None
    for name, (start, *parts) in _TENSOR_NAMES:
        if first.startswith(start) and all(part in first for part in parts):
            return name
    return None


def _by_classes(root: Value) -> str | None:
    for value in _first_level(root):
        path = _class_path(value)
        found = next((name for start, name in _CLASSES.items() if path.startswith(start)), None)
        found = found or _PACKAGES.get(path.partition(".")[0])
        if found is None and isinstance(value, Object):
            attributes = value.attributes.keys()
            found = next((name for name, marks in _MODULE_MARKS if marks <= attributes), None)
        if found is not None:
            return found
    return None


def _class_path(value: Value) -> str:
    while isinstance(value, Object):  # a class that is made by a call, as by PyTorch Geometric
        value = value.callee
    return str(value) if isinstance(value, Global) else ""


def _first_level(root: Value) -> Iterator[Value]:
    """Yield the root and what is directly in it."""
    yield root
    items = list(root.values())[:_FEW] if isinstance(root, dict) else root
    if isinstance(items, list | tuple):
        yield from items[:_FEW]
