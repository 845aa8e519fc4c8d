"""k-means by either library, and the concentration of its clusters."""

import importlib.util

import numpy as np
import pytest
import sklearn

from lewel_bench.pretrain.parts import kmeans
from lewel_bench.pretrain.parts.kmeans import Clusters, concentration

LIBRARIES = {
    "faiss": kmeans._by_faiss,
    "scikit_learn": kmeans._by_scikit_learn,
}


@pytest.fixture(params=LIBRARIES)
def library(request):
    package = "sklearn" if request.param == "scikit_learn" else request.param
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return LIBRARIES[request.param]


def blobs(count, k, spread=0.01):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(k, 8))
    owner = np.arange(count) % k
    points = centres[owner] + spread * rng.normal(size=(count, 8))
    return points.astype(np.float32), owner


def test_clusters_are_found_and_found_again(library):
    points, owner = blobs(400, 4)
    actual = library(points, 4, 0)
    assert len(set(zip(owner, actual.owner, strict=True))) == 4  # the same up to their numbers
    means = np.stack([points[actual.owner == c].mean(0) for c in range(4)])
    np.testing.assert_allclose(actual.centroids, means, atol=1e-5)
    distance = np.linalg.norm(points - actual.centroids[actual.owner], axis=1)
    np.testing.assert_allclose(actual.distance, distance, atol=1e-3)
    assert actual.owner.dtype == np.int64
    assert actual.centroids.dtype == actual.distance.dtype == np.float32
    again, other = library(points, 4, 0), library(points, 4, 1)
    assert all(np.array_equal(a, b) for a, b in zip(actual, again, strict=True))
    assert not np.array_equal(actual.owner, other.owner)


def test_the_libraries_find_clusters_as_good():
    pytest.importorskip("faiss")
    pytest.importorskip("sklearn")
    points = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    cost = {name: (f(points, 30, 0).distance ** 2).sum() for name, f in LIBRARIES.items()}
    assert cost["faiss"] == pytest.approx(cost["scikit_learn"], rel=0.02)


def test_more_clusters_than_images_are_refused():
    with pytest.raises(ValueError, match=r"3 images cannot fill 4 clusters.*args\.clusters"):
        kmeans.kmeans(np.zeros((3, 2), dtype=np.float32), 4, 0)


def test_concentration_is_equation_12_clipped_and_scaled():
    sizes, mean_distance = [5, 20, 1, 10], [0.2, 0.6, 0.0, 0.4]
    owner = np.repeat(np.arange(4), sizes)
    distance = np.repeat(mean_distance, sizes).astype(np.float32)
    actual = concentration(Clusters(np.zeros((4, 2)), owner, distance), tau=0.2)
    phi = np.array([0.2 / np.log(15), 0.6 / np.log(30), 0.0, 0.4 / np.log(20)])
    phi[2] = phi.max()  # alone in its cluster
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    np.testing.assert_allclose(actual, 0.2 * phi / phi.mean(), rtol=1e-6)
    assert actual.mean() == pytest.approx(0.2)


def test_concentration_of_empty_and_of_exact_clusters():
    owner = np.array([0, 0, 1, 1])
    spread = concentration(Clusters(np.zeros((3, 2)), owner, np.full(4, 0.5)), tau=0.1)
    np.testing.assert_allclose(spread, 0.1)  # the empty one as the others
    exact = concentration(Clusters(np.zeros((2, 2)), owner, np.zeros(4)), tau=0.1)
    np.testing.assert_allclose(exact, 0.1)


def test_the_library_is_named_as_it_is_used(monkeypatch):
    assert kmeans.library().startswith("faiss " if kmeans._has_faiss() else "scikit-learn ")
    monkeypatch.setattr(kmeans, "_has_faiss", lambda: False)
    monkeypatch.setattr(kmeans, "_by_scikit_learn", lambda *_: kmeans.library())
    assert kmeans.kmeans(np.zeros((4, 2)), 2, 0).split() == ["scikit-learn", sklearn.__version__]
