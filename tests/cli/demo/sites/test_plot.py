import matplotlib.image
from support.site_records import record

from gradalign.cli.demo.sites.plot import save_plot


def test_the_plot_of_one_seed_has_no_intervals_and_is_a_png_with_something_drawn(tmp_path):
    save_plot(record(0.01), tmp_path / "demo.png")
    pixels = matplotlib.image.imread(tmp_path / "demo.png")
    assert pixels.shape[:2] == (780, 2400)
    assert pixels[..., :3].std() > 0.05
