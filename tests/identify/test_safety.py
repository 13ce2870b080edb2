"""The verdict: its lists agree with the installed PyTorch, its rules with names that files have."""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # allows the names of jagged tensors, in the releases that do
from torch import _weights_only_unpickler

import torchkeep
from formats.samples import SAMPLES, Sample
from releases import INSTALLED
from torchkeep.contents import Contents, Finding, Global, Object
from torchkeep.errors import DamagedFile, NotAModelFile, UnsupportedContent
from torchkeep.formats import examine
from torchkeep.formats.containers import CONTAINERS
from torchkeep.identify.safety import WEIGHTS_ONLY, Safety, danger, is_dangerous, judge
from torchkeep.identify.safety.lists import ALLOWED_IN_SOME, PLAIN, RELEASES
from torchkeep.identify.safety.names import weights_only_allows
from torchkeep.pickles.limits import Limits
from torchkeep.pickles.opcodes import OPCODES, WEIGHTS_ONLY_OPCODES

_NAME = ".".join(map(str, INSTALLED))
RELEASE = _NAME if _NAME in RELEASES else RELEASES[-1]
"""The one that the installed PyTorch must agree with; one that is not known yet, with the last."""


def split(path: str) -> Global:
    return Global(*path.rsplit(".", 1))


# --- What torch.load(weights_only=True) takes ----------------------------------------------------


def test_the_list_of_allowed_names_is_torchs_own() -> None:
    """Private API: nothing public tells what weights_only allows, and the verdict rests on it."""
    by_import = set(_weights_only_unpickler._get_user_allowed_globals()) & ALLOWED_IN_SOME.keys()
    known = WEIGHTS_ONLY | ALLOWED_IN_SOME.keys()
    assert {*_weights_only_unpickler._get_allowed_globals(), *by_import} == {
        name for name in known if weights_only_allows(name, RELEASE)
    }


def test_the_list_is_that_of_the_newest_release() -> None:
    assert {name for name in ALLOWED_IN_SOME if RELEASES[-1] in ALLOWED_IN_SOME[name]} == (
        WEIGHTS_ONLY & ALLOWED_IN_SOME.keys()
    )
    assert all(set(releases) < set(RELEASES) for releases in ALLOWED_IN_SOME.values())


def test_the_oldest_release_is_the_oldest_that_is_supported() -> None:
    assert f'"torch>={RELEASES[0]},' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_the_list_of_known_opcodes_is_torchs_own() -> None:
    known = set()
    for opcode, name in OPCODES.items():
        try:
            _weights_only_unpickler.Unpickler(io.BytesIO(bytes([opcode]))).load()
        except Exception as error:
            if f"Unsupported operand {opcode}" in str(error):
                continue
        known.add(name)
    assert known == WEIGHTS_ONLY_OPCODES


# What PyTorch says of its own prototypes and of what it will drop.
quietly = pytest.mark.filterwarnings("ignore::UserWarning")


def takes(path: Path) -> bool:
    """Whether plain torch takes a file."""
    try:
        torch.load(path, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, TypeError, AssertionError):
        return False
    return True


@quietly
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_weights_only_is_what_torch_does_with_every_sample(sample: Sample, tmp_path: Path) -> None:
    sample.write(tmp_path / "sample.pth")
    safety = judge(examine(tmp_path / "sample.pth"))
    takes_it = safety.weights_only_by_release.get(RELEASE, False)
    assert takes_it == takes(tmp_path / "sample.pth")


class Odd(OrderedDict[str, int]):
    """A dictionary of a class that weights_only does not know."""


VALUES: dict[str, Any] = {
    "a set": {1, 2},
    "an empty set": set(),
    "a frozenset": frozenset({1}),
    "bytes": b"\xff" * 10,
    "many bytes": b"\xff" * 300,
    "a bytearray": bytearray(b"abc"),
    "a complex number": 1 + 2j,
    "a counter": Counter("abca"),
    "a negative number": -(1 << 40),
    "a long number": 1 << 500,
    "a very long number": 1 << 3000,
    "text of other scripts": "größe 模型 \ud83d",
    "a long text": "x" * 300,
    "a tuple of four": (1, 2, 3, 4),
    "an ordered dictionary": OrderedDict(a=1),
    "a dictionary of another class": Odd(a=1),
    "a slice": slice(1, 2),
    "a type": int,
    "a dtype": torch.float16,
    "a layout": torch.strided,
    "a device": torch.device("cpu"),
    "a size": torch.Size([1, 2]),
    "a parameter": torch.nn.Parameter(torch.ones(2)),
    "a range": range(3),
    "a path": Path("a"),
    "a default dictionary": defaultdict(list, a=[1]),
    "nothing": None,
}


