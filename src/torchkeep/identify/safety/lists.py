"""Names as plain data: what is allowed, what is harmless, what no model needs.

Sources: torch/_weights_only_unpickler.py; Python's library reference; the security advisories of
picklescan, fickling and modelscan; "The Art of Hide and Seek" (arXiv 2508.19774).
"""

from __future__ import annotations

import sys

from torchkeep.contents import ITEM_SIZE
from torchkeep.formats.torch.objects import STORAGE_DTYPES

# --- Allowed by torch.load(weights_only=True) ----------------------------------------------------

_REBUILDERS = (
    "_rebuild_device_tensor_from_cpu_tensor",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_qtensor",
    "_rebuild_sparse_tensor",
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_wrapper_subclass",
)
_TENSOR_KINDS = "BFloat16 Bool Byte Char Double Float Half Int Long Short".split()
_SCHEMES = (
    "per_channel_affine",
    "per_channel_affine_float_qparams",
    "per_channel_symmetric",
    "per_tensor_affine",
    "per_tensor_symmetric",
)
_ODD_DTYPES = ("bcomplex32", "bits16", "bits1x8", "bits2x4", "bits4x2", "bits8")

WEIGHTS_ONLY: frozenset[str] = frozenset(
    [
        "_codecs.encode",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.set",
        "collections.Counter",
        "collections.OrderedDict",
        "torch.Size",
        "torch.Tensor",
        "torch.device",
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        *(f"torch._utils.{name}" for name in _REBUILDERS),
        *(f"torch.{name}" for name in (*ITEM_SIZE, *_ODD_DTYPES, *_SCHEMES)),
        *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        *(f"torch.{name}" for name in STORAGE_DTYPES if name != "UntypedStorage"),
        *(f"torch.{kind}Tensor" for kind in _TENSOR_KINDS),
        *(f"torch.cuda.{kind}Tensor" for kind in _TENSOR_KINDS),
        *(f"torch.cuda.{kind}Storage" for kind in _TENSOR_KINDS),
        "torch.cuda.ComplexDoubleStorage",
        "torch.cuda.ComplexFloatStorage",
        *(f"torch.sparse.{kind}Tensor" for kind in _TENSOR_KINDS if kind != "Bool"),
        *(f"torch.cuda.sparse.{kind}Tensor" for kind in _TENSOR_KINDS if kind != "Bool"),
    ]
)
"""What `torch.load(weights_only=True)` of the newest release allows, the last of `RELEASES`.

Source: torch/_weights_only_unpickler.py.
"""

RELEASES = ("2.13", "2.14", "2.15")
"""The releases of PyTorch that the verdict knows, from the oldest that is supported."""

ALLOWED_IN_SOME: dict[str, tuple[str, ...]] = {
    "torch.bcomplex32": ("2.14", "2.15"),
    "torch._utils._rebuild_nested_tensor": ("2.13", "2.14"),
    # These, of jagged tensors, once `torch._dynamo` has been imported.
    "torch._dynamo.decorators._DimRange": ("2.13", "2.14"),
    "torch.nested._internal.nested_tensor.NestedTensor": ("2.13", "2.14"),
    "torch.nested._internal.nested_tensor._rebuild_njt": ("2.13", "2.14"),
}
"""In which releases a name is allowed that others refuse; all allow the rest of `WEIGHTS_ONLY`."""

# --- Harmless ------------------------------------------------------------------------------------

_DCP_RECORDS = (
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "Metadata",
    "MetadataIndex",
    "StorageMeta",
    "TensorProperties",
    "TensorStorageMetadata",
    "_MEM_FORMAT_ENCODING",
)
"""What the `.metadata` of a distributed checkpoint is made of (torch/distributed/checkpoint)."""

