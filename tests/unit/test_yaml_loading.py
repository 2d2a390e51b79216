"""From a models.yaml to a Catalog, or to all problems as `file:line:column: what, and the fix`."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen.builtin import default_config
from imagegen.catalog.catalog import Catalog
from imagegen.catalog.loading import ConfigError, load_catalog, parse_catalog
from imagegen.catalog.yaml import MAX_BYTES, MAX_DEPTH
from imagegen.core.errors import ModelNotFound
from imagegen.testing import SPECS

KNOWN = "diffusers, fake, flux, flux_nunchaku, gguf, nunchaku, stable_diffusion"
REPOSITORY = Path(__file__).parents[2]

#: A good file, to which a test adds what is wrong.
GOOD = """\
models:
  a:
    name: A
    type: fake
"""


def parse(text: str) -> Catalog:
    return parse_catalog(text, SPECS)


def problems(text: str) -> list[str]:
    """The problems of an invalid file, without the file's name."""
    with pytest.raises(ConfigError) as raised:
        parse_catalog(text, SPECS, name="m.yaml")
    assert all(line.startswith("m.yaml:") for line in raised.value.lines)
    return [line.removeprefix("m.yaml:") for line in raised.value.lines]


# -- broken files ------------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, list[str]]] = {
    "an empty file": ("", ["1:1: the file holds no settings; it needs a section 'models'"]),
    "nothing but comments": ("# a\n# b\n", ["1:1: the file holds no settings; it needs a section 'models'"]),
    "a list": ("- a\n- b\n", ["1:1: the file holds no settings; it needs a section 'models'"]),
    "no models": ("global:\n  log_level: INFO\n", ["1:1: there is no model; add one under 'models'"]),
    "an empty section": ("\nmodels: {}\n", ["2:1: there is no model; add one under 'models'"]),
    "models as a list": ("models:\n  - a\n", ["1:1: 'models' must map model ids to their settings"]),
    "an embedded model that there is not": (
        GOOD.replace("fake", "flux") + "    local_path: builtin:tinny\n",
        ["5:5: 'local_path': no such embedded model; known: builtin:tiny"],
    ),
    "an unknown section": ("modls: {}\n" + GOOD, ["1:1: unknown section 'modls'; did you mean 'models'?"]),
    "aliases as a list": ("aliases: [a]\n" + GOOD, ["1:1: 'aliases' must map names to model ids"]),
    "an alias of no model": (
        "aliases:\n  gpt-image-1: aa\n" + GOOD,
        ["2:3: alias 'gpt-image-1': 'aa' is not under 'models'; did you mean 'a'?"],
    ),
    "an alias of a list": ("aliases: {x: [a]}\n" + GOOD, ["1:11: alias 'x': '['a']' is not under 'models'"]),
    "an alias that is a model": (
        "aliases: {a: a}\n" + GOOD,
        ["1:11: 'a' is the id of a model, so it cannot be an alias"],
    ),
    "an alias with a space": (
        "aliases: {gpt image: a}\n" + GOOD,
        [
            "1:11: 'gpt image' is no alias: must be '*', or letters, digits and '._:@+/-', at most 100, a letter or "
            "digit first"
        ],
    ),
    "too many aliases": (
        "aliases:\n" + "".join(f"  n{i}: a\n" for i in range(1001)) + GOOD,
        ["1:1: more than 1000 aliases"],
    ),
    "an unknown key": (GOOD + "    stps: 3\n", ["5:5: unknown key 'stps'; did you mean 'steps'?"]),
    "a key like an older spelling": (
        GOOD + "    huggingface_pth: a/b\n",
        ["5:5: unknown key 'huggingface_pth'; did you mean 'huggingface_path'?"],
    ),
    "an unknown key like nothing": (GOOD + "    xyzzy: 3\n", ["5:5: unknown key 'xyzzy'"]),
    "an unknown global key": (
        "global:\n  auto_unload_minuts: 3\n" + GOOD,
        ["2:3: unknown key 'auto_unload_minuts'; did you mean 'auto_unload_minutes'?"],
    ),
    "a missing name": ("models:\n  a:\n    type: fake\n", ["2:3: 'name' is missing"]),
    "a missing type": (
        "models:\n  a:\n    name: A\n",
        ["2:3: 'type' is missing; known: " + KNOWN],
    ),
    "neither a type nor a name, and a bad value": (
        "models:\n  a:\n    steps: 0\n  b: {name: B, type: fluks, tipe: x}\n",
        [
            "2:3: 'name' is missing",
            "2:3: 'type' is missing; known: " + KNOWN,
            "3:5: 'steps': input should be greater than or equal to 1",
            "4:16: unknown type 'fluks'; did you mean 'flux'?; known: " + KNOWN,
            "4:29: unknown key 'tipe'; did you mean 'type'?",
        ],
    ),
    "an unknown type": (
        "models:\n  a:\n    name: A\n    type: fluks\n",
        ["4:5: unknown type 'fluks'; did you mean 'flux'?; known: " + KNOWN],
    ),
    "a number out of bounds": (
        GOOD + "    steps: 0\n",
        ["5:5: 'steps': input should be greater than or equal to 1"],
    ),
    "a word for a number": (
        GOOD + "    base_size: big\n",
        ["5:5: 'base_size': input should be a valid integer, unable to parse string as an integer"],
    ),
    "a word out of three": (
        GOOD + "    memory_usage: huge\n",
        ["5:5: 'memory_usage': input should be 'low', 'medium' or 'high'"],
    ),
    "not a number": (
        GOOD + "    guidance_scale: .nan\n",
        ["5:5: 'guidance_scale': input should be less than or equal to 50"],
    ),
    "a pipeline of another family": (
        "models:\n  a: {name: A, type: flux, pipeline_class: os.system}\n",
        [
            "2:28: 'pipeline_class': input should be 'FluxPipeline', 'FluxKontextPipeline', 'FluxFillPipeline', "
            "'Flux2Pipeline' or 'Flux2KleinPipeline'"
        ],
    ),
    "an entry without settings": ("models:\n  a:\n", ["2:3: model 'a' has no settings"]),
    "an id with a slash": (
        "models:\n  a/b: {name: A, type: fake}\n",
        ["2:3: 'a/b' is no model id: letters, digits, '.', '_' and '-', at most 64, in quotes if only digits"],
    ),
    "an id that is a number": (
        "models:\n  35: {name: A, type: fake}\n",
        ["2:3: '35' is no model id: letters, digits, '.', '_' and '-', at most 64, in quotes if only digits"],
    ),
    "a reserved id": (
        "models:\n  current: {name: A, type: fake}\n",
        ["2:3: 'current' is a reserved word; choose another id"],
    ),
    "a default model that is not there": (
        "global:\n  default_model: tinny\nmodels:\n  tiny: {name: A, type: fake}\n",
        ["2:3: default_model 'tinny' is not under 'models'; did you mean 'tiny'?"],
    ),
    "a default model, in the older spelling": (
        "settings:\n  default_model: b\n" + GOOD,
        ["2:3: default_model 'b' is not under 'models'"],
    ),
    "a key twice": (
        GOOD + "    name: B\n",
        ['5:5: found duplicate key "name" with value "B" (original value: "A")'],
    ),
    "an anchor": (
        "global: &x\n  log_level: INFO\n" + GOOD,
        ["1:9: anchors and aliases are not allowed; write the value out"],
    ),
    "an alias": ("a: *x\n", ["1:4: anchors and aliases are not allowed; write the value out"]),
    "a tag that runs code": (
        GOOD + "    description: !!python/object/apply:os.system [id]\n",
        ["5:18: tags are not allowed; remove the '!...'"],
    ),
    "a tag of the user's own": (
        GOOD + "    description: !secret token\n",
        ["5:18: tags are not allowed; remove the '!...'"],
    ),
    "a harmless tag": (GOOD + "    steps: !!int 3\n", ["5:12: tags are not allowed; remove the '!...'"]),
    "two documents": (GOOD + "---\n" + GOOD, ["5:1: a second document begins; keep everything in one"]),
    "a tabulator": ("models:\n\ta: b\n", ["2:1: found character '\\t' that cannot start any token"]),
    "a colon too many": ("models: a: b\n", ["1:10: mapping values are not allowed here"]),
    "an open quote": ("models: 'a\n", ["2:1: found unexpected end of stream"]),
    "a control character": (
        "models: \x07\n",
        ["1:1: unacceptable character #x0007: special characters are not allowed"],
    ),
    "a very long value": (
        GOOD + f"    description: {'x' * 10_001}\n",
        ["5:18: a value longer than 10000 characters"],
    ),
}


