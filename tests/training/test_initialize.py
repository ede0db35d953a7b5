"""Variables from elsewhere: strictly what fits."""

import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cnn_research.errors import UserError
from cnn_research.interop import safetensors, torch
from cnn_research.interop.fit import SHOWN
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.initialize import initial_variables, merge, restore_run
from cnn_research.training.parallel import make_parallel
from cnn_research.training.program import make_program


def variables(value=0.0, classes=10, **more):
    head = {"kernel": jnp.full((4, classes), value), "bias": jnp.full(classes, value)}
    return {"params": {"conv1": {"kernel": jnp.full((3, 3, 1, 4), value)}, "head": head, **more}}


def fault(fresh, given, excepted=""):
    with pytest.raises(UserError) as caught:
        merge(fresh, given, excepted)
    return str(caught.value)


def test_what_fits_is_taken():
    merged = merge(variables(0.0), variables(1.0))
    assert jax.tree.structure(merged) == jax.tree.structure(variables())
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(merged))


def test_statistics_are_variables_too():
    fresh, given = ({"batch_stats": {"norm1": {"mean": jnp.full(4, value)}}} | variables(value) for value in (0.0, 1.0))
    assert (merge(fresh, given)["batch_stats"]["norm1"]["mean"] == 1).all()
    assert "unexpected batch_stats/norm1/mean 4" in fault(variables(), given)
    assert "missing batch_stats/norm1/mean 4" in fault(fresh, variables())


def test_numbers_take_the_networks_type():
    given = jax.tree.map(lambda x: np.asarray(x, np.float64), variables(1.0))
    fresh = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables())
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(merge(fresh, given)))


def test_every_fault_is_named_with_its_shape():
    given = variables(1.0, classes=7, conv2={"kernel": jnp.zeros((1, 1, 4, 4))})
    fresh = variables(0.0, scale={"factor": jnp.zeros(())})
    assert fault(fresh, given) == (
        "init_from does not fit the network: missing params/scale/factor scalar;"
        " unexpected params/conv2/kernel 1x1x4x4;"
        " params/head/bias is 7 there, 10 here; params/head/kernel is 4x7 there, 4x10 here."
        " Paths that init_except (a regex) matches keep their fresh values"
    )


def test_many_faults_are_counted():
    given = {"params": {f"layer{index}": jnp.zeros(1) for index in range(SHOWN)}}
    message = fault(variables(), given)
    assert message.count("missing") + message.count("unexpected") == SHOWN
    assert "; and 3 more." in message


def test_excepted_paths_keep_their_fresh_values():
    given = variables(1.0, classes=7, aux={"bias": jnp.zeros(1)})
    del given["params"]["conv1"]
    merged = merge(variables(0.0), given, "params/(head|conv1|aux)/")["params"]
    assert merged.keys() == {"conv1", "head"}
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(merged))
    merged = merge(variables(0.0), variables(1.0), "head/bias")["params"]
    assert (merged["head"]["bias"] == 0).all()
    assert (merged["head"]["kernel"] == 1).all()
    assert (merged["conv1"]["kernel"] == 1).all()


def test_what_is_not_excepted_must_still_fit():
    message = fault(variables(), variables(classes=7), "head/kernel")
    assert "params/head/bias is 7 there" in message
    assert "kernel is" not in message


def test_an_exception_that_is_no_regex_is_refused():
    assert fault(variables(), variables(), "(").startswith("init_except='(' is no regular expression: ")


@pytest.fixture(scope="module")
def config():
    config = configs.default_config("lenet5_modern", num_classes=10, width=0.5)
    config.data.update(name="digits", num_examples=100, channels=1)
    config.ema = 0.9
    return config


def with_fields(config, **fields):
    other = configs.from_json(configs.to_json(config))
    other.update(fields)
    return make_program(other)


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.fixture(scope="module")
def fresh(config):
    return initial_variables(make_program(config), make_parallel("jit"))