PLAIN: frozenset[str] = frozenset(
    [
        "argparse.Namespace",
        "builtins.bool",
        "builtins.bytes",
        "builtins.dict",
        "builtins.float",
        "builtins.frozenset",
        "builtins.int",
        "builtins.list",
        "builtins.object",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "collections.defaultdict",
        "collections.deque",
        "copyreg._reconstructor",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "numpy.dtype",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.numeric._frombuffer",
        "numpy.core.numeric._frombuffer",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "pathlib._local.Path",
        "pathlib._local.PosixPath",
        "pathlib._local.PurePosixPath",
        "pathlib._local.WindowsPath",
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_sparse_csr_tensor",
        "torch._utils._rebuild_xla_tensor",
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in _DCP_RECORDS),
        *(f"torch.distributed._shard.checkpoint.metadata.{name}" for name in _DCP_RECORDS),
        "torch.distributed._shard.checkpoint.filesystem._StorageInfo",
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.distributed.checkpoint.filesystem._StoragePrefix",
        "torch.jit._pickle.build_boollist",
        "torch.jit._pickle.build_doublelist",
        "torch.jit._pickle.build_intlist",
        "torch.jit._pickle.build_tensor_from_id",
        "torch.jit._pickle.build_tensorlist",
        "torch.jit._pickle.restore_type_tag",
        "torch.storage._load_from_bytes",
        "types.SimpleNamespace",
        "uuid.UUID",
        "zoneinfo.ZoneInfo",
    ]
)
"""Makers of plain values that PyTorch's list lacks; calling them does nothing else.

`_load_from_bytes` loads the file in its argument, which the readers look into at each call.
"""

_HONEST_BUILTINS = (
    "NotImplementedType Ellipsis NotImplemented abs all any ascii bin callable chr classmethod "
    "divmod enumerate filter format getattr hasattr hash hex id isinstance issubclass iter len "
    "map max memoryview min next oct ord pow print property range repr reversed round "
    "setattr sorted staticmethod sum super type zip"
).split()
_HONEST_OF_STRICT_MODULES = (
    "io.BytesIO io.StringIO _io.BytesIO _io.StringIO threading.local _thread._local "
    "http.HTTPStatus signal.Signals subprocess.CompletedProcess posix.stat_result os.stat_result "
    "_thread.RLock inspect.Parameter inspect.Signature inspect._empty inspect._ParameterKind"
).split()

UNREMARKABLE: frozenset[str] = frozenset(
    [*(f"builtins.{name}" for name in _HONEST_BUILTINS), *_HONEST_OF_STRICT_MODULES]
)
"""Names of modules that are dangerous as a whole, and yet stand in honest pickles of objects."""

# --- Python's own library ------------------------------------------------------------------------

_NOTHING: frozenset[str] = frozenset()

HARMLESS_MODULES: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        "__future__ _abc _bisect _blake2 _collections _collections_abc _compat_pickle "
        "_contextvars _csv _datetime _decimal _functools _hashlib _heapq _json _locale _md5 "
        "_pydecimal _queue _random _sha1 _sha256 _sha3 _sha512 _sre _statistics _string _struct "
        "_typing _weakref _weakrefset _zoneinfo abc array ast base64 binascii bisect calendar "
        "cmath collections colorsys configparser contextlib contextvars copy csv datetime decimal "
        "difflib email encodings enum errno fractions functools genericpath graphlib hashlib "
        "heapq hmac html ipaddress itertools keyword locale math ntpath numbers optparse pathlib "
        "posixpath pprint queue random re reprlib secrets sre_compile sre_constants sre_parse "
        "stat statistics string stringprep struct textwrap time token unicodedata xml zlib "
        "zoneinfo".split(),
        _NOTHING,
    ),
    "_codecs": frozenset({"register", "lookup", "lookup_error"}),
    "_operator": frozenset({"methodcaller", "call"}),
    "argparse": frozenset({"FileType"}),
    "codecs": frozenset({"open", "EncodedFile", "register", "lookup"}),
    "copyreg": frozenset({"pickle", "constructor", "add_extension"}),
    "dataclasses": frozenset({"make_dataclass", "_create_fn", "_process_class"}),
    "json": frozenset({"tool"}),
    "logging": frozenset({"FileHandler", "basicConfig", "config", "handlers", "shutdown"}),
    "operator": frozenset({"methodcaller", "call"}),
    "types": frozenset(
        {"CodeType", "FrameType", "FunctionType", "LambdaType", "ModuleType", "new_class"}
    ),
    "typing": frozenset({"get_type_hints", "_eval_type"}),
    "uuid": frozenset({"uuid1", "getnode", "main"}),
    "warnings": frozenset({"_getcategory", "_processoptions"}),
    "weakref": frozenset({"finalize"}),
}
"""Modules whose names need trust and no more, each with those of its names that are worse."""

