"""``import cuda``: CUDA's Python bindings on host memory; other parts of an installed ``cuda``
package are found as before."""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
