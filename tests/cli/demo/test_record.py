from support.demo_records import record

from gradalign.cli import places


def test_the_record_names_machine_versions_date_and_settings(tmp_path):
    r = record(0.01)
    assert {"gradalign", "date", "machine", "versions", "settings", "seeds", "summary", "backend"} <= set(r)
    assert r["date"].endswith("+00:00")
    assert r["versions"]["torch"]
    assert r["machine"]["cpu"]["model"]
    places.write_json(tmp_path / "demo.json", r)
    assert '"accuracies"' in (tmp_path / "demo.json").read_text()