@pytest.mark.parametrize(("text", "lines"), BROKEN.values(), ids=BROKEN)
def test_a_problem_is_reported_with_its_place_and_the_fix(text: str, lines: list[str]) -> None:
    assert problems(text) == lines


def test_an_alias_stands_for_a_model_and_a_star_for_every_other_name() -> None:
    catalog = parse(GOOD + "  b: {name: B, type: fake}\naliases: {gpt-image-1: b, org/name: b}\n")
    assert [catalog.id_of(name) for name in (None, "a", "b", "gpt-image-1", "org/name")] == ["a", "a", "b", "b", "b"]
    with pytest.raises(ModelNotFound, match="no alias of this name; did you mean 'gpt-image-1'"):
        catalog.id_of("gpt-image-2")
    assert parse(GOOD + 'aliases: {"*": a}\n').id_of("gpt-image-2") == "a"
    assert parse(GOOD + "aliases:\n").aliases == {}


def test_a_name_may_also_be_a_repository_or_have_an_owner() -> None:
    text = GOOD + "  b: {name: B, type: fake, hf_path: org/model@main}\naliases: {org/other: a, '*': a}\n"
    named = parse(text).named
    names = ("b", "org/model", "anyone/b", "org/other", "org/none", "*")
    assert [named(name) for name in names] == ["b", "b", "b", "a", None, "a"]


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    text = """\
global:
  default_model: d
  gpu_memory_fraction: 2
  log_levl: INFO
models:
  a:
    type: fake
    steps: none
  b:
    name: B
    type: flx
  unload:
    name: C
    type: fake
extra: 1
"""
    assert problems(text) == [
        "3:3: 'gpu_memory_fraction': input should be less than or equal to 1",
        "4:3: unknown key 'log_levl'; did you mean 'log_level'?",
        "6:3: 'name' is missing",
        "8:5: 'steps': input should be a valid integer, unable to parse string as an integer",
        "11:5: unknown type 'flx'; did you mean 'flux'?; known: " + KNOWN,
        "12:3: 'unload' is a reserved word; choose another id",
        "15:1: unknown section 'extra'",
    ]