@quietly
@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_weights_only_is_what_torch_does_with_values(
    zipped: bool, protocol: int, tmp_path: Path
) -> None:
    found, real = {}, {}
    for number, (name, value) in enumerate(VALUES.items()):
        path = tmp_path / f"{number}.pth"
        torch.save(
            {"x": value},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )
        found[name] = judge(examine(path)).weights_only_by_release.get(RELEASE)
        real[name] = takes(path)
    assert found == real
    assert any(real.values()) == (protocol < 4)


def test_the_verdicts_of_the_releases_differ_where_their_lists_do() -> None:
    nested = Global("torch._utils", "_rebuild_nested_tensor")
    safety = judged("torch-zip", globals=(nested,), pickle_protocol=2)
    assert safety.weights_only_by_release == {"2.13": True, "2.14": True, "2.15": False}
    assert (safety.weights_only, safety.blocked) == (False, (str(nested),))
    newer = judged("torch-zip", globals=(Global("torch", "bcomplex32"),), pickle_protocol=2)
    assert newer.weights_only_by_release == {"2.13": False, "2.14": True, "2.15": True}
    assert (newer.weights_only, newer.blocked) == (True, ())
    assert judged("pickle", globals=(nested,)).weights_only_by_release == {}


def test_every_blocked_name_is_given_at_once(tmp_path: Path) -> None:
    torch.save({"a": slice(1), "b": Path("a"), "c": frozenset({1})}, tmp_path / "a.pth")
    safety = judge(examine(tmp_path / "a.pth"))
    path_class = f"{type(Path('a')).__module__}.{type(Path('a')).__qualname__}"
    assert safety.blocked == ("builtins.slice", path_class, "builtins.frozenset")
    assert safety.weights_only is False
    assert safety.verdict == "data-only"


# --- Names ---------------------------------------------------------------------------------------

DANGEROUS = """
os.system posix.system nt.system subprocess.Popen builtins.eval builtins.exec builtins.__import__
__builtin__.execfile runpy.run_path importlib.import_module pkgutil.resolve_name pickle.loads
marshal.loads torch.load torch.hub.load torch.serialization.load numpy.load
_operator.methodcaller operator.call types.CodeType webbrowser.open ctypes.CDLL
socket.socket shutil.rmtree logging.config.dictConfig logging.FileHandler json.tool.main
uuid._get_command_stdout uuid.getnode weakref.finalize dataclasses._create_fn sys.modules
typing.get_type_hints test.support.script_helper.assert_python_ok code.interact profile.run io.open
io.FileIO tempfile.mkdtemp distutils.core.setup imp.load_source six.moves.builtins.eval
six.moves.cPickle.load project.system keras.models.load_model hydra.utils.instantiate
torch._utils._import_dotted_name torch.jit.script torch.from_file torch.os torch._dynamo.optimize
torch.package.PackageImporter torch.utils.cpp_extension.load torch.distributed.rpc.rpc_sync
torch._C.PyTorchFileWriter torch.classes.load_library torch.multiprocessing.spawn
numpy.testing.rundocs numpy.f2py.compile numpy.memmap numpy.savetxt scipy.io.loadmat
pandas.read_csv pandas.eval copyreg.add_extension codecs.open
""".split()


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_name_that_no_model_needs_is_dangerous(name: str) -> None:
    assert is_dangerous(split(name))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("random", "_os.system"),
        ("collections", "_sys"),
        ("project", "os"),
        ("pandas", "DataFrame.query"),
        ("code", "InteractiveInterpreter.runcode"),
        ("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression"),
        ("argparse", "Namespace.__init__.__globals__"),
        ("project", "Net.__class__"),
        ("numpy", "__builtins__"),
    ],
)
def test_a_name_that_reaches_through_another_is_dangerous(module: str, name: str) -> None:
    assert danger(Global(module, name)) in (
        "reaches through one thing to another",
        "reaches into the interpreter",
        "runs code",
    )


