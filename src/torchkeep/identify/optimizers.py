"""Optimizers, schedulers, gradient scalers and random states, recognised by their state's keys.

Source: the `state_dict()` of torch/optim/*.py, torch/optim/lr_scheduler.py and
torch/amp/grad_scaler.py, of fastai/optimizer.py and timm/scheduler/scheduler.py; the same of the
packages that `_FAMILIES` names; `random.getstate`, `numpy.random.get_state`,
`torch.get_rng_state`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torchkeep.contents import Object, TensorEntry, Value
from torchkeep.identify.tree import Budget, named_tensors


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer's state in the file."""

    name: str
    """Its path in the file; empty if it is the file's root."""
    family: str | None
    """The class whose options it has, such as `SGD`; None if unknown."""
    param_groups: tuple[dict[str, Value], ...]
    """The options of each group, with `num_params` in place of the list of parameters."""
    num_states: int
    """Parameters that have a state."""
    nbytes: int
    """Bytes of the tensors in the state."""


@dataclass(frozen=True, slots=True)
class _Family:
    """What gives a class of optimizers away."""

    name: str
    """The class."""
    options: frozenset[str]
    """The options that its groups have, among others."""
    without: frozenset[str] = frozenset()
    """The options that they don't have."""
    slots: frozenset[str] = frozenset()
    """All that it keeps for a parameter; empty if anything is allowed."""
    needs: frozenset[str] = frozenset()
    """What it keeps for a parameter that has been trained, and others don't."""

    def fits(self, options: set[str], slots: set[str]) -> bool:
        """Whether an optimizer of this class may have written such a state."""
        return (
            self.options <= options
            and not self.without & options
            and (not self.slots or slots <= self.slots)
            and self.needs <= slots
        )


def _family(
    name: str, options: str, *, without: str = "", slots: str = "", needs: str = ""
) -> _Family:
    words = (frozenset(text.split()) for text in (options, without, slots, needs))
    return _Family(name, *words)


_MOMENTS = "step exp_avg exp_avg_sq"
_QH = "beta1_weight beta2_weight exp_avg exp_avg_sq"
_ADAM = _MOMENTS + " max_exp_avg_sq max_exp_avg_sqs master_param"

_FASTAI = "step grad_avg sqr_avg do_wd force_train"
_UNTRAINED = "(nothing)"
"""No slot is called so."""