def test_an_error_found_at_the_end_is_reported_at_its_place() -> None:
    assert problems("global:\n  default_model: d\nmodels:\n  a: {type: fake}\n") == [
        "2:3: default_model 'd' is not under 'models'",
        "4:3: 'name' is missing",
    ]


def test_the_text_of_the_error_has_one_line_for_each_problem() -> None:
    with pytest.raises(ConfigError) as raised:
        parse("models: {a: {type: fake}, b: {type: fake}}")
    assert str(raised.value) == "models.yaml:1:10: 'name' is missing\nmodels.yaml:1:27: 'name' is missing"


def test_an_unknown_default_model_beside_an_id_that_is_a_number() -> None:
    assert problems("global: {default_model: b}\nmodels:\n  1: {name: A, type: fake}\n") == [
        "1:10: default_model 'b' is not under 'models'",
        "3:3: '1' is no model id: letters, digits, '.', '_' and '-', at most 64, in quotes if only digits",
    ]


@pytest.mark.parametrize("key", ["true", "null", "2026-11-23"])
def test_an_id_that_yaml_reads_as_something_else_has_its_place(key: str) -> None:
    (line,) = problems(f"models:\n  {key}: {{name: A, type: fake}}\n")
    assert line.startswith("2:3: ")


def test_two_spellings_of_one_key_are_not_mended_by_writing_the_second_one() -> None:
    (line,) = problems(GOOD + "    hf_path: a/b\n    huggingface_path: a/c\n")
    assert line.startswith("6:5: ")
    assert "did you mean 'huggingface_path'" not in line


def test_two_spellings_of_one_section_do_not_hide_each_other() -> None:
    (line,) = problems("global: {auto_unload_minutes: 1}\nsettings: {auto_unload_minutes: 2}\n" + GOOD)
    assert line.startswith("2:1: ")


@pytest.mark.parametrize("value", ["[]", "3", "words"])
def test_a_section_that_holds_no_settings_is_named_and_no_class_of_ours_is(value: str) -> None:
    (line,) = problems(f"global: {value}\n{GOOD}")
    assert line.startswith("1:1: ")
    assert "'global'" in line
    assert "GlobalSettings" not in line