SHARED_MODULES: frozenset[str] = frozenset(
    "chunk cmd code commands inspect io parser platform profile resource sched select signal site "
    "symbol symtable test token trace tty".split()
)
"""Modules of Python's that people call their own packages as well."""

SHARED_CLASSES: frozenset[str] = frozenset(
    [
        "cmd.Cmd",
        "code.InteractiveConsole",
        "code.InteractiveInterpreter",
        "io.FileIO",
        "io.OpenWrapper",
        "io.TextIOWrapper",
        "io.BufferedWriter",
        "profile.Profile",
        "trace.CoverageResults",
        "trace.Trace",
    ]
)
"""The classes of Python's modules of those names that run or write something."""

_REMOVED_MODULES = (
    "__builtin__ _aix_support _bootsubprocess _frozen_importlib _frozen_importlib_external "
    "_interpreters _osx_support _posixsubprocess _pyrepl _testcapi _testinternalcapi _winapi "
    "_xxinterpchannels _xxsubinterpreters asynchat asyncore audioop binhex cPickle cgi cgitb "
    "commands cStringIO crypt dbhash distutils dl gdbm httplib imghdr imp lib2to3 mailcap msilib "
    "nis nntplib ossaudiodev pipes popen2 rexec smtpd sndhdr spwd sunau telnetlib thread uu "
    "urllib2 xdrlib winreg _winreg msvcrt nt"
).split()

PYTHON_MODULES: frozenset[str] = frozenset(
    {*sys.stdlib_module_names, *_REMOVED_MODULES, "sitecustomize", "usercustomize"}
)
"""The top-level modules of Python's library, of all versions, wherever this runs."""

# --- Why a module is dangerous -------------------------------------------------------------------

_REASONS: dict[str, str] = {
    "runs programs": (
        "_aix_support _bootsubprocess _osx_support _posixsubprocess _pyrepl _winapi asyncio "
        "bpython commands execnet fabric invoke ipykernel IPython multiprocessing nt os paramiko "
        "pexpect pipes platform plumbum popen2 posix psutil pty rpyc sh subprocess venv "
        "webbrowser"
    ),
    "runs code": (
        "__builtin__ _interpreters _testcapi _thread _xxsubinterpreters antigravity atexit bdb "
        "builtins cgitb code codeop compileall concurrent cProfile dis doctest exec execjs "
        "faulthandler idlelib jinja2 lib2to3 mako marshal nose numexpr pdb profile py py_compile "
        "pyclbr pydoc pytest rlcompleter runpy sched signal site sitecustomize test this "
        "threading timeit trace turtledemo unittest usercustomize"
    ),
    "imports code by its name": (
        "_frozen_importlib _frozen_importlib_external _imp imp importlib modulefinder "
        "pkg_resources pkgutil zipapp zipimport"
    ),
    "unpickles something else": ("_pickle cPickle jsonpickle pickle pickletools shelve"),
    "reaches into the interpreter or its memory": (
        "_ctypes cffi ctypes gc inspect mmap sys sysconfig tracemalloc"
    ),
    "reaches the network": (
        "_socket _ssl aiohttp boto3 botocore ftplib http httpcore httplib httplib2 httpx imaplib "
        "nntplib poplib requests select selectors smtpd smtplib socket socketserver ssl "
        "telnetlib tornado twisted urllib urllib2 urllib3 websocket websockets wsgiref xmlrpc"
    ),
    "reads or writes files": (
        "_bz2 _io _lzma _sqlite3 bz2 dbm filecmp fileinput fsspec glob gzip io linecache lzma "
        "mailbox netrc shutil smart_open sqlite3 tarfile tempfile zipfile"
    ),
    "installs software": ("conda distutils ensurepip pip setuptools wheel"),
}
REASONS: dict[str, str] = {
    module: reason for reason, modules in _REASONS.items() for module in modules.split()
}
"""By top-level module, what its names do; no name of any of them belongs into a model."""