@pytest.fixture(scope="module")
def run(config, fresh, tmp_path_factory):
    """A run's directory with checkpoints of steps 3 and 7, of which 3 is the better one."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text(configs.to_json(config))
    parallel, state = make_parallel("jit"), make_program(config).init_state(fresh)
    with Checkpoints(workdir, keep_last=2, keep_best=1, metric="test/accuracy") as checkpoints:
        for step, accuracy in ((3, 0.9), (7, 0.8)):
            average = jax.tree.map(lambda x, step=step: jnp.full_like(x, step), state.average)
            saved = parallel.replicate(state.replace(step=jnp.int32(step), average=average))
            checkpoints.save(saved, {"test/accuracy": accuracy})
    return str(workdir)


def test_fresh_variables_follow_from_the_seed(config, fresh):
    parallel = make_parallel("jit")
    same, other = (initial_variables(with_fields(config, seed=seed), parallel) for seed in (0, 1))
    assert_equal(same, fresh)
    assert not np.array_equal(other["params"]["C1"]["kernel"], fresh["params"]["C1"]["kernel"])
    assert all(leaf.sharding == parallel.replicated for leaf in jax.tree.leaves(fresh))


@pytest.mark.parametrize(("step", "found"), [(None, 7), ("latest", 7), ("best", 3), (3, 3)])
def test_a_run_gives_the_variables_that_it_evaluates(run, config, step, found):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    program, restored_step, restored = restore_run(run, step, sharding)
    assert restored_step == found
    assert program.config.to_dict() == config.to_dict()
    assert_equal(restored, jax.tree.map(lambda x: np.full(x.shape, found, x.dtype), program.abstract_variables))
    assert all(leaf.devices() == {jax.devices()[3]} for leaf in jax.tree.leaves(restored))


def test_a_run_may_be_where_another_begins(run, config):
    found = initial_variables(with_fields(config, init_from=run), make_parallel("jit"))
    assert_equal(found, jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), found))


def test_a_weight_file_may_be_where_a_run_begins(config, fresh, tmp_path):
    path = str(tmp_path / "weights.safetensors")
    given = jax.tree.map(lambda x: x + 1, fresh)
    safetensors.save(given, path)
    program = with_fields(config, init_from=path, init_except="output/kernel|C1")
    found = initial_variables(program, make_parallel("jit"))
    assert_equal(found, merge(fresh, given, "output/kernel|C1"))
    program.config.model.num_classes = 7
    program.config.init_except = ""
    with pytest.raises(
        UserError, match=r"init_from does not fit the network: params/output/bias is 10 there, 7 here; "
    ):
        initial_variables(make_program(program.config), make_parallel("jit"))


RESNET = dict(width=1 / 16, stage_sizes=(1, 1), block="basic")


def save_pth(state, path):
    """Writes a state dict of float32 as `torch.save` does: a pickle, here by its opcodes, and the tensors' bytes."""

    def word(text):
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    content = b"\x80\x02}"
    with zipfile.ZipFile(path, "w") as file:
        for key, value in state.items():
            storage = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word(key) + word("cpu")
            storage += b"J" + struct.pack("<i", value.size) + b"tQ"
            strides = numbers(stride // 4 for stride in value.strides)
            tensor = b"(" + storage + b"K\0" + numbers(value.shape) + strides + b"\x89Nt"
            content += word(key) + b"ctorch._utils\n_rebuild_tensor_v2\n" + tensor + b"Rs"
            file.writestr(f"weights/data/{key}", value.tobytes())
        file.writestr("weights/data.pkl", content + b".")


@pytest.fixture(scope="module")
def resnet():
    """A config of a small ResNet, random variables that fit it, and the same as PyTorch's state dict."""
    config = configs.default_config("resnet18", num_classes=10, **RESNET)
    config.data.update(name="digits", num_examples=100)
    rng = np.random.default_rng(0)
    shapes = make_program(config).abstract_variables
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    return config, variables, torch.dump("resnet18", variables, num_classes=10, **RESNET)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_weights_of_pytorch_may_be_where_a_run_begins(resnet, tmp_path, capsys, kind):
    config, variables, state = resnet
    path = str(tmp_path / f"resnet.{kind}")
    if kind == "pth":
        save_pth({key: value for key, value in state.items() if "tracked" not in key}, path)
    else:
        save_file(state, path)
    found = initial_variables(with_fields(config, init_from=path), make_parallel("jit"))
    assert_equal(found, variables)
    assert capsys.readouterr().err == ""


def test_a_head_for_other_classes_stays_fresh(resnet, tmp_path, capsys):
    config, variables, state = resnet
    save_file(state, tmp_path / "theirs.safetensors")
    safetensors.save(variables, tmp_path / "ours.safetensors")
    fresh = None
    for file in ("theirs", "ours"):
        program = with_fields(config, init_from=str(tmp_path / f"{file}.safetensors"))
        program.config.model.num_classes = 7
        program = make_program(program.config)
        fresh = program.init_variables() if fresh is None else fresh
        found = initial_variables(program, make_parallel("jit"))
        assert_equal(found["params"].pop("head"), fresh["params"]["head"])
        expected = {layer: value for layer, value in variables["params"].items() if layer != "head"}
        assert_equal(found, {**variables, "params": expected})
        line = "init_from: params/head keeps its fresh values: 10 classes there, 7 here\n"
        assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("body", "classifier"),
    [("vgg11", dict(width=1 / 32, hidden=(32, 32))), ("resnet18", dict(width=1 / 16, norm="batch"))],
)
def test_a_network_of_pixels_begins_with_a_classifier(tmp_path, body, classifier):
    """All of it but the scores: from a run's file or from PyTorch's, with the fully connected layers that slide."""
    rng = np.random.default_rng(0)
    trained = configs.default_config(body, num_classes=10, **classifier)
    trained.data.update(name="digits", image_size=(224, 224), num_examples=100)
    shapes = make_program(trained).abstract_variables
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    safetensors.save(variables, tmp_path / "ours.safetensors")
    save_file(torch.dump(body, variables, num_classes=10, **classifier), tmp_path / "theirs.safetensors")
    fields = {"hidden": ()} | classifier
    config = configs.default_config("fcn8s", num_classes=5, body=body, **fields)
    config.data.update(name="shapes", image_size=(64, 64), num_examples=100)
    config.init_except = "head|score"
    for file in ("ours", "theirs"):
        program = with_fields(config, init_from=str(tmp_path / f"{file}.safetensors"))
        found = initial_variables(program, make_parallel("jit"))
        scores = {layer for layer in found["params"] if "score" in layer}
        assert len(scores) == 5
        rest = {layer: value for layer, value in found["params"].items() if layer not in scores}
        assert_equal(rest, {layer: value for layer, value in variables["params"].items() if layer != "head"})


