"""The masked autoencoder against Hugging Face's, and what its masking promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bioimg_jax.errors import InputError
from bioimg_jax.models import build_encoder
from bioimg_jax.objectives import build_objective
from tests.models import hugging_face

CHANNELS = ("DNA", "RNA", "ER", "AGP", "Mito")
ENCODER = {
    "name": "vit",
    "channels": CHANNELS,
    "width": 64,
    "depth": 3,
    "heads": 4,
    "patch_px": 8,
    "image_px": 32,
}
OBJECTIVE = {"name": "mae", "decoder_width": 32, "decoder_depth": 2, "decoder_heads": 4}


def make(encoder: dict | None = None, **objective: object) -> tuple:
    mae = build_objective({**OBJECTIVE, **objective}, build_encoder({**ENCODER, **(encoder or {})}))
    params, state = mae.init(jax.random.key(0))
    return mae, params, state


def batch(n: int = 4) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {"image": jnp.asarray(rng.integers(0, 2**16, (n, 32, 32, 5), dtype=np.uint16))}


@pytest.mark.peers
@pytest.mark.parametrize("normalise_targets", [True, False])
def test_loss_is_that_of_hugging_face_for_the_same_weights_and_noise(
    normalise_targets: bool,
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.manual_seed(0)
    peer = ViTMAEForPreTraining(
        ViTMAEConfig(
            num_hidden_layers=12,
            hidden_size=96,
            num_attention_heads=3,
            intermediate_size=384,
            image_size=64,
            patch_size=8,
            num_channels=5,
            decoder_hidden_size=48,
            decoder_num_hidden_layers=4,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=192,
            layer_norm_eps=1e-6,
            norm_pix_loss=normalise_targets,
            initializer_range=0.05,
        )
    ).eval()
    mae, params, state = make(
        {"width": 96, "depth": 12, "heads": 3, "image_px": 64},
        decoder_width=48,
        decoder_depth=4,
        normalise_targets=normalise_targets,
    )
    hugging_face.fill_mae_positions(peer)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 64, 64, 5)).astype(np.float32)
    noise = rng.random((4, 64)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.tensor(images.transpose(0, 3, 1, 2)), noise=torch.tensor(noise)).loss
    inputs = {"image": jnp.asarray(images), "noise": jnp.asarray(noise)}
    copied = hugging_face.mae(peer, params)
    loss, _ = mae.loss(copied, state, inputs, key=jax.random.key(0), step=0)
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)


def test_loss_sees_visible_patches_only_and_scores_hidden_ones_only() -> None:
    mae, params, state = make(normalise_targets=False)
    inputs = mae.views(batch(1), jax.random.key(1))
    order = np.argsort(np.asarray(inputs["noise"]), axis=1)[0]
    assert inputs["noise"].shape == (1, 16)

    def gradient_of_pixels(image: jax.Array) -> jax.Array:
        predicted, _, _, _ = mae._predict(params, state, {**inputs, "image": image}, None)
        return predicted.sum()

    touched = np.abs(np.asarray(jax.grad(gradient_of_pixels)(inputs["image"]))).sum(axis=-1)[0]
    by_patch = touched.reshape(4, 8, 4, 8).sum(axis=(1, 3)).reshape(-1)
    assert (by_patch[order[:4]] > 0).all()
    assert (by_patch[order[4:]] == 0).all()


def test_an_untrained_decoder_of_zeros_has_the_variance_of_the_targets_as_loss() -> None:
    mae, params, state = make()
    params["decoder"]["predict"] = jax.tree.map(jnp.zeros_like, params["decoder"]["predict"])
    inputs = mae.views(batch(), jax.random.key(1))
    loss, _ = mae.loss(params, state, inputs, key=jax.random.key(0), step=0)
    # Mean square of a patch normalised by its n - 1 deviation: (n - 1) / n, n = 320.
    assert float(loss) == pytest.approx(319 / 320, abs=1e-4)


def test_masks_are_uniform_per_image_and_differ() -> None:
    mae, _, _ = make()
    many = {"image": jnp.zeros((512, 32, 32, 5), jnp.uint16)}
    noise = np.asarray(mae.views(many, jax.random.key(1))["noise"])
    visible = np.argsort(noise, axis=1)[:, :4]
    counts = np.bincount(visible.ravel(), minlength=16)
    # Binomial(512, 1/4): mean 128, deviation 9.8.
    assert np.all(np.abs(counts - 128) < 5 * 9.8)
    assert len({tuple(row) for row in visible}) > 400


def test_reconstruction_keeps_visible_patches_and_fills_hidden_ones() -> None:
    mae, params, state = make()
    inputs = mae.views(batch(3), jax.random.key(1))
    pictures = mae.reconstruct(params, state, inputs)
    hidden = np.isnan(np.asarray(pictures["masked"]))
    assert hidden.mean() == pytest.approx(0.75)
    assert np.isfinite(pictures["reconstruction"]).all()
    np.testing.assert_allclose(
        np.asarray(pictures["reconstruction"])[~hidden],
        np.asarray(pictures["input"])[~hidden],
        rtol=1e-6,
    )


def test_training_on_one_batch_lowers_the_loss() -> None:
    mae, params, state = make()
    inputs = mae.views(batch(2), jax.random.key(1))

    @jax.jit
    def value_and_gradient(params: dict) -> tuple:
        return jax.value_and_grad(
            lambda p: mae.loss(p, state, inputs, key=jax.random.key(0), step=0)[0]
        )(params)

    first, _ = value_and_gradient(params)
    for _ in range(30):
        _, gradient = value_and_gradient(params)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradient)
    last, _ = value_and_gradient(params)
    assert float(last) < 0.9 * float(first)


@pytest.mark.parametrize(
    ("encoder", "objective", "message"),
    [
        ({}, {"name": "mea"}, r"objective.name: 'mea'; did you mean 'mae'\?"),
        ({}, {"mask_ration": 0.5}, r"objective.mask_ration: unknown for mae; did you mean"),
        ({}, {"mask_ratio": 1.5}, r"objective.mask_ratio: 1.5, expected between 0 and 1"),
        ({}, {"decoder_width": 30}, r"objective.decoder_width: 30 must be a multiple"),
    ],
)
def test_what_cannot_be_built_is_refused(encoder: dict, objective: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(encoder, **objective)


def test_an_encoder_without_patches_is_refused() -> None:
    encoder = build_encoder({"name": "resnet", "depth": 18, "channels": CHANNELS})
    with pytest.raises(InputError, match="objective mae needs an encoder with patches"):
        build_objective(OBJECTIVE, encoder)