HONEST = """
collections.OrderedDict builtins.getattr builtins.setattr functools.reduce operator.attrgetter
project.data.__dict__ torch.jit._pickle.build_intlist builtins.print builtins.range
builtins.ValueError torch._C._VariableFunctionsClass.relu torch.Tensor.relu
torch.optim.swa_utils.SWALR._cosine_anneal project.Net.__init__
builtins.KeyboardInterrupt functools.partial operator.itemgetter _operator.getitem re._compile
enum.EnumMeta random.Random logging.Logger logging.getLogger types.MethodType types.GenericAlias
typing._GenericAlias dataclasses._MISSING_TYPE weakref.ref inspect.Signature io.BytesIO
itertools.count math.exp uuid.UUID posixpath.join copyreg.__newobj__ copyreg._reconstructor
array._array_reconstructor _codecs.encode optparse.Values contextlib.nullcontext http.HTTPStatus
numpy.float64 numpy.log1p numpy.random._pickle.__randomstate_ctor numpy.random.mtrand.RandomState
numpy.core._ufunc_reconstruct numpy.ma.core._mareconstruct numpy.lib.function_base.median
scipy.sparse._csr.csr_matrix scipy.stats._distn_infrastructure.rv_frozen
pandas.core.frame.DataFrame pandas.core.indexes.base._new_Index
pandas._libs.internals._unpickle_block
sklearn.tree._tree.Tree sklearn.neighbors._dist_metrics.newObj joblib.numpy_pickle.NumpyArrayWrapper
xgboost.core.Booster spacy.vocab.unpickle_vocab torch.nn.modules.linear.Linear torch.relu
torch.nn.functional.relu torch.nn.init.xavier_uniform_ torch.float32 torch.preserve_format
torch.nn.backends.thnn._get_thnn_function_backend torch._utils._rebuild_tensor_v2
torch.amp.grad_scaler._refresh_per_optimizer_state torch.optim.lr_scheduler.LambdaLR
torch._C._nn.gelu torch._C.Generator torch.utils.data._utils.collate.default_collate
torch.backends.cudnn.rnn.Unserializable torch.fx.graph_module.reduce_graph_module
torch.ao.quantization.fake_quantize.FakeQuantize torch.return_types.max torch.tensor._rebuild
torch.distributed.tensor.DTensor torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING
torch._dynamo.eval_frame.OptimizedModule torch.nn.parallel.data_parallel.DataParallel
torch.nested._internal.nested_tensor._rebuild_njt torch.distributed.remote_device._remote_device
torchvision.datasets.folder.default_loader timm.layers.activations.swish
torchmetrics.metric.jit_distributed_available torch_geometric.data.data.Data
pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint omegaconf.dictconfig.DictConfig
ultralytics.nn.tasks.DetectionModel models.yolo.Model utils.loss.ComputeLoss
transformers.training_args.TrainingArguments transformers.activations.gelu_new
accelerate.state.PartialState peft.utils.peft_types.PeftType mmengine.config.config.ConfigDict
detectron2.config.config.CfgNode fairseq.data.dictionary.Dictionary
deepspeed.runtime.fp16.loss_scaler.LossScaler megatron.core.enums.ModelType
apex.amp.scaler.LossScaler
fastai.imports.noop fastai.torch_core._rebuild_from_type ray.rllib.policy.policy.PolicySpec
stable_baselines3.common.policies.ActorCriticPolicy gymnasium.spaces.box.Box
cloudpickle.cloudpickle._make_function cloudpickle.cloudpickle._builtin_type dill._dill._create_type
keras.callbacks.History keras.saving.pickle_utils.deserialize_model_from_bytecode
sympy.core.symbol.Symbol jaxlib.xla_extension.ArrayImpl bitsandbytes.functional.QuantState
code.nets.Net test.models.Net profile.Net io.Net platform.utils.build cmd.Net __main__.Net
project.Net project.utils.collate_fn project.http.Client options.TestOptions easydict.EasyDict
""".split()


@pytest.mark.parametrize("name", HONEST)
def test_a_name_that_honest_files_have_is_not_dangerous(name: str) -> None:
    assert danger(split(name)) == ""


def test_a_class_in_a_class_is_not_dangerous() -> None:
    assert not is_dangerous(Global("project.models", "Outer.Inner"))
    assert not is_dangerous(Global("project.models", "Net.forward"))


def test_no_harmless_name_would_be_dangerous_under_the_rules() -> None:
    """The lists and the rules must not contradict each other by accident."""
    contradictions = {
        name
        for name in WEIGHTS_ONLY | PLAIN
        if name.partition(".")[0] not in ("builtins", "pathlib")
        and is_dangerous(Global("x" + split(name).module, split(name).name))
    }
    assert contradictions == set()