ESCAPES: frozenset[str] = frozenset(
    "__builtin__ builtins cPickle ctypes importlib imp marshal multiprocessing nt os pickle "
    "pkgutil posix pty runpy shutil socket subprocess sys".split()
)
"""Modules that others have as attributes: `random._os`, `six.moves.builtins`."""

ESCAPING_ATTRIBUTES: frozenset[str] = frozenset(
    "__base__ __bases__ __builtins__ __class__ __closure__ __code__ __dict__ __func__ __getattr__ "
    "__getattribute__ __globals__ __import__ __loader__ __mro__ __reduce__ __reduce_ex__ __self__ "
    "__spec__ __subclasses__ __wrapped__ f_globals func_globals gi_frame mro".split()
)
"""Attributes that lead from any object to all that the interpreter has."""

# --- Functions -----------------------------------------------------------------------------------

RUNNERS: dict[str, str] = {
    **dict.fromkeys(
        "system popen popen2 popen3 Popen check_call check_output getoutput getstatusoutput "
        "exec_command run_command run_cmd spawnv_passfds _run_entry_point fork_exec".split(),
        "runs programs",
    ),
    **dict.fromkeys(
        "eval exec execfile compile_file execWrapper runcode runctx runsource runstring run_string "
        "run_code _run_code run_module run_path safe_exec sympify parse_expr "
        "_exec_with_source _eval_repr".split(),
        "runs code",
    ),
    **dict.fromkeys(
        "__import__ import_module import_string import_submodule import_modules_from_strings "
        "_import_dotted_name resolve_name resolve_dotted_attribute locate _locate get_method "
        "instantiate load_env_creator get_class_from_dynamic_module".split(),
        "imports code by its name",
    ),
    **dict.fromkeys(
        "_load _legacy_load from_pretrained full_load load load_library load_model load_op_library "
        "load_pickle load_url load_state_dict_from_url loads pickle_load read_pickle read_csv "
        "unsafe_load unpickle".split(),
        "reads another file or pickle",
    ),
    **dict.fromkeys(
        "get_file cached_file snapshot_download hf_hub_download urlopen urlretrieve download_url "
        "write_string_to_file write_file".split(),
        "reaches the network or writes files",
    ),
}
"""Functions that are what their name says, in whichever package they are."""

TORCH_FUNCTIONS: tuple[str, ...] = (
    "torch._C.TensorBase.",
    "torch._C._TensorBase.",
    "torch._C._VariableFunctions.",
    "torch._C._VariableFunctionsClass.",
    "torch._C._fft.",
    "torch._C._linalg.",
    "torch._C._nn.",
    "torch._C._sparse.",
    "torch._C._special.",
    "torch.Tensor.",
    "torch._VF.",
    "torch._functions.",
    "torch._tensor.",
    "torch._torch_docs.",
    "torch._utils.",
    "torch.amp.",
    "torch.ao.",
    "torch.autograd.",
    "torch.cuda.amp.",
    "torch.distributed._composable.",
    "torch.distributed._shard.",
    "torch.distributed._tensor.",
    "torch.distributed.algorithms.",
    "torch.distributed.checkpoint.metadata.",
    "torch.distributed.device_mesh.",
    "torch.distributed.fsdp.",
    "torch.distributed.optim.",
    "torch.distributed.remote_device.",
    "torch.distributed.tensor.",
    "torch.distributions.",
    "torch.fft.",
    "torch.functional.",
    "torch.fx.graph_module.reduce_",
    "torch.linalg.",
    "torch.masked.",
    "torch.nested.",
    "torch.nn.",
    "torch.optim.",
    "torch.quantization.",
    "torch.random.",
    "torch.return_types.",
    "torch.serialization._get_layout",
    "torch.sparse.",
    "torch.special.",
    "torch.storage._load_from_bytes",
    "torch.tensor.",
    "torch.utils._pytree.",
    "torch.utils.checkpoint.",
    "torch.utils.data._utils.",
    "torch.utils.data.dataloader.",
    "torch.utils.data.dataset.",
    "torch.utils.data.sampler.",
    "torch.utils.hooks.",
    "torch.utils.weak.",
)
"""Where in PyTorch the functions are that files name: activations, initialisers, rebuilders."""