@pytest.mark.parametrize(
    ("body", "region_size", "classifier"),
    [
        ("alexnet_owt", 6, dict(width=1 / 32)),
        ("vgg11", 7, dict(width=1 / 32)),
        ("resnet18", 7, dict(width=1 / 16, norm="batch")),
    ],
)
def test_a_network_of_regions_begins_with_a_classifier(tmp_path, body, region_size, classifier):
    """All of it but the heads and the proposals: from a run's file or from PyTorch's."""
    rng = np.random.default_rng(0)
    trained = configs.default_config(body, num_classes=10, **classifier)
    trained.data.update(name="digits", image_size=(224, 224), num_examples=100)
    shapes = make_program(trained).abstract_variables
    variables = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    safetensors.save(variables, tmp_path / "ours.safetensors")
    save_file(torch.dump(body, variables, num_classes=10, **classifier), tmp_path / "theirs.safetensors")
    hidden = {"hidden": ()} if body == "resnet18" else {}
    config = configs.default_config("faster_rcnn", body=body, region_size=region_size, **hidden, **classifier)
    config.data.update(name="shapes", image_size=(64, 64), num_examples=100)
    config.init_except = "head|box|rpn"
    for file in ("ours", "theirs"):
        program = with_fields(config, init_from=str(tmp_path / f"{file}.safetensors"))
        found = initial_variables(program, make_parallel("jit"))
        of_body = found["params"].keys() - {"head", "box", "rpn"}
        assert len(found["params"]) == len(of_body) + 3
        rest = {layer: found["params"][layer] for layer in of_body}
        assert_equal(rest, {layer: value for layer, value in variables["params"].items() if layer != "head"})
        assert_equal(found.get("batch_stats", {}), variables.get("batch_stats", {}))


def test_a_head_that_differs_in_more_does_not_fit(resnet, tmp_path):
    config, _, state = resnet
    state = dict(state, **{"fc.weight": np.zeros((7, 3), np.float32)})
    save_file(state, tmp_path / "weights.safetensors")
    program = with_fields(config, init_from=str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match=r"network: params/head/kernel is 3x7 there, 8x10 here\. Paths"):
        initial_variables(program, make_parallel("jit"))


def test_what_weights_of_pytorch_lack_or_have_besides_is_named(resnet, tmp_path):
    config, variables, state = resnet
    state = dict(state, **{"layer9.weight": np.zeros(3, np.float32)})
    del state["bn1.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    program = with_fields(config, init_from=str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match=r"network: missing params/bn1/scale 4; unexpected layer9\.weight 3\. Paths"):
        initial_variables(program, make_parallel("jit"))
    program.config.init_except = "^layer9|params/bn1/scale"
    found = initial_variables(program, make_parallel("jit"))
    assert_equal(found["params"]["stage2"], variables["params"]["stage2"])
    assert (found["params"]["bn1"]["scale"] == 1).all()


def test_a_network_that_torchvision_lacks_takes_no_weights_of_its(config, resnet, tmp_path):
    save_file(resnet[2], tmp_path / "weights.safetensors")
    program = with_fields(config, init_from=str(tmp_path / "weights.safetensors"))
    with pytest.raises(UserError, match="LeNet has no counterpart in torchvision"):
        initial_variables(program, make_parallel("jit"))


def test_what_is_neither_is_refused(config, tmp_path):
    with pytest.raises(UserError, match=r"is neither a run's directory nor a \.safetensors or \.pth file"):
        initial_variables(with_fields(config, init_from=str(tmp_path)), make_parallel("jit"))