def test_the_reason_is_told() -> None:
    safety = judged(globals=(Global("posix", "system"), Global("project", "Net")))
    assert [finding.text for finding in safety.findings] == [
        "loading the file would use posix.system, which runs programs",
        "loading the file would run project.Net",
    ]


# --- Files ---------------------------------------------------------------------------------------


def contents(container: str = "pickle", **fields: Any) -> Contents:
    return Contents(Path("a"), 1000, container, fields.pop("root", None), **fields)


def judged(container: str = "pickle", **fields: Any) -> Safety:
    return judge(contents(container, **fields))


def test_a_file_of_plain_names_is_data_only() -> None:
    safety = judged(globals=(Global("collections", "OrderedDict"), Global("numpy", "dtype")))
    assert (safety.verdict, safety.findings) == ("data-only", ())


@pytest.mark.parametrize(
    ("severity", "verdict"),
    [
        ("note", "data-only"),
        ("needs-trust", "needs-trust"),
        ("damaged", "ambiguous"),
        ("ambiguous", "ambiguous"),
        ("dangerous", "dangerous"),
    ],
)
def test_a_finding_makes_the_verdict(severity: Any, verdict: str) -> None:
    assert judged(findings=(Finding("rule", severity, "", "text"),)).verdict == verdict


def test_the_worst_reason_comes_first() -> None:
    findings = (Finding("a", "damaged", "", "a"), Finding("b", "dangerous", "", "b"))
    safety = judged(globals=(Global("m", "C"),), findings=findings)
    severities = [item.severity for item in safety.findings]
    assert severities == ["dangerous", "damaged", "needs-trust"]


def test_what_can_not_be_read_is_ambiguous() -> None:
    safety = judged("torch-zip", problem=DamagedFile("it is cut off"))
    assert (safety.verdict, safety.findings[0].text) == ("ambiguous", "it is cut off")
    broken = judged(problem=DamagedFile("cut off"), globals=(Global("os", "system"),))
    assert broken.verdict == "dangerous"


@pytest.mark.parametrize("container", ["text", "git-lfs-pointer"])
def test_what_is_plainly_no_model_is_not_held_against_what_it_is_a_part_of(container: str) -> None:
    text = contents(container, problem=NotAModelFile("this is text"))
    assert judge(text, is_part=True).verdict == "data-only"
    alone = judge(text)
    assert (alone.verdict, alone.findings[0].rule) == ("ambiguous", "no-model")


def test_an_unknown_file_is_ambiguous() -> None:
    assert judged("unknown", problem=NotAModelFile("of no known kind")).verdict == "ambiguous"


@pytest.mark.parametrize("container", ["gguf", "onnx", "numpy"])
def test_a_header_of_a_format_without_code_is_data_only(container: str) -> None:
    foreign = UnsupportedContent("this is a model of another ecosystem")
    assert judged(container, problem=foreign).verdict == "data-only"
    assert judged(container, problem=DamagedFile("cut off")).verdict == "ambiguous"


@pytest.mark.parametrize("container", [name for name, it in CONTAINERS.items() if it.runs])
def test_a_container_of_programs_needs_trust(container: str) -> None:
    foreign = UnsupportedContent("this is a model of another ecosystem")
    assert judged(container, problem=foreign).verdict == "needs-trust"
    assert judged(container).verdict == "needs-trust"


def test_a_pickle_whose_bytes_are_elsewhere_is_no_worse_for_it() -> None:
    missing = Finding("missing-storage", "damaged", "", "the bytes are elsewhere")
    assert judged("pickle", findings=(missing,)).verdict == "data-only"
    assert judged("torch-zip", findings=(missing,)).verdict == "ambiguous"


def test_members_count_and_their_names_are_told_once_with_their_place() -> None:
    bad = contents(globals=(Global("os", "system"),))
    bad = Contents(Path("a/in/b.pkl"), 10, "pickle", None, globals=bad.globals)
    odd = Contents(Path("a/c.pth"), 10, "torch-zip", None, problem=DamagedFile("cut off"))
    safety = judged("archive", members=(bad, odd), globals=bad.globals)
    assert safety.verdict == "dangerous"
    assert safety.globals == ("os.system",)
    assert [(item.place, item.text) for item in safety.findings] == [
        ("os.system", "loading in/b.pkl would use os.system, which runs programs"),
        ("c.pth", "cut off"),
    ]


