"""Command-line arguments: values, error messages, and the round trip through YAML."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitfast.config import Config, list_recipes, load_config, load_options, option, to_yaml
from vitfast.config.recipes import find_recipe
from vitfast.errors import UserError


@dataclass
class SmallOptions:
    """Does something small."""

    checkpoint: str = option(help="a run or a checkpoint")
    images: list[str] = option(["a.png"], "files")
    top: int = option(3, "how many classes", minimum=1)
    ratio: float = option(0.5, "a share")


def test_no_arguments_mean_the_digits_recipe() -> None:
    config = load_config([])

    assert isinstance(config, Config)
    assert config == load_config(["recipe=vit_digits"])
    assert (config.recipe, config.model.name, config.data.dataset) == ("vit_digits", "vit_nano_patch4_16", "digits")


def test_arguments_win_over_the_recipe_and_the_last_one_wins() -> None:
    config = load_config(["optim.lr=1e-2", "schedule.epochs=3", "recipe=vit_digits", "optim.lr=0.5"])

    assert config.optim.lr == 0.5
    assert config.schedule.epochs == 3


def test_every_recipe_loads_and_names_itself() -> None:
    assert {"vit_digits", "vit_small_cifar10_32px"} <= set(list_recipes())
    for name, summary in list_recipes().items():
        needs = [] if name == "vit_digits" else ["data.root=/somewhere"]
        needs += ["model.checkpoint=/run"] if name == "finetune" else []
        assert load_config([f"recipe={name}", *needs]).recipe == name
        assert len(summary) > 20


def test_every_recipe_is_a_page() -> None:
    """Command, hardware, and the accuracy to expect with its source, or that there is none."""
    for name in list_recipes():
        header = [line for line in find_recipe(name).read_text().splitlines() if line.startswith("#")]
        topics = {line[1:].split()[0] for line in header if line.startswith("#   ") and line[4] != " "}
        assert {"command", "hardware", "top-1"} <= topics, name
        assert f"recipe={name} " in "\n".join(header) or name == "vit_digits"
        assert max(map(len, header)) <= 120, name


def test_a_recipe_on_top_of_another(tmp_path: Path) -> None:
    config = load_config(["recipe=deit_small_imagenet", "data.root=/images"])
    below = load_config(["recipe=deit_tiny_imagenet", "data.root=/images"])
    assert (config.recipe, config.model.name) == ("deit_small_imagenet", "deit_small_patch16_224")
    assert (config.data, config.optim, config.schedule) == (below.data, below.optim, below.schedule)

    own = tmp_path / "own.yaml"
    own.write_text("base: vit_digits\nmodel:\n  fields:\n    depth: 2\n")
    assert load_config([f"recipe={own}"]).model.fields == {"depth": 2}
    assert load_config([f"recipe={own}"]).model.name == "vit_nano_patch4_16"

    own.write_text(f"base: {own}\n")
    _assert_refused([f"recipe={own}"], ["is its own base"])
    own.write_text("base: vit_digit\n")
    _assert_refused([f"recipe={own}"], ["no recipe 'vit_digit'", "did you mean vit_digits?"])


@pytest.mark.parametrize(
    ("argument", "key", "expected"),
    [
        ("optim.lr=1e-3", "optim.lr", 0.001),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.clip_grad=null", "optim.clip_grad", None),
        ("optim.betas=[0.8,0.99]", "optim.betas", [0.8, 0.99]),
        ("data.mean=[0.1, 0.2, 0.3]", "data.mean", [0.1, 0.2, 0.3]),
        ("data.mean=0.1, 0.2,0.3", "data.mean", [0.1, 0.2, 0.3]),
        ("data.mean=0.5", "data.mean", [0.5]),
        ("train.compile=true", "train.compile", True),
        ("model.fields.qkv_bias=false", "model.fields", {"qkv_bias": False}),
        ("model.fields={mlp_ratio: 2, depth: 3}", "model.fields", {"mlp_ratio": 2, "depth": 3}),
        ("run_dir=007", "run_dir", "007"),
        ("run_dir=1e3", "run_dir", "1e3"),
        ("run_dir=a=b: [c", "run_dir", "a=b: [c"),
        ("run_dir=null", "run_dir", None),
        ("train.resume=runs/x", "train.resume", "runs/x"),
    ],
)
def test_values(argument: str, key: str, expected: object) -> None:
    value: object = load_config([argument])
    for name in key.split("."):
        value = getattr(value, name)

    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("optim.lrr=1", ["no option 'optim.lrr'", "did you mean optim.lr?", "--help"]),
        ("lr=1", ["no option 'lr'", "did you mean optim.lr?"]),
        ("data.augment.flp=1", ["did you mean data.augment.flip?"]),
        ("train.lr=1", ["did you mean optim.lr?"]),
        ("model.batch_size=1", ["did you mean data.batch_size?"]),
        ("schedule.epoch=1", ["did you mean schedule.epochs?"]),
        ("optim.lr.x=1", ["no option 'optim.lr.x'"]),
        ("data.mean[0]=1", ["no option 'data.mean[0]'", "did you mean data.mean?"]),
        ("optim=3", ["optim is a section", "optim.lr", "optim.betas"]),
    ],
)
def test_unknown_key_names_the_nearest(argument: str, words: list[str]) -> None:
    _assert_refused([argument], words)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("optim.lr=abc", ["optim.lr=abc", "expected a number", "learning rate"]),
        ("optim.lr=true", ["optim.lr=true", "expected a number"]),
        ("optim.lr=null", ["optim.lr=null", "expected a number"]),
        ("optim.lr=", ["optim.lr= has no value", "expected a number"]),
        ("data.root=", ["data.root= has no value", "text or null"]),
        ("seed=1.5", ["seed=1.5", "expected a whole number"]),
        ("schedule.epochs=true", ["schedule.epochs=true", "expected a whole number"]),
        ("train.compile=maybe", ["train.compile=maybe", "expected true or false"]),
        ("train.threads=x", ["train.threads=x", "a whole number or null"]),
        ("data.mean=x", ["data.mean=[x]", "a list of numbers"]),
        ("data.mean=[0.5,x]", ["data.mean=[0.5, x]", "a list of numbers"]),
        ("data.mean=[0.5", ["data.mean=[0.5", "cannot be read", "a list of numbers"]),
        ("data.mean=[[0.5]]", ["data.mean=[[0.5]]", "a list of numbers"]),
        ("optim.betas=[{a: 1},0.9]", ["optim.betas=[{a: 1}, 0.9]", "a list of numbers"]),
        (f"optim.lr={10**400}", ["optim.lr=1000", "expected a number"]),
        ("model.fields=null", ["model.fields=null", "a mapping"]),
        ("run_dir=${nowhere}", ["run_dir", "nowhere"]),
    ],
)
def test_wrong_type_says_key_value_and_expected_type(argument: str, words: list[str]) -> None:
    _assert_refused([argument], words)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("schedule.epochs=0", ["schedule.epochs=0", ">= 1"]),
        ("optim.lr=-1", ["optim.lr=-1", "> 0"]),
        ("optim.lr=0", ["optim.lr=0", "> 0"]),
        ("optim.lr=nan", ["optim.lr=nan", "> 0"]),
        ("optim.lr=inf", ["optim.lr=inf", "> 0"]),
        ("data.batch_size=0", ["data.batch_size=0", ">= 1"]),
        ("data.workers=-1", ["data.workers=-1", ">= 0"]),
        ("optim.label_smoothing=1", ["optim.label_smoothing=1", ">= 0, < 1"]),
        ("optim.ema_decay=1", ["optim.ema_decay=1", "> 0, < 1"]),
        ("optim.betas=[0.9]", ["optim.betas=[0.9]", "2 values"]),
        ("optim.betas=[0.9,1]", ["optim.betas=[0.9, 1]", "each >= 0, < 1"]),
        ("optim.name=adamww", ["optim.name=adamww", "one of: adamw, adam, sgd", "did you mean adamw?"]),
        ("train.precision=fp23", ["train.precision=fp23", "one of: fp32, bf16", "did you mean fp32?"]),
        ("train.device=tpu", ["train.device=tpu", "one of: auto, cpu, cuda"]),
        (
            "data.dataset=digit",
            ["data.dataset=digit", "digits, cifar10, cifar100, image_folder, file_list", "did you mean digits?"],
        ),
        ("data.interpolation=cubic", ["data.interpolation=cubic", "nearest, bilinear, bicubic"]),
        ("data.in_chans=2", ["data.in_chans=2", "one of: 1, 3"]),
        ("data.mean=[nan]", ["data.mean=[nan]", "1 or 3 values"]),
        ("data.mean=[1,2]", ["data.mean=[1, 2]", "1 or 3 values"]),
        ("data.std=[0]", ["data.std=[0]", "each > 0"]),
        ("data.crop_pct=1.5", ["data.crop_pct=1.5", ">= 0.1, <= 1"]),
        ("seed=-1", ["seed=-1", ">= 0"]),
    ],
)
def test_value_out_of_range_says_what_is_allowed(argument: str, words: list[str]) -> None:
    _assert_refused([argument], words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["schedule.min_lr=1"], ["schedule.min_lr=1 is above optim.lr="]),
        (["data.augment.crop_scale=0.5", "data.augment.crop_pad=1"], ["data.augment.crop_scale=0.5", "crop_pad=1"]),
        (["data.augment.crop_ratio=[2,1]"], ["data.augment.crop_ratio=[2, 1]", "must not exceed"]),
        (["data.root=/x"], ["data.root=/x", "digits is embedded", "data.dataset=image_folder"]),
        (["data.dataset=image_folder"], ["image_folder needs data.root=FOLDER"]),
    ],
)
def test_options_that_contradict_each_other(arguments: list[str], words: list[str]) -> None:
    _assert_refused(arguments, words)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("optim.lr", ["'optim.lr' is not of the form key=value", "write optim.lr=VALUE"]),
        ("--optim.lr=3", ["write optim.lr=3"]),
        ("--optim.weight-decay=3", ["write optim.weight_decay=3"]),
        ("--verbose", ["not a flag", "--help", "--print-config"]),
        ("vit_digits", ["write recipe=vit_digits"]),
        ("=3", ["no key before the '='"]),
        ("epochs", ["not of the form key=value, such as schedule.epochs=VALUE"]),
        ("", ["not of the form key=value"]),
    ],
)
def test_argument_of_another_form_is_explained(argument: str, words: list[str]) -> None:
    _assert_refused([argument], words)


def test_missing_recipe_lists_those_that_exist(tmp_path: Path) -> None:
    _assert_refused(["recipe=vit_digit"], ["no recipe 'vit_digit'", "did you mean vit_digits?", "vit_digits, vit_"])
    _assert_refused(["recipe=nowhere.yaml"], ["nowhere.yaml does not exist", "vit_digits, vit_"])
    _assert_refused([f"recipe={tmp_path}/"], ["is a folder", "config.yaml"])
    _assert_refused(["recipe=null"], ["no recipe 'null'"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("optim:\n  lrr: 1\n", ["no option 'optim.lrr'", "did you mean optim.lr?"]),
        ("optim:\n  lr: fast\n", ["optim.lr=fast", "expected a number"]),
        ("optim: 3\n", ["optim is a section"]),
        ("optim:\n  lr: [1\n", ["line 3", "is not YAML"]),
        ("- 1\n", ["holds no options"]),
        ("seed: true\n", ["seed=true", "expected a whole number"]),
        ("\0", ["cannot be read"]),
    ],
)
def test_error_in_a_recipe_names_the_file(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)

    _assert_refused([f"recipe={path}"], [str(path), *words])


@pytest.mark.parametrize("argument", ["run_dir=${oc.env:HOME}/a", "model.fields.a=[${seed}]"])
def test_interpolations_are_not_resolved(argument: str) -> None:
    _assert_refused([argument], [argument, "interpolations such as ${oc.env:HOME} are not resolved"])


def _many_values() -> str:
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 15))]
    return "model:\n  fields:\n" + "".join(f"    {line}\n" for line in lines)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("run_dir: ${oc.env:HOME}/a\n", ["line 1", "interpolations"]),
        ("seed: 1\nmodel:\n  fields: {a: 'x${seed}'}\n", ["line 3", "interpolations"]),
        ("model: !!set {a, b}\n", ["line 1", "a value of the type set"]),
        ("run_dir: !!binary aGk=\n", ["a value of the type binary"]),
        ("run_dir: !!python/name:os.system\n", ["a value of the type"]),
        ("null: 1\n", ["line 1", "a key that is not the name of an option"]),
        ("{[1, 2]: 1}\n", ["a key that is not the name of an option"]),
        ("model: " + "[" * 1000, ["cannot be read"]),
        ("model: " + "[" * 30 + "]" * 30, ["is not a recipe: it has more than"]),
        (_many_values(), ["is not a recipe: it has more than 10,000 values"]),
        ("#" * (2 << 20), ["is not a recipe: it has more than 1,048,576 bytes"]),
        ("seed: !!int x\n", ["cannot be read as a recipe"]),
        ("secret: text\nbase: [a]\n", ["base=[a] must be the name of a recipe or a .yaml file"]),
        ("just text that is secret\n", ["holds no options"]),
    ],
)
def test_a_recipe_holds_options_only(tmp_path: Path, content: str, words: list[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as info:
        load_config([f"recipe={path}"])
    assert all(word in str(info.value) for word in [str(path), *words])
    assert "secret" not in str(info.value)


def test_a_base_is_a_recipe(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password\n")
    (tmp_path / "mine.yaml").write_text(f"base: {secret}\n")
    with pytest.raises(UserError, match=r"secret\.txt is not a \.yaml file") as info:
        load_config([f"recipe={tmp_path / 'mine.yaml'}"])
    assert "password" not in str(info.value)


def test_a_long_chain_of_bases(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"base: {tmp_path}/{number + 1}.yaml\n")
    _assert_refused([f"recipe={tmp_path}/0.yaml"], [f"{tmp_path}/0.yaml has a chain of more than 20 bases"])


@pytest.mark.parametrize("recipe", ["a" * 300, f"/{'a' * 300}.yaml", "~nobody_of_this_name/a.yaml"])
def test_recipe_names_that_no_file_has(recipe: str) -> None:
    _assert_refused([f"recipe={recipe}"], [recipe[:30]])


@pytest.mark.parametrize("content", ["", "# nothing\n", "optim:\n  # lr: 1\ndata:\n  augment:\n"])
def test_empty_recipe_file_sets_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)

    assert asdict(load_config([f"recipe={path}"])) == asdict(Config()) | {"recipe": str(path)}


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="$"), min_size=1)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    run_dir=_TEXT.filter(str.strip),
    lr=st.floats(min_value=1e-5, max_value=1e3, allow_nan=False),
    seed=st.integers(0, 2**32 - 1),
    mean=st.none() | st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    fields=st.dictionaries(st.from_regex("[a-z_]{1,8}", fullmatch=True), st.booleans() | st.integers() | _TEXT),
)
def test_round_trip_through_yaml(tmp_path: Path, run_dir, lr, seed, mean, fields) -> None:
    config = load_config([f"run_dir={run_dir}", f"optim.lr={lr!r}", f"seed={seed}", "data.dataset=digits"])
    config.data.mean = mean
    config.model.fields = fields
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")

    again = load_config([f"recipe={path}"])

    assert again == config
    assert to_yaml(again) == to_yaml(config)


def test_print_config_prints_what_load_config_gives(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["optim.lr=0.25", "--print-config"])
    printed = capsys.readouterr().out
    path = tmp_path / "printed.yaml"
    path.write_text(printed)

    assert stop.value.code == 0
    assert load_config([f"recipe={path}"]) == load_config(["optim.lr=0.25"])


def test_print_config_shows_a_recipe_that_still_lacks_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(["recipe=vit_small_cifar10_32px", "--print-config"])
    assert "dataset: cifar10" in capsys.readouterr().out

    with pytest.raises(UserError, match=r"data\.batch_size=0"):
        load_config(["data.batch_size=0", "--print-config"])


def test_options_of_another_command() -> None:
    options = load_options(SmallOptions, ["checkpoint=runs/1", "images=[b.png,c.png]", "top=5"], "vitfast predict")

    assert options == SmallOptions("runs/1", ["b.png", "c.png"], 5, 0.5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["checkpoint=… is missing", "a run or a checkpoint", "vitfast predict --help"]),
        (["checkpoint=x", "topp=1"], ["no option 'topp'", "did you mean top?"]),
        (["checkpoint=x", "top=0"], ["top=0", ">= 1"]),
        (["checkpoint=x", "top=many"], ["top=many", "a whole number"]),
        (["checkpoint=x", "ratio=nan"], ["ratio=nan", "a finite number"]),
        (["runs/x"], ["not of the form key=value"]),
        (["checkpoint=x", "recipe=vit_digits"], ["no option 'recipe'"]),
    ],
)
def test_errors_of_another_command(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_options(SmallOptions, arguments, "vitfast predict")

    for word in words:
        assert word in str(error.value)


def test_loading_does_not_share_lists_between_configurations() -> None:
    first = load_config([])
    first.optim.betas[0] = math.pi

    assert load_config([]).optim.betas[0] != math.pi


def _assert_refused(arguments: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(arguments)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