_FAMILIES: tuple[_Family, ...] = (
    _family("LBFGS", "max_eval history_size"),
    _family("Adadelta", "rho", slots="step square_avg acc_delta"),
    _family("Adagrad", "lr_decay", slots="step sum"),
    _family("ASGD", "lambd t0", slots="step eta mu ax"),
    _family("Rprop", "etas step_sizes", slots="step prev step_size"),
    _family("RMSpropTF", "alpha centered lr_in_momentum"),
    _family("RMSprop", "alpha centered", slots="step square_avg momentum_buffer grad_avg"),
    _family("Adafactor", "beta2_decay"),
    _family("Adafactor", "scale_parameter relative_step"),
    _family("Adafactor", "clipping_threshold min_dim_size_to_factor"),
    _family("Muon", "ns_steps"),
    _family("NAdam", "betas momentum_decay"),
    _family("NAdam", "betas schedule_decay"),
    _family("Adamax", "betas", slots="step exp_avg exp_inf", needs="exp_inf"),
    # Adam's relatives, each with an option or a slot of its own.
    _family("AdamWScheduleFree", "betas scheduled_lr", without="silent_sgd_phase"),
    _family("RAdamScheduleFree", "betas scheduled_lr silent_sgd_phase"),
    _family("SGDScheduleFree", "momentum scheduled_lr"),
    _family("Prodigy", "betas d0 d_coef"),
    _family("DAdaptAdan", "betas d gsq_weighted no_prox"),
    _family("DAdaptAdam", "betas d gsq_weighted decouple"),
    _family("DAdaptAdaGrad", "momentum d gsq_weighted skl1"),
    _family("DAdaptSGD", "momentum d gsq_weighted", without="sk_sq_weighted"),
    _family("DAdaptSGD", "momentum d numerator_weighted g0_norm"),
    _family("AdaBelief", "betas", without="ams_bound r", needs="exp_avg_var"),
    _family("Adan", "betas", without="d", needs="exp_avg_diff"),
    _family("CAME", "betas", needs="exp_avg_res_row"),
    _family("LaProp", "betas", needs="exp_avg_lr_1"),
    _family("AdaMod", "betas", needs="exp_avg_lr"),
    _family("DiffGrad", "betas", slots=_MOMENTS + " previous_grad", needs="previous_grad"),
    _family("Lamb", "betas", needs="trust_ratio"),
    _family("Lamb", "betas grad_averaging max_grad_norm"),
    _family("NovoGrad", "betas grad_averaging"),
    _family("AdEMAMix", "betas", needs="exp_avg_slow"),
    _family("Adopt", "betas clip_exp"),
    _family("AdaBound", "betas final_lr gamma"),
    _family("AdamP", "betas wd_ratio delta"),
    _family("Mars", "betas mars_type"),
    _family("QHAdam", "betas nus", slots=_QH),
    _family("Yogi", "betas initial_accumulator"),
    _family("Ranger", "betas k step_counter", without="smooth"),
    _family("AdamW", "betas correct_bias", slots=_MOMENTS, without="scale_type shampoo_beta"),
    _family("BertAdam", "b1 b2 t_total"),
    _family("Adahessian", "betas hessian_power"),
    _family("AdamW", "betas amsgrad caution", slots=_ADAM),
    _family("NAdamW", "betas caution clipping_threshold", without="amsgrad", slots=_MOMENTS),
    # bitsandbytes: state1 and state2 for each parameter, in later releases in a wrapper.
    _family("Adam or a relative of bitsandbytes", "betas t_alpha t_beta3"),
    _family("Adam or a relative of bitsandbytes", "betas", needs="state1 state2"),
    _family("an optimizer of bitsandbytes", "betas", needs="state1"),
    _family("an optimizer of bitsandbytes", "betas", needs="__bnb_optimizer_quant_state__"),
    # Adam itself, and RAdam.
    _family("Adam or AdamW", "betas amsgrad", without="buffer phase rectify smooth", slots=_ADAM),
    _family("Adam or AdamW", "betas bias_correction", without="d", slots=_MOMENTS),
    _family("RAdam", "betas decoupled_weight_decay", without="nesterov", slots=_MOMENTS),
    _family("RAdam", "betas buffer", slots=_MOMENTS),
    _family("RAdam", "betas foreach differentiable", slots=_MOMENTS, needs="exp_avg_sq"),
    _family("SparseAdam", "betas eps", without="weight_decay keep_num", slots=_MOMENTS),
    _family("Lion", "betas weight_decay", without="eps d", slots="exp_avg", needs="exp_avg"),
    _family("Lion", "betas caution", without="eps", slots="exp_avg"),
    _family("Adamax", "betas foreach differentiable maximize", slots=_UNTRAINED),
    # SGD's relatives, and SGD itself.
    _family("LARS", "momentum trust_coeff"),
    _family("LARS", "momentum trust_coefficient"),
    _family("SGDP", "momentum dampening wd_ratio"),
    _family("SGDW", "momentum dampening corrected_weight_decay"),
    _family("MADGRAD", "momentum", needs="grad_sum_sq"),
    _family("Kron", "momentum precond_lr"),
    _family("Shampoo", "momentum epsilon update_freq"),
    _family("SGD", "momentum dampening nesterov", without="max_unorm", slots="momentum_buffer"),
    # fastai: hyper-parameters in place of groups.
    _family("RAdam", "mom sqr_mom eps beta", slots=_FASTAI),
    _family("Adam", "mom sqr_mom eps", slots=_FASTAI, needs="grad_avg sqr_avg"),
    _family("RMSProp", "mom sqr_mom eps", slots=_FASTAI, needs="sqr_avg"),
    _family("SGD", "mom wd", without="sqr_mom trust_coeff", slots=_FASTAI),
)
"""The first that fits is taken; where none does, the family is unknown."""