# --- Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "verdict"),
    [
        ({"_target_": "os.system"}, "dangerous"),
        ({"a": [{"_target_": "builtins.exec"}]}, "dangerous"),
        ({"_target_": Object(Global("m", "Node"), (), state={"_val": "os.system"})}, "dangerous"),
        ({"text": "model:\n  _target_: os.system\n"}, "dangerous"),
        ({"text": '{"_target_": "os.system"}'}, "dangerous"),
        ({"text": '{"_tar\\u0067et_": "os.s\\x79stem"}'}, "dangerous"),
        ({"_target_": "eval"}, "dangerous"),
        ({"_target_": "project.build"}, "needs-trust"),
        ({"_target_": 5}, "data-only"),
        ({"target": "os.system"}, "data-only"),
    ],
)
def test_what_settings_would_call_is_judged(root: Any, verdict: str) -> None:
    assert judged(root=root).verdict == verdict


def test_settings_in_the_metadata_are_judged() -> None:
    assert judged("safetensors", metadata={"c": '{"_target_": "os.system"}'}).verdict == "dangerous"


def test_many_targets_are_told_up_to_a_hundred() -> None:
    root = [{"_target_": f"m.f{number}"} for number in range(1000)]
    assert len(judged(root=root).findings) == 100
    safety = judged(root=[{"_target_": "os.system"}, *root])
    assert (safety.verdict, len(safety.findings)) == ("dangerous", 101)


PAYLOAD = b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00x\x85R."


@pytest.mark.parametrize(
    "root",
    [
        {"blob": PAYLOAD},
        [bytearray(PAYLOAD)],
        Object(Global("m", "f"), (PAYLOAD,)),
        Object(Global("m", "C"), (), state={"a": [PAYLOAD]}),
        Object(Global("m", "C"), (), items=[PAYLOAD]),
        Object(Object(Global("m", "f"), (PAYLOAD,)), ()),
        PAYLOAD,
    ],
)
def test_a_dangerous_pickle_in_bytes_is_dangerous(root: Any) -> None:
    safety = judged(root=root)
    assert safety.verdict == "dangerous"
    assert "posix.system" in safety.globals


def test_bytes_that_look_like_a_pickle_are_no_reason_for_anything() -> None:
    assert (
        judged(root=[b"\x80\x02\xff\xff\xff", b"\x80\x04N.", b"PK\x03\x04nonsense"]).findings == ()
    )


def test_more_bytes_than_can_be_looked_into_are_ambiguous() -> None:
    safety = judged(root=[b"\x80\x04N.%d" % n for n in range(10_001)])
    assert safety.verdict == "ambiguous"
    assert safety.findings[0].text == "more than 10,000 values that look like files"


def test_values_that_unfold_too_far_are_ambiguous() -> None:
    value: list[Any] = []
    for _ in range(64):
        value = [value, value]
    safety = judged(root=value)
    assert [(item.rule, item.severity) for item in safety.findings] == [("unfolding", "ambiguous")]


def test_values_that_are_nested_too_deep_are_ambiguous() -> None:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    assert judge(contents(root=value), Limits(depth=101)).verdict == "data-only"
    safety = judge(contents(root=value), Limits(depth=99))
    assert safety.verdict == "ambiguous"
    assert safety.findings[0].text == "its values are nested deeper than the limit depth=99"


def test_a_value_that_holds_itself_is_walked_once() -> None:
    value: list[Any] = []
    value.append(value)
    assert judged(root=value).verdict == "data-only"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.pth", "<!doctype html><html></html>"),
        ("pointer.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        ("notes.txt", "Nothing in here is a model."),
        ("settings.yaml", "model:\n  _target_: torch.nn.Linear\n"),
    ],
)
def test_what_is_no_model_has_one_verdict_through_every_door(
    name: str, text: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    inspection = torchkeep.inspect(path)
    assert inspection.safety.verdict == "ambiguous"
    assert torchkeep.scan(path)[0].verdict == "ambiguous"
    assert inspection.to_json()["integrity"]["ok"] is False
    assert torchkeep.scan(path)[0].findings == inspection.safety.findings


def test_a_text_beside_a_model_is_no_reason_to_doubt_the_model(tmp_path: Path) -> None:
    torch.save({"w.weight": torch.ones(2)}, tmp_path / "model.pth")
    (tmp_path / "README.md").write_text("# A model")
    assert torchkeep.inspect(tmp_path).safety.verdict == "data-only"
