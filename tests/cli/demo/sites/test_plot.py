import matplotlib.image
import pytest
from support.site_records import record

from gradalign.cli.demo.sites.plot import save_plot


@pytest.mark.parametrize("gains", [(0.01,), (0.01, 0.02, 0.03)])
def test_the_plot_is_a_png_with_something_drawn(tmp_path, gains):
    save_plot(record(*gains), tmp_path / "demo.png")
    pixels = matplotlib.image.imread(tmp_path / "demo.png")
    assert pixels.shape[:2] == (780, 2400)
    assert pixels[..., :3].std() > 0.05