TORCH_TOP_DENIED: frozenset[str] = frozenset(
    "classes compile compiler export from_file fx hub import_ir_module "
    "import_ir_module_from_buffer jit library load multiprocessing nn onnx ops optim os package "
    "save serialization storage sys utils".split()
)
"""Names right in `torch` that are no operator: loaders, writers, whole modules."""

TORCH_DENIED: tuple[str, ...] = (
    "torch._C.PyTorchFileReader",
    "torch._C.PyTorchFileWriter",
    "torch._C.import_ir_module",
    "torch._inductor.",
    "torch._ops.",
    "torch.classes.",
    "torch.distributed.elastic.",
    "torch.distributed.launcher.",
    "torch.distributed.rpc.",
    "torch.distributed.run.",
    "torch.hub.",
    "torch.jit.CompilationUnit",
    "torch.multiprocessing.",
    "torch.ops.",
    "torch.package.",
    "torch.testing.",
    "torch.utils.bottleneck.",
    "torch.utils.collect_env.",
    "torch.utils.cpp_extension.",
    "torch.utils.data.datapipes.utils.decoder.",
    "torch.utils.hipify.",
    "torch.utils.model_zoo.",
    "torch.utils.tensorboard.",
)
"""Parts of PyTorch of which nothing, not even a class, belongs into a model."""

DENIED: tuple[str, ...] = (
    "huggingface_hub.",
    "hydra._internal.",
    "hydra.utils.",
    "joblib.load",
    "keras.utils.get_file",
    "nltk.app.",
    "numpy.DataSource",
    "numpy._core._multiarray_tests.",
    "numpy._core.memmap.",
    "numpy._pytesttester",
    "numpy.compat.",
    "numpy.conftest.",
    "numpy.core._multiarray_tests.",
    "numpy.core.memmap.",
    "numpy.ctypeslib.",
    "numpy.distutils.",
    "numpy.f2py.",
    "numpy.from",
    "numpy.genfromtxt",
    "numpy.lib._datasource.",
    "numpy.lib._format_impl.",
    "numpy.lib._npyio_impl.",
    "numpy.lib._utils_impl.",
    "numpy.lib.format.",
    "numpy.lib.npyio.",
    "numpy.lib.utils.",
    "numpy.load",
    "numpy.memmap",
    "numpy.save",
    "numpy.testing.",
    "pandas._testing.",
    "pandas.compat.",
    "pandas.core.computation.",
    "pandas.eval",
    "pandas.io.",
    "pandas.plotting.",
    "pandas.read_",
    "pandas.testing.",
    "pandas.util.",
    "scipy._build_utils.",
    "scipy._lib._ccallback.",
    "scipy.conftest.",
    "scipy.datasets.",
    "scipy.io.",
    "scipy.misc.",
    "scipy.weave.",
    "torchvision.datasets.utils.",
    "torchvision.io.",
    "transformers.dynamic_module_utils.",
    "transformers.utils.hub.",
)
"""The same in other libraries: names, or starts of names."""

STRICT_LIBRARIES: frozenset[str] = frozenset(
    {"keras", "numpy", "pandas", "scipy", "tensorflow", "torch"}
)
"""Libraries of which files name functions and classes, and no methods: `pandas.DataFrame.query`."""
