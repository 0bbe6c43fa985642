"""A map of a feature table in two dimensions, to look at; distances of far groups mean nothing.

t-SNE (van der Maaten & Hinton, "Visualizing data using t-SNE", JMLR 9 (2008), 2579-2605) by
scikit-learn, started at the first two principal components, so that one map is made of one table.
"""

import numpy as np
import threadpoolctl
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

COMPONENTS = 50  # of the features that are looked at
PERPLEXITY = 30.0


def embedding_map(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Positions float32 [n, 2] of features [n, d], standardised here; zeros where none varies.

    The order of the rows changes nothing but rounding, which t-SNE may amplify.
    """
    x = features.astype(np.float64)
    sd = x.std(axis=0)
    varies = sd > 1e-9 * np.abs(x).max(axis=0)  # less is rounding
    x = (x[:, varies] - x[:, varies].mean(axis=0)) / sd[varies]
    if not x.size:  # all rows are alike, and t-SNE would divide by nothing
        return np.zeros((len(x), 2), np.float32)
    kept = min(COMPONENTS, *x.shape)
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        x = PCA(kept, svd_solver="covariance_eigh", random_state=seed).fit_transform(x)
        if len(x) < 8 or kept < 2:  # nothing to arrange
            return np.pad(x, ((0, 0), (0, max(0, 2 - kept))))[:, :2].astype(np.float32)
        perplexity = min(PERPLEXITY, (len(x) - 1) / 3)
        found = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(x)
    return found.astype(np.float32)