def test_a_section_without_any_model_is_one_problem() -> None:
    assert problems("models:\n") == ["1:1: there is no model; add one under 'models'"]


@pytest.mark.parametrize("text", ['"a\\nb": 1\n', '"a\\rb": 1\n', '"a\\u2028b": 1\n'])
def test_each_problem_of_any_file_is_one_line(text: str) -> None:
    assert [len(line.splitlines()) for line in problems(text + GOOD)] == [1]


# -- dangerous files ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(10)
def test_an_alias_bomb_is_answered_before_it_unfolds() -> None:
    levels = [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(20)]
    assert problems("\n".join(["a: &a [x]", *levels])) == [
        "1:4: anchors and aliases are not allowed; write the value out"
    ]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_a_deep_file_is_answered_before_it_unfolds(opening: str) -> None:
    (line,) = problems(opening * 100_000)
    assert line.endswith(f": nested deeper than {MAX_DEPTH} levels")


def test_a_file_may_be_nested_up_to_the_limit() -> None:
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert problems(f"extra: {deep}\n{GOOD}") == ["1:1: unknown section 'extra'"]
    assert problems(f"extra: [{deep}]\n{GOOD}") == [f"1:39: nested deeper than {MAX_DEPTH} levels"]


@pytest.mark.timeout(10)
def test_a_file_over_a_mebibyte_is_not_read() -> None:
    assert problems("#" * (MAX_BYTES + 1)) == ["1:1: the file is larger than 1024 KiB; split or shorten it"]