_PLAIN_ADAM = frozenset("lr betas eps weight_decay".split())
"""The options of Adam before PyTorch 0.4, and of RAdam in 1.10."""


def is_optimizer(value: Value) -> bool:
    """Whether a value is an optimizer's state dict, or a pickled optimizer."""
    table = _table(value)
    if not table:  # most of what there is in a file of plain values
        return False
    state = table.get("state")
    if _is_zero_part(table):
        return True
    if "hypers" in table:  # fastai
        return isinstance(state, list) and bool(_hypers(table))
    groups = table.get("param_groups")
    return (
        isinstance(groups, list)
        and isinstance(state, dict)
        and all(isinstance(group, dict) and "params" in group for group in groups)
    )


def optimizer(name: str, value: Value, budget: Budget) -> Optimizer:
    """Return what an optimizer's state says. `is_optimizer` holds for `value`."""
    table = _table(value)
    if _is_zero_part(table):
        return _zero_part(name, table, budget)
    state = table["state"]
    groups = _hypers(table) if "hypers" in table else table["param_groups"]
    tensors = named_tensors(state, budget)
    unique = {item.entry.memory: item.entry.nbytes for item in tensors}
    for group in groups:
        budget.spend(0, name, num_attributes=len(group))
    return Optimizer(
        name=name,
        family=_family_of(value, groups, state),
        param_groups=tuple(_group(group) for group in groups),
        num_states=len(state),
        nbytes=sum(unique.values()),
    )


def _is_zero_part(table: dict[Value, Value]) -> bool:
    """Whether a mapping is a part of an optimizer that DeepSpeed's ZeRO split over the ranks.

    One that keeps the whole `state_dict()` of the optimizer is told of as that.
    """
    base = table.get("base_optimizer_state", [])
    return "single_partition_of_fp32_groups" in table and isinstance(base, list)


def _zero_part(name: str, table: dict[Value, Value], budget: Budget) -> Optimizer:
    """Return what such a part tells: what it keeps for its flat parameters, and no options."""
    states = table.get("base_optimizer_state", [])
    unique = {item.entry.memory: item.entry.nbytes for item in named_tensors(table, budget)}
    return Optimizer(name, None, (), len(states), sum(unique.values()))


def _table(value: Value) -> dict[Value, Value]:
    if isinstance(value, Object):
        return value.attributes
    return value if isinstance(value, dict) else {}


def _hypers(table: dict[Value, Value]) -> list[dict[Value, Value]]:
    """Return fastai's options of each group, which it keeps in a list of its own class."""
    hypers = table["hypers"]
    items = hypers.attributes.get("items") if isinstance(hypers, Object) else hypers
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return []
    return items


def _group(group: dict[Value, Value]) -> dict[str, Value]:
    options = {str(key): item for key, item in group.items() if key != "params"}
    if "params" not in group:
        return options
    params = group["params"]
    num_params = len(params) if isinstance(params, list | tuple | set) else 1
    return {**options, "num_params": num_params}


def _family_of(value: Value, groups: list[Value], state: Value) -> str | None:
    if isinstance(value, Object):
        return value.class_path.rpartition(".")[2]
    options = {key for group in groups for key in group if isinstance(key, str)} - {"params"}
    slots = {slot for item in _slots(state) for slot in item if isinstance(slot, str)}
    for family in _FAMILIES:
        if family.fits(options, slots):
            return _adam(groups) if family.name == "Adam or AdamW" else family.name
    is_old = options - {"initial_lr"} == _PLAIN_ADAM and slots == set(_MOMENTS.split())
    return "Adam or RAdam" if is_old else None


def _slots(state: Value) -> Iterable[dict[Value, Value]]:
    """Return what is kept for each parameter; what stands in many places is looked at once."""
    items = state.values() if isinstance(state, dict) else state
    return {id(item): item for item in items if isinstance(item, dict)}.values()


