"""Captions in files of any program.

The kind: bytes of text whose encoding nobody stated. A mark or valid UTF-8 decides; a legacy encoding is taken only
where the text is plausible in it alone, with a note; everything else is a typed error that names file, encodings and
option. Never a wrong character without a word. `.txt`, `metadata.jsonl` and `.csv` go the same way.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from gouache.cli.data import data
from gouache.data.caption_text import decode_text, plausible
from gouache.data.readers import ReadReport, read_pictures
from gouache.errors import DataError

TOLD = {
    "gbk": [
        "红苹果",
        "停止",
        "一只猫",  # valid UTF-8 by chance, of three scripts, as the one before, of marks
        "一只红色的猫",
        "白色背景上的红苹果，扁平风格",
        "山水画, masterpiece",
        "1girl, 红裙子",
        "T恤",
        "联通",
        "蓝天白云",
        "一只 cat 在 table 上",
    ],
    "gb18030": ["可爱的小狗", "“红色”的房子和花园"],
    "big5": ["一隻紅色的貓", "紅蘋果", "藍色汽車，白色背景", "可愛的小狗"],
    "cp932": ["赤いりんご", "猫がいる", "カメラ", "青い車、白い背景"],
    "euc_jp": ["猫がいる"],
    "latin-1": ["café", "niño", "naïve", "grüße", "São Paulo", "smørrebrød", "ÄPFEL"],
    "cp1252": ["crème brûlée", "a “red” apple", "it’s a cat", "une pomme à côté d’un chien", "À la mode", "– 50 °C"],
    "cp1251": ["красное яблоко", "Кошка", "красный дом и сад, masterpiece"],
    "koi8_r": ["красное яблоко", "Кошка"],
}
UNTOLD = {
    "gbk": ["狗"],
    "big5": ["貓"],
    "euc_jp": ["赤いりんご", "カメラ"],
    "euc_kr": ["빨간 사과", "고양이", "꽃", "하얀 배경의 파란 자동차"],
    "cp1254": ["kırmızı elma"],
    "cp1250": ["červené jablko", "żółty kot"],
    "cp1253": ["κόκκινο μήλο"],
    "cp1255": ["תפוח אדום"],
    "cp1256": ["تفاحة حمراء"],
    "cp874": ["แอปเปิ้ลแดง"],
    "cp850": ["café"],
    "mac_roman": ["café"],
}


def pairs(table: dict[str, list[str]]) -> list[tuple[str, str]]:
    return [(encoding, text) for encoding, texts in table.items() for text in texts]


@pytest.mark.parametrize(("encoding", "text"), pairs(TOLD))
def test_text_that_tells_its_encoding_is_read_in_it(encoding: str, text: str) -> None:
    found = decode_text(text.encode(encoding), "a.txt")
    assert found.text == text
    assert found.is_legacy


@pytest.mark.parametrize(("encoding", "text"), pairs(UNTOLD))
def test_text_that_may_be_several_things_is_refused(encoding: str, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.txt.*--encoding"):
        decode_text(text.encode(encoding), "a.txt")
    assert decode_text(text.encode(encoding), "a.txt", encoding).text == text


@pytest.mark.parametrize("text", ["a red apple", "红苹果", "cre\u0300me", "naïve кот", "猫, кот, 🐈", ""])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_read_with_and_without_a_mark(text: str, encoding: str) -> None:
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    content = marks.get(encoding, b"") + text.encode(encoding)
    found = decode_text(content, "a.txt")
    assert found.text == text
    assert not found.is_legacy


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_told_by_its_zeros(encoding: str) -> None:
    assert decode_text("a red apple\r\n一只猫\r\n".encode(encoding), "a.txt").text == "a red apple\r\n一只猫\r\n"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"\xff\xfea", None),
        (b"\xef\xbb\xbf\xff", None),
        (b"a\0b\0\0c", None),
        (b"\xff\x81\xfe\x8d", None),
        (b"\x81", "gbk"),
        (b"caf\xe9", "utf-8"),
        (b"x", "no-such"),
        (b"x", "base64"),
        (b"x", "rot13"),
    ],
)
def test_what_is_no_text_in_its_encoding_is_a_typed_error(content: bytes, encoding: str | None) -> None:
    with pytest.raises(DataError):
        decode_text(content, "a.txt", encoding)


def test_no_random_bytes_end_otherwise() -> None:
    import numpy as np

    generator = np.random.default_rng(0)
    for _ in range(300):
        content = generator.integers(0, 256, int(generator.integers(1, 24)), np.uint8).tobytes()
        plausible(content)
        with contextlib.suppress(DataError):
            assert decode_text(content, "a.txt").text


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(stream, "PNG")
    return stream.getvalue()


def folder_of(place: Path, texts: list[str], encoding: str, form: str) -> Path:
    place.mkdir()
    rows = [(f"{k}.png", text) for k, text in enumerate(texts)]
    for name, text in rows:
        (place / name).write_bytes(picture())
        if form == "txt":
            (place / name).with_suffix(".txt").write_bytes(text.encode(encoding))
    if form == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in rows]
        (place / "metadata.jsonl").write_bytes("\n".join(lines).encode(encoding))
    if form == "csv":
        stream = io.StringIO()
        csv.writer(stream).writerows([("file_name", "text"), *rows])
        (place / "metadata.csv").write_bytes(stream.getvalue().encode(encoding))
    return place


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk", "utf-32"])
def test_all_forms_of_captions_are_read_alike(tmp_path: Path, form: str, encoding: str) -> None:
    texts = ["一只红色的猫", "白色背景上的红苹果"]
    report = ReadReport()
    found = list(read_pictures(folder_of(tmp_path / "set", texts, encoding, form), report))
    assert [item.captions for item in found] == [(text,) for text in texts]
    assert bool(report.notes) == (encoding == "gbk")
    assert ("gb18030" in report.summary()) == (encoding == "gbk")


def test_where_one_text_does_not_tell_the_others_do(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", ["狗", "白色背景上的红苹果", "红旗"], "gbk", "txt")
    assert [item.captions[0] for item in read_pictures(folder, ReadReport())] == ["狗", "白色背景上的红苹果", "红旗"]


def test_an_encoding_that_is_named_holds_for_all(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "set", ["빨간 사과", "꽃"], "euc_kr", "txt")
    runner = CliRunner()
    refused = runner.invoke(data, ["inspect", str(folder)])
    assert isinstance(refused.exception, DataError)
    told = runner.invoke(data, ["inspect", str(folder), "--encoding", "euc-kr", "--json"])
    assert json.loads(told.stdout)["captions"] == 2
    built = runner.invoke(
        data, ["build", "pictures", str(tmp_path / "out"), "--from", str(folder), "--size", "8", "--encoding", "euc-kr"]
    )
    assert built.exit_code == 0
    assert "빨간 사과" in (tmp_path / "out" / "records.jsonl").read_text(encoding="utf-8")
