from __future__ import annotations

from torchkeep.contents import Storage, TensorEntry
from torchkeep.identify import ModuleNode
from torchkeep.identify.module_lines import MAX_DEPTH, tree_lines


def node(name: str, *children: ModuleNode, kind: str = "a.Block", **attributes: object):
    return ModuleNode(
        name=name,
        class_path=kind,
        attributes=attributes,
        parameters={},
        buffers={},
        non_persistent=frozenset(),
        children=children,
        training=True,
        source=None,
    )


def test_each_module_has_a_line_with_its_class():
    tree = node("", node("stem", kind="torch.nn.ReLU"), node("head", node("fc")), kind="my.Net")
    assert tree_lines(tree) == [
        "Net()",
        "  (stem): ReLU()",
        "  (head): Block()",
        "    (fc): Block()",
    ]


def test_equal_siblings_share_their_lines():
    blocks = (node(str(number), node("fc", size=3)) for number in range(12))
    assert tree_lines(node("", *blocks)) == [
        "Block()",
        "  (0...11): 12 x Block()",
        "    (fc): Block(size=3)",
    ]


def test_siblings_that_differ_below_do_not():
    lines = tree_lines(node("", node("0", node("fc", size=3)), node("1", node("fc", size=4))))
    assert [line for line in lines if "fc" in line] == [
        "    (fc): Block(size=3)",
        "    (fc): Block(size=4)",
    ]


def test_attributes_that_say_nothing_are_left_out():
    quiet = node("", bias=None, batch_first=False, dilation=(1, 1), groups=1, eps=1e-05)
    telling = node("", bias="no", kernel_size=(3, 3), stride=(2, 1), eps=1e-03)
    assert tree_lines(quiet) == ["Block()"]
    assert tree_lines(telling) == ["Block(bias=no, kernel_size=3, stride=(2, 1), eps=0.001)"]


def test_the_parameters_of_the_module_itself_are_counted():
    entry = TensorEntry("float32", (1000, 2), (2, 1), Storage("0", 8000, 0))
    module = node("")
    module.parameters["weight"] = entry
    assert tree_lines(module) == ["Block(), 2,000 parameters"]


def test_names_from_the_file_are_escaped():
    lines = tree_lines(node("", node("\x1b[2J"), kind="a.\x1b]", **{"\n": "\t"}))
    assert lines == ["\\x1b](\\n=\\t)", "  (\\x1b[2J): Block()"]


def test_a_tree_without_end_is_cut():
    tree = node("leaf")
    for _ in range(3 * MAX_DEPTH):
        tree = node("0", tree)
    lines = tree_lines(tree)
    assert len(lines) == MAX_DEPTH + 2
    assert lines[-1].strip() == "... (1 module below)"
