"""k-means by a library, and how concentrated its clusters are (PCL, arXiv 2005.04966, Section 3.4).

N features of d dimensions, k clusters.
"""

import importlib.metadata
import importlib.util
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
STEPS, TRIES = 20, 5  # salesforce/PCL main_pcl.py @964da1f: niter, nredo
ALPHA = 10.0  # Section 4.1, and log(Z + 10) in main_pcl.py


class Clusters(NamedTuple):
    """What one k-means finds."""

    centroids: Array  # (k, d) float32, means of their features
    owner: Array  # (N,) int64, the nearest centroid of each feature
    distance: Array  # (N,) float32, to that centroid


def kmeans(features: Array, k: int, seed: int) -> Clusters:
    """Lloyd's k-means of `features` (N, d) float32, from random features; the best of 5 tries.

    By faiss where it is installed (on the GPU with a faiss that has one), else by scikit-learn: the
    same algorithm with the same number of steps and tries, hours at 100,000 clusters. The same
    library finds the same clusters again. Raises ValueError where there are fewer features than
    clusters.
    """
    if len(features) < k:
        raise ValueError(
            f"{len(features)} images cannot fill {k} clusters: set fewer args.clusters"
        )
    by = _by_faiss if _has_faiss() else _by_scikit_learn
    return by(np.ascontiguousarray(features, dtype=np.float32), k, seed)


def library() -> str:
    """The library that `kmeans` uses here, with its version."""
    if _has_faiss():
        import faiss

        return f"faiss {faiss.__version__}"
    return f"scikit-learn {importlib.metadata.version('scikit-learn')}"


def concentration(clusters: Clusters, tau: float) -> Array:
    """φ (k,): mean distance over log(Z + α) of each cluster of Z features, with mean τ (Eq. 12).

    As the code: a cluster of one has the largest φ, and φ is clipped to its percentiles 10 and 90.
    """
    k = len(clusters.centroids)
    sizes = np.bincount(clusters.owner, minlength=k)
    total = np.bincount(clusters.owner, weights=clusters.distance, minlength=k)
    phi = total / np.maximum(sizes, 1) / np.log(sizes + ALPHA)
    phi[sizes <= 1] = 0.0
    phi[sizes <= 1] = phi.max()
    phi = phi.clip(np.percentile(phi, 10), np.percentile(phi, 90))
    if not phi.mean():
        return np.full(k, tau, dtype=np.float32)  # every feature is its own centroid
    scaled: Array = (tau * phi / phi.mean()).astype(np.float32)
    return scaled


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def _by_faiss(features: Array, k: int, seed: int) -> Clusters:
    import faiss

    d = features.shape[1]
    settings = faiss.ClusteringParameters()
    settings.niter, settings.nredo, settings.seed = STEPS, TRIES, seed
    settings.min_points_per_centroid, settings.max_points_per_centroid = 10, 1000
    clustering = faiss.Clustering(d, k, settings)
    index: Any = faiss.IndexFlatL2(d)  # or its twin on a GPU, a type of its own
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    clustering.train(features, index)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(k, d)
    squared, owner = index.search(features, 1)
    return Clusters(centroids, owner[:, 0], np.sqrt(squared[:, 0].clip(0)))


def _by_scikit_learn(features: Array, k: int, seed: int) -> Clusters:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    model = KMeans(k, init="random", n_init=TRIES, max_iter=STEPS, tol=0.0, random_state=seed)
    with threadpool_limits(1):  # several threads add up in an order that differs between runs
        owner = model.fit_predict(features)
    centroids = model.cluster_centers_
    distance = np.sqrt(((features - centroids[owner]) ** 2).sum(1))
    return Clusters(centroids, owner.astype(np.int64), distance)