def _adam(groups: list[Value]) -> str:
    """Return which of the two it is, if the file tells.

    PyTorch writes it since 2.6. From 1.12 on it can be seen from the order of the options, which
    their constructors wrote in different orders; before that, and in other packages, not at all.
    """
    group = groups[0]
    decoupled = group.get("decoupled_weight_decay")
    if isinstance(decoupled, bool):
        return "AdamW" if decoupled else "Adam"
    order = [key for key in group if key in ("maximize", "foreach", "capturable")]
    if order == ["foreach", "maximize", "capturable"]:
        return "AdamW"
    return "Adam" if order == ["maximize", "foreach", "capturable"] else "Adam or AdamW"


_SCHEDULERS: tuple[frozenset[str], ...] = tuple(
    frozenset(keys.split())
    for keys in (
        "last_epoch _step_count",
        "last_epoch _last_lr",
        "last_epoch base_lrs",
        "last_epoch num_bad_epochs",  # ReduceLROnPlateau
        "last_epoch milestones",
        "_schedulers _last_lr",  # ChainedScheduler
        "last_step base_values",  # mmengine
        "param_group_field base_values",  # timm
        "num_steps lr_decay_style",  # Megatron-LM
        "last_batch_iteration",  # DeepSpeed
    )
)
"""Keys that only a scheduler's state has, a set per kind."""

_SCALERS: tuple[frozenset[str], ...] = tuple(
    frozenset(keys.split())
    for keys in (
        "scale growth_factor backoff_factor",
        "_growth_factor _backoff_factor",  # a pickled GradScaler
        "loss_scaler0",  # apex
        "loss_scale unskipped",  # apex, by itself
        "cur_scale scale_factor",  # DeepSpeed
    )
)
"""Keys that only a gradient scaler's state has, a set per kind."""


def is_scheduler(value: Value) -> bool:
    """Whether a value is a learning-rate scheduler's state dict, or a pickled scheduler."""
    table = _table(value)
    return bool(table) and any(keys <= table.keys() for keys in _SCHEDULERS)


def is_scaler(value: Value) -> bool:
    """Whether a value is the state of a gradient scaler, or a pickled one."""
    table = _table(value)
    return bool(table) and any(keys <= table.keys() for keys in _SCALERS)


_RNG_NAMES = ("rng", "random_state", "random_seed", "generator_state")
_RNG_CLASSES = ("numpy.random.", "random.Random", "torch.Generator", "torch._C.Generator")
"""Starts of the class paths of generators that were pickled themselves."""
_CPU_STATE_NBYTES = 5056
"""The size of a torch.Generator's state on the CPU: the 624 words of MT19937 and what it drew."""
_MT_WORDS = 624


def is_rng_state(name: str, value: Value) -> bool:
    """Whether a value is a random generator's state: by its form, else by its key `name`.

    A table of several such states is none itself: each of them is.
    """
    if _is_rng_by_form(value):
        return True
    key = name.lower()
    if "cuda" in key and _is_bytes_tensor(value):
        return True
    if not any(word in key for word in _RNG_NAMES):
        return False
    if isinstance(value, dict):
        return bool(value) and not any(_is_rng_by_form(item) for item in value.values())
    return isinstance(value, TensorEntry | tuple | list | Object)


def _is_rng_by_form(value: Value) -> bool:
    if isinstance(value, TensorEntry):
        return _is_bytes_tensor(value) and value.numel == _CPU_STATE_NBYTES
    if isinstance(value, Object):
        return value.class_path.startswith(_RNG_CLASSES)
    if isinstance(value, dict):
        return {"bit_generator", "state"} <= value.keys()
    if not isinstance(value, tuple) or len(value) < 2:
        return False
    if value[0] == "MT19937":  # numpy.random.get_state()
        return True
    # random.getstate(): its version, the words and the position, a spare normal variate
    words = value[1]
    return value[0] in (2, 3) and isinstance(words, tuple) and len(words) == _MT_WORDS + 1


def _is_bytes_tensor(value: Value) -> bool:
    return isinstance(value, TensorEntry) and value.dtype == "uint8" and len(value.shape) == 1