@pytest.mark.timeout(10)
def test_the_bound_is_counted_in_bytes() -> None:
    assert problems("# " + "é" * (MAX_BYTES // 2)) == ["1:1: the file is larger than 1024 KiB; split or shorten it"]


def test_a_short_value_cannot_become_a_huge_number() -> None:
    (line,) = problems(GOOD + f"    steps: {'9' * 5000}\n")
    assert "digits" in line


@pytest.mark.parametrize(
    "text",
    [
        "<<: {a: 1, b: 2, c: 3}\n",
        "models:\n  <<: {b: {name: B}, c: {name: C}}\n  a: {name: A, type: fake, stps: 3}\n",
        "models:\n  a:\n    <<: {name: A, type: fake}\n    stps: 3\n",
        "models:\n  a:\n    <<: [{name: A}, {steps: 0, type: fake}]\n",
    ],
)
def test_keys_that_are_merged_in_have_a_place_that_exists(text: str) -> None:
    for line in problems(text):
        place = line.split(":")
        assert 1 <= int(place[0]) <= len(text.splitlines())


@pytest.mark.parametrize("key", ["[a]", "[[a]]", "{a: b}", "[{a: b}]", "''", "~", ".nan", "1.5", "2026-11-23", "0x10"])
@pytest.mark.parametrize("text", ["? {key}\n: 1\n", "models: {{? {key} : 1}}\n", "models: {{a: {{? {key} : 1}}}}\n"])
def test_a_key_may_be_anything_and_is_then_a_problem(text: str, key: str) -> None:
    assert problems(text.format(key=key))


# -- any file ----------------------------------------------------------------------------------------------------------

KEYS = ["global", "settings", "models", "name", "type", "hf_path", "default_model", "steps", "a", "'1'", "~", "1", "<<"]
SCALARS = st.sampled_from([*KEYS, "fake", "flux", "-1", ".nan", "1e400", "0x1F", "2001-13-01", "''", "&x", "*x", "!t"])


def _flow(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(st.sampled_from(KEYS), children).map(": ".join)
    return st.lists(children, max_size=3).map(lambda items: f"[{', '.join(items)}]") | st.lists(pairs, max_size=4).map(
        lambda items: f"{{{', '.join(items)}}}"
    )


NEARLY_YAML = st.recursive(SCALARS, _flow, max_leaves=12)


@given(st.text() | st.text(alphabet="ab:-[]{}?!&*#|>'\"%@`,\n \t01~<=.", max_size=60) | NEARLY_YAML)
def test_any_text_raises_only_config_errors(text: str) -> None:
    with suppress(ConfigError):
        parse(text)


@given(st.binary(max_size=60))
def test_any_bytes_raise_only_config_errors(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        load_catalog(path, SPECS)


def test_even_text_that_no_file_can_hold_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        parse("models: \ud800\n")


# -- good files --------------------------------------------------------------------------------------------------------


def test_the_shipped_file_reads() -> None:
    shipped = load_catalog(default_config(), SPECS)
    assert shipped.default_model == "tiny"
    assert shipped.model("tiny").local_path == "builtin:tiny"


def test_the_file_in_the_repository_is_the_one_that_ships() -> None:
    assert (REPOSITORY / "config" / "models.yaml").read_bytes() == default_config().read_bytes()


def test_a_models_config_of_the_original_api_is_read_unchanged() -> None:
    old = """\
# 全局设置
settings:
  auto_unload_timeout: 45
  default_model: "flux_dev"
  gpu_memory_fraction: 0.9
  enable_attention_slicing: true
  enable_vae_slicing: true
  enable_cpu_offload: true
  log_level: "INFO"

# 模型配置
models:
  flux.1-schnell:
    name: "FLUX.1 Schnell"
    type: "flux"
    pipeline_class: "FluxPipeline"
    huggingface_path: "black-forest-labs/FLUX.1-schnell"
    local_path: "flux_models/FLUX.1-schnell"
  flux_dev:
    name: "显示名称"
    type: "flux"
    pipeline_class: "FluxPipeline"
    hf_path: "black-forest-labs/FLUX.1-dev"
    torch_dtype: "bfloat16"
    memory_usage: "high"
    supports_text2img: true
    supports_img2img: false
    description: "模型描述"
"""
    catalog = parse(old)
    assert catalog.default_model == "flux_dev"
    assert catalog.settings.auto_unload_minutes == 45
    assert catalog.settings.cpu_offload == "model"
    assert catalog.model("flux.1-schnell").hf_path == "black-forest-labs/FLUX.1-schnell"
    assert catalog.model("flux_dev").name == "显示名称"
    assert not catalog.model("flux_dev").supports_img2img


def test_the_older_spellings_mean_the_same_as_the_new_ones() -> None:
    older = "settings: {auto_unload_timeout: 7}\nmodels: {a: {name: A, type: flux, huggingface_path: o/n}}\n"
    newer = "global: {auto_unload_minutes: 7}\nmodels: {a: {name: A, type: flux, hf_path: o/n}}\n"
    assert parse(older) == parse(newer)


def test_json_is_yaml() -> None:
    text = json.dumps({"global": {"default_model": "a"}, "models": {"a": {"name": "A", "type": "fake"}}})
    assert parse(text).default_model == "a"


def test_an_empty_global_section_means_the_defaults() -> None:
    assert parse("global:\n" + GOOD) == parse(GOOD)


@pytest.mark.parametrize("word", ["no", "off", "NO"])
def test_words_stay_words_where_older_yaml_read_truth_values(word: str) -> None:
    assert parse(GOOD + f"    description: {word}\n").model("a").description == word


def test_times_and_octal_numbers_of_older_yaml_are_not_guessed() -> None:
    assert problems(GOOD + "    steps: 1:30\n") == [
        "5:5: 'steps': input should be a valid integer, unable to parse string as an integer"
    ]


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    path.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load_catalog(path, SPECS) == parse(GOOD)


# -- files that cannot be read -----------------------------------------------------------------------------------------


def read_problem(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load_catalog(path, SPECS)
    (line,) = raised.value.lines
    return line.removeprefix(f"{path}: ")


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    assert read_problem(tmp_path / "none.yaml") == "cannot be read: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert read_problem(tmp_path) == "cannot be read: Is a directory"


def test_a_file_in_another_encoding_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "latin1.yaml"
    path.write_bytes("models: {a: {name: é}}".encode("latin-1"))
    assert read_problem(path) == "cannot be read: is not UTF-8 text"


@pytest.mark.parametrize("word", ["true", "false", '"4"', "'4.0'", '"nan"', "yes", '"1e3"'])
@pytest.mark.parametrize("section", ["global: {max_queue: WORD}", "global: {host_cache_gb: WORD}", "global: {}"])
def test_no_word_is_a_number(section: str, word: str) -> None:
    text = f"{section.replace('WORD', word)}\n{GOOD}" + (f"    steps: {word}\n" if "WORD" not in section else "")
    line = problems(text)[0]
    assert "number" in line or "integer" in line or "valid" in line
