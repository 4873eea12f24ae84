"""Trees and snapshots as JSON; that restic writes them the same is in the contract tests."""

from __future__ import annotations

import datetime as dt
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezeframe.core.errors import FreezeframeError, RepositoryDamaged
from freezeframe.repo.snapshots import Snapshot, encode_snapshot
from freezeframe.repo.trees import (
    FIXED_TIME,
    Attribute,
    Node,
    content_ids,
    decode_tree,
    dir_node,
    encode_tree,
    file_node,
)

A, B = "a1" * 32, "b2" * 32


def test_a_file_and_a_folder_as_bytes() -> None:
    nodes = [dir_node("d", bytes.fromhex(A)), file_node("f", [A, B], 5)]
    times = f'"mtime":"{FIXED_TIME}","atime":"{FIXED_TIME}","ctime":"{FIXED_TIME}"'
    assert (
        encode_tree(nodes)
        == (
            '{"nodes":['
            f'{{"name":"d","type":"dir","mode":2147484096,{times},"uid":0,"gid":0,"content":null,'
            f'"subtree":"{A}"}},'
            f'{{"name":"f","type":"file","mode":384,{times},"uid":0,"gid":0,"size":5,'
            f'"content":["{A}","{B}"]}}]}}\n'
        ).encode()
    )


def test_an_empty_file_has_an_empty_list() -> None:
    assert b'"content":[]' in encode_tree([file_node("f", [], 0)])
    assert encode_tree([]) == b'{"nodes":[]}\n'


def test_ids_as_an_array_are_the_same() -> None:
    ids = np.frombuffer(bytes.fromhex(A + B), np.uint8).reshape(-1, 32)
    node = file_node("f", ids, 5)
    assert node == file_node("f", [A, B], 5)
    assert np.array_equal(content_ids(node), ids)
    assert content_ids(file_node("f", [], 0)).shape == (0, 32)


@pytest.mark.parametrize("content", [["xy" * 32], [A[:-2]], [A + B], ["é" * 64]])
def test_content_that_is_no_ids(content: list[str]) -> None:
    with pytest.raises(RepositoryDamaged):
        content_ids(Node(name="f", type="file", content=content))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", 'a"b', "a\\b", "a\nb", "ä", "a\x7f"])
def test_names_restic_could_not_read_are_refused(name: str) -> None:
    with pytest.raises(FreezeframeError):
        file_node(name, [], 0)


def test_nodes_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="order"):
        encode_tree([file_node("b", [], 0), file_node("a", [], 0)])
    with pytest.raises(ValueError, match="order"):
        encode_tree([file_node("a", [], 0), file_node("a", [], 0)])


def test_characters_are_escaped_as_go_does() -> None:
    node = Node(name="n", type="symlink", linktarget="<&>\u2028\\b\b\f\\\t\x01")
    text = encode_tree([node])
    assert rb'"linktarget":"\u003c\u0026\u003e\u2028\\b\u0008\u000c\\\t\u0001"' in text
    assert decode_tree(text) == [node]


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_nodes = st.builds(
    Node,
    name=_texts,
    type=st.sampled_from(["file", "dir", "symlink", "fifo"]),
    mode=st.integers(0, 0xFFFFFFFF),
    uid=st.integers(0, 0xFFFFFFFF),
    gid=st.none(),
    user=_texts,
    inode=st.integers(0, 2**64 - 1),
    linktarget=_texts,
    extended_attributes=st.lists(st.builds(Attribute, name=_texts, value=st.binary(max_size=5))),
    content=st.none() | st.lists(st.just(A), max_size=3),
    subtree=st.none() | st.just(B),
    error=_texts,
)


@given(st.lists(_nodes, max_size=4, unique_by=lambda node: node.name.encode()))
def test_trees_round_trip(nodes: list[Node]) -> None:
    nodes.sort(key=lambda node: node.name.encode())
    text = encode_tree(nodes)
    assert decode_tree(text) == nodes
    assert encode_tree(decode_tree(text)) == text
    # An independent reader of JSON finds the same names.
    assert [node["name"] for node in json.loads(text)["nodes"]] == [node.name for node in nodes]


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 400))
def test_broken_trees_are_damage(noise: bytes, at: int) -> None:
    text = encode_tree([dir_node("d", A), file_node("f", [A, B], 5)])
    for broken in (noise, text[:at] + noise + text[at + len(noise) :], text[:at]):
        try:
            for node in decode_tree(broken):
                content_ids(node)
        except RepositoryDamaged:
            continue


def test_a_tree_without_nodes() -> None:
    assert decode_tree(b'{"nodes":null}') == []


def test_snapshots() -> None:
    when = dt.datetime(2024, 2, 3, 4, 5, 6, 789000, dt.timezone(dt.timedelta(hours=1)))
    shot = Snapshot.new(time=when, tree=A, paths=["/dev/sda"], tags=["x"], hostname="h")
    fields = json.loads(encode_snapshot(shot))
    assert fields["time"] == "2024-02-03T04:05:06.789000+01:00"
    assert list(fields)[:2] == ["time", "tree"]
    assert "id" not in fields
    assert fields["paths"] == ["/dev/sda"]
